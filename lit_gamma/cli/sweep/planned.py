"""One run of a sweep, and what makes it the run it is. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

_PLACE = ("logger", "default_root_dir")
"""What of ``trainer`` says where a run goes, not what it is."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: What its folder is called.
        arguments: Those of the fit that makes it.
        setting: The grid's keys and their values here.
        seed: Its seed.
        content: Its config as text, see :func:`content`.
        max_steps: Its optimizer steps; -1 if epochs limit it.
    """

    name: str
    arguments: tuple[str, ...]
    setting: Mapping[str, Any]
    seed: int
    content: str
    max_steps: int


def content(config: Config) -> str:
    """What a run is: its config, but for where it goes; equal for equal runs."""
    trainer = {key: value for key, value in config["trainer"].items() if key not in _PLACE}
    return json.dumps({**config, "trainer": trainer}, sort_keys=True, default=str)
