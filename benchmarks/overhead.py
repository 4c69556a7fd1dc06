"""What recording costs: whole fits, step by step in turn in one process, over Lightning alone.

    pip install greenlet
    export MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=17179869184
    python benchmarks/overhead.py --rows anchor --rounds 5 --steps 600 --planned 1500

The two variables keep glibc from giving memory back to the system between steps: which fit has to
ask for it again is chance, and it can be two percent of its time.

"Lightning's cost" is Lightning over the bare loop, "our cost" the callbacks over Lightning.

Every round fits all variants at once, in one thread: each takes a step (on a GPU twenty), then the
next one does, so that a machine whose speed drifts is as fast for all; who is first changes from
turn to turn. A fit does not see the time of the others. All have the same batches and the same
initialization. Fits end after ``--steps`` of the ``--planned`` steps that the callbacks' budgets
count on, and are timed from step ``--first`` to the end of the fit; the first steps are the
dearest, as all matrices are measured there. A ratio is taken within a round; the table gives the
median over the rounds, with the smallest and largest. "own bill" is what the callbacks' own clocks
say, in milliseconds per step: it does not vary with the speed of training, and leaves out what
recording does to the caches.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from unittest import mock

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from greenlet import getcurrent, greenlet
from lightning.pytorch.loggers import TensorBoardLogger
from products import squares_of_products
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig, neurons
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    Overhead,
    Overview,
    Schedule,
    TokenLoss,
    TokenLossProfile,
    TrajectoryCallback,
    WeightNorms,
    WeightTrajectory,
)

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


@dataclass(frozen=True)
class Row:
    """A model and a batch size; on a GPU compiled, in bfloat16 with float32 weights."""

    transformer: TransformerConfig
    batch_size: int


ROWS = {
    "anchor": Row(TransformerConfig(110, 9, 2, 1, 128, gate="none", position="learned"), 256),
    "6 layers d=256": Row(TransformerConfig(257, 128, 6, 4, 256), 64),
    "12 layers d=512": Row(TransformerConfig(257, 128, 12, 8, 512), 64),
    # 64k tokens a step on a GPU, 1k on a CPU.
    "gpt2": Row(TransformerConfig(50304, 1024, 12, 12, 768, tie_embeddings=True), 64 if GPU else 1),
}


class Naive(lightning.Callback):
    """What one would write first: svdvals and all cosines of every matrix, logged one by one."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for m in neurons(pl_module):
            rows = torch.nn.functional.normalize(m.weight, dim=1)
            columns = torch.nn.functional.normalize(m.weight, dim=0)
            s = torch.linalg.svdvals(m.weight)
            p = s / s.sum()
            pl_module.log(f"{m.name}/rank", torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))
            pl_module.log(f"{m.name}/row_cosine", (rows @ rows.T).abs().mean())
            pl_module.log(f"{m.name}/column_cosine", (columns.T @ columns).abs().mean())
            pl_module.log(f"{m.name}/norm", m.weight.norm())


class Squares(WeightTrajectory):
    """cos² and the participation ratio of every matrix, and nothing else."""

    def measure(self, weights):
        squares, cosines = squares_of_products(weights.weight)
        n = weights.weight.shape[1]
        norms = weights.weight.square().sum((1, 2))
        return {"cos2": (cosines - n) / (n * (n - 1)), "participation": norms.square() / squares}


STEPS_PER_TURN = 20 if GPU else 1


@dataclass(frozen=True)
class Cost:
    """Milliseconds per step: of all, and by the callbacks' own clocks."""

    ms: float
    bill: float


def in_turns(runs: Mapping[str, Callable[[], float]], first: int, steps: int) -> dict[str, Cost]:
    """Does all runs of so many steps, a turn of each at a time; each calls :func:`step_starts`.

    Returns:
        What each costs from step ``first`` to its end; the bill, which a run returns, of all steps.
    """
    now = time.perf_counter
    own: dict[greenlet, float] = {}  # Seconds of each run so far, which is all that it sees.
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    bills: dict[str, float] = {}
    waiting = {name: greenlet(run) for name, run in runs.items()}
    while waiting:
        waiting = dict(islice(cycle(waiting.items()), 1, len(waiting) + 1))
        for name, run in list(waiting.items()):
            start = now() - own.get(run, 0.0)
            with mock.patch("time.perf_counter", lambda start=start: now() - start):
                bill = run.switch()
            if GPU:
                torch.cuda.synchronize()
            spent = now() - start
            seconds[name].append(spent - own.get(run, 0.0))
            own[run] = spent
            if run.dead:
                bills[name] = 1e3 * bill / steps
                del waiting[name]
    skipped = 1 + first // STEPS_PER_TURN  # The first turn is what comes before the first step.
    per_step = 1e3 / (steps - first)
    return {n: Cost(per_step * sum(s[skipped:]), bills[n]) for n, s in seconds.items()}


