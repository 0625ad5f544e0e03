"""Read the documents of a corpus, and describe their sentences and entities in the words that several steps use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import StepError

if TYPE_CHECKING:  # the environments of other libraries, which benchmarks run, have no spaCy
    from spacy.tokens import Doc, Span, Token
    from spacy.vocab import Vocab

KINDS = ("prose", "headline", "row")  # of sentences
LENGTHS = ("1", "2", "3", "4", "5 or more")  # of entities, in tokens
EXAMPLES = 50  # so many are quoted of each kind
CONTEXT = 8  # so many tokens are quoted on each side of an entity


def read_docs(path: Path, vocab: Vocab | None = None) -> list[Doc]:
    """Read the documents of a .spacy file.

    path (Path): The file.
    vocab (Vocab | None): The vocabulary that they shall share, or None for a new one.
    RETURNS (list[Doc]): The documents.
    RAISES (StepError): If the file is damaged, or if spaCy has not written it.
    """
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    try:
        return list(DocBin().from_disk(path).get_docs(Vocab() if vocab is None else vocab))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # zlib, msgpack, NumPy and spaCy each raise their own
        raise StepError(
            f"{path} is damaged, or no file of spaCy's: {str(error).splitlines()[0] if str(error) else error!r}",
            "Delete it and run convert again: make convert RUN=<run>",
        ) from error


def find_entity_texts(path: Path) -> set[str]:
    """Read the entities of a .spacy file, as text in lower case."""
    return {ent.text.lower() for doc in read_docs(path) for ent in doc.ents}


def iob_tags(tokens: Iterable[Token]) -> list[str]:
    """The entity tags of tokens in IOB2, `O` where none is set.

    spaCy's `biluo_to_iob` replaces the first `U-` and `L-` anywhere in a tag, and so spoils a label such as MODEL-A.
    """
    return [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in tokens]


def kind_of(sentence: Span) -> str:
    """Tell prose from a headline in capitals and from any other line: a row of a table, a byline, a date.

    sentence (Span): The sentence.
    RETURNS (str): One of KINDS.
    """
    words = [token.text for token in sentence if token.text[0].isalpha()]
    if len(words) > 1 and 2 * sum(word.isupper() for word in words) > len(words):
        return "headline"
    small = sum(word[0].islower() or not word[0].isupper() for word in words)  # a script without case counts as small
    return "prose" if len(words) > 3 and 2 * small >= len(words) else "row"


def split_sentences(docs: Iterable[Any]) -> list[dict[str, Any]]:
    """Split annotated documents into sentences.

    docs (Iterable[Any]): The Docs, with sentence starts.
    RETURNS (list[dict[str, Any]]): For each sentence its `words`, its entity `tags` in IOB2, and its `text`.
    """
    return [
        {
            "words": [token.text for token in sent],
            "tags": iob_tags(sent),
            "text": sent.text,
        }
        for doc in docs
        for sent in doc.sents
    ]


def label_names(sentences: list[dict[str, Any]]) -> list[str]:
    """The tags in IOB2 of all labels that occur: `O` first, then B- and I- of each label."""
    kinds = sorted({tag[2:] for sentence in sentences for tag in sentence["tags"] if tag != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
