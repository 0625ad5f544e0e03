from __future__ import annotations

import zipfile
from pathlib import Path

import srsly
from thinc.api import Config

from scripts.package import percent, worth_of_scores
from scripts.steps import read_json, sha256
from tests.conftest import Project

WHEEL = "packages/tiny/en_bert_ner-1.0.0/dist/en_bert_ner-1.0.0-py3-none-any.whl"


def unpack(project: Project, folder: Path) -> Path:
    with zipfile.ZipFile(project.folder / WHEEL) as wheel:
        wheel.extractall(folder)
    return folder / "en_bert_ner" / "en_bert_ner-1.0.0"


def test_the_wheel_describes_itself(project: Project, tmp_path: Path) -> None:
    data = unpack(project, tmp_path)
    meta = srsly.read_json(data / "meta.json")
    assert meta["name"] == "bert_ner" and meta["version"] == "1.0.0" and meta["license"] == "Apache-2.0"
    assert "tiny" in meta["description"] and [source["name"] for source in meta["sources"]][1] == "tiny"
    assert meta["author"] == "" and meta["labels"]["ner"] == ["LOC", "MISC", "ORG", "PER"]
    test = read_json(project.folder / "metrics/tiny/test.json")
    assert meta["performance"] == {key: value for key, value in test.items() if key != "speed"}
    assert any(requirement.startswith("spacy-transformers") for requirement in meta["requirements"])
    card = (data / "README.md").read_text("utf8")
    assert card.startswith("# en_bert_ner\n")
    analysis = read_json(project.folder / "metrics/tiny/analysis.json")
    low, high = map(percent, analysis["labels"]["in all"]["interval"])
    scores = " | ".join(percent(test[f"ents_{name}"]) for name in "prf")
    assert f"| in all | {scores} | {low} to {high} | {analysis['labels']['in all']['entities']} |" in card
    assert "| in train | never | " in card and f"missed {analysis['errors']['missed']['in all']}" in card
    assert "110 documents" in card and "CC0-1.0" in card


def test_nothing_in_the_wheel_knows_this_machine(project: Project, tmp_path: Path) -> None:
    data = unpack(project, tmp_path)
    config = Config().from_disk(data / "config.cfg", interpolate=False)
    assert config["paths"]["train"] is None and config["paths"]["dev"] is None
    for path in data.rglob("*"):
        if path.is_file():
            contents = path.read_bytes()
            for known in (project.folder, project.encoder, Path("assets/tiny"), Path("corpus/tiny")):
                assert str(known).encode() not in contents, f"{path} names {known}"


def test_the_trained_pipeline_stays_as_it_was(changeable: Project) -> None:
    best = changeable.folder / "training/tiny/model-best"
    before = sha256(best)
    done = changeable.run("package", version="2.0.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sha256(best) == before
    for version in ("1.0.0", "2.0.0"):
        assert (changeable.folder / WHEEL.replace("1.0.0", version)).exists()


def test_what_scores_are_worth_is_told_or_that_dev_does_not_know() -> None:
    told = worth_of_scores({"threshold": 0.871, "precision": 0.96, "recall": 0.7})
    assert "0.87" in told and "precision is 96.0 and recall 70.0" in told
    assert "at no score" in worth_of_scores({"threshold": 1.0, "precision": None, "recall": 0.0})
