"""The tab of the page in which people annotate their own texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app.annotate import split_text
from app.marking import Action, Desk
from app.reviewing import ConflictDesk, FindingDesk, list_conflicts
from common.agreement import ADJUDICATED
from common.annotations import Change, Named
from common.errors import StepError
from common.reviews import FINDINGS, LabelError, read_label_errors
from common.store import STORE, Store

SHOWN_LENGTH = 20_000  # characters of a document that are shown at once
SHOWN_CHANGES = 100  # adjudicate writes all of the log
TO_ANNOTATE, CONFLICTS, LABEL_ERRORS = "To annotate", "Conflicts", "Probable label errors"
NOTHING = {
    TO_ANNOTATE: "This run has no documents yet. `make gather RUN={run}` takes them.",
    CONFLICTS: "There is nothing to decide: annotators agree on every document that two of them have finished.",
    LABEL_ERRORS: "No labels were found that are probably wrong. `make audit RUN={run}` looks for them.",
}


def escape_markdown(text: str) -> str:
    """Escape a text, because Streamlit takes messages for Markdown and would load any image that they name."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


@st.cache_resource(show_spinner=False)
def cached_marker() -> Any:
    """The component that shows a text with its marks."""
    markup, css, js = (Path(__file__).with_name(f"marking.{kind}").read_text("utf8") for kind in ("html", "css", "js"))
    return st.components.v2.component("marker", html=markup, css=css, js=js)


@st.fragment
def show_annotation() -> None:
    """Let somebody annotate the documents of a run. Every action is saved before it is shown.

    The run, the name, new labels and the work stand in the address of the page, so that nobody gives them twice.
    """
    found = {path.parent for name in (STORE, FINDINGS) for path in Path("annotate").glob(f"*/{name}")}
    folders = {path.name: path for path in sorted(found)}
    if not folders:
        st.info(
            "There is nothing to annotate yet. `make gather RUN=mine` takes texts, `make prelabel RUN=mine` marks them."
        )
        return
    known = st.session_state.get("annotator") or st.query_params.get("annotator")
    with st.expander("Run, name and labels", expanded=not known):
        columns = st.columns(3)
        run = columns[0].selectbox("Run", folders, key="run", bind="query-params")
        name = columns[1].text_input("Your name", key="annotator", bind="query-params", max_chars=100).strip()
        columns[2].text_input("Add a label", key="added", max_chars=100, on_change=add_label)
    if not name:
        st.info("Annotations are kept by name, so that two people do not overwrite each other.")
        return
    if name == ADJUDICATED:
        st.error(f"The word of {ADJUDICATED} is final, and is given under Conflicts. Take another name.")
        return
    work = st.radio("Work", list(NOTHING), key="work", bind="query-params", horizontal=True)
    try:
        if not (folders[run] / STORE).exists():
            show_corpus_findings(run, *read_label_errors(folders[run]))
            return
        desk = open_desk(folders[run], name, work)
        summary = desk.summary() if desk else ""
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return
    if not desk:
        st.info(NOTHING[work].format(run=run))
        return
    st.text(summary)
    parts = list(split_text(desk.document.text, SHOWN_LENGTH)) or [(0, "")]
    number = 1
    if len(parts) > 1:
        first = next(n for n, (start, part) in enumerate(parts, 1) if desk.place < start + len(part) or n == len(parts))
        number = st.number_input(f"Part, 1 to {len(parts)}", 1, len(parts), first, key=f"part {desk.item}")
    added = st.query_params.get_all("label")
    if not desk.labels and not added:
        st.info("There are no labels yet. Add some above, under “Run, name and labels”.")
    key = f"marker {run} {name} {work}"
    cached_marker()(
        key=key,
        data=desk.view(added, *parts[number - 1]),
        on_action_change=lambda: desk.act(Action.model_validate(st.session_state[key].action)),
    )
    if isinstance(desk, FindingDesk) and desk.changes:
        show_log(desk.changes)


def add_label() -> None:
    if label := st.session_state.added.strip():
        st.query_params["label"] = list(dict.fromkeys([*st.query_params.get_all("label"), label]))
    st.session_state.added = ""


def open_desk(folder: Path, name: str, work: str) -> Desk | None:
    """The desk of a person, which the session keeps, or None if there is nothing to do.

    folder (Path): The folder of the run.
    name (str): Who it is.
    work (str): A key of NOTHING.
    """
    audited = (folder / FINDINGS).stat().st_mtime_ns if work == LABEL_ERRORS and (folder / FINDINGS).exists() else 0
    key = (folder, name, work, audited)
    if st.session_state.get("desk", (None,))[0] != key:
        store = Store(folder / STORE)
        desk: Desk | None = None
        if work == CONFLICTS:
            desk = ConflictDesk(store, name, conflicts) if (conflicts := list_conflicts(store)) else None
        elif work == LABEL_ERRORS:
            _, findings = read_label_errors(folder)
            desk = FindingDesk(store, name, findings) if findings else None
        elif store.progress(name):
            desk = Desk(store, name)
        if desk is None:
            return None
        st.session_state.desk = (key, desk)
    kept: Desk = st.session_state.desk[1]
    return kept


def show_log(changes: list[Change]) -> None:
    """Show the last decisions about labels that are probably wrong, the latest first."""
    rows = [
        (one.time, one.person, one.document, one.start, _name(one.before), _name(one.after), one.decision)
        for one in changes[: -SHOWN_CHANGES - 1 : -1]
    ]
    columns = ["time", "person", "document", "from character", "before", "after", "decision"]
    with st.expander("Log of decisions"):
        st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, alt="Log of decisions")


def _name(spans: Iterable[Named | None]) -> str:
    return ", ".join(f"{span.text} {span.label}" for span in spans if span) or "nothing"


def show_corpus_findings(run: str, source: str, findings: list[LabelError]) -> None:
    """Show what was found in a corpus that has no store, where nothing can be decided."""
    imported = f"--vars.tool docbin --vars.annotated {source} --vars.annotated_by corpus"
    st.info("These labels are those of a corpus, and cannot be changed here. To decide, bring it into the run:")
    st.code(
        f'make gather RUN={run} VARS="--vars.texts {source} --vars.test_share 0"\n'
        f'make import-annotations RUN={run} VARS="{imported}"\n'
        f"make audit RUN={run}",
        language="bash",
    )
    rows = [
        (one.score, one.kind, one.document, _name([one.annotated]), _name([one.predicted]), one.context)
        for one in findings
    ]
    columns = ["score", "kind", "document", "annotated", "pipelines say", "context"]
    st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, alt="Probable label errors")
