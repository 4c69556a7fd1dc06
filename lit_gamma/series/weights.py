"""The weight matrices of a series: read when they are measured, one in memory at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_gamma.errors import InputError
from lit_gamma.recording.current import CurrentWeights, WeightGroup
from lit_gamma.series.outline import outline
from lit_gamma.series.stored import Stored
from lit_gamma.weights.parameters import Roles, parameters
from lit_gamma.weights.parts import Part, parts


class StoredWeights(CurrentWeights):
    """The matrices of the checkpoint that is measured, as those of a module in training.

    Args:
        first: The first checkpoint: its names and shapes are those of all.
        roles: See :func:`lit_gamma.neurons`.
        read: Called each time that a matrix was measured.
        per_head: Whether queries, keys and values are read head by head.

    Attributes:
        module: An outline of the module, see :func:`lit_gamma.series.outline.outline`.
        finite: A parameter that is zero, or NaN where a matrix was read that is not finite.
        earlier: The checkpoint measured before; None at the first.
    """

    def __init__(
        self,
        first: Stored,
        roles: Roles | None,
        read: Callable[[], object] = lambda: None,
        per_head: bool = False,
    ) -> None:
        self._zero = torch.zeros(())
        self.module = outline(first.shapes, first.about, self._zero, roles)
        self.finite = nn.ParameterList([nn.Parameter(self._zero, requires_grad=False)])
        super().__init__(self.module, per_head)
        self._cuts = list(_cuts(self.module, per_head))
        if not self._cuts:
            raise InputError(f"{first.path} is no checkpoint: it holds no weight matrices")
        self._first, self._read = first, read
        self._now: Stored = first
        self._last: tuple[tuple[Stored, str], Tensor] | None = None
        self.earlier: Stored | None = None

    def show(self, stored: Stored) -> None:
        """Goes on to a checkpoint.

        Raises:
            InputError: Its matrices have other names or shapes than those of the first.
        """
        for name, _ in self._cuts:
            shape, expected = stored.shapes.get(name), self._first.shapes[name]
            if shape != expected:
                has = "nothing" if shape is None else list(shape)
                raise InputError(
                    f"{stored.path} has {has} as {name}, {self._first.path} {list(expected)}: they "
                    "are of no one series; measure them apart, each with an --out of its own"
                )
        self._now = stored
        self._zero.zero_()

    @override
    def groups(self, step: int, positions: Sequence[int] | None = None) -> Iterator[WeightGroup]:
        """Yields the matrices of the checkpoint one by one, none of them kept."""
        matrices = self.matrices
        for i in range(len(matrices)) if positions is None else positions:
            weight = self.matrix(i, self._now)
            self._zero.add_(weight.sum() * 0)
            yield WeightGroup([i], [matrices[i]], weight[None])
            self._read()

    def matrix(self, position: int, of: Stored) -> Tensor:
        """Reads a matrix of a checkpoint, (n_neurons, d_in)."""
        name, part = self._cuts[position]
        _give_back()
        if part.suffix == "":
            self._last = None
            return part.matrix(of.read(name))
        if self._last is None or self._last[0] != (of, name):  # Its other parts follow.
            self._last = None
            self._last = (of, name), of.read(name)
        return part.matrix(self._last[1]).contiguous()


def _cuts(module: nn.Module, per_head: bool) -> Iterator[tuple[str, Part]]:
    """For every matrix, in the order of :func:`lit_gamma.neurons`, its tensor and how it is cut."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in parameters(module):
        if parameter.kind == "matrix":
            if id(parameter.tensor) not in names:
                raise InputError(
                    f"{parameter.path} is computed by {parameter.parametrization}; save the "
                    "checkpoint after its parametrization is removed"
                )
            for part in parts(parameter, per_head):
                yield names[id(parameter.tensor)], part


def _give_back() -> None:
    """Returns freed memory to the system: of pieces below 32 MiB glibc keeps hundreds of MiB."""
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's function; None where there is none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
