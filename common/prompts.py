"""What a language model is asked for synthetic texts: the settings, the names and sentences of train, the prompts."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tqdm
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from spacy.tokens import Doc

from bert_ner.corpus import collect_names
from common.annotations import Span
from common.corpora import kind_of
from common.errors import StepError
from common.scoring import create_raw_doc


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
        if label in seeds.pools  # the settings may have others, which the pipeline shall not learn
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
