"""Measure how fast the pipeline annotates and trains, beside other ways to use or train the same encoder.

Each contender runs in a process of its own, some with another interpreter; they take turns, so that noise hits all
alike. A process loads, warms up, then runs once for each line on its standard input, and answers in lines of JSON. This
file therefore imports at its head only what every environment has.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Annotated, Any

import tqdm
import typer
from wasabi import msg

from scripts.steps import (
    StepError,
    install,
    installed,
    newest_wheel,
    python_elsewhere,
    read_json,
    run,
    sha256,
    write_json,
    writes,
)

ROOT = Path(__file__).resolve().parent.parent
BENCH, PEERS = "requirements-bench.txt", "requirements-peers.txt"
PRECISIONS = ("float32", "bfloat16", "int8")
REFERENCE = "spacy-transformers"
SENTENCE = "My name is Wolfgang and I live in Berlin."
MEGABYTE = 1_000_000

# Processes that see nothing of this project but the installed wheel. They print JSON.
START = """import json, sys, time
began = time.perf_counter()
import spacy
imported = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter()
nlp(sys.argv[2]).ents
print(json.dumps({"import_spacy": imported - began, "load_after_spacy": loaded - imported}))
"""
LATENCY = """import json, sys, time
import spacy, spacy_transformers, torch, transformers
began = time.perf_counter()
nlp = spacy.load(sys.argv[1])
loaded = time.perf_counter() - began
calls = []
for _ in range(220):
    began = time.perf_counter()
    nlp(sys.argv[2])
    calls.append(time.perf_counter() - began)
print(json.dumps({"load_after_imports": loaded, "calls": calls[20:]}))
"""
MEMORY = """import itertools, json, resource, sys
import spacy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
nlp = spacy.load(sys.argv[1])
loaded = peak()
with open(sys.argv[2], encoding="utf8") as file:
    texts = itertools.cycle(json.load(file))
wanted = characters = int(float(sys.argv[3]) * 1e6)
while characters > 0:
    with nlp.memory_zone():
        for doc in nlp.pipe(text[:characters] for text in itertools.islice(texts, 16)):
            characters -= len(doc.text)
            if characters <= 0:
                break
print(json.dumps({"megabytes": wanted / 1e6, "loaded_rss_mb": loaded, "peak_rss_mb": peak()}))
"""


@dataclass
class Job:
    """What a contender works on. Paths are absolute; those that a benchmark does not use are empty."""

    encoder: str
    docs: str  # .spacy file with the documents, whole
    sentences: list[dict[str, Any]]  # of these documents: words, tags in IOB2, text
    words: int  # in these documents
    package: str = ""
    model: str = ""
    config: str = ""
    code: str = ""
    corpus: str = ""  # folder with train.spacy, dev.spacy
    sentence_docs: str = ""  # .spacy file with a document for each sentence
    dev_sentences: list[dict[str, Any]] = field(default_factory=list)
    epochs: int = 0


@dataclass
class Contender:
    """Something to be timed.

    prepare (Callable[[], Any]): Makes the inputs of a repetition, outside of the clock.
    work (Callable[[Any], Any]): A repetition.
    score (Callable[[Any], float | None]): F of the entities, from 0 to 1, given what the last repetition returned.
    words (int): In a repetition, if they are not all words of the job.
    """

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]
    score: Callable[[Any], float | None] = lambda _: None
    words: int = 0


class Unavailable(Exception):
    """This machine cannot do what a contender does."""


# Annotating


def load_installed(job: Job, **settings: str | int) -> Contender:
    """The installed wheel, with settings of the transformer's model: `precision`, `overlap` of windows."""
    import spacy

    names = {"precision": "precision", "overlap": "get_spans.overlap"}
    config = {f"components.transformer.model.{names[name]}": value for name, value in settings.items()}
    try:
        nlp = spacy.load(job.package, config=config)
    except ValueError as error:
        if str(error).startswith("Precision"):
            raise Unavailable(str(error)) from error
        raise
    return annotate(nlp, Path(job.docs))


def load_spacy_transformers(job: Job) -> Contender:
    """The same weights and heads in the default pipeline of spacy-transformers."""
    from spacy.util import load_model_from_config
    from thinc.api import Config

    from scripts import functions  # noqa: F401 (registers the heads)

    config = Config().from_disk(Path(job.model) / "config.cfg", interpolate=False)
    config["nlp"]["batch_size"] = 64
    config["components"]["transformer"] |= {"max_batch_items": 4096, "model": default_transformer("")}
    config.pop("corpora", None)  # its reader is ours
    config.pop("initialize", None)
    nlp = load_model_from_config(config, auto_fill=True).from_disk(job.model)
    return annotate(nlp, Path(job.docs))


