"""Understand a trained pipeline: which entities of test it gets wrong, how, where, and how sure it is of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import spacy
import srsly
import tqdm
import typer
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from spacy.cli._util import import_code, setup_gpu
from spacy.tokens import Doc, Span
from spacy.training import Example
from wasabi import msg

from scripts.accuracy import bootstrap, f_score, interval
from scripts.evaluate import BINS, create_examples, judge, predict
from scripts.explore import CONTEXT, EXAMPLES, KINDS, LENGTHS, draw_matrix, kind_of, save_figures
from scripts.steps import StepError, read_docs, read_json, run, sha256, staged, write_json, writes
from scripts.train import CURVES, score_tags

ERRORS = ("type", "boundary", "both", "missed", "spurious")
FREQUENCIES = ("never", "once", "2 to 9 times", "10 times or more")
POSITIONS = ("first sentence", "first half", "second half")


class Entity(NamedTuple):
    """An entity, of the corpus or of the pipeline."""

    start: int
    end: int
    label: str


@writes("metrics")
def analyze(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for analysis.json, analysis-examples.json and figures")],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Analyse what a pipeline predicts for the test set, as it is shipped."""
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    nlp = spacy.load(model)
    examples = list(create_examples(nlp, corpus / "test.spacy", "predicted_sentences"))
    if not any(example.reference.ents for example in examples):
        raise StepError(f"{corpus}/test.spacy marks no entity: there is nothing to compare with.", "Annotate some.")
    tokens = {
        split: score_tags(nlp, create_examples(nlp, corpus / f"{split}.spacy", "predicted_sentences"))
        for split in tqdm.tqdm(("dev", "test"), desc="tags", unit="split", disable=None)
    }
    predict(nlp, examples)
    train = read_docs(corpus / "train.spacy", nlp.vocab)
    errors, worst = find_errors(examples)
    result = {
        "model": read_json(model / "origin.json").get("made_from", {}),
        "test": sha256(corpus / "test.spacy"),
        "tokens": tokens,
        "agreement": compare_with_seqeval(examples),
        "labels": score_labels(examples),
        "confusion_of_tokens": confuse_tokens(examples),
        "confusion_of_entities": confuse_entities(examples),
        "errors": errors,
        "slices": slice_up(examples, train),
        "calibration": judge_scores(examples),
        "curves": list(srsly.read_jsonl(model / CURVES)) if (model / CURVES).exists() else [],
    }
    disagreements = sorted(worst["spurious"] + worst["type"] + worst["boundary"] + worst["both"], key=_less_sure)
    quoted: dict[str, Any] = {"most_confident_disagreements": disagreements[:EXAMPLES]}
    quoted["errors"] = {kind: found[:EXAMPLES] for kind, found in worst.items()}
    with staged(metrics, "figures/analysis", "analysis-examples.json", "analysis.json") as new:
        save_figures(FIGURES, result, new / "figures" / "analysis")
        write_json(new / "analysis-examples.json", quoted)  # which quote the corpus, so git ignores them
        write_json(new / "analysis.json", result)
    show(result)
    msg.good(f"Wrote {metrics / 'analysis.json'} and {len(FIGURES)} figures")


def _less_sure(example: dict[str, Any]) -> float:
    return -float(example["score"])


def entities_of(doc: Doc) -> list[Entity]:
    """The entities of a document, in order."""
    return [Entity(ent.start, ent.end, ent.label_) for ent in doc.ents]


def compare_with_seqeval(examples: Iterable[Example]) -> dict[str, float]:
    """F of exact spans and labels, counted here as spaCy does, and by seqeval in strict mode (IOB2)."""
    counts = np.zeros(3, dtype=int)
    tags: list[list[list[str]]] = [[], []]
    for example in examples:
        found, right = (set(entities_of(doc)) for doc in (example.predicted, example.reference))
        counts += (len(found & right), len(found), len(right))
        for rows, doc in zip(tags, (example.predicted, example.reference), strict=True):
            rows.append([f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in doc])
    strict = f1_score(tags[1], tags[0], mode="strict", scheme=IOB2, zero_division=0)
    return {"f": float(f_score(counts)), "seqeval_strict_f": float(strict)}


