from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, DocBin

from benchmarks import corrupt as benchmark
from benchmarks.corrupt import KINDS, Corruption, compare, corrupt, spoil
from common.corpora import read_docs
from common.errors import StepError
from common.formatting import tabulate_corruption
from common.records import read_json, sha256, write_json
from scripts.convert import convert
from tests.conftest import ROOT, python, words, write_corpus

CONFIG = ROOT / "configs/bert.cfg"
VOCAB = spacy.blank("en").vocab
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]


def create_docs(number: int) -> list[Doc]:
    """Documents of two sentences, each with a name of two words and one of one word."""
    starts: list[bool | int | None] = [place % len(TAGS) == 0 for place in range(2 * len(TAGS))]
    names = ["Mira", "Solberg", "left", "rainy", "Turku", "."] * 2
    return [Doc(VOCAB, names, ents=TAGS * 2, sent_starts=starts) for _ in range(number)]


def entities(doc: Doc) -> set[tuple[int, int, str]]:
    return {(ent.start, ent.end, ent.label_) for ent in doc.ents}


@pytest.mark.parametrize(("seed", "number"), enumerate(range(10, 30, 2)))
def test_equally_many_labels_are_corrupted_in_each_way(seed: int, number: int) -> None:
    before, docs = create_docs(number), create_docs(number)
    done = spoil(docs, 0.1, np.random.default_rng(seed))
    counts = Counter(one.kind for one in done)
    wanted = round(0.1 * 4 * number)
    assert counts.total() == wanted and max(counts.values()) - min(counts[kind] for kind in KINDS) <= 1
    for place, (old, new) in enumerate(zip(before, docs, strict=True)):
        changes = [one for one in done if one.document == place]
        assert entities(old) - entities(new) == {one.before for one in changes if one.before}
        assert entities(new) - entities(old) == {one.after for one in changes if one.after}
        assert [token.is_sent_start for token in old] == [token.is_sent_start for token in new]
    for kind, _, left, come in done:
        if kind == "type":
            assert left and come and left[:2] == come[:2] and left[2] != come[2]
        elif kind == "boundary":
            assert left and come and left[2] == come[2] and abs(left[0] - come[0]) + abs(left[1] - come[1]) == 1
        else:
            assert (left is None) == (kind == "spurious") and (come is None) == (kind == "missed")
        if come:
            assert come[0] // len(TAGS) == (come[1] - 1) // len(TAGS), "within a sentence"


