from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts import benchmark, functions
from scripts.benchmark import (
    SPEED,
    TRAINING,
    Job,
    Unavailable,
    Worker,
    choose,
    compete,
    encoder_shares,
    label_names,
    load_installed,
    load_spacy_transformers,
    load_trainer,
    make_job,
    service,
    summarize,
    train_whole,
    training,
    wordpieces,
    worker_command,
)
from scripts.steps import StepError, newest_wheel, read_json, sha256, write_json
from tests.conftest import ROOT, Project, python, words

FAKE = """import json, sys
def tell(**answer): print(json.dumps(answer), flush=True)
name, log = sys.argv[1:]
if name == "unable": tell(unavailable="no such instructions"); sys.exit()
if name == "lacking": tell(missing="flair"); sys.exit()
if name == "broken": sys.exit("the reason")
tell(ready=True)
for line in sys.stdin:
    open(log, "a").write(name + "\\n")
    tell(progress=0.5)
    tell(seconds=2.0, words=10)
tell(f=None, peak_rss_mb=7, versions={})
"""


def fakes(log: Path, *names: str) -> dict[str, list[str]]:
    return {name: [sys.executable, "-c", FAKE, name, str(log)] for name in names}


def test_contenders_take_turns(tmp_path: Path) -> None:
    results = compete(fakes(tmp_path / "log", "one", "unable", "two"), 3, tmp_path)
    assert (tmp_path / "log").read_text().split() == ["one", "two"] * 3
    assert results["one"]["repetitions"] == [{"seconds": 2.0, "words": 10}] * 3 and results["two"]["peak_rss_mb"] == 7
    assert results["unable"] == {"unavailable": "no such instructions"}


def test_whole_trainings_run_one_after_the_other(tmp_path: Path) -> None:
    results = train_whole(fakes(tmp_path / "log", "one", "two"), tmp_path)
    assert results["two"]["repetitions"] == [{"seconds": 2.0, "words": 10}] and list(results) == ["one", "two"]


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="broken ended") as error:
        compete(fakes(tmp_path / "log", "broken"), 1, tmp_path)
    assert "the reason" in error.value.remedy
    with pytest.raises(StepError, match="lacking needs flair") as error:
        compete(fakes(tmp_path / "log", "lacking"), 1, tmp_path)
    assert "pip install -r requirements-bench.txt" in error.value.remedy


def test_a_missing_library_or_environment_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("flair"):
        pytest.skip("Flair is installed here")
    write_json(tmp_path / "job.json", asdict(Job("", "", [], 0)))
    command = worker_command("speed", "flair", tmp_path / "job.json", None)
    with Worker("flair", command, tmp_path) as worker, pytest.raises(StepError, match="flair needs flair") as error:
        worker.answer()
    assert "pip install -r requirements-peers.txt" in error.value.remedy
    with pytest.raises(StepError, match="an environment of its own"):
        worker_command("speed", "flair", tmp_path / "job.json", tmp_path / "python")


def test_medians_and_ratios() -> None:
    results: dict[str, dict[str, Any]] = {
        name: {"repetitions": [{"seconds": second, "words": 12} for second in seconds]}
        for name, seconds in {"reference": (1, 2, 6), "default": (1, 1, 2), "encoder-int8": (0.5, 0.5, 0.5)}.items()
    } | {"unable": {"unavailable": "so"}}
    summarize(results, "reference")
    assert results["reference"]["words_per_second"] == {"median": 6, "min": 2, "max": 12}
    assert results["default"]["ratio_to_reference"] == 2
    assert results["unable"] == {"unavailable": "so"}
    encoder_shares(results, "int8")
    assert results["default"]["share_of_bare_encoder"] == 0.5


def test_contenders_are_chosen_by_name() -> None:
    assert choose(TRAINING, "") == ["ours", "explosion", "huggingface"]
    assert choose(SPEED, "int8, default") == ["default", "int8"]
    with pytest.raises(StepError, match="no contender bert"):
        choose(SPEED, "bert")