def default_transformer(encoder: str) -> dict[str, Any]:
    """The model of a transformer component as spacy-transformers' documentation and templates have it."""
    return {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": encoder,
        "tokenizer_config": {"use_fast": True},
        "mixed_precision": False,
        "get_spans": {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 128, "stride": 96},
    }


def annotate(nlp: Any, path: Path) -> Contender:
    """Annotate the tokens of a .spacy file by a spaCy pipeline."""
    from spacy.scorer import Scorer
    from spacy.training import Example

    golds = read_docs(path, nlp.vocab)
    return Contender(
        lambda: [bare(gold) for gold in golds],
        lambda docs: list(nlp.pipe(docs)),
        lambda docs: Scorer(nlp).score([Example(*pair) for pair in zip(docs, golds, strict=True)])["ents_f"],
    )


def load_encoder(job: Job, precision: str) -> Contender:
    """The bare encoder on the windows of our pipeline, in batches of about one length: a bound for any pipeline."""
    import numpy as np
    import spacy
    import torch
    from transformers import AutoModel

    from scripts import functions

    try:
        functions.resolve_precision(precision, False)
    except ValueError as error:
        raise Unavailable(str(error)) from error
    nlp = spacy.load(job.model)
    model: Any = dict(nlp.pipeline)["transformer"].model  # type: ignore[attr-defined]
    if precision == "int8":
        encoder = functions._copy_encoder(model.transformer, "int8")
    else:
        encoder = AutoModel.from_config(model.transformer.config, attn_implementation="sdpa").eval()
        encoder.load_state_dict(model.transformer.state_dict())
        encoder.to(getattr(torch, precision))
    windows = [span.text for spans in model.attrs["get_spans"](read_docs(Path(job.docs), nlp.vocab)) for span in spans]
    rows = model.tokenizer(windows, truncation=True, max_length=512)["input_ids"]
    batches = [
        model.tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
        for batch in functions.sub_batches(np.array([len(row) for row in rows]), 1024)
    ]

    @torch.inference_mode()
    def work(batches: list[Any]) -> None:
        for batch in batches:
            encoder(**batch)

    return Contender(lambda: batches, work)


def load_huggingface(job: Job, batch_size: int) -> Contender:
    """The pipeline of Hugging Face's transformers, on sentences."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    labels = label_names(job.sentences)
    model = AutoModelForTokenClassification.from_pretrained(
        job.encoder, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    find_nothing(model.classifier, labels.index("O"))
    find = pipeline(
        "token-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job.encoder),
        aggregation_strategy="simple",
        batch_size=batch_size,
        device="cpu",
    )
    texts = [sentence["text"] for sentence in job.sentences]
    return Contender(lambda: texts, find)


def load_flair(job: Job) -> Contender:
    """Flair's tagger, fine-tuning style: a linear layer over the encoder."""
    import flair
    import torch
    from flair.data import Dictionary, Sentence
    from flair.embeddings import TransformerWordEmbeddings
    from flair.models import SequenceTagger

    flair.device = torch.device("cpu")
    labels = Dictionary(add_unk=False)
    labels.span_labels = True
    for name in sorted({label[2:] for label in label_names(job.sentences)} - {""}):
        labels.add_item(name)
    tagger = SequenceTagger(
        hidden_size=256,
        embeddings=TransformerWordEmbeddings(
            job.encoder, layers="-1", subtoken_pooling="first", fine_tune=True, use_context=False
        ),
        tag_dictionary=labels,
        tag_type="ner",
        use_crf=False,
        use_rnn=False,
        reproject_embeddings=False,
    )
    find_nothing(tagger.linear, tagger.label_dictionary.get_idx_for_item("O"))
    return Contender(
        lambda: [Sentence(sentence["words"]) for sentence in job.sentences],
        lambda sentences: tagger.predict(sentences, mini_batch_size=32),
    )


