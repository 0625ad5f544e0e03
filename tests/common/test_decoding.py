from __future__ import annotations

import csv
import io
import sys
import zipfile
import zlib
from collections.abc import Callable

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import decoding
from common.decoding import DELIMITERS, read_csv, read_packed, read_txt
from common.unpack import MAX_PAGES, UnreadableError

LINE = b"BT /F1 12 Tf 72 720 Td (Mira left Turku) Tj ET\n"


def write_pdf(stream: bytes = LINE, pages: int = 1) -> bytes:
    """A PDF whose pages have all the same content."""
    packed = zlib.compress(stream, 9)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 3 0 R/Resources<</Font<</F1 4 0 R>>>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (pages, b" ".join(b"%d 0 R" % (n + 5) for n in range(pages))),
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(packed), packed),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *[page] * pages,
    ]
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj%s endobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start))
    return out.getvalue()


def write_docx(text: str = "Mira left Turku", more: bytes = b"") -> bytes:
    """A document with a table of one cell, and more of its XML."""
    document, plain, out = docx.Document(), io.BytesIO(), io.BytesIO()
    document.add_paragraph("Before")
    document.add_table(1, 1).cell(0, 0).text = text
    document.save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "word/document.xml":
                data = data.replace(b"<w:sectPr", more + b"<w:sectPr", 1)
            target.writestr(name, data)
    return out.getvalue()


# Text


@pytest.mark.parametrize(
    "data",
    [
        "Åbo and Ærø".encode(),
        "Åbo and Ærø".encode("utf-8-sig"),
        "Åbo and Ærø".encode("cp1252"),
        "Åbo and Ærø".encode("utf-16"),
        "Åbo and Ærø".encode("utf-16-le"),
        "Åbo and Ærø".encode("utf-16-be"),
        "\ufeffÅbo and Ærø".encode("utf-16-be"),
    ],
)
def test_text_is_read_in_any_usual_encoding(data: bytes) -> None:
    assert read_txt(data) == "Åbo and Ærø"


@pytest.mark.parametrize("data", [b"Mira \0 left", "Mira".encode("utf-32"), b"\x7fELF\0\0\x81\x8d", b"\x81\x8d\x8f"])
def test_what_is_no_text_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(UnreadableError, match="save it in UTF-8"):
        read_txt(data)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_in_utf8_is_read_as_it_is(text: str) -> None:
    assert read_txt(text.encode()) == text.removeprefix("\ufeff")


@given(st.binary())
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    for read in (read_txt, read_csv):
        try:
            read(data)
        except UnreadableError as error:
            assert "save it in UTF-8" in str(error)


# Tables


