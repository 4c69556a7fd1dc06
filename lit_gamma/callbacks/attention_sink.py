"""Attention sink: how much attention ends on the first token?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from typing_extensions import override

from lit_gamma.probing.attention import watched_attention
from lit_gamma.probing.forward import Seen
from lit_gamma.recording.activations import ProbeTrajectory
from lit_gamma.trajectory.table import Quantity


class AttentionSink(ProbeTrajectory):
    """Records where every head attends, on a fixed probe batch.

    Heads that have nothing to say park their attention on the first token, the attention sink;
    small initialization is said to intensify it (arXiv 2606.17945), and gated attention to remove
    it (arXiv 2505.06708). Attention through PyTorch's SDPA and eager attention are seen, others are
    not: build Hugging Face models with ``attn_implementation="sdpa"``.

    Logged as ``5_attention_sink/<quantity>_over_null/<head>``: the ``quantities`` below over what
    uniform attention to the same visible keys reads, which is where small initialization starts;
    the largest logit, whose growth makes training unstable (arXiv 2302.05442), as it is.

    The arguments are those of :class:`ProbeTrajectory`. A layer's attention is held in memory
    whole, some five times samples · heads · length² floats: take fewer samples of long contexts.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "first_token_mass",
            "attention on the first token, mean of the later queries",
            range="0..1",
            chart="attention on the first token ÷ uniform",
        ),
        Quantity(
            "entropy",
            "entropy of attention, mean of the queries but the first",
            unit="nats",
            chart="entropy of attention ÷ uniform",
        ),
        Quantity(
            "largest_logit",
            "largest logit of attention in the batch",
            note="0 as weights vanish; NaN for nn.MultiheadAttention",
            chart="largest logit of attention",
        ),
    )
    reference = "its value for uniform attention"
    uniform: ClassVar[Mapping[str, str]] = {
        "first_token_mass": "uniform_mass",
        "entropy": "uniform_entropy",
    }

    section = "5"

    @override
    def watch(self, pl_module: Any) -> AbstractContextManager[list[Seen]]:
        return watched_attention(pl_module)

    @override
    def nothing_seen(self, pl_module: Any) -> str:
        return (
            f"sees no attention in the forward of {type(pl_module).__name__}; it sees "
            "scaled_dot_product_attention and eager attention: a Hugging Face model can be built "
            'with attn_implementation="sdpa"'
        )
