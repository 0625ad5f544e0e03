"""Score concepts (actors, factors, mechanisms) on sentences that were marked by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import spacy
import srsly
import typer
from spacy.language import Language
from spacy.scorer import PRFScore
from wasabi import msg

import bert_ner.concepts  # noqa: F401 (registers what the pipeline names; its rules are part of what is measured)
from common.errors import StepError, main
from common.gpu import use_gpu
from common.records import record_inputs, write_json, writes


@writes("metrics", "concepts.json")
def concepts(
    model: Annotated[Path, typer.Argument(help="Assembled pipeline", exists=True)],
    marked: Annotated[Path, typer.Argument(help="JSONL with split, text and spans: start, end, label", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for concepts.json")],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Score the concepts of a pipeline."""
    use_gpu(gpu_id)
    rows = list(srsly.read_jsonl(marked))
    scores = score_concepts(spacy.load(model), rows)
    inputs = record_inputs(model=model, code=Path(__file__), corpus=marked)
    sentences = Counter(row["split"] for row in rows)
    write_json(metrics / "concepts.json", {"labels": scores, "sentences": sentences, "inputs": inputs})
    for split, labels in scores.items():
        msg.good(f"{split}: " + ", ".join(f"{label} F1 {100 * part['f1']:.1f}" for label, part in labels.items()))


def score_concepts(nlp: Language, rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Score exact spans with their labels, by offsets of characters.

    nlp (Language): A pipeline with the component `concepts`.
    rows (list[dict[str, Any]]): Each with `split`, `text` and `spans`, which have `start`, `end` and `label`.
    RETURNS (dict[str, dict[str, dict[str, float]]]): By split and label `precision`, `recall` and `f1`, and the number
        of marked `spans`.
    RAISES (StepError): If the pipeline has no such component.
    """
    if "concepts" not in nlp.pipe_names:
        raise StepError("The pipeline has no component concepts.", "Run assemble, and take packages/<run>/assembled.")
    scores: dict[str, dict[str, PRFScore]] = {}
    for row, doc in zip(rows, nlp.pipe(row["text"] for row in rows), strict=True):
        gold = {(span["start"], span["end"], span["label"]) for span in row["spans"]}
        predicted = {(span.start_char, span.end_char, span.label_) for span in doc.spans["concepts"]}
        for label in sorted({label for *_, label in gold | predicted}):
            score = scores.setdefault(row["split"], {}).setdefault(label, PRFScore())
            score.score_set(*({span for span in spans if span[2] == label} for spans in (predicted, gold)))
    return {
        split: {
            label: {
                "precision": score.precision,
                "recall": score.recall,
                "f1": score.fscore,
                "spans": score.tp + score.fn,
            }
            for label, score in sorted(labels.items())
        }
        for split, labels in scores.items()
    }


if __name__ == "__main__":
    main(concepts)
