"""Measure how fast each engine annotates a corpus and in how much memory, and say what a large corpus would cost."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import pyarrow
import pyarrow.parquet
import spacy
import tqdm
import typer
from wasabi import msg

from benchmarks.harness import PIPELINE, ROOT, machine
from bert_ner.inference import resolve_dtype
from common.conll import read_conll
from common.errors import StepError, main
from common.records import record_inputs, write_json, writes
from common.scaling import tabulate_scaling
from common.shards import Columns, find_files, survey

PACKAGES = {"local": "", "spark": "pyspark", "ray": "ray"}  # the engines of annotate-corpus, and what they need
SHARD = 64  # documents: no more than a process annotates at once, so that a small corpus is divided too
SENTENCES = 6  # of a document, on average
ROWS = 1000  # of a file
LARGE = 1_000_000_000  # documents, of which we say what they cost
MACHINES = (1, 10, 100, 1000)
INTERVAL = 0.5  # seconds between two looks at memory
MEMORY = "pss" if sys.platform == "linux" else "rss"  # PSS counts what processes share once, and RSS in each

# Annotates the texts of a folder with the engines' reader, and nothing else of theirs
PLAIN = f"""import sys
import torch
from common.shards import Columns, find_files, read_rows, survey
from common.suggestions import load_pipeline
torch.set_num_threads(int(sys.argv[3]))
nlp = load_pipeline(sys.argv[1])
files, _ = find_files(sys.argv[2])
rows = (row for piece in survey(files, Columns(), {ROWS}).pieces for row in read_rows(files, piece, Columns()))
disable = [name for name in nlp.pipe_names if name == "concepts"]  # entities do not need them
for doc in nlp.pipe((row.text for row in rows), batch_size={SHARD}, disable=disable):
    [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]
