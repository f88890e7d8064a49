"""Adapters of a bank: losses by their formulas, updates as AdamW makes them, many side by side as each alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.core.errors import UserError
from r1jax.losses.per_token import LOSSES
from r1jax.models.adapters.adapter_bank import AdapterBank
from r1jax.models.transformer import merge
from r1jax.runs.sampler import load_sampler
from r1jax.tuning.datums import Datum, make_datum
from r1jax.tuning.trainer import AdamSettings, Trainer
from tests.losses.target_formulas import formula

VOCAB, LONGEST = 304, 160


@pytest.fixture(scope="module")
def sampler(tiny_model: Path):
    return load_sampler(tiny_model)


@pytest.fixture(scope="module")
def trainer(sampler) -> Trainer:
    """Eight places of rank 4."""
    return Trainer(AdapterBank(merge(sampler.graph, sampler.params), places=8, rank=4), sampler.params)


def open_fresh(trainer: Trainer, place: int, *, rank: int = 4, seed: int = 0) -> None:
    trainer.open(place, rank, trainer.bank.init_adapter(rank=rank, seed=seed, kinds=trainer.bank.kinds))


def draw_datum(seed: int, length: int = 12, loss: str = "cross_entropy", **numbers: float) -> Datum:
    generator = np.random.default_rng(seed)
    ids = generator.integers(4, VOCAB, length + 1)
    inputs = {"target_tokens": ids[1:]}
    if loss == "cross_entropy":
        inputs["weights"] = generator.normal(size=length).astype(np.float32)
    else:
        inputs |= {"logprobs": generator.normal(-6, 1, length), "advantages": generator.normal(size=length)}
    return make_datum(ids[:-1], inputs, loss, numbers, vocab_size=VOCAB, max_tokens=LONGEST)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_the_documentation(trainer: Trainer, loss: str) -> None:
    open_fresh(trainer, 0)
    datum = draw_datum(1, loss=loss)
    ((scored,),) = trainer.score([(0, [datum])], backward=True)
    values = {name: value.astype(np.float64) for name, value in datum.values.items()}
    given = {"logprobs": scored.logprobs.astype(np.float64), **values}
    given["gap"] = given["logprobs"] - given["sampled"]
    np.testing.assert_allclose(scored.losses, formula(loss, given)[0], atol=1e-5, rtol=1e-5)


def test_log_probs_are_those_of_the_bare_model_at_first(trainer: Trainer, sampler) -> None:
    open_fresh(trainer, 1)
    datum = draw_datum(2)
    ((scored,),) = trainer.score([(1, [datum])], backward=False)
    logits = merge(sampler.graph, sampler.params)(datum.tokens[None])[0].astype(jnp.float32)
    expected = jax.nn.log_softmax(logits)[np.arange(len(datum.tokens)), datum.targets]
    np.testing.assert_allclose(scored.logprobs, expected, atol=1e-5)


def test_several_targets_of_a_position_have_results_of_their_shape(trainer: Trainer) -> None:
    open_fresh(trainer, 1)
    plain = draw_datum(2)
    targets = np.stack([plain.targets, (plain.targets + 1) % VOCAB], 1)
    limits = {"vocab_size": VOCAB, "max_tokens": LONGEST}
    several = make_datum(plain.tokens, {"target_tokens": targets}, "cross_entropy", {}, **limits)
    ((one, two),) = trainer.score([(1, [plain, several])], backward=False)
    assert two.logprobs.shape == (len(plain.tokens), 2)
    np.testing.assert_allclose(two.logprobs[:, 0], one.logprobs, atol=1e-5)


def test_updates_are_those_of_adamw(trainer: Trainer, sampler) -> None:
    open_fresh(trainer, 3, rank=3, seed=5)
    data, settings = [draw_datum(seed) for seed in range(3)], AdamSettings(0.01, 0.8, 0.9, 1e-2, 0.1, 0.5)
    bank, adapter = trainer.bank, trainer.bank.init_adapter(rank=3, seed=5, kinds=trainer.bank.kinds)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01, 0.8, 0.9, 1e-2, weight_decay=0.1))
    moments = optimizer.init(adapter)

    def measure(adapter: dict) -> jax.Array:
        total = 0.0
        for datum in data:
            whole = bank.write(bank.empty(), adapter, jnp.int32(0))
            model = merge(bank.graph, bank.join(sampler.params, whole, bank.gates([(0, 3)])))
            logprobs = jax.nn.log_softmax(model(datum.tokens[None])[0])
            total -= (datum.values["weights"] * logprobs[np.arange(len(datum.targets)), datum.targets]).sum()
        return total

    step = jax.jit(jax.grad(measure))
    for _ in range(2):
        trainer.score([(3, data)], backward=True)
        norm = trainer.update(3, settings)["grad_norm"]
        gradient = step(adapter)
        np.testing.assert_allclose(norm, optax.tree.norm(gradient), rtol=1e-4)
        changes, moments = optimizer.update(gradient, moments, adapter)
        adapter = optax.apply_updates(adapter, changes)
    for name, array in trainer.export(3, moments=False).items():
        *path, part = name.split(".")[1:]
        expected = adapter
        for key in (*path, part):
            expected = expected[int(key) if key.isdigit() else key]
        expected = bank.resize((*path, part), np.asarray(expected), 3)
        np.testing.assert_allclose(array, expected, atol=3e-5, err_msg=name)


def test_eight_side_by_side_are_each_alone(trainer: Trainer) -> None:
    data = {place: [draw_datum(10 * place + n, 8 + place, LOSSES[place % 5]) for n in range(3)] for place in range(8)}
    ends = []
    for together in (True, False):
        for place in range(8):
            open_fresh(trainer, place, rank=1 + place % 4, seed=place)
        for _ in range(3):
            groups = [list(data)] if together else [[place] for place in data]
            for group in groups:
                trainer.score([(place, data[place]) for place in group], backward=True)
                for place in group:
                    trainer.update(place, AdamSettings(1e-3, epsilon=1e-8))
        ends.append([trainer.export(place, moments=True) for place in range(8)])
    shares: dict[str, float] = {}  # norm of the difference over the norm, of each array
    for together, alone in zip(*ends, strict=True):
        for name in alone:
            if not np.array_equal(together[name], alone[name]):
                size = np.linalg.norm(alone[name])
                shares[name] = max(shares.get(name, 0.0), np.linalg.norm(together[name] - alone[name]) / size)
    assert all(share <= 1e-5 for share in shares.values())


def test_an_export_can_be_opened_again(trainer: Trainer) -> None:
    open_fresh(trainer, 0, rank=2)
    data = [draw_datum(7)]
    trainer.score([(0, data)], backward=True)
    trainer.update(0, AdamSettings(1e-2))
    trainer.open(5, 2, *trainer.restore(trainer.export(0, moments=True), moments=True))
    for place in (0, 5):
        trainer.score([(place, data)], backward=True)
        trainer.update(place, AdamSettings(1e-2))
    first, second = (trainer.export(place, moments=True) for place in (0, 5))
    for name in first:
        np.testing.assert_allclose(second[name], first[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "gspo"}, "loss_fn must be one of"),
        ({"numbers": {"beta": 1.0}}, "loss_fn_config of cross_entropy takes nothing"),
        ({"loss": "dro", "numbers": {"beta": float("nan")}}, "finite number"),
        ({"tokens": np.zeros(0, np.int32)}, "1 to 160 tokens"),
        ({"tokens": np.array([1, VOCAB])}, "ids below 304"),
        ({"inputs": {}}, "target_tokens is missing"),
        ({"inputs": {"target_tokens": np.array([1, 2, 3])}}, r"must be \[2\]"),
        ({"inputs": {"target_tokens": np.array([1, -1])}}, "ids below 304"),
        ({"inputs": {"target_tokens": np.array([1, 2]), "mask": np.ones(2)}}, "got 'mask'"),
        ({"inputs": {"target_tokens": np.array([1, 2]), "weights": np.ones(3)}}, "weights must be finite numbers"),
        ({"loss": "ppo"}, "logprobs is missing"),
    ],
)
def test_data_that_are_not_right_are_named(changes: dict, words: str) -> None:
    given = {"tokens": np.array([1, 2]), "inputs": {"target_tokens": np.array([1, 2])}, "loss": "cross_entropy"}
    given |= {"numbers": {}, **changes}
    with pytest.raises(UserError, match=words):
        make_datum(*given.values(), vocab_size=VOCAB, max_tokens=LONGEST)
