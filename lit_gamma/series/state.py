"""How far a series is measured, in the folder of its record: it goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_gamma.errors import InputError
from lit_gamma.files import replacing

STATE = "measured.json"
"""The file; its checkpoints' rows are all written when it names them."""


@dataclass
class State:
    """What was measured.

    Attributes:
        steps: The steps of the checkpoints that were.
        skipped: The step of each that could not be read to the reason.
        matrices: Path and shape of each weight matrix.
        files: Name of a callback to how far its record goes.
        seconds: How long it took.
        text: SHA-256 of the text that models were run on; empty without one.
    """

    steps: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    matrices: list[list[Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    text: str = ""

    @property
    def last(self) -> int:
        """The last step that was measured; -1 if none was."""
        return self.steps[-1] if self.steps else -1

    @classmethod
    def read(cls, folder: Path) -> State:
        """The state of the record in a folder; a new one where there is none.

        Raises:
            InputError: What is there is no series' record, or cannot be read.
        """
        path = folder / STATE
        if not path.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.glob("trajectory/*.arrow"))):
                raise InputError(
                    f"--out {folder} holds no record that measure began; name another folder"
                )
            return cls()
        try:
            state = cls(**json.loads(path.read_text()))
            state.skipped = {int(step): reason for step, reason in state.skipped.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove {folder} to measure anew, or name another"
            ) from error
        return state

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        with replacing(folder / STATE) as draft:
            draft.write_text(json.dumps(asdict(self)) + "\n")
