"""Training of the adapters of a bank: gradients of many clients in one batch, updates of one client at a time.

The learner's programs (learner/step.py) serve all: `accumulate` adds the gradient of a batch to the bank's, of which
each client's is a part; `apply` makes an update of one adapter with the hyperparameters of the moment.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.core.distributed import fetch
from r1jax.core.sharding import batch_parts, current_layout, in_layout
from r1jax.learner.state import TrainState
from r1jax.learner.step import Frozen, Learner
from r1jax.losses.logprobs import gather_positions, token_logprobs
from r1jax.losses.per_token import target_losses
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import Params, merge
from r1jax.tuning.datums import ROWS, Datum, make_batch

CHUNK = 64  # positions of a row whose logits exist at once
_VALUES = ("weights", "sampled", "advantages", "low", "high", "beta")


@dataclasses.dataclass(frozen=True)
class AdamSettings:
    """Hyperparameters of one update: AdamW with a bound on the gradient's global norm (0: none)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-12
    weight_decay: float = 0.0
    clip_norm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scored:
    """Log-probs and losses of a datum's targets, of its shape."""

    logprobs: np.ndarray
    losses: np.ndarray


class Trainer:
    """Adapters over the model of `bank.graph` with parameters `base`; at most `bank.places` of them at once.

    One thread at a time may use a trainer.
    """

    def __init__(self, bank: AdapterBank, base: Params):
        self.bank, self.layout, self._base = bank, current_layout(), base
        self._parts, self._ranks = batch_parts(), dict[int, int]()
        self._states: dict[int, TrainState] = {}
        self._optimizer = optax.inject_hyperparams(_make_optimizer)(**dataclasses.asdict(AdamSettings()))
        self._learner = Learner(self._measure, self._optimizer)
        self._params = bank.empty()
        self._gradients = self._learner.zeros(self._params)
        self._forward = jax.jit(self._measure)
        self._write = jax.jit(bank.write, donate_argnums=0)
        self._read = jax.jit(bank.read)
        self._init = jax.jit(self._optimizer.init)

    @property
    def _frozen(self) -> Frozen:
        return {"base": self._base}

    @in_layout
    def open(self, place: int, rank: int, adapter: Params, moments: Any = None) -> None:
        """Puts an adapter of `rank` columns into a place, with the moments of its optimizer (None: fresh ones)."""
        moments = self._init(adapter) if moments is None else moments
        self._states[place] = TrainState(adapter, moments, jnp.zeros((), jnp.int32))
        self._ranks[place] = rank
        self._params = self._write(self._params, adapter, np.int32(place))
        self._clear(place)

    def close(self, place: int) -> None:
        """Frees a place."""
        self._states.pop(place, None)
        self._ranks.pop(place, None)

    def score(
        self,
        work: Sequence[tuple[int, Sequence[Datum]]],
        *,
        backward: bool,
        run: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    ) -> list[list[Scored]]:
        """Scores data of places, each datum with its place's adapter; with `backward` the gradients are added to what
        the places hold. Returns one list for each entry of `work`, in order. run: calls the computation of each batch.
        """
        rows = [(index, number, datum) for index, (_, data) in enumerate(work) for number, datum in enumerate(data)]
        rows.sort(key=lambda row: row[2].size)
        found: list[list[Any]] = [[None] * len(data) for _, data in work]
        count = -(-ROWS // self._parts) * self._parts
        while rows:
            size = rows[0][2].size
            same = [row for row in rows[:count] if row[2].size == size]
            rows = rows[len(same) :]
            gates = self.bank.gates([(work[index][0], self._ranks[work[index][0]]) for index, _, _ in same])
            gates = np.pad(gates, ((0, count - len(same)), (0, 0)))
            batch = make_batch([datum for _, _, datum in same], gates, size)
            logprobs, losses = run(functools.partial(self._score_batch, batch, backward))
            for row, (index, number, datum) in enumerate(same):
                cut = lambda x, row=row, datum=datum: x[row, : len(datum.targets)].reshape(datum.shape)
                found[index][number] = Scored(cut(logprobs), cut(losses))
        return found

    @in_layout
    def _score_batch(self, batch: dict[str, np.ndarray], backward: bool) -> tuple[np.ndarray, np.ndarray]:
        if backward:
            self._gradients, _, sums = self._learner.accumulate(self._params, self._gradients, self._frozen, batch)
        else:
            _, sums = self._forward(self._params, self._frozen, batch)
        return fetch((sums["logprobs"], sums["losses"]))

    @in_layout
    def update(self, place: int, settings: AdamSettings) -> dict[str, float]:
        """Makes an update of a place's adapter by its gradient, which is 0 afterwards."""
        state, gradients = self._states[place], self._read(self._gradients, np.int32(place))
        values = {name: jnp.asarray(value, jnp.float32) for name, value in dataclasses.asdict(settings).items()}
        values["clip_norm"] = values["clip_norm"] if settings.clip_norm > 0 else jnp.float32(jnp.inf)
        state = dataclasses.replace(state, opt_state=state.opt_state._replace(hyperparams=values))
        state, norm = self._learner.apply(state, gradients)
        self._states[place] = state
        self._params = self._write(self._params, state.params, np.int32(place))
        self._clear(place)
        return {"grad_norm": float(norm)}

    @in_layout
    def export(self, place: int, *, moments: bool) -> dict[str, np.ndarray]:
        """Arrays of a place's adapter by dotted names, and the moments of its optimizer."""
        state = self._states[place]
        trees = {"params": state.params} | ({"optimizer": state.opt_state} if moments else {})
        return {".".join(name): self.bank.resize(name, array, self._ranks[place]) for name, array in _flatten(trees)}

    @in_layout
    def restore(self, arrays: dict[str, np.ndarray], *, moments: bool) -> tuple[Params, Any]:
        """An adapter and its moments (None without) from what `export` gave, in any server's width."""
        adapter = jax.eval_shape(lambda: self.bank.init_adapter(rank=1, seed=0, kinds=()))
        trees: dict[str, Any] = {"params": adapter}
        if moments:
            trees["optimizer"] = jax.eval_shape(self._optimizer.init, adapter)
        flat, structure = jax.tree_util.tree_flatten_with_path(trees)
        leaves = []
        for path, leaf in flat:
            name = _name(path)
            array = self.bank.resize(name, arrays[".".join(name)], self.bank.rank)
            leaves.append(jnp.asarray(array.reshape(leaf.shape), leaf.dtype))
        restored = jax.tree_util.tree_unflatten(structure, leaves)
        return restored["params"], restored.get("optimizer")

    def _clear(self, place: int) -> None:
        nothing = jax.tree.map(jnp.zeros_like, self._states[place].params)
        self._gradients = self._write(self._gradients, nothing, np.int32(place))

    def _measure(self, params: Params, frozen: Frozen, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the losses of a batch, and the log-prob and loss of each target [B, R]."""
        model = merge(self.bank.graph, self.bank.join(frozen["base"], params, batch["gates"]))
        hidden = model.hidden(batch["tokens"], segment_ids=batch["segments"]).hidden
        states = gather_positions(hidden, batch["positions"])
        logprobs, _ = token_logprobs(states, batch["targets"], model.unembed, chunk=CHUNK)
        losses = target_losses(logprobs, batch["kinds"], **{name: batch[name] for name in _VALUES})
        return losses.sum(), {"logprobs": logprobs, "losses": losses}


def _make_optimizer(
    learning_rate: Any, beta1: Any, beta2: Any, epsilon: Any, weight_decay: Any, clip_norm: Any
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay),
    )


def _flatten(trees: Any) -> list[tuple[tuple[str, ...], np.ndarray]]:
    flat = jax.tree_util.tree_flatten_with_path(fetch(trees))[0]
    return [(_name(path), np.asarray(leaf)) for path, leaf in flat]


def _name(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
