"""What the tests of the benchmarks share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.harness import Job, make_job
from tests.conftest import ROOT, Project

FAKE = """import json, sys
def emit(**answer): print(json.dumps(answer), flush=True)
name, log = sys.argv[1:]
if name == "unable": emit(unavailable="no such instructions"); sys.exit()
if name == "lacking": emit(problem="lacking needs flair.", remedy="pip install flair"); sys.exit()
if name == "broken": sys.exit("the reason")
emit(ready=True)
for line in sys.stdin:
    open(log, "a").write(name + "\\n")
    emit(progress=0.5)
    emit(seconds=2.0, words=10)
emit(f1=None, peak_rss_mb=7, versions={})
"""


def fake_commands(log: Path, *names: str) -> dict[str, list[str]]:
    """Command lines of contenders that do nothing but write their names into a file when it is their turn."""
    return {name: [sys.executable, "-c", FAKE, name, str(log)] for name in names}


@pytest.fixture
def job(project: Project, tmp_path: Path) -> Job:
    """Three documents of the sample corpus, and the tiny pipeline."""
    made = make_job(project.folder / "corpus/tiny/train.spacy", 3, tmp_path, project.encoder, sentence_docs=True)
    made.model = str(project.folder / "packages/tiny/assembled")
    made.corpus = str(project.folder / "corpus/tiny")
    made.config = str(ROOT / "configs/bert.cfg")
    assert made.words == sum(len(sentence["words"]) for sentence in made.sentences)
    return made
