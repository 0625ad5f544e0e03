"""The contenders by name, and the process of one: it loads, warms up, then works once for each line on standard input.

It answers in lines of JSON on standard output; the other end is `Worker` in benchmarks/harness.py. Flair and SpanMarker
run in an environment that has no spaCy. Therefore this file and all files of contenders import at their heads only what
every environment has, and a library only when one of its contenders is loaded.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.contenders import explosion, flair, huggingface, ours, spacy_transformers, span_marker
from benchmarks.harness import Contender, Job, Unavailable, emit, reserve_output, versions
from common.errors import StepError, main
from common.records import read_json

SPEED: dict[str, Callable[[Job], Contender]] = {
    "spacy-transformers": spacy_transformers.load,
    "default": ours.load,
    "float32": partial(ours.load, dtype="float32"),
    "bfloat16": partial(ours.load, dtype="bfloat16"),
    "int8": partial(ours.load, dtype="int8"),
    "overlap-16": partial(ours.load, overlap=16),
    "encoder-float32": partial(ours.load_encoder, dtype="float32"),
    "encoder-bfloat16": partial(ours.load_encoder, dtype="bfloat16"),
    "encoder-int8": partial(ours.load_encoder, dtype="int8"),
    "huggingface-8": partial(huggingface.load, batch_size=8),
    "huggingface-32": partial(huggingface.load, batch_size=32),
    "flair": flair.load,
    "span-marker": span_marker.load,
}
TRAINING: dict[str, Callable[[Job], Contender]] = {
    "ours": ours.load_training,
    "explosion": explosion.load_training,
    "huggingface": huggingface.load_training,
}
PEERS = ("flair", "span-marker")  # which need an environment of their own, see requirements-peers.txt


def worker(
    name: Annotated[str, typer.Argument(help="Name of the contender")],
    path: Annotated[Path, typer.Argument(help="JSON file with the job", exists=True)],
) -> None:
    """Be a contender."""
    reserve_output()
    job = Job(**read_json(path))
    try:
        contender = (SPEED | TRAINING)[name](job)
    except Unavailable as error:
        return emit(unavailable=str(error))
    except ImportError as error:
        where = "requirements-bench.txt"
        if name in PEERS:
            where = "requirements-peers.txt (make bench does, in .venv-peers)"
        problem = f"{name} needs {error.name or error}."
        return emit(problem=problem, remedy=f"pip install -r {where}, or leave it out")
    except StepError as error:
        return emit(problem=error.problem, remedy=error.remedy)
    if not job.epochs:
        contender.work(contender.prepare())
    emit(ready=True)
    output = None
    for _ in sys.stdin:
        inputs, output = contender.prepare(), None
        gc.collect()
        began = time.perf_counter()
        output = contender.work(inputs)
        emit(seconds=time.perf_counter() - began, words=(contender.words or job.words) * max(1, job.epochs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before scoring, which takes memory of its own
    emit(f1=contender.score(output), peak_rss_mb=round(peak), versions=versions())


if __name__ == "__main__":
    main(worker)