"""


class Corpus(NamedTuple):
    """A generated corpus.

    folder (Path): Its files.
    documents, words, size (int): How many there are, and the bytes of the texts.
    """

    folder: Path
    documents: int
    words: int
    size: int


class Usage(NamedTuple):
    """What a command took: the time, and the most memory that it and all its processes had together."""

    seconds: float
    peak_mb: float


@writes("metrics", "corpora.json")
def corpus(
    model: Annotated[Path, typer.Argument(help="The pipeline", exists=True)],
    sample: Annotated[Path, typer.Argument(help="File in CoNLL columns, whose sentences make the texts", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for corpora.json")],
    words: Annotated[int, typer.Option(help="Of the corpus that each engine annotates", min=1)] = 60_000,
    workers: Annotated[int, typer.Option(help="Each engine works with one, and with so many", min=2)] = 2,
    repetitions: Annotated[int, typer.Option(help="Of each contender", min=1)] = 1,
    stream: Annotated[float, typer.Option(help="Megabytes of text, and four times as many, without a model")] = 5,
) -> None:
    """Measure the engines of annotate-corpus beside nlp.pipe, and say what a large corpus would cost."""
    dtype = resolve_dtype("auto", False)
    texts = make_texts(sample)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Of the least corpus for which all workers start
        small = write_corpus(folder / "small", texts, workers * SHARD, lambda text: 1)
        large = write_corpus(folder / "large", texts, words, lambda text: len(text.split()))
        annotate = Annotator(model, folder / "annotated", SHARD)
        record: dict[str, Any] = {
            "documents": large.documents,
            "words": large.words,
            "repetitions": repetitions,
            "memory": MEMORY,
            "default_dtype": dtype,
            "machine": machine(),
            "inputs": record_inputs(
                model=model,
                sample=sample,
                code=Path(__file__),
                engines=ROOT / "scripts/annotate_corpus.py",
                pipeline=PIPELINE,
            ),
            "engines": measure_engines(annotate, small, large, workers, repetitions),
        }
        write_json(metrics / "corpora.json", record)  # the longest part is done
        record["stream"] = measure_stream(folder, texts, stream)
    bytes_per_second = record["stream"]["looked_through_mb_per_second"] * 1e6
    record["cost"] = estimate(record["engines"], large, workers, bytes_per_second)
    write_json(metrics / "corpora.json", record)
    for header, rows in tabulate_scaling(record):
        msg.table(rows, header=header, divider=True, aligns=("l", *"r" * (len(header) - 1)))
    msg.good(f"Wrote {metrics / 'corpora.json'}")


def make_texts(sample: Path) -> Iterator[str]:
    """Make texts without end from the sentences of a corpus, drawn at random; they are the same each time.

    sample (Path): File in CoNLL columns.
    YIELDS (str): A text: mostly of a few sentences, sometimes of many, as documents are.
    """
    documents = read_conll(sample).documents
    sentences = [" ".join(token.text for token in sentence) for document in documents for sentence in document]
    draw = random.Random(0)
    while True:
        yield " ".join(draw.choices(sentences, k=1 + int(draw.expovariate(1 / SENTENCES))))


def write_corpus(folder: Path, texts: Iterator[str], amount: float, count: Callable[[str], int]) -> Corpus:
    """Write texts into files, in turns .jsonl and .parquet, and hold no more of them than a file has.

    folder (Path): The folder, which is new.
    texts (Iterator[str]): The texts, of which as many are taken as are wanted.
    amount (float): How much text is wanted.
    count (Callable[[str], int]): Says how much of that a text is.
    RETURNS (Corpus): What was written.
    """
    folder.mkdir()
    documents = words = size = number = 0
    while amount > 0:
        rows: list[str] = []
        while amount > 0 and len(rows) < ROWS:
            rows.append(next(texts))
            amount -= count(rows[-1])
        documents += len(rows)
        words += sum(len(text.split()) for text in rows)
        size += sum(len(text.encode()) for text in rows)
        path = folder / f"{number:06}"
        if number % 2:
            pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path.with_suffix(".parquet"))
        else:
            lines = (json.dumps({"text": text}) + "\n" for text in rows)
            path.with_suffix(".jsonl").write_text("".join(lines), "utf8")
        number += 1
    return Corpus(folder, documents, words, size)


# Contenders


class Annotator:
    """Annotates corpora, each in processes of its own, as `annotate-corpus` or without an engine.

    model (Path): The pipeline.
    target (Path): Folder for what is found, which is removed each time.
    size (int): The documents of a part.
    """

    def __init__(self, model: Path, target: Path, size: int) -> None:
        self.model = model.resolve()
        self.target = target
        self.size = size

    def __call__(self, engine: str, workers: int, texts: Path) -> Usage:
        """Annotate a corpus.

        engine (str): The name of an engine, or nothing for `nlp.pipe`.
        workers (int): The processes of the engine, or the threads of `nlp.pipe`.
        texts (Path): Folder of the corpus.
        RETURNS (Usage): What it took.
        RAISES (StepError): If it fails.
        """
        python = [sys.executable, "-W", "ignore"]
        if not engine:
            return watch("nlp.pipe", [*python, "-c", PLAIN, str(self.model), str(texts), str(workers)])
        options = ["--engine", engine, "--processes", str(workers), "--size", str(self.size)]
        command = ["-m", "scripts.annotate_corpus", str(texts), str(self.target), "--pipeline", str(self.model)]
        try:
            return watch(engine, [*python, *command, *options])
        finally:
            shutil.rmtree(self.target, ignore_errors=True)


def watch(name: str, command: list[str]) -> Usage:
    """Run a command, and look again and again at the memory of all its processes.

    name (str): What an error calls it.
    command (list[str]): The command line.
    RETURNS (Usage): What it took.
    RAISES (StepError): If it fails.
    """
    peak = 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    with tempfile.TemporaryFile("w+", encoding="utf8") as log:
        began = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(INTERVAL)
                    break
                peak = max(peak, memory_of(process.pid))
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise StepError(f"{name} ended before its time.", "\n".join(log.read().splitlines()[-15:]))
    return Usage(seconds, peak / 2**20)


def memory_of(pid: int) -> int:
    """The bytes of memory of a process and of all that it has started, directly or not, as MEMORY counts them."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.Error):  # it has ended meanwhile
                total += getattr(process.memory_full_info() if MEMORY == "pss" else process.memory_info(), MEMORY)
    return total


