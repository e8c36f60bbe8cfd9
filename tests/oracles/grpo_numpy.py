"""GRPO and its relatives in float64 numpy, response by response with plain loops: the reference for algorithms/grpo.py.

Written from the papers' formulas, sharing no code and no data layout with the package: there are no packed rows, no
token weights and no segment sums here. The gradient with respect to each log-prob is derived by hand; the tests check
it against central finite differences of the loss.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Response:
    """One response's per-token float64 log-probs [|o|] and its advantage. `graded` False: not part of the loss."""

    new: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    sampler: np.ndarray
    advantage: float
    graded: bool = True


def advantages(rewards, kind, eps, graded=None):
    """[P][G] nested lists -> float64 [P, G]."""
    rewards = np.asarray(rewards, np.float64)
    graded = np.ones(rewards.shape, bool) if graded is None else np.asarray(graded)
    out = np.zeros(rewards.shape)
    for p, row in enumerate(rewards):
        members = [g for g in range(len(row)) if graded[p, g]]
        values = [float(row[g]) for g in members]
        if len(set(values)) < 2:
            continue
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        for g in members:
            out[p, g] = row[g] - mean if kind == "group_mean" else (row[g] - mean) / (std + eps)
    return out


def importance(response, kind, cap):
    """The correction of each token, float64 [|o|]."""
    w = np.exp(response.old - response.sampler)
    if kind.startswith("sequence"):
        w = np.full_like(w, np.prod(w))
    if kind == "none":
        return np.ones_like(w)
    if kind.endswith("mask"):
        return np.array([x if 1 / cap <= x <= cap else 0.0 for x in w])
    return np.array([min(x, cap) for x in w])


def ratios(response, kind):
    """(ratio of each token [|o|], jacobian d ratio_t / d new_s [|o|, |o|])."""
    r = response.new - response.old
    n = len(r)
    if kind == "token":
        return np.exp(r), np.diag(np.exp(r))
    s = np.exp(np.mean(r))
    if kind == "sequence":
        return np.full(n, s), np.full((n, n), s / n)
    return np.full(n, s), np.diag(np.full(n, s))  # GSPO-token: the sequence's value, the token's own gradient


def kl(response, kind):
    """(estimate [|o|], derivative with respect to `new` [|o|])."""
    d = response.ref - response.new
    if kind == "k1":
        return -d, np.ones_like(d)
    if kind == "k2":
        return d**2 / 2, -d
    return np.exp(d) - d - 1, 1 - np.exp(d)


def loss_and_gradient(responses, config, constant=None):
    """(loss, [its gradient with respect to each response's `new`], sum of the loss's absolute terms).

    The loss is to be minimized. config: anything with GRPOConfig's field names.
    """
    graded = [r for r in responses if r.graded]
    all_tokens = sum(len(r.new) for r in graded)
    total, gradients, magnitude = 0.0, [], 0.0
    for response in responses:
        n = len(response.new)
        if not response.graded:
            gradients.append(np.zeros(n))
            continue
        ratio, jacobian = ratios(response, config.ratio)
        w = importance(response, config.importance_correction, config.importance_cap)
        a = response.advantage
        term, slope = np.zeros(n), np.zeros(n)
        for t in range(n):
            clipped = min(max(ratio[t], 1 - config.clip_low), 1 + config.clip_high)
            if ratio[t] * a <= clipped * a:
                term[t], slope[t] = -w[t] * ratio[t] * a, -w[t] * a
            else:
                term[t], slope[t] = -w[t] * clipped * a, 0.0
        gradient = slope @ jacobian
        estimate, derivative = kl(response, config.kl_estimator)
        term = term + config.kl_coefficient * estimate
        gradient = gradient + config.kl_coefficient * derivative
        if config.aggregation == "response_mean":
            scale = 1 / (len(graded) * n)
        elif config.aggregation == "token_mean":
            scale = 1 / all_tokens
        else:
            scale = 1 / (len(graded) * constant)
        total += scale * float(np.sum(term))
        magnitude += scale * float(np.sum(np.abs(term)))
        gradients.append(scale * gradient)
    return total, gradients, magnitude


def log_softmax(logits):
    """Float64 log-softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def token_logprobs(hidden, unembed, targets, temperature):
    """hidden [n, D], unembed [D, V], targets [n] -> (log-probs [n], entropy [n]) in float64."""
    logp = log_softmax(hidden @ unembed / temperature)
    return logp[np.arange(len(targets)), targets], -(np.exp(logp) * logp).sum(-1)


def token_logprobs_backward(hidden, unembed, targets, temperature, cotangent):
    """Gradients of sum(cotangent * log-probs): (d hidden [n, D], d unembed [D, V])."""
    probabilities = np.exp(log_softmax(hidden @ unembed / temperature))
    logits_bar = -cotangent[:, None] * probabilities
    logits_bar[np.arange(len(targets)), targets] += cotangent
    logits_bar = logits_bar / temperature
    return logits_bar @ unembed.T, hidden.T @ logits_bar
