from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spacy.tokens import Doc

from common.annotations import Annotation, Change, Document, Span
from common.errors import StepError
from common.records import read_json
from common.reviews import judge, read_label_errors
from common.store import STORE, Store
from scripts import audit as step
from scripts.audit import audit, read_labelled
from scripts.gather import gather
from scripts.import_annotations import import_annotations
from tests.conftest import ROOT, words, write_corpus

CONFIG = ROOT / "configs" / "bert.cfg"
TEXT = "Mira left\n\nTurku {}."
LABELS = ["LOC", "PER"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six documents with a final annotation, in the last of which Turku is not marked, and one without."""
    folder = tmp_path / "mine"
    folder.mkdir()
    store = Store(folder / STORE)
    for i in range(7):
        store.add_documents([Document(id=f"d{i}", text=TEXT.format(i), meta={"group": i // 2})])
        spans = [Span(start=0, end=4, label="PER"), Span(start=11, end=16, label="LOC")][: 2 - (i == 5)]
        status = "draft" if i == 6 else "annotated"
        store.save(
            Annotation.model_validate({"document": f"d{i}", "annotator": "ada", "status": status, "spans": spans})
        )
    return store


class Pipelines:
    """Stands for trainings: pipelines that know the names, and what they were trained on and asked about."""

    def __init__(self) -> None:
        self.trained: list[set[str]] = []
        self.asked: list[set[str]] = []

    def train_on(self, documents: list[step.Labelled], *rest: Any) -> Path:
        self.trained.append({one.doc.text for one in documents})
        return Path("model")

    def predict(self, model: Path, docs: list[Doc]) -> tuple[list[np.ndarray], list[str]]:
        self.asked.append({doc.text for doc in docs})
        units = {"Turku": 4, "Mira": 8}
        return [np.eye(9, dtype="float32")[[units.get(token.text, 0) for token in doc]] for doc in docs], LABELS


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> Pipelines:
    pipelines = Pipelines()
    monkeypatch.setattr(step, "train_on", pipelines.train_on)
    monkeypatch.setattr(step, "predict", pipelines.predict)
    return pipelines


def test_each_document_is_judged_by_a_pipeline_that_has_not_seen_it(
    store: Store, pipelines: Pipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.path.parent
    before = store.path.read_bytes()
    audit(CONFIG, folder, tmp_path / "corpus", tmp_path, tmp_path, folds=3)
    everything = {TEXT.format(i) for i in range(6)}
    assert sorted(text for texts in pipelines.asked for text in texts) == sorted(everything)
    for trained, asked in zip(pipelines.trained, pipelines.asked, strict=True):
        assert trained == everything - asked
        assert {text[-2] for text in asked} in ({"0", "1"}, {"2", "3"}, {"4", "5"}), "near-duplicates stay together"
    record = read_json(folder / "label-errors.json")
    assert record["documents"] == 6 and record["folds"] == 3 and record["not_judged"] == {}
    assert record["f1"] == pytest.approx(22 / 23), "of twelve names found eleven are marked"
    assert record["interval"][0] < record["f1"] < record["interval"][1] == 1
    (finding,) = record["findings"]
    place = {"start": 11, "end": 16, "label": "LOC", "text": "Turku"}
    assert finding["predicted"] == place and TEXT.format(5)[11:16] == "Turku"
    assert (finding["document"], finding["kind"], finding["annotated"]) == ("d5", "missed", None)
    assert "predicted 'Turku' LOC" in words(capsys.readouterr().out)
    assert store.path.read_bytes() == before, "only people change annotations"


def test_a_label_that_somebody_has_kept_is_not_found_again(
    store: Store, pipelines: Pipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.path.parent
    line = Change(
        document="d5",
        person="bo",
        finding="of another audit",
        kind="missed",
        decision="kept",
        start=11,
        end=16,
        before=[],
        after=[],
    )
    store.log(line, {"ada": 1})
    audit(CONFIG, folder, tmp_path / "corpus", tmp_path, tmp_path, folds=3)
    assert read_json(folder / "label-errors.json")["findings"] == []
    assert "decided that the label is right: 1" in words(capsys.readouterr().out)


def test_a_corpus_without_a_store_is_judged_too(tiny_corpus: Path, pipelines: Pipelines, tmp_path: Path) -> None:
    audit(CONFIG, tmp_path / "mine", tiny_corpus, tmp_path, tmp_path, folds=2)
    findings = read_json(tmp_path / "mine/label-errors.json")["findings"]
    assert Counter((one["document"], one["kind"]) for one in findings) == {
        ("0", "boundary"): 1,
        ("0", "spurious"): 1,
        ("1", "spurious"): 3,
    }
    (boundary,) = (one for one in findings if one["kind"] == "boundary")
    assert boundary["annotated"]["text"] == "Mira Solberg" and boundary["predicted"]["text"] == "Mira"


def test_a_corpus_is_brought_into_a_store_and_judged_there(
    tiny_corpus: Path, pipelines: Pipelines, tmp_path: Path
) -> None:
    folder, train = tmp_path / "mine", tiny_corpus / "train.spacy"
    before, _ = read_labelled(folder, tiny_corpus)
    gather(folder, str(train), test_share=0)
    import_annotations(folder, [train], "docbin", annotator="corpus")
    after, source = read_labelled(folder, tiny_corpus)
    assert source == folder / STORE
    assert [entities(one.doc) for one in after] == [entities(one.doc) for one in before]
    audit(CONFIG, folder, tiny_corpus, tmp_path, tmp_path, folds=2)
    _, findings = read_label_errors(folder)
    tasks = {task.document.id: task for task in Store(folder / STORE).tasks()}
    assert findings and {judge(one, tasks[one.document], []).state for one in findings} == {"open"}


def entities(doc: Doc) -> list[tuple[str, str]]:
    return [(ent.text, ent.label_) for ent in doc.ents]


def test_the_findings_of_all_folds_are_ranked_together(
    store: Store, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(_: Path, docs: list[Doc]) -> tuple[list[np.ndarray], list[str]]:
        """The later a document, the surer it is that Mira is no name; to four digits it is as sure of all."""
        arrays = [np.eye(9)[[4 * (token.text == "Turku") for token in doc]] for doc in docs]
        for doc, array in zip(docs, arrays, strict=True):
            array[0, 8] = 10.0 ** -(5 + int(doc.text[-2]))
            array[0, 0] = 1 - array[0, 8]
        return arrays, LABELS

    monkeypatch.setattr(step, "predict", predict)
    audit(CONFIG, store.path.parent, tmp_path / "corpus", tmp_path, tmp_path, folds=3)
    findings = read_json(store.path.parent / "label-errors.json")["findings"]
    mira = [one["document"] for one in findings if one["annotated"] and one["annotated"]["text"] == "Mira"]
    assert mira == ["d5", "d4", "d3", "d2", "d1", "d0"]


def test_labels_of_one_fold_are_counted_and_not_judged(
    tiny_corpus: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "predict", lambda _, docs: ([np.eye(5)[[0] * len(doc)] for doc in docs], ["LOC"]))
    audit(CONFIG, tmp_path / "mine", tiny_corpus, tmp_path, tmp_path, folds=2)
    assert read_json(tmp_path / "mine/label-errors.json")["not_judged"] == {"PER": 1}


def test_nothing_to_judge_and_too_few_documents_are_refused(
    store: Store, pipelines: Pipelines, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(StepError, match="neither"):
        read_labelled(tmp_path / "none", tmp_path)
    with pytest.raises(StepError, match="too few documents for 4 folds"):
        audit(CONFIG, store.path.parent, tiny_corpus, tmp_path, tmp_path, folds=4)
    (tmp_path / "empty").mkdir()
    Store(tmp_path / "empty" / STORE)
    with pytest.raises(StepError, match="no document in which something is marked"):
        read_labelled(tmp_path / "empty", tiny_corpus)


@pytest.mark.slow
def test_folds_are_trained_once(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real trainings, of a corpus of documents that are alike."""
    from scripts.convert import convert

    sentence = "Mira NNP B-NP B-PER\nleft VBD B-VP O\nTurku NNP B-NP B-LOC\n{} CD I-NP O\n"
    text = "".join(f"-DOCSTART- -X- -X- O\n\n{sentence.format(i)}\n" for i in range(12))
    convert(write_corpus(tmp_path / "assets/mine", text), tmp_path / "corpus/mine")
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    monkeypatch.chdir(ROOT)
    places = (tmp_path / "annotate/mine", tmp_path / "corpus/mine", tmp_path / "encoder", tmp_path / "training/mine")
    for _ in range(2):
        audit(CONFIG, *places, folds=2, epochs="1")
        record = read_json(tmp_path / "annotate/mine/label-errors.json")
    assert record["documents"] == 12
    assert len(list((tmp_path / "training/mine").glob("model-best-*"))) == 2
    assert not (tmp_path / "training/mine/model-best").exists()
    assert capfd.readouterr().out.count("Training in") == 2
