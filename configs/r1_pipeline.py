"""The full R1 recipe as one small run: base, R1-Zero, cold start, RL, rejection sampling, fine-tuning, RL again, and
students of the result.

    python -m r1jax.train --config=configs/r1_pipeline.py --workdir=runs/r1
    python -m r1jax.compile_check --config=configs/r1_pipeline.py:size=671b --topology=v5p:8x8x8

A DeepSeek-V3-shaped model of 4 million parameters (latent attention, experts, multi-token prediction) is trained on
synthetic text in two languages and goes through every stage of DeepSeek-R1 (arXiv:2501.12948); then a smaller one is
(a) distilled from the result, (b) trained by RL alone, (c) both. Every model is evaluated on the same sums. Twenty
minutes on one core: the base solves 17% of held-out sums (sampled), R1-Zero 95%, with both languages in two replies of
five, the last model 99% in English (docs/pipeline.md has the table); `runs/r1/report.html` shows all stages. Repeat the
command to resume after an interruption.

Change a stage by its name, `--config.stages.zero.steps=200`; start it from another model,
`--config.stages.zero.init=MODEL`; run it again, `--config.rerun=zero`; leave it out, `--config.skip=cold_start`.

Arguments after a colon, e.g. `configs/r1_pipeline.py:size=smollm2,seed=1`:

    size     tiny (default): as above; smollm2: the stages from SmolLM2-135M-Instruct, without base training, 4% before,
             R1-Zero 48%, the last model 61%, 66 minutes on two cores; 671b: the paper's settings, from
             DeepSeek-V3-Base, which has not run anywhere
    recipe   r1 (default): all stages; or one of open-r1's three steps: distill (a student of R1-Zero's traces), zero
             (RL alone), multi (R1-Zero's traces, fine-tuning of the base on them, RL)
    last     judge (default): in the last reinforcement the policy judges replies to requests; reward_model: a reward
             model, trained inside the pipeline on preferences, scores them, as in the paper
    lineage  paper (default): both fine-tunings start from the base; seed: each stage starts from the previous one
    seed     0 (default): seed of weights, data and sampling
    data     "" (default): for size 671b, the folder of the files that the stage `data` writes at the other sizes
             (listed in r1jax/stages/synthesize.py)
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import parse_args
from r1jax.core.errors import UserError
from r1jax.data.tasks import Example, choose_template

TAGGED = " <think> {reasoning} </think> <answer> {answer} </answer>"

TINY = dict(
    template="question_reply",
    judge_template="{question}{response}\nScore:",  # as in the text that the base read
    mesh=dict(data=-1, fsdp=1, tensor=1),
    model=dict(dtype="float32", param_dtype="float32", scan_layers=False, remat="none"),
    base=dict(
        preset="tiny_deepseek_v3",
        sizes=dict(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=512,
            num_layers=4,
            num_heads=4,
            latents=dict(query_latent=64, latent=64, plain_dim=24, rotary_dim=16, value_dim=32),
            expert_size=128,
            num_experts=16,
            active_experts=2,
            max_positions=256,
            initializer_std=0.08,  # about 1 / sqrt(width): with the 0.02 of wide models so narrow a one wakes slowly
        ),
    ),
    draw=dict(low=10, high=99, held_out=200, worked=400, requests=1000, texts=60_000),
    vocabulary=dict(size=512, rows=20_000),
    length=128,
    eval_rows=100,  # of what is read from nothing
    rows=(16, 16),  # rows a step, rows a micro-batch
    supervised=dict(base=800, cold_start=80, sft_2=120, student_base=500, distilled=100),
    # Where nearly all is right already, few groups say anything: more prompts a step, and shorter steps.
    rates=dict(base=3e-3, cold_start=5e-4, sft_2=5e-4, distilled=5e-4, reinforced=3e-4, rl_all=5e-5, student_both=1e-4),
    preferences=3000,
    scored=dict(steps=120, rows=16, micro=16, rate=3e-4),
    reinforced=dict(zero=120, rl_reasoning=80, rl_all=40, student_zero=42, student_both=20),
    prompts=dict(rl_all=32, student_both=32),  # a step, where it is not the rollout's number
    rollout=dict(prompts_per_step=8, group_size=8, max_new_tokens=64, slots=64, prefill_batch=16),
    train=dict(updates_per_step=1, micro_batch_size=64, completions_per_row=4, old_logprobs="sampler"),
    loss=dict(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, aggregation="token"),
    reference=dict(),
    temperature=1.0,
    collect=dict(prompts=400, num_samples=4, max_new_tokens=64, slots=128),
    measure=dict(num_samples=4, max_new_tokens=64, slots=128),
    judge_tokens=4,
    student=dict(num_layers=3),
    mtp_weight=0.3,
    every=20,  # steps between checkpoints of reinforcement, and between evaluations inside it
    eval_problems=100,
)

# One worked example before the question, as in configs/grpo_zero.py.
SHOWN = choose_template("r1", Example("What is 34 + 25?", "34 + 25 = 59", "59", "<|im_end|>"))("{question}")
DEMO = dict(
    name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
    fetch="python launch/fetch_demo.py",
)
SMOLLM2: dict[str, Any] = {
    **TINY,
    **dict(
        template=SHOWN,
        # A model that does not obey continues this with a digit; three tokens, for a number may come behind a space.
        judge_template="How good is this reply, from 0 (useless) to 9 (perfect)?\n\n{question}{response}\n\nScore:",
        judge_tokens=3,
        base=DEMO,
        draw=dict(low=10, high=99, held_out=200, worked=400, requests=400, texts=0),
        supervised=dict(cold_start=16, sft_2=24, student_base=16, distilled=24),
        prompts={},
        rates=dict(base=1e-4, cold_start=5e-5, sft_2=5e-5, distilled=1e-4, reinforced=2e-5),
        length=208,  # prompt and example have 148 tokens, a sum worked out and checked 58
        eval_rows=0,
        rows=(8, 8),
        preferences=400,
        scored=dict(steps=24, rows=4, micro=4, rate=2e-5),
        reinforced=dict(zero=12, rl_reasoning=8, rl_all=8, student_zero=12, student_both=6),
        rollout=dict(prompts_per_step=8, group_size=8, max_new_tokens=64, slots=64, prefill_batch=8),
        train=dict(updates_per_step=1, micro_batch_size=16, completions_per_row=8, old_logprobs="sampler"),
        collect=dict(prompts=200, num_samples=2, max_new_tokens=64, slots=64),
        measure=dict(num_samples=1, max_new_tokens=64, slots=64),
        student=dict(layers=27),  # of thirty, evenly spread
        every=0,
    ),
}

# Learning rates, temperatures, group and update counts are the paper's (its supplement, sections B.3 and B.4).
PAPER: dict[str, Any] = {
    **TINY,
    **dict(
        template="r1",
        judge_template="judge",
        mesh=dict(data=1, fsdp=-1, expert=64, context=1, tensor=1),
        model=dict(
            dtype="bfloat16",
            param_dtype="float32",
            scan_layers=True,
            remat="full",
            dispatch="grouped",
            buffer_factor=1.25,
            dispatch_tokens=8192,
        ),
        base=dict(name="deepseek-ai/DeepSeek-V3-Base"),
        length=8192,  # the paper's is 32,768
        rows=(2048, 1),
        supervised=dict(cold_start=15, sft_2=750, distilled=1500),
        prompts={},
        rates=dict(cold_start=5e-5, sft_2=5e-5, distilled=1e-4, reinforced=3e-6),
        # 66,000 pairs of a batch of 256, one epoch; a row holds one pair of 2 x 8,192 tokens (section B.3)
        scored=dict(steps=258, rows=256, micro=1, rate=6e-6),
        reinforced=dict(zero=650, rl_reasoning=650, rl_rules=81, rl_all=106, student_zero=650, student_both=100),
        rollout=dict(
            prompts_per_step=512,
            group_size=16,
            max_new_tokens=7168,
            max_prompt_tokens=1024,
            slots=4096,
            prefill_batch=512,
            cache_pieces=1,
        ),
        train=dict(
            updates_per_step=4,
            micro_batch_size=1,
            completions_per_row=1,
            share_prompts=False,  # so that attention over long rows is the TPU's own kernel
            logits_chunk=1024,
            old_logprobs="trainer",
        ),
        loss=dict(preset="r1"),
        reference=dict(every_updates=400),
        temperature=0.7,
        collect=dict(prompts=0, num_samples=4, max_new_tokens=7168, slots=4096),
        measure=dict(num_samples=16, max_new_tokens=7168, slots=4096),
        judge_tokens=512,
        student=dict(name="Qwen/Qwen2.5-7B"),
        mtp_weight=0.0,  # the paper says nothing of it after pre-training
        every=25,
        eval_problems=128,
    ),
}
SIZES: dict[str, dict[str, Any]] = {"tiny": TINY, "smollm2": SMOLLM2, "671b": PAPER}

RECIPES = {
    "r1": None,
    "distill": ("data", "vocabulary", "base", "zero", "student_base", "distilled"),
    "zero": ("data", "vocabulary", "base", "zero"),
    "multi": ("data", "vocabulary", "base", "zero", "cold_data", "cold_start", "rl_reasoning"),
}
EXPERTS_ONLY = ("dispatch", "buffer_factor", "dispatch_tokens")  # of a model without experts refused
RULES = dict(answer_reward=1.0, r1_format_reward=0.3)


def get_config(arg: str = "") -> ConfigDict:
    """The pipeline of a size, by a lineage."""
    args = parse_args(arg, size="tiny", recipe="r1", last="judge", lineage="paper", seed=0, data="")
    known_values = {"size": SIZES, "recipe": RECIPES, "last": ("judge", "reward_model"), "lineage": ("paper", "seed")}
    for name, known in known_values.items():
        if args[name] not in known:
            raise UserError(f'argument {name} must be one of {", ".join(known)}, got "{args[name]}"')
    size, seed = SIZES[args.size], args.seed
    files = (args.data or "data") if args.size == "671b" else "@data"
    make = Stages(size, files, seed)
    base = "base" if args.size == "tiny" else size["base"]["name"]
    continued = args.lineage == "seed"
    language = dict(weight=0.2, language="en")
    watched = {**language, "weight": 0.0}
    judge = dict(weight=1.0, domain="general", template=size["judge_template"], as_written=True)
    helpful = dict(weight=0.3, domain="general", model="@reward_model", part="answer")
    # The true score of replies to requests that are drawn by rule is watched beside the learned one.
    truth = {} if args.size == "671b" else {"request_score": dict(weight=0.0, domain="general")}

    stages: dict[str, Any] = {}
    if args.size != "671b":
        stages["data"] = dict(stage="synthesize", seed=seed, **size["draw"])
        if args.last == "reward_model":
            stages["data"] |= dict(preferences=size["preferences"], held_out_preferences=400)
    if args.size == "tiny":
        stages["vocabulary"] = dict(stage="vocabulary", path="@data/text.jsonl", **size["vocabulary"])
        stages["base"] = make.learn("base", "Base", "", dict(text=dict(path="@data/text.jsonl")))
    # R1-Zero: rewards for answer and format alone; how its languages mix is only watched.
    stages["zero"] = make.reinforce("zero", "R1-Zero", base, {**RULES, "language_consistency_reward": watched})
    # Cold start: what of R1-Zero's is right and in one language, and worked examples that are given.
    stages["cold_data"] = make.collect("zero")
    stages["cold_start"] = make.learn(
        "cold_start", "Dev1", "zero" if continued else base, make.sets("cold_data", worked=0.5)
    )
    stages["rl_reasoning"] = make.reinforce(
        "rl_reasoning", "Dev2", "cold_start", {**RULES, "language_consistency_reward": language}
    )
    stages["rejection"] = make.collect("rl_reasoning")
    stages["sft_2"] = make.learn(
        "sft_2", "Dev3", "rl_reasoning" if continued else base, make.sets("rejection", requests=0.25)
    )
    last = {**RULES, "language_consistency_reward": language, "judge_reward": judge, **truth}
    init = "sft_2"
    if args.last == "reward_model":
        stages["reward_model"] = make.score("sft_2")
        last = {**RULES, "language_consistency_reward": language, "reward_model": helpful, **truth}
        if args.size == "671b":  # preferences count in the last 400 of 1,700 steps alone (section B.4.2)
            name = init = "rl_rules"
            rules = {**RULES, "language_consistency_reward": language}
            stages[name] = make.reinforce(name, "Dev4", "sft_2", rules, temperature=size["temperature"])
            last["harmless"] = dict(  # the paper trains another model for it; here one scores both
                function="reward_model",
                name="harmless",
                weight=0.3,
                domain="general",
                model="@reward_model",
                part="reply",
            )
    stages["rl_all"] = make.reinforce(
        "rl_all", "R1", init, last, problems="all_domains", temperature=size["temperature"]
    )
    if init == "rl_rules":
        stages["rl_all"]["steps"] = size["reinforced"]["rl_all"] - size["reinforced"]["rl_rules"]
    # The paper's comparison on a smaller model, all of it measured alike.
    student = add_student(stages, make, args.size)
    teacher = "zero" if args.recipe == "distill" else "rl_all"
    stages["distilled"] = make.distil("Student, distilled", student, teacher)
    stages["student_zero"] = make.reinforce("student_zero", "Student, GRPO alone", student, RULES)
    stages["student_both"] = make.reinforce("student_both", "Student, both", "distilled", RULES)

    chosen = RECIPES[args.recipe] or tuple(stages)
    stages = {name: stage for name, stage in stages.items() if name in chosen}

    config = ConfigDict()
    config.stage = "pipeline"
    config.seed = seed
    config.order = tuple(stages)
    config.stages = ConfigDict(stages)
    config.rerun = ()
    config.skip = ()
    config.mesh = ConfigDict(size["mesh"])
    config.measure = ConfigDict(
        dict(
            data=dict(source="file", path=f"{files}/held_out.jsonl", template=size["template"], eval_problems=200),
            generate=dict(temperature=1.0, top_p=1.0, top_k=0, seed=seed, **size["measure"]),
            language="en",
            format="r1_format_reward",
        )
    )
    ways = {
        "distilled": ("distilled",),
        "GRPO alone": ("student_zero",),
        "distilled, then GRPO": ("distilled", "student_both"),
    }
    config.comparison = ConfigDict({way: names for way, names in ways.items() if set(names) <= set(stages)})
    return config


def add_student(stages: dict[str, Any], make: "Stages", size: str) -> str:
    """The smaller model before the comparison: what the others of it start from."""
    if size == "671b":
        return make.size["student"]["name"]
    if size == "tiny":
        sources = dict(text=dict(path="@data/text.jsonl"))
    else:  # layers left out must grow together again
        sources = dict(worked=dict(path="@data/worked.jsonl", template=make.size["template"]))
    stages["student_base"] = make.learn("student_base", "Student", "", sources)
    section = stages["student_base"]["model"]
    if size == "tiny":
        section["sizes"] = {**section["sizes"], **make.size["student"]}
    else:
        section.update(make.size["student"])
    return "student_base"


class Stages:
    """Configs of single stages at one size."""

    def __init__(self, size: dict[str, Any], files: str, seed: int):
        self.size, self.files, self.seed = size, files, seed

    def model(self, init: str) -> dict[str, Any]:
        """The `model` section: `init` names the weights, but for a model that is not made by this pipeline."""
        base = dict(self.size["base"])
        if "preset" in base:
            base |= dict(tokenizer="@vocabulary", seed=self.seed)
        shared = dict(self.size["model"])
        if init in (self.size["student"].get("name"), "distilled"):
            shared = {key: value for key, value in shared.items() if key not in EXPERTS_ONLY}
        return {**shared, **(base if init in ("", base.get("name")) else {})}

    def task(self, problems: str = "problems", eval_problems: int = 0) -> dict[str, Any]:
        """The `data` section of whatever asks problems."""
        return dict(
            source="file",
            path=f"{self.files}/{problems}.jsonl",
            eval_path=f"{self.files}/held_out.jsonl",
            eval_problems=eval_problems,
            template=self.size["template"],
            seed=self.seed,
        )

    def sets(self, collected: str, **given: float) -> dict[str, Any]:
        """Sources of a fine-tuning: what was collected, and given files with their shares of the mixture."""
        rest = 1 - sum(given.values())
        sources = dict(traces=dict(path=f"@{collected}/set.jsonl", template="plain", weight=rest))
        for name, weight in given.items():
            sources[name] = dict(path=f"{self.files}/{name}.jsonl", template=self.size["template"], weight=weight)
        return sources

    def optimizer(self, rate: float, schedule: str = "cosine", warmup: int = 4) -> dict[str, Any]:
        """AdamW down to a tenth of the rate."""
        beta2 = 0.95 if schedule == "cosine" else 0.99
        return dict(
            learning_rate=rate, schedule=schedule, warmup_updates=warmup, final_share=0.1, beta2=beta2, weight_decay=0.0
        )

    def learn(self, name: str, label: str, init: str, sources: dict[str, Any]) -> dict[str, Any]:
        """Base training or fine-tuning."""
        rows, micro = self.size["rows"]
        chunk = self.size["train"].get("logits_chunk", 0)
        return dict(
            stage="sft",
            init=init,
            label=label,
            seed=self.seed,
            steps=self.size["supervised"][name],
            model=self.model(init),
            mesh=self.size["mesh"],
            data=dict(
                sources=sources,
                length=self.size["length"],
                bins=64,
                truncation="drop",
                eval_rows=self.size["eval_rows"] if init == "" else 0,
                epochs=placeholder(int),
                seed=self.seed,
            ),
            train=dict(rows_per_step=rows, micro_batch_size=micro, logits_chunk=chunk),
            loss=dict(mtp_weight=self.size["mtp_weight"], balance_weight=1e-4, bias_rate=1e-3 if init == "" else 0.0),
            optimizer=self.optimizer(
                self.size["rates"]["base" if init == "" else name], warmup=40 if init == "" and name == "base" else 4
            ),
            eval=dict(every_steps=0),
            checkpoint=dict(every_steps=50, keep=2),
            log=dict(tensorboard=True),
        )

    def score(self, init: str) -> dict[str, Any]:
        """A reward model of a stage's model."""
        size = self.size["scored"]
        source = dict(
            path=f"{self.files}/preferences.jsonl",
            eval_path=f"{self.files}/preferences_held_out.jsonl",
            template=self.size["template"],
        )
        return dict(
            stage="reward_model",
            init=init,
            label="",
            seed=self.seed,
            steps=size["steps"],
            model=self.model(init),
            mesh=self.size["mesh"],
            data=dict(
                sources=dict(preferences=source),
                length=2 * self.size["length"],  # a pair a row at least
                bins=64,
                truncation="drop",
                eval_rows=0,  # all of the file
                epochs=placeholder(int),
                seed=self.seed,
            ),
            train=dict(rows_per_step=size["rows"], micro_batch_size=size["micro"]),
            loss=dict(center_coefficient=0.01),
            optimizer=self.optimizer(size["rate"]),
            eval=dict(every_steps=0),
            checkpoint=dict(every_steps=50, keep=2),
            log=dict(tensorboard=True),
        )

    def reinforce(
        self,
        name: str,
        label: str,
        init: str,
        rewards: dict[str, Any],
        *,
        problems: str = "problems",
        temperature: float = 1.0,
    ) -> dict[str, Any]:
        """GRPO."""
        every = self.size["every"]
        rollout = {**self.size["rollout"], "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        rollout["prompts_per_step"] = self.size["prompts"].get(name, rollout["prompts_per_step"])
        return dict(
            stage="grpo",
            init=init,
            label=label,
            seed=self.seed,
            steps=self.size["reinforced"][name],
            model=self.model(init),
            mesh=self.size["mesh"],
            data=self.task(problems, self.size["eval_problems"]),
            rollout=rollout,
            judge=dict(max_new_tokens=self.size["judge_tokens"], temperature=1.0),
            rewards=rewards,
            train=dict(self.size["train"]),
            loss=dict(self.size["loss"]),
            reference=dict(self.size["reference"]),
            optimizer=self.optimizer(self.size["rates"].get(name, self.size["rates"]["reinforced"]), "linear"),
            eval=dict(
                name="sums",
                every_steps=every,
                temperature=1.0,
                strict=("answer_reward", "r1_format_reward"),
                lenient="number_reward",
                format="r1_format_reward",
            ),
            checkpoint=dict(every_steps=every or 4, keep=2),
            log=dict(samples_per_step=16, show_every_steps=0, tensorboard=True),
        )

    def collect(self, init: str) -> dict[str, Any]:
        """Rejection sampling: what is right, in the form asked for, and in one language."""
        return dict(
            stage="rejection_sampling",
            init=init,
            seed=self.seed,
            model=self.model(init),
            mesh=self.size["mesh"],
            reply=TAGGED,
            **self.sampled(),
        )

    def distil(self, label: str, init: str, teacher: str) -> dict[str, Any]:
        """A student of a stage's model, by traces."""
        learnt = self.learn("distilled", label, init, {})
        corpus = {**learnt["data"], "sources": {}}
        return dict(
            stage="distill",
            method="traces",
            init=init,
            label=label,
            seed=self.seed,
            teacher={**self.model(teacher), "name": f"@{teacher}"},
            student=self.model(init),
            corpus=corpus,
            eval=dict(name="sums", strict=("answer_reward", "r1_format_reward"), format="r1_format_reward"),
            **{key: learnt[key] for key in ("steps", "mesh", "train", "loss", "optimizer", "checkpoint", "log")},
            **self.sampled(),
        )

    def sampled(self) -> dict[str, Any]:
        """What is sampled of a model and what of it is kept."""
        return dict(
            data=self.task(),
            generate=dict(temperature=1.0, top_p=1.0, top_k=0, seed=self.seed, **self.size["collect"]),
            rewards=dict(answer_reward=1.0, r1_format_reward=1.0),
            filters=dict(min_reward=2.0, language="en", min_language_share=1.0, max_repetition=0.3),
        )
