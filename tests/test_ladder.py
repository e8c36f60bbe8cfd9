"""House rules that the linters do not know; the import ladder itself is a contract in pyproject.toml."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT) for folder in ("r1jax", "configs", "tools") for path in (ROOT / folder).rglob("*.py")
)


def imported_modules(tree: ast.AST) -> set[str]:
    """Full names of everything imported anywhere in the file, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_checker_sees_every_way_to_import():
    for text in ("import flax.linen as nn", "from flax import linen as nn", "from flax.linen import scan"):
        assert any(within(name, "flax.linen") for name in imported_modules(ast.parse(f"def f():\n    {text}")))
    assert not any(within(name, "flax.linen") for name in imported_modules(ast.parse("from flax import struct")))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_house_rules(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not path.is_relative_to("r1jax/model"):
        linen = [name for name in imported_modules(tree) if within(name, "flax.linen")]
        assert not linen, f"{path} imports {linen}: only r1jax/model may"
    if path.is_relative_to("r1jax/algorithms"):
        flax = {name for name in imported_modules(tree) if within(name, "flax")} - {"flax", "flax.struct"}
        assert not flax, f"{path} imports {flax}: of flax, algorithms may use flax.struct"
    assert len(text.splitlines()) <= 450, f"{path} is longer than 450 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{path}:{node.lineno} {node.name} has {length} lines"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}: bare except"
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno}: global state"
