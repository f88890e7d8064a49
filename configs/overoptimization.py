"""A policy against reward models that saw many or few preferences: the learned score rises, the true one need not.

    python -m r1jax.train --config=configs/overoptimization.py --workdir=runs/overoptimization
    python docs/overoptimization.py --workdir=runs/overoptimization               the plot and the table

Requests without a verifiable answer ("Thank Eva for the cake.") have a true score by rule (text/request_quality.py).
Two reward models learn it from preferences that are the wrong way round as often as Bradley and Terry say, one from
thousands of pairs and one from a few; each is measured on 2,000 pairs about persons whom it has not seen (accuracy and
calibration, `calibration.json`). Then GRPO raises the score of each, from the same base, without a KL penalty and for
longer than is good, while the true score is only watched: `rewards/request_score/mean` beside
`rewards/reward_model/mean` (Gao et al. 2022, 2210.10760). R1's authors met the same and used their reward models in the
last 400 of 1,700 steps.

What came out stands in docs/overoptimization.md.

Arguments after a colon, e.g. `configs/overoptimization.py:few=100`:

    many   5000 (default): pairs of the first reward model
    few    12 (default): pairs of the second
    steps  80 (default): of each reinforcement
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import parse_args

TEMPLATE = "question_reply"
MESH = dict(data=-1, fsdp=1, tensor=1)
SIZES = dict(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    max_positions=512,
    initializer_std=0.08,  # about 1 / sqrt(width)
)
HELD_OUT = 2000


def get_config(arg: str = "") -> ConfigDict:
    """The study."""
    args = parse_args(arg, many=5000, few=12, steps=80)
    draw = dict(stage="synthesize", low=10, high=99, held_out=200)
    unseen = dict(held_out_preferences=HELD_OUT)
    fresh = dict(preset="tiny_llama", tokenizer="@vocabulary", seed=0, sizes=SIZES)
    text = dict(text=dict(path="@data/text.jsonl"))
    stages: dict[str, Any] = {
        "data": dict(**draw, texts=40_000, requests=1000, preferences=args.many, **unseen, seed=0),
        "data_few": dict(**draw, preferences=args.few, **unseen, seed=1),
        "vocabulary": dict(stage="vocabulary", path="@data/text.jsonl", size=512, rows=20_000),
        "base": dict(stage="sft", init="", label="Base", model=fresh, **learn(text, steps=500, rate=3e-3, length=128)),
        "reward_many": prefer("data", steps=200),
        "reward_few": prefer("data_few", steps=30),
        "rl_many": reinforce("reward_many", args.steps),
        "rl_few": reinforce("reward_few", args.steps),
    }
    config = ConfigDict()
    config.stage = "pipeline"
    config.seed = 0
    config.order = tuple(stages)
    config.stages = ConfigDict(stages)
    config.rerun = ()
    config.skip = ()
    config.mesh = ConfigDict(MESH)
    config.measure = ConfigDict(
        dict(
            data=dict(source="file", path="@data/held_out.jsonl", template=TEMPLATE),
            generate=dict(num_samples=4, max_new_tokens=64, slots=128, temperature=1.0, top_p=1.0, top_k=0, seed=0),
            format="r1_format_reward",
        )
    )
    return config


def learn(sources: dict[str, Any], *, steps: int, rate: float, length: int, rows: int = 16) -> dict[str, Any]:
    """What stages on a set of rows share."""
    return dict(
        seed=0,
        steps=steps,
        mesh=MESH,
        data=dict(
            sources=sources,
            length=length,
            bins=64,
            truncation="drop",
            eval_rows=0,
            epochs=placeholder(int),
            seed=0,
        ),
        train=dict(rows_per_step=rows, micro_batch_size=rows),
        optimizer=dict(
            learning_rate=rate, schedule="cosine", warmup_updates=4, final_share=0.1, beta2=0.95, weight_decay=0.0
        ),
        eval=dict(every_steps=0),
        checkpoint=dict(every_steps=0, keep=2),
        log=dict(tensorboard=False, show_every_steps=0),
    )


def prefer(data: str, steps: int) -> dict[str, Any]:
    """A reward model that starts from the base."""
    files = dict(path=f"@{data}/preferences.jsonl", eval_path="@data/preferences_held_out.jsonl")
    sources = dict(preferences=dict(**files, template=TEMPLATE))
    shared = learn(sources, steps=steps, rate=1e-3, length=256, rows=8)
    return dict(stage="reward_model", init="base", model=dict(), **shared)


def reinforce(scores: str, steps: int) -> dict[str, Any]:
    """GRPO on the score alone."""
    return dict(
        stage="grpo",
        init="base",
        seed=0,
        steps=steps,
        model=dict(),
        mesh=MESH,
        data=dict(source="file", path="@data/requests.jsonl", eval_problems=0, template=TEMPLATE, seed=0),
        rollout=dict(
            prompts_per_step=8,
            group_size=8,
            max_new_tokens=64,
            slots=64,
            prefill_batch=16,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
        ),
        rewards=dict(
            reward_model=dict(weight=1.0, model=f"@{scores}", part="answer"),
            request_score=dict(weight=0.0),  # the truth, which is only watched
        ),
        train=dict(updates_per_step=1, micro_batch_size=64, completions_per_row=4, old_logprobs="sampler"),
        loss=dict(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, aggregation="token"),
        optimizer=dict(learning_rate=3e-4, schedule="constant", warmup_updates=4, beta2=0.99, weight_decay=0.0),
        eval=dict(every_steps=0),
        checkpoint=dict(every_steps=0, keep=2),
        log=dict(samples_per_step=16, show_every_steps=0, tensorboard=False),
    )
