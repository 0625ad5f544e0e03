"""Find and load pipelines, and analyse texts of any length with one; the page and the service share this."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import spacy
from pydantic import BaseModel, Field
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.util import get_installed_models

import bert_ner  # noqa: F401 (registers what a pipeline of the project names)
from common.corpora import iob_tags
from common.errors import StepError
from common.records import read_json

PART_LENGTH = 20_000  # characters that the pipeline reads at once: some seconds, after which it can be told to stop
PACKAGED, ASSEMBLED = "packages/*/*/*/*/config.cfg", "packages/*/assembled/config.cfg"
RULES = "concepts"  # the component with the rules of concepts, which sets coarse part-of-speech tags, too

Layer = Literal["sentences", "entities", "concepts", "tokens"]  # of an analysis
LAYERS: tuple[Layer, ...] = get_args(Layer)


class SpanOut(BaseModel):
    """A part of a text."""

    start: int = Field(description="Offset of its first character")
    end: int = Field(description="Offset of the character after its last")
    text: str


class EntityOut(SpanOut):
    """A named entity."""

    label: str
    score: float | None = Field(description="Probability that both span and label are correct; null if unknown")


class ConceptOut(EntityOut):
    """An actor (a noun phrase or a name), a factor (an adjective) or a mechanism (a verb)."""

    rule_id: str = Field(description="The rule that found it")
    entity_label: str = Field(description="Label of the entity with exactly this span; empty if there is none")
    negated: bool = Field(description="Whether `not`, `no` or the like belongs to it")


class TripleOut(BaseModel):
    """Concepts that seem to belong together, as positions in the list of concepts.

    This is a heuristic over word order. There is no parser.
    """

    subject_index: int | None = Field(description="The actor that acts, or that a factor describes")
    predicate_index: int | None = Field(description="The mechanism; null where a factor describes the actor")
    object_index: int | None = Field(description="The actor that something is done to, or the factor")


class TokenOut(SpanOut):
    """A token with its tags and its wordpieces."""

    tag: str = Field(description="Part-of-speech tag of the pipeline")
    pos: str = Field(description="Part-of-speech tag of Universal Dependencies")
    iob: str = Field(description="Entity tag in IOB2")
    shape: str
    wordpieces: list[str]


class Analysis(BaseModel):
    """What a pipeline finds in a text. Layers that were not asked for are empty."""

    text: str
    sentences: list[SpanOut] = []
    entities: list[EntityOut] = []
    concepts: list[ConceptOut] = []
    triples: list[TripleOut] = []
    tokens: list[TokenOut] = []


def find_pipelines(root: Path) -> dict[str, str]:
    """Find the pipelines that can be used: packaged and assembled ones, the newest first, then installed ones.

    root (Path): Folder of the project.
    RETURNS (dict[str, str]): The argument of spacy.load by a readable name: the path below root, or the name of an
        installed package.
    """
    found = _newest_first([*root.glob(PACKAGED), *root.glob(ASSEMBLED)])
    return {str(path.parent.relative_to(root)): str(path.parent) for path in found} | {
        name: name for name in sorted(get_installed_models())
    }


def find_newest(root: Path) -> str:
    """Find the pipeline to use when none is named: the newest packaged, else assembled one, else an installed one.

    root (Path): Folder of the project.
    RETURNS (str): The argument of spacy.load.
    RAISES (StepError): If there is no pipeline.
    """
    found = [*_newest_first(root.glob(PACKAGED)), *_newest_first(root.glob(ASSEMBLED))]
    names = [*(str(path.parent) for path in found), *sorted(get_installed_models())]
    if not names:
        raise StepError("There is no pipeline yet.", "Train one: make quickstart")
    return names[0]


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def load_pipeline(name: str) -> Annotator:
    """Load a pipeline and analyse a sentence with it, because some kinds of damage only show in use.

    name (str): A folder, or the name of an installed package.
    RETURNS (Annotator): The pipeline.
    RAISES (StepError): If there is no such pipeline, or it cannot be loaded or used.
    """
    try:
        nlp = spacy.load(name)
        annotator = Annotator(nlp)
        annotator.annotate(["Mira left Turku."])
        for pipe, labels in (read_json(nlp.path / "meta.json").get("labels", {}) if nlp.path else {}).items():
            if set(labels) != set(nlp.pipe_labels.get(pipe, ())):
                raise ValueError(f"the labels of {pipe} are not those that its meta.json has")
    except Exception as error:  # a damaged pipeline makes spaCy and torch raise any kind of exception
        first, *_ = str(error).splitlines() or [""]
        missing = isinstance(error, OSError) and not Path(name).exists()
        raise StepError(
            f"{name} cannot be loaded: {first if missing else f'{type(error).__name__}: {first}'}",
            "Train one: make quickstart" if missing else "It is damaged: train, package or install it again.",
        ) from error
    return annotator


class Annotator:
    """A pipeline that several threads may share: it serves one call at a time.

    nlp (Language): The pipeline.
    """

    def __init__(self, nlp: Language) -> None:
        self.nlp = nlp
        self.lock = threading.Lock()

    def annotate(
        self,
        texts: Sequence[str],
        want: Collection[Layer] = LAYERS,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Analysis]:
        """Analyse texts. Long ones are cut between paragraphs, and analysed part by part.

        texts (Sequence[str]): The texts.
        want (Collection[Layer]): The layers of an analysis that are needed. Without concepts and tokens, the rules of
            concepts do not run.
        advance (Callable[[int, int], None]): Progress callback (done, total), in characters, called before the first
            part and after each. It may raise an exception to stop the analysis.
        RETURNS (list[Analysis]): An analysis for each text.
        """
        analyses = [Analysis(text=text) for text in texts]
        parts = [(part, (analysis, start)) for analysis in analyses for start, part in split_text(analysis.text)]
        lengths = [len(part) for part, _ in parts]
        done, total = 0, sum(lengths)
        at_once = max(1, PART_LENGTH // max(lengths, default=PART_LENGTH))
        unneeded = () if "concepts" in want or "tokens" in want else (RULES,)
        with self.lock:
            advance(0, total)
            with self.nlp.memory_zone():  # without it the vocabulary would grow for ever
                # `disable` of nlp.pipe, since nlp.select_pipes would change the pipeline
                for doc, (analysis, start) in self.nlp.pipe(
                    parts, as_tuples=True, batch_size=at_once, disable=unneeded
                ):
                    self._add(doc, analysis, start, want)
                    done += len(doc.text)
                    advance(done, total)
        return analyses

    def _add(self, doc: Doc, analysis: Analysis, offset: int, want: Collection[Layer]) -> None:
        """Add to an analysis what was found in the part of the text that begins at an offset."""
        if "sentences" in want:
            for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc[:]]:
                if text := sentence.text.strip():
                    start = sentence.start_char + sentence.text.index(text) + offset
                    analysis.sentences.append(SpanOut(start=start, end=start + len(text), text=text))
        if "entities" in want:
            analysis.entities += [EntityOut(**_entity(ent, offset)) for ent in doc.ents]
        if "concepts" in want and doc.has_extension("triples"):
            concepts = list(doc.spans.get("concepts", []))
            first = len(analysis.concepts)
            numbers = {(span.start, span.end): first + number for number, span in enumerate(concepts)}
            analysis.concepts += [
                ConceptOut(
                    **_entity(span, offset), rule_id=span.id_, entity_label=span._.entity, negated=span._.negated
                )
                for span in concepts
            ]
            for triple in doc._.triples if concepts else ():
                actor, mechanism, found = (span and numbers[span.start, span.end] for span in triple)
                analysis.triples.append(TripleOut(subject_index=actor, predicate_index=mechanism, object_index=found))
        if "tokens" in want:
            analysis.tokens += [
                TokenOut(
                    start=token.idx + offset,
                    end=token.idx + len(token) + offset,
                    text=token.text,
                    tag=token.tag_,
                    pos=token.pos_,
                    iob=iob,
                    shape=token.shape_,
                    wordpieces=wordpieces,
                )
                for token, iob, wordpieces in zip(doc, iob_tags(doc), self._wordpieces(doc), strict=True)
                if not token.is_space
            ]

    def _wordpieces(self, doc: Doc) -> list[list[str]]:
        if not len(doc) or "transformer" not in self.nlp.pipe_names:
            return [[] for _ in doc]
        tokenizer = self.nlp.get_pipe("transformer").model.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        found = tokenizer.encode_batch([token.text for token in doc], add_special_tokens=False)
        return [list(encoding.tokens[: sum(encoding.attention_mask)]) for encoding in found]  # without padding


def _entity(span: Span, offset: int) -> dict[str, Any]:
    """The fields of an EntityOut. Other libraries' pipelines give no scores."""
    return {
        "start": span.start_char + offset,
        "end": span.end_char + offset,
        "text": span.text,
        "label": span.label_,
        "score": span._.score if span.has_extension("score") else None,
    }


def split_text(text: str, size: int = PART_LENGTH) -> Iterator[tuple[int, str]]:
    """Cut a text into parts of at most `size` characters, after a paragraph, or else a line, a sentence or a word.

    text (str): The text.
    size (int): The most characters in a part.
    YIELDS (tuple[int, str]): The offset of a part, and the part. Joined, the parts are the text.
    """
    start = 0
    while len(text) - start > size:
        window = text[start : start + size]
        ends = (window.rfind(mark) + len(mark) for mark in ("\n\n", "\n", ". ", " ") if window.rfind(mark) >= size // 2)
        end = next(ends, size)
        yield start, window[:end]
        start += end
    if start < len(text):
        yield start, text[start:]
