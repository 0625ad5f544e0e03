"""What the page, the service, the report and the notebook share: pipelines, analyses, exports, answers."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
import spacy
from markupsafe import Markup
from pydantic import BaseModel, Field
from spacy import displacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import get_installed_models

from scripts import functions  # noqa: F401 (what a pipeline in training/ needs)
from scripts.files import MAX_CHARACTERS, READERS, UnreadableError, read_csv, read_packed, read_txt
from scripts.steps import StepError, read_json

MASK = "[MASK]"
MAX_DOCUMENTS = 100
PART = 20_000  # characters that the pipeline reads at once: some seconds, after which it may be told to give up
PACKAGED, TRAINED = "packages/*/*/*/*/config.cfg", "training/*/model-best"
ENDPOINT, ENDPOINT_MODEL, ENDPOINT_KEY = (f"BERT_NER_LLM_{name}" for name in ("URL", "MODEL", "KEY"))
COLORS = {
    "PER": "#ffd7a8", "ORG": "#b9d8ff", "LOC": "#c6ecc0", "MISC": "#e5d0f5",
    "actor": "#b9d8ff", "factor": "#ffe08a", "mechanism": "#c6ecc0",
}  # fmt: skip

# displaCy's own has no colour for the text, which on a dark page is as light as the mark
MARK = (
    '<mark class="entity" style="background: {bg}; color: #111; padding: 0.2em 0.35em; border-radius: 0.35em">{text}'
    '<span style="font-size: 0.75em; font-weight: bold; margin-left: 0.4em">{label}</span></mark>'
)


class Span(BaseModel):
    """A part of a text, by offsets of characters in it."""

    start: int
    end: int
    text: str


class Entity(Span):
    """A named entity. The score is how likely it is that span and label are right."""

    label: str
    score: float | None


class Concept(Entity):
    """An actor, a factor or a mechanism, with the rule that found it; label of the entity and score, if it is one."""

    rule: str
    entity: str
    negated: bool


class Triple(BaseModel):
    """Concepts that seem to belong together, by their places among the concepts. A heuristic: there is no parser."""

    actor: int | None
    mechanism: int | None
    object: int | None


class Token(Span):
    """A token with the tag of its part of speech, the coarse one of Universal Dependencies, IOB tag and shape."""

    tag: str
    pos: str
    iob: str
    shape: str
    wordpieces: list[str]


class Analysis(BaseModel):
    """What a pipeline finds in a text."""

    text: str
    sentences: list[Span]
    entities: list[Entity]
    concepts: list[Concept]
    triples: list[Triple]
    tokens: list[Token]


class Evidence(Span):
    """A sentence that an answer rests on."""

    document: int


class Answer(BaseModel):
    """An answer and what it rests on; whether a language model worded it, and why not if it was to."""

    text: str
    evidence: list[Evidence]
    drafted: bool = False
    warning: str = Field(default="", description="Why the configured language model did not word it")


def find_pipelines(root: Path) -> dict[str, str]:
    """The pipelines at hand: packaged and trained ones of the project, newest first, then installed ones.

    root (Path): The project.
    RETURNS (dict[str, str]): By a name for people what spacy.load takes.
    """
    found = [*root.glob(PACKAGED), *root.glob(f"{TRAINED}*/config.cfg")]
    return {str(path.parent.relative_to(root)): str(path.parent) for path in _newest_first(found)} | {
        name: name for name in sorted(get_installed_models())
    }


def find_newest(root: Path) -> str:
    """The pipeline to take if none is named: the newest packaged one, or else a trained one, or else an installed one.

    Those beside a run's model-best are not meant for use: models set aside, and ablations.

    root (Path): The project.
    RETURNS (str): What spacy.load takes.
    RAISES (StepError): If there is none.
    """
    packaged, trained = (_newest_first(root.glob(pattern)) for pattern in (PACKAGED, f"{TRAINED}/config.cfg"))
    names = [*(str(path.parent) for path in (*packaged, *trained)), *sorted(get_installed_models())]
    if not names:
        raise StepError("There is no pipeline yet.", "Train one: make quickstart")
    return names[0]


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def load_pipeline(name: str) -> Annotator:
    """Load a pipeline, a folder or the name of an installed package, and try it: some damages show only then.

    RAISES (StepError): If there is none, or it cannot be loaded, or not used.
    """
    try:
        nlp = spacy.load(name)
        annotator = Annotator(nlp)
        annotator.annotate(["Mira left Turku."], tokens=True)
        for pipe, labels in (read_json(nlp.path / "meta.json").get("labels", {}) if nlp.path else {}).items():
            if set(labels) != set(nlp.pipe_labels.get(pipe, ())):
                raise ValueError(f"the labels of {pipe} are not those that its meta.json has")
    except Exception as error:  # what is damaged makes spaCy and torch raise whatever they like
        first, *_ = str(error).splitlines() or [""]
        missing = isinstance(error, OSError) and not Path(name).exists()
        raise StepError(
            f"{name} cannot be loaded: {first if missing else f'{type(error).__name__}: {first}'}",
            "Train one: make quickstart" if missing else "It is damaged: train, package or install it again.",
        ) from error
    return annotator


class Annotator:
    """A pipeline that several threads may use, one after the other, for texts of any length.

    nlp (Language): The pipeline.
    """

    def __init__(self, nlp: Language) -> None:
        self.nlp = nlp
        self.lock = threading.Lock()

    def annotate(
        self, texts: Sequence[str], tokens: bool = False, advance: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Analysis]:
        """Analyse texts. Long ones are read in parts, cut between paragraphs.

        texts (Sequence[str]): The texts.
        tokens (bool): Whether to list tokens too.
        advance (Callable[[int, int], None]): Is told after each part how many characters are done, and of how many;
            what it raises ends the analysis.
        RETURNS (list[Analysis]): One for each text.
        """
        analyses = [
            Analysis(text=text, sentences=[], entities=[], concepts=[], triples=[], tokens=[]) for text in texts
        ]
        parts = [(part, (analysis, start)) for analysis in analyses for start, part in split_text(analysis.text)]
        lengths = [len(part) for part, _ in parts]
        done, total = 0, sum(lengths)
        at_once = max(1, PART // max(lengths, default=PART))
        with self.lock:
            advance(0, total)
            with self.nlp.memory_zone():  # without it the vocabulary would grow for ever
                for doc, (analysis, start) in self.nlp.pipe(parts, as_tuples=True, batch_size=at_once):
                    self._add(doc, analysis, start, tokens)
                    done += len(doc.text)
                    advance(done, total)
        return analyses

    def _add(self, doc: Doc, analysis: Analysis, offset: int, tokens: bool) -> None:
        def place(span: Any) -> dict[str, Any]:
            return {"start": span.start_char + offset, "end": span.end_char + offset, "text": span.text}

        def score(span: Any) -> float | None:
            return span._.score if span.has_extension("score") else None

        for sentence in doc.sents if doc.has_annotation("SENT_START") else [doc[:]]:
            if text := sentence.text.strip():
                start = sentence.start_char + sentence.text.index(text) + offset
                analysis.sentences.append(Span(start=start, end=start + len(text), text=text))
        analysis.entities += [Entity(**place(ent), label=ent.label_, score=score(ent)) for ent in doc.ents]
        concepts = list(doc.spans.get("concepts", [])) if doc.has_extension("triples") else []
        first = len(analysis.concepts)
        numbers = {(span.start, span.end): first + number for number, span in enumerate(concepts)}
        for span in concepts:
            kind = {"label": span.label_, "rule": span.id_, "entity": span._.entity, "negated": span._.negated}
            analysis.concepts.append(Concept(**place(span), **kind, score=score(span)))
        for triple in doc._.triples if concepts else ():
            actor, mechanism, found = (span and numbers[span.start, span.end] for span in triple)
            analysis.triples.append(Triple(actor=actor, mechanism=mechanism, object=found))
        if tokens:
            analysis.tokens += [
                Token(
                    start=token.idx + offset,
                    end=token.idx + len(token) + offset,
                    text=token.text,
                    tag=token.tag_,
                    pos=token.pos_,
                    iob=f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O",
                    shape=token.shape_,
                    wordpieces=wordpieces,
                )
                for token, wordpieces in zip(doc, self._wordpieces(doc), strict=True)
                if not token.is_space
            ]

    def _wordpieces(self, doc: Doc) -> list[list[str]]:
        if not len(doc) or "transformer" not in self.nlp.pipe_names:
            return [[] for _ in doc]
        tokenizer = self.nlp.get_pipe("transformer").model.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        found = tokenizer.encode_batch([token.text for token in doc], add_special_tokens=False)
        return [list(encoding.tokens[: sum(encoding.attention_mask)]) for encoding in found]  # without padding


def split_text(text: str, size: int = PART) -> Iterator[tuple[int, str]]:
    """Cut a text into parts of at most `size` characters: after a paragraph, or else a line, a sentence, a word.

    text (str): The text.
    size (int): The most characters in a part.
    YIELDS (tuple[int, str]): Where a part begins, and the part; together they are the text.
    """
    start = 0
    while len(text) - start > size:
        window = text[start : start + size]
        ends = (window.rfind(mark) + len(mark) for mark in ("\n\n", "\n", ". ", " ") if window.rfind(mark) >= size // 2)
        end = next(ends, size)
        yield start, window[:end]
        start += end
    if start < len(text):
        yield start, text[start:]


def check_size(texts: Sequence[str]) -> None:
    """Refuse more than page and service can take.

    RAISES (StepError): If there are too many documents or characters.
    """
    characters = sum(map(len, texts))
    if len(texts) > MAX_DOCUMENTS or characters > MAX_CHARACTERS:
        raise StepError(
            f"{len(texts):,} documents of {characters:,} characters are too much at once.",
            f"At most {MAX_DOCUMENTS} documents of {MAX_CHARACTERS:,} characters in all: use nlp.pipe for more.",
        )


def read_upload(name: str, data: bytes) -> list[tuple[str, str]]:
    """The documents in a file: one of .txt, .pdf and .docx, one for each row of .csv.

    name (str): Of the file.
    data (bytes): Its contents.
    RETURNS (list[tuple[str, str]]): Titles and texts.
    RAISES (StepError): If it is of another kind, damaged, too large, or has no text.
    """
    kind = Path(name).suffix.lower()
    try:
        if kind == ".csv":
            documents = [(f"{name}, row {row}", text) for row, text in enumerate(read_csv(data), 1)]
        elif kind == ".txt":
            documents = [(name, read_txt(data))]
        elif kind in READERS:
            documents = [(name, read_packed(kind, data))]
        else:
            known = ", ".join((".txt", ".csv", *READERS))
            raise StepError(f"{name} is not a file of a known kind.", f"Known are {known}.")
    except UnreadableError as error:
        raise StepError(f"{name} cannot be read: {error}.", "Save it again, or paste its text.") from error
    documents = [(title, text) for title, text in documents if text.strip()]
    if not documents:
        raise StepError(f"{name} has no text.", "If it is scanned, it needs text recognition first.")
    return documents


def highlight(text: str, spans: Iterable[dict[str, Any]]) -> Markup:
    """A text with marked spans, as displaCy shows them. displaCy escapes the text, but not the labels.

    text (str): The text.
    spans (Iterable[dict[str, Any]]): Each with start, end, label; without overlaps.
    RETURNS (Markup): HTML.
    """
    ents = [span | {"label": html.escape(span["label"])} for span in spans]
    if not ents:
        return Markup(f'<div class="entities">{html.escape(text)}</div>')
    doc = {"text": text, "ents": ents, "title": None}
    options = {"colors": COLORS, "template": MARK}
    return Markup(displacy.render(doc, style="ent", manual=True, jupyter=False, options=options))


def export_analyses(analyses: Sequence[Analysis], kind: str) -> str:
    """Analyses as the text of a file.

    analyses (Sequence[Analysis]): For conll with tokens.
    kind (str): json or jsonl, with all that was found; csv, a row for each entity; conll, tokens in columns.
    RETURNS (str): In csv, cells that a spreadsheet would run begin with an apostrophe; in conll, a token that is the
        mark between documents has other hyphens.
    """
    if kind == "json":
        return json.dumps([analysis.model_dump() for analysis in analyses], ensure_ascii=False, indent=2)
    if kind == "jsonl":
        return "".join(json.dumps(analysis.model_dump(), ensure_ascii=False) + "\n" for analysis in analyses)
    out = io.StringIO()
    if kind == "csv":
        rows = csv.writer(out)
        rows.writerow(["document", "start", "end", "text", "label", "score"])
        for number, analysis in enumerate(analyses, 1):
            for ent in analysis.entities:
                rows.writerow([number, ent.start, ent.end, _disarm(ent.text), _disarm(ent.label), ent.score])
        return out.getvalue()
    for analysis in analyses:
        out.write("-DOCSTART- -X- -X- O\n\n")
        sentences, starts = {sentence.start for sentence in analysis.sentences}, [t.start for t in analysis.tokens]
        tags = {}
        for ent in analysis.entities:  # which may be some of those of the tokens
            for number in range(bisect_left(starts, ent.start), bisect_left(starts, ent.end)):
                tags[number] = f"{'I' if starts[number] > ent.start else 'B'}-{ent.label}"
        for number, token in enumerate(analysis.tokens):
            if number and token.start in sentences:
                out.write("\n")
            word = "".join(token.text.split())  # the columns are separated by spaces
            word = word.replace("-DOCSTART-", "\u2010DOCSTART\u2010")
            out.write(f"{word} {token.tag or '-X-'} -X- {tags.get(number, 'O')}\n")
        out.write("\n")
    return out.getvalue()


def _disarm(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def load_masked(encoder: Path) -> tuple[Any, Any] | None:
    """Load a masked language model.

    encoder (Path): Folder of the encoder.
    RETURNS (tuple[Any, Any] | None): Model and tokenizer; None if the encoder has no head for masked words.
    RAISES (StepError): If it cannot be loaded.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        model, loaded = AutoModelForMaskedLM.from_pretrained(encoder, output_loading_info=True)
        if any("predictions" in name for name in loaded["missing_keys"]):
            return None
        return model.eval(), AutoTokenizer.from_pretrained(encoder)
    except Exception as error:  # what is damaged makes transformers raise whatever it likes
        problem = f"{encoder} cannot be loaded: {type(error).__name__}."
        raise StepError(problem, "Run the step download again.") from error


