"""The file that keeps documents and annotations."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from common.annotations import Annotation, Change, Document, Span
from common.errors import StepError
from common.store import OVERLAP, ConflictError, Standing, Store, is_shared, open_store
from tests.conftest import ROOT

MIRA = Document(id="d1", text="Mira Solberg left Turku 🚢.", split="train", meta={"file": "a.txt"})
TARN = Document(id="d2", text="Rain fell on Tarn.")
PERSON = Span(start=0, end=12, label="PER")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "annotations.db")
    store.add_documents([MIRA, TARN])
    return store


def annotate(status: str = "annotated", annotator: str = "ada", revision: int = 0, **fields: object) -> Annotation:
    return Annotation.model_validate(
        {"document": "d1", "annotator": annotator, "status": status, "revision": revision, **fields}
    )


def test_documents_come_back_as_they_are(store: Store) -> None:
    assert [task.document for task in store.tasks()] == [MIRA, TARN]
    assert Store(store.path).tasks(["d2", "d1"])[1].document == MIRA


def test_the_same_document_is_added_once(store: Store) -> None:
    assert store.add_documents([MIRA, Document(id="d3", text="Fog.")]) == 1
    assert len(store.tasks()) == 3


def test_an_id_with_another_text_is_refused_and_nothing_is_added(store: Store) -> None:
    store.save(annotate(spans=[PERSON]))
    with pytest.raises(StepError, match="d1") as error:
        store.add_documents([Document(id="d3", text="Fog."), Document(id="d1", text="Another text.")])
    assert "new ids" in error.value.remedy
    assert [task.document for task in store.tasks()] == [MIRA, TARN]
    assert store.tasks(["d1"])[0].annotations[0].spans == [PERSON]


def test_unannotated_skipped_and_empty_are_three_things(store: Store) -> None:
    assert store.tasks(["d1"])[0].annotations == []
    skipped = store.save(annotate("skipped"))
    assert store.tasks(["d1"])[0].annotations == [skipped]
    empty = store.save(annotate("annotated", revision=1))
    assert store.tasks(["d1"])[0].annotations == [empty]
    assert [annotation.status for _, annotation in store.history("d1")] == ["skipped", "annotated"]


def test_annotators_do_not_overwrite_each_other(store: Store) -> None:
    store.save(annotate(spans=[PERSON]))
    store.save(annotate(annotator="bo"))
    assert [(a.annotator, len(a.spans)) for a in store.tasks(["d1"])[0].annotations] == [("ada", 1), ("bo", 0)]


def test_a_second_window_of_one_annotator_does_not_overwrite_the_first(store: Store) -> None:
    first = store.save(annotate(spans=[PERSON]))
    with pytest.raises(ConflictError, match="ada has saved d1 elsewhere"):
        store.save(annotate())
    assert store.tasks(["d1"])[0].annotations == [first]
    assert store.save(annotate(revision=first.revision)).revision == 2


def test_what_builds_on_others_is_not_saved_when_they_have_changed(store: Store) -> None:
    ada = store.save(annotate())
    store.save(annotate(annotator="bo"), basis={"ada": ada.revision})
    store.save(annotate(revision=ada.revision))
    for basis in ({"ada": ada.revision, "bo": 1}, {"ada": 2}, {}):
        with pytest.raises(ConflictError):
            store.save(annotate(annotator="cy"), basis=basis)
    assert len(store.history("d1")) == 3
    store.save(annotate(annotator="cy"), basis={"ada": 2, "bo": 1})


def test_the_log_has_each_decision_and_none_that_was_not_saved(store: Store) -> None:
    words = {"start": 0, "end": 12, "label": "PER", "text": "Mira Solberg"}
    fields = {"document": "d1", "person": "bo", "finding": "f", "kind": "missed", "start": 0, "end": 12}
    line = Change.model_validate(fields | {"decision": "kept", "before": [words], "after": [words]})
    store.log(line, {})
    (kept,) = store.changes()
    assert kept == line.model_copy(update={"number": 1, "time": kept.time}) and kept.time.endswith("+00:00")
    for change in (line, line.model_copy(update={"number": 7})):
        with pytest.raises(ConflictError, match="bo has saved d1"):
            store.log(change, {})
    accepted = line.model_copy(update={"decision": "accepted", "number": 1})
    store.save(annotate())
    with pytest.raises(ConflictError):
        store.save(annotate(), {}, accepted)
    with pytest.raises(ConflictError):
        store.save(annotate(revision=1), {}, line)
    assert store.changes() == [kept] and len(store.history("d1")) == 1
    store.save(annotate(revision=1), {}, accepted)
    with pytest.raises(ConflictError, match="ada has saved d1"):
        store.log(line.model_copy(update={"number": 2}), {})
    assert [one.decision for one in store.changes()] == ["kept", "accepted"]


def test_a_span_beyond_the_text_and_an_unknown_document_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="26 characters"):
        store.save(annotate(spans=[Span(start=20, end=27, label="LOC")]))
    with pytest.raises(ValueError, match="no document 'd9'"):
        store.save(annotate(document="d9"))
    assert store.history("d1") == []


def test_suggestions_of_one_source_are_replaced_and_decisions_stay(store: Store) -> None:
    saved = store.save(annotate(spans=[PERSON]))
    term = Span(start=18, end=23, label="LOC", source="terms")
    store.suggest("terms", {"d1": [term]})
    store.suggest("en_demo-1.0.0", {"d1": [Span(start=0, end=4, label="PER", score=0.5, source="en_demo-1.0.0")]})
    better = Span(start=0, end=12, label="PER", score=0.9, source="en_demo-1.0.0")
    store.suggest("en_demo-1.0.0", {"d1": [better]})
    (task,) = store.tasks(["d1"])
    assert sorted(task.suggestions, key=lambda span: span.start) == [better, term]
    assert task.annotations == [saved]


def test_documents_come_in_the_order_of_work(store: Store) -> None:
    store.add_documents([Document(id="d3", text="Fog.")])
    store.arrange({"d3": (0.0, "random"), "d2": (1.0, "uncertain")})
    store.split({"d3": "test"})
    assert [task.document.id for task in store.tasks()] == ["d3", "d2", "d1"]
    assert (store.tasks()[0].document.reason, store.tasks()[0].document.split) == ("random", "test")


def test_progress_is_that_of_one_annotator_in_the_order_of_work(store: Store) -> None:
    store.arrange({"d2": (0.0, "uncertain")})
    store.save(annotate(seconds=2.5))
    store.save(annotate("skipped", "bo"))
    assert list(store.progress("ada").items()) == [
        ("d2", Standing(None)),
        ("d1", Standing("annotated", 2.5, annotated=True)),
    ]
    assert store.progress("bo")["d1"] == Standing("skipped", annotated=True)
    assert store.progress("cy")["d1"] == Standing(None, annotated=True, taken=True)


# Who gets which document


def test_what_everybody_gets_follows_from_the_id_and_grows_with_the_share() -> None:
    names = [f"reports/{number}.txt" for number in range(2000)]
    shares = (0, OVERLAP, 0.5, 1)
    none, few, half, every = ({name for name in names if is_shared(name, share)} for share in shares)
    assert not none and few < half < every == {*names}
    assert len(few) == pytest.approx(200, rel=0.2) and len(half) == pytest.approx(1000, rel=0.1)


def test_a_document_that_somebody_has_open_or_has_decided_is_not_given_to_others(store: Store) -> None:
    store.divide(0)
    both = ["d1", "d2"]
    assert [store.claim(name, both) for name in ("ada", "bo", "cy", "ada")] == ["d1", "d2", None, "d1"]
    assert [one.taken for one in store.progress("ada").values()] == [False, True]
    store.save(annotate())
    assert store.claim("ada", ["d2"]) is None and store.claim("ada", ["d1"]) == "d1", "it can be changed again"
    assert [one.taken for one in store.progress("cy").values()] == [True, True]
    store.divide(1)
    assert store.claim("cy", both) == "d1" and not any(one.taken for one in store.progress("cy").values())


def test_a_tenth_is_for_everybody_unless_the_run_says_another_share(store: Store) -> None:
    names = ["d1", *(f"e{number}" for number in range(8, 13))]
    store.add_documents(Document(id=name, text=f"Text {name}.") for name in names[1:])
    for name in names:
        store.save(annotate(document=name))
    free = [name for name, one in store.progress("bo").items() if name in names and not one.taken]
    assert 0 < len(free) < 5 and free == [name for name in names if is_shared(name, OVERLAP)]


def test_what_was_opened_and_left_is_free_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.divide(0)
    store.claim("ada", ["d1"])
    assert store.claim("ada", ["d2"]) == "d2" and store.claim("bo", ["d1"]) == "d1", "ada has gone on to another one"
    store.save(annotate("draft", "bo"))
    store.add_documents([Document(id="d3", text="Fog.")])
    assert store.claim("bo", ["d3"]) == "d3" and store.claim("ada", ["d1"]) is None, "bo has begun with it"
    with monkeypatch.context() as patch:
        patch.setattr("common.store.ABSENCE", -1)  # as if time had passed
        assert store.claim("ada", ["d1"]) == "d1"
        assert store.claim("bo", ["d3"]) == "d3", "nobody else wanted it"
    assert store.claim("bo", ["d1"]) is None and store.tasks(["d1"])[0].annotations[0].annotator == "bo"


def test_a_sign_of_an_annotator_keeps_all_drafts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.divide(0)
    clock = [0.0]
    monkeypatch.setattr("common.store.time.time", lambda: clock[0])
    store.claim("ada", ["d1"])
    store.save(annotate("draft"))
    for clock[0] in (1000.0, 2000.0, 3000.0):
        store.claim("ada", ["d2"])
    assert store.claim("bo", ["d1", "d2"]) is None
    clock[0] = 5000.0
    assert store.claim("bo", ["d1", "d2"]) == "d1"


def claim_all(path: Path, annotator: str, names: list[str]) -> list[str]:
    """Take and decide documents until there is none left."""
    store, taken = Store(path), []
    while name := store.claim(annotator, [name for name in names if name not in taken]):
        store.save(annotate(document=name, annotator=annotator))
        taken.append(name)
    return taken


def test_two_who_ask_at_once_never_get_the_same_document(store: Store) -> None:
    store.divide(0)
    start = threading.Barrier(2)

    def ask(annotator: str) -> str | None:
        start.wait()
        return store.claim(annotator, ["d1", "d2"])

    with ThreadPoolExecutor(2) as pool:
        assert {*pool.map(ask, ("ada", "bo"))} == {"d1", "d2"}


@pytest.mark.slow
def test_processes_that_work_at_once_share_the_documents(store: Store) -> None:
    names = [f"e{number}" for number in range(60)]
    store.add_documents(Document(id=name, text=f"Text {name}.") for name in names)
    store.divide(0.3)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        taken = pool.starmap(claim_all, [(store.path, name, names) for name in ("ada", "bo")])
    shared = {name for name in names if is_shared(name, 0.3)}
    assert {*taken[0]} & {*taken[1]} == shared and {*taken[0]} | {*taken[1]} == {*names}
    by_name = {task.document.id: [one.annotator for one in task.annotations] for task in store.tasks(names)}
    assert all(len(annotators) == 1 + (name in shared) for name, annotators in by_name.items())


def test_labels_are_those_of_suggestions_and_decisions(store: Store) -> None:
    assert store.labels() == []
    store.suggest("terms", {"d1": [Span(start=0, end=4, label="a label"), PERSON], "d2": []})
    rejected = [Span(start=0, end=4, label="GONE")]
    store.save(
        annotate(spans=[Span(start=0, end=4, label="PER"), Span(start=5, end=7, label="ORG")], rejected=rejected)
    )
    assert store.labels() == ["ORG", "PER", "a label"]


def save_often(path: Path, annotator: str, number: int) -> None:
    store = Store(path)
    for revision in range(number):
        store.save(annotate(annotator=annotator, revision=revision, actions=revision + 1))


@pytest.mark.slow
def test_several_processes_work_on_one_file(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=save_often, args=(store.path, name, 20)) for name in ("ada", "bo", "cy")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {a.annotator: (a.revision, a.actions) for a in store.tasks(["d1"])[0].annotations} == dict.fromkeys(
        ("ada", "bo", "cy"), (20, 20)
    )
    assert len(store.history("d1")) == 60


def test_what_was_saved_survives_a_kill(store: Store) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.common.test_store import save_often\n"
        "path = Path(sys.argv[1]); save_often(path, 'ada', 5); print('saved', flush=True)\n"
        "save_often(path, 'bo', 10**9)"
    )
    command = [sys.executable, "-c", program, str(store.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while len(store.tasks(["d1"])[0].annotations) < 2:
            assert process.poll() is None, "it is killed while it saves"
        process.kill()
    ada, bo = store.tasks(["d1"])[0].annotations
    assert ada.revision == 5 and bo.revision == bo.actions == len(store.history("d1")) - 5
    with closing(sqlite3.connect(store.path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_another_file_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "annotations.db"
    path.write_text("These are notes, and they are no database. " * 100, encoding="utf8")
    before = path.read_bytes()
    with pytest.raises(StepError, match=r"annotations\.db cannot be used"):
        Store(path)
    assert path.read_bytes() == before


def test_what_cannot_be_opened_or_written_is_named_with_what_to_do(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StepError, match="cannot be used: unable to open") as error:
        Store(store.path.parent)
    assert "right to write" in error.value.remedy
    connect = sqlite3.connect
    address = f"{store.path.as_uri()}?mode=ro"  # as for somebody who may only read it
    monkeypatch.setattr("sqlite3.connect", lambda _, **settings: connect(address, uri=True, **settings))
    assert [task.document for task in store.tasks()] == [MIRA, TARN]
    with pytest.raises(StepError, match="readonly") as error:
        store.save(annotate())
    assert "right to write" in error.value.remedy


def test_a_full_disk_loses_nothing_that_was_saved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store.save(annotate(spans=[PERSON]))
    connect = sqlite3.connect

    def connect_with_little_space(*args: object, **kwargs: object) -> sqlite3.Connection:
        database = connect(*args, **kwargs)  # type: ignore[call-overload]
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr("sqlite3.connect", connect_with_little_space)
        with pytest.raises(StepError, match="full") as error:
            store.add_documents([Document(id="d3", text="A long text. " * 10_000)])
    assert "Free some space" in error.value.remedy
    assert store.tasks(["d1"])[0].annotations == [saved]
    assert len(store.tasks()) == 2


def test_fields_are_added_to_the_meta_and_replaced(store: Store) -> None:
    store.describe({"d1": {"group": "d1"}, "d2": {"group": "d1"}, "d9": {"group": "d1"}})
    store.describe({"d2": {"group": "d2"}})
    assert [task.document.meta for task in store.tasks()] == [{"file": "a.txt", "group": "d1"}, {"group": "d2"}]


def test_a_run_without_a_store_is_told_how_to_get_one(store: Store, tmp_path: Path) -> None:
    assert open_store(tmp_path).tasks() == store.tasks()
    with pytest.raises(StepError, match=r"There is no .*annotations\.db") as error:
        open_store(tmp_path / "mine")
    assert "make gather RUN=mine" in error.value.remedy and not (tmp_path / "mine").exists()
