from __future__ import annotations

import numpy as np
import pytest
from thinc.api import Adam

from bert_ner import optimizer


@pytest.mark.parametrize("size", [(50, 40), (7,), (0, 3)])
def test_the_optimizer_does_what_thinc_does(size: tuple[int, ...]) -> None:
    settings_ = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "grad_clip": 1.0}
    theirs = Adam(1e-3, L2=0.01, L2_is_weight_decay=True, use_averages=False, **settings_)
    ours = optimizer.create_optimizer(1e-4, head_lr_multiplier=10.0, weight_decay=0.01, **settings_)
    encoders = optimizer.create_optimizer(1e-3, head_lr_multiplier=10.0, weight_decay=0.01, **settings_)
    random = np.random.default_rng(0)
    start = random.normal(size=size).astype("float32")
    here, there, inside = start.copy(), start.copy(), start.copy()
    for step in range(20):
        slope = (random.normal(size=size) * 10.0 ** -(step % 4)).astype("float32")
        there, _ = theirs((1, "W"), there, slope.copy())
        inside, _ = encoders((1, "encoder.layer.0.weight"), inside, slope.copy())
        here, cleared = ours((1, "W"), here, slope)
        assert not cleared.any()
    np.testing.assert_array_equal(here, inside)
    np.testing.assert_allclose(here - start, there - start, rtol=0.02, atol=1e-5)