def predict_masked(
    encoder: Path, text: str, top: int = 10, load: Callable[[Path], tuple[Any, Any] | None] = load_masked
) -> list[tuple[str, float]] | None:
    """What a masked language model puts in the place of [MASK] (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    encoder (Path): Folder of the encoder.
    text (str): With one [MASK].
    top (int): How many words to give.
    load (Callable[[Path], tuple[Any, Any] | None]): What loads the encoder, or has it already.
    RETURNS (list[tuple[str, float]] | None): Wordpieces and their probabilities, the most probable first; None if the
        encoder has no head for that.
    RAISES (StepError): If the text has not one [MASK], or one beyond what the encoder reads; if it cannot be loaded.
    """
    import torch

    if text.count(MASK) != 1:
        raise StepError(f"The text has {text.count(MASK)} times {MASK}.", f"Put {MASK} once, where the word shall be.")
    loaded = load(encoder)
    if loaded is None:
        return None
    model, tokenizer = loaded
    inputs = tokenizer(text.replace(MASK, tokenizer.mask_token), return_tensors="pt", truncation=True)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if not len(places):
        raise StepError(f"{MASK} is beyond what the encoder reads.", "Shorten the text.")
    with torch.inference_mode():
        probabilities = model(**inputs).logits[0, places[0, 0]].softmax(0)
    best = probabilities.topk(min(top, len(probabilities)))
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))


