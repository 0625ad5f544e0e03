from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from scripts import application
from scripts.application import (
    MAX_DOCUMENTS,
    Analysis,
    Annotator,
    Answer,
    ask,
    check_size,
    draft,
    export_analyses,
    find_newest,
    find_pipelines,
    highlight,
    load_pipeline,
    predict_masked,
    read_upload,
    split_text,
)
from scripts.convert import read_conll
from scripts.files import MAX_CHARACTERS
from scripts.steps import StepError
from tests.conftest import TEXT, Project
from tests.test_files import write_docx, write_pdf


@pytest.fixture(scope="module")
def annotator(ruled: Path) -> Annotator:
    return load_pipeline(str(ruled / "training/ruled/model-best"))


@pytest.fixture(scope="module")
def analyses(annotator: Annotator) -> list[Analysis]:
    return annotator.annotate([TEXT, "Mira Solberg left Turku ."], tokens=True)


# Pipelines


def test_packaged_trained_and_installed_pipelines_are_found_and_load(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "get_installed_models", lambda: ["en_other"])
    found = find_pipelines(project.folder)
    first, *_, last = found
    assert first.startswith("packages/tiny/en_bert_ner-1.0.0/") and last == "en_other"
    assert "training/tiny/model-best" in found
    for place in list(found.values())[:2]:
        analysis = load_pipeline(place).annotate(["Mira left Turku."], tokens=True)[0]
        assert [token.text for token in analysis.tokens] == ["Mira", "left", "Turku", "."]
        assert analysis.tokens[0].wordpieces == ["m", "##i", "##r", "##a"]
        assert all(0 < (ent.score or 0) <= 1 for ent in analysis.entities)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="en_nothing"):
        load_pipeline("en_nothing")
    (tmp_path / "config.cfg").write_text("[nlp]")
    with pytest.raises(StepError, match="cannot be loaded"):
        load_pipeline(str(tmp_path))


def make_pipeline(folder: Path, made: int) -> None:
    """The file of a pipeline that tells where and when one was made."""
    folder.mkdir(parents=True)
    (folder / "config.cfg").touch()
    os.utime(folder / "config.cfg", (made, made))


def test_without_a_name_the_newest_pipeline_meant_for_use_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "get_installed_models", lambda: [])
    make_pipeline(tmp_path / "training/some/model-best-0a1b2c3d", 9)
    with pytest.raises(StepError, match="no pipeline yet"):
        find_newest(tmp_path)
    monkeypatch.setattr(application, "get_installed_models", lambda: ["en_other"])
    assert find_newest(tmp_path) == "en_other"
    for name, made in (("some", 3), ("other", 4)):
        make_pipeline(tmp_path / f"training/{name}/model-best", made)
        assert find_newest(tmp_path) == str(tmp_path / f"training/{name}/model-best")
    for name, made in (("some", 2), ("other", 1)):
        make_pipeline(tmp_path / f"packages/{name}/en_x-1.0.0/en_x/en_x-1.0.0", made)
        assert find_newest(tmp_path) == str(tmp_path / "packages/some/en_x-1.0.0/en_x/en_x-1.0.0")


@pytest.mark.parametrize("damage", ["no cfg", "other cfg", "pickle", "no vocab", "no weights", "meta"])
def test_a_damaged_pipeline_is_named(damage: str, project: Project, tmp_path: Path) -> None:
    model = shutil.copytree(project.folder / "training/tiny/model-best", tmp_path / "model")
    if damage == "no cfg":
        (model / "ner/cfg").unlink()
    elif damage == "other cfg":
        (model / "ner/cfg").write_text(json.dumps({"labels": ["PERSON"]}))
    elif damage == "pickle":
        weights = max((file for file in model.rglob("model") if file.is_file()), key=lambda file: file.stat().st_size)
        weights.write_bytes(pickle.dumps(Path))
    elif damage == "no vocab":
        shutil.rmtree(model / "vocab")
    elif damage == "no weights":
        shutil.rmtree(model / "transformer")
    else:
        (model / "meta.json").write_text("{")
    with pytest.raises(StepError, match="model cannot be loaded") as problem:
        load_pipeline(str(model))
    assert "damaged" in problem.value.remedy


# Analyses


def test_an_analysis_has_everything_with_offsets(analyses: list[Analysis]) -> None:
    first = analyses[0]
    for kind in (first.entities, first.concepts, first.sentences, first.tokens):
        assert kind and all(TEXT[span.start : span.end] == span.text for span in kind)
    assert [(ent.text, ent.label) for ent in first.entities] == [
        ("Mira Solberg", "PER"),
        ("Turku", "LOC"),
        ("Norrvik Steel", "ORG"),
        ("Norrvik Steel", "ORG"),
    ]
    told = [
        [None if place is None else first.concepts[place].text for place in (t.actor, t.mechanism, t.object)]
        for t in first.triples
    ]
    assert ["Mira Solberg", "launched", "party"] in told and ["party", None, "small"] in told
    assert ["Norrvik Steel", "called", "party"] in told
    negated = [concept for concept in first.concepts if concept.negated]
    assert [concept.text for concept in negated] == ["attack"]
    assert next(c for c in first.concepts if c.text == "Turku").entity == "LOC"


