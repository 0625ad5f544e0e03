"""Answer questions about texts by rules over what a pipeline found. A language model may word the answers."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, Field

from app.annotate import Analysis, ConceptOut, Layer, SpanOut
from common.chat import ChatError, find_chat

NEEDED: tuple[Layer, ...] = ("sentences", "entities", "concepts")  # what `ask` reads of an analysis
MAX_QUOTES = 8  # sentences that an answer shows
MAX_LISTED = 50  # names that an answer lists

QUESTION_WORDS = {  # by the labels of entities that they ask for
    ("PER", "PERSON"): "who whom person persons people",
    ("ORG",): """organisation organisations organization organizations company companies team teams club clubs firm
        firms""",
    ("LOC", "GPE"): "where place places location locations city cities country countries town towns",
}
_OTHER_WORDS = """
a about all an and any are as at be been by can could describe described did do does doing done document documents for
from had has have how i in is it like list many me mentioned name named names of on or say says tell text that the there
these they this to was were what when which why will with would you your appear appears appeared together happen
happened
"""
FUNCTION_WORDS = frozenset([*_OTHER_WORDS.split(), *" ".join(QUESTION_WORDS.values()).split()])


class Evidence(SpanOut):
    """A sentence that supports an answer."""

    document_index: int = Field(description="Position of its text among the texts of the request, from 0")


class Answer(BaseModel):
    """An answer with the sentences that support it."""

    text: str
    evidence: list[Evidence]
    generated: bool = Field(default=False, description="Whether a language model worded the text")
    warning: str = Field(default="", description="Why the configured language model was not used")


def ask(analyses: Sequence[Analysis], question: str) -> Answer:
    """Answer a question about documents from their sentences, entities and concepts.

    The rules answer who or what is mentioned, how many there are, which names appear with a name, what somebody did,
    who did something, and how something is described. To any other question, the answer is the sentences that share
    the most words with it.

    analyses (Sequence[Analysis]): Analyses of the documents, with the layers NEEDED.
    question (str): The question, in English.
    RETURNS (Answer): The answer with the sentences that support it.
    """
    every = [word.lower() for word in re.findall(r"\w+(?:[-'\u2019]\w+)*", question)]
    words, asked = set(every), [word for word in every if word not in FUNCTION_WORDS]
    labels = {label for group, names in QUESTION_WORDS.items() for label in group if set(names.split()) & words}
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
    if unknown := _find_unknown(analyses, _find_capitals(question.lstrip().partition(" ")[2])):
        return Answer(text=f"The documents do not mention {unknown}.", evidence=[])
    if labels:
        done = _answer_doer(analyses, asked, labels)
        return done or _answer_mentions(analyses, labels, counted="many" in words)
    if not asked and words & {"mentioned", "named", "names", "many", "list"}:
        kinds = {ent.label for analysis in analyses for ent in analysis.entities}
        return _answer_mentions(analyses, kinds, counted="many" in words)
    return _answer_nearest(analyses, asked)


def _quote(analyses: Sequence[Analysis], places: Iterable[tuple[int, int]]) -> list[Evidence]:
    """The sentences at places, which are pairs of document and offset. Each sentence is quoted once."""
    found: dict[tuple[int, int], Evidence] = {}
    for number, offset in places:
        sentences = analyses[number].sentences
        at = bisect_right(sentences, offset, key=lambda sentence: sentence.start) - 1
        if len(found) < MAX_QUOTES and at >= 0 and offset < sentences[at].end:
            found[number, at] = Evidence(document_index=number, **sentences[at].model_dump())
    return list(found.values())


def _list(texts: Iterable[str], mark: str) -> str:
    """Join texts, each once, to a list of at most MAX_LISTED."""
    every = list(dict.fromkeys(texts))
    more = len(every) - MAX_LISTED
    return mark.join(every[:MAX_LISTED]) + (f"{mark}and {more:,} more" if more > 0 else "")


def _find_names(analyses: Sequence[Analysis], question: str) -> list[str]:
    """Find the names and actors of the documents that the question contains, else one that shares a word with it."""
    lower = question.lower()
    every = {ent.text for analysis in analyses for ent in analysis.entities}
    every |= {span.text for analysis in analyses for span in analysis.concepts if span.label == "actor"}
    spellings = {text.lower(): text for text in sorted(every)}  # one of several, and not that in capitals
    whole = {name for name in spellings if name in lower}
    whole = {name for name in whole if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lower)}
    whole = {name for name in whole if not any(name != other and name in other for other in whole)}
    if whole:
        return [spellings[name] for name in sorted(whole, key=lower.find)]
    capitals = {word.lower() for word in _find_capitals(question)}
    return sorted(text for name, text in spellings.items() if capitals & set(name.split()))[:1]


def _find_capitals(question: str) -> list[str]:
    """Find the words of a question that begin with a capital, also with Å, but for those that any question may have."""
    found = re.findall(r"\b[^\W\d_a-z][\w-]+", question)
    return [word for word in found if word[0].isupper() and word.lower() not in FUNCTION_WORDS]


def _words_of(names: Iterable[str]) -> set[str]:
    """The words of names. A span with one of them counts as a mention: `Solberg` is one of Mira Solberg."""
    return {word for name in names for word in name.lower().split()}


def _find_unknown(analyses: Sequence[Analysis], words: list[str]) -> str:
    """Find the first word that no document contains. Each part of a word with hyphens has to be in one."""
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
            found = (ent.text for ent in within if ent.label in labels and known.isdisjoint(_words_of([ent.text])))
            others = list(dict.fromkeys(found))  # each once, in the order of the text
            if others and any(known & _words_of([ent.text]) for ent in within):
                counts.update(others)
                places.append((number, sentence.start))
    if not counts:
        return Answer(text=f"None appears in a sentence with {title}.", evidence=[])
    listed = _list((text for text, _ in counts.most_common()), ", ")
    return Answer(text=f"In a sentence with {title}: {listed}.", evidence=_quote(analyses, places))


def _relations(
    analyses: Sequence[Analysis],
) -> Iterator[tuple[int, ConceptOut | None, ConceptOut | None, ConceptOut | None]]:
    """Yield the number of a document and the concepts of a triple: actor, mechanism, actor or factor."""
    for number, analysis in enumerate(analyses):
        for triple in analysis.triples:
            places = (triple.subject_index, triple.predicate_index, triple.object_index)
            actor, mechanism, found = (None if place is None else analysis.concepts[place] for place in places)
            yield number, actor, mechanism, found


def _format_deed(mechanism: ConceptOut, found: ConceptOut | None) -> str:
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
    listed = _list((_format_deed(mechanism, found) for _, mechanism, found in deeds), "; ")
    evidence = _quote(analyses, ((number, mechanism.start) for number, mechanism, _ in deeds))
    return Answer(text=f"{title}: {listed}.", evidence=evidence)


def _answer_doer(analyses: Sequence[Analysis], asked: list[str], labels: set[str]) -> Answer | None:
    """Answer who did something, if the question contains a verb that the documents have, too."""
    stems = {_stem(word) for word in asked}
    deeds = [
        (number, actor, mechanism, found)
        for number, actor, mechanism, found in _relations(analyses)
        if actor and mechanism and _stem(mechanism.text.split()[0]) in stems
    ]
    objects = [deed for deed in deeds if deed[3] and {_stem(word) for word in deed[3].text.split()} & stems]
    deeds = objects or deeds
    deeds = [deed for deed in deeds if deed[1].entity_label in labels] or deeds
    if not deeds:
        return None
    listed = _list((f"{actor.text} {_format_deed(mechanism, found)}" for _, actor, mechanism, found in deeds), "; ")
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
    """Answer with the sentences that share the most words with the question. Rare words count more."""
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
    """Cut off an inflection: launch, launches, launched and launching have the same stem."""
    return re.sub(r"(?:e?s|e?d|ing|e)$", "", word.lower()) if len(word) > 3 else word.lower()


def draft(answer: Answer, question: str, timeout: float = 30) -> Answer:
    """Let a language model word an answer, if an endpoint with OpenAI's interface is configured.

    BERT_NER_LLM_URL names the endpoint, such as `http://127.0.0.1:11434/v1`, BERT_NER_LLM_MODEL its model, and
    BERT_NER_LLM_KEY its key if it needs one. Without the first, nothing is sent. Else the endpoint gets the question,
    the answer of the rules and the quotes, and nothing more of the documents.

    answer (Answer): The answer of the rules.
    question (str): The question.
    timeout (float): Seconds to wait for the reply.
    RETURNS (Answer): An answer with the same evidence. If the endpoint fails, the answer of the rules with a warning.
    """
    chat = find_chat()
    if chat is None or not answer.evidence:
        return answer
    quotes = "\n".join(f"[{number}] {quote.text}" for number, quote in enumerate(answer.evidence, 1))
    prompt = f"Question: {question}\n\nQuotes:\n{quotes}\n\nFound by rules: {answer.text}"
    system = "Answer in at most three sentences, from the quotes alone, citing them as [1]. If they do not say, say so."
    try:
        reply = chat.ask(prompt, system, {"temperature": 0}, timeout)
    except ChatError as error:
        return answer.model_copy(update={"warning": f"The language model gave no answer: {error.reason}."})
    return answer.model_copy(update={"text": reply.text, "generated": True})
