from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from common.errors import StepError
from common.names import Names, find_modified, list_date_columns
from common.parts import MANIFEST
from tests.annotated import write_parts

NORRVIK, SOLBERG, TURKU = ("Norrvik Steel", "ORG"), ("Mira Solberg", "PER"), ("Turku", "LOC")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return Names(str(write_parts(tmp_path_factory.mktemp("names") / "out")), "date")


def test_names_are_found_by_labels_and_by_any_of_their_spellings(names: Names) -> None:
    assert names.labels == ["LOC", "ORG", "PER"]
    assert names.frequent().fetchall()[:2] == [(*SOLBERG, 3, 2), (*TURKU, 3, 3)]
    assert names.frequent(1, ["LOC", "ORG"]).fetchall() == [(*TURKU, 3, 3)]
    assert names.frequent(labels=[]).fetchall() == []
    assert names.frequent(text="s\u00d3lburg").fetchall() == [(*SOLBERG, 3, 2)], "another spelling of it has this text"
    assert names.frequent(text="turku", labels=["ORG"]).fetchall() == [("=Turku", "ORG", 1, 1)]


@pytest.mark.parametrize("text", ["' OR 1=1 --", "%", "_", "$labels", "'; DROP TABLE named; --", '"'])
def test_a_text_is_never_taken_for_sql(names: Names, text: str) -> None:
    assert names.frequent(text=text, labels=["PER", text]).fetchall() == []
    assert names.together_with((text, text), 5).fetchall() == names.over_time([(text, text)]).fetchall() == []
    assert names.frequent(1).fetchall()


def test_a_name_has_company_spellings_and_months(names: Names) -> None:
    assert names.together_with(SOLBERG, 5).fetchall() == [(*NORRVIK, 1), (*TURKU, 1)]
    assert len(names.together_with(TURKU, 1).fetchall()) == 1
    assert names.spellings(SOLBERG, 5).fetchall() == [(*SOLBERG, "Mira Solberg", 2), (*SOLBERG, "Mira Solburg", 1)]
    assert len(names.spellings(most=3).fetchall()) == 3
    assert names.over_time([TURKU]).fetchall() == [("2031-02", *TURKU, 1, 1), ("2031-03", *TURKU, 1, 1)]
    assert names.undated == 1


def test_threads_ask_at_the_same_time(names: Names) -> None:
    first = names.frequent()
    answers: list[object] = []
    asking = [threading.Thread(target=lambda: answers.append(names.frequent(1).fetchall())) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [[(*SOLBERG, 3, 2)]] * 4 and len(first.fetchall()) == 4


def test_the_database_goes_with_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    counted = Names(str(write_parts(tmp_path / "out")))
    assert [*scratch.iterdir()]
    del counted
    assert not [*scratch.iterdir()]


def test_columns_with_dates_are_known_by_their_values(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "out")
    assert list_date_columns(str(folder)) == ["date"]
    for path in folder.glob("*.parquet"):  # as Polars and pandas write strings
        table = pyarrow.parquet.read_table(path)
        wide = pyarrow.array(table["date"].to_pylist(), pyarrow.large_string())
        pyarrow.parquet.write_table(table.set_column(table.column_names.index("date"), "date", wide), path)
    assert list_date_columns(str(folder)) == ["date"]


def test_a_corpus_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "out")
    assert find_modified(str(folder)) == (folder / MANIFEST).stat().st_mtime_ns
    (folder / MANIFEST).unlink()
    assert find_modified(str(folder)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).write_text("{", "utf8"),
        lambda folder: (folder / MANIFEST).write_text("[]", "utf8"),
        lambda folder: (folder / "part-1.parquet").write_bytes(b"PAR1 and no more"),
        lambda folder: (folder / "part-0.parquet").unlink(),
    ],
)
def test_what_is_damaged_is_an_error_with_the_place(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = write_parts(tmp_path / "out")
    damage(folder)
    with pytest.raises(StepError, match=f"wrote to {folder} cannot be read: .+"):
        Names(str(folder))
