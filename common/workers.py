"""Processes that work through items. One that dies loses nothing, and what kills it costs no more than itself.

Little is imported here, so that a new process soon begins with its work.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from common.errors import StepError

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 4  # deaths of an item for which no part of it is to blame, after which we give up


class Tell:
    """How work on an item tells what it does.

    probing (bool): Whether the work is done only to find the part of the item that kills the process: it shall name
        each part with `begin` before it touches it, take one part at a time, and leave nothing behind.
    """

    def __init__(self, connection: Connection, probing: bool) -> None:
        self.probing = probing
        self._connection = connection

    def begin(self, part: int) -> None:
        """Say that a part of the item comes next."""
        self._connection.send(("begin", part))

    def advance(self, *amounts: int) -> None:
        """Say how much more is done."""
        self._connection.send(("advance", amounts))


# Takes what was loaded, an item, and the parts of it that are to be left out, with the reason
Work = Callable[[State, Item, Mapping[int, str], Tell], Result]


@dataclass
class _Task(Generic[Item]):
    item: Item
    skipped: dict[int, str] = field(default_factory=dict)
    probing: bool = False
    deaths: int = 0
    part: int | None = None  # the one that a probe has begun
    suspect: int | None = None  # the one that had begun when a probe died
    amounts: tuple[int, ...] = ()  # what it has told so far

    def die(self, how: str) -> None:
        """Decide what is done after the process has died.

        Anybody may have killed it, so that the item is first done once more. A part is to blame if two probes died when
        it had begun.
        """
        if self.probing and self.part is not None:
            if self.part == self.suspect:
                self.skipped[self.part] = how
                self.probing, self.deaths, self.suspect = False, 1, None
            else:
                self.suspect = self.part
            return
        self.deaths += 1
        self.probing = self.deaths > 1
        if self.deaths > PATIENCE:
            raise StepError(
                f"A process dies again and again ({how}), and no single document is to blame.",
                "Perhaps there is too little memory: use fewer processes. What is done is kept.",
            )


class _Worker(Generic[Item]):
    """A process, and what it works on."""

    def __init__(self, load: Callable[[], Any], work: Work[Any, Item, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # a killed process removes nothing
        self.process = context.Process(target=_serve, args=(theirs, self.scratch.name, load, work), daemon=True)
        self.process.start()
        theirs.close()  # so that reading ends when the process does
        self.load = load
        self.ready = False
        self.task: _Task[Item] | None = None

    def give(self, task: _Task[Item]) -> None:
        self.task = task
        task.part, task.amounts = None, ()
        with suppress(OSError):  # it has died, which reading will say
            self.connection.send((task.item, task.skipped, task.probing))

    def end(self) -> str:
        """End the process, and tell how it ended."""
        self.process.kill()
        self.process.join()
        self.scratch.cleanup()
        self.connection.close()
        code = self.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def count_cores() -> int:
    """Count the cores that this process may use."""
    # `sched_getaffinity` is not there on every system
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def supervise(
    items: Iterable[Item],
    loads: Sequence[Callable[[], State]],
    work: Work[State, Item, Result],
    ready: Callable[[int], object] = lambda memory: None,
    advance: Callable[..., object] = lambda *amounts: None,
) -> Generator[Result, None, None]:
    """Let new processes do the work, each item in one of them, and each again if its process dies.

    They are killed when the iteration ends or fails. If this process is killed, each of them ends with its item.

    items (Iterable[Item]): The items, which are taken in their order, each when there is a process for it.
    loads (Sequence[Callable[[], State]]): One for each process that there is at a time, which calls it once, as does
        the one that takes the place of a dead one. They are pickled, as all else is that processes get.
    work (Work[State, Item, Result]): Called for each item. It must leave nothing half done when it is killed. If it
        raises SystemExit, the process counts as dead, and what that says is why.
    ready (Callable[[int], object]): Called with the bytes of memory of the first process, once it has loaded; only then
        are the others started.
    advance (Callable[..., object]): Called with how much more is done; below 0 if a process with unfinished work dies.
    YIELDS (Result): What is returned for each item, in the order in which they are done.
    RAISES (StepError): If processes die while they load, or if an item kills them and no part of it is to blame.
    """
    coming = (_Task(item) for item in items)
    waiting: deque[_Task[Item]] = deque()
    workers: dict[Connection, _Worker[Item]] = {}
    places = deque(loads)  # those of processes that are not there
    loading_deaths, known = 0, False
    try:
        while True:
            busy = sum(worker.task is not None for worker in workers.values())
            waiting.extend(islice(coming, len(loads) - busy - len(waiting)))
            if not waiting and not busy:
                return
            while len(workers) < (len(waiting) + busy if known else 1):
                worker = _Worker[Item](places.popleft(), work)
                workers[worker.connection] = worker
            for worker in workers.values():
                if worker.ready and not worker.task and waiting:
                    worker.give(waiting.popleft())
            for connection in multiprocessing.connection.wait([*workers]):
                worker = workers[connection]  # type: ignore[index]
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    kind, value = "died", ""
                if kind == "died":
                    ended = workers.pop(worker.connection).end()
                    value = value or ended
                    places.append(worker.load)
                task = worker.task
                if kind == "failed":
                    raise value()
                elif kind == "ready":
                    worker.ready, loading_deaths = True, 0
                    if not known:
                        ready(value)
                        known = True
                elif kind == "died" and not worker.ready:
                    loading_deaths += 1
                    if loading_deaths > 1:
                        raise StepError(
                            f"A process dies while it loads the pipeline ({value}).",
                            "Perhaps there is too little memory: use fewer processes. What is done is kept.",
                        )
                elif task is None:  # it died with nothing to do
                    continue
                elif kind == "died":
                    if task.amounts:
                        advance(*(-amount for amount in task.amounts))
                    task.die(value)
                    waiting.appendleft(task)
                elif kind == "begin":
                    task.part = value
                elif kind == "advance":
                    task.amounts = tuple(map(sum, zip(task.amounts, value, strict=True))) if task.amounts else value
                    advance(*value)
                else:
                    worker.task = None
                    if task.probing:
                        task.probing, task.suspect = False, None
                        waiting.appendleft(task)
                    else:
                        yield value
    finally:
        for worker in workers.values():
            worker.end()


def _serve(connection: Connection, scratch: str, load: Callable[[], State], work: Work[State, Any, Any]) -> None:
    """Work until there is nobody any more who wants it, with temporary files in a folder of its own."""
    tempfile.tempdir = scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes, and the first one decides
    try:
        state = load()
        connection.send(("ready", _memory()))
        while True:
            item, skipped, probing = connection.recv()
            connection.send(("end", work(state, item, skipped, Tell(connection, probing))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except SystemExit as error:
        with suppress(OSError):
            connection.send(("died", str(error)))
    except BaseException as error:
        with suppress(OSError):
            connection.send(("failed", _wrap(error)))


def _memory() -> int:
    import psutil

    size: int = psutil.Process().memory_info().rss
    return size


def _wrap(error: BaseException) -> Callable[[], BaseException]:
    """What makes an error again in another process. Not every exception can be pickled."""
    if isinstance(error, StepError):
        return partial(StepError, error.problem, error.remedy)
    if isinstance(error, OSError) and error.errno:  # pyarrow and transformers raise some that have only a message
        return partial(OSError, error.errno, error.strerror, error.filename)
    return partial(RuntimeError, "".join(traceback.format_exception(error)))
