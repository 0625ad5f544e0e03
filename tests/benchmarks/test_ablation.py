from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.util import load_config

from benchmarks import ablation as benchmark
from benchmarks.ablation import OURS, USUAL, USUAL_SETTINGS, VARIANTS, ablation, summarize_seeds
from benchmarks.contenders import huggingface
from common.devices import Training, kill
from common.published import DAGGER, Run
from common.records import digest, read_json, sha256, write_json
from common.statistics import bootstrap, f_score, interval
from scripts.convert import convert
from scripts.document import tabulate_ablation
from tests.conftest import ROOT, Project, guard, python, words, write_corpus
from tests.trainings import find_trainings, stop_trainings, wait_for

CONFIG = ROOT / "configs/bert.cfg"
COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9).map(
    lambda rows: [[correct, correct + wrong, correct + missed] for correct, wrong, missed in rows]
)


def create_run(variant: str, seed: int, f1: float, documents: list[list[int]]) -> dict[str, Any]:
    scores = {"gold_sentences": {"ents_f": f1}}
    return {"variant": variant, "seed": seed, "dev": scores, "test": scores, "documents": documents}


@given(COUNTS)
def test_an_interval_holds_the_score_of_alike_documents(counts: list[list[int]]) -> None:
    alike = np.array([[counts[0]] * 7] * 2)
    assert interval(bootstrap(alike)) == pytest.approx([f_score(np.array(counts[0]))] * 2)
    low, high = interval(bootstrap(np.array([counts])))
    assert 0 <= low <= high <= 1


@given(COUNTS)
def test_nothing_is_gained_over_the_same(counts: list[list[int]]) -> None:
    runs = [create_run(OURS, 0, 0.5, counts), create_run("other", 0, 0.5, counts), create_run("other", 1, 0.7, counts)]
    summary = summarize_seeds(runs)
    assert summary["other"]["gain"] == {"mean": 0, "se": None, "interval": [0, 0]}
    assert summary["other"]["seeds"] == 2 and "gain" not in summary[OURS]
    assert summary["other"]["test"]["gold_sentences"] == pytest.approx({"mean": 0.6, "sd": 0.02**0.5})
    assert summary[OURS]["dev"] == {"gold_sentences": {"mean": 0.5, "sd": None}}


def test_a_gain_is_that_of_the_same_seeds() -> None:
    good, bad = [[4, 4, 4], [2, 2, 2]], [[2, 4, 4], [1, 2, 2]]
    runs = [create_run(OURS, 0, 1, good), create_run(OURS, 1, 0.5, bad), create_run(USUAL, 0, 0.5, bad)]
    assert summarize_seeds(runs)[USUAL]["gain"] == {"mean": 0.5, "se": None, "interval": [0.5, 0.5]}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_differs_from_the_config_only_in_what_is_there(name: str) -> None:
    """An override of a name that the config does not have would add it, and change nothing."""
    config = load_config(CONFIG, interpolate=False)
    for dotted, value in VARIANTS[name].items():
        section: Any = config
        for part in dotted.split("."):
            assert part in section, dotted
            section = section[part]
        assert section != value
    pipeline = VARIANTS[name].get("nlp.pipeline", config["nlp"]["pipeline"])
    assert set(pipeline) <= set(config["components"])


