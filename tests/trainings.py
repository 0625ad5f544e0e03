"""Trainings that a command under test has started, and that its test stops, kills or lets go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.conftest import guard


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something is the case, and fail if it never is."""
    deadline = time.monotonic() + guard(seconds)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_trainings(pid: int) -> dict[Path, psutil.Process]:
    """Those that have begun to train below a process, by their place."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            if "scripts.train" in command and any(Path(command[4]).glob("unfinished-*")):
                found[Path(command[4])] = process
    return found


def stop_trainings(pid: int, number: int) -> dict[Path, psutil.Process]:
    """Stop each training below a process as soon as it has begun, until so many are at work at the same time."""
    stopped: dict[Path, psutil.Process] = {}

    def stop() -> bool:
        for place, process in find_trainings(pid).items():
            if stopped.get(place) != process:
                process.suspend()
                stopped[place] = process
        return len(stopped) == number

    wait_for(stop)
    wait_for(lambda: all(process.status() == psutil.STATUS_STOPPED for process in stopped.values()))
    return stopped
