"""What a config says by its seed, so that one read with a seed is known with any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

from lit_gamma.cli.sweep.planned import content

Place = tuple[str | int, ...]
"""Where a value stands in nested ones: keys and indices, from the top."""


def places_of_seed(one: str, other: str, keys: Iterable[str]) -> list[Place] | None:
    """Where a config holds its seed, as ``data.seed: ${seed_everything}`` makes it.

    Args:
        one: Its :func:`~lit_gamma.cli.sweep.planned.content` with a seed.
        other: That with another.
        keys: Those that other values are given to.

    Returns:
        The places; None if something else depends on the seed, or one of the keys has to do with
        such a place.
    """
    here, there = dict(_leaves(json.loads(one))), dict(_leaves(json.loads(other)))
    places = [place for place in here if here[place] != there.get(place)]
    seeds = here[_SEED], there[_SEED]
    alone = here.keys() == there.keys() and all((here[p], there[p]) == seeds for p in places)
    names = [_name(place) for place in places]
    meant = any(_within(_name(tuple(key.split("."))), name) for key in keys for name in names)
    return places if alone and not meant else None


def at_seed(read: str, places: Iterable[Place], seed: int) -> str:
    """The content of a config with another seed in its places."""
    config = json.loads(read)
    for *above, last in places:
        holds = config
        for key in above:
            holds = holds[key]
        holds[last] = seed
    return content(config)


_SEED: Place = ("seed_everything",)


def _leaves(value: Any, at: Place = ()) -> Iterator[tuple[Place, str]]:
    if not isinstance(value, dict | list) or not value:
        yield at, json.dumps(value)  # 1 is not 1.0, nor True.
        return
    for key, of in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(of, (*at, key))


def _name(place: Place) -> Place:
    """A place as a command line names it, as far as the first list."""
    keys = takewhile(lambda part: isinstance(part, str), place)
    return tuple(key for key in keys if key != "init_args")


def _within(one: Place, other: Place) -> bool:
    """Whether one of two names holds the other."""
    return all(a == b for a, b in zip(one, other, strict=False))
