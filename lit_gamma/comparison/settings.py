"""Configs as flat tables, to see what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NOT_A_SETTING = ("seed", "cache_dir", "data_files")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens a config to keys as the command line has them.

    Args:
        config: What ``config.yaml`` holds.
        prefix: Of all keys.

    Returns:
        Dotted keys to values. ``init_args`` is left out, an item of a list of classes goes by the
        name of its class: ``trainer.callbacks.ProbeLoss.blocks``.
    """
    if isinstance(config, Mapping):
        items = {key: value for key, value in config.items() if key != "init_args"}
        items |= config.get("init_args") or {}
    elif isinstance(config, list) and any(isinstance(item, Mapping) for item in config):
        names = [_class_name(item, i) for i, item in enumerate(config)]
        items = {
            f"{name}[{i}]" if names.count(name) > 1 else name: item
            for i, (name, item) in enumerate(zip(names, config, strict=True))
        }
    else:
        return {prefix: config}
    if prefix and not items:
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in items.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all configs.

    Returns:
        Key to the value in each config, None where it is not there.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a flat config that two runs share which differ by chance alone.

    It is that of the model, the data and the length of training; not seeds, paths, and how it was
    recorded.
    """
    return {
        key: value
        for key, value in config.items()
        if (key.startswith(("model.", "data.")) or key == "trainer.max_steps")
        and key.rsplit(".", 1)[-1] not in _NOT_A_SETTING
    }


def _class_name(item: Any, place: int) -> str:
    path = item.get("class_path") if isinstance(item, Mapping) else None
    return str(path or place).rsplit(".", 1)[-1]
