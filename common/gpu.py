"""The GPU that a command is told to use."""

from __future__ import annotations

import torch
from thinc.api import require_gpu

from common.errors import StepError


def use_gpu(gpu_id: int) -> None:
    """Let spaCy and PyTorch compute on a GPU.

    gpu_id (int): Its number, or -1 for the CPU.

    RAISES (StepError): If it cannot be used, saying what is missing.
    """
    if gpu_id < 0:
        return
    on_cpu = "or train on the CPU: --vars.gpu_id -1"
    if torch.version.cuda is None and torch.version.hip is None:
        raise StepError(
            f"GPU {gpu_id} was asked for, but this PyTorch is built for the CPU.", f"Install one for your GPU, {on_cpu}"
        )
    if not torch.cuda.is_available():
        raise StepError(f"GPU {gpu_id} was asked for, but PyTorch finds no usable driver.", f"See nvidia-smi, {on_cpu}")
    if gpu_id >= torch.cuda.device_count():
        raise StepError(
            f"GPU {gpu_id} was asked for; there are {torch.cuda.device_count()}, from 0.", f"Choose, {on_cpu}"
        )
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or "12").partition(".")[0]
        raise StepError(f"CuPy is missing: {error}", f"pip install cupy-cuda{major}x, {on_cpu}") from error
    require_gpu(gpu_id)
