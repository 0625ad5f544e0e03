from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks import training as benchmark
from benchmarks.contenders.huggingface import encode
from benchmarks.harness import Job, worker_commands
from benchmarks.training import train_in_full, training
from benchmarks.worker import TRAINING
from common.corpora import label_names
from common.records import code_digest, read_json, record_inputs, sha256
from tests.benchmarks.conftest import fake_commands
from tests.conftest import ROOT, Project, python, words


def test_full_trainings_run_one_after_the_other(tmp_path: Path) -> None:
    results = train_in_full(fake_commands(tmp_path / "log", "one", "two"), tmp_path)
    assert results["two"]["repetitions"] == [{"seconds": 2.0, "words": 10}] and list(results) == ["one", "two"]


def test_labels_stand_at_first_wordpieces(tiny_encoder: Path) -> None:
    sentence = {"words": ["Mira", "left"], "tags": ["B-PER", "O"], "text": "Mira left"}
    labels = label_names([sentence])
    (row,) = encode([sentence], AutoTokenizer.from_pretrained(tiny_encoder), labels)
    assert labels == ["O", "B-PER", "I-PER"]
    assert row["labels"] == [-100, 1, -100, -100, -100, 0, -100, -100, -100, -100]


@pytest.mark.parametrize("name", ["ours", "explosion"])
def test_spacy_contenders_train_and_are_scored(name: str, job: Job) -> None:
    job.epochs = 1
    contender = TRAINING[name](job)
    examples = contender.prepare()
    words = [token.text for example in examples for token in example.predicted]
    assert words == [word for sentence in job.sentences for word in sentence["words"]], "the tokens of the corpus"
    score = contender.score(contender.work(examples))
    assert score is not None and 0 <= score <= 1


def test_hugging_face_trains_and_is_scored(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    job.epochs, job.dev_sentences = 1, job.sentences[:5]
    results = train_in_full(worker_commands(["huggingface"], job, tmp_path, {}), tmp_path)
    assert results["huggingface"]["repetitions"][0]["words"] == job.words
    assert 0 <= results["huggingface"]["f1"] <= 1 and "accelerate" in results["huggingface"]["versions"]


@pytest.mark.parametrize(("epochs", "name"), [(0, "training.json"), (2, "training-full.json")])
def test_what_was_trained_is_on_record(
    epochs: int, name: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[str, Any] = {
        "ours": {"repetitions": [{"seconds": 2.0, "words": 10}], "f1": None, "peak_rss_mb": 7, "versions": {}}
    }
    monkeypatch.setattr(benchmark, "compete", lambda *_: done)
    monkeypatch.setattr(benchmark, "train_in_full", lambda *_: done)
    config, corpus = ROOT / "configs/bert.cfg", project.folder / "corpus/tiny"
    training(config, corpus, project.encoder, tmp_path / "run", documents=2, only="ours", epochs=epochs)
    record = read_json(tmp_path / "run" / name)
    inputs = record["inputs"]
    assert inputs == record_inputs(
        config=config,
        encoder=project.encoder,
        train=corpus / "train.spacy",
        dev=corpus / "dev.spacy",
        code=ROOT / "benchmarks/training.py",
        pipeline=ROOT / "bert_ner/__init__.py",
    )
    assert inputs["train"] == sha256(corpus / "train.spacy")
    assert inputs["code"] != code_digest(ROOT / "benchmarks/training.py"), "the files that it imports count too"
    assert record["contenders"]["ours"]["words_per_second"]["median"] == 5 and record["reference"] == "ours"


@pytest.mark.slow
def test_training_from_end_to_end(project: Project, tmp_path: Path) -> None:
    paths = [ROOT / "configs/bert.cfg", project.folder / "corpus/tiny", project.encoder, tmp_path / "tiny"]
    options = ["--only", "ours,explosion", "--documents", "3", "--repetitions", "1"]
    done = python("-m", "benchmarks.training", *map(str, paths), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_json(tmp_path / "tiny/training.json")
    assert list(record["contenders"]) == ["ours", "explosion"] and record["documents"] == 3
    for result in record["contenders"].values():
        assert len(result["repetitions"]) == 1 and result["peak_rss_mb"] > 100
        assert result["repetitions"][0]["words"] == record["words"] and result["f1"] is None
    assert record["contenders"]["explosion"]["ratio_to_ours"] > 0 and "to ours" in words(done.stdout)
