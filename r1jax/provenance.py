"""Which paper gives a number: configurations whose values may carry their source.

A config file writes `given(3e-6, "R1v2 2.1")` where a paper states the value; `plain` turns the tree into what a stage
reads, `sources` lists what was given. Everything else is r1jax's choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Given:
    """A value that a paper states, and where."""

    value: Any
    source: str


def given(value: Any, source: str) -> Given:
    """`value`, as `source` (paper and section) states it. ValueError for a source that says nothing."""
    if not source.strip():
        raise ValueError(f"given({value!r}): no source")
    return Given(value, source)


def plain(tree: Any) -> Any:
    """The tree of mappings, lists and tuples with every `Given` replaced by its value."""
    if isinstance(tree, Given):
        return plain(tree.value)
    if isinstance(tree, Mapping):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(plain(value) for value in tree)
    return tree


def sources(tree: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> source of every `Given`; of one that is a mapping the paths of its leaves. Items of a list are
    named by their `name` where they have one."""
    if isinstance(tree, Given):
        return dict.fromkeys(_leaves(plain(tree.value), path), tree.source)
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list | tuple):
        items = [(item.get("name", i) if isinstance(item, Mapping) else i, item) for i, item in enumerate(tree)]
    else:
        return {}
    found: dict[str, str] = {}
    for name, value in items:
        found |= sources(value, f"{path}.{name}" if path else str(name))
    return found


def _leaves(value: Any, path: str) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [leaf for name, item in value.items() for leaf in _leaves(item, f"{path}.{name}" if path else str(name))]
    return [path]
