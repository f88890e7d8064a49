"""A new stage, model family or reward is one file and one line of a table: toys of each, beside the tests, run."""

import json
import pathlib
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import train
from r1jax.core.errors import UserError
from r1jax.models.families.registry import FAMILIES
from r1jax.models.presets import find_preset
from r1jax.rewards import load_rewards, score
from r1jax.rewards.registry import REWARDS
from r1jax.stages.registry import STAGES
from r1jax.weights import load_pretrained
from tests.tiny_model import write_tiny_model

# Learns the mean of some numbers by gradient descent.
STAGE = """
    import contextlib
    import dataclasses

    import jax
    import jax.numpy as jnp

    from r1jax.core.errors import UserError
    from r1jax.core.metrics import MetricsWriter

    @dataclasses.dataclass(frozen=True)
    class Train:
        rate: float = 0.25

    @dataclasses.dataclass(frozen=True)
    class ToyConfig:
        numbers: tuple[float, ...]
        steps: int = 20
        train: Train = Train()
        stage: str = "toy"

        def check(self):
            if self.steps < 1:
                raise UserError(f"config.steps must be at least 1, got {self.steps}")

    CONFIG = ToyConfig

    def run(settings, workdir):
        loss = lambda mean: ((jnp.array(settings.numbers) - mean) ** 2).mean()
        step = jax.jit(lambda mean: (mean - settings.train.rate * jax.grad(loss)(mean), loss(mean)))
        mean = jnp.zeros(())
        with contextlib.closing(MetricsWriter(workdir, tensorboard=False)) as writer:
            for number in range(1, settings.steps + 1):
                mean, value = step(mean)
                writer.write(number, {"loss": float(value), "mean": float(mean)})
"""
FAMILY = """
    import dataclasses

    from r1jax.models.families import dense
    from r1jax.models.families.dense import build as build

    @dataclasses.dataclass(frozen=True)
    class Config(dense.DenseConfig):
        pass

    VARIANTS = {"tiny_toy": Config()}
    HF_NAMES = dense.NAMES

    def from_hf(hf):
        return dense.read_config(Config, hf, {})

    def to_hf(config):
        return dense.write_config(config, {"architectures": ["ToyForCausalLM"], "model_type": "toy"})
"""
REWARD = """
    def toy_reward(completions, solution, **columns):
        return [float(len(text) == len(wanted)) for text, wanted in zip(completions, solution)]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of the toys, on Python's path."""
    for name, text in {"toy_stage": STAGE, "toy_family": FAMILY, "toy_table_rewards": REWARD}.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_stage(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    values = {"stage": "toy", "numbers": (1.0, 2.0, 6.0)}
    (folder / "toy.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    command = ["train", f"--config={folder / 'toy.py'}", f"--workdir={folder / 'run'}"]
    assert train.main(command) == 2
    assert "config.stage must be one of sft, grpo, " in capsys.readouterr().err
    monkeypatch.setitem(STAGES, "toy", "toy_stage")
    assert train.main([*command, "--config.train.rate=0.5"]) == 0
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and rows[-1]["mean"] == pytest.approx(3.0) and rows[-1]["loss"] < rows[0]["loss"]
    assert train.main([*command, "--config.steps=0"]) == 2
    assert "config.steps must be at least 1, got 0" in capsys.readouterr().err


def test_a_family(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(folder / "model", model_type="toy")
    with pytest.raises(UserError, match="unknown model_type 'toy'; known: deepseek_v2, "):
        load_pretrained(model)
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")
    toy, tokenizer = load_pretrained(model)
    llama, _ = load_pretrained(write_tiny_model(folder / "llama"))
    tokens = jnp.array([tokenizer.encode("toy")])
    np.testing.assert_array_equal(toy(tokens), llama(tokens))
    assert find_preset("tiny_toy")[0].__name__ == "toy_family"


def test_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown reward 'toy'"):
        load_rewards({"toy": 1.0})
    monkeypatch.setitem(REWARDS, "toy", "toy_table_rewards:toy_reward")
    rewards = load_rewards({"toy": 2.0})
    given = dict(prompts=["", ""], completions=["abc", "d"], completion_ids=[[1], [1]])
    scores = score(rewards, **given, columns={"solution": ["xyz", "xyz"]})
    assert scores.total.tolist() == [2.0, 0.0] and list(scores.by_name) == ["toy_reward"]
