"""What may go wrong, told before training."""

from lit_gamma.doctor.checks import Finding
from lit_gamma.doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
