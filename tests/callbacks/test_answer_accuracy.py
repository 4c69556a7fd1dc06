"""Answers of questions: recomputed one by one, unseen by training, refused where they are none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import datasets
import lightning
import numpy as np
import pytest
import torch
from helpers.runs import Snapshots, fit
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import InputError, LanguageModel, TransformerConfig, trajectory
from lit_gamma.callbacks import AnswerAccuracy, Schedule
from lit_gamma.data import Text
from lit_gamma.data.questions import Question, encoded, read_questions
from lit_gamma.data.tokenizers import ByteTokenizer
from lit_gamma.probing import continuations

EVERY = Schedule(every=1)
LENGTH = 24


def write(path: Path, *rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    """Sums with one to four wrong answers, some longer than the context."""
    rows = [
        {
            "prompt": f"{'so ' * (n % 11)}{n} and one is",
            "answer": f" {n + 1}",
            "wrong": [f" {n + k}" + "!" * (k - 2) for k in range(2, 3 + n % 4)],
        }
        for n in range(40)
    ]
    return write(tmp_path / "sums.jsonl", *rows, {"prompt": "", "answer": "1", "wrong": ["2"]})


def fit_text(root: Path, *callbacks, steps: int = 4):
    file = root / "text.txt"
    file.write_text("".join(f"{n} and one is {n + 1}, so " for n in range(400)))
    lightning.seed_everything(0)
    data = Text(str(file), context_length=LENGTH, batch_size=4, cache_dir=str(root / "cache"))
    module = LanguageModel(TransformerConfig(data.vocab_size, LENGTH, 1, 2, 16), 0.5)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=list(callbacks), enable_checkpointing=False,
        logger=TensorBoardLogger(root, name="", default_hp_metric=False), limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module


@torch.no_grad()
def by_hand(module: LanguageModel, prompt: str, answer: str) -> tuple[float, bool]:
    """One answer's log-likelihood and greediness, byte by byte, each from a forward of its own."""
    tokens = list(prompt.encode()) or [256]
    total, greedy = 0.0, True
    for byte in answer.encode():
        # The context that the last byte of the answer still sees stays the same for all.
        at = list((prompt + answer).encode() if prompt else [256, *answer.encode()])
        start = max(0, len(at) - 1 - LENGTH)
        logits = module(torch.tensor([tokens[start:]]))[0, -1].double()
        total += logits.log_softmax(-1)[byte].item()
        greedy &= logits.argmax().item() == byte
        tokens.append(byte)
    return total, greedy


