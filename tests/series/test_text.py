"""A series whose models are run on a text, afterwards."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import fit, tiny_module

from lit_gamma import InputError, series, trajectory
from lit_gamma.callbacks import AttentionSink, HiddenStates, KeepCheckpoints, ProbeLoss, Schedule
from lit_gamma.data import Source, Text
from lit_gamma.data.tokenizers import ByteTokenizer
from lit_gamma.series.models import open_model

LENGTH = 16
WORDS = "".join(f"{n} and one is {n + 1}, so " for n in range(300))


def first_blocks() -> dict[str, torch.Tensor]:
    """The first eight blocks of the text, by hand."""
    tokens = torch.tensor(list(WORDS.encode()[: 8 * LENGTH + 1]))
    return {"input_ids": tokens[:-1].view(8, LENGTH), "labels": tokens[1:].view(8, LENGTH)}


class OnTheText:
    """Probes the beginning of the text, not of the training batches."""

    def before(self, batch):
        super().before(first_blocks())


class Hidden(OnTheText, HiddenStates):
    pass


class Sink(OnTheText, AttentionSink):
    pass


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Path:
    """A run that was recorded on the text, and kept checkpoints of some steps."""
    root, every = tmp_path_factory.mktemp("live"), Schedule(every=2)
    (root / "train.txt").write_text("twice two is four. " * 200)
    (root / "text.txt").write_text(WORDS)
    data = Text(
        sources={"text": Source(f"{root}/train.txt", val_files=f"{root}/text.txt")},
        context_length=LENGTH, batch_size=4, cache_dir=str(root / "cache"),
    )  # fmt: skip
    module = tiny_module(0.5, vocab_size=data.vocab_size, context_length=LENGTH)
    fit(
        root, ProbeLoss(every), Hidden(every), Sink(every), KeepCheckpoints(every),
        module=module, data=data, version="run", max_steps=5, enable_checkpointing=True,
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def measured(live, tmp_path_factory, command_line) -> Path:
    out = tmp_path_factory.mktemp("measured") / "run"
    command_line("measure", f"{live}/run", f"--text={live}/text.txt", f"--out={out}")
    return out


def test_what_is_measured_on_a_text_is_what_was_recorded_live(live, measured):
    expected, found = trajectory.load(live / "run"), trajectory.load(measured)
    assert found["weight_norms"]["step"].unique().tolist() == [0, 2, 4]
    for name, own in {"hidden_states": "hidden", "attention_sink": "sink"}.items():
        want = expected[own][expected[own]["step"].isin([0, 2, 4])].reset_index(drop=True)
        assert len(found[name]) == len(want) > 0
        for column in want:
            if want[column].dtype == np.float32:
                np.testing.assert_allclose(found[name][column], want[column], rtol=1e-6)
            else:
                assert found[name][column].equals(want[column]), column
    got, want = (trajectory.tokens(run) for run in (measured, live / "run"))
    assert got.attrs["probe"] == want.attrs["probe"]
    want = want[want["step"].isin([0, 2, 4])].reset_index(drop=True)
    assert len(got) == len(want) == 3 * 16 * LENGTH
    for column in ("step", "token_id", "text", "position"):
        assert got[column].equals(want[column])
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-6)


def test_it_goes_on_with_the_same_text_alone_and_holds_one_model(
    live, measured, tmp_path, monkeypatch
):
    opened = []

    def open_one(path):
        gc.collect()
        assert not any(module() for module in opened)
        model = open_model(path)
        opened.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr("lit_gamma.series.measuring.open_model", open_one)
    kept, out = sorted((live / "run/checkpoints").iterdir()), tmp_path / "run"
    series.measure([str(path) for path in kept[:1]], out, text=live / "text.txt")
    with pytest.raises(InputError, match="was measured on another --text; name another folder"):
        series.measure(str(live / "run"), out, text=live / "train.txt")
    with pytest.raises(InputError, match="was measured on another --text; name another folder"):
        series.measure(str(live / "run"), out)
    series.measure(str(live / "run"), out, text=live / "text.txt")
    for name, table in trajectory.load(measured).items():
        assert trajectory.load(out)[name].equals(table), name
    assert len(opened) == len(kept) == 3


def saved(folder: Path, seed: int):
    """A GPT-NeoX as transformers saves it, with a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers", reason="pip install lit-gamma[test] has it")
    config = transformers.GPTNeoXConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(folder)
    ByteTokenizer().backend.save(str(folder / "tokenizer.json"))
    return model


def test_models_of_transformers_have_the_loss_that_they_say(tmp_path):
    models = {step: saved(tmp_path / f"all/step{step}", step) for step in (1, 20)}
    (tmp_path / "text.txt").write_text(WORDS[: 8 * LENGTH])  # Its end of text is the last label.
    saved(tmp_path / "all/step300", 300)
    file = tmp_path / "all/step300/model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="step 300 is left out"):
        series.measure(str(tmp_path / "all"), tmp_path / "run", text=tmp_path / "text.txt")
    losses = trajectory.tokens(tmp_path / "run").groupby("step")["loss"]
    batch = first_blocks()
    batch["labels"][-1, -1] = ByteTokenizer().end_of_text
    for step, model in models.items():
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        expected = F.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
        np.testing.assert_allclose(losses.get_group(step), expected.detach(), rtol=1e-3)  # Half.
    full = trajectory.load(tmp_path / "run")["probe_tokens"]["full_context"]  # Of the last read.
    np.testing.assert_allclose(full, expected.detach(), rtol=1e-5)
    assert {"hidden_states", "attention_sink"} <= trajectory.load(tmp_path / "run").keys()


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_what_cannot_be_run_on_a_text_is_refused_in_one_line(tmp_path):
    def refused(said: str, *places: Path, text: Path = tmp_path / "text.txt") -> None:
        with pytest.raises(InputError, match=said) as error:
            series.measure([str(place) for place in places], tmp_path / "out", text=text)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    (tmp_path / "text.txt").write_text(WORDS)
    held = {"state_dict": {"mlp.up.weight": torch.randn(8, 4)}, "global_step": 1}
    torch.save(held, tmp_path / "foreign.ckpt")
    refused("nowhere.txt is no file", tmp_path / "foreign.ckpt", text=tmp_path / "nowhere.txt")
    refused("foreign.ckpt is not a checkpoint of LanguageModel", tmp_path / "foreign.ckpt")
    saved(tmp_path / "step3", 0)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 99)
    refused("latin.txt is not utf-8", tmp_path / "step3", text=tmp_path / "latin.txt")
    (tmp_path / "step3/tokenizer.json").unlink()
    refused("step3 holds no tokenizer.json", tmp_path / "step3")
    config = json.loads((tmp_path / "step3/config.json").read_text())
    ByteTokenizer().backend.save(str(tmp_path / "step3/tokenizer.json"))
    (tmp_path / "step3/config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("no model that transformers can load: it has no ", tmp_path / "step3")
    (tmp_path / "step3/config.json").write_text(json.dumps({**config, "model_type": "own"}))
    refused("no model that transformers can load: ValueError", tmp_path / "step3")
