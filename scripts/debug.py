"""Check config and corpus by spaCy's debug data, before hours of training."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import bert_ner  # noqa: F401 (registers what a trained pipeline names)
from common.corpora import read_docs
from common.errors import StepError, main
from common.training import without_pooler_warning


def debug(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy and dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
) -> None:
    """Show what spaCy's debug data finds. That a corpus is small is advice; an error in it or in the config stops."""
    paths = {split: corpus / f"{split}.spacy" for split in ("train", "dev")}
    docs = {split: read_docs(path) for split, path in paths.items()}
    for split, path in paths.items():
        if not docs[split]:
            raise StepError(f"{path} holds no document.", "Run convert again.")
    if not any(doc.ents for doc in docs["train"]):
        raise StepError(f"{paths['train']} marks no entity: nothing can be learnt.", "Annotate some: B-TYPE.")
    # Private parts of other libraries
    #
    # Below so many documents of train, spaCy's debug data exits with an error. spaCy documents the command alone, not
    # this constant nor the function. It was checked with spaCy 3.8.18. Where the constant is gone, a small corpus stops
    # here; where the function is gone, an AttributeError names it.
    spacys: Any = import_module("spacy.cli.debug_data")  # spacy.cli has a function of this name
    spacys.BLANK_MODEL_MIN_THRESHOLD = 0
    overrides = {f"paths.{split}": str(path) for split, path in paths.items()} | {"paths.encoder": str(encoder)}
    try:
        with without_pooler_warning():
            spacys.debug_data(config, config_overrides=overrides, no_format=False, silent=False)
    except ValueError as error:  # of a component, an architecture or a label
        raise StepError(f"No pipeline can be made from {config}: {error}", "Mend the config.") from error


if __name__ == "__main__":
    main(debug)
