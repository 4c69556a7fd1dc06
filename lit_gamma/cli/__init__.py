"""The command line; nothing of the science."""

from lit_gamma.cli.lightning_cli import main

__all__ = ["main"]
