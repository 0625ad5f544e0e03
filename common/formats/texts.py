"""What formats of text files share: UTF-8, file names that stand for ids, labels, and documents without a status."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from common.annotations import Document, Span, Task, checksum_of
from common.conll import LONGEST
from common.errors import StepError
from common.formats import Options, decision_of, without_overlaps

LONGEST_NAME = 240  # bytes; file systems allow 255, and tools put something before or after
UNSAFE = re.compile(r'^\.|[%/\\:*?"<>|\x00-\x1f\x7f]')  # in names of files; a dot at the start hides a file


def read_text(path: Path) -> str:
    """Read a file in UTF-8, its line ends as they are.

    RAISES (StepError): If it is not in UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StepError(f"{path}, line {line}: this is not UTF-8.", "Save the file in UTF-8.") from error


def path_of(folder: Path, document: Document, suffix: str) -> Path:
    """The file of a document, which has its id as its name.

    Characters that names of files cannot have are written as in addresses on the web. An id that is too long gives way
    to `checksum_of` the text, by which the document is found again.
    """
    name = UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", document.id)
    return folder / ((name if len(name.encode()) <= LONGEST_NAME else checksum_of(document.text)) + suffix)


def id_of(path: Path) -> str:
    """The id of the document whose file this is."""
    return unquote(path.stem)


def check_labels(labels: Iterable[str], what: str, reserved: str) -> None:
    """Check that a format can hold labels.

    labels (Iterable[str]): The labels.
    what (str): How messages call the format.
    reserved (str): Printable characters that no label may have there.
    RAISES (StepError): If one has such a character or one that cannot be seen, or if `read_conll` finds it too long.
    """
    for label in labels:
        if not label.isprintable() or any(character in reserved for character in label):
            problem = "has white space or another character that means something there"
        elif len(f"B-{label}") > LONGEST:
            problem = f"has {len(label)} characters"
        else:
            continue
        raise StepError(
            f"{what} cannot hold the label {label[:50]!r}: it {problem}.",
            "Rename the label, or take another format: jsonl holds every label.",
        )


def spans_to_show(task: Task) -> list[Span] | None:
    """The spans of a document for a tool that knows no suggestions: those decided, else those suggested.

    Of suggestions that overlap the longest are shown, since several sources often suggest the same.

    RETURNS (list[Span] | None): The spans, or None if the document was skipped.
    """
    decision = decision_of(task)
    if decision is None:
        return without_overlaps(task.suggestions)
    return None if decision.status == "skipped" else decision.spans


def check_approved(path: Path, options: Options) -> None:
    """Check that the user has said that all documents of a file are finished, where the format cannot say it.

    RAISES (StepError): If not.
    """
    if not options.approved:
        raise StepError(
            f"{path} does not say which documents somebody has finished.",
            "Keep only the finished ones there, and say so: --vars.approved yes",
        )
