from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.accuracy import OURS, USUAL, USUAL_SETTINGS, bootstrap, f_score, fine_tune, interval, summarize
from scripts.convert import convert
from scripts.document import accuracies
from scripts.steps import read_json
from tests.conftest import ROOT, Project, python, words, write_corpus

COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9).map(
    lambda rows: [[right, right + wrong, right + missed] for right, wrong, missed in rows]
)


def once(variant: str, seed: int, f: float, documents: list[list[int]]) -> dict[str, Any]:
    scores = {"gold_sentences": {"ents_f": f}}
    return {"variant": variant, "seed": seed, "dev": scores, "test": scores, "documents": documents}


@given(COUNTS)
def test_an_interval_holds_the_score_of_alike_documents(counts: list[list[int]]) -> None:
    alike = np.array([[counts[0]] * 7] * 2)
    assert interval(bootstrap(alike)) == pytest.approx([f_score(np.array(counts[0]))] * 2)
    low, high = interval(bootstrap(np.array([counts])))
    assert 0 <= low <= high <= 1


@given(COUNTS)
def test_nothing_is_gained_over_the_same(counts: list[list[int]]) -> None:
    summary = summarize([once(OURS, 0, 0.5, counts), once("other", 0, 0.5, counts), once("other", 1, 0.7, counts)])
    assert summary["other"]["gain"] == {"mean": 0, "se": None, "interval": [0, 0]}
    assert summary["other"]["seeds"] == 2 and "gain" not in summary[OURS]
    assert summary["other"]["test"]["gold_sentences"] == pytest.approx({"mean": 0.6, "sd": 0.02**0.5})
    assert summary[OURS]["dev"] == {"gold_sentences": {"mean": 0.5, "sd": None}}


def test_a_gain_is_that_of_the_same_seeds() -> None:
    good, bad = [[4, 4, 4], [2, 2, 2]], [[2, 4, 4], [1, 2, 2]]
    runs = [once(OURS, 0, 1, good), once(OURS, 1, 0.5, bad), once(USUAL, 0, 0.5, bad)]
    assert summarize(runs)[USUAL]["gain"] == {"mean": 0.5, "se": None, "interval": [0.5, 0.5]}


@pytest.mark.slow
def test_variants_are_trained_aside_and_found_again(changeable: Project, tmp_path: Path) -> None:
    folders = [changeable.folder / name for name in ("training/tiny", "corpus/tiny")]
    paths = [ROOT / "configs/bert.cfg", *folders, changeable.encoder, tmp_path]
    options = ["--code", "scripts/functions.py", "--seeds", "1", "--epochs", "1", "--only", "ours,entities alone"]
    before = {path.name for path in folders[0].iterdir()}
    done = python("-m", "scripts.accuracy", *map(str, paths), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({path.name for path in folders[0].iterdir() if path.is_dir()} - before) == 1  # ours was trained already
    record = read_json(tmp_path / "accuracy.json")
    evaluation = read_json(changeable.folder / "metrics/tiny/evaluation.json")
    run = record["runs"]["ours, seed 0"]
    assert run["test"] == evaluation["test"] and run["seqeval_f"] == pytest.approx(
        evaluation["test"]["gold_sentences"]["ents_f"]
    )
    assert f_score(np.array(run["documents"]).sum(0)) == pytest.approx(run["seqeval_f"])
    assert record["runs"]["entities alone, seed 0"]["test"]["gold_sentences"]["sents_f"] is None
    assert list(record["summary"]) == ["ours", "entities alone"] and "ours is better by" in words(done.stdout)
    assert "| entities alone | 1 |" in accuracies(tmp_path)
    again = python("-m", "scripts.accuracy", *map(str, paths), *options, cwd=ROOT)
    assert again.stdout.count("measured already") == 2


def test_the_usual_fine_tune_learns(tmp_path: Path, tiny_encoder: Path) -> None:
    pytest.importorskip("accelerate")
    convert(write_corpus(tmp_path / "assets"), tmp_path / "corpus")
    settings = USUAL_SETTINGS | {"num_train_epochs": 60, "learning_rate": 1e-2}
    result = fine_tune(tiny_encoder, tmp_path / "corpus", 0, -1, settings)
    assert len(result["dev_by_epoch"]) == 60
    assert result["dev"]["gold_sentences"]["ents_f"] == max(result["dev_by_epoch"]) > 0.9, "it saw these texts"
    assert result["test"]["gold_sentences"]["ents_f"] == pytest.approx(f_score(np.array(result["documents"]).sum(0)))
