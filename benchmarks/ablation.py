"""Measure how accurate the pipeline is: with several seeds, without its parts, and beside the usual fine-tuning.

Trained models are found again by their provenance, and results by their inputs. After an interruption, the same command
therefore goes on where it was.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from spacy.util import load_config
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from benchmarks.contenders import huggingface
from benchmarks.harness import PIPELINE, choose, machine
from common.corpora import split_sentences
from common.devices import Training, choose_devices, train_all
from common.errors import StepError, main
from common.models import train_aside
from common.records import SPLITS, code_digest, digest, made, read_json, record_inputs, write_json, writes
from common.scoring import create_examples, measure, predict
from common.statistics import bootstrap, f_score, interval
from common.training import prepare

OURS, USUAL = "ours", "usual fine-tune"
VARIANTS: dict[str, dict[str, Any]] = {  # overrides of the training config
    OURS: {},
    "without case": {
        "components.transformer.model.case": False,
        "components.tok2vec.model.attrs": [],
        "components.tok2vec.model.rows": [],
    },
    "without document": {"components.tok2vec.model.pool_over_document": False},
    "entities alone": {"nlp.pipeline": ["transformer", "tok2vec", "ner", "doc_cleaner"]},
}
NAMES = [OURS, USUAL, *list(VARIANTS)[1:]]
USUAL_SETTINGS = {"learning_rate": 2e-4, "num_train_epochs": 5, "per_device_train_batch_size": 32}  # chosen on dev
CONDITIONS = ("gold_sentences", "predicted_sentences", "lower", "upper", "raw")


@writes("metrics", "ablation.json")
def ablation(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for ablation.json")],
    seeds: Annotated[int, typer.Option(help="How many, from 0", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Some variants, with commas between")] = "",
    epochs: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
    gpus: Annotated[str, typer.Option(help="Several GPUs, with a training on each at a time: 0,1")] = "",
    processes: Annotated[int, typer.Option(help="How many trainings share the cores at a time", min=1)] = 1,
) -> None:
    """Train and score the pipeline, its variants and the usual fine-tune, with several seeds each."""
    names, devices = choose(NAMES, only), choose_devices(gpu_id, gpus, processes)
    gpu_id = devices[0]
    folder.mkdir(parents=True, exist_ok=True)
    path = metrics / "ablation.json"
    options: dict[str, Any] = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words}
    data = record_inputs(encoder=encoder, **{split: corpus / f"{split}.spacy" for split in SPLITS})
    code = record_inputs(code=Path(__file__))["code"]

    def find_variant(name: str) -> Path:
        return write_variant(config, VARIANTS[name], folder / f"{name.replace(' ', '-')}.cfg")

    @functools.cache
    def find_inputs(name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What decides a result, and the provenance of the model that it belongs to."""
        if name == USUAL:
            usual = code_digest(Path(huggingface.__file__))  # no other code, since this result takes a long training
            return {"seed": seed, "settings": USUAL_SETTINGS, "code": usual, **data}, {}
        provenance, _ = prepare(find_variant(name), corpus, encoder, **options, seed=seed)
        return {"model": digest(provenance), "dev": data["dev"], "test": data["test"], "code": code}, provenance

    runs = read_json(path).get("runs", {})
    current = find_current(runs, lambda name, seed: find_inputs(name, seed)[0])
    inputs = record_inputs(config=config, pipeline=PIPELINE) | {"code": code, **data}

    def write() -> dict[str, dict[str, Any]]:
        older = find_older(runs, current, data["test"])
        ordered = sorted([*current.values(), *older], key=lambda run: (NAMES.index(run["variant"]), run["seed"]))
        summary = summarize_seeds(ordered)
        for run in older:
            summary[run["variant"]]["older"] = True
        write_json(path, {"machine": machine(), "inputs": inputs, "runs": runs, "summary": summary})
        return summary

    if len(devices) > 1:
        trainings = {}
        for name, seed in itertools.product(names, range(seeds)):
            if name != USUAL and (key := f"{name}, seed {seed}") not in current:
                _, provenance = find_inputs(name, seed)
                own = options | {"seed": seed}
                trainings[key] = Training(provenance, find_variant(name), folder, corpus, encoder, own)
        train_all(trainings, devices)
    for name in names:
        for seed in range(seeds):
            key = f"{name}, seed {seed}"
            msg.divider(key)
            if key in current:
                msg.good("measured already")
                continue
            decisive, provenance = find_inputs(name, seed)
            if name == USUAL:
                result = score_usual(encoder, corpus, seed, gpu_id)
            else:
                settings = options | {"seed": seed, "gpu_id": gpu_id}
                model = train_aside(provenance, find_variant(name), folder, corpus, encoder, **settings)
                result = score_model(model, corpus)
            runs[key] = current[key] = {"variant": name, "seed": seed, "inputs": decisive, **result}
            write()
    print_summary(write())
    msg.good(f"Wrote {path}")


