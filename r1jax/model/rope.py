"""Rotary position embedding: plain, YaRN (V3 section 4.3) and Llama 3 frequency scaling."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax.model.config import Llama3RopeConfig, RopeConfig, YarnConfig
from r1jax.types import Array


@struct.dataclass
class Rotation:
    """Cosines and sines of every token's angles, already times the configured amplitude."""

    cos: Array  # [B, T, R/2] float32
    sin: Array  # [B, T, R/2] float32


def yarn_magnitude(factor: float, mscale: float) -> float:
    """0.1 * mscale * ln(factor) + 1, or 1 where nothing is stretched (YaRN, arXiv 2309.00071, eq. 22)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_frequencies(frequencies: np.ndarray, dim: int, theta: float, cfg: YarnConfig) -> np.ndarray:
    def turns_dim(turns: float) -> float:  # the (fractional) pair that makes this many turns in the original window
        return dim * math.log(cfg.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turns_dim(cfg.beta_fast)), 0)
    high = float(min(math.ceil(turns_dim(cfg.beta_slow)), dim - 1))
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return frequencies / cfg.factor * ramp + frequencies * (1.0 - ramp)


def _llama3_frequencies(frequencies: np.ndarray, cfg: Llama3RopeConfig) -> np.ndarray:
    windows = cfg.original_max_positions * frequencies / (2 * math.pi)  # original window in wavelengths
    smooth = (windows - cfg.low_freq_factor) / (cfg.high_freq_factor - cfg.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)  # 0: divide by the factor; 1: keep
    return frequencies * ((1.0 - smooth) / cfg.factor + smooth)


def rope_frequencies(dim: int, cfg: RopeConfig) -> np.ndarray:
    """Angle per position of each of the dim/2 pairs, [dim/2] float32."""
    frequencies = cfg.theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if isinstance(cfg.scaling, YarnConfig):
        frequencies = _yarn_frequencies(frequencies, dim, cfg.theta, cfg.scaling)
    elif isinstance(cfg.scaling, Llama3RopeConfig):
        frequencies = _llama3_frequencies(frequencies, cfg.scaling)
    return frequencies.astype(np.float32)


def rope_amplitude(cfg: RopeConfig) -> float:
    """Factor of cos and sin. 1 but for YaRN: the ratio of the two magnitudes if the config states both, else
    the magnitude of mscale 1 (the behaviour of the transformers library, which released checkpoints rely on)."""
    if not isinstance(cfg.scaling, YarnConfig):
        return 1.0
    factor, mscale, mscale_all_dim = cfg.scaling.factor, cfg.scaling.mscale, cfg.scaling.mscale_all_dim
    if mscale and mscale_all_dim:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim)
    return yarn_magnitude(factor, 1.0)


def mla_softmax_scale(qk_dim: int, cfg: RopeConfig) -> float:
    """qk_dim^-1/2, times m^2 with m = 0.1 mscale_all_dim ln(factor) + 1 under YaRN (released V3 inference code)."""
    scale = qk_dim**-0.5
    if isinstance(cfg.scaling, YarnConfig) and cfg.scaling.mscale_all_dim:
        scale *= yarn_magnitude(cfg.scaling.factor, cfg.scaling.mscale_all_dim) ** 2
    return scale


def rotation(positions: Array, dim: int, cfg: RopeConfig) -> Rotation:
    """The rotation of tokens at `positions` [B, T], for vectors with `dim` rotated channels."""
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(rope_frequencies(dim, cfg))
    amplitude = rope_amplitude(cfg)
    return Rotation(cos=jnp.cos(angles) * amplitude, sin=jnp.sin(angles) * amplitude)


def apply_rope(x: Array, rot: Rotation, interleaved: bool) -> Array:
    """Rotates the pairs of the last axis of x [B, T, ..., R].

    The pairs are (x0, x1), (x2, x3), ... if `interleaved`, else (x0, x_{R/2}), ... . The result is half-split in
    both cases: queries and keys come out in the same order, so their products do not depend on it.
    """
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        x1, x2 = pairs[..., 0], pairs[..., 1]
    else:
        x1, x2 = jnp.split(x, 2, axis=-1)
    middle = (1,) * (x.ndim - 3)
    cos = rot.cos.reshape(*rot.cos.shape[:2], *middle, -1)
    sin = rot.sin.reshape(*rot.sin.shape[:2], *middle, -1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
