from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import srsly
from packaging.requirements import Requirement
from thinc.api import Config

from common.errors import StepError
from common.formatting import calibration_summary, percent
from common.licenses import RESEARCH, find_license
from common.records import read_json, sha256, write_json
from scripts.package import _rows, check_forgetting, check_name
from tests.conftest import Project, rounded

WHEEL = "packages/tiny/en_bert_ner-1.0.0/dist/en_bert_ner-1.0.0-py3-none-any.whl"


def unpack(project: Project, folder: Path) -> Path:
    with zipfile.ZipFile(project.folder / WHEEL) as wheel:
        wheel.extractall(folder)
    return folder / "en_bert_ner" / "en_bert_ner-1.0.0"


def test_the_wheel_describes_itself(project: Project, tmp_path: Path) -> None:
    data = unpack(project, tmp_path)
    meta = srsly.read_json(data / "meta.json")
    assert meta["name"] == "bert_ner" and meta["version"] == "1.0.0" and meta["license"] == "see the licences of tiny"
    assert "tiny" in meta["description"] and [source["name"] for source in meta["sources"]][1] == "tiny"
    assert meta["author"] == "" and meta["labels"]["ner"] == ["LOC", "MISC", "ORG", "PER"]
    test = read_json(project.folder / "metrics/tiny/test.json")
    assert rounded(meta["performance"]) == rounded({key: value for key, value in test.items() if key != "speed"})
    with zipfile.ZipFile(project.folder / WHEEL) as wheel:
        told = wheel.read("en_bert_ner-1.0.0.dist-info/METADATA").decode().splitlines()
    assert "Requires-Python: >=3.11" in told and f"License: {meta['license']}" in told
    needed = {Requirement(row.partition(": ")[2]).name: row for row in told if row.startswith("Requires-Dist")}
    assert set(needed) >= {"spacy", "spacy-transformers", "transformers", "torch", "numpy"}
    assert all("<" in row and ">=" in row for row in needed.values())
    card = (data / "README.md").read_text("utf8")
    assert card.startswith("# en_bert_ner\n")
    analysis = read_json(project.folder / "metrics/tiny/analysis.json")
    low, high = map(percent, analysis["labels"]["overall"]["interval"])
    scores = " | ".join(percent(test[f"ents_{name}"]) for name in "prf")
    assert f"| overall | {scores} | {low} to {high} | {analysis['labels']['overall']['entities']} |" in card
    assert "| in train | never | " in card and f"missed {analysis['errors']['missed']['overall']}" in card
    assert "110 documents" in card and "CC0-1.0" in card


def test_no_licence_allows_more_than_those_of_corpus_and_encoder() -> None:
    bound, free, unknown = {"name": "a", "license": RESEARCH}, {"name": "b", "license": "Apache-2.0"}, {"name": "c"}
    assert find_license("auto", bound, free) == find_license(RESEARCH, bound, free) == RESEARCH
    assert find_license("auto", free, free) == "Apache-2.0" and find_license("MIT", free, free) == "MIT"
    assert find_license("auto", unknown, free) == "see the licences of c"
    assert find_license("auto", free, free, unknown) == "see the licences of c"
    with pytest.raises(StepError, match="contradicts that of a: research only"):
        find_license("Apache-2.0", bound, free)


@pytest.mark.parametrize("name", ["my_ner", "ner2", "english_ner"])
def test_names_and_versions_that_stay_as_they_are_are_taken(name: str) -> None:
    for version in ("1.0.0", "1.0", "2.0a1", "1.0+mira.1"):
        check_name(name, version)


@pytest.mark.parametrize("name", ["en_my_ner", "My_NER", "my__ner", "ner_", "2ner", "my-ner", ""])
def test_a_name_that_the_wheel_would_not_have_is_refused(name: str) -> None:
    with pytest.raises(StepError, match="cannot have the name"):
        check_name(name, "1.0.0")


@pytest.mark.parametrize(
    ("version", "normal"), [("1.0.0-rc1", "1.0.0rc1"), ("01.0", "1.0"), ("v1.0", "1.0"), ("new", "1.0.0")]
)
def test_a_version_that_the_wheel_would_not_have_is_refused(version: str, normal: str) -> None:
    with pytest.raises(StepError, match="cannot have the version") as error:
        check_name("mine", version)
    assert error.value.remedy.endswith(f" {normal}")


def test_a_bar_in_a_label_breaks_no_table() -> None:
    assert _rows([("a|b", "1")]) == "| a\\|b | 1 |"


def test_nothing_in_the_wheel_knows_this_machine(project: Project, tmp_path: Path) -> None:
    data = unpack(project, tmp_path)
    config = Config().from_disk(data / "config.cfg", interpolate=False)
    assert config["paths"]["train"] is None and config["paths"]["dev"] is None
    for path in data.rglob("*"):
        if path.is_file():
            contents = path.read_bytes()
            for path_here in (project.folder, project.encoder, Path("assets/tiny"), Path("corpus/tiny")):
                assert str(path_here).encode() not in contents, f"{path} names {path_here}"


def test_the_pipelines_stay_as_they_were(changeable: Project) -> None:
    pipelines = [changeable.folder / path for path in ("training/tiny/model-best", "packages/tiny/assembled")]
    before = list(map(sha256, pipelines))
    old = changeable.folder / "packages/tiny/en_bert_ner-2.0.0/build/lib/en_bert_ner/old.txt"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier build", "utf8")
    done = changeable.run("package", version="2.0.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(map(sha256, pipelines)) == before
    with zipfile.ZipFile(changeable.folder / WHEEL.replace("1.0.0", "2.0.0")) as wheel:
        assert not any(name.endswith("old.txt") for name in wheel.namelist())
    for version in ("1.0.0", "2.0.0"):
        assert (changeable.folder / WHEEL.replace("1.0.0", version)).exists()


def test_the_threshold_that_dev_chose_is_told_or_that_there_is_none() -> None:
    told = calibration_summary({"min_precision": 0.97, "threshold": 0.871, "precision": 0.96, "recall": 0.7})
    assert "0.87" in told and "precision on test is 96.0 and recall 70.0" in told
    assert "no threshold" in calibration_summary(
        {"min_precision": 0.97, "threshold": 1.0, "precision": None, "recall": 0.0}
    )


def test_what_was_forgotten_is_told_and_refused(tmp_path: Path) -> None:
    evaluation = {"inputs": {"model": "abc"}}
    row = {"before": 0.91, "after": 0.9, "change": -0.01, "interval": [-0.02, 0.01], "entities": 50}
    dropped = row | {"after": 0.85, "interval": [-0.08, -0.03]}

    def check(model: str = "abc", **labels: dict[str, object]) -> None:
        write_json(tmp_path / "comparison.json", {"inputs": {"model": model}, "dev": {}, "test": labels})
        check_forgetting(tmp_path, evaluation)

    with pytest.raises(StepError, match=r"has no comparison\.json of this pipeline"):
        check_forgetting(tmp_path, evaluation)
    with pytest.raises(StepError, match=r"has no comparison\.json of this pipeline"):
        check("other", LOC=row)
    check(LOC=row, overall=dropped)
    with pytest.raises(
        StepError, match=r"PER had 91\.0 before and has 85\.0 now \(the change is -8\.0 to -3\.0\)"
    ) as error:
        check(LOC=row, PER=dropped)
    assert "--vars.forgetting accept" in error.value.remedy
    with pytest.raises(StepError, match="of PER test has no entity"):
        check(LOC=row, PER=row | {"entities": 0})
