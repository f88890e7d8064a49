"""A pipeline of seconds for the tests: every kind of stage on a toy model that is trained from nothing.

python -m r1jax.train --config=tests/stages/pipeline/tiny_pipeline.py --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
FRESH = {"tokenizer": "@vocabulary", "preset": "tiny_llama", "sizes": SIZES}
GIVEN = dict[str, Any]()
MESH = {"data": 1}
LOG = {"tensorboard": False}
OPTIMIZER = {"learning_rate": 3e-3, "schedule": "constant"}
LETTERS = {"letters": {"function": "tests.stages.letters:letters_reward"}}


def get_config(arg: str = "") -> ConfigDict:
    stages = {
        "data": {"stage": "synthesize", "low": 1, "high": 9, "held_out": 4, "worked": 20, "requests": 12, "texts": 150},
        "vocabulary": {"stage": "vocabulary", "path": "@data/text.jsonl", "size": 400},
        "base": learn({"text": {"path": "@data/text.jsonl"}}, label="base", model=FRESH, steps=4),
        "zero": reinforce("base", "R1-Zero", "@data/problems.jsonl", LETTERS),
        "cold_data": gather("zero", {"min_reward": 0.0}),
        "cold_start": learn(
            {
                "traces": {"path": "@cold_data/set.jsonl", "template": "plain"},
                "worked": {"path": "@data/worked.jsonl", "template": "question_reply"},
            },
            init="zero",
            label="Dev1",
        ),
        "rl_all": reinforce(
            "cold_start",
            "R1",
            "@data/all_domains.jsonl",
            {**LETTERS, "judge_reward": {"weight": 1.0, "domain": "general"}},
        ),
        "distilled": {**distil("rl_all"), "init": "base", "label": "distilled"},
    }
    return ConfigDict(
        {
            "stage": "pipeline",
            "seed": 0,
            "order": tuple(stages),
            "stages": stages,
            "measure": {
                "data": {"source": "file", "path": "@data/held_out.jsonl", "template": "question_reply"},
                "generate": {"num_samples": 2, "max_new_tokens": 8, "slots": 8},
            },
            "comparison": {"distilled": ("distilled",), "GRPO alone": ("zero",)},
            "mesh": MESH,
            "rerun": (),
            "skip": (),
        }
    )


def learn(
    sources: dict[str, Any], *, label: str, init: str = "", model: dict[str, Any] = GIVEN, steps: int = 2
) -> dict[str, Any]:
    return {
        "stage": "sft",
        "init": init,
        "label": label,
        "seed": 0,
        "steps": steps,
        "model": dict(model),
        "mesh": MESH,
        "data": {"sources": sources, "length": 64, "bins": 4, "epochs": placeholder(int)},
        "train": {"rows_per_step": 4, "micro_batch_size": 4},
        "optimizer": OPTIMIZER,
        "checkpoint": {"every_steps": 1},
        "log": LOG,
    }


def reinforce(init: str, label: str, path: str, rewards: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": "grpo",
        "init": init,
        "label": label,
        "seed": 0,
        "steps": 2,
        "model": dict(GIVEN),
        "mesh": MESH,
        "data": {"source": "file", "path": path, "eval_problems": 0, "template": "question_reply"},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8, "slots": 8, "prefill_batch": 4},
        "judge": {"max_new_tokens": 8},
        "rewards": rewards,
        "train": {"micro_batch_size": 8, "completions_per_row": 4},
        "optimizer": OPTIMIZER,
        "eval": {"strict": ("answer_reward",)},
        "checkpoint": {"every_steps": 1},
        "log": LOG,
    }


def gather(init: str, filters: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": "rejection_sampling",
        "init": init,
        "seed": 0,
        "model": dict(GIVEN),
        "mesh": MESH,
        "data": {"source": "file", "path": "@data/problems.jsonl", "eval_problems": 0, "template": "question_reply"},
        "generate": {"prompts": 8, "num_samples": 2, "max_new_tokens": 24, "slots": 8},
        "rewards": LETTERS,
        "filters": filters,
        "reply": " <think> {reasoning} </think> <answer> {answer} </answer>",
    }


def distil(teacher: str) -> dict[str, Any]:
    gathered = gather("", {"min_reward": 0.0})
    shared = {key: gathered[key] for key in ("data", "generate", "rewards", "filters", "mesh", "seed")}
    learnt = learn({}, label="")
    return {
        "stage": "distill",
        "method": "traces",
        "teacher": {"name": f"@{teacher}"},
        "student": dict(GIVEN),
        "corpus": {"sources": {}, "length": 64, "bins": 4, "epochs": placeholder(int)},
        **shared,
        **{key: learnt[key] for key in ("steps", "train", "optimizer", "checkpoint", "log")},
    }
