"""Annotate texts of any amount: a folder of parts and a manifest, with each document exactly once."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import pyarrow
import torch
import tqdm
import typer
from pyarrow.fs import LocalFileSystem
from spacy.util import get_package_path
from thinc.compat import has_cupy
from wasabi import msg

from bert_ner.inference import DTYPE_VARIABLE
from common.devices import choose_devices
from common.errors import StepError, main
from common.parts import (
    KEPT,
    MANIFEST,
    ON_CPU,
    RECORDS,
    Job,
    Shard,
    Target,
    annotate_shard,
    create_schema,
    load,
    name_of,
)
from common.ray import on_ray
from common.records import locked, read_json, record_inputs
from common.shards import KINDS, Columns, File, Piece, find_files, pack, survey
from common.spark import on_spark
from common.workers import count_cores, supervise

PLAN = f"{RECORDS}/plan.json"
ALL = "all"  # for gpus: those of this machine, or those that the engine gives
SHOWN = 10  # so many bad documents are named; the manifest names all


class Format(StrEnum):
    """Of the parts."""

    PARQUET = "parquet"
    DOCBIN = "docbin"


class Engine(StrEnum):
    """What starts the processes: this command, on this machine, or Spark or Ray, wherever it runs."""

    LOCAL = "local"
    SPARK = "spark"
    RAY = "ray"


CLUSTERS = {Engine.SPARK: on_spark, Engine.RAY: on_ray}


def annotate_corpus(
    texts: Annotated[
        str, typer.Argument(help=f"Files ({', '.join(KINDS)}), folders, patterns, URLs or hub:owner/name, by commas")
    ],
    target: Annotated[str, typer.Argument(help="Folder or URL for the parts and the manifest")],
    pipeline: Annotated[str, typer.Option(help="A pipeline of spaCy's: a folder or an installed name")],
    text_column: Annotated[str, typer.Option(help="The column of tables with the text")] = "text",
    id_column: Annotated[str, typer.Option(help="The column of tables with the id")] = "id",
    columns: Annotated[str, typer.Option(help="Other columns that are passed on, by commas; all, or none")] = "all",
    keep: Annotated[str, typer.Option(help=f"What parts hold beside entities, by commas: {', '.join(KEPT)}")] = "",
    part_format: Annotated[Format, typer.Option("--format", help="Of the parts")] = Format.PARQUET,
    size: Annotated[int, typer.Option(help="The most documents of a part", min=1)] = 1000,
    processes: Annotated[int, typer.Option(help="Processes, each with the pipeline; 0 for one a core", min=0)] = 0,
    engine: Annotated[Engine, typer.Option(help="What starts them, here or on a cluster")] = Engine.LOCAL,
    gpus: Annotated[str, typer.Option(help=f"GPUs, with one process on each: 0,1 or {ALL}")] = "",
) -> None:
    """Annotate a corpus; what is done already is not done again, and what cannot be annotated is named."""
    if not texts.strip() or not target.strip() or not pipeline.strip():
        raise StepError(
            "It takes texts, a pipeline and a folder for what is found.",
            "For example: --vars.texts path/to/texts --vars.pipeline en_bert_ner --vars.target path/to/folder",
        )
    os.environ["OMP_NUM_THREADS"] = "1"  # see `load`
    devices = choose_places(processes, gpus) if engine == Engine.LOCAL else []
    place = Target(target)
    with (
        nullcontext() if engine == Engine.LOCAL else open_cluster(engine, processes, gpus) as annotate_there,
        # Two commands at a time would do everything twice
        locked(Path(place.root)) if isinstance(place.system, LocalFileSystem) else nullcontext(),
    ):
        place.clear()
        chosen = Columns(text_column, id_column, parse_columns(columns))
        plan = make_plan(place, texts, pipeline, chosen, parse_kept(keep), part_format, size, "gpu" if gpus else "cpu")
        job = Job(plan.files, chosen, plan.schema, pipeline, part_format.value, target)
        finished = place.names(RECORDS)
        left = [shard for shard in plan.shards if name_of(shard.number, "json") not in finished]
        check_parts(place, [shard for shard in plan.shards if name_of(shard.number, "json") in finished], part_format)
        if left and annotate_there:
            annotate_there(job, left)  # which shows how far it is itself
        elif left:
            annotate(job, left, sum(shard.rows for shard in plan.shards), devices)
        manifest = write_manifest(place, plan)
    show(manifest, target)


def parse_columns(names: str) -> tuple[str, ...] | None:
    """Read which columns are passed on: None for all."""
    found = tuple(filter(None, map(str.strip, names.split(","))))
    return None if found == ("all",) else () if found == ("none",) else found


def parse_kept(names: str) -> list[str]:
    """Read what parts hold beside entities.

    names (str): Those of KEPT that are wanted, with commas between them.
    RETURNS (list[str]): Them, in the order of KEPT. Triples refer to concepts, and so bring them along.
    RAISES (StepError): If there is no such thing.
    """
    wanted = set(filter(None, map(str.strip, names.split(","))))
    if unknown := wanted - set(KEPT):
        raise StepError(f"Nothing is called {unknown.pop()!r}.", f"Parts may hold {', '.join(KEPT)}.")
    wanted |= {"concepts"} if "triples" in wanted else set()
    return [name for name in KEPT if name in wanted]


def choose_places(processes: int, gpus: str) -> list[int]:
    """Choose where the processes of this machine compute.

    processes, gpus: As `annotate_corpus` takes them.
    RETURNS (list[int]): For each process the number of its GPU, or -1 for the CPU.
    RAISES (StepError): If there are no such GPUs, or if processes are to share one.
    """
    if not gpus:
        return [-1] * (processes or count_cores())
    if processes:
        raise StepError("Each GPU has one process, so that processes has nothing to say.", "Take --vars.gpus alone.")
    if gpus == ALL:
        gpus = ",".join(map(str, range(max(1, torch.cuda.device_count()))))
    try:
        devices = choose_devices(-1, gpus, 1)
    except StepError as error:
        raise StepError(error.problem, ON_CPU) from error
    if not has_cupy:
        raise StepError("GPUs were asked for, and spaCy needs CuPy for them.", ON_CPU)
    return devices


def open_cluster(
    engine: Engine, processes: int, gpus: str
) -> AbstractContextManager[Callable[[Job, list[Shard]], None]]:
    """Give the context in which an engine annotates shards.

    engine, processes, gpus: As `annotate_corpus` takes them.
    RETURNS (AbstractContextManager[Callable[[Job, list[Shard]], None]]): The context of `on_spark` or `on_ray`.
    RAISES (StepError): If GPUs are named by their numbers.
    """
    if gpus not in ("", ALL):
        raise StepError(
            f"gpus is {gpus!r}, and with the engine {engine} it is the engine that gives each process its GPU.",
            f"--vars.gpus {ALL}, and --vars.processes with the number of GPUs",
        )
    return CLUSTERS[engine](processes, bool(gpus))


class Plan(NamedTuple):
    """What is to be done.

    inputs (dict[str, Any]): What decides the parts.
    files (list[File]): The files with texts.
    shards (list[Shard]): What each part is made of.
    schema (pyarrow.Schema): That of parts in parquet.
    damaged (list[list[str]]): The names of files that cannot be read, and why.
    others (list[str]): Files of other kinds in the same folders.
    """

    inputs: dict[str, Any]
    files: list[File]
    shards: list[Shard]
    schema: pyarrow.Schema
    damaged: list[list[str]]
    others: list[str]


def make_plan(
    place: Target,
    texts: str,
    pipeline: str,
    columns: Columns,
    keep: list[str],
    part_format: Format,
    size: int,
    device: str,
) -> Plan:
    """Make the plan, or find it where an earlier command has begun.

    place (Target): Where parts are written.
    texts, pipeline, columns, keep, part_format, size: As `annotate_corpus` takes them.
    device (str): "cpu" or "gpu", which decides the last digits of scores.
    RETURNS (Plan): The plan, which is written there too.
    RAISES (StepError): If something else stands there, such as parts of other texts or of another pipeline.
    """
    files, others = find_files(texts, place.root)
    inputs = {
        "pipeline": identify(pipeline),
        "dtype": os.environ.get(DTYPE_VARIABLE, "auto"),
        "device": device,
        "columns": [columns.text, columns.id, None if columns.others is None else list(columns.others)],
        "keep": keep,
        "format": part_format.value,
        "size": size,
        "code": record_inputs(code=Path(__file__))["code"],
        "texts": [[file.name, file.size, file.modified] for file in files],
    }
    if known := place.read_json(PLAN):
        if differing := [name for name in inputs if known["inputs"].get(name) != inputs[name]]:
            raise StepError(
                f"{place.root} has parts that were made otherwise: not the same {', '.join(differing)}.",
                "Choose another folder, or remove this one.",
            )
    else:
        if names := sorted(name for name in place.names() if not name.startswith(".")):
            raise StepError(f"{place.root} holds other files, such as {names[0]}.", "Choose an empty folder.")
        bar = tqdm.tqdm(files, "looking through the files", unit="file", disable=None)
        found = survey(bar, columns, size)
        check_columns(columns, found.types)
        schema = create_schema(keep, found.types)
        known = {
            "inputs": inputs,
            "shards": list(pack(found.pieces, size)),
            "schema": base64.b64encode(schema.serialize()).decode(),
            "damaged": found.damaged,
        }
        place.put_json(known, PLAN)
    schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(known["schema"])))
    shards = [Shard(number, [Piece(*piece) for piece in pieces]) for number, pieces in enumerate(known["shards"])]
    return Plan(inputs, files, shards, schema, [*map(list, known["damaged"])], others)


def check_columns(columns: Columns, types: Mapping[str, pyarrow.DataType]) -> None:
    """Make sure that the columns that are passed on are there, and cannot be taken for what is found in the texts.

    columns (Columns): The columns.
    types (Mapping[str, pyarrow.DataType]): Those that the files have, beside text and id.
    RAISES (StepError): If one is not there, or has the name of something that parts may hold.
    """
    if missing := [name for name in columns.others or () if name not in (*types, columns.text, columns.id)]:
        raise StepError(
            f"No file has the column {missing[0]!r}. There are: {', '.join(sorted(types)) or 'no others'}.",
            "Name columns that there are, all or none: --vars.columns date,source",
        )
    own = ("id", "entities", *KEPT)
    if taken := sorted(name for name in types if name.lower() in own):  # the database of corpus-view knows no capitals
        raise StepError(
            f"The texts have the column {taken[0]!r}, and parts may have something else by this name.",
            "Name those columns that shall be passed on, or 'none': --vars.columns date,source",
        )


def check_parts(place: Target, shards: list[Shard], part_format: Format) -> None:
    """Make sure that parts are there whose records are, so that the manifest does not name what somebody has removed.

    place (Target): Where parts stand.
    shards (list[Shard]): Those that have a record.
    part_format (Format): Of the parts.
    RAISES (StepError): If one is not there.
    """
    present = place.names()
    if gone := [shard for shard in shards if name_of(shard.number, part_format.value) not in present]:
        record = f"{RECORDS}/{name_of(gone[0].number, 'json')}"
        raise StepError(
            f"{place.root} lacks {name_of(gone[0].number, part_format.value)}, of which {record} says that it is done.",
            f"Put it back; or remove {record}, and run the same again to make the part anew.",
        )


def identify(pipeline: str) -> dict[str, str]:
    """Say which pipeline it is, without loading it.

    pipeline (str): A folder or an installed name.
    RETURNS (dict[str, str]): Its `name`, `version` and `provenance`: a digest of what its weights were made from, if
        that is recorded, and of its files otherwise.
    RAISES (StepError): If there is no such pipeline.
    """
    try:
        folder = Path(pipeline) if Path(pipeline).exists() else get_package_path(pipeline)
        meta = min(folder.rglob("meta.json"), key=lambda path: len(path.parts))
    except (ImportError, ValueError) as error:
        raise StepError(
            f"{pipeline} is no pipeline.",
            "Name a folder, such as training/<run>/model-best, or a package that is installed, such as en_bert_ner.",
        ) from error
    found = read_json(meta)
    name = f"{found.get('lang', '')}_{found.get('name', '')}"
    provenance = record_inputs(pipeline=meta.parent)["pipeline"]
    return {"name": name, "version": str(found.get("version", "")), "provenance": provenance}


def annotate(job: Job, shards: list[Shard], rows: int, devices: list[int]) -> None:
    """Annotate shards in several processes, and show how far they are.

    job (Job): The job.
    shards (list[Shard]): Those that are not done.
    rows (int): How many rows all shards have.
    devices (list[int]): As `choose_places` gives them.
    RAISES (StepError): If the processes would take more memory than is free.
    """
    done = rows - sum(shard.rows for shard in shards)
    with tqdm.tqdm(desc="annotating", total=rows, initial=done, unit="doc", disable=None) as bar:
        words = 0

        def advance(documents: int, more: int) -> None:
            nonlocal words
            words += more
            bar.set_postfix_str(f"{words / (bar.format_dict['elapsed'] or 1):,.0f} words/s", refresh=False)
            bar.update(documents)

        loads = [partial(load, job, gpu_id) for gpu_id in devices[: len(shards)]]
        check = partial(check_memory, len(loads))
        results = supervise(shards, loads, partial(annotate_shard, job), check, advance)
        with closing(results):
            try:
                for record in results:
                    bar.update(len(record["bad"]))
            except KeyboardInterrupt:
                raise StepError(
                    "Stopped. The parts that are written are kept.", "Run the same again to go on."
                ) from None


def check_memory(processes: int, each: int) -> None:
    """Say how much memory the processes will take.

    processes (int): Their number.
    each (int): The memory of one that has loaded the pipeline, in bytes.
    RAISES (StepError): If that is more than is free.
    """
    free = psutil.virtual_memory().available + each  # the first one has its memory already
    said = f"{processes} processes take {processes * each / 1e9:.1f} GB of memory, {each / 1e9:.1f} GB each"
    if processes * each > free:
        raise StepError(
            f"{said}, and {free / 1e9:.1f} GB are free.",
            f"Start at most {free // each}: --vars.processes {free // each}, or so many GPUs",
        )
    msg.info(f"{said}, and more for long texts")


def write_manifest(place: Target, plan: Plan) -> dict[str, Any]:
    """Write the manifest, which says that all parts are there, from the records of the parts.

    place (Target): Where parts stand.
    plan (Plan): What was done.
    RETURNS (dict[str, Any]): The `inputs`, the `counts`, the `parts` with their documents, and what is `bad`.
    """
    parts: list[dict[str, Any]] = []
    bad = [{"id": name, "place": name, "problem": f"cannot be read: {problem}"} for name, problem in plan.damaged]
    counts, labels = Counter[str](documents=0, words=0), Counter[str]()
    for record in _read_records(place, plan.shards):
        parts.append({"part": record["part"], "documents": record["documents"]})
        bad += record["bad"]
        counts.update(documents=record["documents"], words=record["words"])
        labels.update(record["entities"])
    manifest = {
        "inputs": plan.inputs | {"texts": [name for name, *_ in plan.inputs["texts"]]},
        "counts": {**counts, "entities": dict(sorted(labels.items())), "bad": len(bad)},
        "parts": parts,
        "bad": bad,
        "other_files": plan.others,
    }
    place.put_json(manifest, MANIFEST)
    return manifest


def _read_records(place: Target, shards: list[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield place.read_json(f"{RECORDS}/{name_of(shard.number, 'json')}")


def show(manifest: dict[str, Any], target: str) -> None:
    """Print what was found, and the first documents that could not be annotated."""
    counts, bad = manifest["counts"], manifest["bad"]
    if manifest["other_files"]:
        msg.warn(f"Left {len(manifest['other_files']):,} files of other kinds alone; the manifest names them.")
    if bad:
        lines = [f"{one['place']}: {one['problem']}" for one in bad[:SHOWN]]
        more = [f"and {len(bad) - SHOWN:,} more, see {MANIFEST}"] if len(bad) > SHOWN else []
        msg.warn(f"{len(bad):,} documents or files could not be annotated:", "\n".join([*lines, *more]))
    rows = [(label, f"{number:,}") for label, number in counts["entities"].items()]
    msg.table(rows, header=("label", "entities"), divider=True, aligns=("l", "r"))
    where = target if "://" not in target else "The target"  # a URL may hold a password
    documents, words, parts = counts["documents"], counts["words"], len(manifest["parts"])
    msg.good(f"{where} has {documents:,} documents with {words:,} words in {parts:,} parts")


if __name__ == "__main__":
    main(annotate_corpus)
