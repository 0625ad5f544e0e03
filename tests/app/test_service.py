from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import spacy
import uvicorn
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from packaging.requirements import Requirement
from playwright.sync_api import Browser, expect
from spacy.language import Language
from spacy.tokens import Doc

from app import service as service_module
from app.annotate import LAYERS, Annotator
from app.files import MAX_CHARACTERS, MAX_DOCUMENTS
from app.service import (
    API_KEY,
    MAX_BYTES,
    QUEUE,
    check_memory,
    configure,
    create_app,
    read_key,
    serve,
    share_machine,
)
from benchmarks.service import memory_of, run_load, start_service
from common.errors import StepError
from tests.app.conftest import until
from tests.conftest import ROOT, TEXT, guard, words
from tests.test_project import closure

BODY = {"texts": ["Turku"]}


@contextmanager
def running(app: FastAPI) -> Iterator[tuple[str, uvicorn.Server]]:
    """The service in a thread: its address and server. It is stopped in the end, if it has not been before."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(configure(app, "127.0.0.1", port))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{port}", server
        finally:
            server.should_exit = True
            thread.join(guard(20))
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def service(annotator: Annotator) -> Iterator[str]:
    with running(create_app(annotator)) as (address, _):
        yield address


@pytest.fixture
def client(annotator: Annotator) -> Iterator[TestClient]:
    with TestClient(create_app(annotator)) as client:
        yield client


class Gate:
    """A pipeline that stands still in the midst of a text until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = 0
        nlp = spacy.blank("en")
        name = f"gate_{id(self)}"  # spaCy keeps the first function of a name
        Language.component(name, func=self.wait)
        nlp.add_pipe(name)
        self.annotator = Annotator(nlp)

    def wait(self, doc: Doc) -> Doc:
        self.reached += 1
        assert self.open.wait(guard(20))
        return doc


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def test_entities_concepts_and_answers_come_with_offsets(service: str) -> None:
    texts = [TEXT, "\U0001f600 Turku"]
    found = requests.post(f"{service}/v2/entities", json={"texts": texts}, timeout=guard(9)).json()
    first, second = found["results"]
    assert [(ent["text"], ent["label"]) for ent in first["entities"]][:2] == [("Mira Solberg", "PER"), ("Turku", "LOC")]
    assert second["entities"] == [{"start": 2, "end": 7, "text": "Turku", "label": "LOC", "score": None}]
    found = requests.post(f"{service}/v2/concepts", json={"texts": texts}, timeout=guard(9)).json()["results"][0]
    for span in [*first["entities"], *found["concepts"]]:
        assert TEXT[span["start"] : span["end"]] == span["text"]
    triple = found["triples"][0]
    told = [found["concepts"][triple[name]]["text"] for name in ("subject_index", "predicate_index", "object_index")]
    assert told == ["Mira Solberg", "launched", "party"]
    body = {"texts": texts, "question": "Who is mentioned?"}
    answer = requests.post(f"{service}/v2/ask", json=body, timeout=guard(9)).json()
    assert (
        answer["text"] == "Mira Solberg." and answer["evidence"][0]["document_index"] == 0 and not answer["generated"]
    )


