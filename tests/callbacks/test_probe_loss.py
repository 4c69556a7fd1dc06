"""The probe: chosen by seed, recomputed by hand, classed as a text was made, unseen by training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import lightning
import numpy as np
import pandas
import pytest
import torch
from helpers.runs import Noisy, Snapshots, fit, tiny_module
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from lit_gamma import InputError, LanguageModel, TransformerConfig, trajectory
from lit_gamma.callbacks import ProbeLoss, RunSummary, Schedule
from lit_gamma.callbacks.probe_loss.charts import coloured_text
from lit_gamma.data import Source, Text
from lit_gamma.probing.blocks import choose_blocks, truncated_loss
from lit_gamma.trajectory.token_classes import NGRAMS, TokenClasses

EVERY = Schedule(every=1)
LENGTH = 24


def fit_text(root: Path, files: dict[str, Path], *callbacks, length=LENGTH, steps=5):
    lightning.seed_everything(0)
    sources = {name: Source(str(file)) for name, file in files.items()}
    data = Text(sources=sources, context_length=length, batch_size=4, val_fraction=0.3,
                cache_dir=str(root / "cache"))  # fmt: skip
    module = LanguageModel(TransformerConfig(data.vocab_size, length, 1, 2, 16), 0.5)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=list(callbacks), enable_checkpointing=False,
        logger=TensorBoardLogger(root, name="", default_hp_metric=False), limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, data


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A few steps on two texts, every one recorded."""
    root, kept = tmp_path_factory.mktemp("probe"), Snapshots()
    generator, files = np.random.default_rng(0), {}
    for name in ("words", "other"):
        files[name] = root / f"{name}.txt"
        files[name].write_text(" ".join(generator.choice(["né", "to", name, "so\n"], 900)))
    probe = ProbeLoss(EVERY, blocks=9, pictures=Schedule(every=2))
    trainer, data = fit_text(root, files, probe, RunSummary(), kept)
    return trainer, data, kept


def loss_by_hand(model, ids, label) -> float:
    """-ln p of a label after the ids, by the model at hand."""
    with torch.no_grad():
        return cross_entropy(model(ids[None])[0, -1].double(), label).item()


def test_the_weights_of_a_step_give_its_losses_up_to_half_precision(recorded):
    trainer, data, kept = recorded
    table = trajectory.tokens(trainer.log_dir)
    assert sorted(set(table["step"])) == [0, 1, 2, 3, 4, 5]
    assert table["loss"].dtype == np.float16
    assert table.groupby("set", observed=True)["block"].nunique().to_dict() == {
        "words": 5, "other": 4
    }  # fmt: skip
    assert len(table) > 6 * 9 * (LENGTH - 1)
    model = trainer.lightning_module.transformer
    for row in table.sample(1000, random_state=0).itertuples():
        trainer.lightning_module.load_state_dict(kept.weights[row.step])
        block = data.val_sets[row.set][torch.tensor([row.block])]
        label = block["labels"][0, row.position]
        expected = loss_by_hand(model, block["input_ids"][0, : row.position + 1], label)
        assert row.loss == pytest.approx(expected, rel=2**-10, abs=1e-6)
        assert row.token_id == label
        assert row.text == data.tokenizer.decode([int(label)])