def test_labels_stand_at_first_wordpieces(tiny_encoder: Path) -> None:
    from transformers import AutoTokenizer

    sentence = {"words": ["Mira", "left"], "tags": ["B-PER", "O"], "text": "Mira left"}
    labels = label_names([sentence])
    (row,) = wordpieces([sentence], AutoTokenizer.from_pretrained(tiny_encoder), labels)
    assert labels == ["O", "B-PER", "I-PER"]
    assert row["labels"] == [-100, 1, -100, -100, -100, 0, -100, -100, -100, -100]


@pytest.fixture
def job(project: Project, tmp_path: Path) -> Job:
    """Three documents of the sample corpus, and the tiny pipeline."""
    made = make_job(project.folder / "corpus/tiny/train.spacy", 3, tmp_path, project.encoder, sentence_docs=True)
    made.model = str(project.folder / "training/tiny/model-best")
    made.corpus = str(project.folder / "corpus/tiny")
    made.config, made.code = str(ROOT / "configs/bert.cfg"), str(ROOT / "scripts/functions.py")
    assert made.words == sum(len(sentence["words"]) for sentence in made.sentences)
    return made


def test_the_reference_has_neither_our_forward_nor_our_windows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from spacy_transformers.layers.hf_wrapper import pt_forward

    models = []

    def keep(nlp: object, path: Path) -> None:
        models.append(dict(nlp.pipeline)["transformer"].model)  # type: ignore[attr-defined]

    monkeypatch.setattr(benchmark, "annotate", keep)
    load_spacy_transformers(job)
    (model,) = models
    assert model.layers[0]._func is pt_forward
    assert model.attrs["get_spans"].keywords == {"window": 128, "stride": 96}
    assert not model.layers[0].shims[0]._mixed_precision
    assert model.layers[0].shims[0].model_cls.__module__.startswith("transformers.")


def test_a_precision_that_the_machine_has_not_is_unavailable(
    project: Project, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert functions.PRECISIONS  # imported: what the model is made of is registered
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    job.package = str(project.folder / "training/tiny/model-best")
    with pytest.raises(Unavailable, match="this machine cannot"):
        load_installed(job, precision="bfloat16")
    with pytest.raises(Unavailable, match="this machine cannot"):
        SPEED["encoder-int8"](job)


def test_the_newest_wheel_of_a_run_is_found_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="holds no wheel"):
        newest_wheel(tmp_path)
    for seconds, name in ((20, "en_new-2.0.0"), (10, "en_old-1.0.0")):
        (tmp_path / name / "dist").mkdir(parents=True)
        (tmp_path / name / "dist" / f"{name}-py3-none-any.whl").touch()
        os.utime(tmp_path / name / "dist" / f"{name}-py3-none-any.whl", (seconds, seconds))
    assert newest_wheel(tmp_path).name == newest_wheel(tmp_path / "en_new-2.0.0/dist").name
    assert newest_wheel(tmp_path / "en_old-1.0.0").name == "en_old-1.0.0-py3-none-any.whl"


@pytest.mark.parametrize("name", ["encoder-float32", "huggingface-8"])
def test_other_contenders_annotate(name: str, job: Job) -> None:
    contender = SPEED[name](job)
    assert contender.score(contender.work(contender.prepare())) is None


@pytest.mark.parametrize("name", ["ours", "explosion"])
def test_spacy_contenders_train_and_are_scored(name: str, job: Job) -> None:
    job.epochs = 1
    contender = TRAINING[name](job)
    score = contender.score(contender.work(contender.prepare()))
    assert score is not None and 0 <= score <= 1


