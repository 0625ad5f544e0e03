from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import corpus as benchmark
from benchmarks.corpus import (
    LARGE,
    MACHINES,
    Corpus,
    Usage,
    corpus,
    estimate,
    measure_engines,
    predict,
    watch,
    write_corpus,
)
from common.errors import StepError
from common.records import read_json
from common.shards import Columns, find_files, read_rows, survey
from tests.conftest import ROOT, words

SAMPLE = ROOT / "assets/sample/train.conll"
START = 5.0  # seconds of each contender below


def annotate(engine: str, workers: int, texts: Path) -> Usage:
    """Take the time that the law says: 100 words per second a worker, and 80 where two are in each other's way."""
    files, _ = find_files(str(texts))
    pieces = survey(files, Columns(), 1000).pieces
    count = sum(len(row.text.split()) for piece in pieces for row in read_rows(files, piece, Columns()))
    return Usage(START + count / (100 * workers * (1 if workers == 1 else 0.8)), 7.0 * workers)


def test_speed_is_told_from_the_start_and_the_law_is_checked_by_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "Annotator", lambda model, target, size: annotate)
    monkeypatch.setattr(benchmark, "find_missing", lambda engine: "not there" if engine == "spark" else "")
    corpus(SAMPLE, SAMPLE, Path("metrics/tiny"), words=20_000, repetitions=2, stream=0.02)
    record = read_json(Path("metrics/tiny/corpora.json"))
    engines = record["engines"]
    assert engines["spark-1"] == engines["spark-2"] == {"unavailable": "not there"}
    for name, rate, share in (("nlp.pipe", 100, 1), ("local-1", 100, 1), ("local-2", 160, 0.8), ("ray-2", 160, 0.8)):
        assert engines[name]["words_per_second"] == pytest.approx(rate)
        assert engines[name]["share"] == pytest.approx(share) and engines[name]["start"] == pytest.approx(START)
        assert len(engines[name]["seconds"]) == 2
    assert engines["local-2"]["peak_mb"] == 14
    assert record["stream"]["local-1"]["growth"] == 0
    small, large = record["stream"]["megabytes"]
    assert large == pytest.approx(4 * small, rel=0.2)
    check = record["cost"]["checks"]["local"]
    assert check["efficiency"] == pytest.approx(0.8)
    assert check["measured_seconds"] == pytest.approx(START + record["words"] / 160)
    assert check["error"] == pytest.approx((START + record["words"] / 200) / check["measured_seconds"] - 1)
    assert list(record["cost"]["checks"]) == list(record["cost"]["estimates"]) == ["local", "ray"]
    said = words(capsys.readouterr().out)
    assert "spark-1 not there" in said and "1,000 machines" in said


def test_too_little_text_tells_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        benchmark, "Annotator", lambda model, target, size: lambda engine, workers, texts: Usage(START, 7.0)
    )
    monkeypatch.setattr(benchmark, "find_missing", lambda engine: "")
    corpus(SAMPLE, SAMPLE, Path("metrics/tiny"), words=5000, stream=0.01)
    record = read_json(Path("metrics/tiny/corpora.json"))
    assert record["stream"]["nlp.pipe"]["mb_per_second"] is None and record["cost"]["checks"] == {}
    assert "too little text to tell" in words(capsys.readouterr().out)


def test_a_large_corpus_costs_little_more_on_more_machines(tmp_path: Path) -> None:
    engines: dict[str, Any] = {name: {"unavailable": "not there"} for name in ("spark-1", "spark-2", "ray-1", "ray-2")}
    engines["local-1"] = {"words_per_second": 1000, "start": 20, "seconds": [[120, 21]]}
    engines["local-2"] = {"words_per_second": 1800, "start": 36, "seconds": [[100, 37]]}
    cost = estimate(engines, Corpus(tmp_path, 10, 1000, 6000), 2, 6e7)
    assert cost["words"] == 100 * LARGE and cost["looked_through_hours"] == pytest.approx(1e4 / 3600)
    assert list(cost["estimates"]) == ["local"]
    one, *_, most = cost["estimates"]["local"]
    assert one["hours"] == pytest.approx((1e4 + 36 + 1e11 / 1800) / 3600)
    assert most["machine_hours"] == pytest.approx(MACHINES[-1] * (1e4 + 36 + 1e11 / 1800 / MACHINES[-1]) / 3600)
    assert predict(1000, 10, 2, 0.5, 3, 4) == 107


def test_what_takes_no_longer_than_its_start_has_no_speed(tmp_path: Path) -> None:
    """As on a machine that does something else meanwhile. The others keep what was measured of them."""
    small, large = Corpus(tmp_path / "small", 1, 100, 600), Corpus(tmp_path / "large", 10, 1000, 6000)

    def annotate(engine: str, workers: int, texts: Path) -> Usage:
        return Usage(5 if engine != "local" and texts == large.folder else 2, 7)

    engines = measure_engines(annotate, small, large, 2, 1)
    assert engines["nlp.pipe"]["words_per_second"] == 300
    assert engines["local-1"] == {
        "workers": 1,
        "seconds": [[2, 2]],
        "peak_mb": 7,
        "unavailable": "too few words to tell",
    }
    assert not estimate(engines, large, 2, 1)["checks"].get("local")


def test_texts_are_the_same_each_time_and_of_both_kinds(tmp_path: Path) -> None:
    texts = benchmark.make_texts(SAMPLE)
    written = write_corpus(tmp_path / "a", texts, 1500, lambda text: 1)
    files, _ = find_files(str(tmp_path / "a"))
    assert [file.name for file in files] == ["000000.jsonl", "000001.parquet"]
    rows = [row.text for piece in survey(files, Columns(), 64).pieces for row in read_rows(files, piece, Columns())]
    assert rows == [*islice(benchmark.make_texts(SAMPLE), 1500)]
    assert written == (
        tmp_path / "a",
        1500,
        sum(len(row.split()) for row in rows),
        sum(len(row.encode()) for row in rows),
    )


def test_memory_is_that_of_all_processes_and_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends when its memory, most of which a process has that it started, was looked at."""
    monkeypatch.setattr(benchmark, "INTERVAL", 0.01)
    looked: list[int] = []
    memory_of = benchmark.memory_of

    def look(pid: int) -> int:
        looked.append(memory_of(pid))
        if looked[-1] > 60e6:
            psutil.Process(pid).children()[0].terminate()
        return looked[-1]

    monkeypatch.setattr(benchmark, "memory_of", look)
    child = "import time; kept = bytes(range(256)) * 250_000; time.sleep(3600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    usage = watch("it", [sys.executable, "-c", parent])
    assert usage.peak_mb == max(looked) / 2**20 > 57
    with pytest.raises(StepError, match="it ended before its time") as error:
        watch("it", [sys.executable, "-c", "raise SystemExit('the reason')"])
    assert error.value.remedy == "the reason"


@pytest.mark.slow
def test_the_contenders_annotate(ruled: Path, tmp_path: Path) -> None:
    texts = write_corpus(tmp_path / "texts", benchmark.make_texts(SAMPLE), 130, lambda text: 1)
    contender = benchmark.Annotator(ruled / "packages/ruled/assembled", tmp_path / "out", 64)
    for engine, workers in (("", 2), ("local", 2)):
        usage = contender(engine, workers, texts.folder)
        assert usage.seconds > 0 and usage.peak_mb > 0
    assert not (tmp_path / "out").exists()
