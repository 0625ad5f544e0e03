"""Formats of annotation tools, with rows as their servers write them, about texts of our own."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import srsly
from hypothesis import given, settings
from hypothesis import strategies as st

from common.agreement import ADJUDICATED
from common.annotations import Annotation, Document, Span, Task, checksum_of
from common.errors import StepError
from common.formats import (
    Entry,
    Finding,
    Mark,
    Options,
    check_marks,
    decision_of,
    find_losses,
    without_overlaps,
)
from common.formats.known import FORMATS

LABELS = ["PER", "LOC", "a label", "MODEL-A", "Ü<&>"]
TEXT = "🚢 Mira Solberg left Turku."  # the first character is two in UTF-16
MIRA, TURKU = Span(start=2, end=14, label="PER"), Span(start=20, end=25, label="LOC")
SHIP = Document(id="d1", text=TEXT)
OPTIONS = Options(offsets="code-points")


def read(tool: str, path: Path, options: Options = OPTIONS, *known: Task) -> list[Entry]:
    return list(FORMATS[tool].read(path, {task.document.id: task for task in known}, options))


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return path


def write_list(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps(rows), "utf8")
    return path


# Round trips

PIECES = [
    "Mira",
    "Turku",
    "e\u0301",
    "🚢",
    "👩‍🔬",
    "\r\n",
    "\n",
    "\u00a0",
    "\t",
    '"',
    "'",
    "\\",
    "\u2028",
    "  ",
    "漢字",
    "שלום",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@st.composite
def spans_of(draw: st.DrawFn, text: str, suggested: bool) -> list[Span]:
    if not text:
        return []
    spans = []
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text) - 1))
        source = draw(st.sampled_from(["en_x-1.0", "terms"] if suggested else ["", "en_x-1.0"]))
        score = draw(st.none() | st.floats(0, 1)) if source else None
        end, label = draw(st.integers(start + 1, len(text))), draw(st.sampled_from(LABELS))
        spans.append(Span(start=start, end=end, label=label, score=score, source=source))
    return spans


@st.composite
def tasks_of(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for number, text in enumerate(draw(st.lists(texts, max_size=4, unique=True))):
        name = draw(st.sampled_from(["", "a/b.txt, row ", "ü 🚢 "])) + str(number)
        task = Task(document=Document(id=name, text=text), suggestions=draw(spans_of(text, suggested=True)))
        for annotator in draw(st.lists(st.sampled_from(["ada", "bo@example.org"]), unique=True)):
            status: Any = draw(st.sampled_from(["draft", "annotated", "skipped"]))
            task.annotations.append(
                Annotation(
                    document=name,
                    annotator=annotator,
                    status=status,
                    spans=draw(spans_of(text, suggested=False)),
                    seconds=draw(st.sampled_from([0, 12.5])),
                    ground_truth=status != "draft" and draw(st.booleans()),
                    comment=draw(st.sampled_from(["", "Why?"])),
                )
            )
        tasks.append(task)
    return tasks


def plain(spans: list[Span]) -> list[Span]:
    return [Span(start=span.start, end=span.end, label=span.label) for span in spans]


def reduce(tool: str, task: Task) -> Task:
    """What is left of a task in a format, by what it says that it holds."""
    holds = FORMATS[tool].holds
    decided = [annotation for annotation in task.annotations if annotation.status != "draft"]
    if tool == "argilla":  # has no skipped documents
        decided = [annotation for annotation in decided if annotation.status != "skipped"]
    suggestions = task.suggestions if not decided or "suggestions beside decisions" in holds else []
    if tool == "argilla" and suggestions:  # suggestions of one source, with scores of all or of none
        source = ", ".join(dict.fromkeys(span.source for span in suggestions))
        scored = all(span.score is not None for span in suggestions)
        suggestions = [
            span.model_copy(update={"source": source, "score": span.score if scored else None}) for span in suggestions
        ]
    annotations = []
    first = decision_of(task)
    for annotation in decided if "annotators" in holds else [first] if first else []:
        spans = annotation.spans if "overlaps" in holds else without_overlaps(annotation.spans)
        annotations.append(
            Annotation(
                document=annotation.document,
                annotator=annotation.annotator,
                status=annotation.status,
                spans=spans if "sources" in holds and tool != "argilla" else plain(spans),
                seconds=annotation.seconds if "seconds" in holds else 0,
                ground_truth=annotation.ground_truth and "ground truth" in holds,
            )
        )
    if "overlaps" not in holds:
        suggestions = without_overlaps(suggestions)
    if "sources" not in holds:
        suggestions = [span.model_copy(update={"source": tool, "score": None}) for span in suggestions]
    document = Document(id=task.document.id, text=task.document.text)
    return Task(document=document, suggestions=suggestions, annotations=annotations)


def by_source(task: Task) -> Task:
    """Suggestions of one source are together in some formats."""
    return task.model_copy(update={"suggestions": sorted(task.suggestions, key=lambda span: span.source)})


@pytest.mark.parametrize("tool", ["label-studio", "prodigy", "doccano", "argilla"])
@settings(max_examples=50)
@given(tasks=tasks_of(), offsets=st.sampled_from(["code-points", "utf-16"]))
def test_what_is_written_is_read_as_it_was(tool: str, tasks: list[Task], offsets: Any) -> None:
    options = Options(offsets=offsets)
    with tempfile.TemporaryDirectory() as folder:
        FORMATS[tool].write(Path(folder), tasks, options)
        entries = read(tool, Path(folder) / FORMATS[tool].file, options, *tasks)
    merged: dict[str, Task] = {}
    for entry in entries:
        assert entry.findings == []
        earlier = merged.setdefault(entry.task.document.id, entry.task)
        if earlier is not entry.task:  # Prodigy has a row for each annotator
            assert earlier.document == entry.task.document
            earlier.annotations.extend(entry.task.annotations)
    assert [by_source(task) for task in merged.values()] == [by_source(reduce(tool, task)) for task in tasks]


def test_of_several_annotations_the_final_one_is_written_and_a_skipped_one_last() -> None:
    skipped = Annotation(document="d1", annotator="ada", status="skipped")
    annotated, final = (Annotation(document="d1", annotator=name, status="annotated") for name in ("bo", ADJUDICATED))
    draft = final.model_copy(update={"status": "draft"})
    for there, kept in (
        ([skipped, annotated, final], final),
        ([skipped, annotated, draft], annotated),
        ([skipped, draft], skipped),
        ([draft], None),
    ):
        assert decision_of(Task(document=SHIP, annotations=there)) == kept
    losses = find_losses(FORMATS["conll"], [Task(document=SHIP, annotations=[skipped, annotated, final])])
    assert f"that of {ADJUDICATED} is kept" in " ".join(finding.message for finding in losses)


def test_what_a_format_cannot_hold_is_said() -> None:
    overlapping = [MIRA, Span(start=2, end=6, label="LOC")]
    task = Task(
        document=SHIP,
        suggestions=[TURKU.model_copy(update={"score": 0.5, "source": "en_x-1.0"})],
        annotations=[
            Annotation(
                document="d1",
                annotator="ada",
                status="annotated",
                spans=overlapping,
                flagged=True,
                seconds=3,
                actions=4,
            ),
            Annotation(document="d1", annotator="bo", status="skipped"),
            Annotation(document="d1", annotator="cy", status="draft"),
        ],
    )
    found = " ".join(finding.message for finding in find_losses(FORMATS["doccano"], [task]))
    for what in (
        "suggestions",
        "scores",
        "suggested",
        "overlap",
        "several; that of ada",
        "drafts",
        "flags",
        "long",
        "actions",
    ):
        assert what in found
    assert "skipped" not in found
    open_task = Task(document=SHIP, suggestions=[MIRA])
    assert list(find_losses(FORMATS["prodigy"], [open_task])) == []


# Offsets


@given(text=texts.filter(bool), data=st.data())
def test_the_text_of_a_span_decides_what_its_offsets_count(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = (len(text[:place].encode("utf-16-le")) // 2 for place in (start, end))
    span = Span(start=start, end=end, label="PER")
    assert check_marks(text, [Mark(start, end, "PER", text[start:end])]) == ([span], [])
    assert check_marks(text, [Mark(first, last, "PER", utf16=True)]) == ([span], [])
    (found,), findings = check_marks(text, [Mark(first, last, "PER", text[start:end])])
    assert text[found.start : found.end] == text[start:end] and not findings


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (Mark(2, 14, "PER", "Anna"), "'Anna'.* is not what stands there: 'Mira Solberg'"),
        (Mark(20, 99, "LOC"), "ends after the text"),
        (Mark(20, 20, "LOC"), "no start before its end"),
        (Mark("2", 14, "PER"), "no start"),
        (Mark(-3, 14, "PER"), "no start"),
        (Mark(2, 14, ""), "no label"),
        (Mark(2, 14, None), "no label"),
        (Mark(2, 14, "PER", score=1.5), "no probability"),
        (Mark(1, 14, "PER", utf16=True), "inside a character"),
    ],
)
def test_a_span_that_does_not_fit_is_reported_with_its_offsets(mark: Mark, message: str) -> None:
    spans, (finding,) = check_marks(TEXT, [mark, Mark(20, 25, "LOC")])
    assert spans == [TURKU] and re.search(message, finding)


# Label Studio


def region(start: int, end: int, text: str | None, label: str, **more: Any) -> dict[str, Any]:
    value = {"start": start, "end": end, "labels": [label]} | ({"text": text} if text is not None else {})
    return {"id": "Kx3", "from_name": "label", "to_name": "text", "type": "labels", "value": value, **more}


def exported(*result: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A task as Label Studio 1.23 exports it: of predictions the numbers alone."""
    annotation = {
        "id": 7,
        "completed_by": 1,
        "result": list(result),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-01-02T10:00:00.000000Z",
        "lead_time": 12.5,
        "prediction": {},
        "parent_prediction": 3,
        "parent_annotation": None,
    }
    return {
        "id": 1,
        "data": {"id": "d1", "text": TEXT},
        "annotations": [annotation | more],
        "drafts": [],
        "predictions": [3],
        "meta": {},
        "total_annotations": 1,
        "cancelled_annotations": 0,
        "comment_count": 0,
        "file_upload": None,
        "project": 1,
    }


