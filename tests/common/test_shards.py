from __future__ import annotations

import csv
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import DocBin

from common import shards
from common.errors import StepError
from common.filesystems import FileSystemError
from common.shards import Columns, File, Piece, Row, find_files, pack, read_rows, survey
from tests.hub import Hub, connected
from tests.store import Store, refuse

PLAIN = Columns()
TEXTS = ["Mira left Turku.", "Oslo sleeps,\nand so does Peru.", "Kenya beat Malta."]


def read(files: Sequence[File], columns: Columns = PLAIN, size: int = 2) -> list[Row]:
    """All rows, read piece by piece."""
    return [row for piece in survey(files, columns, size).pieces for row in read_rows(files, piece, columns)]


def write_table(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


# Files


def test_files_are_found_in_folders_by_patterns_and_by_urls(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/b/2.jsonl", "a/b/._2.jsonl", "a/.old/4.txt", "a/b/c.odt", "d/3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Turku")

    def names(places: str) -> list[str]:
        return [file.name for file in find_files(places)[0]]

    assert names(f"{tmp_path}/a") == ["1.txt", "b/2.jsonl"]
    assert names(f"{tmp_path}/*/*.*, {tmp_path}/d") == ["a/1.txt", "d/3.csv"], "each once"
    assert names(f"{(tmp_path / 'a').as_uri()}/**/*.jsonl") == ["b/2.jsonl"]
    assert names(f"{tmp_path}/d/3.csv") == ["3.csv"]
    files, others = find_files(str(tmp_path / "a"))
    assert others == ["b/c.odt"] and files[0].size == 5 and files[0].modified > 0
    assert find_files(f"{tmp_path}/a/**, {tmp_path}/a")[1] == ["b/c.odt"], "each once"
    files, others = find_files(str(tmp_path), target=f"{tmp_path}/a/b")
    assert [file.name for file in files] == ["a/1.txt", "d/3.csv"] and not others


def test_a_data_set_on_the_hub_is_read_as_a_folder_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main/data").mkdir(parents=True)
    write_table(tmp_path / "main/data/train.parquet", text=TEXTS)
    (tmp_path / "main/licence.txt").write_text("Take it.")
    with Hub({"datasets/mira/fog": {"main": tmp_path / "main"}}) as hub, connected(hub, tmp_path / "hub", monkeypatch):
        files, others = find_files("hub:mira/fog@main")
        known = len(hub.requests)
        rows = read(files)
        assert len(hub.requests) == known, "it is fetched once"
    assert [row.text for row in rows] == TEXTS and not others
    assert [row.id for row in rows] == [f"mira/fog/data/train.parquet#{number}" for number in (1, 2, 3)]
    assert files[0].size == (tmp_path / "main/data/train.parquet").stat().st_size


def test_places_without_a_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.odt").touch()
    for places, said in {
        f"{tmp_path}/none": "There is no .*none",
        f"{tmp_path}/*.txt": r"There is no .*\*\.txt",
        f"{tmp_path}/a.odt": "not a file of a known kind",
        f"{tmp_path}": "No file of the texts is of a known kind",
        "ftp://anna:secret@host/x": "A URL of ftp://",
    }.items():
        with pytest.raises(StepError, match=said) as error:
            find_files(places)
        assert "secret" not in error.value.problem


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    try:
        Path(tmp_path, os.fsdecode(b"\xff.txt")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    for place in (tmp_path, f"{tmp_path}/*.txt"):
        with pytest.raises(StepError, match=r"not in UTF-8: .*udcff\.txt"):
            find_files(str(place))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """Their documents could have the same ids."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").touch()
    with pytest.raises(StepError, match=r"would both be called x\.txt"):
        find_files(f"{tmp_path}/a,{tmp_path}/b")
    assert [file.name for file in find_files(str(tmp_path))[0]] == ["a/x.txt", "b/x.txt"]


# Shards


@given(st.lists(st.integers(1, 7)), st.integers(7, 20))
def test_shards_have_all_pieces_in_their_order_and_no_more_rows_than_allowed(rows: list[int], size: int) -> None:
    pieces = [Piece(number, 0, count) for number, count in enumerate(rows)]
    packed = list(pack(pieces, size))
    assert [piece for shard in packed for piece in shard] == pieces
    sums = [sum(piece.rows for piece in shard) for shard in packed]
    assert all(0 < total <= size for total in sums)
    assert all(total + shard[0].rows > size for total, shard in zip(sums, packed[1:], strict=False)), "none too early"


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=9)


@settings(max_examples=30)  # each writes three files
@given(texts, st.integers(1, 4))
def test_every_row_of_every_kind_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, found: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    with (folder / "a.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows(
            [["id", "text"], *([f"n{i}", t] for i, t in enumerate(found))]
        )
    lines = [json.dumps({"id": f"n{i}", "text": text}, ensure_ascii=bool(i % 2)) for i, text in enumerate(found)]
    (folder / "b.jsonl").write_text("\n\n".join(lines), "utf8")
    write_table(
        folder / "c.parquet", id=[f"n{i}" for i in range(len(found))], text=pyarrow.array(found, pyarrow.string())
    )
    for kind in ("a.csv", "b.jsonl", "c.parquet"):
        files, _ = find_files(str(folder / kind))
        rows = read(files, size=size)
        assert [(row.id, row.text, row.problem) for row in rows] == [
            (f"n{i}", text, "") for i, text in enumerate(found)
        ]


def test_whole_files_and_docbins_are_read(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    docs = [nlp(text) for text in TEXTS]
    docs[1].user_data["id"] = "mine"
    DocBin(store_user_data=True, docs=docs).to_disk(tmp_path / "a.spacy")
    (tmp_path / "b.txt").write_bytes("Ångström".encode("utf-16"))
    files, _ = find_files(str(tmp_path))
    rows = read(files)
    assert [(row.id, row.text) for row in rows] == [
        ("a.spacy#1", TEXTS[0]),
        ("mine", TEXTS[1]),
        ("a.spacy#3", TEXTS[2]),
        ("b.txt", "Ångström"),
    ]


def test_other_columns_are_passed_on_with_their_types(tmp_path: Path) -> None:
    day = datetime.date(2031, 2, 7)
    write_table(tmp_path / "a.parquet", body=["Turku"], day=[day], n=[1])
    (tmp_path / "b.jsonl").write_text('{"body": "Oslo", "n": [1], "late": null}\n', "utf8")
    (tmp_path / "c.csv").write_text("\ufeffn;body\n3;Peru\n", "utf8")
    files, _ = find_files(str(tmp_path))
    found = survey(files, Columns("body"), 10)
    assert found.types == {"day": pyarrow.date32(), "n": pyarrow.string(), "late": pyarrow.string()}
    rows = read(files, Columns("body"))
    assert [dict(row.others) for row in rows] == [{"day": day, "n": 1}, {"n": "[1]", "late": None}, {"n": "3"}]
    assert list(survey(files, Columns("body", others=("n",)), 10).types) == ["n"]
    assert not survey(files, Columns("body", others=()), 10).types


def test_a_heading_in_quotes_may_follow_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeff"text","n"\r\n"Turku","1"\r\n', "utf8")
    (row,) = read(find_files(str(tmp_path))[0])
    assert (row.text, dict(row.others)) == ("Turku", {"n": "1"})


def test_a_column_whose_name_is_no_text_costs_its_rows(tmp_path: Path) -> None:
    """Otherwise it would cost the whole corpus, when the schema of the parts is made."""
    (tmp_path / "a.csv").write_bytes("text;größe\nTurku;1\n".encode("cp1252"))
    (tmp_path / "b.jsonl").write_text('{"text": "Oslo", "\\ud800": 1}\n{"text": "Peru"}\n', "utf8")
    files, _ = find_files(str(tmp_path))
    assert not survey(files, PLAIN, 10).types
    assert [row.text or row.problem for row in read(files)] == [
        *["it has half a character, or is not in UTF-8"] * 2,
        "Peru",
    ]
    assert [row.text for row in read(files, Columns(others=()))] == ["Turku", "Oslo", "Peru"]


def test_of_columns_with_one_name_the_last_is_passed_on(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(cells) for cells in (["Turku"], [1], ["a"])], ["text", "n", "n"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    files, _ = find_files(str(tmp_path))
    assert survey(files, PLAIN, 10).types == {"n": pyarrow.string()}
    assert [dict(row.others) for row in read(files)] == [{"n": "a"}]


def test_a_number_as_id_has_no_decimals(tmp_path: Path) -> None:
    """Pandas makes a column of whole numbers one of floats where one is missing."""
    write_table(tmp_path / "a.parquet", id=[7.0, None, 1.5], text=TEXTS)
    assert [row.id for row in read(find_files(str(tmp_path))[0])] == ["7", "a.parquet#2", "a.parquet#3"]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / name).touch()
    assert survey(find_files(str(tmp_path))[0], PLAIN, 10) == ([], {}, [])


def test_a_table_without_the_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title,n\nTurku,1\n", "utf8")
    write_table(tmp_path / "b.parquet", title=["Turku"])
    for name in ("a.csv", "b.parquet"):
        with pytest.raises(StepError, match=r"has no column 'text'\. It has: title"):
            survey(find_files(str(tmp_path / name))[0], Columns(), 10)


# What cannot be read


def test_what_is_no_text_costs_itself_alone(tmp_path: Path) -> None:
    lines = [b'{"text": "Turku"}', b'{"text": 3}', b"{", b"[]", b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"{}"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "Oslo", "id": 7}']))
    (tmp_path / "b.csv").write_bytes(b"id,text\n1,Turku\n2\n3,\xff\n4,Oslo,Peru\n\n6,Malta\n")
    write_table(tmp_path / "c.parquet", text=["Turku", None])
    bytes_ = pyarrow.array([b"\xff", b"Oslo"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bytes_}), tmp_path / "d.parquet")
    files, _ = find_files(str(tmp_path))
    rows = read(files)
    assert [(row.id, row.text) for row in rows if not row.problem] == [
        ("a.jsonl#1", "Turku"),
        ("7", "Oslo"),
        ("1", "Turku"),
        ("6", "Malta"),
        ("c.parquet#1", "Turku"),
        ("d.parquet#2", "Oslo"),
    ]
    problems = {row.place: row.problem for row in rows if row.problem}
    assert list(problems) == [
        *(f"a.jsonl, row {number}" for number in range(2, 8)),
        *(f"b.csv, row {number}" for number in range(2, 5)),
        "c.parquet, row 2",
        "d.parquet, row 1",
    ]
    assert problems["a.jsonl, row 2"] == "the text is no string (int)"
    assert "half a character" in problems["a.jsonl, row 5"] and "not JSON" in problems["a.jsonl, row 6"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LONGEST_LINE", 32)
    long = json.dumps({"text": "Turku " * 50})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "Oslo"}}\n{long}\n{{"text": "Peru"}}\n', "utf8")
    (tmp_path / "b.txt").write_text("Turku " * 50)
    rows = read(find_files(str(tmp_path))[0], size=1)
    assert [row.text or row.problem for row in rows] == [
        "Oslo",
        "the line has more than 32 bytes",
        "Peru",
        "the file has more than 32 bytes",
    ]


def test_a_damaged_file_costs_itself_alone(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.spacy"):
        (tmp_path / name).write_bytes(b"Turku")
    (tmp_path / "c.docx").write_bytes(b"Turku")
    (tmp_path / "d.txt").write_text("Oslo")
    whole = write_table(tmp_path / "e.parquet", text=["Turku " * 50, "Oslo"])
    data = bytearray(whole.read_bytes())
    data[4:60] = bytes(56)
    whole.write_bytes(data)
    files, _ = find_files(str(tmp_path))
    found = survey(files, Columns(), 10)
    assert [name for name, _ in found.damaged] == ["a.parquet", "b.spacy"]
    rows = read(files)
    assert [(row.place, row.text) for row in rows] == [
        ("c.docx", ""),
        ("d.txt", "Oslo"),
        ("e.parquet, rows 1 to 2", ""),
    ]
    assert all(row.problem.startswith("cannot be read") for row in rows if not row.text)


def test_a_file_that_vanishes_later_costs_its_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Oslo"}\n', "utf8")
    files, _ = find_files(str(tmp_path))
    pieces = survey(files, Columns(), 10).pieces
    (tmp_path / "a.jsonl").unlink()
    (row,) = read_rows(files, pieces[0], Columns())
    assert row.problem.startswith("cannot be read") and row.id == "a.jsonl#1"


# Elsewhere


@pytest.fixture
def shelved(tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    """A store, and a folder with the same files."""
    folder = tmp_path / "texts"
    (folder / "a").mkdir(parents=True)
    (folder / "a/1.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf8")
    (folder / "a/2.csv").write_text("text\nTurku\nOslo\nPeru\n", "utf8")
    (folder / "a/ö é.txt").write_text("Kenya", "utf8")
    (folder / "notes.odt").touch()
    write_table(folder / "b.parquet", text=TEXTS)
    with Store() as store:
        for path in folder.rglob("*.*"):
            store.objects[f"texts/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        yield store, folder


def test_an_object_store_is_read_as_a_folder_is(shelved: tuple[Store, Path]) -> None:
    store, folder = shelved
    files, others = find_files(store.url("texts"))
    assert [file.name for file in files] == ["a/1.jsonl", "a/2.csv", "a/ö é.txt", "b.parquet"]
    assert others == ["notes.odt"] and all(file.size and file.modified for file in files)
    assert read(files) == read(find_files(str(folder))[0])
    assert [file.name for file in find_files(store.url("texts/*/*.csv"))[0]] == ["a/2.csv"]
    assert [file.name for file in find_files(store.url("texts/b.parquet"))[0]] == ["b.parquet"]
    with pytest.raises(StepError, match=r"There is no s3://shelf/none\.$"):
        find_files(store.url("none"))


def test_a_store_that_refuses_is_not_taken_for_damage(shelved: tuple[Store, Path]) -> None:
    """No document is given up for it, and nobody reads the password."""
    store, _ = shelved
    with pytest.raises(FileSystemError, match="The file system s3 fails") as error:
        find_files(store.url("texts", user="wrong"))
    assert "secret" not in error.value.problem
    files, _ = find_files(store.url("texts"))
    pieces = survey(files, PLAIN, 9).pieces
    for refused in ("HEAD", "GET"):
        store.before = partial(
            lambda refused, method, path: refuse(403, "AccessDenied") if method == refused else None, refused
        )
        for piece in pieces:
            with pytest.raises(FileSystemError):
                list(read_rows(files, piece, PLAIN))
        with pytest.raises(FileSystemError):
            survey(files[:1], PLAIN, 9)
    store.before = lambda method, path: None
    store.objects["texts/b.parquet"] = b"Turku"
    del store.objects["texts/a/1.jsonl"]
    found = survey(files, PLAIN, 9)
    assert [name for name, _ in found.damaged] == ["a/1.jsonl", "b.parquet"]
    (row,) = read_rows(files, pieces[0], PLAIN)
    assert row.problem.startswith("cannot be read")
