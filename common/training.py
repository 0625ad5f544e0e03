"""What decides the weights of a model: settings that follow from corpus and encoder, provenance, calibration.

A training that goes on from a trained pipeline begins with the weights that `enlarge` gives it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import spacy
from spacy.util import minibatch, registry
from thinc.api import Config, Model
from transformers import AutoConfig

import bert_ner
from bert_ner.corpus import find_pieces
from bert_ner.wordpieces import WordpieceReader
from common.corpora import find_entity_texts, read_docs
from common.models import TAUGHT_DEV, find_taught, load_trained
from common.records import code_digest, read_json, sha256
from common.settings import find_settings, read_number, read_overrides

EPOCHS = 4
HEAD_RATE = 1e-3  # the learning rate of layers that start from random weights, whatever the encoder
FEWEST_STEPS = 400  # a small corpus is trained on for more epochs until there are so many
EVALUATIONS = 8
# These files, beside this one, decide what a trained pipeline is: its weights, its calibration, and the tokenizer that
# is saved with it. The rules of concepts, which are added after training, and what computes in use are not among them.
CODE = tuple(
    Path(bert_ner.__file__).with_name(f"{name}.py")
    for name in bert_ner.__all__
    if name not in ("concepts", "inference")
)
# By the digest of code that makes the same models as other code: the digest of that, which stands for both in a model's
# provenance, so that nobody has to train again. CONTRIBUTING.md says when a line may be added.
SAME_MODELS = Path(__file__).with_name("same-models.json")


def prepare(
    config: Path,
    corpus: Path,
    encoder: Path,
    epochs: str = "auto",
    learn_rate: str = "auto",
    batch_words: str = "auto",
    seed: int = 0,
    train_on: str = "train",
    start: Path | None = None,
    overrides: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settle from what a model is trained, before it is trained.

    config, corpus, encoder, epochs, learn_rate, batch_words, seed, train_on, start, overrides: As the command `train`
        takes them.
    RETURNS (tuple[dict[str, Any], dict[str, Any]]): The `inputs` of the model's provenance, which identify it: hashes
        of config, code, encoder and corpus, the teachers and their texts, the settings, and a hash of the pipeline that
        the training goes on from. Then the overrides of the config, by dotted name.
    RAISES (StepError): If a setting is none, or has a value that it cannot have, or if there is no such corpus.
    """
    taught = find_taught(corpus, train_on, start)
    dev = corpus / f"{TAUGHT_DEV if taught and start else 'dev'}.spacy"
    settings = derive(config, corpus / f"{train_on}.spacy", encoder, epochs, learn_rate, batch_words)
    settings |= read_overrides(overrides, find_settings(config, settings))
    settings |= {"system.seed": seed, "paths.dev": str(dev)}
    if start:  # which has its components already
        settings = {key: value for key, value in settings.items() if not key.startswith("components.")}
    inputs = identify_recipe(config) | {
        "encoder": sha256(encoder),
        "corpus": {"train": sha256(corpus / f"{train_on}.spacy"), "dev": sha256(dev)},
        "settings": {key: value for key, value in settings.items() if not key.startswith("paths.")},
        **({"start": sha256(start)} if start else {}),
    }
    return inputs | taught, settings


