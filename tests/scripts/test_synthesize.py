from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import srsly
import yaml
from spacy.tokens import DocBin

from common import chat as client
from common import synthesis
from common.corpora import read_docs
from common.errors import StepError
from common.prompts import Method, Seeds, read_settings
from common.records import read_json, write_json
from common.sieve import split_answer
from common.training import prepare
from scripts.synthesize import synthesize
from tests.common.test_synthesis import FILE, HELD_OUT, SETTINGS, TRAIN, create_docs, write_splits, write_story
from tests.conftest import ROOT, Project, guard, words
from tests.endpoint import Endpoint, Respond, create_babbler, serving

BRIEF = {"parameters": SETTINGS.parameters | {"max_tokens": 12}}
REQUIREMENTS = ROOT / "requirements-smollm2.txt"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "mine", HELD_OUT)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(client, "wait", lambda _: None)
    with serving() as server:
        monkeypatch.setenv("BERT_NER_LLM_URL", server.url)
        monkeypatch.setenv("BERT_NER_LLM_KEY", "secret-key")
        server.respond = write_story
        yield server


def run(corpus: Path, **options: Any) -> dict[str, Any]:
    path = corpus.parent / "settings.yml"
    settings = SETTINGS.model_dump(mode="json") | options.pop("settings", {})
    path.write_text(yaml.safe_dump(settings), encoding="utf8")
    synthesize(corpus, path, corpus.parent / "store", REQUIREMENTS, **options)
    return read_json(corpus / "synthetic.json")


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def read_log(corpus: Path, method: Method = Method.around_names) -> list[dict[str, Any]]:
    """What was asked and answered, in the order of requests."""
    (log,) = corpus.glob(f"synthetic/{method}-*.jsonl")
    return sorted(srsly.read_jsonl(log), key=lambda entry: entry["request"])


