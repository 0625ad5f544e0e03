from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common.trainings import TrainingFailed, read_evaluations, run_training

WRITES = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('{}\\n'); time.sleep(float(sys.argv[2]))"


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
    assert str(log) in str(caught.value) and log.exists()


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


def test_a_line_that_is_not_whole_yet_is_not_read(tmp_path: Path) -> None:
    curves = tmp_path / "curves.jsonl"
    assert read_evaluations(curves, 40) == []
    curves.write_text('{"step": 0, "dev": {"ents_f": 0.1}}\n{"step": 5, "dev": {"ents_f": 0.5}}\n{"step": 10, "dev"')
    assert read_evaluations(curves, 40) == [(12, 0.5)]
