"""Weights that exist already: read from a folder, in place of a draw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lit_gamma.errors import InputError
from lit_gamma.files import parsed
from lit_gamma.init.audit import Audit
from lit_gamma.model.llama import from_llama, llama_name
from lit_gamma.model.transformer import Transformer, TransformerConfig

OWN_TYPE = "lit_gamma"
"""The ``model_type`` of an export that is no model of ``transformers``' own."""


def start_from_(model: Transformer, folder: str | Path) -> Audit:
    """Gives a model the weights of a folder, as a start for training.

    Args:
        model: The model, changed in place; it keeps its dtype.
        folder: See :func:`read_config`.

    Returns:
        An audit without a row, which says where the weights come from.

    Raises:
        InputError: The folder cannot be read, or its model has another shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"model.init_from {folder}: no such folder; give a Llama's or an export")
    shape, config = read_config(folder)
    theirs, ours = _explicit(shape), _explicit(model.config)
    other = {name: value for name, value in theirs.items() if value != ours[name]}
    if shape.position == "rope":
        other.pop("context_length", None)  # No weight depends on it.
    if other:
        told = ", ".join(f"{name} is {ours[name]}" for name in other)
        raise InputError(f"model.init_from {folder} has another shape ({told}): {_advice(other)}")
    read_weights_(model, folder, config)
    return Audit(source=str(folder))


def read_config(folder: Path) -> tuple[TransformerConfig, dict[str, Any]]:
    """Reads the shape of the model in a folder.

    Args:
        folder: A Llama that ``transformers`` saved, in any version, or an export of either format.

    Returns:
        The shape, and all that ``config.json`` holds.

    Raises:
        InputError: There is no config, or no :class:`Transformer` is this model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder of an export or of a Llama")
    with parsed(f"{path} is not the config of an export or a Llama"):
        config: dict[str, Any] = json.loads(path.read_text())
        kind = config.get("model_type")
        if kind == "llama":
            return from_llama(config), config
        if kind is not None and kind != OWN_TYPE:
            raise InputError(f"{path} is of a model of type {kind}; it must be a llama")
        names = [field.name for field in fields(TransformerConfig)]
        shape = {name: config[name] for name in names} if kind else config["transformer"]
        return TransformerConfig(**shape), config


@torch.no_grad()
def read_weights_(model: Transformer, folder: Path, config: Mapping[str, Any]) -> None:
    """Fills a model from a folder's safetensors, which may be sharded.

    Args:
        model: A model of the folder's shape; it keeps its dtype.
        folder: The folder.
        config: What its ``config.json`` holds.

    Raises:
        InputError: A file or a tensor is missing, damaged, or has no place in the model.
    """
    of_llama = config.get("model_type") == "llama"
    with parsed(f"{folder} does not hold the weights of its model"):
        tensors = {name: t for file in _files(folder) for name, t in load_file(file).items()}
        for name, weight in model.state_dict().items():
            theirs = llama_name(name) if of_llama else name
            found = tensors.pop(theirs, None)
            if name == "lm_head.weight" and model.config.tie_embeddings:
                continue
            if found is None or found.shape != weight.shape:
                has = "no such tensor" if found is None else f"shape {tuple(found.shape)}"
                raise InputError(f"{folder}: {theirs} of shape {tuple(weight.shape)}: {has}")
            weight.copy_(found)
        for name in tensors:
            if not name.endswith("rotary_emb.inv_freq"):  # A table that old versions saved.
                raise InputError(f"{folder}: {name} has no place in the model")


def _files(folder: Path) -> Iterable[Path]:
    """The files of the weights."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    for name in sorted(names):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name} does not exist: weights are read as safetensors, which "
                "save_pretrained of transformers writes"
            )
        yield folder / name


def _explicit(config: TransformerConfig) -> dict[str, Any]:
    """A config without sizes that follow from others."""
    return {**asdict(config), "d_ff": config.hidden_width, "d_head": config.head_width}


def _advice(other: Mapping[str, Any]) -> str:
    """What makes the shape that of the folder; the data decides about vocabulary and context."""
    by_data = {
        "vocab_size": "data of the folder's tokenizer.json, {} tokens",
        "context_length": "--data.context_length {}",
    }
    usual = "--model.transformer.{name} {}"
    told = [by_data.get(name, usual).format(value, name=name) for name, value in other.items()]
    return f"give {' '.join(told)}"
