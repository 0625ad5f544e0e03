from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import StepError
from common.settings import choose_rate, read_number


def test_a_training_that_goes_on_is_gentler() -> None:
    start = Path("start")
    assert choose_rate("auto", None) == "auto" and choose_rate("auto*2", None) == "auto*2"
    assert read_number("learn_rate", choose_rate("auto", start), 1e-4) == pytest.approx(3e-5)
    assert read_number("learn_rate", choose_rate("auto*2", start), 1e-4) == pytest.approx(6e-5)
    assert choose_rate("5e-5", start) == "5e-5", "a number is meant as it is"
    with pytest.raises(StepError, match="'automatic'"):
        read_number("learn_rate", choose_rate("automatic", start), 1e-4)
