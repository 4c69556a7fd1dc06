"""Evaluation: the same figures as lm-eval's own model has on the export, and what is refused."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gamma import InputError, Transformer, TransformerConfig, gamma_init_, trained
from lit_gamma.data import hub
from lit_gamma.data.tokenizers import ByteTokenizer
from lit_gamma.trained.evaluation import metrics

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402

from lit_gamma.trained.harness import HarnessModel, load_tasks  # noqa: E402

SHAPES = {"own": {}, "llama": {"gate": "none", "mlp": "swiglu"}}
LENGTH = 96
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: LINES}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""

SHIPPED = """
include: SCIQ
task: science
dataset_path: json
dataset_kwargs: {data_files: {test: LINES}}
training_split: null
validation_split: null
"""
MINE = ("rolling", "science")


def logic(n: int) -> list[dict[str, str]]:
    """Texts in PrOntoQA's form, some longer than the model's context."""
    draw = random.Random(0)
    texts = []
    for i in range(n):
        name, kind, trait = draw.choice(["Sam", "Rex"]), f"{draw.choice('bcd')}impus", "not shy"
        facts = f"Each {kind} is {trait}. {'Gorpuses are dull. ' * (i % 5)}{name} is a {kind}. "
        question = f"True or false: {name} is {draw.choice([trait, 'shy'])}."
        answer = str(question.endswith("not shy."))
        texts.append(f"{facts}{question}\n{name} is a {kind}.\nAnswer: {answer}\n")
    return [{"text": text} for text in texts]


def model(length: int = LENGTH, **shape) -> trained.Trained:
    torch.manual_seed(0)
    config = TransformerConfig(264, length, n_layers=2, n_heads=2, d_model=32, **shape)
    made = Transformer(config).eval()
    gamma_init_(made, 0.3)
    return trained.Trained(made, {"gamma": 0.3}, ByteTokenizer())


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "logic.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in logic(30)))
    return file


def answers(lm, tasks) -> dict[str, list]:
    """What a model said to every request, and what came of it."""
    found = evaluate(lm, tasks, bootstrap_iters=0)
    said = {task: [row["resps"] for row in rows] for task, rows in found["samples"].items()}
    values = {task: list(metrics({"results": {task: of}})) for task, of in found["results"].items()}
    return {task: [said[task], [value for *_, value, _ in values[task]]] for task in said}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_ours_and_lm_evals_own_model_on_the_export_give_the_same(tmp_path, data, shape):
    from lm_eval.models.huggingface import HFLM

    source, folder = model(**SHAPES[shape]), tmp_path / "export"
    trained.export(source, folder, "transformers")
    (tmp_path / "rolling.yaml").write_text(ROLLING.replace("LINES", str(data)))
    science = [
        {"support": "", "question": f"Is {n} odd?", "correct_answer": "yes",
         "distractor1": "no", "distractor2": f"{n}", "distractor3": "perhaps"}
        for n in range(6)
    ]  # fmt: skip
    (tmp_path / "science.jsonl").write_text("\n".join(map(json.dumps, science)))
    (tmp_path / "science.yaml").write_text(
        SHIPPED.replace(
            "SCIQ", str(Path(lm_eval.__file__).parent / "tasks/sciq/sciq.yaml")
        ).replace("LINES", str(tmp_path / "science.jsonl"))
    )

    def tasks():
        named = ["prontoqa", "prontoqa_generate", *(str(tmp_path / f"{n}.yaml") for n in MINE)]
        loaded = load_tasks(named, str(data))
        loaded["tasks"]["prontoqa_generate"].config.generation_kwargs["max_gen_toks"] = 30
        return loaded

    # With its cache it takes texts that end alike for one, and slices one's logits for the other.
    options = {"device": "cpu", "dtype": "float32", "batch_size": 7, "logits_cache": False}
    theirs = answers(HFLM(str(folder), trust_remote_code=True, **options), tasks())
    got = answers(HarnessModel(trained.load(folder)), tasks())
    assert list(got) == list(theirs) == ["prontoqa", "prontoqa_generate", *MINE]
    assert got["prontoqa_generate"] == theirs["prontoqa_generate"]
    assert any(text for ((text,),) in got["prontoqa_generate"][0])
    for task in ("prontoqa", *MINE):
        (said, values), (expected, their_values) = got[task], theirs[task]
        rounded = {"atol": 1e-4, "rtol": 1e-6 if task == "rolling" else 0}  # Sums of 1,000 nats.
        np.testing.assert_allclose(np.array(said, float), np.array(expected, float), **rounded)
        np.testing.assert_allclose(values, their_values, atol=1e-5)
    assert len(got["prontoqa"][0]) == 30


@pytest.mark.slow
def test_a_task_that_lm_eval_ships_with_data_that_it_makes_itself_gives_the_same(tmp_path):
    """RULER's needle in a haystack, too long for the model: both keep the last that have room."""
    pytest.importorskip("wonderwords")
    pytest.importorskip("nltk")
    from lm_eval.models.huggingface import HFLM

    source, folder, task = model(256), tmp_path / "export", tmp_path / "needle.yaml"
    trained.export(source, folder, "transformers")
    shipped = Path(lm_eval.__file__).parent / "tasks/ruler/niah_single_1.yaml"
    task.write_text(f"include: {shipped}\ntask: needle\nmetadata: {{tokenizer: {folder}}}\n")

    def found(lm) -> tuple[list[str], list[float], dict[str, float]]:
        random.seed(0)  # It draws words and numbers from the global generator.
        results = evaluate(lm, load_tasks([str(task)]), limit=12, bootstrap_iters=0)
        docs = {row["doc_id"]: row for row in results["samples"]["needle"]}
        rows = [docs[i] for i in range(12)]
        assert all(len(row["doc"]["input"]) > 2000 for row in rows)
        pairs = [(row["arguments"][0][0], f" {row['doc']['outputs'][0]}") for row in rows]
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        likelihoods = [value for value, _ in lm.loglikelihood(asked)]
        return [row["resps"][0][0] for row in rows], likelihoods, results["results"]["needle"]

    theirs = HFLM(str(folder), trust_remote_code=True, device="cpu", dtype="float32", batch_size=5)
    texts, likelihoods, values = found(HarnessModel(source))
    their_texts, their_likelihoods, their_values = found(theirs)
    assert texts == their_texts
    assert values == their_values
    assert values["4096,none"] >= 0
    np.testing.assert_allclose(likelihoods, their_likelihoods, atol=1e-4)
    assert len(set(texts)) > 1
    assert np.std(likelihoods) > 0.1


