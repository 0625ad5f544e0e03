r"""WebAnno TSV 3.3, of INCEpTION and WebAnno: a file .tsv of each document, for the built-in layer of named entities.

The files are in UTF-8, their offsets count UTF-16 code units. A row is a token, or a part of one (`1-2.1`) where a span
cuts it. `_` means no span, `*` one without a label; `[n]` joins the rows of a span and separates those of a token. The
text stands in lines `#Text=`, one sentence after the other. Between two there is nothing or a line break, and white
space for which the format has spaces only. So the text of the store decides where it differs in white space alone.

INCEpTION has the status of a document and its annotator elsewhere: documents that nobody has decided get the
suggestions as spans to start from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from common.annotations import Span, Task
from common.errors import StepError
from common.formats import (
    Entry,
    Finding,
    Format,
    Mark,
    Options,
    annotation_of,
    make_tokenizer,
    name_annotator,
    utf16_offsets,
)
from common.formats.texts import check_approved, check_labels, id_of, path_of, read_text, spans_to_show
from common.formats.tokens import BLANK, Finder, find_letters, find_tokens

LAYER = "de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity"
FEATURE = "value"
NONE, UNLABELED = "_", "*"
VERSION = re.compile(r"#FORMAT=WebAnno TSV 3\.[23]")
ROW = re.compile(r"\d+-\d+(\.\d+)?")
OFFSETS = re.compile(r"(\d+)-(\d+)")
JOINED = re.compile(r"\[(\d+)\]$")
# As INCEpTION escapes: control characters of a text by themselves, unless they have a letter.
LETTERS = {"\t": "t", "\n": "n", "\f": "f", "\r": "r", "\b": "b"}
IN_TEXT = re.compile(r"[\x00-\x07\x0e-\x1f\t\n\f\r\b\\]")
IN_VALUE = re.compile(r"->|[\\\[\]|_;\t\n*]")


def _write(folder: Path, tasks: list[Task], options: Options) -> list[Finding]:
    tokenizer = make_tokenizer()
    findings = []
    for task in tasks:
        name, text = task.document.id, task.document.text
        spans = spans_to_show(task)
        if spans is None:
            findings.append(Finding(name, "WebAnno TSV cannot tell that a document was skipped: it is left out."))
            continue
        check_labels((span.label for span in spans), "WebAnno TSV", "")
        tokens = [(token.idx, token.idx + len(token)) for token in tokenizer(text) if BLANK.sub("", token.text)]
        if not tokens:
            findings.append(Finding(name, "The text has no token, so WebAnno TSV cannot hold it: it is left out."))
            continue
        if text[: tokens[0][0]].strip(" "):
            findings.append(Finding(name, "WebAnno TSV has spaces for the white space before the first word."))
        placed = []
        for span in spans:
            inside = find_tokens(tokens, span)
            start = max(tokens[inside[0]][0], span.start) if inside else 0
            end = min(tokens[inside[-1]][1], span.end) if inside else 0
            if (start, end) != (span.start, span.end):
                written = f"{start}–{end} is written" if inside else "it is left out"
                what = f"The span {span.label} {span.start}–{span.end} begins or ends in white space"
                findings.append(Finding(name, f"{what}, where WebAnno TSV has no place: {written}."))
            if inside:
                placed.append(span.model_copy(update={"start": start, "end": end}))
        path_of(folder, task.document, ".tsv").write_bytes(_format(text, tokens, placed).encode())
    return findings


def _format(text: str, tokens: list[tuple[int, int]], spans: list[Span]) -> str:
    """The content of a file, given the tokens of the text, and spans that begin and end in them."""
    spans = sorted(spans, key=lambda span: (span.start, -span.end))
    parts: list[dict[tuple[int, int], list[int]]] = [{token: []} for token in tokens]  # of each token, with their spans
    for index, span in enumerate(spans):
        for i in find_tokens(tokens, span):
            start, end = tokens[i]
            parts[i].setdefault((max(start, span.start), min(end, span.end)), []).append(index)
    found = [index for rows in parts for indices in rows.values() for index in indices * len(indices)]
    ambiguous = {index for index, times in Counter(found).items() if times > 1}  # in several rows, or not alone in one
    numbers: dict[int, int] = {}  # by span, in the order in which the rows need them
    units = utf16_offsets(text)
    begins = [i for i in range(len(tokens)) if not i or "\n" in text[tokens[i - 1][1] : tokens[i][0]]]
    lines = ["#FORMAT=WebAnno TSV 3.3", f"#T_SP={LAYER}|{FEATURE}", ""]
    # A line of the text is a sentence, which is what INCEpTION shows as a line.
    for sentence, (first, end) in enumerate(pairwise([*begins, len(tokens)]), start=1):
        last = end == len(tokens)
        part = text[tokens[first][0] :] if last else text[tokens[first][0] : tokens[end][0]].removesuffix("\n")
        lines += ["", *(f"#Text={_escape(IN_TEXT, line)}" for line in part.split("\n"))]
        for i in range(first, end):
            token, *pieces = parts[i]
            for number, row in enumerate([token, *sorted(pieces, key=lambda piece: (piece[0], -piece[1]))]):
                values = []
                for index in parts[i][row]:
                    value = _escape(IN_VALUE, spans[index].label)
                    if index in ambiguous:
                        value += f"[{numbers.setdefault(index, len(numbers) + 1)}]"
                    values.append(value)
                place = f"{sentence}-{i - first + 1}" + (f".{number}" if number else "")
                offsets = f"{units[row[0]]}-{units[row[1]]}"
                lines.append("\t".join([place, offsets, text[row[0] : row[1]], "|".join(values) or NONE, ""]))
    return "\n".join([*lines, ""])


def _escape(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: "\\" + LETTERS.get(found[0], found[0]), text)


def _unescape(text: str) -> str:
    characters = {letter: character for character, letter in LETTERS.items()}
    return re.sub(r"\\(->|.)", lambda found: characters.get(found[1], found[1]), text, flags=re.DOTALL)


def _read(folder: Path, known: Mapping[str, Task], options: Options) -> Iterator[Entry]:
    check_approved(folder, options)
    paths = sorted(folder.rglob("*.tsv"))
    if not paths:
        raise StepError(f"{folder} has no .tsv file.", "Export the documents as WebAnno TSV 3.3 and unpack them there.")
    finder = Finder(known)
    for path in paths:
        text, marks = parse(path)
        document, findings = finder.find(id_of(path), text)
        task = Task(document=document)
        # The texts may differ in white space, not in letters.
        letters = {place: number for number, place in enumerate(find_letters(text))}
        places = find_letters(document.text)
        moved = [
            mark._replace(start=places[letters[mark.start]], end=places[letters[mark.end - 1]] + 1)
            if mark.start in letters and mark.end - 1 in letters and mark.start < mark.end
            else mark
            for mark in marks
        ]
        annotator = name_annotator(options, "", str(path))
        annotation, found = annotation_of(task, annotator, "annotated", moved)
        task.annotations.append(annotation)
        yield Entry(str(path), task, [*findings, *found])


def parse(path: Path) -> tuple[str, list[Mark]]:
    """Read a file of WebAnno TSV.

    path (Path): The file.
    RETURNS (tuple[str, list[Mark]]): The text, and the spans of the layer of named entities, or of the only layer.
    RAISES (StepError): If the file is not like that, naming the line.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).removeprefix("\ufeff").split("\n")]
    if not VERSION.fullmatch(lines[0]):
        raise StepError(f"{path}, line 1: this is no WebAnno TSV 3.3.", "Export the document as WebAnno TSV 3.3.")
    header = next((number for number, line in enumerate(lines) if not line), len(lines))
    column, width = _find_column(path, lines[1:header])
    parts: list[str] = []
    sentence: list[str] = []
    rows: list[tuple[int, int, int, str, str]] = []  # line number, start, end, what stands there, values
    size = 0  # of the parts, in UTF-16 code units
    for number, line in enumerate(lines[header:], start=header + 1):
        if line.startswith("#"):
            sentence += [_unescape(line.removeprefix("#Text="))] * line.startswith("#Text=")
            continue
        if not line:
            continue
        cells = line.split("\t")
        offsets = OFFSETS.fullmatch(cells[1]) if len(cells) >= width and ROW.fullmatch(cells[0]) else None
        if offsets is None or not all(cells[3:width]):
            raise StepError(
                f"{path}, line {number}: this is no row of a token, with its number, its offsets and {width} columns.",
                "Export the document again.",
            )
        start, end = int(offsets[1]), int(offsets[2])
        if sentence:
            between = " " * (start - size)
            parts += [between.replace(" ", "\n", 1) if parts else between, "\n".join(sentence)]
            size += len(between) + utf16_offsets(parts[-1])[-1]
            sentence = []
        rows.append((number, start, end, cells[2], cells[column] if column else NONE))
    text = "".join(parts)
    places = {unit: place for place, unit in enumerate(utf16_offsets(text))}
    marks: dict[int, Mark] = {}
    for number, start, end, quoted, values in rows:
        if start not in places or end not in places or text[places[start] : places[end]] != quoted:
            raise StepError(
                f"{path}, line {number}: {quoted!r} does not stand at {start}–{end} of the text.",
                "Offsets count UTF-16 code units from the start of the document: export it again.",
            )
        for value in re.findall(r"(?:\\.|[^|\\])+", values) if values != NONE else []:
            joined = JOINED.search(value)
            label = value[: joined.start()] if joined else value
            mark = Mark(places[start], places[end], None if label == UNLABELED else _unescape(label))
            key = int(joined[1]) if joined else -len(marks) - 1  # of one row only
            marks[key] = marks[key]._replace(end=places[end]) if key in marks else mark
    return text, list(marks.values())


def _find_column(path: Path, header: list[str]) -> tuple[int, int]:
    """The index of the column with the labels, 0 if the file has no spans, and the number of all columns."""
    layers: dict[str, dict[str, int]] = {}
    width = 3
    for line in header:
        kind, _, declared = line.partition("=")
        name, *features = declared.split("|")
        columns = {feature: width + i for i, feature in enumerate(features or [""])}
        width += len(columns)
        if kind == "#T_SP":
            layers[name] = columns
    if not layers:
        return 0, width
    columns = layers[LAYER] if LAYER in layers else next(iter(layers.values()))
    if (LAYER not in layers and len(layers) > 1) or (FEATURE not in columns and len(columns) > 1):
        raise StepError(
            f"{path} has no layer {LAYER} with a feature {FEATURE}, but: {', '.join(layers)}.",
            "Export a project with the built-in layer Named entity, or with one span layer of one feature.",
        )
    return columns.get(FEATURE, next(iter(columns.values()))), width


FORMAT = Format("webanno", "", frozenset({"overlaps"}), _write, _read)
