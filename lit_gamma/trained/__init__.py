"""After training: load, generate, evaluate, export."""

from lit_gamma.trained.checkpoint import Trained, export, load
from lit_gamma.trained.evaluation import evaluate
from lit_gamma.trained.perplexity import TextLoss, text_loss

__all__ = ["TextLoss", "Trained", "evaluate", "export", "load", "text_loss"]