def test_texts_are_written_with_their_provenance(
    corpus: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(corpus, sentences=5)
    docs = read_docs(corpus / "synthetic.spacy")
    assert len(docs) == record["kept"] >= 5 and record["tried"] >= record["kept"]
    assert record["tried"] == record["kept"] + sum(record["reasons"].values())
    assert all(doc.ents and str(doc.user_data["id"]).startswith("around-names-0-") for doc in docs)
    assert record["inputs"]["writer"] == "default at 127.0.0.1" and record["settings"]["requests"] is None
    assert len((corpus / "synthetic.jsonl").read_text("utf8").splitlines()) == record["tried"]
    assert {"diversity", "diversity_of_train", "minutes_per_1000", "answer_tokens_per_second"} < record.keys()
    printed = words(capsys.readouterr().out)
    assert "are sent to http://127.0.0.1" in printed and "minutes for 1,000 kept texts" in printed
    assert endpoint.requests[0][1] == "Bearer secret-key" and b"secret-key" not in everything(corpus)
    asked = len(endpoint.requests)
    assert run(corpus, sentences=5) == record and len(endpoint.requests) == asked, "it is all there"
    assert not (corpus / "mixed.spacy").exists()


def test_a_share_is_mixed_in_and_the_provenance_names_it(
    corpus: Path, endpoint: Endpoint, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "configs/bert.cfg"
    with pytest.raises(StepError, match=r"no mixed\.spacy"):
        prepare(config, corpus, tiny_encoder, train_on="mixed")
    run(corpus, sentences=6, share=0.4, train_on="mixed")
    mixed = read_docs(corpus / "mixed.spacy")
    added = sum(len(doc) for doc in mixed if "id" in doc.user_data)
    assert 0.3 < added / sum(map(len, mixed)) < 0.7 and "of which" in words(capsys.readouterr().out)
    inputs, overrides = prepare(config, corpus, tiny_encoder, train_on="mixed")
    assert inputs["mixed"]["method"] == "around-names" and overrides["paths.train"].endswith("mixed.spacy")
    assert inputs["mixed"]["share"] == pytest.approx(added / sum(map(len, mixed)))
    write_json(corpus / "copy.json", inputs["mixed"])
    assert read_json(corpus / "copy.json") == inputs["mixed"], "a model is found again by what was written"
    assert "mixed" not in prepare(config, corpus, tiny_encoder)[0]
    run(corpus, sentences=2, share=0.9, train_on="mixed")
    assert "too few texts for a share of 90.0%" in words(capsys.readouterr().out)
    DocBin(docs=create_docs(TRAIN[:2]), store_user_data=True).to_disk(corpus / "train.spacy")
    with pytest.raises(StepError, match="present train"):
        prepare(config, corpus, tiny_encoder, train_on="mixed")


@pytest.mark.parametrize(
    ("share", "train_on"), [(0.3, "train"), (0.3, "taught"), (0, "mixed"), (1, "mixed"), (-1, "mixed")]
)
def test_a_share_that_would_have_no_effect_is_refused(corpus: Path, share: float, train_on: str) -> None:
    with pytest.raises(StepError, match="synthetic_share"):
        run(corpus, share=share, train_on=train_on)


def test_no_model_is_needed_to_recombine(corpus: Path, endpoint: Endpoint) -> None:
    record = run(corpus, method=Method.recombine, sentences=3)
    assert record["kept"] == 3 and not endpoint.requests and not (corpus / "synthetic").exists()
    assert "minutes_per_1000" not in record
    assert run(corpus, method=Method.recombine, sentences=3, settings={"labels": {}})["kept"] == 3, "nobody is asked"
    with pytest.raises(StepError, match="no more sentences that differ enough") as error:
        run(corpus, method=Method.recombine, sentences=30)
    assert "goes on" not in error.value.remedy, "the same command would make the same again"


def test_a_judge_that_is_no_pipeline_is_named_before_anything_is_asked(corpus: Path, endpoint: Endpoint) -> None:
    with pytest.raises(StepError, match="nosuch is no pipeline"):
        run(corpus, judge="nosuch")
    assert not endpoint.requests


def test_what_was_made_before_a_failure_is_there(corpus: Path, endpoint: Endpoint) -> None:
    endpoint.respond = lambda body, number: write_story(body, number) if number < 6 else (500, b"")
    with pytest.raises(StepError, match=r"of 50 texts were made. .*HTTP 500") as error:
        run(corpus, sentences=50)
    made = len(read_docs(corpus / "synthetic.spacy"))
    assert made and "run the same command again" in error.value.remedy
    endpoint.respond = write_story
    with pytest.raises(StepError, match="limit of 20 for requests") as error:
        run(corpus, sentences=50, settings={"requests": 20})
    assert "goes on, once the limit is higher" in error.value.remedy
    assert len(read_docs(corpus / "synthetic.spacy")) > made and len(endpoint.requests) <= 6 + 2 + 16


def test_if_nothing_is_kept_the_reasons_are_said(corpus: Path, endpoint: Endpoint) -> None:
    endpoint.respond = lambda *_: "I cannot do that."
    with pytest.raises(StepError, match="limit of 4") as error:
        run(corpus, settings={"requests": 4})
    assert "4 times: a name is missing" in error.value.remedy and not (corpus / "synthetic.spacy").exists()


def test_a_key_that_is_refused_is_named(corpus: Path, endpoint: Endpoint) -> None:
    endpoint.respond = lambda *_: (401, b"")
    with pytest.raises(StepError, match=r"No text was kept\. .*HTTP 401") as error:
        run(corpus)
    assert "BERT_NER_LLM_KEY" in error.value.remedy


@pytest.fixture(scope="module")
def babbler() -> Respond:
    return create_babbler([sentence.text for sentence in Seeds(create_docs(TRAIN)).sentences])


@pytest.mark.parametrize("method", [method for method in Method if method != Method.recombine])
def test_of_a_model_that_was_never_trained_nothing_is_kept(
    corpus: Path, endpoint: Endpoint, babbler: Respond, method: Method
) -> None:
    endpoint.respond = babbler
    with pytest.raises(StepError, match=r"No text was kept\. The limit of 6 for requests") as error:
        run(corpus, method=method, settings={"requests": 6} | BRIEF)
    entries = read_log(corpus, method)
    asked = [(body["messages"][-1]["content"], body["seed"]) for _, _, body in endpoint.requests]
    assert sorted((entry["prompt"], entry["parameters"]["seed"]) for entry in entries) == sorted(asked)
    assert len(asked) == 6 and len({entry["answer"] for entry in entries}) > 1, "it does write"
    assert all(entry["prompt_tokens"] and 0 < entry["answer_tokens"] <= 12 for entry in entries if entry["answer"])
    texts = sum(len(split_answer(entry["answer"])) or 1 for entry in entries)
    assert sum(map(int, re.findall(r"(\d+) times: ", error.value.remedy))) == texts, "each has its reason"
    assert "once the limit is higher" in error.value.remedy and "larger model" in error.value.remedy
    assert not list(corpus.glob("synthetic.*"))


def test_of_a_model_that_loses_the_thread_what_came_before_is_kept(
    corpus: Path, endpoint: Endpoint, babbler: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four good sentences, and the rest by a model that was never trained; and all of it again, to the same texts."""
    monkeypatch.setattr(synthesis, "IN_VAIN", 4)
    endpoint.respond = lambda body, number: (write_story if body["seed"] < 4 else babbler)(body, number)
    texts = []
    for folder in (write_splits(corpus.parent / "other", HELD_OUT), corpus):
        with pytest.raises(StepError, match=r"Only \d of 50 texts .* Of the last \d answers .* nothing") as error:
            run(folder, sentences=50, settings=BRIEF)
        assert "larger model" in error.value.remedy and f"{folder.name}/synthetic/around-names-" in error.value.remedy
        texts.append((folder / "synthetic.jsonl").read_bytes())
    assert texts[0] == texts[1]
    docs, entries = read_docs(corpus / "synthetic.spacy"), read_log(corpus)
    assert docs and {doc.text for doc in docs} <= {entry["answer"] for entry in entries[:4]}
    record = read_json(corpus / "synthetic.json")
    assert texts[0].count(b"\n") == record["tried"] == len(docs) + sum(record["reasons"].values())
    assert len(entries) <= 4 + 4 + 2 and record["usage"]["requests"] == len(entries) == len(endpoint.requests) / 2
    assert record["usage"]["answer_tokens"] == sum(entry["answer_tokens"] for entry in entries) > 0


@pytest.mark.slow
def test_the_small_model_is_asked_for_a_hundred_sentences(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: fetched, served, asked through the interface. Most of what it writes is thrown away, and rightly."""
    pytest.importorskip("xllamacpp")
    monkeypatch.delenv("BERT_NER_LLM_URL", raising=False)
    corpus = Path(shutil.copytree(project.folder / "corpus/tiny", tmp_path / "mine"))
    settings = read_settings(FILE).model_dump(mode="json") | {"requests": 100, "timeout": guard(60)}
    with pytest.raises(StepError, match=r"texts were made\. The limit of 100 for requests"):
        run(corpus, sentences=100, settings=settings)
    record = read_json(corpus / "synthetic.json")
    assert record["usage"]["requests"] == 100 and record["kept"] >= 1 and record["usage"]["answer_tokens"] > 1000
    for doc in read_docs(corpus / "synthetic.spacy"):
        assert doc.ents and all(doc.text.count(ent.text) >= 1 for ent in doc.ents)
