"""Callbacks that record the developmental trajectory, and what is needed to write one."""

from lit_gamma.callbacks.answer_accuracy import AnswerAccuracy
from lit_gamma.callbacks.attention_sink import AttentionSink
from lit_gamma.callbacks.checkpoints import Checkpoints
from lit_gamma.callbacks.circuits import Circuits
from lit_gamma.callbacks.condensation import Condensation
from lit_gamma.callbacks.effective_rank import EffectiveRank
from lit_gamma.callbacks.gamma_init import GammaInit
from lit_gamma.callbacks.gradients import Gradients
from lit_gamma.callbacks.hidden_states import HiddenStates
from lit_gamma.callbacks.keep_checkpoints import KeepCheckpoints
from lit_gamma.callbacks.norm_saturation import NormSaturation
from lit_gamma.callbacks.overhead import Overhead
from lit_gamma.callbacks.overview import Overview
from lit_gamma.callbacks.probe_loss.callback import ProbeLoss
from lit_gamma.callbacks.progress import Progress
from lit_gamma.callbacks.run_summary import RunSummary
from lit_gamma.callbacks.token_loss import TokenLoss
from lit_gamma.callbacks.token_loss_profile import TokenLossProfile
from lit_gamma.callbacks.updates import Updates
from lit_gamma.callbacks.weight_norms import WeightNorms
from lit_gamma.recording.activations import ProbeTrajectory
from lit_gamma.recording.batches import BatchTrajectory
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.current import WeightGroup
from lit_gamma.recording.gradients import GradientTrajectory
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.weights import WeightTrajectory
from lit_gamma.trajectory.table import Quantity

__all__ = [
    "AnswerAccuracy",
    "AttentionSink",
    "BatchTrajectory",
    "Checkpoints",
    "Circuits",
    "Condensation",
    "EffectiveRank",
    "GammaInit",
    "GradientTrajectory",
    "Gradients",
    "HiddenStates",
    "KeepCheckpoints",
    "NormSaturation",
    "Overhead",
    "Overview",
    "ProbeLoss",
    "ProbeTrajectory",
    "Progress",
    "Quantity",
    "RunSummary",
    "Schedule",
    "TokenLoss",
    "TokenLossProfile",
    "TrajectoryCallback",
    "Updates",
    "WeightGroup",
    "WeightNorms",
    "WeightTrajectory",
]
