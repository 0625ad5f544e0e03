from __future__ import annotations

import datetime
import importlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import spacy
import torch
from spacy.language import Language
from spacy.tokens import DocBin

from common import shards
from common.errors import StepError
from common.filesystems import FileSystemError
from common.parts import BATCH, LAYERS, MANIFEST, RECORDS, Job, Shard, Target, load
from common.records import read_json, sha256
from common.shards import Columns, Piece
from common.workers import Tell
from scripts import annotate_corpus as step
from scripts.annotate_corpus import Engine, Format, annotate_corpus
from tests.conftest import ROOT, TEXT, guard, words
from tests.scripts.fragile import DEADLY, DEADLY_ONCE, ORPHANING, WAITING, drive
from tests.store import Reply, Store, refuse

# What `make test-engines` runs, which installs them
CLUSTERS = [pytest.param(engine, marks=pytest.mark.engines) for engine in ("spark", "ray")]


def need(engine: str) -> None:
    """Skip a test whose engine is not installed."""
    if engine != "local":
        pytest.importorskip({"spark": "pyspark"}.get(engine, engine))
    if engine == "spark" and not shutil.which("java"):
        pytest.skip("Spark needs Java")


class Silent(Tell):
    def __init__(self) -> None:
        self.probing = False

    def advance(self, *amounts: int) -> None:
        pass


@pytest.fixture(scope="module")
def pipeline(ruled: Path) -> str:
    return str(ruled / "packages/ruled/assembled")


@pytest.fixture(scope="module")
def nlp(pipeline: str) -> Language:
    return spacy.load(pipeline)


