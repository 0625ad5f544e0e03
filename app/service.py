"""Serve a pipeline over HTTP. It finds entities and concepts, and answers questions about documents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import h11
import typer
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from wasabi import msg

from app.annotate import Analysis, Annotator, ConceptOut, EntityOut, Layer, TripleOut, find_newest, load_pipeline
from app.files import MAX_CHARACTERS, MAX_DOCUMENTS, check_size
from app.questions import NEEDED, Answer, ask, draft
from common.errors import StepError, main

API_KEY = "BERT_NER_API_KEY"  # environment variable; without it everybody who reaches the port may send requests
MAX_BYTES = 12 * MAX_CHARACTERS + 100_000  # of a request: JSON may write a character in twelve bytes, \ud83d\ude00
QUEUE = 16  # requests that may be read, wait or run at a time
CONNECTIONS = 250  # that may be open at a time, including those on which nothing is sent
TIMEOUT = 60.0  # seconds for one request, including its wait
PATIENCE = 20.0  # seconds that a client has to send the head of a request, and again to send its body
GRACE = 5.0  # seconds that requests have to end when the service is stopped; Docker kills it after 10
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
EXAMPLE = "My name is Wolfgang and I live in Berlin."
KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description=f"Needed if {API_KEY} is set.")
log = logging.getLogger("bert_ner.serve")


def _whole(text: str) -> str:
    """Refuse a lone surrogate, which is half a character: JSON can hold it, and UTF-8 cannot."""
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


class TextEntities(BaseModel):
    """The entities of a text."""

    entities: list[EntityOut]


class EntitiesResponse(BaseModel):
    """The entities of each text, in the order of the request."""

    results: list[TextEntities]


class TextConcepts(BaseModel):
    """The actors, factors and mechanisms of a text, and which of them seem to belong together."""

    concepts: list[ConceptOut]
    triples: list[TripleOut]


class ConceptsResponse(BaseModel):
    """The concepts of each text, in the order of the request."""

    results: list[TextConcepts]


class Problem(BaseModel):
    """The reason why a request was refused."""

    detail: str


def serve(
    pipeline: Annotated[str, typer.Argument(help="Folder or installed package [default: the newest]")] = "",
    host: Annotated[str, typer.Option(help="Address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port", min=0, max=65535)] = 8000,
) -> None:
    """Serve a pipeline until the process is interrupted."""
    key = read_key()
    name = pipeline or find_newest(Path.cwd())
    annotator = load_pipeline(name)
    if host not in ("127.0.0.1", "::1", "localhost") and not key:
        msg.warn(f"Everybody who reaches {host} may send requests: set {API_KEY}.")
    msg.info(f"Serving {name} at http://{host}:{port}/docs")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        Server(create_app(annotator, key), host, port).run()


def read_key() -> str:
    """Read the key that requests need from the environment.

    RETURNS (str): The key, or an empty string if none is set.
    RAISES (StepError): If no client could send the key.
    """
    key = os.environ.get(API_KEY)
    if key is None:
        return ""
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise StepError(
            f"{API_KEY} is empty, has a character that is not ASCII, or white space at an end: no header can hold it.",
            "Set another key, or unset it: without a key everybody who reaches the port may send requests.",
        )
    return key


def create_app(annotator: Annotator, key: str = "", queue: int = QUEUE, timeout: float = TIMEOUT) -> FastAPI:
    """Create the service. One thread uses the pipeline. `app.state.stop` ends running requests within GRACE seconds.

    annotator (Annotator): The pipeline.
    key (str): The value that the header X-API-Key must have, or an empty string for none.
    queue (int): Number of requests that may be read, wait or run at a time.
    timeout (float): Seconds for one request, from the end of its head to its answer.
    RETURNS (FastAPI): The application.
    """
    worker = ThreadPoolExecutor(1, "pipeline")
    deadlines: set[asyncio.Timeout] = set()  # of the requests in the queue
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        latest = asyncio.get_running_loop().time() + GRACE
        for deadline in deadlines:
            if not deadline.expired():
                deadline.reschedule(min(latest, deadline.when() or latest))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    @contextlib.asynccontextmanager
    async def queued() -> AsyncIterator[None]:
        """Hold a place in the queue, and cancel what runs inside at the deadline."""
        if stopping:
            raise HTTPException(503, "The service is being stopped.", {"Retry-After": "5"})
        if len(deadlines) >= queue:
            raise HTTPException(429, "Too many requests at once.", {"Retry-After": "1"})
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                deadlines.add(deadline)
                yield
        except TimeoutError as error:
            why = "The service is being stopped." if stopping else f"It took longer than {timeout:g} seconds."
            raise HTTPException(503, why, {"Retry-After": "5"}) from error
        finally:
            deadlines.discard(deadline)

    class GuardedRoute(APIRoute):
        """A route that reads the body of a request only if it has the key and a place in the queue."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                given = request.headers.get(KEY_HEADER.model.name, "")
                if key and not secrets.compare_digest(given.encode(), key.encode()):
                    raise HTTPException(401, f"The header {KEY_HEADER.model.name} is missing or wrong.")
                async with queued():
                    await _read_body(request)
                    return await handle(request)

            return guard

    async def run_in_worker(work: Callable[[Callable[[int, int], None]], Any]) -> Any:
        """Run work in the pipeline's thread. Its argument `advance` raises as soon as nobody waits for the result."""
        given_up = threading.Event()

        def advance(done: int, total: int) -> None:
            if given_up.is_set():
                raise TimeoutError

        try:
            return await asyncio.get_running_loop().run_in_executor(worker, work, advance)
        finally:
            given_up.set()

    async def analyze(texts: list[str], want: Layer) -> list[Analysis]:
        _check_size(texts)
        found: list[Analysis] = await run_in_worker(lambda advance: annotator.annotate(texts, {want}, advance))
        return found

    app = FastAPIOffline(  # FastAPI's own /docs loads its scripts from a public server
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},
        title="Named entities, actors, factors and mechanisms",
        version="2",
        description="Offsets count characters (Unicode code points).",
        lifespan=lifespan,
        max_body_size=MAX_BYTES,
    )
    app.state.stop = stop
    app.add_middleware(_Log)
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": what}
        for code, what in {
            400: "Not readable",
            401: "No valid key",
            408: "Sent too slowly",
            413: "Too much text",
            429: "Too many requests at once",
            503: "Busy, or too slow",
        }.items()
    }
    problems[413]["content"] = {"text/plain": {}}  # FastAPI's own answer to more than max_body_size
    router = APIRouter(prefix="/v2", route_class=GuardedRoute, responses=problems, dependencies=[Depends(KEY_HEADER)])

    # FastAPI does not validate the answers again: they are instances of the models that it expects

    @router.post("/entities")
    async def find_entities(body: Texts) -> EntitiesResponse:
        """Find the named entities of each text, with offsets and scores."""
        found = await analyze(body.texts, "entities")
        return EntitiesResponse(results=[TextEntities(entities=analysis.entities) for analysis in found])

    @router.post("/concepts")
    async def find_concepts(body: Texts) -> ConceptsResponse:
        """Find the actors, factors and mechanisms of each text, and which of them seem to belong together."""
        found = await analyze(body.texts, "concepts")
        return ConceptsResponse(results=[TextConcepts(concepts=a.concepts, triples=a.triples) for a in found])

    @router.post("/ask")
    async def answer_question(body: Question) -> Answer:
        """Answer a question from the texts alone, with the sentences that support the answer."""
        _check_size(body.texts)
        local = await run_in_worker(lambda advance: ask(annotator.annotate(body.texts, NEEDED, advance), body.question))
        return await _run_in_daemon(partial(draft, local, body.question))

    app.include_router(router)

    @app.get("/health")
    async def get_health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: problems[503]})
    async def get_readiness() -> dict[str, str]:
        """Say whether the pipeline is loaded and the queue has room for a request."""
        if stopping or len(deadlines) >= queue:
            raise HTTPException(503, "Too many requests at once.", {"Retry-After": "1"})
        return {"status": "ready", "pipeline": str(annotator.nlp.meta["name"])}

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may be megabytes and should not reach anybody's logs
        mistakes = [{name: row[name] for name in ("loc", "msg", "type")} for row in error.errors()]
        return JSONResponse({"detail": mistakes}, 422)

    return app