def test_every_step_has_what_asking_question_by_question_gives(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(continuations, "TOKENS_AT_ONCE", 100)
    kept = Snapshots()
    with pytest.warns(UserWarning, match=r"sums.jsonl: \d+ of \d+ .* context_length 24; their beg"):
        trainer, module = fit_text(tmp_path, AnswerAccuracy(str(questions), schedule=EVERY), kept)
    table = trajectory.load(trainer.log_dir)["answer_accuracy"].set_index("step")
    assert list(table.index) == [0, 1, 2, 3, 4]
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for step in (0, 2, 4):
        module.load_state_dict(kept.weights[step])
        right, share, greedy = [], [], []
        for row in rows:
            likelihood, taken = by_hand(module, row["prompt"], row["answer"])
            others = [by_hand(module, row["prompt"], wrong)[0] for wrong in row["wrong"]]
            right.append(likelihood > max(others))
            greedy.append(taken)
            share.append(1 / (1 + sum(math.exp(other - likelihood) for other in others)))
        got = table.loc[step]
        assert got["accuracy"] == pytest.approx(np.mean(right))
        assert got["greedy"] == pytest.approx(np.mean(greedy))
        assert got["confidence"] == pytest.approx(np.mean(share), rel=1e-5)
    assert 0 < table.loc[4, "accuracy"] < 1
    path = f"{trainer.log_dir}/trajectory/answer_accuracy.arrow"
    metadata = json.loads(datasets.table.read_schema_from_file(path).metadata[b"lit_gamma"])
    chances = [1 / (1 + len(row["wrong"])) for row in rows]
    assert metadata["chance"] == pytest.approx(np.mean(chances))
    shown = EventAccumulator(trainer.log_dir)
    shown.Reload()
    points = shown.Scalars("1_answer_accuracy/accuracy")
    np.testing.assert_allclose([p.value for p in points], table["accuracy"])
    assert trajectory.reading.outcomes(trainer.log_dir) == ["answer_accuracy"]


def test_training_does_not_notice(tmp_path, questions):
    ends = []
    for name, callbacks in {"without": (), "with": (AnswerAccuracy(str(questions)),)}.items():
        (tmp_path / name).mkdir()
        _, module = fit_text(tmp_path / name, *callbacks)
        ends.append([*module.state_dict().values(), torch.rand(3)])
    assert all(map(torch.equal, *ends))


def test_greedy_is_what_greedy_decoding_gives_and_one_forward_serves_answers_of_a_token():
    logits = torch.randn(1, 9, 9, generator=torch.Generator().manual_seed(0))
    calls = []

    def model(ids):
        calls.append(ids)
        return logits[0, ids]  # The next token depends on the last one alone.

    likeliest = logits[0].argmax(-1).tolist()
    chain = [3]
    for _ in range(4):
        chain.append(likeliest[chain[-1]])
    pairs = [([3], [token]) for token in range(9)] + [([3], chain[1:]), ([3], [*chain[1:4], 8])]
    scores = continuations.continuation_scores(model, pairs, 20, torch.device("cpu"))
    expected = logits[0].log_softmax(-1)
    torch.testing.assert_close(scores.log_likelihood[:9], expected[3])
    assert scores.greedy.tolist()[:9] == [token == chain[1] for token in range(9)]
    assert scores.greedy[9]
    assert bool(scores.greedy[10]) == (chain[4] == 8)
    assert sorted(len(row) for ids in calls for row in ids) == [4, 4]
    assert len(continuations.continuation_scores(model, [], 20, torch.device("cpu")).greedy) == 0


def test_documents_that_end_with_their_answer_are_questions(tmp_path):
    file = write(tmp_path / "d.jsonl", {"text": "p. q?\nAnswer: True\n"}, {"text": "r? Not True"})
    answers = [" True", " False", " Not True"]
    assert read_questions(file, answers) == [
        Question("p. q?\nAnswer:", " True", (" False", " Not True")),
        Question("r?", " Not True", (" True", " False")),
    ]


def test_spaces_before_an_answer_are_its_own_and_a_text_begins_with_end_of_text():
    tokenizer = ByteTokenizer()
    assert encoded(tokenizer, "ab ", "c") == ([97, 98], [32, 99])
    assert encoded(tokenizer, "", "c") == ([256], [99])
    assert encoded(tokenizer, "  ", "c") == ([256], [32, 32, 99])
    with pytest.raises(InputError, match=r"'' adds no token to \.\.\.'ab'; begin it with a space"):
        encoded(tokenizer, "ab", "")


@pytest.mark.parametrize(
    ("lines", "answers", "said"),
    [
        ('{"prompt": "a"', (), "line 2: no JSON"),
        ("[1, 2]", (), "line 2: .1, 2. is no object"),
        ('{"prompt": "a", "answer": "b"}', (), "line 2: 'wrong' must be a list .* got None"),
        ('{"prompt": "a", "answer": "b", "wrong": []}', (), r"'wrong' must be a list .* got \[\]"),
        ('{"prompt": "a", "answer": 4, "wrong": ["b"]}', (), "line 2: 'answer' must .*: 4"),
        ('{"answer": "b", "wrong": ["c"]}', (), "line 2: 'prompt' must be a text"),
        ('{"prompt": "a", "answer": "b", "wrong": ["c", ""]}', (), "line 2: 'wrong' must be a t"),
        ('{"prompt": "a", "answer": "b", "wrong": ["b"]}', (), "'b' is among the wrong ones"),
        ('{"text": "It is so: perhaps"}', ("yes", "no"), "line 2: .* 'yes' or 'no': .*perhaps"),
        ('{"prompt": "a"}', ("yes", "no"), "line 2: 'text' must be a text, got None"),
        ('{"text": "It is so: yes"}', ("yes", "yes"), r"answers must name .* two at least, got \["),
        ('{"prompt": "\\ud800", "answer": "b", "wrong": ["c"]}', (), "line 2: 'prompt' is no text"),
        ('{"text": "\\ud800 yes"}', ("yes", "no"), "line 2: 'text' is no text"),
        ("", (), "holds no question"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, lines, answers, said):
    (tmp_path / "q.jsonl").write_text(f"\n{lines}\n")
    with pytest.raises(InputError, match=f"q.jsonl.*{said}"):
        AnswerAccuracy(str(tmp_path / "q.jsonl"), answers)


def test_what_cannot_be_asked_is_said(tmp_path, questions):
    with pytest.raises(InputError, match=r"none.jsonl cannot be read as JSONL: No such file"):
        AnswerAccuracy(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="n_questions must be at least 1, got 0"):
        AnswerAccuracy(str(questions), n_questions=0)
    with pytest.raises(
        InputError, match=r"needs data with a tokenizer .* AnchorComposition has no"
    ):
        fit(tmp_path, AnswerAccuracy(str(questions)), max_steps=1)
    long = write(tmp_path / "l.jsonl", {"prompt": "a", "answer": " b" * 13, "wrong": ["c"]})
    with pytest.raises(InputError, match="an answer of 26 tokens, more than the context_length 24"):
        fit_text(tmp_path, AnswerAccuracy(str(long)))


@pytest.mark.slow
def test_a_run_reports_its_answers(workspace, command_line, capsys):
    Path("FILE").write_text("".join(f"{n} and one is {n + 1}, so " for n in range(400)))
    asked = [{"prompt": f"{n} and one is", "answer": f" {n + 1}", "wrong": [" x"]} for n in (1, 2)]
    write(Path("q.jsonl"), *asked)
    command_line(
        "fit", "--config=configs/text.yaml", "--data.data_files=FILE",
        "--model.transformer.d_model=16", "--data.batch_size=4", "--trainer.max_steps=2",
        "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.callbacks+=AnswerAccuracy", "--trainer.callbacks.questions=q.jsonl",
    )  # fmt: skip
    (run,) = Path("runs/text").iterdir()
    assert re.search(r"questions at step 2: \d\.\d\d answered rightly \(chance 0\.50\)",
                     json.dumps(json.loads((run / "summary.json").read_text())))  # fmt: skip
    assert "answer accuracy" in (run / "report.html").read_text()