def load_span_marker(job: Job) -> Contender:
    """SpanMarker, with its usual limits."""
    from span_marker import SpanMarkerModel

    labels = ["O", *sorted({label[2:] for label in label_names(job.sentences)} - {""})]
    model = SpanMarkerModel.from_pretrained(job.encoder, labels=labels, model_max_length=256, entity_max_length=8)
    find_nothing(model.classifier, 0)
    # it is so slow that a tenth has to do
    sentences = [sentence["words"] for sentence in job.sentences[: -(-len(job.sentences) // 10)]]
    words = sum(map(len, sentences))
    return Contender(lambda: sentences, lambda sentences: model.predict(sentences, batch_size=32), words=words)


def find_nothing(linear: Any, index: int) -> None:
    """Make an untrained classifier give one class always: random entities would cost time that is not its own."""
    linear.weight.data.zero_()
    linear.bias.data.zero_()
    linear.bias.data[index] = 1.0


# Training


def load_ours(job: Job) -> Contender:
    """This project's config, with all its heads."""
    from spacy.cli._util import import_code
    from spacy.util import load_config

    from scripts.train import derive

    import_code(job.code)
    epochs = str(job.epochs) if job.epochs else "auto"
    overrides = derive(Path(job.config), Path(job.corpus, "train.spacy"), Path(job.encoder), epochs, "auto", "auto")
    overrides |= {"paths.train": job.docs, "paths.dev": str(Path(job.corpus, "dev.spacy"))}
    return train_spacy(load_config(job.config, overrides=overrides), job)


def load_explosion(job: Job) -> Contender:
    """Explosion's benchmark of this corpus, `benchmarks/ner_conll03`, with this encoder: sentence by sentence."""
    from spacy.training import Corpus
    from spacy.util import registry
    from thinc.api import Config

    config = Config(explosion_config(job))
    if job.epochs:
        import spacy

        examples = list(Corpus(job.sentence_docs, max_length=500)(spacy.blank("en")))
        batcher = registry.resolve({"batcher": config["training"]["batcher"]})["batcher"]
        steps = job.epochs * sum(1 for _ in batcher(examples))
        config["training"]["optimizer"]["learn_rate"] |= {"warmup_steps": min(250, steps // 10), "total_steps": steps}
    return train_spacy(config, job, by_sentence=True)


def explosion_config(job: Job) -> dict[str, Any]:
    """The settings of that benchmark. Its augmenter is left out: it needs a file."""
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
                "model": default_transformer(job.encoder),
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


def train_spacy(config: Any, job: Job, by_sentence: bool = False) -> Contender:
    """spaCy's own training loop, for one pass or the epochs of the job; no evaluation but the last.

    config (Config): The training config.
    job (Job): What to train on.
    by_sentence (bool): Whether to evaluate sentence by sentence too, and take the better score.
    """
    from spacy.schemas import ConfigSchemaTraining
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train_while_improving
    from spacy.util import registry, resolve_dot_names
    from thinc.api import fix_random_seed

    nlp = init_nlp(config)
    fix_random_seed(0)
    config = nlp.config.interpolate()
    training = registry.resolve(config["training"], schema=ConfigSchemaTraining)
    read, read_dev = resolve_dot_names(config, [training["train_corpus"], training["dev_corpus"]])
    optimizer = training["optimizer"]
    passes = max(1, job.epochs)

    def batches(examples: list[Any]) -> Iterator[tuple[int, Any]]:
        words = sum(map(len, examples)) * passes
        seen = 0
        for epoch in range(passes):
            random.shuffle(examples)
            for batch in training["batcher"](examples):
                yield epoch, batch
                seen += sum(map(len, batch))
                tell(progress=seen / words)

    def work(examples: list[Any]) -> None:
        for _ in train_while_improving(
            nlp,
            optimizer,
            batches(examples),
            lambda: (0.0, {}),
            dropout=training["dropout"],
            eval_frequency=sys.maxsize,
            accumulate_gradient=training["accumulate_gradient"],
            patience=0,
            max_steps=0,
            exclude=[],
            annotating_components=[],
            before_update=None,
        ):
            pass

    def score(_: Any) -> float | None:
        if not job.epochs:
            return None
        with nlp.use_params(optimizer.averages or {}):
            whole = nlp.evaluate(list(read_dev(nlp)))["ents_f"]
            if not by_sentence:
                return float(whole)
            return float(max(whole, nlp.evaluate(sentence_examples(nlp, Path(job.corpus, "dev.spacy")))["ents_f"]))

    return Contender(lambda: list(read(nlp)), work, score)


def load_trainer(job: Job) -> Contender:
    """Hugging Face's Trainer with the settings of its example run_ner, in float32, sentence by sentence."""
    import accelerate  # noqa: F401
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(0)
    labels = label_names(job.sentences)
    tokenizer = AutoTokenizer.from_pretrained(job.encoder)
    model = AutoModelForTokenClassification.from_pretrained(job.encoder, num_labels=len(labels))

    class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(progress=state.global_step / state.max_steps)

    def trainer(sentences: list[dict[str, Any]]) -> Any:
        return Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(Path(job.docs).parent / "trainer"),
                per_device_train_batch_size=8,
                num_train_epochs=max(1, job.epochs),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=0,
            ),
            train_dataset=wordpieces(sentences, tokenizer, labels),
            data_collator=DataCollatorForTokenClassification(tokenizer),
            callbacks=[Progress()],
        )

    def score(_: Any) -> float | None:
        if not job.epochs:
            return None
        from seqeval.metrics import f1_score
        from seqeval.scheme import IOB2

        result = trainer([]).predict(wordpieces(job.dev_sentences, tokenizer, labels))
        predicted = []
        for row, wanted in zip(result.predictions.argmax(-1), result.label_ids, strict=True):
            predicted.append([labels[i] for i, label in zip(row, wanted, strict=True) if label != -100])
        gold = [sentence["tags"] for sentence in job.dev_sentences]
        return float(f1_score(gold, predicted, mode="strict", scheme=IOB2))

    return Contender(lambda: trainer(job.sentences), lambda trainer: trainer.train(), score)


def wordpieces(sentences: list[dict[str, Any]], tokenizer: Any, labels: list[str]) -> list[dict[str, Any]]:
    """Sentences for Hugging Face: the label of a word at its first wordpiece; elsewhere -100, which is no label."""
    rows = []
    for sentence in sentences:
        encoded = tokenizer(sentence["words"], is_split_into_words=True, truncation=True)
        words = encoded.word_ids()
        first = [word is not None and (i == 0 or words[i - 1] != word) for i, word in enumerate(words)]
        targets = [
            labels.index(sentence["tags"][word]) if is_first else -100
            for word, is_first in zip(words, first, strict=True)
        ]
        rows.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": targets})
    return rows


SPEED: dict[str, Callable[[Job], Contender]] = {
    REFERENCE: load_spacy_transformers,
    "default": load_installed,
    "float32": lambda job: load_installed(job, precision="float32"),
    "bfloat16": lambda job: load_installed(job, precision="bfloat16"),
    "int8": lambda job: load_installed(job, precision="int8"),
    "int8-overlap-16": lambda job: load_installed(job, precision="int8", overlap=16),
    "encoder-float32": lambda job: load_encoder(job, "float32"),
    "encoder-bfloat16": lambda job: load_encoder(job, "bfloat16"),
    "encoder-int8": lambda job: load_encoder(job, "int8"),
    "huggingface-8": lambda job: load_huggingface(job, 8),
    "huggingface-32": lambda job: load_huggingface(job, 32),
    "flair": load_flair,
    "span-marker": load_span_marker,
}
TRAINING: dict[str, Callable[[Job], Contender]] = {
    "ours": load_ours,
    "explosion": load_explosion,
    "huggingface": load_trainer,
}
PEER_NAMES = ("flair", "span-marker")


# Documents


def read_docs(path: Path, vocab: Any, number: int = 0) -> list[Any]:
    """The first documents of a .spacy file, or, if `number` is 0, all."""
    from spacy.tokens import DocBin

    docs = list(DocBin().from_disk(path).get_docs(vocab))
    return docs[:number] if number else docs


def bare(doc: Any) -> Any:
    """A copy of a Doc's tokens, without annotation."""
    from spacy.tokens import Doc

    return Doc(doc.vocab, words=[token.text for token in doc], spaces=[bool(token.whitespace_) for token in doc])


def sentence_examples(nlp: Any, path: Path) -> list[Any]:
    """An Example for each sentence of a .spacy file."""
    from spacy.training import Example

    golds = [sent.as_doc() for doc in read_docs(path, nlp.vocab) for sent in doc.sents]
    return [Example(bare(gold), gold) for gold in golds]


def split_sentences(docs: Iterable[Any]) -> list[dict[str, Any]]:
    """The sentences of gold Docs: words, tags in IOB2, text."""
    return [
        {
            "words": [token.text for token in sent],
            "tags": [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in sent],
            "text": sent.text,
        }
        for doc in docs
        for sent in doc.sents
    ]


def label_names(sentences: list[dict[str, Any]]) -> list[str]:
    """The tags in IOB2 of all kinds of entities that occur: `O` first, then B- and I- of each."""
    kinds = sorted({tag[2:] for sentence in sentences for tag in sentence["tags"] if tag != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def make_job(path: Path, number: int, folder: Path, encoder: Path, sentence_docs: bool = False) -> Job:
    """Write the first documents of a .spacy file, and where they are wanted those of each sentence, in a folder."""
    import spacy
    from spacy.tokens import DocBin

    docs = read_docs(path, spacy.blank("en").vocab, number)
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "docs.spacy")
    job = Job(str(encoder.resolve()), str(folder / "docs.spacy"), split_sentences(docs), sum(map(len, docs)))
    if sentence_docs:
        DocBin(docs=[sent.as_doc() for doc in docs for sent in doc.sents]).to_disk(folder / "sentences.spacy")
        job.sentence_docs = str(folder / "sentences.spacy")
    return job


# Processes


ANSWERS: IO[str] | None = None


def tell(**answer: Any) -> None:
    """Write a line of JSON to the parent process, if this is a worker."""
    if ANSWERS:
        print(json.dumps(answer), file=ANSWERS, flush=True)


def worker(benchmark: str, name: str, path: Path) -> None:
    """Be a contender: see the head of this file."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)  # what libraries print is no answer
    job = Job(**read_json(path))
    try:
        contender = {"speed": SPEED, "training": TRAINING}[benchmark][name](job)
    except Unavailable as error:
        return tell(unavailable=str(error))
    except ImportError as error:
        return tell(missing=error.name or str(error))
    if not job.epochs:
        contender.work(contender.prepare())
    tell(ready=True)
    output = None
    for _ in sys.stdin:
        inputs, output = contender.prepare(), None
        gc.collect()
        began = time.perf_counter()
        output = contender.work(inputs)
        tell(seconds=time.perf_counter() - began, words=(contender.words or job.words) * max(1, job.epochs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before scoring
    tell(f=contender.score(output), peak_rss_mb=round(peak), versions=worker_versions())


def worker_versions() -> dict[str, str]:
    """As `installed`, with what only contenders use."""
    found = installed()
    for name in ("accelerate", "flair", "span-marker", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Worker:
    """A contender's process.

    name (str): Of the contender.
    command (list[str]): What to run.
    target (Path): Folder with the installed wheel.
    """

    def __init__(self, name: str, command: list[str], target: Path) -> None:
        self.name = name
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(target),
        }
        environment.pop("BERT_NER_PRECISION", None)  # it would overrule what a contender asks for
        self.errors = tempfile.TemporaryFile("w+", encoding="utf8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def answer(self, show: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """The next answer.

        show (Callable[[float], None]): Called with the share that is done, from 0 to 1, whenever there is news of it.
        RAISES (StepError): If the process ended without one, or lacks a library.
        """
        assert self.process.stdout
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "missing" in answer:
                peer = self.name in PEER_NAMES
                where = f"{PEERS} (make bench does, in .venv-peers)" if peer else BENCH
                raise StepError(f"{self.name} needs {answer['missing']}.", f"pip install -r {where}, or leave it out")
            if "progress" not in answer:
                return answer
            show(answer["progress"])
        self.errors.seek(0)
        last = "\n".join(self.errors.read().strip().splitlines()[-15:])
        raise StepError(f"The contender {self.name} ended before its time.", last)

    def ask(self, show: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Run one repetition. RETURNS (dict[str, Any]): `seconds` and `words`."""
        assert self.process.stdin
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # why, answer says
        return self.answer(show)

    def finish(self) -> dict[str, Any]:
        """End it. RETURNS (dict[str, Any]): `f`, `peak_rss_mb`, `versions`."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream and not stream.closed:
                stream.close()


def worker_command(benchmark: str, name: str, job: Path, peers: Path | None) -> list[str]:
    """The command line of a contender.

    RAISES (StepError): If it needs an environment that is not there.
    """
    python = Path(sys.executable)
    if name in PEER_NAMES and peers:
        if not peers.exists():
            raise StepError(
                f"{name} needs an environment of its own, {peers}.",
                "make bench makes it; or: make .venv-peers/installed",
            )
        python = peers.absolute()  # not resolved: the link is what makes it another environment
    return [str(python), "-W", "ignore", "-m", "scripts.benchmark", "worker", benchmark, name, str(job)]


def compete(commands: dict[str, list[str]], repetitions: int, target: Path) -> dict[str, dict[str, Any]]:
    """Let contenders run in turns.

    commands (dict[str, list[str]]): By name.
    repetitions (int): Of each, besides one to warm up.
    target (Path): Folder with the installed wheel.
    RETURNS (dict[str, dict[str, Any]]): By name `repetitions`, `f`, `peak_rss_mb`, `versions`, or `unavailable`.
    """
    results: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    total = len(commands) * (repetitions + 1)
    with ExitStack() as stack, tqdm.tqdm(total=total, unit="pass", disable=None) as bar:
        for name, command in commands.items():
            bar.set_description(f"{name}: loading")
            worker = stack.enter_context(Worker(name, command, target))
            results[name] = worker.answer()
            bar.update()
            if results[name].pop("ready", False):
                workers[name] = worker
                results[name]["repetitions"] = []
        for i in range(repetitions):
            for name, worker in workers.items():
                bar.set_description(f"{name}: repetition {i + 1}")
                results[name]["repetitions"].append(worker.ask())
                bar.update()
        for name, worker in workers.items():
            results[name] |= worker.finish()
    return results


# Results


def summarize(results: dict[str, dict[str, Any]], reference: str) -> None:
    """Add median, minimum and maximum of words a second, and the ratio of medians to the reference, to each result.

    results (dict[str, dict[str, Any]]): As `compete` returns it; those without repetitions stay as they are.
    reference (str): A name; if it has no repetitions there are no ratios.
    """
    for result in results.values():
        if result.get("repetitions"):
            rates = [once["words"] / once["seconds"] for once in result["repetitions"]]
            result["words_per_second"] = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    medians = {
        name: result["words_per_second"]["median"] for name, result in results.items() if "repetitions" in result
    }
    if reference in medians:
        for name, median in medians.items():
            results[name][f"ratio_to_{reference}"] = median / medians[reference]


def encoder_shares(results: dict[str, dict[str, Any]], default: str) -> None:
    """Add to each run of our pipeline its share of the speed of the bare encoder in the same precision.

    default (str): The precision of the default settings.
    """
    for name, precision in {"default": default, **{name: name for name in PRECISIONS}}.items():
        ours, bare = (results.get(key, {}).get("words_per_second") for key in (name, f"encoder-{precision}"))
        if ours and bare:
            results[name]["share_of_bare_encoder"] = ours["median"] / bare["median"]


def machine() -> dict[str, Any]:
    """Processor, what it can do, threads that PyTorch uses, Python, versions."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name") or platform.processor(),
        "cpus": os.cpu_count(),
        "capabilities": sorted(name for name, has in capabilities.items() if has is True),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": worker_versions(),
    }


def choose(names: Iterable[str], only: str) -> list[str]:
    """The names asked for, in the order of all.

    only (str): Names with commas between, or empty for all.
    RAISES (StepError): If there is no such name.
    """
    names = list(names)
    asked = [name.strip() for name in only.split(",") if name.strip()] or names
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise StepError(f"There is no contender {', '.join(unknown)}.", f"Choose with --only among {', '.join(names)}")
    return [name for name in names if name in asked]


def show(results: dict[str, dict[str, Any]], reference: str) -> None:
    """Print a table: words a second, the ratio to the reference, F, memory."""
    rows = []
    for name, result in results.items():
        if "words_per_second" not in result:
            rows.append((name, "unavailable", "", "", "", ""))
            continue
        ratio, share = (result.get(key) for key in (f"ratio_to_{reference}", "share_of_bare_encoder"))
        rows.append(
            (
                name,
                f"{result['words_per_second']['median']:,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if share is None else f"{100 * share:.0f} %",
                "" if result["f"] is None else f"{100 * result['f']:.1f}",
                f"{result['peak_rss_mb']:,}",
            )
        )
    header = ("contender", "words/s", f"to {reference}", "of bare encoder", "F", "peak MB")
    msg.table(rows, header=header, divider=True, aligns=("l", "r", "r", "r", "r", "r"))


def measure_starts(package: str, target: Path, repetitions: int) -> dict[str, Any]:
    """Seconds to import, to load and to the first entity, and of one warm sentence.

    package (str): Name of the package.
    target (Path): Folder where it is installed.
    RETURNS (dict[str, Any]): Every repetition, medians, and p50 and p99 of a sentence, all in seconds.
    """
    runs: list[dict[str, float]] = []
    calls: list[float] = []
    for _ in tqdm.tqdm(range(repetitions), desc="starts", unit="pass", disable=None):
        began = time.perf_counter()
        start = json.loads(python_elsewhere(["-c", START, package, SENTENCE], target))
        start["process_to_first_entity"] = time.perf_counter() - began
        warm = json.loads(python_elsewhere(["-c", LATENCY, package, SENTENCE], target))
        calls += warm.pop("calls")
        runs.append(start | warm)
    percentiles = statistics.quantiles(calls, n=100, method="inclusive")
    return {
        "repetitions": runs,
        "medians": {key: statistics.median(once[key] for once in runs) for key in runs[0]},
        "sentence": {"text": SENTENCE, "calls": len(calls), "p50": percentiles[49], "p99": percentiles[98]},
    }


def measure_memory(package: str, target: Path, job: Job, megabytes: list[float], folder: Path) -> list[dict[str, Any]]:
    """Peak memory of annotating much text as a stream, each amount in a process of its own.

    megabytes (list[float]): Amounts of text, in millions of characters.
    folder (Path): For the texts: documents of about 10,000 characters.
    """
    text = " ".join(sentence["text"] for sentence in job.sentences)
    text *= -(-10_000 // len(text))
    texts = folder / "texts.json"
    texts.write_text(json.dumps([text[i : i + 10_000] for i in range(0, len(text), 10_000)]), encoding="utf8")
    bar = tqdm.tqdm(megabytes, desc="memory", unit="process", disable=None)
    return [json.loads(python_elsewhere(["-c", MEMORY, package, str(texts), str(amount)], target)) for amount in bar]


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot words a second against F; a dotted line for what has no F."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, result in results.items():
        if "words_per_second" not in result:
            continue
        rate = result["words_per_second"]["median"]
        if result["f"] is None:
            axes.axvline(rate, linestyle=":", color="0.7", zorder=0)
            axes.text(rate, 0.02, f" {name}", rotation=90, color="0.4", transform=axes.get_xaxis_transform())
        else:
            axes.plot(rate, 100 * result["f"], "o")
            axes.annotate(f" {name}", (rate, 100 * result["f"]))
    axes.set(xlabel="words per second", ylabel="F of entities, %", xscale="log")
    axes.margins(0.1, 0.3)
    figure.savefig(path)
    plt.close(figure)


@writes("metrics", "speed.json", "speed.svg")
def speed(
    packages: Annotated[Path, typer.Argument(help="Folder of the run's packages; the newest is taken", exists=True)],
    model: Annotated[Path, typer.Argument(help="The pipeline it was made from", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for speed.json and speed.svg")],
    documents: Annotated[int, typer.Option(help="How many of dev, from the first; 0 for all", min=0)] = 100,
    repetitions: Annotated[int, typer.Option(help="Of each contender", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
    peers: Annotated[Path | None, typer.Option(help="Python of the environment of other libraries")] = None,
    memory: Annotated[str, typer.Option(help="Megabytes of text to measure memory on, with commas between")] = "1,5",
) -> None:
    """Measure how fast the installed wheel annotates, beside other ways to use its encoder."""
    names = choose(SPEED, only)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target = folder / "target"
        job = make_job(corpus / "dev.spacy", documents, folder, encoder)
        wheel = newest_wheel(packages)
        job.package = install(wheel, target)
        job.model = str(model.resolve())
        write_json(folder / "job.json", asdict(job))
        commands = {name: worker_command("speed", name, folder / "job.json", peers) for name in names}
        contenders = compete(commands, repetitions, target)
        summarize(contenders, REFERENCE)
        encoder_shares(contenders, default_precision())
        record = {
            "documents": documents or "all",
            "words": job.words,
            "sentences": len(job.sentences),
            "reference": REFERENCE,
            "default_precision": default_precision(),
            "machine": machine(),
            "made_from": {"wheel": sha256(wheel), "encoder": sha256(encoder), "dev": sha256(corpus / "dev.spacy")},
            "model": read_json(model / "origin.json").get("made_from", {}),
            "contenders": contenders,
        }
        write_json(metrics / "speed.json", record)
        record["starts"] = measure_starts(job.package, target, repetitions)
        amounts = [float(part) for part in memory.split(",") if part.strip()]
        record["memory"] = measure_memory(job.package, target, job, amounts, folder)
        write_json(metrics / "speed.json", record)
    draw(contenders, metrics / "speed.svg")
    show(contenders, REFERENCE)
    starts = record["starts"]
    seconds = {f"seconds, {key.replace('_', ' ')}": value for key, value in starts["medians"].items()}
    sentence = {f"milliseconds, one sentence, {key}": 1000 * starts["sentence"][key] for key in ("p50", "p99")}
    peaks = {f"MB at most, annotating {once['megabytes']:g} MB": once["peak_rss_mb"] for once in record["memory"]}
    msg.table({key: f"{value:,.2f}" for key, value in (seconds | sentence | peaks).items()}, aligns=("l", "r"))
    msg.good(f"Wrote {metrics / 'speed.json'}")


@writes("metrics", "service.json")
def service(
    model: Annotated[Path, typer.Argument(help="The pipeline", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for service.json")],
    clients: Annotated[int, typer.Option(help="How many ask at the same time", min=1)] = 50,
    seconds: Annotated[float, typer.Option(help="For how long")] = 60,
) -> None:
    """Measure how the service bears many clients who ask for the entities of a sentence again and again."""
    with start_service(model) as (address, process):
        press(address, clients, min(5, seconds))  # afterwards memory should not grow any more
        before = memory_of(process.pid)
        answers = press(address, clients, seconds)
        after = memory_of(process.pid)
    times = sorted(taken for status, taken in answers if status == 200)
    if not times:
        raise StepError("The service answered nothing.", f"Try it: python -m scripts.serve {model}")
    record = {
        "clients": clients,
        "seconds": seconds,
        "statuses": {str(status): sum(found == status for found, _ in answers) for status in {s for s, _ in answers}},
        "answers_per_second": len(times) / seconds,
        "seconds_p50": times[len(times) // 2],
        "seconds_p95": times[int(0.95 * len(times))],
        "rss_mb": {"before": before, "after": after},
        "machine": machine(),
        "model": read_json(model / "origin.json").get("made_from", {}),
    }
    write_json(metrics / "service.json", record)
    shown = {
        key: str(record[key]) for key in ("statuses", "answers_per_second", "seconds_p50", "seconds_p95", "rss_mb")
    }
    msg.table(shown, aligns=("l", "r"))
    msg.good(f"Wrote {metrics / 'service.json'}")


@contextmanager
def start_service(model: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The service in a process of its own, ready, and interrupted in the end.

    YIELDS (tuple[str, subprocess.Popen[str]]): Its address and the process.
    RAISES (StepError): If it does not start.
    """
    import requests

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scripts.serve", str(model.resolve()), "--port", str(port)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(requests.ConnectionError):
                    if requests.get(f"http://127.0.0.1:{port}/ready", timeout=5).ok:
                        break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise StepError("The service does not start.", "\n".join(log.read().splitlines()[-15:]))
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGINT)


def press(address: str, clients: int, seconds: float) -> list[tuple[int, float]]:
    """Let clients ask the service, each again as soon as it is answered, or when it is told to come again.

    RETURNS (list[tuple[int, float]]): For each answer its status, 0 for none, and the seconds it took.
    """
    import requests

    end = time.monotonic() + seconds

    def ask() -> list[tuple[int, float]]:
        answers = []
        with requests.Session() as session:
            while time.monotonic() < end:
                began = time.perf_counter()
                status, wait = 0, 0.0
                with suppress(requests.RequestException):
                    response = session.post(f"{address}/v1/entities", json={"texts": [SENTENCE]}, timeout=120)
                    status, wait = response.status_code, float(response.headers.get("Retry-After", 0))
                answers.append((status, time.perf_counter() - began))
                time.sleep(wait)
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for done in [pool.submit(ask) for _ in range(clients)] for answer in done.result()]


def memory_of(pid: int) -> float:
    """Resident memory of a process in megabytes."""
    import psutil

    return float(round(psutil.Process(pid).memory_info().rss / 2**20, 1))


def default_precision() -> str:
    """The precision that our pipeline takes on this machine if none is asked for."""
    from scripts.functions import resolve_precision

    return resolve_precision("auto", False)


@writes("metrics", "training.json", "training-full.json")
def training(
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Folder of the encoder", exists=True)],
    metrics: Annotated[Path, typer.Argument(help="Folder for training.json, or training-full.json")],
    code: Annotated[Path, typer.Option(help="Python file with registered functions", exists=True)],
    documents: Annotated[int, typer.Option(help="How many to train on, from the first; 0 for all", min=0)] = 100,
    repetitions: Annotated[int, typer.Option(help="Of each contender", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Train on all, from scratch, for so many, and score", min=0)] = 0,
    only: Annotated[str, typer.Option(help="Some contenders, with commas between")] = "",
) -> None:
    """Measure how fast this project's config trains, beside spaCy's own and Hugging Face's."""
    import spacy

    from scripts.train import prepare

    names = choose(TRAINING, only)
    path = metrics / ("training-full.json" if epochs else "training.json")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = make_job(corpus / "train.spacy", 0 if epochs else documents, folder, encoder, sentence_docs=True)
        job.config, job.code, job.corpus = (str(part.resolve()) for part in (config, code, corpus))
        job.epochs = epochs
        if epochs:
            job.dev_sentences = split_sentences(read_docs(corpus / "dev.spacy", spacy.blank("en").vocab))
        write_json(folder / "job.json", asdict(job))
        commands = {name: worker_command("training", name, folder / "job.json", None) for name in names}
        record = {
            "documents": "all" if epochs or not documents else documents,
            "words": job.words,
            "sentences": len(job.sentences),
            "epochs": epochs,
            "machine": machine(),
            "made_from": prepare(config, corpus, encoder, code, str(epochs) if epochs else "auto")[0],
            "contenders": {},
        }
        contenders: dict[str, dict[str, Any]] = {}
        rounds = [{name: command} for name, command in commands.items()] if epochs else [commands]
        for group in rounds:
            contenders |= train_whole(group, folder) if epochs else compete(group, repetitions, folder)
            summarize(contenders, names[0])
            write_json(path, record | {"reference": names[0], "contenders": contenders})
    show(contenders, names[0])
    msg.good(f"Wrote {path}")


def train_whole(commands: dict[str, list[str]], target: Path) -> dict[str, dict[str, Any]]:
    """Let contenders train all their epochs, one after the other. RETURNS: As `compete`."""
    results = {}
    for name, command in commands.items():
        with Worker(name, command, target) as worker, tqdm.tqdm(total=100, desc=name, unit="%", disable=None) as bar:
            worker.answer()
            once = worker.ask(lambda done, bar=bar: bar.update(int(100 * done) - bar.n))  # type: ignore[misc]
            bar.set_description(f"{name}: scoring")
            results[name] = {"repetitions": [once], **worker.finish()}
    return results


if __name__ == "__main__":
    run(speed, service, training, hidden=worker)
