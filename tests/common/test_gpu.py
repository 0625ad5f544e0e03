from __future__ import annotations

import sys

import pytest
import torch

from common.errors import StepError
from common.gpu import use_gpu


def test_a_gpu_that_is_not_there_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(-1)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(StepError, match="built for the CPU"):
        use_gpu(0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StepError, match="driver"):
        use_gpu(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StepError, match="there are 1"):
        use_gpu(1)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(StepError, match="CuPy is missing"):
        use_gpu(0)
