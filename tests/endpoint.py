"""A stand-in for an endpoint with OpenAI's chat interface, on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[[dict[str, Any], int], Any]


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
        self.respond: Respond | None = None
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


def create_babbler(texts: Iterable[str]) -> Respond:
    """A GPT-2 with random weights, for `Endpoint.respond`: a language model that was never trained.

    It takes the parameters of a request as llama.cpp's server does, and gives the same answer to the same request.

    texts (Iterable[str]): What its tokens are made from, so that it writes words of them, beside any bytes.
    RETURNS (Respond): Answers a request.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer  # type: ignore[import-untyped,unused-ignore]
    from transformers import GPT2Config, GPT2LMHeadModel

    end, lock = "<|endoftext|>", threading.Lock()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=1000, min_frequency=1, special_tokens=[end], show_progress=False)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.token_to_id(end))
    size = {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 1024, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**size, **ends)).eval()

    def respond(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        prompt = torch.tensor([tokenizer.encode("\n".join(each["content"] for each in body["messages"])).ids])
        with lock, torch.random.fork_rng(devices=[]):  # the generator of random numbers is that of all threads
            torch.manual_seed(body["seed"])
            written = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=body["temperature"],
                top_p=body["top_p"],
                top_k=body["top_k"],
                min_p=body["min_p"],
                repetition_penalty=float(body["repeat_penalty"]),
                max_new_tokens=body["max_tokens"],
            )[0, prompt.shape[1] :]
        usage = {"prompt_tokens": prompt.shape[1], "completion_tokens": len(written)}
        return 200, as_answer(tokenizer.decode(written.tolist()), usage=usage)

    return respond
