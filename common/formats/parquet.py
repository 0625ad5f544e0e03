"""Parquet for token classification by Hugging Face: `tokens`, and `ner_tags` that are class labels.

The columns `id`, `text` and `token_starts` keep what tokens alone would lose. Files without them can be read too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from common.annotations import Task
from common.errors import StepError
from common.formats import Entry, Finding, Format, Options, labels_of
from common.formats.tokens import TAG, Finder, read_tags, tag_documents


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    import pyarrow
    from datasets import ClassLabel, Features, Sequence, Value
    from pyarrow.parquet import write_table

    tagged, findings = tag_documents(tasks, "parquet")
    names = ["O", *(f"{prefix}-{label}" for label in labels_of(tasks, options) for prefix in "BI")]
    numbers = {name: number for number, name in enumerate(names)}
    features = Features(
        {
            "id": Value("string"),
            "text": Value("string"),
            "tokens": Sequence(Value("string")),
            "token_starts": Sequence(Value("int64")),
            "ner_tags": Sequence(ClassLabel(names=names)),
        }
    )
    rows = [
        {
            "id": one.name,
            "text": one.doc.text,
            "tokens": [one.doc[i].text for i in one.tags],
            "token_starts": [one.doc[i].idx for i in one.tags],
            "ner_tags": [numbers[tag] for tag in one.tags.values()],
        }
        for one in tagged
    ]
    write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema), folder / FORMAT.file)
    return findings


def _read(path: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    import pyarrow
    from datasets import Features
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
        feature = Features.from_arrow_schema(table.schema).get("ner_tags")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise StepError(f"{path} cannot be read ({str(error).splitlines()[0]}).", "Write it again.") from error
    names = getattr(getattr(feature, "feature", None), "names", None)
    if "tokens" not in table.column_names or names is None:
        raise StepError(
            f"{path} has no column tokens, or its column ner_tags has no names of class labels.",
            "Write it with datasets, as Sequence(ClassLabel(names=[...])).",
        )
    if wrong := [name for name in names if not TAG.fullmatch(name)]:
        raise StepError(
            f"{path}: {wrong[0]!r}, a class label of ner_tags, is neither O nor B-TYPE nor I-TYPE.",
            "Write the tags in IOB1, IOB2, BIOES or BILUO.",
        )
    finder = Finder(known)
    for number, row in enumerate(table.to_pylist(), start=1):
        place, words = f"{path}, row {number}", row["tokens"] or []
        text = row.get("text") or " ".join(words)
        tags = row["ner_tags"] or []
        if not all(tag is not None and 0 <= tag < len(names) for tag in tags):
            raise StepError(f"{path}, row {number}: a tag has no name.", "Write it again, with all class labels.")
        yield read_tags(finder, options, place, row.get("id"), text, words, [names[tag] for tag in tags])


FORMAT = Format("parquet", "tasks.parquet", frozenset(), _write, _read)
