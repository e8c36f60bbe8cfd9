"""Packed rows for a model that gives each sequence one number, read at its last token.

What is compared stands side by side: a unit is W sequences (2: a preferred and a rejected response to one prompt; 1: a
labelled one), and R rows of W lanes take units so that all sequences of a unit begin in the same column. A unit never
spreads over two rows, so any rows make a micro-batch. R rows, W lanes, T row length, N units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from r1jax.data.errors import DataError
from r1jax.data.packing import HostArray, plan_rows
from r1jax.types import Array

Unit = Sequence[Sequence[int]]  # the tokens of W sequences


@struct.dataclass
class ScoredRows:
    """Units in rows. What is known of a unit stands in the column where it begins."""

    tokens: Array  # [R, W, T] int32
    positions: Array  # [R, W, T] int32, from 0 in every sequence
    segment_ids: Array  # [R, W, T] int32, 1, 2, ... within a row; 0 is padding
    ends: Array  # [R, W, T] int32, where a unit begins: the column of each sequence's last token
    mask: Array  # [R, T] float32, 1 where a unit begins
    labels: Array  # [R, T] float32, where a unit begins: its label


def pack_units(units: Sequence[Unit], labels: Sequence[float], row_length: int, rows: int = 1) -> ScoredRows:
    """Places every unit, best fit first; a unit takes as many columns as its longest sequence.

    Args:
      units: [N][W] token ids; every sequence has at least one.
      labels: [N].
      row_length: T.
      rows: R is a multiple of this, the last rows may be empty.

    Raises:
      DataError: a sequence is empty or does not fit a row; the unit is named by its number.
    """
    lanes = {len(unit) for unit in units}
    if len(lanes) != 1 or len(labels) != len(units):
        raise ValueError(f"units of {sorted(lanes)} sequences, {len(units)} units and {len(labels)} labels")
    (width,) = lanes
    for index, unit in enumerate(units):
        if not all(len(sequence) for sequence in unit):
            raise DataError(f"unit {index} has an empty sequence")
    plan = plan_rows(np.array([max(map(len, unit)) for unit in units]), row_length, rows, "unit")
    shape = (plan.num_rows, width, row_length)
    tokens, positions, segments, ends = (_zeros(shape, np.int32) for _ in range(4))
    mask, values = (_zeros((plan.num_rows, row_length), np.float32) for _ in range(2))
    for index, unit in enumerate(units):
        row, start = plan.row[index], plan.offset[index]
        mask[row, start], values[row, start] = 1, labels[index]
        for lane, sequence in enumerate(unit):
            end = start + len(sequence)
            tokens[row, lane, start:end] = sequence
            positions[row, lane, start:end] = np.arange(len(sequence))
            segments[row, lane, start:end] = plan.segment[index]
            ends[row, lane, start] = end - 1
    return ScoredRows(tokens, positions, segments, ends, mask, values)


def _zeros(shape: tuple[int, ...], dtype: Any) -> HostArray:
    return np.zeros(shape, dtype)
