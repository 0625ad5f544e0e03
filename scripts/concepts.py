"""Score actors, factors and mechanisms on sentences that were marked by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import spacy
import srsly
import typer
from spacy.cli._util import import_code, setup_gpu
from spacy.language import Language
from spacy.scorer import PRFScore
from wasabi import msg

from scripts.steps import StepError, read_json, run, write_json, writes


@writes("metrics", "concepts.json")
def concepts(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    marked: Annotated[Path, typer.Argument(help="JSONL with split, text and spans: start, end, label", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for concepts.json")],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Score the concepts of a pipeline."""
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    rows = list(srsly.read_jsonl(marked))
    scores = score_concepts(spacy.load(model), rows)
    made_from = read_json(model / "origin.json").get("made_from", {})
    sentences = Counter(row["split"] for row in rows)
    write_json(metrics / "concepts.json", {"labels": scores, "sentences": sentences, "model": made_from})
    for split, labels in scores.items():
        msg.good(f"{split}: " + ", ".join(f"{label} F {100 * part['f']:.1f}" for label, part in labels.items()))


def score_concepts(nlp: Language, rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Precision, recall and F of exact spans with their labels, by offsets of characters.

    nlp (Language): A pipeline with the component `concepts`.
    rows (list[dict[str, Any]]): Each with split, text and spans, those with start, end and label.
    RETURNS (dict[str, dict[str, dict[str, float]]]): By split and label.
    RAISES (StepError): If the pipeline finds no concepts, ever.
    """
    if "concepts" not in nlp.pipe_names:
        raise StepError("The pipeline has no component concepts.", "Train it with configs/bert.cfg.")
    scores: dict[str, dict[str, PRFScore]] = {}
    for row, doc in zip(rows, nlp.pipe(row["text"] for row in rows), strict=True):
        gold = {(span["start"], span["end"], span["label"]) for span in row["spans"]}
        found = {(span.start_char, span.end_char, span.label_) for span in doc.spans["concepts"]}
        for label in sorted({label for *_, label in gold | found}):
            score = scores.setdefault(row["split"], {}).setdefault(label, PRFScore())
            score.score_set(*({span for span in spans if span[2] == label} for spans in (found, gold)))
    return {
        split: {
            label: {
                "precision": score.precision,
                "recall": score.recall,
                "f": score.fscore,
                "spans": score.tp + score.fn,
            }
            for label, score in sorted(labels.items())
        }
        for split, labels in scores.items()
    }


if __name__ == "__main__":
    run(concepts)
