"""Trained models: read from a checkpoint or an export, exported, evaluated on text."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from lit_gamma.data.tokenizers import Tokenizer, load_tokenizer
from lit_gamma.errors import InputError
from lit_gamma.files import check_checkpoint, parts, readable
from lit_gamma.model.transformer import Transformer, TransformerConfig

_FOREIGN = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Trained:
    """A trained model and what belongs to it.

    Attributes:
        model: The transformer, in evaluation mode, float32, on the CPU.
        hyperparameters: What it was made with: transformer, gamma, optimizer, ...
        tokenizer: The tokenizer of its text; None for a task without text.
    """

    model: Transformer
    hyperparameters: dict[str, Any]
    tokenizer: Tokenizer | None

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: The model was not trained on text.
        """
        if self.tokenizer is None:
            raise InputError("the model was trained on a task without text: it has no tokenizer")
        return self.tokenizer


def load(path: str | Path) -> Trained:
    """Reads a trained model.

    Args:
        path: A checkpoint (``.ckpt``) or a folder that :func:`export` wrote.

    Raises:
        InputError: There is none, or it is not one of :class:`lit_gamma.LanguageModel`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a .ckpt file or an exported folder")
    if not path.is_dir():
        return _from_checkpoint(path)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} is a folder without config.json. A sharded checkpoint is made one file by "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    return _from_export(path)


def _from_export(path: Path) -> Trained:
    with _one_line(f"{path} is not an export of lit_gamma"):
        config = json.loads((path / "config.json").read_text())
        written = config.pop("sha256")
        for name, checksum in _checksums(path, config).items():
            if written.get(name) != checksum:
                raise InputError(f"{path / name} is not what was exported (its SHA-256 is wrong)")
        model = Transformer(TransformerConfig(**config["transformer"]))
        load_model(model, path / "model.safetensors")
        end_of_text = config.pop("end_of_text")
    tokenizer = None
    if end_of_text is not None:
        tokenizer = load_tokenizer(str(path / "tokenizer.json"), end_of_text)
    return Trained(model.eval(), config, tokenizer)


def _from_checkpoint(path: Path) -> Trained:
    check_checkpoint(path)
    with readable(path):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    with _one_line(f"{path} is not a checkpoint of LanguageModel"):
        hyperparameters = dict(checkpoint["hyper_parameters"])
        model = Transformer(TransformerConfig(**hyperparameters["transformer"]))
        prefix = "transformer."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        model.load_state_dict(weights)
    parts = [part for part in checkpoint.values() if isinstance(part, dict) and "tokenizer" in part]
    tokenizer = None
    if parts:
        backend = tokenizers.Tokenizer.from_str(parts[0]["tokenizer"])
        tokenizer = Tokenizer(backend, parts[0]["end_of_text"])
    return Trained(model.eval(), hyperparameters, tokenizer)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Says in one line what the content of a foreign or damaged file leads to."""
    try:
        yield
    except InputError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{what}: {type(error).__name__}: {reason}") from error


def _checksums(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of an export's files; of the config without them."""
    plain = json.dumps(config, sort_keys=True).encode()
    checksums = {"config.json": hashlib.sha256(plain).hexdigest()}
    for name in ("model.safetensors", "tokenizer.json"):
        if (folder / name).exists():
            digest = hashlib.sha256()
            for part in parts(folder / name):
                digest.update(part)
            checksums[name] = digest.hexdigest()
    return checksums


def export(trained: Trained, folder: str | Path) -> None:
    """Writes ``model.safetensors``, ``config.json`` and, for text, ``tokenizer.json``.

    Args:
        trained: The model.
        folder: A folder that does not exist yet; it appears when it is whole.

    Raises:
        InputError: The folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir()
        save_model(trained.model, str(draft / "model.safetensors"))
        end_of_text = None
        if tokenizer := trained.tokenizer:
            end_of_text = tokenizer.backend.id_to_token(tokenizer.end_of_text)
            tokenizer.backend.save(str(draft / "tokenizer.json"))
        config = {**trained.hyperparameters, "transformer": asdict(trained.model.config)}
        config["end_of_text"] = end_of_text
        config["sha256"] = _checksums(draft, config)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
