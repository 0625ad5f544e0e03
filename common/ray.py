"""Annotate shards on a cluster of Ray. Each of its actors supervises a process that has the pipeline."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import tqdm

from common.errors import StepError
from common.parts import ON_CPU, Job, Shard, annotate_shard, load
from common.workers import count_cores, supervise

RETRIES = 4  # of a shard whose actor dies


@contextmanager
def on_ray(processes: int, gpu: bool) -> Iterator[Callable[[Job, Sequence[Shard]], None]]:
    """Connect to Ray: to the cluster that RAY_ADDRESS names, as `ray job submit` does, or to a new one on this machine.

    processes (int): How many actors there are, each of which loads the pipeline once; 0 for one on each core or GPU.
    gpu (bool): Whether an actor takes a GPU and computes on it.
    YIELDS (Callable[[Job, Sequence[Shard]], None]): The function that annotates shards. Every machine must find the
        files, the pipeline and the target of the job by the same names.
    RAISES (StepError): If there is no Ray or, in the cluster, no GPU.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise StepError("The engine ray needs Ray.", "pip install --requirement requirements-ray.txt") from error
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address)
    else:
        ray.init("local", num_cpus=processes or count_cores(), include_dashboard=False)
    try:
        places = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        if gpu and not places:  # for one that never comes, Ray would wait for ever
            raise StepError("A GPU was asked for, and Ray finds none in its cluster.", ON_CPU)
        yield partial(_annotate, ray, processes or places, gpu)
    finally:
        ray.shutdown()


def _annotate(ray: Any, actors: int, gpu: bool, job: Job, shards: Sequence[Shard]) -> None:
    """Give each actor a shard, and the next one when it has done that, so that a slow machine holds nobody up.

    RAISES (StepError): If an actor fails, or if somebody stops it.
    """
    create = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=-1, max_task_retries=RETRIES)(_Annotator).remote
    loading = partial(load, job, 0 if gpu else -1)  # Ray lets an actor see its own GPU alone
    waiting, running = deque(shards), {}
    for _ in range(min(actors, len(shards))):
        actor = create(job, loading)
        running[actor.annotate.remote(waiting.popleft())] = actor
    try:
        with tqdm.tqdm(desc="annotating", total=len(shards), unit="part", disable=None) as bar:
            while running:
                for ended in ray.wait([*running])[0]:
                    if problem := ray.get(ended):
                        raise StepError(*problem)
                    actor = running.pop(ended)
                    if waiting:
                        running[actor.annotate.remote(waiting.popleft())] = actor
                    else:
                        ray.kill(actor)  # which makes room for one that there was no core or GPU for
                    bar.update()
    except KeyboardInterrupt:
        raise StepError("Stopped. The parts that are written are kept.", "Run the same again to go on.") from None


class _Annotator:
    """An actor. Ray makes it anew if it dies, and repeats its call, which writes the same part again.

    job (Job): The job.
    load (Callable[[], Language]): Loads the pipeline.
    """

    def __init__(self, job: Job, load: Callable[[], Any]) -> None:
        self.shards: deque[Shard] = deque()
        self.records = supervise(iter(self.shards.popleft, None), [load], partial(annotate_shard, job))

    def annotate(self, shard: Shard) -> tuple[str, str] | None:
        """Annotate a shard; returns what an error says, because Ray cannot pickle the error itself."""
        self.shards.append(shard)
        try:
            next(self.records)
        except StepError as error:
            return error.problem, error.remedy
        return None
