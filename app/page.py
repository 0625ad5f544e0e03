"""A page in the browser to use pipelines without writing code. `make app` runs it with Streamlit."""

from __future__ import annotations

import gc
import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app.annotate import Analysis, Annotator, EntityOut, find_pipelines, load_pipeline, split_text
from app.annotating import SHOWN_LENGTH, escape_markdown, show_annotation
from app.corpus import show_corpus
from app.exports import export_analyses
from app.files import check_size, read_upload
from app.masked import MASK, load_masked, predict_masked
from app.questions import Answer, ask, draft
from common.chat import find_chat
from common.errors import StepError
from common.formatting import highlight
from common.records import read_json

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
TABS = ("Entities", "Concepts", "Tokens", "Masked word", "Data and results", "Ask", "Corpus", "Annotate")
MIME_TYPES = {"JSON": "application/json", "JSONL": "application/jsonl", "CSV": "text/csv", "CoNLL": "text/plain"}


@st.cache_resource(show_spinner=False)
def spare_imports() -> None:
    """Take what the imports made out of the garbage collection, which Streamlit starts after each key of an annotator.

    It would go through half a million objects, in 0.3 seconds.
    """
    gc.freeze()


@st.cache_resource(show_spinner="Loading the pipeline", max_entries=2)
def cached_pipeline(name: str, modified: int) -> Annotator:
    return load_pipeline(name)


def modified_at(name: str) -> int:
    """When a pipeline was written, in nanoseconds, or 0 if it is an installed one.

    The cache needs it, since a pipeline that is trained again keeps its name.
    """
    meta = Path(name, "meta.json")
    return meta.stat().st_mtime_ns if meta.exists() else 0


@st.cache_resource(show_spinner="Loading the encoder", max_entries=1)
def cached_encoder(encoder: Path) -> tuple[Any, Any] | None:
    return load_masked(encoder)


@st.cache_data(show_spinner="Asking the encoder", max_entries=20)
def cached_words(encoder: str, text: str) -> list[tuple[str, float]] | None:
    return predict_masked(Path(encoder), text, load=cached_encoder)


@st.cache_data(show_spinner="Reading the file", max_entries=20, ttl="1h")
def cached_documents(name: str, data: bytes) -> list[tuple[str, str]] | str:
    """Read the documents in a file, or the reason why it has none, which is cached, too."""
    try:
        return read_upload(name, data)
    except StepError as error:
        return f"{error.problem} {error.remedy}"


def main() -> None:
    st.set_page_config(page_title="Named entities", layout="wide")
    spare_imports()
    st.title("Named entities and concepts")
    pipelines = find_pipelines(Path.cwd())
    chosen, uploads = choose_inputs(pipelines) if pipelines else ([], [])
    inputs = st.container()
    entities, concepts, tokens, masked, results, asked, *others = st.tabs(TABS, key="tab", bind="query-params")
    for tab, show in zip(others, (show_corpus, show_annotation), strict=True):
        if tab.open:  # nobody there waits for a pipeline to be loaded
            with tab:
                show()
            return
    with inputs:
        if not pipelines:
            st.error("There is no pipeline yet. Train one: `make quickstart`")
            st.stop()
        documents = read_documents(uploads)
        if not documents:
            st.info("Paste a text, upload a file, or click an example.")
        analyses = analyze({name: pipelines[name] for name in chosen}, tuple(documents))
        titles = [title for title, _ in documents]
        number, (start, part) = choose_part(documents)
    with entities:
        for name in columns_of(chosen):
            show_entities(name, analyses[name], number, start, part)
    with concepts:
        for name in columns_of(chosen):
            show_concepts(analyses[name], number, start, part)
    with tokens:
        for name in columns_of(chosen):
            show_tokens(analyses[name], number, start, part)
    with masked:
        show_masked()
    with results:
        show_results(chosen[0], pipelines[chosen[0]])
    with asked:
        show_answers(analyses[chosen[0]], titles)


def columns_of(names: list[str]) -> Iterator[str]:
    """Yield the name of each pipeline inside a column of its own, which shows the name if there are two."""
    for name, column in zip(names, st.columns(len(names)), strict=True):
        with column:
            if len(names) > 1:
                st.text(name)
            yield name


def choose_inputs(pipelines: dict[str, str]) -> tuple[list[str], list[Any]]:
    """Show the sidebar, and return the names of one or two pipelines, and the uploaded files."""
    with st.sidebar:
        chosen = [st.selectbox("Pipeline", pipelines)]
        others = [name for name in pipelines if name not in chosen]
        if others and (other := st.selectbox("Compare with", others, index=None)):
            chosen.append(other)
        uploads = st.file_uploader("Files", ["txt", "csv", "pdf", "docx"], accept_multiple_files=True)
        st.text("Examples")
        for name, text in EXAMPLES.items():
            if st.button(name, width="stretch"):
                st.session_state.text = text
    return chosen, uploads


def read_documents(uploads: list[Any]) -> list[tuple[str, str]]:
    """Show the field for a text, and return the titles and texts of what was pasted and uploaded."""
    text = st.text_area("Text", key="text", height=160, placeholder="Paste a text here", persist_state="page")
    documents = [("The pasted text", text)] if text.strip() else []
    for upload in uploads:
        found = cached_documents(upload.name, upload.getvalue())
        if isinstance(found, str):
            st.error(escape_markdown(found))
            return []
        documents += found
    try:
        check_size([text for _, text in documents])
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return []
    return documents


