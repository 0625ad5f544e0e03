from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.annotations import Annotation, Document, Span
from common.errors import StepError
from common.records import read_json
from common.store import STORE, Store
from scripts.export_tasks import export_tasks
from scripts.import_annotations import import_annotations
from tests.conftest import words

TEXTS = {"d1": "Mira slept.", "d2": "Mira sang.", "d3": "Rain fell.", "d4": "Fog."}
MIRA = Span(start=0, end=4, label="PER")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "annotate" / "mine"
    folder.mkdir(parents=True)
    store = Store(folder / STORE)
    store.add_documents(Document(id=name, text=text) for name, text in TEXTS.items())
    store.suggest("en_x-1.0", {"d1": [MIRA]})
    return folder


def row(name: str | None, text: str, *spans: tuple[int, int, str], **more: Any) -> dict[str, Any]:
    """An answer as Prodigy writes it."""
    return {
        "text": text,
        "meta": {"id": name} if name else {},
        "spans": [{"start": start, "end": end, "label": label} for start, end, label in spans],
        "answer": "accept",
        "_annotator_id": "ada",
        **more,
    }


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf8")
    return path


def saved(folder: Path, name: str) -> list[Annotation]:
    return Store(folder / STORE).tasks([name])[0].annotations


def findings(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = read_json(folder / "findings.json")["findings"]
    return found


def test_annotated_empty_skipped_and_unannotated_are_told_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = row("d4", TEXTS["d4"])
    del unseen["answer"]
    path = write(
        tmp_path / "out.jsonl",
        row("d1", TEXTS["d1"], (0, 4, "PER")),
        row("d2", TEXTS["d2"], answer="ignore"),
        row("d3", TEXTS["d3"]),
        unseen,
    )
    import_annotations(folder, [path], "prodigy")
    assert saved(folder, "d1")[0].spans == [MIRA]
    assert saved(folder, "d2")[0].status == "skipped"
    assert saved(folder, "d3")[0].status == "annotated" and saved(folder, "d3")[0].spans == []
    assert saved(folder, "d4") == []
    output = words(capsys.readouterr().out)
    assert "annotator annotated empty skipped draft unannotated" in output
    assert "ada 1 1 1 0 0" in output and "– 0 0 0 0 1" in output and "Findings: 0" in output
    assert "0 new documents, 3 annotations saved, 0 annotations that were there" in output
    assert findings(folder) == []


def test_a_document_is_found_by_its_text_where_the_file_has_no_id_or_another_one(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", row(None, TEXTS["d1"], (0, 4, "PER")), row("7", TEXTS["d2"]))
    import_annotations(folder, [path], "prodigy")
    assert saved(folder, "d1")[0].spans == [MIRA] and saved(folder, "d2")[0].status == "annotated"
    assert len(Store(folder / STORE).tasks()) == len(TEXTS)


def test_a_text_that_was_changed_is_shown_and_nothing_of_it_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Store(folder / STORE).save(Annotation(document="d1", annotator="ada", status="annotated", spans=[MIRA]))
    path = write(tmp_path / "out.jsonl", row("d1", "Mia slept.", (0, 3, "PER")), row("d2", TEXTS["d2"]))
    import_annotations(folder, [path], "prodigy")
    assert saved(folder, "d1") == [kept] and saved(folder, "d2")[0].status == "annotated"
    (finding,) = findings(folder)
    assert finding["document"] == "d1" and finding["place"] == f"{path}, line 1" and "not that of" in finding["message"]
    assert "document d1: The text is not that of the store" in words(capsys.readouterr().out)


def test_an_id_that_occurs_twice_is_refused_with_both_places_and_nothing_is_saved(folder: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("d2", TEXTS["d2"]), row("d1", TEXTS["d1"]))
    second = write(tmp_path / "b.jsonl", row("d1", TEXTS["d1"], (0, 4, "PER")))
    with pytest.raises(StepError, match="d1 occurs twice, annotated by ada") as error:
        import_annotations(folder, [first, second], "prodigy")
    assert f"{first}, line 2" in error.value.problem and f"{second}, line 1" in error.value.problem
    with pytest.raises(StepError, match="new occurs twice, with different texts"):
        import_annotations(
            folder, [write(tmp_path / "c.jsonl", row("new", "One."), row("new", "Two.", _annotator_id="bo"))], "prodigy"
        )
    assert all(not saved(folder, name) for name in TEXTS)


def test_several_annotators_of_one_document_stay_apart(folder: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "out.jsonl", row("d1", TEXTS["d1"], (0, 4, "PER")), row("d1", TEXTS["d1"], _annotator_id="bo")
    )
    import_annotations(folder, [path], "prodigy")
    assert {one.annotator: len(one.spans) for one in saved(folder, "d1")} == {"ada": 1, "bo": 0}
    with pytest.raises(StepError, match="annotated by cy"):
        import_annotations(folder, [path], "prodigy", annotator="cy")


def test_the_same_annotation_is_imported_once_and_another_one_is_a_new_revision(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = MIRA.model_copy(update={"score": 0.9, "source": "en_x-1.0"})
    store = Store(folder / STORE)
    store.save(
        Annotation(document="d1", annotator="ada", status="annotated", spans=[accepted], comment="Sure.", actions=3)
    )
    same = write(tmp_path / "same.jsonl", row("d1", TEXTS["d1"], (0, 4, "PER")))
    import_annotations(folder, [same], "prodigy")
    (annotation,) = saved(folder, "d1")
    assert annotation.revision == 1 and annotation.spans == [accepted]
    assert "1 annotations that were there" in words(capsys.readouterr().out)
    other = write(tmp_path / "other.jsonl", row("d1", TEXTS["d1"], (0, 4, "ORG")))
    import_annotations(folder, [other], "prodigy")
    (annotation,) = saved(folder, "d1")
    assert annotation.revision == 2 and annotation.spans == [Span(start=0, end=4, label="ORG")]
    assert annotation.comment == "Sure." and annotation.actions == 3, "what the file does not have"
    assert [[span.label for span in one.spans] for _, one in store.history("d1")] == [["PER"], ["ORG"]]


def test_what_says_the_same_may_occur_twice_and_is_taken_once(folder: Path, tmp_path: Path) -> None:
    """In a corpus without ids two documents may be the same, of which `gather` has brought one."""
    same = row(None, TEXTS["d1"], (0, 4, "PER"))
    import_annotations(folder, [write(tmp_path / "out.jsonl", same, same)], "prodigy")
    (annotation,) = saved(folder, "d1")
    assert annotation.spans == [MIRA] and annotation.revision == 1
    (finding,) = findings(folder)
    assert finding["place"].endswith("line 2") and "ada says the same as in" in finding["message"]


def test_what_says_nothing_may_occur_twice(folder: Path, tmp_path: Path) -> None:
    """Two people have rejected one task of Prodigy."""
    rows = (row("d1", TEXTS["d1"], answer="reject", _annotator_id=name) for name in ("ada", "bo"))
    import_annotations(folder, [write(tmp_path / "out.jsonl", *rows, row("d2", TEXTS["d2"]))], "prodigy")
    assert len(findings(folder)) == 2 and not saved(folder, "d1") and saved(folder, "d2")


def test_what_a_format_cannot_hold_makes_no_new_revision(folder: Path, tmp_path: Path) -> None:
    store = Store(folder / STORE)
    kept = store.save(Annotation(document="d1", annotator="ada", status="annotated", ground_truth=True))
    import_annotations(folder, [write(tmp_path / "out.jsonl", row("d1", TEXTS["d1"]))], "prodigy")
    assert saved(folder, "d1") == [kept]


def test_near_duplicates_are_in_one_group_as_if_they_were_gathered(folder: Path, tmp_path: Path) -> None:
    store = Store(folder / STORE)
    text = "On day 7 the boat left at noon, and on day 8 another one came into the harbour with fog behind it"
    store.add_documents([Document(id="old", text=f"{text}.")])
    rows = (row(name, f"{text}{mark}") for name, mark in (("new", "!"), ("newer", "?")))
    import_annotations(folder, [write(tmp_path / "out.jsonl", *rows, row("d1", TEXTS["d1"]))], "prodigy")
    groups = {task.document.id: task.document.meta.get("group") for task in store.tasks()}
    assert groups == dict.fromkeys(TEXTS) | dict.fromkeys(("new", "newer", "old"), "new")


def test_a_broken_annotation_does_not_replace_a_finished_one(folder: Path, tmp_path: Path) -> None:
    """The file was edited by hand: the offsets are no longer those of the word."""
    kept = Store(folder / STORE).save(Annotation(document="d1", annotator="ada", status="annotated", spans=[MIRA]))
    path = write(tmp_path / "out.jsonl", row("d1", TEXTS["d1"], (0, 40, "PER")), row("d2", TEXTS["d2"], (0, 40, "PER")))
    import_annotations(folder, [path], "prodigy")
    assert saved(folder, "d1") == [kept]
    (draft,) = saved(folder, "d2")
    assert draft.status == "draft" and draft.flagged and "0–40" in draft.comment
    messages = [finding["message"] for finding in findings(folder)]
    assert sum("ends after the text" in message for message in messages) == 2
    assert sum("not saved" in message for message in messages) == 1


def test_a_span_that_cuts_a_token_is_shown_with_a_proposal_and_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "out.jsonl", row("d1", TEXTS["d1"], (0, 3, "PER")))
    import_annotations(folder, [path], "prodigy")
    assert saved(folder, "d1")[0].spans == [Span(start=0, end=3, label="PER")]
    assert "('Mir') cuts a token; 0–4 ('Mira') would not" in words(capsys.readouterr().out)


def test_labels_that_were_not_known_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "out.jsonl", row("d1", TEXTS["d1"], (0, 4, "PERSON"), (5, 10, "ACT"), (5, 10, "PER")))
    import_annotations(folder, [path], "prodigy", tool_labels="ACT, METHOD")
    assert "Labels that were not known: PERSON (1)" in words(capsys.readouterr().out)


def test_documents_that_the_store_does_not_have_are_added_with_their_suggestions(tmp_path: Path) -> None:
    folder = tmp_path / "annotate" / "mine"
    unseen = row("n2", "Rain in Oslo.", (8, 12, "LOC"))
    del unseen["answer"]
    path = write(tmp_path / "out.jsonl", row("n1", "Mira slept.", (0, 4, "PER")), unseen)
    import_annotations(folder, [path], "prodigy")
    first, second = Store(folder / STORE).tasks()
    assert first.document.id == "n1" and first.annotations[0].spans == [MIRA] and first.suggestions == []
    assert second.annotations == [] and [span.label for span in second.suggestions] == ["LOC"]


def test_suggestions_of_the_store_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    unseen = row("d1", TEXTS["d1"], (5, 10, "ACT"))
    del unseen["answer"]
    import_annotations(folder, [write(tmp_path / "out.jsonl", unseen)], "prodigy")
    assert Store(folder / STORE).tasks(["d1"])[0].suggestions == [MIRA]


@pytest.mark.parametrize("tool", ["label-studio", "prodigy"])
def test_what_was_exported_comes_back_as_what_is_there(folder: Path, tool: str) -> None:
    store = Store(folder / STORE)
    store.save(Annotation(document="d1", annotator="ada", status="annotated", spans=[MIRA]))
    store.save(Annotation(document="d2", annotator="bo", status="skipped"))
    before = store.tasks()
    export_tasks(folder, tool)
    (path,) = (folder / tool).glob("tasks.*")
    import_annotations(folder, [path], tool)
    assert store.tasks() == before and findings(folder) == []


def test_an_unreadable_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", row("d1", TEXTS["d1"]))
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": ')
    with pytest.raises(StepError, match="line 1"):
        import_annotations(folder, [good, bad], "prodigy")
    assert saved(folder, "d1") == []
    other = folder.parent / "other"
    with pytest.raises(StepError, match="line 1"):
        import_annotations(other, [bad], "prodigy")
    assert not other.exists()


def test_a_tool_that_is_not_known_is_refused_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", row("d1", TEXTS["d1"]))
    with pytest.raises(StepError, match="'prodigi'") as error:
        import_annotations(folder, [path], "prodigi")
    assert "label-studio, prodigy" in error.value.remedy
    with pytest.raises(StepError, match="'prodigi'"):
        export_tasks(folder, "prodigi")
