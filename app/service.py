"""Serve a pipeline over HTTP. It finds entities and concepts, and answers questions about documents."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import h11
import psutil
import typer
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from fastapi.security.http import HTTPBase
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess
from wasabi import msg

from app.annotate import Analysis, Annotator, ConceptOut, EntityOut, Layer, TripleOut, find_newest, load_pipeline
from app.files import MAX_CHARACTERS, MAX_DOCUMENTS, check_size
from app.label_studio import MOST_TASKS, Health, Predictions, Tasks, Version, find_control, predict, read_texts
from app.questions import NEEDED, Answer, ask, draft
from common.errors import StepError, main

API_KEY = "BERT_NER_API_KEY"  # environment variable; without it everybody who reaches the port may send requests
MAX_BYTES = 12 * MAX_CHARACTERS + 100_000  # of a request: JSON may write a character in twelve bytes, \ud83d\ude00
QUEUE = 200  # requests that may be read, wait or run at a time
QUEUE_BYTES = 16 * MAX_BYTES  # that the bodies of these requests may have together
CONNECTIONS = 250  # that may be open at a time, including those on which nothing is sent
TIMEOUT = 60.0  # seconds for one request, including its wait
PATIENCE = 20.0  # seconds that a client has for the head of a request, for its body, and to read on in an answer
GRACE = 5.0  # seconds that requests have to end when the service is stopped; Docker kills it after 10
STOPPING = "The service is being stopped."
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
EXAMPLE = "My name is Wolfgang and I live in Berlin."
KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description=f"Needed if {API_KEY} is set.")
# Not HTTPBasic, which refuses names of users that are not in ASCII, whether a key is set or not
BASIC = HTTPBase(scheme="basic", auto_error=False, description=f"The password is the key, if {API_KEY} is set.")
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
    workers: Annotated[int, typer.Option(help="Processes that share the cores, each with the pipeline", min=1)] = 1,
) -> None:
    """Serve a pipeline until the process is interrupted."""
    key = read_key()
    name = pipeline or find_newest(Path.cwd())
    if workers > 1:
        share_machine(workers)
    annotator = load_pipeline(name)
    if host not in ("127.0.0.1", "::1", "localhost") and not key:
        msg.warn(f"Everybody who reaches {host} may send requests: set {API_KEY}.")
    msg.info(f"Serving {name} at http://{host}:{port}/docs")
    if workers > 1:
        each = psutil.Process().memory_info().rss
        del annotator  # each worker loads its own
        gc.collect()
        check_memory(workers, each)
        config = configure(partial(_create_worker, name, key), host, port, factory=True, workers=workers)
        Multiprocess(config, [config.bind_socket()]).run()
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(configure(create_app(annotator, key), host, port)).run()


def share_machine(workers: int) -> None:
    """Give each worker its share of the cores, by an environment variable that it inherits.

    workers (int): Their number.
    RAISES (StepError): If there are fewer cores.
    """
    # `sched_getaffinity` counts those that this process may use, and is not there on every system
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        raise StepError(
            f"There are {cores} cores for {workers} workers, which would take them from each other.",
            f"Start at most {cores}: --workers {cores}",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))


def check_memory(workers: int, each: int) -> None:
    """Say how much memory the workers will take.

    workers (int): Their number.
    each (int): The memory of a process that has the pipeline, in bytes.
    RAISES (StepError): If there is less.
    """
    own, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    said = f"{workers} workers take {workers * each / 1e9:.1f} GB of memory, {each / 1e9:.1f} GB each"
    if workers * each > free:
        raise StepError(f"{said}, and {free / 1e9:.1f} GB are free.", f"Start at most {max(1, free // each)}.")
    msg.info(f"{said}, and the process that starts them {own / 1e9:.1f} GB.")


def _create_worker(name: str, key: str) -> FastAPI:
    """Create the service in a process of its own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return create_app(load_pipeline(name), key)


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
    """Create the service. The state of its lifespan has `stop`, which ends running requests within GRACE seconds.

    annotator (Annotator): The pipeline.
    key (str): The value that the header X-API-Key must have, or an empty string for none.
    queue (int): Number of requests that may be read, wait or run at a time.
    timeout (float): Seconds for one request, from the end of its head to its answer.
    RETURNS (FastAPI): The application.
    """
    queued: dict[asyncio.Timeout, int] = {}  # the deadlines of the requests in the queue, and the bytes of their bodies
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        latest = asyncio.get_running_loop().time() + GRACE
        for deadline in queued:
            end(deadline, latest)

    def end(deadline: asyncio.Timeout, latest: float) -> None:
        """Let a request end at a time, if it has not ended before."""
        if deadline in queued and not deadline.expired():
            deadline.reschedule(min(latest, deadline.when() or latest))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        gc.freeze()  # a look for garbage among the pipeline and all libraries would stop everything for 0.3 seconds
        yield {"stop": stop}
        gc.unfreeze()

    @contextlib.asynccontextmanager
    async def place_in_queue(size: int) -> AsyncIterator[asyncio.Timeout]:
        """Hold a place in the queue for a body of some bytes, and cancel what runs inside at the deadline."""
        if stopping:
            raise HTTPException(503, STOPPING, {"Retry-After": "5"})
        if len(queued) >= queue or sum(queued.values()) + size > QUEUE_BYTES:
            raise HTTPException(429, "Too many requests at once.", {"Retry-After": "1"})
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                queued[deadline] = size
                yield deadline
        except TimeoutError as error:
            why = STOPPING if stopping else f"It took longer than {timeout:g} seconds."
            raise HTTPException(503, why, {"Retry-After": "5"}) from error
        finally:
            queued.pop(deadline, None)

    class GuardedRoute(APIRoute):
        """A route that reads the body of a request only if it has the key and a place in the queue."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                given = request.headers.get(KEY_HEADER.model.name) or _read_password(request)
                if key and not secrets.compare_digest(given.encode(), key.encode()):
                    raise HTTPException(401, f"The header {KEY_HEADER.model.name} is missing or wrong.")
                # A body that comes in chunks does not say how long it is
                announced = request.headers.get("Content-Length", "" if "Transfer-Encoding" in request.headers else "0")
                size = int(announced) if announced.isdecimal() and len(announced) < 10 else MAX_BYTES
                async with place_in_queue(min(size, MAX_BYTES)) as deadline:
                    await _read_body(request)
                    request.state.leave = partial(end, deadline, 0.0)
                    return await handle(request)

            return guard

    async def analyze(texts: list[str], want: Collection[Layer], most: int = MAX_DOCUMENTS) -> list[Analysis]:
        try:
            check_size(texts, most)
        except StepError as error:
            raise HTTPException(413, f"{error.problem} {error.remedy}") from error
        return await asyncio.wrap_future(annotator.submit(texts, want))

    app = FastAPIOffline(  # FastAPI's own /docs loads its scripts from a public server
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},
        title="Named entities, actors, factors and mechanisms",
        version="2",
        description="Offsets count characters (Unicode code points).",
        lifespan=lifespan,
        max_body_size=MAX_BYTES,
    )
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
    for code in (413, 503):  # FastAPI's own answer to more than max_body_size, and uvicorn's to more than CONNECTIONS
        problems[code]["content"] = {"text/plain": {}}
    router = APIRouter(prefix="/v2", route_class=GuardedRoute, responses=problems, dependencies=[Depends(KEY_HEADER)])

    @router.post("/entities", response_model=EntitiesResponse)
    async def find_entities(body: Texts) -> Response:
        """Find the named entities of each text, with offsets and scores."""
        found = await analyze(body.texts, {"entities"})
        return _respond(EntitiesResponse(results=[TextEntities(entities=analysis.entities) for analysis in found]))

    @router.post("/concepts", response_model=ConceptsResponse)
    async def find_concepts(body: Texts) -> Response:
        """Find the actors, factors and mechanisms of each text, and which of them seem to belong together."""
        found = await analyze(body.texts, {"concepts"})
        return _respond(ConceptsResponse(results=[TextConcepts(concepts=a.concepts, triples=a.triples) for a in found]))

    @router.post("/ask", response_model=Answer)
    async def answer_question(body: Question) -> Response:
        """Answer a question from the texts alone, with the sentences that support the answer."""
        found = await analyze(body.texts, NEEDED)
        return _respond(await _run_in_daemon(lambda: draft(ask(found, body.question), body.question)))

    app.include_router(router)
    meta = annotator.nlp.meta
    version = f"{meta['lang']}_{meta['name']}-{meta['version']}"
    tool = APIRouter(
        prefix="/label-studio", route_class=GuardedRoute, responses=problems, dependencies=[Depends(BASIC)]
    )

    @tool.get("/health")
    async def get_health_of_backend() -> Health:
        """Say to Label Studio that the process lives."""
        return Health(model_version=version)

    @tool.post("/setup")
    async def set_up() -> Version:
        """Tell Label Studio which pipeline suggests. Its configuration comes again with each request."""
        return Version(model_version=version)

    @tool.post("/predict", response_model=Predictions)
    async def suggest(body: Tasks) -> Response:
        """Suggest names for Label Studio's tasks, with the labels that its project knows."""
        try:
            control = find_control(body.label_config)
            texts = read_texts(body.tasks, control)
        except ValueError as error:
            mistake = {"loc": ["body"], "msg": str(error), "type": "value_error"}
            raise RequestValidationError([mistake]) from error
        found = await analyze(texts, {"entities"}, MOST_TASKS)
        predictions = [predict(analysis.entities, control, version) for analysis in found]
        return _respond(Predictions(model_version=version, results=predictions))

    app.include_router(tool)

    @app.get("/health")
    async def get_health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: problems[503]})
    async def get_readiness() -> dict[str, str]:
        """Say whether the pipeline is loaded and the queue has room for a request."""
        if stopping or len(queued) >= queue:
            raise HTTPException(503, STOPPING if stopping else "Too many requests at once.", {"Retry-After": "1"})
        return {"status": "ready", "pipeline": str(annotator.nlp.meta["name"])}

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may be megabytes and should not reach anybody's logs
        mistakes = [{name: row[name] for name in ("loc", "msg", "type")} for row in error.errors()]
        return JSONResponse({"detail": mistakes}, 422)

    return app


