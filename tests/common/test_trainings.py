from __future__ import annotations

from pathlib import Path

from common.trainings import read_evaluations


def test_a_line_that_is_not_whole_yet_is_not_read(tmp_path: Path) -> None:
    curves = tmp_path / "curves.jsonl"
    assert read_evaluations(curves, 40) == []
    curves.write_text('{"step": 0, "dev": {"ents_f": 0.1}}\n{"step": 5, "dev": {"ents_f": 0.5}}\n{"step": 10, "dev"')
    assert read_evaluations(curves, 40) == [(12, 0.5)]
