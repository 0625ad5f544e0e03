"""Explosion's own benchmark of CoNLL-2003, `benchmarks/ner_conll03` of explosion/projects."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable
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
    from thinc.api import Config

    config = Config(create_config(job))
    if job.epochs:
        examples = Corpus(job.sentence_docs, max_length=500, gold_preproc=True)(spacy.blank("en"))
        plan(config, examples, job.epochs)
    return pipelines.train(config, job, by_sentence=True)


def fine_tune(
    encoder: Path, corpus: Path, seed: int, gpu_id: int, settings: dict[str, int], fewest_steps: int
) -> dict[str, Any]:
    """Train that benchmark's config by `spacy train`, keep the best weights on dev, and score them.

    Its tokens and sentences are always those of the corpus.

    encoder (Path): Folder of the encoder.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    seed (int): For weights, order, dropout.
    gpu_id (int): GPU, or -1 for the CPU.
    settings (dict[str, int]): `epochs`, and `evaluations`: how often to score dev. The config itself asks for up to
        20,000 steps, which are meant for a GPU.
    fewest_steps (int): On a small corpus it trains for more epochs, until there are so many steps.
    RETURNS (dict[str, Any]): F1 on `dev` and `test`, with gold sentences; `seconds` and `steps` of training.
    """
    import spacy
    from spacy.cli.train import train
    from spacy.training import Corpus
    from thinc.api import Config

    config = Config(create_config(Job(str(encoder.resolve()), "", [], 0)))
    for split, reader in config["corpora"].items():
        reader.update(path=str(corpus.resolve() / f"{split}.spacy"), gold_preproc=True)
    examples = Corpus(corpus / "train.spacy", gold_preproc=True)(spacy.blank("en"))
    steps = plan(config, examples, settings["epochs"], fewest_steps)
    every = math.ceil(steps / settings["evaluations"])
    steps = every * settings["evaluations"]  # spaCy evaluates at multiples of `every`, and shall evaluate the last step
    config["training"] |= {"seed": seed, "max_steps": steps, "eval_frequency": every, "patience": 0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config.to_disk(folder / "config.cfg")
        began = time.monotonic()
        train(folder / "config.cfg", folder, use_gpu=gpu_id)
        seconds = round(time.monotonic() - began)
        nlp = spacy.load(folder / "model-best")
    scores = {
        split: nlp.evaluate(list(Corpus(corpus / f"{split}.spacy", gold_preproc=True)(nlp)))["ents_f"] or 0.0
        for split in ("dev", "test")
    }
    return {**scores, "seconds": seconds, "steps": steps}


def plan(config: dict[str, Any], examples: Iterable[Any], epochs: int, fewest_steps: int = 0) -> int:
    """Let the learning rate of the config fall to zero at the end of a training of known length.

    config (dict[str, Any]): Training config, which is changed.
    examples (Iterable[Any]): What it trains on, as spaCy's Examples.
    epochs (int): How often it sees them.
    fewest_steps (int): It sees them more often until there are so many steps.
    RETURNS (int): The number of steps.
    """
    from spacy.util import registry

    batcher = registry.resolve({"batcher": config["training"]["batcher"]})["batcher"]
    steps = max(fewest_steps, epochs * sum(1 for _ in batcher(list(examples))))
    config["training"]["optimizer"]["learn_rate"] |= {"warmup_steps": min(250, steps // 10), "total_steps": steps}
    return steps


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
    # With gold_preproc the tokens are those of the corpus, as in that benchmark
    train: dict[str, Any] = {"path": job.sentence_docs, "max_length": 500, "gold_preproc": True}
    corpora: dict[str, dict[str, Any]] = {"train": train, "dev": {"path": str(Path(job.corpus, "dev.spacy"))}}
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
        "corpora": {name: {"@readers": "spacy.Corpus.v1", **settings} for name, settings in corpora.items()},
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
