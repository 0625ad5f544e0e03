"""Measure how fast the pipeline annotates, beside other ways to use the same encoder; its starts, and its memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import tqdm
import typer
from wasabi import msg

from benchmarks.harness import (
    PIPELINE,
    SENTENCE,
    Job,
    add_rates,
    choose,
    compete,
    machine,
    make_job,
    print_rates,
    worker_commands,
)
from benchmarks.worker import PEERS, SPEED
from bert_ner.inference import resolve_dtype
from common.errors import main
from common.figures import Figures, save_figures
from common.records import record_inputs, write_json, writes
from common.wheels import install, newest_wheel, python_elsewhere

REFERENCE = "spacy-transformers"

# These run in processes that see nothing of this project but the installed wheel. They print JSON.
START = """import json, sys, time
began = time.perf_counter()
import spacy
imported = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter()
nlp(sys.argv[2]).ents
print(json.dumps({"import_spacy": imported - began, "load_after_spacy": loaded - imported}))
"""
LATENCY = """import json, sys, time
import spacy, spacy_transformers, torch, transformers
began = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter() - began
calls = []
for _ in range(220):
    began = time.perf_counter()
    nlp(sys.argv[2])
    calls.append(time.perf_counter() - began)
print(json.dumps({"load_after_imports": loaded, "calls": calls[20:]}))
"""
MEMORY = """import itertools, json, resource, sys
import spacy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
nlp = spacy.load(sys.argv[1])
loaded = peak()
with open(sys.argv[2], encoding="utf8") as file:
    texts = itertools.cycle(json.load(file))
wanted = characters = int(float(sys.argv[3]) * 1e6)
while characters > 0:
    with nlp.memory_zone():
        for doc in nlp.pipe(text[:characters] for text in itertools.islice(texts, 16)):
            characters -= len(doc.text)
            if characters <= 0:
                break
