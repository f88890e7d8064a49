"""r1jax from Python: the examples of docs/python.md, and that it gives what the commands give."""

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import r1jax
from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.eval.prompting import Prompting
from r1jax.models.transformer import merge
from r1jax.rewards.base import read_rewards
from r1jax.rewards.registry import GIVEN, name_rewards
from r1jax.stages.registry import resolve_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
DEMO, CONFIG = "models/SmolLM2-135M-Instruct.Q4_1.gguf", "configs/grpo_zero.py"
TINY = str(ROOT / "tests/stages/tiny_grpo.py")


@pytest.fixture(scope="module")
def model(tiny_model: pathlib.Path) -> r1jax.Model:
    return r1jax.load(tiny_model, batch_size=4)


def short_reward(completions: list[str], **columns: Any) -> list[float]:
    return [1.0 if len(text) < 5 else 0.0 for text in completions]


def test_the_import_is_light() -> None:
    code = "import sys, r1jax; assert 'jax' not in sys.modules and {'run', 'load'} <= {*dir(r1jax)}; r1jax.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.endswith("AttributeError: module 'r1jax' has no attribute 'nothing'\n")


def test_the_examples_with_a_model_run(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = [text for text in PROGRAMS if CONFIG not in text]
    assert len(programs) == 5
    names: dict[str, Any] = {}
    exec("\n".join(programs).replace(DEMO, str(tiny_model)), names)
    assert [len(group) for group in names["groups"]] == [4, 4] and names["scores"]["sums"]["n"] == 4
    assert json.loads((tmp_path / "scores.json").read_text())["benchmarks"] == names["scores"]


def test_samples_and_their_log_probs_agree(model: r1jax.Model) -> None:
    prompt = "2 + 2 ="
    ((sample, other),) = model.generate(prompt, num_samples=2, max_new_tokens=6, temperature=0.7, seed=3)
    assert sample.tokens != other.tokens and sample.text == model.tokenizer.decode(sample.tokens)
    assert model.generate([prompt], num_samples=2, max_new_tokens=6, temperature=0.7, seed=3) == [[sample, other]]
    scored = model.logprobs([prompt] * 2, [sample.tokens, other.tokens], temperature=0.7)
    assert [*scored[0], *scored[1]] == pytest.approx([*sample.logprobs, *other.logprobs], abs=2e-5)
    ids = [*model.tokenizer.encode(prompt), *model.tokenizer.encode(" 4")]
    logits = jax.jit(lambda params, ids: merge(model.sampler.graph, params)(ids))(model.sampler.params, np.array([ids]))
    expected = jax.nn.log_softmax(logits[0])[np.arange(len(ids) - 3, len(ids) - 1), np.array(ids[-2:])]
    assert model.logprobs(prompt, " 4") == [pytest.approx(expected.tolist(), abs=2e-5)]


def test_a_model_is_asked_as_its_run_asked(model: r1jax.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Prompting("Q: {question} A:", stop_ids=(2, 3), sampling={"temperature": 0.0, "max_new_tokens": 6})
    monkeypatch.setattr(model, "prompting", asked)
    ((sample,),) = model.generate("2 + 2?", template="run")
    assert model.generate("Q: 2 + 2? A:", temperature=0.0, max_new_tokens=6) == [[sample]]


def test_mistakes_are_told(model: r1jax.Model) -> None:
    for call, message in (
        (lambda: model.generate("x", heat=1), "no sampling setting 'heat'; known: temperature, top_k"),
        (lambda: model.generate("x", temperature=-1), "temperature must be 0"),
        (lambda: model.chat([]), "at least one message"),
        (lambda: model.logprobs(["x"], ["y", "z"]), "one completion for each prompt, got 2 for 1"),
        (lambda: model.generate("x", template="run"), "--template=run needs a model that carries"),
        (lambda: r1jax.run(TINY, stepz=3), "config has no key stepz"),
        (lambda: r1jax.run(TINY, rewards=[lambda completions, **_: [0.0]]), "a reward needs a name"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
    assert model.generate([]) == []


def test_rewards_may_be_functions() -> None:
    place = f"{__name__}:short_reward"
    expected = {"answer_reward": 1.0, "short_reward": {"weight": 0.5, "function": place}}
    assert name_rewards({"answer_reward": 1.0, short_reward: 0.5}) == expected
    assert name_rewards([short_reward]) == {"short_reward": {"weight": 1.0, "function": place}}
    named = {"brief": {"function": short_reward, "gate": True}}
    assert name_rewards(named) == {"brief": {"function": place, "gate": True}}

    def local_reward(completions: list[str], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    flags = {"rewards": str(name_rewards([local_reward, "number_reward"])), "model.name": "m"}
    settings = resolve_run(load_config(TINY), flags).settings
    local, number = read_rewards(settings.rewards)
    assert local.name == "local_reward" and number.weight == 1.0
    assert local.function(["a", "b"]) == [0.5, 0.5]
    del GIVEN[settings.rewards["local_reward"]["function"]]  # as in another process
    with pytest.raises(UserError, match=r"cannot import .* continue by r1jax.run in that program"):
        read_rewards(settings.rewards)


def test_values_in_place_of_a_file_run_a_stage(tmp_path: pathlib.Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"some words of row {n}, and more of them"} for n in range(40)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"stage": "vocabulary", "path": str(texts), "size": 64}
    run = r1jax.run(config, workdir=tmp_path / "run", size=320, rows=30)
    assert (run.settings.size, run.settings.rows) == (320, 30) and (run.workdir / "tokenizer.json").is_file()


@pytest.mark.slow
def test_the_examples_of_a_run(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = [text for text in PROGRAMS if CONFIG in text]
    assert len(programs) == 2
    for text in programs:
        text = text.replace(f'"{CONFIG}"', f'"{TINY}", model__name="{tiny_model}"').replace("steps=3", "steps=1")
        names: dict[str, Any] = {"__name__": "a_script"}
        exec(text, names)
        assert names["run"].metrics[-1]["step"] == 1
    saved = json.loads((tmp_path / "runs/brief/config.json").read_text())
    assert saved["rewards"]["brevity"] == {"weight": 1.0, "function": "a_script:brevity"}