def find_missing(engine: str) -> str:
    """Say what an engine lacks on this machine; nothing if it lacks nothing."""
    package = PACKAGES[engine]
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return "Java is not installed" if engine == "spark" and not shutil.which("java") else ""


def measure_engines(
    annotate: Callable[[str, int, Path], Usage], small: Corpus, large: Corpus, workers: int, repetitions: int
) -> dict[str, dict[str, Any]]:
    """Let `nlp.pipe` and the engines annotate two corpora in turns: what the small one takes is mostly the start.

    annotate (Callable[[str, int, Path], Usage]): An Annotator.
    small, large (Corpus): The corpora.
    workers (int): With how many workers an engine works, besides with one.
    repetitions (int): How often.
    RETURNS (dict[str, dict[str, Any]]): By name `workers`, the `seconds` of each repetition with the large corpus and
        with the small one, `words_per_second` between the two, the seconds of the `start`, the `peak_mb`, and the
        `share` of the speed of `nlp.pipe` in one thread for each worker; or why they are `unavailable`.
    """
    contenders = {"nlp.pipe": ("", 1), f"nlp.pipe-{workers}-threads": ("", workers)}
    contenders |= {f"{engine}-{count}": (engine, count) for engine in PACKAGES for count in (1, workers)}
    results: dict[str, dict[str, Any]] = {}
    present = {}
    for name, (engine, count) in contenders.items():
        if missing := engine and find_missing(engine):
            results[name] = {"unavailable": missing}
        else:
            results[name] = {"workers": count}
            present[name] = (engine, count)
    usages: dict[str, list[tuple[Usage, Usage]]] = {name: [] for name in present}
    with tqdm.tqdm(total=repetitions * len(present), unit="pass", disable=None) as bar:
        for _ in range(repetitions):
            for name, (engine, count) in present.items():
                bar.set_description(name)
                usages[name].append((annotate(engine, count, large.folder), annotate(engine, count, small.folder)))
                bar.update()
    for name, pairs in usages.items():
        results[name] |= {
            "seconds": [[usage.seconds for usage in pair] for pair in pairs],
            "peak_mb": statistics.median(pair[0].peak_mb for pair in pairs),
        }
        slow, quick = (statistics.median(pair[which].seconds for pair in pairs) for which in (0, 1))
        if slow <= quick:  # on a machine that does something else meanwhile
            results[name]["unavailable"] = "too few words to tell"
            continue
        rate = (large.words - small.words) / (slow - quick)
        results[name] |= {"words_per_second": rate, "start": quick - small.words / rate}
    reference = results["nlp.pipe"].get("words_per_second")
    for result in results.values():
        if reference and "words_per_second" in result:
            result["share"] = result["words_per_second"] / result["workers"] / reference
    return results


# What the engine itself takes


def measure_stream(folder: Path, texts: Iterator[str], megabytes: float) -> dict[str, Any]:
    """Measure the local engine with a pipeline that finds nothing, on an amount of text, and on four times as much.

    folder (Path): Folder for the texts and the pipeline.
    texts (Iterator[str]): The texts.
    megabytes (float): The smaller amount.
    RETURNS (dict[str, Any]): The `megabytes` of both, for `nlp.pipe` and `local-1` the `seconds` and the `peak_mb` of
        both, `mb_per_second` between them, None if there was too little text to tell, and the `growth` of the memory
        from one to the other; and `looked_through_mb_per_second`, how fast .jsonl is looked through before anything is
        annotated.
    """
    spacy.blank("en").to_disk(folder / "blank")
    annotate = Annotator(folder / "blank", folder / "annotated", ROWS)
    found: dict[str, list[Usage]] = {"nlp.pipe": [], "local-1": []}
    sizes = []
    for number, amount in enumerate((megabytes, 4 * megabytes)):
        corpus = write_corpus(folder / f"stream-{number}", texts, amount * 1e6, len)
        sizes.append(corpus.size / 1e6)
        for name, engine in {"nlp.pipe": "", "local-1": "local"}.items():
            found[name].append(annotate(engine, 1, corpus.folder))
    files, _ = find_files(f"{corpus.folder}/*.jsonl")
    began = time.perf_counter()
    survey(files, Columns(), SHARD)
    looked = sum(file.size for file in files) / (time.perf_counter() - began)
    shown = {name: _compare(sizes, *usages) for name, usages in found.items()}
    return {"megabytes": sizes, "looked_through_mb_per_second": looked / 1e6, **shown}