def identify_recipe(config: Path) -> dict[str, Any]:
    """Identify the config and the code that decide what a model becomes, whatever the corpus and the encoder.

    config (Path): The training config; its comments do not count.
    RETURNS (dict[str, Any]): `config` and `code`, as a model's provenance has them among its `inputs`.
    """
    resolved = Config().from_disk(config, interpolate=False).to_bytes()
    code = code_digest(*CODE, Path(__file__))
    return {"config": hashlib.sha256(resolved).hexdigest(), "code": read_json(SAME_MODELS).get(code, code)}


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
    epochs, learn_rate, batch_words (str): Numbers, "auto", or multiples of that: "auto*0.5".
    RETURNS (dict[str, Any]): Overrides of the config, by dotted name.
    RAISES (StepError): If a setting is neither "auto" nor a number above 0.
    """
    docs = [doc[a:b] for doc in read_docs(train, spacy.blank("en").vocab) for a, b in find_pieces(doc)]
    words = sum(map(len, docs))
    architecture, settings = AutoConfig.from_pretrained(encoder), Config().from_disk(config)
    width = architecture.hidden_size  # whatever it is called in the encoder's config.json
    most = 750 if width < 768 else 500
    size = max(1, int(read_number("batch_words", batch_words, min(most, max(300, words // 25)))))
    batcher = settings["training"]["batcher"]["batcher"] | {"size": size}
    steps = sum(1 for _ in registry.resolve({"batcher": batcher})["batcher"](docs))
    passes = read_number("epochs", epochs, max(EPOCHS, math.ceil(FEWEST_STEPS / steps)))
    evaluations = min(EVALUATIONS, math.ceil(passes))
    every = math.ceil(passes * steps / evaluations)
    total = every * evaluations  # spaCy evaluates at multiples of `every`, and shall evaluate the last step
    rate = read_number("learn_rate", learn_rate, min(5e-4, 5e-5 * (768 / width) ** 2))
    case = settings["components"]["transformer"]["model"]["case"]
    told = case and getattr(architecture, "type_vocab_size", 0) in (2, WordpieceReader.CASES)
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


def enlarge(start: Path, train: Path, seed: int, folder: Path) -> None:
    """Write a trained pipeline that can learn the labels, parts of speech and chunks of another corpus too.

    Its encoder, features and heads are as before. A new tag gets a row in the last layer of its head. Before the first
    step, all old tags have the same probabilities as ever, in relation to each other.

    start (Path): The trained pipeline.
    train (Path): The .spacy file to train on.
    seed (int): For the rows of new tags.
    folder (Path): Where to write the pipeline.
    RAISES (StepError): If `start` is no pipeline of this project.
    """
    nlp, docs, random = load_trained(start), read_docs(train), np.random.default_rng(seed)
    for name in [name for name in ("ner", "chunker") if name in nlp.component_names]:
        pipe: Any = nlp.get_pipe(name)
        old = pipe.tags
        pipe.cfg["labels"] = sorted({*pipe.labels, *(span.label_ for doc in docs for span in pipe.read_spans(doc))})
        enlarge_head(pipe.model, old, pipe.tags, random)
    if "tagger" in nlp.pipe_names:
        tagger: Any = nlp.get_pipe("tagger")
        old = list(tagger.labels)
        tagger.cfg["labels"] = sorted({*old, *(token.tag_ for doc in docs for token in doc if token.tag_)})
        enlarge_head(tagger.model, old, tagger.cfg["labels"], random)
        for tag in tagger.cfg["labels"]:
            nlp.vocab.strings.add(tag)
    nlp.to_disk(folder)


def enlarge_head(model: Model[Any, Any], old: Sequence[str], new: Sequence[str], random: np.random.Generator) -> None:
    """Give a head an output for each of some tags. Those that it had keep their weights, wherever they stand now.

    The temperature of the softmax becomes 1, as training expects, and the weights make up for it.

    model (Model[Any, Any]): A model such as `bert_ner.SoftmaxHead.v1`, which is changed.
    old (Sequence[str]): The tags of its outputs.
    new (Sequence[str]): The tags that it shall have, in their order: all of `old`, and perhaps others.
    random (np.random.Generator): Draws the weights of the others, as those of a new head are drawn.
    """
    softmax = model.get_ref("softmax")
    numbers = {tag: number for number, tag in enumerate(new)}
    rows = [numbers[tag] for tag in old]
    width, temperature = softmax.get_dim("nI"), softmax.attrs["softmax_temperature"]
    weights, bias = random.uniform(-(width**-0.5), width**-0.5, (len(new), width)), np.zeros(len(new))
    weights[rows] = softmax.ops.to_numpy(softmax.get_param("W")) / temperature
    bias[rows] = softmax.ops.to_numpy(softmax.get_param("b")) / temperature
    for name in ("W", "b"):
        softmax.set_param(name, None)  # thinc changes no dimension of a layer that has weights
    for node in (model, *model.layers[-1].walk()):
        node.set_dim("nO", len(new), force=True)
    softmax.set_param("W", softmax.ops.asarray2f(weights))
    softmax.set_param("b", softmax.ops.asarray1f(bias))
    softmax.attrs["softmax_temperature"] = 1.0


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
