"""FP8 blocks: dequantization by the definition, and what quantizing may cost."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from r1jax.weights.fp8 import E4M3, dequantize, is_power_of_two, quantize, scale_shape

SHAPES = [(128, 128), (256, 384), (576, 200), (1, 1), (127, 129), (300, 5)]


def finite_e4m3(shape: tuple[int, int], seed: int) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    bits[(bits & 0x7F) == 0x7F] = 0x7E  # the two NaNs become the largest number
    return bits.view(E4M3)


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantization_is_bit_equal_to_the_definition(shape: tuple[int, int]) -> None:
    stored = finite_e4m3(shape, 1)
    scales = np.random.default_rng(2).uniform(1e-5, 3.0, scale_shape(shape)).astype(np.float32)
    expected = np.empty(shape, np.float32)
    for i in range(shape[0]):
        for j in range(shape[1]):
            expected[i, j] = np.float32(stored[i, j]) * scales[i // 128, j // 128]
    np.testing.assert_array_equal(dequantize(stored, scales), expected)


def test_e4m3_by_hand() -> None:
    # s eeee mmm: 0x38 = 2^(7-7) = 1; 0x7E = 1.75 * 2^8 = 448; 0x01 = 2^-9; 0xC4 = -(1 + 4/8) * 2^(8-7) = -3.
    stored = np.array([[0x38, 0x7E, 0x01, 0xC4]], np.uint8).view(E4M3)
    values = dequantize(stored, np.array([[0.5]], np.float32))
    np.testing.assert_array_equal(values, [[0.5, 224.0, 2.0**-10, -1.5]])


def test_scales_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scales of shape \[4, 2\], expected \[5, 2\]"):
        dequantize(finite_e4m3((576, 200), 0), np.ones((4, 2), np.float32))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantization_stays_within_the_bound_of_the_format(shape: tuple[int, int], power_of_two: bool) -> None:
    rng = np.random.default_rng(3)
    values = (rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3, shape)).astype(np.float32)
    stored, scales = quantize(values, power_of_two=power_of_two)
    assert stored.shape == shape
    assert scales.shape == scale_shape(shape)
    by_value = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: shape[0], : shape[1]]
    bound = np.maximum(np.abs(values) * 2.0**-4, by_value * 2.0**-10) * (1 + 1e-6)
    assert np.all(np.abs(dequantize(stored, scales) - values) <= bound)
    assert is_power_of_two(scales) or not power_of_two


def test_the_largest_value_of_a_block_becomes_448_and_what_was_fp8_stays_so() -> None:
    stored = finite_e4m3((256, 256), 4)
    stored[0, 0] = stored[200, 0] = stored[0, 200] = stored[200, 200] = 448.0
    scales = np.array([[0.25, 2.0], [8.0, 0.5]], np.float32)
    again, found = quantize(dequantize(stored, scales))
    np.testing.assert_array_equal(found, scales)
    np.testing.assert_array_equal(again.astype(np.float32), stored.astype(np.float32))


def test_a_block_of_zeros_and_tiny_values_stay_finite() -> None:
    values = np.zeros((256, 128), np.float32)
    values[130, 3] = 1e-44  # subnormal
    stored, scales = quantize(values)
    assert scales[0, 0] == 1.0
    assert np.all(np.isfinite(dequantize(stored, scales)))


def test_a_power_of_two_scale_is_rounded_up_and_kept_where_it_is_one() -> None:
    values = np.zeros((128, 256), np.float32)
    values[0, 0], values[0, 128] = 448.0, 449.0
    _, scales = quantize(values, power_of_two=True)
    np.testing.assert_array_equal(scales, [[1.0, 2.0]])


def test_e8m0_scales_are_read_as_numbers() -> None:
    scales = np.array([[0.5]], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    assert is_power_of_two(scales)
    np.testing.assert_array_equal(dequantize(np.ones((1, 1), E4M3), scales), [[0.5]])
