"""What stands beside `spacy evaluate`: scores on dev, scores with the corpus's own sentences, and the origin of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import spacy
import tqdm
import typer
from spacy.cli._util import import_code, setup_gpu
from spacy.language import Language
from spacy.util import registry

from scripts.steps import read_json, run, write_json

SCORES = ("ents_p", "ents_r", "ents_f", "ents_per_type", "sents_f", "tag_acc")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with dev.spacy, test.spacy and origin.json", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for evaluation.json")],
    encoder: Annotated[Path, typer.Option(help="Origin of the encoder", exists=True)],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    gpu_id: Annotated[int, typer.Option(help="GPU, or -1 for the CPU")] = -1,
) -> None:
    """Score a pipeline with predicted and with gold sentences, and write where it comes from."""
    setup_gpu(gpu_id, silent=True)
    import_code(code)
    nlp = spacy.load(model)
    metrics.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, Any]] = {"dev": {}, "test": {}}
    # test with predicted sentences is the business of `spacy evaluate`
    passes = [("dev", "predicted_sentences"), ("dev", "gold_sentences"), ("test", "gold_sentences")]
    for split, mode in tqdm.tqdm(passes, desc="scoring", unit="pass", disable=None):
        scores[split][mode] = score(nlp, corpus / f"{split}.spacy", gold_sentences=mode == "gold_sentences")
    corpus_origin, encoder_origin = read_json(corpus / "origin.json"), read_json(encoder)
    write_json(
        metrics / "evaluation.json",
        {
            **scores,
            "corpus": corpus_origin.get("corpus", {}).get("corpus", ""),
            "counts": corpus_origin.get("counts", {}),
            "encoder": encoder_origin.get("encoder", ""),
            "encoder_commit": encoder_origin.get("commit", ""),
            "training": read_json(model / "origin.json"),
        },
    )


def score(nlp: Language, path: Path, gold_sentences: bool = False) -> dict[str, Any]:
    """Score a pipeline by spaCy's scorer.

    `spacy evaluate --gold-preproc` would cut the documents into sentences and throw away their context; here the
    documents stay whole, and only where sentences start is told.

    nlp (Language): The pipeline.
    path (Path): A .spacy file.
    gold_sentences (bool): Whether the sentence starts are given, as in the literature, or predicted, as in use.
    RETURNS (dict[str, Any]): Precision, recall, F of entities, in all and by label; F of sentences; accuracy of tags.
    """
    read = registry.readers.get("bert_ner.Corpus.v1")(path, sentence_starts=gold_sentences)
    scores = nlp.evaluate(list(read(nlp)))
    return {name: scores.get(name) for name in SCORES}


if __name__ == "__main__":
    run(evaluate)
