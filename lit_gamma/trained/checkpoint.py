"""Trained models: read from a checkpoint or an export, exported, evaluated on text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from safetensors.torch import load_model, save_model

from lit_gamma.data.tokenizers import Tokenizer, load_tokenizer
from lit_gamma.errors import InputError
from lit_gamma.files import check_checkpoint, new_folder, parsed, readable, sha256_of
from lit_gamma.model.pretrained import read_config, read_weights_
from lit_gamma.model.transformer import Transformer, TransformerConfig
from lit_gamma.trained.transformers_folder import write_transformers

Format = Literal["lit_gamma", "transformers"]


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
            InputError: None came with it.
        """
        if self.tokenizer is None:
            raise InputError(
                "no tokenizer came with the model: its task has no text, or its folder no "
                "tokenizer.json"
            )
        return self.tokenizer


def load(path: str | Path) -> Trained:
    """Reads a trained model.

    Args:
        path: A checkpoint (``.ckpt``), a folder that :func:`export` wrote, or a Llama's that
            ``transformers`` saved.

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
    with parsed(f"{path / 'config.json'} is not the config of a model"):
        theirs = "model_type" in json.loads((path / "config.json").read_text())
    return _from_transformers(path) if theirs else _from_export(path)


def _from_transformers(path: Path) -> Trained:
    shape, config = read_config(path)
    model = Transformer(shape)
    read_weights_(model, path, config)
    hyperparameters = {**config.get("lit_gamma", {}), "transformer": asdict(shape)}
    return Trained(model.eval(), hyperparameters, folder_tokenizer(path))


def folder_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a folder of ``transformers``; None where there is no ``tokenizer.json``.

    Raises:
        InputError: It cannot be read.
    """
    if not (path / "tokenizer.json").is_file():
        return None
    return load_tokenizer(str(path / "tokenizer.json"), _end_of_text(path))


def _end_of_text(path: Path) -> str | None:
    """The token that ends a text, as a folder of ``transformers`` names it."""
    file = path / "tokenizer_config.json"
    with parsed(f"{file} is not the config of a tokenizer"):
        token = json.loads(file.read_text()).get("eos_token") if file.is_file() else None
        return token if token is None or isinstance(token, str) else str(token["content"])


def _from_export(path: Path) -> Trained:
    with parsed(f"{path} is not an export of lit_gamma"):
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
    with parsed(f"{path} is not a checkpoint of LanguageModel"):
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


def _checksums(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of an export's files; of the config without them."""
    plain = json.dumps(config, sort_keys=True).encode()
    checksums = {"config.json": hashlib.sha256(plain).hexdigest()}
    for name in ("model.safetensors", "tokenizer.json"):
        if (folder / name).exists():
            checksums[name] = sha256_of(folder / name)
    return checksums


def export(trained: Trained, folder: str | Path, format: Format = "lit_gamma") -> None:
    """Writes ``model.safetensors``, ``config.json`` and, for text, ``tokenizer.json``.

    Args:
        trained: The model.
        folder: A folder that does not exist yet; it appears when it is whole.
        format: ``lit_gamma`` for this package alone, its files with checksums; ``transformers``
            for ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Raises:
        InputError: The folder exists, or the model cannot be written in that format.
    """
    with new_folder(Path(folder)) as draft:
        if format == "transformers":
            write_transformers(trained.model, trained.tokenizer, trained.hyperparameters, draft)
            return
        save_model(trained.model, str(draft / "model.safetensors"))
        end_of_text = None
        if tokenizer := trained.tokenizer:
            end_of_text = tokenizer.backend.id_to_token(tokenizer.end_of_text)
            tokenizer.backend.save(str(draft / "tokenizer.json"))
        config = {**trained.hyperparameters, "transformer": asdict(trained.model.config)}
        config["end_of_text"] = end_of_text
        config["sha256"] = _checksums(draft, config)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
