"""An annotator who knows the answers, and needs the fewest keys and clicks that the tab Annotate of the page allows.

What counts is what the page counts: a key, a click, and a drag over several words count one each. To look and to think
takes nothing here, so the figures compare ways to work, and are no hours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from spacy.tokens import Doc

from app.marking import Action, Desk, words_of
from common.agreement import keys
from common.annotations import Document, Span
from common.scoring import create_raw_doc
from common.store import STORE, Store
from common.suggestions import find_by_pipeline

ANNOTATOR = "gold"


class Gold(NamedTuple):
    """A document as its author would have written it, and the right answers.

    id (str): Its id.
    text (str): The text.
    spans (list[Span]): The entities.
    """

    id: str
    text: str
    spans: list[Span]


class Edit(NamedTuple):
    """What the annotator does, and with how many keys and clicks."""

    kind: Literal["mark", "remove", "accept_all"]
    span: Span | None
    keys: int


def read_gold(docs: Iterable[Doc]) -> list[Gold]:
    """Write documents as their authors would have, with their numbers, from 0, as ids."""
    texts = ((str(number), create_raw_doc(doc)) for number, doc in enumerate(docs))
    return [
        Gold(name, doc.text, [Span(start=e.start_char, end=e.end_char, label=e.label_) for e in doc.ents])
        for name, doc in texts
    ]


def annotate(documents: Sequence[Gold], model: Path | None) -> int:
    """Annotate documents at the desk of the page, each action saved as there.

    documents (Sequence[Gold]): The documents, at least one.
    model (Path | None): The pipeline whose suggestions are corrected, as `prelabel` makes them; None to mark from
        nothing.
    RETURNS (int): The keys and clicks.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, STORE))
        store.add_documents(Document(id=one.id, text=one.text) for one in documents)
        if model:
            source, find = find_by_pipeline(str(model))
            found = find([one.text for one in documents])
            store.suggest(source, {one.id: new.spans for one, new in zip(documents, found, strict=True)})
        desk = Desk(store, ANNOTATOR)
        wanted = {one.id: one.spans for one in documents}
        for _ in documents:
            correct(desk, wanted[desk.document.id])
        annotations = [task.annotations[0] for task in store.tasks()]
        assert all(annotation.status == "annotated" for annotation in annotations)
        return sum(annotation.actions for annotation in annotations)


def correct(desk: Desk, gold: Sequence[Span]) -> None:
    """Give a document the right entities, and finish it; the desk opens the next one.

    desk (Desk): With a document on which nothing is decided.
    gold (Sequence[Span]): The entities of the document.
    """
    document = desk.document
    for number, edit in enumerate(plan(document.text, gold, desk.suggestions)):
        place = edit.span.model_dump(include={"start", "end", "label"}) if edit.span else {}
        _act(desk, number, {"kind": edit.kind, "keys": edit.keys, **place})
    assert keys(desk.annotation) == {(span.start, span.end, span.label) for span in gold}, document.id
    _act(desk, -1, {"kind": "finish"})


def _act(desk: Desk, number: int, fields: dict[str, object]) -> None:
    at = {"id": f"{desk.document.id} {number}", "document": desk.document.id, "revision": desk.annotation.revision}
    desk.act(Action.model_validate(at | fields))


def plan(text: str, gold: Sequence[Span], suggestions: Sequence[Span]) -> list[Edit]:
    """Find what to do with a document, with the fewest keys and clicks.

    - A suggestion is selected by a click (one), but the page has selected the first one when a document opens, and the
      next one after one was accepted or refused. Then `Space` accepts it, `x` refuses it, a digit changes its label.
    - To mark words they are selected by a click or a drag, and a digit gives the label: two. What was suggested for any
      of them goes. If the entity begins or ends within a word, `c` goes to characters before, and back to words after.
    - `a` accepts all that is suggested and still open.

    Either each right suggestion is accepted when its turn comes, or all of them at the end, whatever takes less.

    text (str): The text.
    gold (Sequence[Span]): The right entities, without overlaps.
    suggestions (Sequence[Span]): What is suggested, without overlaps.
    RETURNS (list[Edit]): What to do, in this order. Then the document only has to be finished.
    """
    suggestions = sorted(suggestions, key=lambda span: span.start)
    plans = [_plan(text, gold, suggestions, accept_each) for accept_each in (True, False)]
    return min(plans, key=lambda edits: sum(edit.keys for edit in edits))


def _plan(text: str, gold: Sequence[Span], suggestions: list[Span], accept_each: bool) -> list[Edit]:
    answers = {(span.start, span.end): span for span in gold}
    given = {(span.start, span.end) for span in suggestions}
    missing = [span for place, span in answers.items() if place not in given]
    edits: list[Edit] = []
    right, selected = 0, 0  # the number of the suggestion that is selected
    for number, suggestion in enumerate(suggestions):
        answer = answers.get((suggestion.start, suggestion.end))
        count = 1 + (number != selected)
        if answer is None:
            if any(span.start < suggestion.end and suggestion.start < span.end for span in missing):
                continue  # which goes when these words are marked
            edits.append(Edit("remove", suggestion, count))
            selected = number + 1
        elif answer.label != suggestion.label:
            edits.append(Edit("mark", answer, count))
            selected = number  # and stays so
        elif accept_each:
            edits.append(Edit("mark", answer, count))
            selected = number + 1
        else:
            right += 1
    words = words_of(text)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    for span in missing:
        within = span.start not in starts or span.end not in ends
        edits.append(Edit("mark", span, 4 if within else 2))
    if right:
        edits.append(Edit("accept_all", None, 1))
    return edits
