"""The pipeline that knows TEXT by rules, and what it finds there."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from app.annotate import Analysis, Annotator, EntityOut, SpanOut, TokenOut, load_pipeline
from tests.conftest import PROJECT, ROOT, TEXT, guard


@pytest.fixture(scope="module")
def annotator(ruled: Path) -> Annotator:
    return load_pipeline(str(ruled / "packages/ruled/assembled"))


@pytest.fixture(scope="module")
def analyses(annotator: Annotator) -> list[Analysis]:
    return annotator.annotate([TEXT, "Mira Solberg left Turku ."])


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition, which something else than this thread brings about."""
    end = time.monotonic() + guard(seconds)
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def serve_page(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The page as a process that works in a folder, started as `make app` does."""
    command = shlex.split(next(one["script"][0] for one in PROJECT["commands"] if one["name"] == "app"))
    command = [str(ROOT / part) if part == "app/page.py" else part for part in command]
    with subprocess.Popen(
        [sys.executable, *command[1:], "--server.port", str(port)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:

        def answers() -> bool:
            assert process.poll() is None, "it has ended"
            with suppress(requests.ConnectionError):
                return requests.get(f"http://127.0.0.1:{port}/_stcore/health", timeout=guard(5)).ok
            return False

        try:
            until(answers, 30)
            yield process
        finally:  # also when a test fails, which would else wait for the process without end
            process.terminate()


def found_in(text: str, *tokens: str, label: str = "PER") -> Analysis:
    """An analysis in which the whole text is an entity and a sentence."""
    whole: dict[str, Any] = {"start": 0, "end": len(text), "text": text}
    return Analysis(
        text=text,
        sentences=[SpanOut(**whole)],
        entities=[EntityOut(**whole, label=label, score=None)],
        tokens=[
            TokenOut(start=at, end=at + 1, text=token, tag="", pos="", iob="O", shape="", wordpieces=[])
            for at, token in enumerate(tokens)
        ],
    )
