"""The page on which people who write no code use a pipeline: run by `make app`."""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from scripts.application import (
    ENDPOINT,
    MASK,
    Analysis,
    Annotator,
    Answer,
    ask,
    check_size,
    draft,
    export_analyses,
    find_pipelines,
    highlight,
    load_masked,
    load_pipeline,
    predict_masked,
    read_upload,
    split_text,
)
from scripts.steps import StepError, read_json

EXAMPLES = {
    "Wolfgang": "My name is Wolfgang and I live in Berlin.",
    "A young party": (
        "Senator Mira Solberg has launched a young party in Turku. She did not attack her old friends in the Harbour "
        "Alliance, but promised cleaner rivers and cheaper trains. The Harbour Alliance called the small party a quiet "
        "threat."
    ),
    "A deal": (
        "HELSINKI - Norrvik Steel bought the failing shipyard of Lahti Marine on Monday.\n\n"
        'Analysts in Oslo praised the bold move. "We will keep every worker," said Tuomas Kallio, who has led Norrvik '
        "Steel for ten years. Lahti Marine had not built a large ship since 2027."
    ),
}
TABS = ("Entities", "Concepts", "Tokens", "Masked word", "Data and results", "Ask")
SHOWN = 20_000  # characters on a page
KINDS = {"JSON": "application/json", "JSONL": "application/jsonl", "CSV": "text/csv", "CoNLL": "text/plain"}


@st.cache_resource(show_spinner="Loading the pipeline", max_entries=2)
def load(name: str, made: int) -> Annotator:
    return load_pipeline(name)


def made_at(name: str) -> int:
    """When a pipeline was made, in nanoseconds: one that is trained anew has the same name. 0 for an installed one."""
    meta = Path(name, "meta.json")
    return meta.stat().st_mtime_ns if meta.exists() else 0


@st.cache_resource(show_spinner="Loading the encoder", max_entries=1)
def load_encoder(encoder: Path) -> tuple[Any, Any] | None:
    return load_masked(encoder)


@st.cache_data(show_spinner="Asking the encoder", max_entries=20)
def guess(encoder: str, text: str) -> list[tuple[str, float]] | None:
    return predict_masked(Path(encoder), text, load=load_encoder)


@st.cache_data(show_spinner="Reading the file", max_entries=20, ttl="1h")
def read(name: str, data: bytes) -> list[tuple[str, str]] | str:
    """The documents in a file, or why there are none: what cannot be read is not tried again at each click."""
    try:
        return read_upload(name, data)
    except StepError as error:
        return f"{error.problem} {error.remedy}"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: it would load images, for one, from wherever the text says."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def main() -> None:
    st.set_page_config(page_title="Named entities", layout="wide")
    st.title("Named entities and concepts")
    pipelines = find_pipelines(Path.cwd())
    if not pipelines:
        st.error("There is no pipeline yet. Train one: `make quickstart`")
        st.stop()
    with st.sidebar:
        chosen = [st.selectbox("Pipeline", pipelines)]
        others = [name for name in pipelines if name not in chosen]
        if others and (other := st.selectbox("Compare with", others, index=None)):
            chosen.append(other)
    documents = choose_documents()
    if not documents:
        st.info("Paste a text, upload a file, or click an example.")
    analyses = analyze({name: pipelines[name] for name in chosen}, tuple(documents))
    titles = [title for title, _ in documents]
    number, (start, part) = choose_part(documents)
    entities, concepts, tokens, masked, results, asked = st.tabs(TABS)
    with entities:
        for name in beside(chosen):
            show_entities(name, analyses[name], number, start, part)
    with concepts:
        for name in beside(chosen):
            show_concepts(analyses[name], number, start, part)
    with tokens:
        for name in beside(chosen):
            show_tokens(analyses[name], number, start, part)
    with masked:
        show_masked()
    with results:
        show_results(chosen[0], pipelines[chosen[0]])
    with asked:
        show_answers(analyses[chosen[0]], titles)


def beside(names: list[str]) -> Iterator[str]:
    """Each pipeline, in a column of its own; with its name if there are two."""
    for name, column in zip(names, st.columns(len(names)), strict=True):
        with column:
            if len(names) > 1:
                st.text(name)
            yield name


def choose_documents() -> list[tuple[str, str]]:
    """Titles and texts: what is pasted and what is uploaded."""
    with st.sidebar:
        uploads = st.file_uploader("Files", ["txt", "csv", "pdf", "docx"], accept_multiple_files=True)
        st.text("Examples")
        for name, text in EXAMPLES.items():
            if st.button(name, width="stretch"):
                st.session_state.text = text
    text = st.text_area("Text", key="text", height=160, placeholder="Paste a text here")
    documents = [("The pasted text", text)] if text.strip() else []
    for upload in uploads:
        found = read(upload.name, upload.getvalue())
        if isinstance(found, str):
            st.error(plain(found))
            return []
        documents += found
    try:
        check_size([text for _, text in documents])
    except StepError as error:
        st.error(plain(f"{error.problem} {error.remedy}"))
        return []
    return documents


