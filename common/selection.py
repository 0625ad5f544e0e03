"""Choose the documents that are worth most to whoever annotates them next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tqdm

from common.similarity import compare

RANDOM, UNCERTAIN = "random", "uncertain"  # the reasons for the place of a document in the order of work
RANDOM_SHARE = 0.1  # of each batch, so that what is measured on it says something about all documents
DIVERSE = 0.5  # no two documents of a batch are more similar
MOST = 1000  # so many documents are chosen; nobody annotates more before the next choice


def doubt_spans(scores: Iterable[float | None], tokens: int) -> float:
    """How uncertain the spans are that a pipeline found in a document.

    scores (Iterable[float | None]): The probability of each span, None where there is none, which says nothing.
    tokens (int): The tokens of the document, since the effort of annotating it grows with them.
    RETURNS (float): How many spans are expected to be wrong, for each token.
    """
    return sum(1 - score for score in scores if score is not None) / max(tokens, 1)


def doubt_tags(posteriors: np.ndarray) -> float:
    """How uncertain the tags of a document are, and with them the spans that a pipeline did not find.

    posteriors (np.ndarray): The posterior probabilities of the tags, (tokens, tags).
    RETURNS (float): The entropy of the tags in nats, for each token.
    """
    logarithms = np.log(np.maximum(posteriors, 1e-12))
    return float(-(posteriors * logarithms).sum() / max(len(posteriors), 1))


def order_work(
    doubts: np.ndarray, sketches: np.ndarray, batch: int, random: np.random.Generator
) -> list[tuple[int, str]]:
    """Put documents into the order in which they shall be annotated.

    They come in batches. Some of a batch are drawn at random; the others are the most uncertain ones, without those
    that are similar to another one of the batch, which can come into a later batch. Within a batch the order is random,
    so that it can be left anywhere. After `MOST` documents the others follow at random.

    doubts (np.ndarray): How uncertain each document is, (documents,).
    sketches (np.ndarray): As `sketch` gives them, (documents, numbers), uint32.
    batch (int): How many documents there are in a batch.
    random (np.random.Generator): Draws.
    RETURNS (list[tuple[int, str]]): The number of each document, and RANDOM or UNCERTAIN.
    """
    waiting = np.lexsort((random.random(len(doubts)), -doubts))
    order: list[tuple[int, str]] = []
    bar = tqdm.tqdm(None, "choosing", min(MOST, len(waiting)), unit="doc", disable=None)
    while len(waiting) and len(order) < MOST:
        free = np.ones(len(waiting), dtype=bool)  # may come into this batch
        chosen: list[tuple[int, str]] = []
        while len(chosen) < batch and free.any():
            by_chance = len(chosen) < max(1, round(batch * RANDOM_SHARE))
            place = random.choice(np.flatnonzero(free)) if by_chance else np.argmax(free)
            number = int(waiting[place])
            chosen.append((number, RANDOM if by_chance or not doubts[number] else UNCERTAIN))
            free &= compare(sketches[number], sketches[waiting]) <= DIVERSE
        order += [chosen[place] for place in random.permutation(len(chosen))]
        bar.update(len(chosen))
        waiting = waiting[~np.isin(waiting, [number for number, _ in chosen])]
    bar.close()
    return order + [(int(number), RANDOM) for number in random.permutation(waiting)]
