"""Annotate shards on a cluster of Spark. Each of its tasks supervises a process that has the pipeline."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow

from common.errors import StepError
from common.parts import Job, Shard, annotate_shards, load
from common.shards import Piece

RETRIES = 4  # of a task whose worker dies; without a number, Spark on one machine does not retry


def annotate_on_spark(job: Job, shards: Sequence[Shard], tasks: int) -> None:
    """Let Spark annotate shards: on the cluster that spark-submit was told, or else on this machine.

    Spark only hands out shards. Which are done it does not need to know, because a part counts by its record: a task
    that is repeated leaves out what is there, and one that runs twice at a time writes the same bytes.

    job (Job): The job, whose files, pipeline and target every worker must find by the same names.
    shards (Sequence[Shard]): The shards.
    tasks (int): Into how many tasks they are divided; each loads the pipeline once.
    RAISES (StepError): If there is no pyspark.
    """
    try:
        sql: Any = importlib.import_module("pyspark.sql")
        conf: Any = importlib.import_module("pyspark").SparkConf()
    except ImportError as error:
        raise StepError(
            "The engine spark needs pyspark, and Java.", "pip install --requirement requirements-spark.txt"
        ) from error
    builder = sql.SparkSession.builder.appName("annotate-corpus")
    if not conf.get("spark.master", ""):
        builder = builder.master(f"local[{tasks},{RETRIES}]").config("spark.ui.enabled", "false")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or it takes the first python3 that it finds
    session = builder.getOrCreate()
    # Neighbours go to different tasks, since long documents often stand side by side
    rows = [
        (place % tasks, shard.number, [list(piece) for piece in shard.pieces]) for place, shard in enumerate(shards)
    ]
    frame = session.createDataFrame(rows, "task int, number int, pieces array<array<bigint>>")
    frame = frame.repartitionByRange(tasks, "task")
    try:
        frame.mapInArrow(partial(_work, job, load), "number int").collect()
    finally:
        session.stop()


def _work(
    job: Job, load: Callable[[Job], Any], batches: Iterable[pyarrow.RecordBatch]
) -> Iterator[pyarrow.RecordBatch]:
    """What a task does with its shards."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    shards = [Shard(row["number"], [Piece(*piece) for piece in row["pieces"]]) for row in rows]
    annotate_shards(job, load, shards)
    yield pyarrow.RecordBatch.from_pydict({"number": pyarrow.array([row["number"] for row in rows], pyarrow.int32())})