def score_labels(examples: list[Example]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F and the 95% interval of F over documents, for each label and "in all"."""
    labels = sorted({ent.label_ for example in examples for ent in example.reference.ents})
    result = {}
    for label in [*labels, "in all"]:
        counts = []
        for example in examples:
            found, right = (
                {ent for ent in entities_of(doc) if label in ("in all", ent.label)}
                for doc in (example.predicted, example.reference)
            )
            counts.append([len(found & right), len(found), len(right)])
        right_, found_, gold = np.array(counts).sum(0)
        result[label] = {
            "precision": float(right_ / max(1, found_)),
            "recall": float(right_ / max(1, gold)),
            "f": float(f_score(np.array(counts).sum(0))),
            "interval": interval(bootstrap(np.array([counts]))),
            "entities": int(gold),
        }
    return result


def confuse_tokens(examples: list[Example]) -> dict[str, dict[str, int]]:
    """For each label of tokens in the corpus, or O, how many tokens the pipeline gives which label."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        for token, gold in zip(example.predicted, example.reference, strict=True):
            counts[gold.ent_type_ or "O"][token.ent_type_ or "O"] += 1
    return {label: dict(counts[label].most_common()) for label in sorted(counts)}


def confuse_entities(examples: list[Example]) -> dict[str, dict[str, int]]:
    """For each label of entities in the corpus, which label the same span has, or "other span" or "missed"."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        found = {(ent.start, ent.end): ent.label for ent in entities_of(example.predicted)}
        taken = {i for start, end in found for i in range(start, end)}
        for ent in entities_of(example.reference):
            other = "missed" if taken.isdisjoint(range(ent.start, ent.end)) else "other span"
            counts[ent.label][found.get((ent.start, ent.end), other)] += 1
    return {label: dict(counts[label].most_common()) for label in sorted(counts)}


def find_errors(examples: list[Example]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The errors by kind, as MUC and nervaluate tell them apart.

    An entity of the corpus that the pipeline has not, exactly, is compared with the one that overlaps it most: `type`
    if only the label differs, `boundary` if only the span does, `both`; without such, it is `missed`. What the pipeline
    finds and overlaps none of the corpus is `spurious`.

    examples (list[Example]): Predicted, and right.
    RETURNS (tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]): Their numbers, in all and by label of the corpus,
        or, of spurious ones, of the pipeline; and by kind the errors with their text, the surest first.
    """
    numbers: dict[str, Counter[str]] = {kind: Counter() for kind in ERRORS}
    worst: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ERRORS}
    for number, example in enumerate(examples):
        doc = example.predicted
        spans = {Entity(ent.start, ent.end, ent.label_): ent for ent in doc.ents}
        gold = entities_of(example.reference)
        for ent in gold:
            if ent in spans:
                continue
            near = max((other for other in spans if _overlap(ent, other)), key=lambda o: _overlap(ent, o), default=None)
            if near is None:
                kind = "missed"
            elif near[:2] == ent[:2]:
                kind = "type"
            else:
                kind = "boundary" if near.label == ent.label else "both"
            numbers[kind][ent.label] += 1
            worst[kind].append(_quote(number, doc, ent, spans[near] if near else None))
        for other, span in spans.items():
            if not any(_overlap(other, ent) for ent in gold):
                numbers["spurious"][other.label] += 1
                worst["spurious"].append(_quote(number, doc, None, span))
    for errors in worst.values():
        errors.sort(key=_less_sure)
    return {kind: {"in all": found.total(), **dict(found.most_common())} for kind, found in numbers.items()}, worst


