from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import spacy
import srsly
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import Doc

from bert_ner import concepts
from tests.bert_ner.conftest import nlp


def read_tagged(text: str) -> Doc:
    """A document from words with tags and IOB tags: Mira/NNP/B-PER left/VBD ./."""
    parts = [word.rsplit("/") for word in text.split()]
    ents = [part[2] if len(part) > 2 else "O" for part in parts]
    starts = [i == 0 or parts[i - 1][1] == "." for i in range(len(parts))]
    words_, tags = [part[0] for part in parts], [part[1] for part in parts]
    return Doc(nlp.vocab, words=words_, tags=tags, ents=ents, sent_starts=list(starts))


def find_concepts(doc: Doc) -> Doc:
    ruler = concepts.ConceptRuler(nlp, "concepts")
    ruler.add_patterns(concepts.create_concept_rules())
    return ruler(doc)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mira/NNP/B-PER left/VBD Turku/NNP/B-LOC", "Mira=actor left=mechanism Turku=actor"),
        ("the/DT old/JJ ice/NN hockey/NN club/NN", "old=factor ice+hockey+club=actor"),
        ("the/DT firm/NN Lahti/NNP/B-ORG", "firm=actor Lahti=actor"),
        ("she/PRP had/VBD not/RB been/VBN seen/VBN", "seen=mechanism"),
        ("they/PRP had/VBD two/CD boats/NNS", "had=mechanism boats=actor"),
        ("he/PRP does/VBZ n't/RB do/VB it/PRP", "do=mechanism"),
        ("it/PRP will/MD be/VB cold/JJ", "cold=factor"),
        ("the/DT broken/VBN mast/NN fell/VBD down/RP", "broken=factor mast=actor fell+down=mechanism"),
        (
            "goals/NNS scored/VBN by/IN rapidly/RB growing/VBG clubs/NNS",
            "goals=actor scored=mechanism growing=mechanism clubs=actor",
        ),
        ("a/DT rapidly/RB growing/VBG club/NN", "growing=factor club=actor"),
        ("a/DT more/RBR careful/JJ plan/NN", "more+careful=factor plan=actor"),
        ("the/DT first/JJ two/CD days/NNS of/IN May/NNP", "days=actor"),
        ("a/DT South/NNP/B-MISC African/JJ/I-MISC sailor/NN", "South+African=factor sailor=actor"),
        ("won/VBD 6-4/JJ 7-6/NN on/IN Monday/NNP", "won=mechanism"),
        ("somebody/NN 's/POS 20/CD percent/NN", ""),
        ("I/PRP 've/VBP a/DT boat/NN", "'ve=mechanism boat=actor"),
    ],
)
def test_concepts_are_found_by_tags_and_entities(text: str, expected: str) -> None:
    doc = find_concepts(read_tagged(text))
    assert {f"{'+'.join(t.text for t in span)}={span.label_}" for span in doc.spans["concepts"]} == set(
        expected.split()
    )


def test_concepts_have_their_rule_and_the_entity_and_its_score() -> None:
    ruler = concepts.ConceptRuler(nlp, "concepts")  # it adds `span._.score` where there is no recogniser
    ruler.add_patterns(concepts.create_concept_rules())
    doc = read_tagged("Mira/NNP/B-PER met/VBD the/DT crew/NN")
    doc.ents[0]._.score = 0.75
    actor, mechanism, noun = ruler(doc).spans["concepts"]
    assert (actor.id_, actor._.entity, actor._.score) == ("entity", "PER", 0.75)
    assert (mechanism.id_, mechanism._.entity, mechanism._.score) == ("verb", "", None)
    assert (noun.id_, noun._.entity) == ("noun", "")
    assert [token.pos_ for token in doc] == ["PROPN", "VERB", "DET", "NOUN"]


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("she/PRP did/VBD not/RB really/RB leave/VB", {"leave"}),
        ("it/PRP is/VBZ n't/RB cold/JJ but/CC warm/JJ", {"cold"}),
        ("no/DT small/JJ boat/NN came/VBD", {"small", "boat"}),
        ("never/RB ./. they/PRP came/VBD", set()),
    ],
)
def test_negation_is_kept(text: str, negated: set[str]) -> None:
    doc = find_concepts(read_tagged(text))
    assert {span.text for span in doc.spans["concepts"] if span._.negated} == negated