def analyze(pipelines: dict[str, str], documents: tuple[tuple[str, str], ...]) -> dict[str, list[Analysis]]:
    """Analyse the documents with each pipeline.

    The last analyses are kept in the session, because Streamlit reruns the script after each use of a widget.

    pipelines (dict[str, str]): The argument of spacy.load by name.
    documents (tuple[tuple[str, str], ...]): Titles and texts.
    RETURNS (dict[str, list[Analysis]]): By name an analysis for each document.
    """
    kept = st.session_state.get("kept", {})
    texts = tuple(text for _, text in documents)
    found, keys = {}, []
    for name, place in pipelines.items():
        key = (place, modified_at(place), texts)
        if key not in kept:
            bar = st.progress(0.0, "Reading")
            try:
                analyses = cached_pipeline(*key[:2]).annotate(texts, advance=partial(show_progress, bar))
            except StepError as error:
                st.error(escape_markdown(f"{error.problem} {error.remedy}"))
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
    """Choose what to show: the position of a document, and a part of it with its offset and text."""
    if not documents:
        return 0, (0, "")
    numbers = range(len(documents))
    number = 0
    if len(documents) > 1:
        number = st.selectbox("Document", numbers, format_func=lambda place: f"{place + 1}. {documents[place][0]}")
    parts = list(split_text(documents[number][1], SHOWN_LENGTH))
    place = st.number_input(f"Part, 1 to {len(parts)}", 1, len(parts)) - 1 if len(parts) > 1 else 0
    return number, parts[place]


def spans_in(spans: Sequence[EntityOut], start: int, part: str) -> list[dict[str, Any]]:
    """The spans that lie within a part, with offsets from its start."""
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
    # Streamlit keeps the value of a widget with the same key, so other labels need another key
    wanted = st.pills(
        "Labels", labels, selection_mode="multi", default=labels, key=f"labels {name} {labels}", persist_state="page"
    )
    least = st.slider("Score at least", 0.0, 1.0, 0.0, 0.01, key=f"score {name}", persist_state="page")
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
    for column, (kind, mime) in zip(st.columns(len(MIME_TYPES)), MIME_TYPES.items(), strict=True):
        data = partial(export_analyses, kept, kind.lower())  # called when somebody downloads it
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
            for place in (triple.subject_index, triple.predicate_index, triple.object_index)
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
        table = [(c.text, c.label, c.rule_id, c.entity_label, c.score, c.negated) for c in analysis.concepts]
        columns = ["text", "label", "rule", "entity label", "score", "negated"]
        st.dataframe(pd.DataFrame(table, columns=columns), hide_index=True, alt="Concepts")


def draw_triples(rows: list[list[str]]) -> str:
    """Write triples as a graph in the language DOT: mechanisms are arrows, and factors hang on dashed lines.

    A question mark stands for an actor that the pipeline does not know, for example a pronoun. A point stands for an
    object that is missing.

    rows (list[list[str]]): The texts of actor, mechanism, and actor or factor, empty where there is none.
    RETURNS (str): The graph.
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
        st.info("There is no encoder yet. `make download RUN=conll2003` gets bert-base-uncased.")
        return
    encoder = st.selectbox("Encoder", encoders)
    text = st.text_input(f"A sentence with {escape_markdown(MASK)}", f"Paris is the {MASK} of France.", max_chars=2000)
    try:
        words = cached_words(encoder, text)
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return
    if words is None:
        st.info("This encoder has no head for masked words. bert-base-uncased has one.")
        return
    table = pd.DataFrame(words, columns=["word", "probability"])
    st.bar_chart(table, x="word", y="probability", horizontal=True, sort=False, alt="Words by probability")
    st.dataframe(table, hide_index=True, alt="Words by probability")


def show_results(name: str, place: str) -> None:
    """Show the report of a pipeline's run, if the report is about exactly this pipeline.

    name (str): Name of the pipeline as in find_pipelines: packages/<run>/..., or the name of an installed package.
    place (str): The argument of spacy.load.
    """
    run = Path(name).parts[1:2]
    if not run:
        st.info("An installed pipeline has no report here. Choose one of the folder packages.")
        return
    metrics = Path("metrics", *run)
    report = metrics / "report.html"
    try:
        evaluated = read_json(metrics / "evaluation.json").get("training", {})
        own = evaluated.get("inputs") == read_json(Path(place, "provenance.json")).get("inputs")
    except StepError as error:
        st.error(escape_markdown(f"{error.problem} {error.remedy}"))
        return
    if not report.exists() or not own:
        st.info(f"This pipeline has no report yet. `make report RUN={run[0]}` writes it.")
        return
    st.iframe(report, height=900, alt=f"Report of {name}")


def show_answers(analyses: list[Analysis], titles: list[str]) -> None:
    with st.form("question", border=False):
        question = st.text_input("Question about the documents", placeholder="Who is mentioned?", max_chars=1000)
        sent = st.form_submit_button("Ask")
    if chat := find_chat():
        st.text(f"Questions and the quotes of answers are sent to {chat.host}.")
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
    """Format a question, its answer and the quotes as HTML. All texts are escaped."""
    quotes = "".join(
        f"<li><q>{html.escape(quote.text)}</q><br><small>{html.escape(titles[quote.document_index])}, "
        f"characters {quote.start} to {quote.end}</small></li>"
        for quote in answer.evidence
        if quote.document_index < len(titles)
    )
    notes = ["Worded by the configured language model."] * answer.generated + [answer.warning] * bool(answer.warning)
    return (
        f"<p><strong>{html.escape(question)}</strong></p><p>{html.escape(answer.text)}</p><ol>{quotes}</ol>"
        + "".join(f"<p><small>{html.escape(note)}</small></p>" for note in notes)
    )


if __name__ == "__main__":
    main()
