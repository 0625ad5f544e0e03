"""Analyse what a pipeline predicted for test: which entities are wrong, how, where, and how sure it is of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import srsly
import typer
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.vocab import Vocab
from wasabi import msg

from common.corpora import CONTEXT, EXAMPLES, KINDS, LENGTHS, iob_tags, kind_of, read_docs
from common.errors import StepError, main
from common.figures import Figures, draw_matrix, save_figures
from common.predictions import read_predictions
from common.records import CURVES, SPLITS, record_inputs, staged, write_json, writes
from common.statistics import (
    bootstrap,
    calibration_curve,
    f_score,
    interval,
    match_entities,
    number_tags,
    score_tags,
)

ERRORS = ("type", "boundary", "both", "missed", "spurious")
FREQUENCIES = ("never", "once", "2 to 9 times", "10 times or more")  # of a name in training
POSITIONS = ("first sentence", "first half", "second half")  # of an entity in its document


class Entity(NamedTuple):
    """An entity of the corpus or of the pipeline: first token, token after the last, label."""

    start: int
    end: int
    label: str


@writes("metrics")
def analyze(
    model: Annotated[Path, typer.Argument(help="Trained pipeline, whose learning curves are read", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder with predictions, for analysis.json and figures")],
) -> None:
    """Analyse what a pipeline predicts for the test set, as it is shipped. No model is loaded."""
    vocab, predictions, curves = Vocab(), metrics / "predictions", model / CURVES
    tokens = {}
    for split in ("dev", "test"):
        examples, posteriors, tags = read_predictions(predictions, split, model, corpus / f"{split}.spacy", vocab)
        tokens[split] = score_tags(number_tags(examples, tags), posteriors)
    if not any(example.reference.ents for example in examples):
        raise StepError(f"{corpus}/test.spacy marks no entity: there is nothing to compare with.", "Annotate some.")
    train = read_docs(corpus / "train.spacy", vocab)
    scores, correct, _ = match_entities(examples, set())
    errors, quotes = find_errors(examples)
    result = {
        "inputs": record_inputs(
            model=model,
            code=Path(__file__),
            predictions=predictions,
            **{split: corpus / f"{split}.spacy" for split in SPLITS},
        ),
        "tokens": tokens,
        "agreement": compare_with_seqeval(examples),
        "labels": score_labels(examples),
        "confusion_of_tokens": confuse_tokens(examples),
        "confusion_of_entities": confuse_entities(examples),
        "errors": errors,
        "slices": slice_up(examples, train),
        "calibration": calibration_curve(scores, correct),
        "curves": list(srsly.read_jsonl(curves)) if curves.exists() else [],
    }
    disagreements = sorted(quotes["spurious"] + quotes["type"] + quotes["boundary"] + quotes["both"], key=_less_sure)
    quoted: dict[str, Any] = {"most_confident_disagreements": disagreements[:EXAMPLES]}
    quoted["errors"] = {kind: errors_of_kind[:EXAMPLES] for kind, errors_of_kind in quotes.items()}
    with staged(metrics, "figures/analysis", "analysis-examples.json", "analysis.json") as new:
        result["captions"] = save_figures(FIGURES, result, new / "figures" / "analysis")
        write_json(new / "analysis-examples.json", quoted)  # they quote the corpus, so git ignores them
        write_json(new / "analysis.json", result)
    show(result)
    msg.good(f"Wrote {metrics / 'analysis.json'} and {len(FIGURES)} figures")


def _less_sure(example: dict[str, Any]) -> float:
    return -float(example["score"])


def entities_of(doc: Doc) -> list[Entity]:
    """The entities of a document, in order."""
    return [Entity(ent.start, ent.end, ent.label_) for ent in doc.ents]


def compare_with_seqeval(examples: Iterable[Example]) -> dict[str, float]:
    """F1 of exact spans and labels, counted here as spaCy counts it, and by seqeval in strict mode (IOB2)."""
    counts = np.zeros(3, dtype=int)
    tags: list[list[list[str]]] = [[], []]
    for example in examples:
        predicted, gold = (set(entities_of(doc)) for doc in (example.predicted, example.reference))
        counts += (len(predicted & gold), len(predicted), len(gold))
        for rows, doc in zip(tags, (example.predicted, example.reference), strict=True):
            rows.append(iob_tags(doc))
    strict = f1_score(tags[1], tags[0], mode="strict", scheme=IOB2, zero_division=0)
    return {"f1": float(f_score(counts)), "seqeval_strict_f1": float(strict)}


def score_labels(examples: list[Example]) -> dict[str, dict[str, Any]]:
    """Score each label, and all labels together.

    examples (list[Example]): Predicted documents and references.
    RETURNS (dict[str, dict[str, Any]]): For each label, then for "overall": `precision`, `recall` and `f1` from 0 to
        1, the 95% `interval` of F1 over documents, and the number of `entities` of the corpus.
    """
    labels = sorted({ent.label_ for example in examples for ent in example.reference.ents})
    result = {}
    for label in [*labels, "overall"]:
        counts = []
        for example in examples:
            predicted, gold = (
                {ent for ent in entities_of(doc) if label in ("overall", ent.label)}
                for doc in (example.predicted, example.reference)
            )
            counts.append([len(predicted & gold), len(predicted), len(gold)])
        result[label] = {
            "entities": int(np.array(counts).sum(0)[2]),
            **rates(np.array(counts).sum(0)),
            "interval": interval(bootstrap(np.array([counts]))),
        }
    return result


def rates(counts: np.ndarray) -> dict[str, float]:
    """`precision`, `recall` and `f1` of counts of entities: correct, predicted, gold."""
    correct, predicted, gold = counts
    return {
        "precision": float(correct / max(1, predicted)),
        "recall": float(correct / max(1, gold)),
        "f1": float(f_score(counts)),
    }


def confuse_tokens(examples: list[Example]) -> dict[str, dict[str, int]]:
    """Count, for each label of tokens in the corpus and for O, which labels the pipeline gives these tokens."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        for token, gold in zip(example.predicted, example.reference, strict=True):
            counts[gold.ent_type_ or "O"][token.ent_type_ or "O"] += 1
    return {label: dict(counts[label].most_common()) for label in sorted(counts)}