KINDS = {
    ("PER", "PERSON"): "who whom person persons people",
    (
        "ORG",
    ): "organisation organisations organization organizations company companies team teams club clubs firm firms",
    ("LOC", "GPE"): "where place places location locations city cities country countries town towns",
}
_OTHER_WORDS = """
a about all an and any are as at be been by can could describe described did do does doing done document documents for
from had has have how i in is it like list many me mentioned name named names of on or say says tell text that the there
these they this to was were what when which will with would you your appear appears appeared together happen happened
"""
FUNCTION_WORDS = frozenset([*_OTHER_WORDS.split(), *" ".join(KINDS.values()).split()])
QUOTES = 8  # the most sentences that an answer shows
LISTED = 50  # and the most names


def ask(analyses: Sequence[Analysis], question: str) -> Answer:
    """Answer a question about documents, from their entities, concepts and sentences alone.

    It knows: who or what is mentioned, how many, which appear with a name, what a name did, who did something, how
    something is described. To any other question it gives the sentences nearest in words.

    analyses (Sequence[Analysis]): Of the documents.
    question (str): In English.
    RETURNS (Answer): With the sentences it rests on.
    """
    every = [word.lower() for word in re.findall(r"\w+(?:[-'\u2019]\w+)*", question)]
    words, asked = set(every), [word for word in every if word not in FUNCTION_WORDS]
    labels = {label for kind, names in KINDS.items() for label in kind if set(names.split()) & words}
    labels |= {ent.label for analysis in analyses for ent in analysis.entities if ent.label.lower() in words}
    names = _find_names(analyses, question)
    if names:
        title = " and ".join(names)
        if words & {"described", "describe", "like"}:
            return _answer_description(analyses, title, names)
        if labels and words & {"with", "together", "near", "beside", "alongside"}:
            return _answer_neighbours(analyses, title, names, labels)
        if "what" in words and words & {"did", "do", "does", "done", "doing", "happened", "happen"}:
            return _answer_deeds(analyses, title, names)
    if unknown := _find_unknown(analyses, re.findall(r"(?<!^)\b[A-Z][\w-]+", question)):
        return Answer(text=f"The documents do not mention {unknown}.", evidence=[])
    if labels:
        done = _answer_doer(analyses, asked, labels)
        return done or _answer_mentions(analyses, labels, counted="many" in words)
    if not asked and words & {"mentioned", "named", "names", "many", "list"}:
        kinds = {ent.label for analysis in analyses for ent in analysis.entities}
        return _answer_mentions(analyses, kinds, counted="many" in words)
    return _answer_nearest(analyses, asked)


