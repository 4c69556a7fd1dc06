"""Which queries, keys, values and output projection make one attention, told by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_gamma.errors import InputError
from lit_gamma.weights.neurons import NeuronMatrix


@dataclass(frozen=True)
class Factors:
    """The two matrices whose product is a circuit of one head; positions are those of the matrices.

    Attributes:
        name: Path of what holds both, with circuit and head: ``blocks.0.attention.qk.head0``.
        circuit: ``qk``, W_Qᵀ W_K, or ``ov``, W_O W_V.
        layer: Index of the block; None outside the blocks.
        head: Which query head it is.
        left: Position of the head's queries; of the output projection for ``ov``.
        right: Position of the head's keys, or values, which several heads share under GQA.
        n_heads: Into how many parts the columns of an output projection fall.
        shape: (d_head, columns of the left factor, columns of the right one).
    """

    name: str
    circuit: str
    layer: int | None
    head: int
    left: int
    right: int
    n_heads: int
    shape: tuple[int, int, int]


def circuits(matrices: Sequence[NeuronMatrix]) -> list[Factors]:
    """Finds the circuits of every head: QK where there are keys, OV where values and an output.

    What belongs together is in one layer, and has most of its path in common.

    Args:
        matrices: Those of :func:`lit_gamma.neurons` with ``per_head``.

    Returns:
        The circuits, attention by attention, QK first.

    Raises:
        InputError: The heads of an attention do not fit together.
    """
    held: dict[str, dict[str, list[int]]] = {}
    for i, matrix in enumerate(matrices):
        projection = matrix.name if matrix.head is None else matrix.name.rpartition(".")[0]
        held.setdefault(matrix.role, {}).setdefault(projection, []).append(i)
    found: list[Factors] = []
    for query, heads in held.get("query", {}).items():
        layer = matrices[heads[0]].layer
        near = {
            role: _nearest(query, [p for p in of if matrices[of[p][0]].layer == layer])
            for role, of in held.items()
        }
        key, value, out = (near.get(role) for role in ("key", "value", "attention_out"))
        if key is not None:
            found += _qk(matrices, query, key, heads, held["key"][key])
        if value is not None and out is not None:
            (position,) = held["attention_out"][out]
            found += _ov(matrices, out, value, position, len(heads), held["value"][value])
    return found


def _qk(
    matrices: Sequence[NeuronMatrix], query: str, key: str, heads: list[int], shared: list[int]
) -> Iterator[Factors]:
    path = _common(query, key)
    for head, left in enumerate(heads):
        right = shared[head * len(shared) // len(heads)]
        (k, d), (own, e) = (tuple(matrices[i].weight.shape) for i in (left, right))
        if k != own:
            raise _misfit(query, k, key, own)
        layer = matrices[left].layer
        yield Factors(f"{path}qk.head{head}", "qk", layer, head, left, right, 1, (k, d, e))


def _ov(
    matrices: Sequence[NeuronMatrix], out: str, value: str, left: int, n: int, shared: list[int]
) -> Iterator[Factors]:
    path = _common(out, value)
    d, columns = matrices[left].weight.shape
    for head in range(n):
        right = shared[head * len(shared) // n]
        k, e = matrices[right].weight.shape
        if columns != n * k:
            raise _misfit(out, columns / n, value, k)
        layer = matrices[left].layer
        yield Factors(f"{path}ov.head{head}", "ov", layer, head, left, right, n, (k, d, e))


def _nearest(path: str, others: Sequence[str]) -> str | None:
    return max(others, key=lambda other: len(_common(path, other)), default=None)


def _common(a: str, b: str) -> str:
    """The components that two paths begin with, each with its dot."""
    common = ""
    for one, other in zip(a.split("."), b.split("."), strict=False):
        if one != other:
            break
        common += f"{one}."
    return common


def _misfit(a: str, of_a: float, b: str, of_b: float) -> InputError:
    return InputError(
        f"the heads of {a} are {of_a:g} wide, those of {b} {of_b:g}: they make no circuit; name "
        "their roles by neuron_roles, or leave the callback out"
    )
