"""Measure what annotating costs and buys: keys and clicks with and without suggestions, and F1 by the order of work.

A simulated annotator takes the training documents as texts without labels, and annotates one batch of them after the
other. After each batch a pipeline is trained on all that is annotated so far. It suggests names for the next batch, and
in the order of `select` it also chooses which documents come next. The other order is random: its documents are those
of the draws of `curve`, so that the models are the same. Dev and test stay whole, as there. Results are found again by
their inputs, so that after an interruption the same command goes on where it was.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import typer
from wasabi import msg

from benchmarks.annotator import Gold, annotate, read_gold
from benchmarks.curve import SCORED, draw_order, find_needed, score_ours, spread, write_part
from benchmarks.harness import PIPELINE, ROOT, choose, machine
from common import scoring
from common.annotations import Document
from common.corpora import read_docs
from common.errors import StepError, main
from common.figures import Figures, save_figures
from common.formatting import describe_effort, tabulate_effort
from common.models import train_aside
from common.records import SPLITS, digest, read_json, record_inputs, write_json, writes
from common.store import STORE, Store
from common.training import prepare

RANDOM, SELECT = "random", "select"
ORDERS = (RANDOM, SELECT)
START = 50  # documents, from which on it is counted what suggestions save: the first pipelines are poor
# What decides a result beside the model: what the annotator does, how documents are chosen, and how scores are made
CODE = {
    "annotator": ROOT / "benchmarks/annotator.py",
    "select": ROOT / "scripts/select.py",
    "scoring": Path(scoring.__file__),
}


@writes("metrics", "effort.json", "effort.svg")
def effort(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for effort.json and effort.svg")],
    step: Annotated[int, typer.Option(help="Documents in a batch", min=2)] = 25,
    most: Annotated[int, typer.Option(help="How many documents are annotated", min=2)] = 200,
    draws: Annotated[int, typer.Option(help="How many, from 0; a draw is the seed of its trainings too", min=1)] = 3,
    only: Annotated[str, typer.Option(help="One of the orders: random or select")] = "",
    epochs: Annotated[str, typer.Option(help="As train's")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's")] = "auto",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Let a simulated annotator work with and without suggestions, at random and in the order of select."""
    names = choose(ORDERS, only)
    docs = read_docs(corpus / "train.spacy")
    pool, lengths = read_gold(docs), [len(doc) for doc in docs]
    sizes = range(step, min(most, len(pool)) + 1, step)
    if not sizes:
        raise StepError(f"The corpus has only {len(pool)} training documents.", "Choose smaller batches with --step.")
    folder.mkdir(parents=True, exist_ok=True)
    path = metrics / "effort.json"
    options: dict[str, Any] = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words}
    data = record_inputs(encoder=encoder, **{split: corpus / f"{split}.spacy" for split in SPLITS})
    decisive = {**{split: data[split] for split in SPLITS}, **record_inputs(**CODE)}
    fixed = {
        "machine": machine(),
        "inputs": record_inputs(config=config, code=Path(__file__), pipeline=PIPELINE) | data,
    }
    runs = read_json(path).get("runs", {})
    current: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:

        @functools.cache
        def settle(chosen: tuple[int, ...], draw: int) -> tuple[Path, dict[str, Any]]:
            """The corpus of the documents that are annotated so far, and the provenance of its model."""
            part = write_part(corpus, chosen, Path(temporary, digest({"chosen": chosen, "draw": draw})))
            return part, prepare(config, part, encoder, **options, seed=draw)[0]

        def train(chosen: tuple[int, ...], draw: int) -> Path:
            part, provenance = settle(chosen, draw)
            return train_aside(provenance, config, folder, part, encoder, **options, seed=draw, gpu_id=gpu_id)

        @functools.cache
        def score(chosen: tuple[int, ...], draw: int) -> dict[str, Any]:
            return score_ours(train(chosen, draw), settle(chosen, draw)[0])

        def write() -> dict[str, Any]:
            record = {**fixed, "runs": runs, **summarize(current.values())}
            record["captions"] = save_figures(FIGURES, record, metrics)
            write_json(path, record)
            return record

        for draw in range(draws):
            annotated: dict[str, tuple[int, ...]] = dict.fromkeys(ORDERS, ())
            for documents in sizes:
                for name in ORDERS:
                    before = annotated[name]
                    if len(before) != documents - step:  # this order is not wanted, and was not measured so far
                        continue
                    key = f"{name}, {documents} documents, draw {draw}"
                    inputs = {"before": digest(settle(before, draw)[1]) if before else "", **decisive}
                    if key in runs and inputs.items() <= runs[key]["inputs"].items():
                        after = (*before, *runs[key]["chosen"])
                        if runs[key]["inputs"]["model"] == digest(settle(after, draw)[1]):
                            annotated[name], current[key] = after, runs[key]
                            continue
                    if name not in names:
                        continue
                    msg.divider(key)
                    if name == RANDOM or not before:  # nothing can choose the first batch
                        batch = draw_order(len(pool), draw)[len(before) : documents]
                    else:
                        batch = choose_next(pool, before, train(before, draw), step, draw, gpu_id)
                    texts = [pool[number] for number in batch]
                    annotated[name] = after = (*before, *batch)
                    scores = score(after, draw)
                    runs[key] = current[key] = {
                        "order": name,
                        "documents": documents,
                        "draw": draw,
                        "inputs": inputs | {"model": digest(settle(after, draw)[1])},
                        "chosen": batch,
                        "words": sum(lengths[number] for number in batch),
                        "entities": sum(len(text.spans) for text in texts),
                        "actions": annotate(texts, train(before, draw) if before else None),
                        "from_nothing": annotate(texts, None),
                        **{split: scores[split] for split in SCORED},
                        "shipped": scores["shipped"],
                        "seconds": scores["seconds"],
                    }
                    write()
    if not current:
        raise StepError("Nothing was measured.", "Choose more documents with --most, or another order with --only.")
    record = write()
    header, rows = tabulate_effort(record)
    msg.table(rows, header=header, divider=True)
    msg.text(describe_effort(record))
    msg.good(f"Wrote {path} and effort.svg")
    msg.info(f"The report has them when it is written again: make report RUN={metrics.name}")


