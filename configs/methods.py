"""Six ways to teach one base one task, with equal work: fine-tuning, a reward model with PPO, DPO, GRPO with rules,
GRPO with self-ranking, and distillation.

    python -m r1jax.train --config=configs/r1_pipeline.py --workdir=runs/r1       its fourth stage is the teacher
    python -m r1jax.train --config=configs/methods.py --workdir=runs/methods/seed-0
    python docs/methods.py                                                three seeds, then the table and the plot

The base, of three layers and trained from nothing on synthetic text, adds two-digit numbers but seldom takes the
trouble. Each way gets about the same FLOPs (models/flops.py): those of updates, of rollouts, of judgements, of scores
of a reward model, of a critic, and of samples that become a training set. What is not counted: the base, the teacher's
training, and measuring. Each way also needs something that the others do not get, which no FLOPs tell:

    sft       400 worked sums
    rlhf      the same, and answers that somebody orders: here the rule does, by right and wrong
    dpo       a rule that tells which of the model's own samples is better
    grpo      the same rule, as a reward
    self_rank nothing: the policy ranks its own answers
    distilled a larger model after more GRPO, and the rule

What came out stands in docs/methods.md.

Arguments after a colon, e.g. `configs/methods.py:seed=1`:

    seed     0 (default): seed of the data's order and of sampling; the base has seed 0 always
    work     1.0 (default): factor of every way's steps
    teacher  runs/r1/04_zero (default): MODEL that answers for distillation
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import parse_args

TEMPLATE = "question_reply"
TAGGED = " <think> {reasoning} </think> <answer> {answer} </answer>"
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
LENGTH, TOKENS = 128, 64  # of a row; of a completion
RULES = dict(answer_reward=1.0, r1_format_reward=0.3)
WATCHED = dict(answer_reward=0.0)
RANKS = dict(
    weight=1.0,
    template="Question: {question}\n{responses}\nRanking:",
    as_text=True,
    at_once=2,
    judgements=2,
    compare_to="answer_reward",
)

# Steps of each stage, chosen so that each way counts about 1e12 FLOPs; docs/methods.md has what was counted.
STEPS = dict(
    base=500,
    sft=170,
    rlhf_sft=80,
    rlhf_reward=20,
    rlhf=6,
    dpo=85,
    grpo=66,
    self_rank=33,
    distilled=91,
)
SAMPLED = dict(rlhf_pairs=200, dpo_pairs=900, distilled=350)  # prompts, of four samples each
WAYS = {
    "SFT": ("sft",),
    "SFT, reward model, PPO": ("rlhf_sft", "rlhf_pairs", "rlhf_reward", "rlhf"),
    "DPO": ("dpo_pairs", "dpo"),
    "GRPO, rules": ("grpo",),
    "GRPO, self-ranking": ("self_rank",),
    "distillation": ("distilled",),
}


def get_config(arg: str = "") -> ConfigDict:
    """The comparison for a seed."""
    args = parse_args(arg, seed=0, work=1.0, teacher="runs/r1/04_zero")
    make = Stages(args.seed, args.work)
    worked = dict(worked=dict(path="@data/worked.jsonl", template=TEMPLATE))
    stages: dict[str, Any] = {
        "data": dict(stage="synthesize", low=10, high=99, held_out=200, worked=400, texts=40_000, seed=0),
        "vocabulary": dict(stage="vocabulary", path="@data/text.jsonl", size=512, rows=20_000),
        "base": make.begin("base", "Base"),
        "sft": make.learn("sft", "SFT", "base", worked),
        "rlhf_sft": make.learn("rlhf_sft", "SFT before PPO", "base", worked),
        "rlhf_pairs": make.pair("rlhf_pairs", "rlhf_sft"),
        "rlhf_reward": make.prefer("reward_model", "rlhf_reward", "", "rlhf_sft", "rlhf_pairs", 3e-4),
        "rlhf": make.reinforce("rlhf", "SFT, reward model, PPO", "rlhf_sft", {**make.scores(), **WATCHED}, ppo=True),
        "dpo_pairs": make.pair("dpo_pairs", "base"),
        "dpo": make.prefer("dpo", "dpo", "DPO", "base", "dpo_pairs", 1e-4),
        "grpo": make.reinforce("grpo", "GRPO, rules", "base", RULES),
        "self_rank": make.reinforce(
            "self_rank", "GRPO, self-ranking", "base", {"self_rank_reward": dict(RANKS), **WATCHED}
        ),
        "distilled": make.distil("distilled", "Distillation", "base", args.teacher),
    }
    config = ConfigDict()
    config.stage = "pipeline"
    config.seed = args.seed
    config.order = tuple(stages)
    config.stages = ConfigDict(stages)
    config.rerun = ()
    config.skip = ()
    config.mesh = ConfigDict(MESH)
    config.measure = ConfigDict(
        dict(
            data=dict(source="file", path="@data/held_out.jsonl", template=TEMPLATE, eval_problems=200),
            generate=dict(num_samples=4, max_new_tokens=TOKENS, slots=128, temperature=1.0, top_p=1.0, top_k=0, seed=0),
            language="en",
            format="r1_format_reward",
        )
    )
    config.comparison = ConfigDict(WAYS)
    return config


class Stages:
    """Configs of single stages."""

    def __init__(self, seed: int, work: float):
        self.seed, self.work = seed, work

    def steps(self, name: str) -> int:
        """Steps of a stage, of a way that is compared by the factor."""
        return STEPS[name] if name == "base" else max(1, round(self.work * STEPS[name]))

    def optimizer(self, rate: float, schedule: str = "cosine", warmup: int = 4) -> dict[str, Any]:
        """AdamW down to a tenth of the rate."""
        beta2 = 0.95 if schedule == "cosine" else 0.99
        return dict(
            learning_rate=rate, schedule=schedule, warmup_updates=warmup, final_share=0.1, beta2=beta2, weight_decay=0.0
        )

    def task(self) -> dict[str, Any]:
        """The sums."""
        return dict(source="file", path="@data/problems.jsonl", eval_problems=0, template=TEMPLATE, seed=self.seed)

    def supervised(self, name: str, rate: float, sources: dict[str, Any], length: int, rows: int) -> dict[str, Any]:
        """What all stages on a set of rows share."""
        return dict(
            seed=self.seed,
            steps=self.steps(name),
            mesh=MESH,
            data=dict(
                sources=sources,
                length=length,
                bins=64,
                truncation="drop",
                eval_rows=0,
                epochs=placeholder(int),
                seed=self.seed,
            ),
            train=dict(rows_per_step=rows, micro_batch_size=rows),
            optimizer=self.optimizer(rate),
            eval=dict(every_steps=0),
            checkpoint=dict(every_steps=0, keep=2),
            log=dict(tensorboard=False, show_every_steps=0),
        )

    def begin(self, name: str, label: str) -> dict[str, Any]:
        """A model trained from nothing on text."""
        own = dict(preset="tiny_llama", tokenizer="@vocabulary", seed=0, sizes=SIZES)
        shared = self.supervised(name, 3e-3, dict(text=dict(path="@data/text.jsonl")), LENGTH, 16)
        shared["data"]["seed"] = 0
        return dict(stage="sft", init="", label=label, **{**shared, "seed": 0, "model": own})

    def learn(self, name: str, label: str, init: str, sources: dict[str, Any]) -> dict[str, Any]:
        """Fine-tuning."""
        return dict(
            stage="sft", init=init, label=label, model=dict(), **self.supervised(name, 5e-4, sources, LENGTH, 16)
        )

    def prefer(self, stage: str, name: str, label: str, init: str, pairs: str, rate: float) -> dict[str, Any]:
        """DPO or a reward model, on pairs that were collected."""
        sources = dict(pairs=dict(path=f"@{pairs}/set.jsonl", template="plain"))
        loss = dict(center_coefficient=0.01, use_margin=False) if stage == "reward_model" else dict(type="dpo")
        shared = self.supervised(name, rate, sources, 2 * LENGTH, 8)
        return dict(stage=stage, init=init, label=label, model=dict(), loss=loss, **shared)

    def scores(self) -> dict[str, Any]:
        """The reward of the reward model."""
        return dict(reward_model=dict(weight=1.0, model="@rlhf_reward", part="reply"))

    def reinforce(
        self, name: str, label: str, init: str, rewards: dict[str, Any], *, ppo: bool = False
    ) -> dict[str, Any]:
        """GRPO or PPO."""
        loss: dict[str, Any] = dict(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, aggregation="token")
        found = dict(
            stage="grpo",
            init=init,
            label=label,
            seed=self.seed,
            steps=self.steps(name),
            model=dict(),
            mesh=MESH,
            data=self.task(),
            rollout=dict(
                prompts_per_step=8,
                group_size=8,
                max_new_tokens=TOKENS,
                slots=64,
                prefill_batch=16,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
            ),
            judge=dict(max_new_tokens=8, temperature=1.0),
            rewards=rewards,
            train=dict(updates_per_step=1, micro_batch_size=64, completions_per_row=4, old_logprobs="sampler"),
            optimizer=self.optimizer(3e-4, "linear"),
            eval=dict(name="sums", every_steps=0, strict=("answer_reward",)),
            checkpoint=dict(every_steps=0, keep=2),
            log=dict(samples_per_step=16, show_every_steps=0, tensorboard=False),
        )
        if ppo:
            loss |= dict(preset="ppo", kl_coefficient=0.02)
            found["critic"] = dict(optimizer=self.optimizer(3e-4, "linear"))
            found["train"] |= dict(updates_per_step=2, micro_batch_size=32)
        return {**found, "loss": loss}

    def sampled(self, name: str) -> dict[str, Any]:
        """What is sampled of a model."""
        return dict(
            data=self.task(),
            generate=dict(
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                seed=self.seed,
                prompts=max(1, round(self.work * SAMPLED[name])),
                num_samples=4,
                max_new_tokens=TOKENS,
                slots=128,
            ),
            rewards=dict(RULES),
        )

    def pair(self, name: str, init: str) -> dict[str, Any]:
        """Pairs of a model's own samples: of each prompt the best and the worst by the rules."""
        return dict(
            stage="rejection_sampling",
            init=init,
            seed=self.seed,
            model=dict(),
            mesh=MESH,
            filters=dict(min_reward=1.0),
            pairs=dict(per_prompt=1, min_gap=0.5),
            **self.sampled(name),
        )

    def distil(self, name: str, label: str, init: str, teacher: str) -> dict[str, Any]:
        """A student of a model's traces."""
        shared = self.supervised(name, 5e-4, {}, LENGTH, 16)
        return dict(
            stage="distill",
            method="traces",
            init=init,
            label=label,
            teacher=dict(name=teacher, fetch="python -m r1jax.train --config=configs/r1_pipeline.py --workdir=runs/r1"),
            student=dict(),
            corpus=shared.pop("data"),
            filters=dict(min_reward=1.3),
            **{**shared, **self.sampled(name), "eval": dict(name="sums", every_steps=0, strict=("answer_reward",))},
        )