def test_the_command_prints_a_table_and_writes_the_results(tmp_path, data, command_line, capsys):
    trained.export(model(), tmp_path / "model")
    command_line(
        "evaluate", f"--ckpt={tmp_path}/model", "--tasks=prontoqa", f"--data_files={data}",
        "--limit=20", f"--out={tmp_path}/results.json", "--device=cpu",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "results.json").read_text())
    accuracy = results["results"]["prontoqa"]["acc,none"]
    assert lines[0].split()[:3] == ["prontoqa", "acc", f"{accuracy:.4f}"]
    assert results["n-samples"]["prontoqa"] == {"original": 30, "effective": 20}
    source = trained.load(tmp_path / "model")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    direct = trained.evaluate(source, ["prontoqa"], str(data), 20)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert direct["results"]["prontoqa"]["acc,none"] == accuracy


def test_generation_ends_at_a_stop_a_documents_end_or_the_limit():
    asked = HarnessModel(model())

    class Request:
        def __init__(self, context, **options):
            self.args = context, {"do_sample": False, **options}

    (whole,) = asked.generate_until([Request("ab", until=[], max_gen_toks=40)])
    stop = whole[5:8]
    first = whole.index(stop)
    requests = [
        Request("ab", until=[stop], max_gen_toks=40),
        Request("abc", until=["never there"], max_gen_toks=7),
        Request("ab", until=[], max_gen_toks=40),
        Request("x" * 500, until=[], max_gen_toks=200),
    ]
    got = asked.generate_until(requests)
    assert got[0] == whole[:first]
    assert got[2] == whole
    assert asked.generate_until([Request("abc", until=[], max_gen_toks=9)])[0].startswith(got[1])
    with pytest.raises(InputError, match=r"a task samples .*only greedy"):
        asked.generate_until([Request("ab", until=[], do_sample=True, temperature=1.0)])


def test_what_cannot_be_evaluated_is_said_in_one_line(tmp_path, data, monkeypatch):
    source = model()
    for wrong, said in {
        ("prontoqa", "nowhere.jsonl"): "nowhere.jsonl cannot be read as JSONL",
        ("prontoqa", None): "reads a local file; give --data_files",
        ("questions", str(data)): "logic.jsonl, line 1: 'wrong' must be a list",
    }.items():
        with pytest.raises(InputError, match=said):
            trained.evaluate(source, [wrong[0]], wrong[1])
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        trained.evaluate(source, ["prontoqa"], str(data), limit=0)
    with pytest.raises(InputError, match="no tokenizer came with the model"):
        trained.evaluate(trained.Trained(source.model, {}, None), ["prontoqa"], str(data))
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: someone/something\n")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"data of task .*mine.yaml: the hub .* cannot be reached"):
        trained.evaluate(source, [str(tmp_path / "mine.yaml")])
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(InputError, match=r'pip install "lit-gamma\[eval\]"'):
        trained.evaluate(source, ["prontoqa"], str(data))


@pytest.mark.slow
def test_an_unknown_task_is_named_with_its_neighbours():
    with pytest.raises(InputError, match=r"'hellaswagg' is no task .*did you mean hellaswag or "):
        trained.evaluate(model(), ["hellaswagg"])
