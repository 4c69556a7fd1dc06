"""Where a command begins: which one it is, and what a failure says. Imports what it needs alone."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import select
import sys
import traceback
import warnings

from lit_gamma import __version__
from lit_gamma.cli.terminal import wrapped
from lit_gamma.errors import InputError

COMMANDS = {
    "init": "lay down configs and callbacks in a new folder, to begin with",
    "fit": "train, and record the trajectory",
    "validate": "compute a checkpoint's validation metrics",
    "test": "compute a checkpoint's test metrics",
    "doctor": "examine a config before training",
    "generate": "continue a prompt with a trained model",
    "perplexity": "compute a trained model's loss on text files",
    "evaluate": "run tasks of lm-evaluation-harness on a trained model",
    "export": "write a trained model as safetensors",
    "measure": "record a series of checkpoints, as if its training had been recorded",
    "sweep": "make the runs of a grid, as many at a time as you like; goes on where it was",
    "find-gamma": "try initialization scales in short runs, and say which loses nothing",
    "claim": "make the runs of a claim of the literature, and say whether it holds",
    "report": "show what a recorded run, or several, have come to: one page in HTML",
    "compare": "the same of two or more runs, and its numbers as CSV",
}
"""The commands, and what each does."""


def main() -> None:
    """Entry point of ``lit-gamma`` and ``python -m lit_gamma``."""
    status = 1

    def leave() -> None:
        if together := sys.modules.get("lit_gamma.cli.end_together"):
            together.leave(status)

    atexit.register(leave)  # Before all others, hence called after them.
    _keep_output_readable()
    try:
        _run(sys.argv[1] if len(sys.argv) > 1 else "--help")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else status
        raise
    status = 0


def _run(command: str) -> None:
    try:
        if command in ("-h", "--help"):
            print(_overview())
        elif command == "--version":
            print(f"lit-gamma {__version__}")
        elif command == "fit" and sys.argv[-1] in ("-h", "--help"):
            from lit_gamma.cli.short_help import short_help

            print(short_help())
        elif command == "init":
            from lit_gamma.cli.workspace import init

            init(sys.argv[2:])
        elif command in ("report", "compare"):
            from lit_gamma.cli import reports

            reports.run(command, sys.argv[2:])
        elif command == "measure":
            from lit_gamma.cli import measure

            warnings.formatwarning = _in_one_line  # type: ignore[assignment]
            measure.run(command, sys.argv[2:])
        elif command == "sweep":
            from lit_gamma.cli.sweep.command import sweep

            sweep(sys.argv[2:])
        elif command == "find-gamma":
            from lit_gamma.cli.find_gamma import find_gamma

            find_gamma(sys.argv[2:])
        elif command == "claim":
            from lit_gamma.cli.claim import claim

            claim(sys.argv[2:])
        elif command in ("generate", "perplexity", "evaluate", "export"):
            from lit_gamma.cli import commands

            commands.run(command, sys.argv[2:])
        elif command not in COMMANDS and not command.startswith("-"):
            from lit_gamma.cli.nearest import did_you_mean

            hint = did_you_mean(command, COMMANDS) or f"; known: {', '.join(COMMANDS)}"
            raise InputError(f"unknown command {command!r}{hint}")
        else:
            if command == "fit":
                _say_what_will_happen(sys.argv[2:])
            from lit_gamma.cli.lightning_cli import run_experiment

            # Lightning has put its own in place.
            warnings.formatwarning = _in_one_line  # type: ignore[assignment]
            run_experiment()
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            sys.exit(1)
        message = _what_the_user_did(error)
        if message is None:
            raise
        sys.exit(wrapped(f"error: {message}", sys.stderr))


def _say_what_will_happen(arguments: list[str]) -> None:
    """Before anything heavy is imported, which takes seconds."""
    from lit_gamma.cli.first_line import first_line

    if line := first_line(arguments):
        print(wrapped(line, sys.stderr), file=sys.stderr, flush=True)


def _overview() -> str:
    lines = [f"  {name:<12} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m lit_gamma COMMAND ...",
            "",
            *lines,
            "",
            "COMMAND --help lists its options; --version says which lit-gamma this is. To begin:",
            "  python -m lit_gamma fit --config configs/anchor.yaml",
        ]
    )


def _reader_has_gone() -> bool:
    """Whether nobody reads the output any more, `| head` say; the rest of it is dropped then."""
    output = select.poll()
    output.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _keep_output_readable() -> None:
    """Drops Lightning's messages that users can do nothing about, or that say ours again.

    A terminal that has no γ shows another sign in its place.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for words in ("LeafSpec", "The dirpath has changed from"):
        warnings.filterwarnings("ignore", f".*{words}")
    noise = (
        "TPU available: False",
        "Tip: For seamless",
        "SIGTERMException was raised",
        "`Trainer.fit` stopped",
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(words in record.getMessage() for words in noise)
    )


def _in_one_line(message: Warning | str, *where: object) -> str:
    """A warning on a line of its own, in place of the bar's, without where it came from."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    return clear + wrapped(f"warning: {message}", sys.stderr) + "\n"


_HOW_TO_REFER = (
    "; ${KEY} names a key in full and belongs in a config file, where the key that it is given to "
    "is written in full as well: data: {init_args: {seed: ...}}, not data: {seed: ...}"
)


def _what_the_user_did(error: BaseException) -> str | None:
    """The message for an error that bad input caused; None for a fault of the program."""
    from jsonargparse import ArgumentError
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    from lit_gamma.cli.parser_messages import condensed

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException):
        said = f"config: {str(error).strip().splitlines()[0]} (at {error.full_key})"
        absent = isinstance(error, InterpolationKeyError)
        return f"{said}{_HOW_TO_REFER if absent else ''}"
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'disk'}: {error.strerror}"
    if _raised_by_lightning(error):
        return str(error).strip().partition("\n")[0]
    return condensed(str(error)) if isinstance(error, ArgumentError) else None


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself refuses something, rather than code that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    refuses = isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"
    return refuses and str(frame.f_globals.get("__name__")).startswith("lightning.")