def test_label_studio_s_export_keeps_who_suggested_what_and_how_long_it_took(tmp_path: Path) -> None:
    suggestion = MIRA.model_copy(update={"score": 0.98, "source": "en_x-1.0"})
    path = write_list(
        tmp_path / "export.json",
        exported(
            region(2, 14, "Mira Solberg", "PER", origin="prediction"),
            region(20, 25, "Turku", "LOC", origin="prediction-changed", score=0.4),
            ground_truth=True,
        ),
    )
    (entry,) = read("label-studio", path, OPTIONS, Task(document=SHIP, suggestions=[suggestion]))
    (annotation,) = entry.task.annotations
    assert annotation.spans == [suggestion, TURKU] and annotation.status == "annotated"
    assert annotation.annotator == "1" and annotation.seconds == 12.5 and annotation.ground_truth
    (entry,) = read("label-studio", path, Options(annotator="ada"))
    assert entry.task.annotations[0].annotator == "ada"
    assert entry.task.annotations[0].spans[0].source == "prediction"


def test_an_export_that_label_studio_wrote_is_read() -> None:
    """Spans accepted, changed, removed and added after an emoji; then a text that was skipped, and one not begun."""
    path = Path(__file__).with_name("label-studio-1.23.2.json")
    text = json.loads(path.read_text("utf8"))[0]["data"]["text"]
    mira = Span(start=2, end=14, label="PER", score=0.98, source="en_demo-1.0.0")
    turku = Span(start=47, end=52, label="LOC", score=0.9, source="en_demo-1.0.0")
    steel, ola = Span(start=18, end=31, label="ORG"), Span(start=58, end=68, label="PER")
    known = Task(document=Document(id="ship", text=text), suggestions=[mira, turku])
    ship, rain, new = read("label-studio", path, Options(annotator="ada"), known)
    assert [annotation.spans for annotation in ship.task.annotations] == [[mira, steel, turku, ola]]
    assert [annotation.status for annotation in rain.task.annotations] == ["skipped"]
    assert not new.task.annotations and not (ship.findings or rain.findings or new.findings)


