"""This project's pipeline, its bare encoder, and the training of its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders import pipelines
from benchmarks.harness import Contender, Job, Unavailable
from common.corpora import read_docs


def load(job: Job, **settings: str | int) -> Contender:
    """The installed wheel.

    job (Job): What to annotate.
    **settings (str | int): Of the transformer's model: `dtype`, `overlap` of windows.
    RETURNS (Contender): The contender.
    RAISES (Unavailable): If this machine has no instructions for the dtype.
    """
    import spacy

    names = {"dtype": "dtype", "overlap": "get_spans.overlap"}
    config = {f"components.transformer.model.{names[name]}": value for name, value in settings.items()}
    try:
        nlp = spacy.load(job.package, config=config)
    except ValueError as error:
        if str(error).startswith("Dtype"):
            raise Unavailable(str(error)) from error
        raise
    return pipelines.annotate(nlp, Path(job.docs))


def load_encoder(job: Job, dtype: str) -> Contender:
    """The bare encoder on the windows of our pipeline, in batches of about equal lengths: a bound for any pipeline.

    job (Job): What to read.
    dtype (str): Dtype of the encoder.
    RETURNS (Contender): The contender. It has no score.
    RAISES (Unavailable): If this machine has no instructions for the dtype.
    """
    import numpy as np
    import spacy
    import torch
    from transformers import AutoModel

    from bert_ner import inference

    try:
        inference.resolve_dtype(dtype, False)
    except ValueError as error:
        raise Unavailable(str(error)) from error
    nlp = spacy.load(job.model)
    model: Any = dict(nlp.pipeline)["transformer"].model  # type: ignore[attr-defined]
    if dtype == "int8":
        encoder = inference.copy_encoder(model.transformer, "int8")
    else:
        plain = AutoModel.from_config(model.transformer.config, attn_implementation="sdpa").eval()
        plain.load_state_dict(model.transformer.state_dict())
        encoder = plain.to(getattr(torch, dtype))
    windows = [span.text for spans in model.attrs["get_spans"](read_docs(Path(job.docs), nlp.vocab)) for span in spans]
    rows = model.tokenizer(windows, truncation=True, max_length=512)["input_ids"]
    batches = [
        model.tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
        for batch in inference.sub_batches(np.array([len(row) for row in rows]), 1024)
    ]

    @torch.inference_mode()
    def work(batches: list[Any]) -> None:
        for batch in batches:
            encoder(batch["input_ids"], batch["attention_mask"])

    return Contender(lambda: batches, work)


def load_training(job: Job) -> Contender:
    """The training of this project's config, with all its heads.

    job (Job): What to train on.
    RETURNS (Contender): The contender.
    """
    from spacy.util import load_config

    from common.training import derive

    epochs = str(job.epochs) if job.epochs else "auto"
    overrides = derive(Path(job.config), Path(job.corpus, "train.spacy"), Path(job.encoder), epochs, "auto", "auto")
    overrides |= {"paths.train": job.docs, "paths.dev": str(Path(job.corpus, "dev.spacy"))}
    return pipelines.train(load_config(job.config, overrides=overrides), job)
