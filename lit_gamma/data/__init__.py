"""LightningDataModules. A batch is ``input_ids`` and ``labels``, int64, (batch, context_length)."""

from lit_gamma.data.anchor import AnchorComposition
from lit_gamma.data.text import Source, Text

__all__ = ["AnchorComposition", "Source", "Text"]