def test_label_studio_s_old_exports_count_utf16(tmp_path: Path) -> None:
    path = write_list(tmp_path / "export.json", exported(region(3, 15, "Mira Solberg", "PER", origin="manual")))
    assert read("label-studio", path)[0].task.annotations[0].spans == [MIRA]


def test_label_studio_s_skipped_empty_and_unannotated_tasks_are_three_things(tmp_path: Path) -> None:
    never = exported() | {"annotations": [], "predictions": [3]}
    path = write_list(tmp_path / "export.json", exported(was_cancelled=True, lead_time=None), exported(), never)
    skipped, empty, unannotated = read("label-studio", path)
    assert [annotation.status for annotation in skipped.task.annotations] == ["skipped"]
    assert [annotation.status for annotation in empty.task.annotations] == ["annotated"]
    assert unannotated.task.annotations == []


def test_a_span_that_fits_nowhere_makes_a_draft_for_somebody_to_look_at(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "export.json", exported(region(2, 14, "Mira Solberg", "PER"), region(20, 25, "Oslo", "LOC"))
    )
    (entry,) = read("label-studio", path)
    (annotation,) = entry.task.annotations
    assert annotation.status == "draft" and annotation.flagged and annotation.spans == [MIRA]
    assert entry.findings == [annotation.comment] and "Oslo" in annotation.comment and "20–25" in annotation.comment