print(json.dumps({"megabytes": wanted / 1e6, "loaded_rss_mb": loaded, "peak_rss_mb": peak()}))
"""


@writes("metrics", "speed.json", "speed.svg")
def speed(
    packages: Annotated[
        Path, typer.Argument(help="Folder of the run's packages; the newest wheel is taken", exists=True)
    ],
    model: Annotated[Path, typer.Argument(help="The pipeline from which the wheel was made", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for speed.json and speed.svg")],
    documents: Annotated[int, typer.Option(help="How many of dev, from the first; 0 for all", min=0)] = 100,
    repetitions: Annotated[int, typer.Option(help="Of each contender", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
    peers: Annotated[Path | None, typer.Option(help="Python of the environment of other libraries")] = None,
    memory: Annotated[str, typer.Option(help="Megabytes of text to measure memory on, with commas between")] = "1,5",
) -> None:
    """Measure how fast the installed wheel annotates, beside other ways to use its encoder."""
    names = choose(SPEED, only)
    dtype = resolve_dtype("auto", False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target = folder / "target"
        wheel = newest_wheel(packages)
        dev = corpus / "dev.spacy"
        job = make_job(dev, documents, folder, encoder)
        job.package = install(wheel, target)
        job.model = str(model.resolve())
        pythons = dict.fromkeys(PEERS, peers) if peers else {}
        contenders = compete(worker_commands(names, job, folder, pythons), repetitions, target)
        add_rates(contenders, REFERENCE)
        add_encoder_shares(contenders, dtype)
        record: dict[str, Any] = {
            "documents": documents or "all",
            "words": job.words,
            "sentences": len(job.sentences),
            "reference": REFERENCE,
            "default_dtype": dtype,
            "machine": machine(),
            "inputs": record_inputs(
                model=model, wheel=wheel, dev=dev, encoder=encoder, code=Path(__file__), pipeline=PIPELINE
            ),
            "contenders": contenders,
        }
        write_json(metrics / "speed.json", record)  # the longest part is done
        record["starts"] = measure_starts(job.package, target, repetitions)
        amounts = [float(part) for part in memory.split(",") if part.strip()]
        record["memory"] = measure_memory(job.package, target, job, amounts, folder)
        write_json(metrics / "speed.json", record)
    save_figures(FIGURES, contenders, metrics)
    print_rates(contenders, REFERENCE)
    starts = record["starts"]
    seconds = {f"seconds, {key.replace('_', ' ')}": value for key, value in starts["medians"].items()}
    sentence = {f"milliseconds, one sentence, {key}": 1000 * starts["sentence"][key] for key in ("p50", "p99")}
    peaks = {f"peak MB, annotating {amount['megabytes']:g} MB": amount["peak_rss_mb"] for amount in record["memory"]}
    msg.table({key: f"{value:,.2f}" for key, value in (seconds | sentence | peaks).items()}, aligns=("l", "r"))
    msg.good(f"Wrote {metrics / 'speed.json'}")


def add_encoder_shares(results: dict[str, dict[str, Any]], default: str) -> None:
    """Add to each run of our pipeline its share of the speed of the bare encoder in the same dtype.

    results (dict[str, dict[str, Any]]): As `add_rates` leaves it.
    default (str): The dtype of the default settings.
    """
    for name, dtype in {"default": default, **{dtype: dtype for dtype in ("float32", "bfloat16", "int8")}}.items():
        ours, bare = (results.get(key, {}).get("words_per_second") for key in (name, f"encoder-{dtype}"))
        if ours and bare:
            results[name]["share_of_bare_encoder"] = ours["median"] / bare["median"]


def measure_starts(package: str, target: Path, repetitions: int) -> dict[str, Any]:
    """Measure how long a new process takes until the first entity, and a warm one for a sentence.

    package (str): Name of the package.
    target (Path): Folder where it is installed.
    repetitions (int): How many processes of each kind to start.
    RETURNS (dict[str, Any]): `repetitions` and their `medians`: to import spaCy, to load, to the first entity;
        `sentence`: p50 and p99. All are seconds.
    """
    repeated: list[dict[str, float]] = []
    calls: list[float] = []
    for _ in tqdm.tqdm(range(repetitions), desc="starts", unit="pass", disable=None):
        began = time.perf_counter()
        start = json.loads(python_elsewhere(["-c", START, package, SENTENCE], target))
        start["process_to_first_entity"] = time.perf_counter() - began
        warm = json.loads(python_elsewhere(["-c", LATENCY, package, SENTENCE], target))
        calls += warm.pop("calls")
        repeated.append(start | warm)
    percentiles = statistics.quantiles(calls, n=100, method="inclusive")
    return {
        "repetitions": repeated,
        "medians": {key: statistics.median(times[key] for times in repeated) for key in repeated[0]},
        "sentence": {"text": SENTENCE, "calls": len(calls), "p50": percentiles[49], "p99": percentiles[98]},
    }


def measure_memory(package: str, target: Path, job: Job, megabytes: list[float], folder: Path) -> list[dict[str, Any]]:
    """Measure the peak memory of annotating much text as a stream, each amount in a process of its own.

    package (str): Name of the package.
    target (Path): Folder where it is installed.
    job (Job): Its sentences are the text, again and again.
    megabytes (list[float]): Amounts of text, in millions of characters.
    folder (Path): Folder for the text, in documents of 10,000 characters.
    RETURNS (list[dict[str, Any]]): For each amount `megabytes`, `loaded_rss_mb` and `peak_rss_mb`.
    """
    text = " ".join(sentence["text"] for sentence in job.sentences)
    text *= -(-10_000 // len(text))
    texts = folder / "texts.json"
    texts.write_text(json.dumps([text[i : i + 10_000] for i in range(0, len(text), 10_000)]), encoding="utf8")
    bar = tqdm.tqdm(megabytes, desc="memory", unit="process", disable=None)
    return [json.loads(python_elsewhere(["-c", MEMORY, package, str(texts), str(amount)], target)) for amount in bar]


def draw_speed(results: dict[str, dict[str, Any]]) -> Any:
    """Draw the speed of contenders.

    results (dict[str, dict[str, Any]]): As `add_rates` leaves it.
    RETURNS (Any): The figure.
    """
    rates = {name: result["words_per_second"] for name, result in results.items() if "words_per_second" in result}
    figure, axes = plt.subplots(figsize=(9, 1 + 0.35 * len(rates)))
    names = sorted(rates, key=lambda name: rates[name]["median"])
    bars = axes.barh(names, [rates[name]["median"] for name in names], color="tab:blue")
    axes.bar_label(bars, [_label(results[name]) for name in names], padding=4)
    axes.set(xlabel="words per second")
    axes.margins(x=0.25)
    return figure


def _label(result: dict[str, Any]) -> str:
    f1 = result["f1"]
    return f"{result['words_per_second']['median']:,.0f}" + ("" if f1 is None else f" (F1 {100 * f1:.1f})")


FIGURES: Figures = {"speed": (draw_speed, "Words per second, and F1 of entities where the contender has one.")}

if __name__ == "__main__":
    main(speed)
