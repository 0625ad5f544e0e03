"""Measure how right the pipeline is with several seeds, without its parts, and beside the usual fine-tune.

Models are found again by their origin, and results by their model: an interrupted run of this goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2
from spacy.cli._util import import_code
from spacy.util import load_config
from wasabi import msg

from scripts.benchmark import BENCH, choose, label_names, machine, read_docs, split_sentences, wordpieces
from scripts.evaluate import create_examples, measure, predict
from scripts.steps import StepError, made, read_json, run, sha256, write_json, writes
from scripts.train import digest, find_trained, prepare

OURS, USUAL = "ours", "usual fine-tune"
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "without case": {"components.tok2vec.model.attrs": [], "components.tok2vec.model.rows": []},
    "without document": {"components.tok2vec.model.document": False},
    "entities alone": {"nlp.pipeline": ["transformer", "tok2vec", "ner", "doc_cleaner"]},
}
USUAL_SETTINGS = {"learning_rate": 2e-4, "num_train_epochs": 5, "per_device_train_batch_size": 32}  # chosen on dev
SAMPLES = 2000  # of the bootstrap
CONDITIONS = ("gold_sentences", "predicted_sentences", "lower", "upper", "raw")


@writes("metrics", "accuracy.json")
def accuracy(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of the run, where train keeps its models")],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for accuracy.json")],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    seeds: Annotated[int, typer.Option(help="How many, from 0", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Some variants, with commas between")] = "",
    epochs: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    learn_rate: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    batch_words: Annotated[str, typer.Option(help="As train's; not for the usual fine-tune")] = "auto",
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Train and score the pipeline, its variants and the usual fine-tune, with several seeds each."""
    import_code(code)
    folder.mkdir(parents=True, exist_ok=True)
    names = choose([OURS, USUAL, *list(VARIANTS)[1:]], only)
    settings: dict[str, Any] = {"epochs": epochs, "learn_rate": learn_rate, "batch_words": batch_words}
    path = metrics / "accuracy.json"
    record = read_json(path) | {"machine": machine()}
    runs: dict[str, dict[str, Any]] = record.setdefault("runs", {})
    for name in names:
        for seed in range(seeds):
            msg.divider(f"{name}, seed {seed}")
            key = f"{name}, seed {seed}"
            if name == USUAL:
                origin = {split: sha256(corpus / f"{split}.spacy") for split in ("train", "dev", "test")}
                made_from = {"encoder": sha256(encoder), "settings": USUAL_SETTINGS, "corpus": origin}
            else:
                variant = write_variant(config, VARIANTS[name], folder / f"{name.replace(' ', '-')}.cfg")
                trained, _ = prepare(variant, corpus, encoder, code, **settings, seed=seed)
                evaluation = sha256(Path(__file__).with_name("evaluate.py"))
                made_from = {"model": digest(trained), "evaluation": evaluation, "test": sha256(corpus / "test.spacy")}
            if runs.get(key, {}).get("made_from") == made_from:
                msg.good("measured already")
                continue
            if name == USUAL:
                result = fine_tune(encoder, corpus, seed, gpu_id, USUAL_SETTINGS)
            else:
                model = find_trained(folder, trained)
                if not model:
                    model = train_aside(variant, folder, corpus, encoder, code, **settings, seed=seed, gpu_id=gpu_id)
                result = assess(model, corpus)
            runs[key] = {"variant": name, "seed": seed, "made_from": made_from, **result}
            record["summary"] = summarize(runs.values())
            write_json(path, record)
    show(record["summary"])
    msg.good(f"Wrote {path}")


def write_variant(config: Path, overrides: dict[str, Any], path: Path) -> Path:
    """Write a config with other values. RETURNS (Path): It, or the config itself where there are none."""
    if not overrides:
        return config
    made(path.parent, path.name)
    load_config(config, overrides=overrides, interpolate=False).to_disk(path)
    return path