def _overlap(one: Entity, other: Entity) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _quote(number: int, doc: Doc, gold: Entity | None, found: Span | None) -> dict[str, Any]:
    """An error in its context; spans by their characters in that."""
    spans = [Span(doc, gold.start, gold.end, gold.label) if gold else None, found]
    present = [span for span in spans if span is not None]
    context = doc[max(0, min(s.start for s in present) - CONTEXT) : max(s.end for s in present) + CONTEXT]
    first = context.start_char
    corpus, pipeline = (
        {"start": span.start_char - first, "end": span.end_char - first, "label": span.label_} if span else None
        for span in spans
    )
    score = round(float(found._.score), 4) if found is not None else 0.0
    return {"document": number, "text": context.text, "corpus": corpus, "pipeline": pipeline, "score": score}


def slice_up(examples: list[Example], train: list[Doc]) -> dict[str, dict[str, dict[str, Any]]]:
    """Precision, recall and F where entities differ: what is hard, and what was only learnt by heart.

    examples (list[Example]): Predicted, and right.
    train (list[Doc]): What was trained on.
    RETURNS (dict[str, dict[str, dict[str, Any]]]): By way of slicing and slice: `entities` of the corpus, `precision`,
        `recall`, `f`.
    """
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for ent in (ent for doc in train for ent in doc.ents):
        labels[ent.text.lower()][ent.label_] += 1
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3, dtype=int))
    for example in examples:
        found, right = (set(entities_of(doc)) for doc in (example.predicted, example.reference))
        kinds = [kind_of(sentence) for sentence in example.reference.sents for _ in sentence]
        first = len(next(iter(example.reference.sents), ()))
        for one in found | right:
            text = example.reference[one.start : one.end].text.lower()
            times = labels[text].total() if text in labels else 0
            slices = {
                "in train": FREQUENCIES[(times > 0) + (times > 1) + (times > 9)],
                "tokens": LENGTHS[min(one.end - one.start, len(LENGTHS)) - 1],
                "kind of sentence": kinds[one.start],
                "position": POSITIONS[(one.start >= first) * (1 + (2 * one.start >= len(kinds)))],
                "labels of the name in train": str(min(2, len(labels.get(text, ())))).replace("2", "several"),
            }
            for item in slices.items():
                counts[item] += (one in found and one in right, one in found, one in right)
    order = {
        "in train": FREQUENCIES,
        "tokens": LENGTHS,
        "kind of sentence": KINDS,
        "position": POSITIONS,
        "labels of the name in train": ("0", "1", "several"),
    }
    return {
        name: {
            part: {
                "entities": int(counts[name, part][2]),
                "precision": float(counts[name, part][0] / max(1, counts[name, part][1])),
                "recall": float(counts[name, part][0] / max(1, counts[name, part][2])),
                "f": float(f_score(counts[name, part])),
            }
            for part in parts
            if (name, part) in counts
        }
        for name, parts in order.items()
    }


def judge_scores(examples: list[Example]) -> list[dict[str, float]]:
    """The calibration curve: in bins of equal mass the mean score, the share that is right, and the number."""
    scores, right, _ = judge(examples, set())
    bins = [part for part in np.array_split(np.argsort(scores, kind="stable"), BINS) if len(part)]
    return [
        {"score": float(scores[part].mean()), "right": float(right[part].mean()), "entities": len(part)}
        for part in bins
    ]


# Figures: each takes the result and returns a matplotlib Figure


def draw_labels(result: dict[str, Any]) -> Any:
    """F by label, with its interval."""
    labels = result["labels"]
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.4 * len(labels)))
    for y, (label, scores) in enumerate(reversed(labels.items())):
        low, high = (100 * end for end in scores["interval"])
        axes.plot([low, high], [y, y], color="0.6", zorder=1)
        axes.plot(100 * scores["f"], y, "o", color="C0")
        axes.annotate(
            f"{label} ({scores['entities']:,})", (low, y), xytext=(-6, -3), textcoords="offset points", ha="right"
        )
    axes.set(xlabel="F on test with its 95% interval, %", yticks=[], ylabel="label (entities)")
    axes.margins(0.25, 0.15)
    return figure


