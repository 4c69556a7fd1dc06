"""The name that comes nearest to one that is misspelt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any

_OPTION = re.compile(r"class_path '([\w.]+)':\s*Option '(\w+)")
_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_CLASS = re.compile(
    r"Expected a dot import path string: ([\w.]+)|class_path '([\w.]+)':\s*No module named"
)
_BASE = re.compile(r"Subtypes: \[.*?(\w+(?:\.\w+)*\.[A-Z]\w*)(?<!Iterable)\b")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word; empty if nothing known comes near it."""
    nearest = get_close_matches(word, known, 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """:func:`did_you_mean` for a config's key: its neighbours first, then a key in another section.

    Args:
        key: The unknown key with the sections it is in, ``model.gama``.
        known: All keys, likewise.
    """
    keys = list(known)
    section, dot, name = key.rpartition(".")
    inside = [
        other.removeprefix(section + dot) for other in keys if other.startswith(section + dot)
    ]
    if hint := did_you_mean(name, {other.partition(".")[0] for other in inside}):
        return hint
    elsewhere = {other.rpartition(".")[2]: other for other in keys}
    nearest = get_close_matches(name, elsewhere, 1)
    return f"; did you mean {elsewhere[nearest[0]]}?" if nearest else ""


def nearest_in_class(message: str) -> str:
    """:func:`did_you_mean` for what a parser says of a class it does not find, or of its option."""
    if match := _OPTION.search(message):
        return did_you_mean(match[2], _options(match[1]))
    if match := _ATTRIBUTE.search(message):
        module = import_module(match[1])
        return did_you_mean(match[2], getattr(module, "__all__", dir(module)))
    base = _BASE.search(message)
    if (match := _CLASS.search(message)) and base:
        name = (match[1] or match[2]).rpartition(".")[2]
        return did_you_mean(name, set(_subclasses(_imported(base[1]))))
    return ""


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _options(path: str) -> list[str]:
    """The names that a class takes in a config."""
    from jsonargparse import ArgumentParser  # Lists of names need none.

    parser = ArgumentParser()
    parser.add_class_arguments(_imported(path))
    named = {action.dest.partition(".")[0] for action in parser._actions}
    return [*(named - {"help"}), "class_path", "init_args"]


def _subclasses(base: Any) -> Iterator[str]:
    """The names of the public classes under a base that are imported by now."""
    for child in base.__subclasses__():
        if not child.__name__.startswith("_"):
            yield child.__name__
        yield from _subclasses(child)