def test_runs_of_other_code_or_data_are_not_in_the_table(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    path = tmp_path / "metrics/ablation.json"
    trained: list[int] = []

    def fine_tune(
        encoder: Path, corpus: Path, seed: int, gpu_id: int, settings: dict[str, Any], fewest_steps: int
    ) -> dict[str, Any]:
        assert not fewest_steps, "the whole corpus has enough"
        trained.append(seed)
        return {"dev_by_epoch": [0.25, 0.5], "seconds": 1, "steps": 2, "documents": [[1, 2, 2], [2, 2, 2]]}

    def run(seeds: int, only: str = USUAL) -> dict[str, Any]:
        ablation(CONFIG, tmp_path / "training", tmp_path / "corpus", tiny_encoder, path.parent, seeds=seeds, only=only)
        return {name: entry["seeds"] for name, entry in read_json(path)["summary"].items()}

    monkeypatch.setattr(huggingface, "fine_tune", fine_tune)
    path.parent.mkdir()
    stale = create_run(OURS, 0, 1.0, [[1, 1, 1], [1, 1, 1]])
    runs = {
        "ours, seed 0": stale | {"inputs": {"model": "of earlier code"}},
        "usual fine-tune, seed 0": stale | {"variant": USUAL, "inputs": {}},
        "without document, seed 0": {"variant": "without document", "seed": 0},  # as an earlier version wrote it
        "renamed, seed 0": stale | {"variant": "renamed", "inputs": {}},
    }
    write_json(path, {"runs": runs})
    assert run(1) == {USUAL: 1} and trained == [0]
    assert run(2) == {USUAL: 2} and trained == [0, 1]
    record = read_json(path)
    assert record["summary"][USUAL]["dev"]["gold_sentences"]["mean"] == 0.5
    assert record["summary"][USUAL]["test"]["gold_sentences"] == {"mean": 0.75, "sd": 0}
    assert set(record["inputs"]) == {"config", "encoder", "train", "dev", "test", "code", "pipeline"}
    monkeypatch.setattr(benchmark, "score_model", lambda *_: {**stale, "seqeval_f1": 1.0})
    monkeypatch.setattr("common.models.find_trained", lambda *_: tmp_path)
    assert run(1, OURS) == {USUAL: 2, OURS: 1}, "runs of before stay, as they would come out the same"
    assert list(read_json(path)["summary"]) == [OURS, USUAL]
    monkeypatch.setattr(benchmark, "USUAL_SETTINGS", {"num_train_epochs": 1})
    assert run(1, OURS) == {OURS: 1, USUAL: 2}, "runs of earlier code stay until there are new ones, and are marked"
    summary = read_json(path)["summary"]
    assert summary[USUAL]["older"] and "older" not in summary[OURS] and "gain" in summary[USUAL]
    marked = tabulate_ablation(Run("tiny", {"ablation": {"summary": summary}}, set()))
    assert [line.count(DAGGER) > 0 for line in marked.splitlines() if line.startswith(("| ours |", "| usual"))] == [
        False,
        True,
    ]
    assert run(1) == {OURS: 1, USUAL: 1} and trained == [0, 1, 0]
    assert "older" not in read_json(path)["summary"][USUAL]


def test_on_several_devices_all_is_trained_before_it_is_scored(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    inputs: list[dict[str, Any]] = []
    alike = {"gold_sentences": {"ents_f": 1.0}}
    scores = {"dev": alike, "test": alike, "documents": [[1, 1, 1]] * 2, "seqeval_f1": 1.0}

    def train_all(trainings: dict[str, Training], devices: list[int]) -> None:
        assert devices == [-1, -1]
        begun.append(list(trainings))
        inputs.extend(training.inputs for training in trainings.values())

    def train_aside(provenance: dict[str, Any], *_: Any, **__: Any) -> Path:
        assert provenance in inputs
        return tmp_path

    monkeypatch.setattr("common.training.code_digest", lambda *_: "code")
    monkeypatch.setattr("common.training.spacy.blank", functools.cache(spacy.blank))
    monkeypatch.setattr(benchmark, "record_inputs", lambda **_: {name: name for name in ("dev", "test", "code")})
    monkeypatch.setattr(benchmark, "train_all", train_all)
    monkeypatch.setattr(benchmark, "train_aside", train_aside)
    monkeypatch.setattr(benchmark, "score_model", lambda *_: scores)
    paths = (tmp_path / "training", tiny_corpus, tiny_encoder, tmp_path / "tiny")
    for seeds in (1, 2):
        ablation(CONFIG, *paths, seeds=seeds, only=f"{OURS},entities alone", processes=2)
    assert begun == [["ours, seed 0", "entities alone, seed 0"], ["ours, seed 1", "entities alone, seed 1"]]
    assert len({digest(each) for each in inputs}) == 4


@pytest.mark.slow
def test_two_trainings_at_a_time_of_which_one_is_killed_and_then_the_command_itself(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    folder, metrics = tmp_path / "training/tiny", tmp_path / "metrics/tiny"
    command = [sys.executable, "-m", "benchmarks.ablation", str(CONFIG), str(folder), str(tiny_corpus)]
    command += [str(tiny_encoder), str(metrics), "--seeds", "2", "--epochs", "8", "--only", OURS, "--processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first = stop_trainings(driver.pid, 2)  # none has ended when the other begins
        killed = next(iter(first))
        assert all((folder / "logs" / f"{place.name.removeprefix('tiny-')}.log").exists() for place in first)
        first[killed].kill()
        wait_for(lambda: find_trainings(driver.pid).get(killed, first[killed]) != first[killed])
        again = stop_trainings(driver.pid, 2)
        assert again.keys() == first.keys() and again[killed] != first[killed]
        driver.kill()
        driver.wait()
    finally:
        if driver.poll() is None:
            kill(driver)
    for process in again.values():
        process.resume()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=guard(120))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done already") == 2 and "begun on" not in done.stdout, "the trainings lived on"
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["tiny"]
    assert len(read_json(metrics / "ablation.json")["runs"]) == 2
    models = {read_json(path)["inputs"]["settings"]["system.seed"]: path for path in folder.glob("*/provenance.json")}
    assert sorted(models) == [0, 1] and not any(read_json(path)["resumed"] for path in models.values())
    seed = next(seed for seed, path in models.items() if path.parent.name.endswith(killed.name[-8:]))
    alone = [*command[:2], "scripts.train", str(CONFIG), str(tmp_path / "training/alone"), "--seed", str(seed)]
    alone += ["--corpus", str(tiny_corpus), "--encoder", str(tiny_encoder), "--epochs", "8"]
    done = subprocess.run(alone, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=guard(120))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("transformer", "tok2vec", "ner"):
        weights = [sha256(model / name) for model in (models[seed].parent, tmp_path / "training/alone/model-best")]
        assert weights[0] == weights[1], "it is the same training, though it was killed and was not alone"


@pytest.mark.slow
def test_variants_are_trained_aside_and_found_again(changeable: Project, tmp_path: Path) -> None:
    folders = [changeable.folder / name for name in ("training/tiny", "corpus/tiny")]
    paths = [CONFIG, *folders, changeable.encoder, tmp_path / "tiny"]
    options = ["--seeds", "1", "--epochs", "1", "--only", "ours,entities alone"]
    before = {path.name for path in folders[0].iterdir()}
    done = python("-m", "benchmarks.ablation", *map(str, paths), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({path.name for path in folders[0].iterdir() if path.is_dir()} - before) == 1  # ours was trained already
    record = read_json(tmp_path / "tiny/ablation.json")
    evaluation = read_json(changeable.folder / "metrics/tiny/evaluation.json")
    run = record["runs"]["ours, seed 0"]
    assert run["test"] == evaluation["test"] and run["seqeval_f1"] == pytest.approx(
        evaluation["test"]["gold_sentences"]["ents_f"]
    )
    assert f_score(np.array(run["documents"]).sum(0)) == pytest.approx(run["seqeval_f1"])
    assert record["runs"]["entities alone, seed 0"]["test"]["gold_sentences"]["sents_f"] is None
    assert list(record["summary"]) == ["ours", "entities alone"] and "ours is better by" in words(done.stdout)
    again = python("-m", "benchmarks.ablation", *map(str, paths), *options, cwd=ROOT)
    assert again.stdout.count("measured already") == 2
    assert "| entities alone | 1 |" in tabulate_ablation(Run("tiny", {"ablation": record}, set()))


def test_the_usual_fine_tune_learns(tmp_path: Path, tiny_encoder: Path) -> None:
    pytest.importorskip("accelerate")
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    settings = USUAL_SETTINGS | {"num_train_epochs": 60, "learning_rate": 1e-2}
    result = huggingface.fine_tune(tiny_encoder, tmp_path / "corpus", 0, -1, settings)
    assert len(result["dev_by_epoch"]) == 8 and result["steps"] == 60 and max(result["dev_by_epoch"]) > 0.9, (
        "it saw these texts"
    )
    assert f_score(np.array(result["documents"]).sum(0)) == pytest.approx(max(result["dev_by_epoch"]))
