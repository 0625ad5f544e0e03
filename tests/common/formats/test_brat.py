"""What only files of brat have."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import StepError
from common.formats import Options
from tests.common.formats.test_files import TEXT, annotate, quotes_in, read, span_of, write


def test_brat_has_scores_as_notes_and_lines_as_fragments(tmp_path: Path) -> None:
    spans = [span_of("Mira 🚢 Solberg", "PER", score=0.98), span_of("York.\r\n\r\nRain", "X")]
    assert write("brat", tmp_path, annotate(*spans), options=Options(labels=("ORG",))) == []
    assert (tmp_path / "d1.txt").read_bytes() == TEXT.encode()
    assert (tmp_path / "d1.ann").read_text("utf8") == (
        "T1\tPER 0 14\tMira 🚢 Solberg\n#1\tAnnotatorNotes T1\t0.98\nT2\tX 24 29;33 37\tYork. Rain\n"
    )
    assert "[entities]\nORG\nPER\nX\n" in (tmp_path / "annotation.conf").read_text("utf8")
    (entry,) = read("brat", tmp_path)
    assert entry.task.annotations[0].spans == spans


def test_brat_says_which_line_breaks_it_cannot_hold(tmp_path: Path) -> None:
    findings = write("brat", tmp_path, annotate(span_of(".\r\n", "X"), span_of("\r\n\r\n", "Y")))
    assert ["28–29 is written" in findings[0], "left out" in findings[1]] == [True, True]
    assert quotes_in(read("brat", tmp_path)[0]) == [(".", "X")]


def write_ann(folder: Path, ann: str, text: str = TEXT) -> None:
    (folder / "d1.txt").write_bytes(text.encode())
    (folder / "d1.ann").write_text(ann, "utf8")


def test_a_span_of_brat_with_gaps_is_kept_and_reported(tmp_path: Path) -> None:
    write_ann(tmp_path, "T1\tPER 0 4;7 14\tMira Solberg\n")
    (entry,) = read("brat", tmp_path)
    assert quotes_in(entry) == [("Mira 🚢 Solberg", "PER")]
    annotation = entry.task.annotations[0]
    assert (annotation.status, annotation.flagged, annotation.comment) == ("draft", True, entry.findings[0])
    assert "between its parts" in entry.findings[0]


def test_the_text_of_a_span_of_brat_decides(tmp_path: Path) -> None:
    write_ann(tmp_path, "T1\tPER 8 15\tSolberg\nT2\tX 25 30;34 38\tYork. Rain\nT3\tLOC 0 4\tTarn\n")
    (entry,) = read("brat", tmp_path)
    assert quotes_in(entry) == [("Solberg", "PER"), ("York.\r\n\r\nRain", "X")]
    assert entry.task.annotations[0].status == "draft"
    assert entry.findings == ["The span LOC 0–4 ('Tarn') is not what stands there: 'Mira'."]


def test_notes_and_what_else_brat_has_are_told(tmp_path: Path) -> None:
    write_ann(
        tmp_path,
        "T1\tPER 0 4\tMira\n#1\tAnnotatorNotes T1\tWho?\nA1\tSure T1\n*\tEquiv T1 T2\nR1\tx Arg1:T1 Arg2:T1\n\n",
    )
    (entry,) = read("brat", tmp_path)
    assert entry.task.annotations[0].comment == "Who?"
    assert "flagged" not in entry.task.annotations[0].model_fields_set, "a flag in the store stays"
    assert entry.findings == ["3 lines of relations, events, attributes or the like are left out."]


def test_malformed_brat_is_named_with_its_line(tmp_path: Path) -> None:
    write_ann(tmp_path, "T1\tPER 0 4\tMira\nT2 PER 5 6\n")
    with pytest.raises(StepError, match=r"d1\.ann, line 2"):
        read("brat", tmp_path)
    (tmp_path / "d1.ann").write_bytes(b"T1\tPER 0 4\tMira\n\xff\n")
    with pytest.raises(StepError, match=r"d1\.ann, line 2: this is not UTF-8"):
        read("brat", tmp_path)
    (tmp_path / "d1.txt").unlink()
    with pytest.raises(StepError, match=r"no d1\.txt"):
        read("brat", tmp_path)
    with pytest.raises(StepError, match=r"no \.ann"):
        read("brat", tmp_path / "nowhere")


def test_the_text_of_the_store_takes_the_place_of_one_that_was_not_copied(tmp_path: Path) -> None:
    write("brat", tmp_path, annotate(span_of("Mira", "PER")))
    (tmp_path / "d1.txt").unlink()
    assert quotes_in(read("brat", tmp_path, annotate())[0]) == [("Mira", "PER")]
