"""Attention by the Pallas kernels that ship with JAX: splash attention on TPU, flash attention (Triton) on GPU.

Both mask by position and by equality of segment ids, read from memory as vectors. Neither knows of a second visible
segment (`parent_ids`), and the GPU one wants equal head sizes and whole queries: `kernel_refusal` says so before
anything is built. tokamax's attention is not used: its public call takes packed segments only as a [T, T] mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from r1jax.model.layers import ATTENTION
from r1jax.sharding import BATCH_AXES, batch_shards
from r1jax.types import Array

LANES = 128  # rows are filled up to a multiple of it
PLATFORMS = ("tpu", "gpu", "cuda", "rocm")


def platform_of(mesh: Mesh | None) -> str:
    """The platform a program is made for: that of the mesh, which a plan makes without having its devices."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def kernel_refusal(q_shape: tuple[int, ...], v_dim: int, with_parents: bool, mesh: Mesh | None) -> str | None:
    """Why no kernel can do this attention, or None.

    q_shape: [B, T, N, H] of all devices. v_dim: of a value. with_parents: whether rows have `parent_ids`.
    """
    platform, shape = platform_of(mesh), {} if mesh is None else mesh.shape
    tensor, sequence = shape.get("tensor", 1), shape.get("sequence", 1)
    rows, _, heads, head_dim = q_shape
    if platform not in PLATFORMS:
        return f"there is none for the platform {platform!r}, only for {', '.join(PLATFORMS)}"
    if with_parents:
        return "a kernel sees one segment, and rows with shared prompts (parent_ids) have two"
    if heads % tensor:
        return f"{heads} heads do not divide over {tensor} devices of the tensor axis"
    if mesh is not None and rows % batch_shards(mesh):
        return f"{rows} rows do not divide over {batch_shards(mesh)} devices of the batch axes"
    if platform != "tpu" and v_dim != head_dim:
        return f"the GPU kernel wants heads of one size, and queries have {head_dim} channels, values {v_dim}"
    if platform != "tpu" and sequence > 1:
        return (
            f"the GPU kernel wants the whole row's queries, and the sequence axis splits them over {sequence} devices"
        )
    return None


def kernel_attention(
    q: Array, k: Array, v: Array, segment_ids: Array, scale: float, mesh: Mesh | None, interpret_as: str = ""
) -> Array:
    """`layers.causal_attention` without parents, by the kernel of the mesh's platform.

    interpret_as: 'tpu' or 'gpu': run that platform's kernel as a program in XLA, wherever: slow, for tests.
    Raises ValueError with `kernel_refusal`'s reason where there is none.
    """
    refusal = kernel_refusal(q.shape, v.shape[-1], False, mesh)
    if refusal and not interpret_as:
        raise ValueError(f"no attention kernel: {refusal}")
    shape = {} if mesh is None else mesh.shape
    heads, length = q.shape[2], q.shape[1]
    if k.shape[2] % shape.get("tensor", 1):  # key heads that the mesh cannot split: one copy for every query head
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    padding = -length % (LANES * shape.get("sequence", 1))
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    run = _splash if (interpret_as or platform_of(mesh)) == "tpu" else _flash
    out = run(q, k, v, ids, scale, mesh, bool(interpret_as))
    # Padding sees padding in a kernel; here it sees nothing. The zero also keeps gradients out of it.
    return jnp.where((ids != 0)[..., None, None], out, 0)[:, :length]


def _block(tokens: int) -> int:
    return math.gcd(tokens, 4 * LANES)


def _splash(q: Array, k: Array, v: Array, ids: Array, scale: float, mesh: Mesh | None, interpret: bool) -> Array:
    """The TPU kernel, which has no factor of scores and wants heads before tokens."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sequence, tensor = (1, 1) if mesh is None else (mesh.shape.get(axis, 1) for axis in ("sequence", "tensor"))
    length, heads = q.shape[1:3]
    size, key_size = _block(length // sequence), _block(length)
    blocks = splash.BlockSizes(
        block_q=size,
        block_kv=key_size,
        block_q_dkv=size,
        block_kv_dkv=key_size,
        block_q_dq=size,
        block_kv_dq=key_size,
    )
    mask = splash.splash_attention_mask.MultiHeadMask(
        [splash.CausalMask((length, length), shard_count=sequence)] * heads
    )
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            mask,
            block_sizes=blocks,
            head_shards=tensor,
            q_seq_shards=sequence,
            interpret=interpret,
            residual_checkpoint_name=ATTENTION,
        )

    def attend(kernel: Any, q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array) -> Array:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        out = jax.vmap(kernel)(q, k, v, segment_ids=splash.SegmentIds(q=q_ids, kv=k_ids))
        return out.transpose(0, 2, 1, 3)

    q = (q * scale).astype(q.dtype)
    if mesh is None:
        return attend(kernel, q, k, v, ids, ids)
    parts = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, PartitionSpec("tensor", "sequence")))
    return _on_shards(attend, mesh, (parts,))(kernel, q, k, v, ids, ids)


def _flash(q: Array, k: Array, v: Array, ids: Array, scale: float, mesh: Mesh | None, interpret: bool) -> Array:
    """The GPU kernel, which wants one key head per query head."""
    from jax.experimental.pallas.ops.gpu import attention as flash

    def attend(q: Array, k: Array, v: Array, ids: Array, _: Array) -> Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        result: Array = flash.mha(q, k, v, ids, sm_scale=scale, causal=True, interpret=interpret)
        return result

    return attend(q, k, v, ids, ids) if mesh is None else _on_shards(attend, mesh, ())(q, k, v, ids, ids)


def _on_shards(attend: Callable[..., Array], mesh: Mesh, first: tuple[Any, ...]) -> Callable[..., Array]:
    """`attend` on each device's rows, heads and queries; keys, values and their ids are whole along the row."""
    queries = PartitionSpec(BATCH_AXES, "sequence", "tensor", None)
    keys = PartitionSpec(BATCH_AXES, None, "tensor", None)
    ids = PartitionSpec(BATCH_AXES, "sequence"), PartitionSpec(BATCH_AXES, None)
    specs = (*first, queries, keys, keys, *ids)
    return functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)(attend)