def _quote(analyses: Sequence[Analysis], places: Iterable[tuple[int, int]]) -> list[Evidence]:
    """The sentences at places, each a document and an offset, every sentence once."""
    found: dict[tuple[int, int], Evidence] = {}
    for number, offset in places:
        sentences = analyses[number].sentences
        at = bisect_right(sentences, offset, key=lambda sentence: sentence.start) - 1
        if len(found) < QUOTES and at >= 0 and offset < sentences[at].end:
            found[number, at] = Evidence(document=number, **sentences[at].model_dump())
    return list(found.values())


def _list(texts: Iterable[str], mark: str) -> str:
    """Texts in a row, each once; the first LISTED of them."""
    every = list(dict.fromkeys(texts))
    return mark.join(every[:LISTED]) + (f"{mark}and {len(every) - LISTED:,} more" if len(every) > LISTED else "")


def _find_names(analyses: Sequence[Analysis], question: str) -> list[str]:
    """The names and actors of the documents that the question has, whole or else by one of their words."""
    lower = question.lower()
    every = {ent.text for analysis in analyses for ent in analysis.entities}
    every |= {span.text for analysis in analyses for span in analysis.concepts if span.label == "actor"}
    whole = {text for text in every if text.lower() in lower}
    whole = {text for text in whole if re.search(rf"\b{re.escape(text.lower())}\b", lower)}
    whole = {text for text in whole if not any(text != other and text.lower() in other.lower() for other in whole)}
    if whole:
        return sorted(whole, key=lambda text: lower.find(text.lower()))
    capitals = {word.lower() for word in re.findall(r"\b[A-Z][\w-]+", question)} - FUNCTION_WORDS
    return sorted(text for text in every if capitals & set(text.lower().split()))[:1]