@pytest.mark.parametrize(
    ("table", "texts"),
    [
        ("text\nMira left Turku.\nShe came back.", ["Mira left Turku.", "She came back."]),
        ("content\nMira left Turku.\n", ["Mira left Turku."]),
        ("Wolfgang lives in Berlin\nMira left Turku\n", ["Wolfgang lives in Berlin", "Mira left Turku"]),
        ("Mira left, she said.\nNo; not now.\n", ["Mira left, she said.", "No; not now."]),
        ("Mira left, then came.\nShe sat, and ate.\n", ["Mira left, then came.", "She sat, and ate."]),
        ('"No," she said.\nMira left.\n', ['"No," she said.', "Mira left."]),
        ("text\nMira left, then came.\n\nShe sat.\n", ["Mira left, then came.", "", "She sat."]),
        ("id,text\n1,Mira left\n2,\n3,She came", ["Mira left", "", "She came"]),
        ('id;text\n1;"Mira, Turku;\nOslo"\n2', ["Mira, Turku;\nOslo", ""]),
        ("name|body\nA|Mira left\nB|No", ["Mira left", "No"]),
        ("A\tMira left\nB\tShe came back", ["Mira left", "She came back"]),
        ("Text , id\nMira left,1", ["Mira left"]),
        ("\ufefftext\r\nMira left\r\n", ["Mira left"]),
        ("text\n" + 50_000 * "long ", [50_000 * "long "]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_tables_are_read_whole(table: str, texts: list[str]) -> None:
    assert [row["text"] for row in read_csv(table.encode())] == texts


def test_other_cells_have_the_names_of_their_headings() -> None:
    table = "Id;Text;Year;\n7;Mira left;2031;x\n8;She came\n"
    assert read_csv(table.encode()) == [
        {"id": "7", "text": "Mira left", "year": "2031"},
        {"id": "8", "text": "She came"},
    ]


cells = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=20)


@given(st.sampled_from(DELIMITERS), st.lists(st.tuples(cells, cells.filter(str.strip)), min_size=1), st.booleans())
def test_a_table_that_was_written_is_read_again(delimiter: str, rows: list[tuple[str, str]], first: bool) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([row if first else row[::-1] for row in [("text", "id"), *((text, key) for key, text in rows)]])
    assert read_csv(out.getvalue().encode()) == [{"id": key, "text": text} for key, text in rows]


prose = st.lists(st.sampled_from(["Mira", "left", "Turku,", "and;", "(Oslo)", "went", '"No,"', "it's"]), min_size=2)


@given(st.lists(prose.map(" ".join), min_size=1))
def test_of_lines_of_prose_no_word_is_lost(lines: list[str]) -> None:
    read = " ".join(row["text"] for row in read_csv("\n".join(lines).encode()))
    assert read.replace('"', "").split() == " ".join(lines).replace('"', "").split()


# PDF and Word


def test_ordinary_files_are_read() -> None:
    assert read_packed(".pdf", write_pdf(pages=3)) == "\n\n".join(["Mira left Turku"] * 3)
    assert read_packed(".docx", write_docx()) == "Before\n\nMira left Turku"


def test_a_cell_is_read_once_however_much_it_spans() -> None:
    cell = b'<w:tc><w:tcPr><w:gridSpan w:val="%d"/></w:tcPr><w:p><w:r><w:t>Oslo</w:t></w:r></w:p></w:tc>'
    table = b"<w:tbl><w:tblPr/><w:tblGrid/><w:tr>" + cell % 1_000_000_000 + cell % 1 + b"</w:tr></w:tbl>"
    assert read_packed(".docx", write_docx(more=table)) == "Before\n\nMira left Turku\n\nOslo\tOslo"


@pytest.mark.parametrize(
    ("kind", "write", "why"),
    [
        (".pdf", lambda: write_pdf(pages=MAX_PAGES + 1), "1,001 pages"),
        (".pdf", lambda: write_pdf(LINE.replace(b"Mira", b"Mira " * 5000), 100), "more than 2,000,000 characters"),
        (".pdf", lambda: write_pdf(b"0 0 m\n" * 15_000_000), "Limit"),
        (".docx", lambda: write_docx(more=b"<w:p/>" * 20_000_000), "unpacks to 12. MB"),
        (".pdf", lambda: b"%PDF-1.4 broken", "Pdf"),
        (".docx", lambda: b"PK", "zip"),
    ],
    ids=["pages", "characters", "stream", "unpacked", "damaged", "no zip"],
)
def test_too_large_and_damaged_files_are_refused(kind: str, write: Callable[[], bytes], why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        read_packed(kind, write())


@pytest.mark.parametrize(
    ("limit", "most", "write"),
    [("MAX_SECONDS", 1, lambda: write_pdf(LINE * 900_000)), ("PATIENCE", 0.01, write_pdf)],
    ids=["seconds", "patience"],
)
def test_what_takes_too_much_time_is_ended(
    limit: str, most: float, write: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit != "PATIENCE":
        pytest.importorskip("resource")
    monkeypatch.setattr(decoding, limit, most)
    with pytest.raises(UnreadableError, match="takes more than"):
        read_packed(".pdf", write())


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit the memory of a process")
def test_what_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read, but for its size: elements that hold no text. An ordinary file needs no more than the limit."""
    pytest.importorskip("resource")
    monkeypatch.setattr(decoding, "MAX_MEMORY", 200_000_000)
    assert read_packed(".docx", write_docx())
    with pytest.raises(UnreadableError):
        read_packed(".docx", write_docx(more=b"<w:x/>" * 3_000_000))
