"""A checkpoint's tensors by name, read from disk one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lit_gamma.errors import InputError
from lit_gamma.files import check_checkpoint, readable

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
"""How the names of single-file checkpoints end."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Files of which one, or its index ``<name>.index.json``, makes a folder a checkpoint."""


@dataclass(frozen=True)
class Stored:
    """Where the floating-point tensors of a checkpoint are; tied ones once, under the first name.

    Attributes:
        path: The checkpoint.
        files: Name of a tensor to the file that holds it, in the order of the module.
        shapes: The same to its shape.
        about: What it was made with: Lightning's hyper-parameters, or ``config.json``.
        step: Optimizer steps taken, if it says so.
    """

    path: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, torch.Size]
    about: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None

    def read(self, name: str) -> Tensor:
        """Reads one tensor: a copy, float32 (float64 if it is that); its file is closed again."""
        file = self.files[name]
        with _in_one_line(file):
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    return _widened(tensors.get_tensor(name))
            return _widened(_state_dict(_loaded(file))[name])


def open_stored(path: Path) -> Stored:
    """Looks into a checkpoint without reading its tensors.

    Args:
        path: What Lightning or ``torch.save`` wrote, a safetensors file, or a folder in Hugging
            Face's form, whole or in shards.

    Raises:
        InputError: It is none, or it is damaged.
    """
    if path.is_dir():
        files = _files_in(path)
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{path} does not exist; give a checkpoint, a folder of some, or a glob")
    found: dict[str, tuple[Path, torch.Size]] = {}
    about, step = _config(path) if path.is_dir() else {}, None
    for file in files:
        with _in_one_line(file):
            if file.suffix == ".safetensors":
                shapes = _safetensors(file)
            else:
                check_checkpoint(file)
                loaded = _loaded(file)
                shapes = _shapes(_state_dict(loaded))
                hyperparameters = loaded.get("hyper_parameters")
                about = hyperparameters if isinstance(hyperparameters, dict) else about
                step = loaded.get("global_step", step)
        found |= {name: (file, shape) for name, shape in shapes.items()}
    if not found:
        raise InputError(f"{path} is no checkpoint: it holds no weights")
    files_of, shapes_of = ({name: v[i] for name, v in found.items()} for i in (0, 1))
    return Stored(path, files_of, shapes_of, about, step)  # type: ignore[arg-type]


def is_folder_of_one(folder: Path) -> bool:
    """Whether a folder is a checkpoint in Hugging Face's form."""
    return any((folder / f"{name}{end}").exists() for name in WHOLE for end in ("", ".index.json"))


def _files_in(folder: Path) -> list[Path]:
    """The files of a checkpoint in Hugging Face's form, safetensors if there are both."""
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            with _in_one_line(index):
                shards = set(json.loads(index.read_text())["weight_map"].values())
            return [folder / shard for shard in sorted(shards)]
    if (folder / ".metadata").exists():
        raise InputError(
            f"{folder} is a sharded checkpoint of Lightning. It is made one file by "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {folder}"
        )
    raise InputError(
        f"{folder} is no checkpoint: it holds none of {', '.join(WHOLE)} or their index.json"
    )


def _safetensors(file: Path) -> dict[str, torch.Size]:
    """Name to shape; the file keeps no order, so that of the numbers in the names."""
    with safe_open(file, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {
            name: torch.Size(slices[name].get_shape())
            for name in sorted(slices, key=_numbers_by_value)
            if slices[name].get_dtype().startswith(("F", "BF"))
        }


def _numbers_by_value(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", name)]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    seen: dict[Any, str] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape
        seen.setdefault(memory if tensor.numel() else name, name)
    return {name: tensors[name].shape for name in seen.values()}


def _loaded(file: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, its tensors mapped from disk; other objects are left empty."""
    unknown = [(_Unknown, name) for name in get_unsafe_globals_in_checkpoint(file)]
    with readable(file), safe_globals(unknown):  # type: ignore[arg-type]
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(loaded, dict):
        raise InputError(f"{file} is no checkpoint: it holds a {type(loaded).__name__}")
    return loaded


def _state_dict(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors under their names, where trainers put them."""
    nested = (loaded[key] for key in ("state_dict", "model") if isinstance(loaded.get(key), dict))
    found = next(nested, loaded)
    return {
        name: tensor
        for name, tensor in found.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


class _Unknown:
    """Stands in for an object of a class that is not there, and not wanted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    with _in_one_line(file):
        return dict(json.loads(file.read_text()))


def _widened(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.to(dtype, copy=True)


@contextmanager
def _in_one_line(file: Path) -> Iterator[None]:
    """Says in one line what a foreign, damaged or missing file leads to."""
    try:
        yield
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{file} is no checkpoint that can be read ({type(error).__name__}: {reason}); copy or "
            "save it again"
        ) from error
