"""Sums over the rows of every weight matrix, wherever the rows are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate, Shard

from lit_gamma.recording.side_stream import lend
from lit_gamma.weights.neurons import NeuronMatrix


@dataclass(frozen=True)
class Stack:
    """Weight matrices of one shape, stacked without a copy.

    Attributes:
        positions: Where the matrices stand in the order of :func:`lit_gamma.neurons`.
        n_held: How many rows of each this rank holds.
        by_columns: Whether their Gram matrices are those of the columns: where these are fewer than
            the rows, and where ranks have parts of the rows, as that sum adds up.
    """

    positions: tuple[int, ...]
    n_held: int
    by_columns: bool


@dataclass(frozen=True)
class Rows:
    """Weight matrices with the same number of inputs, below one another.

    Attributes:
        positions: Where the matrices stand in the order of :func:`lit_gamma.neurons`.
        n_neurons: Rows of each whole matrix.
        stacks: The same matrices by shape.
        held: The rows of each matrix that this rank holds, shape (rows, d_in); there may be none.
        ranks: The processes that hold the other rows; None if this one holds all.
    """

    positions: tuple[int, ...]
    n_neurons: tuple[int, ...]
    stacks: list[Stack]
    held: tuple[Tensor, ...]
    ranks: ProcessGroup | None

    @property
    def d_in(self) -> int:
        """Number of inputs."""
        return self.held[0].shape[1]

    def copy(self, buffer: Tensor | None = None) -> Tensor:
        """Copies the rows held here, float32, shape (rows, d_in).

        Args:
            buffer: An earlier copy that is no longer needed, to be overwritten: on a CPU fresh
                memory costs as much as the copy.
        """
        if buffer is not None and not buffer.is_cuda:
            return torch.cat(self.held, out=buffer)
        return lend(torch.cat(self.held).float())

    def whole(self, values: Tensor) -> list[Tensor]:
        """Gathers rows held here, (rows, d_in), to whole matrices on the host; all ranks must."""
        parts = values.split_with_sizes([held.shape[0] for held in self.held])
        if self.ranks is None:
            return [part.cpu() for part in parts]
        pairs = zip(parts, self.n_neurons, strict=True)
        return [_gathered(part, n, self.ranks).cpu() for part, n in pairs]

    def part(self, matrices: Sequence[Tensor]) -> Tensor:
        """The rows of whole matrices that this rank holds, (rows, d_in): undoes :meth:`whole`."""
        if self.ranks is None:
            return torch.cat(list(matrices))
        rank, world = dist.get_rank(self.ranks), dist.get_world_size(self.ranks)
        starts = [rank * -(-n // world) for n in self.n_neurons]
        spans = zip(matrices, starts, self.held, strict=True)
        return torch.cat([whole[start : start + len(held)] for whole, start, held in spans])

    def by_stack(self, values: Tensor) -> list[Tensor]:
        """Splits values of shape (len(positions), ...) into those of each stack."""
        parts = values.split_with_sizes([len(stack.positions) for stack in self.stacks])
        return list(parts)

    def stacked(self, values: Tensor) -> list[Tensor]:
        """Views values of shape (rows, ...) as (matrices, rows of each, ...), a view per stack."""
        shapes = [(len(stack.positions), stack.n_held) for stack in self.stacks]
        parts = values.split_with_sizes([count * rows for count, rows in shapes])
        return [
            part.view(*shape, *values.shape[1:]) for part, shape in zip(parts, shapes, strict=True)
        ]

    def sums(self, values: Tensor) -> Tensor:
        """Sums values of shape (rows, k) over the rows of each matrix: (len(positions), k)."""
        return torch.cat([part.sum(1) for part in self.stacked(values)])

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Inner products of values of shape (rows, d_in), of each matrix: (positions, pairs)."""
        return torch.cat([self.sums((a * b).sum(1, keepdim=True)) for a, b in pairs], dim=1)

    def maxima(self, values: Tensor) -> Tensor:
        """Largest of values >= 0 of shape (rows,) over the rows of each matrix; 0 without rows."""
        return torch.cat(
            [
                part.amax(1) if part.shape[1] else part.new_zeros(part.shape[0])
                for part in self.stacked(values)
            ]
        )


