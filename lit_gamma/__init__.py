"""γ-initialized transformers whose developmental trajectory is recorded at every step."""

from lit_gamma.audit import Audit
from lit_gamma.doctor import diagnose
from lit_gamma.errors import InputError
from lit_gamma.gate import gate_attention_
from lit_gamma.init import gamma_init_
from lit_gamma.language_model import LanguageModel
from lit_gamma.neurons import NeuronMatrix, neurons
from lit_gamma.optimizer import OptimizerConfig
from lit_gamma.transformer import Transformer, TransformerConfig

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
]
