"""A stand-in for an endpoint with OpenAI's chat interface, on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def as_answer(text: object, **more: object) -> bytes:
    """The body of an answer."""
    return json.dumps({"choices": [{"message": {"content": text}}], **more}).encode()


class Endpoint(ThreadingHTTPServer):
    """A language model that says what it is told to.

    `requests` has the path, the header with the key and the body of each request. `respond`, if it is set, gets the
    body and the number of the request, from 0, and returns a text, or a status with a body and perhaps headers; without
    it the answer is `status` and `body`. A body that is no bytes is sent part by part.
    """

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.status, self.body = 200, b""
        self.respond: Callable[[dict[str, Any], int], Any] | None = None
        self.closed = threading.Event()
        self.lock = threading.Lock()

    def say(self, text: object) -> None:
        self.body = as_answer(text)


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((self.path, self.headers["Authorization"], body))
        found = self.server.respond(body, number) if self.server.respond else (self.server.status, self.server.body)
        status, data, headers = (*((200, as_answer(found)) if isinstance(found, str) else found), {})[:3]
        with suppress(BrokenPipeError, ConnectionResetError):  # who asked may be gone
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [data] if isinstance(data, bytes) else data:
                self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that works during the block."""
    server = Endpoint()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()
