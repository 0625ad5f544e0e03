"""Suggest spans for documents: by a pipeline of any origin, and by a list of terms and patterns.

Tags and chunks come along where a pipeline has them. Nobody decides on them: they fill the columns of the corpus.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import spacy
from spacy.language import Language
from spacy.tokens import Doc

from bert_ner.corpus import CHUNKS  # which registers what a trained pipeline names
from common.alignment import create_tokenizer
from common.annotations import Span
from common.errors import StepError
from common.records import digest, read_json

STANZA = "stanza:"  # before a language, names the pipeline that Stanza has for it

WORDS = "words"  # in a document's meta: its words, as `Found` has them
Word = tuple[int, int, str, str]  # first character and the one after the last, tag, chunk in IOB2


class Found(NamedTuple):
    """What is found in a text.

    spans (list[Span]): The suggestions.
    words (tuple[Word, ...]): Its words with part of speech and chunk, empty where the pipeline does not have them.
        No words if it has neither.
    """

    spans: list[Span]
    words: tuple[Word, ...] = ()


# Finds something in each of some texts
Finder = Callable[[list[str]], Iterator[Found]]


def load_pipeline(name: str) -> Language:
    """Load a pipeline of spaCy's.

    name (str): Its folder, or the name of an installed package.
    RETURNS (Language): The pipeline.
    RAISES (StepError): If there is none that can be loaded.
    """
    try:
        return spacy.load(name)
    except Exception as error:  # of a kind for each way in which something is no pipeline
        reason = (str(error) or repr(error)).splitlines()[0]
        raise StepError(
            f"{name} is no pipeline that can be loaded: {reason}",
            "Name a folder, such as training/<run>/model-best, or a package that is installed, such as en_bert_ner.",
        ) from error


def find_by_pipeline(name: str) -> tuple[str, Finder]:
    """Make a finder of the entities that a pipeline finds, and of its tags and chunks.

    name (str): As `load_pipeline` takes it, or `stanza:<language>` for Stanza, whose models must be on the disk.
    RETURNS (tuple[str, Finder]): What the spans have as their source, with the version of the pipeline, and the finder.
    RAISES (StepError): If the pipeline cannot be loaded.
    """
    if name.startswith(STANZA):
        return _find_by_stanza(name.removeprefix(STANZA))
    nlp = load_pipeline(name)
    if "chunker" in nlp.disabled:
        nlp.enable_pipe("chunker")
    trained = read_json(Path(name) / "provenance.json").get("inputs")  # says more than a version before `package`
    source = f"{nlp.lang}_{nlp.meta['name']}-{digest(trained) if trained else nlp.meta['version']}"
    return source, _find_by(nlp, source)


def find_by_patterns(path: Path) -> tuple[str, Finder]:
    """Make a finder of terms and patterns, of which the longest match counts.

    path (Path): A file of patterns as spaCy's `entity_ruler` reads them: on each line a JSON object with a `label` and
        a `pattern`, a string or a list of tokens.
    RETURNS (tuple[str, Finder]): The name of the file, as the source of the spans, and the finder.
    RAISES (StepError): If the file cannot be read, or if a line has no pattern.
    """
    nlp = create_tokenizer()
    ruler: Any = nlp.add_pipe("entity_ruler", config={"validate": True})
    patterns = [(f"{path}, line {number}", line) for number, line in _read_patterns(path)]
    if not patterns:
        raise StepError(f"{path} has no patterns.", 'A line has one: {"label": "ORG", "pattern": "Norrvik Steel"}')
    try:
        ruler.add_patterns([pattern for _, pattern in patterns])
    except Exception:  # which does not say where
        for place, pattern in patterns:
            try:
                ruler.add_patterns([pattern])
            except Exception as error:
                raise StepError(f"{place}: this is no pattern of spaCy's: {error}", "Mend the line.") from error
        raise
    return path.stem, _find_by(nlp, path.stem)


def _read_patterns(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:  # of UTF-8 too
            raise StepError(f"{path}, line {number}: this is not JSON ({error}).", "Mend the line.") from error
        label, pattern = (entry.get("label"), entry.get("pattern")) if isinstance(entry, dict) else (None, None)
        if not isinstance(label, str) or not label.strip() or not isinstance(pattern, str | list) or not pattern:
            raise StepError(
                f"{path}, line {number}: this is no pattern.",
                'A line has a label and a pattern: {"label": "ORG", "pattern": "Norrvik Steel"}',
            )
        yield number, entry


def _find_by(nlp: Language, source: str) -> Finder:
    def find(texts: list[str]) -> Iterator[Found]:
        with nlp.memory_zone():  # without it the vocabulary would grow for ever
            for doc in nlp.pipe(texts):
                spans = [
                    Span(
                        start=ent.start_char,
                        end=ent.end_char,
                        label=ent.label_,
                        score=ent._.score if ent.has_extension("score") else None,
                        source=source,
                    )
                    for ent in doc.ents
                ]
                yield Found(spans, _find_words(doc))

    return find


def _find_words(doc: Doc) -> tuple[Word, ...]:
    if not doc.has_annotation("TAG") and CHUNKS not in doc.spans:
        return ()
    chunks = ["O" if CHUNKS in doc.spans else ""] * len(doc)
    for chunk in doc.spans.get(CHUNKS, []):
        chunks[chunk.start : chunk.end] = [f"B-{chunk.label_}", *[f"I-{chunk.label_}"] * (len(chunk) - 1)]
    return tuple(
        (token.idx, token.idx + len(token), token.tag_, chunk)
        for token, chunk in zip(doc, chunks, strict=True)
        if not token.is_space
    )


def _find_by_stanza(language: str) -> tuple[str, Finder]:
    try:
        stanza: Any = importlib.import_module("stanza")
        nlp = stanza.Pipeline(language, processors="tokenize,ner", download_method=None, verbose=False)
    except Exception as error:  # it is not installed, or has no models of this language
        raise StepError(
            f"Stanza's pipeline for {language!r} cannot be loaded: {error}",
            f"""pip install stanza, then: python -c "import stanza; stanza.download('{language}')\"""",
        ) from error
    source = f"stanza_{language}-{stanza.__version__}"

    def find(texts: list[str]) -> Iterator[Found]:
        for text in texts:
            ents = nlp(text).ents
            yield Found([Span(start=ent.start_char, end=ent.end_char, label=ent.type, source=source) for ent in ents])

    return source, find


