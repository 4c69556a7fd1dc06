"""Metadata of any kind, as JSON can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def jsonable(value: Any) -> Any:
    """Turns a value into what JSON can hold: it is metadata, and must not end a training.

    Args:
        value: Anything. Keys become strings, numbers of NumPy and tensors of one value plain
            numbers, larger ones lists; what is not finite, and what JSON does not know, its text.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, Tensor):
        return jsonable(value.detach().cpu().float().numpy())
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
