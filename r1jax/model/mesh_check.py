"""Whether a mesh divides a model: said before any long work, with the field, its size, the axis and what would do."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh

from r1jax.model.config import ModelConfig
from r1jax.model.transformer import param_count
from r1jax.settings import ConfigError
from r1jax.sharding import MESH_AXES, ModelSize, axes_of, indivisible


def model_size(model: ModelConfig) -> ModelSize:
    """What `sharding.choose_mesh` has to know of a model."""
    experts = model.moe.num_experts if model.moe and model.num_moe_layers else 0
    return ModelSize(parameters=param_count(model), width=model.width, experts=experts)


def split_fields(model: ModelConfig) -> list[tuple[str, int, str]]:
    """Every field whose size a mesh has to divide: (name, size, logical axis)."""
    fields = [
        ("vocab_size", model.vocab_size, "vocab"),
        ("width", model.width, "embed"),
        ("attention.num_heads", model.attention.num_heads, "heads"),
    ]
    if model.num_dense_layers:
        fields.append(("ffn_dim", model.ffn_dim, "mlp"))
    if model.moe and model.num_moe_layers:
        moe = model.moe
        fields += [
            ("moe.num_experts", moe.num_experts, "experts"),
            ("width", model.width, "expert_embed"),
            ("moe.expert_dim", moe.expert_dim, "expert_mlp"),
        ]
        if moe.num_shared:
            fields.append(("moe.num_shared * moe.expert_dim", moe.num_shared * moe.expert_dim, "mlp"))
    return fields


def check_mesh(model: ModelConfig, mesh: Mesh | Mapping[str, int], row_length: int | None = None) -> None:
    """That a mesh divides the model's parameters and activations, and rows of `row_length` tokens if given.

    mesh: one with the axes of `sharding.MESH_AXES`, or their sizes. Raises ConfigError with a line for every field that
    does not divide: its size, the mesh axes and the nearest sizes of either that work. Key-value heads need not divide
    (see `sharding.MAY_STAY_WHOLE`).
    """
    found = undivided(model, mesh.shape if isinstance(mesh, Mesh) else mesh, row_length)
    if found:
        raise ConfigError("\n".join(found))


def undivided(model: ModelConfig, sizes: Mapping[str, int], row_length: int | None = None) -> list[str]:
    """What a mesh with these axis sizes does not divide, a line for each; axes that are not named are 1."""
    sizes = dict.fromkeys(MESH_AXES, 1) | dict(sizes)
    fields = split_fields(model)
    if row_length is not None:
        fields.append(("row_length", row_length, "length"))
    problems = [indivisible(field, size, axes_of(axis), sizes) for field, size, axis in fields]
    return [problem for problem in dict.fromkeys(problems) if problem]
