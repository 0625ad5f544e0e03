"""Divide documents so that each part has its share of every label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

FEW = 50  # with fewer documents, dev has so few that five folds over all of them tell more
DOCUMENTS = ""  # stands among the labels for the number of documents; no label is empty


def stratify(
    groups: Sequence[Counter[str]], shares: Sequence[float], seed: int, fixed: Sequence[int | None] | None = None
) -> list[int]:
    """Divide groups of documents by iterative stratification (Sechidis et al. 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10): the documents with the rarest label first, each to the part that
    lacks this label most.

    groups (Sequence[Counter[str]]): For each group, which stays together, how many of its documents have a label,
        and by DOCUMENTS how many it has.
    shares (Sequence[float]): What part of the documents each part shall have. One with the share 0 gets nothing new,
        and what is fixed there does not count.
    seed (int): Of the order within a label.
    fixed (Sequence[int | None] | None): The part where a group is already, or None.
    RETURNS (list[int]): The part of each group.
    """
    places = list(fixed or [None] * len(groups))
    total: Counter[str] = Counter()
    for group, place in zip(groups, places, strict=True):
        if place is None or shares[place]:
            total.update(group)
    lacking = [{name: share * number for name, number in total.items()} for share in shares]
    for group, place in zip(groups, places, strict=True):
        if place is not None and shares[place]:
            for name, number in group.items():
                lacking[place][name] -= number
    allowed = [part for part, share in enumerate(shares) if share]
    waiting = [i for i in np.random.default_rng(seed).permutation(len(groups)).tolist() if places[i] is None]
    waiting.sort(key=lambda i: -groups[i][DOCUMENTS])  # a large group fits only while there is room
    while waiting:
        left: Counter[str] = Counter()
        for i in waiting:
            left.update(groups[i])
        rarest = min(left, key=lambda name: (name == DOCUMENTS, left[name], name))
        for i in waiting:
            if groups[i][rarest]:
                part = max(allowed, key=lambda part: (lacking[part][rarest], lacking[part][DOCUMENTS]))
                places[i] = part
                for name, number in groups[i].items():
                    lacking[part][name] -= number
        waiting = [i for i in waiting if places[i] is None]
    return [place for place in places if place is not None]
