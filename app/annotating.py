"""The tab of the page in which people annotate their own texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import streamlit as st

from app.annotate import split_text
from app.marking import Action, Desk, summarize
from common.annotations import STORE, Store
from common.errors import StepError

SHOWN_LENGTH = 20_000  # characters of a document that are shown at once


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

    The run, the name and new labels stand in the address of the page, so that nobody gives them twice.
    """
    stores = {path.parent.name: path for path in sorted(Path("annotate").glob(f"*/{STORE}"))}
    if not stores:
        st.info(
            "There is nothing to annotate yet. `make gather RUN=mine` takes texts, `make prelabel RUN=mine` marks them."
        )
        return
    known = st.session_state.get("annotator") or st.query_params.get("annotator")
    with st.expander("Run, name and labels", expanded=not known):
        columns = st.columns(3)
        run = columns[0].selectbox("Run", stores, key="run", bind="query-params")
        name = columns[1].text_input("Your name", key="annotator", bind="query-params", max_chars=100).strip()
        columns[2].text_input("Add a label", key="added", max_chars=100, on_change=add_label)
    if not name:
        st.info("Annotations are kept by name, so that two people do not overwrite each other.")
        return
    try:
        desk = open_desk(stores[run], name)
        progress = desk.progress() if desk else {}
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return
    if not desk:
        st.info(f"This run has no documents yet. `make gather RUN={run}` takes them.")
        return
    st.text(summarize(progress))
    parts = list(split_text(desk.document.text, SHOWN_LENGTH)) or [(0, "")]
    number = 1
    if len(parts) > 1:
        number = st.number_input(f"Part, 1 to {len(parts)}", 1, len(parts), key=f"part {desk.document.id}")
    added = st.query_params.get_all("label")
    if not desk.labels and not added:
        st.info("There are no labels yet. Add some above, under “Run, name and labels”.")
    key = f"marker {run} {name}"
    cached_marker()(
        key=key,
        data=desk.view(added, *parts[number - 1]),
        on_action_change=lambda: desk.act(Action.model_validate(st.session_state[key].action)),
    )


def add_label() -> None:
    if label := st.session_state.added.strip():
        st.query_params["label"] = list(dict.fromkeys([*st.query_params.get_all("label"), label]))
    st.session_state.added = ""


def open_desk(path: Path, annotator: str) -> Desk | None:
    """The desk of an annotator, which the session keeps, or None if there are no documents."""
    desk: Desk | None = st.session_state.get("desk")
    if desk is None or (desk.store.path, desk.annotator) != (path, annotator):
        store = Store(path)
        desk = st.session_state.desk = Desk(store, annotator) if store.progress(annotator) else None
    return desk
