"""A source of text as a config names it."""

from __future__ import annotations

from dataclasses import dataclass

from lit_gamma.data.documents import HubDocuments, LocalDocuments
from lit_gamma.errors import InputError

Documents = LocalDocuments | HubDocuments


@dataclass(frozen=True)
class Source:
    """Where documents come from: local files, or a dataset of the Hugging Face hub.

    Attributes:
        data_files: Paths or glob patterns of text, JSONL or Parquet files.
        dataset: Instead of files: a repository of the hub, or a folder of its form.
        config: The dataset's configuration.
        split: Its split; a slice such as ``train[:1%]`` too.
        revision: Its commit or tag; the newest when it is first prepared if None.
        field: Column that holds the text; plain text files have none.
        val_files: Files for validation, in place of the end of the training text.
        val_split: Split for validation, in place of the end of the training text.
        weight: Share of the training blocks, in any unit; None: as large as the source is.
    """

    data_files: str | list[str] | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    field: str = "text"
    val_files: str | list[str] | None = None
    val_split: str | None = None
    weight: float | None = None

    def training(self, name: str) -> Documents:
        """The documents to train on.

        Raises:
            InputError: There are none, or files and a dataset both; ``name`` says whose.
        """
        if bool(self.data_files) == bool(self.dataset):
            raise InputError(f"{name}: give either data_files or a dataset")
        if self.data_files:
            return LocalDocuments(self.data_files, self.field, f"{name}.data_files")
        return self._of_dataset(self.split, name)

    def validation(self, name: str) -> Documents | None:
        """The documents to validate on, if they are apart from the others.

        Raises:
            InputError: They cannot be found; ``name`` says whose.
        """
        if self.val_files:
            return LocalDocuments(self.val_files, self.field, f"{name}.val_files")
        return self._of_dataset(self.val_split, name) if self.val_split else None

    def _of_dataset(self, split: str, name: str) -> HubDocuments:
        if not self.dataset:
            raise InputError(f"{name}: val_split {split!r} needs a dataset")
        return HubDocuments(self.dataset, self.config, split, self.revision, self.field)


def weights_of(sources: dict[str, Source]) -> list[float] | None:
    """The weights of sources in their order; None if no source has one.

    Raises:
        InputError: Some sources have no weight, or one is not positive.
    """
    given = {name: s.weight for name, s in sources.items() if s.weight is not None}
    if not given:
        return None
    if missing := sorted(set(sources) - set(given)):
        raise InputError(f"data.sources.{missing[0]} has no weight, but others have; give all one")
    for name, weight in given.items():
        if not 0 < weight < float("inf"):
            raise InputError(f"data.sources.{name}: weight must be positive, got {weight}")
    return list(given.values())
