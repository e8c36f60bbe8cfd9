"""Three estimators of KL(policy || reference) from the log-probs of sampled tokens (Schulman 2020).

With d = log pi_ref(x) - log pi(x) and x drawn from pi, token by token:

| name | value        | mean over x ~ pi | use here                                                                  |
|------|--------------|------------------|---------------------------------------------------------------------------|
| k1   | -d           | KL               | a monitor, or a penalty inside the reward. Never a loss term: its gradient |
|      |              |                  | is the score function, whose mean on-policy is zero                        |
| k2   | d^2 / 2      | KL to 2nd order  | a loss term: the mean of its gradient on-policy is the KL's, exactly       |
| k3   | e^d - 1 - d  | KL               | R1's loss term (R1 eq. 2) and the monitor: unbiased as a value, never      |
|      |              |                  | negative; its gradient is the KL's to first order in d                     |
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def k1(logprobs: Array, ref_logprobs: Array) -> Array:
    """log pi - log pi_ref per token, any shape. Unbiased, may be negative; not for use as a loss term."""
    chex.assert_equal_shape([logprobs, ref_logprobs])
    return logprobs - ref_logprobs


def k2(logprobs: Array, ref_logprobs: Array) -> Array:
    """(log pi - log pi_ref)^2 / 2 per token, any shape."""
    return 0.5 * jnp.square(k1(logprobs, ref_logprobs))


def k3(logprobs: Array, ref_logprobs: Array) -> Array:
    """pi_ref / pi - log(pi_ref / pi) - 1 per token, any shape; never negative (R1 eq. 2)."""
    difference = -k1(logprobs, ref_logprobs)
    # expm1 keeps the digits: near d = 1e-3 float32 exp(d) - 1 - d is off by a tenth of its value.
    return jnp.expm1(difference) - difference
