"""The one error that means: the input is at fault, not the program."""


class InputError(ValueError):
    """Bad input from a user: a config value, a file, an argument.

    Its message names the offending value, where it came from and what to do; the command line
    prints it without a traceback.
    """
