"""Annotate shards on a cluster of Ray. Each of its tasks supervises a process that has the pipeline."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import tqdm

from common.errors import StepError
from common.parts import RECORDS, Job, Shard, Target, annotate_shards, load, name_of

RETRIES = 4  # of a task whose worker dies
PAUSE = 10  # seconds between two looks at what is done


def annotate_on_ray(job: Job, shards: Sequence[Shard], tasks: int) -> None:
    """Let Ray annotate shards: on the cluster that RAY_ADDRESS names, as `ray job submit` does, or on this machine.

    As on Spark, a part counts by its record, and so Ray needs to know nothing but which shards each task gets.

    job (Job): The job, whose files, pipeline and target every machine must find by the same names.
    shards (Sequence[Shard]): The shards.
    tasks (int): Into how many tasks they are divided; each takes a core and loads the pipeline once.
    RAISES (StepError): If there is no Ray, if a task fails, or if somebody stops it.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise StepError("The engine ray needs Ray.", "pip install --requirement requirements-ray.txt") from error
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address)
    else:
        ray.init("local", num_cpus=tasks, include_dashboard=False)
    # What an error of ours has is returned, because Ray cannot pickle the error itself
    work = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
    # Neighbours go to different tasks, since long documents often stand side by side
    running = [work.remote(job, load, shards[first::tasks]) for first in range(min(tasks, len(shards)))]
    names = {name_of(shard.number, "json") for shard in shards}
    place = Target(job.target)
    try:
        with tqdm.tqdm(desc="annotating", total=len(names), unit="part", disable=None) as bar:
            while running:
                ended, running = ray.wait(running, timeout=PAUSE)
                for problem in filter(None, ray.get(ended)):
                    raise StepError(*problem)
                bar.update(len(names & place.names(RECORDS)) - bar.n)
    except KeyboardInterrupt:
        raise StepError("Stopped. The parts that are written are kept.", "Run the same again to go on.") from None
    finally:
        ray.shutdown()


def _work(job: Job, load: Callable[[Job], Any], shards: Sequence[Shard]) -> tuple[str, str] | None:
    """What a task does with its shards; returns what an error says."""
    try:
        annotate_shards(job, load, shards)
    except StepError as error:
        return error.problem, error.remedy
    return None
