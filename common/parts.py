"""Annotate a shard of a corpus, and write what was found as one part, which is there whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow
import pyarrow.parquet
import torch
from pyarrow.fs import FileSelector, FileType
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span

from common.errors import StepError
from common.filesystems import file_system, reaching
from common.gpu import use_gpu
from common.shards import Columns, File, Piece, Row, read_rows
from common.suggestions import load_pipeline
from common.workers import Tell

BATCH, BATCH_LENGTH = 64, 100_000  # documents that the pipeline reads at once, and their characters
BUFFER = 10_000_000  # characters of texts whose annotation is in memory
# Their names tell readers of parquet to leave them alone
MANIFEST, RECORDS = "_manifest.json", "_shards"  # that there are all parts, and that there is a part
ON_CPU = "See docs/corpora.md, GPUs, or take the CPU: leave out --vars.gpus"  # a way out where a GPU cannot be used
RENAMES = ("local", "hdfs")  # file systems that rename at once; elsewhere a file appears when it is whole
_CONCEPTS = "bert_ner_concepts_v2"  # the factory of the component that finds concepts, which no other needs


# What a part holds


def _spans(*fields: tuple[str, pyarrow.DataType]) -> pyarrow.DataType:
    return pyarrow.list_(pyarrow.struct([("start", pyarrow.int32()), ("end", pyarrow.int32()), *fields]))


def _read_entity(span: Span) -> dict[str, Any]:
    score = span._.score if span.has_extension("score") else None
    return {
        "start": span.start_char,
        "end": span.end_char,
        "text": span.text,
        "label": span.label_,
        "score": score,
    }


def _read_concept(span: Span) -> dict[str, Any]:
    return {
        **_read_entity(span),
        "rule_id": span.id_,
        "entity_label": span._.entity,
        "negated": span._.negated,
    }


def _read_triples(doc: Doc) -> list[dict[str, Any]]:
    names = ("subject_index", "predicate_index", "object_index")
    numbers = {(span.start, span.end): number for number, span in enumerate(doc.spans.get("concepts", []))}
    found = doc._.triples if numbers else ()
    return [
        {name: span and numbers[span.start, span.end] for name, span in zip(names, triple, strict=True)}
        for triple in found
    ]


def _read_tag(token: Any) -> dict[str, Any]:
    return {"start": token.idx, "end": token.idx + len(token), "tag": token.tag_, "pos": token.pos_}


_ENTITY = (("text", pyarrow.string()), ("label", pyarrow.string()), ("score", pyarrow.float32()))
_INDEXES = [(name, pyarrow.int32()) for name in ("subject_index", "predicate_index", "object_index")]
LAYERS: dict[str, tuple[pyarrow.DataType, Callable[[Doc], list[dict[str, Any]]]]] = {
    "entities": (_spans(*_ENTITY), lambda doc: [*map(_read_entity, doc.ents)]),
    "concepts": (
        _spans(
            *_ENTITY,
            ("rule_id", pyarrow.string()),
            ("entity_label", pyarrow.string()),
            ("negated", pyarrow.bool_()),
        ),
        lambda doc: [*map(_read_concept, doc.spans.get("concepts", []))],
    ),
    "triples": (pyarrow.list_(pyarrow.struct(_INDEXES)), _read_triples),
    "sentences": (
        _spans(),
        lambda doc: [{"start": sentence.start_char, "end": sentence.end_char} for sentence in _sentences(doc)],
    ),
    "tags": (
        _spans(("tag", pyarrow.string()), ("pos", pyarrow.string())),
        lambda doc: [_read_tag(token) for token in doc if not token.is_space],
    ),
}
KEPT = ("text", *(name for name in LAYERS if name != "entities"))  # what a part may hold beside ids and entities


def _sentences(doc: Doc) -> Iterator[Span]:
    return doc.sents if doc.has_annotation("SENT_START") else iter([doc[:]])


def create_schema(keep: Sequence[str], types: Mapping[str, pyarrow.DataType]) -> pyarrow.Schema:
    """Create the schema of parts in parquet.

    keep (Sequence[str]): Those of KEPT that are wanted.
    types (Mapping[str, pyarrow.DataType]): The types of the columns that are passed on.
    RETURNS (pyarrow.Schema): The id, the columns that are passed on, the text and the layers.
    """
    own = {"id": pyarrow.string()}
    own |= {"text": pyarrow.string()} if "text" in keep else {}
    own |= {name: kind for name, (kind, _) in LAYERS.items() if name == "entities" or name in keep}
    return pyarrow.schema([("id", own.pop("id")), *types.items(), *own.items()])


class Job(NamedTuple):
    """All that a process needs to know of the work on a corpus.

    files (Sequence[File]): The files with the texts.
    columns (Columns): Their columns.
    schema (pyarrow.Schema): As `create_schema` makes it.
    pipeline (str): The pipeline, as `load_pipeline` takes it.
    format (str): "parquet" or "docbin".
    target (str): The path or URL of the folder with the parts.
    """

    files: Sequence[File]
    columns: Columns
    schema: pyarrow.Schema
    pipeline: str
    format: str
    target: str


class Shard(NamedTuple):
    """Some rows of a corpus, of which one part is made."""

    number: int
    pieces: Sequence[Piece]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


# Where parts stand


class Target:
    """The folder with the parts, on this machine or elsewhere.

    place (str): A path, or a URL that pyarrow knows.
    """

    def __init__(self, place: str) -> None:
        self.system, self.root = file_system(place)
        self.renames = self.system.type_name in RENAMES

    def names(self, folder: str = "") -> set[str]:
        """The names of the files in it, or in a folder of it."""
        place = f"{self.root}/{folder}".rstrip("/")
        with reaching(self.system):
            infos = self.system.get_file_info(FileSelector(place, allow_not_found=True))
        return {info.base_name for info in infos if info.type == FileType.File}

    def put(self, source: Path, name: str) -> None:
        """Put a file there, in the place of another one of that name. Nobody ever sees a part of it."""
        with source.open("rb") as file:
            self._put(file, name)

    def put_json(self, data: Any, name: str) -> None:
        """Put JSON there, as `put` does."""
        self._put(io.BytesIO(json.dumps(data, ensure_ascii=False).encode()), name)

    def _put(self, file: BinaryIO, name: str) -> None:
        final = f"{self.root}/{name}"
        folder, _, base = final.rpartition("/")
        with reaching(self.system):
            if self.renames:  # an object store has no folders
                self.system.create_dir(folder, recursive=True)
            copy = f"{folder}/.{base}.partial-{os.urandom(4).hex()}" if self.renames else final
            stream = self.system.open_output_stream(copy)
            shutil.copyfileobj(file, stream, 2**20)
            stream.close()  # which says whether a store has it; pyarrow's copy_files would not tell
            if self.renames:
                self.system.move(copy, final)

    def read_json(self, name: str) -> Any:
        """Read JSON from there, or nothing if there is no such file."""
        with (
            reaching(self.system),
            suppress(FileNotFoundError),
            self.system.open_input_file(f"{self.root}/{name}") as file,
        ):
            return json.loads(file.read())
        return None

    def clear(self) -> None:
        """Remove what killed processes have left half written; of that an object store shows nothing."""
        for folder in ("", f"{RECORDS}/") if self.renames else ():
            for name in self.names(folder):
                if name.startswith(".") and ".partial-" in name:
                    self.system.delete_file(f"{self.root}/{folder}{name}")


def name_of(number: int, kind: str) -> str:
    """The name of a part, or of its record, without its folder."""
    return f"part-{number:06}.{ {'docbin': 'spacy'}.get(kind, kind) }"


# Annotating


def load(job: Job, gpu_id: int) -> Language:
    """Load the pipeline of a job, for a process that computes in one thread, or on a GPU.

    The last digits of a score depend on how many threads compute it. One thread in each of several processes takes no
    longer than several in one, and gives the same bytes however many processes there are.

    job (Job): The job.
    gpu_id (int): The number of the GPU among those that the process sees, or -1 for the CPU.
    RETURNS (Language): The pipeline.
    RAISES (StepError): If the pipeline cannot be loaded, or the GPU cannot be used.
    """
    torch.set_num_threads(1)
    try:
        use_gpu(gpu_id)
    except StepError as error:
        raise StepError(error.problem, ON_CPU) from error
    return load_pipeline(job.pipeline)


def annotate_shard(job: Job, nlp: Language, shard: Shard, skipped: Mapping[int, str], tell: Tell) -> dict[str, Any]:
    """Annotate a shard, and write its part, and then its record, by which a part counts as done.

    Documents are annotated in batches that depend on the shard alone, so that the same part comes out whoever makes it.

    job (Job): The job.
    nlp (Language): As `load` returns it.
    shard (Shard): The shard.
    skipped (Mapping[int, str]): Documents that are left out, by their number in the shard, and why.
    tell (Tell): Is told how many more documents and words are annotated.
    RETURNS (dict[str, Any]): The record: the `part`, how many `documents`, `words` and `entities` (by label) it
        has, and the `bad` documents, each with `id`, `place` and `problem`. Nothing of a probe.
    """
    bad: list[dict[str, str]] = []
    readable = _find_readable(job, nlp, shard, skipped, bad)
    kept = [name for name in LAYERS if name in job.schema.names]
    wanted = job.format == "docbin" or "concepts" in kept or "triples" in kept
    disable = [] if wanted else [name for name in nlp.pipe_names if nlp.get_pipe_meta(name).factory == _CONCEPTS]
    if tell.probing:
        for number, row in readable:
            tell.begin(number)
            with nlp.memory_zone():
                _annotate(nlp, [row], disable)
        return {}
    name = name_of(shard.number, job.format)
    counts, labels = Counter[str](documents=0, words=0), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        part: _Parquet | _DocBin = _DocBin(path) if job.format == "docbin" else _Parquet(path, job.schema, kept)
        with part:
            for batch in _make_batches(row for _, row in readable):
                done = Counter[str](documents=0, words=0)
                with nlp.memory_zone():  # without it the vocabulary would grow for ever
                    for row, doc in _annotate(nlp, batch, disable):
                        if isinstance(doc, str):
                            bad.append({"id": row.id, "place": row.place, "problem": doc})
                            continue
                        part.add(row, doc)
                        labels.update(ent.label_ for ent in doc.ents)
                        done.update(documents=1, words=len(row.text.split()))
                counts.update(done)
                tell.advance(done["documents"], done["words"])
        target = Target(job.target)
        target.put(path, name)
        record = {
            "part": name,
            **counts,
            "entities": dict(sorted(labels.items())),
            "bad": bad,
        }
        target.put_json(record, f"{RECORDS}/{name_of(shard.number, 'json')}")
    return record


def _find_readable(
    job: Job, nlp: Language, shard: Shard, skipped: Mapping[int, str], bad: list[dict[str, str]]
) -> Iterator[tuple[int, Row]]:
    """The documents that the pipeline can read, with their numbers in the shard; the others are put into `bad`."""
    rows = (row for piece in shard.pieces for row in read_rows(job.files, piece, job.columns))
    for number, row in enumerate(rows):
        problem = row.problem
        if number in skipped:
            problem = f"it kills the process that annotates it ({skipped[number]})"
        elif len(row.text) > nlp.max_length:
            problem = f"it has {len(row.text):,} characters, and the pipeline reads at most {nlp.max_length:,}"
        if problem:
            bad.append({"id": row.id, "place": row.place, "problem": problem})
        else:
            yield number, row


def _make_batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    length = 0
    for row in rows:
        if batch and (len(batch) == BATCH or length + len(row.text) > BATCH_LENGTH):
            yield batch
            batch, length = [], 0
        batch.append(row)
        length += len(row.text)
    if batch:
        yield batch


def _annotate(nlp: Language, rows: list[Row], disable: list[str]) -> list[tuple[Row, Doc | str]]:
    """Annotate a batch. A document that raises an exception costs itself, and is replaced by what it raised."""
    try:
        docs = nlp.pipe([row.text for row in rows], batch_size=len(rows), disable=disable)
        return list(zip(rows, docs, strict=True))
    except Exception as error:
        _check_gpu()
        if len(rows) > 1:
            return [one for row in rows for one in _annotate(nlp, [row], disable)]
        return [(rows[0], f"the pipeline fails: {type(error).__name__}: {(str(error) or '-').splitlines()[0]}")]


def _check_gpu() -> None:
    """End this process if an error has cost it the GPU: to CUDA nothing helps but a new process.

    Otherwise all documents that come after the one to blame would fail too.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise SystemExit(f"the GPU fails: {(str(error) or '-').splitlines()[0]}") from error


