"""Sampling written down plainly, one row at a time in float64: what the engine's fast programs are held against."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from r1jax.core.structs import Completion, Request, Sampling


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    shifted = logits_V - logits_V.max()
    return shifted - np.log(np.exp(shifted).sum())


def scaled(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Log-probs of all tokens after temperature; temperature 0 counts as 1."""
    return log_softmax(np.asarray(logits_V, np.float64) / (sampling.temperature or 1.0))


def kept_probabilities(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What is drawn from [V]: top-k, then top-p of what is left, then min-p, each over renormalised probabilities."""
    p = np.exp(scaled(logits_V, sampling))
    if sampling.top_k:
        p[p < np.sort(p)[::-1][min(sampling.top_k, len(p)) - 1]] = 0
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        last = p[order][before < sampling.top_p].min()
        p[p < last] = 0
        p /= p.sum()
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


def draw(logits_V: np.ndarray, sampling: Sampling, uniform: float) -> tuple[int, float]:
    """(token, its log-prob after temperature) by inverse CDF in the order of ids."""
    if sampling.temperature == 0:
        token = int(np.argmax(logits_V))
    else:
        cumulative = np.cumsum(kept_probabilities(logits_V, sampling))
        token = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return token, float(scaled(logits_V, sampling)[token])


def draw_uniform(seed: int, step: int) -> float:
    """The engine's noise: one number a (seed, step)."""
    return float(jax.random.uniform(jax.random.fold_in(jax.random.key(np.uint32(seed)), step)))


def continue_alone(next_logits: Callable[[Sequence[int]], np.ndarray], request: Request) -> Completion:
    """One request by itself, the whole sequence computed anew for each token."""
    sampling, tokens, logprobs = request.sampling, [], []
    while len(tokens) < sampling.max_new_tokens and not (tokens and tokens[-1] in sampling.stop_ids):
        logits_V = next_logits([*request.tokens, *tokens])
        token, logprob = draw(logits_V, sampling, draw_uniform(request.seed, len(tokens)))
        tokens.append(token)
        logprobs.append(logprob)
    return Completion(tuple(tokens), tuple(logprobs), "stop" if tokens[-1] in sampling.stop_ids else "length")