def _words_of(names: Iterable[str]) -> set[str]:
    """The words of names: what has one of them is taken for a mention, `Solberg` for one of Mira Solberg."""
    return {word for name in names for word in name.lower().split()}


def _find_unknown(analyses: Sequence[Analysis], words: list[str]) -> str:
    """The first of the words that no document has; one with hyphens, if one of its parts is nowhere."""
    if not words:
        return ""
    known = {word for analysis in analyses for word in re.findall(r"\w+", analysis.text.lower())}
    return next((word for word in words if not known.issuperset(re.findall(r"\w+", word.lower()))), "")


def _answer_mentions(analyses: Sequence[Analysis], labels: set[str], counted: bool) -> Answer:
    found = [
        (number, ent) for number, analysis in enumerate(analyses) for ent in analysis.entities if ent.label in labels
    ]
    if not found:
        return Answer(text="None is mentioned.", evidence=[])
    counts = Counter(ent.text for _, ent in found)
    listed = _list((f"{text} ({times} times)" if times > 1 else text for text, times in counts.most_common()), ", ")
    text = f"{len(counts)}, in {len(found)} places: {listed}." if counted else f"{listed}."
    firsts = {ent.text: (number, ent.start) for number, ent in reversed(found)}
    return Answer(text=text, evidence=_quote(analyses, (firsts[text] for text, _ in counts.most_common())))


