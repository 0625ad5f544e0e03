"""Read what people annotated in another tool. Nothing that is in the store is lost by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tqdm
import typer
from wasabi import msg

from common.alignment import align, create_reader
from common.annotations import Annotation, Span, Task
from common.errors import StepError, main
from common.formats import Entry, Options, by_source
from common.formats.known import FORMATS, find_format
from common.groups import group_documents, regroup
from common.records import write_json, writes
from common.store import STORE, ConflictError, Store

FINDINGS = "findings.json"
SHOWN = 20  # so many findings are shown; the file has all
STATES = ("annotated", "empty", "skipped", "draft", "unannotated")


class Problem(NamedTuple):
    """A finding with its place.

    place (str): The file and the line in it.
    document (str): The id of the document.
    message (str): What it is, as a sentence.
    """

    place: str
    document: str
    message: str


@writes("folder", FINDINGS)
def import_annotations(
    folder: Annotated[Path, typer.Argument(help=f"Folder of {STORE}, which is made if it is not there")],
    files: Annotated[list[Path], typer.Argument(help="What the tool has exported", exists=True)],
    tool: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}")],
    annotator: Annotated[str, typer.Option(help="Who annotated, if the files do not say so or say it otherwise")] = "",
    tool_labels: Annotated[str, typer.Option(help="Labels that are known beside those of the store, by commas")] = "",
    offsets: Annotated[
        Literal["", "code-points", "utf-16"], typer.Option(help="What offsets count, where the tool does not fix it")
    ] = "",
    approved: Annotated[
        Literal["no", "yes"], typer.Option(help="Whether the files have finished documents only, as you know")
    ] = "no",
) -> None:
    """Add to the store what people annotated in another tool. Nothing is saved before all is checked."""
    format, path = find_format(tool), folder / STORE
    known = {task.document.id: task for task in Store(path).tasks()} if path.exists() else {}
    options = Options(annotator=annotator, offsets=offsets, approved=approved == "yes")
    entries = [
        entry
        for file in files
        for entry in tqdm.tqdm(format.read(file, known, options), file.name, unit="doc", disable=None)
    ]
    entries, findings = match(entries, known)
    findings += find_cuts(entries)
    saved, unsaved = save(Store(path), entries, known)
    findings += unsaved
    write_json(folder / FINDINGS, {"findings": [finding._asdict() for finding in findings]})
    report(entries, findings)
    expected = {label.strip() for label in tool_labels.split(",")} | set(count_labels(known.values()))
    unknown = {label: n for label, n in count_labels(entry.task for entry in entries).items() if label not in expected}
    if unknown:
        msg.warn(f"Labels that were not known: {', '.join(f'{label} ({n})' for label, n in sorted(unknown.items()))}")
    msg.good(f"{path}: {', '.join(f'{number:,} {what}' for what, number in saved.items())}")


def match(entries: Iterable[Entry], known: Mapping[str, Task]) -> tuple[list[Entry], list[Problem]]:
    """Match documents with those of the store: by id, else by the exact text. Others are new.

    entries (Iterable[Entry]): What the files have.
    known (Mapping[str, Task]): What the store has, by id.
    RETURNS (tuple[list[Entry], list[Problem]]): The entries under the ids of the store, without those whose text is
        not that of the store; and all findings, of readers too.
    RAISES (StepError): If an id occurs twice, unless with one text, and with annotations that are the same or by
        different people, or with nothing that could be taken.
    """
    by_text: dict[str, str] = {}
    for task in known.values():
        by_text.setdefault(task.document.text, task.document.id)
    texts: dict[str, tuple[str, str]] = {}
    taken: dict[tuple[str, str], tuple[str, object]] = {}  # by document and annotator: the place, and what it says
    matched, findings = [], []
    for entry in entries:
        task = entry.task
        name, text = task.document.id, task.document.text
        if name not in known and text in by_text:
            name = by_text[text]
            task = rename(task, name)
        findings += [Problem(entry.place, name, message) for message in entry.findings]
        if name in known and text != known[name].document.text:
            findings.append(
                Problem(entry.place, name, "The text is not that of the store, so nothing of it was taken.")
            )
            continue
        place, first = texts.setdefault(name, (entry.place, text))
        if text != first:
            raise _occurs_twice(name, place, entry.place, "with different texts")
        new = []
        for annotation in task.annotations:
            here = entry.place, decision_in(annotation)
            earlier = taken.setdefault((name, annotation.annotator), here)
            if earlier is here:
                new.append(annotation)
            elif earlier[1] != here[1]:
                raise _occurs_twice(name, earlier[0], entry.place, f"annotated by {annotation.annotator}")
            else:
                said = f"{annotation.annotator} says the same as in {earlier[0]}, so it was taken once."
                findings.append(Problem(entry.place, name, said))
        if task.suggestions and not task.annotations:
            if (name, "") in taken:
                raise _occurs_twice(name, taken[name, ""][0], entry.place, "without annotations")
            taken[name, ""] = entry.place, None
        if new or not task.annotations:
            matched.append(Entry(entry.place, task.model_copy(update={"annotations": new})))
    return matched, findings


def _occurs_twice(name: str, first: str, second: str, how: str) -> StepError:
    return StepError(
        f"The document {name} occurs twice, {how}: {first}, and {second}.",
        "Keep one of the two, or give them different ids. Nothing was imported.",
    )


def rename(task: Task, name: str) -> Task:
    """The same task with another id of its document."""
    return task.model_copy(
        update={
            "document": task.document.model_copy(update={"id": name}),
            "annotations": [annotation.model_copy(update={"document": name}) for annotation in task.annotations],
        }
    )


def find_cuts(entries: Iterable[Entry]) -> list[Problem]:
    """Find the spans of annotations that cut a token of the project's tokenizer. They stay as they are."""
    reader = create_reader()
    findings = []
    for entry in tqdm.tqdm(entries, "finding tokens", unit="doc", disable=None):
        document = entry.task.document
        spans = {
            (span.start, span.end, span.label): span
            for annotation in entry.task.annotations
            for span in annotation.spans
        }
        text = document.text
        for span, near in align(reader, text, spans.values()).cut if spans else ():
            where = f"The span {span.label} {span.start}–{span.end} ({text[span.start : span.end]!r})"
            message = f"{where} holds no word."
            if near:
                message = f"{where} cuts a token; {near.start}–{near.end} ({text[near.start : near.end]!r}) would not."
            findings.append(Problem(entry.place, document.id, message))
    return findings


