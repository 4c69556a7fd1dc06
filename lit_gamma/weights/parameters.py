"""Every parameter of a module once, with its place, what kind it is, and which role it plays."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_gamma.errors import InputError
from lit_gamma.weights.parametrized import originals, tensors_of
from lit_gamma.weights.roles import ROLES, roles_of

Roles = Mapping[str, str | Sequence[str]]
"""Pattern of a parameter's path, such as ``*.mixer.in_proj``, to its role, or to the roles of its
rows in order where it is fused."""

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
_STRUCTURAL = ("A_log", "dt_bias", "dt_proj.bias", "dt_proj_bias")
"""How paths end of what sets the time scales of a state space: neither weights nor offsets."""

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Parameter:
    """A parameter and where it is.

    Attributes:
        path: Its path, without wrappers and the final ``.weight``.
        leaf: Its name in its owner.
        chain: The modules on the way, from the root to the owner.
        tensor: The parameter itself, or what a parametrization makes of it.
        parametrization: Name of the parametrization that makes it, if any.
        given: The roles that the user has given it.
    """

    path: str
    leaf: str
    chain: tuple[nn.Module, ...]
    tensor: Tensor
    parametrization: str | None = None
    given: tuple[str, ...] = ()

    @property
    def owner(self) -> nn.Module:
        """The module that has it."""
        return self.chain[-1]

    @property
    def frozen(self) -> bool:
        """Whether training leaves it alone."""
        trained = originals(self.owner, self.leaf) if self.parametrization else [self.tensor]
        return not any(parameter.requires_grad for parameter in trained)

    @property
    def layer(self) -> int | None:
        """Index of its block: the first number in the path that something follows."""
        return layer_of(self.path)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Its role, or the roles of its rows if it is fused."""
        return self.given or roles_of(self.path.split("."), self.chain)

    @cached_property
    def kind(self) -> str:
        """``matrix``, ``bias``, ``norm`` (a scale), ``structural``, ``unseen``, or ``vector``.

        Structural are the time scales of state spaces; unseen is what holds no real numbers (yet):
        lazy, empty, complex, or the codes of a quantized weight; a vector is none of the others.
        """
        tensor = self.tensor
        if is_lazy(tensor) or not tensor.is_floating_point() or not tensor.numel():
            return "unseen"
        if self.given:
            return "matrix"
        if self.path.endswith(_STRUCTURAL):
            return "structural"
        if self.leaf in ("bias_k", "bias_v") or isinstance(self.owner, nn.RNNBase | nn.RNNCellBase):
            return "bias" if self.leaf.startswith("bias") else "matrix"
        weight = self.leaf.removesuffix("_bias")
        beside = {weight, f"{weight}_weight"} & self.owner._parameters.keys()
        if self.leaf == "bias" or (self.leaf.endswith("_bias") and beside):
            return "bias"
        if isinstance(self.owner, _NORMS):
            return "norm"
        if self.tensor.ndim > 1:
            return "matrix"
        return "norm" if "norm" in type(self.owner).__name__.lower() else "vector"

    @cached_property
    def transposed(self) -> bool:
        """Whether it is stored as (..., d_in, d_out), as in GPT-2 and in some mixtures."""
        if self.tensor.ndim == 2:
            return type(self.owner).__name__ == "Conv1D"
        said: bool | None = getattr(self.owner, "is_transposed", None)
        width = self.integer("hidden_size", "d_model", "n_embd")
        if said is not None or width is None:
            return bool(said)
        *_, rows, columns = self.tensor.shape
        d_in, d_out = (rows, columns) if self.roles[-1] == "mlp_up" else (columns, rows)
        return d_in == width != d_out

    @cached_property
    def heads(self) -> tuple[int | None, int | None]:
        """Number of query heads and their width, as far as the modules around tell."""
        n_heads = self.integer("num_heads", "n_heads", "num_attention_heads", "n_head", "heads")
        head_dim = self.integer("head_dim", "attention_head_size", "head_size", "d_head", "d_kv")
        if head_dim is None and n_heads:
            width = self.integer("hidden_size", "embed_dim", "d_model", "n_embd")
            head_dim = (width or min(self.tensor.shape)) // n_heads
        return n_heads, head_dim

    def integer(self, *names: str) -> int | None:
        """The first of these attributes that a module on the way up, or its config, has."""
        for module in reversed(self.chain):
            for source in (module, getattr(module, "config", None)):
                for name in names:
                    value = getattr(source, name, None)
                    if isinstance(value, int):
                        return value
        return None


def plain_path(names: Iterable[str]) -> str:
    """A path from the names on the way, without those of wrappers (compile, FSDP, PEFT)."""
    return ".".join(name for name in names if name not in _WRAPPERS)


def layer_of(path: str) -> int | None:
    """Index of the block that a path leads into: its first number that something follows."""
    numbers = [name for name in path.split(".")[:-1] if name.isdigit()]
    return int(numbers[0]) if numbers else None


def parameters(module: nn.Module, roles: Roles | None = None) -> list[Parameter]:
    """Lists every parameter of a module once, in the order of ``module.named_parameters()``.

    Args:
        module: Any module, also compiled or sharded. What a parametrization computes stands in
            place of the parameters it computes it from.
        roles: Roles that names do not tell; added to the module's own ``neuron_roles``.

    Returns:
        The parameters; tied ones under their first name.

    Raises:
        InputError: A role is unknown, or a pattern fits no parameter.
    """
    given = {p: (r,) if isinstance(r, str) else tuple(r) for p, r in _patterns(module, roles)}
    if unknown := [r for names in given.values() for r in names if r not in ROLES]:
        raise InputError(f"role {unknown[0]!r} is unknown; known: {', '.join(ROLES)}")
    found: dict[int, Parameter] = {}
    used = set()
    modules = dict(module.named_modules())
    for prefix in modules:
        names = prefix.split(".") if prefix else []
        if "parametrizations" in names:
            continue
        chain = tuple(modules[".".join(names[:i])] for i in range(len(names) + 1))
        for leaf, tensor, parametrization in tensors_of(chain[-1]):
            path = plain_path((*names, leaf)).removesuffix(".weight")
            fitting = [p for p in given if fnmatch.fnmatchcase(path, p)]
            used.update(fitting)
            own = given[fitting[-1]] if fitting else ()
            made = Parameter(path, leaf, chain, tensor, parametrization, own)
            found.setdefault(id(tensor) if parametrization is None else id(made), made)
    if idle := [pattern for pattern in given if pattern not in used]:
        raise InputError(f"roles: the pattern {idle[0]!r} fits no parameter")
    return list(found.values())


def _patterns(module: nn.Module, roles: Roles | None) -> list[tuple[str, str | Sequence[str]]]:
    return [*getattr(module, "neuron_roles", {}).items(), *(roles or {}).items()]