@given(st.text(max_size=300), st.integers(1, 40))
def test_parts_of_a_text_are_the_text(text: str, size: int) -> None:
    parts = list(split_text(text, size))
    assert "".join(part for _, part in parts) == text
    assert all(0 < len(part) <= size and text[start:].startswith(part) for start, part in parts)


def test_a_text_is_cut_between_paragraphs_if_it_can() -> None:
    text = "one two\n\nthree four. five six"
    assert [part for _, part in split_text(text, 12)] == ["one two\n\n", "three four. ", "five six"]


def test_a_long_text_gives_what_its_parts_give(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over nlp.max_length, 1,000,000 characters unless it is lowered, spaCy raises E088."""
    monkeypatch.setattr(annotator.nlp, "max_length", 100_000)
    times = 210_000 // len(TEXT) + 1
    seen: list[int] = []
    long = (TEXT + "\n\n") * times
    analysis = annotator.annotate([long], advance=lambda done, total: seen.append(done))[0]
    assert len(long) > 200_000 and seen == sorted(seen) and len(seen) > 4 and seen[-1] == len(long)
    assert len(analysis.entities) == 4 * times
    assert all(long[ent.start : ent.end] == ent.text for ent in analysis.entities)
    assert max(triple.actor or 0 for triple in analysis.triples) > len(analysis.concepts) - 20


def test_the_vocabulary_does_not_grow(annotator: Annotator) -> None:
    annotator.annotate(["word"])
    vocab = annotator.nlp.vocab
    before = len(list(vocab)), len(vocab.strings)
    for number in range(200):
        annotator.annotate([f"Mira Solberg met person{number} in place{number} ."], tokens=True)
    assert (len(list(vocab)), len(vocab.strings)) == before


def test_threads_take_turns(annotator: Annotator) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(annotator.annotate([TEXT])[0].entities))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 8


@pytest.mark.parametrize("text", ["", " \n ", "\U0001f600 Turku"])
def test_texts_of_any_kind_pass(annotator: Annotator, text: str) -> None:
    analysis = annotator.annotate([text], tokens=True)[0]
    assert [text[ent.start : ent.end] for ent in analysis.entities] == ["Turku"] * ("Turku" in text)


def test_a_pipeline_of_another_make_works_too() -> None:
    nlp = spacy.blank("xx")
    nlp.add_pipe("span_ruler", config={"spans_key": "concepts"}).add_patterns([{"label": "actor", "pattern": "Mira"}])  # type: ignore[attr-defined]
    analysis = Annotator(nlp).annotate(["Mira left"], tokens=True)[0]
    assert [token.text for token in analysis.tokens] == ["Mira", "left"] and len(analysis.sentences) == 1


@pytest.mark.parametrize("texts", [["a"] * (MAX_DOCUMENTS + 1), ["a" * (MAX_CHARACTERS + 1)]])
def test_too_much_is_refused(texts: list[str]) -> None:
    with pytest.raises(StepError, match="too much"):
        check_size(texts)


# Files


@pytest.mark.parametrize(
    ("name", "data", "documents"),
    [
        ("a.TXT", "\ufeffMira left Turku".encode(), [("a.TXT", "Mira left Turku")]),
        ("a.csv", b"text\nMira left Turku", [("a.csv, row 1", "Mira left Turku")]),
        ("a.csv", b"id,text\n1,Mira\n2,\n3,She came", [("a.csv, row 1", "Mira"), ("a.csv, row 3", "She came")]),
        ("a.pdf", write_pdf(), [("a.pdf", "Mira left Turku")]),
        ("a.docx", write_docx(), [("a.docx", "Before\n\nMira left Turku")]),
    ],
)
def test_files_are_read(name: str, data: bytes, documents: list[tuple[str, str]]) -> None:
    assert read_upload(name, data) == documents


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.exe", b"MZ"),
        ("a.pdf", b"%PDF"),
        ("a.docx", b"PK"),
        ("a.txt", b"  "),
        ("a.csv", b"\0"),
        ("a", b""),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, data: bytes) -> None:
    with pytest.raises(StepError, match=r"^a"):
        read_upload(name, data)


# Output


def test_highlighting_escapes_texts_and_labels() -> None:
    assert "<mark" in highlight("Mira left", [{"start": 0, "end": 4, "label": "PER"}])
    assert highlight("a < b", []) == '<div class="entities">a &lt; b</div>'
    marked = highlight("<img src=x onerror=alert(1)> Mira", [{"start": 0, "end": 4, "label": "<script>"}])
    assert "<script>" not in marked and "<img" not in marked


def test_exports_hold_what_was_found(analyses: list[Analysis], tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(export_analyses(analyses, "csv"))))
    assert [row["text"] for row in rows if row["document"] == "2"] == ["Mira Solberg", "Turku"]
    assert json.loads(export_analyses(analyses, "json"))[0] == analyses[0].model_dump()
    lines = export_analyses(analyses, "jsonl").splitlines()
    assert [Analysis.model_validate_json(line) for line in lines] == analyses
    (tmp_path / "out.conll").write_text(export_analyses(analyses, "conll"), encoding="utf8")
    documents = read_conll(tmp_path / "out.conll").documents
    assert [len(document) for document in documents] == [len(analysis.sentences) for analysis in analyses]
    found = [(token.text, token.entity) for sentence in documents[1] for token in sentence]
    assert found[:4] == [("Mira", "B-PER"), ("Solberg", "I-PER"), ("left", "O"), ("Turku", "B-LOC")]
    some = analyses[1].model_copy(update={"entities": analyses[1].entities[1:]})
    assert "Solberg NNP -X- O\n" in export_analyses([some], "conll")


def found_in(text: str, *tokens: str, label: str = "PER") -> Analysis:
    """An analysis in which the whole text is an entity and a sentence."""
    whole: dict[str, Any] = {"start": 0, "end": len(text), "text": text}
    return Analysis(
        text=text,
        sentences=[application.Span(**whole)],
        entities=[application.Entity(**whole, label=label, score=None)],
        concepts=[],
        triples=[],
        tokens=[
            application.Token(start=at, end=at + 1, text=token, tag="", pos="", iob="O", shape="", wordpieces=[])
            for at, token in enumerate(tokens)
        ],
    )


@given(st.text(st.sampled_from("=+-@\t\r\n',;\"a "), min_size=1), st.text(min_size=1))
@example("=HYPERLINK(1)", "@SUM(1)")
def test_no_cell_of_a_table_is_a_formula_and_nothing_is_lost(text: str, label: str) -> None:
    table = export_analyses([found_in(text, label=label)], "csv")
    _, row = csv.reader(io.StringIO(table, newline=""))
    for cell, was in zip(row[3:5], (text, label), strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert cell in (was, f"'{was}")


@pytest.mark.parametrize("token", ["-DOCSTART-", "-DOCSTART-foo", "- DOCSTART-"])
def test_no_token_is_taken_for_the_mark_between_documents(token: str) -> None:
    lines = export_analyses([found_in("Mira", "Mira", token)], "conll").splitlines()
    assert [line.startswith("-DOCSTART-") for line in lines if line] == [True, False, False]


# Questions


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who is mentioned?", "Mira Solberg (2 times)."),
        ("Which places are mentioned?", "Turku (2 times)."),
        ("How many organisations are there?", "1, in 2 places: Norrvik Steel (2 times)."),
        ("What is mentioned?", "Mira Solberg (2 times), Turku (2 times), Norrvik Steel (2 times)."),
        ("Who appears with Turku?", "In a sentence with Turku: Mira Solberg."),
        ("Which organisations appear with Turku?", "None appears in a sentence with Turku."),
        ("What did Solberg do?", "Mira Solberg: launched \u2026 party."),
        ("what did norrvik steel do", "Norrvik Steel: called \u2026 party."),
        ("Who launched a party?", "Mira Solberg launched \u2026 party."),
        ("How is the party described?", "party: young, small."),
        ("What did Napoleon do?", "The documents do not mention Napoleon."),
        ("What did Turku do?", "The documents mention Turku, but no deed was found."),
        ("Tell me about rivers", "The nearest passages:"),
        ("Why are bananas yellow?", "The documents say nothing about that."),
        ("?", "The documents say nothing about that."),
    ],
)
def test_questions_are_answered_from_the_documents(analyses: list[Analysis], question: str, answer: str) -> None:
    found = ask(analyses, question)
    assert found.text == answer and not found.drafted
    for quote in found.evidence:
        assert analyses[quote.document].text[quote.start : quote.end] == quote.text
    assert bool(found.evidence) == (not found.text.startswith(("The documents do not", "The documents say", "None")))


@given(st.text(max_size=60))
def test_any_question_has_an_answer(question: str) -> None:
    entity = application.Entity(start=0, end=5, text="Turku", label="LOC", score=None)
    sentence = application.Span(start=0, end=5, text="Turku")
    analysis = Analysis(text="Turku", sentences=[sentence], entities=[entity], concepts=[], triples=[], tokens=[])
    assert ask([analysis], question).text
    assert ask([analysis], f"Turku {question}").text and ask([], question).text


def test_an_answer_lists_the_first_of_very_many_names() -> None:
    names = [application.Entity(start=i, end=i + 1, text=f"name{i}", label="PER", score=None) for i in range(60)]
    sentences = [application.Span(start=i, end=i + 1, text="x") for i in range(60)]
    analysis = Analysis(text="x" * 60, sentences=sentences, entities=names, concepts=[], triples=[], tokens=[])
    answer = ask([analysis], "Who is mentioned?")
    assert answer.text.endswith("name49, and 10 more.") and len(answer.evidence) == 8


def test_the_texts_are_searched_once_however_long_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def count(found: Callable[..., Any], pattern: str, text: str, *flags: int) -> Any:
        searched.append(len(text))
        return found(pattern, text, *flags)

    for name in ("search", "findall"):
        monkeypatch.setattr(re, name, partial(count, getattr(re, name)))
    text = "Mira left Turku. " * 500
    question = "What did " + " ".join(f"Turku-Mira{'x' * (number == 99)}" for number in range(100)) + " do?"
    answer = ask([found_in(text, label="TEXT")], question)
    assert answer.text == "The documents do not mention Turku-Mirax."
    assert sum(size >= len(text) for size in searched) == 1


# The language model


class Endpoint(ThreadingHTTPServer):
    """A language model that says what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None, dict[str, object]]] = []
        self.status, self.body, self.delay = 200, b"", 0.0

    def say(self, text: object) -> None:
        self.body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        time.sleep(self.server.delay)
        with suppress(BrokenPipeError):  # who asked may be gone
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("BERT_NER_LLM_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    yield server
    server.shutdown()
    server.server_close()


def test_a_language_model_words_the_answer_on_the_same_evidence(
    analyses: list[Analysis], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERT_NER_LLM_MODEL", "some-model")
    monkeypatch.setenv("BERT_NER_LLM_KEY", "secret")
    endpoint.say("Mira Solberg [1].")
    local = ask(analyses, "Who is mentioned?")
    answer = draft(local, "Who is mentioned?")
    assert answer == Answer(text="Mira Solberg [1].", evidence=local.evidence, drafted=True)
    path, key, body = endpoint.requests[0]
    sent = json.dumps(body)
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "some-model"
    assert "launched a young party" in sent and "small party" not in sent, "quotes and nothing else"


@pytest.mark.parametrize(
    ("status", "body", "delay"),
    [
        (500, b"{}", 0),
        (200, b"no json", 0),
        (200, b"{}", 0),
        (200, b'{"choices": []}', 0),
        (200, b'{"choices": [{"message": {"content": null}}]}', 0),
        (200, b'{"choices": [{"message": {"content": " "}}]}', 0),
        (302, b"", 0),
        (200, b"{}", 1),
    ],
)
def test_if_the_language_model_fails_the_local_answer_stands(
    analyses: list[Analysis], endpoint: Endpoint, status: int, body: bytes, delay: float
) -> None:
    endpoint.status, endpoint.body, endpoint.delay = status, body, delay
    local = ask(analyses, "Who is mentioned?")
    answer = draft(local, "Who is mentioned?", timeout=0.3)
    assert answer.text == local.text and not answer.drafted and "gave no answer" in answer.warning


def test_without_an_endpoint_nothing_is_sent(
    analyses: list[Analysis], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = ask(analyses, "Why are bananas yellow?")
    assert draft(nothing, "Why are bananas yellow?") == nothing, "no evidence, nothing to word"
    monkeypatch.delenv("BERT_NER_LLM_URL")
    local = ask(analyses, "Who is mentioned?")
    assert draft(local, "Who is mentioned?") == local and not endpoint.requests
    monkeypatch.setenv("BERT_NER_LLM_URL", "http://127.0.0.1:9/v1")
    assert draft(local, "Who is mentioned?").warning


# Masked words


def test_masked_words_are_ranked(tiny_encoder: Path) -> None:
    words = predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=7)
    assert words is not None and len({word for word, _ in words}) == 7
    probabilities = [probability for _, probability in words]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1
    assert predict_masked(tiny_encoder, "Paris is the [MASK] of France.", top=1000) != words


def test_an_encoder_without_a_head_for_masked_words_is_told(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    assert predict_masked(tmp_path, "Paris is the [MASK] of France.") is None


@pytest.mark.parametrize("text", ["", "Paris", "[MASK] and [MASK]", "a " * 600 + "[MASK]"])
def test_one_masked_word_is_needed(tiny_encoder: Path, text: str) -> None:
    with pytest.raises(StepError, match="MASK"):
        predict_masked(tiny_encoder, text)


def test_a_damaged_encoder_is_named(tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    (encoder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(StepError, match="encoder cannot be loaded"):
        predict_masked(encoder, "Paris is the [MASK] of France.")