@pytest.mark.parametrize(
    ("text", "triples"),
    [
        ("Mira/NNP/B-PER left/VBD Turku/NNP/B-LOC", ["Mira left Turku"]),
        ("Mira/NNP/B-PER from/IN Oslo/NNP/B-LOC met/VBD old/JJ friends/NNS", ["Mira met friends", "friends - old"]),
        ("Mira/NNP/B-PER came/VBD and/CC saw/VBD ./. She/PRP won/VBD it/PRP", ["Mira came -", "Mira saw -"]),
        ("Senator/NNP Mira/NNP/B-PER wants/VBZ to/TO help/VB Oslo/NNP/B-LOC", ["Mira wants -", "Mira help Oslo"]),
        ('Yes/UH ,/, "/" said/VBD the/DT mayor/NN', ["mayor said -"]),
        ("OSLO/NNP/B-LOC -/: Nurses/NNS struck/VBD", ["Nurses struck -"]),
        ("cold/JJ and/CC wet/JJ days/NNS", ["days - cold", "days - wet"]),
        ("days/NNS without/IN rain/NN", []),
    ],
)
def test_triples_relate_concepts_by_position(text: str, triples: list[str]) -> None:
    doc = find_concepts(read_tagged(text))
    assert [" ".join(span.text if span else "-" for span in triple) for triple in doc._.triples] == triples


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["be", "had", "not", "no", "one", "6-4", "a", "more", "Oslo", "very", "two"]),
            st.sampled_from([*concepts._COARSE, ""]),
            st.sampled_from(["O", "B-PER", "I-PER", "B-MISC", "I-MISC"]),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_concepts_never_overlap_and_leave_the_entities_alone(rows: list[tuple[str, str, str, bool]]) -> None:
    words_, tags, ents, starts = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    for i, ent in enumerate(ents):
        if ent[0] == "I" and (i == 0 or starts[i] or ents[i - 1][2:] != ent[2:]):
            ents[i] = "O"
    doc = Doc(nlp.vocab, words=words_, tags=tags, ents=ents, sent_starts=starts)
    before = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    find_concepts(doc)
    spans = list(doc.spans["concepts"])
    assert before == [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    named = {(span.start, span.end) for span in spans if span._.entity}
    assert {(start, end) for start, end, label in before if label == "PER"} <= named
    for triple in doc._.triples:
        present = [span for span in triple if span is not None]
        assert len(present) >= 2 and all(span in spans for span in present)
        assert len({span.sent.start for span in present}) == 1


def test_rules_may_all_be_phrases() -> None:
    """spaCy's matcher of tokens then has none, and would warn at each document."""
    ruler = concepts.ConceptRuler(nlp, "concepts")
    ruler.add_patterns([{"label": "actor", "pattern": "Oslo Bay"}])
    doc = ruler(nlp.make_doc("to Oslo Bay"))
    assert [span.text for span in doc.spans["concepts"]] == ["Oslo Bay"]


def test_without_tags_there_are_only_names() -> None:
    doc = find_concepts(Doc(nlp.vocab, words=["Mira", "left", "old", "Turku"], ents=["B-PER", "O", "O", "B-LOC"]))
    assert [span.text for span in doc.spans["concepts"]] == ["Mira", "Turku"]
    assert not doc.has_annotation("POS") and doc._.triples == []


def test_rules_can_be_replaced_and_an_earlier_one_comes_first(tmp_path: Path) -> None:
    rules = [
        {"label": "factor", "id": "first", "pattern": [{"LOWER": "old"}, {"LOWER": "town"}]},
        {"label": "actor", "id": "second", "pattern": [{"TAG": "NN", "OP": "+"}]},
    ]
    srsly.write_jsonl(tmp_path / "rules.jsonl", rules)
    pipe = spacy.blank("en")
    ruler = pipe.add_pipe("bert_ner_concepts_v2", name="concepts")
    pipe.config["initialize"]["components"]["concepts"] = {
        "patterns": {"@readers": "srsly.read_jsonl.v1", "path": str(tmp_path / "rules.jsonl")}
    }
    pipe.initialize()
    doc = ruler(Doc(pipe.vocab, words=["old", "town", "hall"], tags=["NN", "NN", "NN"]))
    assert [(span.text, span.id_) for span in doc.spans["concepts"]] == [("old town", "first"), ("hall", "second")]
    pipe.to_disk(tmp_path / "pipe")
    assert spacy.load(tmp_path / "pipe").get_pipe("concepts").patterns == rules  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ids", "found"), [(["one", "two"], "Oslo"), (["one", "one"], "Oslo Bay"), ([], "Oslo Bay")])
def test_patterns_with_one_id_or_none_are_one_rule(ids: list[str], found: str) -> None:
    """Of several rules the first one wins, of one rule the longest match."""
    oslo, bay = {"LOWER": "oslo"}, {"LOWER": "bay"}
    rules: list[dict[str, Any]] = [{"label": "first", "pattern": [oslo]}, {"label": "second", "pattern": [oslo, bay]}]
    ruler = concepts.ConceptRuler(nlp, "concepts")
    ruler.add_patterns([rule | {"id": name} for rule, name in zip(rules, ids, strict=True)] if ids else rules)
    doc = ruler(nlp.make_doc("to Oslo Bay"))
    assert [span.text for span in doc.spans["concepts"]] == [found]