class _Parquet:
    """A part in parquet, which is written bit by bit."""

    def __init__(self, path: Path, schema: pyarrow.Schema, layers: list[str]) -> None:
        self.schema = schema
        self.layers = layers
        self.others = [name for name in schema.names if name not in ("id", "text", *layers)]
        self.writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []
        self.length = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._write()
        self.writer.close()

    def add(self, row: Row, doc: Doc) -> None:
        others = {name: _fit(row.others.get(name), self.schema.field(name).type) for name in self.others}
        found = {name: LAYERS[name][1](doc) for name in self.layers}
        self.rows.append({"id": row.id, "text": row.text, **others, **found})
        self.length += len(row.text)
        if self.length > BUFFER:
            self._write()

    def _write(self) -> None:
        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows, self.length = [], 0


class _DocBin:
    """A part as a DocBin, whose documents have their `id` and `columns` in their user data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.docs = DocBin(store_user_data=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.docs.to_disk(self.path)

    def add(self, row: Row, doc: Doc) -> None:
        doc.user_data["id"] = row.id
        doc.user_data["columns"] = {name: _fit(value, pyarrow.string()) for name, value in row.others.items()}
        self.docs.add(doc)


def _fit(value: Any, kind: pyarrow.DataType) -> Any:
    """A value for a column of this type: where files differ in it, it is that of strings."""
    return str(value) if kind == pyarrow.string() and value is not None else value