def _answer_neighbours(analyses: Sequence[Analysis], title: str, names: list[str], labels: set[str]) -> Answer:
    known = _words_of(names)
    counts: Counter[str] = Counter()
    places = []
    for number, analysis in enumerate(analyses):
        starts = [ent.start for ent in analysis.entities]
        for sentence in analysis.sentences:
            within = analysis.entities[bisect_left(starts, sentence.start) : bisect_left(starts, sentence.end)]
            others = {ent.text for ent in within if ent.label in labels and known.isdisjoint(_words_of([ent.text]))}
            if others and any(known & _words_of([ent.text]) for ent in within):
                counts.update(others)
                places.append((number, sentence.start))
    if not counts:
        return Answer(text=f"None appears in a sentence with {title}.", evidence=[])
    listed = _list((text for text, _ in counts.most_common()), ", ")
    return Answer(text=f"In a sentence with {title}: {listed}.", evidence=_quote(analyses, places))


def _relations(analyses: Sequence[Analysis]) -> Iterator[tuple[int, Concept | None, Concept | None, Concept | None]]:
    for number, analysis in enumerate(analyses):
        for triple in analysis.triples:
            places = (triple.actor, triple.mechanism, triple.object)
            actor, mechanism, found = (None if place is None else analysis.concepts[place] for place in places)
            yield number, actor, mechanism, found


def _tell(mechanism: Concept, found: Concept | None) -> str:
    return ("not " if mechanism.negated else "") + mechanism.text + (f" … {found.text}" if found else "")


def _answer_deeds(analyses: Sequence[Analysis], title: str, names: list[str]) -> Answer:
    known = _words_of(names)
    deeds = [
        (number, mechanism, found)
        for number, actor, mechanism, found in _relations(analyses)
        if actor and mechanism and known & _words_of([actor.text])
    ]
    if not deeds:
        places = [(n, ent.start) for n, a in enumerate(analyses) for ent in a.entities if known & _words_of([ent.text])]
        return Answer(text=f"The documents mention {title}, but no deed was found.", evidence=_quote(analyses, places))
    listed = _list((_tell(mechanism, found) for _, mechanism, found in deeds), "; ")
    evidence = _quote(analyses, ((number, mechanism.start) for number, mechanism, _ in deeds))
    return Answer(text=f"{title}: {listed}.", evidence=evidence)


