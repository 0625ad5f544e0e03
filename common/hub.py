"""The Hugging Face hub: asked with little patience, its files compared with its checksums, its answers in words."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from urllib3.util import Retry

from common.errors import StepError
from common.records import sha256

SECONDS = 8  # the longest wait for a sign of life of the hub; some calls of its client know no limit
INSTEAD = """To try the project without the hub:
    make quickstart
With the files of CoNLL-2003 and the small encoder, which comes from the package index:
    make all RUN=conll2003-minilm VARS="--vars.source path/to/conll2003"
With an encoder of your own, a folder with config.json, model.safetensors and a tokenizer:
    make all RUN=conll2003-minilm VARS="--vars.source path/to/conll2003 --vars.encoder path/to/encoder"
With a corpus of your own, in CoNLL columns or parquet, copy runs/quickstart.yml to runs/mine.yml, change it, and:
    make all RUN=mine"""


def check_hub() -> None:
    """Ask the hub for a sign of life, so that nobody waits for the retries of its client, and limit its patience.

    With HF_HUB_OFFLINE=1 nothing is asked: the client takes what is in its cache.

    RAISES (StepError): If there is no answer within SECONDS, name resolution included.
    """
    from huggingface_hub import configure_http_backend, constants

    if constants.HF_HUB_OFFLINE:
        return
    asked: dict[tuple[str | None, str | None], float] = {}
    configure_http_backend(lambda: _session(asked))
    constants.HF_HUB_DISABLE_XET = True  # its client, in Rust, would not know this patience
    failures = [f"no answer in {SECONDS} seconds"]

    def ask() -> None:
        try:
            _session(asked).head(constants.ENDPOINT)
            failures.clear()
        except Exception as error:  # whatever it is, it is told
            failures[:] = [explain(error)]

    asking = threading.Thread(target=ask, daemon=True)  # a name server that hangs knows no timeout
    asking.start()
    asking.join(SECONDS)
    if failures:
        raise StepError(f"The Hugging Face hub, {constants.ENDPOINT}, cannot be reached ({failures[0]}).", INSTEAD)


class SilenceError(StepError):
    """The hub kept us waiting for SECONDS."""


class _Impatient(requests.adapters.HTTPAdapter):
    """Waits SECONDS at most for a connection and for each piece of an answer, and asks a broken server some times.

    The errors it raises are none that the hub's client waits for, or takes as a reason to look in its cache.

    asked (dict[tuple[str | None, str | None], float]): When an address and a range of bytes were asked for first. The
        client asks again for what stops in the middle; if nothing came in SECONDS, nothing will.
    """

    def __init__(self, asked: dict[tuple[str | None, str | None], float]) -> None:
        self.asked = asked
        broken = [HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY]
        broken += [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT]
        super().__init__(
            max_retries=Retry(
                total=3,
                connect=0,
                read=False,
                status_forcelist=broken,
                allowed_methods=None,
                backoff_factor=0.5,
                respect_retry_after_header=False,
            )
        )

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        now = time.monotonic()
        first = self.asked.setdefault((request.url, request.headers.get("Range")), now)
        if request.method == "GET" and now - first >= SECONDS:
            raise SilenceError("it stops in the middle of a file", INSTEAD)
        try:
            return super().send(request, *args, **kwargs | {"timeout": SECONDS})
        except requests.exceptions.RetryError as error:
            raise StepError(f"it answers with an error again and again ({first_line(error)})", INSTEAD) from error
        except requests.Timeout as error:
            raise SilenceError(f"no answer in {SECONDS} seconds", INSTEAD) from error
        except requests.ConnectionError as error:
            raise StepError(f"no connection, or no answer in HTTP ({first_line(error)})", INSTEAD) from error


def _session(asked: dict[tuple[str | None, str | None], float]) -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Impatient(asked))
    return session


def fetch_snapshot(kind: str, name: str, revision: str, patterns: Sequence[str]) -> Path:
    """Fetch files of a repository into the cache of the hub's client, and compare them with the hub's checksums.

    RETURNS (Path): The folder of a commit, whose name it has.
    RAISES (StepError): If a file is not what the hub says. It is removed, so that it will be fetched again.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    found = None
    if not constants.HF_HUB_OFFLINE:
        try:
            found = HfApi().repo_info(name, revision=revision, repo_type=kind, files_metadata=True)
        except (KeyError, TypeError, AttributeError) as error:
            raise StepError(f"it answers in JSON, but not as a hub does ({first_line(error)})", INSTEAD) from error
    folder = Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    if found and found.sha != folder.name:
        raise StepError(f"it went from commit {found.sha} to {folder.name} meanwhile", "Run the same command again.")
    for file in (found and found.siblings) or ():
        path = folder / file.rfilename
        if path.is_file() and not _is_right(path, file):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise StepError(f"{file.rfilename} arrived with other bytes than its checksum says", INSTEAD)
    return folder


def _is_right(path: Path, file: Any) -> bool:
    """Whether a file has the checksum that the hub gives: SHA-256 of a large file, git's of any other, or none."""
    if file.lfs:
        return bool(sha256(path) == file.lfs.sha256)
    data = path.read_bytes()
    return file.blob_id in (None, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def explain(error: BaseException) -> str:
    """What an error of the hub's client comes from, in words: it wraps a refusal in errors that do not name it."""
    from huggingface_hub import errors

    chain = causes_of(error)
    for cause in reversed(chain):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and it is not in the cache"
        if isinstance(cause, json.JSONDecodeError):
            page = "a web page" if cause.doc.lstrip().startswith("<") else "broken JSON"
            return f"it answers with {page}; perhaps HF_ENDPOINT or a proxy leads to another server"
        if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            answer = f"it answers {status} {HTTPStatus(status).phrase}" if status in list(HTTPStatus) else f"{status}"
            if isinstance(cause, errors.GatedRepoError):
                return f"{answer}: ask for access on its page, then log in with `hf auth login`"
            if isinstance(cause, errors.RepositoryNotFoundError) or status == HTTPStatus.UNAUTHORIZED:
                return f"{answer}: it has no public repository of this name"
            if isinstance(cause, errors.RevisionNotFoundError):
                return f"{answer}: this repository has no such revision"
            return f"{answer}: {cause.server_message}" if cause.server_message else answer
    for cause in chain:
        if isinstance(cause, StepError):
            return cause.problem
    return first_line(error)


def causes_of(error: BaseException) -> list[BaseException]:
    """An error, then what it comes from, down to the first of all."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    return chain


def first_line(error: BaseException) -> str:
    """The first line of the error that began it all."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {text.splitlines()[0]}" if (text := str(error).strip()) else type(error).__name__
