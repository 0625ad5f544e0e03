from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from common import chat as module
from common.chat import Chat, ChatError, UnusableError, find_chat
from tests.conftest import guard
from tests.endpoint import Endpoint, as_answer, serving


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which nobody waits for."""
    found: list[float] = []
    monkeypatch.setattr(module, "wait", found.append)
    return found


def test_an_answer_is_asked_for_with_model_key_and_parameters(endpoint: Endpoint) -> None:
    endpoint.body = as_answer(" Mira left. ", usage={"prompt_tokens": 7, "completion_tokens": 3})
    reply = Chat(endpoint.url, "some-model", "secret").ask(
        "Write.", "Briefly.", {"temperature": 0.5, "seed": 3}, guard(9)
    )
    assert reply == ("Mira left.", 7, 3)
    path, key, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "Briefly."}, {"role": "user", "content": "Write."}],
        "temperature": 0.5,
        "seed": 3,
    }
    Chat(endpoint.url).ask("Write.", timeout=guard(9))
    assert endpoint.requests[1][1] is None and len(endpoint.requests[1][2]["messages"]) == 1


def test_what_may_pass_is_asked_again_after_a_pause(endpoint: Endpoint, pauses: list[float]) -> None:
    answers: list[Any] = [
        (503, b""),
        (429, b"", {"Retry-After": "7"}),
        (429, b"", {"Retry-After": "100000"}),
        (429, b"", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        (200, b"no json"),
        (200, b"data: {}\n\n", {"Content-Type": "text/event-stream"}),
        " ",
        "Mira left.",
    ]
    endpoint.respond = lambda _, number: answers[number]
    assert Chat(endpoint.url).ask("Write.", timeout=guard(9), attempts=8).text == "Mira left."
    assert pauses == [1, 7, 60, 8, 16, 32, 60] and len(endpoint.requests) == 8


@pytest.mark.parametrize(
    ("answer", "reason", "kind"),
    [
        ((500, b""), "HTTP 500", ChatError),
        ((429, b""), "HTTP 429", ChatError),
        ((200, b"[]"), "an answer of another form", UnusableError),
        ((200, b'{"choices": [{"message": {"content": 3}}]}'), "an answer of another form", UnusableError),
        ((200, as_answer("x", usage=[3])), "an answer of another form", UnusableError),
        ((200, as_answer("\ud83d")), "an answer of another form", UnusableError),
        ((200, b"[" * 100_000), "an answer of another form", UnusableError),
        ((200, as_answer(None)), "an answer of another form", UnusableError),
        ((200, as_answer("\n")), "an empty answer", UnusableError),
        ((200, b"x" * 100, {"Content-Length": "200"}), "ProtocolError", ChatError),
        ((200, b"no gzip", {"Content-Encoding": "gzip"}), "DecodeError", ChatError),
        ((200, (b"x" * 2**16 for _ in itertools.count())), "ContentDecodingError", ChatError),
    ],
)
def test_after_the_last_attempt_the_reason_is_said(
    endpoint: Endpoint, pauses: list[float], answer: Any, reason: str, kind: type[ChatError]
) -> None:
    endpoint.respond = lambda *_: answer
    with pytest.raises(ChatError, match=reason) as error:
        Chat(endpoint.url).ask("Write.", timeout=guard(9), attempts=2)
    assert type(error.value) is kind and error.value.remedy and len(pauses) == 1 and len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
def test_what_will_not_pass_is_not_asked_again(endpoint: Endpoint, pauses: list[float], status: int) -> None:
    endpoint.respond = lambda *_: (status, b"", {"Location": "/elsewhere"})
    with pytest.raises(ChatError, match=f"HTTP {status}") as error:
        Chat(endpoint.url).ask("Write.", timeout=guard(9), attempts=5)
    assert not pauses and len(endpoint.requests) == 1 and error.value.remedy


def test_an_answer_that_never_ends_is_given_up(endpoint: Endpoint, pauses: list[float]) -> None:
    """Drop by drop: each comes within the time limit of a part, and all of them would never come."""

    def drip() -> Iterator[bytes]:
        while not endpoint.closed.wait(0.02):
            yield b" "

    endpoint.respond = lambda *_: (200, drip())
    with pytest.raises(ChatError, match="Timeout"):
        Chat(endpoint.url).ask("Write.", timeout=0.3)


def test_an_endpoint_that_says_nothing_is_given_up(endpoint: Endpoint, pauses: list[float]) -> None:
    endpoint.respond = lambda *_: (200, as_answer("late")) if endpoint.closed.wait(guard(9)) else (500, b"")
    with pytest.raises(ChatError, match="ReadTimeout"):
        Chat(endpoint.url).ask("Write.", timeout=0.2)


def test_an_endpoint_that_comes_back_answers(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused connections pass: a server takes a while to start."""
    with serving() as gone:
        chat = Chat(gone.url)
    with pytest.raises(ChatError, match="ConnectionError"):
        chat.ask("Write.", timeout=guard(9))
    endpoint.say("Mira left.")
    monkeypatch.setattr(module, "wait", lambda _: object.__setattr__(chat, "url", endpoint.url))
    assert chat.ask("Write.", timeout=guard(9), attempts=2).text == "Mira left."


@pytest.mark.parametrize("key", ["secret", "secret\nx", "secret\u20ac"])
@pytest.mark.parametrize("url", ["", "not an address", "http://[", "http://user:secret@127.0.0.1:9/v1?key=secret"])
def test_no_error_has_the_key(endpoint: Endpoint, url: str, key: str) -> None:
    endpoint.respond = lambda *_: (401, b"Incorrect API key: secret")
    chat = Chat(url or endpoint.url, key=key)
    with pytest.raises(ChatError) as error:
        chat.ask("Write.", timeout=guard(9))
    told = f"{error.value!r} {error.value} {error.value.reason} {error.value.remedy} {chat.host} {chat.name}"
    assert "secret" not in told and error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__, "else a traceback would quote it"
    assert "secret" not in repr(Chat("http://127.0.0.1:9/v1", key=key))


def test_the_environment_names_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"BERT_NER_LLM_{name}", raising=False)
    assert find_chat() is None
    monkeypatch.setenv("BERT_NER_LLM_URL", "https://some.where:8000/v1")
    assert find_chat() == Chat("https://some.where:8000/v1", "default", "")
    monkeypatch.setenv("BERT_NER_LLM_MODEL", "falcon")
    monkeypatch.setenv("BERT_NER_LLM_KEY", "secret")
    found = find_chat()
    assert found == Chat("https://some.where:8000/v1", "falcon", "secret")
    assert found.name == "falcon at some.where" and found.host == "https://some.where:8000"
    assert Chat("http://[::1]:8000/v1", "falcon").name == "falcon at ::1"