def confuse_entities(examples: list[Example]) -> dict[str, dict[str, int]]:
    """Count, for each label of entities in the corpus, which labels the pipeline gives the same spans.

    An entity whose span the pipeline does not have counts as "other span" if one overlaps it, and else as "missed".
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        predicted = {(ent.start, ent.end): ent.label for ent in entities_of(example.predicted)}
        taken = {i for start, end in predicted for i in range(start, end)}
        for ent in entities_of(example.reference):
            other = "missed" if taken.isdisjoint(range(ent.start, ent.end)) else "other span"
            counts[ent.label][predicted.get((ent.start, ent.end), other)] += 1
    return {label: dict(counts[label].most_common()) for label in sorted(counts)}


def find_errors(examples: list[Example]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Find the errors, and tell their kinds apart as MUC and nervaluate do.

    If the pipeline does not have exactly an entity of the corpus, the predicted entity that overlaps it most decides
    the kind of error: `type` if only the label differs, `boundary` if only the span differs, `both` if both do, and
    `missed` if none overlaps it. A predicted entity that overlaps none of the corpus is `spurious`.

    examples (list[Example]): Predicted documents, whose entities have a score, and references.
    RETURNS (tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]): By kind the number of errors, "overall" and by
        label: the label of the corpus, or for spurious entities that of the pipeline. Then by kind the errors with
        their text, those first of which the pipeline is surest.
    """
    numbers: dict[str, Counter[str]] = {kind: Counter() for kind in ERRORS}
    quotes: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ERRORS}
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
            quotes[kind].append(_quote(number, doc, ent, spans[near] if near else None))
        for other, span in spans.items():
            if not any(_overlap(other, ent) for ent in gold):
                numbers["spurious"][other.label] += 1
                quotes["spurious"].append(_quote(number, doc, None, span))
    for errors in quotes.values():
        errors.sort(key=_less_sure)
    return {kind: {"overall": labels.total(), **dict(labels.most_common())} for kind, labels in numbers.items()}, quotes


def _overlap(one: Entity, other: Entity) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _quote(number: int, doc: Doc, gold: Entity | None, predicted: Span | None) -> dict[str, Any]:
    """Quote an error in its context. The offsets of the spans are characters of that context."""
    spans = [Span(doc, gold.start, gold.end, gold.label) if gold else None, predicted]
    present = [span for span in spans if span is not None]
    context = doc[max(0, min(s.start for s in present) - CONTEXT) : max(s.end for s in present) + CONTEXT]
    first = context.start_char
    corpus, pipeline = (
        {"start": span.start_char - first, "end": span.end_char - first, "label": span.label_} if span else None
        for span in spans
    )
    score = round(float(predicted._.score), 4) if predicted is not None else 0.0
    return {"document": number, "text": context.text, "corpus": corpus, "pipeline": pipeline, "score": score}


def slice_up(examples: list[Example], train: list[Doc]) -> dict[str, dict[str, dict[str, Any]]]:
    """Score slices of the entities, to see what is hard and what the pipeline only knows by heart.

    examples (list[Example]): Predicted documents and references.
    train (list[Doc]): The training corpus.
    RETURNS (dict[str, dict[str, dict[str, Any]]]): By property of the entities and slice: the number of `entities` of
        the corpus, `precision`, `recall` and `f1`.
    """
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for ent in (ent for doc in train for ent in doc.ents):
        labels[ent.text.lower()][ent.label_] += 1
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3, dtype=int))
    for example in examples:
        predicted, gold = (set(entities_of(doc)) for doc in (example.predicted, example.reference))
        kinds = [kind_of(sentence) for sentence in example.reference.sents for _ in sentence]
        first = len(next(iter(example.reference.sents), ()))
        for one in predicted | gold:
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
                counts[item] += (one in predicted and one in gold, one in predicted, one in gold)
    order = {
        "in train": FREQUENCIES,
        "tokens": LENGTHS,
        "kind of sentence": KINDS,
        "position": POSITIONS,
        "labels of the name in train": ("0", "1", "several"),
    }
    return {
        name: {
            part: {"entities": int(counts[name, part][2]), **rates(counts[name, part])}
            for part in parts
            if (name, part) in counts
        }
        for name, parts in order.items()
    }


