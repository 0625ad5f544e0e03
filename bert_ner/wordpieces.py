"""The windows in which the encoder reads documents, their wordpieces, and the case of these.

spaCy's registry gets the windows `bert_ner.EqualSpans.v1` and `bert_ner.WordpieceReader.v1`, which the transformer of
encoder.py looks up there. A wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

import itertools
import json
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from spacy.tokens import Doc, Span
from spacy.util import registry
from spacy_transformers import registry as transformers_registry
from spacy_transformers.align import get_alignment_via_offset_mapping
from spacy_transformers.data_classes import WordpieceBatch
from spacy_transformers.layers.transformer_model import huggingface_tokenize
from spacy_transformers.truncate import truncate_oversize_splits
from thinc.types import Ragged

CACHED_RUNS = 200_000  # after so many different ones, about 100 MB, the cache begins afresh

# Private parts of other libraries
#
# This was checked with spacy-transformers 1.4.0.
# - `huggingface_tokenize`, `get_alignment_via_offset_mapping` and `truncate_oversize_splits` have public names, but no
#   documentation. Where one of them is gone, the import above fails and names it.


@transformers_registry.span_getters("bert_ner.EqualSpans.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_equal_spans(size: int, overlap: int) -> Callable[[list[Doc]], list[list[Span]]]:
    """Cut each document into the fewest windows of at most `size` tokens, whose lengths differ by at most one token.

    Equal windows leave no short rest without context, and they need less padding.

    size (int): The most tokens in a window.
    overlap (int): The number of tokens that a window shares with the next, below `size`. The vectors of such a token
        are averaged.
    RETURNS (Callable[[list[Doc]], list[list[Span]]]): Gives the windows of each document. An empty one has none.
    RAISES (ValueError): If the overlap is not between 0 and `size`.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"The overlap of windows of {size} tokens is {overlap}: choose one from 0 to {size - 1}.")

    return partial(_cut_equally, size=size, overlap=overlap)


