"""Synthetic texts: what language models, or names put in other places, add to a training corpus.

A language model is asked for plain text, and it never labels what was asked for: names are found again by exact match.
All that it answers is data. It is looked at by rules, counted, and mostly thrown away.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tqdm
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from wasabi import msg

from bert_ner.corpus import collect_names, rename
from common.alignment import align
from common.annotations import Span
from common.chat import Chat, ChatError, UnusableError, find_chat
from common.corpora import kind_of
from common.errors import StepError
from common.llama import find_model, serve_model
from common.records import digest
from common.scoring import create_raw_doc
from common.similarity import NEAR, compare, sketch

GRAM = 8  # words in a row that two texts do not share by chance
FEWEST = 20  # names after which the shares of the labels are looked at
UNUSABLE = 20  # unusable answers in a row, after which an endpoint has nothing to give
IN_VAIN = 200  # answers in a row of which nothing was kept, after which a model has nothing new to say
PASSES = 4  # of renaming, each of which replaces a third of the names
ENTRY = {"request", "answer", "problem", "prompt_tokens", "answer_tokens", "seconds"}  # what is read of a log
# Why a text is not kept, in the order in which it is looked at.
REASONS = {
    "unusable": "the endpoint gave an empty answer, or none that can be read",
    "format": "no whole sentence, or marks that cannot be read",
    "lost": "a name is missing or changed",
    "repeated": "a name stands there more than once",
    "invented": "it has a name that was not asked for",
    "length": "too short or too long",
    "language": "too few of its words are known from the corpus",
    "held out": "it has words in a row of dev or test, or is nearly the same",
    "copied": "it has words in a row of train, or is nearly the same",
    "duplicate": "nearly the same as one that was kept",
    "balance": "its label has more than its share already",
    "disagreement": "the judge finds other names",
}


class Method(StrEnum):
    """How texts are made."""

    around_names = "around-names"
    marked = "marked"
    rewrite = "rewrite"
    recombine = "recombine"


# Settings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Strict):
    """What a label means, in words for a language model."""

    noun: str
    guideline: str
    examples: list[str] = []


class Price(_Strict):
    """Of a million tokens."""

    prompt: Annotated[float, Field(ge=0)] = 0
    answer: Annotated[float, Field(ge=0)] = 0


class Settings(_Strict):
    """As configs/synthesize.yml explains them."""

    labels: dict[str, Label]
    topics: Annotated[list[str], Field(min_length=1)]
    forms: Annotated[list[str], Field(min_length=1)]
    parameters: dict[str, int | float]
    names: Annotated[int, Field(ge=1)]
    examples: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    parallel: Annotated[int, Field(ge=1)]
    words: tuple[int, int]
    known: Annotated[float, Field(ge=0, le=1)]
    most: Annotated[float, Field(gt=0, le=1)]
    disagreement: Literal["drop", "keep", "mark"]
    requests: int | None
    tokens: int | None
    minutes: float | None
    money: float | None
    price: Price
    timeout: Annotated[float, Field(gt=0)]
    attempts: Annotated[int, Field(ge=1)]

    def prompting(self) -> dict[str, Any]:
        """What decides the prompts and the answers; the rest can be changed without asking again."""
        return self.model_dump(
            include={"labels", "topics", "forms", "parameters", "names", "examples", "batch"}, mode="json"
        )


def read_settings(path: Path) -> Settings:
    """Read the settings of `synthesize`.

    path (Path): Such as configs/synthesize.yml.
    RETURNS (Settings): The settings.
    RAISES (StepError): If it is no YAML, or if a setting is missing, unknown or of another kind; with its name.
    """
    remedy = "configs/synthesize.yml has all settings, and explains them."
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text("utf8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StepError(f"{path} is not valid YAML: {error}", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "all of it"
        raise StepError(f"{path}, {name}: {first['msg']}.", remedy) from error


# What train gives


class Named(NamedTuple):
    """A text and its names, each with its label."""

    text: str
    names: tuple[tuple[str, str], ...]


class Seeds:
    """What prompts are made of. All of it comes from train.

    train (Sequence[Doc]): The documents, with sentences and entities.

    sentences (list[Named]): The sentences of prose that have a name, each name once, written as their author would.
    pools (dict[str, list[str]]): By label the names that occur in prose, each once.
    ordinary (set[str]): The words of prose that stand in no name, as they are written.
    """

    def __init__(self, train: Sequence[Doc]) -> None:
        sentences = [sent for doc in train for sent in doc.sents if kind_of(sent) == "prose"]
        bar = tqdm.tqdm(sentences, "looking for names", unit="sentence", disable=None, leave=False)
        prose = [create_raw_doc(sent.as_doc()) for sent in bar]
        found = (Named(doc.text.strip(), tuple((ent.text, ent.label_) for ent in doc.ents)) for doc in prose)
        self.sentences = [one for one in found if one.names and isinstance(locate(one), list)]
        self.pools = {
            label: sorted({name.text for name in names})
            for (label, small), names in sorted(collect_names(prose).items())
            if not small
        }
        within = {token.text for doc in prose for ent in doc.ents for token in ent}
        self.ordinary = {token.text for doc in prose for token in doc if not token.ent_type_} - within


def check_labels(seeds: Seeds, settings: Settings) -> None:
    """Make sure that train has names in prose, and that the settings know their labels. RAISES (StepError): If not."""
    if not seeds.sentences:
        raise StepError("train has no sentence of prose with a name.", "Synthetic texts are made from such sentences.")
    if unknown := sorted(seeds.pools.keys() - settings.labels.keys()):
        raise StepError(
            f"The settings of synthesis do not say what the label {unknown[0]} means.",
            "Add it under labels, in the file that the variable synthesis names.",
        )


class Prompt(NamedTuple):
    """What is asked, and the names that the answer has to have; None if the answer marks them."""

    text: str
    names: tuple[tuple[str, str], ...] | None


def write_prompt(method: Method, seeds: Seeds, settings: Settings, number: int, seed: int) -> Prompt:
    """Write a prompt.

    method (Method): One that asks a language model.
    seeds (Seeds): Names and sentences.
    settings (Settings): The settings.
    number, seed (int): Of the prompt and of all of them, which decide what is drawn.
    RETURNS (Prompt): The prompt.
    """
    draw = random.Random(f"{seed} {number}")
    several = settings.batch > 1
    lines = ", one in each line" if several else ""
    about = f"of {draw.choice(settings.forms)} about {draw.choice(settings.topics)}"
    if method == Method.rewrite:
        sentence = draw.choice(seeds.sentences)
        names = " and ".join(dict.fromkeys(name for name, _ in sentence.names))
        how = f"in {settings.batch} different ways{lines}" if several else "in other words"
        return Prompt(f"Write this sentence {how}. Keep {names} unchanged.\n\n{sentence.text}", sentence.names)
    what = f"{settings.batch} different sentences" if several else "one sentence"
    if method == Method.around_names:
        chosen = _draw_names(draw, seeds.pools, draw.randint(1, settings.names))
        named = " and ".join(f"the {settings.labels[label].noun} {name}" for name, label in chosen)
        mentions = f"{lines}. Each of them mentions" if several else " that mentions"
        return Prompt(f"Write {what} {about}{mentions} {named}.", chosen)
    guidelines = "\n".join(
        f"{label}: {meaning.guideline}" + (f" Such as: {', '.join(meaning.examples)}." if meaning.examples else "")
        for label, meaning in settings.labels.items()
    )
    examples = "\n".join(map(mark, draw.sample(seeds.sentences, min(settings.examples, len(seeds.sentences)))))
    return Prompt(
        f"Names in a text are marked by their kind:\n{guidelines}\n\nExamples:\n{examples}\n\n"
        f"Write {what} {about}{lines}, with other names, and mark all names in the same way.",
        None,
    )


def _draw_names(draw: random.Random, pools: dict[str, list[str]], number: int) -> tuple[tuple[str, str], ...]:
    """Draw names that share no word, since a shared one could not be told apart when they are found again."""
    chosen: list[tuple[str, str]] = []
    for _ in range(number):
        label = draw.choice(sorted(pools))
        name = draw.choice(pools[label])
        if not any({*re.findall(r"\w+", name.lower())} & {*re.findall(r"\w+", other.lower())} for other, _ in chosen):
            chosen.append((name, label))
    return tuple(chosen)


def mark(sentence: Named) -> str:
    """Write a sentence with its names marked, as `[PER Mira Solberg]`. RETURNS (str): One line."""
    spans = locate(sentence)
    assert not isinstance(spans, str)
    text = sentence.text
    for span in reversed(spans):
        text = f"{text[: span.start]}[{span.label} {text[span.start : span.end]}]{text[span.end :]}"
    return " ".join(text.split())


# What comes back


def split_answer(answer: str) -> list[str]:
    """Split an answer into the texts in it: its lines, without numbers, bullets and quotes around them."""
    lines = (re.sub(r"^\s*(?:\d+[.)]|[-*\u2022])\s+", "", line).strip() for line in answer.splitlines())
    unquoted = (re.sub(r'^["\u201c](.+)["\u201d]$', r"\1", line) for line in lines)
    return [line for line in unquoted if line]


def read_marks(line: str, labels: Iterable[str]) -> Named | str:
    """Read a text with marks, as `mark` writes them.

    line (str): The text.
    labels (Iterable[str]): The labels that there are.
    RETURNS (Named | str): The text without marks, and its names; or "format" if it has none, or others.
    """
    names = tuple((name, label) for label, name in re.findall(r"\[(\w+):? ([^\[\]]+)\]", line))
    text = re.sub(r"\[(\w+):? ([^\[\]]+)\]", r"\2", line)
    if not names or {label for _, label in names} - {*labels} or "[" in text or "]" in text:
        return "format"
    return Named(text, names)


def locate(named: Named) -> list[Span] | str:
    """Find the names of a text again, each of which has to stand there exactly once, as it is written.

    named (Named): The text and its names.
    RETURNS (list[Span] | str): Their places, in order; or "lost", or "repeated".
    """
    spans = []
    for name, label in named.names:
        places = [match.start() for match in re.finditer(rf"(?<!\w)(?={re.escape(name)}(?!\w))", named.text)]
        if len(places) != 1:
            return "repeated" if places else "lost"
        spans.append(Span(start=places[0], end=places[0] + len(name), label=label))
    spans.sort(key=lambda span: span.start)
    if any(one.end > other.start for one, other in itertools.pairwise(spans)):
        return "repeated"
    return spans


def has_invented(text: str, spans: Sequence[Span], ordinary: set[str]) -> bool:
    """Whether a text seems to have names beside those that are known: words with a capital that are no ordinary ones.

    Where a sentence begins, a word is ordinary if it is so with a small letter. In scripts without capitals no name
    can be seen in this way.

    text (str): The text.
    spans (Sequence[Span]): The names that are known.
    ordinary (set[str]): Words that are no names, as they are written.
    """
    for match in re.finditer(r"[^\W\d_][\w-]*", text):
        word = match[0]
        if not word[0].isupper() or any(span.start < match.end() and match.start() < span.end for span in spans):
            continue
        begins = re.search(r"(?:^|[.!?:])\W*$", text[: match.start()])
        if word not in ordinary and not (begins and word.lower() in ordinary):
            return True
    return False


def grams(text: str) -> set[int]:
    """The runs of GRAM words in a text, as numbers of this process; a shorter text of at least four words is one run.

    Case and marks do not count.
    """
    words = re.findall(r"\w+", text.lower())
    size = min(GRAM, len(words))
    return {hash(tuple(words[i : i + size])) for i in range(len(words) - size + 1)} if size >= 4 else set()


class Sieve:
    """Looks at texts one after the other, and keeps those that may be learnt from.

    nlp (Language): As `create_reader` makes it.
    method (Method): How the texts are made. The sentences of recombine are those of train, so they may be.
    settings (Settings): The settings.
    seeds (Seeds): What the prompts are made of.
    train, held_out (Sequence[Doc]): The documents of train, and those of dev and test.
    judge (Language | None): A trained pipeline that has to find the same names.

    kept (list[Doc]): The texts that were kept, in tokens, with sentences and entities. `user_data` has the `id`.
    """

    def __init__(
        self,
        nlp: Language,
        method: Method,
        settings: Settings,
        seeds: Seeds,
        train: Sequence[Doc],
        held_out: Sequence[Doc],
        judge: Language | None = None,
    ) -> None:
        self.nlp, self.method, self.settings, self.seeds, self.judge = nlp, method, settings, seeds, judge
        self.ordinary = seeds.ordinary | nlp.Defaults.stop_words
        self.known = {word.lower() for word in self.ordinary}
        self.kept: list[Doc] = []
        self._labels: Counter[str] = Counter()
        self._own: list[np.ndarray] = []
        self._others = {"held out": _Others(held_out)}
        if method != Method.recombine:
            self._others["copied"] = _Others(train)

    def sift(self, text: str, names: tuple[tuple[str, str], ...] | None, name: str) -> str:
        """Look at a text, and keep it or not.

        text (str): The text, on one line.
        names (tuple[tuple[str, str], ...] | None): Its names and their labels, or None if they are marked in it.
        name (str): Its id.
        RETURNS (str): One of REASONS, or nothing if it is kept; "marked" if it is, although the judge disagrees.
        """
        named = read_marks(text, self.settings.labels) if names is None else Named(text, names)
        if isinstance(named, str):
            return named
        spans = locate(named)
        if isinstance(spans, str):
            return spans
        aligned = align(self.nlp, named.text, spans)
        if aligned.cut or aligned.overlapping or named.text[-1].isalnum() or named.text[-1] in ":,;-":
            return "format"
        if has_invented(named.text, spans, self.ordinary):
            return "invented"
        return self._compare(aligned.doc, name)

    def sift_doc(self, doc: Doc, name: str) -> str:
        """Look at a document that is annotated already, as `sift` does."""
        return self._compare(doc, name)

    def _compare(self, doc: Doc, name: str) -> str:
        words = [token.lower_ for token in doc if token.is_alpha and not token.ent_type_]
        if not self.settings.words[0] <= len(doc) <= self.settings.words[1]:
            return "length"
        if sum(word in self.known for word in words) < self.settings.known * len(words):
            return "language"
        sketched = sketch(doc.text)
        for reason, others in self._others.items():
            if others.have(doc.text, sketched):
                return reason
        if self._own and compare(sketched, np.stack(self._own)).max() >= NEAR:
            return "duplicate"
        labels = self._labels + Counter(ent.label_ for ent in doc.ents)
        if labels.total() > FEWEST and any(
            labels[ent.label_] > self.settings.most * labels.total() for ent in doc.ents
        ):
            return "balance"
        verdict = ""
        if self.judge is not None and self.settings.disagreement != "keep":
            found, meant = ({(e.start_char, e.end_char, e.label_) for e in d.ents} for d in (self.judge(doc.text), doc))
            if found != meant:
                if self.settings.disagreement == "drop":
                    return "disagreement"
                verdict = "marked"
        doc.user_data["id"] = name
        self._labels = labels
        self._own.append(sketched)
        self.kept.append(doc)
        return verdict


class _Others:
    """The sentences of documents, to find copies of them."""

    def __init__(self, docs: Sequence[Doc]) -> None:
        texts = [sent.text for doc in docs for sent in doc.sents]
        bar = tqdm.tqdm(texts, "reading the corpus", unit="sentence", disable=None, leave=False)
        rows = [(sketch(text), found) for text in bar if (found := grams(text))]
        self.sketches = np.stack([row for row, _ in rows]) if rows else None
        self.grams = set().union(*(found for _, found in rows))

    def have(self, text: str, sketched: np.ndarray) -> bool:
        return not self.grams.isdisjoint(grams(text)) or (
            self.sketches is not None and compare(sketched, self.sketches).max() >= NEAR
        )


# From prompts to texts


@contextmanager
def find_writer(requirements: Path, store: Path, parallel: int) -> Iterator[Chat]:
    """Find the endpoint that the environment names, or else serve the small language model.

    requirements, store (Path): As `find_model` takes them.
    parallel (int): How many requests are sent at the same time.
    YIELDS (Chat): The endpoint.
    """
    if endpoint := find_chat():
        msg.warn(f"Names and sentences of train are sent to {endpoint.host}.")
        yield endpoint
        return
    with serve_model(find_model(requirements, store), parallel) as chat:
        yield chat


class Made(NamedTuple):
    """What was made.

    docs (list[Doc]): The texts that were kept.
    verdicts (list[dict[str, Any]]): For each text that was looked at its `id`, the `text`, and why it was not kept, by
        one of REASONS, or nothing, or "marked".
    usage (dict[str, float]): `requests`, `prompt_tokens`, `answer_tokens`, `minutes` of waiting, and `money`.
    stopped (str): Which limit ended it, or what the endpoint said in the end; nothing if all was made.
    """

    docs: list[Doc]
    verdicts: list[dict[str, Any]]
    usage: dict[str, float]
    stopped: str


def recombine(sieve: Sieve, train: Sequence[Doc], sentences: int, seed: int) -> Made:
    """Make texts without a language model: sentences of train, by themselves, with other names of the same labels.

    This is replacement of mentions (Dai and Adel 2020, https://aclanthology.org/2020.coling-main.343).

    sieve (Sieve): Which texts are kept.
    train (Sequence[Doc]): The documents of train.
    sentences (int): How many texts to make. Not more than ten times as many are tried.
    seed (int): What is drawn.
    RETURNS (Made): The texts.
    """
    names = collect_names(train)
    sources = [sent.as_doc() for doc in train for sent in doc.sents if sent.ents]
    verdicts = []
    state = random.getstate()
    random.seed(seed)  # by which `rename` draws
    try:
        for number in range(10 * sentences if sources else 0):
            example = Example(doc := random.choice(sources), doc)
            for _ in range(PASSES):
                example = rename(example, names)
            name = f"{Method.recombine}-{seed}-{number}"
            verdict = sieve.sift_doc(example.reference, name)
            verdicts.append({"id": name, "text": example.reference.text, "verdict": verdict})
            if len(sieve.kept) >= sentences:
                return Made(sieve.kept, verdicts, {}, "")
    finally:
        random.setstate(state)
    return Made(sieve.kept, verdicts, {}, "train has no more sentences that differ enough")


def generate(sieve: Sieve, chat: Chat, logs: Path, sentences: int, seed: int) -> Made:
    """Let a language model write texts. What it answered before is not asked again.

    sieve (Sieve): Which texts are kept, the method, the settings, and what the prompts are made of.
    chat (Chat): The endpoint.
    logs (Path): A folder. A file of JSON lines there has what was asked and answered. Its name stands for all that
        decides the prompts and the answers.
    sentences (int): How many texts to make.
    seed (int): What is drawn.
    RETURNS (Made): The texts. Fewer if a limit is reached or the endpoint fails, and then `stopped` says so.
    """
    settings, seeds = sieve.settings, sieve.seeds
    decisive = {
        "method": str(sieve.method),
        "model": chat.name,
        "settings": settings.prompting(),
        "sentences": seeds.sentences,
        "pools": seeds.pools,
        "seed": seed,
    }
    log = logs / f"{sieve.method}-{digest(decisive)}.jsonl"
    entries = read_log(log)
    answers = {entry["request"]: entry for entry in entries if not entry["problem"]}
    verdicts: list[dict[str, Any]] = []
    stopped, unusable, vain = "", 0, 0
    logs.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf8") as file,
        ThreadPoolExecutor(settings.parallel) as pool,
        tqdm.tqdm(total=sentences, desc=sieve.method, unit="text", disable=None) as bar,
    ):
        for first in itertools.count(0, settings.parallel):
            numbers = range(first, first + settings.parallel)
            prompts = {number: write_prompt(sieve.method, seeds, settings, number, seed) for number in numbers}
            if len(sieve.kept) >= sentences:
                break
            if missing := [number for number in numbers if number not in answers]:
                if stopped := find_limit(settings, measure_usage(entries, settings)):
                    break
                asked = [pool.submit(_ask, chat, settings, prompts[number], number, seed) for number in missing]
                try:
                    wait(asked)
                finally:  # what is there is kept, whatever interrupts the waiting
                    for future in asked:
                        if future.done() and not future.exception():
                            entries.append(future.result())
                            answers[entries[-1]["request"]] = entries[-1]
                            file.write(json.dumps(entries[-1], ensure_ascii=False) + "\n")
                    file.flush()
            for number in numbers:
                if number not in answers:
                    continue
                problem = answers[number]["problem"]
                unusable = unusable + 1 if problem else 0
                before = len(sieve.kept)
                texts = [problem] if problem else split_answer(answers[number]["answer"])
                for place, text in enumerate(texts):
                    name = f"{sieve.method}-{seed}-{number}-{place}"
                    verdict = "unusable" if problem else sieve.sift(text, prompts[number].names, name)
                    verdicts.append({"id": name, "text": text, "verdict": verdict})
                bar.update(len(sieve.kept) - before)
                vain = vain + 1 if len(sieve.kept) == before else 0
            failures = [error for future in asked if (error := future.exception())] if missing else []
            for failure in failures:
                if not isinstance(failure, ChatError):
                    raise failure
                stopped = failure.problem
            if unusable >= UNUSABLE:
                stopped = f"The last {unusable} answers of {chat.host} were unusable."
            elif vain >= IN_VAIN:
                stopped = f"Of the last {vain} answers of {chat.host} nothing was kept."
            if stopped:
                break
    return Made(sieve.kept, verdicts, measure_usage(entries, settings), stopped)


def _ask(chat: Chat, settings: Settings, prompt: Prompt, number: int, seed: int) -> dict[str, Any]:
    """Ask, and say what is recorded of it. RAISES (ChatError): If the endpoint cannot be reached."""
    parameters = settings.parameters | {"seed": seed * 1_000_003 + number}
    entry: dict[str, Any] = {"request": number, "prompt": prompt.text, "names": prompt.names, "parameters": parameters}
    start = time.monotonic()
    text, prompt_tokens, answer_tokens, problem = "", 0, 0, ""
    try:
        text, prompt_tokens, answer_tokens = chat.ask(
            prompt.text, parameters=parameters, timeout=settings.timeout, attempts=settings.attempts
        )
    except UnusableError as error:
        problem = error.reason
    return entry | {
        "answer": text,
        "problem": problem,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "seconds": time.monotonic() - start,
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read what was answered before.

    A last line that a killed process left half written is cut off.

    path (Path): The file, which need not be there.
    RETURNS (list[dict[str, Any]]): The entries. Unusable answers are among them, since they had their price.
    RAISES (StepError): If another line is no entry.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    entries = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        entry = None
        with suppress(ValueError):
            entry = json.loads(line)
        if not isinstance(entry, dict) or not entry.keys() >= ENTRY:
            raise StepError(f"{path}, line {number}: this is no answer that was recorded.", "Delete this line.")
        entries.append(entry)
    return entries


def measure_usage(entries: Sequence[dict[str, Any]], settings: Settings) -> dict[str, float]:
    """Add up what requests took.

    entries (Sequence[dict[str, Any]]): As `read_log` gives them.
    settings (Settings): Has the prices, and how many requests ran at the same time.
    RETURNS (dict[str, float]): `requests`, `prompt_tokens`, `answer_tokens`, `minutes`, `money`.
    """
    tokens = {name: sum(entry[f"{name}_tokens"] for entry in entries) for name in ("prompt", "answer")}
    return {
        "requests": len(entries),
        "prompt_tokens": tokens["prompt"],
        "answer_tokens": tokens["answer"],
        "minutes": sum(entry["seconds"] for entry in entries) / 60 / settings.parallel,
        "money": sum(tokens[name] * getattr(settings.price, name) for name in tokens) / 1e6,
    }


def find_limit(settings: Settings, usage: dict[str, float]) -> str:
    """Find a limit of the settings that is reached. RETURNS (str): What to say of it, or nothing."""
    spent = usage | {"tokens": usage["prompt_tokens"] + usage["answer_tokens"]}
    for name in ("requests", "tokens", "minutes", "money"):
        limit = getattr(settings, name)
        if limit is not None and spent[name] >= limit:
            return f"The limit of {limit:,} for {name} is reached."
    return ""


def mix(train: Sequence[Doc], synthetic: Iterable[Doc], share: float) -> list[Doc]:
    """Add synthetic texts to the documents of train.

    train (Sequence[Doc]): The documents.
    synthetic (Iterable[Doc]): The texts, of which the first are taken; it may be endless.
    share (float): What part of the tokens shall be synthetic, from 0 to below 1.
    RETURNS (list[Doc]): The documents, then the texts: all of them if there are too few.
    """
    wanted = share / (1 - share) * sum(map(len, train))
    added: list[Doc] = []
    texts: Iterator[Doc] = iter(synthetic)
    while wanted > 0 and (doc := next(texts, None)) is not None:
        added.append(doc)
        wanted -= len(doc)
    return [*train, *added]


def measure_diversity(texts: Iterable[str]) -> dict[str, float]:
    """Measure how much texts differ: the share of runs of two and of three words that are different ones.

    It falls with the number of texts, so compare equally many.

    texts (Iterable[str]): The texts.
    RETURNS (dict[str, float]): `distinct_2`, `distinct_3`, from 0 to 1.
    """
    split = [text.lower().split() for text in texts]
    result = {}
    for size in (2, 3):
        runs = [tuple(words[i : i + size]) for words in split for i in range(len(words) - size + 1)]
        result[f"distinct_{size}"] = len(set(runs)) / max(1, len(runs))
    return result
