"""Ask a language model behind OpenAI's chat interface, one on this machine or a hosted one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from common.errors import StepError

ENDPOINT, ENDPOINT_MODEL, ENDPOINT_KEY = (f"BERT_NER_LLM_{name}" for name in ("URL", "MODEL", "KEY"))
LONGEST_ANSWER = 2**20  # bytes
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the endpoint asks for
PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}  # and all from 500 on
REMEDIES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "It may not know a parameter, or the prompt is too long: shorten the one or the other.",
    HTTPStatus.UNAUTHORIZED: f"Check the key in {ENDPOINT_KEY}.",
    HTTPStatus.FORBIDDEN: f"Check the key in {ENDPOINT_KEY}.",
    HTTPStatus.NOT_FOUND: f"Check {ENDPOINT}, which usually ends with /v1, and {ENDPOINT_MODEL}.",
}
ELSE = f"See whether the endpoint runs, and check {ENDPOINT}. What was made is kept: run the same command again."


class ChatError(StepError):
    """An endpoint gave no answer. Neither the error nor its cause has the key, nor what else the endpoint said.

    reason (str): What happened, in a few words.
    """

    def __init__(self, host: str, reason: str, remedy: str = ELSE) -> None:
        super().__init__(f"The language model at {host} gave no answer: {reason}.", remedy)
        self.reason = reason


class UnusableError(ChatError):
    """An endpoint answers, but not with a text. Another prompt may fare better."""


class Reply(NamedTuple):
    """An answer. The endpoint counts the tokens; they are 0 where it does not."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Chat:
    """An endpoint, its model, and its key if it needs one.

    url (str): Such as `http://127.0.0.1:11434/v1`.
    model (str): The name of the model, by which a server with one model does not go.
    key (str): It goes into the header of a request, and nowhere else.
    """

    url: str
    model: str = "default"
    key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """The address without what may be secret in it: a password, or a key after a question mark."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return "no address"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def name(self) -> str:
        """The model and the machine, whatever the port, which changes from one start of a server to the next."""
        return f"{self.model} at {urlsplit(self.host).hostname or ''}"

    def ask(
        self,
        prompt: str,
        system: str = "",
        parameters: Mapping[str, float] | None = None,
        timeout: float = 30,
        attempts: int = 1,
    ) -> Reply:
        """Ask for an answer, again after failures that may pass: a limit of the rate, a broken server or network.

        prompt (str): What the user says.
        system (str): What the model is told before, if something.
        parameters (Mapping[str, float] | None): What the interface knows beside these, such as temperature.
        timeout (float): Seconds for each attempt.
        attempts (int): How often to ask. Between two attempts there is a pause, as long as the endpoint wants it, or
            else one second, then two, four and so on, up to LONGEST_PAUSE.
        RETURNS (Reply): The answer, which is not empty.
        RAISES (ChatError): If there is none.
        """
        roles = {"system": system, "user": prompt}
        messages = [{"role": role, "content": content} for role, content in roles.items() if content]
        body = {**(parameters or {}), "model": self.model, "messages": messages}
        for attempt in range(attempts):
            pause = min(LONGEST_PAUSE, 2.0**attempt)
            try:
                return self._ask_once(body, timeout)
            except _PassingError as error:
                failure = error.failure
                if attempt + 1 < attempts:
                    wait(pause if error.pause is None else min(LONGEST_PAUSE, error.pause))
        raise failure

    def _ask_once(self, body: dict[str, Any], timeout: float) -> Reply:
        """Ask once. Causes are not chained, since those of requests quote addresses and headers."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = f"{self.url.rstrip('/')}/chat/completions"
        deadline = time.monotonic() + timeout
        try:
            with requests.post(
                address, json=body, headers=headers, timeout=timeout, allow_redirects=False, stream=True
            ) as response:
                status, pause = response.status_code, response.headers.get("Retry-After", "")
                data = _read(response, deadline) if status == HTTPStatus.OK else b""
        except ValueError as error:  # the address or the key is none that can be sent
            raise ChatError(self.host, type(error).__name__) from None
        except (OSError, HTTPError) as error:  # of the network, which requests, urllib3 and Python each have their own
            raise _PassingError(ChatError(self.host, type(error).__name__)) from None
        if status != HTTPStatus.OK:
            failure = ChatError(self.host, f"HTTP {status}", REMEDIES.get(status, ELSE))
            if status in PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _PassingError(failure, float(pause) if pause.isdecimal() else None)
            raise failure
        try:
            found = json.loads(data)
            text = found["choices"][0]["message"]["content"].strip()
            text.encode()  # half a character, which JSON can hold and no answer and no file, raises a ValueError
            usage = found.get("usage") or {}
            counts = [int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion")]
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
            raise _PassingError(UnusableError(self.host, "an answer of another form")) from None
        if not text:
            raise _PassingError(UnusableError(self.host, "an empty answer"))
        return Reply(text, *counts)


class _PassingError(Exception):
    """A failure after which it is worth to ask again, and the pause in seconds that the endpoint wants, if it says."""

    def __init__(self, failure: ChatError, pause: float | None = None) -> None:
        self.failure = failure
        self.pause = pause


def _read(response: requests.Response, deadline: float) -> bytes:
    """Read a body that may come drop by drop for ever, or have no end."""
    parts: list[bytes] = []
    size = 0
    while part := response.raw.read1(2**16, decode_content=True):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise requests.Timeout
        if size > LONGEST_ANSWER:
            raise requests.exceptions.ContentDecodingError
    return b"".join(parts)


def wait(seconds: float) -> None:
    """Pause before the next attempt."""
    time.sleep(seconds)


def find_chat() -> Chat | None:
    """The endpoint that the environment names.

    BERT_NER_LLM_URL is its address, BERT_NER_LLM_MODEL its model, BERT_NER_LLM_KEY its key if it needs one.

    RETURNS (Chat | None): The endpoint, or None without an address.
    """
    url = os.environ.get(ENDPOINT)
    if not url:
        return None
    return Chat(url, os.environ.get(ENDPOINT_MODEL) or "default", os.environ.get(ENDPOINT_KEY, ""))
