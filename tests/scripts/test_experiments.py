from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import StepError
from common.records import write_json
from scripts.experiments import differ, experiments, find_models
from tests.conftest import Project, words


def add(training: Path, name: str, f: float, inputs: dict[str, Any]) -> None:
    folder = training / name
    folder.mkdir(parents=True)
    write_json(folder / "provenance.json", {"inputs": inputs, "seconds": 90, "device": "CPU"})
    write_json(folder / "meta.json", {"performance": {"ents_f": f, "ents_p": f, "ents_r": f, "tag_acc": None}})


def test_models_come_best_first_with_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "one/model-best", 0.5, {"config": "a" * 64, "settings": {"system.seed": 0, "rate": 1e-4}})
    add(tmp_path, "two/model-best-12345678", 0.75, {"config": "a" * 64, "settings": {"system.seed": 1, "rate": 1e-4}})
    (tmp_path / "one/unfinished-12345678/model-last").mkdir(parents=True)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "one.yml").write_text("# mine\nencoder: minilm\nseed: 3\n", "utf8")
    metrics = tmp_path / "metrics"
    (metrics / "one").mkdir(parents=True)
    trial = {"state": "finished", "ents_f": 0.612, "seconds": 90, "settings": {}, "params": {}, "problem": ""}
    other = trial | {"state": "failed", "ents_f": None, "problem": "killed by SIGKILL"}
    counts = {"finished": 1, "failed": 1}
    write_json(metrics / "one/search.json", {"trials": [trial, other], "default": 0, "best": 0, "counts": counts})
    experiments(tmp_path, runs, metrics)
    shown = words(capsys.readouterr().out)
    assert shown.index("75.0") < shown.index("50.0") and "system.seed 1" in shown
    assert "rate" not in shown and "aaaa" not in shown
    assert "encoder minilm, seed 3" in shown and "two.yml: its variables came from the command line" in shown
    assert "Search of one" in shown and "61.2" in shown and "killed by SIGKILL" in shown and "1 finished" in shown
    for text in ("seed: [", "- seed"):  # what somebody has not finished
        (runs / "one.yml").write_text(text, "utf8")
        experiments(tmp_path, runs, metrics)
        shown = words(capsys.readouterr().out)
        assert "one.yml is not valid YAML" in shown and "75.0" in shown
    experiments(tmp_path, runs, metrics, run="one")
    shown = capsys.readouterr().out
    assert "75.0" not in shown and "Search of one" in shown
    experiments(tmp_path, runs, metrics, run="two")
    assert "Search of one" not in capsys.readouterr().out
    with pytest.raises(StepError, match="no finished model of three"):
        experiments(tmp_path, runs, metrics, run="three")


def test_checksums_are_shortened() -> None:
    made = [{"corpus": {"train": digit * 64}} for digit in "ab"] + [{"corpus": {}}]
    assert [found["corpus.train"] for found in differ(made)] == ["aaaaaaaa", "bbbbbbbb", "–"]


def test_the_run_is_listed(project: Project) -> None:
    (model,) = find_models(project.folder / "training")
    assert (model["run"], model["model"]) == ("tiny", "model-best") and model["inputs"]["settings"]
    done = project.run("experiments")
    assert done.returncode == 0 and "model-best" in done.stdout
