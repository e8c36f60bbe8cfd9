"""How many operations a model's tokens cost: every matrix product counted, two operations for a multiply-add.

What is not a matrix product (norms, softmax, activations, the look-up of embeddings) is left out, and so is what only
an implementation adds: scores that the causal mask hides, the filling of expert tiles, blocks computed a second time in
the backward pass. The count is the model's, not the program's. `mean_length` is a sequence's number of tokens, its mean
where lengths differ: the i-th token sees i tokens, itself included, which makes (mean_length + 1) / 2 on average.
"""

from __future__ import annotations

from r1jax.model.config import MLAConfig, ModelConfig

BACKWARD = 2  # passes: a product's two gradients cost twice the product


def _attention_weights(model: ModelConfig) -> int:
    """Weights of one layer's projections."""
    att = model.attention
    if not isinstance(att, MLAConfig):
        return 2 * model.width * (att.num_heads + att.num_kv_heads) * att.head_dim
    query_dim = att.num_heads * (att.qk_nope_head_dim + att.qk_rope_head_dim)
    if att.q_lora_rank is None:
        query = model.width * query_dim
    else:
        query = att.q_lora_rank * (model.width + query_dim)
    down = model.width * (att.kv_lora_rank + att.qk_rope_head_dim)
    up = att.kv_lora_rank * att.num_heads * (att.qk_nope_head_dim + att.v_head_dim)
    return query + down + up + att.num_heads * att.v_head_dim * model.width


def _block_weights(model: ModelConfig, use_moe: bool) -> dict[str, int]:
    """Component -> weights of one block that a token is multiplied with; of the experts, those it chooses."""
    parts = {"attention": _attention_weights(model)}
    if not use_moe or model.moe is None:
        return parts | {"dense": 3 * model.width * model.ffn_dim}
    expert = 3 * model.width * model.moe.expert_dim
    return parts | {
        "router": model.width * model.moe.num_experts,
        "experts": model.moe.num_active * expert,
        "shared": model.moe.num_shared * expert,
    }


def token_weights(model: ModelConfig) -> dict[str, int]:
    """Component -> weights that one token is multiplied with, without the MTP module.

    Components: attention (its projections), dense, router, experts, shared, head. Their sum is the number of active
    parameters without the embedding, which is looked up (a tied one counts as the head), and without norms and biases.
    """
    total = {"head": model.width * model.vocab_size}
    for layers, use_moe in ((model.num_dense_layers, False), (model.num_moe_layers, True)):
        for name, weights in _block_weights(model, use_moe).items():
            total[name] = total.get(name, 0) + layers * weights
    return total


def mtp_weights(model: ModelConfig) -> int:
    """Weights that one token is multiplied with in the MTP module, the shared head included; 0 without the module."""
    if not model.mtp_depth:
        return 0
    block = _block_weights(model, use_moe=model.num_moe_layers > 0)
    return 2 * model.width**2 + sum(block.values()) + model.width * model.vocab_size


def _between_tokens(model: ModelConfig) -> int:
    """Multiply-adds of one layer's scores and sums for one pair of tokens, keys and values written out."""
    att = model.attention
    if isinstance(att, MLAConfig):
        return att.num_heads * (att.qk_nope_head_dim + att.qk_rope_head_dim + att.v_head_dim)
    return 2 * att.num_heads * att.head_dim


def _between_cached(model: ModelConfig) -> int:
    """The same against the cache: MLA's absorbed form takes key and value from the latent."""
    att = model.attention
    if isinstance(att, MLAConfig):
        return att.num_heads * (2 * att.kv_lora_rank + att.qk_rope_head_dim)
    return _between_tokens(model)


def forward_flops(model: ModelConfig, tokens: float, mean_length: float) -> float:
    """Operations of `tokens` tokens in sequences of `mean_length`, MTP module not run."""
    pairs = model.num_layers * _between_tokens(model) * (mean_length + 1) / 2
    return 2.0 * tokens * (sum(token_weights(model).values()) + pairs)


def attention_flops(model: ModelConfig, tokens: float, mean_length: float) -> float:
    """The part of `forward_flops` that lies between tokens: scores and sums."""
    return forward_flops(model, tokens, mean_length) - 2.0 * tokens * sum(token_weights(model).values())


def mtp_flops(model: ModelConfig, tokens: float, mean_length: float) -> float:
    """What the MTP module adds to a forward pass of the same tokens; 0 without the module."""
    pairs = model.mtp_depth * _between_tokens(model) * (mean_length + 1) / 2
    return 2.0 * tokens * (mtp_weights(model) + pairs)


def training_flops(model: ModelConfig, tokens: float, mean_length: float, mtp: bool = False) -> float:
    """Forward and backward pass of `tokens` tokens; `mtp`: the MTP module is trained too."""
    extra = mtp_flops(model, tokens, mean_length) if mtp else 0.0
    return (1 + BACKWARD) * (forward_flops(model, tokens, mean_length) + extra)


def sampling_flops(model: ModelConfig, tokens: float, mean_length: float, prompt_length: float = 0.0) -> float:
    """Operations of sampling `tokens` tokens one at a time with a cache, in responses of `mean_length`.

    Args:
        model: the policy.
        tokens: sampled tokens of all responses.
        mean_length: mean length of a response.
        prompt_length: mean length of the prompts, which each sampled token sees; reading them (the prefill) is
            `forward_flops` of their tokens and not in here.
    """
    pairs = model.num_layers * _between_cached(model) * (prompt_length + (mean_length + 1) / 2)
    return 2.0 * tokens * (sum(token_weights(model).values()) + pairs)
