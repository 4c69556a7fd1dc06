"""What waits for what on a GPU; everything here needs one."""

from __future__ import annotations

import pytest
import torch
from helpers.runs import ROOT

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("check", ["values", "waits", "memory", "modes"])
def test_the_side_stream(check, monkeypatch):
    pytest.importorskip("greenlet")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    gpu.CHECKS[check]()
