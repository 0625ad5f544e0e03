"""A pipeline that some texts kill, for the processes of test_annotate_corpus.py, which import this module."""

from __future__ import annotations

import importlib
import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from spacy.language import Language
from spacy.tokens import Doc

from common import parts, ray, spark
from common.parts import Job
from scripts import annotate_corpus as step

DEADLY, DEADLY_ONCE, WAITING = "a deadly text", "a text that is deadly once", "a text that waits"
ORPHANING = "a text that is deadly once to whoever supervises"


def load_fragile(job: Job, gpu_id: int) -> Language:
    """Load a pipeline whose tokenizer dies of DEADLY, once of DEADLY_ONCE, and waits at WAITING for a file `.go`.

    A process that shall use a GPU notes which one it would be, and computes on the CPU.
    """
    nlp = parts.load(job, -1)
    tokenizer: Any = nlp.tokenizer
    folder = Path(job.files[0].path).parent
    if gpu_id >= 0:
        (folder / f".gpu-{gpu_id}-of-{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}").touch()
    once = {DEADLY_ONCE: os.getpid(), ORPHANING: os.getppid()}

    def tokenize(text: str) -> Doc:
        if text in once and not (mark := folder / f".{text}").exists():
            mark.touch()
            os.kill(once[text], signal.SIGKILL)
        if text == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        while text == WAITING and not (folder / ".go").exists():
            time.sleep(0.01)
        doc: Doc = tokenizer(text)
        return doc

    nlp.tokenizer = tokenize
    return nlp


def drive(
    texts: str, target: str, pipeline: str, processes: int, engine: str = "local", gpus: str = "", size: int = 2
) -> None:
    """Annotate a corpus with the fragile pipeline. If it is on GPUs, this machine seems to have two."""
    with ExitStack() as stack:
        for module in (step, spark, ray):
            stack.enter_context(patch.object(module, "load", load_fragile))
        if gpus:
            stack.enter_context(patch.object(torch.cuda, "device_count", lambda: 2))
            stack.enter_context(patch.object(step, "has_cupy", True))
        if gpus and engine == "ray":
            package = importlib.import_module("ray")
            stack.enter_context(patch.object(package, "init", partial(package.init, num_gpus=2)))
        step.annotate_corpus(
            texts,
            target,
            pipeline,
            keep="text",
            size=size,
            processes=processes,
            engine=step.Engine(engine),
            gpus=gpus,
        )
