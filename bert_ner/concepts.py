"""The component that finds actors, factors and mechanisms by rules, and relates them.

An actor is a noun phrase, a factor an adjective and a mechanism a verb. spaCy's registry gets the rules
`bert_ner.ConceptRules.v1` and the factory `bert_ner_concepts_v2`. A wheel of the pipeline has a copy of this file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline.span_ruler import SpanRuler
from spacy.tokens import Doc, Span, Token
from spacy.training import Example
from spacy.util import registry

_COARSE = {
    tag: coarse
    for coarse, tags in {
        "ADJ": "JJ JJR JJS",
        "ADP": "IN RP",
        "ADV": "RB RBR RBS WRB",
        "AUX": "MD",
        "CCONJ": "CC",
        "DET": "DT PDT",
        "INTJ": "UH",
        "NOUN": "NN NNS",
        "NUM": "CD",
        "PART": "POS TO",
        "PRON": "EX PRP PRP$ WDT WP WP$",
        "PROPN": "NNP NNPS",
        "PUNCT": ": . , \" `` '' ( ) -LRB- -RRB- HYPH NFP",
        "SYM": "$ # SYM",
        "VERB": "VB VBD VBG VBN VBP VBZ",
    }.items()
    for tag in tags.split()
}


_BE, _HAVE, _DO, _NEGATIONS = (
    frozenset(words.split())
    for words in (
        "be am is are was were been being 's 'm 're \u2019s \u2019m \u2019re",
        "have has had having 've 'd \u2019ve \u2019d",
        "do does did doing",
        "not n't n\u2019t never no neither nor",
    )
)


_WORD = re.compile(r"[^\W\d_]{2}")


def set_coarse_tags(doc: Doc) -> None:
    """Set `token.pos_`, the parts of speech of Universal Dependencies, from the tags of the Penn Treebank.

    Some tags stand for several parts of speech, which the words and their neighbours tell apart. Forms of `be` are
    auxiliaries, and so are those of `have` and `do` before another verb. Participles that stand before a noun, where
    adjectives stand, are adjectives. A result or a date is a number, whatever its tag.

    doc (Doc): The document, which is changed.
    """
    pairs = [(token.lower_, token.tag_) for token in doc]
    words, tags = [word for word, _ in pairs], [tag for _, tag in pairs]
    coarse = [_COARSE.get(tag, "X") for tag in tags]
    # The follower of a token is the nearest tag after it that is not an adverb's, and the leader the nearest before it.
    followers, follower = [""] * len(doc), ""
    for i in reversed(range(len(doc))):
        followers[i] = follower
        follower = follower if coarse[i] == "ADV" else tags[i]
    leader = ""
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if coarse[i] in ("ADJ", "NOUN", "PROPN", "VERB") and not _WORD.search(word) and word[:1] not in "'\u2019":
            coarse[i] = "NUM" if any(map(str.isdigit, word)) else "X"
        elif coarse[i] == "VERB":
            after = followers[i]
            if word in _BE or (word in _HAVE and after in ("VBN", "VBD")) or (word in _DO and after in ("VB", "VBP")):
                coarse[i] = "AUX"
            elif _COARSE.get(after) in ("ADJ", "NOUN", "PROPN") and (
                (tag in ("VBN", "VBG") and leader in ("DT", "PRP$", "POS", "CD", "JJ"))
                or (tag == "VBN" and leader == "IN")
            ):
                coarse[i] = "ADJ"
        leader = leader if coarse[i] == "ADV" else tag
    doc.from_array(["POS"], np.array([doc.vocab.strings.as_int(name) for name in coarse], dtype="uint64"))


@registry.misc("bert_ner.ConceptRules.v1")  # type: ignore[untyped-decorator,unused-ignore]
def create_concept_rules() -> list[dict[str, Any]]:
    """Make the rules for actors (names and nouns in a row), factors (adjectives) and mechanisms (verbs).

    RETURNS (list[dict[str, Any]]): Rules for spaCy's `span_ruler`, each with a label, a pattern and an id, which is the
        name of the rule.
    """
    degree = (
        "very too so quite rather extremely highly fairly pretty slightly increasingly particularly especially deeply "
        "relatively far much even more most less least"
    )
    number_or_order = (
        "many much several few fewer fewest more most less least other such same own last next previous following due "
        "first second third fourth fifth sixth seventh eighth ninth tenth able"
    )
    time_or_none = (
        "monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
        "september october november december percent one none nobody anyone someone everyone anybody somebody "
        "everybody anything something everything nothing"
    )
    adverb: dict[str, Any] = {"LOWER": {"IN": degree.split()}, "OP": "?"}
    noun: dict[str, Any] = {"POS": {"IN": ["NOUN", "PROPN"]}, "LOWER": {"NOT_IN": time_or_none.split()}, "OP": "{1,8}"}
    rules: list[tuple[str, str, list[dict[str, Any]]]] = [
        *(
            ("actor", "entity", [{"ENT_TYPE": label, "ENT_IOB": 3}, {"ENT_TYPE": label, "ENT_IOB": 1, "OP": "*"}])
            for label in ("PER", "PERSON", "LOC", "GPE", "ORG")  # of CoNLL-2003 and OntoNotes
        ),
        ("factor", "nationality", [{"ENT_TYPE": "MISC", "OP": "{0,2}"}, {"ENT_TYPE": "MISC", "TAG": "JJ"}]),
        *(("factor", "participle", [adverb, {"POS": "ADJ", "TAG": tag}]) for tag in ("VBN", "VBG")),
        ("factor", "adjective", [adverb, {"POS": "ADJ", "LOWER": {"NOT_IN": number_or_order.split()}}]),
        ("mechanism", "verb", [{"POS": "VERB"}, {"TAG": "RP", "OP": "?"}]),
        ("actor", "noun", [noun]),
    ]
    return [{"label": label, "id": rule, "pattern": pattern} for label, rule, pattern in rules]


def create_concept_ruler(nlp: Language, name: str) -> ConceptRuler:
    """Make a ConceptRuler. It gets its rules as the `patterns` of its initialisation.

    nlp (Language): The pipeline.
    name (str): The name of the component.
    RETURNS (ConceptRuler): The component.
    """
    return ConceptRuler(nlp, name)


class ConceptRuler(SpanRuler):
    """Finds actors, factors and mechanisms by rules over parts of speech and entities: `doc.spans["concepts"]`.

    It is spaCy's SpanRuler for spans that do not overlap: those of an earlier rule are kept before those of a later
    one, and of one rule the longest. `span.label_` is the kind of the concept and `span.id_` the rule. Where the span
    is an entity, `span._.entity` is the label of that and `span._.score` its score. `span._.negated` says whether
    `not`, `no` or the like belongs to the span, and `doc._.triples` relates the spans of a document. The component
    sets `token.pos_` for its rules. In a document without tags it finds only names.

    nlp (Language): The pipeline.
    name (str): The name of the component.
    """

    def __init__(self, nlp: Language, name: str) -> None:
        super().__init__(nlp, name, spans_key="concepts", spans_filter=self._without_overlaps, scorer=None)
        getters: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (Span, "entity", find_entity_label),
            (Span, "negated", is_negated),
            (Doc, "triples", find_triples),
        ]
        for owner, extension, getter in getters:
            if not owner.has_extension(extension):
                owner.set_extension(extension, getter=getter)
        if not Span.has_extension("score"):
            Span.set_extension("score", default=None)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        patterns: Any = (),  # SpanRuler wants a sequence, and the reader of JSONL gives none
    ) -> None:
        """Set the rules.

        get_examples (Callable[[], Iterable[Example]]): The examples, which are not used.
        nlp (Language | None): The pipeline, which is not used.
        patterns (Iterable[dict[str, Any]]): The rules, such as those of `create_concept_rules`.
        """
        super().initialize(get_examples, nlp=nlp, patterns=list(patterns))

    def set_annotations(self, doc: Doc, matches: list[Span]) -> None:
        """Set the concepts. One that is an entity gets the entity's score.

        doc (Doc): The document.
        matches (list[Span]): The spans that `match` gave for it.
        """
        super().set_annotations(doc, matches)  # type: ignore[no-untyped-call,unused-ignore]
        scores = {(ent.start, ent.end): ent._.score for ent in doc.ents}
        for span in doc.spans[self.key]:
            score = scores.get((span.start, span.end))
            if score is not None:
                span._.score = score

    # Private parts of other libraries
    #
    # spaCy's own `match` refuses documents without tags, since it does not pass `allow_missing` to its matcher. This
    # one does, and has to look up the rules in `_match_label_id_map`. It was checked with spaCy 3.8.18. Where the
    # attribute is gone, the first document raises an AttributeError that names it.

    def match(self, doc: Doc) -> list[Span]:
        """Find all spans that fit a rule, overlapping ones too. Without tags these are the spans of names.

        doc (Doc): The document, whose tokens get `token.pos_`.
        RETURNS (list[Span]): The spans, in order.
        """
        if doc.has_annotation("TAG"):
            set_coarse_tags(doc)
        rules = self._match_label_id_map
        # Without a pattern of tokens, as where all are phrases, spaCy's matcher would warn at each document.
        matches = [*(self.matcher(doc, allow_missing=True) if len(self.matcher) else ()), *self.phrase_matcher(doc)]
        spans = {
            Span(doc, start, end, label=rules[key]["label"], span_id=rules[key]["id"]) for key, start, end in matches
        }
        return sorted(spans)

    def _without_overlaps(self, _: Iterable[Span], spans: Iterable[Span]) -> list[Span]:
        order = {rule: place for place, rule in enumerate(dict.fromkeys(row.get("id", "") for row in self.patterns))}
        taken: set[int] = set()
        kept = []
        for span in sorted(spans, key=lambda span: (order[span.id_], span.start - span.end, span.start)):
            if taken.isdisjoint(range(span.start, span.end)):
                taken.update(range(span.start, span.end))
                kept.append(span)
        return sorted(kept)


if not Language.has_factory("bert_ner_concepts_v2"):
    Language.factory(
        "bert_ner_concepts_v2",
        assigns=["doc.spans", "token.pos", "doc._.triples", "span._.entity", "span._.negated"],
        requires=["token.tag", "token.ent_iob", "token.ent_type"],
        func=create_concept_ruler,
    )


def find_entity_label(span: Span) -> str:
    """Find the label of the entity that has exactly the tokens of a span. It is empty where there is none."""
    continued = [token.ent_iob_ == "I" for token in span.doc[span.start + 1 : span.end + 1]]
    exact = span[0].ent_iob_ == "B" and all(continued[: len(span) - 1]) and not any(continued[len(span) - 1 :])
    return str(span[0].ent_type_) if exact else ""


def is_negated(span: Span) -> bool:
    """Tell whether a negation stands before a span, with only adverbs, adjectives, auxiliaries or `to` between."""
    for token in _before(span):
        if token.lower_ in _NEGATIONS:
            return True
        if token.pos_ not in ("ADV", "ADJ", "AUX") and token.tag_ != "TO":
            return False
    return False


FARTHEST = 20  # tokens before a concept that are looked at: without a bound, lists of adjectives take quadratic time


def _before(span: Span) -> Iterator[Token]:
    """Yield the tokens of the sentence before a span from the last to the first, at most FARTHEST of them."""
    doc, i = span.doc, span.start
    while i > max(0, span.start - FARTHEST) and not doc[i].is_sent_start:
        i -= 1
        yield doc[i]


def find_triples(doc: Doc) -> list[tuple[Span | None, Span | None, Span | None]]:
    """Relate the concepts of a document by their positions. This is a heuristic, as the pipeline has no parser.

    Each sentence is cut at quotes, colons and dashes, and concepts are related within one part.

    The subject of a mechanism is the first actor since the mechanism before it that does not follow a preposition. An
    infinitive, a participle and a mechanism after a comma or `and` have the subject of the mechanism before them. A
    pronoun is no subject, and then there is none.

    The object of a mechanism is the next actor or factor before another mechanism. After a quotation (`," said the
    mayor`), that actor is the subject instead.

    A factor is related to the actor after it, without a mechanism, if only factors, adverbs, commas and `and` stand
    between them.

    doc (Doc): The document.
    RETURNS (list[tuple[Span | None, Span | None, Span | None]]): Triples of an actor, a mechanism, and an actor or a
        factor, in the order of the text. At least two of the three are there.
    """
    part = np.cumsum([bool(token.is_sent_start) or token.tag_ in (*_QUOTES, ":") for token in doc])
    triples: list[tuple[Span | None, Span | None, Span | None]] = []
    for _, group in itertools.groupby(doc.spans.get("concepts", []), key=lambda span: part[span.start]):
        concepts = list(group)
        described: dict[int, Span] = {}  # the actor that a factor describes, by the first token of the factor
        for factor, span in reversed(list(itertools.pairwise(concepts))):
            between = doc[factor.end : span.start]
            if factor.label_ == "factor" and all(
                token.pos_ in ("ADV", "CCONJ") or token.text == "," for token in between
            ):
                actor = described.get(span.start) if span.label_ == "factor" else span
                if actor is not None and actor.label_ == "actor":
                    described[factor.start] = actor
                    triples.append((actor, None, factor))
        # Of an actor right before another one, as in "Senator Kiplagat", only the second can be subject or object.
        titles = {
            a.start for a, b in itertools.pairwise(concepts) if a.label_ == b.label_ == "actor" and a.end == b.start
        }
        concepts = [span for span in concepts if span.start not in titles]
        places = [place for place, span in enumerate(concepts) if span.label_ == "mechanism"]
        subject: Span | None = None
        last = -1
        for place, following in itertools.pairwise([*places, len(concepts)]):
            actors = [span for span in concepts[last + 1 : place] if span.label_ == "actor" and _may_be_subject(span)]
            finite, before = _what_is_before(concepts[place])
            if before is not None and before.tag_ == "PRP":
                subject = None
            elif last < 0 or (actors and finite and not (before and (before.tag_ == "CC" or before.text == ","))):
                subject = actors[0] if actors else None
            after = concepts[place + 1 : following]
            target = described.get(after[0].start, after[0]) if after else None
            quoted = before is not None and before.tag_ in _QUOTES and before.whitespace_
            if quoted and target is not None and target.label_ == "actor":
                subject, target = target, None
            if subject is not None or target is not None:
                triples.append((subject, concepts[place], target))
            last = place
    return sorted(triples, key=lambda triple: min(span.start for span in triple if span is not None))


_QUOTES = ('"', "``", "''")


def _may_be_subject(actor: Span) -> bool:
    """Tell whether an actor follows no preposition, with only determiners, adjectives and the like between."""
    for token in _before(actor):
        if token.pos_ not in ("ADV", "ADJ", "DET", "NUM") and token.tag_ not in ("PRP$", "POS"):
            return token.pos_ != "ADP" and token.tag_ != "TO"
    return True


def _what_is_before(mechanism: Span) -> tuple[bool, Token | None]:
    """Tell whether a mechanism is finite, and find the token before it and its auxiliaries and adverbs."""
    finite = mechanism[0].tag_ in ("VBD", "VBZ", "VBP")
    for token in _before(mechanism):
        finite = finite or token.pos_ == "AUX"
        if token.pos_ not in ("ADV", "AUX"):
            return finite, token
    return finite, None