@pytest.fixture
def alone(nlp: Language, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The command does its work in this process; gets the shards that it works on."""
    done: list[Any] = []

    def supervise(items: Sequence[Any], loads: Sequence[Callable[[], Any]], work: Any, *rest: Any) -> Iterator[Any]:
        for item in items:
            done.append(item)
            yield work(loads[0](), item, {}, Silent())

    monkeypatch.setattr(step, "supervise", supervise)
    monkeypatch.setattr(step, "load", lambda job, gpu_id: nlp)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the command sets, and which goes back to what it was
    return done


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Five documents in three files, and what is none."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [{"id": "a", "text": TEXT, "source": "wire"}, {"text": 3}, {"id": "b", "text": "Mira Solberg left Turku ."}]
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    days = [datetime.date(2031, 2, 7), datetime.date(2031, 3, 1)]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Turku .", ""], "day": days}), folder / "y.parquet")
    (folder / "z.txt").write_text("Norrvik Steel is in Turku .", "utf8")
    (folder / "notes.odt").touch()
    return folder


def read(target: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.dataset.dataset(target, format="parquet").to_table().to_pylist()
    return rows


def names(rows: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    return [[(ent["text"], ent["label"]) for ent in row["entities"]] for row in rows]


def test_parts_have_each_document_once_with_what_the_pipeline_finds(
    texts: Path,
    pipeline: str,
    nlp: Language,
    alone: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "out"
    annotate_corpus(str(texts), str(target), pipeline, keep="triples,text,tags,sentences", size=2)
    rows = read(target)
    assert [row["id"] for row in rows] == ["a", "b", "y.parquet#1", "y.parquet#2", "z.txt"]
    for row, doc in zip(rows, nlp.pipe(row["text"] for row in rows), strict=True):
        for name, (_, read_layer) in LAYERS.items():
            assert row[name] == read_layer(doc)
        for ent in row["entities"]:
            assert row["text"][ent["start"] : ent["end"]] == ent["text"]
    assert rows[0]["triples"] and rows[0]["concepts"] and len(rows[0]["sentences"]) == 3
    assert [row["source"] for row in rows] == ["wire", None, None, None, None]
    assert [row["day"] for row in rows] == [None, None, datetime.date(2031, 2, 7), datetime.date(2031, 3, 1), None]
    manifest = read_json(target / MANIFEST)
    assert manifest["counts"]["documents"] == 5 and manifest["counts"]["bad"] == 1
    assert manifest["counts"]["entities"] == {"LOC": 4, "ORG": 3, "PER": 2}
    assert manifest["bad"] == [{"id": "x.jsonl#2", "place": "x.jsonl, row 2", "problem": "the text is no string (int)"}]
    assert manifest["other_files"] == ["notes.odt"]
    assert manifest["inputs"]["pipeline"]["name"] == "en_pipeline"
    assert [part["documents"] for part in manifest["parts"]] == [1, 1, 2, 1]
    said = words(capsys.readouterr().out)
    assert "x.jsonl, row 2: the text is no string" in said and "5 documents with" in said


def test_without_keep_there_are_ids_and_entities_alone(
    texts: Path, pipeline: str, alone: list[Any], tmp_path: Path
) -> None:
    annotate_corpus(f"{texts}/y.parquet", str(tmp_path / "out"), pipeline, columns="none")
    assert list(read(tmp_path / "out")[0]) == ["id", "entities"]


def test_what_is_done_is_not_done_again(texts: Path, pipeline: str, alone: list[Any]) -> None:
    target = texts / "out"  # whose parts are no texts
    annotate_corpus(str(texts), str(target), pipeline, size=1)
    assert len(alone) == 6
    parts = sorted(target.glob("part-*"))
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in parts}
    # As a killed command leaves it: without a manifest, one part without its record, and one copied by half
    (target / MANIFEST).unlink()
    (target / RECORDS / "part-000002.json").unlink()
    (target / ".part-000003.parquet.partial-12345678").touch()
    alone.clear()
    annotate_corpus(str(texts), str(target), pipeline, size=1)
    assert [shard.number for shard in alone] == [2]
    for path in parts:
        assert sha256(path) == before[path][1]
        assert (path.stat().st_mtime_ns == before[path][0]) == (path.name != "part-000002.parquet")
    assert len(read(target)) == 5 and not list(target.glob(".*partial*"))
    assert read_json(target / MANIFEST)["other_files"] == ["notes.odt"]
    (target / "part-000002.parquet").unlink()  # which the manifest would go on to name
    with pytest.raises(StepError, match=r"lacks part-000002\.parquet, of which _shards/part-000002\.json says"):
        annotate_corpus(str(texts), str(target), pipeline, size=1)


def test_other_texts_or_another_pipeline_do_not_go_into_the_same_folder(
    texts: Path, pipeline: str, alone: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    annotate_corpus(str(texts), str(target), pipeline)
    with pytest.raises(StepError, match="not the same keep"):
        annotate_corpus(str(texts), str(target), pipeline, keep="text")
    monkeypatch.setattr(step, "choose_places", lambda processes, gpus: [0])
    with pytest.raises(StepError, match="not the same device"):
        annotate_corpus(str(texts), str(target), pipeline, gpus="0")
    other = shutil.copytree(pipeline, tmp_path / "other")
    meta = read_json(other / "meta.json")
    (other / "meta.json").write_text(json.dumps(meta | {"version": "9"}))
    with pytest.raises(StepError, match="not the same pipeline"):
        annotate_corpus(str(texts), str(target), str(other))
    (texts / "more.txt").write_text("Oslo")
    with pytest.raises(StepError, match="not the same texts"):
        annotate_corpus(str(texts), str(target), pipeline)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(StepError, match=r"holds other files, such as letter\.txt"):
        annotate_corpus(str(texts), str(tmp_path / "mine"), pipeline)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "words"}, "Nothing is called 'words'"),
        ({"pipeline": "en_no_such_pipeline"}, "en_no_such_pipeline is no pipeline"),
        ({"texts": ""}, "It takes texts"),
        ({"text_column": "body"}, "has no column 'body'"),
        ({"columns": "day,dat"}, "No file has the column 'dat'. There are: day"),
    ],
)
def test_mistakes_are_named(
    texts: Path, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments: dict[str, Any] = {"texts": f"{texts}/y.parquet", "target": str(tmp_path / "out"), "pipeline": pipeline}
    with pytest.raises(StepError, match=said):
        annotate_corpus(**arguments | options)


def test_a_column_that_parts_have_too_is_refused(pipeline: str, alone: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Oslo", "Entities": [], "tags": ["north"]}\n')
    for columns in ("Entities", "tags"):
        with pytest.raises(StepError, match=f"have the column '{columns}'"):
            annotate_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), pipeline, columns=columns)
    annotate_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), pipeline, columns="none")


def test_a_text_that_is_too_long_or_fails_costs_itself_alone(
    pipeline: str, alone: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(job: Any, gpu_id: int) -> Any:
        nlp = spacy.load(pipeline)
        tokenizer: Any = nlp.tokenizer
        nlp.max_length = 40

        def tokenize(text: str) -> Any:
            if text == DEADLY:
                raise ValueError("deadly\nindeed")
            return tokenizer(text)

        nlp.tokenizer = tokenize
        return nlp

    monkeypatch.setattr(step, "load", load)
    lines = [json.dumps({"text": text}) for text in ("Turku .", DEADLY, "Turku " * 9, "Mira Solberg left .")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    annotate_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), pipeline)
    assert names(read(tmp_path / "out")) == [[("Turku", "LOC")], [("Mira Solberg", "PER")]]
    assert {one["id"]: one["problem"] for one in read_json(tmp_path / "out" / MANIFEST)["bad"]} == {
        "a.jsonl#2": "the pipeline fails: ValueError: deadly",
        "a.jsonl#3": "it has 54 characters, and the pipeline reads at most 40",
    }


@pytest.mark.parametrize("broken", [False, True])
def test_an_error_that_costs_the_process_its_gpu_ends_it(
    texts: Path,
    pipeline: str,
    nlp: Language,
    alone: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: bool,
) -> None:
    """As CUDA does it: after some errors, whatever is computed on the GPU fails. `supervise` starts another process."""

    def fail(*text: str) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered\n...")

    monkeypatch.setattr(nlp, "tokenizer", fail)
    monkeypatch.setattr("common.parts.torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("common.parts.torch.cuda.synchronize", fail if broken else lambda: None)
    with (
        pytest.raises(SystemExit, match="the GPU fails: CUDA error: device-side assert triggered")
        if broken
        else nullcontext()
    ):
        annotate_corpus(f"{texts}/y.parquet", str(tmp_path / "out"), pipeline)
    assert (tmp_path / "out" / RECORDS / "part-000000.json").exists() != broken


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": "0,2"}, "GPU 2 was asked for; PyTorch finds 2, from 0"),
        ({"gpus": "0,0"}, "no different GPUs"),
        ({"gpus": "all"}, "needs CuPy"),
        ({"gpus": "0", "processes": 2}, "Each GPU has one process"),
        ({"gpus": "0", "engine": Engine.RAY}, "with the engine ray it is the engine that gives"),
        ({"gpus": "all", "engine": Engine.RAY}, "Ray finds none"),
        ({"gpus": "all", "engine": Engine.SPARK}, r"Spark gives its tasks none: spark\.task\.resource\.gpu\.amount"),
    ],
)
def test_a_gpu_that_is_not_there_is_named_before_anything_is_written(
    texts: Path, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(step, "has_cupy", False)
    ray, sql = MagicMock(), MagicMock()
    ray.cluster_resources.return_value = {"CPU": 2.0}
    session = sql.SparkSession.builder.appName().master().config().getOrCreate()
    session.sparkContext.getConf().get.return_value = None
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "pyspark.sql", sql)
    with pytest.raises(StepError, match=said) as error:
        annotate_corpus(str(texts), str(tmp_path / "out"), pipeline, **options)
    assert "--vars.gpus" in error.value.remedy and not (tmp_path / "out").exists()
    assert ray.shutdown.called == ray.init.called and session.stop.called == ("Spark" in said)


def test_there_is_a_process_for_each_gpu_or_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(step, "has_cupy", True)
    assert step.choose_places(0, "2,0") == [2, 0] and step.choose_places(0, "all") == [0, 1, 2]
    assert step.choose_places(2, "") == [-1, -1] and set(step.choose_places(0, "")) == {-1}


def test_the_pipeline_is_not_loaded_where_its_gpu_is_not(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    job = Job([], Columns(), pyarrow.schema([]), pipeline, "parquet", "")
    with pytest.raises(StepError, match="GPU 1 was asked for, but this PyTorch is built for the CPU") as error:
        load(job, 1)
    assert "--vars.gpus" in error.value.remedy


def test_docbins_have_everything(texts: Path, pipeline: str, nlp: Language, alone: list[Any], tmp_path: Path) -> None:
    target = tmp_path / "out"
    annotate_corpus(str(texts), str(target), pipeline, part_format=Format.DOCBIN)
    docs = list(DocBin().from_disk(target / "part-000000.spacy").get_docs(nlp.vocab))
    assert [doc.user_data["id"] for doc in docs] == ["a", "b", "y.parquet#1", "y.parquet#2", "z.txt"]
    assert [ent.label_ for ent in docs[1].ents] == ["PER", "LOC"] and docs[0].spans["concepts"]
    assert docs[2].user_data["columns"] == {"day": "2031-02-07"}


def test_a_url_is_a_target_too(texts: Path, pipeline: str, alone: list[Any], tmp_path: Path) -> None:
    for place in (str(tmp_path / "a"), (tmp_path / "b").as_uri()):
        annotate_corpus(texts.as_uri(), place, pipeline, size=2)
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_an_object_store_gets_each_part_before_its_record_and_the_manifest_last(
    texts: Path, pipeline: str, alone: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store() as store:
        for path in texts.iterdir():
            store.objects[f"texts/{path.name}"] = path.read_bytes()
        before = len(store.objects)
        for place, target in ((str(texts), str(tmp_path / "out")), (store.url("texts"), store.url("out"))):
            annotate_corpus(place, target, pipeline, keep="text", size=2)
        parts = [path.name for path in sorted((tmp_path / "out").glob("part-*"))]
        records = [f"{RECORDS}/{name.replace('parquet', 'json')}" for name in parts]
        written = [key.removeprefix("out/") for key in store.written]
        assert written == [step.PLAN, *chain(*zip(parts, records, strict=True)), MANIFEST]
        assert len(store.objects) == before + len(written) and {method for method, _ in store.requests} == {
            *("HEAD", "GET", "PUT", "POST")
        }, "nothing is renamed or removed"
        for name in parts:
            assert store.objects[f"out/{name}"] == (tmp_path / "out" / name).read_bytes()
        manifest = json.loads(store.objects[f"out/{MANIFEST}"])
        assert manifest["counts"] == read_json(tmp_path / "out" / MANIFEST)["counts"]
        # As a killed command leaves it: without a manifest, and one part without its record
        del store.objects[f"out/{MANIFEST}"], store.objects[f"out/{records[1]}"]
        store.requests.clear()
        annotate_corpus(store.url("texts"), store.url("out"), pipeline, keep="text", size=2)
        assert store.written == [f"out/{parts[1]}", f"out/{records[1]}", f"out/{MANIFEST}"]
        assert json.loads(store.objects[f"out/{MANIFEST}"]) == manifest
        assert "secret" not in capsys.readouterr().out + json.dumps(manifest)


def test_an_upload_that_fails_is_not_taken_for_a_part(texts: Path, pipeline: str, alone: list[Any]) -> None:
    with Store() as store:
        store.before = lambda method, path: (
            refuse(403, "AccessDenied") if method == "POST" and "part-000001.parquet?uploadId" in path else None
        )
        with pytest.raises(FileSystemError, match="The file system s3 fails"):
            annotate_corpus(str(texts), store.url("out"), pipeline, size=2)
        target = Target(store.url("out"))
        assert target.names() == {"part-000000.parquet"} and "part-000001.json" not in target.names(RECORDS)
        assert target.names("none") == set() and target.read_json("none") is None
        store.before = lambda method, path: None
        annotate_corpus(str(texts), store.url("out"), pipeline, size=2)
        assert len([key for key in store.objects if key.endswith(".parquet")]) == 4
        assert sum(part["documents"] for part in target.read_json(MANIFEST)["parts"]) == 5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_words_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]

    def supervise(items: Any, loads: Any, work: Any, ready: Any, advance: Callable[..., object]) -> Iterator[Any]:
        for amounts in ((2, 4000), (-2, -4000), (2, 5000)):  # a process dies, and its work is done again
            seconds[0] += 1
            advance(*amounts)
        yield {"bad": []}

    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr(step, "supervise", supervise)
    job = Job([], Columns(), pyarrow.schema([]), "", "parquet", "")
    step.annotate(job, [Shard(1, [Piece(0, 0, 2)])], 5, [-1])
    first, *_, last = terminal.getvalue().split("\r")[1:]
    assert "3/5" in first and "5/5" in last and "1,667 words/s" in last


def test_memory_does_not_grow_with_a_shard(
    pipeline: str, nlp: Language, alone: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are the documents of one batch, and the next one is read when they are written."""
    tokenizer: Any = nlp.tokenizer
    alive = weakref.WeakSet[Any]()
    taken, most = [0], [0]

    def tokenize(text: str) -> Any:
        doc = tokenizer(text)
        alive.add(doc)
        most[:] = [max(most[0], len(alive), taken[0] - int(text))]
        return doc

    def read_rows(*arguments: Any) -> Iterator[Any]:
        for row in shards.read_rows(*arguments):
            taken[0] += 1
            yield row

    monkeypatch.setattr(nlp, "tokenizer", tokenize)
    monkeypatch.setattr("common.parts.read_rows", read_rows)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(3 * BATCH)))
    annotate_corpus(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), pipeline)
    assert taken == [3 * BATCH] and BATCH <= most[0] <= BATCH + 1