def test_what_is_no_span_in_label_studio_is_said(tmp_path: Path) -> None:
    choice = {"id": "c", "type": "choices", "value": {"choices": ["news"]}}
    path = write_list(tmp_path / "export.json", exported(choice) | {"drafts": [{"id": 1, "result": []}]})
    (entry,) = read("label-studio", path)
    assert "draft" in entry.findings[0] and "choices" in entry.findings[1]


def test_label_studio_s_json_min_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path / "min.json", {"id": 1, "text": TEXT, "annotator": 1, "label": []})
    with pytest.raises(StepError, match="entry 1: there is no data") as error:
        read("label-studio", path)
    assert "JSON_MIN" in error.value.remedy


def test_label_studio_gets_a_configuration_with_all_labels_and_predictions_with_scores(tmp_path: Path) -> None:
    scored = [
        MIRA.model_copy(update={"score": 0.9, "source": "en_x-1.0"}),
        TURKU.model_copy(update={"score": 0.5, "source": "en_x-1.0"}),
    ]
    options = Options(labels=("METHOD", 'A "B" <C>'))
    FORMATS["label-studio"].write(tmp_path, [Task(document=SHIP, suggestions=scored)], options)
    (row,) = srsly.read_json(tmp_path / "tasks.json")
    (prediction,) = row["predictions"]
    assert prediction["model_version"] == "en_x-1.0" and prediction["score"] == 0.5
    assert prediction["result"][0] == {
        "id": "0",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "score": 0.9,
        "value": {"start": 2, "end": 14, "text": "Mira Solberg", "labels": ["PER"]},
    }
    view = ElementTree.parse(tmp_path / "labels.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == ["METHOD", 'A "B" <C>', "LOC", "PER"]
    assert view.find("Text").attrib == {"name": "text", "value": "$text", "granularity": "word"}  # type: ignore[union-attr]


# Prodigy


def row_of(*spans: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A row as Prodigy's db-out writes it."""
    return {
        "text": TEXT,
        "meta": {"source": "Ours", "id": "d1"},
        "_input_hash": 1886,
        "_task_hash": -1952,
        "_session_id": None,
        "_view_id": "ner_manual",
        "tokens": [{"text": "🚢", "start": 0, "end": 1, "id": 0}],
        "spans": list(spans),
        "answer": "accept",
        **more,
    }


MARKED = {"start": 2, "end": 14, "token_start": 1, "token_end": 2, "label": "PER", "text": "Mira Solberg"}


def test_prodigy_s_answers_say_what_is_annotated_and_skipped(tmp_path: Path) -> None:
    without = row_of(_session_id="news-ada")
    del without["spans"]
    path = write_lines(
        tmp_path / "out.jsonl",
        row_of(MARKED, _annotator_id="ada"),
        row_of(MARKED, answer="ignore", _session_id="news-bo"),
        without,
        row_of(MARKED, answer="reject"),
    )
    accepted, ignored, empty, rejected = read("prodigy", path)
    assert accepted.task.annotations == [
        Annotation(document="d1", annotator="ada", status="annotated", spans=[MIRA], revision=0)
    ]
    assert ignored.task.annotations[0].status == "skipped" and ignored.task.annotations[0].annotator == "news-bo"
    assert empty.task.annotations[0].status == "annotated" and empty.task.annotations[0].spans == []
    assert rejected.task.annotations == [] and "reject" in rejected.findings[0]


def test_prodigy_s_binary_answers_are_no_annotation(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "out.jsonl",
        row_of(MARKED, _view_id="ner"),
        row_of(MARKED, _view_id="ner", answer="reject"),
    )
    (entry,) = read("prodigy", path)
    assert entry.task.annotations == [] and entry.task.suggestions == []
    assert entry.place.endswith("line 1") and entry.findings == [
        "2 answers about single spans are no whole annotation, and are left out."
    ]


def test_who_annotated_has_to_be_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "out.jsonl", row_of(), row_of(MARKED))
    with pytest.raises(StepError, match=r"out\.jsonl, line 1 does not say who") as error:
        read("prodigy", path)
    assert "--vars.annotated_by" in error.value.remedy
    assert read("prodigy", path, Options(annotator="ada"))[1].task.annotations[0].annotator == "ada"


def test_prodigy_gets_tokens_and_the_last_token_of_a_span(tmp_path: Path) -> None:
    inside = Span(start=3, end=14, label="PER", score=0.25, source="en_x-1.0")
    FORMATS["prodigy"].write(tmp_path, [Task(document=SHIP, suggestions=[MIRA, inside])], Options())
    (row,) = srsly.read_jsonl(tmp_path / "tasks.jsonl")
    assert [token["text"] for token in row["tokens"]] == ["🚢", "Mira", "Solberg", "left", "Turku", "."]
    assert row["tokens"][4] == {"text": "Turku", "start": 20, "end": 25, "id": 4, "ws": False}
    assert row["spans"] == [
        {"start": 2, "end": 14, "label": "PER", "token_start": 1, "token_end": 2},
        {"start": 3, "end": 14, "label": "PER", "score": 0.25, "source": "en_x-1.0"},
    ]
    assert row["meta"] == {"id": "d1", "score": 0.25} and "answer" not in row and "_input_hash" not in row


def test_a_row_without_an_id_is_known_by_its_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "out.jsonl", {"text": TEXT, "answer": "accept", "spans": []})
    assert read("prodigy", path, Options(annotator="ada"))[0].task.document.id == checksum_of(TEXT)


