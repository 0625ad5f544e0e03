from __future__ import annotations

from pathlib import Path

import pytest
import srsly

from common.annotations import Annotation, Document, Span
from common.errors import StepError
from common.store import STORE, Store
from scripts.export_tasks import export_tasks
from tests.conftest import words

MIRA = Span(start=0, end=4, label="PER", score=0.9, source="en_x-1.0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a document that ada has finished, one that she has begun, and one that nobody has seen."""
    folder = tmp_path / "annotate" / "mine"
    folder.mkdir(parents=True)
    store = Store(folder / STORE)
    texts = {"done": "Mira slept.", "begun": "Mira sang.", "new": "Mira left 🚢."}
    store.add_documents(Document(id=name, text=text) for name, text in texts.items())
    store.suggest("en_x-1.0", {name: [MIRA] for name in texts})
    store.save(Annotation(document="done", annotator="ada", status="annotated", spans=[MIRA], flagged=True))
    store.save(Annotation(document="begun", annotator="ada", status="draft"))
    return folder


def test_all_documents_are_written_with_what_is_suggested_and_decided(folder: Path) -> None:
    export_tasks(folder, "label-studio")
    rows = srsly.read_json(folder / "label-studio/tasks.json")
    assert [row["data"]["id"] for row in rows] == ["done", "begun", "new"]
    assert [len(row["annotations"]) for row in rows] == [1, 0, 0]
    assert all(row["predictions"][0]["model_version"] == "en_x-1.0" for row in rows)
    assert {path.name for path in folder.iterdir()} == {STORE, ".lock", "label-studio"}, "clean removes nothing of it"


def test_open_documents_are_those_that_nobody_or_the_annotator_has_not_finished(folder: Path) -> None:
    export_tasks(folder, "prodigy", documents="open")
    rows = list(srsly.read_jsonl(folder / "prodigy/tasks.jsonl"))
    assert [row["meta"]["id"] for row in rows] == ["begun", "new"]
    export_tasks(folder, "label-studio", documents="open", annotator="bo")
    assert len(srsly.read_json(folder / "label-studio/tasks.json")) == 3


def test_nobody_s_work_in_an_exported_file_is_written_over(folder: Path) -> None:
    export_tasks(folder, "prodigy")
    (folder / "prodigy/tasks.jsonl").write_text("edited")
    with pytest.raises(StepError, match="there already"):
        export_tasks(folder, "prodigy")
    assert (folder / "prodigy/tasks.jsonl").read_text() == "edited"


def test_what_the_tool_cannot_hold_is_said_with_the_documents(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_tasks(folder, "prodigy", tool_labels="METHOD, DISEASE")
    output = words(capsys.readouterr().out)
    for message in ("flags and comments", "suggestions", "drafts"):
        assert f"prodigy cannot hold {message}." in output
    assert "Documents: done" in output and "Documents: begun" in output
    assert "with 3 documents" in output


def test_a_failed_export_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(StepError, match="new: the text has characters beyond"):
        export_tasks(folder, "doccano")
    assert not (folder / "doccano").exists() and (folder / STORE).exists()


def test_without_documents_there_is_nothing_to_write(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(StepError, match="There is no"):
        export_tasks(tmp_path / "annotate" / "other", "prodigy")
    assert not (tmp_path / "annotate" / "other").exists()
    store = Store(folder / STORE)
    for name in ("begun", "new"):
        earlier = store.tasks([name])[0].annotations
        revision = earlier[0].revision if earlier else 0
        store.save(Annotation(document=name, annotator="ada", status="skipped", revision=revision))
    with pytest.raises(StepError, match="no such document"):
        export_tasks(folder, "prodigy", documents="open")
