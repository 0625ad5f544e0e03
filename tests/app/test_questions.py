from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.annotate import Analysis, EntityOut, SpanOut
from app.questions import Answer, ask, draft
from tests.app.conftest import found_in
from tests.conftest import guard
from tests.endpoint import Endpoint, serving


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
    assert found.text == answer and not found.generated
    for quote in found.evidence:
        assert analyses[quote.document_index].text[quote.start : quote.end] == quote.text
    assert bool(found.evidence) == (not found.text.startswith(("The documents do not", "The documents say", "None")))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What did the U.S. do?", "The documents mention U.S., but no deed was found."),
        ("which organisations appear with turku?", "In a sentence with Turku: U.S., \u00c5sa Lind."),
        ("What did \u00c5sa do?", "The documents mention \u00c5sa Lind, but no deed was found."),
        ("What did \u00d6stberg do?", "The documents do not mention \u00d6stberg."),
        (" Who is mentioned?", "None is mentioned."),
        ("Please: WHO IS MENTIONED?", "None is mentioned."),
    ],
)
def test_points_accents_and_capitals_hide_no_name(question: str, answer: str) -> None:
    names = ("TURKU", "Turku", "U.S.", "\u00c5sa Lind")
    text = " and ".join(names)
    spans = [{"start": text.index(name), "end": text.index(name) + len(name), "text": name} for name in names]
    entities = [EntityOut.model_validate(span | {"label": "ORG", "score": None}) for span in spans]
    sentence = SpanOut(start=0, end=len(text), text=text)
    assert ask([Analysis(text=text, sentences=[sentence], entities=entities)], question).text == answer


def test_neighbours_come_in_the_order_of_the_text_in_whichever_process() -> None:
    names = ["Turku", *(f"Name{number}" for number in range(8))]
    text = " ".join(names)
    ends = [text.index(name) + len(name) for name in names]
    entities = [
        EntityOut(start=end - len(name), end=end, text=name, label="ORG", score=None)
        for name, end in zip(names, ends, strict=True)
    ]
    analysis = Analysis(text=text, sentences=[SpanOut(start=0, end=len(text), text=text)], entities=entities)
    answer = ask([analysis], "Which organisations appear with Turku?").text
    assert answer == f"In a sentence with Turku: {', '.join(names[1:])}."


@given(st.text(max_size=60))
def test_any_question_has_an_answer(question: str) -> None:
    entity = EntityOut(start=0, end=5, text="Turku", label="LOC", score=None)
    sentence = SpanOut(start=0, end=5, text="Turku")
    analysis = Analysis(text="Turku", sentences=[sentence], entities=[entity])
    assert ask([analysis], question).text
    assert ask([analysis], f"Turku {question}").text and ask([], question).text


def test_an_answer_lists_the_first_of_very_many_names() -> None:
    names = [EntityOut(start=i, end=i + 1, text=f"name{i}", label="PER", score=None) for i in range(60)]
    sentences = [SpanOut(start=i, end=i + 1, text="x") for i in range(60)]
    analysis = Analysis(text="x" * 60, sentences=sentences, entities=names)
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


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with serving() as server:
        monkeypatch.setenv("BERT_NER_LLM_URL", f"{server.url}/")
        yield server


def test_a_language_model_words_the_answer_on_the_same_evidence(
    analyses: list[Analysis], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERT_NER_LLM_MODEL", "some-model")
    monkeypatch.setenv("BERT_NER_LLM_KEY", "secret")
    endpoint.say("Mira Solberg [1].")
    local = ask(analyses, "Who is mentioned?")
    answer = draft(local, "Who is mentioned?")
    assert answer == Answer(text="Mira Solberg [1].", evidence=local.evidence, generated=True)
    path, key, body = endpoint.requests[0]
    sent = json.dumps(body)
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "some-model"
    assert "launched a young party" in sent and "small party" not in sent, "quotes and nothing else"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"{}", "HTTP 500"),
        (200, b"no json", "an answer of another form"),
        (200, b"{}", "an answer of another form"),
        (200, b'{"choices": []}', "an answer of another form"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "an answer of another form"),
        (200, b'{"choices": [{"message": {"content": " "}}]}', "an empty answer"),
        (302, b"", "HTTP 302"),
    ],
)
def test_if_the_language_model_fails_the_local_answer_stands(
    analyses: list[Analysis], endpoint: Endpoint, status: int, body: bytes, reason: str
) -> None:
    endpoint.status, endpoint.body = status, body
    local = ask(analyses, "Who is mentioned?")
    answer = draft(local, "Who is mentioned?", timeout=guard(9))
    assert answer == local.model_copy(update={"warning": f"The language model gave no answer: {reason}."})


def test_a_language_model_that_says_nothing_is_given_up(analyses: list[Analysis], endpoint: Endpoint) -> None:
    endpoint.respond = lambda *_: "late" if endpoint.closed.wait(guard(9)) else (500, b"")
    local = ask(analyses, "Who is mentioned?")
    answer = draft(local, "Who is mentioned?", timeout=0.2)
    assert answer == local.model_copy(update={"warning": "The language model gave no answer: ReadTimeout."})


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
