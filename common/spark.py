"""Annotate shards on a cluster of Spark. Each of its tasks supervises a process that has the pipeline."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow

from common.errors import StepError
from common.parts import ON_CPU, RECORDS, Job, Shard, Target, annotate_shard, load, name_of
from common.shards import Piece
from common.workers import count_cores, supervise

SUBMITTED = "PYSPARK_GATEWAY_PORT"  # in the environment of what spark-submit starts, which has a master then
GPUS = "spark.task.resource.gpu.amount"
RETRIES = 4  # of a task whose worker dies; without a number, Spark on one machine does not retry


@contextmanager
def on_spark(processes: int, gpu: bool) -> Iterator[Callable[[Job, Sequence[Shard]], None]]:
    """Start Spark: on the cluster that spark-submit was told, or else on this machine.

    Spark only hands out shards. Which are done it does not need to know, because a part counts by its record: a task
    that is repeated leaves out what is there, and one that runs twice at a time writes the same bytes.

    processes (int): Into how many tasks shards are divided, each of which loads the pipeline once; 0 for one on each
        core of this machine.
    gpu (bool): Whether a task computes on the GPU that Spark gives it.
    YIELDS (Callable[[Job, Sequence[Shard]], None]): The function that annotates shards. Every worker must find the
        files, the pipeline and the target of the job by the same names.
    RAISES (StepError): If there is no pyspark, or if Spark gives its tasks no GPU.
    """
    try:
        sql: Any = importlib.import_module("pyspark.sql")
    except ImportError as error:
        raise StepError(
            "The engine spark needs pyspark, and Java.", "pip install --requirement requirements-spark.txt"
        ) from error
    tasks = processes or count_cores()
    builder = sql.SparkSession.builder.appName("annotate-corpus")
    if SUBMITTED not in os.environ:
        builder = builder.master(f"local[{tasks},{RETRIES}]").config("spark.ui.enabled", "false")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or it takes the first python3 that it finds
    session = builder.getOrCreate()
    try:
        if gpu and not session.sparkContext.getConf().get(GPUS):
            raise StepError(f"A GPU was asked for, and Spark gives its tasks none: {GPUS} is not set.", ON_CPU)
        yield partial(_annotate, session, tasks, gpu)
    finally:
        session.stop()


def _annotate(session: Any, tasks: int, gpu: bool, job: Job, shards: Sequence[Shard]) -> None:
    # Neighbours go to different tasks, since long documents often stand side by side
    rows = [
        (place % tasks, shard.number, [list(piece) for piece in shard.pieces]) for place, shard in enumerate(shards)
    ]
    frame = session.createDataFrame(rows, "task int, number int, pieces array<array<bigint>>")
    frame = frame.repartitionByRange(tasks, "task")
    frame.mapInArrow(partial(_work, job, partial(load, job, 0 if gpu else -1)), "number int").collect()


def _work(job: Job, load: Callable[[], Any], batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
    """What a task does with its shards."""
    context: Any = importlib.import_module("pyspark").TaskContext.get()
    if gpu := context.resources().get("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.addresses[0]  # as Ray does; Spark leaves that to the task
    rows = [row for batch in batches for row in batch.to_pylist()]
    shards = [Shard(row["number"], [Piece(*piece) for piece in row["pieces"]]) for row in rows]
    done = Target(job.target).names(RECORDS)
    left = [shard for shard in shards if name_of(shard.number, "json") not in done]
    for _ in supervise(left, [load], partial(annotate_shard, job)):
        pass
    yield pyarrow.RecordBatch.from_pydict({"number": pyarrow.array([row["number"] for row in rows], pyarrow.int32())})