# doccano


def example(label: list[Any], **more: Any) -> dict[str, Any]:
    """A row as doccano 1.8 exports it."""
    return {"id": 1, "text": TEXT, "document": "d1", "status": "open", "label": label, "Comments": []} | more


def test_doccano_s_export_is_of_the_user_by_whom_the_file_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "admin.jsonl", example([[3, 15, "PER"]], Comments=["Really?"]), example([], id=2))
    options = Options(offsets="utf-16", approved=True)
    marked, empty = read("doccano", path, options)
    (annotation,) = marked.task.annotations
    assert annotation.spans == [MIRA] and annotation.annotator == "admin" and annotation.comment == "Really?"
    assert empty.task.annotations[0].status == "annotated" and empty.task.annotations[0].spans == []
    shared = path.rename(tmp_path / "all.jsonl")
    with pytest.raises(StepError, match="who annotated"):
        read("doccano", shared, options)


def test_doccano_s_export_of_documents_that_nobody_approved_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "admin.jsonl", example([]))
    with pytest.raises(StepError, match="finished") as error:
        read("doccano", path, OPTIONS)
    assert "--vars.approved yes" in error.value.remedy


def test_the_comments_of_the_store_stay_where_doccano_has_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "admin.jsonl", example([]))
    (entry,) = read("doccano", path, Options(offsets="utf-16", approved=True))
    assert "comment" not in entry.task.annotations[0].model_fields_set, "what is set takes the place of what was there"