def test_hugging_face_trains_and_is_scored(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    assert TRAINING["huggingface"] is load_trainer
    job.epochs, job.dev_sentences = 1, job.sentences[:5]
    write_json(tmp_path / "job.json", asdict(job))
    results = train_whole(
        {"huggingface": worker_command("training", "huggingface", tmp_path / "job.json", None)}, tmp_path
    )
    assert results["huggingface"]["repetitions"][0]["words"] == job.words
    assert 0 <= results["huggingface"]["f"] <= 1 and "accelerate" in results["huggingface"]["versions"]


@pytest.mark.parametrize(("epochs", "name"), [(0, "training.json"), (2, "training-full.json")])
def test_what_was_trained_is_on_record(
    epochs: int, name: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[str, Any] = {
        "ours": {"repetitions": [{"seconds": 2.0, "words": 10}], "f": None, "peak_rss_mb": 7, "versions": {}}
    }
    monkeypatch.setattr(benchmark, "compete", lambda *_: done)
    monkeypatch.setattr(benchmark, "train_whole", lambda *_: done)
    config, code, corpus = ROOT / "configs/bert.cfg", ROOT / "scripts/functions.py", project.folder / "corpus/tiny"
    training(config, corpus, project.encoder, tmp_path / "run", code, documents=2, only="ours", epochs=epochs)
    made_from = read_json(tmp_path / "run" / name)["made_from"]
    assert (made_from["config"], made_from["code"]) == (sha256(config), sha256(code))
    assert made_from["encoder"] == sha256(project.encoder)
    assert made_from["corpus"] == {split: sha256(corpus / f"{split}.spacy") for split in ("train", "dev")}


@pytest.mark.slow
def test_speed_from_end_to_end(project: Project, tmp_path: Path) -> None:
    metrics = tmp_path / "tiny"
    folders = ["packages/tiny", "training/tiny/model-best", "corpus/tiny"]
    paths = [str(project.folder / folder) for folder in folders] + [str(project.encoder), str(metrics)]
    options = [
        "--only",
        "default,spacy-transformers",
        "--documents",
        "3",
        "--repetitions",
        "2",
        "--memory",
        "0.02",
    ]
    done = python("-m", "scripts.benchmark", "speed", *paths, *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_json(metrics / "speed.json")
    assert (metrics / "speed.svg").exists()
    wheel = newest_wheel(project.folder / "packages")
    dev = project.folder / "corpus/tiny/dev.spacy"
    assert record["made_from"] == {"wheel": sha256(wheel), "encoder": sha256(project.encoder), "dev": sha256(dev)}
    assert record["model"] == read_json(project.folder / "training/tiny/model-best/origin.json")["made_from"]
    assert list(record["contenders"]) == ["spacy-transformers", "default"]
    for result in record["contenders"].values():
        rates = [once["words"] / once["seconds"] for once in result["repetitions"]]
        assert len(rates) == 2 and result["words_per_second"]["median"] == pytest.approx(statistics.median(rates))
        assert 0 <= result["f"] <= 1 and result["peak_rss_mb"] > 100 and result["versions"]["spacy"]
    assert record["words"] == record["contenders"]["default"]["repetitions"][0]["words"]
    assert all(seconds > 0 for seconds in record["starts"]["medians"].values())
    assert record["memory"][0]["peak_rss_mb"] > 100 and record["machine"]["threads"] >= 1
    assert json.dumps(record) and "to spacy-transformers" in words(done.stdout)


@pytest.mark.slow
def test_the_service_is_measured_under_load(ruled: Path, tmp_path: Path) -> None:
    service(ruled / "training/ruled/model-best", tmp_path / "run", clients=4, seconds=2)
    record = read_json(tmp_path / "run/service.json")
    assert set(record["statuses"]) <= {"200", "429"}
    assert record["answers_per_second"] == record["statuses"]["200"] / 2
    assert 0 < record["seconds_p50"] <= record["seconds_p95"] and record["rss_mb"]["after"] > 10
    (tmp_path / "config.cfg").write_text("[nlp]")
    with pytest.raises(StepError, match="does not start"):
        service(tmp_path, tmp_path / "run", clients=1, seconds=0.1)
