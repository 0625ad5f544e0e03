"""Bring texts into the store of a run, where people annotate them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import tqdm
import typer
from wasabi import msg

from common.annotations import Document, Task, checksum_of
from common.errors import StepError, main
from common.groups import GROUP, group_documents, regroup
from common.records import writes
from common.store import STORE, Store
from common.texts import LONGEST, READERS, Source, check_encoding, find_sources, read_documents

TEST: Final = "test"
SHOWN = 10  # so many are named of each kind of trouble


@writes("folder")
def gather(
    folder: Annotated[Path, typer.Argument(help=f"Folder of the run; {STORE} is made there, or added to")],
    texts: Annotated[
        str, typer.Option(help=f"Files ({', '.join(READERS)}), folders, patterns or hub:owner/name, by commas")
    ],
    test_share: Annotated[float, typer.Option(help="Share of the documents that becomes test", min=0, max=1)] = 0.2,
    seed: Annotated[int, typer.Option(help="Draws the documents of test")] = 0,
) -> None:
    """Bring texts into the store, each once; some are put aside at random as test, and stand first in the work."""
    sources, others = find_sources(texts)
    if not sources:
        raise StepError("The run has no texts.", "For example: --vars.texts path/to/folder")
    known = Store(folder / STORE).tasks() if (folder / STORE).exists() else []
    found = sift(sources, known)
    _name("are of other kinds and left alone", list(map(str, others)))
    if not found.new and not known:
        _tell(found, len(sources), 0)
        raise StepError(f"There is no text to annotate in {texts}.", "See above what was found instead.")
    old = {task.document.id for task in known}
    documents = [*(task.document for task in known), *found.new]
    groups = group_documents(documents)
    held_out = choose_test(documents, groups, old, test_share, random.Random(seed))
    for document in found.new:
        if document.id in groups:
            document.meta[GROUP] = groups[document.id]
        if document.id in held_out:
            document.split, document.rank, document.reason = TEST, held_out[document.id], TEST
    store = Store(folder / STORE)
    store.add_documents(found.new)
    store.describe(regroup(documents, groups))
    move_to_test(store, {name: rank for name, rank in held_out.items() if name in old})
    _tell(found, len(sources), sum(document.id in groups for document in found.new))
    msg.good(f"{folder / STORE} has {len(documents):,} documents, {len(found.new):,} of them new")


class Found(NamedTuple):
    """What there is in files.

    new (list[Document]): The documents that are not in the store.
    duplicates (list[str]): Those that are there already, or twice in the files.
    empty (list[str]): Documents without a character.
    refused (list[str]): What cannot be read or annotated, and why.
    guessed (list[str]): Files whose encoding is a guess.
    """

    new: list[Document]
    duplicates: list[str]
    empty: list[str]
    refused: list[str]
    guessed: list[str]


def sift(sources: Sequence[Source], known: Sequence[Task]) -> Found:
    """Read files, and tell the documents that are new from all else.

    sources (Sequence[Source]): The files.
    known (Sequence[Task]): What is in the store. A text that is there counts as a duplicate whatever its id. An id that
        stands for another text is refused, because annotations belong to the text that was annotated.
    RETURNS (Found): The documents and what is to be said of the others.
    """
    found = Found([], [], [], [], [])
    texts = {checksum_of(task.document.text): task.document.id for task in known}
    ids = {task.document.id: _describe(task) for task in known}
    for source in sources:
        if doubt := check_encoding(source.path):
            found.guessed.append(doubt.problem)
    for document in _read(sources):
        if isinstance(document, StepError):
            found.refused.append(document.problem)
            continue
        place = _place_of(document)
        checksum = checksum_of(document.text)
        if not document.text.strip():
            found.empty.append(place)
        elif "\0" in document.text:
            found.refused.append(f"{place}: its text has the character NUL, which no tool of annotation takes.")
        elif len(document.text) > LONGEST:
            found.refused.append(f"{place}: {len(document.text):,} characters are too many, cut it into chapters.")
        elif checksum in texts:
            found.duplicates.append(f"{place} is {texts[checksum]}")
        elif document.id in ids:
            found.refused.append(
                f"{place}: the id {document.id} stands for another text, {ids[document.id]}: give it a new one."
            )
        else:
            found.new.append(document)
            texts[checksum] = document.id
            ids[document.id] = f"that of {place}"
    return found


def _read(sources: Sequence[Source]) -> Iterator[Document | StepError]:
    documents = (document for source in sources for document in read_documents(source))
    yield from tqdm.tqdm(documents, "reading", unit="doc", disable=None)


def _place_of(document: Document) -> str:
    row = document.meta.get("row")
    return f"{document.meta['file']}, row {row}" if row else str(document.meta["file"])


def _describe(task: Task) -> str:
    decided = len(task.annotations)
    return f"that in the store, which stays with its {decided} annotations" if decided else "that in the store"


def choose_test(
    documents: Sequence[Document], groups: dict[str, str], old: set[str], share: float, chance: random.Random
) -> dict[str, float]:
    """Put documents aside for test: at random and from new ones, before anything is suggested for them.

    documents (Sequence[Document]): All documents.
    groups (dict[str, str]): As `group_documents` gives them. Where one of a group is in test, all are.
    old (set[str]): The ids of those that were there before.
    share (float): The share of all documents that shall be in test.
    chance (random.Random): Draws.
    RETURNS (dict[str, float]): The ids of those that come into test, and their places in the work, which are below 0:
        in any order, before all others.
    """
    members: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        members[groups.get(document.id, document.id)].append(document)
    wanted = round(share * len(documents)) - sum(document.split == TEST for document in documents)
    chosen: list[str] = []
    free: list[list[str]] = []
    for group in members.values():
        names = [document.id for document in group if document.split != TEST]
        if len(names) < len(group):
            chosen += names
        elif old.isdisjoint(names):
            free.append(names)
    for names in chance.sample(free, len(free)):
        if len(chosen) + len(names) <= wanted:
            chosen += names
    return {name: chance.random() - 1 for name in chosen}


def move_to_test(store: Store, ranks: dict[str, float]) -> None:
    """Move documents into test which are nearly the same as one there. Nothing is suggested for them any more.

    store (Store): The store.
    ranks (dict[str, float]): The documents by id, and their places in the work.
    """
    for task in store.tasks(list(ranks)):
        for source in {span.source for span in task.suggestions}:
            store.suggest(source, {task.document.id: []})
    store.split(dict.fromkeys(ranks, TEST))
    store.arrange({name: (rank, TEST) for name, rank in ranks.items()})
    _name("are nearly the same as documents of test, and now in test", list(ranks), "Look at their annotations again.")


def _tell(found: Found, files: int, similar: int) -> None:
    """Say how much there was, and name what is not annotated."""
    _name("are there already", found.duplicates)
    _name("are empty", found.empty)
    _name("are refused", found.refused)
    _name("are not in UTF-8, and were read as Windows-1252", found.guessed, "Look at their letters with accents.")
    rows = {
        "files": files,
        "new documents": len(found.new),
        "of them nearly the same as others": similar,
        "duplicates": len(found.duplicates),
        "empty": len(found.empty),
        "refused": len(found.refused),
    }
    msg.table([(name, f"{number:,}") for name, number in rows.items()], aligns=("l", "r"))


def _name(what: str, places: Sequence[str], advice: str = "") -> None:
    """Warn of documents, if there are any, and name the first of them."""
    if places:
        more = [f"and {len(places) - SHOWN:,} more"] if len(places) > SHOWN else []
        msg.warn(f"{len(places):,} {what}:", "\n".join([*places[:SHOWN], *more, *filter(None, [advice])]))


if __name__ == "__main__":
    main(gather)