def grouped_rows(matrices: Sequence[NeuronMatrix]) -> Iterator[Rows]:
    """Yields the rows of weight matrices that this rank holds.

    Of parameters sharded by rows (FSDP2, also unevenly) these are the rank's own rows; any other
    kind of sharding is gathered, one matrix at a time.

    Args:
        matrices: The matrices.

    Yields:
        One :class:`Rows` per d_in, device and set of ranks, the same ones on every rank.
    """
    alike: dict[tuple[int, torch.device, ProcessGroup | None], list[tuple[int, int, Tensor]]] = {}
    for i, matrix in enumerate(matrices):
        held, ranks = _held(matrix.weight)
        key = (matrix.weight.shape[1], held.device, ranks)
        alike.setdefault(key, []).append((i, matrix.weight.shape[0], held))
    for (d_in, _, ranks), members in alike.items():
        members.sort(key=lambda member: member[1])  # Stable: shapes become neighbours.
        stacks = []
        for n, alike_too in groupby(members, key=lambda member: member[1]):
            of_shape = list(alike_too)
            positions = tuple(i for i, _, _ in of_shape)
            stacks.append(Stack(positions, of_shape[0][2].shape[0], n > d_in or ranks is not None))
        all_positions, n_neurons, held_rows = zip(*members, strict=True)
        yield Rows(all_positions, n_neurons, stacks, held_rows, ranks)


def whole_matrices(groups: Sequence[Rows], held: Sequence[Tensor]) -> dict[int, Tensor]:
    """Gathers rows held here, (rows, d_in) of each group, for a checkpoint; all ranks must.

    Returns:
        Position of each matrix to the whole of it, on the host.
    """
    return {
        i: matrix
        for rows, values in zip(groups, held, strict=True)
        for i, matrix in zip(rows.positions, rows.whole(values), strict=True)
    }


def parts_held(
    groups: Sequence[Rows], whole: Mapping[int, Tensor], device: torch.device
) -> list[Tensor]:
    """Undoes :func:`whole_matrices`, for measurements beside training."""
    return [lend(rows.part([whole[i] for i in rows.positions]).to(device)) for rows in groups]


def _held(weight: Tensor) -> tuple[Tensor, ProcessGroup | None]:
    if not isinstance(weight, DTensor):
        return weight, None
    sharded = [i for i, p in enumerate(weight.placements) if not isinstance(p, Replicate)]
    if len(sharded) == 1 and weight.placements[sharded[0]] == Shard(0):
        return weight.to_local(), weight.device_mesh.get_group(sharded[0])
    return weight.full_tensor(), None


def _gathered(part: Tensor, n_rows: int, ranks: ProcessGroup) -> Tensor:
    """Rows in the order of the ranks, which hold as many each but for the last ones."""
    world = dist.get_world_size(ranks)
    most = -(-n_rows // world)
    gathered = part.new_empty(world * most, part.shape[1])
    padding = part.new_zeros(most - len(part), part.shape[1])
    dist.all_gather_into_tensor(gathered, torch.cat((part, padding)), group=ranks)
    return gathered[:n_rows]


def add_over_ranks(sums: Sequence[Tensor], ranks: Sequence[ProcessGroup | None]) -> None:
    """Adds sums of sharded matrices over the ranks, in place, with one all_reduce.

    Args:
        sums: Tensors of any shapes.
        ranks: The processes each is spread over; None for those that are whole.
    """
    for group in dict.fromkeys(r for r in ranks if r is not None):
        parts = [part for part, r in zip(sums, ranks, strict=True) if r is group]
        packed = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(packed, group=group)
        start = 0
        for part in parts:
            part.copy_(packed[start : start + part.numel()].view_as(part))
            start += part.numel()


def in_own_slot(largest: Tensor, ranks: ProcessGroup | None) -> Tensor:
    """Spreads values (m,) over one slot per rank, (m, ranks), so that a sum keeps them apart."""
    if ranks is None:
        return largest.unsqueeze(1)
    slots = torch.arange(dist.get_world_size(ranks), device=largest.device)
    return largest.unsqueeze(1) * (slots == dist.get_rank(ranks))