def _answer_doer(analyses: Sequence[Analysis], asked: list[str], labels: set[str]) -> Answer | None:
    """Who did what the question has a verb for, if it has one."""
    stems = {_stem(word) for word in asked}
    deeds = [
        (number, actor, mechanism, found)
        for number, actor, mechanism, found in _relations(analyses)
        if actor and mechanism and _stem(mechanism.text.split()[0]) in stems
    ]
    objects = [deed for deed in deeds if deed[3] and {_stem(word) for word in deed[3].text.split()} & stems]
    deeds = objects or deeds
    deeds = [deed for deed in deeds if deed[1].entity in labels] or deeds
    if not deeds:
        return None
    listed = _list((f"{actor.text} {_tell(mechanism, found)}" for _, actor, mechanism, found in deeds), "; ")
    return Answer(text=f"{listed}.", evidence=_quote(analyses, ((number, actor.start) for number, actor, *_ in deeds)))


def _answer_description(analyses: Sequence[Analysis], title: str, names: list[str]) -> Answer:
    known = _words_of(names)
    found = [
        (number, factor)
        for number, actor, mechanism, factor in _relations(analyses)
        if actor and factor and not mechanism and known & _words_of([actor.text])
    ]
    if not found:
        return Answer(text=f"No adjective stands before {title}.", evidence=[])
    listed = _list((("not " if factor.negated else "") + factor.text for _, factor in found), ", ")
    return Answer(text=f"{title}: {listed}.", evidence=_quote(analyses, ((n, factor.start) for n, factor in found)))


def _answer_nearest(analyses: Sequence[Analysis], asked: list[str]) -> Answer:
    """The sentences that share most words with the question, rare words counting more."""
    stems = {_stem(word) for word in asked}
    sentences = [
        (number, sentence, stems & {_stem(word) for word in re.findall(r"\w+", sentence.text.lower())})
        for number, analysis in enumerate(analyses)
        for sentence in analysis.sentences
    ]
    counts = Counter(stem for *_, shared in sentences for stem in shared)
    weights = {stem: math.log(1 + len(sentences) / count) for stem, count in counts.items()}
    ranked = sorted(sentences, key=lambda row: -sum(weights[stem] for stem in row[2]))
    places = [(number, sentence.start) for number, sentence, shared in ranked[:3] if shared]
    if not places:
        return Answer(text="The documents say nothing about that.", evidence=[])
    return Answer(text="The nearest passages:", evidence=_quote(analyses, places))


def _stem(word: str) -> str:
    """What words such as launch, launches, launched and launching share."""
    return re.sub(r"(?:e?s|e?d|ing|e)$", "", word.lower()) if len(word) > 3 else word.lower()


def draft(answer: Answer, question: str, timeout: float = 30) -> Answer:
    """The answer in the words of a language model, if an endpoint with OpenAI's interface is configured.

    It is sent question, local answer and quotes, nothing else, and only if BERT_NER_LLM_URL is set, such as
    `http://127.0.0.1:11434/v1`; with BERT_NER_LLM_MODEL and, if needed, BERT_NER_LLM_KEY.

    answer (Answer): The local one.
    question (str): The question.
    timeout (float): Seconds to wait for each part of the reply.
    RETURNS (Answer): With the same evidence; if the endpoint fails, the local answer with a warning.
    """
    url = os.environ.get(ENDPOINT)
    if not url or not answer.evidence:
        return answer
    quotes = "\n".join(f"[{number}] {quote.text}" for number, quote in enumerate(answer.evidence, 1))
    prompt = f"Question: {question}\n\nQuotes:\n{quotes}\n\nFound by rules: {answer.text}"
    system = "Answer in at most three sentences, from the quotes alone, citing them as [1]. If they do not say, say so."
    key = os.environ.get(ENDPOINT_KEY)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    try:
        reply = requests.post(
            f"{url.rstrip('/')}/chat/completions",
            json={"model": os.environ.get(ENDPOINT_MODEL, "default"), "messages": messages, "temperature": 0},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            allow_redirects=False,
        )
        reply.raise_for_status()
        text = reply.json()["choices"][0]["message"]["content"].strip()
        if not text:
            raise ValueError("an empty answer")
    except (requests.RequestException, LookupError, TypeError, AttributeError, ValueError) as error:
        return answer.model_copy(update={"warning": f"The language model gave no answer: {type(error).__name__}."})
    return answer.model_copy(update={"text": text, "drafted": True})
