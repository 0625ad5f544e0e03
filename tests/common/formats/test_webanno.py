"""What only files of WebAnno have."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.annotations import Document
from common.errors import StepError
from tests.common.formats.test_files import annotate, quotes_in, read, span_of, write

TSV = """\
#FORMAT=WebAnno TSV 3.3
#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|value


#Text=Mira 🚢 left\\tNew
1-1\t0-4\tMira\tPER[1]|X[2]\t
1-2\t5-7\t🚢\tPER[1]\t
1-3\t8-12\tleft\t_\t
1-4\t13-16\tNew\tLOC[3]\t

#Text=Tarn.
2-1\t17-21\tTarn\tLOC[3]\t
2-1.1\t18-20\tar\tM\\_1\t
2-2\t21-22\t.\t_\t
"""
TSV_TEXT = "Mira 🚢 left\tNew\nTarn."
TSV_SPANS = [("Mira", "X"), ("Mira 🚢", "PER"), ("New\nTarn", "LOC"), ("ar", "M_1")]


def test_webanno_is_written_as_inception_writes_it(tmp_path: Path) -> None:
    write("webanno", tmp_path, annotate(*(span_of(*span, TSV_TEXT) for span in TSV_SPANS), text=TSV_TEXT))
    assert (tmp_path / "d1.tsv").read_text("utf8") == TSV


def test_webanno_with_other_columns_is_read(tmp_path: Path) -> None:
    changed = TSV.replace("NamedEntity|value", "NamedEntity|identifier|value\n#T_RL=x|y|BT_z")
    rows = [line.split("\t") for line in changed.split("\n")]
    lines = ["\t".join([*row[:3], "*", row[3], "_", "_", ""]) if len(row) > 1 else row[0] for row in rows]
    (tmp_path / "d1.tsv").write_text("\r\n".join(lines), "utf8", newline="")
    (entry,) = read("webanno", tmp_path)
    assert entry.task.document == Document(id="d1", text=TSV_TEXT)
    assert sorted(quotes_in(entry)) == sorted(TSV_SPANS)


def test_webanno_takes_the_only_layer_but_does_not_choose_among_several(tmp_path: Path) -> None:
    custom = TSV.replace("de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|value", "webanno.custom.Name|kind")
    (tmp_path / "d1.tsv").write_text(custom, "utf8")
    assert sorted(quotes_in(read("webanno", tmp_path)[0])) == sorted(TSV_SPANS)
    (tmp_path / "d1.tsv").write_text(custom.replace("|kind", "|kind\n#T_SP=webanno.custom.Other|kind"), "utf8")
    with pytest.raises(StepError, match=r"webanno\.custom\.Name, webanno\.custom\.Other"):
        read("webanno", tmp_path)


def test_webanno_without_layers_has_no_spans(tmp_path: Path) -> None:
    (tmp_path / "d1.tsv").write_text(
        "#FORMAT=WebAnno TSV 3.2\n\n\n#Text=Fog.\n1-1\t0-3\tFog\t\n1-2\t3-4\t.\t\n", "utf8"
    )
    (entry,) = read("webanno", tmp_path)
    assert entry.task.document.text == "Fog." and quotes_in(entry) == []


def test_spans_of_webanno_without_a_label_or_a_length_are_reported(tmp_path: Path) -> None:
    row = "1-4\t13-16\tNew\t"
    (tmp_path / "d1.tsv").write_text(TSV.replace(row, f"1-3.1\t12-12\t\tX\t\n{row}*|"), "utf8")
    (entry,) = read("webanno", tmp_path)
    assert entry.task.annotations[0].status == "draft"
    assert ["start before its end" in entry.findings[0], "no label" in entry.findings[1]] == [True, True]
    assert sorted(quotes_in(entry)) == sorted(TSV_SPANS)


def test_white_space_that_webanno_changes_is_that_of_the_store(tmp_path: Path) -> None:
    text = "\r\n Fog on Tarn.\n\nRain."
    task = annotate(span_of("Tarn", "LOC", text), span_of("Rain", "X", text), text=text)
    assert "before the first word" in write("webanno", tmp_path, task)[0]
    assert read("webanno", tmp_path)[0].task.document.text == text.replace("\r\n", "  ")
    path = tmp_path / "d1.tsv"
    path.write_text(path.read_text("utf8").replace("Tarn.\n#Text=\n", "Tarn.\n"), "utf8")  # as INCEpTION exports it
    (entry,) = read("webanno", tmp_path)
    assert entry.task.document.text == "   Fog on Tarn.\n Rain."
    (entry,) = read("webanno", tmp_path, task)
    assert entry.task == task


def test_edges_in_white_space_are_reported(tmp_path: Path) -> None:
    task = annotate(span_of(" left ", "X"), span_of("\r\n", "Y"))
    findings = write("webanno", tmp_path, task)
    assert ["15–19 is written" in findings[0], "left out" in findings[1]] == [True, True]
    assert quotes_in(read("webanno", tmp_path)[0]) == [("left", "X")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TSV 3.3", "TSV 2", "line 1: this is no WebAnno TSV"),
        ("1-2\t5-7\t🚢\tPER[1]", "1-2\t5-7\t🚢", "line 7: this is no row"),
        ("1-2\t5-7", "1-2\t5-x", "line 7: this is no row"),
        ("5-7", "5-6", "line 7: '🚢' does not stand at 5–6"),
        ("18-20", "18-21", "line 13: 'ar' does not stand at 18–21"),
        ("Mira 🚢 left\\tNew", "Mira 🚢 right\\tNew", "line 8: 'left' does not"),
    ],
)
def test_malformed_webanno_is_named_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d1.tsv").write_text(TSV.replace(old, new), "utf8")
    with pytest.raises(StepError, match=message):
        read("webanno", tmp_path)


def test_a_folder_without_tsv_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no \.tsv"):
        read("webanno", tmp_path)
