"""Revisions of a model on the Hugging Face hub, as checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from lit_gamma.data.hub import check_reachable
from lit_gamma.errors import InputError
from lit_gamma.series.stored import WHOLE, is_folder_of_one


@dataclass(frozen=True)
class Revision:
    """One revision of a repository.

    Attributes:
        repo: ``owner/name``.
        name: A branch, a tag or a commit.
    """

    repo: str
    name: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.name}"

    def fetch(self) -> Path:
        """Its folder in the hub's local cache, where it stays; safetensors if it has them.

        Raises:
            InputError: It is not there, or the hub cannot be reached.
        """
        try:
            for name in WHOLE:
                stem, _, end = name.partition(".")
                files = [f"{stem}*.{end}", f"{name}.index.json", "config.json", "tokenizer*.json"]
                folder = snapshot_download(self.repo, revision=self.name, allow_patterns=files)
                if is_folder_of_one(Path(folder)):
                    return Path(folder)
        except RevisionNotFoundError as error:
            listed = f"{constants.ENDPOINT}/{self.repo}/tree/main"
            raise InputError(
                f"{self}: there is no such revision; {listed} lists those that there are"
            ) from error
        except RepositoryNotFoundError as error:
            raise InputError(f"{self}: the hub has no such model, or it needs a login") from error
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{self} cannot be had from the hub: {reason}") from error
        raise InputError(f"{self} holds none of {', '.join(WHOLE)} or their index.json")


def revisions(repo: str, names: Sequence[str]) -> list[Revision]:
    """Revisions by name, once the hub is known to answer.

    Raises:
        InputError: It does not.
    """
    check_reachable(f"{repo}@{','.join(names)}", "give local folders step<N>/")
    return [Revision(repo, name.strip()) for name in names]