def _read_password(request: Request) -> str:
    """Read the password of basic authentication, which is all that Label Studio can send, or an empty string."""
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return ""
    with contextlib.suppress(ValueError):
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    return ""


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


def _respond(answer: BaseModel) -> Response:
    """Write an answer. FastAPI would look at each of its parts before."""
    return Response(answer.model_dump_json(), media_type="application/json")


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


def configure(app: FastAPI | Callable[[], FastAPI], host: str, port: int, **settings: Any) -> uvicorn.Config:
    """Configure a server that answers running requests within GRACE seconds when it is stopped.

    app (FastAPI | Callable[[], FastAPI]): The application, as create_app returns it, or what makes it.
    host (str): Address to listen at.
    port (int): Port.
    **settings (Any): Other settings of uvicorn.
    RETURNS (uvicorn.Config): The configuration.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_ImpatientProtocol,
        ws="none",  # a connection that becomes a WebSocket would leave its protocol behind, which watches for ever
        access_log=False,
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=round(GRACE) + 3,  # after GRACE: uvicorn logs a traceback for what it cancels
        timeout_worker_healthcheck=120,  # a worker answers for the first time when it has loaded the libraries
        **settings,
    )


class _ImpatientProtocol(H11Protocol):
    """A protocol that closes connections on which a client does not send a request, or read an answer, in time.

    It looks every PATIENCE seconds, and so closes a connection between one and two times PATIENCE after it stood still.
    It tells the application when the server is stopped, which uvicorn does only after the last request has ended, and
    when a client leaves that waits for an answer.
    """

    # Private parts of other libraries
    #
    # uvicorn does not document the class, nor its attributes `app_state`, `cycle`, `conn`, `loop`, `scope` and
    # `transport`. This was checked with uvicorn 0.54.0 and h11 0.16.0. Where the class is gone, the import above fails
    # and names it. Where an attribute is gone, what uses it raises an AttributeError that names it, and the tests of
    # slow clients and of stopping fail.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watching.cancel()
        super().connection_lost(exc)
        if self.scope and (leave := self.scope["state"].get("leave")):
            leave()

    def shutdown(self) -> None:
        self.app_state["stop"]()
        super().shutdown()

    def _watch(self, before: tuple[object, object, int] | None) -> None:
        unread = self.transport.get_write_buffer_size()
        now = (self.cycle, self.conn.their_state, unread)
        if now == before and (unread or self.conn.their_state in (h11.IDLE, h11.SEND_BODY)):
            self.transport.abort()  # `close` would wait until the rest of an answer is read
        self.watching = self.loop.call_later(PATIENCE, self._watch, now)


if __name__ == "__main__":
    main(serve)
