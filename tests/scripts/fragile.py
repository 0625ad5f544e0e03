"""A pipeline that some texts kill, for the processes of test_annotate_corpus.py, which import this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from spacy.language import Language
from spacy.tokens import Doc

from common import parts, ray, spark
from common.parts import Job
from scripts import annotate_corpus as step

DEADLY, DEADLY_ONCE, WAITING = "a deadly text", "a text that is deadly once", "a text that waits"
ORPHANING = "a text that is deadly once to whoever supervises"


def load_fragile(job: Job) -> Language:
    """Load a pipeline whose tokenizer dies of DEADLY, once of DEADLY_ONCE, and waits at WAITING for a file `.go`."""
    nlp = parts.load(job)
    tokenizer: Any = nlp.tokenizer
    folder = Path(job.files[0].path).parent
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


def drive(texts: str, target: str, pipeline: str, processes: int, engine: str = "local") -> None:
    """Annotate a corpus with the fragile pipeline."""
    with (
        patch.object(step, "load", load_fragile),
        patch.object(spark, "load", load_fragile),
        patch.object(ray, "load", load_fragile),
    ):
        step.annotate_corpus(
            texts, target, pipeline, keep="text", size=2, processes=processes, engine=step.Engine(engine)
        )
