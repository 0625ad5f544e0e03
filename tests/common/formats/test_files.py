"""Formats of files: jsonl, brat, WebAnno TSV, and those with a tag for each token. All texts are our own."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pytest
import spacy
from datasets import ClassLabel, Features, Sequence, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table
from spacy.cli.convert import convert
from spacy.tokens import Doc, DocBin
from spacy.tokens import Span as Entity

from common.annotations import Annotation, Document, Span, Task, checksum_of
from common.conll import read_conll
from common.errors import StepError
from common.formats import Entry, Options, brat, conll, docbin, jsonl, make_tokenizer, parquet, webanno
from common.formats.texts import id_of, path_of
from common.formats.tokens import BLANK, find_letters

FORMATS = {
    format.name: format
    for format in (
        jsonl.FORMAT,
        brat.FORMAT,
        webanno.FORMAT,
        conll.COLUMNS,
        conll.CONLL_U,
        parquet.FORMAT,
        docbin.FORMAT,
    )
}
TOKENS = ("conll", "conllu", "parquet", "docbin")
OPTIONS = Options(annotator="ada", approved=True)
TEXT = "Mira 🚢 Solberg left New York.\r\n\r\nRain fell on Ulan-Tarn."


def span_of(words: str, label: str, text: str = TEXT, **fields: Any) -> Span:
    start = text.index(words)
    return Span(start=start, end=start + len(words), label=label, **fields)


def annotate(
    *spans: Span, name: str = "d1", text: str = TEXT, status: Literal["draft", "annotated", "skipped"] = "annotated"
) -> Task:
    annotation = Annotation(document=name, annotator="ada", status=status, spans=list(spans))
    return Task(document=Document(id=name, text=text), annotations=[annotation])


def write(format: str, folder: Path, *tasks: Task, options: Options = OPTIONS) -> list[str]:
    """What a format says that it cannot hold."""
    return [finding.message for finding in FORMATS[format].write(folder, list(tasks), options)]


def read(format: str, folder: Path, *known: Task, options: Options = OPTIONS) -> list[Entry]:
    path = folder / FORMATS[format].file
    return list(FORMATS[format].read(path, {task.document.id: task for task in known}, options))


def spans_in(entry: Entry) -> list[tuple[int, int, str]]:
    (annotation,) = entry.task.annotations
    return sorted((span.start, span.end, span.label) for span in annotation.spans)


def quotes_in(entry: Entry) -> list[tuple[str, str]]:
    return [(entry.task.document.text[start:end], label) for start, end, label in spans_in(entry)]


# Round trips

PIECES = [
    "Mira",
    "Turku",
    "Ulan-Tarn",
    "e\u0301",
    "🚢",
    "👩\u200d🔬",
    "漢字",
    "שלום",
    "_",
    "[1]|*",
    "->",
    "#",
    "O",
    '"',
    "'",
    "\\",
]
SPACES = [" ", "  ", "\r\n", "\n", "\n\n", "\u00a0", "\t", "\u2028", "\x1f", "\ufeff", "."]
texts = st.lists(st.sampled_from(PIECES + SPACES) | st.text(max_size=2), max_size=12).map("".join)
labels = st.sampled_from(["PER", "LOC", "MODEL-A", "Ü&"])


@st.composite
def spans_over(draw: st.DrawFn, text: str) -> list[Span]:
    spans = []
    for _ in range(draw(st.integers(0, 4)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        spans.append(Span(start=start, end=draw(st.integers(start + 1, len(text))), label=draw(labels)))
    return spans


@st.composite
def whole_tasks(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for number, text in enumerate(draw(st.lists(texts, max_size=3))):
        name = draw(st.sampled_from(["", "a/b.txt, row "])) + str(number)
        document = Document(
            id=name,
            text=text,
            split=draw(st.sampled_from([None, "train", "test"])),
            meta=draw(st.sampled_from([{}, {"file": "ü.txt", "row": 3}])),
            rank=draw(st.none() | st.floats(0, 1)),
        )
        scored = [
            span.model_copy(update={"score": draw(st.none() | st.floats(0, 1)), "source": "terms"})
            for span in draw(spans_over(text))
        ]
        annotations = [
            Annotation(
                document=name,
                annotator=annotator,
                status=draw(st.sampled_from(["draft", "annotated", "skipped"])),
                spans=draw(spans_over(text)),
                flagged=draw(st.booleans()),
                comment=draw(st.sampled_from(["", "Why?\nSo."])),
                seconds=draw(st.floats(0, 9)),
                ground_truth=draw(st.booleans()),
                revision=draw(st.integers(0, 3)),
            )
            for annotator in draw(st.lists(st.sampled_from(["ada", "bo"]), unique=True))
        ]
        tasks.append(Task(document=document, suggestions=scored, annotations=annotations))
    return tasks


@given(whole_tasks())
def test_jsonl_loses_nothing(tasks: list[Task]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert write("jsonl", Path(folder), *tasks) == []
        entries = read("jsonl", Path(folder), options=Options())
    assert [entry.task for entry in entries] == tasks
    assert not any(entry.findings for entry in entries)


@settings(max_examples=40)
@pytest.mark.parametrize("format", ["brat", "webanno"])
@given(text=texts, data=st.data())
def test_tools_with_offsets_give_back_what_they_were_given(format: str, text: str, data: st.DataObject) -> None:
    found = data.draw(spans_over(text))
    spans = [span for span in found if not BLANK.search(text[span.start] + text[span.end - 1])]
    task = annotate(*spans, text=text)
    with tempfile.TemporaryDirectory() as name:
        findings = write(format, Path(name), task)
        if format == "webanno" and not BLANK.sub("", text):
            assert "no token" in findings[0]
            return
        (entry,) = read(format, Path(name), task)
        (alone,) = read(format, Path(name))
    assert entry.task.document == task.document
    assert spans_in(entry) == sorted((span.start, span.end, span.label) for span in spans)
    assert not entry.findings
    assert spans_in(alone) == spans_in(entry)
    if not findings:
        assert alone.task.document.text == text


@st.composite
def token_spans(draw: st.DrawFn, text: str) -> list[Span]:
    """Spans of which no two overlap, that begin and end with tokens which are not white space."""
    tokens = [[token.idx + i for i in find_letters(token.text)] for token in make_tokenizer()(text)]
    tokens = [token for token in tokens if token]
    cuts = sorted(draw(st.sets(st.integers(0, len(tokens)), max_size=6)))
    return [
        Span(start=tokens[first][0], end=tokens[last - 1][-1] + 1, label=draw(labels))
        for first, last in pairwise(cuts)
        if draw(st.booleans())
    ]


@settings(max_examples=40)
@pytest.mark.parametrize(
    ("format", "scheme"),
    [*((name, "IOB2") for name in TOKENS), *(("conll", scheme) for scheme in ("IOB1", "BIOES", "BILUO"))],
)
@given(found=st.lists(texts, max_size=3, unique_by=lambda text: BLANK.sub("", text)), data=st.data())
def test_tokens_give_back_spans_that_fit_them(format: str, scheme: Any, found: list[str], data: st.DataObject) -> None:
    tasks = [
        annotate(*data.draw(token_spans(text)), name=f"a/{number}", text=text)
        for number, text in enumerate(found)
        if BLANK.sub("", text)
    ]
    with tempfile.TemporaryDirectory() as name:
        assert write(format, Path(name), *tasks, options=Options(scheme=scheme)) == []
        if not tasks and format == "conll":
            return
        entries = read(format, Path(name), *tasks)
        alone = read(format, Path(name))
    assert [entry.task for entry in entries] == tasks
    assert not any(entry.findings for entry in entries)
    if format != "conll":  # which has neither ids nor spaces
        assert [entry.task for entry in alone] == tasks


# What a format cannot hold


@pytest.mark.parametrize("format", TOKENS)
def test_a_span_that_cuts_a_token_is_reported_with_what_is_written(format: str, tmp_path: Path) -> None:
    task = annotate(span_of("Tarn", "LOC"), span_of(" left", "X"), span_of("New York", "LOC"))
    findings = write(format, tmp_path, task)
    assert findings == [
        "The span X 14–19 (' left') does not fit tokens: 15–19 ('left') is written.",
        "The span LOC 51–55 ('Tarn') does not fit tokens: 46–55 ('Ulan-Tarn') is written.",
    ]
    (entry,) = read(format, tmp_path, task)
    assert quotes_in(entry) == [("left", "X"), ("New York", "LOC"), ("Ulan-Tarn", "LOC")]


def test_spans_that_no_token_can_have_are_reported(tmp_path: Path) -> None:
    task = annotate(span_of("\r\n", "X"), span_of("Ulan", "A"), span_of("Tarn", "B"))
    assert [message[:40] for message in write("conll", tmp_path, task)] == [
        "The span X 29–31 ('\\r\\n') covers no toke",
        "The span A 46–50 ('Ulan') does not fit t",
        "The span B 51–55 ('Tarn') cuts a token t",
    ]


@pytest.mark.parametrize("format", TOKENS)
def test_documents_that_nobody_annotated_are_left_out_of_tokens_and_empty_ones_are_not(
    format: str, tmp_path: Path
) -> None:
    empty, skipped = annotate(name="empty", text="Fog."), annotate(name="skipped", text="Hail.", status="skipped")
    draft, blank = annotate(name="draft", text="Rain.", status="draft"), annotate(name="blank", text=" \n")
    findings = write(format, tmp_path, empty, skipped, draft, blank)
    assert ["skipped" in findings[0], "not annotated" in findings[1], "no token" in findings[2]] == [True] * 3
    (entry,) = read(format, tmp_path, empty, skipped, draft, blank)
    assert entry.task == empty


@pytest.mark.parametrize("format", ["brat", "webanno"])
def test_tools_start_from_suggestions_and_leave_skipped_documents_out(format: str, tmp_path: Path) -> None:
    skipped = annotate(name="skipped", text="Hail.", status="skipped")
    suggestions = [span_of("York", "LOC", source="terms"), span_of("New York", "LOC", score=0.9, source="en_x")]
    findings = write(format, tmp_path, skipped, Task(document=Document(id="open", text=TEXT), suggestions=suggestions))
    assert len(findings) == 1 and "skipped" in findings[0]
    (entry,) = read(format, tmp_path)
    assert (entry.task.document.id, quotes_in(entry)) == ("open", [("New York", "LOC")])


@pytest.mark.parametrize("format", ["brat", "webanno"])
def test_tools_without_a_status_want_to_know_that_all_is_finished(format: str, tmp_path: Path) -> None:
    write(format, tmp_path, annotate())
    with pytest.raises(StepError, match="finished") as error:
        read(format, tmp_path, options=Options(annotator="ada"))
    assert "--vars.approved yes" in error.value.remedy
    with pytest.raises(StepError, match="who annotated"):
        read(format, tmp_path, options=Options(approved=True))


@pytest.mark.parametrize(
    ("format", "label"),
    [("conll", "a label"), ("conllu", "A|B"), ("brat", "A B"), ("webanno", "A\nB"), ("docbin", "x" * 199)],
)
def test_a_label_that_would_break_the_file_is_refused(format: str, label: str, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot hold the label"):
        write(format, tmp_path, annotate(span_of("Mira", label)))


@pytest.mark.parametrize("format", ["brat", "webanno", "parquet", "docbin"])
def test_other_labels_are_held(format: str, tmp_path: Path) -> None:
    label = "MODEL.A_b" if format == "brat" else "a [label]|*->;_\\"
    write(format, tmp_path, annotate(span_of("Mira", label)))
    assert quotes_in(read(format, tmp_path)[0]) == [("Mira", label)]


@pytest.mark.parametrize("name", ["a/b: c?.txt", ".hidden", "100%", "ü" * 200, "..", "x.y"])
@pytest.mark.parametrize("format", ["brat", "webanno"])
def test_ids_are_names_of_files(format: str, name: str, tmp_path: Path) -> None:
    task = annotate(span_of("Mira", "PER"), name=name)
    write(format, tmp_path, task)
    (entry,) = read(format, tmp_path, task)
    path = path_of(tmp_path, task.document, ".txt")
    assert path.parent == tmp_path and not path.name.startswith(".")
    if len(name) < 200:
        assert id_of(path) == name
    else:
        assert id_of(path) == checksum_of(TEXT)
    assert quotes_in(entry) == [("Mira", "PER")]


def test_several_annotations_of_one_document_find_it(tmp_path: Path) -> None:
    text = "Fog.\n\nMira left."
    for name in ("ada", "bo"):
        (tmp_path / name).mkdir()
        write("webanno", tmp_path / name, annotate(span_of("Mira", "PER", text), text=text))
    path = tmp_path / "bo" / "d1.tsv"
    path.write_text(path.read_text("utf8").replace("#Text=\n", ""), "utf8")
    ada, bo = read("webanno", tmp_path, annotate(text=text))
    assert ada.task == bo.task and quotes_in(bo) == [("Mira", "PER")]


# Columns


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB1", ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]),
        ("IOB2", ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-PER"]),
        ("BIOES", ["B-PER", "E-PER", "O", "S-LOC", "S-LOC", "S-PER"]),
        ("BILUO", ["B-PER", "L-PER", "O", "U-LOC", "U-LOC", "U-PER"]),
    ],
)
def test_columns_are_written_in_the_scheme_that_the_user_named(scheme: Any, tags: list[str], tmp_path: Path) -> None:
    text = "Mira Solberg beat Peru Malta Ode"
    words = [("Mira Solberg", "PER"), ("Peru", "LOC"), ("Malta", "LOC"), ("Ode", "PER")]
    task = annotate(*(span_of(quoted, label, text) for quoted, label in words), text=text)
    write("conll", tmp_path, task, options=Options(scheme=scheme))
    rows = [f"{word} {tag}" for word, tag in zip(text.split(), tags, strict=True)]
    assert (tmp_path / "tasks.conll").read_text("utf8") == "\n".join(["-DOCSTART- O", "", *rows, "", ""])
    assert read_conll(tmp_path / "tasks.conll").schemes["entity"] == scheme


@pytest.mark.parametrize("format", ["conll", "conllu"])
def test_sentences_end_at_punctuation_and_empty_lines_but_not_in_spans(format: str, tmp_path: Path) -> None:
    text = "Fog\n\nRain fell. Hail too. Mr. X\n\nY left."
    write(format, tmp_path, annotate(span_of("X\n\nY", "PER", text), text=text))
    blocks = (tmp_path / f"tasks.{format}").read_text("utf8").removeprefix("-DOCSTART- O\n\n").strip().split("\n\n")
    column = 0 if format == "conll" else 1
    sentences = [
        " ".join(line.replace("\t", " ").split(" ")[column] for line in block.split("\n") if line[0] != "#")
        for block in blocks
    ]
    assert sentences == ["Fog", "Rain fell .", "Hail too .", "Mr. X Y left ."]


def test_columns_find_the_document_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "tasks.conll").write_text("Mira I-PER\n🚢 I-PER\n\nTurku I-LOC\n", "utf8")
    known = Task(document=Document(id="d1", text="\tMira\u00a0🚢\nTurku "))
    (entry,) = read("conll", tmp_path, known)
    assert entry.task.document == known.document
    assert quotes_in(entry) == [("Mira\u00a0🚢", "PER"), ("Turku", "LOC")]
    (entry,) = read("conll", tmp_path)
    assert entry.task.document == Document(id=checksum_of("Mira 🚢 Turku"), text="Mira 🚢 Turku")
    assert quotes_in(entry) == [("Mira 🚢", "PER"), ("Turku", "LOC")]


def test_documents_with_the_same_tokens_are_told_apart_by_id_or_reported(tmp_path: Path) -> None:
    one, two = annotate(name="one", text="Fog."), annotate(name="two", text="Fog.\n")
    for format in ("conll", "conllu"):
        write(format, tmp_path, two)
    (entry,) = read("conllu", tmp_path, one, two)
    assert entry.task == two and not entry.findings
    (entry,) = read("conll", tmp_path, one, two)
    assert entry.task == one and "one, two" in entry.findings[0]


@pytest.mark.parametrize("format", ["conllu", "parquet", "docbin"])
def test_a_text_that_changed_comes_as_the_file_has_it(format: str, tmp_path: Path) -> None:
    write(format, tmp_path, annotate(text="Fog."))
    (entry,) = read(format, tmp_path, annotate(text="Hail."), annotate(name="d2", text="Fog."))
    assert entry.task.document == Document(id="d1", text="Fog.")


def test_a_token_that_begins_documents_is_reported(tmp_path: Path) -> None:
    doc = make_tokenizer()("-DOCSTART- Fog.")
    assert doc[0].text == "-DOCSTART-"
    assert "-DOCSTART-" in write("conll", tmp_path, annotate(text=doc.text), annotate(name="d2"))[0]
    assert len(read("conll", tmp_path, annotate(name="d2"))) == 1


# CoNLL-U

FOREIGN = """\
# text = Zum Tarn gehen
1-2\tZum\t_\t_\t_\t_\t_\t_\t_\t_
1\tZu\t_\t_\t_\t_\t_\t_\t_\tNE=O
2\tdem\t_\t_\t_\t_\t_\t_\t_\tname=B-LOC
3\tTarn\t_\t_\t_\t_\t_\t_\t_\tGloss=lake|NE=I-LOC|SpaceAfter=No
3.1\tgone\t_\t_\t_\t_\t_\t_\t_\t_

