from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spacy.tokens import DocBin
from spacy.training import Example

from benchmarks import continuing as benchmark
from benchmarks.continuing import ALONE, LOWER_CASE, NEW_LABEL, WAYS, choose_sizes, continuing, keep_labels, summarize
from common.corpora import read_docs
from common.errors import StepError
from common.forgetting import ALL
from common.records import read_json, write_json
from scripts.convert import convert
from tests.conftest import ROOT, python, write_corpus

CONFIG = ROOT / "configs/bert.cfg"


def test_sizes_are_numbers_that_the_corpus_has() -> None:
    assert choose_sizes("25, 10,25", 30) == [10, 25]
    for wrong in ("", "0", "ten", "31", "10,,20"):
        with pytest.raises(StepError, match="no numbers of documents up to 30"):
            choose_sizes(wrong, 30)


def test_other_labels_are_o_as_if_nobody_had_been_asked(tiny_corpus: Path) -> None:
    docs = read_docs(tiny_corpus / "train.spacy")
    kept = keep_labels(docs, ["PER"])
    assert [ent.label_ for doc in kept for ent in doc.ents] == ["PER"]
    assert all(token.ent_iob_ for doc in kept for token in doc), "nothing is missing"
    assert any(ent.label_ == "LOC" for doc in docs for ent in doc.ents), "the originals stay"


def test_draws_are_summarized_by_kind_size_and_way() -> None:
    def create_run(kind: str, draw: int, after: float, **more: Any) -> dict[str, Any]:
        compared = {ALL: {"before": 0.9, "after": after}}
        return {"kind": kind, "documents": 10, "draw": draw, "way": ALONE, "test": compared, **more}

    new = [create_run(NEW_LABEL, draw, 0.4 + 0.2 * draw, new=0.5) for draw in (0, 1)]
    lower = create_run(LOWER_CASE, 0, 0.8, before={ALL: {"before": 0.95, "after": 0.7}})
    first, second = summarize([*new, lower])
    assert first == {"kind": NEW_LABEL, "documents": 10, "way": ALONE, "draws": 2} | {
        "before": 0.9,
        "after": pytest.approx(0.5),
        "new": 0.5,
    }
    assert second["plain_before"] == 0.95 and second["plain_after"] == 0.7 and "new" not in second


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted corpus of ten documents, each with a PER, a LOC and a MISC."""
    folder = tmp_path_factory.mktemp("ten")
    names = ["Mira", "Aron", "Nils", "Ella", "Olga", "Ivo", "Sami", "Lea", "Tove", "Juho"]
    text = "".join(f"-DOCSTART- O\n\n{name} B-PER\nlikes O\nTurku B-LOC\nFinnish B-MISC\n. O\n\n" for name in names)
    convert(write_corpus(folder / "assets", text), folder / "corpus")
    return folder / "corpus"


def test_results_are_found_again_and_documents_were_never_seen_before(
    corpus: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Path | None, set[str], set[str], list[str]]] = []

    def train(
        provenance: dict[str, Any], config: Path, folder: Path, corpus: Path, encoder: Path, **options: Any
    ) -> Path:
        docs = read_docs(corpus / f"{options.get('train_on', 'train')}.spacy")
        assert all(doc.has_unknown_spaces for doc in docs), "or they would be tokenised anew"
        labels = {ent.label_ for doc in docs for ent in doc.ents}
        trained.append((options.get("start"), {doc.text for doc in docs}, labels, [doc.text for doc in docs]))
        model = tmp_path / f"model-{len(trained)}"
        model.mkdir()
        write_json(model / "provenance.json", {"seconds": 1})
        return model

    def teach(corpus: Path, start: Path, texts: list[Path], gpu_id: int) -> None:
        docs = [*read_docs(corpus / "train.spacy"), *(doc for path in texts for doc in read_docs(path))]
        DocBin(docs=docs).to_disk(corpus / "taught.spacy")

    def annotate(model: Path, path: Path) -> list[Example]:
        return [Example(doc, doc) for doc in read_docs(path)]

    monkeypatch.setattr(benchmark, "train_aside", train)
    monkeypatch.setattr(benchmark, "prepare", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(benchmark, "teach", teach)
    monkeypatch.setattr(benchmark, "annotate", annotate)

    def run(sizes: str) -> dict[str, Any]:
        trained.clear()
        continuing(CONFIG, tmp_path / "training", corpus, tiny_encoder, tmp_path / "tiny", sizes=sizes)
        for model in tmp_path.glob("model-*"):
            (model / "provenance.json").unlink()
            model.rmdir()
        return read_json(tmp_path / "tiny/continuing.json")

    record = run("2")
    (base, *ways, whole) = trained
    assert base[0] is None and base[2] == {"LOC", "PER"} and len(base[3]) == 5
    assert whole[0] is None and len(whole[3]) == 10
    assert [len(way[3]) for way in ways] == [2, 2, 5, 2, 2, 5]
    assert all(way[0] and not way[1] & base[1] for way in ways), "the base has seen none of them"
    assert ways[0][2] == {"MISC"} and all(text == text.lower() for way in ways[3:] for text in way[3])
    assert [row["way"] for row in record["summary"]] == [*WAYS, *WAYS] and record["whole"].keys() == {
        "LOC",
        "MISC",
        "PER",
    }
    assert all(np.isclose(row["after"], 1) for row in record["summary"])
    assert len(run("2")["runs"]) == 6 and len(trained) == 1, "all but the reference, which train finds again"
    assert len(run("2,3")["runs"]) == 12 and len(trained) == 8


def test_a_label_that_is_not_there_is_refused(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="has not EVENT and another label"):
        continuing(CONFIG, tmp_path / "training", corpus, tiny_encoder, tmp_path / "tiny", label="EVENT")


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on_where_it_was(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    paths = [CONFIG, tmp_path / "training", corpus, tiny_encoder, tmp_path / "tiny"]
    options = ["--sizes", "2", "--epochs", "1"]
    done = python("-m", "benchmarks.continuing", *map(str, paths), *options, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_json(tmp_path / "tiny/continuing.json")
    assert len(record["runs"]) == 6 and all(run["test"][ALL]["entities"] == 20 for run in record["runs"].values())
    assert len([*(tmp_path / "training").glob("model-best-*")]) == 8, "the base, six that go on, and the reference"
    again = python("-m", "benchmarks.continuing", *map(str, paths), *options, cwd=ROOT)
    assert again.stdout.count("measured already") == 6 and "Training in" not in again.stdout
