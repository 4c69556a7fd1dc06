"""A run that was cut short goes on to the very weights of the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_gamma import InputError, LanguageModel, OptimizerConfig, TransformerConfig
from lit_gamma.data import Source, StreamedText, Text, token_stream

ROOT = Path(__file__).parents[2]
STEPS = 14


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(token_stream, "WINDOW", 12)
    for name in ("a", "b"):
        rows = [{"text": f"{name} {i} " * (i % 9 + 1)} for i in range(60)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def same(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same weights and optimizer state, bit by bit."""
    a, b = (torch.load(path, weights_only=False) for path in (first, second))
    assert a["global_step"] == b["global_step"]
    moments = [
        [t for entry in c["optimizer_states"][0]["state"].values() for t in entry.values()]
        for c in (a, b)
    ]
    weights = [list(c["state_dict"].values()) for c in (a, b)]
    return all(map(torch.equal, weights[0] + moments[0], weights[1] + moments[1]))


def fit(kind: type[Text], corpus: Path, folder: Path, **options) -> Path:
    """Trains on two sources and returns the last checkpoint of ``folder``."""
    lightning.seed_everything(1)
    steps = options.pop("max_steps", STEPS)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=options.pop("accumulate", 1),
        strategy=options.pop("strategy", "auto"),
        devices=options.pop("devices", 1),
        gradient_clip_val=1.0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)],
    )
    sources = {name: Source(f"{corpus}/{name}.jsonl", weight=1 + (name == "a")) for name in "ab"}
    data = kind(
        sources=sources,
        context_length=16,
        batch_size=8,
        val_fraction=0.2,
        seed=3,
        cache_dir=f"{corpus}/cache",
        tokenizer=options.pop("tokenizer", "bytes"),
    )
    model = LanguageModel(
        TransformerConfig(data.vocab_size, 16, 1, 1, 8), optimizer=OptimizerConfig(3e-3, 0.1)
    )
    trainer.fit(model, data, **options)
    return folder / f"step={steps}.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "accumulate"), [(Text, 1), (Text, 3), (StreamedText, 1), (StreamedText, 2)]
)
def test_a_run_resumed_at_any_step_ends_in_the_same_weights(corpus, kind, accumulate):
    whole = fit(kind, corpus, corpus / "whole", accumulate=accumulate)
    for step in random.Random(accumulate).sample(range(1, STEPS), 4):
        checkpoint = corpus / "whole" / f"step={step}.ckpt"
        folder = corpus / f"from{step}"
        resumed = fit(kind, corpus, folder, accumulate=accumulate, ckpt_path=checkpoint)
        assert same(whole, resumed), step
    assert not same(whole, _nudged(whole))


def _nudged(path: Path) -> Path:
    """A copy that differs in the last bit of one weight."""
    checkpoint = torch.load(path, weights_only=False)
    weight = checkpoint["state_dict"]["transformer.lm_head.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(checkpoint, path.parent / "nudged.ckpt")
    return path.parent / "nudged.ckpt"


def test_a_checkpoint_of_other_tokens_is_refused(corpus):
    fit(Text, corpus, corpus / "whole", max_steps=1)
    first = corpus / "whole" / "step=1.ckpt"
    with pytest.raises(InputError, match=r"checkpoint's model has vocab_size 257, not 280"):
        fit(Text, corpus, corpus / "other", ckpt_path=first, tokenizer="bpe:280")
    second = fit(Text, corpus, corpus / "bpe", max_steps=1, tokenizer="bpe:280")
    with open(corpus / "a.jsonl", "a") as file:  # The BPE is another one then, of the same size.
        file.write(json.dumps({"text": "zyx zyx zyx " * 100}) + "\n")
    with pytest.raises(InputError, match="'bpe:280' is not the tokenizer that the checkpoint"):
        fit(Text, corpus, corpus / "other", ckpt_path=second, tokenizer="bpe:280")


@contextmanager
def in_two_processes(corpus: Path, *part: str) -> Iterator[subprocess.Popen]:
    """Runs this file in two processes, see its end; none of them outlives the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    processes = subprocess.Popen(
        [*command, __file__, str(corpus), *part],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield processes
    finally:
        with suppress(ProcessLookupError):
            os.killpg(processes.pid, signal.SIGKILL)
        processes.wait()


@pytest.mark.slow
def test_two_processes_resume_to_the_same_weights_after_a_kill_at_random(corpus):
    n = random.randint(1, 30)
    print(f"to be killed after {n} steps of 40")  # shown if the test fails
    with in_two_processes(corpus, "cut") as killed:
        deadline = time.monotonic() + 120
        while len(list(corpus.glob("cut/*.ckpt"))) < n:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert not (corpus / "cut" / "step=40.ckpt").exists()
    last = max(corpus.glob("cut/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)

    with in_two_processes(corpus, "compare", str(last)) as compared:
        assert compared.wait(timeout=240) == 0
    assert same(corpus / "whole" / "step=40.ckpt", corpus / "rest" / "step=40.ckpt")
    assert same(corpus / "streamed" / "step=14.ckpt", corpus / "streamed5" / "step=14.ckpt")


if __name__ == "__main__":
    corpus = Path(sys.argv[1])
    together = {"devices": 2, "strategy": "ddp"}
    if sys.argv[2] == "cut":
        fit(Text, corpus, corpus / "cut", max_steps=40, **together)
    else:
        fit(Text, corpus, corpus / "whole", max_steps=40, **together)
        fit(Text, corpus, corpus / "rest", max_steps=40, ckpt_path=sys.argv[3], **together)
        fit(StreamedText, corpus, corpus / "streamed", **together)
        middle = corpus / "streamed" / "step=5.ckpt"
        fit(StreamedText, corpus, corpus / "streamed5", ckpt_path=middle, **together)
