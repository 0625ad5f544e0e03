from __future__ import annotations

from common.formatting import highlight


def test_highlighting_escapes_texts_and_labels() -> None:
    assert "<mark" in highlight("Mira left", [{"start": 0, "end": 4, "label": "PER"}])
    spans = [{"start": 5, "end": 9, "label": "LOC"}, {"start": 0, "end": 4, "label": "PER"}]
    assert highlight("Mira Oslo", spans) == highlight("Mira Oslo", spans[::-1]), "in any order"
    assert highlight("a < b", []) == '<div class="entities">a &lt; b</div>'
    marked = highlight("<img src=x onerror=alert(1)> Mira", [{"start": 0, "end": 4, "label": "<script>"}])
    assert "<script>" not in marked and "<img" not in marked