def train_aside(config: Path, folder: Path, corpus: Path, encoder: Path, code: Path, **options: Any) -> Path:
    """Train in a process of its own, beside the folder's model-best.

    RETURNS (Path): The trained pipeline.
    RAISES (StepError): If the training fails.
    """
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "scripts.train", str(config), str(folder), "--aside"]
    for name, value in {"corpus": corpus, "encoder": encoder, "code": code, **options}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if subprocess.run(command).returncode:
        raise StepError(f"The training of {config} failed.", "See above. What is done is kept: run the same again.")
    (model,) = (path for path in folder.glob("model-best-*") if path not in before)
    return model


def assess(model: Path, corpus: Path) -> dict[str, Any]:
    """All that `measure` measures, and of test with the corpus's sentences what strict seqeval says, and the counts.

    model (Path): The trained pipeline.
    corpus (Path): Folder with dev.spacy, test.spacy.
    RETURNS (dict[str, Any]): `dev`, `test`, `seqeval_f`, `seconds` of training, `documents`: for each document the
        numbers of entities that are right, predicted, gold.
    """
    nlp = spacy.load(model)
    result = measure(nlp, corpus)
    examples = list(create_examples(nlp, corpus / "test.spacy", "gold_sentences"))
    predict(nlp, examples)
    docs = [example.predicted for example in examples], [example.reference for example in examples]
    entities = ([{(ent.start, ent.end, ent.label_) for ent in doc.ents} for doc in side] for side in docs)
    predicted, gold = ([sentence["tags"] for sentence in split_sentences(side)] for side in docs)
    return {
        **result,
        "seqeval_f": float(f1_score(gold, predicted, mode="strict", scheme=IOB2)),
        "seconds": read_json(model / "origin.json").get("seconds"),
        "documents": [[len(found & right), len(found), len(right)] for found, right in zip(*entities, strict=True)],
    }


def fine_tune(encoder: Path, corpus: Path, seed: int, gpu_id: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The usual way: a linear layer for each token, sentence by sentence, the label at a word's first wordpiece.

    Hugging Face's Trainer as its example run_ner uses it, in bfloat16, with the best epoch on dev kept. An uncased
    encoder gives the same in lower and upper case.

    encoder (Path): Folder of the encoder.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    seed (int): For the new layer, order, dropout.
    gpu_id (int): GPU, or -1 for the CPU.
    settings (dict[str, Any]): Of TrainingArguments.
    RETURNS (dict[str, Any]): As `assess`, with fewer conditions; `dev_by_epoch`.
    RAISES (StepError): If a library is missing.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise StepError("The usual fine-tune needs accelerate.", f"pip install -r {BENCH}, or leave it out") from error
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    docs = {split: read_docs(corpus / f"{split}.spacy", spacy.blank("en").vocab) for split in ("train", "dev", "test")}
    sentences = {split: [split_sentences([doc]) for doc in docs[split]] for split in docs}
    flat = {split: [sentence for doc in sentences[split] for sentence in doc] for split in sentences}
    labels = label_names(flat["train"])
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(labels))
    data = {split: wordpieces(flat[split], tokenizer, labels) for split in flat}
    best: dict[str, Any] = {"f": -1.0}
    curve: list[float] = []

    def count(split: str) -> list[list[int]]:
        trainer.args.group_by_length = False  # else predictions come in the order of length
        output = trainer.predict(data[split])
        rows = iter(zip(output.predictions.argmax(-1), output.label_ids, strict=True))
        counts = []
        for doc in sentences[split]:
            counts.append([0, 0, 0])
            for sentence in doc:
                row, wanted = next(rows)
                tags = [labels[i] for i, label in zip(row, wanted, strict=True) if label != -100]
                tags += ["O"] * (len(sentence["tags"]) - len(tags))  # of words beyond what the encoder reads
                found, right = (set(get_entities(part)) for part in (tags, sentence["tags"]))
                counts[-1] = [
                    a + b for a, b in zip(counts[-1], (len(found & right), len(found), len(right)), strict=True)
                ]
        return counts

    class Keep(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            curve.append(f_score(np.array(count("dev")).sum(0)))
            if curve[-1] > best["f"]:
                weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
                best.update(f=curve[-1], weights=weights)

    arguments = TrainingArguments(
        output_dir=str(corpus / ".trainer"),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        per_device_eval_batch_size=32,
        group_by_length=True,
        use_cpu=gpu_id < 0,
        bf16=True,
        seed=seed,
        **settings,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        callbacks=[Keep()],
    )
    seconds = trainer.train().metrics["train_runtime"]
    model.load_state_dict(best["weights"])
    counts = count("test")
    return {
        "dev": {"gold_sentences": {"ents_f": best["f"]}},
        "test": {"gold_sentences": {"ents_f": f_score(np.array(counts).sum(0))}},
        "dev_by_epoch": curve,
        "seconds": round(seconds),
        "documents": counts,
    }


def f_score(counts: np.ndarray) -> Any:
    """F of entities. counts (np.ndarray): (..., 3): right, predicted, gold. RETURNS (float | np.ndarray): (...)."""
    return 2 * counts[..., 0] / np.maximum(1, counts[..., 1] + counts[..., 2])


def bootstrap(counts: np.ndarray) -> np.ndarray:
    """F of resampled test sets, mean over seeds. The same samples each time, so that two can be compared in pairs.

    counts (np.ndarray): (seeds, documents, 3), int: right, predicted, gold.
    RETURNS (np.ndarray): (SAMPLES,), float.
    """
    number = counts.shape[1]
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), SAMPLES)
    return np.asarray(f_score(np.einsum("bd,sdk->bsk", drawn, counts)).mean(1))


