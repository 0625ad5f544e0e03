from __future__ import annotations

import pytest

from app.files import MAX_CHARACTERS, MAX_DOCUMENTS, check_size, read_upload
from common.errors import StepError
from tests.common.test_decoding import write_docx, write_pdf


@pytest.mark.parametrize(
    ("name", "data", "documents"),
    [
        ("a.TXT", "\ufeffMira left Turku".encode(), [("a.TXT", "Mira left Turku")]),
        ("a.csv", b"text\nMira left Turku", [("a.csv, row 1", "Mira left Turku")]),
        ("a.csv", b"id,text\n1,Mira\n2,\n3,She came", [("a.csv, row 1", "Mira"), ("a.csv, row 3", "She came")]),
        ("a.pdf", write_pdf(), [("a.pdf", "Mira left Turku")]),
        ("a.docx", write_docx(), [("a.docx", "Before\n\nMira left Turku")]),
    ],
)
def test_files_are_read(name: str, data: bytes, documents: list[tuple[str, str]]) -> None:
    assert read_upload(name, data) == documents


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.exe", b"MZ"),
        ("a.pdf", b"%PDF"),
        ("a.docx", b"PK"),
        ("a.txt", b"  "),
        ("a.csv", b"\0"),
        ("a", b""),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, data: bytes) -> None:
    with pytest.raises(StepError, match=r"^a"):
        read_upload(name, data)


@pytest.mark.parametrize("texts", [["a"] * (MAX_DOCUMENTS + 1), ["a" * (MAX_CHARACTERS + 1)]])
def test_too_much_is_refused(texts: list[str]) -> None:
    with pytest.raises(StepError, match="too much"):
        check_size(texts)
