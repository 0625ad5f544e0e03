from __future__ import annotations

from typing import Any

from common.formatting import describe_search, highlight


def test_highlighting_escapes_texts_and_labels() -> None:
    assert "<mark" in highlight("Mira left", [{"start": 0, "end": 4, "label": "PER"}])
    spans = [{"start": 5, "end": 9, "label": "LOC"}, {"start": 0, "end": 4, "label": "PER"}]
    assert highlight("Mira Oslo", spans) == highlight("Mira Oslo", spans[::-1]), "in any order"
    assert highlight("a < b", []) == '<div class="entities">a &lt; b</div>'
    marked = highlight("<img src=x onerror=alert(1)> Mira", [{"start": 0, "end": 4, "label": "<script>"}])
    assert "<script>" not in marked and "<img" not in marked


def test_a_search_says_whether_the_default_was_beaten() -> None:
    trials = [{"ents_f": 0.8}, {"ents_f": 0.85}]
    search: dict[str, Any] = {"trials": trials, "counts": {"finished": 2}, "default": 0, "best": 1, "confirmed": None}
    assert "The best is trial 1 with F1 85.0 on dev; the default has 80.0." in describe_search(search)
    assert "may be noise" in describe_search(search)
    assert "not beaten: with F1 85.0" in describe_search(search | {"default": 1})
    assert "nothing can be compared" in describe_search(search | {"default": None})
    confirmed = {"seeds": 3, "default": [0.8] * 3, "best": [0.81] * 3, "difference": 0.01, "interval": [-0.01, 0.03]}
    told = describe_search(search | {"confirmed": confirmed})
    assert "difference of +1.0 points (95% interval -1.0 to +3.0)" in told and "were not beaten" in told
    sure = describe_search(search | {"confirmed": confirmed | {"interval": [0.002, 0.018]}})
    assert "more than the noise of seeds" in sure and "not beaten" not in sure
