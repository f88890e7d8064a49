"""Training requests as a client writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from r1jax.tuning.messages import FLOAT32, INT64, message_class


def training_body(
    model: str, number: int, *, seed: int = 0, loss: str = "cross_entropy", length: int = 10, **config: float
) -> bytes:
    """A ForwardBackwardRequest with two drawn data."""
    generator = np.random.default_rng(seed)
    message = message_class("ForwardBackwardRequest")(model_id=model, seq_id=number, loss_fn=loss)
    for _ in range(2):
        ids = generator.integers(4, 300, length + 1)
        add_datum(message, ids[:-1], {"target_tokens": ids[1:], **_draw(generator, loss, length)})
    for key, value in config.items():
        message.loss_fn_config_v2.add(key=key).value.number = value
    return message.SerializeToString()


def add_datum(message: Any, tokens: np.ndarray, inputs: dict[str, np.ndarray]) -> None:
    """Adds a datum of dense arrays to a request."""
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray(tokens, "<i4").tobytes()
    for key, array in inputs.items():
        tensor, is_float = datum.loss_fn_inputs.add(key=key).value, array.dtype.kind == "f"
        tensor.dense = array.astype("<f4" if is_float else "<i8").tobytes()
        tensor.dtype = FLOAT32 if is_float else INT64
        tensor.shape.extend(array.shape)


def _draw(generator: np.random.Generator, loss: str, length: int) -> dict[str, np.ndarray]:
    if loss == "cross_entropy":
        return {"weights": np.ones(length)}
    return {"logprobs": generator.normal(-5, 1, length), "advantages": generator.normal(size=length)}