def test_the_same_seed_corrupts_the_same() -> None:
    first, second, third = (spoil(create_docs(20), 0.2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != third


def test_with_one_label_no_label_becomes_another_one() -> None:
    docs = [Doc(VOCAB, ["Turku", "and", "rain"], ents=["B-LOC", "O", "O"]) for _ in range(20)]
    assert {one.kind for one in spoil(docs, 0.5, np.random.default_rng(0))} == {"boundary", "missed", "spurious"}


def find(
    kind: str, document: int, annotated: tuple[int, int] | None, predicted: tuple[int, int] | None
) -> dict[str, Any]:
    sides = {"annotated": annotated, "predicted": predicted}
    ends = {side: place and {"start": place[0], "end": place[1], "label": "X"} for side, place in sides.items()}
    return {"document": str(document), "kind": kind, "score": 0.9, **ends}


def test_findings_are_compared_with_what_was_corrupted() -> None:
    docs = create_docs(3)
    corruptions = [
        Corruption("type", 0, (0, 2, "PER"), (0, 2, "LOC")),
        Corruption("missed", 1, (4, 5, "LOC"), None),
        Corruption("spurious", 2, None, (3, 4, "LOC")),
        Corruption("boundary", 2, (6, 8, "PER"), (7, 8, "PER")),
    ]
    mira, rainy, turku = (0, 12), (18, 23), (24, 29)
    findings = [
        find("boundary", 0, mira, (0, 4)),
        find("boundary", 0, mira, (5, 12)),
        find("missed", 1, None, (18, 29)),
        find("spurious", 2, turku, None),
        find("spurious", 2, rainy, None),
    ]
    result = compare(docs, corruptions, findings)
    assert result["first"] == 4, "as many as are corrupted"
    assert result["precision"] == 0.5, "what is found twice counts once, and an entity that is right does not count"
    kinds = result["kinds"]
    assert kinds["type"] == {"corrupted": 1, "found": 1, "findings": 0, "precision": None}
    assert kinds["boundary"] == {"corrupted": 1, "found": 0, "findings": 2, "precision": 0.5}
    assert kinds["missed"] == {"corrupted": 1, "found": 1, "findings": 1, "precision": 1}
    assert kinds["spurious"] == {"corrupted": 1, "found": 0, "findings": 1, "precision": 0}
    assert kinds["all"] == {"corrupted": 4, "found": 2, "findings": 4, "precision": 0.5}
    assert compare(docs, corruptions, [])["precision"] is None
    header, rows = tabulate_corruption(result)
    assert rows[-1] == ["all", "4", "50.0", "4", "50.0"] and rows[0][-1] == "–" and len(header) == 5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run whose corpus has ten documents, and whose model says that it was trained on them."""
    corpus, model = tmp_path / "corpus", tmp_path / "training/model-best"
    corpus.mkdir()
    model.mkdir(parents=True)
    for split in ("train", "dev"):
        DocBin(docs=create_docs(10), store_user_data=True).to_disk(corpus / f"{split}.spacy")
    write_json(model / "provenance.json", {"inputs": {"corpus": {"train": sha256(corpus / "train.spacy")}}})
    return tmp_path


def test_what_is_corrupted_is_audited_and_dev_is_listed_as_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audited: list[list[Doc]] = []

    def find_errors(docs: list[Doc], *_: Any) -> list[dict[str, Any]]:
        """All that differs from what was there, as a perfect audit would."""
        audited.append(docs)
        findings = []
        for number, (doc, right) in enumerate(zip(docs, create_docs(10), strict=True)):
            for start, end, _label in entities(doc) - entities(right):
                span = doc[start:end]
                findings.append(find("spurious", number, (span.start_char, span.end_char), None))
            for start, end, _label in entities(right) - entities(doc):
                span = doc[start:end]
                if not any(token.ent_type_ for token in span):
                    findings.append(find("missed", number, None, (span.start_char, span.end_char)))
        return findings

    def predict(model: Path, docs: list[Doc]) -> tuple[list[np.ndarray], list[str]]:
        return [np.eye(5, dtype="float32")[[4 * (token.text == "left") for token in doc]] for doc in docs], ["LOC"]

    monkeypatch.setattr(benchmark, "SHARE", 0.2)
    monkeypatch.setattr(benchmark, "find_errors", find_errors)
    monkeypatch.setattr(benchmark, "predict", predict)
    corrupt(CONFIG, run / "training", run / "corpus", run / "corpus", run / "tiny")
    record = read_json(run / "tiny/corrupt.json")
    assert record["first"] == 8 and record["precision"] == 1
    assert {kind: row["found"] for kind, row in record["kinds"].items()} == dict.fromkeys(KINDS, 2) | {"all": 8}
    assert record["dev"] == {"listed": 40, "kinds": {"missed": 20, "spurious": 20}}
    listed = read_json(run / "tiny/corrupt-examples.json")["dev"]
    assert len(listed) == 40 and {"document", "annotated", "predicted", "context"} <= set(listed[0])
    assert set(record["inputs"]) == {"config", "code", "audit", "pipeline", "model", "encoder", "train", "dev"}
    assert "Turku" not in (run / "tiny/corrupt.json").read_text("utf8"), "which git keeps"
    assert all(entities(doc) == entities(create_docs(1)[0]) for doc in read_docs(run / "corpus/train.spacy"))


def test_a_model_of_another_corpus_cannot_judge_dev(run: Path) -> None:
    DocBin(docs=create_docs(3)).to_disk(run / "corpus/train.spacy")
    with pytest.raises(StepError, match="was not trained on"):
        corrupt(CONFIG, run / "training", run / "corpus", run / "corpus", run / "tiny")


def test_a_corpus_with_too_few_labels_is_refused(run: Path) -> None:
    DocBin(docs=create_docs(2)).to_disk(run / "corpus/train.spacy")
    model = run / "training/model-best/provenance.json"
    write_json(model, {"inputs": {"corpus": {"train": sha256(run / "corpus/train.spacy")}}})
    with pytest.raises(StepError, match="too few labels"):
        corrupt(CONFIG, run / "training", run / "corpus", run / "corpus", run / "tiny")


@pytest.mark.slow
def test_audit_finds_errors_by_real_folds(tiny_encoder: Path, tmp_path: Path) -> None:
    sentence = "Mira NNP B-NP B-PER\nSolberg NNP I-NP I-PER\nleft VBD B-VP O\nTurku NNP B-NP B-LOC\n{} CD I-NP O\n"
    text = "".join(f"-DOCSTART- -X- -X- O\n\n{sentence.format(i)}\n" for i in range(60))
    convert(write_corpus(tmp_path / "assets/mine", text), tmp_path / "corpus/mine")
    places = [CONFIG, tmp_path / "training/mine", tmp_path / "corpus/mine", tiny_encoder]
    train = [CONFIG, places[1], "--corpus", places[2], "--encoder", tiny_encoder, "--epochs", "1"]
    done = python("-m", "scripts.train", *map(str, train), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    options = ["--folds", "2", "--epochs", "8"]
    for _ in range(2):
        done = python("-m", "benchmarks.corrupt", *map(str, places), str(tmp_path / "tiny"), *options, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Training in" not in words(done.stdout), "the folds were trained the first time"
    record = read_json(tmp_path / "tiny/corrupt.json")
    assert record["first"] == 6 and record["kinds"]["all"]["corrupted"] == 6
