"""From annotations to a corpus: what is final, in CoNLL columns, divided into train, dev and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tqdm
import typer
from spacy.tokens import Doc
from wasabi import msg

from common import conll
from common.agreement import decide
from common.alignment import align, create_reader
from common.annotations import Document, Span, Task
from common.corpora import iob_tags
from common.errors import StepError, main
from common.records import SPLITS, claim, made, staged, write_json, writes
from common.splits import DOCUMENTS, FEW, stratify
from common.store import open_store
from common.suggestions import WORDS, Word

CORPUS, RECORD = "corpus", "split.json"
SHARES = (0.7, 0.15, 0.15)  # of train, dev and test
FEWEST = 20  # documents; with fewer, dev and test have two each, and their scores mean nothing
MOST_CUT = 0.05  # of the spans may cut a token; more of them mean that the offsets are of another text or another kind
SHOWN = 10  # so many places are printed; the record has all


class Final(NamedTuple):
    """A document with its final annotation.

    document (Document): The document.
    rows (conll.Document): Its sentences, in rows of words and entities. Not empty.
    labels (Counter[str]): How often each label occurs.
    """

    document: Document
    rows: conll.Document
    labels: Counter[str]


@writes("folder")
def split(
    folder: Annotated[Path, typer.Argument(help="Folder with annotations.db; its corpus/ is made", exists=True)],
    seed: Annotated[int, typer.Option(help="Of the order in which documents are divided")] = 0,
) -> None:
    """Write the final annotations as a corpus that a run can take as its source."""
    store = open_store(folder)
    claim(folder / CORPUS, RECORD)
    tasks = store.tasks()
    finals, record = collect_finals(tasks)
    if len(finals) < FEWEST:
        raise StepError(
            f"{store.path} has {len(finals)} documents with a final annotation, and a corpus needs {FEWEST}.",
            f"Left out are: {describe_counts(record['left_out'])}. Annotate more, and decide what is open.",
        )
    held_out = any(task.document.split == "test" and decide(task).state != "skipped" for task in tasks)
    if held_out and not any(final.document.split == "test" for final in finals):
        raise StepError(
            "No document of test has a final annotation.",
            "Annotate these first: they were drawn at random, and those to learn from cannot take their place.",
        )
    check_cuts(record, sum(final.labels.total() for final in finals), folder)
    places, moved = divide(finals, seed)
    parts = {name: [final for final in finals if places[final.document.id] == name] for name in SPLITS}
    parts["test"] = [final._replace(rows=drop_guesses(final.rows)) for final in parts["test"]]
    record |= {
        "seed": seed,
        "moved_to_their_group": moved,
        "labels": {name: dict(sum((f.labels for f in part), Counter[str]())) for name, part in parts.items()},
        "documents": {name: [final.document.id for final in part] for name, part in parts.items()},
    }
    if empty := [name for name, part in parts.items() if not part]:
        raise StepError(
            f"No document is left for {' and '.join(empty)}: nearly all are in a split already, or near-duplicates.",
            "Annotate more documents of other kinds.",
        )
    made(folder, CORPUS)  # not before: clean must not remove what somebody else put there
    with staged(folder / CORPUS) as new:
        for name, part in parts.items():
            write_split(new / f"{name}.conll", part)
        write_json(new / RECORD, record)
    store.split(places)
    show(record, parts, folder)
    msg.good(f"Wrote {folder / CORPUS}; a run takes it by this line: source: {folder / CORPUS}")


def collect_finals(tasks: list[Task]) -> tuple[list[Final], dict[str, Any]]:
    """Put the final annotations into rows.

    tasks (list[Task]): All documents.
    RETURNS (tuple[list[Final], dict[str, Any]]): The documents that have one. Then `left_out`: how many have none, by
        reason; `flagged`: the ids of those that somebody wants to be looked at again; `cut`: the spans that cut a
        token, each with its `document`, `start`, `end`, `label`, `text`, and as `instead` what the corpus has, or None;
        `overlapping`: the spans that the corpus lacks since a longer one overlaps them; `renamed`: the labels with
        white space, and what the corpus has instead, since columns are separated by it.
    RAISES (StepError): If two labels would become one by that.
    """
    nlp = create_reader()
    finals = []
    left_out: Counter[str] = Counter()
    names: dict[str, str] = {}
    record: dict[str, Any] = {"left_out": left_out, "flagged": [], "cut": [], "overlapping": []}
    for task in tqdm.tqdm(tasks, "aligning", unit="doc", disable=None):
        decision, document = decide(task), task.document
        if decision.annotation is None:
            left_out[decision.state] += 1
            continue
        spans = decision.annotation.spans
        names |= {span.label: "_".join(span.label.split()) for span in spans}
        aligned = align(nlp, document.text, [s.model_copy(update={"label": names[s.label]}) for s in spans])
        rows = create_rows(aligned.doc, document.meta.get(WORDS, []))
        if not rows:
            left_out["without a word"] += 1
            continue
        if decision.annotation.flagged:
            record["flagged"].append(document.id)
        for span, near in aligned.cut:
            place = _locate(document, span)
            record["cut"].append(place | {"instead": near and document.text[near.start : near.end]})
        record["overlapping"] += [_locate(document, span) for span in aligned.overlapping]
        finals.append(Final(document, rows, Counter(ent.label_ for ent in aligned.doc.ents)))
    record["renamed"] = {label: name for label, name in names.items() if label != name}
    if len({*names.values()}) < len(names):
        raise StepError(
            f"Two labels would have one name in the corpus: {', '.join(map(repr, sorted(names)))}.",
            "Labels of a corpus have _ in the place of white space: rename one of the two.",
        )
    return finals, record


def _locate(document: Document, span: Span) -> dict[str, Any]:
    place = {"document": document.id, "start": span.start, "end": span.end, "label": span.label}
    return place | {"text": document.text[span.start : span.end]}


def create_rows(doc: Doc, words: Iterable[Word] = ()) -> conll.Document:
    """Put an annotated Doc into rows, without its white space.

    doc (Doc): With sentences and entities.
    words (Iterable[Word]): What `prelabel` has found of its words. Where a token is none of them, tag and chunk have no
        value.
    RETURNS (conll.Document): Its sentences, none of which is empty.
    """
    known = {(start, end): (tag, chunk) for start, end, tag, chunk in words}
    document: conll.Document = []
    for sent in doc.sents:
        sentence: conll.Sentence = []
        for token, entity in zip(sent, iob_tags(sent), strict=True):
            if token.is_space:
                continue
            pos, chunk = known.get((token.idx, token.idx + len(token)), ("", ""))
            if chunk.startswith("I-") and (not sentence or sentence[-1].chunk[2:] != chunk[2:]):
                chunk = f"B-{chunk[2:]}"  # its first word is in another sentence here, or is not known
            sentence.append(conll.Token(token.text, entity, pos, chunk))
        if sentence:
            document.append(sentence)
    return document


def drop_guesses(rows: conll.Document) -> conll.Document:
    """Rows without tags and chunks, which `prelabel` has guessed: in test, scores on them would say nothing."""
    return [[conll.Token(token.text, token.entity) for token in sentence] for sentence in rows]


def check_cuts(record: dict[str, Any], entities: int, folder: Path) -> None:
    """Say which spans cut a token or overlap, and refuse a corpus in which many are cut.

    record (dict[str, Any]): As `collect_finals` returns it.
    entities (int): How many entities the corpus has.
    folder (Path): Where the annotations are.
    RAISES (StepError): If the share of spans that cut a token is above MOST_CUT.
    """
    for span in record["cut"][:SHOWN]:
        instead = "left out, for it holds no word" if span["instead"] is None else f"{span['instead']!r} instead"
        msg.warn(f"{_describe(span)} does not begin and end with a token: {instead}.")
    for span in record["overlapping"][:SHOWN]:
        msg.warn(f"{_describe(span)} overlaps a longer span: left out.")
    more = sum(max(0, len(record[kind]) - SHOWN) for kind in ("cut", "overlapping"))
    if more:
        msg.warn(f"And {more} more such spans.")
    if len(record["cut"]) > MOST_CUT * max(1, entities):
        first = record["cut"][0]
        raise StepError(
            f"{len(record['cut'])} spans of {folder} cut a token, more than {MOST_CUT:.0%} of {entities}, such as "
            f"{_describe(first)}.",
            "The offsets may count bytes or UTF-16 units instead of characters: import the annotations again, or mend "
            "the spans that are listed.",
        )


def _describe(span: dict[str, Any]) -> str:
    return f"{span['document']}, characters {span['start']} to {span['end']}: {span['text']!r} ({span['label']})"


def divide(finals: list[Final], seed: int) -> tuple[dict[str, str], list[str]]:
    """Divide documents into splits: near-duplicates together, and each split with its share of every label.

    Documents that are in a split stay there. If some are in test, that was chosen before, at random, and gets none of
    the documents that were chosen to learn from.

    finals (list[Final]): The documents.
    seed (int): Of the order in which they are divided.
    RETURNS (tuple[dict[str, str], list[str]]): The split of each document by id; and the ids of those that left their
        split for that of a near-duplicate, test before dev before train.
    """
    groups: dict[Any, list[Final]] = defaultdict(list)
    for final in finals:
        group = final.document.meta.get("group")
        groups["document" if group is None else "group", final.document.id if group is None else str(group)].append(
            final
        )
    members = list(groups.values())
    fixed = [
        max((SPLITS.index(final.document.split) for final in group if final.document.split), default=None)
        for group in members
    ]
    counts = [
        Counter({DOCUMENTS: len(group)}) + Counter(label for final in group for label in final.labels)
        for group in members
    ]
    shares = (
        SHARES if SPLITS.index("test") not in fixed else (SHARES[0] / sum(SHARES[:2]), SHARES[1] / sum(SHARES[:2]), 0)
    )
    places = {}
    moved = []
    for group, part in zip(members, stratify(counts, shares, seed, fixed), strict=True):
        for final in group:
            places[final.document.id] = SPLITS[part]
            if final.document.split not in (None, SPLITS[part]):
                moved.append(final.document.id)
    return places, moved


def write_split(path: Path, part: list[Final]) -> None:
    """Write a split, and make sure that it is read as it was written.

    path (Path): The file.
    part (list[Final]): Its documents.
    RAISES (StepError): If a document has words that the format cannot hold, which names it.
    """
    if _is_kept(path, part):
        return
    wrong = next(final.document.id for final in part if not _is_kept(path, [final]))
    raise StepError(
        f"The document {wrong} has words or labels that CoNLL columns cannot hold, such as {conll.MARK}.",
        "Skip it, and it will be left out; a label has at most 200 printable characters.",
    )


def _is_kept(path: Path, part: list[Final]) -> bool:
    documents = [final.rows for final in part]
    conll.write_conll(path, documents)
    try:
        return conll.read_conll(path).documents == documents
    except StepError:
        return False


def describe_counts(counts: dict[str, int]) -> str:
    """Numbers by name, as text."""
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def show(record: dict[str, Any], parts: dict[str, list[Final]], folder: Path) -> None:
    """Print what each split has, and what to know of it.

    record (dict[str, Any]): As split.json has it.
    parts (dict[str, list[Final]]): The documents of each split.
    folder (Path): The folder annotate/<run>.
    """
    rows = [
        (
            name,
            len(part),
            sum(len(sentence) for final in part for sentence in final.rows),
            ", ".join(f"{label} {number}" for label, number in sorted(record["labels"][name].items())),
        )
        for name, part in parts.items()
    ]
    msg.table(rows, header=("split", "documents", "tokens", "entities"), divider=True, aligns=("l", "r", "r", "l"))
    if record["left_out"]:
        msg.info(f"Left out: {describe_counts(record['left_out'])}.")
    for label, name in record["renamed"].items():
        msg.info(f"The label {label!r} is {name} in the corpus.")
    if record["flagged"]:
        msg.warn(
            f"{len(record['flagged'])} documents are flagged to be looked at again: {', '.join(record['flagged'])}"
        )
    if record["moved_to_their_group"]:
        moved = ", ".join(record["moved_to_their_group"])
        msg.warn(f"Moved to the split of a near-duplicate: {moved}. A model trained before may have seen them.")
    if sum(map(len, parts.values())) < FEW:
        msg.warn(
            f"With fewer than {FEW} documents, dev is tiny, and scores on it are luck.",
            f"Five folds over all documents tell more: make audit RUN={folder.name} VARS='--vars.folds 5'",
        )


if __name__ == "__main__":
    main(split)
