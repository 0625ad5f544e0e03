from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.annotations import Annotation, Document, Span
from common.errors import StepError
from common.groups import group_documents
from common.store import STORE, Store
from scripts import gather as step
from scripts.clean import clean
from scripts.gather import choose_test, gather
from tests.conftest import words


def tell(subject: str) -> str:
    """A text that shares little with those of other subjects."""
    return f"The {subject} council met and asked what {subject * 2} means, and nobody but {subject.upper()} knew. " * 2


SUBJECTS = ["turku", "oslo", "malta", "peru", "kenya", "quito", "lagos", "tunis", "sofia", "minsk"]
MORE = ["porto", "delhi", "hanoi", "seoul", "cairo", "accra", "dakar", "perth", "basel", "ghent"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("annotate/mine")


def write_rows(path: str, *rows: dict[str, Any]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return path


def write_texts(folder: str, **texts: str) -> str:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        Path(folder, f"{name}.txt").write_text(text, "utf8")
    return folder


def documents(folder: Path) -> dict[str, Document]:
    return {task.document.id: task.document for task in Store(folder / STORE).tasks()}


def test_texts_come_into_the_store_with_ids_and_where_they_come_from(folder: Path) -> None:
    gather(folder, write_texts("texts/deep", a=tell("turku")).removesuffix("/deep"), test_share=0)
    rows = write_rows("rows.jsonl", {"id": 7, "text": tell("oslo"), "page": 3})
    gather(folder, rows, test_share=0)
    assert documents(folder) == {
        "deep/a.txt": Document(id="deep/a.txt", text=tell("turku"), meta={"file": "deep/a.txt"}),
        "7": Document(id="7", text=tell("oslo"), meta={"file": "rows.jsonl", "row": 1, "columns": {"page": 3}}),
    }


def test_no_text_comes_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write_texts("texts", a=tell("turku"), b=tell("turku"), c=tell("oslo"))
    gather(folder, texts)
    before = documents(folder)
    assert set(before) == {"a.txt", "c.txt"}
    assert "b.txt is a.txt" in words(capsys.readouterr().out)
    Path(texts, "a.txt").rename(Path(texts, "renamed.txt"))
    gather(folder, texts)
    assert documents(folder) == before
    assert "has 2 documents, 0 of them new" in words(capsys.readouterr().out)


def test_what_is_empty_or_cannot_be_annotated_is_counted_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "LONGEST", 1000)
    write_texts("texts", empty=" \n\u00a0", huge="Fog. " * 300)
    Path("texts/old.txt").write_bytes("Kalle lives in Åbo, naïve as he is".encode("cp1252"))
    Path("texts/picture.png").touch()
    Path("texts/broken.pdf").write_bytes(b"%PDF")
    write_rows("texts/rows.jsonl", {"text": "Rain\0."}, {"text": "\ud800"}, {"title": "Fog."}, {"text": "Snow fell."})
    gather(folder, "texts", test_share=0)
    assert set(documents(folder)) == {"old.txt", "rows.jsonl#4"}
    said = words(capsys.readouterr().out)
    assert "1 are empty:" in said and "5 are refused:" in said and "1 are not in UTF-8" in said
    for reason in (
        "empty.txt",
        "texts/picture.png",
        "huge.txt: 1,500 characters are too many",
        "rows.jsonl, row 1: its text has the character NUL",
        "rows.jsonl, line 2: the text has half a character",
        "rows.jsonl, line 3: there is no text",
        "broken.pdf cannot be read",
        "old.txt, line 1: this is not UTF-8",
    ):
        assert reason in said
    assert "files 5 new documents 2" in said and "empty 1 refused 5" in said


def test_ids_that_occur_twice_are_refused_with_both_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("texts/a.jsonl", {"id": 1, "text": tell("turku")})
    write_rows("texts/b.jsonl", {"id": 2, "text": tell("peru")}, {"id": 1, "text": tell("oslo")})
    gather(folder, "texts")
    assert {name: document.text for name, document in documents(folder).items()} == {
        "1": tell("turku"),
        "2": tell("peru"),
    }
    said = "b.jsonl, row 2: the id 1 stands for another text, that of a.jsonl, row 1: give it a new one."
    assert said in words(capsys.readouterr().out)


def test_a_text_that_changed_after_it_was_annotated_is_shown_and_nothing_is_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gather(folder, write_texts("texts", a=tell("turku"), b=tell("oslo")))
    store = Store(folder / STORE)
    spans = [Span(start=4, end=9, label="LOC")]
    store.save(Annotation(document="a.txt", annotator="ada", status="annotated", spans=spans))
    before = store.tasks()
    capsys.readouterr()
    gather(folder, write_texts("texts", a="No " + tell("turku"), b=tell("oslo")))
    assert "a.txt stands for another text, that in the store, which stays with its 1 annotations" in words(
        capsys.readouterr().out
    )
    assert store.tasks() == before


def test_nearly_equal_texts_are_one_group_also_when_they_come_later(folder: Path) -> None:
    gather(folder, write_texts("texts", b=tell("turku"), c=tell("oslo")), test_share=0)
    assert not any("group" in document.meta for document in documents(folder).values())
    gather(folder, write_texts("texts", a=tell("turku") + "Then it rained."), test_share=0)
    groups = {name: document.meta.get("group") for name, document in documents(folder).items()}
    assert groups == {"a.txt": "a.txt", "b.txt": "a.txt", "c.txt": None}


def test_test_is_drawn_at_random_and_comes_first(folder: Path) -> None:
    texts = write_texts("texts", **{subject: tell(subject) for subject in SUBJECTS})
    gather(folder, texts, test_share=0.3, seed=1)
    drawn = [document for document in documents(folder).values() if document.split == "test"]
    assert len(drawn) == 3 and {document.reason for document in drawn} == {"test"}
    assert all(document.rank is not None and document.rank < 0 for document in drawn)
    assert [task.document.split for task in Store(folder / STORE).tasks()[:3]] == ["test"] * 3
    for seed, same in ((1, True), (2, False)):
        gather(other := Path(f"annotate/other{seed}"), texts, test_share=0.3, seed=seed)
        assert (documents(other) == documents(folder)) == same
    gather(folder, write_texts("texts", **{name: tell(name) for name in MORE}), test_share=0.3)
    found = documents(folder)
    assert sum(document.split == "test" for document in found.values()) == 6
    assert {name: document for name, document in found.items() if name in {one.id for one in drawn}} == {
        document.id: document for document in drawn
    }


def test_what_is_nearly_the_same_as_a_text_of_test_is_in_test_without_suggestions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new text may be near to one of test and to another one, which had nothing to do with each other before."""
    sentences = [f"On day {day} boat {day * 37} left at {day % 7}. " for day in range(60)]
    gather(folder, write_texts("first", a="".join(sentences[:45])), test_share=1)
    gather(folder, write_texts("second", b="".join(sentences[14:])), test_share=0)
    store = Store(folder / STORE)
    store.suggest("terms", {"b.txt": [Span(start=0, end=2, label="LOC", source="terms")]})
    assert [document.split for document in documents(folder).values()] == ["test", None]
    capsys.readouterr()
    gather(folder, write_texts("third", c="".join(sentences[6:52])), test_share=0)
    assert {name: document.split for name, document in documents(folder).items()} == dict.fromkeys(
        ("a.txt", "b.txt", "c.txt"), "test"
    )
    assert "b.txt Look at their annotations again." in words(capsys.readouterr().out)
    assert not any(task.suggestions for task in store.tasks())


@given(st.lists(st.sampled_from(SUBJECTS[:5]), max_size=12), st.floats(0, 1), st.integers(0, 3), st.integers(0, 99))
def test_groups_are_never_cut_and_test_is_never_larger_than_wanted(
    subjects: list[str], share: float, old: int, seed: int
) -> None:
    found = [Document(id=str(n), text=f"{tell(subject)}{n}") for n, subject in enumerate(subjects)]
    groups = group_documents(found)
    for one in found:
        for other in found:
            same = subjects[int(one.id)] == subjects[int(other.id)]
            assert (groups.get(one.id, one.id) == groups.get(other.id, other.id)) == same
    before = {document.id for document in found[:old]}
    drawn = choose_test(found, groups, before, share, random.Random(seed))
    assert drawn == choose_test(found, groups, before, share, random.Random(seed))
    assert len(drawn) <= round(share * len(found)) and not before & set(drawn)
    inside = {groups.get(name, name) for name in drawn}
    assert inside.isdisjoint(groups.get(d.id, d.id) for d in found if d.id not in drawn)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("", "has no texts"),
        ("nowhere", "There is no nowhere"),
        ("empty", "There is no text to annotate in empty"),
        ("notes.odt", "not a file of a known kind"),
    ],
)
def test_without_texts_nothing_is_made(folder: Path, texts: str, said: str) -> None:
    write_texts("empty", a=" ")
    Path("notes.odt").touch()
    with pytest.raises(StepError, match=said):
        gather(folder, texts)
    assert not folder.exists()


def test_clean_leaves_what_people_annotate(folder: Path) -> None:
    gather(folder, write_texts("texts", a=tell("turku")))
    clean("mine")
    assert set(documents(folder)) == {"a.txt"}
