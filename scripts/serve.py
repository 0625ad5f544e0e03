"""Serve a pipeline over HTTP: entities, concepts, and answers to questions about documents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from pydantic import AfterValidator, BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from wasabi import msg

from scripts.application import (
    MAX_CHARACTERS,
    MAX_DOCUMENTS,
    Analysis,
    Annotator,
    Answer,
    Concept,
    Entity,
    Triple,
    ask,
    check_size,
    draft,
    find_pipelines,
    load_pipeline,
)
from scripts.steps import StepError, run

API_KEY = "BERT_NER_API_KEY"  # the environment variable; without it everybody who reaches the port may ask
MAX_BYTES = 4 * MAX_CHARACTERS + 100_000  # of a request, in UTF-8
QUEUE = 16  # requests that wait or run; more are told to come again
TIMEOUT = 60.0  # seconds for one request, waiting included
EXAMPLE = "My name is Wolfgang and I live in Berlin."
KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description=f"Needed if {API_KEY} is set.")
log = logging.getLogger("bert_ner.serve")


def _whole(text: str) -> str:
    """Refuse half a character (a lone surrogate), which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half a character") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Texts(BaseModel):
    """Texts to analyse."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_DOCUMENTS, examples=[[EXAMPLE]])


class Question(Texts):
    """A question about texts."""

    question: Text = Field(min_length=1, max_length=1000, examples=["Who is mentioned?"])


class Entities(BaseModel):
    """The entities of a text."""

    entities: list[Entity]


class Concepts(BaseModel):
    """The actors, factors and mechanisms of a text, and which seem to belong together."""

    concepts: list[Concept]
    triples: list[Triple]


class Problem(BaseModel):
    """What was wrong with a request."""

    detail: Any


def serve(
    pipeline: Annotated[str, typer.Argument(help="Folder or installed package; else the newest of the project")] = "",
    host: Annotated[str, typer.Option(help="Address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port", min=0, max=65535)] = 8000,
) -> None:
    """Serve a pipeline until interrupted."""
    name = pipeline or next(iter(find_pipelines(Path.cwd()).values()), "")
    if not name:
        raise StepError("There is no pipeline yet.", "Train one: make quickstart")
    annotator = load_pipeline(name)
    if host not in ("127.0.0.1", "::1", "localhost") and not os.environ.get(API_KEY):
        msg.warn(f"Everybody who reaches {host} may ask: set {API_KEY}.")
    msg.info(f"Serving {name} at http://{host}:{port}/docs")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    uvicorn.run(
        create_app(annotator), host=host, port=port, access_log=False, log_level="warning", timeout_graceful_shutdown=10
    )


def check_key(given: Annotated[str | None, Depends(KEY_HEADER)]) -> None:
    """Refuse a request without the key, if one is set; compared in constant time."""
    key = os.environ.get(API_KEY)
    if key and not secrets.compare_digest((given or "").encode(), key.encode()):
        raise HTTPException(401, "The header X-API-Key is missing or wrong.")


def create_app(annotator: Annotator, queue: int = QUEUE, timeout: float = TIMEOUT) -> FastAPI:
    """The service. One thread uses the pipeline.

    annotator (Annotator): The pipeline.
    queue (int): How many requests may wait or run.
    timeout (float): Seconds for one, waiting included.
    RETURNS (FastAPI): The application.
    """
    worker = ThreadPoolExecutor(1, "pipeline")
    waiting = 0

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    async def analyze(texts: list[str]) -> list[Analysis]:
        nonlocal waiting
        try:
            check_size(texts)
        except StepError as error:
            raise HTTPException(413, f"{error.problem} {error.remedy}") from error
        if waiting >= queue:
            raise HTTPException(429, "Too many requests at once.", {"Retry-After": "1"})
        deadline = time.monotonic() + timeout

        def advance(done: int, total: int) -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        waiting += 1
        try:
            work = partial(annotator.annotate, texts, advance=advance)
            return await asyncio.get_running_loop().run_in_executor(worker, work)
        except TimeoutError as error:
            raise HTTPException(503, f"It took longer than {timeout:g} seconds.", {"Retry-After": "5"}) from error
        finally:
            waiting -= 1

    app = FastAPI(
        title="Named entities, actors, factors and mechanisms",
        version="1",
        description="Offsets count characters (Unicode code points). Scores are how likely exactly this is right.",
        lifespan=lifespan,
    )
    app.add_middleware(_Limit)
    app.add_middleware(_Log)
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": what}
        for code, what in {
            400: "Not readable",
            401: "No valid key",
            413: "Too much text",
            422: "Not as described",
            429: "Too many requests at once",
            503: "Busy, or too slow",
        }.items()
    }
    post: dict[str, Any] = {"responses": problems, "dependencies": [Depends(check_key)]}

    @app.post("/v1/entities", **post)
    async def find_entities(body: Texts) -> list[Entities]:
        """Named entities of each text, with offsets and scores."""
        return [Entities(entities=analysis.entities) for analysis in await analyze(body.texts)]

    @app.post("/v1/concepts", **post)
    async def find_concepts(body: Texts) -> list[Concepts]:
        """Actors, factors and mechanisms of each text, and which seem to belong together."""
        found = await analyze(body.texts)
        return [Concepts(concepts=analysis.concepts, triples=analysis.triples) for analysis in found]

    @app.post("/v1/ask", **post)
    async def answer_question(body: Question) -> Answer:
        """An answer from the texts alone, with the sentences it rests on."""
        analyses = await analyze(body.texts)
        return await asyncio.to_thread(lambda: draft(ask(analyses, body.question), body.question))

    @app.get("/health")
    async def tell_health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: problems[503]})
    async def tell_readiness() -> dict[str, str]:
        """Whether the pipeline is loaded and a request would be taken."""
        if waiting >= queue:
            raise HTTPException(503, "Too many requests at once.", {"Retry-After": "1"})
        return {"status": "ready", "pipeline": str(annotator.nlp.meta["name"])}

    @app.exception_handler(RequestValidationError)
    async def tell_mistakes(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input, which may be megabytes, and is nobody's business but the sender's
        mistakes = [{"where": list(map(str, row["loc"])), "what": row["msg"]} for row in error.errors()]
        return JSONResponse({"detail": mistakes}, 422)

    return app


class _Limit:
    """Ends requests of more than MAX_BYTES, whether they say so or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size = 0
        answered = False

        async def receive_some() -> Message:
            nonlocal size, answered
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BYTES:
                answered = True
                response = JSONResponse({"detail": f"A request has at most {MAX_BYTES:,} bytes."}, 413)
                await response(scope, receive, send)
                raise _TooLarge
            return message

        async def send_unless_answered(message: Message) -> None:
            if not answered:
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self.app(scope, receive_some, send_unless_answered)


class _TooLarge(Exception):
    pass


class _Log:
    """Writes a line of JSON for each request: never what it says."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            milliseconds = round(1000 * (time.perf_counter() - started), 1)
            row = {"method": scope["method"], "path": scope["path"], "status": status, "milliseconds": milliseconds}
            log.info(json.dumps(row))


if __name__ == "__main__":
    run(serve)
