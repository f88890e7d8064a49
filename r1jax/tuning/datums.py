"""Data of clients: a sequence with targets and what their loss needs, checked, and laid out as rows of a batch.

Every target has a position whose state predicts it, so a datum may have one target a position [T] or several [T, K]
(distillation of a whole distribution). Rows are padded to few lengths, so that few programs are compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.core.errors import UserError
from r1jax.losses.per_token import LOSSES

ROWS = 8  # of a batch
SHORTEST = 64  # tokens and targets of the shortest row
MOST_TARGETS = 1 << 20  # of a datum
# Inputs of each loss beside target_tokens, by the names of the Tinker API, and the numbers that it may be given.
INPUTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("weights",),
    **dict.fromkeys(LOSSES[1:], ("logprobs", "advantages")),
}
BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
NUMBERS: dict[str, dict[str, float]] = {"ppo": BOUNDS, "cispo": BOUNDS, "dro": {"beta": 0.05}}
_FIELDS = {
    "weights": "weights",
    "sampled": "logprobs",
    "advantages": "advantages",
    "low": "clip_low_threshold",
    "high": "clip_high_threshold",
    "beta": "beta",
}


@dataclasses.dataclass(frozen=True)
class Datum:
    """tokens [T] int32; kind: index of the loss; positions, targets [R] int32; values: float32 [R] by the argument of
    `target_losses`; shape: of the results, (T,) or (T, K), whose product is R.
    """

    tokens: np.ndarray
    kind: int
    positions: np.ndarray
    targets: np.ndarray
    values: dict[str, np.ndarray]
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Padded numbers of tokens and targets."""
        return _pad(len(self.tokens)), _pad(len(self.targets))


def make_datum(
    tokens: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    loss: str,
    numbers: Mapping[str, Any],
    *,
    vocab_size: int,
    max_tokens: int,
) -> Datum:
    """The datum of a client's arrays. Raises UserError that names what is wrong with them."""
    if loss not in LOSSES:
        raise UserError(f"loss_fn must be one of {', '.join(LOSSES)}, got {loss!r}")
    known = {**NUMBERS.get(loss, {})}
    if unknown := set(numbers) - set(known):
        raise UserError(f"loss_fn_config of {loss} takes {', '.join(known) or 'nothing'}, got {min(unknown)!r}")
    known |= numbers
    for name, value in known.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"loss_fn_config.{name} must be a finite number, got {value!r}")
    if not 0 < len(tokens) <= max_tokens:
        raise UserError(f"model_input must have 1 to {max_tokens} tokens (--max_tokens), got {len(tokens)}")
    _check_ids("model_input", tokens, vocab_size)
    targets = inputs.get("target_tokens")
    if targets is None:
        raise UserError("loss_fn_inputs.target_tokens is missing")
    if targets.ndim not in (1, 2) or len(targets) != len(tokens) or targets.size > MOST_TARGETS or not targets.size:
        raise UserError(
            f"loss_fn_inputs.target_tokens must be [{len(tokens)}] or [{len(tokens)}, K] as model_input has tokens, "
            f"got {list(targets.shape)}"
        )
    _check_ids("loss_fn_inputs.target_tokens", targets, vocab_size)
    allowed = {"target_tokens", *INPUTS[loss], *(known if loss in ("ppo", "cispo") else ())}
    if unknown := set(inputs) - allowed:
        raise UserError(f"loss_fn_inputs of {loss} are {', '.join(sorted(allowed))}; got {min(unknown)!r}")
    values = {}
    for argument, name in _FIELDS.items():
        given = inputs.get(name)
        if given is None:
            if name in INPUTS[loss] and name != "weights":
                raise UserError(f"loss_fn_inputs.{name} is missing, which {loss} needs")
            default = 1.0 if name == "weights" and loss == "cross_entropy" else known.get(name, 0.0)
            given = np.full(targets.shape, default, np.float32)
        if given.shape != targets.shape or not np.isfinite(given).all():
            raise UserError(
                f"loss_fn_inputs.{name} must be finite numbers {list(targets.shape)} as target_tokens, "
                f"got {list(given.shape)}"
            )
        values[argument] = given.astype(np.float32).reshape(-1)
    each = targets.size // len(tokens)
    positions = np.repeat(np.arange(len(tokens), dtype=np.int32), each)
    flat = targets.astype(np.int32).reshape(-1)
    return Datum(tokens.astype(np.int32), LOSSES.index(loss), positions, flat, values, targets.shape)


def make_batch(data: Sequence[Datum], gates: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays of at most as many data as there are gates [B, C]: tokens, segments [B, T]; kinds, positions, targets and
    the values [B, R]; gates. size: (T, R), that holds all data.
    """
    B, (T, R) = len(gates), size
    empty = lambda width, dtype: np.zeros((B, width), dtype)
    batch = {"tokens": empty(T, np.int32), "segments": empty(T, np.int32), "gates": gates}
    batch |= {name: empty(R, np.int32) for name in ("kinds", "positions", "targets")}
    batch |= {name: empty(R, np.float32) for name in _FIELDS}
    for row, datum in enumerate(data):
        batch["tokens"][row, : len(datum.tokens)] = datum.tokens
        batch["segments"][row, : len(datum.tokens)] = 1
        batch["kinds"][row] = datum.kind
        for name, values in {"positions": datum.positions, "targets": datum.targets, **datum.values}.items():
            batch[name][row, : len(values)] = values
    return batch


def _check_ids(name: str, ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise UserError(f"{name} must be ids below {vocab_size}, got {ids.min()} to {ids.max()}")


def _pad(count: int) -> int:
    return max(SHORTEST, 1 << (count - 1).bit_length())
