"""Find the spellings of one name, by normalisation and by a single slip of the pen. Nothing is known but the names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from rapidfuzz.distance import OSA

LENGTH = 8  # characters from which on names that differ in one may be the same; shorter ones are too often others
COMPARED = 100_000  # so many names of each label are compared, the most frequent ones
_DROPPED = re.compile(r"^the |['\u2019]s?$")


def normalize(name: str) -> str:
    """A name without case, accents, punctuation, possessive ending and article, and with single spaces."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.strip()) if not unicodedata.combining(c)).casefold()
    plain = _DROPPED.sub("", plain)
    kinds = ((character, unicodedata.category(character)) for character in plain)
    plain = "".join(" " if kind == "Pd" else character for character, kind in kinds if kind == "Pd" or kind[0] != "P")
    return " ".join(plain.split()) or name


def group_spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Find what each spelling is a spelling of.

    Spellings that are the same once they are normalised are of one name. Besides, a name of at least LENGTH characters
    joins a more frequent one with the same first letter if one character was left out, put in or exchanged, or if two
    neighbours changed places, in a word and not in a number. It joins only names that have joined no other, so that no
    chain of slips leads from one name to another.

    counts (Mapping[str, int]): How often each spelling occurs, all with the same label.
    RETURNS (dict[str, str]): The most frequent spelling of its name, for each spelling.
    """
    keys = {spelling: normalize(spelling) for spelling in counts}
    totals = Counter[str]()
    for spelling, key in keys.items():
        totals[key] += counts[spelling]
    head_of: dict[str, str] = {}
    heads: defaultdict[str, list[str]] = defaultdict(list)  # by what is left of them without one character
    # The alphabet decides between names of equal frequency
    for number, key in enumerate(sorted(totals, key=lambda key: (-totals[key], key))):
        if number >= COMPARED or len(key) < LENGTH or any(map(str.isdigit, key)):
            head_of[key] = key
            continue
        near = (head for rest in _shorten(key) for head in heads[rest])
        found = [head for head in near if head[0] == key[0] and OSA.distance(head, key, score_cutoff=1) <= 1]
        head_of[key] = min(found, key=lambda head: (-totals[head], head), default=key)
        if head_of[key] == key:
            for rest in _shorten(key):
                heads[rest].append(key)
    best: dict[str, str] = {}
    for spelling in sorted(counts, key=lambda spelling: (-counts[spelling], spelling)):
        best.setdefault(head_of[keys[spelling]], spelling)
    return {spelling: best[head_of[key]] for spelling, key in keys.items()}


def _shorten(key: str) -> Iterator[str]:
    """A key, and it without each of its characters. Two keys that one slip separates have one of these in common."""
    yield key
    for place in range(len(key)):
        yield key[:place] + key[place + 1 :]
