"""A series of checkpoints measured afterwards: the record that its training might have left."""

from lit_gamma.series.measuring import measure
from lit_gamma.series.norms import WeightNorms

__all__ = ["WeightNorms", "measure"]