def _cut_equally(docs: list[Doc], size: int, overlap: int) -> list[list[Span]]:
    windows = []
    for doc in docs:
        number = max(1, -(-(len(doc) - overlap) // (size - overlap))) if len(doc) else 0
        starts = [(len(doc) - overlap) * i // number for i in range(number + 1)] if number else []
        windows.append([doc[start : end + overlap] for start, end in itertools.pairwise(starts)])
    return windows


@registry.misc("bert_ner.WordpieceReader.v1")  # type: ignore[untyped-decorator,unused-ignore]
class WordpieceReader:
    """Finds the wordpieces of windows, their case, and which of them each token has, for a tokenizer of any kind.

    Several threads, and all copies of a model, may use one reader. A process that gets it begins with an empty cache.
    """

    CASES = 5

    def __init__(self) -> None:
        self.caches: WeakKeyDictionary[Any, _WordpieceCache | None] = WeakKeyDictionary()  # by tokenizer
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return WordpieceReader, ()

    def read(
        self, tokenizer: Any, docs: list[Doc], windows: list[list[Span]]
    ) -> tuple[list[list[Span]], WordpieceBatch, Ragged]:
        """Find the wordpieces of windows, by a cache where the tokenizer allows it.

        tokenizer (transformers.PreTrainedTokenizerFast): The tokenizer.
        docs (list[Doc]): The documents.
        windows (list[list[Span]]): The windows of each document, which cover all its tokens.
        RETURNS (tuple[list[list[Span]], WordpieceBatch, Ragged]): The windows, of which those with more wordpieces than
            the encoder takes are halved; their wordpieces; and the wordpieces of each token, as indices into those of
            the batch. A single token may have too many. It loses only its own.
        """
        with self.lock:
            if tokenizer not in self.caches:
                self.caches[tokenizer] = _WordpieceCache(tokenizer) if _cuts_at_spaces(tokenizer) else None
            cache = self.caches[tokenizer]
            return _read(tokenizer, windows) if cache is None else cache.read(docs, windows)

    @staticmethod
    def find_cases(docs: list[Doc], wordpieces: WordpieceBatch, align: Ragged) -> np.ndarray:
        """Find how the token of each wordpiece is capitalised, which an uncased tokenizer does not tell.

        docs (list[Doc]): The documents.
        wordpieces (WordpieceBatch): Their wordpieces.
        align (Ragged): The wordpieces of each token, as indices into those of the batch.
        RETURNS (np.ndarray): Of the shape of the wordpieces, int64, below CASES: 1 for `Turku`, 2 for `FINLAND`, 3 for
            one letter such as `I`, 4 for a mixture such as `McKay`; 0 for tokens without capital letters and for all
            else.
        """
        columns = np.concatenate([doc.to_array(["ORTH", "LOWER", "IS_UPPER", "IS_TITLE", "LENGTH"]) for doc in docs])
        orth, lower, upper, title, length = columns.T
        cases = np.select([orth == lower, (upper == 1) & (length == 1), upper == 1, title == 1], [0, 3, 2, 1], 4)
        found = np.zeros(wordpieces.input_ids.size, dtype="int64")
        found[align.dataXd.flatten()] = np.repeat(cases, align.lengths)
        return found.reshape(wordpieces.input_ids.shape)


def _read(tokenizer: Any, windows: list[list[Span]]) -> tuple[list[list[Span]], WordpieceBatch, Ragged]:
    """Find wordpieces and alignment as spacy-transformers does, which takes the last ones from too long windows."""
    windows = [list(spans) for spans in windows]
    limit = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    # A wordpiece has at least a byte, but not always a character: some tokenizers work on bytes.
    suspects = [(spans, s) for spans in windows for s in spans if len(s) > 1 and len(s.text.encode()) >= limit]
    while suspects:
        texts = [span.text for _, span in suspects]
        # The tokenizer of the library below is faster, since it makes no lists for Python.
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        halves = []
        for (spans, span), encoding in zip(suspects, encodings, strict=True):
            if sum(encoding.attention_mask) > limit:
                i, middle = spans.index(span), len(span) // 2
                spans[i : i + 1] = [span[:middle], span[middle:]]
                halves += [(spans, half) for half in spans[i : i + 2] if len(half) > 1]
        suspects = halves
    flat = [span for spans in windows for span in spans]
    encoding = huggingface_tokenize(tokenizer, [span.text for span in flat])
    wordpieces, align = truncate_oversize_splits(
        WordpieceBatch.from_batch_encoding(encoding),
        get_alignment_via_offset_mapping(flat, encoding["offset_mapping"]),
        tokenizer.model_max_length,
    )
    return windows, wordpieces, align


def _cuts_at_spaces(tokenizer: Any) -> bool:
    """Tell whether the wordpieces of a text are those of its parts between spaces, one after the other, as in BERT."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [(description[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    return (
        parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and len(tokenizer("")["input_ids"]) == 2  # [CLS] and [SEP]
        and not any(
            added["lstrip"] or added["rstrip"] or added["single_word"] or " " in added["content"]
            for added in description["added_tokens"]
        )
    )


class _WordpieceCache:
    """The wordpieces of runs, which are tokens without a space between them, and which of them each token has.

    tokenizer (transformers.PreTrainedTokenizerFast): A tokenizer that cuts texts at spaces first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.first, self.last = tokenizer("")["input_ids"]
        self.padding, self.limit = tokenizer.pad_token_id, tokenizer.model_max_length - 2
        self.strings = {number: string for string, number in tokenizer.get_vocab().items()}
        self.clear()

    def clear(self) -> None:
        self.numbers: dict[int | tuple[int, ...], int] = {}  # of the runs, by the hash of the token or of the tokens
        self.ids = _Rows()  # of each run the wordpieces
        self.counts = _Rows()  # of each run the number of wordpieces of each token
        self.aligned = _Rows()  # of each run the wordpieces of the first token, of the second, and so on

    def read(self, docs: list[Doc], windows: list[list[Span]]) -> tuple[list[list[Span]], WordpieceBatch, Ragged]:
        """Find wordpieces and alignment, as `WordpieceReader.read` describes them."""
        if max(len(self.numbers), self.ids.size // 10) > CACHED_RUNS:
            self.clear()
        found = [self._find_runs(doc, spans) for doc, spans in zip(docs, windows, strict=True)]
        for spans, parts in zip(windows, found, strict=True):
            for i in reversed(range(len(spans))):
                if len(spans[i]) > 1 and self.ids.lengths[parts[i]].sum() > self.limit:
                    halves = self._halve(spans[i])
                    spans[i : i + 1] = halves
                    parts[i : i + 1] = self._find_runs(halves[0].doc, halves)
        flat = [span for spans in windows for span in spans]
        by_window = [runs for part in found for runs in part]
        runs = np.concatenate(by_window)
        window = np.repeat(np.arange(len(flat)), [len(part) for part in by_window])  # of each run

        sizes = self.ids.lengths[runs]
        counts = np.bincount(window, sizes, len(flat)).astype(int)  # of the wordpieces of each window
        before = np.cumsum(sizes) - sizes - np.repeat(np.cumsum(counts) - counts, [len(part) for part in by_window])
        kept = np.minimum(counts, self.limit)  # a single token may have too many
        longest = int(kept.max()) + 2
        ids = np.full((len(flat), longest), self.padding)
        ids[:, 0], ids[np.arange(len(flat)), kept + 1] = self.first, self.last
        places = np.repeat(window, sizes), np.repeat(before + 1, sizes) + _count_up(sizes)
        fits = places[1] <= self.limit
        ids[places[0][fits], places[1][fits]] = self.ids.take(runs)[fits]
        mask = np.arange(longest) < (kept + 2)[:, None]

        # Pairs of a token and a wordpiece
        starts = np.cumsum([0, *(len(doc) for doc in docs)])
        firsts = [start + span.start for start, spans in zip(starts, windows, strict=False) for span in spans]
        lengths = np.array([len(span) for span in flat])
        tokens = np.repeat(np.array(firsts), lengths) + _count_up(lengths)
        token = np.repeat(tokens, self.counts.take(runs))
        pairs = self.aligned.lengths[runs]
        place = np.repeat(before + 1, pairs) + self.aligned.take(runs)
        fits, wordpiece = place <= self.limit, np.repeat(window * longest, pairs) + place
        token, wordpiece = token[fits], wordpiece[fits]
        align = Ragged(
            wordpiece[np.argsort(token, kind="stable")].astype("int32"),
            np.bincount(token, minlength=starts[-1]).astype("int32"),
        )
        strings = [[self.strings[number] for number in row] for row in ids.tolist()]
        return windows, WordpieceBatch(strings, ids, mask.astype("float32"), (kept + 2).tolist(), None), align

    def _find_runs(self, doc: Doc, spans: list[Span]) -> list[np.ndarray]:
        """Find the numbers of the runs in each window of a document: (runs,), int."""
        hashes, spaces = doc.to_array(["ORTH", "SPACY"]).T
        hashes, ends = hashes.tolist(), np.flatnonzero(spaces) + 1
        bounds = []
        for span in spans:
            low, high = np.searchsorted(ends, (span.start + 1, span.end))
            bounds.append([span.start, *ends[low:high].tolist(), span.end])
        keys = [
            [hashes[a] if b - a == 1 else tuple(hashes[a:b]) for a, b in itertools.pairwise(places)]
            for places in bounds
        ]
        new = {
            key: doc[a:b]
            for row, places in zip(keys, bounds, strict=True)
            for key, (a, b) in zip(row, itertools.pairwise(places), strict=True)
            if key not in self.numbers
        }
        if new:
            self._add(new)
        return [np.array([self.numbers[key] for key in row]) for row in keys]

    def _add(self, new: dict[int | tuple[int, ...], Span]) -> None:
        """Add runs to the cache."""
        encodings = self.backend.encode_batch([span.text for span in new.values()], add_special_tokens=False)
        for (key, span), encoding in zip(new.items(), encodings, strict=True):
            offsets = encoding.offsets[: sum(encoding.attention_mask)]  # without padding
            starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
            aligned = []
            for token in span:
                place = token.idx - span.start_char
                aligned.append(range(bisect_right(ends, place), bisect_left(starts, place + len(token))))
            self.numbers[key] = self.ids.append(encoding.ids[: len(offsets)])
            self.counts.append([len(row) for row in aligned])
            self.aligned.append([i for row in aligned for i in row])

    def _halve(self, span: Span) -> list[Span]:
        """Halve a window until each part fits, or is a single token."""
        middle = len(span) // 2
        halves = []
        for half in (span[:middle], span[middle:]):
            (runs,) = self._find_runs(span.doc, [half])
            fits = len(half) == 1 or self.ids.lengths[runs].sum() <= self.limit
            halves += [half] if fits else self._halve(half)
        return halves


class _Rows:
    """A growing list of rows of integers, of which many can be taken at once."""

    def __init__(self) -> None:
        self.data, self.starts, self.lengths = (np.zeros(1024, dtype=int) for _ in range(3))
        self.rows = self.size = 0

    def append(self, row: list[int]) -> int:
        """Append a row. RETURNS (int): Its number."""
        while self.size + len(row) > len(self.data):
            self.data = np.concatenate((self.data, np.zeros_like(self.data)))
        if self.rows == len(self.starts):
            self.starts = np.concatenate((self.starts, np.zeros_like(self.starts)))
            self.lengths = np.concatenate((self.lengths, np.zeros_like(self.lengths)))
        self.data[self.size : self.size + len(row)] = row
        self.starts[self.rows], self.lengths[self.rows] = self.size, len(row)
        self.size, self.rows = self.size + len(row), self.rows + 1
        return self.rows - 1

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Take rows, (n,), one after the other."""
        lengths = self.lengths[rows]
        taken: np.ndarray = self.data[np.repeat(self.starts[rows], lengths) + _count_up(lengths)]
        return taken


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """Count from 0 to each length: of 2 and 3, the result is 0, 1, 0, 1, 2."""
    starts = np.cumsum(lengths) - lengths
    counted: np.ndarray = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return counted
