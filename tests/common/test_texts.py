from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import DocBin

from common.annotations import Document
from common.errors import StepError
from common.texts import Source, check_encoding, find_files, find_paths, find_sources, read_documents
from tests.common.test_decoding import write_docx, write_pdf
from tests.hub import Hub, connected

nlp = spacy.blank("en")
TEXTS = ["Mira left Turku.", "Oslo sleeps,\nand so does Peru.", "Kenya beat Malta."]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        (text,) = texts
        path.write_text(text, "utf8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n\n" for text in texts), "utf8")
    elif path.suffix == ".parquet":
        rows = pyarrow.table({"id": list(range(len(texts))), "text": texts})
        pyarrow.parquet.write_table(rows, path)
    else:
        DocBin(docs=map(nlp, texts)).to_disk(path)
    return path


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return path


def read(path: Path, name: str = "") -> list[Document]:
    found = list(read_documents(Source(path, name or path.name)))
    assert all(isinstance(one, Document) for one in found), found
    return found  # type: ignore[return-value]


def errors(path: Path) -> list[str]:
    return [one.problem for one in read_documents(Source(path, path.name)) if isinstance(one, StepError)]


# Places


def test_paths_and_patterns_are_found(tmp_path: Path) -> None:
    for name in ("a", "b1", "b2"):
        (tmp_path / name).touch()
    assert find_paths(f"{tmp_path}/b*, {tmp_path}/a,") == [tmp_path / name for name in ("b1", "b2", "a")]
    assert find_paths("") == []
    (tmp_path / "a [old]").mkdir()
    assert find_paths(f"{tmp_path}/a [old]") == [tmp_path / "a [old]"], "a name is no pattern if it is there"
    with pytest.raises(StepError, match=r"There is no .*/c\*"):
        find_paths(f"{tmp_path}/a,{tmp_path}/c*")


def test_files_of_other_kinds_are_refused_or_left_out_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.TXT", "a/c.csv", "a/d.odt", "a/._c.csv", ".old/e.txt", ".old/f.odt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path) == [tmp_path / "a/c.csv", tmp_path / "b.TXT"], "nothing hidden"
    assert find_sources(str(tmp_path))[1] == [tmp_path / "a/d.odt"]
    with pytest.raises(StepError, match=r"d\.odt is not a file of a known kind"):
        find_files(tmp_path / "a/d.odt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match="empty has no file of a known kind"):
        find_files(tmp_path / "empty")


def test_a_file_is_named_by_its_path_below_the_folder_that_was_named_and_read_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts/deep/a.txt", TEXTS[:1])
    names = f"{tmp_path}/texts, {tmp_path}/texts/deep/*.txt"
    for name in (".hidden", "deep/picture.png"):
        (tmp_path / "texts" / name).touch()
    for name in ("gone.txt", "elsewhere"):  # links to nothing, and to a folder, into which nobody looks
        (tmp_path / "texts" / name).symlink_to(tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    sources, others = find_sources(names)
    assert sources == [Source(tmp_path / "texts/deep/a.txt", "deep/a.txt")]
    assert others == [tmp_path / "texts" / name for name in ("deep/picture.png", "elsewhere", "gone.txt")]
    assert find_sources("") == ([], [])


# Documents


def test_a_file_of_each_kind_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(write_pdf())
    (tmp_path / "a.docx").write_bytes(write_docx())
    (tmp_path / "a.csv").write_text("text;id\nMira left;x7\nShe came;")
    write_texts(tmp_path / "a.txt", TEXTS[:1])
    write_texts(tmp_path / "a.spacy", TEXTS)
    found = {path.suffix: [(d.id, d.text) for d in read(path)] for path in sorted(tmp_path.iterdir())}
    assert found == {
        ".csv": [("x7", "Mira left"), ("a.csv#2", "She came")],
        ".docx": [("a.docx", "Before\n\nMira left Turku")],
        ".pdf": [("a.pdf", "Mira left Turku")],
        ".spacy": [(f"a.spacy#{number}", text) for number, text in enumerate(TEXTS, 1)],
        ".txt": [("a.txt", TEXTS[0])],
    }


def test_ids_and_other_columns_come_along(tmp_path: Path) -> None:
    rows = {
        "id": [7, 8],
        "text": TEXTS[:2],
        "page": [1, None],
        "weight": [0.5, math.nan],
        "day": [date(2031, 2, 7)] * 2,
        "sure": [True, False],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "deep/a.parquet") == [
        Document(
            id="7",
            text=TEXTS[0],
            meta={"file": "deep/a.parquet", "row": 1, "columns": {"page": 1, "weight": 0.5, "sure": True}},
        ),
        Document(id="8", text=TEXTS[1], meta={"file": "deep/a.parquet", "row": 2, "columns": {"sure": False}}),
    ]
    table = pyarrow.table({"id": [7.0, None], "text": TEXTS[:2]})  # numbers of which one is missing
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert [document.id for document in read(tmp_path / "b.parquet")] == ["7", "b.parquet#2"]
    path = write_rows(
        tmp_path / "a.jsonl", [{"id": " ", "text": "Fog.", "file": "mine", "row": [1], "\ud800": "\ud800"}]
    )
    assert read(path) == [
        Document(id="a.jsonl#1", text="Fog.", meta={"file": "a.jsonl", "row": 1, "columns": {"file": "mine", "?": "?"}})
    ]


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(st.none() | st.integers() | texts, texts), min_size=1))
def test_ids_are_the_same_each_time_and_no_text_is_changed(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, str]]
) -> None:
    path = write_rows(tmp_path_factory.mktemp("ids") / "a.jsonl", [{"id": own, "text": text} for own, text in rows])
    found = read(path)
    assert [document.text for document in found] == [text for _, text in rows]
    assert found == read(path)
    without = [d.id for d, (own, _) in zip(found, rows, strict=True) if own is None]
    assert len(set(without)) == len(without)


