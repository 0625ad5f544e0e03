"""The reader of the corpus, and the batcher that varies the training examples in each epoch.

spaCy's registry gets the reader `bert_ner.Corpus.v2`, the callback `bert_ner.RemoveUnannotated.v1` and the batcher
`bert_ner.AugmentingBatcher.v1`. A wheel does without this file, since only a training needs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc, Span, Token
from spacy.training import Corpus, Example
from spacy.util import registry

CHUNKS = "chunks"  # where chunks stand in `doc.spans`; in that group a span without a label says that they are unknown
UNKNOWN = -2


@registry.readers("bert_ner.Corpus.v2")  # type: ignore[untyped-decorator,unused-ignore]
def create_corpus(path: Path, sentence_starts: bool) -> Callable[[Language], Iterator[Example]]:
    """`spacy.Corpus.v1`, which can give the sentence starts of the corpus to the predicted Docs too.

    The entity recogniser never predicts across a known sentence start, and in training it should learn only what it may
    predict. In use the pipeline has to find the starts by itself, and an evaluation without the starts measures that.

    path (Path): A .spacy file, or a folder of such files.
    sentence_starts (bool): Whether the predicted Docs get the sentence starts.
    RETURNS (Callable[[Language], Iterator[Example]]): The reader.
    """
    read = Corpus(path)
    if not sentence_starts:
        return read

    def read_with_sentence_starts(nlp: Language) -> Iterator[Example]:
        for example in read(nlp):
            if example.reference.has_annotation("SENT_START"):
                for token, start in zip(example.predicted, example.get_aligned("SENT_START"), strict=True):
                    token.is_sent_start = None if not start else start == 1  # 0 and None mean that it is unknown
            yield example

    return read_with_sentence_starts


# What a document must have so that a component can learn from it. The others learn from all corpora.
NEEDED: dict[str, Callable[[Doc], bool]] = {
    "tagger": lambda doc: bool(doc.has_annotation("TAG")),
    "chunker": lambda doc: bool(doc.spans.get(CHUNKS)),
}


@registry.callbacks("bert_ner.RemoveUnannotated.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_remover(path: Path) -> Callable[[Language], Language]:
    """Remove, before a pipeline is initialised, the components that a corpus has nothing for: tagger and chunker.

    path (Path): A .spacy file, or a folder of such files.
    RETURNS (Callable[[Language], Language]): The callback.
    """

    def remove_unannotated(nlp: Language) -> Language:
        for name, has_annotation in NEEDED.items():
            if name in nlp.pipe_names and not any(has_annotation(example.reference) for example in Corpus(path)(nlp)):
                nlp.remove_pipe(name)
        return nlp

    return remove_unannotated


@registry.batchers("bert_ner.AugmentingBatcher.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_augmenting_batcher(
    batcher: Callable[[Iterable[Example]], Iterable[list[Example]]],
    replace_names: float,
    lowercase: float,
    uppercase: float,
) -> Callable[[Iterable[Example]], Iterator[list[Example]]]:
    """Batch the training examples of an epoch. Some of them are changed, in each epoch others.

    A model that memorises the names of the corpus is overconfident on them and fails on unseen ones. Therefore names
    are replaced in some documents by others of the corpus with the same label (Dai and Adel 2020,
    https://aclanthology.org/2020.coling-main.343). A model that learns from case must not depend on it. Therefore some
    documents are put in lower or upper case. The tokens stay the same, whereas spaCy's own augmenters tokenise again.

    Documents of more than LONGEST_DOCUMENT tokens are cut, so that the memory does not grow with them. The batches are
    shuffled, because spaCy's batchers of equal lengths give one length after the other, and documents of one length are
    often alike: tables, or news in brief.

    batcher (Callable[[Iterable[Example]], Iterable[list[Example]]]): Makes the batches.
    replace_names, lowercase, uppercase (float): The shares of the examples to change, from 0 to 1.
    RETURNS (Callable[[Iterable[Example]], Iterator[list[Example]]]): The batcher.
    """

    def change(example: Example, names: Names) -> Example:
        if random.random() < replace_names:
            example = rename(example, names)
        draw = random.random()
        if draw >= lowercase + uppercase:
            return example
        case = str.lower if draw < lowercase else str.upper
        return Example(*(recase(doc, case) for doc in (example.predicted, example.reference)))

    def batch(examples: Iterable[Example]) -> Iterator[list[Example]]:
        examples = [piece for example in examples for piece in cut_example(example)]
        names = collect_names(example.reference for example in examples)
        batches = list(batcher([change(example, names) for example in examples]))
        random.shuffle(batches)
        return iter(batches)

    return batch


LONGEST_DOCUMENT = 1500  # tokens, about twice as many as a batch has


def find_pieces(doc: Doc, size: int = LONGEST_DOCUMENT) -> list[tuple[int, int]]:
    """Find where to cut a document for training: before a sentence, or else between two tokens of no common entity.

    doc (Doc): The document, with sentence starts and entities where they are known.
    size (int): The most tokens in a piece. An entity that is longer stays whole.
    RETURNS (list[tuple[int, int]]): The first token of each piece and the token after its last. An empty document has
        no piece.
    """
    pieces = []
    start = 0
    while len(doc) - start > size:
        ends = range(start + size, start, -1)
        free = [end for end in ends if doc[end].ent_iob_ != "I"]
        end = next((end for end in free if doc[end].is_sent_start), free[0] if free else start + size)
        while end < len(doc) and doc[end].ent_iob_ == "I":
            end += 1
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(doc))] if start < len(doc) else pieces


def cut_example(example: Example) -> list[Example]:
    """Cut an example as `find_pieces` cuts its reference. A short one stays as it is."""
    pieces = find_pieces(example.reference)
    if len(pieces) < 2 or len(example.predicted) != len(example.reference):
        return [example]
    cut = [Example(*(doc[a:b].as_doc() for doc in (example.predicted, example.reference))) for a, b in pieces]
    for piece, (a, b) in zip(cut, pieces, strict=True):
        _carry(example.reference, piece.reference, np.arange(a, b), number_chunks(example.reference)[a:b])
    return cut


def number_chunks(doc: Doc) -> np.ndarray:
    """Number the chunks of a document: for each token that of its chunk, (tokens,), int; -1 where there is none."""
    numbers = np.full(len(doc), -1)
    for number, chunk in enumerate(doc.spans.get(CHUNKS, [])):
        numbers[chunk.start : chunk.end] = number
    return numbers


def _carry(old: Doc, new: Doc, rows: np.ndarray, chunks: np.ndarray) -> None:
    """Give a changed document what the attributes of tokens do not tell of the original: targets, chunks, lost spaces.

    Where the spaces of the original are unknown, those of the changed document are too; if they were known, spaCy would
    tokenise it anew when it reads it from a corpus.

    old, new (Doc): The original and the changed document. `user_data["tag_targets"]` has the probabilities of the tags
        that the entity recogniser learns, (tokens, tags); a token with a row of zeros is learnt from its annotation
        instead.
    rows (np.ndarray): For each token of the changed document the same token of the original, or -1 for a new token.
    chunks (np.ndarray): For each token of the changed document the number of its chunk in the original, -1 where there
        is none, or UNKNOWN.
    """
    new.has_unknown_spaces = old.has_unknown_spaces
    targets = old.user_data.get("tag_targets")
    if targets is not None:
        new.user_data["tag_targets"] = np.concatenate((targets, np.zeros_like(targets[:1])))[rows]
    if CHUNKS in old.spans:
        labels = {number: chunk.label_ for number, chunk in enumerate(old.spans[CHUNKS])} | {UNKNOWN: ""}
        edges = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1))
        new.spans[CHUNKS] = [
            Span(new, int(start), int(end), labels[chunks[start]])
            for start, end in pairwise(edges)
            if chunks[start] != -1
        ]


# The names of a corpus by label, and by whether all of them have small letters.
Names = dict[tuple[str, bool], list[Span]]


def collect_names(docs: Iterable[Doc]) -> Names:
    """Collect the names of a corpus, each in one spelling, so that repetitions in capitals make none more likely.

    docs (Iterable[Doc]): The documents, with entities.
    RETURNS (Names): For each label all names, and those of them that are not all in capitals.
    """
    spellings: dict[str, dict[str, Span]] = {}
    for ent in (ent for doc in docs for ent in doc.ents):
        known = spellings.setdefault(ent.label_, {}).setdefault(ent.text.lower(), ent)
        if known.text.isupper() and not ent.text.isupper():
            spellings[ent.label_][ent.text.lower()] = ent
    return {
        (label, small): [ent for ent in ents.values() if not (small and ent.text.isupper())]
        for label, ents in spellings.items()
        for small in (False, True)
    }


def rename(example: Example, names: Names) -> Example:
    """Copy an example with other names in the place of about a third of its names.

    A name is replaced by the same other one wherever it occurs in the document. The other one is in capitals where the
    replaced one is, and nowhere else.

    example (Example): The example.
    names (Names): The names to choose from, which include those of the example.
    RETURNS (Example): The copy, with tags, sentence starts, entities and chunks. A token of another name is learnt from
        these. A chunk goes on to hold what stands in the place of a name, if both names lie in one chunk; if not, the
        chunks of this place are unknown.
    """
    doc = example.reference
    numbers, unknown = number_chunks(doc), {UNKNOWN}
    keys = [(ent.label_, ent.text.lower()) for ent in doc.ents]
    small = {key for key, ent in zip(keys, doc.ents, strict=True) if not ent.text.isupper()}
    chosen = {
        key: random.choice(names[key[0], key in small]) if random.random() < 1 / 3 else None
        for key in dict.fromkeys(keys)
    }
    # word, space, tag, sentence start, entity, number in the original, number of the chunk
    tokens: list[tuple[str, bool, str, bool | None, str | None, int, int]] = []

    def keep(token: Token) -> None:
        iob = {"": None, "O": "O"}.get(token.ent_iob_, f"{token.ent_iob_}-{token.ent_type_}")
        chunk = int(numbers[token.i])
        tokens.append((token.text, bool(token.whitespace_), token.tag_, token.is_sent_start, iob, token.i, chunk))

    end = 0
    for key, ent in zip(keys, doc.ents, strict=True):
        for token in doc[end : ent.start]:
            keep(token)
        end = ent.end
        name = chosen[key]
        chunk, *others = set(numbers[ent.start : ent.end].tolist())
        if name is not None and (others or chunk < 0 or not _is_in_one_chunk(name)):
            unknown |= {chunk, *others} - {-1}
            chunk = UNKNOWN
        for i, token in enumerate(ent if name is None else name):
            if name is None:
                keep(token)
                continue
            word = token.text.upper() if ent.text.isupper() else token.text
            space = bool((ent[-1] if i + 1 == len(name) else token).whitespace_)
            start = False if i else ent[0].is_sent_start
            tokens.append((word, space, token.tag_, start, f"{'I' if i else 'B'}-{key[0]}", -1, chunk))
    for token in doc[end:]:
        keep(token)
    columns: list[list[Any]] = [list(column) for column in zip(*tokens, strict=True)] or [[]] * 7
    words, spaces, tags, starts, ents, rows, chunks = columns
    given = starts if example.predicted.has_annotation("SENT_START") else None
    renamed = Doc(doc.vocab, words=words, spaces=spaces, sent_starts=starts, tags=tags, ents=ents)
    found = np.array(chunks, dtype=int)
    _carry(doc, renamed, np.array(rows, dtype=int), np.where(np.isin(found, [*unknown]), UNKNOWN, found))
    predicted = Doc(doc.vocab, words=words, spaces=spaces, sent_starts=given)
    predicted.has_unknown_spaces = doc.has_unknown_spaces
    return Example(predicted, renamed)


def _is_in_one_chunk(name: Span) -> bool:
    return any(c.start <= name.start and name.end <= c.end and c.label for c in name.doc.spans.get(CHUNKS, []))


def recase(doc: Doc, case: Callable[[str], str]) -> Doc:
    """Copy a document with its words in another case, and the same annotation, chunks and targets included.

    doc (Doc): The document.
    case (Callable[[str], str]): Puts a word in the other case, such as `str.lower`.
    RETURNS (Doc): The copy.
    """
    words, spaces = [case(token.text) for token in doc], [bool(token.whitespace_) for token in doc]
    attributes: list[int | str] = ["TAG", "POS", "SENT_START", "ENT_IOB", "ENT_TYPE"]
    recased: Doc = Doc(doc.vocab, words=words, spaces=spaces).from_array(attributes, doc.to_array(attributes))
    _carry(doc, recased, np.arange(len(doc)), number_chunks(doc))
    return recased
