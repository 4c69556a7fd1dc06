"""How often the interval of the critical γ covers it, on simulated sweeps.

    python benchmarks/critical.py

A measure rises from 0.05 to 0.95 around γ = 0.68, over a grid from 0.5 to 1.0 in steps of 0.1. Its
runs scatter as a Gaussian, or answer one way or the other, as runs of the anchor task do. What is
covered is the critical γ of the expected means.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from lit_gamma.comparison.critical import Window, critical
from lit_gamma.comparison.sweep_runs import GAMMA, cells

GRID = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
RISE = 1 / (1 + np.exp(-(GRID - 0.68) / 0.04))
SCATTER = {"Gaussian, 0.05": 0.05, "Gaussian, 0.2": 0.2, "two-valued": None}


def runs(rng: np.random.Generator, n_seeds: int, scatter: float | None) -> np.ndarray:
    """The measure of every run, (n_gamma, n_seeds)."""
    shape = len(GRID), n_seeds
    if scatter is None:
        return 0.05 + 0.9 * (rng.random(shape) < RISE[:, None]) + rng.normal(0, 0.02, shape)
    return 0.05 + 0.9 * RISE[:, None] + rng.normal(0, scatter, shape)


def main() -> None:
    """Prints a row for each kind of scatter and number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=1000)
    n_sweeps = parser.parse_args().sweeps
    true = float(np.interp((RISE.min() + RISE.max()) / 2, RISE, GRID))
    print("| scatter | seeds | found | covered | median width |\n|---|---|---|---|---|")
    for name, scatter in SCATTER.items():
        for n_seeds in (3, 5, 10):
            rng = np.random.default_rng(1)
            at = {GAMMA: np.repeat(GRID, n_seeds)}
            tables = [
                pd.DataFrame({**at, "measure": runs(rng, n_seeds, scatter).ravel()})
                for _ in range(n_sweeps)
            ]
            found = [critical(cells(of, of[[GAMMA]], "measure"), False) for of in tables]
            spans = np.array([of.lower[1:] for of in found if isinstance(of, Window)])
            covered = (spans[:, 0] <= true) & (true <= spans[:, 1])
            width = np.median(np.diff(spans))
            print(
                f"| {name} | {n_seeds} | {len(spans) / n_sweeps:.2f} | {covered.mean():.2f} "
                f"| {width:.3f} |"
            )


if __name__ == "__main__":
    main()
