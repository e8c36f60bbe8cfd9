"""FP8 E4M3 matrices with one scale for every 128 x 128 block, as DeepSeek-V3 and R1 are published.

`weight_scale_inv` [ceil(out / 128), ceil(in / 128)] multiplies, despite its name: W = fp8 * scale (V3 section 3.3.2,
README_WEIGHTS). Blocks at the edges of a matrix whose sides are no multiples of 128 are simply smaller.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

BLOCK = 128
SCALE_SUFFIX = "_scale_inv"
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX = 448.0
_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)  # of every bit pattern


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a matrix [out, in]."""
    return tuple(-(-size // BLOCK) for size in shape)


def dequantize(stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[out, in] E4M3 and [ceil(out / 128), ceil(in / 128)] scales -> float32 [out, in], each value times its scale.

    Raises:
      ValueError: the scales have another shape.
    """
    if scales.shape != scale_shape(stored.shape):
        raise ValueError(f"scales of shape {list(scales.shape)}, expected {list(scale_shape(stored.shape))}")
    values = _VALUES[stored.view(np.uint8)]
    by_column = np.repeat(scales.astype(np.float32), BLOCK, axis=1)[:, : stored.shape[1]]
    for row, scale in enumerate(by_column):
        values[row * BLOCK : (row + 1) * BLOCK] *= scale
    return values


def quantize(values: np.ndarray, *, power_of_two: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """float32 [out, in] -> E4M3 [out, in] and float32 scales, so that the largest value of a block becomes 448.

    An error is at most 2^-4 of the value, or 2^-10 of the scale where that is more (half a step of E4M3's normal and
    subnormal numbers). A block of zeros gets scale 1.

    Args:
      values: finite.
      power_of_two: round scales up to a power of two (`scale_fmt: ue8m0`, DeepSeek-V3.1).
    """
    values = np.asarray(values, np.float32)
    rows, columns = values.shape
    starts = [np.arange(0, size, BLOCK) for size in (rows, columns)]
    largest = np.maximum.reduceat(np.maximum.reduceat(np.abs(values), starts[0], axis=0), starts[1], axis=1)
    # Not below the smallest normal number: a subnormal scale would not divide without loss.
    scales = np.where(largest > 0, np.maximum(largest / np.float32(E4M3_MAX), np.finfo(np.float32).tiny), 1.0)
    scales = scales.astype(np.float32)
    if power_of_two:
        mantissa, exponent = np.frexp(scales)
        scales = np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)
    by_column = np.repeat(scales, BLOCK, axis=1)[:, :columns]
    stored = np.empty(values.shape, E4M3)
    for row, scale in enumerate(by_column):
        part = slice(row * BLOCK, (row + 1) * BLOCK)
        # E4M3 has no infinity: what rounding pushes above 448 by a last bit would become NaN.
        stored[part] = np.clip(values[part] / scale, -E4M3_MAX, E4M3_MAX).astype(E4M3)
    return stored, scales


def is_power_of_two(scales: np.ndarray) -> bool:
    """Whether every scale is one that ue8m0 (an exponent and nothing else) can hold."""
    mantissa, _ = np.frexp(scales.astype(np.float32))
    return bool(np.all(mantissa == 0.5))