def draw_errors(result: dict[str, Any]) -> Any:
    """Errors by kind."""
    figure, axes = plt.subplots(figsize=(6, 2.6))
    axes.bar(list(result["errors"]), [found["in all"] for found in result["errors"].values()])
    axes.set(xlabel="kind of error", ylabel="entities of test")
    return figure


def draw_confusion(result: dict[str, Any]) -> Any:
    """What the entities of each label become."""
    return draw_matrix(result["confusion_of_entities"], "in the pipeline")


def draw_tokens(result: dict[str, Any]) -> Any:
    """What the tokens of each label become."""
    return draw_matrix(result["confusion_of_tokens"], "token in the pipeline")


def draw_slices(result: dict[str, Any]) -> Any:
    """F by slice."""
    slices = result["slices"]
    figure, all_axes = plt.subplots(1, len(slices), figsize=(3 * len(slices), 3.2), sharey=True)
    for axes, (name, parts) in zip(all_axes, slices.items(), strict=True):
        axes.bar(list(parts), [100 * scores["f"] for scores in parts.values()])
        axes.set(xlabel=name)
        axes.tick_params(axis="x", labelrotation=60)
    all_axes[0].set_ylabel("F on test, %")
    return figure


def draw_calibration(result: dict[str, Any]) -> Any:
    """The calibration curve: on the line, scores mean what they say."""
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0, 100], [0, 100], color="0.7")
    axes.plot(*([100 * part[name] for part in result["calibration"]] for name in ("score", "right")), "o-")
    axes.set(xlabel="mean score, %", ylabel="right, %", xlim=(0, 101), ylim=(0, 101))
    return figure


def draw_curves(result: dict[str, Any]) -> Any:
    """Loss and accuracy of tokens on train and dev, F on dev, and the learning rate, by step."""
    rows = result["curves"]
    steps = [row["step"] for row in rows]
    figure, (losses, accuracies, rates) = plt.subplots(1, 3, figsize=(12, 3.2))
    for split in ("train", "dev"):
        losses.plot(steps, [row[split]["loss"] for row in rows], "o-", label=split)
        accuracies.plot(steps, [100 * row[split]["accuracy"] for row in rows], "o-", label=f"tokens of {split}")
    accuracies.plot(steps, [100 * (row["dev"].get("ents_f") or 0) for row in rows], "s--", label="F of dev")
    rates.plot(steps, [row["learn_rate"] for row in rows], "o-")
    losses.set(xlabel="step", ylabel="loss of a token, nats", ylim=(0, None))
    accuracies.set(xlabel="step", ylabel="right, %")
    rates.set(xlabel="step", ylabel="learning rate of the encoder", ylim=(0, None))
    if rows:
        losses.legend()
        accuracies.legend()
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "labels": draw_labels,
    "errors": draw_errors,
    "confusion": draw_confusion,
    "tokens": draw_tokens,
    "slices": draw_slices,
    "calibration": draw_calibration,
    "curves": draw_curves,
}


def show(result: dict[str, Any]) -> None:
    """Print the most telling figures."""
    for split, scores in result["tokens"].items():
        msg.text(f"{split}: loss of a token {scores['loss']:.3f}, tags right {100 * scores['accuracy']:.2f} %")
    errors = {kind: f"{found['in all']:,}" for kind, found in result["errors"].items()}
    msg.table(errors, header=("kind of error", "entities of test"), divider=True, aligns=("l", "r"))
    rows = [
        (name, part, f"{scores['entities']:,}", *(f"{100 * scores[key]:.1f}" for key in ("precision", "recall", "f")))
        for name, parts in result["slices"].items()
        for part, scores in parts.items()
    ]
    header = ("slice of test", "", "entities", "precision", "recall", "F")
    msg.table(rows, header=header, divider=True, aligns=("l", "l", "r", "r", "r", "r"))


if __name__ == "__main__":
    run(analyze)
