"""A Llama written down plainly: one sequence at a time, in float64, head by head. What the package is held against."""

import math
from typing import Any

import numpy as np

from r1jax.models.families.llama import Config
from r1jax.models.rope import RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position of each pair of a head [H/2]; "llama3" as Meta's code has it, frequency by frequency."""
    out = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        if scaling is not None and scaling.kind == "linear":
            frequency /= scaling.factor
        elif scaling is not None:
            wavelength = 2 * math.pi / frequency
            low = scaling.original_positions / scaling.low_frequency_factor
            high = scaling.original_positions / scaling.high_frequency_factor
            if wavelength > low:
                frequency /= scaling.factor
            elif wavelength >= high:
                span = scaling.high_frequency_factor - scaling.low_frequency_factor
                smooth = (scaling.original_positions / wavelength - scaling.low_frequency_factor) / span
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        out.append(frequency)
    return np.array(out)


def rotate(x_TNH: np.ndarray, positions_T: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Pairs (i, i + H/2) as complex numbers, turned by position * frequency."""
    half = x_TNH.shape[-1] // 2
    turned = (x_TNH[..., :half] + 1j * x_TNH[..., half:]) * np.exp(1j * np.outer(positions_T, frequencies))[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attention(q_TNH: np.ndarray, k_SKH: np.ndarray, v_SKH: np.ndarray, mask_TS: np.ndarray) -> np.ndarray:
    """Each query head over its kv head: softmax(q k / sqrt(H)) v of the keys that the mask lets it see."""
    out, shared = np.zeros(q_TNH.shape), q_TNH.shape[1] // k_SKH.shape[1]
    for t, seen in enumerate(mask_TS):
        for n in range(q_TNH.shape[1]):
            scores = k_SKH[seen, n // shared] @ q_TNH[t, n] / math.sqrt(q_TNH.shape[2])
            powers = np.exp(scores - scores.max())
            out[t, n] = powers / powers.sum() @ v_SKH[seen, n // shared]
    return out


def normalize(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def forward(params: dict[str, Any], config: Config, tokens_T: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence, from parameters in the list layout."""
    number = lambda leaf: np.asarray(leaf, np.float64)
    positions, turns = np.arange(len(tokens_T)), frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    causal = np.tril(np.ones((len(tokens_T), len(tokens_T)), bool))
    x = number(params["embed"]["embedding"])[tokens_T]
    for i in range(config.num_layers):
        layer = params["layers"][i]
        kernel = {name: number(part["kernel"]) for name, part in (layer["attention"] | layer["mlp"]).items()}
        normed = normalize(x, number(layer["attention_norm"]["scale"]), config.norm_epsilon)
        q, k, v = (np.einsum("td,dnh->tnh", normed, kernel[name]) for name in ("query", "key", "value"))
        mixed = attention(rotate(q, positions, turns), rotate(k, positions, turns), v, causal)
        x = x + np.einsum("tnh,nhd->td", mixed, kernel["out"])
        normed = normalize(x, number(layer["mlp_norm"]["scale"]), config.norm_epsilon)
        gate = normed @ kernel["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ kernel["up"])) @ kernel["down"]
    x = normalize(x, number(params["norm"]["scale"]), config.norm_epsilon)
    return x @ (number(params["head"]["kernel"]) if params.get("head") else number(params["embed"]["embedding"]).T)
