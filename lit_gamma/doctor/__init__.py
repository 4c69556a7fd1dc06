"""What may go wrong, told before training."""

from lit_gamma.doctor.diagnosis import Diagnosis, diagnose
from lit_gamma.doctor.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
