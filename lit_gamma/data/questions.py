"""Questions with a right answer and wrong ones, from JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gamma.data.documents import checked
from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError

Pair = tuple[list[int], list[int]]
"""Tokens, and those that continue them."""


@dataclass(frozen=True)
class Question:
    """A text to continue, and what may continue it.

    Attributes:
        prompt: The text.
        answer: What continues it rightly, with the space before it if there is one.
        wrong: What continues it wrongly, likewise.
    """

    prompt: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers, the right one first."""
        return self.answer, *self.wrong


def read_questions(file: str | Path, answers: Sequence[str] = ()) -> list[Question]:
    """Reads a file of questions, or of documents that end with their answer.

    Args:
        file: JSONL. A question is a line with ``prompt``, ``answer`` and ``wrong``, a list; a
            document one with ``text``.
        answers: How a document may end, space included; the others are then wrong, and its prompt
            is what stands before. Without them the file is of questions.

    Raises:
        InputError: The file cannot be read, holds no question, or a line is none; a single answer.
    """
    if answers and len(set(answers)) < 2:
        raise InputError(
            f"{file}: answers must name all that there are, two at least, got {list(answers)}"
        )
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error}"
        raise InputError(f"{file} cannot be read as JSONL: {reason}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"{file}, line {number}")
            read = _of_document if answers else _of_fields
            found.append(read(row, f"{file}, line {number}", tuple(answers)))
    if not found:
        raise InputError(f"{file} holds no question")
    return found


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: {line[:40]} is no object with fields")
    return row


def _of_fields(row: dict[str, Any], where: str, _: tuple[str, ...]) -> Question:
    wrong = row.get("wrong")
    if not isinstance(wrong, list) or not wrong:
        raise InputError(f"{where}: 'wrong' must be a list of wrong answers, got {wrong!r}")
    texts = {"prompt": row.get("prompt"), "answer": row.get("answer")}
    for name, text in [*texts.items(), *(("wrong", text) for text in wrong)]:
        if not isinstance(text, str) or not (text or name == "prompt"):
            raise InputError(f"{where}: {name!r} must be a text, and an answer not empty: {text!r}")
        checked(text, where, name)
    if row["answer"] in wrong:
        raise InputError(f"{where}: the answer {row['answer']!r} is among the wrong ones")
    return Question(row["prompt"], row["answer"], tuple(wrong))


def _of_document(row: dict[str, Any], where: str, answers: tuple[str, ...]) -> Question:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' must be a text, got {text!r}")
    text = checked(text, where, "text").rstrip()
    given = max((a for a in answers if text.endswith(a)), key=len, default=None)
    if given is None or not text.removesuffix(given).strip():
        raise InputError(
            f"{where}: the text does not end with {' or '.join(map(repr, answers))}: "
            f"...{text[-30:]!r}"
        )
    return Question(text.removesuffix(given), given, tuple(a for a in answers if a != given))


def encoded(tokenizer: Tokenizer, prompt: str, continuation: str) -> Pair:
    """The tokens of a prompt, and those that a continuation adds to them.

    Spaces at the end of the prompt go with the continuation, since most tokenizers join a space to
    the word behind it. An empty prompt is an end-of-text token, as before any document.

    Raises:
        InputError: The continuation adds no token.
    """
    start = prompt.rstrip()
    whole = tokenizer.encode([prompt + continuation])[0].tolist()
    before = tokenizer.encode([start])[0].tolist() if start else []
    if len(whole) <= len(before):
        raise InputError(
            f"{continuation!r} adds no token to ...{prompt[-30:]!r}; begin it with a space, or end "
            "the text before it elsewhere"
        )
    return before or [tokenizer.end_of_text], whole[len(before) :]
