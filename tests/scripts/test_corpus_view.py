from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from common.errors import StepError
from common.records import made
from scripts.corpus_view import NAMES, OVER_TIME, SPELLINGS, TOGETHER, corpus_view
from tests.annotated import write_parts
from tests.conftest import words


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.reader(file))


def test_names_are_counted_with_their_company_and_by_month(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = write_parts(tmp_path / "out")
    corpus_view(str(parts), tmp_path, date_column="date")
    assert read(tmp_path / "view" / NAMES) == [
        ["name", "label", "mentions", "documents"],
        ["Mira Solberg", "PER", "3", "2"],
        ["Turku", "LOC", "3", "3"],
        ["'=Turku", "ORG", "1", "1"],
        ["Norrvik Steel", "ORG", "1", "1"],
    ]
    assert read(tmp_path / "view" / SPELLINGS)[1:] == [
        ["'=Turku", "ORG", "'=Turku", "1"],
        ["Mira Solberg", "PER", "Mira Solberg", "2"],
        ["Mira Solberg", "PER", "Mira Solburg", "1"],
        ["Norrvik Steel", "ORG", "Norrvik Steel", "1"],
        ["Turku", "LOC", "Turku", "2"],
        ["Turku", "LOC", "TURKU", "1"],
    ]
    assert read(tmp_path / "view" / TOGETHER)[1:] == [
        ["'=Turku", "ORG", "Turku", "LOC", "1"],
        ["Mira Solberg", "PER", "Norrvik Steel", "ORG", "1"],
        ["Mira Solberg", "PER", "Turku", "LOC", "1"],
    ]
    assert read(tmp_path / "view" / OVER_TIME)[1:] == [
        ["2031-02", "Mira Solberg", "PER", "3", "2"],
        ["2031-02", "Norrvik Steel", "ORG", "1", "1"],
        ["2031-02", "Turku", "LOC", "1", "1"],
        ["2031-03", "Turku", "LOC", "1", "1"],
    ]
    said = words(capsys.readouterr().out)
    assert "1 documents with names have no date in date" in said and "Mira Solberg PER 3 2" in said


def test_labels_and_the_number_of_names_can_be_chosen_and_tables_are_replaced(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "out")
    corpus_view(str(parts), tmp_path, date_column="date")
    corpus_view(parts.as_uri(), tmp_path, labels="PER,LOC", most=1)
    assert [row[0] for row in read(tmp_path / "view" / NAMES)[1:]] == ["Mira Solberg", "Turku"]
    assert len(read(tmp_path / "view" / TOGETHER)) == 1, "only one name is looked at"
    assert not (tmp_path / "view" / OVER_TIME).exists()
    assert made(tmp_path) == {"view"}, "clean knows whose it is"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"date_column": "day"}, "has no column 'day'. It has: id, source, date, entity, moment, entities"),
        ({"labels": "MISC"}, "There is no name in it"),
        ({"target": "none"}, "it is not done"),
        ({"target": ""}, "the folder in which annotate-corpus has written"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    target = str(write_parts(tmp_path / "out"))
    with pytest.raises(StepError, match=said):
        corpus_view(**{"target": target, "folder": tmp_path, **options})


def test_docbins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="has no parquet"):
        corpus_view(str(write_parts(tmp_path / "out", "docbin")), tmp_path)
