from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import spacy
from fastapi.testclient import TestClient
from spacy.language import Language
from spacy.tokens import Doc

from scripts.application import MAX_CHARACTERS, MAX_DOCUMENTS, Annotator, load_pipeline
from scripts.benchmark import memory_of, press, start_service
from scripts.serve import MAX_BYTES, create_app, serve
from scripts.steps import StepError
from tests.conftest import ROOT, TEXT, python, words


@pytest.fixture(scope="module")
def service(ruled: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The service as a process."""
    with start_service(ruled / "training/ruled/model-best") as started:
        yield started


@pytest.fixture
def client(ruled: Path) -> Iterator[TestClient]:
    with TestClient(create_app(load_pipeline(str(ruled / "training/ruled/model-best")))) as client:
        yield client


@Language.component("sleeper")
def sleep(doc: Doc) -> Doc:
    time.sleep(0.3)
    return doc


def slow_annotator() -> Annotator:
    nlp = spacy.blank("en")
    nlp.add_pipe("sleeper")
    return Annotator(nlp)


def test_entities_concepts_and_answers_come_with_offsets(service: tuple[str, subprocess.Popen[str]]) -> None:
    address, _ = service
    texts = [TEXT, "\U0001f600 Turku"]
    first, second = requests.post(f"{address}/v1/entities", json={"texts": texts}, timeout=9).json()
    assert [(ent["text"], ent["label"]) for ent in first["entities"]][:2] == [("Mira Solberg", "PER"), ("Turku", "LOC")]
    assert second["entities"] == [{"start": 2, "end": 7, "text": "Turku", "label": "LOC", "score": None}]
    found = requests.post(f"{address}/v1/concepts", json={"texts": texts}, timeout=9).json()[0]
    for span in [*first["entities"], *found["concepts"]]:
        assert TEXT[span["start"] : span["end"]] == span["text"]
    triple = found["triples"][0]
    told = [found["concepts"][triple[name]]["text"] for name in ("actor", "mechanism", "object")]
    assert told == ["Mira Solberg", "launched", "party"]
    body = {"texts": texts, "question": "Who is mentioned?"}
    answer = requests.post(f"{address}/v1/ask", json=body, timeout=9).json()
    assert answer["text"] == "Mira Solberg." and answer["evidence"][0]["document"] == 0 and not answer["drafted"]


def test_the_service_is_ready_and_for_this_machine_only(service: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = service
    assert requests.get(f"{address}/health", timeout=9).json() == {"status": "ok"}
    assert requests.get(f"{address}/ready", timeout=9).json()["status"] == "ready"
    listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    examples = json.dumps(requests.get(f"{address}/openapi.json", timeout=9).json())
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
        response = client.post("/v1/entities", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status, response.text
        assert response.json()["detail"] and "Mira Solberg" not in response.text


def test_a_key_is_asked_for_where_one_is_set(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"texts": ["Turku"]}
    monkeypatch.setenv("BERT_NER_API_KEY", "sesame")
    assert client.post("/v1/entities", json=body).status_code == 401
    for wrong in (b"wrong", b"\xc3\xa5", b"ses"):
        assert client.post("/v1/entities", json=body, headers={b"X-API-Key": wrong}).status_code == 401
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.post("/v1/entities", json=body, headers={"X-API-Key": "sesame"}).status_code == 200


def test_more_than_the_queue_holds_is_told_to_come_again() -> None:
    with TestClient(create_app(slow_annotator(), queue=2)) as client:
        found: list[int] = []

        def post() -> None:
            response = client.post("/v1/entities", json={"texts": ["Turku"]})
            found.append(response.status_code)
            assert response.status_code == 200 or response.headers["Retry-After"] == "1"

        threads = [threading.Thread(target=post) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        for thread in threads:
            thread.join()
        assert sorted(found) == [200, 200, 429, 429, 429, 429]
        assert client.get("/ready").status_code == 200


def test_what_takes_too_long_is_given_up_and_the_next_is_served() -> None:
    with TestClient(create_app(slow_annotator(), timeout=0.5)) as client:
        response = client.post("/v1/entities", json={"texts": ["Turku"] * 40})
        assert response.status_code == 503 and "longer than 0.5 seconds" in response.text
        assert client.post("/v1/entities", json={"texts": ["Turku"]}).status_code == 200


def test_the_log_has_a_line_for_each_request_and_never_the_text(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bert_ner.serve")
    client.post("/v1/ask", json={"texts": ["Turku is secret"], "question": "Who has a secret?"})
    client.post("/v1/ask", json={"texts": "secret"})
    rows = [json.loads(record.message) for record in caplog.records if record.name == "bert_ner.serve"]
    assert [(row["method"], row["path"], row["status"]) for row in rows] == [
        ("POST", "/v1/ask", 200),
        ("POST", "/v1/ask", 422),
    ]
    assert all(row["milliseconds"] > 0 for row in rows) and "secret" not in caplog.text


def test_a_mistaken_pipeline_is_told_before_there_is_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepError, match="en_nothing"):
        serve("en_nothing")
    done = python("-m", "scripts.serve", "en_nothing", cwd=ROOT)
    assert done.returncode == 1 and "en_nothing cannot be loaded" in words(done.stdout)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scripts.application.get_installed_models", lambda: [])
    with pytest.raises(StepError, match="no pipeline yet"):
        serve()


def test_no_request_that_its_description_allows_makes_it_fail(
    service: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, process = service
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json"]
    options = ["--checks", "not_a_server_error,response_schema_conformance,status_code_conformance", "--seed", "1"]
    command += [*options, "--max-examples", "25"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert process.poll() is None


def test_many_clients_get_answers_or_are_told_to_come_again(service: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = service
    press(address, 50, 1)
    before = memory_of(process.pid)
    answers = press(address, 50, 4)
    assert {status for status, _ in answers} <= {200, 429} and sum(status == 200 for status, _ in answers) > 100
    assert memory_of(process.pid) - before < 30


def test_an_interrupted_service_answers_first_and_ends_well(ruled: Path) -> None:
    with start_service(ruled / "training/ruled/model-best") as (address, process):
        found: list[int] = []
        body = {"texts": [TEXT * 300]}

        def post() -> None:
            found.append(requests.post(f"{address}/v1/entities", json=body, timeout=30).status_code)

        thread = threading.Thread(target=post)
        thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        thread.join()
        assert found == [200] and process.wait(15) == 0


def test_the_image_has_what_it_copies_and_a_user_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf8").splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users and users[-1] != "USER root" and lines[-1].startswith("CMD")
    sources = [part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]]
    for source in sources:
        assert "$" in source or source.startswith("--") or (ROOT / source).exists(), source
    assert re.search(r"0\.0\.0\.0", lines[-1])
