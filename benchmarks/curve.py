"""Measure how many training documents the pipeline needs, beside other ways to fine-tune the same encoder.

Each draw puts the training documents into another order, and the first of them are a smaller corpus, so that the
corpora of a draw lie within each other. Dev and test stay whole for every contender, because the best weights are
chosen on dev and the scores of entities are calibrated there. Results are found again by their inputs, so that after
an interruption the same command goes on where it was. From three numbers of documents on, it forecasts what more
documents would bring.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import spacy
import tqdm
import typer
from spacy.tokens import Doc, DocBin
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from benchmarks.ablation import OURS, USUAL, USUAL_SETTINGS, score_usual
from benchmarks.contenders import explosion, huggingface, span_marker
from benchmarks.forecast import forecast
from benchmarks.harness import PIPELINE, Worker, choose, find_python, machine
from common import scoring
from common.corpora import read_docs, split_sentences
from common.devices import Training, choose_devices, train_all
from common.errors import StepError, main
from common.figures import Figures, save_figures, scale_log
from common.formatting import describe_forecast, describe_threshold, tabulate_curve
from common.models import TAUGHT, train_aside
from common.records import SPLITS, code_digest, digest, read_json, record_inputs, sha256, write_json, writes
from common.training import EVALUATIONS, FEWEST_STEPS, prepare

SIZES = "10,25,50,100,200,all"
SHARES = {"quarter": 4, "half": 2, "all": 1}  # the divisor of the number of documents
SCORED = ("dev", "test")
TAUGHT_OURS, EXPLOSION, SPAN_MARKER = "ours with teachers", "explosion", "span-marker"
CONTENDERS = (OURS, TAUGHT_OURS, USUAL, EXPLOSION, SPAN_MARKER)
TEACHERS = 5
# The usual number of epochs leaves a small corpus with a handful of steps, which would be a straw man. Therefore all
# contenders get FEWEST_STEPS at least, as ours does.
SETTINGS: dict[str, dict[str, Any]] = {
    USUAL: USUAL_SETTINGS,
    EXPLOSION: {"epochs": 5, "evaluations": EVALUATIONS},
    SPAN_MARKER: {
        "learning_rate": USUAL_SETTINGS["learning_rate"],
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "warmup_ratio": 0.1,
    },
}
CODE = {
    name: Path(str(module.__file__))
    for name, module in {USUAL: huggingface, EXPLOSION: explosion, SPAN_MARKER: span_marker}.items()
}
MOST_ON_CPU = {SPAN_MARKER: 50}  # documents


@writes("metrics", "curve.json", "curve.svg")
def curve(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for curve.json and curve.svg")],
    sizes: Annotated[str, typer.Option(help="Numbers of documents, quarter, half or all, by commas")] = SIZES,
    draws: Annotated[int, typer.Option(help="How many, from 0; a draw is the seed of its trainings too", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
    peers: Annotated[Path | None, typer.Option(help="Python of the environment of other libraries")] = None,
    epochs: Annotated[str, typer.Option(help="As train's; for ours alone")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's; for ours alone")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's; for ours alone")] = "auto",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
    gpus: Annotated[str, typer.Option(help="Several GPUs, with a training on each at a time: 0,1")] = "",
    processes: Annotated[int, typer.Option(help="How many trainings share the cores at a time", min=1)] = 1,
) -> None:
    """Train the pipeline and other fine-tunings on few and on many documents, and score them."""
    names, devices = choose(CONTENDERS, only), choose_devices(gpu_id, gpus, processes)
    gpu_id = devices[0]
    total = len(read_docs(corpus / "train.spacy"))
    numbers = choose_sizes(sizes, total)
    folder.mkdir(parents=True, exist_ok=True)
    path = metrics / "curve.json"
    options: dict[str, Any] = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words}
    data = record_inputs(encoder=encoder, **{split: corpus / f"{split}.spacy" for split in SPLITS})
    fixed = {
        "machine": machine(),
        "inputs": record_inputs(config=config, code=Path(__file__), pipeline=PIPELINE) | data,
    }
    with tempfile.TemporaryDirectory() as temporary:

        @functools.cache
        def find_draw(documents: int, draw: int) -> Path:
            return write_draw(corpus, documents, draw, Path(temporary, f"{documents}-{draw}"))

        @functools.cache
        def find_inputs(name: str, documents: int, draw: int) -> tuple[dict[str, Any], dict[str, Any]]:
            """What decides a result, and the provenance of the model that it belongs to."""
            drawn = find_draw(documents, draw)
            scored = {"dev": data["dev"], "test": data["test"], **record_inputs(code=Path(scoring.__file__))}
            if name == OURS:
                provenance, _ = prepare(config, drawn, encoder, **options, seed=draw)
                return {"model": digest(provenance), **scored}, provenance
            if name == TAUGHT_OURS:
                teachers = [prepare(config, drawn, encoder, **options, seed=seed)[0] for seed in range(TEACHERS)]
                how = {"teachers": list(map(digest, teachers)), "seed": draw, "texts": data["train"]}
                return how | scored | {"teach": code_digest(Path("scripts/teach.py"))}, {}
            return {
                **data,
                "train": sha256(drawn / "train.spacy"),
                "seed": draw,
                "settings": SETTINGS[name],
                "fewest_steps": FEWEST_STEPS,
                "code": code_digest(CODE[name]),  # no other code, since this result takes a long training
            }, {}

        runs = read_json(path).get("runs", {})
        current = {
            key: run
            for key, run in runs.items()
            if run["contender"] in CONTENDERS
            and run["documents"] <= total
            and run["inputs"] == find_inputs(run["contender"], run["documents"], run["draw"])[0]
        }

        def write() -> dict[str, Any]:
            record = {**fixed, "runs": runs, **summarize(current.values())}
            record["captions"] = save_figures(FIGURES, record, metrics)
            write_json(path, record)
            return record

        if len(devices) > 1:
            trainings = {}
            for documents, draw, name in itertools.product(numbers, range(draws), names):
                if (key := f"{name}, {documents} documents, draw {draw}") in current:
                    continue
                for seed in {OURS: [draw], TAUGHT_OURS: range(TEACHERS)}.get(name, []):
                    drawn, own = find_draw(documents, draw), options | {"seed": seed}
                    provenance, _ = prepare(config, drawn, encoder, **own)
                    trainings[f"{key}, seed {seed}"] = Training(provenance, config, folder, drawn, encoder, own)
            train_all(trainings, devices)
        for documents, draw, name in itertools.product(numbers, range(draws), names):
            key = f"{name}, {documents} documents, draw {draw}"
            msg.divider(key)
            if key in current:
                msg.good("measured already")
                continue
            if gpu_id < 0 and documents > MOST_ON_CPU.get(name, documents):
                msg.warn(f"Left out: beyond {MOST_ON_CPU[name]} documents, a training takes hours without a GPU.")
                continue
            decisive, provenance = find_inputs(name, documents, draw)
            drawn = find_draw(documents, draw)
            settings = options | {"seed": draw, "gpu_id": gpu_id}
            if name == OURS:
                result = score_ours(train_aside(provenance, config, folder, drawn, encoder, **settings), drawn)
            elif name == TAUGHT_OURS:
                result = score_ours(train_taught(config, folder, drawn, corpus, encoder, settings), drawn)
            else:
                result = score_other(name, encoder, drawn, draw, gpu_id, peers)
            where = {"contender": name, "documents": documents, "draw": draw}
            runs[key] = current[key] = {**where, "inputs": decisive, **result}
            write()
    if not current:
        raise StepError("Nothing was measured.", "Choose fewer documents with --sizes, or others with --only.")
    record = write()
    header, rows = tabulate_curve(record)
    msg.table(rows, header=header, divider=True)
    msg.text(describe_threshold(record))
    msg.text(describe_forecast(record))
    msg.good(f"Wrote {path} and curve.svg")
    msg.info(f"The report has them when it is written again: make report RUN={metrics.name}")


def choose_sizes(sizes: str, total: int) -> list[int]:
    """Choose how many documents to train on.

    sizes (str): Numbers, or names of SHARES, with commas between.
    total (int): How many documents there are. Larger numbers are left out, with a warning.
    RETURNS (list[int]): The numbers, from the lowest.
    RAISES (StepError): If there is none, or if something else stands there.
    """
    parts = [part.strip() for part in sizes.split(",")]
    if not all(part in SHARES or (part.isdecimal() and int(part)) for part in parts):
        raise StepError(f"{sizes!r} are no numbers of documents.", f"For example: --sizes {SIZES}")
    numbers = {max(1, total // SHARES[part]) if part in SHARES else int(part) for part in parts}
    if larger := sorted(number for number in numbers if number > total):
        msg.warn(f"Left out, since the corpus has {total} training documents: {', '.join(map(str, larger))}")
    if not (chosen := sorted(numbers - {*larger})):
        raise StepError(f"The corpus has only {total} training documents.", "Choose fewer with --sizes, or all.")
    return chosen


def write_draw(corpus: Path, documents: int, draw: int, folder: Path) -> Path:
    """Write a corpus with some of the training documents. Those of fewer documents are among those of more.

    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    documents (int): How many to take.
    draw (int): Seed of their choice.
    folder (Path): The new corpus, which is made.
    RETURNS (Path): The same folder.
    """
    return write_part(corpus, draw_order(len(read_docs(corpus / "train.spacy")), draw)[:documents], folder)


def draw_order(total: int, draw: int) -> list[int]:
    """The order of a draw, as the numbers of the training documents.

    total (int): How many documents there are.
    draw (int): Seed of the order.
    RETURNS (list[int]): The numbers.
    """
    return [int(number) for number in np.random.default_rng(draw).permutation(total)]


def write_part(corpus: Path, chosen: Iterable[int], folder: Path) -> Path:
    """Write a corpus with some of the training documents, and all of dev and test.

    The documents keep their order. With all of them the corpus is therefore the same as before, and a model that
    `train` or `ablation` has made of it is found again; the draws then differ by the seed alone.

    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    chosen (Iterable[int]): The numbers of the documents.
    folder (Path): The new corpus, which is made.
    RETURNS (Path): The same folder.
    """
    shutil.copytree(corpus, folder, ignore=lambda _, names: [name for name in names if not name.endswith(".spacy")])
    docs, numbers = read_docs(corpus / "train.spacy"), sorted(chosen)
    if len(numbers) < len(docs):
        DocBin(docs=[docs[i] for i in numbers], store_user_data=True).to_disk(folder / "train.spacy")
    return folder


def score_ours(model: Path, corpus: Path) -> dict[str, Any]:
    """Score our trained pipeline.

    model (Path): The trained pipeline.
    corpus (Path): Folder with the corpus that it was trained on.
    RETURNS (dict[str, Any]): F1 on `dev` and `test`, with gold sentences; `shipped`: the same as shipped; `calibration`
        on test, as `measure` returns it; `seconds` and `steps` of training.
    """
    result, record = scoring.measure(spacy.load(model), corpus), read_json(model / "provenance.json")
    return {
        **{split: result[split]["gold_sentences"]["ents_f"] for split in SCORED},
        "shipped": {split: result[split]["predicted_sentences"]["ents_f"] for split in SCORED},
        "calibration": result["test"]["calibration"],
        "seconds": record["seconds"],
        "steps": record["inputs"]["settings"]["training.max_steps"],
    }


def train_taught(
    config: Path, folder: Path, drawn: Path, corpus: Path, encoder: Path, settings: dict[str, Any]
) -> Path:
    """Train teachers on a smaller corpus, and a student on what they say of it and of all other training documents.

    config (Path): Training config.
    folder (Path): Folder of the run.
    drawn (Path): Folder of the smaller corpus, where taught.spacy is made.
    corpus (Path): Folder with the whole train.spacy, whose other documents lose their annotation.
    encoder (Path): Folder of the encoder, of teachers and student.
    settings (dict[str, Any]): Other options of `train`. The seeds of the teachers are from 0 on, whatever its seed.
    RETURNS (Path): The student.
    RAISES (StepError): If a training fails, or the teachers cannot annotate.
    """

    def train(train_on: str, seed: int) -> Path:
        own = settings | {"seed": seed, "train_on": train_on}
        provenance, _ = prepare(
            config, drawn, encoder, **{name: value for name, value in own.items() if name != "gpu_id"}
        )
        return train_aside(provenance, config, folder, drawn, encoder, **own)

    teachers = [train("train", seed) for seed in range(TEACHERS)]
    known = {doc.text for doc in read_docs(drawn / "train.spacy")}
    docs = [doc for doc in read_docs(corpus / "train.spacy") if doc.text not in known]
    texts = drawn / "texts.spacy"
    DocBin(docs=[Doc(doc.vocab, [token.text for token in doc]) for doc in docs]).to_disk(texts)
    command = [sys.executable, "-m", "scripts.teach", str(drawn), "--teachers", ",".join(map(str, teachers))]
    command += ["--texts", str(texts) if docs else "", "--gpu-id", str(settings["gpu_id"])]
    if subprocess.run(command).returncode:
        raise StepError("The teachers could not annotate the documents.", "See above. What is trained is kept.")
    return train(TAUGHT, settings["seed"])


def score_other(
    name: str, encoder: Path, corpus: Path, seed: int, gpu_id: int, peers: Path | None = None
) -> dict[str, Any]:
    """Train and score another contender, with the sentences that the corpus gives.

    name (str): Its name.
    encoder (Path): Folder of the encoder.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    seed (int): Of its training.
    gpu_id (int): GPU, or -1 for the CPU.
    peers (Path | None): Python of the environment of other libraries.
    RETURNS (dict[str, Any]): F1 on `dev` and `test`; `seconds` and `steps` of training.
    RAISES (StepError): If a library or the environment is missing, or the training fails.
    """
    if name == USUAL:
        result = score_usual(encoder, corpus, seed, gpu_id, FEWEST_STEPS)
        scores = {split: result[split]["gold_sentences"]["ents_f"] for split in SCORED}
        return {**scores, "seconds": result["seconds"], "steps": result["steps"]}
    if name == EXPLOSION:
        return explosion.fine_tune(encoder, corpus, seed, gpu_id, SETTINGS[name], FEWEST_STEPS)
    job = {split: split_sentences(read_docs(corpus / f"{split}.spacy")) for split in SPLITS} | {
        "encoder": str(encoder.resolve()),
        "seed": seed,
        "gpu_id": gpu_id,
        "settings": SETTINGS[name],
        "fewest_steps": FEWEST_STEPS,
    }
    write_json(corpus / "job.json", job)
    python = find_python(name, {name: peers} if peers else {})
    command = [python, "-W", "ignore", "-m", "benchmarks.contenders.span_marker", str(corpus / "job.json")]
    with Worker(name, command, corpus) as worker, tqdm.tqdm(total=100, desc=name, unit="%", disable=None) as bar:

        def report(done: float) -> None:
            bar.update(int(100 * done) - bar.n)

        return worker.answer(report)


def summarize(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the draws.

    runs (Iterable[dict[str, Any]]): As `curve` writes them.
    RETURNS (dict[str, Any]): `summary`: by contender a list, for each number of `documents`, from the lowest, of the
        number of `draws`; `mean`, `lowest` and `highest` F1 on `dev` and `test`; means of `seconds` and `steps` of
        training; and `usual_needs`, as `find_needed` returns it for the mean on test, where the usual fine-tune was
        trained too. Ours has also `shipped`, F1 on test as shipped, and `calibration`: its error on test; `sure`: in
        how many draws dev gave a threshold; means of `precision` and `recall` on test from there on, over these draws.
        `sure_from`: from how many documents on dev gave a threshold in all draws, or None; `min_precision` that the
        threshold is for. `forecast`: as `forecast` returns it for test F1 of ours.
    """
    runs = list(runs)
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in CONTENDERS}
    for run in runs:
        groups[run["contender"]].setdefault(run["documents"], []).append(run)
    summary: dict[str, list[dict[str, Any]]] = {
        name: [summarize_draws(documents, group) for documents, group in sorted(sizes.items())]
        for name, sizes in groups.items()
        if sizes
    }
    usual = {point["documents"]: point["test"]["mean"] for point in summary.get(USUAL, [])}
    for name, points in summary.items():
        for point in points if usual and name != USUAL else []:
            point["usual_needs"] = find_needed(usual, point["test"]["mean"])
    sure_from = None
    for point in reversed(summary.get(OURS, [])):
        if point["calibration"]["sure"] < point["draws"]:
            break
        sure_from = point["documents"]
    ours = [(run["documents"], run["test"]) for run in runs if run["contender"] == OURS]
    return {
        "summary": summary,
        "sure_from": sure_from,
        "min_precision": scoring.MIN_PRECISION,
        "forecast": forecast(*zip(*ours, strict=True)) if ours else None,
    }


