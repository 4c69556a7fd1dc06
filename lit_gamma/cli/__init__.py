"""The command line; nothing of the science."""

from lit_gamma.cli.entry import main

__all__ = ["main"]
