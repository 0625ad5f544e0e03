from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Job, Worker, add_rates, choose, compete, machine, worker_commands
from benchmarks.worker import SPEED, TRAINING
from common.errors import StepError
from tests.benchmarks.conftest import fake_commands
from tests.conftest import ROOT, new_python


def test_contenders_take_turns(tmp_path: Path) -> None:
    results = compete(fake_commands(tmp_path / "log", "one", "unable", "two"), 3, tmp_path)
    assert (tmp_path / "log").read_text().split() == ["one", "two"] * 3
    assert results["one"]["repetitions"] == [{"seconds": 2.0, "words": 10}] * 3 and results["two"]["peak_rss_mb"] == 7
    assert results["unable"] == {"unavailable": "no such instructions"}


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="broken ended") as error:
        compete(fake_commands(tmp_path / "log", "broken"), 1, tmp_path)
    assert "the reason" in error.value.remedy
    with pytest.raises(StepError, match="lacking needs flair") as error:
        compete(fake_commands(tmp_path / "log", "lacking"), 1, tmp_path)
    assert error.value.remedy == "pip install flair"


@pytest.mark.parametrize(
    ("name", "library", "requirements"),
    [("flair", "flair", "requirements-peers.txt"), ("huggingface", "accelerate", "requirements-bench.txt")],
)
def test_a_missing_library_is_named(name: str, library: str, requirements: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed here")
    commands = worker_commands([name], Job("", "", [], 0), tmp_path, {})
    with Worker(name, commands[name], tmp_path) as worker, pytest.raises(StepError, match=f"needs {library}") as error:
        worker.answer()
    assert f"pip install -r {requirements}" in error.value.remedy


def test_a_missing_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="an environment of its own"):
        worker_commands(["default", "flair"], Job("", "", [], 0), tmp_path, {"flair": tmp_path / "python"})


def test_a_worker_needs_no_library_that_its_contender_does_not_need() -> None:
    """In the environment of other libraries there is no spaCy; and what one imports would count as its memory."""
    libraries = ["spacy", "thinc", "spacy_transformers", "torch", "transformers", "matplotlib", "psutil", "requests"]
    script = f"import sys; sys.modules.update(dict.fromkeys({libraries})); import benchmarks.worker"
    done = new_python("-c", script, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_contender_computes_in_the_dtype_for_which_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_NER_DTYPE", "float32")
    code = "import json, os; print(json.dumps({'dtype': os.environ.get('BERT_NER_DTYPE')}))"
    with Worker("default", [sys.executable, "-c", code], tmp_path) as worker:
        assert worker.answer() == {"dtype": None}


def test_medians_and_ratios() -> None:
    results: dict[str, dict[str, Any]] = {
        name: {"repetitions": [{"seconds": second, "words": 12} for second in seconds]}
        for name, seconds in {"reference": (1, 2, 6), "default": (1, 1, 2)}.items()
    } | {"unable": {"unavailable": "so"}}
    add_rates(results, "reference")
    assert results["reference"]["words_per_second"] == {"median": 6, "min": 2, "max": 12}
    assert results["default"]["ratio_to_reference"] == 2
    assert results["unable"] == {"unavailable": "so"}


def test_contenders_are_chosen_by_name() -> None:
    assert choose(TRAINING, "") == ["ours", "explosion", "huggingface"]
    assert choose(SPEED, "int8, default") == ["default", "int8"]
    with pytest.raises(StepError, match="no contender bert"):
        choose(SPEED, "bert")


@pytest.mark.parametrize("recent", [True, False])
def test_the_machine_is_described_whatever_pytorch_can_tell(recent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if recent:
        capabilities = {"cpu_name": "Some processor", "avx2": True, "amx_bf16": False, "l2_cache_size": 1}
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    else:
        monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    found = machine()
    assert found["cpu"] == "Some processor" if recent else found["cpu"]
    assert found["capabilities"] == ["avx2"] if recent else len(found["capabilities"]) == 1
    assert found["threads"] >= 1 and found["versions"]["spacy"]
