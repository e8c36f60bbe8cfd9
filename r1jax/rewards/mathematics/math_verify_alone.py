"""math-verify as it comes, without anything of ours around it: what the audit holds our grader against. No JAX."""

from __future__ import annotations

from math_verify import parse, verify


def verify_alone(gold: str, answer: str) -> bool | None:
    """Its verdict with its own defaults, both texts marked as mathematics; None if it cannot read the reference."""
    reference = parse(gold if "$" in gold else f"${gold}$", parsing_timeout=None)
    if not reference:
        return None
    stated = parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None)
    return bool(verify(reference, stated, timeout_seconds=None))
