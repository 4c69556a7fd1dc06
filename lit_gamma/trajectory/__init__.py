"""The record: written, read back, and what it says."""

from lit_gamma.trajectory.overview import plot
from lit_gamma.trajectory.reading import extremes, load, phases, probe, tokens

__all__ = ["extremes", "load", "phases", "plot", "probe", "tokens"]
