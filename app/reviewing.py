"""Decide where annotators do not agree, and which labels are wrong: desks on which each place has a few choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from app.marking import Action, Desk
from common.agreement import ADJUDICATED, Place, decide, find_places
from common.annotations import Annotation, Change, Document, Named, Ruling, Span, Task
from common.reviews import LabelError, Verdict, effective, judge
from common.store import ConflictError, Standing, Store

MEANWHILE = "Somebody has changed this document since you opened it. Your last key changed nothing."


def list_conflicts(store: Store) -> list[str]:
    """The ids of the documents on which annotators do not agree, also of those that are decided, in the order of work.

    store (Store): The documents.
    """
    return [task.document.id for task in store.tasks() if decide(task).state == "open" or find_places(task)[1]]


class ConflictDesk(Desk):
    """A person who decides the documents on which annotators do not agree.

    What all of them have is there from the start. What is saved is saved as ADJUDICATED.

    store (Store): The documents.
    person (str): Who it is.
    documents (list[str]): The ids of those to decide, at least one.
    """

    divided: ClassVar[bool] = False
    hidden: ClassVar[str] = "a"
    skipping: ClassVar[str] = "Leave out"
    elsewhere: ClassVar[str] = MEANWHILE

    def __init__(self, store: Store, person: str, documents: list[str]) -> None:
        self.person = person
        self.documents = documents
        self.places: list[Place] = []
        super().__init__(store, ADJUDICATED)

    def progress(self) -> dict[str, Standing]:
        everything = super().progress()
        return {name: Standing(everything[name].status, everything[name].seconds) for name in self.documents}

    def choices(self) -> list[tuple[int, int, str, list[Span]]]:
        return [
            (place.start, place.end, ", ".join(choice.annotators), choice.spans)
            for place in self.places
            for choice in place.choices
        ]

    def _start(self, task: Task) -> tuple[list[Span], list[Span]]:
        agreed, self.places = find_places(task)
        self._basis = {one.annotator: one.revision for one in task.annotations if one.annotator != ADJUDICATED}
        return [span for *_, spans in self.choices() for span in spans], agreed

    def _save(self, annotation: Annotation, action: Action) -> None:
        super()._save(annotation.model_copy(update={"comment": f"decided by {self.person}"}), action)

    def _name(self, span: Span, suggested: bool) -> str:
        names = [who for *_, who, spans in self.choices() if _key(span) in map(_key, spans)]
        if not names:
            return span.label
        return f"{span.label}?, say {', '.join(names)}" if suggested else f"{span.label}, as {', '.join(names)}"


class FindingDesk(Desk):
    """A person who goes through the labels that are probably wrong, the most probable errors first.

    A decision changes the final annotation of a document, which stays finished, and is saved as ADJUDICATED; one that
    keeps a label only goes into the log, which has every decision and is what undo goes by.

    store (Store): The documents.
    person (str): Who it is.
    findings (list[LabelError]): What to decide, at least one.
    """

    divided: ClassVar[bool] = False
    hidden: ClassVar[str] = "a sf"
    elsewhere: ClassVar[str] = MEANWHILE
    last: ClassVar[str] = "That was the last finding."

    def __init__(self, store: Store, person: str, findings: list[LabelError]) -> None:
        self.person = person
        self.findings = {finding.id: finding for finding in findings}
        self.finding = findings[0]
        self.verdicts: dict[str, Verdict] = {}
        self.changes = store.changes()
        self._judge({task.document.id: task for task in store.tasks()}, findings)
        super().__init__(store, ADJUDICATED)

    def progress(self) -> dict[str, Standing]:
        statuses = {"open": None, "outdated": "skipped"}
        return {name: Standing(statuses.get(self.verdicts[name].state, "annotated")) for name in self.findings}

    def summary(self) -> str:
        states = Counter(self.verdicts[name].state for name in self.findings)
        outdated = states.pop("outdated", 0)
        decided = states.total() - states["open"]
        each = "".join(f", {states[name]:,} {name}" for name in ("accepted", "kept", "edited") if states[name])
        left = f" · {outdated:,} no longer fit" * bool(outdated)
        return f"{decided:,} of {states.total():,} findings decided{each}{left}"

    @property
    def item(self) -> str:
        return self.finding.id

    @property
    def place(self) -> int:
        return self.finding.place[0]

    @property
    def revision(self) -> int:
        mine = (c.number for c in self.changes if self.person == c.person or c.document == self.finding.document)
        return max(mine, default=0)

    def choices(self) -> list[tuple[int, int, str, list[Span]]]:
        if self.verdicts[self.item].state != "open":
            return []
        start, end = self.finding.place
        predicted = self.finding.predicted
        proposal = [Span(start=predicted.start, end=predicted.end, label=predicted.label)] if predicted else []
        now = [span for span in self.annotation.spans if span.start < end and start < span.end]
        return [(start, end, "the pipelines say", proposal), (start, end, "keep what is annotated", now)]

    def view(self, added: Sequence[str], offset: int, part: str) -> dict[str, Any]:
        start, end = self.finding.place
        inside = offset <= start < offset + len(part) and end <= len(self.document.text)
        focus = {"start": start - offset, "end": end - offset} if inside else None
        return super().view(added, offset, part) | {"finding": self.item, "focus": focus}

    def _title(self, open_: int) -> str:
        state, reason = self.verdicts[self.item]
        rank = list(self.findings).index(self.item) + 1
        said = {"open": "to decide", "outdated": f"no longer fits, because {reason}"}.get(state, state)
        return f"{rank}. {self.finding.document}: {self.finding.kind}, score {self.finding.score:.2f}, {said}"

    def _open(self, item: str) -> None:
        if item not in self.findings:
            raise ValueError("There was another audit, which does not have this finding.")
        self.finding = self.findings[item]
        self._read(self.finding.document)

    def _read(self, name: str) -> None:
        """Read a document, and what has become of its findings."""
        self.changes = self.store.changes()
        try:
            (task,) = self.store.tasks([name])
        except KeyError:
            task = Task(document=Document(id=name, text=self.finding.context))
            self._judge({}, [self.finding])
        else:
            self._judge({name: task}, [one for one in self.findings.values() if one.document == name])
        self.document, self.suggestions = task.document, []
        final = decide(task).annotation
        self._final = final is not None
        saved = next((one for one in task.annotations if one.annotator == ADJUDICATED), None)
        self._basis = {one.annotator: one.revision for one in task.annotations}
        spans = final.spans if final else []
        self.annotation = saved or Annotation(document=name, annotator=ADJUDICATED, status="annotated", spans=spans)

    def _judge(self, tasks: dict[str, Task], findings: Iterable[LabelError]) -> None:
        changes: dict[str, list[Change]] = {}
        for change in effective(self.changes):
            changes.setdefault(change.document, []).append(change)
        for finding in findings:
            name = finding.document
            self.verdicts[finding.id] = judge(finding, tasks.get(name), changes.get(name, []))

    def _do(self, action: Action) -> None:
        if not self._final and action.kind != "finish":
            raise ValueError("This document has no final annotation: nothing is changed.")
        if action.kind == "choose":
            self._choice(action)  # which refuses what is not offered
            self._decide(self._changed(action), "kept" if action.choice else "accepted", action)
        elif action.kind != "finish":
            self._decide(self._changed(action), "edited", action)
        elif self.verdicts[self.item].state == "open":
            raise ValueError("Choose first, or mark by hand. PgDn goes on without a decision.")
        if action.kind in ("choose", "finish"):
            self._go_on()

    def _decide(self, annotation: Annotation, decision: Ruling, action: Action) -> None:
        """Save a decision, and with it the annotation if that has changed."""
        before = [span for span in self.annotation.spans if span not in annotation.spans]
        after = [span for span in annotation.spans if span not in self.annotation.spans]
        place = self.finding.place
        if decision == "kept":
            before = after = self._choice(action)[3]
        elif decision == "edited":
            if not before and not after:
                return
            place = min(span.start for span in [*before, *after]), max(span.end for span in [*before, *after])
        change = Change(
            document=self.finding.document,
            person=self.person,
            finding=self.finding.id,
            kind=self.finding.kind,
            decision=decision,
            start=place[0],
            end=place[1],
            before=self._with_words(before),
            after=self._with_words(after),
        )
        self._log(annotation, change, action)

    def _log(self, annotation: Annotation, change: Change, action: Action) -> None:
        last = max((one.number for one in self.changes if one.document == change.document), default=0)
        change, basis = change.model_copy(update={"number": last}), self._basis or {}
        if change.before == change.after:
            self.store.log(change, basis)
        else:
            effort = {"actions": annotation.actions + action.keys, "seconds": annotation.seconds + action.seconds}
            said = {"status": "annotated", "comment": f"label error {change.decision} by {self.person}"}
            self.store.save(annotation.model_copy(update=effort | said), basis, change)
        self._read(change.document)

    def _undo(self, action: Action) -> None:
        """Undo the last decision of this person, also one of an earlier day, and open its finding."""
        seen, self.changes = self.revision, self.store.changes()
        if self.revision != seen:
            raise ConflictError(self.finding.document, self.person)
        mine = [c for c in effective(self.changes) if c.person == self.person and c.finding in self.findings]
        if not mine:
            self.notice = "There is nothing to undo."
            return
        change = mine[-1]
        self._open(change.finding)
        spans = self.annotation.spans
        if change.before != change.after:
            left = {*map(_key, change.after)}
            others = [span for span in spans if _key(span) not in left]
            if not self._final or len(spans) - len(others) != len(change.after) or _touches(others, change):
                raise ValueError("The annotation has changed since: nothing is undone.")
            restored = (Span(**span.model_dump(exclude={"text"})) for span in change.before)
            spans = sorted([*others, *restored], key=lambda span: span.start)
        back = {"decision": "undone", "undoes": change.number, "before": change.after, "after": change.before}
        annotation = self.annotation.model_copy(update={"spans": spans})
        self._log(annotation, change.model_copy(update=back), action)

    def _with_words(self, spans: Iterable[Span]) -> list[Named]:
        fields = Span.model_fields
        text = self.document.text
        return [Named(**span.model_dump(include={*fields}), text=text[span.start : span.end]) for span in spans]


def _touches(spans: list[Span], change: Change) -> bool:
    """Tell whether a span stands where an earlier state would be restored."""
    return any(span.start < old.end and old.start < span.end for span in spans for old in change.before)


def _key(span: Span) -> tuple[int, int, str]:
    return span.start, span.end, span.label
