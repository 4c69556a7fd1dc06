"""γ-initialized transformers whose developmental trajectory is recorded at every step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_gamma.errors import InputError

if TYPE_CHECKING:
    from lit_gamma.doctor.diagnosis import diagnose
    from lit_gamma.init.audit import Audit
    from lit_gamma.init.gate import gate_attention_
    from lit_gamma.init.rule import gamma_init_
    from lit_gamma.model.language_model import LanguageModel
    from lit_gamma.model.optimizer import OptimizerConfig
    from lit_gamma.model.transformer import Transformer, TransformerConfig
    from lit_gamma.recording.loop import record
    from lit_gamma.weights.neurons import NeuronMatrix, neurons

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "InputError",
    "LanguageModel",
    "NeuronMatrix",
    "OptimizerConfig",
    "Transformer",
    "TransformerConfig",
    "diagnose",
    "gamma_init_",
    "gate_attention_",
    "neurons",
    "record",
]

_HOMES = {
    "doctor.diagnosis": ("diagnose",),
    "init.audit": ("Audit",),
    "init.gate": ("gate_attention_",),
    "init.rule": ("gamma_init_",),
    "model.language_model": ("LanguageModel",),
    "model.optimizer": ("OptimizerConfig",),
    "model.transformer": ("Transformer", "TransformerConfig"),
    "recording.loop": ("record",),
    "weights.neurons": ("NeuronMatrix", "neurons"),
}


def __getattr__(name: str) -> Any:
    """Imports a name where it is asked for: Lightning and Arrow take seconds."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
