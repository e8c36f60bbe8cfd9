"""Rotary embedding against hand-worked numbers and complex multiplication."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.config import Llama3RopeConfig, RopeConfig, YarnConfig
from r1jax.model.rope import apply_rope, mla_softmax_scale, rope_amplitude, rope_frequencies, rotation

V3 = RopeConfig(theta=10000.0, scaling=YarnConfig(), interleaved=True)


def test_plain_frequencies_are_powers_of_theta() -> None:
    np.testing.assert_allclose(rope_frequencies(8, RopeConfig(theta=10000.0)), [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_yarn_of_deepseek_v3_ramps_from_pair_10_to_pair_23() -> None:
    plain, scaled = rope_frequencies(64, RopeConfig(theta=10000.0)), rope_frequencies(64, V3)
    ratio = scaled / plain
    np.testing.assert_allclose(ratio[:11], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-6)
    np.testing.assert_allclose(ratio[15], 1 - (15 - 10) / 13 * (1 - 1 / 40), rtol=1e-6)


def test_softmax_scale_of_deepseek_v3() -> None:
    assert mla_softmax_scale(192, V3) == pytest.approx(0.1352338, abs=1e-7)
    assert mla_softmax_scale(192, RopeConfig()) == pytest.approx(0.0721688, abs=1e-7)


@pytest.mark.parametrize(
    ("mscale", "mscale_all_dim", "amplitude", "softmax_factor"),
    [
        (1.0, 1.0, 1.0, 1.368888**2),
        (0.707, 0.707, 1.0, 1.260804**2),
        (None, None, 1.368888, 1.0),  # 0.1 ln 40 + 1 on cos and sin
        (None, 1.0, 1.368888, 1.368888**2),
        (1.0, None, 1.368888, 1.0),
        (0.5, 1.0, 1.184444 / 1.368888, 1.368888**2),
    ],
)
def test_yarn_magnitudes_in_every_case_of_the_config(
    mscale: float | None, mscale_all_dim: float | None, amplitude: float, softmax_factor: float
) -> None:
    cfg = RopeConfig(scaling=YarnConfig(factor=40.0, mscale=mscale, mscale_all_dim=mscale_all_dim))
    assert rope_amplitude(cfg) == pytest.approx(amplitude, rel=1e-6)
    assert mla_softmax_scale(4, cfg) == pytest.approx(0.5 * softmax_factor, rel=1e-5)


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    cfg = RopeConfig(theta=500000.0, scaling=Llama3RopeConfig())
    plain, scaled = rope_frequencies(128, RopeConfig(theta=500000.0)), rope_frequencies(128, cfg)
    wavelengths = 2 * math.pi / plain
    seen = set()
    for f, g, wavelength in zip(plain, scaled, wavelengths, strict=True):
        if wavelength < 8192 / 4:
            kind, want = "kept", f
        elif wavelength > 8192:
            kind, want = "stretched", f / 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            kind, want = "blended", (1 - smooth) * f / 8 + smooth * f
        seen.add(kind)
        assert g == pytest.approx(want, rel=1e-5)
    assert seen == {"kept", "stretched", "blended"}


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_is_multiplication_by_a_complex_unit(interleaved: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = rng.integers(0, 50, size=(2, 5))
    cfg = RopeConfig(theta=100.0, interleaved=interleaved)
    pairs = x[..., 0::2] + 1j * x[..., 1::2] if interleaved else x[..., :4] + 1j * x[..., 4:]
    turned = pairs * np.exp(1j * positions[..., None] * 100.0 ** (-np.arange(4) / 4))[:, :, None]
    got = apply_rope(jnp.asarray(x), rotation(jnp.asarray(positions), 8, cfg), interleaved)
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=2e-5)


def test_amplitude_multiplies_the_rotated_vector() -> None:
    cfg = RopeConfig(scaling=YarnConfig(mscale=None, mscale_all_dim=None))
    x = jnp.ones((1, 1, 8))
    got = apply_rope(x, rotation(jnp.zeros((1, 1), jnp.int32), 8, cfg), interleaved=False)
    np.testing.assert_allclose(got, np.full((1, 1, 8), 1.368888), rtol=1e-6)


def test_shared_keys_without_a_head_axis_rotate_like_heads() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32))
    rot = rotation(jnp.arange(3)[None].repeat(2, 0), 8, RopeConfig())
    np.testing.assert_array_equal(apply_rope(x, rot, True), apply_rope(x[:, :, None], rot, True)[:, :, 0])
