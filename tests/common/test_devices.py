from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from common.devices import PATIENCE, TrainingFailed, choose_devices, run_all, run_training
from common.errors import StepError
from tests.conftest import guard, words

WRITES = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('{}\\n'); time.sleep(float(sys.argv[2]))"
# Python that waits for a file, with the folder of the test and its own name as arguments
MEETS = """import os, pathlib, sys, time
folder, name, device = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
busy = folder / f"busy-{device}"
busy.touch(exist_ok=False)
(folder / name).write_text(os.environ["OMP_NUM_THREADS"])
while name != "three" and not (folder / {"one": "two", "two": "one"}[name]).exists(): time.sleep(0.01)
busy.unlink()
"""
DIES = "import os, pathlib, signal, sys; pathlib.Path(*sys.argv[1:3]).touch(); os.kill(os.getpid(), signal.SIGKILL)"


@dataclass
class Work:
    """A job that runs some Python with the folder, its name and the device as arguments."""

    folder: Path
    name: str
    code: str = ""  # none: there is nothing to do
    begun: list[int] = field(default_factory=list)  # the device of each begin
    ended: int = 0
    order: list[str] = field(default_factory=list)  # the names of jobs as they begin, if they share it

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def begin(self, gpu_id: int) -> list[str] | None:
        self.begun.append(gpu_id)
        self.order.append(self.name)
        return [sys.executable, "-S", "-c", self.code, str(self.folder), self.name, str(gpu_id)] if self.code else None

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('begun'); raise RuntimeError('CUDA out of memory')", "RuntimeError: CUDA out of memory"),
        ("print('begun'); print('✘ The disk\\nis full'); print('Free some.'); exit(1)", "The disk is full Free some."),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    ],
)
def test_why_a_training_failed_is_told_and_what_it_printed_is_kept(tmp_path: Path, code: str, why: str) -> None:
    log = tmp_path / "training.log"
    with pytest.raises(TrainingFailed, match=why) as caught:
        run_training([sys.executable, "-c", code], log, lambda: None)
    assert str(log) in str(caught.value) and log.exists() and caught.value.killed == ("SIGKILL" in code)


def test_a_training_that_ends_well_leaves_no_log_and_is_looked_at_once_more(tmp_path: Path) -> None:
    written, seen = tmp_path / "written", []
    run_training(
        [sys.executable, "-c", WRITES, str(written), "0"], tmp_path / "log", lambda: seen.append(written.exists())
    )
    assert seen[-1] and not (tmp_path / "log").exists()


def test_what_looks_at_a_training_can_end_it(tmp_path: Path) -> None:
    written = tmp_path / "written"

    def look() -> None:
        if written.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training([sys.executable, "-c", WRITES, str(written), "3600"], tmp_path / "log", look)
    assert not (tmp_path / "log").exists()


def test_each_device_has_one_job_at_a_time_and_all_are_at_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first two jobs end only because each sees the other at work; a device that is shared would fail them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("common.devices.torch.get_num_threads", lambda: 6)
    jobs = {name: Work(tmp_path, name, MEETS) for name in ("one", "two", "three")}
    ended: list[int] = []
    run_all(jobs | {"none": Work(tmp_path, "none")}, [4, 5], ended.append)
    assert [job.begun for job in jobs.values()][:2] == [[4], [5]] and ended[-1] == 4 and sorted(ended) == ended
    assert all(job.ended == 1 and not job.log.exists() for job in jobs.values())
    assert {(tmp_path / name).read_text() for name in jobs} == {"3"}, "the two share the cores"
    shown = words(capsys.readouterr().out)
    assert "2 trainings at a time, each with OMP_NUM_THREADS=3." in shown and "8 GB" in shown
    assert f"one: begun on GPU 4; what it prints is in {tmp_path / 'one.log'}" in shown and "one: finished" in shown
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_all({"three": jobs["three"]}, [-1, -1], ended.append)
    assert (tmp_path / "three").read_text() == "5", "a person has set it"


def test_what_is_killed_is_done_again_and_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {
        "once": f"import pathlib, sys\nif not pathlib.Path(*sys.argv[1:3]).exists():\n  {DIES}",
        "always": DIES,
        "wrong": "raise RuntimeError('no space left')",
        "well": "pass",
    }
    order: list[str] = []
    once, always, wrong, well = (Work(tmp_path, name, code, order=order) for name, code in codes.items())
    with pytest.raises(StepError) as caught:
        run_all({job.name: job for job in (once, always, wrong, well)}, [0, 1], lambda _: None)
    assert len(once.begun) == 2 and len(always.begun) == PATIENCE and len(wrong.begun) == len(well.begun) == 1
    assert order[:4] == [*codes], "all others come first"
    assert all(job.ended == 1 for job in (once, always, wrong, well))
    assert "2 of 4 have failed" in caught.value.problem and "once" not in caught.value.problem
    assert "always: killed by SIGKILL" in caught.value.problem and "wrong: RuntimeError: no" in caught.value.problem
    assert not once.log.exists() and wrong.log.exists() and "once: killed by SIGKILL" in words(capsys.readouterr().out)


def test_what_is_killed_is_done_again_on_a_device_that_is_free(tmp_path: Path) -> None:
    job = Work(tmp_path, "always", DIES)
    with pytest.raises(StepError, match="1 of 1 have failed"):
        run_all({"always": job}, [0, 1, 2], lambda _: None)
    assert job.begun == [0, 1, 2]


def test_an_interruption_ends_all_processes_and_those_that_they_have_started(tmp_path: Path) -> None:
    child = f"[{sys.executable!r}, '-c', 'import time; time.sleep(3600)']"
    code = f"""import os, pathlib, subprocess, sys
process = subprocess.Popen({child})
path = pathlib.Path(*sys.argv[1:3])
path.with_suffix(".new").write_text(f"{{os.getpid()}} {{process.pid}}")
path.with_suffix(".new").rename(path)
process.wait()"""
    jobs = {name: Work(tmp_path, name, code) for name in ("one", "two", "three")}

    def interrupt(ended: int) -> None:
        if (tmp_path / "one").exists() and (tmp_path / "two").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, [-1, -1], interrupt)
    pids = [int(pid) for name in ("one", "two") for pid in (tmp_path / name).read_text().split()]
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], guard(10))
    assert len(pids) == 4 and not alive
    assert [job.ended for job in jobs.values()] == [1, 1, 0] and not list(tmp_path.glob("*.log"))


def test_devices_are_different_gpus_that_are_there_or_a_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.devices.torch.cuda.device_count", lambda: 3)
    assert choose_devices(-1, "", 1) == [-1] and choose_devices(2, "", 1) == [2]
    assert choose_devices(-1, "", 3) == [-1, -1, -1] and choose_devices(-1, "2, 0", 1) == [2, 0]
    for wrong in ("0,0", "one", "0,,1", "-1"):
        with pytest.raises(StepError, match="no different GPUs"):
            choose_devices(-1, wrong, 1)
    with pytest.raises(StepError, match="GPU 3 was asked for; PyTorch finds 3, from 0"):
        choose_devices(-1, "0,3", 1)
    for gpu_id, gpus in ((0, ""), (-1, "0,1")):
        with pytest.raises(StepError, match="one training at a time"):
            choose_devices(gpu_id, gpus, 2)
