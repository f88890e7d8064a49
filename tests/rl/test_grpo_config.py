"""A GRPO config is checked before any device is touched."""

import dataclasses
import re

import pytest

from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.core.structs import Sampling
from r1jax.losses.policy import PRESETS, PolicyLossConfig
from r1jax.rl.grpo_config import GRPOConfig, RolloutConfig
from r1jax.stages.registry import resolve_run
from tests.stages.runs import CONFIG, read_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.micro_batch_size": "12"}, "config.train.micro_batch_size = 12 must divide"),
        ({"train.completions_per_row": "3"}, "config.train.completions_per_row = 3 must divide"),
        ({"train.updates_per_step": "3"}, "config.train.updates_per_step = 3 must divide config.rollout.prompts_per"),
        ({"train.logits_chunk": "5"}, "config.train.logits_chunk = 5 must divide config.train.completions_per_row x"),
        ({"train.updates_per_step": "0"}, "config.train.updates_per_step must be at least 1, got 0"),
        ({"rollout.group_size": "1"}, "config.rollout.group_size must be at least 2 to compare answers, got 1"),
        ({"rollout.temperature": "0"}, "config.rollout.temperature must be positive to explore, got 0"),
        ({"rollout.temperature": "nan"}, "config.rollout.temperature must be positive to explore, got nan"),
        ({"rollout.top_k": "-1"}, "config.rollout.top_k must be 0 (off) or more, got -1"),
        ({"rollout.top_p": "0"}, "config.rollout.top_p must be above 0 and at most 1 (off), got 0.0"),
        ({"rollout.top_p": "1.5"}, "config.rollout.top_p must be above 0 and at most 1 (off), got 1.5"),
        ({"rollout.min_p": "1.5"}, "config.rollout.min_p must be from 0 (off) to 1, got 1.5"),
        ({"eval.temperature": "-1"}, "config.eval.temperature must be 0 (greedy) or more, got -1.0"),
        ({"eval.strict": "[]"}, "config.eval.strict must name at least one reward, got ()"),
        ({"eval.lenient": ""}, "config.eval.lenient must name a reward, got ''"),
        ({"model.dtype": "float8"}, "config.model.dtype must be one of 'float32', 'bfloat16', 'float16', got 'float8'"),
        ({"model.param_dtype": "f32"}, "config.model.param_dtype must be one of 'float32'"),
        (
            {"rollout.max_new_tokens_schedule": "((1, 4), (3, 9))"},
            "config.rollout.max_new_tokens_schedule must be from 1 to max_new_tokens = 8",
        ),
        (
            {"rollout.max_new_tokens_schedule": "((3, 4), (3, 5))"},
            "config.rollout.max_new_tokens_schedule must be (step, value) pairs by rising steps",
        ),
        ({"rollout.temperature_schedule": "((1, 0.0),)"}, "config.rollout.temperature_schedule must be positive"),
        ({"loss": '{"preset": "trpo"}'}, "config.loss.preset must be one of"),
        (
            {"loss.importance_correction": "tokens"},
            "config.loss.importance_correction must be one of 'none', 'token_truncate'",
        ),
        (
            {
                "loss.importance_correction": "token_mask",
                "train.old_logprobs": "sampler",
                "train.updates_per_step": "2",
            },
            "config.loss.importance_correction compares trainer and sampler",
        ),
        ({"dynamic_sampling.max_rounds": "0"}, "config.dynamic_sampling.max_rounds must be at least 1, got 0"),
        (
            {"reference.every_updates": "3", "train.updates_per_step": "2"},
            "config.train.updates_per_step = 2 must divide config.reference.every_updates = 3",
        ),
        ({"curriculum.skip": "2"}, "config.curriculum.skip must be from 0 to 1, got 2"),
        ({"rollout.slots": "0"}, "config.rollout.slots must be at least 1"),
        ({"train.old_logprobs": "samplr"}, "config.train.old_logprobs must be one of 'trainer', 'sampler'"),
        ({"loss.aggregation": "mean"}, "config.loss.aggregation must be one of"),
        ({"steps": "0"}, "config.steps must be at least 1, got 0"),
    ],
)
def test_impossible_combinations_are_named(changes: dict[str, str], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        read_settings(CONFIG, **changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_of_a_config(dtype: str):
    changes = {"model.dtype": dtype, "model.param_dtype": dtype}
    settings = read_settings(CONFIG, **changes)
    assert (settings.model.dtype, settings.model.param_dtype) == (dtype, dtype)


def test_rules_of_the_mesh_may_be_null_or_name_several_axes():
    rules = '{"embed": null, "vocab": "fsdp,tensor", "mlp": ["fsdp", "tensor"]}'
    settings = read_settings(CONFIG, mesh__rules=rules)
    assert settings.mesh.rules == {"embed": None, "vocab": "fsdp,tensor", "mlp": ("fsdp", "tensor")}
    with pytest.raises(UserError, match=r"config\.mesh\.rules\.embed must be"):
        read_settings(CONFIG, mesh__rules='{"embed": 3}')


def test_an_unknown_key_of_a_section_is_named():
    config = load_config(str(CONFIG))
    with config.unlocked():
        config.rollout.top_q = 0.5
    with pytest.raises(UserError, match=r'config\.rollout\.top_q is not a known key; did you mean "top_[kp]"'):
        resolve_run(config)


def test_sampling_of_a_run_is_that_of_its_config():
    rollout = RolloutConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, max_new_tokens=3)
    assert rollout.sampling((2, 3)) == Sampling(0.7, 5, 0.9, 0.1, 3, (2, 3))
    assert dataclasses.replace(rollout, ignore_stop=True).sampling((2, 3)).stop_ids == ()


def read(**sections: str) -> GRPOConfig:
    return read_settings(CONFIG, **sections)


def test_a_preset_is_the_default_of_its_knobs():
    settings = read(
        loss='{"preset": "dapo", "clip_high": 0.5, "clip_low": null}', dynamic_sampling='{"filter_truncated": false}'
    )
    assert (settings.loss.clip_low, settings.loss.clip_high) == (0.2, 0.5)
    assert (settings.dynamic_sampling.max_rounds, settings.dynamic_sampling.filter_truncated) == (4, False)


def test_r1_asks_for_sixteen_updates_and_a_new_reference_every_twenty_five_steps():
    settings = read(loss='{"preset": "r1"}', train="{}", reference="{}", rollout__prompts_per_step="16")
    assert settings.train.updates_per_step == 16 and settings.reference.every_updates == 16 * 25
    assert (settings.loss.clip_low, settings.loss.clip_high, settings.loss.kl_coefficient) == (10, 10, 0.001)
    assert settings.loss.kl_estimator == "k3"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_the_loss(preset: str):
    settings = read(loss=f'{{"preset": "{preset}"}}', rollout__prompts_per_step="16", train="{}", dynamic_sampling="{}")
    assert settings.loss == PolicyLossConfig(preset, **PRESETS[preset])
