"""Simulates records of known phases and prints how often a phase is found, and one invented.

    python benchmarks/phases.py

A record is that of the default experiment: 1,500 steps, two matrices of a role, each measured at
log-spaced steps and every 60 (condensation) or 120 steps (rank) in turn. On a logarithmic axis of
steps the quantity falls from 1 within 0.1 to 0.6 decades, which begin at step 30 to 100, and rises
again within 0.2 to 0.4 decades. Each measurement is off by a random factor, independently.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from lit_gamma.callbacks import Schedule
from lit_gamma.trajectory.phase_finding import phases_of

SIZES = (0.05, 0.1, 0.2, 0.4, 0.8)
LAST = 1500
TIERS = {s for s in range(LAST) if Schedule(dense_until=3, per_decade=4).due(s)} | {LAST}
LOWEST = 0.3
"""What the curves that expand fall to, as the stable rank of the default run's MLP does."""


def smooth(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 at 0 to 1 at 1."""
    u = u.clip(0, 1)
    return u * u * (3 - 2 * u)


def curve(
    steps: npt.NDArray[np.int64], fall: float, rise: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A curve that falls to 1 / (1 + fall) and rises from there by a factor of 1 + rise."""
    x = np.log10(1 + steps)
    begin, length = np.log10(generator.uniform(30, 100)), generator.uniform(0.1, 0.6)
    again = begin + length + generator.uniform(0, 0.15)
    moved = -math.log1p(fall) * smooth((x - begin) / length)
    moved += math.log1p(rise) * smooth((x - again) / generator.uniform(0.2, 0.4))
    return np.exp(moved)


def record(
    fall: float, rise: float, noise: float, every: int, generator: np.random.Generator
) -> pd.DataFrame:
    """The table of two matrices of a role that do the same, measured in turn."""
    truth = curve(np.arange(LAST + 1), fall, rise, generator)
    rows = []
    for matrix in ("first", "second"):
        turns = range(60 if matrix == "second" else every, LAST, every)
        for step in sorted({*TIERS, *turns}):
            value = truth[step] * math.exp(noise * generator.standard_normal())
            rows.append((step, matrix, "role", value))
    columns = ["step", "matrix", "role", "stable_rank_over_null"]
    return pd.DataFrame(rows, columns=columns).sort_values("step", kind="stable")


def shares(
    fall: float, rise: float, noise: float, every: int, n: int
) -> dict[str, tuple[float, float]]:
    """Shares of condensations and expansions found, for the role and for one of its matrices."""
    found = []
    for seed in range(n):
        table = record(fall, rise, noise, every, np.random.default_rng(seed))
        phases = phases_of({"effective_rank": table})
        found.append(phases[["condensation_step", "expansion_step"]].notna().to_numpy())
    seen = np.mean(found, axis=0)  # of the role, and of its first matrix
    return {"role": tuple(seen[0]), "matrix": tuple(seen[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=60, help="records of a kind")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.05])
    arguments = parser.parse_args()
    sizes = " | ".join(f"{size:.0%}" for size in SIZES)
    print(f"| curve | noise | condensation: none | {sizes} | expansion: none | {sizes} |")
    print("|---|---|" + "---|" * 2 * (1 + len(SIZES)))
    kinds = [(size, 0.0) for size in (0, *SIZES)]
    kinds += [(1 / LOWEST - 1, size) for size in (0, *SIZES)]
    for every in (60, 120):
        for noise in arguments.noise:
            of = [shares(*kind, noise, every, arguments.n) for kind in kinds]
            for name in ("role", "matrix"):
                cells = [f"{seen[name][rise > 0 or fall > 1]:.0%}" for seen, (fall, rise)
                         in zip(of, kinds, strict=True)]  # fmt: skip
                print(f"| {name}, every {every} | {noise:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
