"""What the processes of test_workers.py do, in a module that imports little: each of them imports it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from common.errors import StepError
from common.workers import Tell, supervise


def load(note: Path | None = None, place: str = "anywhere") -> str:
    if note:
        with note.open("a") as file:
            file.write(f"{place}\n")
    return place


def work(folder: Path, state: str, item: list[str], skipped: Mapping[int, str], tell: Tell) -> str:
    """Join words. `die` kills the process each time, `die once` the first time, and `exit` gives up.

    `Ctrl-C` is what each process gets when somebody presses that, and the one that supervises them decides.
    """
    found = []
    for number, word in enumerate(item):
        if number in skipped:
            continue
        if tell.probing:
            tell.begin(number)
        if word == "die" or (word == "die once" and not (folder / "dead").exists()):
            (folder / "dead").touch()
            tempfile.mkstemp()
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if word == "exit":
            raise SystemExit("no way")
        if word == "fail":
            raise StepError("It fails.", "Do something.")
        if word == "sigh":
            raise OSError("the disk sighs")  # without a number
        if not tell.probing:
            tell.advance(1)
            found.append(word)
    return " ".join([*found, *skipped.values()])


def meet(note: Path, state: str, item: int, skipped: Mapping[int, str], tell: Tell) -> None:
    """Wait until three processes have loaded. The second one makes room for the third."""
    while len(loaded := note.read_text().splitlines()) < 3:
        if state == "second" and loaded == ["first", "second"]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)


def die_always(folder: Path, state: str, item: list[str], skipped: Mapping[int, str], tell: Tell) -> None:
    if not tell.probing:
        os.kill(os.getpid(), signal.SIGKILL)


def die_loading() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def drive(path: str) -> None:
    """A process that supervises others, one of which says who it is."""
    list(supervise([0], [load], wait_until_alone, advance=lambda pid: Path(path).write_text(f"{pid}\n")))


def wait_until_alone(state: str, item: int, skipped: Mapping[int, str], tell: Tell) -> None:
    tell.advance(os.getpid())
    driver = os.getppid()
    while os.getppid() == driver:
        time.sleep(0.01)
