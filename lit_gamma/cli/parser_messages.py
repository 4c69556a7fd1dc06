"""What the parser says of a config or an argument, in one line."""

from __future__ import annotations

import re
from typing import Any

from lit_gamma.cli.nearest import did_you_mean, nearest_in_class

_NOISE = re.compile(
    "Does not validate against|Subtypes: |Subclass types |a class path|a dict with|Errors:"
    "|Expected a <class 'NoneType'>|Given value: NestedArg|Given value type|Expected a path"
    "|Not of type Path|Problem with given class_path"
)
_NO_MODULE = re.compile(r"class_path '([\w.]+)':\s*No module named '([\w.]+)'")


def condensed(message: str) -> str:
    """One line of a parser's message: the key, what it may be, what was given, what comes near."""
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    keys: list[str] = []
    wanted: list[str] = []
    given = ""
    rest: list[str] = []
    for line in lines:
        if match := re.match(r'Parser key "(.+?)":? ?(.*)', line):
            keys += [match[1]] if match[1] not in keys else []
            line = match[2]
        if match := re.match(r"(?:Given value: |.*Got value: )(.*)", line):
            given = given or match[1]
            line = line.partition("Got value")[0].removeprefix(match[0]).rstrip(". ")
        if match := re.fullmatch(r"Expected an? (?:typing\.)?(.+)", line):
            name = "the path of a class" if "import path" in match[1] else match[1]
            wanted.append(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name))
        elif line:
            rest.append(line)
    parts = [*dict.fromkeys(rest)]
    if wanted and not (parts and "Option" in parts[0]):
        parts.append(f"expected {' or '.join(dict.fromkeys(wanted))}")
    if given:
        parts.append(f"got {given}")
    if match := _NO_MODULE.search(message):
        parts = [f"{match[1]}: no module {match[2]} in this folder or on PYTHONPATH"]
    said = ": ".join(filter(None, [".".join(keys), ", ".join(parts)]))
    return said + nearest_in_class(message)


def with_nearest_option(message: str, parser: Any) -> str:
    """Adds to a message about an unknown option the one that comes nearest to it."""
    match = re.match(r"unrecognized arguments: (--[\w.+]+)", message)
    if match is None:
        return message
    commands = parser._subcommands_action._name_parser_map.values()
    known = {name for command in commands for name in command._option_string_actions}
    return message + did_you_mean(match[1], known)