def _compare(sizes: list[float], small: Usage, large: Usage) -> dict[str, Any]:
    longer = large.seconds - small.seconds
    return {
        "seconds": [small.seconds, large.seconds],
        "peak_mb": [small.peak_mb, large.peak_mb],
        "mb_per_second": (sizes[1] - sizes[0]) / longer if longer > 0 else None,
        "growth": large.peak_mb / small.peak_mb - 1,
    }


# What a large corpus would cost


def predict(words: float, rate: float, workers: int, efficiency: float, start: float, before: float = 0) -> float:
    """Predict how long a corpus takes.

    words (float): Its words.
    rate (float): Words per second of one worker that has the machine for itself.
    workers (int): How many workers there are, on all machines together.
    efficiency (float): The share of that speed which each has beside the others.
    start (float): Seconds until they work.
    before (float): Seconds in which one process looks through the texts, before all else.
    RETURNS (float): Seconds.
    """
    return before + start + words / (rate * workers * efficiency)


def estimate(
    engines: Mapping[str, Mapping[str, Any]], corpus: Corpus, workers: int, bytes_per_second: float
) -> dict[str, Any]:
    """Say what LARGE documents of the same length would cost, and check the law against what was measured.

    The law is checked where it can fail: what several workers take is predicted from what one takes, as if none were in
    the way of the others. The share of their speed that they lost is then the efficiency of the estimate. Machines
    have nothing in common but the place of texts and parts, so that no more is lost between them.

    engines (Mapping[str, Mapping[str, Any]]): As `measure_engines` returns them.
    corpus (Corpus): The large one of that.
    workers (int): The larger number of workers of that, which is also how many a machine has.
    bytes_per_second (float): How fast .jsonl is looked through.
    RETURNS (dict[str, Any]): The `documents` and `words`; `checks`, by engine `predicted_seconds`, `measured_seconds`,
        `error`, relative to what was measured, and `efficiency`; and by engine a list of `estimates`, each with
        `machines`, `hours` and `machine_hours`.
    """
    words = corpus.words / corpus.documents * LARGE
    before = corpus.size / corpus.documents * LARGE / bytes_per_second
    checks: dict[str, dict[str, float]] = {}
    estimates: dict[str, list[dict[str, float]]] = {}
    for engine in PACKAGES:
        one, several = engines[f"{engine}-1"], engines[f"{engine}-{workers}"]
        if "unavailable" in one or "unavailable" in several:
            continue
        rate, start = one["words_per_second"], several["start"]
        predicted = predict(corpus.words, rate, workers, 1, start)
        measured = statistics.median(seconds for seconds, _ in several["seconds"])
        efficiency = several["words_per_second"] / workers / rate
        checks[engine] = {
            "predicted_seconds": predicted,
            "measured_seconds": measured,
            "error": predicted / measured - 1,
            "efficiency": efficiency,
        }
        estimates[engine] = []
        for machines in MACHINES:
            hours = predict(words, rate, workers * machines, efficiency, start, before) / 3600
            estimates[engine].append({"machines": machines, "hours": hours, "machine_hours": machines * hours})
    return {
        "documents": LARGE,
        "words": words,
        "looked_through_hours": before / 3600,
        "checks": checks,
        "estimates": estimates,
    }


if __name__ == "__main__":
    main(corpus)
