"""The examples of docs/extend.md run as they stand and are as short as promised; commands shown name what exists."""

import importlib.util
import pathlib
import re
import shlex
import sys
import types

import chex
import jax
import pytest
from flax import nnx

from r1jax import train
from r1jax.data.tasks import TaskConfig, load_task
from r1jax.models.transformer import split
from r1jax.rewards.base import load_rewards, score
from r1jax.stages.registry import STAGES
from r1jax.train import resolve, split_overrides
from r1jax.weights import load_pretrained
from tests.tiny_model import write_tiny_model

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {
    block.partition("\n")[0].removeprefix("# "): block.partition("\n")[2]
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL)
}


SHOWN = r"^ *(python -m r1jax\.(?:train|compile_check) --config=configs/.*(?:\n {20,}.*)*)"
COMMANDS = {
    f"{file.name}:{number}": command
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, command in enumerate(re.findall(SHOWN, file.read_text().replace("\\\n", " "), re.MULTILINE))
}


def load(name: str, folder: pathlib.Path) -> types.ModuleType:
    file = folder / pathlib.Path(name).name
    file.write_text(PROGRAMS[name])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def test_examples_are_short() -> None:
    assert len(PROGRAMS) == 4
    assert all(len(text.splitlines()) < 45 for text in PROGRAMS.values())


def test_the_reward(tmp_path: pathlib.Path) -> None:
    load("my_rewards.py", tmp_path)
    rewards = load_rewards({"brevity": {"weight": 0.1, "function": "my_rewards:brevity_reward"}})
    texts = ["one two", "one " * 6, "one " * 20]
    columns = {"solution": ["one"] * 3}
    scores = score(rewards, prompts=texts, completions=texts, completion_ids=[[1]] * 3, columns=columns)
    assert scores.by_name["brevity_reward"].tolist() == [1.0, 0.5, 0.0]
    assert scores.total == pytest.approx([0.1, 0.05, 0.0])


def test_the_task(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load("make_reversals.py", tmp_path)
    task = load_task(TaskConfig("file", "reversals.jsonl", "reversals_held_out.jsonl", 100, template="r1"))
    assert len(task.held_out) == 100 and len(task.train) > 300 and task.notes == ()
    row = task.train[0]
    assert row["question"].endswith(" ".join(reversed(row["solution"].split()))) and row["question"] in row["prompt"]


def test_the_model_family(tmp_path: pathlib.Path) -> None:
    family = load("r1jax/models/families/seed_oss.py", tmp_path)
    config = family.VARIANTS["seed_oss_36b"]
    assert family.from_hf(family.to_hf(config)) == config
    model = nnx.eval_shape(lambda: family.build(config, rngs=nnx.Rngs(0), scan_layers=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(split(model)[1])) == 36_151_104_512


def test_the_stage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("r1jax/stages/average.py", tmp_path)
    monkeypatch.setitem(STAGES, "average", "average")
    models = [str(write_tiny_model(tmp_path / f"model_{seed}", seed=seed)) for seed in (1, 2)]
    config = tmp_path / "soup.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict(dict(stage='average'))\n"
    )
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert train.main(command) == 2
    assert train.main([*command, f"--config.models={models!r}"]) == 0
    first, second, average = (split(load_pretrained(path)[0])[1] for path in (*models, tmp_path / "run" / "average"))
    chex.assert_trees_all_close(average, jax.tree.map(lambda a, b: (a + b) / 2, first, second), rtol=1e-6)


@pytest.mark.parametrize("place", COMMANDS)
def test_the_commands_shown_have_configs_and_keys_that_exist(place: str) -> None:
    arguments = shlex.split(COMMANDS[place], comments=True)[3:]
    _, overrides = split_overrides([a for a in arguments if a.startswith("--config.")])
    (config,) = (a.removeprefix("--config=") for a in arguments if a.startswith("--config="))
    assert resolve(config, None, overrides)[0].settings.stage in STAGES


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 10
