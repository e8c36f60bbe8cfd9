"""What held-out data say about a reward model: the figures of its summary, and its two plots."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from r1jax.evaluation.plots import png
from r1jax.evaluation.preference_figures import (
    Calibration,
    Floats,
    area_under_curve,
    calibrate,
    calibrate_pairs,
    calibration_figure,
    clustered_mean,
    credit,
    length_bias,
    length_figure,
    length_preference,
    plain,
    plain_calibration,
    sigmoid,
)
from r1jax.processes import by_writer
from r1jax.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Rewards of held-out data. N units of W responses: pairs (2, the preferred one first) or labelled ones (1)."""

    rewards: Floats  # [N, W], not scaled
    lengths: np.ndarray  # [N, W] tokens of what the model saw of each response
    safe: np.ndarray  # [N] bool, the label; in pairs of no use
    prompts: list[str]  # [N] what tells prompts apart

    @property
    def pairs(self) -> bool:
        """Whether these are pairs."""
        return self.rewards.shape[1] == 2


def split_empty(held: HeldOut) -> tuple[HeldOut, HeldOut]:
    """The units of which something is seen of every response, and the others: a pair against the empty response is
    easy, and says nothing about length."""
    empty = (held.lengths == 0).any(axis=1)

    def part(mask: np.ndarray) -> HeldOut:
        prompts = [prompt for prompt, kept in zip(held.prompts, mask.tolist(), strict=True) if kept]
        return HeldOut(held.rewards[mask], held.lengths[mask], held.safe[mask], prompts)

    return part(~empty), part(empty)


def calibration_of(held: HeldOut) -> Calibration:
    """P(preferred by the judge) of the response that the model prefers, or P(safe), against what is so."""
    if held.pairs:
        return calibrate_pairs(held.rewards[:, 0] - held.rewards[:, 1], held.prompts)
    return calibrate(sigmoid(held.rewards[:, 0]), held.safe, held.prompts)


def _ahead(held: HeldOut) -> Floats:
    """[N] how far each reward is on the right side."""
    if held.pairs:
        return held.rewards[:, 0] - held.rewards[:, 1]
    return np.where(held.safe, 1.0, -1.0) * held.rewards[:, 0]


def figures_of(held: HeldOut) -> dict[str, Any]:
    """The figures of `summary.json`; undefined ones are None.

    `accuracy` (share of pairs whose preferred response has the higher reward; of labelled responses those with P(safe)
    on the label's side of 1/2; a tie counts half) with its standard error over prompts, `base_accuracy` (of whoever
    knows nothing but which label is the more frequent), `loss` in nats per unit, `ece`; `rewards`: mean and standard
    deviation over all responses; `length_bias`; of labelled responses also `auc`, the share of (safe, unsafe) pairs
    with the higher reward on the safe one.
    """
    ahead = _ahead(held)
    if held.pairs:
        base, extra = 0.5, {}
        bias = length_preference(ahead, held.lengths[:, 0], held.lengths[:, 1], held.prompts)
    else:
        base = float(max(np.mean(held.safe), 1 - np.mean(held.safe)))
        extra, bias = {"auc": plain(area_under_curve(held.rewards[:, 0], held.safe))}, {}
    accuracy, error = clustered_mean(credit(ahead), held.prompts)
    return {
        "held_out": {
            "accuracy": plain(accuracy),
            "accuracy_se": plain(error),
            "base_accuracy": base,
            "loss": float(np.mean(np.logaddexp(0.0, -ahead))),
            "ece": calibration_of(held).ece,
            **extra,
        },
        "length_bias": length_bias(held.rewards.ravel(), held.lengths.ravel()) | bias,
        "rewards": {"mean": float(np.mean(held.rewards)), "std": float(np.std(held.rewards))},
    }


def empty_figures(held: HeldOut) -> dict[str, Any]:
    """Of units with an empty response (`split_empty`): their number, and the accuracy on them; None without any."""
    accuracy, _ = clustered_mean(credit(_ahead(held)), held.prompts)
    return {"units": len(held.prompts), "accuracy": plain(accuracy)}


@by_writer
def write_plots(folder: pathlib.Path, held: HeldOut) -> None:
    """Leaves `calibration.json`, `calibration.png` and `length_bias.png`."""
    calibration = calibration_of(held)
    write_atomically(folder / "calibration.json", json.dumps(plain_calibration(calibration), indent=2) + "\n")
    if held.pairs:
        title, event, names = "Calibration of preferences", "preferred by the judge", ("preferred", "other")
        good = np.broadcast_to([True, False], held.rewards.shape)
    else:
        title, event, names = "Calibration of safety", "safe", ("safe", "unsafe")
        good = held.safe[:, None]
    scatter = length_figure(held.rewards.ravel(), held.lengths.ravel(), good.ravel(), names)
    for name, figure in (("calibration", calibration_figure(calibration, title, event)), ("length_bias", scatter)):
        (folder / f"{name}.png").write_bytes(png(figure))
