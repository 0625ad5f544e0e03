"""The tab of the page that shows the names of an annotated corpus. It loads no pipeline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st
import yaml

from app.annotating import escape_markdown
from common.errors import StepError
from common.names import Name, Names, find_modified, list_date_columns
from common.parts import RECORDS
from common.tables import disarm, write_csv

SHOWN, SHOWN_OF_A_NAME = 1000, 50  # rows of the table of names, and of those about one name
DOWNLOADED = 100_000


@st.cache_data(show_spinner="Looking for dates", max_entries=20)
def cached_date_columns(target: str, finished: int) -> list[str]:
    return list_date_columns(target)


@st.cache_resource(show_spinner="Counting the names", max_entries=2)
def cached_names(target: str, date_column: str, finished: int) -> Names:
    return Names(target, date_column)


def find_targets(project: Path) -> dict[str, tuple[str, str]]:
    """Find the places of annotated corpora: those that runs name, and those in the project's folders.

    project (Path): The folder of the project.
    RETURNS (dict[str, tuple[str, str]]): By what is shown, the path or URL, and the run if one names it, or nothing.
    RAISES (StepError): If the file of a run cannot be read.
    """
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(project.glob("runs/*.yml")):
        try:
            target = dict(yaml.safe_load(path.read_text("utf8")) or {}).get("target")
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise StepError(
                f"{path.relative_to(project)} cannot be read: {error}", "A line is a variable and its value."
            ) from error
        if target and "://" in str(target):
            found[path.stem] = (str(target), path.stem)  # the URL may hold a password, and is not shown
        elif target:
            found[f"{path.stem}: {target}"] = (str(project / str(target)), path.stem)
    known = {Path(target).resolve() for target, _ in found.values()}
    for pattern in ("*", "annotate/*", "annotate/*/*"):
        for folder in (path.parent for path in sorted(project.glob(f"{pattern}/{RECORDS}"))):
            if folder.resolve() not in known:
                found[folder.relative_to(project).as_posix()] = (str(folder), "")
    return found


@st.fragment
def show_corpus() -> None:
    """Let somebody choose an annotated corpus, and show its names."""
    try:
        places = find_targets(Path.cwd())
        if not places:
            st.info(
                "There is no annotated corpus yet. Name `texts`, `pipeline` and `target` in the file `runs/mine.yml`. "
                "Then `make annotate-corpus RUN=mine` makes one."
            )
            return
        left, right = st.columns(2)
        place = left.selectbox("Corpus", places, key="corpus", persist_state="page")
        target, run = places[place]
        finished = find_modified(target)
        if finished is None:
            command = f"`make annotate-corpus RUN={run}`" if run else "The command `annotate-corpus`"
            st.info(f"{escape_markdown(place)} is not done. {command} begins, or goes on where it was interrupted.")
            return
        columns = cached_date_columns(target, finished)
        dates = right.selectbox("Dates", columns, key=f"dates {place}", persist_state="page") if columns else ""
        names = cached_names(target, dates, finished)
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return
    if chosen := choose_name(place, names):
        show_name(names, chosen, dates)


def choose_name(place: str, names: Names) -> Name | None:
    """Show the most frequent names that pass a filter, and let somebody choose one."""
    left, right = st.columns(2)
    labels = left.pills(
        "Labels",
        names.labels,
        selection_mode="multi",
        default=names.labels,
        format_func=escape_markdown,
        key=f"corpus labels {place} {names.labels}",
        persist_state="page",
    )
    text = right.text_input("Names with", key=f"names with {place}", max_chars=200, persist_state="page").strip()
    frame = names.frequent(SHOWN + 1, labels, text).df()
    if frame.empty:
        st.info("No name has one of these labels and this text.")
        return None
    shown = frame.head(SHOWN)
    show_table(shown, "Names")
    if len(frame) > SHOWN:
        st.text(
            f"These are the {SHOWN:,} most frequent names. The file has up to {DOWNLOADED:,}, and the command "
            "corpus-view writes all."
        )
    data = partial(export_names, names, labels, text)  # called when somebody downloads it
    st.download_button("Names as CSV", data, "names.csv", "text/csv", on_click="ignore")
    options = [*shown[["name", "label"]].itertuples(index=False, name=None)]
    chosen: Name = st.selectbox("Name", options, format_func=" · ".join, key=f"name {place}", persist_state="page")
    return chosen


def export_names(names: Names, labels: Sequence[str], text: str) -> str:
    """Write the most frequent names with some labels and a text as CSV."""
    out = io.StringIO()
    found = names.frequent(DOWNLOADED, labels, text)
    write_csv(out, [column[0] for column in found.description], found.fetchall())
    return out.getvalue()


def show_name(names: Names, name: Name, dates: str) -> None:
    """Show with which others a name is mentioned, in which spellings, and when if there are dates."""
    tables = {
        f"In the same documents (at most {SHOWN_OF_A_NAME})": names.together_with(name, SHOWN_OF_A_NAME).df(),
        f"Spellings (at most {SHOWN_OF_A_NAME})": names.spellings(name, SHOWN_OF_A_NAME).df()[["spelling", "mentions"]],
    }
    if dates:
        tables["Months"] = months = names.over_time([name]).df()[["month", "mentions", "documents"]]
        moments = pd.to_datetime(months["month"], format="%Y-%m", errors="coerce")  # of a year that pandas knows
        if moments.notna().any():
            st.bar_chart(months.assign(month=moments), x="month", y="mentions", alt="Mentions by month")
        if names.undated:
            st.text(f"{names.undated:,} documents with names have no date in {dates} that can be read.")
    for column, (title, table) in zip(st.columns(len(tables)), tables.items(), strict=True):
        with column:
            st.text(title)
            show_table(table, title)


def show_table(frame: pd.DataFrame, alt: str) -> None:
    """Show a table. It has a button of its own that downloads it as it is, so its texts are disarmed here."""
    st.dataframe(frame.map(disarm), hide_index=True, alt=alt)
