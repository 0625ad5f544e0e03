"""What decides the weights of a model: settings that follow from corpus and encoder, provenance, calibration."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import spacy
from spacy.util import minibatch, registry
from thinc.api import Config
from transformers import AutoConfig

import bert_ner
from bert_ner.corpus import find_pieces
from bert_ner.encoder import CASES
from common.corpora import find_entity_texts, read_docs
from common.errors import StepError
from common.records import code_digest, digest, read_json, sha256

BEST, LAST = "model-best", "model-last"  # the names that spaCy gives
TAUGHT = "taught"  # train.spacy with what teachers say of it, and texts of which only they say something
EPOCHS = 4
HEAD_RATE = 1e-3  # the learning rate of layers that start from random weights, whatever the encoder
FEWEST_STEPS = 400  # a small corpus is trained on for more epochs until there are so many
EVALUATIONS = 8
# These files, beside this one, decide what a trained pipeline is: its weights, its calibration, and the tokenizer that
# is saved with it. The rules of concepts are not among them, since they are added after training.
CODE = tuple(
    Path(bert_ner.__file__).with_name(f"{name}.py")
    for name in ("corpus", "encoder", "features", "finetuning", "optimizer", "recognizer", "tokenizer")
)


def prepare(
    config: Path,
    corpus: Path,
    encoder: Path,
    epochs: str = "auto",
    learn_rate: str = "auto",
    batch_words: str = "auto",
    seed: int = 0,
    train_on: str = "train",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settle from what a model is trained, before it is trained.

    config, corpus, encoder, epochs, learn_rate, batch_words, seed, train_on: As the command `train` takes them.
    RETURNS (tuple[dict[str, Any], dict[str, Any]]): The `inputs` of the model's provenance, which identify it: hashes
        of config, code, encoder and corpus, the teachers and their texts, and the settings. Then the overrides of the
        config, by dotted name.
    RAISES (StepError): If a setting is neither "auto" nor a number above 0, or if there is no such corpus.
    """
    taught = find_taught(corpus, train_on)
    overrides = derive(config, corpus / f"{train_on}.spacy", encoder, epochs, learn_rate, batch_words)
    overrides |= {"system.seed": seed, "paths.dev": str(corpus / "dev.spacy")}
    inputs = identify_recipe(config) | {
        "encoder": sha256(encoder),
        "corpus": {"train": sha256(corpus / f"{train_on}.spacy"), "dev": sha256(corpus / "dev.spacy")},
        "settings": {key: value for key, value in overrides.items() if not key.startswith("paths.")},
    }
    return inputs | taught, overrides


def find_taught(corpus: Path, train_on: str) -> dict[str, Any]:
    """Find whose probabilities of tags a training learns.

    corpus (Path): Folder with train.spacy and, if teachers have annotated it, taught.spacy and taught.json.
    train_on (str): As the command `train` takes it.
    RETURNS (dict[str, Any]): Nothing for "train". For "taught", `taught`: a digest of each of the `teachers` and a hash
        of each of the `texts`, as `teach` recorded them.
    RAISES (StepError): If `train_on` is neither, or if the teachers have not annotated the present train.spacy.
    """
    if train_on == "train":
        return {}
    if train_on != TAUGHT:
        raise StepError(f"train_on is {train_on!r}.", f"It is train, or {TAUGHT} for a run with teachers.")
    inputs = read_json(corpus / f"{TAUGHT}.json").get("inputs", {})
    if not (corpus / f"{TAUGHT}.spacy").exists() or inputs.get("train") != sha256(corpus / "train.spacy"):
        raise StepError(
            f"{corpus} has no {TAUGHT}.spacy that was made from its present train.spacy.",
            "Run teach first; make distill RUN=<run> runs it and all that follows.",
        )
    return {TAUGHT: {name: inputs[name] for name in ("teachers", "texts")}}


def identify_recipe(config: Path) -> dict[str, Any]:
    """Identify the config and the code that decide what a model becomes, whatever the corpus and the encoder.

    config (Path): The training config; its comments do not count.
    RETURNS (dict[str, Any]): `config` and `code`, as a model's provenance has them among its `inputs`.
    """
    resolved = Config().from_disk(config, interpolate=False).to_bytes()
    return {"config": hashlib.sha256(resolved).hexdigest(), "code": code_digest(*CODE, Path(__file__))}


