from __future__ import annotations

import pytest
from pydantic import ValidationError

from common.annotations import Span


@pytest.mark.parametrize("fields", [{"start": 3, "end": 3}, {"start": -1, "end": 3}, {"label": ""}, {"score": 1.5}])
def test_a_span_without_characters_or_label_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Span.model_validate({"start": 0, "end": 1, "label": "PER", **fields})