def parse_labels(names: str) -> dict[str, str]:
    """Read which labels are wanted.

    names (str): Labels with commas between them, and `PERSON=PER` for one that shall be called otherwise. Nothing
        stands for all.
    RETURNS (dict[str, str]): What each label shall be called, empty for all labels as they are.
    RAISES (StepError): If a label is empty.
    """
    wanted: dict[str, str] = {}
    for part in filter(None, map(str.strip, names.split(","))):
        old, equals, new = map(str.strip, part.partition("="))
        new = new if equals else old
        if not old or not new:
            raise StepError(f"{part!r} names no label.", "For example: --vars.labels PERSON=PER,GPE=LOC,ORG")
        wanted[old] = new
    return {new: new for new in wanted.values()} | wanted


def rename(spans: Iterable[Span], wanted: dict[str, str]) -> list[Span]:
    """Keep the spans with the wanted labels, as `parse_labels` gives them, under the names that these shall have."""
    if not wanted:
        return list(spans)
    return [span.model_copy(update={"label": wanted[span.label]}) for span in spans if span.label in wanted]


def drop_overlaps(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Keep the spans that share no character with the others, which come first."""
    taken = {place for other in others for place in range(other.start, other.end)}
    return [span for span in spans if taken.isdisjoint(range(span.start, span.end))]