def derive(config: Path, train: Path, encoder: Path, epochs: str, learn_rate: str, batch_words: str) -> dict[str, Any]:
    """Derive the settings that depend on encoder and corpus.

    - The learning rate is 5e-5 for the width of BERT-base, 768 (Devlin et al. 2019 recommend 2e-5 to 5e-5). For
      another width it grows with the inverse square, which gives 2e-4 for 384, up to 5e-4.
    - The learning rate of the other layers is HEAD_RATE, as a multiple of that of the encoder.
    - A batch has 750 words. From the width of BERT-base on it has 500, which are about 32 sentences of news (Devlin et
      al. 2019 recommend 16 or 32). For a small corpus it has fewer, so that an epoch has 25 steps, but at least 300.
    - There are EPOCHS epochs. For a small corpus there are more, until there are FEWEST_STEPS.
    - An encoder with token types learns the case of words by them. Others get it beside their vectors instead.

    config (Path): The training config; its batcher counts the steps.
    train (Path): The training corpus.
    encoder (Path): Folder with a config.json.
    epochs, learn_rate, batch_words (str): Numbers, or "auto".
    RETURNS (dict[str, Any]): Overrides of the config, by dotted name.
    RAISES (StepError): If a setting is neither "auto" nor a number above 0.
    """
    docs = [doc[a:b] for doc in read_docs(train, spacy.blank("en").vocab) for a, b in find_pieces(doc)]
    words = sum(map(len, docs))
    architecture, settings = AutoConfig.from_pretrained(encoder), Config().from_disk(config)
    width = architecture.hidden_size  # whatever it is called in the encoder's config.json
    most = 750 if width < 768 else 500
    size = max(1, int(_number("batch_words", batch_words, min(most, max(300, words // 25)))))
    batcher = settings["training"]["batcher"]["batcher"] | {"size": size}
    steps = sum(1 for _ in registry.resolve({"batcher": batcher})["batcher"](docs))
    passes = _number("epochs", epochs, max(EPOCHS, math.ceil(FEWEST_STEPS / steps)))
    evaluations = min(EVALUATIONS, math.ceil(passes))
    every = math.ceil(passes * steps / evaluations)
    total = every * evaluations  # spaCy evaluates at multiples of `every`, and shall evaluate the last step
    rate = _number("learn_rate", learn_rate, min(5e-4, 5e-5 * (768 / width) ** 2))
    case = settings["components"]["transformer"]["model"]["case"]
    told = case and getattr(architecture, "type_vocab_size", 0) in (2, CASES)
    return {
        **({"components.tok2vec.model.attrs": [], "components.tok2vec.model.rows": []} if told else {}),
        "paths.train": str(train),
        "paths.encoder": str(encoder),
        "training.max_steps": total,
        "training.eval_frequency": every,
        "training.batcher.batcher.size": size,
        "training.optimizer.head_lr_multiplier": HEAD_RATE / rate,
        "training.optimizer.learn_rate.initial_rate": rate,
        "training.optimizer.learn_rate.warmup_steps": total // 10,
        "training.optimizer.learn_rate.total_steps": total,  # spaCy does not interpolate here: it stands twice
    }


def _number(name: str, value: str, auto: float) -> float:
    try:
        number = auto if value == "auto" else float(value)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise StepError(f"{name} is {value!r}, neither auto nor a number above 0.", f"For example: --vars.{name} auto")
    return number


def find_trained(folder: Path, inputs: dict[str, Any]) -> Path | None:
    """Find the finished model with these inputs among the models of a run.

    folder (Path): The folder of the run.
    inputs (dict[str, Any]): As `prepare` gives them.
    RETURNS (Path | None): The model's folder, or None if there is none.
    """
    name = digest(inputs)
    models = (folder / BEST, folder / f"{BEST}-{name}", folder / f"unfinished-{name}" / BEST)
    return next((model for model in models if read_json(model / "provenance.json").get("inputs") == inputs), None)


def calibrate(model: Path, train: Path, dev: Path) -> float:
    """Calibrate the scores of entities on dev, so that they say how often an entity is correct.

    model (Path): The trained pipeline, with a component `ner`, which is changed on disk.
    train, dev (Path): The .spacy files. Entities that train has count as seen in training.
    RETURNS (float): The temperature of the softmax that was chosen.
    """
    nlp = spacy.load(model)
    recognizer: Any = nlp.get_pipe("ner")
    before: list[Any] = [pipe for _, pipe in nlp.pipeline[: nlp.pipe_names.index("ner")]]
    docs, probabilities, gold = [], [], []
    for batch in minibatch(registry.readers.get("bert_ner.Corpus.v2")(dev, sentence_starts=False)(nlp), 32):  # type: ignore[no-untyped-call,unused-ignore]
        annotated = [example.x for example in batch]
        for pipe in before:
            annotated = list(pipe.pipe(annotated))
        docs += annotated
        probabilities += recognizer.predict(annotated)
        gold += [{(e.start, e.end, e.label_) for e in example.get_aligned_ents_and_ner()[0]} for example in batch]
        for doc in annotated:
            doc._.trf_data = None  # it is large
    temperature: float = recognizer.calibrate(docs, probabilities, gold, find_entity_texts(train))
    recognizer.to_disk(model / "ner", exclude=["vocab"])
    return temperature


@contextmanager
def without_pooler_warning() -> Iterator[None]:
    """Silence the warning of transformers that the pooler of the encoder has new weights.

    Checkpoints for masked words have no pooler, and this pipeline does not use it. If other weights are new too,
    the warning appears as ever.
    """

    def names_other_weights(record: logging.LogRecord) -> bool:
        _, new, names = record.getMessage().partition("newly initialized: ")
        weights = re.findall(r"'([^']+)'", names.partition("]")[0])
        return not (new and weights and all("pooler." in name for name in weights))

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(names_other_weights)
    try:
        yield
    finally:
        logger.removeFilter(names_other_weights)