def step_starts(step: int) -> None:
    """Lets the other runs have their turn."""
    if step % STEPS_PER_TURN == 0:
        getcurrent().parent.switch()


class Turns(lightning.Callback):
    """Gives way between steps; ends the fit."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step_starts(batch_idx)

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


class Batches(lightning.LightningDataModule):
    """Random tokens, the same in every fit."""

    def __init__(self, row: Row, steps: int) -> None:
        super().__init__()
        shape = row.transformer
        generator = torch.Generator().manual_seed(0)
        size = (steps * row.batch_size, shape.context_length)
        ids = torch.randint(shape.vocab_size, size, generator=generator)
        self.loader = DataLoader(
            TensorDataset(ids), batch_size=row.batch_size, collate_fn=self.collate
        )

    @staticmethod
    def collate(samples: list[tuple[Tensor]]) -> dict[str, Tensor]:
        ids = torch.stack([sample[0] for sample in samples])
        return {"input_ids": ids, "labels": ids.roll(-1, 1)}

    def train_dataloader(self) -> DataLoader:
        return self.loader


def module(row: Row) -> LanguageModel:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(warmup_steps=10)
    return LanguageModel(row.transformer, 0.8, optimizer=optimizer, compile=GPU)


def bare(
    row: Row,
    steps: int,
    planned: int,
    make: Callable[[Row], nn.Module] = lambda row: module(row).transformer,
) -> float:
    """A plain PyTorch loop, with nothing recorded."""
    model = make(row).to(DEVICE)
    if GPU:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    for step, batch in enumerate(Batches(row, steps).loader):
        step_starts(step)
        ids, labels = batch["input_ids"].to(DEVICE), batch["labels"].to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return 0.0


def fitted(*kinds: Callable[[], lightning.Callback]) -> Callable[[Row, int, int], float]:
    """A fit with those callbacks, which returns the seconds on their bills."""

    def run(row: Row, steps: int, planned: int) -> float:
        callbacks = [kind() for kind in kinds]
        with tempfile.TemporaryDirectory() as folder:
            lightning.Trainer(
                accelerator=DEVICE.type,
                devices=1,
                precision="bf16-mixed" if GPU else "32-true",
                max_steps=planned,
                gradient_clip_val=1.0,
                logger=TensorBoardLogger(folder, default_hp_metric=False),
                callbacks=[*callbacks, Turns(steps)],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(module(row), Batches(row, steps))
        return sum(c.bill.seconds for c in callbacks if isinstance(c, TrajectoryCallback))

    return run


EVERY = Schedule(every=1)

VARIANTS = {
    "bare loop": bare,
    "Lightning": fitted(),
    "defaults": fitted(
        Condensation, EffectiveRank, WeightNorms, TokenLoss, TokenLossProfile, Overhead, Overview
    ),
    # The same without a budget: nothing in turn, nothing left out.
    "no limit": fitted(
        Condensation, EffectiveRank, WeightNorms, TokenLoss, TokenLossProfile, Overview
    ),
    "token loss": fitted(TokenLoss, TokenLossProfile),
    "everything exact": fitted(
        lambda: Condensation(EVERY),
        lambda: EffectiveRank(EVERY),
        WeightNorms,
        TokenLoss,
    ),
    "cos² and participation alone": fitted(lambda: Squares(EVERY)),
    "naive callback": fitted(Naive),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=["anchor", "6 layers d=256"], choices=ROWS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="step at which the clock starts")
    parser.add_argument("--planned", type=int, default=1000)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_flush_denormal(True)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {args.rounds} rounds, "
        f"steps {args.first} to {args.steps} of {args.planned}"
    )
    print(
        "| row | variant | ms per step | - Lightning | own bill | ÷ Lightning |\n"
        + 6 * "|---"
        + "|"
    )
    for name in args.rows:
        fit = (ROWS[name], args.steps, args.planned)
        runs = {v: partial(VARIANTS[v], *fit) for v in ["Lightning", *args.variants]}
        in_turns({"warm-up": partial(bare, ROWS[name], 2, 2)}, 0, 2)
        rounds = [in_turns(runs, args.first, args.steps) for _ in range(args.rounds)]
        for variant in runs:
            ms, own = np.median([(r[variant].ms, r[variant].bill) for r in rounds], axis=0)
            ratio = np.array([r[variant].ms / r["Lightning"].ms for r in rounds])
            spread = f"{np.median(ratio):.3f} ({ratio.min():.3f} .. {ratio.max():.3f})"
            more = np.median([r[variant].ms - r["Lightning"].ms for r in rounds])
            cells = [name, variant, f"{ms:.1f}", f"{more:+.1f}", f"{own:.2f}", spread]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
