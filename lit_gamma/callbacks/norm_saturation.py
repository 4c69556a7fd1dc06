"""Norm saturation: do the norms still normalize, or is their denominator ε?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from typing_extensions import override

from lit_gamma.probing.forward import Seen
from lit_gamma.probing.norms import watched_norms
from lit_gamma.recording.activations import ProbeTrajectory
from lit_gamma.trajectory.table import Quantity


class NormSaturation(ProbeTrajectory):
    """Records how much of each norm's denominator is ε, on a fixed probe batch.

    Small weights make small activations; once their mean square is not far above ε, a norm only
    multiplies by a constant, which restrains small initialization (arXiv 2606.17945). The remedy is
    a smaller ε: 1e-12 in place of 1e-5.

    Logged as ``4_norm_saturation/<quantity>/<norm>``, for every RMSNorm and LayerNorm: the
    ``quantities`` below; of a LayerNorm with the variance in place of the mean square.

    The arguments are those of :class:`ProbeTrajectory`.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "epsilon_share", "share of the norm's denominator that is its epsilon", range="0..1"
        ),
        Quantity("normalized_rms", "RMS of the normalized vectors before the scale", range="0..1"),
        Quantity("input_rms", "RMS of the norm's input", range=">= 0"),
    )

    section = "4"

    @override
    def watch(self, pl_module: Any) -> AbstractContextManager[list[Seen]]:
        return watched_norms(pl_module)

    @override
    def nothing_seen(self, pl_module: Any) -> str:
        return (
            f"finds no norm in the forward of {type(pl_module).__name__}: an RMSNorm, LayerNorm, "
            "or a class with Norm in its name and an eps; leave the callback out"
        )