def test_memory_is_said_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    step.check_memory(2, 1000)
    assert "2 processes take 0.0 GB" in words(capsys.readouterr().out)
    free = psutil.virtual_memory().available
    with pytest.raises(StepError, match="4 processes take") as error:
        step.check_memory(4, free // 2)
    assert "--vars.processes" in error.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", *CLUSTERS])
def test_killed_processes_and_commands_lose_double_and_change_nothing(
    engine: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text kills each process that reads it, another one once, a third the worker of the cluster that supervises it.

    Then the command is killed while a fourth is read, and goes on. The parts have the bytes, scores too, of those that
    one process makes.
    """
    need(engine)
    monkeypatch.setenv("BERT_NER_DTYPE", "float32")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    folder, target, other = (tmp_path / name for name in ("texts", "out", "alone"))
    folder.mkdir()
    found = ["Turku .", "Mira Solberg left .", "Oslo", DEADLY_ONCE, "Turku", DEADLY, ORPHANING, "Norrvik Steel"]
    found += [WAITING, "Kenya", "Peru", "Malta", "Kenya beat Peru .", "Mira left"]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in found))
    if engine == "local":  # where the command itself supervises
        (folder / f".{ORPHANING}").touch()
    arguments = (str(folder), str(target), str(trained), 2, engine)
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=drive, args=arguments)
    driver.start()
    while len(list((target / RECORDS).glob("part-*.json"))) < 4:
        assert driver.is_alive()
        driver.join(0.05)
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.join()
    assert not (target / MANIFEST).exists()
    (folder / ".go").touch()
    assert not psutil.wait_procs(processes, guard(20))[1], "they end with the command"
    (target / RECORDS / "part-000004.json").unlink(missing_ok=True)  # the last process may have finished its part
    done = [target / f"{record.stem}.parquet" for record in (target / RECORDS).glob("part-*.json")]
    before = {path: path.stat().st_mtime_ns for path in done}
    for again in (arguments, (str(folder), str(other), str(trained), 1)):
        driver = context.Process(target=drive, args=again)
        driver.start()
        driver.join(guard(120))
        assert driver.exitcode == 0
    assert len(before) >= 4 and all(path.stat().st_mtime_ns == when for path, when in before.items())
    rows = read(target)
    assert [row["id"] for row in rows] == [f"a.jsonl#{number}" for number in range(1, 15) if number != 6]
    assert [row["text"] for row in rows] == [text for text in found if text != DEADLY] and any(names(rows))
    assert len(list(folder.glob(".a text*"))) == 2, "both have killed"
    manifest = read_json(target / MANIFEST)
    (bad,) = manifest["bad"]
    assert bad["id"] == "a.jsonl#6" and "kills the process" in bad["problem"]
    assert manifest == read_json(other / MANIFEST)
    for part in manifest["parts"]:
        assert sha256(target / part["part"]) == sha256(other / part["part"])


@pytest.mark.slow
def test_a_command_that_is_killed_while_it_uploads_loses_and_doubles_nothing(pipeline: str, tmp_path: Path) -> None:
    found = ["Turku .", "Mira Solberg left .", "Oslo", "Turku", "Norrvik Steel", "Peru"]
    uploading, killed = threading.Event(), threading.Event()

    def wait(method: str, path: str) -> Reply | None:
        if method == "POST" and "part-000001.parquet?uploadId" in path and not killed.is_set():
            uploading.set()
            killed.wait()
            return refuse(403, "AccessDenied")  # which nobody hears any more
        return None

    context = multiprocessing.get_context("spawn")
    with Store() as store:
        store.objects["texts/a.jsonl"] = "\n".join(json.dumps({"text": text}) for text in found).encode()
        store.before = wait
        arguments = (store.url("texts"), store.url("out"), pipeline, 1)
        driver = context.Process(target=drive, args=arguments)
        driver.start()
        assert uploading.wait(guard(60))
        processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        driver.join()
        assert not psutil.wait_procs(processes[1:], guard(20))[1]
        killed.set()
        assert f"out/{MANIFEST}" not in store.objects and "out/part-000001.parquet" not in store.objects
        first = store.requests.copy()
        driver = context.Process(target=drive, args=arguments)
        driver.start()
        driver.join(guard(60))
        assert driver.exitcode == 0
        again = store.requests[len(first) :]
        assert not [path for method, path in again if method == "POST" and "part-000000" in path], "what is done stays"
        parts = sorted(key for key in store.objects if key.endswith(".parquet"))
        rows = [row for key in parts for row in pyarrow.parquet.read_table(io.BytesIO(store.objects[key])).to_pylist()]
        assert [row["text"] for row in rows] == found
        assert [row["id"] for row in rows] == [f"a.jsonl#{number}" for number in range(1, 7)]


@pytest.mark.slow
def test_parts_have_the_same_bytes_however_many_processes_make_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a trained pipeline in float32; and the entities are those of nlp.pipe over all texts at once."""
    monkeypatch.setenv("BERT_NER_DTYPE", "float32")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    texts = [f"{'Mira Solberg left Turku. ' * (1 + number % 7)}Kenya beat Peru {number} times." for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for processes in (1, 2):
        annotate_corpus(
            str(tmp_path / "a.jsonl"), str(tmp_path / f"out{processes}"), str(trained), size=7, processes=processes
        )
    parts = sorted(path.name for path in (tmp_path / "out1").glob("part-*"))
    assert len(parts) == 9
    for name in parts:
        assert sha256(tmp_path / "out1" / name) == sha256(tmp_path / "out2" / name)
    docs = list(spacy.load(trained).pipe(texts))
    expected = [[(ent.text, ent.label_) for ent in doc.ents] for doc in docs]
    assert names(read(tmp_path / "out2")) == expected and any(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "processes", "gpus", "seen"),
    [
        ("local", 0, "0,1", ("0-of-all", "1-of-all")),
        pytest.param("ray", 3, "all", ("0-of-0", "0-of-1"), marks=pytest.mark.engines),
    ],
)
def test_each_process_has_a_gpu_of_its_own_and_a_slow_one_holds_nobody_up(
    engine: str,
    processes: int,
    gpus: str,
    seen: tuple[str, ...],
    pipeline: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One document waits until all others are done. Ray has a GPU fewer than actors, and believes in GPUs unseen."""
    need(engine)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder, target = tmp_path / "texts", tmp_path / "out"
    folder.mkdir()
    found = [WAITING, "Turku .", "Mira Solberg left .", "Oslo", "Turku", "Norrvik Steel", "Peru"]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in found))
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=drive, args=(str(folder), str(target), pipeline, processes, engine, gpus, 1))
    driver.start()
    while len(list((target / RECORDS).glob("part-*.json"))) < len(found) - 1:
        assert driver.is_alive()
        driver.join(0.05)
    assert not (target / RECORDS / "part-000000.json").exists()
    (folder / ".go").touch()
    driver.join(guard(60))
    assert driver.exitcode == 0
    assert [row["text"] for row in read(target)] == found
    assert {path.name for path in folder.glob(".gpu-*")} == {f".gpu-{gpu}" for gpu in seen}
    assert read_json(target / MANIFEST)["inputs"]["device"] == "gpu"


@pytest.mark.slow
@pytest.mark.engines
def test_spark_submit_decides_where_tasks_run_and_gives_each_a_gpu(pipeline: str, tmp_path: Path) -> None:
    """A cluster of two workers, both of which a script says to have a GPU of their own."""
    need("spark")
    folder, target = tmp_path / "texts", tmp_path / "out"
    folder.mkdir()
    found = ["Turku .", "Mira Solberg left .", "Oslo", "Turku"]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in found))
    finder, program = tmp_path / "find-gpus", tmp_path / "program.py"
    finder.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["5", "7"]}'\n""")
    finder.chmod(0o755)
    arguments = (str(folder), str(target), pipeline, 2, "spark", "all", 1)
    program.write_text(f"from tests.scripts.fragile import drive\ndrive(*{arguments})\n")
    options = {
        "spark.worker.resource.gpu.amount": "2",
        "spark.worker.resource.gpu.discoveryScript": str(finder),
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.resource.gpu.amount": "1",
        "spark.ui.enabled": "false",
    }
    pyspark = Path(importlib.import_module("pyspark").__path__[0])
    command = [str(pyspark / "bin/spark-submit"), "--master", "local-cluster[1,2,1024]"]
    command += [part for name, value in options.items() for part in ("--conf", f"{name}={value}")]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run([*command, str(program)], cwd=ROOT, env=os.environ | environment, timeout=guard(120))
    assert done.returncode == 0
    assert [row["text"] for row in read(target)] == found
    assert {path.name for path in folder.glob(".gpu-*")} <= {".gpu-0-of-5", ".gpu-0-of-7"}
    assert [*folder.glob(".gpu-*")]