def summarize_draws(documents: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the draws of one contender and one number of documents, as `summarize` describes it."""
    point: dict[str, Any] = {"documents": documents, "draws": len(runs)}
    point |= {split: spread([run[split] for run in runs]) for split in SCORED}
    point |= {name: float(np.mean([run[name] for run in runs])) for name in ("seconds", "steps")}
    if all("calibration" in run for run in runs):
        calibrations = [run["calibration"] for run in runs]
        sure = [calibration for calibration in calibrations if calibration["precision"] is not None]
        point["shipped"] = spread([run["shipped"]["test"] for run in runs])
        point["calibration"] = {
            "error": spread([calibration["expected_calibration_error"] for calibration in calibrations]),
            "sure": len(sure),
            **{name: float(np.mean([one[name] for one in sure])) if sure else None for name in ("precision", "recall")},
        }
    return point


def spread(values: list[float]) -> dict[str, float]:
    """The `mean`, `lowest` and `highest` of values."""
    return {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}


def find_needed(scores: dict[int, float], score: float) -> float | None:
    """Find with how many documents a curve reaches a score first, on straight lines over the logarithm of the number.

    scores (dict[int, float]): The curve, by number of documents, from the lowest.
    score (float): The score.
    RETURNS (float | None): The number of documents: the lowest of the curve if its score is as high already, and None
        if the curve does not reach the score.
    """
    points = list(scores.items())
    if points[0][1] >= score:
        return points[0][0]
    for (fewer, low), (more, high) in itertools.pairwise(points):
        if high >= score:
            return float(fewer * (more / fewer) ** ((score - low) / (high - low)))
    return None


def draw_curve(record: dict[str, Any]) -> Any:
    """Draw F1 over the number of documents, on dev and on test.

    record (dict[str, Any]): As `curve` writes it.
    RETURNS (Any): The figure.
    """
    figure, both = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True)
    for axes, split in zip(both, SCORED, strict=True):
        for name, points in record["summary"].items():
            sizes = [point["documents"] for point in points]
            means, lowest, highest = (
                100 * np.array([point[split][key] for point in points]) for key in ("mean", "lowest", "highest")
            )
            axes.errorbar(sizes, means, [means - lowest, highest - means], marker="o", capsize=3, label=name)
        if split == "test" and record["forecast"]:
            draw_forecast(axes, record["summary"][OURS], record["forecast"])
        scale_log(axes)
        axes.set_xticks(sorted({point["documents"] for points in record["summary"].values() for point in points}))
        axes.minorticks_off()
        axes.set(xlabel="training documents", title=split)
    both[0].set_ylabel("F1 of entities, %")
    both[1].legend()
    return figure


def draw_forecast(axes: Any, points: list[dict[str, Any]], forecast: dict[str, Any]) -> None:
    """Draw the law of ours, and how far it goes with more documents.

    axes (Any): matplotlib's, with test F1 in percent over the number of documents.
    points (list[dict[str, Any]]): Of ours, as `summarize` returns them.
    forecast (dict[str, Any]): As `forecast` returns it.
    """
    a, b, c = (forecast["law"][name] for name in "abc")
    most = forecast["documents"] + forecast["more"]
    sizes = np.geomspace(points[0]["documents"], most)
    axes.plot(sizes, 100 * (1 - a * sizes**-b - c), linestyle=":", color="black", label="forecast")
    expected, *ends = (points[-1]["test"]["mean"] + gain for gain in (forecast["gain"], *forecast["interval"]))
    low, high = (100 * abs(end - expected) for end in ends)
    axes.errorbar([most], [100 * expected], [[low], [high]], marker="o", capsize=3, color="black")


FIGURES: Figures = {
    "curve": (
        draw_curve,
        "F1 with gold sentences over the number of training documents: mean, lowest and highest of the draws. Dotted: "
        "the power law of ours and its forecast with a 95% interval.",
    )
}

if __name__ == "__main__":
    main(curve)
