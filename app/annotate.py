"""Find and load pipelines, and analyse texts of any length with one; the page and the service share this."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, get_args

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
BATCH = 500  # parts that it reads at once: short ones take longer than their characters tell
PACKAGED, ASSEMBLED = "packages/*/*/*/*/config.cfg", "packages/*/assembled/config.cfg"

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


# What a layer is made from, and what a component reads beside the vectors of the encoder, in the terms in which spaCy's
# factories say what they assign. The components are those of this project's pipelines, by factory.
_VECTORS = {"doc.tensor", "doc._.trf_data"}
_MADE_FROM: dict[Layer, set[str]] = {
    "sentences": {"token.is_sent_start"},
    "entities": {"doc.ents"},
    "concepts": {"doc.spans", "doc._.triples"},
    "tokens": {"token.tag", "token.pos", "doc.ents"},
}
_READ_BY: dict[str, set[str]] = {
    "transformer": set(),
    "tok2vec": set(),
    "senter": set(),
    "tagger": set(),
    "bert_ner_v2": {"token.is_sent_start", "doc.ents"},
    "bert_ner_chunker_v1": {"token.is_sent_start"},
    "bert_ner_concepts_v2": {"token.is_sent_start", "token.tag", "doc.ents"},
    "doc_cleaner": set(),
    "bert_ner_cleaner_v1": set(),
}


def find_unneeded(nlp: Language, want: Collection[Layer]) -> list[str]:
    """Find the components that need not run for some layers of an analysis.

    A component of another make is always needed, and so is all before it, because nobody knows what it reads.

    nlp (Language): The pipeline.
    want (Collection[Layer]): The layers.
    RETURNS (list[str]): The names of the components.
    """
    needed = _VECTORS.union(*(_MADE_FROM[layer] for layer in want))
    unneeded = []
    for name in reversed(nlp.pipe_names):
        meta = nlp.get_pipe_meta(name)
        if meta.factory not in _READ_BY:
            break
        if meta.assigns and needed.isdisjoint(meta.assigns):
            unneeded.append(name)
        else:
            needed |= _READ_BY[meta.factory]
    return unneeded


class _Part(NamedTuple):
    """A part of a text: its job, the analysis it belongs to, its offset, and itself."""

    job: _Job
    analysis: Analysis
    start: int
    text: str


class _Job:
    """Texts that somebody waits for, and what has been found in them.

    texts (Sequence[str]): The texts.
    want (Collection[Layer]): The layers of an analysis that are needed.
    unneeded (Collection[str]): The components that need not run for them.
    advance (Callable[[int], object]): Called after each part with the number of characters that are done.
    """

    def __init__(
        self,
        texts: Sequence[str],
        want: Collection[Layer],
        unneeded: Collection[str],
        advance: Callable[[int], object],
    ) -> None:
        self.want, self.unneeded, self.advance = want, unneeded, advance
        self.future: Future[list[Analysis]] = Future()  # stays pending until it is done, so that it can be cancelled
        self.analyses = [Analysis(text=text) for text in texts]
        self.parts = deque(_Part(self, a, start, part) for a in self.analyses for start, part in split_text(a.text))
        self.left = self.total = sum(len(part.text) for part in self.parts)  # characters

    def finish(self, error: Exception | None = None) -> None:
        """Hand over what was found, or the reason why nothing was, if somebody still waits for it."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if error:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.analyses)


