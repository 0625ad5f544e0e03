"""Which synthetic texts are kept: all that a language model answers is data, looked at by rules, and mostly dropped."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tqdm
from spacy.language import Language
from spacy.tokens import Doc

from common.alignment import align
from common.annotations import Span
from common.prompts import Method, Named, Seeds, Settings, locate
from common.similarity import NEAR, compare, sketch

GRAM = 8  # words in a row that two texts do not share by chance
FEWEST = 20  # names after which the shares of the labels are looked at
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


def is_whole(text: str) -> bool:
    """Whether a text may be a whole sentence: it was not cut off, and all of its characters could be read.

    text (str): The text, which is not empty.
    """
    last = text[-1]
    cut = last.isalnum() or last in ":,;" or unicodedata.category(last) in ("Pd", "Ps", "Sc", "Sm")  # as - ( $ |
    return not cut and not re.search(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]", text)


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
        named = read_marks(text, self.seeds.pools) if names is None else Named(text, names)
        if isinstance(named, str):
            return named
        spans = locate(named)
        if isinstance(spans, str):
            return spans
        aligned = align(self.nlp, named.text, spans)
        worded = any(any(map(str.isalpha, token.text)) for token in aligned.doc if not token.ent_type_)
        if aligned.cut or aligned.overlapping or not worded or not is_whole(named.text):
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
        # With few labels not all could have less than an equal share
        total, most = self._labels.total(), max(self.settings.most, 1 / len(self.seeds.pools))
        if total >= FEWEST and any(self._labels[ent.label_] > most * total for ent in doc.ents):
            return "balance"
        verdict = ""
        if self.judge is not None and self.settings.disagreement != "keep":
            found, meant = ({(e.start_char, e.end_char, e.label_) for e in d.ents} for d in (self.judge(doc.text), doc))
            if found != meant:
                if self.settings.disagreement == "drop":
                    return "disagreement"
                verdict = "marked"
        doc.user_data["id"] = name
        self._labels.update(ent.label_ for ent in doc.ents)
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
