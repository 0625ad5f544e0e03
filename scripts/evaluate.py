"""Predict dev and test once under each condition, score that, and keep what the steps afterwards look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from spacy.training import Example

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from common.errors import main
from common.gpu import use_gpu
from common.predictions import write_predictions
from common.records import SPLITS, read_json, record_inputs, staged, write_json, writes
from common.scoring import measure


@writes("metrics", "test.json")  # by `spacy evaluate`, afterwards
def evaluate(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with the .spacy files and provenance.json", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for evaluation.json and predictions")],
    encoder_record: Annotated[Path, typer.Option(help="What download recorded of the encoder", exists=True)],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Score a pipeline under several conditions, and keep what it predicts as shipped."""
    use_gpu(gpu_id)
    nlp = spacy.load(model)
    recognizer: Any = nlp.get_pipe("ner")
    inputs = record_inputs(model=model, code=Path(__file__), **{split: corpus / f"{split}.spacy" for split in SPLITS})
    corpus_record, encoder_source = read_json(corpus / "provenance.json"), read_json(encoder_record)
    with staged(metrics, "predictions", "evaluation.json") as new:
        predictions = new / "predictions"  # which quote the corpus, so git ignores them
        predictions.mkdir()

        def keep(split: str, condition: str, examples: list[Example], posteriors: list[np.ndarray]) -> None:
            if condition == "predicted_sentences":
                docs = (example.predicted for example in examples)
                write_predictions(predictions, split, docs, posteriors, recognizer.tags)

        scores = measure(nlp, corpus, keep)
        write_json(predictions / "provenance.json", {"inputs": inputs})
        write_json(
            new / "evaluation.json",
            {
                **scores,
                "corpus": corpus_record.get("corpus", {}).get("corpus", ""),
                "counts": corpus_record.get("counts", {}),
                "encoder": encoder_source.get("encoder", ""),
                "encoder_commit": encoder_source.get("commit", ""),
                "training": read_json(model / "provenance.json"),
                "inputs": inputs,
            },
        )


if __name__ == "__main__":
    main(evaluate)
