from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from common.errors import StepError
from common.workers import supervise
from tests.common.working import die_always, die_loading, drive, load, meet, work
from tests.conftest import guard

ITEMS = [["Mira", "left"], ["Ctrl-C", "Turku"], ["die once", "Oslo"], ["Kenya", "beat", "Malta"]]


def test_each_item_is_done_once_though_a_process_is_killed(tmp_path: Path) -> None:
    amounts: list[int] = []
    memory: list[int] = []
    note = tmp_path / "note"
    done = supervise(ITEMS, [partial(load, note)] * 2, partial(work, tmp_path), memory.append, amounts.append)
    assert sorted(done) == sorted(map(" ".join, ITEMS))
    assert (tmp_path / "dead").exists() and not multiprocessing.active_children()
    assert sum(amounts) == sum(map(len, ITEMS)), "what a dead process had done is taken back"
    assert len(memory) == 1 and memory[0] > 1e6
    loaded = len(note.read_text().splitlines())
    assert loaded in (2, 3), "each process loads once, one more for the dead one; a late one may find nothing to do"


def test_the_place_of_a_dead_process_is_taken_by_another(tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.touch()
    loads = [partial(load, note, place) for place in ("first", "second")]
    assert len([*supervise([1, 2], loads, partial(meet, note))]) == 2
    assert note.read_text().splitlines() == ["first", "second", "second"]


def test_items_are_taken_when_there_is_a_process_for_them(tmp_path: Path) -> None:
    taken: list[list[str]] = []

    def give() -> Iterator[list[str]]:
        for item in ITEMS:
            taken.append(item)
            yield item

    for number, _ in enumerate(supervise(give(), [load], partial(work, tmp_path)), start=1):
        assert len(taken) == number


@pytest.mark.parametrize(("word", "how"), [("die", "signal SIGKILL"), ("exit", "no way")])
def test_what_kills_its_process_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, how: str
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    items = [["Mira", word, "left"], ["Turku"]]
    amounts: list[int] = []
    done = [*supervise(items, [load], partial(work, tmp_path), advance=amounts.append)]
    assert done == [f"Mira left {how}", "Turku"]
    assert sum(amounts) == 3, "what the dead processes had done is taken back"
    assert not [*(tmp_path / "scratch").iterdir()], "nor do their temporary files stay"


def test_an_item_whose_parts_are_all_innocent_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"dies again and again \(signal SIGKILL\)"):
        list(supervise([["Mira"]], [load], partial(die_always, tmp_path)))
    with pytest.raises(StepError, match="dies while it loads"):
        list(supervise([["Mira"]], [die_loading] * 2, partial(work, tmp_path)))
    assert not multiprocessing.active_children()


def test_errors_are_those_of_the_process(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="It fails") as error:
        list(supervise([["fail"]], [load], partial(work, tmp_path)))
    assert error.value.remedy == "Do something."
    with pytest.raises(RuntimeError, match="OSError: the disk sighs"):
        list(supervise([["sigh"]], [load], partial(work, tmp_path)))


def test_too_little_memory_is_said_before_more_processes_start(tmp_path: Path) -> None:
    def refuse(memory: int) -> None:
        assert len(multiprocessing.active_children()) == 1
        raise StepError("Too much.", "Take less.")

    with pytest.raises(StepError, match="Too much"):
        list(supervise(ITEMS, [load] * 4, partial(work, tmp_path), refuse))


def test_processes_end_when_the_one_that_supervises_them_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=drive, args=(str(tmp_path / "pid"),))
    driver.start()
    try:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
            assert driver.is_alive()
            driver.join(0.05)
        process = psutil.Process(int((tmp_path / "pid").read_text()))
    finally:
        driver.kill()
        driver.join()
    process.wait(guard(20))