1\t.\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
"""


def test_conllu_of_others_is_read(tmp_path: Path) -> None:
    (tmp_path / "tasks.conllu").write_text(FOREIGN.replace("\n", "\r\n"), "utf8", newline="")
    (entry,) = read("conllu", tmp_path)
    assert entry.task.document == Document(id=checksum_of("Zum Tarn."), text="Zum Tarn.")
    assert quotes_in(entry) == [("Zum Tarn", "LOC")]


def test_conllu_before_the_first_document_that_is_named_is_one_too(tmp_path: Path) -> None:
    blank = "\t_" * 8
    (tmp_path / "tasks.conllu").write_text(f"{FOREIGN}\n# newdoc id = d2\n1\tFog{blank}\n", "utf8")
    assert [entry.task.document.text.strip() for entry in read("conllu", tmp_path)] == ["Zum Tarn.", "Fog"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\tTarn\t_", "3\tTarn", "line 5: this is no row"),
        ("3.1", "c", "line 6: this is no row"),
        ("NE=O", "NE=LOC", "line 3: 'LOC' is no tag"),
    ],
)
def test_conllu_that_is_malformed_is_named_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.conllu").write_text(FOREIGN.replace(old, new), "utf8")
    with pytest.raises(StepError, match=message):
        read("conllu", tmp_path)


def test_spacy_converts_our_conllu(tmp_path: Path) -> None:
    write("conllu", tmp_path, annotate(span_of("Mira 🚢 Solberg", "PER"), span_of("New York", "LOC")))
    convert(tmp_path / "tasks.conllu", tmp_path, file_type="spacy", converter="conllu", silent=True)
    docs = list(DocBin().from_disk(tmp_path / "tasks.spacy").get_docs(spacy.blank("en").vocab))
    assert [doc.text.strip() for doc in docs] == ["Mira 🚢 Solberg left New York.", "Rain fell on Ulan-Tarn."]
    assert [(ent.text, ent.label_) for doc in docs for ent in doc.ents] == [
        ("Mira 🚢 Solberg", "PER"),
        ("New York", "LOC"),
    ]


def test_an_id_that_conllu_cannot_hold_is_reported_and_the_text_finds_the_document(tmp_path: Path) -> None:
    task = annotate(span_of("Mira", "PER"), name="a\nb")
    assert "id" in write("conllu", tmp_path, task)[0]
    (entry,) = read("conllu", tmp_path, task)
    assert entry.task == task


# Parquet


def test_datasets_loads_our_parquet(tmp_path: Path) -> None:
    write("parquet", tmp_path, annotate(span_of("New York", "LOC")), options=Options(labels=("PER",)))
    path, cache = tmp_path / "tasks.parquet", tmp_path / "cache"
    rows = load_dataset("parquet", data_files=str(path), cache_dir=str(cache), split="train")
    assert rows.features["ner_tags"].feature.names == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    (row,) = rows
    assert row["tokens"][:7] == ["Mira", "🚢", "Solberg", "left", "New", "York", "."]
    assert row["ner_tags"][3:7] == [0, 3, 4, 0]
    assert all(TEXT[start:].startswith(token) for start, token in zip(row["token_starts"], row["tokens"], strict=True))
    assert (row["id"], row["text"]) == ("d1", TEXT)


def test_parquet_of_others_is_read(tmp_path: Path) -> None:
    write("parquet", tmp_path, annotate(span_of("New York", "LOC")))
    path = tmp_path / "tasks.parquet"
    table = pyarrow.parquet.read_table(path)
    write_table(table.select(["tokens", "ner_tags"]), path)
    (entry,) = read("parquet", tmp_path)
    assert entry.task.document.text.startswith("Mira 🚢 Solberg left New York . Rain")
    assert quotes_in(entry) == [("New York", "LOC")]
    write_table(table.select(["id", "tokens", "ner_tags"]).replace_schema_metadata(None), path)
    with pytest.raises(StepError, match="names of class labels"):
        read("parquet", tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(StepError, match="cannot be read"):
        read("parquet", tmp_path)


@pytest.mark.parametrize(("name", "tag"), [("person", 1), ("person-other", 1), ("B-PER", None), ("B-PER", -1)])
def test_tags_without_a_scheme_or_a_name_are_refused_and_not_read_as_none(
    name: str, tag: int | None, tmp_path: Path
) -> None:
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", name]))})
    table = pyarrow.Table.from_pylist([{"tokens": ["Mira"], "ner_tags": [tag]}], schema=features.arrow_schema)
    write_table(table, tmp_path / "tasks.parquet")
    with pytest.raises(StepError, match="a tag has no name" if name == "B-PER" else f"'{name}', a class label"):
        read("parquet", tmp_path)


def test_tokens_that_are_not_of_the_text_are_reported(tmp_path: Path) -> None:
    write("parquet", tmp_path, annotate(span_of("New York", "LOC")))
    path = tmp_path / "tasks.parquet"
    table = pyarrow.parquet.read_table(path)
    write_table(table.set_column(1, "text", pyarrow.array(["Fog."])), path)
    (entry,) = read("parquet", tmp_path)
    assert not entry.task.annotations and "not those of the text" in entry.findings[0]


# DocBin


def test_docs_without_entities_set_are_not_annotated(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    docs = [nlp("Fog."), nlp("Rain fell."), nlp("Hail fell.")]
    docs[0].set_ents([])
    docs[2].set_ents([Entity(docs[2], 0, 1, label="X")], default="missing")
    docs.append(Doc(nlp.vocab, words=["Ode", "left"], ents=["B-PER", "O"]))  # its spaces are unknown
    DocBin(store_user_data=True, docs=docs).to_disk(tmp_path / "tasks.spacy")
    known = Task(document=Document(id="d4", text="Ode\nleft"))
    fog, rain, hail, ode = read("docbin", tmp_path, known)
    assert fog.task.annotations[0].status == "annotated" and not fog.findings
    assert not rain.task.annotations
    assert hail.task.annotations[0].status == "draft" and "not annotated" in hail.findings[0]
    assert ode.task.document == known.document and quotes_in(ode) == [("Ode", "PER")]


def test_a_damaged_docbin_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.spacy").write_bytes(b"x")
    with pytest.raises(StepError, match=r"tasks\.spacy is damaged"):
        read("docbin", tmp_path)


# jsonl


def write_lines(folder: Path, *lines: str) -> None:
    (folder / "tasks.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf8")


def test_jsonl_by_hand_is_read(tmp_path: Path) -> None:
    write_lines(
        tmp_path,
        '{"text": "Fog."}',
        '{"id": "d2", "text": "Mira left.", "spans": [{"start": 0, "end": 4, "label": "PER", "text": "Mira"}]}',
        '{"id": 3, "text": "Hail.", "status": "skipped", "annotator": "bo", "spam": []}',
        '{"id": "d4", "text": "Rain.", "spans": [{"start": 0, "end": 9, "label": "X"}]}',
    )
    fog, mira, hail, rain = read("jsonl", tmp_path)
    assert fog.task == Task(document=Document(id=checksum_of("Fog."), text="Fog."))
    assert quotes_in(mira) == [("Mira", "PER")] and not mira.findings
    assert (hail.task.document.id, hail.task.annotations[0].status) == ("3", "skipped")
    assert "spam" in hail.findings[0]
    assert rain.task.annotations[0].status == "draft" and "ends after the text" in rain.findings[0]


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "Fog.", "status": "done"}',
        '{"text": "Fog.", "spans": [3]}',
        '{"text": "Fog.", "spans": [{"begin": 0}]}',
        '{"text": "Fog.", "annotations": [3]}',
        '{"text": "Fog.", "split": "later"}',
        '{"text": 3}',
        "[]",
        "{",
    ],
)
def test_malformed_jsonl_is_named_with_its_line(row: str, tmp_path: Path) -> None:
    write_lines(tmp_path, '{"text": "Rain."}', row)
    with pytest.raises(StepError, match=r"tasks\.jsonl, line 2"):
        read("jsonl", tmp_path)
