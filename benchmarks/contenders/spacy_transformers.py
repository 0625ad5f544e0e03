"""The default pipeline of spacy-transformers, with the weights of this project's pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import pipelines
from benchmarks.harness import Contender, Job


def load(job: Job) -> Contender:
    """The same weights and heads behind the transformer component that spacy-transformers has by default.

    job (Job): What to annotate.
    RETURNS (Contender): The contender. It has no score, since that component cannot tell the encoder the case of words.
    """
    from spacy.util import load_model_from_config
    from thinc.api import Config

    import bert_ner  # noqa: F401 (registers the heads)

    config = Config().from_disk(Path(job.model) / "config.cfg", interpolate=False)
    config["nlp"]["batch_size"] = 64
    config["components"]["transformer"] |= {"max_batch_items": 4096, "model": pipelines.default_transformer("")}
    config.pop("corpora", None)  # a trained pipeline needs neither its corpora nor what initialised it
    config.pop("initialize", None)
    nlp = load_model_from_config(config, auto_fill=True).from_disk(job.model)
    return replace(pipelines.annotate(nlp, Path(job.docs)), score=lambda _: None)