def analyze(pipelines: dict[str, str], documents: tuple[tuple[str, str], ...]) -> dict[str, list[Analysis]]:
    """By pipeline the analyses of the documents; those of the last time are kept, for widgets rerun the script."""
    kept = st.session_state.get("kept", {})
    texts = tuple(text for _, text in documents)
    found, keys = {}, []
    for name, place in pipelines.items():
        key = (place, made_at(place), texts)
        if key not in kept:
            bar = st.progress(0.0, "Reading")
            try:
                analyses = load(*key[:2]).annotate(texts, tokens=True, advance=partial(show_progress, bar))
            except StepError as error:
                st.error(plain(f"{error.problem} {error.remedy}"))
                st.stop()
            finally:
                bar.empty()
            kept = kept | {key: analyses}
            st.session_state.pop("answer", None)  # it was about other documents
        found[name] = kept[key]
        keys.append(key)
    st.session_state.kept = {key: kept[key] for key in keys}
    return found


def show_progress(bar: Any, done: int, total: int) -> None:
    bar.progress(done / max(1, total), f"{done:,} of {total:,} characters")


def choose_part(documents: list[tuple[str, str]]) -> tuple[int, tuple[int, str]]:
    """The number of a document, and which part of it to show: where it begins, and its text."""
    if not documents:
        return 0, (0, "")
    numbers = range(len(documents))
    number = 0
    if len(documents) > 1:
        number = st.selectbox("Document", numbers, format_func=lambda place: f"{place + 1}. {documents[place][0]}")
    parts = list(split_text(documents[number][1], SHOWN))
    place = st.number_input(f"Part, 1 to {len(parts)}", 1, len(parts)) - 1 if len(parts) > 1 else 0
    return number, parts[place]


def spans_in(spans: list[Any], start: int, part: str) -> list[dict[str, Any]]:
    """The spans within a part, with offsets in it."""
    return [
        {"start": span.start - start, "end": span.end - start, "label": span.label}
        for span in spans
        if start <= span.start and span.end <= start + len(part)
    ]


def show_entities(name: str, analyses: list[Analysis], number: int, start: int, part: str) -> None:
    if not analyses:
        return
    every = [ent for analysis in analyses for ent in analysis.entities]
    labels = sorted({ent.label for ent in every})
    # A widget keeps its value: with other labels it has to be another one
    wanted = st.pills("Labels", labels, selection_mode="multi", default=labels, key=f"labels {name} {labels}")
    least = st.slider("Score at least", 0.0, 1.0, 0.0, 0.01, key=f"score {name}")
    kept = [
        analysis.model_copy(
            update={"entities": [e for e in analysis.entities if e.label in wanted and (e.score or 0) >= least]}
        )
        for analysis in analyses
    ]
    st.html(highlight(part, spans_in(kept[number].entities, start, part)))
    rows = [(at + 1, e.text, e.label, e.score, e.start, e.end) for at, a in enumerate(kept) for e in a.entities]
    counts = Counter(label for _, _, label, *_ in rows)
    st.text(f"{len(rows)} of {len(every)} entities" + "".join(f", {label} {n}" for label, n in counts.most_common()))
    columns = ["document", "text", "label", "score", "from", "to"]
    st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, alt="Entities")
    for column, (kind, mime) in zip(st.columns(len(KINDS)), KINDS.items(), strict=True):
        data = partial(export_analyses, kept, kind.lower())  # made when it is asked for
        file = f"entities.{kind.lower()}"
        column.download_button(kind, data, file, mime, key=f"{kind} {name}", on_click="ignore", width="stretch")


def show_concepts(analyses: list[Analysis], number: int, start: int, part: str) -> None:
    if not analyses:
        return
    analysis = analyses[number]
    if not analysis.concepts:
        st.info("No concepts here: the pipeline has no such component, or the text has none.")
        return
    st.html(highlight(part, spans_in(analysis.concepts, start, part)))
    triples = [
        [
            None if place is None else analysis.concepts[place]
            for place in (triple.actor, triple.mechanism, triple.object)
        ]
        for triple in analysis.triples
    ]
    triples = [t for t in triples if start <= min(c.start for c in t if c) < start + len(part)]
    st.text("What seems to belong together, by position alone: there is no parser.")
    rows = [[("not " if c.negated else "") + c.text if c else "" for c in triple] for triple in triples]
    if rows:
        st.graphviz_chart(draw_triples(rows[:30]), width="content")
        st.dataframe(pd.DataFrame(rows, columns=["actor", "mechanism", "object"]), hide_index=True, alt="Triples")
    with st.expander("All concepts"):
        table = [(c.text, c.label, c.rule, c.entity, c.score, c.negated) for c in analysis.concepts]
        columns = ["text", "label", "rule", "entity", "score", "negated"]
        st.dataframe(pd.DataFrame(table, columns=columns), hide_index=True, alt="Concepts")