def test_a_row_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "Fog."}\n{"text": \n[1]\n{"text": 3}\n{"text": "\\ud800"}\n{"text": "Rain."}\n' + "[" * 9999
    )
    assert [d.text for d in read_documents(Source(path, "a.jsonl")) if isinstance(d, Document)] == ["Fog.", "Rain."]
    assert [problem.partition(": ")[2][:14] for problem in errors(path)] == [
        "this is not JS",
        "there is no te",
        "there is no te",
        "the text has h",
        "this is not JS",
    ]
    assert [problem.partition(":")[0][-6:] for problem in errors(path)] == [f"line {n}" for n in (2, 3, 4, 5, 7)]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.txt", b"Mira \0 left"),
        ("a.csv", b"Mira \0 left"),
        ("a.pdf", b"%PDF"),
        ("a.docx", b"PK"),
        ("a.parquet", b"PAR1"),
        ("a.spacy", b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, contents: bytes) -> None:
    (tmp_path / name).write_bytes(contents)
    (problem,) = errors(tmp_path / name)
    assert str(tmp_path / name) in problem


def test_a_guessed_encoding_is_told_from_a_sure_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Turku\nnaïve".encode("cp1252"))
    doubt = check_encoding(path)
    assert doubt is not None and doubt.problem == f"{path}, line 2: this is not UTF-8."
    for contents in ("naïve".encode(), "naïve".encode("utf-16"), b"Mira \0 left"):
        path.write_bytes(contents)
        assert check_encoding(path) is None
    assert check_encoding(tmp_path / "a.pdf") is None


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write_texts(tmp_path / "main/data/train.parquet", TEXTS)
    (tmp_path / "main/README.md").write_text("A data set")
    (tmp_path / "main/licence.txt").write_text("Take it.")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README.md").write_text("Nothing")
    revisions = {"main": tmp_path / "main", "other": tmp_path / "other"}
    with Hub({"datasets/mira/fog": revisions}) as hub, connected(hub, tmp_path / "cache", monkeypatch):
        yield hub


def test_a_data_set_on_the_hub_is_read_as_a_folder_of_tables(hub: Hub) -> None:
    (source,), _ = find_sources("hub:mira/fog")
    assert source.name == "mira/fog/data/train.parquet"
    assert [document.text for document in read(*source)] == TEXTS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:mira/rain", "hub:mira/rain cannot be had from the hub: it answers 401"),
        ("hub:mira/fog@other", "has no file of a known kind"),
        ("hub:mira/fog@missing", "has no such revision"),
    ],
)
def test_what_the_hub_lacks_is_said(hub: Hub, name: str, said: str) -> None:
    with pytest.raises(StepError, match=said):
        find_sources(name)


def test_without_the_hub_it_is_said_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StepError, match="hub:mira/fog cannot be had from the hub: HF_HUB_OFFLINE is set") as error:
        find_sources("hub:mira/fog")
    assert "path/to/folder" in error.value.remedy
