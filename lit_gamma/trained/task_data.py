"""The documents of our own lm-eval tasks, from a local file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from lit_gamma.data.questions import read_questions
from lit_gamma.errors import InputError

_TRUE_OR_FALSE = (" True", " False")


def questions(data_files: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """Questions with a right answer and wrong ones, see :func:`read_questions`.

    Args:
        data_files: The JSONL file.
        metadata: What else lm-eval knows of the task.

    Returns:
        The split ``test``.

    Raises:
        InputError: No file is given, or it cannot be read.
    """
    return _documents(data_files, ())


def prontoqa(data_files: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """PrOntoQA's texts, a question in the first line, and "Answer: True" or "False" in the last.

    The arguments, the result and the errors are those of :func:`questions`.
    """
    return _documents(data_files, _TRUE_OR_FALSE)


def _documents(data_files: str | None, answers: Sequence[str]) -> dict[str, Dataset]:
    if not data_files:
        raise InputError("the task reads a local file; give --data_files FILE.jsonl")
    rows = []
    for asked in read_questions(data_files, answers):
        choices = sorted(asked.choices)  # So that no rule of ties is in favour of the right one.
        rows.append(
            {
                "prompt": asked.prompt,
                "question": asked.prompt.partition("\n")[0] + "\n",
                "choices": choices,
                "target": choices.index(asked.answer),
                "answer": asked.answer.strip(),
            }
        )
    return {"test": Dataset.from_list(rows)}
