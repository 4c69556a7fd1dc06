"""LightningDataModules. A batch is ``input_ids`` and ``labels``, int64, (batch, context_length)."""

from lit_gamma.data.anchor import AnchorComposition
from lit_gamma.data.source import Source
from lit_gamma.data.streamed_text import StreamedText
from lit_gamma.data.text import Text

__all__ = ["AnchorComposition", "Source", "StreamedText", "Text"]