def _check_size(texts: list[str]) -> None:
    try:
        check_size(texts)
    except StepError as error:
        raise HTTPException(413, f"{error.problem} {error.remedy}") from error


async def _read_body(request: Request) -> None:
    """Read the body of a request. Starlette keeps it, so that FastAPI's handler does not read it again."""
    try:
        async with asyncio.timeout(PATIENCE):
            await request.body()
    except TimeoutError as error:
        raise HTTPException(
            408, f"It took longer than {PATIENCE:g} seconds to send.", {"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "It was not sent whole.") from error


async def _run_in_daemon(call: Callable[[], Answer]) -> Answer:
    """Run a call that may hang in a daemon thread, which does not keep the process from ending."""
    done: Future[Answer] = Future()
    done.set_running_or_notify_cancel()  # a cancelled future would make set_result raise in the thread

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(done)


class _Log:
    """Middleware that logs a line of JSON for each request: no text, and no path or method that a client made up."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        finally:
            milliseconds = round(1000 * (time.perf_counter() - started), 1)
            method = scope["method"] if scope["method"] in METHODS else "-"
            path = getattr(scope.get("route"), "path", "-")
            log.info(json.dumps({"method": method, "path": path, "status": status, "milliseconds": milliseconds}))


class Server(uvicorn.Server):
    """A server that answers running requests within GRACE seconds when it is stopped.

    app (FastAPI): The application, as create_app returns it.
    host (str): Address to listen at.
    port (int): Port.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self.app = app
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=_ImpatientProtocol,
                access_log=False,
                log_level="warning",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=round(GRACE) + 3,  # after GRACE: uvicorn logs a traceback for what it cancels
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.stop()
        await super().shutdown(sockets)


class _ImpatientProtocol(H11Protocol):
    """A protocol that closes connections on which no head or body of a request is complete in time.

    It looks every PATIENCE seconds, and so closes a connection between one and two times PATIENCE after it stood still.
    `cycle`, `conn`, `loop` and `transport` are undocumented attributes of uvicorn 0.54's H11Protocol.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watching.cancel()
        super().connection_lost(exc)

    def _watch(self, before: tuple[object, object] | None) -> None:
        now = (self.cycle, self.conn.their_state)
        if now == before and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.close()
        self.watching = self.loop.call_later(PATIENCE, self._watch, now)


if __name__ == "__main__":
    main(serve)
