from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.service import service
from common.errors import StepError
from common.records import read_json, record_inputs
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_service_is_measured_under_load(ruled: Path, tmp_path: Path) -> None:
    model = ruled / "packages/ruled/assembled"
    service(model, tmp_path / "run", clients=4, seconds=2)
    record = read_json(tmp_path / "run/service.json")
    assert set(record["statuses"]) <= {"200", "429"}
    assert record["answers_per_second"] == record["statuses"]["200"] / 2
    assert 0 < record["seconds_p50"] <= record["seconds_p95"] and record["rss_mb"]["after"] > 10
    inputs = record_inputs(model=model, service=ROOT / "app/service.py")
    assert inputs.items() <= record["inputs"].items() and record["inputs"]["code"]


@pytest.mark.slow
def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.cfg").write_text("[nlp]")
    with pytest.raises(StepError, match="does not start") as error:
        service(tmp_path, tmp_path / "run", clients=1, seconds=0.1)
    assert error.value.remedy