def test_doccano_s_offsets_have_to_be_named_where_they_are_ambiguous(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "admin.jsonl", example([], text="Turku."), example([[2, 14, "PER"]]))
    with pytest.raises(StepError, match="line 2") as error:
        read("doccano", path, Options(approved=True))
    assert "--vars.offsets utf-16" in error.value.remedy
    with pytest.raises(StepError, match="d1"):
        FORMATS["doccano"].write(tmp_path, [Task(document=SHIP)], Options())
    (_, entry) = read("doccano", path, Options(approved=True, offsets="utf-16"))
    assert entry.task.annotations[0].spans == [Span(start=1, end=13, label="PER")]  # as it was told


def test_rows_for_doccano_have_the_same_keys_and_no_id_of_doccano_s(tmp_path: Path) -> None:
    tasks = [
        Task(document=Document(id="d1", text="Mira."), suggestions=[Span(start=0, end=4, label="PER", source="x")]),
        Task(
            document=Document(id="d2", text="Rain."),
            annotations=[Annotation(document="d2", annotator="ada", status="annotated")],
        ),
    ]
    FORMATS["doccano"].write(tmp_path, tasks, Options())
    first, second = srsly.read_jsonl(tmp_path / "tasks.jsonl")
    assert first.keys() == second.keys() and "id" not in first
    assert first["label"] == [[0, 4, "PER"]] and (first["document"], first["status"]) == ("d1", "open")


def test_overlapping_suggestions_that_doccano_would_drop_are_said(tmp_path: Path) -> None:
    both = [MIRA, Span(start=2, end=6, label="PER")]
    findings = FORMATS["doccano"].write(tmp_path, [Task(document=SHIP, suggestions=both)], OPTIONS)
    assert findings == [Finding("d1", "doccano cannot hold suggestions that overlap.")]


# Argilla


def record(**more: Any) -> dict[str, Any]:
    """A record as Argilla 2.8 writes it."""
    value = [{"label": "PER", "start": 2, "end": 14}]
    user = "6f1a2b3c-0000-4000-8000-000000000001"
    return {
        "id": "d1",
        "fields": {"text": TEXT},
        "metadata": {},
        "suggestions": {"names": {"value": value, "score": [0.98], "agent": "en_x-1.0"}},
        "responses": {"names": [{"value": value, "user_id": user}]},
        "vectors": {},
        "status": "completed",
        "_server_id": "6f1a2b3c-0000-4000-8000-000000000002",
        **more,
    }


def test_argilla_s_records_have_suggestions_with_scores_and_responses(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "records.json",
        record(),
        record(id="d2", status="pending"),
        record(id="d3", responses={}, status="pending", suggestions={}),
        record(id="d4", responses={"names": [{"value": [], "user_id": "u"}]}),
    )
    done, pending, unseen, empty = read("argilla", path)
    assert done.task.suggestions == [MIRA.model_copy(update={"score": 0.98, "source": "en_x-1.0"})]
    (annotation,) = done.task.annotations
    assert annotation.status == "annotated" and annotation.spans == [MIRA] and annotation.annotator.endswith("0001")
    assert pending.task.annotations[0].status == "draft" and "not completed" in pending.findings[0]
    assert unseen.task.annotations == [] and unseen.task.suggestions == []
    assert empty.task.annotations[0].status == "annotated" and empty.task.annotations[0].spans == []


