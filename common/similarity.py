"""Find texts that are nearly the same, in time proportional to their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

GRAM = 5  # characters, so that scripts without spaces are compared as well as others
BANDS, ROWS = 25, 5  # two texts are compared if a band agrees: 99% of those with a similarity of 0.7, 1% of 0.2
NEAR = 0.7  # the least similarity of texts that are nearly the same
_NUMBERS = np.random.default_rng(0).integers(2**63, size=(2, BANDS * ROWS), dtype="uint64")
_FACTORS, _OFFSETS = _NUMBERS[0] * 2 + 1, _NUMBERS[1]


def sketch(text: str) -> np.ndarray:
    """Sketch a text by MinHash (Broder 1997): the share of equal numbers in two sketches estimates their similarity.

    The similarity is the Jaccard index of the sets of five characters in a row, where case and the kind and number of
    white space do not count. The standard error of the estimate is 0.05 at most.

    text (str): The text.
    RETURNS (np.ndarray): (BANDS * ROWS,), uint32.
    """
    plain = " ".join(text.casefold().split()).ljust(GRAM)
    codes = np.frombuffer(plain.encode("utf-32-le"), dtype="uint32").astype("uint64")
    grams = np.zeros(len(codes) - GRAM + 1, dtype="uint64")
    for place in range(GRAM):  # what overflows is cut off, here and below, as hashing wants it
        grams = (grams ^ codes[place : place + len(grams)]) * np.uint64(0x9E3779B97F4A7C15)
        grams ^= grams >> np.uint64(32)
    grams = np.unique(grams)
    least = np.full(BANDS * ROWS, 2**32 - 1, dtype="uint32")
    for start in range(0, len(grams), 4096):
        hashes = (grams[start : start + 4096, None] * _FACTORS + _OFFSETS) >> np.uint64(32)
        least = np.minimum(least, hashes.min(0).astype("uint32"))
    return least


def compare(sketch: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """Estimate how similar a text is to others.

    sketch (np.ndarray): Of the text, (BANDS * ROWS,), uint32.
    sketches (np.ndarray): Of the others, (texts, BANDS * ROWS), uint32.
    RETURNS (np.ndarray): The similarities, (texts,), from 0 to 1.
    """
    similarities: np.ndarray = (sketches == sketch).mean(1)
    return similarities


def group_similar(sketches: Sequence[np.ndarray]) -> list[int]:
    """Group texts so that those which are nearly the same, directly or by others between them, are together.

    sketches (Sequence[np.ndarray]): Of the texts, each (BANDS * ROWS,), uint32.
    RETURNS (list[int]): For each text the number of the first one in its group, its own if it is alone.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        first: dict[bytes, int] = {}
        for number, one in enumerate(sketches):
            other = first.setdefault(one[band * ROWS : (band + 1) * ROWS].tobytes(), number)
            if other != number and compare(one, sketches[other][None])[0] >= NEAR:
                pairs.add((other, number))
    rows, columns = zip(*sorted(pairs), strict=True) if pairs else ((), ())
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(sketches),) * 2)
    labels = connected_components(graph, directed=False)[1] if len(sketches) else []
    firsts: dict[int, int] = {}
    return [firsts.setdefault(int(label), number) for number, label in enumerate(labels)]
