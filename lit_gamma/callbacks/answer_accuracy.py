"""Answer accuracy: is the right answer the likeliest?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lit_gamma.data.questions import encoded, read_questions
from lit_gamma.errors import InputError
from lit_gamma.probing.continuations import continuation_scores
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.described import TokenizedText
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.reading import load
from lit_gamma.trajectory.table import Quantity


class AnswerAccuracy(TrajectoryCallback):
    """Records how questions are answered, each of which has a right answer and wrong ones.

    A file has a question a line, ``{"prompt": "2 + 2 =", "answer": " 4", "wrong": [" 3", " 5"]}``;
    or a document a line, ``{"text": ...}``, that ends with its answer, for which ``answers`` names
    all that there are. Nothing is put between prompt and answer, or before the prompt.

    Logged as ``1_answer_accuracy/<quantity>``: the ``quantities`` below. The accuracy of a guess,
    ``chance``, is in the file's metadata. The DataModule needs a ``tokenizer`` and a
    ``context_length``; of a question that is longer the beginning is cut off, with a warning.

    Time: a forward of each question and answer; of one alone for answers of one token each.

    Args:
        questions: A JSONL file, which training should not have seen.
        answers: How documents end, as ``[" True", " False"]``; none for a file of questions.
        n_questions: Only the first so many are asked: a share of 500 has a standard error of 2 %.
        schedule: The steps to record; by default every 1,000 and four per factor of ten.
    """

    default_schedule = Schedule(every=1000, per_decade=4)
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "accuracy",
            "share of questions whose right answer is likelier than each wrong one",
            range="0..1",
            chart="answers",
        ),
        Quantity(
            "greedy",
            "share of questions that greedy decoding answers rightly",
            range="0..1",
            chart="answers",
        ),
        Quantity(
            "confidence",
            "mean of the probability of the right answer over that of all given ones",
            range="0..1",
            chart="answers",
        ),
    )
    section = "1"

    def __init__(
        self,
        questions: str,
        answers: Sequence[str] = (),
        n_questions: int = 500,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(schedule)
        if n_questions < 1:
            raise InputError(f"AnswerAccuracy: n_questions must be at least 1, got {n_questions}")
        self.path = questions
        self.questions = read_questions(questions, answers)[:n_questions]
        choices = [len(question.choices) for question in self.questions]
        self.chance = sum(1 / n for n in choices) / len(choices)
        self._there = torch.arange(max(choices)) < torch.tensor(choices)[:, None]

    @override
    def about(self) -> Mapping[str, Any]:
        n_questions = len(self.questions)
        return {"questions": self.path, "n_questions": n_questions, "chance": self.chance}

    @override
    def start(self, run: Run) -> None:
        data = run.data
        if not isinstance(data, TokenizedText) or not hasattr(data, "context_length"):
            raise InputError(
                f"AnswerAccuracy needs data with a tokenizer and a context_length, as Text; "
                f"{type(data).__name__} has none: leave the callback out"
            )
        self._length: int = data.context_length
        self._pairs = [
            encoded(data.tokenizer, question.prompt, choice)
            for question in self.questions
            for choice in question.choices
        ]
        longest = max(len(answer) for _, answer in self._pairs)
        if longest > self._length:
            raise InputError(
                f"{self.path} has an answer of {longest} tokens, more than the context_length "
                f"{self._length}; raise data.context_length"
            )
        cut = sum(len(prompt) + len(answer) > self._length + 1 for prompt, answer in self._pairs)
        if cut:
            run.warn(
                f"{self.path}: {cut} of {len(self._pairs)} questions with answers are longer than "
                f"context_length {self._length}; their beginning is cut off"
            )
        super().start(run)

    @override
    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        def logits_of(ids: Tensor) -> Tensor:
            outputs = pl_module(ids)
            logits: Tensor = getattr(outputs, "logits", outputs)
            return logits

        device = self.run.device
        with self.run.probing():
            scores = continuation_scores(logits_of, self._pairs, self._length, device)
        there = self._there.to(device)
        likelihood = torch.full(there.shape, -torch.inf, device=device)
        likelihood[there] = scores.log_likelihood  # A question a row, the right answer first.
        right, wrong = likelihood[:, 0], likelihood[:, 1:]
        greedy = torch.zeros_like(there).masked_scatter(there, scores.greedy)[:, 0]
        confidence = likelihood.softmax(1)[:, 0]
        each = {"accuracy": right > wrong.amax(1), "greedy": greedy, "confidence": confidence}
        return {name: values.float().mean()[None] for name, values in each.items()}

    @override
    def in_words(self) -> str | None:
        table = load(self.run.folder, [self.name]).get(self.name)
        if table is None:
            return None
        last = table.iloc[-1]
        return (
            f"questions at step {last['step']:.0f}: {last['accuracy']:.2f} answered rightly "
            f"(chance {self.chance:.2f})"
        )