def find_current(
    runs: dict[str, dict[str, Any]], find_inputs: Callable[[str, int], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Choose the runs whose results would come out the same today.

    runs (dict[str, dict[str, Any]]): Runs on record, perhaps of an earlier version of this file.
    find_inputs (Callable[[str, int], dict[str, Any]]): Returns the inputs for a variant and a seed.
    RETURNS (dict[str, dict[str, Any]]): Those of the runs that have these inputs.
    """
    return {
        key: run
        for key, run in runs.items()
        if run.get("variant") in NAMES and run.get("inputs") == find_inputs(run["variant"], run["seed"])
    }


def find_older(runs: dict[str, dict[str, Any]], current: dict[str, dict[str, Any]], test: str) -> list[dict[str, Any]]:
    """Choose runs of earlier code on the same test set, for variants that have not been run since.

    runs (dict[str, dict[str, Any]]): Runs on record.
    current (dict[str, dict[str, Any]]): Those whose results would come out the same today.
    test (str): Checksum of the test set.
    RETURNS (list[dict[str, Any]]): The runs.
    """
    done = {run["variant"] for run in current.values()}
    older = []
    for run in runs.values():
        inputs = run.get("inputs", {})
        same_test = test in (inputs.get("test"), inputs.get("corpus", {}).get("test"))  # as earlier code recorded it
        if same_test and run.get("variant") in NAMES and run["variant"] not in done:
            older.append(run)
    return older


def write_variant(config: Path, overrides: dict[str, Any], path: Path) -> Path:
    """Write the config of a variant.

    config (Path): Training config.
    overrides (dict[str, Any]): Other values, by dotted name.
    path (Path): Where to write it.
    RETURNS (Path): The file, which is the training config itself if there are no overrides.
    """
    if not overrides:
        return config
    made(path.parent, path.name)
    load_config(config, overrides=overrides, interpolate=False).to_disk(path)
    return path


def score_model(model: Path, corpus: Path) -> dict[str, Any]:
    """Score a trained pipeline by all that `measure` measures, and on test also by strict seqeval.

    model (Path): The trained pipeline.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    RETURNS (dict[str, Any]): `dev`, `test`, as `measure` returns them; `seqeval_f1`: on test, with gold sentences;
        `seconds` of training; `documents`: for each document of test the numbers of entities that are correct,
        predicted and gold, with gold sentences.
    """
    nlp = spacy.load(model)
    result = measure(nlp, corpus)
    examples = list(create_examples(nlp, corpus / "test.spacy", "gold_sentences"))
    predict(nlp, examples)
    docs = [example.predicted for example in examples], [example.reference for example in examples]
    entities = ([{(ent.start, ent.end, ent.label_) for ent in doc.ents} for doc in side] for side in docs)
    predicted_tags, gold_tags = ([sentence["tags"] for sentence in split_sentences(side)] for side in docs)
    return {
        **result,
        "seqeval_f1": float(f1_score(gold_tags, predicted_tags, mode="strict", scheme=IOB2)),
        "seconds": read_json(model / "provenance.json").get("seconds"),
        "documents": [
            [len(predicted & gold), len(predicted), len(gold)] for predicted, gold in zip(*entities, strict=True)
        ],
    }


def score_usual(encoder: Path, corpus: Path, seed: int, gpu_id: int, fewest_steps: int = 0) -> dict[str, Any]:
    """Train and score the usual fine-tuning, with the sentences that the corpus gives.

    encoder, corpus, seed, gpu_id, fewest_steps: As `huggingface.fine_tune` takes them.
    RETURNS (dict[str, Any]): As `score_model`, with this condition only, `dev_by_epoch` and `steps`.
    RAISES (StepError): If a library is missing.
    """
    try:
        result = huggingface.fine_tune(encoder, corpus, seed, gpu_id, USUAL_SETTINGS, fewest_steps)
    except ImportError as error:
        problem = f"The usual fine-tune needs {error.name}."
        raise StepError(problem, "pip install -r requirements-bench.txt, or leave it out") from error
    return {
        "dev": {"gold_sentences": {"ents_f": max(result["dev_by_epoch"])}},
        "test": {"gold_sentences": {"ents_f": float(f_score(np.array(result["documents"]).sum(0)))}},
        **result,
    }


def summarize_seeds(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compute means and standard deviations over seeds, and 95% intervals over the documents of test.

    runs (Iterable[dict[str, Any]]): As `ablation` writes them.
    RETURNS (dict[str, dict[str, Any]]): By variant `seeds`: their number; `dev` and `test`: by condition `mean` and
        `sd` of F1; `calibration`: means on test; `seqeval_f1`; `interval` of test F1 with gold sentences; `gain`: by
        how much ours is better on test with gold sentences and the same seeds: `mean`, `se` over seeds, `interval`
        over documents. (`ablation` adds `older` where the runs are of earlier code.)
    """
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["variant"], {})[run["seed"]] = run
    ours = groups.get(OURS, {})
    summary: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        entry: dict[str, Any] = {"seeds": len(group)}
        for split in ("dev", "test"):
            entry[split] = {
                condition: mean_and_sd([run[split][condition]["ents_f"] for run in group.values()])
                for condition in CONDITIONS
                if all(condition in run[split] for run in group.values())
            }
        if all("calibration" in run["test"] for run in group.values()):
            tested = [run["test"]["calibration"] for run in group.values()]
            entry["calibration"] = {
                key: float(np.mean([calibration[key] for calibration in tested]))
                for key in tested[0]
                if all(calibration.get(key) is not None for calibration in tested)
            }
            entry["seqeval_f1"] = mean_and_sd([run["seqeval_f1"] for run in group.values()])
        entry["interval"] = interval(bootstrap(np.array([run["documents"] for run in group.values()])))
        paired = sorted(set(group) & set(ours))
        if name != OURS and paired:
            better, worse = (np.array([part[seed]["documents"] for seed in paired]) for part in (ours, group))
            gains = f_score(better.sum(1)) - f_score(worse.sum(1))
            error = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
            samples = bootstrap(better) - bootstrap(worse)
            entry["gain"] = {"mean": float(gains.mean()), "se": error, "interval": interval(samples)}
        summary[name] = entry
    return summary


def mean_and_sd(values: list[float]) -> dict[str, float | None]:
    """The mean, and the standard deviation of a sample, None for a single value."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Print a table of F1 on test. summary (dict[str, dict[str, Any]]): As `summarize_seeds` returns it."""
    rows = []
    for name, entry in summary.items():
        test = entry["test"]
        row = [name, entry["seeds"], *(f"{100 * test[c]['mean']:.2f}" if c in test else "" for c in CONDITIONS), ""]
        if "gain" in entry:
            low, high = (100 * end for end in entry["gain"]["interval"])
            row[-1] = f"{100 * entry['gain']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append(row)
    header = ("variant, test F1", "seeds", *(c.replace("_", " ") for c in CONDITIONS), "ours is better by")
    msg.table(rows, header=header, divider=True)


if __name__ == "__main__":
    main(ablation)
