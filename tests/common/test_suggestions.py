from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from common.annotations import Span
from common.errors import StepError
from common.records import digest, write_json
from common.suggestions import Found, drop_overlaps, find_by_patterns, find_by_pipeline, parse_labels, rename


def write_patterns(path: Path, *patterns: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(pattern) + "\n" for pattern in patterns), "utf8")
    return path


TURKU = {"label": "WORK OF ART", "pattern": "Turku"}
MIRA = {"label": "PER", "pattern": [{"LOWER": "mira"}, {"IS_TITLE": True, "OP": "?"}], "id": "mira"}


def test_patterns_find_the_longest_spans_by_characters(tmp_path: Path) -> None:
    source, find = find_by_patterns(write_patterns(tmp_path / "terms.jsonl", TURKU, MIRA))
    assert source == "terms"
    texts = ["\N{SHIP} MIRA Solberg left Turku.", "Nobody.", ""]
    assert list(find(texts)) == [
        Found(
            [
                Span(start=2, end=14, label="PER", source="terms"),
                Span(start=20, end=25, label="WORK OF ART", source="terms"),
            ]
        ),
        Found([]),
        Found([]),
    ]


def test_two_hundred_labels_are_no_trouble(tmp_path: Path) -> None:
    patterns = [{"label": f"KIND {n}", "pattern": f"thing{n}"} for n in range(200)]
    _, find = find_by_patterns(write_patterns(tmp_path / "terms.jsonl", *patterns))
    ((spans, _),) = find([" ".join(f"thing{n}" for n in range(200))])
    assert [span.label for span in spans] == [f"KIND {n}" for n in range(200)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: this is not JSON"),
        ('"Turku"', "line 2: this is no pattern"),
        ('{"label": "LOC"}', "line 2: this is no pattern"),
        ('{"label": " ", "pattern": "Turku"}', "line 2: this is no pattern"),
        ('{"label": "LOC", "pattern": []}', "line 2: this is no pattern"),
        ('{"label": "LOC", "pattern": [{"LOVER": "turku"}]}', "line 2: this is no pattern of spaCy's"),
    ],
)
def test_a_line_that_is_no_pattern_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "terms.jsonl"
    path.write_text(f"{json.dumps(TURKU)}\n{line}\n")
    with pytest.raises(StepError, match=said):
        find_by_patterns(path)


def test_a_file_without_patterns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="has no patterns"):
        find_by_patterns(write_patterns(tmp_path / "terms.jsonl"))


def test_a_pipeline_is_the_source_with_its_version(tmp_path: Path) -> None:
    nlp = spacy.blank("en", meta={"name": "demo", "version": "1.2.3"})
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "LOC", "pattern": "Turku"}])
    nlp.to_disk(tmp_path / "pipeline")
    source, find = find_by_pipeline(str(tmp_path / "pipeline"))
    assert source == "en_demo-1.2.3"
    assert list(find(["In Turku."])) == [Found([Span(start=3, end=8, label="LOC", source=source)])]
    write_json(tmp_path / "pipeline/provenance.json", {"inputs": {"seed": 0}})
    assert find_by_pipeline(str(tmp_path / "pipeline"))[0] == f"en_demo-{digest({'seed': 0})}"


def test_what_is_no_pipeline_is_named(tmp_path: Path) -> None:
    for name in (str(tmp_path), "en_no_such_pipeline", "stanza:xx"):
        with pytest.raises(StepError, match="loaded") as error:
            find_by_pipeline(name)
        assert error.value.remedy


def test_stanza_is_asked_for_names_and_never_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        asked.extend([args, options])
        return lambda text: SimpleNamespace(ents=[SimpleNamespace(start_char=3, end_char=8, type="GPE")])

    monkeypatch.setitem(sys.modules, "stanza", SimpleNamespace(Pipeline=make, __version__="1.9"))
    source, find = find_by_pipeline("stanza:fi")
    assert source == "stanza_fi-1.9"
    assert list(find(["In Turku."])) == [Found([Span(start=3, end=8, label="GPE", source=source)])]
    assert asked[0] == ("fi",) and asked[1]["download_method"] is None


# Labels and overlaps


def test_labels_are_filtered_and_renamed() -> None:
    spans = [Span(start=n, end=n + 1, label=label) for n, label in enumerate(["PERSON", "WORK OF ART", "GPE", "PER"])]
    wanted = parse_labels(" PERSON=PER, WORK OF ART ,")
    assert [(span.start, span.label) for span in rename(spans, wanted)] == [(0, "PER"), (1, "WORK OF ART"), (3, "PER")]
    assert rename(spans, parse_labels("")) == spans
    for names in ("=PER", "PERSON=", "ORG,="):
        with pytest.raises(StepError, match="names no label"):
            parse_labels(names)


spans = st.tuples(st.integers(0, 20), st.integers(1, 5)).map(lambda p: Span(start=p[0], end=p[0] + p[1], label="A"))


@given(st.lists(spans), st.lists(spans))
def test_of_what_overlaps_the_first_stays(first: list[Span], second: list[Span]) -> None:
    kept = drop_overlaps(second, first)
    for span in second:
        shares = any(span.start < other.end and other.start < span.end for other in first)
        assert (span in kept) == (not shares)