def test_the_service_is_ready_and_gives_examples(service: str) -> None:
    assert requests.get(f"{service}/health", timeout=guard(9)).json() == {"status": "ok"}
    assert requests.get(f"{service}/ready", timeout=guard(9)).json()["status"] == "ready"
    examples = json.dumps(requests.get(f"{service}/openapi.json", timeout=guard(9)).json())
    assert "My name is Wolfgang" in examples and "Who is mentioned?" in examples


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"texts": []}', 422),
        (b'{"texts": "Mira Solberg"}', 422),
        (b'{"texts": ["\\ud800"]}', 422),
        (b'{"texts": [NaN]}', 422),
        (b"Mira Solberg", 422),
        (b"\xff\xfe", 422),
        (json.dumps({"texts": ["a"] * (MAX_DOCUMENTS + 1)}).encode(), 422),
        (json.dumps({"texts": ["a" * (MAX_CHARACTERS + 1)]}).encode(), 413),
        (b" " * (MAX_BYTES + 1), 413),
    ],
    ids=["none", "no list", "surrogate", "number", "no json", "no utf-8", "documents", "characters", "bytes"],
)
def test_what_is_too_much_or_not_as_described_is_refused(client: TestClient, body: bytes, status: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield body

    for content in (body, chunks()):
        response = client.post("/v2/entities", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status, response.text
        assert response.text and "Mira Solberg" not in response.text


def test_too_much_text_is_refused_with_what_the_endpoint_takes(client: TestClient) -> None:
    detail = client.post("/v2/entities", json={"texts": ["a" * (MAX_CHARACTERS + 1)]}).json()["detail"]
    assert f"At most {MAX_DOCUMENTS} documents of 2,000,000 characters" in detail


def test_what_is_not_as_described_is_located(client: TestClient) -> None:
    rows = client.post("/v2/entities", json={"texts": ["Turku", 7]}).json()["detail"]
    assert [(row["loc"], "valid string" in row["msg"]) for row in rows] == [(["body", "texts", 1], True)]
    described = client.get("/openapi.json").json()
    schema = described["paths"]["/v2/entities"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/HTTPValidationError") and described["info"]["version"] == "2"


def test_no_layer_is_made_that_is_not_answered() -> None:
    class Recorder(Annotator):
        def submit(self, texts: Any, want: Any = LAYERS, *_: object) -> Future[list[Any]]:
            asked.append(set(want))
            return super().submit([], want)

    asked: list[set[str]] = []
    with TestClient(create_app(Recorder(spacy.blank("en")))) as client:
        for path in ("entities", "concepts", "ask"):
            assert client.post(f"/v2/{path}", json=BODY | {"question": "Who?"}).status_code == 200
    assert asked == [{"entities"}, {"concepts"}, {"sentences", "entities", "concepts"}]


def test_as_many_characters_as_promised_fit_however_json_writes_them() -> None:
    class Reader(Annotator):
        def submit(self, texts: Any, *_: object) -> Future[list[Any]]:
            lengths.append(sum(map(len, texts)))
            return super().submit([])

    lengths: list[int] = []
    with TestClient(create_app(Reader(spacy.blank("en")))) as client:
        for character in "\u0444\U0001f600":
            body = json.dumps({"texts": [character * (MAX_CHARACTERS // MAX_DOCUMENTS)] * MAX_DOCUMENTS})
            assert len(body) >= 6 * MAX_CHARACTERS
            response = client.post("/v2/entities", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 200
    assert lengths == [MAX_CHARACTERS] * 2


# The key


def test_a_key_is_asked_for_where_one_is_set(annotator: Annotator) -> None:
    with TestClient(create_app(annotator, "sesame")) as client:
        for wrong in ({}, *({b"X-API-Key": key} for key in (b"wrong", b"\xc3\xa5", b"\xff", b"ses", b""))):
            assert client.post("/v2/entities", json=BODY, headers=wrong).status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert client.post("/v2/entities", json=BODY, headers={"X-API-Key": "sesame"}).status_code == 200


def test_without_the_key_the_body_is_not_read(annotator: Annotator) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v2/ask", "raw_path": b"/v2/ask", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "root_path": "", "http_version": "1.1"}
    asyncio.run(create_app(annotator, "sesame")(scope, receive, send))
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("key", ["", " sesame", "sesame\n", "s\xe9same", "\udcff", "a\tb"])
def test_a_key_that_nobody_can_send_is_told_at_the_start(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, key)
    with pytest.raises(StepError, match=API_KEY):
        serve("en_nothing")


def test_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    assert read_key() == ""
    monkeypatch.setenv(API_KEY, "open sesame")
    assert read_key() == "open sesame"


# Queue and deadline


def test_more_than_the_queue_holds_is_told_to_come_again(gate: Gate) -> None:
    with TestClient(create_app(gate.annotator, queue=2)) as client, ThreadPoolExecutor() as pool:
        taken = [pool.submit(client.post, "/v2/entities", json=BODY) for _ in range(2)]
        until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/health").status_code == 200
        for path in ("entities", "concepts", "ask"):
            response = client.post(f"/v2/{path}", json=BODY | {"question": "Who?"})
            assert response.status_code == 429 and response.headers["Retry-After"] == "1"
        gate.open.set()
        assert [post.result().status_code for post in taken] == [200, 200]
        assert client.get("/ready").status_code == 200


def test_the_deadline_holds_in_the_midst_of_a_text(gate: Gate) -> None:
    with TestClient(create_app(gate.annotator, timeout=0.2)) as client:
        response = client.post("/v2/entities", json={"texts": ["Turku"] * 40})
        assert response.status_code == 503 and "longer than 0.2 seconds" in response.text
        assert response.headers["Retry-After"] == "5" and client.get("/ready").status_code == 200
        gate.open.set()
        until(lambda: client.post("/v2/entities", json=BODY).status_code == 200)
        assert gate.reached < 40, "what nobody waits for is given up"


@pytest.mark.parametrize("step", ["ask", "draft"])
def test_rules_and_language_model_count_in_queue_and_deadline(
    annotator: Annotator, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, work = threading.Event(), getattr(service_module, step)
    monkeypatch.setattr(service_module, step, lambda *given: work(*given) if done.wait(guard(20)) else None)
    body = BODY | {"question": "Who?"}
    with TestClient(create_app(annotator, queue=1, timeout=guard(20))) as client, ThreadPoolExecutor() as pool:
        asked = pool.submit(client.post, "/v2/ask", json=body)
        until(lambda: client.get("/ready").status_code == 503)
        assert client.post("/v2/entities", json=BODY).status_code == 429
        done.set()
        assert asked.result().status_code == 200
    done.clear()
    with TestClient(create_app(annotator, timeout=0.2)) as client:
        assert client.post("/v2/ask", json=body).status_code == 503
        done.set()


def test_the_bodies_in_the_queue_have_a_limit_together(
    annotator: Annotator, connect: Callable[[str, bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "QUEUE_BYTES", 150)  # HALF announces 99
    with running(create_app(annotator)) as (address, _):
        half = connect(address, HALF)
        until(lambda: requests.post(f"{address}/v2/entities", data=b" " * 99, timeout=guard(9)).status_code == 429)
        chunks = requests.post(f"{address}/v2/entities", data=iter([b" "]), timeout=guard(9))
        assert chunks.status_code == 429, "nobody knows how many are to come"
        assert requests.get(f"{address}/label-studio/health", timeout=guard(9)).ok, "there is no body"
        assert requests.post(f"{address}/v2/entities", json=BODY, timeout=guard(9)).status_code == 200
        half.close()


def test_a_client_that_leaves_gives_its_place_free(
    gate: Gate, connect: Callable[[str, bytes], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    with running(create_app(gate.annotator, queue=2)) as (address, _):
        whole = HALF.replace(b"99", b"20") + json.dumps(BODY)[1:].encode()
        clients = [connect(address, whole) for _ in range(2)]
        until(lambda: not requests.get(f"{address}/ready", timeout=guard(9)).ok and gate.reached == 1)
        for client in clients:
            client.close()
        until(lambda: requests.get(f"{address}/ready", timeout=guard(9)).ok)
        gate.open.set()
        assert requests.post(f"{address}/v2/entities", json=BODY, timeout=guard(9)).status_code == 200
    assert gate.reached == 2, "the second of them was not annotated any more"
    assert not [record for record in caplog.records if record.exc_info]


# Many clients


def test_answers_of_clients_who_ask_at_the_same_time_never_mix(service: str) -> None:
    def ask(number: int) -> None:
        """In each text of all clients the name has a place of its own."""
        starts = [3 * number + part + 2 for part in range(number % 3 + 1)]
        names = [f"{'x' * (start - 1)} Turku with part{part}" for part, start in enumerate(starts)]
        for path in ("entities", "concepts", "ask"):
            body = {"texts": names, "question": f"What about part{number % 3}?"}
            found = session.post(f"{service}/v2/{path}", json=body, timeout=guard(20)).json()
            if path == "ask":
                assert all(quote["text"] == names[quote["document_index"]] for quote in found["evidence"])
                assert found["evidence"]
                continue
            places = [[span["start"] for span in each[path] if span["text"] == "Turku"] for each in found["results"]]
            assert places == [[start] for start in starts]

    with requests.Session() as session, ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(200)))


# Stopping


def test_a_stopped_service_answers_first(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "GRACE", guard(20))
    with running(create_app(gate.annotator, queue=2)) as (address, server), ThreadPoolExecutor() as pool:
        posts = [pool.submit(requests.post, f"{address}/v2/entities", json=BODY, timeout=guard(20)) for _ in range(2)]
        until(lambda: not requests.get(f"{address}/ready", timeout=guard(9)).ok)
        server.should_exit = True
        gate.open.set()
        assert [post.result().status_code for post in posts] == [200, 200]


def test_what_takes_too_long_when_it_stops_is_told_so(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "GRACE", 0.1)
    with running(create_app(gate.annotator, queue=2)) as (address, server), ThreadPoolExecutor() as pool:
        posts = [pool.submit(requests.post, f"{address}/v2/entities", json=BODY, timeout=guard(20)) for _ in range(2)]
        until(lambda: not requests.get(f"{address}/ready", timeout=guard(9)).ok and gate.reached == 1)
        server.should_exit = True
        for post in posts:
            assert post.result().status_code == 503 and "being stopped" in post.result().text
        gate.open.set()
    assert gate.reached == 1 and not [record for record in caplog.records if record.exc_info]


# Slow clients


@pytest.fixture
def connect() -> Iterator[Callable[[str, bytes], socket.socket]]:
    """Open a connection to an address and send something."""
    opened: list[socket.socket] = []

    def connect(address: str, start: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), guard(20))
        opened.append(connection)
        connection.sendall(start)
        return connection

    yield connect
    for connection in opened:
        connection.close()


HALF = b"POST /v2/entities HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(4096):
        found += chunk
    return found


def test_slow_heads_and_bodies_are_closed(
    annotator: Annotator, connect: Callable[[str, bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PATIENCE", 0.3)
    with running(create_app(annotator)) as (address, _):
        silent, head, body = (connect(address, start) for start in (b"", b"POST /v2/ent", HALF))
        assert read_all(silent) == read_all(head) == b""
        told = read_all(body).lower()
        assert b" 408 " in told and b"connection: close" in told
    with running(create_app(annotator, "sesame")) as (address, _):
        refused = connect(address, HALF)  # answered at once; it may send the rest for as long as it likes
        answered = read_all(refused)
        assert b" 401 " in answered


def test_an_answer_that_nobody_reads_is_given_up(
    connect: Callable[[str, bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PATIENCE", 0.1)
    app = create_app(Annotator(spacy.blank("en")))
    app.get("/long")(lambda: Response(b" " * 2**25))  # more than the buffers of a connection hold
    with running(app) as (address, server):
        client = connect(address, b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: not server.server_state.connections)


def test_more_connections_than_it_bears_are_told(
    annotator: Annotator, connect: Callable[[str, bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "CONNECTIONS", 4)
    with running(create_app(annotator)) as (address, server):
        silent = [connect(address, b"") for _ in range(4)]
        until(lambda: len(server.server_state.connections) == 4)
        assert requests.get(f"{address}/health", timeout=guard(9)).status_code == 503
        for connection in silent:
            connection.close()
        until(lambda: not server.server_state.connections)
        assert requests.get(f"{address}/health", timeout=guard(9)).status_code == 200


def test_nothing_becomes_a_websocket(service: str, connect: Callable[[str, bytes], socket.socket]) -> None:
    """The protocol of the connection would stay for ever, and look each PATIENCE seconds after what is gone."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    asked = connect(service, b"GET /health HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
    assert asked.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_half_sent_bodies_are_no_more_than_the_queue_holds(
    annotator: Annotator, connect: Callable[[str, bytes], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    with running(create_app(annotator, queue=2)) as (address, _):
        halves = [connect(address, HALF) for _ in range(2)]
        until(lambda: requests.get(f"{address}/ready", timeout=guard(9)).status_code == 503)
        assert b" 429 " in connect(address, HALF).recv(4096)
        halves[0].close()
        until(lambda: requests.get(f"{address}/ready", timeout=guard(9)).status_code == 200)
        assert requests.post(f"{address}/v2/entities", json=BODY, timeout=guard(9)).status_code == 200
        halves[1].close()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_which_was_for_this_machine_only(
    ruled: Path, which: signal.Signals, connect: Callable[[str, bytes], socket.socket]
) -> None:
    with start_service(ruled / "packages/ruled/assembled") as (address, process):
        connections = psutil.Process(process.pid).net_connections()
        assert [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN] == ["127.0.0.1"]
        for _ in range(QUEUE - 1):
            connect(address, HALF)
        with ThreadPoolExecutor() as pool:
            body = {"texts": [TEXT * 2000]}
            post = pool.submit(requests.post, f"{address}/v2/entities", json=body, timeout=guard(30))
            until(lambda: not requests.get(f"{address}/ready", timeout=guard(9)).ok or post.done())
            process.send_signal(which)
            assert post.result().status_code in (200, 503)
        assert process.wait(guard(15)) in (0, -which)


# Workers


@pytest.mark.slow
def test_workers_share_the_work_and_end_together(ruled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "sesame")
    with start_service(ruled / "packages/ruled/assembled", "--workers", "2") as (address, process):
        found = psutil.Process(process.pid).children()
        workers = [child for child in found if any("--multiprocessing-fork" in part for part in child.cmdline())]
        assert len(workers) == 2

        def ask(_: int) -> dict[str, Any]:
            headers = {"X-API-Key": "sesame"}
            found = requests.post(f"{address}/v2/entities", json={"texts": [TEXT]}, headers=headers, timeout=guard(20))
            return {"status": found.status_code, **found.json()}

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(100)))
        assert all(answer == answers[0] for answer in answers) and answers[0]["status"] == 200
        assert len(answers[0]["results"][0]["entities"]) == 4
        assert requests.post(f"{address}/v2/entities", json=BODY, timeout=guard(9)).status_code == 401
        process.terminate()
        assert process.wait(guard(20)) == 0
        until(lambda: not any(worker.is_running() for worker in workers))


def test_more_workers_than_the_machine_bears_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with pytest.raises(StepError, match=f"{cores} cores for {cores + 1} workers"):
        serve("en_nothing", workers=cores + 1)
    with pytest.raises(StepError, match=r"workers take .* GB each, and .* are free"):
        check_memory(1_000_000, 10**9)


def test_workers_share_the_cores_and_their_memory_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_machine(2)
    assert os.environ["OMP_NUM_THREADS"] == "1", "who sets it has a reason"
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_machine(2)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    check_memory(2, 10**6)
    assert "2 workers take 0.0 GB of memory, 0.0 GB each, and the process" in words(capsys.readouterr().out)


# The log, and the page that describes the service


def test_the_log_has_a_line_for_each_request_and_never_what_it_says(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bert_ner.serve")
    client.post("/v2/ask", json={"texts": ["Turku is secret"], "question": "Who has a secret?"})
    client.post("/v2/ask", json={"texts": "secret"})
    client.get("/Mira%20Solberg%20secret/" + "secret" * 1000)
    client.request("SECRET", "/v2/ask?secret")
    client.post("/v2/ask", content=b" " * (MAX_BYTES + 1))
    lines = [record.message for record in caplog.records if record.name == "bert_ner.serve"]
    rows = [json.loads(line) for line in lines]
    assert [(row["method"], row["path"], row["status"]) for row in rows] == [
        ("POST", "/v2/ask", 200),
        ("POST", "/v2/ask", 422),
        ("GET", "-", 404),
        ("-", "/v2/ask", 405),
        ("POST", "/v2/ask", 413),
    ]
    assert all(row["milliseconds"] > 0 for row in rows) and "secret" not in "".join(lines).lower()


def test_the_description_names_nothing_elsewhere(client: TestClient) -> None:
    found = re.findall(r'(?:src|href)="([^"]*)"', client.get("/docs").text)
    assert len(found) == 3
    for path in found:
        assert path.startswith("/") and client.get(path).status_code == 200, path


def test_the_description_needs_no_network(service: str, browser: Browser) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{service}/docs")
    expect(page.get_by_text("/v2/entities").first).to_be_visible(timeout=guard(9000))
    assert len(asked) > 3 and all(url.startswith((service, "data:")) for url in asked)
    page.close()


# Starting


def test_a_mistaken_pipeline_is_told_before_there_is_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepError, match="en_nothing cannot be loaded"):
        serve("en_nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.annotate.get_installed_models", lambda: [])
    with pytest.raises(StepError, match="no pipeline yet"):
        serve()


# Many and odd requests


@pytest.mark.slow
def test_no_request_that_its_description_allows_makes_it_fail(service: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{service}/openapi.json"]
    options = ["--checks", "not_a_server_error,response_schema_conformance,status_code_conformance", "--seed", "1"]
    command += [*options, "--max-examples", "25"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=guard(120))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_many_clients_get_answers_or_are_told_to_come_again(ruled: Path) -> None:
    with start_service(ruled / "packages/ruled/assembled") as (address, process):
        run_load(address, 50, 1)
        before = memory_of(process.pid)
        answers = run_load(address, 50, 4)
        assert {status for status, _ in answers} <= {200, 429} and sum(status == 200 for status, _ in answers) > 20
        assert memory_of(process.pid) - before < 30


def read_requirements(lines: list[str]) -> dict[str, Requirement]:
    found = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {one.name.lower(): one for one in found}


@pytest.mark.parametrize(("program", "end"), [("app/service.py", "# The page"), ("app/page.py", "# The end")])
def test_the_app_needs_what_it_imports_and_nothing_else(program: str, end: str) -> None:
    """Apart from what comes with a library in any case: what spaCy, thinc for one, and FastAPI themselves require."""
    lines = [*(ROOT / "app/requirements.txt").read_text("utf8").splitlines(), "# The end"]
    needed = read_requirements(lines[: lines.index(end)])
    bounds = read_requirements((ROOT / "requirements.txt").read_text("utf8").splitlines())
    assert all(one.specifier == bounds[name].specifier for name, one in needed.items())
    owners = packages_distributions()
    files = closure(["app/service.py", program])
    trees = [ast.parse((ROOT / file).read_bytes()) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    roots = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"app", "bert_ner", "common"}
    roots -= {"cupy"}  # which is for the CUDA of a machine, so that nothing can require it
    imported = {owners[root][0].lower().replace("_", "-") for root in roots}
    brought = {Requirement(line).name.lower() for name in ("spacy", "fastapi") for line in requires(name) or ()}
    assert imported - brought <= set(needed) <= imported


def test_the_image_has_what_it_copies_and_a_user_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf8").splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users and users[-1] != "USER root" and lines[-1].startswith("CMD")
    sources = [part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]]
    for source in sources:
        assert "$" in source or source.startswith("--") or (ROOT / source).exists(), source
    assert re.search(r"0\.0\.0\.0", lines[-1])