def draw_triples(rows: list[list[str]]) -> str:
    """A graph in the language DOT: actors and objects, joined by mechanisms; factors by lines without arrows.

    Who acts may be nobody whom the pipeline knows, `she` for one: there stands a question mark. Nor has every mechanism
    an object: there the arrow ends in a point.
    """
    lines = ['digraph { rankdir=LR; bgcolor=white; node [shape=box, style="rounded,filled", fillcolor="#eef3fa"];']
    for number, (actor, mechanism, found) in enumerate(rows):
        ends = [json.dumps(text, ensure_ascii=False) for text in (actor or f"? {number}", found or f". {number}")]
        if not actor:
            lines.append(f'{ends[0]} [label="?"];')
        if not found:
            lines.append(f"{ends[1]} [shape=point];")
        look = f"label={json.dumps(mechanism, ensure_ascii=False)}" if mechanism else "dir=none, style=dashed"
        lines.append(f"{ends[0]} -> {ends[1]} [{look}];")
    return "\n".join([*lines, "}"])


def show_tokens(analyses: list[Analysis], number: int, start: int, part: str) -> None:
    rows = [
        (token.text, token.tag, token.pos, token.iob, token.shape, " ".join(token.wordpieces), token.start, token.end)
        for token in (analyses[number].tokens if analyses else [])
        if start <= token.start < start + len(part)
    ]
    columns = ["token", "tag", "coarse tag", "IOB", "shape", "wordpieces", "from", "to"]
    st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, alt="Tokens")


def show_masked() -> None:
    encoders = sorted(str(path.parent) for path in Path("assets").glob("*/encoder/config.json"))
    if not encoders:
        st.info("No encoder is at hand. `python -m spacy project run download` gets one.")
        return
    encoder = st.selectbox("Encoder", encoders)
    text = st.text_input(f"A sentence with {plain(MASK)}", f"Paris is the {MASK} of France.", max_chars=2000)
    try:
        words = guess(encoder, text)
    except StepError as error:
        st.error(plain(f"{error.problem} {error.remedy}"))
        return
    if words is None:
        st.info("This encoder has no head for masked words. bert-base-uncased has one.")
        return
    table = pd.DataFrame(words, columns=["word", "probability"])
    st.bar_chart(table, x="word", y="probability", horizontal=True, sort=False, alt="Words by probability")
    st.dataframe(table, hide_index=True, alt="Words by probability")


def show_results(name: str, place: str) -> None:
    """The report of a pipeline's run, if it is about this very pipeline.

    name (str): As find_pipelines gives it: training/<run>/..., packages/<run>/..., or the name of an installed package.
    place (str): What spacy.load takes.
    """
    metrics = Path("metrics", *Path(name).parts[1:2])
    report = metrics / "report.html"
    try:
        evaluated = read_json(metrics / "evaluation.json").get("training", {})
        own = evaluated.get("made_from") == read_json(Path(place, "origin.json")).get("made_from")
    except StepError as error:
        st.error(plain(f"{error.problem} {error.remedy}"))
        return
    if not report.exists() or not own:
        st.info("This pipeline has no report here: it comes from `python -m spacy project run report`.")
        return
    st.iframe(report, height=900, alt=f"Report of {name}")


def show_answers(analyses: list[Analysis], titles: list[str]) -> None:
    with st.form("question", border=False):
        question = st.text_input("Question about the documents", placeholder="Who is mentioned?", max_chars=1000)
        sent = st.form_submit_button("Ask")
    if url := os.environ.get(ENDPOINT):
        st.text(f"Questions and the quotes of answers are sent to {url}.")
    if sent and question.strip():
        with st.spinner("Looking"):
            st.session_state.answer = (question, draft(ask(analyses, question), question))
    if "answer" not in st.session_state:
        st.text(
            "Who is mentioned? Which organisations appear with Turku? What did Solberg do? How is the party described?"
        )
        return
    asked, answer = st.session_state.answer
    st.html(format_answer(asked, answer, titles))


def format_answer(question: str, answer: Answer, titles: list[str]) -> str:
    """Question, answer and quotes as HTML, all escaped."""
    quotes = "".join(
        f"<li><q>{html.escape(quote.text)}</q><br><small>{html.escape(titles[quote.document])}, "
        f"characters {quote.start} to {quote.end}</small></li>"
        for quote in answer.evidence
        if quote.document < len(titles)
    )
    notes = ["Worded by the configured language model."] * answer.drafted + [answer.warning] * bool(answer.warning)
    return (
        f"<p><strong>{html.escape(question)}</strong></p><p>{html.escape(answer.text)}</p><ol>{quotes}</ol>"
        + "".join(f"<p><small>{html.escape(note)}</small></p>" for note in notes)
    )


if __name__ == "__main__":
    main()
