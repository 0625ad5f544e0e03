from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from spacy.tokens import DocBin

from benchmarks.synthetic import NONE, OVERSAMPLED, add_texts, equal_steps, make_texts, summarize, synthetic
from common import chat as client
from common.chat import Chat
from common.corpora import read_docs
from common.errors import StepError
from common.formatting import tabulate_synthetic
from common.prompts import Method
from common.records import read_json, record_inputs
from common.training import prepare
from tests.common.test_synthesis import SETTINGS, TRAIN, create_docs, write_splits, write_story
from tests.conftest import ROOT, words
from tests.endpoint import Endpoint, serving

CONFIG = ROOT / "configs/bert.cfg"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "corpus", TRAIN)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(client, "wait", lambda _: None)
    with serving() as server:
        server.respond = write_story
        monkeypatch.setenv("BERT_NER_LLM_URL", server.url)
        yield server


def count(contender: str, draw: int, correct: int, documents: int = 25) -> dict[str, Any]:
    counts = {"LOC": [[correct, 4, 4]] * 3, "PER": [[2, 2, 2]] * 3}
    return {"contender": contender, "documents": documents, "draw": draw, "counts": counts}


def test_contenders_are_compared_with_the_same_draws_without_texts() -> None:
    runs = [count(NONE, 0, 2), count(NONE, 1, 2), count("recombine", 0, 3), count("recombine", 1, 1)]
    runs += [count("marked", 2, 4), count(OVERSAMPLED, 0, 2, 50), count(NONE, 0, 1, 50)]
    summary = summarize(reversed(runs))
    assert [(point["documents"], point["contender"], point["draws"]) for point in summary] == [
        (25, NONE, 2),
        (25, "recombine", 2),
        (50, NONE, 1),
        (50, OVERSAMPLED, 1),
    ]
    plain, recombined, _, more = summary
    assert plain["labels"]["LOC"]["more"] == 0 and plain["labels"]["LOC"]["interval"] == [0, 0]
    assert recombined["labels"]["LOC"]["draws"] == pytest.approx([0.25, -0.25])
    assert recombined["labels"]["LOC"]["more"] == pytest.approx(0) and recombined["labels"]["PER"]["f1"] == 1
    assert more["labels"]["LOC"]["more"] == pytest.approx(0.25)
    assert more["labels"]["all"]["f1"] == pytest.approx(2 * 12 / 36) and list(more["labels"]) == ["all", "LOC", "PER"]
    assert more["labels"]["LOC"]["interval"] == pytest.approx([0.25, 0.25]), "all documents are alike"
    _, rows = tabulate_synthetic({"summary": summary})
    assert rows[3][:4] == ["50", OVERSAMPLED, "1", "66.7 (+16.7: +16.7 to +16.7)"]
    assert rows[0][3] == "66.7", "what is compared with itself differs by nothing"


def test_repeated_documents_are_those_of_train(corpus: Path) -> None:
    before = [doc.text for doc in read_docs(corpus / "train.spacy")]
    result = add_texts(corpus, None, 0.8, 0)
    after = [doc.text for doc in read_docs(corpus / "train.spacy")]
    assert after[: len(before)] == before and {*after} == {*before} and 0.8 <= result["share"] < 0.9
    assert {after.count(text) for text in before} <= {4, 5, 6}, "each about as often"


def test_texts_of_a_method_are_added(corpus: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    for method in (Method.recombine, Method.around_names):
        found = make_texts(method, corpus, SETTINGS, lambda: Chat(endpoint.url), tmp_path / "logs", 4, 0)
        result = add_texts(corpus, found, 0.3, 0)
        assert 0 < result["share"] < 0.6 and result["kept"] and result["diversity"]["distinct_2"]
    endpoint.respond = lambda *_: (500, b"")
    with pytest.raises(StepError, match="HTTP 500"):
        make_texts(Method.marked, corpus, SETTINGS, lambda: Chat(endpoint.url), tmp_path / "logs", 4, 0)
    limited = SETTINGS.model_copy(update={"requests": 0})
    assert not make_texts(Method.marked, corpus, limited, lambda: Chat(endpoint.url), tmp_path / "logs", 4, 0).docs


def test_all_contenders_get_as_many_steps(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for split in ("train", "dev"):
        DocBin(docs=create_docs(TRAIN), store_user_data=True).to_disk(tmp_path / f"mixed/{split}.spacy")
    add_texts(tmp_path / "mixed", None, 0.95, 0)
    options: dict[str, Any] = equal_steps(CONFIG, corpus, tmp_path / "mixed", tiny_encoder, 0)
    steps = [
        prepare(CONFIG, folder, tiny_encoder, **more)[1]["training.max_steps"]
        for folder, more in ((corpus, {}), (tmp_path / "mixed", options))
    ]
    assert steps[1] == steps[0]


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(
    corpus: Path, endpoint: Endpoint, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yml"
    settings.write_text(yaml.safe_dump(SETTINGS.model_dump(mode="json")))
    where: dict[str, Any] = {"settings": settings, "store": tmp_path, "requirements": ROOT / "requirements-smollm2.txt"}

    def run(**options: Any) -> dict[str, Any]:
        synthetic(
            CONFIG,
            tmp_path / "models",
            corpus,
            tiny_encoder,
            tmp_path / "metrics",
            **where,
            sizes="2",
            draws=1,
            sentences=4,
            **options,
        )
        return read_json(tmp_path / "metrics/synthetic.json")

    first = run(only=f"{NONE},{OVERSAMPLED}")
    assert first["inputs"]["code"] == record_inputs(code=ROOT / "benchmarks/synthetic.py")["code"], "else never fresh"
    assert len(first["runs"]) == 2 and [point["contender"] for point in first["summary"]] == [NONE, OVERSAMPLED]
    second = run(only=f"{NONE},around-names")
    assert len(second["runs"]) == 3 and second["runs"].items() > first["runs"].items()
    assert second["runs"]["around-names, 2 documents, draw 0"]["usage"]["requests"]
    asked = len(endpoint.requests)
    capsys.readouterr()
    assert run(only=f"{NONE},around-names")["runs"] == second["runs"] and len(endpoint.requests) == asked
    assert words(capsys.readouterr().out).count("measured already") == 2