class Annotator:
    """A pipeline that any number of threads may use at a time. One thread of its own runs it.

    The parts of texts that wait are annotated together, those of different callers too, as many as PART_LENGTH holds:
    a batch takes far less time than its parts one by one. Nothing waits for a batch to fill. Of the callers, those with
    the fewest characters left come first, and in every other batch the one who came first. So a short text waits for a
    part of a long one and not for its end, of several long ones the first is done early, and nobody waits for ever.

    nlp (Language): The pipeline.
    """

    def __init__(self, nlp: Language) -> None:
        self.nlp = nlp
        self.lock = threading.Lock()  # of the jobs
        self.jobs: list[_Job] = []  # those that have parts left, in the order in which they came
        self.oldest_first = False
        self.thread = ThreadPoolExecutor(1, "pipeline")  # ends with this object

    def annotate(
        self,
        texts: Sequence[str],
        want: Collection[Layer] = LAYERS,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Analysis]:
        """Analyse texts, and wait for it. Long ones are cut between paragraphs, and analysed part by part.

        texts (Sequence[str]): The texts.
        want (Collection[Layer]): The layers of an analysis that are needed. Components that none of them needs do not
            run.
        advance (Callable[[int, int], None]): Progress callback (done, total), in characters, called in this thread
            before the first part and after each batch with one. It may raise an exception to stop the analysis.
        RETURNS (list[Analysis]): An analysis for each text.
        """
        total = sum(map(len, texts))
        advance(0, total)
        progress: SimpleQueue[int | None] = SimpleQueue()
        future = self.submit(texts, want, progress.put)
        future.add_done_callback(lambda _: progress.put(None))
        try:
            for done in iter(progress.get, None):
                advance(done, total)
            return future.result()
        finally:
            future.cancel()

    def submit(
        self,
        texts: Sequence[str],
        want: Collection[Layer] = LAYERS,
        advance: Callable[[int], object] = lambda done: None,
    ) -> Future[list[Analysis]]:
        """Let texts be analysed as `annotate` does, without waiting for it.

        texts (Sequence[str]): The texts.
        want (Collection[Layer]): The layers of an analysis that are needed.
        advance (Callable[[int], object]): Called in the pipeline's thread after each batch with parts of these texts,
            with the number of characters that are done.
        RETURNS (Future[list[Analysis]]): Gets an analysis for each text, or the exception that one of them raises. When
            it is cancelled, the parts that are left are not analysed.
        """
        job = _Job(texts, want, find_unneeded(self.nlp, want), advance)
        if not job.parts:
            job.finish()
            return job.future
        with self.lock:
            self.jobs.append(job)
        self.thread.submit(self._work)  # where the thread is at work, it sees the job itself, and finds nothing later
        return job.future

    def _work(self) -> None:
        """Annotate in batches until nothing waits."""
        while batch := self._take():
            self._annotate(batch)
            for job in {part.job: None for part in batch}:
                job.advance(job.total - job.left)
                if not job.parts:
                    job.finish()

    def _take(self) -> list[_Part]:
        """Take the parts of the next batch, for which the same components run. Without any, nothing waits."""
        with self.lock:
            self.jobs = [job for job in self.jobs if job.parts and not job.future.done()]
            order = sorted(self.jobs, key=lambda job: job.left)
            if self.oldest_first:
                order = [*self.jobs[:1], *order]
            self.oldest_first = order[:1] != self.jobs[:1]
        batch: list[_Part] = []
        room = PART_LENGTH
        for job in order:
            if job.unneeded != order[0].unneeded:
                continue
            while job.parts and len(batch) < BATCH and (not batch or len(job.parts[0].text) <= room):
                part = job.parts.popleft()
                batch.append(part)
                room -= len(part.text)
                job.left -= len(part.text)
        return batch

    def _annotate(self, batch: list[_Part]) -> None:
        """Analyse the parts of a batch. One that raises an exception costs its own job, and no other."""
        try:
            with self.nlp.memory_zone():  # without it the vocabulary would grow for ever
                # `disable` of nlp.pipe, since nlp.select_pipes would change the pipeline
                docs = self.nlp.pipe(
                    ((part.text, part) for part in batch if not part.job.future.done()),
                    as_tuples=True,
                    batch_size=len(batch),
                    disable=batch[0].job.unneeded,
                )
                found = [(part, self._read(doc, part)) for doc, part in docs]
        except Exception as error:
            if len(batch) == 1:
                batch[0].job.finish(error)
            else:
                for part in batch:
                    self._annotate([part])
        else:
            for part, analysis in found:
                _extend(part.analysis, analysis)

    def _read(self, doc: Doc, part: _Part) -> Analysis:
        """Make the analysis of a part, with offsets in its text."""
        want, offset = part.job.want, part.start
        analysis = Analysis(text=part.text)
        if "sentences" in want:
            for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc[:]]:
                if text := sentence.text.strip():
                    start = sentence.start_char + sentence.text.index(text) + offset
                    analysis.sentences.append(SpanOut(start=start, end=start + len(text), text=text))
        if "entities" in want:
            analysis.entities = [EntityOut(**_entity(ent, offset)) for ent in doc.ents]
        if "concepts" in want and doc.has_extension("triples"):
            concepts = list(doc.spans.get("concepts", []))
            numbers = {(span.start, span.end): number for number, span in enumerate(concepts)}
            analysis.concepts = [
                ConceptOut(
                    **_entity(span, offset), rule_id=span.id_, entity_label=span._.entity, negated=span._.negated
                )
                for span in concepts
            ]
            for triple in doc._.triples if concepts else ():
                actor, mechanism, found = (span and numbers[span.start, span.end] for span in triple)
                analysis.triples.append(TripleOut(subject_index=actor, predicate_index=mechanism, object_index=found))
        if "tokens" in want:
            analysis.tokens = [
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
        return analysis

    def _wordpieces(self, doc: Doc) -> list[list[str]]:
        if not len(doc) or "transformer" not in self.nlp.pipe_names:
            return [[] for _ in doc]
        tokenizer = self.nlp.get_pipe("transformer").model.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        found = tokenizer.encode_batch([token.text for token in doc], add_special_tokens=False)
        return [list(encoding.tokens[: sum(encoding.attention_mask)]) for encoding in found]  # without padding


def _extend(analysis: Analysis, found: Analysis) -> None:
    """Add to an analysis what was found in the next part of its text."""
    first = len(analysis.concepts)
    analysis.sentences += found.sentences
    analysis.entities += found.entities
    analysis.concepts += found.concepts
    analysis.tokens += found.tokens
    for triple in found.triples:
        places = {name: place if place is None else first + place for name, place in triple}
        analysis.triples.append(TripleOut(**places))


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
