"""What is done with a trained model: generation, export, loss on a text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lit_gamma import InputError, Transformer, TransformerConfig, gamma_init_, trained
from lit_gamma.data.tokenizers import ByteTokenizer
from lit_gamma.trained.generation import Sampling, generate

TEXT = "".join(
    f"{i} is {'even' if i % 2 == 0 else 'odd'}, and ö is a letter.\n" for i in range(300)
)
RUN = Path("runs/text/gamma0.8-seed1")


def model(**shape) -> Transformer:
    config = TransformerConfig(vocab_size=257, context_length=8, n_heads=2, d_model=16, **shape)
    made = Transformer(config).eval()
    gamma_init_(made, 0.4)
    return made


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("length", [1, 5, 8, 13])
def test_cached_generation_equals_a_full_forward_per_token(position, length):
    made = model(position=position)
    prompt = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(0))
    got = torch.stack(list(generate(made, prompt, 20, Sampling(temperature=0))), dim=1)
    tokens, window = prompt, min(length, 8)
    for i in range(20):
        if window > 8:
            window = 4
        logits = made(tokens[:, -window:])[:, -1]
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
        window += 1
        assert torch.equal(got[:, i], tokens[:, -1]), i


@settings(max_examples=30)
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=9),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.none() | st.integers(1, 9),
    st.none() | st.floats(0.05, 1),
)
def test_tokens_are_drawn_with_the_probabilities_that_were_asked_for(logits, heat, k, p):
    gaps = np.diff(np.sort(logits))
    assume(((gaps == 0) | (gaps > 1e-5)).all())  # What float32 tells apart.
    weights = np.exp(np.array(logits, np.float32) / np.float32(heat)).astype(float)
    order = np.argsort(-weights, kind="stable")
    kept = weights / weights.sum()
    kept[order[k:]] = 0 if k is not None else kept[order[k:]]
    if p is not None:
        before = np.concatenate(([0], kept[order].cumsum()[:-1]))
        close = np.isclose(before, p * kept.sum(), rtol=1e-5)
        kept[order[(before >= p * kept.sum()) & ~close]] = 0
    n = 4000
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(n, -1)
    drawn = Sampling(heat, k, p).draw(rows, generator).bincount(minlength=len(logits)).numpy() / n
    assert set(drawn.nonzero()[0]) <= set(kept.nonzero()[0])
    if p is None:
        expected = kept / kept.sum()
        assert np.abs(drawn - expected).max() < 5 * math.sqrt(0.25 / n)


def test_impossible_sampling_is_refused():
    for wrong in ({"temperature": -1}, {"top_k": 0}, {"top_p": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Sampling(**wrong)


@pytest.mark.parametrize(
    "shape",
    [{}, {"tie_embeddings": True}, {"norm": "layernorm", "norm_position": "post", "d_head": 10}],
)
def test_an_export_is_the_same_model(tmp_path, shape):
    made = model(**shape)
    tokenizer = ByteTokenizer()
    trained.export(trained.Trained(made, {"gamma": 0.4}, tokenizer), tmp_path / "out")
    files = {path.name for path in tmp_path.glob("*/*")}
    assert files == {"model.safetensors", "config.json", "tokenizer.json"}
    again = trained.load(tmp_path / "out")
    ids = torch.arange(8)[None]
    assert torch.equal(again.model(ids), made(ids))
    tied = again.model.lm_head.weight is again.model.embedding.weight
    assert tied == ("tie_embeddings" in shape)
    assert again.hyperparameters["gamma"] == 0.4
    assert again.text_tokenizer().encode(["aö"])[0].tolist() == [97, 195, 182]
    assert again.text_tokenizer().end_of_text == 256
    with pytest.raises(InputError, match="exists"):
        trained.export(again, tmp_path / "out")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["model.safetensors", "config.json", "tokenizer.json"]), st.data())
def test_a_damaged_export_is_refused_in_one_line_or_is_the_same_model(tmp_path, name, data):
    folder = tmp_path / "out"
    if not folder.exists():
        trained.export(trained.Trained(model(), {"gamma": 0.4}, ByteTokenizer()), folder)
    exported = trained.load(folder)
    file = folder / name
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))])
    damaged = [whole[:at], whole[:at] + flipped + whole[at + 1 :], data.draw(st.binary())]
    try:
        for content in damaged:
            file.write_bytes(content)
            read, said = None, ""
            try:
                read = trained.load(folder)
            except InputError as error:
                said = str(error)
            if read is None:
                assert re.fullmatch(".* is not .*", said)
            else:  # A line's end, say.
                assert name == "config.json"
                assert read.hyperparameters == exported.hyperparameters
                pairs = zip(read.model.parameters(), exported.model.parameters(), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"state_dict": {}},
        {"hyper_parameters": 3, "state_dict": {}},
        {"hyper_parameters": {"transformer": {"d_model": "wide"}}, "state_dict": {}},
        {"hyper_parameters": {"transformer": {"heads": 2}}, "state_dict": {}},
        {"hyper_parameters": {"transformer": {"vocab_size": 9, "context_length": 4}}},
    ],
)
def test_a_foreign_checkpoint_is_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match=r"foreign\.ckpt is not a checkpoint of LanguageModel"):
        trained.load(tmp_path / "foreign.ckpt")


@pytest.fixture
def text_run(workspace, command_line) -> Path:
    Path("train.txt").write_text(TEXT)
    Path("val.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in ("é odd", "is")))
    command_line(
        "fit", "--config=configs/text.yaml", "--data.tokenizer=bpe:300", "--data.cache_dir=cache",
        '--data.sources={"text": {"data_files": "train.txt", "val_files": "val.jsonl", '
        '"field": "body"}}', "--data.data_files=null",
        "--data.context_length=8", "--data.batch_size=4", "--model.transformer.d_model=16",
        "--trainer.max_steps=12", "--trainer.val_check_interval=12",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
    )  # fmt: skip
    return RUN / "checkpoints/last.ckpt"


def test_a_trained_model_is_read_from_its_checkpoint_alone(text_run, command_line, capsys):
    recorded = json.loads((RUN / "summary.json").read_text())["metrics"]["val/text/loss"]
    capsys.readouterr()
    command_line("perplexity", f"--ckpt={text_run}", "--data_files=val.jsonl", "--field=body")
    printed = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()[2:])
    result = trained.text_loss(trained.load(text_run), "val.jsonl", "body")
    assert result.loss == pytest.approx(recorded, rel=1e-5)
    assert float(printed["perplexity"]) == pytest.approx(math.exp(recorded), rel=1e-4)
    assert result.n_bytes == len("é oddis".encode())
    bits = recorded * result.n_tokens / math.log(2) / result.n_bytes
    assert float(printed["bits per byte"]) == pytest.approx(bits, rel=1e-3)

    ask = ("generate", f"--ckpt={text_run}", "--prompt=12 is", "--n_tokens=30", "--n_samples=2")
    command_line(*ask, "--seed=1")
    first = capsys.readouterr().out
    assert first.count("12 is") == 2
    command_line("export", f"--ckpt={text_run}", "--out=exported/model")
    assert capsys.readouterr().out == "exported to exported/model\n"
    command_line(*ask[:1], "--ckpt=exported/model", *ask[2:], "--seed=1")
    assert capsys.readouterr().out == first
    command_line(*ask, "--seed=2")
    assert capsys.readouterr().out != first


@pytest.mark.slow
def test_what_cannot_be_read_or_has_no_text_is_refused(workspace, command_line, tmp_path):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            command_line(*arguments)
        return str(stopped.value)

    assert "nowhere.ckpt does not exist" in refused("generate", "--ckpt=nowhere.ckpt")
    Path("other.ckpt").write_text("no checkpoint")
    assert "other.ckpt is no checkpoint" in refused("generate", "--ckpt=other.ckpt")
    Path("sharded").mkdir()
    assert "consolidate_checkpoint" in refused("export", "--ckpt=sharded", "--out=out")
    command_line("fit", *TINY, "--trainer.max_steps=1")
    last = "--ckpt=runs/anchor/gamma0.8-seed1/checkpoints/last.ckpt"
    assert "no tokenizer" in refused("generate", last)
    assert "top_p" in refused("generate", last, "--top_p=2")
    not_utf8 = refused("generate", last, "--prompt=a\udcff")  # As Python reads the byte 0xff.
    assert "'--prompt' is no text: it holds '\\udcff'" in not_utf8
    assert "--device nowhere" in refused("perplexity", last, "--data_files=x", "--device=nowhere")
    assert "promt" in refused("generate", last, "--promt=x")
    command_line("export", last, "--out=out")
    assert trained.load("out").hyperparameters["gamma"] == 0.8
