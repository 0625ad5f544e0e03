"""Serve a pipeline over HTTP: entities, concepts, and answers to questions about documents."""

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

from scripts.application import (
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
    find_newest,
    load_pipeline,
)
from scripts.files import MAX_CHARACTERS
from scripts.steps import StepError, run

API_KEY = "BERT_NER_API_KEY"  # the environment variable; without it everybody who reaches the port may ask
MAX_BYTES = 12 * MAX_CHARACTERS + 100_000  # of a request: JSON may write a character in twelve, as \\ud83d\\ude00
QUEUE = 16  # requests that are read, wait or run; more are told to come again
CONNECTIONS = 250  # of all clients, those that send nothing included
TIMEOUT = 60.0  # seconds for one request, waiting included
PATIENCE = 20.0  # seconds for a client to send the head of a request, and for its body
GRACE = 5.0  # seconds to end what runs when the service is told to stop; Docker kills after 10
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
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
    key = read_key()
    name = pipeline or find_newest(Path.cwd())
    annotator = load_pipeline(name)
    if host not in ("127.0.0.1", "::1", "localhost") and not key:
        msg.warn(f"Everybody who reaches {host} may ask: set {API_KEY}.")
    msg.info(f"Serving {name} at http://{host}:{port}/docs")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        Server(create_app(annotator, key), host, port).run()


def read_key() -> str:
    """The key that requests need, from the environment; empty if none is set.

    RAISES (StepError): If no client could send it.
    """
    key = os.environ.get(API_KEY)
    if key is None:
        return ""
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise StepError(
            f"{API_KEY} is empty, has a character that is not ASCII, or white space at an end: no header can hold it.",
            "Set another key, or unset it: without a key everybody who reaches the port may ask.",
        )
    return key