def save(store: Store, entries: Iterable[Entry], known: Mapping[str, Task]) -> tuple[dict[str, int], list[Problem]]:
    """Add to the store what is new. What it replaces stays in the store's history.

    Suggestions are taken with new documents only: the store has its own of the others.

    store (Store): The store.
    entries (Iterable[Entry]): What came in.
    known (Mapping[str, Task]): What the store has, by id.
    RETURNS (tuple[dict[str, int], list[Problem]]): How much was new, and what was not saved.
    """
    entries = list(entries)
    added = [entry.task for entry in entries if entry.task.document.id not in known]
    counts = {"new documents": store.add_documents(task.document for task in added)}
    if added:  # near-duplicates share a split, also those that `gather` has not brought
        documents = {task.document.id: task.document for task in (*known.values(), *added)}.values()
        store.describe(regroup(documents, group_documents([*documents])))
    suggestions: dict[str, dict[str, list[Span]]] = {}
    for task in added:
        for source, spans in by_source(task.suggestions).items():
            suggestions.setdefault(source, {})[task.document.id] = spans
    for source, by_document in suggestions.items():
        store.suggest(source, by_document)
    counts |= {"annotations saved": 0, "annotations that were there": 0}
    findings = []
    for entry in tqdm.tqdm(entries, "saving", unit="doc", disable=None):
        name = entry.task.document.id
        there = {one.annotator: one for one in known[name].annotations} if name in known else {}
        for annotation in entry.task.annotations:
            earlier = there.get(annotation.annotator)
            new = replace(earlier, annotation)
            if earlier and decision_in(earlier) == decision_in(new):
                counts["annotations that were there"] += 1
            elif earlier and earlier.status != "draft" and annotation.status == "draft":
                message = f"The store has a finished annotation by {annotation.annotator}, and this is none: not saved."
                findings.append(Problem(entry.place, name, message))
            else:
                try:
                    store.save(new)
                    counts["annotations saved"] += 1
                except ConflictError as error:
                    findings.append(Problem(entry.place, name, f"{error} It was not imported: do so once more."))
    return counts, findings


def decision_in(annotation: Annotation) -> tuple[object, ...]:
    """What an annotator decided, without how."""
    spans = sorted((span.start, span.end, span.label) for span in annotation.spans)
    return annotation.status, spans, annotation.ground_truth


def replace(earlier: Annotation | None, annotation: Annotation) -> Annotation:
    """An annotation in the place of an earlier one, of which it keeps what the file does not have."""
    if earlier is None:
        return annotation.model_copy(update={"revision": 0})
    had = annotation.model_fields_set - {"revision"}
    return earlier.model_copy(update={name: getattr(annotation, name) for name in had})


def count_labels(tasks: Iterable[Task]) -> Counter[str]:
    """How often each label occurs in suggestions and annotations."""
    return Counter(
        span.label
        for task in tasks
        for spans in (task.suggestions, *(annotation.spans for annotation in task.annotations))
        for span in spans
    )


def report(entries: Iterable[Entry], findings: list[Problem]) -> None:
    """Print what came in by annotator, and the first findings."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        if not entry.task.annotations:
            counts.setdefault("–", Counter())["unannotated"] += 1
        for annotation in entry.task.annotations:
            state = "empty" if annotation.status == "annotated" and not annotation.spans else annotation.status
            counts.setdefault(annotation.annotator, Counter())[state] += 1
    rows = [(name, *(f"{count[state]:,}" for state in STATES)) for name, count in sorted(counts.items())]
    msg.table(rows, header=("annotator", *STATES), divider=True, aligns=("l", *"r" * len(STATES)))
    for finding in findings[:SHOWN]:
        msg.warn(f"{finding.place}, document {finding.document}: {finding.message}")
    msg.info(f"Findings: {len(findings):,}" + (f"; all of them are in {FINDINGS}" if len(findings) > SHOWN else ""))


if __name__ == "__main__":
    main(import_annotations)