def test_truncated_contexts_are_those_of_a_shorter_input(recorded):
    trainer, data, kept = recorded
    table = trajectory.load(trainer.log_dir)["probe_tokens"]
    model = trainer.lightning_module.transformer
    trainer.lightning_module.load_state_dict(kept.weights[5])
    assert [c for c in table if c.startswith("context")] == [f"context_{2**i}" for i in range(5)]
    for row in table.sample(40, random_state=0).to_dict("records"):
        block = data.val_sets[row["set"]][torch.tensor([row["block"]])]
        at = row["position"]
        for context in (1, 2, 4, 8, 16, LENGTH):
            half = max(1, context // 2)
            first = at if context == 1 else max(0, (at // half - 1) * half)
            first = 0 if context == LENGTH else first
            assert min(at + 1, half + (context > 1)) <= at + 1 - first <= context
            ids = block["input_ids"][0, first : at + 1]
            expected = loss_by_hand(model, ids, block["labels"][0, at])
            name = "full_context" if context == LENGTH else f"context_{context}"
            assert row[name] == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 3), st.integers(2, 40), st.data())
def test_windows_cover_every_token_once(n_blocks, length, data):
    context = 2 ** data.draw(st.integers(0, (length - 1).bit_length() - 1))
    ids = torch.arange(n_blocks * length).view(n_blocks, length)

    def position_and_first(batch):
        assert batch["input_ids"].shape[1] == context
        return batch["labels"] * 1000.0 + batch["input_ids"][:, :1]

    found = truncated_loss(position_and_first, {"input_ids": ids, "labels": ids}, context)
    assert torch.equal(found // 1000, ids.float())
    seen = ids - found % 1000 + 1
    assert (seen <= context).all()
    assert (seen >= torch.minimum(torch.arange(length) + 1, torch.tensor(context // 2 + 1))).all()


def copies(lag: int, n: int, letters: str, generator) -> str:
    """Random small letters; a capital is the letter ``lag`` before it."""
    text = list(generator.choice(list(letters), n))
    for i in range(lag, n):
        if generator.random() < 0.3:
            text[i] = text[i - lag].upper()
    return "".join(text)


def test_classes_are_those_that_the_texts_were_made_with(tmp_path):
    generator = np.random.default_rng(0)
    texts = {
        "far": copies(40, 9000, "abcdefgh", generator),
        "near": copies(6, 9000, "ijklmnop", generator),
    }
    # A Markov source: after each digit one other, now and then a random one.
    cycle = np.array([3, 0, 4, 1, 2])
    digits = [0]
    for jump in generator.random(9000) < 0.1:
        digits.append(generator.integers(5) if jump else cycle[digits[-1]])
    texts["markov"] = "".join(map(str, digits))
    files = {name: tmp_path / f"{name}.txt" for name in texts}
    for name, file in files.items():
        file.write_text(texts[name])

    def oracle(module, batch):
        """Knows capitals from the letter they copy, if it sees it."""
        ids, labels = batch["input_ids"], batch["labels"]
        loss = torch.full(labels.shape, 5.0)
        for letters, lag in ("far", 40), ("near", 6):
            if ids.shape[1] >= lag:
                known = ids[:, : ids.shape[1] - lag + 1] & 0x5F == labels[:, lag - 1 :]
                known &= (labels[:, lag - 1 :] <= ord("H")) == (letters == "far")
                loss[:, lag - 1 :][known] = 0.01
        return loss

    trainer, _ = fit_text(tmp_path, files, ProbeLoss(blocks=30, forward=oracle), length=64, steps=1)
    table = trajectory.tokens(trainer.log_dir).query("step == 0")
    for name, lag, needs in (("near", 6, "local"), ("far", 40, "context_constrained")):
        tokens = table[table["set"] == name]
        capital = tokens["text"].str.isupper() & (tokens["position"] >= lag - 1)
        assert capital.sum() > 50
        assert (tokens["class"] == np.where(capital, needs, "unpredictable")).all()
    tokens = table[(table["set"] == "markov")]
    text = tokens["text"].astype(str)
    pairs = zip(text.shift(fill_value=""), text, strict=True)
    follows = np.array([a.isdigit() and str(cycle[int(a)]) == b for a, b in pairs])
    expected = np.where(follows, "trivial", "unpredictable")
    inside = (tokens["position"] > 0).to_numpy()
    assert (tokens["class"].to_numpy() == expected)[inside].all()
    assert (tokens["unigram"] > 1).all()


def test_thresholds_decide_and_must_make_sense():
    tokens = {"position": np.array([40, 3]), "context_1": [3.0, 3.0], "context_32": [1.0, 1.0],
              "full_context": [0.5, 0.5], **dict.fromkeys(NGRAMS, [np.nan] * 2)}  # fmt: skip
    assert list(TokenClasses().of(tokens)) == ["context_constrained", "local"]
    assert list(TokenClasses(gain=3).of(tokens)) == ["local", "local"]
    assert list(TokenClasses(local_context=32).of(tokens)) == ["local", "local"]
    assert list(TokenClasses(predictable=0.4).of(tokens)) == ["unpredictable"] * 2
    tokens["bigram"] = [0.6, 0.8]
    assert list(TokenClasses().of(tokens)) == ["trivial", "local"]
    with pytest.raises(InputError, match=r"predictable and gain, must be positive .* got -1"):
        TokenClasses(predictable=-1)
    with pytest.raises(InputError, match=r"local_context .* at least 1 token, got 0"):
        TokenClasses(local_context=0)


def test_tensorboard_has_classes_histograms_and_the_text(recorded):
    trainer, _, _ = recorded
    events = EventAccumulator(trainer.log_dir, {"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    table = trajectory.tokens(trainer.log_dir)
    for column, kind in (("set", "loss"), ("class", "class")):
        means = (
            table.astype({"loss": float}).groupby([column, "step"], observed=True)["loss"].mean()
        )
        for name in table[column].unique():
            shown = events.Scalars(f"5_probe_loss/{kind}/{name}")
            assert [point.step for point in shown] == [0, 1, 2, 3, 4, 5]
            np.testing.assert_allclose([p.value for p in shown], means[name], rtol=1e-3)
    histograms = events.Histograms("5_probe_loss/tokens")
    assert [h.step for h in histograms] == [0, 2, 4, 5]
    assert histograms[0].histogram_value.num == len(table) / 6
    for name in ("words", "other"):
        assert [i.step for i in events.Images(f"5_probe_loss/text/{name}")] == [0, 2, 4, 5]


def test_tokens_stand_on_the_colour_of_their_loss():
    picture = coloured_text(["a", "b\n", "c", "d"], np.array([0.0, 1.0, 0.5, 7.0]), [0, 0, 0, 1])
    image = Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB")
    assert image.size == (picture.width, picture.height)
    width, height = image.width // 96, image.height // 4  # c in the second line, d in the fourth
    a, b, c, d = (image.getpixel(corner) for corner in (
        (0, 0), (width, 0), (0, height), (0, 3 * height)))  # fmt: skip
    assert a[2] > c[2] > b[2]  # from white to red blue fades
    assert b == d
    assert image.getpixel((0, 2 * height)) == a


@pytest.mark.parametrize("end", ["\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029", "\t", "\0"])
def test_text_with_any_line_ends_and_controls_is_drawn_a_cell_each(end):
    picture = coloured_text(["one", end, "two"], np.array([0.1, 0.2, 0.3]), [0, 0, 0])
    assert picture.width > 0
    lines = 2 if "\n" in end else 1
    assert picture.height == lines * coloured_text(["a"], np.array([0.1]), [0]).height


def test_the_file_explains_itself_and_opens_in_datasets(recorded):
    trainer, _, _ = recorded
    path = f"{trainer.log_dir}/trajectory/probe_loss.arrow"
    table = datasets.Dataset.from_file(path)
    assert len(table) == 6
    metadata = json.loads(datasets.table.read_schema_from_file(path).metadata[b"lit_gamma"])
    tokens = trajectory.tokens(trainer.log_dir)
    assert metadata["probe"] == tokens.attrs["probe"]
    assert len(table[0]["loss"]) == len(tokens) / 6
    with pytest.raises(InputError, match="train with the callback ProbeLoss"):
        trajectory.tokens(trainer.log_dir + "/trajectory")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, 20), st.data())
def test_blocks_are_chosen_alike_whatever_the_batches(sizes, n_blocks, data):
    def loaders(size):
        return {
            str(i): [
                {"input_ids": rows, "labels": rows, "name": "x"}
                for rows in (torch.arange(n * 3).view(n, 3) + 1000 * i).split(size)
            ]
            for i, n in enumerate(sizes)
        }

    chosen = choose_blocks(loaders(7), n_blocks, seed=1)
    again = choose_blocks(loaders(data.draw(st.integers(1, 30))), n_blocks, seed=1)
    assert (chosen.digest, chosen.blocks) == (again.digest, again.blocks)
    assert chosen.batch["labels"][:, 0].tolist() == [
        1000 * int(name) + 3 * block for name, block in zip(chosen.sets, chosen.blocks, strict=True)
    ]
    wanted = [len(share) for share in np.array_split(range(n_blocks), len(sizes))]
    assert [chosen.sets.count(str(i)) for i in range(len(sizes))] == list(map(min, wanted, sizes))
    if n_blocks < sizes[0] / 2 and len(sizes) == 1:
        assert len({choose_blocks(loaders(7), n_blocks, s).digest for s in range(9)}) > 1


class OverFeatures(torch.nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.mT).mT


class PerToken(Noisy):
    def __init__(self):
        super().__init__()
        self.batch_norm = OverFeatures(16)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "token_loss": loss.detach().expand(batch["labels"].shape)}


def test_training_does_not_notice_the_probe(tmp_path):
    ends = []
    for callbacks in ((), (ProbeLoss(EVERY, blocks=5),)):
        lightning.seed_everything(3)
        module = PerToken()
        trainer = fit(tmp_path, *callbacks, module=module, max_steps=5, limit_train_batches=5)
        logged = trainer.callback_metrics["loss"]
        ends.append([*module.state_dict().values(), logged, module.mean.compute(), torch.rand(3)])
    assert module.modes.count((True, False)) == 5
    assert module.modes.count((False, False)) > 6
    for without, with_ in zip(*ends, strict=True):
        assert torch.equal(without, with_)


@pytest.mark.parametrize("same_directory", [True, False])
def test_a_resumed_record_is_that_of_an_uninterrupted_run(tmp_path, same_directory):
    def callbacks():
        keep = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=3, save_top_k=-1)
        return ProbeLoss(EVERY, blocks=20), keep

    whole = fit(tmp_path / "whole", *callbacks(), max_steps=6, enable_checkpointing=True)
    fit(tmp_path / "parts", *callbacks(), max_steps=6, enable_checkpointing=True)
    root, version = ("parts", 0) if same_directory else ("elsewhere", None)
    probe, keep = callbacks()
    probe.seed = 7  # the checkpoint's blocks stay
    checkpoint = tmp_path / "ckpt" / "step=3-v1.ckpt"  # Of the second run.
    rest = fit(tmp_path / root, probe, keep, max_steps=6, version=version, seed=9,
               ckpt_path=checkpoint, enable_checkpointing=True)  # fmt: skip
    expected, got = (trajectory.tokens(t.log_dir) for t in (whole, rest))
    pandas.testing.assert_frame_equal(got, expected, check_exact=True)
    assert got.attrs == expected.attrs
    # The anchor task asks one question in each sequence, and says itself what its answer needs.
    assert set(got["class"]) == {"context_constrained"}
    assert set(got["position"]) == {8}
    assert got["set"].value_counts().to_dict() == {"seen": 70, "unseen": 70}
    shown = EventAccumulator(rest.log_dir, {"scalars": 0})
    shown.Reload()
    for tag in ("loss/unseen", "class/context_constrained"):
        assert [p.step for p in shown.Scalars(f"5_probe_loss/{tag}")][-7:] == list(range(7))


def test_an_interrupt_keeps_the_losses_and_leaves_the_classes_open(tmp_path):
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(tmp_path, ProbeLoss(EVERY), Interrupt(), max_steps=9)
    table = trajectory.tokens(tmp_path / "version_0")
    assert sorted(set(table["step"])) == [0, 1, 2, 3]
    assert "class" not in table


def test_what_cannot_be_probed_is_said(tmp_path):
    with pytest.raises(InputError, match="blocks must be at least 1, got 0"):
        ProbeLoss(blocks=0)
    module = tiny_module()
    module.training_step = lambda batch, i: {"loss": module(batch["input_ids"]).sum()}
    with pytest.raises(InputError, match=r"ProbeLoss finds no token_loss.*give ProbeLoss"):
        fit(tmp_path, ProbeLoss(), module=module, max_steps=1)
    with pytest.raises(InputError, match=r"labels of shape \(1, 1\) got .* of shape \(1,\)"):
        fit(tmp_path, ProbeLoss(forward=lambda _, batch: batch["labels"][:, 0]), max_steps=1)
    rows = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"\(batch, length\); the validation set a gives list"):
        choose_blocks({"a": [[rows]]}, 3, 0)
    with pytest.raises(InputError, match="validation set b is empty"):
        choose_blocks({"b": []}, 3, 0)
    loaders = {str(n): [{"input_ids": rows[:, :n], "labels": rows[:, :n]}] for n in (2, 4)}
    with pytest.raises(InputError, match="blocks of one length"):
        choose_blocks(loaders, 3, 0)