def create_app(annotator: Annotator, key: str = "", queue: int = QUEUE, timeout: float = TIMEOUT) -> FastAPI:
    """The service. One thread uses the pipeline. `app.state.stop` ends what runs within GRACE seconds.

    annotator (Annotator): The pipeline.
    key (str): What the header X-API-Key has to be, if anything.
    queue (int): How many requests may be read, wait or run.
    timeout (float): Seconds for one, from its head to its answer.
    RETURNS (FastAPI): The application.
    """
    worker = ThreadPoolExecutor(1, "pipeline")
    places: set[asyncio.Timeout] = set()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        latest = asyncio.get_running_loop().time() + GRACE
        for place in places:
            if not place.expired():
                place.reschedule(min(latest, place.when() or latest))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    @contextlib.asynccontextmanager
    async def queued() -> AsyncIterator[None]:
        """A place in the queue, until the deadline."""
        if stopping:
            raise HTTPException(503, "The service is being stopped.", {"Retry-After": "5"})
        if len(places) >= queue:
            raise HTTPException(429, "Too many requests at once.", {"Retry-After": "1"})
        place = asyncio.timeout(timeout)
        try:
            async with place:
                places.add(place)
                yield
        except TimeoutError as error:
            why = "The service is being stopped." if stopping else f"It took longer than {timeout:g} seconds."
            raise HTTPException(503, why, {"Retry-After": "5"}) from error
        finally:
            places.discard(place)

    class Guarded(APIRoute):
        """A route whose request is read only if it has the key and a place in the queue."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                given = request.headers.get(KEY_HEADER.model.name, "")
                if key and not secrets.compare_digest(given.encode(), key.encode()):
                    raise HTTPException(401, f"The header {KEY_HEADER.model.name} is missing or wrong.")
                async with queued():
                    await _read(request)
                    return await handle(request)

            return guard

    async def use(work: Callable[[Callable[[int, int], None]], Any]) -> Any:
        """Do work in the pipeline's thread; what it is given as `advance` ends it when nobody waits any more."""
        given_up = threading.Event()

        def advance(done: int, total: int) -> None:
            if given_up.is_set():
                raise TimeoutError

        try:
            return await asyncio.get_running_loop().run_in_executor(worker, work, advance)
        finally:
            given_up.set()

    async def analyze(texts: list[str]) -> list[Analysis]:
        _check_size(texts)
        found: list[Analysis] = await use(lambda advance: annotator.annotate(texts, advance=advance))
        return found

    app = FastAPIOffline(  # FastAPI's own page of /docs comes from servers of others
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},
        title="Named entities, actors, factors and mechanisms",
        version="1",
        description="Offsets count characters (Unicode code points). Scores are how likely exactly this is right.",
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
            422: "Not as described",
            429: "Too many requests at once",
            503: "Busy, or too slow",
        }.items()
    }
    problems[413]["content"] = {"text/plain": {}}  # FastAPI's own answer to more than max_body_size
    router = APIRouter(prefix="/v1", route_class=Guarded, responses=problems, dependencies=[Depends(KEY_HEADER)])

    @router.post("/entities")
    async def find_entities(body: Texts) -> list[Entities]:
        """Named entities of each text, with offsets and scores."""
        return [Entities(entities=analysis.entities) for analysis in await analyze(body.texts)]

    @router.post("/concepts")
    async def find_concepts(body: Texts) -> list[Concepts]:
        """Actors, factors and mechanisms of each text, and which seem to belong together."""
        found = await analyze(body.texts)
        return [Concepts(concepts=analysis.concepts, triples=analysis.triples) for analysis in found]

    @router.post("/ask")
    async def answer_question(body: Question) -> Answer:
        """An answer from the texts alone, with the sentences it rests on."""
        _check_size(body.texts)
        local = await use(lambda advance: ask(annotator.annotate(body.texts, advance=advance), body.question))
        return await _leave_to_daemon(partial(draft, local, body.question))

    app.include_router(router)

    @app.get("/health")
    async def tell_health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: problems[503]})
    async def tell_readiness() -> dict[str, str]:
        """Whether the pipeline is loaded and a request would be taken."""
        if stopping or len(places) >= queue:
            raise HTTPException(503, "Too many requests at once.", {"Retry-After": "1"})
        return {"status": "ready", "pipeline": str(annotator.nlp.meta["name"])}

    @app.exception_handler(RequestValidationError)
    async def tell_mistakes(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input, which may be megabytes, and is nobody's business but the sender's
        mistakes = [{"where": list(map(str, row["loc"])), "what": row["msg"]} for row in error.errors()]
        return JSONResponse({"detail": mistakes}, 422)

    return app


def _check_size(texts: list[str]) -> None:
    try:
        check_size(texts)
    except StepError as error:
        raise HTTPException(413, f"{error.problem} {error.remedy}") from error


async def _read(request: Request) -> None:
    """Read the body of a request, where FastAPI will find it."""
    try:
        async with asyncio.timeout(PATIENCE):
            await request.body()
    except TimeoutError as error:
        raise HTTPException(
            408, f"It took longer than {PATIENCE:g} seconds to send.", {"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "It was not sent whole.") from error


async def _leave_to_daemon(call: Callable[[], Answer]) -> Answer:
    """Do something in a thread that may hang: the process can end without it."""
    done: Future[Answer] = Future()
    done.set_running_or_notify_cancel()  # from now on nobody can cancel it, which would be in the thread's way

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(done)


class _Log:
    """Writes a line of JSON for each request: never what it says, nor a path or method that a client made up."""

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
            method = scope["method"] if scope["method"] in METHODS else "-"
            path = getattr(scope.get("route"), "path", "-")
            log.info(json.dumps({"method": method, "path": path, "status": status, "milliseconds": milliseconds}))


class Server(uvicorn.Server):
    """Serves the application; told to stop, it answers what runs within GRACE seconds.

    app (FastAPI): From create_app.
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
                http=_Impatient,
                access_log=False,
                log_level="warning",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=round(GRACE) + 3,  # then it would cancel requests, with a traceback for each
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.stop()
        await super().shutdown(sockets)


class _Impatient(H11Protocol):
    """Closes connections that have not sent the head or the body of a request after PATIENCE seconds, or twice that."""

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
    run(serve)
