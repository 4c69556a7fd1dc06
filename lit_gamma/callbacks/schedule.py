"""``Schedule``, also by this name: ``from lit_gamma.callbacks.schedule import Schedule``."""

from lit_gamma.recording.schedule import Schedule

__all__ = ["Schedule"]
