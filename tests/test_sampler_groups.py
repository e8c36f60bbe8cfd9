"""One pass over a prompt serves all rows of its group."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize(("preset", "chunk"), [("tiny_mla_moe", 10), ("tiny_dense", 6)])
def test_a_group_draws_what_its_rows_draw_each_with_a_prompt_of_its_own(preset: str, chunk: int):
    cfg = get_preset(preset, vocab_size=40)
    params = init_params(cfg, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 40, n).tolist() for n in (2, 5, 6)]
    tokens, lengths = left_pad([p for p in prompts for _ in range(4)], 6)
    keys = jax.random.split(jax.random.key(1), 12)
    sampling = SamplingConfig(max_new_tokens=10, stop_tokens=(1,), chunk=chunk)
    single = Sampler(cfg, None, sampling, 6, 8).sample(params, tokens, lengths, keys)
    grouped = Sampler(cfg, None, sampling, 6, 8, group_size=4).sample(params, tokens, lengths, keys)
    np.testing.assert_array_equal(grouped.response_tokens, single.response_tokens)
    np.testing.assert_allclose(grouped.sampler_logprobs, single.sampler_logprobs, atol=1e-5)


def test_a_group_may_be_spread_over_devices():
    cfg = get_preset("tiny_dense", vocab_size=40, num_dense_layers=1)
    params = init_params(cfg, jax.random.key(0))
    tokens, lengths = left_pad([p for p in ([5, 6, 7], [8], [9, 3]) for _ in range(8)], 3)
    keys = jax.random.split(jax.random.key(1), 24)
    sampling = SamplingConfig(max_new_tokens=6, stop_tokens=(1,), chunk=6)
    single = Sampler(cfg, None, sampling, 3, 8).sample(params, tokens, lengths, keys)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    sampler = Sampler(cfg, mesh, sampling, 3, 16, group_size=8)
    assert sampler.abstract.together == 2
    spread = sampler.sample(init_params(cfg, jax.random.key(0), mesh), tokens, lengths, keys)
    np.testing.assert_array_equal(spread.response_tokens, single.response_tokens)
    np.testing.assert_allclose(spread.sampler_logprobs, single.sampler_logprobs, atol=1e-5)


def test_rows_that_are_no_groups_are_refused():
    cfg = get_preset("tiny_dense", vocab_size=40)
    sampler = Sampler(cfg, None, SamplingConfig(max_new_tokens=2), 3, 4, group_size=2)
    tokens, lengths = left_pad([[5, 6], [5, 7]], 3)
    with pytest.raises(ValueError, match="not groups of 2 with one prompt each"):
        sampler.sample({}, tokens, lengths, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="batch_size 5 is not a multiple of 1 parts of the mesh and group_size 2"):
        Sampler(cfg, None, SamplingConfig(max_new_tokens=2), 3, 5, group_size=2)
