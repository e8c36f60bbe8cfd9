from __future__ import annotations

import dataclasses
import enum
from typing import Any, Literal

import ml_collections
import pytest

from r1jax.model.config import GQAConfig, Llama3RopeConfig, MLAConfig, ModelConfig, YarnConfig
from r1jax.settings import ConfigError, from_config, to_plain, with_room


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    name: Literal["adam", "sgd"] = "adam"
    limit: int | None = None
    stops: tuple[str, ...] = ()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    flag: bool = False
    color: Color = Color.RED
    free: Any = None
    list_of_inner: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")


def test_every_kind_of_field_is_converted():
    config = ml_collections.ConfigDict(
        {
            "steps": 3,
            "inner": {"rate": 1, "betas": [0, 0.5]},
            "name": "sgd",
            "limit": 7,
            "stops": ["a", "b"],
            "weights": {"format": 1},
            "flag": True,
            "color": "blue",
            "free": 1.5,
            "list_of_inner": ({"rate": 2.0},),
        }
    )
    built = from_config(Outer, config)
    assert built == Outer(
        3, Inner(1.0, (0.0, 0.5)), "sgd", 7, ("a", "b"), {"format": 1.0}, True, Color.BLUE, 1.5, (Inner(2.0),)
    )
    assert isinstance(built.inner.rate, float)
    assert isinstance(built.inner.betas[0], float)


def test_defaults_fill_absent_fields_and_none_is_kept():
    assert from_config(Outer, {"steps": 1, "limit": None}) == Outer(1)


def test_plain_values_build_the_same_dataclass_again():
    built = from_config(Outer, {"steps": 3, "stops": ("x",), "color": "blue", "inner": {"rate": 0.25}})
    assert from_config(Outer, to_plain(built)) == built
    assert to_plain(built)["stops"] == ["x"]
    assert to_plain(ml_collections.ConfigDict({"a": {"b": (1, 2)}})) == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"steps": 1, "inner": {"rte": 1.0}}, ["inner.rte", "unknown field of Inner", "'rate'", "betas, rate"]),
        ({"stepz": 1}, ["stepz", "'steps'", "limit"]),
        ({}, ["steps", "required field of Outer is missing", "int"]),
        ({"steps": "3"}, ["steps: expected int, got '3' (str)"]),
        ({"steps": True}, ["steps: expected int, got True (bool)"]),
        ({"steps": 1.0}, ["steps: expected int, got 1.0 (float)"]),
        ({"steps": 1, "flag": 1}, ["flag: expected bool, got 1 (int)"]),
        ({"steps": 1, "inner": {"rate": True}}, ["inner.rate: expected float, got True"]),
        ({"steps": 1, "inner": 4}, ["inner", "fields of Inner", "4 (int)"]),
        ({"steps": 1, "inner": {"betas": [0.1]}}, ["inner.betas", "tuple[float, float]", "[0.1]"]),
        ({"steps": 1, "stops": "ab"}, ["stops", "tuple[str, ...]", "'ab' (str)"]),
        ({"steps": 1, "stops": ["a", 2]}, ["stops[1]: expected str, got 2 (int)"]),
        ({"steps": 1, "name": "adamm"}, ["name", "'adamm'", "Did you mean 'adam'", "'adam', 'sgd'"]),
        ({"steps": 1, "color": "green"}, ["color", "'green'", "'red', 'blue'"]),
        ({"steps": 1, "limit": 1.5}, ["limit: expected int or None, got 1.5 (float)"]),
        ({"steps": 1, "weights": {"format": "x"}}, ["weights.format: expected float, got 'x'"]),
        ({"steps": -1}, ["Outer: steps must not be negative, got -1"]),
        ({"steps": 1, "list_of_inner": [{"betaz": 1}]}, ["list_of_inner[0].betaz", "'betas'"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(config, words):
    with pytest.raises(ConfigError) as caught:
        from_config(Outer, config)
    for word in words:
        assert word in str(caught.value)


def test_the_path_prefix_stands_in_the_message():
    with pytest.raises(ConfigError, match=r"^stages\.rl\.inner\.rte: "):
        from_config(Outer, {"steps": 1, "inner": {"rte": 1}}, path="stages.rl")


MODEL = {
    "vocab_size": 8,
    "width": 4,
    "num_dense_layers": 1,
    "ffn_dim": 8,
    "rope": {"theta": 1e4},
    "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 2},
}


def test_a_union_of_dataclasses_is_told_apart_by_its_fields():
    assert isinstance(from_config(ModelConfig, MODEL).attention, GQAConfig)
    mla = {
        "num_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 4,
        "qk_nope_head_dim": 2,
        "qk_rope_head_dim": 2,
        "v_head_dim": 2,
    }
    assert from_config(ModelConfig, MODEL | {"attention": mla}).attention == MLAConfig(**mla)
    with pytest.raises(ConfigError, match=r"attention\.v_head_dimm: unknown field of MLAConfig"):
        from_config(ModelConfig, MODEL | {"attention": mla | {"v_head_dimm": 1}})


def test_an_ambiguous_union_wants_the_kind_named():
    rope = {"theta": 5e5, "scaling": {"factor": 8}}
    with pytest.raises(ConfigError, match="fit YarnConfig and Llama3RopeConfig; say which by the field 'kind'"):
        from_config(ModelConfig, MODEL | {"rope": rope})
    named = from_config(ModelConfig, MODEL | {"rope": {"scaling": {"kind": "Llama3RopeConfig", "factor": 4}}})
    assert named.rope.scaling == Llama3RopeConfig(factor=4.0)
    with pytest.raises(ConfigError, match=r"rope\.scaling\.kind: unknown value 'Yarn'"):
        from_config(ModelConfig, MODEL | {"rope": {"scaling": {"kind": "Yarn"}}})


def test_a_ready_dataclass_is_kept():
    scaling = YarnConfig(factor=2.0)
    assert from_config(ModelConfig, MODEL | {"rope": {"scaling": scaling}}).rope.scaling is scaling


def test_a_path_below_a_field_that_the_file_leaves_out_finds_room() -> None:
    file = {
        "steps": ({"name": "a", "config": {"rows": 2}}, {"name": "b", "config": {"z": 0, "by.name": 1}}),
        "only": "a",
    }
    paths = (
        "steps[0].config.mesh.fsdp",
        "report.labels.x",
        "steps[9].config.x.y",
        "steps[0].name.x",
        "steps.0.x",
        "new",
    )
    room = with_room(ml_collections.ConfigDict(file), paths)
    room.steps[0].config.mesh.fsdp = 2
    assert to_plain(room) == {
        "steps": [
            {"name": "a", "config": {"rows": 2, "mesh": {"fsdp": 2}}},
            {"name": "b", "config": {"z": 0, "by.name": 1}},
        ],
        "only": "a",
        "report": {"labels": {}},
    }
    assert list(room.steps[1].config) == ["z", "by.name"]  # as the file has them: of some the order counts
