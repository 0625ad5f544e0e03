from __future__ import annotations

from pathlib import Path

import pytest

from scripts.clean import clean
from scripts.steps import StepError


def test_clean_removes_what_is_named_and_nothing_of_the_project(tmp_path: Path) -> None:
    for name in ("assets/sample", "assets/mine", "corpus/mine", "corpus/other"):
        (tmp_path / name).mkdir(parents=True)
    clean(
        [tmp_path / "assets/mine", tmp_path / "corpus/mine", tmp_path / "metrics/mine"], keep=tmp_path / "assets/sample"
    )
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")) == [
        "assets/sample",
        "corpus/other",
    ]
    for folder in ("assets/sample", "assets", "assets/mine/../sample"):
        with pytest.raises(StepError, match="belongs to the project"):
            clean([tmp_path / "corpus/other", tmp_path / folder], keep=tmp_path / "assets/sample")
    assert (tmp_path / "corpus/other").exists()
