"""γ-initialized transformers whose developmental trajectory is recorded at every step."""

from typing import TYPE_CHECKING, Any

from lit_gamma.doctor.diagnosis import diagnose
from lit_gamma.errors import InputError
from lit_gamma.init.audit import Audit
from lit_gamma.init.gate import gate_attention_
from lit_gamma.init.rule import gamma_init_
from lit_gamma.model.language_model import LanguageModel
from lit_gamma.model.optimizer import OptimizerConfig
from lit_gamma.model.transformer import Transformer, TransformerConfig
from lit_gamma.weights.neurons import NeuronMatrix, neurons

if TYPE_CHECKING:
    from lit_gamma.recording.loop import record

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


def __getattr__(name: str) -> Any:
    """Imports ``record`` where it is asked for: Arrow and TensorBoard take half a second."""
    if name == "record":
        from lit_gamma.recording.loop import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
