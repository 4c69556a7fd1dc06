"""The residual stream between the blocks, and what attention and MLP add to it, watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_gamma import metrics
from lit_gamma.probing.forward import Seen, tensors_in
from lit_gamma.weights.parameters import Parameter, parameters, plain_path

WRITERS = {"attention_out": "attention", "mlp_down": "mlp"}
"""Role of the matrix that a part of a block writes with, to the name of the part."""


@contextmanager
def watched_stream(module: nn.Module) -> Iterator[list[Seen]]:
    """Collects the states of the tokens in the residual stream, before and after each block.

    A block is the smallest module around an attention's output projection that has an MLP's too.
    All tokens of a batch are the rows of one matrix; of its singular values there is the smaller
    Gram matrix, as an eigen-solver would wait for the device.

    What a part of a block writes is what comes out of its last matrix, whatever follows (dropout, a
    norm, a mixture's weights), once it is added to something else. The share is that of the sum's
    squared norm, ⟨write, sum⟩ / ‖sum‖²; the rest is what was there before. Additions inside a
    fused kernel are not seen, and read NaN.

    Args:
        module: Any module, to be run inside in evaluation mode.

    Yields:
        A list that fills up, for the input of each stack of blocks and for each block: ``rms``,
        ``largest_over_rms``, ``mean_squared_cosine``, ``mean_cosine``, ``attention_share`` and
        ``mlp_share``, of shape (), and ``gram``, float64.
    """
    seen: list[Seen] = []
    additions = _Additions()
    found = parameters(module)
    paths = {part: plain_path(name.split(".")) for name, part in module.named_modules()}
    stacks: set[str] = set()
    with ExitStack() as hooks, additions:
        for writer, name in _writers(found, paths).items():
            hooks.callback(writer.register_forward_hook(additions.noting(name)).remove)
        for block in _blocks(found):
            path = paths[block]
            stack = path.rpartition(".")[0]
            first = f"{stack}.input".lstrip(".")

            def enter(_: nn.Module, args: Any, kwargs: Any, path: str = first) -> None:
                seen.append(_seen(path, (args, kwargs), {}))

            def leave(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                seen.append(_seen(path, output, additions.end()))

            if stack not in stacks:
                hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stacks.add(stack)
            hooks.callback(block.register_forward_hook(leave).remove)
        yield seen


def _writers(found: Sequence[Parameter], paths: Mapping[nn.Module, str]) -> dict[nn.Module, str]:
    """Module that applies the last matrix of a part of a block, to the name of the part."""
    writers = {}
    for parameter in found:
        *_, around, owner = (None, *parameter.chain)
        name = next((WRITERS[role] for role in parameter.roles if role in WRITERS), None)
        if parameter.kind == "matrix" and name is not None:
            inside = isinstance(around, nn.MultiheadAttention)  # It does not call its projection.
            wrapped = (part for part in parameter.chain if paths[part] == paths[owner])
            writers[around if inside else next(wrapped)] = name
    return writers


def _blocks(found: Sequence[Parameter]) -> list[nn.Module]:
    matrices = [p for p in found if p.kind == "matrix"]
    with_mlp = {part for p in matrices if "mlp_down" in p.roles for part in p.chain}
    outs = [p for p in matrices if "attention_out" in p.roles]
    around = (next((m for m in reversed(p.chain) if m in with_mlp), None) for p in outs)
    return [block for block in dict.fromkeys(around) if block is not None]


def _seen(path: str, around: Any, shares: Mapping[str, Tensor]) -> Seen:
    """What is to be known of the states that go into a block or come out of it."""
    states = next(tensors_in(around)).detach().double().flatten(0, -2)
    n_tokens, width = states.shape
    unknown = states.new_full((), torch.nan)
    norms = torch.linalg.vector_norm(states, dim=1)
    rms = states.square().mean().sqrt()
    n = norms.sign().sum()
    with metrics.exact_products(states.device):
        if n_tokens > width:
            grams = metrics.column_grams(states, norms)
            sums = metrics.sums_by_columns(grams, n, states.new_zeros(0, width))
            gram = grams.plain
        else:
            sums = metrics.sums_by_rows(states, norms, states.new_zeros(0, n_tokens))
            gram = metrics.smaller_gram(states)
    values = {
        "rms": rms,
        "largest_over_rms": states.abs().amax() / rms,
        "mean_squared_cosine": metrics.mean_of_pairs(sums.squared_cosines, n),
        "mean_cosine": metrics.mean_of_pairs(sums.cosines, n),
        **{f"{name}_share": shares.get(name, unknown) for name in WRITERS.values()},
        "gram": gram,
    }
    return Seen(path, values, (n_tokens, width))


_ADDITIONS = (
    torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__,
)  # fmt: skip


class _Additions(TorchFunctionMode):
    """Follows what was written, through what is done to it, to where it is added to the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: dict[str, Tensor] = {}
        self._written: dict[int, tuple[Tensor, Mapping[str, Tensor]]] = {}

    def noting(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that takes what its module gives for written by a part of a block."""

        def note(_: nn.Module, args: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                self._keep(tensor, {name: tensor})

        return note

    def end(self) -> dict[str, Tensor]:
        """The share of each part in what it was added to, since the last time."""
        shares, self._shares = self._shares, {}
        self._written.clear()
        return shares

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operands = list(tensors_in((args, kwargs)))
        written = [self._written[id(x)][1] for x in operands if id(x) in self._written]
        if not written:
            return func(*args, **kwargs)
        adds = func in _ADDITIONS and [x.shape for x in operands] == 2 * [operands[0].shape]
        if adds and len(written) == 1:
            self._share(operands, written[0])
            out = func(*args, **kwargs)
            self._written.pop(id(out), None)  # In place it may be what was written.
            return out
        parts = _together(written) if adds else written[0]
        out = func(*args, **kwargs)
        if len(parts) == 1 or adds or func is F.dropout:
            for tensor in tensors_in(out):
                self._keep(tensor, dict.fromkeys(parts, tensor) if len(parts) == 1 else parts)
        return out

    def _keep(self, tensor: Tensor, parts: Mapping[str, Tensor]) -> None:
        self._written[id(tensor)] = tensor, parts  # With it, so that no other has its id.

    def _share(self, operands: Sequence[Tensor], parts: Mapping[str, Tensor]) -> None:
        whole = operands[0].double() + operands[1].double()
        for name, part in parts.items():
            share = (part.double() * whole).sum() / whole.square().sum()
            self._shares[name] = self._shares.get(name, 0) + share


def _together(written: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parts of a sum, as copies: an addition in place is made to one of the operands."""
    names = dict.fromkeys(name for parts in written for name in parts)
    return {n: torch.stack([parts[n] for parts in written if n in parts]).sum(0) for n in names}