def draw_labels(result: dict[str, Any]) -> Any:
    labels = result["labels"]
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.4 * len(labels)))
    for y, (label, scores) in enumerate(reversed(labels.items())):
        low, high = (100 * end for end in scores["interval"])
        axes.plot([low, high], [y, y], color="0.6", zorder=1)
        axes.plot(100 * scores["f1"], y, "o", color="C0")
        axes.annotate(
            f"{label} ({scores['entities']:,})", (low, y), xytext=(-6, -3), textcoords="offset points", ha="right"
        )
    axes.set(xlabel="F1 on test with its 95% interval, %", yticks=[], ylabel="label (entities)")
    axes.margins(0.25, 0.15)
    return figure


def draw_errors(result: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 2.6))
    axes.bar(list(result["errors"]), [numbers["overall"] for numbers in result["errors"].values()])
    axes.set(xlabel="kind of error", ylabel="entities of test")
    return figure


def draw_confusion(result: dict[str, Any]) -> Any:
    return draw_matrix(result["confusion_of_entities"], "in the pipeline")


def draw_tokens(result: dict[str, Any]) -> Any:
    return draw_matrix(result["confusion_of_tokens"], "token in the pipeline")


def draw_slices(result: dict[str, Any]) -> Any:
    slices = result["slices"]
    figure, all_axes = plt.subplots(1, len(slices), figsize=(3 * len(slices), 3.2), sharey=True)
    for axes, (name, parts) in zip(all_axes, slices.items(), strict=True):
        axes.bar(list(parts), [100 * scores["f1"] for scores in parts.values()])
        axes.set(xlabel=name)
        axes.tick_params(axis="x", labelrotation=60)
    all_axes[0].set_ylabel("F1 on test, %")
    return figure


def draw_calibration(result: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0, 100], [0, 100], color="0.7")
    axes.plot(*([100 * part[name] for part in result["calibration"]] for name in ("score", "correct")), "o-")
    axes.set(xlabel="mean score, %", ylabel="correct, %", xlim=(0, 101), ylim=(0, 101))
    return figure


def draw_curves(result: dict[str, Any]) -> Any:
    rows = result["curves"]
    steps = [row["step"] for row in rows]
    figure, (losses, accuracies, rates) = plt.subplots(1, 3, figsize=(12, 3.2))
    for split in ("train", "dev"):
        losses.plot(steps, [row[split]["loss"] for row in rows], "o-", label=split)
        accuracies.plot(steps, [100 * row[split]["accuracy"] for row in rows], "o-", label=f"tokens of {split}")
    accuracies.plot(steps, [100 * (row["dev"].get("ents_f") or 0) for row in rows], "s--", label="F1 of dev")
    rates.plot(steps, [row["learn_rate"] for row in rows], "o-")
    losses.set(xlabel="step", ylabel="loss of a token, nats", ylim=(0, None))
    accuracies.set(xlabel="step", ylabel="correct, %")
    rates.set(xlabel="step", ylabel="learning rate of the encoder", ylim=(0, None))
    if rows:
        losses.legend()
        accuracies.legend()
    return figure


FIGURES: Figures = {
    "labels": (draw_labels, "F1 by label, with its 95% interval."),
    "errors": (draw_errors, "Errors by kind."),
    "confusion": (draw_confusion, "Which labels the pipeline gives the entities of each label."),
    "tokens": (draw_tokens, "Which labels the pipeline gives the tokens of each label."),
    "slices": (draw_slices, "F1 by slice."),
    "calibration": (draw_calibration, "The calibration curve. Where it is on the line, scores mean what they say."),
    "curves": (
        draw_curves,
        "Loss and accuracy of tokens on train and dev, F1 on dev, and the learning rate, by step of training.",
    ),
}


def show(result: dict[str, Any]) -> None:
    """Print the most telling figures."""
    for split, scores in result["tokens"].items():
        msg.text(f"{split}: loss of a token {scores['loss']:.3f}, tags correct {100 * scores['accuracy']:.2f} %")
    errors = {kind: f"{numbers['overall']:,}" for kind, numbers in result["errors"].items()}
    msg.table(errors, header=("kind of error", "entities of test"), divider=True, aligns=("l", "r"))
    rows = [
        (name, part, f"{scores['entities']:,}", *(f"{100 * scores[key]:.1f}" for key in ("precision", "recall", "f1")))
        for name, parts in result["slices"].items()
        for part, scores in parts.items()
    ]
    header = ("slice of test", "", "entities", "precision", "recall", "F1")
    msg.table(rows, header=header, divider=True, aligns=("l", "l", "r", "r", "r", "r"))


if __name__ == "__main__":
    main(analyze)
