"""LightningDataModules. A batch is ``input_ids`` and ``labels``, int64, (batch, context_length)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_gamma.data.addition import Addition
    from lit_gamma.data.anchor import AnchorComposition
    from lit_gamma.data.source import Source
    from lit_gamma.data.streamed_text import StreamedText
    from lit_gamma.data.text import Text

__all__ = ["Addition", "AnchorComposition", "Source", "StreamedText", "Text"]

_HOMES = {
    "Addition": "addition",
    "AnchorComposition": "anchor",
    "Source": "source",
    "StreamedText": "streamed_text",
    "Text": "text",
}


def __getattr__(name: str) -> Any:
    """Imports a name where it is asked for: Lightning takes seconds."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
