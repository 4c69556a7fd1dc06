"""Lines that fit the terminal they are shown in."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TextIO


def wrapped(text: str, stream: TextIO) -> str:
    """Breaks lines between words at the width of the terminal, and indents what goes on.

    Args:
        text: Lines; those that fit stay as they are.
        stream: Where they are printed; a file or a pipe keeps them whole.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_broken(line, width) for line in text.splitlines())


def tell(text: str) -> None:
    """Says what is being done to someone who waits for it: nothing where no terminal is."""
    if sys.stderr.isatty():
        print(wrapped(text, sys.stderr), file=sys.stderr)


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = re.match(r" *(?:\S+ {2,})?", line)[0]  # type: ignore[index]
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * (len(indent) or 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
