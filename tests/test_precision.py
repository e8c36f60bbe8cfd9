"""bfloat16 against float32 of the same parameters: logits, and the gap between sampler and trainer."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from tools.compare_precision import compare

STEP = 2.0**-7  # of bfloat16, relative


@pytest.mark.parametrize("preset", ["tiny_dense", "tiny_mla_moe"])
def test_bfloat16_stays_within_the_stated_bounds_of_float32(preset: str) -> None:
    model = get_preset(preset, init_std=0.1)
    params = init_params(model, jax.random.key(0))
    prompts = [list(row) for row in np.random.default_rng(0).integers(1, 512, (8, 12))]
    found = compare(model, params, prompts, new_tokens=24)
    single, half = found["float32"], found["bfloat16"]
    print(preset, found)
    assert single["logits_max"] == 0.0  # the same program on the same numbers
    assert single["gap_max"] < 1e-4
    # README states these: the mean error of a logit is below one step of bfloat16 at the largest logit, that of the
    # sampler's log-probs below 0.05 nats. Single tokens may be far off where an expert is chosen otherwise.
    assert 0 < half["logits_mean"] < STEP * half["largest_logit"]
    assert 0 < half["gap_mean"] < 0.05
    assert half["gap_max"] < 1.0
    assert half["same_best_token"] > 0.9
    if model.num_moe_layers:
        assert single["other_experts"] == 0.0
        assert half["other_experts"] < 0.1
