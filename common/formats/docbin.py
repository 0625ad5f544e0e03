"""DocBin, in which spaCy keeps documents. The ids are in `doc.user_data["id"]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from spacy.tokens import DocBin

from common.annotations import Task
from common.corpora import iob_tags, read_docs
from common.errors import StepError
from common.formats import Entry, Finding, Format, Options
from common.formats.tokens import Finder, read_tags, tag_documents


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    tagged, findings = tag_documents(tasks, "DocBin")
    for one in tagged:
        one.doc.user_data["id"] = one.name
    DocBin(store_user_data=True, docs=[one.doc for one in tagged]).to_disk(folder / FORMAT.file)
    return findings


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    finder = Finder(known)
    try:
        docs = read_docs(path)
    except StepError as error:
        raise StepError(error.problem, "Write it again with spaCy.") from error
    for number, doc in enumerate(docs, start=1):
        place, name = f"{path}, document {number}", doc.user_data.get("id")
        if not doc.has_annotation("ENT_IOB"):
            document, findings = finder.find(name, doc.text)
            yield Entry(place, Task(document=document), findings)
            continue
        complete = doc.has_annotation("ENT_IOB", require_complete=True)
        words = [token.text for token in doc]
        entry = read_tags(
            finder, options, place, name, doc.text, words, iob_tags(doc), "annotated" if complete else "draft"
        )
        found = [] if complete else ["Some tokens are not annotated, so this is a draft."]
        yield entry._replace(findings=[*entry.findings, *found])


FORMAT = Format("docbin", "tasks.spacy", frozenset(), _write, _read)