def test_argilla_gets_a_score_for_each_suggested_span_or_none(tmp_path: Path) -> None:
    scored = [span.model_copy(update={"score": 0.5, "source": "en_x-1.0"}) for span in (MIRA, TURKU)]
    mixed = [scored[0], TURKU.model_copy(update={"source": "terms"})]
    tasks = [
        Task(document=SHIP, suggestions=scored),
        Task(document=Document(id="d2", text=TEXT), suggestions=mixed),
    ]
    findings = FORMATS["argilla"].write(tmp_path, tasks, Options(labels=("METHOD",), offsets="code-points"))
    first, second = srsly.read_json(tmp_path / "records.json")
    assert first["suggestions"]["spans"]["score"] == [0.5, 0.5] and first["suggestions"]["spans"]["agent"] == "en_x-1.0"
    assert second["suggestions"]["spans"]["score"] is None
    assert [(finding.document, finding.message.split(" of ")[0]) for finding in findings] == [
        ("d2", "argilla holds suggestions as"),
        ("d2", "argilla holds scores"),
    ]
    (question,) = srsly.read_json(tmp_path / "settings.json")["questions"]
    assert [option["value"] for option in question["settings"]["options"]] == ["METHOD", "LOC", "PER"]
    assert question["settings"]["allow_overlapping"] is False


def test_argilla_s_offsets_have_to_be_named_where_they_are_ambiguous(tmp_path: Path) -> None:
    """Its page counts UTF-16 code units: what people mark after an emoji would stand a character too far right."""
    marked = {"spans": [{"value": [{"label": "PER", "start": 3, "end": 15}], "user_id": "ada"}]}
    path = write_list(tmp_path / "records.json", record(suggestions={}, responses=marked))
    with pytest.raises(StepError, match=r"entry 1: .* where argilla's offsets are ambiguous") as error:
        read("argilla", path, Options())
    assert "--vars.offsets utf-16" in error.value.remedy
    with pytest.raises(StepError, match=r"d1: .* ambiguous"):
        FORMATS["argilla"].write(tmp_path, [Task(document=SHIP)], Options())
    (entry,) = read("argilla", path, Options(offsets="utf-16"))
    assert entry.task.annotations[0].spans == [MIRA]


def test_which_question_of_argilla_is_about_spans_has_to_be_clear(tmp_path: Path) -> None:
    path = write_list(tmp_path / "records.json", record(responses={"names": [], "topic": []}))
    with pytest.raises(StepError, match="entry 1: it is not clear which question"):
        read("argilla", path)


# Files that cannot be read


@pytest.mark.parametrize(
    ("tool", "content", "message"),
    [
        ("prodigy", b'{"text": "a"}\n\n{"text":', "line 3: this is not JSON"),
        ("prodigy", b'{"text": "a"}\n{"text": "\xff"}', "line 2: this is not JSON"),
        ("prodigy", b"null\n", "line 1: this is no object"),
        ("prodigy", b'{"title": "a"}', "line 1: there is no text"),
        ("prodigy", b'{"text": "\\ud800"}', "line 1: the text has half a character"),
        ("doccano", b'{"text": "a", "entities": []}', "line 1: there is no list of labels"),
        ("label-studio", b'[\n{"data":\n', "line 3"),
        ("label-studio", b"[\n\xff]", "line 2: this is not UTF-8"),
        ("label-studio", b"{}", "is no list"),
        ("label-studio", b"[1]", "entry 1: this is no object"),
        ("label-studio", b'[{"data": {"body": "a"}}]', "entry 1: there is no text"),
        ("argilla", b'[{"fields": {}}]', "entry 1: there is no text"),
        ("argilla", b'[{"fields": {"text": "a"}, "responses": {"spans": [{"value": "a"}]}}]', "no list of spans"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, tool: str, content: bytes, message: str
) -> None:
    path = tmp_path / "export"
    path.write_bytes(content)
    with pytest.raises(StepError, match=message) as error:
        read(tool, path, Options(annotator="ada", approved=True))
    assert str(path) in error.value.problem


def test_a_byte_order_mark_that_an_editor_left_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "Turku"}).encode())
    assert read("prodigy", path)[0].task.document.text == "Turku"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([{"data": {"text": "Turku"}}]).encode())
    assert read("label-studio", path)[0].task.document.text == "Turku"
