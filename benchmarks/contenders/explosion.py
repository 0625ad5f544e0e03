"""Explosion's own benchmark of CoNLL-2003, `benchmarks/ner_conll03` of explosion/projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders import pipelines
from benchmarks.harness import Contender, Job


def load_training(job: Job) -> Contender:
    """The training of that benchmark, sentence by sentence, with the encoder of the job.

    job (Job): What to train on.
    RETURNS (Contender): The contender.
    """
    import spacy
    from spacy.training import Corpus
    from spacy.util import registry
    from thinc.api import Config

    config = Config(create_config(job))
    if job.epochs:
        examples = list(Corpus(job.sentence_docs, max_length=500)(spacy.blank("en")))
        batcher = registry.resolve({"batcher": config["training"]["batcher"]})["batcher"]
        steps = job.epochs * sum(1 for _ in batcher(examples))
        config["training"]["optimizer"]["learn_rate"] |= {"warmup_steps": min(250, steps // 10), "total_steps": steps}
    return pipelines.train(config, job, by_sentence=True)


def create_config(job: Job) -> dict[str, Any]:
    """The config of that benchmark, without its augmenter, which needs a file of its own.

    job (Job): What to train on.
    RETURNS (dict[str, Any]): A training config.
    """
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "grad_factor": 1.0,
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    parser = {
        "@architectures": "spacy.TransitionBasedParser.v2",
        "state_type": "ner",
        "extra_state_tokens": False,
        "hidden_width": 64,
        "maxout_pieces": 3,
        "use_upper": False,
        "tok2vec": listener,
    }
    rate = {"@schedules": "warmup_linear.v1", "initial_rate": 5e-5, "warmup_steps": 250, "total_steps": 20000}
    optimizer = {"@optimizers": "Adam.v1", "beta1": 0.9, "beta2": 0.999, "L2": 0.01, "L2_is_weight_decay": True}
    corpora = {"train": job.sentence_docs, "dev": str(Path(job.corpus, "dev.spacy"))}
    return {
        "nlp": {"lang": "en", "pipeline": ["transformer", "ner"], "batch_size": 1000},
        "components": {
            "transformer": {
                "factory": "transformer",
                "max_batch_items": 4096,
                "model": pipelines.default_transformer(job.encoder),
            },
            "ner": {"factory": "ner", "update_with_oracle_cut_size": 100, "model": parser},
        },
        "corpora": {
            name: {"@readers": "spacy.Corpus.v1", "path": path, "max_length": 500 if name == "train" else 0}
            for name, path in corpora.items()
        },
        "training": {
            "seed": 0,
            "gpu_allocator": None,
            "train_corpus": "corpora.train",
            "dev_corpus": "corpora.dev",
            "accumulate_gradient": 2,
            "dropout": 0.1,
            "batcher": {"@batchers": "spacy.batch_by_padded.v1", "size": 3000, "buffer": 256, "discard_oversize": True},
            "optimizer": optimizer | {"grad_clip": 1.0, "use_averages": True, "eps": 1e-8, "learn_rate": rate},
        },
    }
