from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import spacy
from spacy.tokens import Doc, DocBin, Span

import bert_ner  # noqa: F401 (registers what the pipeline names)
from common.corpora import read_docs
from common.errors import StepError
from common.predictions import write_predictions
from common.records import read_json, record_inputs, sha256, write_json
from common.scoring import record_tags
from scripts.compare import compare
from tests.conftest import Project, copy_project, words, write_corpus


def test_a_pipeline_has_forgotten_nothing_of_itself_and_all_where_it_says_nothing(
    tmp_path: Path, trained: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, metrics = Path(shutil.copytree(tiny_corpus, tmp_path / "tiny-corpus")), tmp_path / "metrics"
    nlp = spacy.load(trained)
    for split in ("dev", "test"):  # whose gold is what the pipeline finds, so that there is something to lose
        docs = read_docs(corpus / f"{split}.spacy", nlp.vocab)
        for doc in docs:
            doc.set_ents([Span(doc, i, i + 1, "LOC") for i in range(len(doc))])
        DocBin(docs=docs).to_disk(corpus / f"{split}.spacy")

    def run(silent: bool) -> dict[str, dict[str, object]]:
        (metrics / "predictions").mkdir(parents=True, exist_ok=True)
        for split in ("dev", "test"):
            docs = [Doc(nlp.vocab, words=[t.text for t in doc]) for doc in read_docs(corpus / f"{split}.spacy")]
            with record_tags(nlp) as recorded:
                docs = list(nlp.pipe(docs))
            for doc in docs:
                if silent:
                    doc.set_ents([])
            write_predictions(metrics / "predictions", split, docs, recorded.posteriors, nlp.get_pipe("ner").tags)  # type: ignore[attr-defined]
        paths = {split: corpus / f"{split}.spacy" for split in ("dev", "test")}
        write_json(metrics / "predictions/provenance.json", {"inputs": record_inputs(model=trained, **paths)})
        compare(trained, trained, corpus, metrics)
        return read_json(metrics / "comparison.json")

    record = run(silent=False)
    assert set(record) == {"inputs", "dev", "test"} and {"start", "model", "code"} <= set(record["inputs"])
    assert set(record["test"]) == {"LOC", "PER", "overall"}
    for row in record["test"].values():
        assert row["change"] == 0 and row["interval"] == [0, 0]  # type: ignore[index]
    assert record["test"]["LOC"]["entities"] > 0 == record["test"]["PER"]["entities"]  # type: ignore[index]
    assert "package will ask for your word: PER" in words(capsys.readouterr().out)
    after = run(silent=True)["test"]["LOC"]
    assert after["after"] == 0 and after["before"] == record["test"]["LOC"]["before"]  # type: ignore[index]


def test_a_run_that_goes_on_from_nothing_has_nothing_to_compare(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(StepError, match="goes on from no pipeline"):
        compare(tmp_path / "start", trained, tmp_path, tmp_path / "metrics")


@pytest.mark.slow
def test_a_run_goes_on_from_a_pipeline_by_one_command(tmp_path: Path, trained: Path, tiny_encoder: Path) -> None:
    project = Project(copy_project(tmp_path / "project"), tiny_encoder)
    text = "The O\nTurku B-EVENT\nCup I-EVENT\nbegan O\nin O\nOslo O\n. O\n\n"
    source = write_corpus(tmp_path / "source", f"-DOCSTART- O\n\n{text}" * 3)
    settings = {"source": source, "corpus": "mine", "start": trained, "environment": "present", "epochs": 1}

    def run(command: str, name: str = "more", **more: object) -> CompletedProcess[str]:
        lines = "".join(f"{key}: {value}\n" for key, value in (settings | more).items())
        (project.folder / f"runs/{name}.yml").write_text(lines, encoding="utf8")
        return project.start("-m", "scripts.run", command, name)

    done = run("continue")
    assert done.returncode == 1 and "train_on: taught" in words(done.stdout), done.stdout + done.stderr
    settings["train_on"] = "taught"
    done = run("continue")
    assert done.returncode == 1 and "of LOC, PER test has no entity" in words(done.stdout), done.stdout + done.stderr
    settings["forgetting"] = "accept"
    done = run("continue")
    assert done.returncode == 0, done.stdout + done.stderr
    meta = read_json(project.folder / "packages/more/en_bert_ner-1.0.0/meta.json")
    assert meta["labels"]["ner"] == ["EVENT", "LOC", "PER"] and "tagger" in meta["pipeline"]
    assert "the pipeline that it goes on from" in meta["license"]
    model = project.folder / "training/more/model-best"
    assert read_json(model / "provenance.json")["inputs"]["start"] == sha256(trained)
    before = sha256(model)
    done = run("continue")
    assert done.returncode == 0 and "Skipping 'train': nothing changed" in done.stdout and sha256(model) == before
    wheel = next((project.folder / "packages/more").rglob("*.whl"))
    done = run("download", "again", start=wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(project.folder / "assets/again/encoder.json")["source"] == "pipeline"
