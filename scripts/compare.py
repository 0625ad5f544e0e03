"""Compare a pipeline with the one that it went on from: F1 of the old labels before and after, on dev and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tqdm
import typer
from spacy.training import Example
from wasabi import msg

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from common.errors import StepError, main
from common.forgetting import compare_labels, count_entities, find_lost
from common.formatting import tabulate_comparison
from common.gpu import use_gpu
from common.models import load_trained
from common.predictions import read_predictions
from common.records import record_inputs, staged, write_json, writes
from common.scoring import create_examples


@writes("metrics")
def compare(
    start: Annotated[Path, typer.Argument(help="The pipeline that the run went on from")],
    model: Annotated[Path, typer.Argument(help="The trained pipeline, as evaluate scored it", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with dev.spacy and test.spacy", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder with evaluate's predictions, for comparison.json")],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Write what the pipeline has lost and won of the labels that it had before."""
    if not start.exists():
        raise StepError("The run goes on from no pipeline.", "Set one: --vars.start; docs/continuing.md says how.")
    use_gpu(gpu_id)
    nlp = load_trained(start)
    recognizer: Any = nlp.get_pipe("ner")
    labels = list(recognizer.labels)
    splits = {}
    for split in ("dev", "test"):
        path = corpus / f"{split}.spacy"
        after, *_ = read_predictions(metrics / "predictions", split, model, path, nlp.vocab)
        examples = list(create_examples(nlp, path, "predicted_sentences"))
        docs = tqdm.tqdm(nlp.pipe(one.predicted for one in examples), split, len(examples), unit="doc", disable=None)
        before = [Example(doc, one.reference) for doc, one in zip(docs, examples, strict=True)]
        splits[split] = compare_labels(count_entities(before, labels), count_entities(after, labels), labels)
    inputs = record_inputs(start=start, model=model, code=Path(__file__))
    inputs |= record_inputs(**{split: corpus / f"{split}.spacy" for split in splits})
    with staged(metrics, "comparison.json") as new:
        write_json(new / "comparison.json", {"inputs": inputs, **splits})
    header, rows = tabulate_comparison({"test": splits["test"]})
    msg.table(rows, header=header, divider=True)
    lost, unknown = find_lost(splits["test"])
    if lost or unknown:
        msg.warn(f"package will ask for your word: {', '.join(lost + unknown)}")
    msg.good(f"Wrote {metrics / 'comparison.json'}")


if __name__ == "__main__":
    main(compare)
