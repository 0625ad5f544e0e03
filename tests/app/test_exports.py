from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.annotate import Analysis
from app.exports import export_analyses
from common.conll import read_conll
from tests.app.conftest import found_in


def test_exports_hold_what_was_found(analyses: list[Analysis], tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(export_analyses(analyses, "csv"))))
    assert [row["text"] for row in rows if row["document"] == "2"] == ["Mira Solberg", "Turku"]
    assert json.loads(export_analyses(analyses, "json"))[0] == analyses[0].model_dump()
    lines = export_analyses(analyses, "jsonl").splitlines()
    assert [Analysis.model_validate_json(line) for line in lines] == analyses
    (tmp_path / "out.conll").write_text(export_analyses(analyses, "conll"), encoding="utf8")
    documents = read_conll(tmp_path / "out.conll").documents
    assert [len(document) for document in documents] == [len(analysis.sentences) for analysis in analyses]
    found = [(token.text, token.entity) for sentence in documents[1] for token in sentence]
    assert found[:4] == [("Mira", "B-PER"), ("Solberg", "I-PER"), ("left", "O"), ("Turku", "B-LOC")]
    some = analyses[1].model_copy(update={"entities": analyses[1].entities[1:]})
    assert "Solberg NNP -X- O\n" in export_analyses([some], "conll")


@given(st.text(st.sampled_from("=+-@\t\r\n',;\"a "), min_size=1), st.text(min_size=1))
@example("=HYPERLINK(1)", "@SUM(1)")
def test_no_cell_of_a_table_is_a_formula_and_nothing_is_lost(text: str, label: str) -> None:
    table = export_analyses([found_in(text, label=label)], "csv")
    _, row = csv.reader(io.StringIO(table, newline=""))
    for cell, was in zip(row[3:5], (text, label), strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert cell in (was, f"'{was}")


@pytest.mark.parametrize("token", ["-DOCSTART-", "-DOCSTART-foo", "- DOCSTART-"])
def test_no_token_is_taken_for_the_mark_between_documents(token: str) -> None:
    lines = export_analyses([found_in("Mira", "Mira", token)], "conll").splitlines()
    assert [line.startswith("-DOCSTART-") for line in lines if line] == [True, False, False]
