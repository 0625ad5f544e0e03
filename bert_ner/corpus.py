"""The reader of the corpus, and the batcher that varies the training examples in each epoch.

spaCy's registry gets the reader `bert_ner.Corpus.v2`, the callback `bert_ner.RemoveTaggerWithoutTags.v1` and the
batcher `bert_ner.AugmentingBatcher.v1`. A wheel does without this file, since only a training needs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc, Span, Token
from spacy.training import Corpus, Example
from spacy.util import registry


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


@registry.callbacks("bert_ner.RemoveTaggerWithoutTags.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_tagger_remover(path: Path) -> Callable[[Language], Language]:
    """Remove the tagger before a pipeline is initialised if the corpus has no parts of speech to train it on.

    path (Path): A .spacy file, or a folder of such files.
    RETURNS (Callable[[Language], Language]): The callback.
    """

    def remove_tagger(nlp: Language) -> Language:
        examples = Corpus(path)(nlp)
        if "tagger" in nlp.pipe_names and not any(example.reference.has_annotation("TAG") for example in examples):
            nlp.remove_pipe("tagger")
        return nlp

    return remove_tagger


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
        _carry_targets(example.reference, piece.reference, np.arange(a, b))
    return cut


def _carry_targets(old: Doc, new: Doc, rows: np.ndarray) -> None:
    """Give a changed document the targets that the entity recogniser learns from, where the original has some.

    old, new (Doc): The original and the changed document. `user_data["tag_targets"]` has the probabilities of the tags,
        (tokens, tags); a token with a row of zeros is learnt from its annotation instead.
    rows (np.ndarray): For each token of the changed document the same token of the original, or -1 for a new token.
    """
    targets = old.user_data.get("tag_targets")
    if targets is not None:
        new.user_data["tag_targets"] = np.concatenate((targets, np.zeros_like(targets[:1])))[rows]


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
    RETURNS (Example): The copy, with tags, sentence starts and entities. A token of another name is learnt from these.
    """
    doc = example.reference
    keys = [(ent.label_, ent.text.lower()) for ent in doc.ents]
    small = {key for key, ent in zip(keys, doc.ents, strict=True) if not ent.text.isupper()}
    chosen = {
        key: random.choice(names[key[0], key in small]) if random.random() < 1 / 3 else None
        for key in dict.fromkeys(keys)
    }
    # word, space, tag, sentence start, entity, number in the original
    tokens: list[tuple[str, bool, str, bool | None, str | None, int]] = []

    def keep(token: Token) -> None:
        iob = {"": None, "O": "O"}.get(token.ent_iob_, f"{token.ent_iob_}-{token.ent_type_}")
        tokens.append((token.text, bool(token.whitespace_), token.tag_, token.is_sent_start, iob, token.i))

    end = 0
    for key, ent in zip(keys, doc.ents, strict=True):
        for token in doc[end : ent.start]:
            keep(token)
        end = ent.end
        name = chosen[key]
        for i, token in enumerate(ent if name is None else name):
            if name is None:
                keep(token)
                continue
            word = token.text.upper() if ent.text.isupper() else token.text
            space = bool((ent[-1] if i + 1 == len(name) else token).whitespace_)
            tokens.append(
                (word, space, token.tag_, False if i else ent[0].is_sent_start, f"{'I' if i else 'B'}-{key[0]}", -1)
            )
    for token in doc[end:]:
        keep(token)
    columns: list[list[Any]] = [list(column) for column in zip(*tokens, strict=True)] or [[]] * 6
    words, spaces, tags, starts, ents, rows = columns
    given = starts if example.predicted.has_annotation("SENT_START") else None
    renamed = Doc(doc.vocab, words=words, spaces=spaces, sent_starts=starts, tags=tags, ents=ents)
    _carry_targets(doc, renamed, np.array(rows, dtype=int))
    return Example(Doc(doc.vocab, words=words, spaces=spaces, sent_starts=given), renamed)


def recase(doc: Doc, case: Callable[[str], str]) -> Doc:
    """Copy a document with its words in another case, and the same annotation of tokens and entities, and targets.

    doc (Doc): The document.
    case (Callable[[str], str]): Puts a word in the other case, such as `str.lower`.
    RETURNS (Doc): The copy.
    """
    words, spaces = [case(token.text) for token in doc], [bool(token.whitespace_) for token in doc]
    attributes: list[int | str] = ["TAG", "POS", "SENT_START", "ENT_IOB", "ENT_TYPE"]
    recased: Doc = Doc(doc.vocab, words=words, spaces=spaces).from_array(attributes, doc.to_array(attributes))
    _carry_targets(doc, recased, np.arange(len(doc)))
    return recased
