"""The pipeline that knows TEXT by rules, and what it finds there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.annotate import Analysis, Annotator, EntityOut, SpanOut, TokenOut, load_pipeline
from tests.conftest import TEXT, guard


@pytest.fixture(scope="module")
def annotator(ruled: Path) -> Annotator:
    return load_pipeline(str(ruled / "packages/ruled/assembled"))


@pytest.fixture(scope="module")
def analyses(annotator: Annotator) -> list[Analysis]:
    return annotator.annotate([TEXT, "Mira Solberg left Turku ."])


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, which something else than this thread brings about."""
    end = time.monotonic() + guard(20)
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


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