def choose_next(
    pool: list[Gold], annotated: Iterable[int], model: Path, number: int, seed: int, gpu_id: int
) -> list[int]:
    """Let `select` choose a batch of documents.

    pool (list[Gold]): All documents.
    annotated (Iterable[int]): The numbers of those that it shall not choose.
    model (Path): The pipeline by whose probabilities it chooses.
    number (int): How many documents it shall choose.
    seed, gpu_id: As `select` takes them.
    RETURNS (list[int]): Their numbers, in the order of work.
    RAISES (StepError): If it fails.
    """
    done = set(annotated)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pool")
        folder.mkdir()
        store = Store(folder / STORE)
        store.add_documents(Document(id=one.id, text=one.text) for one in pool if int(one.id) not in done)
        command = [sys.executable, "-m", "scripts.select", str(folder), "--pipeline", str(model)]
        command += ["--batch", str(number), "--seed", str(seed), "--gpu-id", str(gpu_id)]
        if subprocess.run(command).returncode:
            raise StepError("select failed.", "See above. What is done is kept: run the same again.")
        return [int(task.document.id) for task in store.tasks()[:number]]


def summarize(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the draws.

    runs (Iterable[dict[str, Any]]): As `effort` writes them.
    RETURNS (dict[str, Any]): `summary`: by order a list, for each number of annotated `documents`, from the lowest, of
        the number of `draws`; their mean number of `words`; `mean`, `lowest` and `highest` F1 on `dev` and `test` with
        gold sentences, and on test as `shipped`; and for the batch that came last, over all draws, keys and clicks for
        each entity: `actions`, None if no pipeline could suggest anything yet, and those `from_nothing`. `start`:
        START, and by order what share of keys and clicks suggestions `saved` from there on, or None. `target`: the
        largest number of documents of both orders, and `needed`: with how many, on dev and on test, the curve of select
        reaches what random has there, as `find_needed` finds it. `needed_words`: the same in words, as a share of those
        of random. None if one of the two orders is missing.
    """
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {}
    words: Counter[tuple[str, int]] = Counter()
    for run in sorted(runs, key=lambda run: run["documents"]):
        words[run["order"], run["draw"]] += run["words"]  # the batches before are among the runs
        total = run | {"words_so_far": words[run["order"], run["draw"]]}
        groups.setdefault(run["order"], {}).setdefault(run["documents"], []).append(total)
    summary: dict[str, list[dict[str, Any]]] = {}
    saved: dict[str, float | None] = {}
    for name in (name for name in ORDERS if name in groups):
        sizes = dict(sorted(groups[name].items()))
        summary[name] = [summarize_draws(documents, group) for documents, group in sizes.items()]
        late = [run for group in sizes.values() for run in group if run["documents"] - len(run["chosen"]) >= START]
        saved[name] = 1 - _sum(late, "actions") / _sum(late, "from_nothing") if late else None
    target = needed = needed_words = None
    curves = [{point["documents"]: point for point in summary.get(name, [])} for name in ORDERS]
    if common := curves[0].keys() & curves[1].keys():
        target = max(common)
        goal = curves[0][target]

        def reach(unit: str) -> dict[str, float | None]:
            curve = curves[1].values()
            return {
                split: find_needed({point[unit]: point[split]["mean"] for point in curve}, goal[split]["mean"])
                for split in SCORED
            }

        needed = reach("documents")
        needed_words = {split: number and number / goal["words"] for split, number in reach("words").items()}
    return {
        "summary": summary,
        "start": START,
        "saved": saved,
        "target": target,
        "needed": needed,
        "needed_words": needed_words,
    }


def summarize_draws(documents: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the draws of one order and one number of documents, as `summarize` describes it."""
    entities = max(1, _sum(runs, "entities"))
    return {
        "documents": documents,
        "draws": len(runs),
        "words": round(_sum(runs, "words_so_far") / len(runs)),
        **{split: spread([run[split] for run in runs]) for split in SCORED},
        "shipped": spread([run["shipped"]["test"] for run in runs]),
        "actions": None if runs[0]["actions"] is None else _sum(runs, "actions") / entities,
        "from_nothing": _sum(runs, "from_nothing") / entities,
    }


def _sum(runs: list[dict[str, Any]], name: str) -> int:
    return sum(run[name] for run in runs)


def draw_effort(record: dict[str, Any]) -> Any:
    """Draw keys and clicks for an entity, and F1 on test, over the number of annotated documents.

    record (dict[str, Any]): As `effort` writes it.
    RETURNS (Any): The figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
    for name, points in record["summary"].items():
        sizes = [point["documents"] for point in points]
        (line,) = left.plot(
            sizes[1:], [point["actions"] for point in points[1:]], marker="o", label=f"{name}, with suggestions"
        )
        nothing = [point["from_nothing"] for point in points]
        left.plot(sizes, nothing, linestyle=":", color=line.get_color(), label=f"{name}, from nothing")
        means, lowest, highest = (
            100 * np.array([point["test"][key] for point in points]) for key in ("mean", "lowest", "highest")
        )
        right.errorbar(sizes, means, [means - lowest, highest - means], marker="o", capsize=3, label=name)
    left.set(xlabel="annotated documents", ylabel="keys and clicks for an entity")
    right.set(xlabel="annotated documents", ylabel="F1 of entities on test, %")
    left.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend()
    return figure


FIGURES: Figures = {
    "effort": (
        draw_effort,
        "Left: keys and clicks for an entity of the batch that came last. Right: F1 on test with gold sentences after "
        "it: mean, lowest and highest of the draws.",
    )
}

if __name__ == "__main__":
    main(effort)
