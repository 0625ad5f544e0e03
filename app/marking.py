"""Mark names in documents, a key at a time: what each key does to an annotation, and where an annotator is in the work.

Nothing here knows of the page. `marking.html`, `marking.css` and `marking.js` are what it shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from common.alignment import create_tokenizer
from common.annotations import Annotation, Span, Task
from common.errors import StepError
from common.formatting import COLORS
from common.store import ConflictError, Standing, Store

PALETTE = ("#ffd7a8", "#b9d8ff", "#c6ecc0", "#e5d0f5", "#ffe08a", "#ffc9d4", "#b8ece6", "#d9d9d9", "#dfe6a8")


class Action(BaseModel):
    """What an annotator does with a key or a click, as the browser sends it.

    id (str): Names it, so that one that is sent twice counts once.
    document (str): The id of the document that the annotator sees.
    revision (int): The revision of the annotation that the annotator sees.
    kind: What to do. mark and remove need a stretch, mark a label, too; choose needs a stretch and a choice.
    start, end (int): The stretch, in code points of the whole text.
    label (str): The label.
    choice (int): The number of one of the choices that the desk offers for the stretch, from 0.
    finding (str): The id of the finding that the annotator sees, if the desk goes through findings.
    keys (int): How many keys and clicks it took since the last action.
    seconds (float): How long the annotator worked since the last action, without pauses.
    """

    id: str
    document: str
    revision: int
    kind: Literal[
        "mark", "remove", "choose", "accept_all", "flag", "skip", "finish", "undo", "next", "previous", "reload"
    ]
    start: int = Field(default=0, ge=0)
    end: int = 0
    label: str = ""
    choice: int = Field(default=0, ge=0)
    finding: str = ""
    keys: int = Field(default=1, ge=0)
    seconds: float = Field(default=0, ge=0)


def undecided(annotation: Annotation, suggestions: Iterable[Span]) -> list[Span]:
    """The suggestions that the annotator has not decided on.

    None overlaps with a decision. Of those that overlap with each other comes the one with the highest score (a list of
    terms, which has none, is sure), then the longest; the others come when that one is removed.

    annotation (Annotation): The decisions.
    suggestions (Iterable[Span]): All suggestions for the document.
    RETURNS (list[Span]): Those that are open, by position.
    """
    suggestions = list(suggestions)
    rejected = {_identity(span) for span in annotation.rejected}
    taken = bytearray(max((span.end for span in [*annotation.spans, *suggestions]), default=0))
    for span in annotation.spans:
        taken[span.start : span.end] = b"x" * (span.end - span.start)
    found = []
    for span in sorted(suggestions, key=lambda s: (-(1 if s.score is None else s.score), s.start - s.end)):
        if _identity(span) not in rejected and not any(taken[span.start : span.end]):
            taken[span.start : span.end] = b"x" * (span.end - span.start)
            found.append(span)
    return sorted(found, key=lambda span: span.start)


def mark(annotation: Annotation, suggestions: Iterable[Span], start: int, end: int, label: str) -> Annotation:
    """Decide that a stretch has a label. What was decided on any part of it before goes.

    So this changes a label, too, and accepts a suggestion, which then keeps its score and its source.

    annotation (Annotation): The decisions so far.
    suggestions (Iterable[Span]): All suggestions for the document.
    start, end (int): The stretch.
    label (str): The label.
    RETURNS (Annotation): The decisions now, a draft again.
    """
    own = Span(start=start, end=end, label=label)
    same = [span for span in suggestions if _identity(span) == _identity(own)]
    chosen = max(same, key=lambda span: 1 if span.score is None else span.score, default=own)
    kept = [span for span in annotation.spans if span.end <= start or end <= span.start]
    return _draft(
        annotation,
        spans=sorted([*kept, chosen], key=lambda span: span.start),
        rejected=[span for span in annotation.rejected if _identity(span) != _identity(own)],
    )


def remove(annotation: Annotation, suggestions: Iterable[Span], start: int, end: int, label: str) -> Annotation:
    """Decide that a stretch does not have a label: a decision goes, and a suggestion is rejected.

    annotation (Annotation): The decisions so far.
    suggestions (Iterable[Span]): All suggestions for the document.
    start, end (int): The stretch.
    label (str): The label.
    RETURNS (Annotation): The decisions now, a draft again.
    """
    unwanted = (start, end, label)
    same = [span for span in suggestions if _identity(span) == unwanted]
    others = [span for span in annotation.rejected if _identity(span) != unwanted]
    kept = [span for span in annotation.spans if _identity(span) != unwanted]
    return _draft(annotation, spans=kept, rejected=[*others, *same])


def choose(
    annotation: Annotation, suggestions: Iterable[Span], start: int, end: int, chosen: Sequence[Span]
) -> Annotation:
    """Decide that a stretch has these spans and no others.

    annotation (Annotation): The decisions so far.
    suggestions (Iterable[Span]): All suggestions for the document. The others on the stretch are rejected.
    start, end (int): The stretch.
    chosen (Sequence[Span]): Its spans, perhaps none.
    RETURNS (Annotation): The decisions now, a draft again.
    """
    wanted = {_identity(span) for span in chosen}
    others = [s for s in suggestions if s.start < end and start < s.end and _identity(s) not in wanted]
    unwanted = {_identity(span) for span in others}
    kept = [span for span in annotation.spans if span.end <= start or end <= span.start]
    rejected = [span for span in annotation.rejected if _identity(span) not in wanted | unwanted]
    spans = sorted([*kept, *chosen], key=lambda span: span.start)
    return _draft(annotation, spans=spans, rejected=[*rejected, *others])


def accept_all(annotation: Annotation, suggestions: Iterable[Span]) -> Annotation:
    """Accept all suggestions that are open."""
    spans = [*annotation.spans, *undecided(annotation, suggestions)]
    return _draft(annotation, spans=sorted(spans, key=lambda span: span.start))


def flag(annotation: Annotation) -> Annotation:
    """Ask that somebody look at the document again, or take that back."""
    return annotation.model_copy(update={"flagged": not annotation.flagged})


def skip(annotation: Annotation) -> Annotation:
    """Leave the document without a decision. The marks stay, for those who come back to it."""
    return annotation.model_copy(update={"status": "skipped"})


def finish(annotation: Annotation, suggestions: Iterable[Span]) -> Annotation:
    """Say that the marks are all that there are.

    annotation (Annotation): The decisions so far.
    suggestions (Iterable[Span]): All suggestions for the document.
    RETURNS (Annotation): The finished annotation.
    RAISES (ValueError): If suggestions are open, because nobody could tell whether they were seen.
    """
    if number := len(undecided(annotation, suggestions)):
        raise ValueError(f"{number} suggested {'mark is' if number == 1 else 'marks are'} undecided: accept or remove.")
    return annotation.model_copy(update={"status": "annotated"})


def undo(annotation: Annotation, earlier: Annotation) -> Annotation:
    """Go back to an earlier state of the same annotation. The effort and the count of revisions stay."""
    fields = ("status", "spans", "rejected", "flagged", "comment")
    return annotation.model_copy(update={field: getattr(earlier, field) for field in fields})


def _draft(annotation: Annotation, **changes: list[Span]) -> Annotation:
    return annotation.model_copy(update={"status": "draft", **changes})


def _state(annotation: Annotation) -> tuple[object, ...]:
    return annotation.status, annotation.spans, annotation.rejected, annotation.flagged


def _identity(span: Span) -> tuple[int, int, str]:
    return span.start, span.end, span.label


class Desk:
    """An annotator at work: a document at a time, and every action is saved before the next one is taken.

    store (Store): The documents, of which there is at least one.
    annotator (str): Who it is.
    RAISES (StepError): If others have all of them.
    """

    divided: ClassVar[bool] = True  # whether a document that somebody has is not given to others
    hidden: ClassVar[str] = ""  # the keys that have no meaning here
    skipping: ClassVar[str] = "Skip"  # what the button says
    elsewhere: ClassVar[str] = "This document was saved elsewhere under your name. Your last key changed nothing."
    last: ClassVar[str] = "That was the last document."

    def __init__(self, store: Store, annotator: str) -> None:
        self.store = store
        self.annotator = annotator
        self.labels = store.labels()
        self.notice = ""  # what the annotator should know about the last action
        self.conflict = False  # whether what is shown is not what is saved
        self._handled = ""  # the id of the last action
        self._seen: dict[str, int] = {}  # the last revision of each document that this desk read or saved
        self._earlier: dict[str, list[Annotation]] = {}  # the states of each document to which undo goes back
        self._saved: list[str] = []  # the document of each action
        self._basis: dict[str, int] | None = None  # the revisions of what the annotation builds on
        first = self._take([*self._undecided(None), *self.progress()])
        if first is None:
            raise StepError(
                "There is nothing left for you: others have decided each document, or have it open.",
                "`select` says how many documents everybody gets: docs/annotation.md, “Share the work”.",
            )
        self._open(first)

    def progress(self) -> dict[str, Standing]:
        """How it stands with what the annotator goes through, by item, in the order of work."""
        return self.store.progress(self.annotator)

    def summary(self) -> str:
        """Say in a sentence how far the annotator is."""
        return summarize(self.progress())

    @property
    def item(self) -> str:
        """What the annotator sees: the id of a document, which is a key of `progress`."""
        return self.annotation.document

    @property
    def place(self) -> int:
        """Where in the text the annotator begins."""
        return 0

    @property
    def revision(self) -> int:
        """A number that changes with everything that is saved of what the annotator sees."""
        return self.annotation.revision

    def act(self, action: Action) -> None:
        """Do what the annotator wants, save it, and open the next document after one that is done or skipped.

        If that is not possible, `notice` says why, and nothing has changed.

        action (Action): What to do. One that has been done already, because it was sent twice, is ignored.
        """
        if action.id == self._handled:
            return
        self._handled, self.notice, self.conflict = action.id, "", False
        try:
            self._act(action)
        except ConflictError:
            self.notice, self.conflict = self.elsewhere, True
        except StepError as error:
            self.notice = f"{error.problem} {error.remedy}"
        except (KeyError, ValueError) as error:
            self.notice = str(error)

    def _act(self, action: Action) -> None:
        seen = action.finding or action.document
        if seen != self.item:  # the server was started again and opened another one
            self._open(seen)
        if action.kind == "reload":
            self._open(seen)
        elif action.kind in ("next", "previous"):
            order = list(self.progress())
            place = order.index(seen)
            if found := self._take(order[place + 1 :] if action.kind == "next" else order[:place][::-1]):
                self._open(found)
        elif action.revision != self.revision:
            self.notice = self.elsewhere
        elif action.kind == "undo":
            self._undo(action)
        else:
            self._do(action)

    def _do(self, action: Action) -> None:
        """Change the annotation and save it. After the last key on a document open the next one."""
        before = self.annotation
        self._save(self._changed(action), action)
        self._earlier[before.document].append(before)
        self._saved.append(before.document)
        if action.kind in ("finish", "skip"):
            self._go_on()

    def _go_on(self) -> None:
        if following := self._take(self._undecided(self.item)):
            self._open(following)
        else:
            self.notice = self.last

    def _changed(self, action: Action) -> Annotation:
        stretch = (action.start, action.end, action.label)
        match action.kind:
            case "mark":
                return mark(self.annotation, self.suggestions, *stretch)
            case "remove":
                return remove(self.annotation, self.suggestions, *stretch)
            case "choose":
                start, end, *_, spans = self._choice(action)
                return choose(self.annotation, self.suggestions, start, end, spans)
            case "accept_all":
                return accept_all(self.annotation, self.suggestions)
            case "flag":
                return flag(self.annotation)
            case "skip":
                return skip(self.annotation)
            case _:
                return finish(self.annotation, self.suggestions)

    def _choice(self, action: Action) -> tuple[int, int, str, list[Span]]:
        """The choice that the annotator has made.

        RAISES (ValueError): If the desk offers no such choice.
        """
        found = [one for one in self.choices() if one[:2] == (action.start, action.end)][action.choice :]
        if not found:
            raise ValueError("There is nothing to choose here.")
        return found[0]

    def choices(self) -> list[tuple[int, int, str, list[Span]]]:
        """What the annotator can choose from: stretch, who says so, and the spans that the stretch then has."""
        return []

    def _undo(self, action: Action) -> None:
        """Undo the last action on this document, or if there was none, the last one on another, which is opened."""
        document = self.annotation.document
        if not self._earlier[document]:
            document = next((name for name in reversed(self._saved) if self._earlier[name]), document)
            self._open(document)
        if not self._earlier[document]:
            self.notice = "There is nothing to undo."
            return
        self._save(undo(self.annotation, self._earlier[document][-1]), action)
        self._earlier[document].pop()

    def _save(self, annotation: Annotation, action: Action) -> None:
        if self._take([annotation.document]) is None:
            raise ValueError("Somebody else has this document by now. Your last key changed nothing.")
        effort = {"actions": annotation.actions + action.keys, "seconds": annotation.seconds + action.seconds}
        self.annotation = self.store.save(annotation.model_copy(update=effort), self._basis)
        self._seen[annotation.document] = self.annotation.revision

    def _open(self, document: str) -> None:
        (task,) = self.store.tasks([document])
        self.document = task.document
        self.suggestions, spans = self._start(task)
        new = Annotation(document=document, annotator=self.annotator, status="draft", spans=spans)
        self.annotation = next((one for one in task.annotations if one.annotator == self.annotator), new)
        if self._seen.get(document) != self.annotation.revision:
            states = [new]
            for _, one in self.store.history(document):
                if one.annotator != self.annotator:
                    continue
                if len(states) > 1 and _state(one) == _state(states[-2]):  # an undo, which is not to be undone
                    states.pop()
                else:
                    states.append(one)
            self._earlier[document] = states[:-1]
            self._seen[document] = self.annotation.revision

    def _start(self, task: Task) -> tuple[list[Span], list[Span]]:
        """The suggestions for a document, and the spans with which a new annotation of it begins."""
        # A test set that was annotated with suggestions would flatter the pipeline that made them
        return ([] if task.document.split == "test" else task.suggestions), []

    def _take(self, items: Sequence[str]) -> str | None:
        """The first of some items that the annotator can have, who then has it."""
        return self.store.claim(self.annotator, items) if self.divided else next(iter(items), None)

    def _undecided(self, item: str | None) -> list[str]:
        """The items after this one that are neither done nor skipped, then those from the start."""
        progress = self.progress()
        order = list(progress)
        place = order.index(item) + 1 if item else 0
        return [name for name in order[place:] + order[:place] if progress[name].status not in ("annotated", "skipped")]

    def view(self, added: Sequence[str], offset: int, part: str) -> dict[str, Any]:
        """What the browser needs to show a part of the document.

        added (Sequence[str]): Labels to choose from beside those that the store had when work began. They come last,
            also when they are used, so that a key gives the same label all the time.
        offset (int): Where the part begins.
        part (str): Its text.
        RETURNS (dict[str, Any]): JSON. Positions are code points of the part.
        """
        open_ = undecided(self.annotation, self.suggestions)
        marks = [(span, False) for span in self.annotation.spans] + [(span, True) for span in open_]
        labels = [*(label for label in self.labels if label not in added), *added]
        colors = color_labels([*labels, *(span.label for span, _ in marks)])
        return {
            "document": self.annotation.document,
            "finding": "",
            "revision": self.revision,
            "handled": self._handled,
            "title": self._title(len(open_)),
            "notice": self.notice,
            "conflict": self.conflict,
            "text": part,
            "offset": offset,
            "words": words_of(part),
            "labels": [{"name": label, "color": colors[label]} for label in labels],
            "marks": [
                {
                    "start": span.start - offset,
                    "end": span.end - offset,
                    "label": span.label,
                    "color": colors[span.label],
                    "suggested": suggested,
                    "name": self._name(span, suggested),
                }
                for span, suggested in marks
                if span.start < offset + len(part) and offset < span.end
            ],
            "choices": [
                {"start": start - offset, "end": end - offset, "name": f"{who}: {self._quote(spans)}"}
                for start, end, who, spans in self.choices()
                if start < offset + len(part) and offset < end
            ],
            "hidden": self.hidden,
            "skipping": self.skipping,
        }

    def _title(self, open_: int) -> str:
        """Say what is shown, and in which state it is.

        open_ (int): How many suggestions are undecided.
        """
        status = "new" if self.annotation.revision == 0 else self.annotation.status
        title = f"{self.document.id}: {status}"
        return title + f", {open_} to decide" * bool(open_) + ", flagged" * self.annotation.flagged

    def _name(self, span: Span, suggested: bool) -> str:
        """Say what a mark is."""
        if not suggested:
            return f"{span.label}, accepted from {span.source}" if span.source else span.label
        share = "" if span.score is None else f", {span.score:.0%}"
        return f"{span.label}?, suggested by {span.source}{share}"

    def _quote(self, spans: Iterable[Span]) -> str:
        text = self.document.text
        return ", ".join(f"“{text[span.start : span.end]}” {span.label}" for span in spans) or "nothing"


def color_labels(labels: Iterable[str]) -> dict[str, str]:
    """Give each label a colour: that of the other tabs if it has one there, or else the next one that is free."""
    labels = list(dict.fromkeys(labels))
    known = {label: COLORS[label] for label in labels if label in COLORS}
    free = [color for color in PALETTE if color not in known.values()]
    return known | dict(zip((label for label in labels if label not in known), itertools.cycle(free), strict=False))


def summarize(progress: Mapping[str, Standing]) -> str:
    """Say in a sentence how far an annotator is, how far all are together, and how fast the annotator is.

    progress (Mapping[str, Standing]): How it stands with each item for this annotator.
    RETURNS (str): The items that are done and skipped, of those that nobody else has; what all have annotated, if
        others work too; how many an hour, and how long the others will take.
    """
    own = [standing for standing in progress.values() if not standing.taken]
    statuses = [standing.status for standing in own]
    done, skipped = statuses.count("annotated"), statuses.count("skipped")
    parts = [f"{done:,} of {len(own):,} done" + f", {skipped:,} skipped" * bool(skipped)]
    together = sum(standing.annotated for standing in progress.values())
    if len(own) < len(progress) or together > done:
        parts.append(f"{together:,} of {len(progress):,} by all together")
    if seconds := sum(standing.seconds for standing in own if standing.status == "annotated"):
        parts.append(f"{3600 * done / seconds:,.0f} documents an hour")
        if left := len(own) - done - skipped:
            minutes = left * seconds / done / 60
            parts.append(f"about {minutes / 60:.1f} hours left" if minutes >= 90 else f"about {minutes:.0f} min left")
    return " · ".join(parts)


_tokenizer = cache(create_tokenizer)


def words_of(text: str) -> list[tuple[int, int]]:
    """The start and end of each token of a text, as the pipeline would cut it. White space is none."""
    return [(token.idx, token.idx + len(token)) for token in _tokenizer().make_doc(text) if not token.is_space]