def summarize(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over the seeds, and 95% intervals over the documents of test.

    runs (Iterable[dict[str, Any]]): As this module writes them.
    RETURNS (dict[str, dict[str, Any]]): By variant `seeds`; `dev` and `test`: by condition `mean`, `sd` of F;
        `calibration`: means on test; `seqeval_f`; `interval` of test F with gold sentences; `gain`: by how much ours is
        better on test with the same sentences and seeds: `mean`, `se` over seeds, `interval` over documents.
    """
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for once in runs:
        groups.setdefault(once["variant"], {})[once["seed"]] = once
    ours = groups.get(OURS, {})
    summary: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        entry: dict[str, Any] = {"seeds": len(group)}
        for split in ("dev", "test"):
            entry[split] = {
                condition: mean_and_sd([once[split][condition]["ents_f"] for once in group.values()])
                for condition in CONDITIONS
                if all(condition in once[split] for once in group.values())
            }
        if all("calibration" in once["test"] for once in group.values()):
            tested = [once["test"]["calibration"] for once in group.values()]
            entry["calibration"] = {
                key: float(np.mean([once[key] for once in tested]))
                for key in tested[0]
                if all(once[key] is not None for once in tested)
            }
            entry["seqeval_f"] = mean_and_sd([once["seqeval_f"] for once in group.values()])
        entry["interval"] = interval(bootstrap(np.array([once["documents"] for once in group.values()])))
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


def interval(samples: np.ndarray) -> list[float]:
    """The middle 95% of samples: lowest and highest."""
    return [float(value) for value in np.percentile(samples, (2.5, 97.5))]


def show(summary: dict[str, dict[str, Any]]) -> None:
    """Print a table of test F."""
    rows = []
    for name, entry in summary.items():
        test = entry["test"]
        row = [name, entry["seeds"], *(f"{100 * test[c]['mean']:.2f}" if c in test else "" for c in CONDITIONS), ""]
        if "gain" in entry:
            low, high = (100 * end for end in entry["gain"]["interval"])
            row[-1] = f"{100 * entry['gain']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append(row)
    header = ("variant, test F", "seeds", *(c.replace("_", " ") for c in CONDITIONS), "ours is better by")
    msg.table(rows, header=header, divider=True)


if __name__ == "__main__":
    run(accuracy)
