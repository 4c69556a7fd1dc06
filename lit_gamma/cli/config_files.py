"""What a command is built from: config files, and the callbacks of their workspace."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_gamma.cli.nearest import did_you_mean, nearest_key
from lit_gamma.cli.parser_messages import condensed
from lit_gamma.cli.workspace import SHIPPED, shipped_config
from lit_gamma.errors import InputError

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


class ConfigFile(ActionConfigFile):
    """``--config FILE``, where a file may build on others: ``extends: base.yaml``, or a list.

    The files named are read first, each relative to the file that names it, or else the one of that
    name that the package ships; what comes later wins, and ``callbacks+:`` appends to a list
    instead of replacing it.
    """

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Applies a file after the files it extends."""
        known = {action.dest for action in parser._actions if not action.dest.endswith(".help")}
        for path, layer in layers(Path(value)):
            for key, hint in _unknown_keys(OmegaConf.to_container(layer), known):
                raise InputError(f"config file {path}: unknown key {key!r}{hint}")
            try:
                ActionConfigFile.apply_config(parser, cfg, dest, OmegaConf.to_yaml(layer))
            except (ArgumentError, TypeError) as error:
                message = f"config file {path}: {condensed(str(error))}"
                raise InputError(message + _elsewhere(path, message)) from error


def layers(path: Path, opened: tuple[Path, ...] = ()) -> Iterator[tuple[Path, DictConfig]]:
    """Yields a config file after the files it extends, each without its ``extends``.

    Args:
        path: The file.
        opened: The files that extend it, the first of them first.

    Raises:
        InputError: A file does not exist, extends itself, or holds no keys and values.
    """
    if path.resolve() in opened:
        raise InputError(f"{path} extends itself, by way of {opened[-1]}")
    if not path.is_file():
        raise InputError(f"config file {path} does not exist{_instead(path, opened)}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:  # What OmegaConf makes of a number, or of a file it cannot read.
        reason = error.strerror or "it must hold keys and values"
        raise InputError(f"config file {path}: {reason}") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config file {path} is not valid YAML: {reason}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"config file {path} is not UTF-8: byte 0x{byte:02x}") from error
    if not isinstance(config, dict):
        raise InputError(f"config file {path} must hold keys and values, not a list")
    for name in ("model", "trainer", "model.transformer", "model.optimizer"):
        section: Any = config
        for key in name.split("."):
            section = section.get(key, {})
        if not isinstance(section, dict):
            raise InputError(
                f"config file {path}: {name} must hold keys and values, got {section!r}"
            )
    bases = config.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"config file {path}: extends must name files, got {bases!r}")
    for base in bases:
        beside = path.parent / base
        found = beside if beside.is_file() else shipped_config(base) or beside
        yield from layers(found, (*opened, path.resolve()))
    yield path, OmegaConf.create(config)


def _instead(path: Path, opened: tuple[Path, ...]) -> str:
    """What to say of a config file that does not exist: who named it, and what there is."""
    if opened:
        names = sorted(shipped.name for shipped in (SHIPPED / "configs").glob("*.yaml"))
        return (
            f", extended by {opened[-1]}; nor does lit-gamma come with one of that name, but with "
            f"{', '.join(names)}{did_you_mean(path.name, names)}"
        )
    if shipped_config(path):
        return (
            ", but lit-gamma comes with one: `lit-gamma init FOLDER` lays down configs/ and "
            "callbacks/ in a new folder, to run in"
        )
    return did_you_mean(path.name, [other.name for other in path.parent.glob("*.yaml")])


def _unknown_keys(section: Any, known: set[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a config that no option has, each with the nearest one that is."""
    for name, value in section.items():
        key = prefix + str(name).rstrip("+")
        if any(dest.startswith(f"{key}.") for dest in known):
            if isinstance(value, dict):
                yield from _unknown_keys(value, known, f"{key}.")
        elif key not in known:
            yield key, nearest_key(key, known | {"extends"})
        else:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and "class_path" in item:
                    stray = item.keys() - set(_OF_A_CLASS)
                    yield from ((f"{key}.{n}", did_you_mean(str(n), _OF_A_CLASS)) for n in stray)


def _elsewhere(path: Path, message: str) -> str:
    """What to say of a config that names callbacks beside it, which are not imported."""
    workspace = path.resolve().parents[1]
    if "callbacks." not in message or workspace == Path.cwd():
        return ""
    if path.is_relative_to(SHIPPED):
        return (
            "\ncallbacks are those of the callbacks/ in the working directory: `lit-gamma init "
            "FOLDER` lays these down in a new folder, to run in"
        )
    if not (workspace / "callbacks").is_dir():
        return ""
    return (
        f"\ncallbacks are those of the callbacks/ in the working directory; {workspace}/callbacks "
        f"is not imported: run this in {workspace}"
    )


def import_workspace_callbacks(workspace: Path) -> None:
    """Imports every module of a workspace's ``callbacks/``, so that classes are found by name.

    The workspace is the current directory: a config of another one must not run code from there.

    Args:
        workspace: The directory; nothing happens where it has no ``callbacks/``.

    Raises:
        InputError: A file in it cannot be imported; the message names the file.
    """
    if str(workspace) not in sys.path and (workspace / "callbacks").is_dir():
        sys.path.insert(0, str(workspace))
    for path in sorted(workspace.glob("callbacks/*.py")):
        try:
            importlib.import_module(f"callbacks.{path.stem}")
        except (Exception, SystemExit) as error:
            where = _line_in(path, error)
            raise InputError(
                f"{path}{where} cannot be imported: {type(error).__name__}: {error}; "
                "mend the file or move it out of callbacks/"
            ) from error


def _line_in(path: Path, error: BaseException) -> str:
    """The line of ``path`` that an error came from, as ``:12``; empty if it is not on the way."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""
