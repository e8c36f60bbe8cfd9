"""Values that carry their source: what a stage reads, and what the table of hyperparameters says."""

from __future__ import annotations

import pytest

from r1jax.provenance import given, plain, sources

TREE = {
    "steps": (
        {"name": "dev1", "config": {"epochs": given(2, "B.4.2"), "rows": 8}},
        {"name": "r1", "config": given({"temperature": 0.7}, "2.3")},
    ),
    "sizes": [given(1, "Table 6"), 2],
}


def test_plain_leaves_the_values() -> None:
    assert plain(TREE) == {
        "steps": ({"name": "dev1", "config": {"epochs": 2, "rows": 8}}, {"name": "r1", "config": {"temperature": 0.7}}),
        "sizes": [1, 2],
    }


def test_sources_are_found_by_name_and_leaf() -> None:
    assert sources(TREE) == {
        "steps.dev1.config.epochs": "B.4.2",
        "steps.r1.config.temperature": "2.3",
        "sizes.0": "Table 6",
    }


def test_a_source_must_say_something() -> None:
    with pytest.raises(ValueError, match=r"given\(3\): no source"):
        given(3, " ")
