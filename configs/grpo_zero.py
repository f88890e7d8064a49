"""R1-Zero in miniature: a pretrained language model learns to reason better by GRPO alone, on your own machine.

    python -m r1jax.train --config=configs/grpo_zero.py

SmolLM2-135M-Instruct learns to add two numbers from 10 to 99, answering in DeepSeek-R1-Zero's template.
Expected: strict pass@1 from about 5% to about 60%, format from 18% to 99%, in under ten minutes on two cores.

Arguments after a colon, e.g. `configs/grpo_zero.py:template=chat`:

    task      addition (default), gsm8k (give --config.data.path=train.jsonl), or any reasoning-gym task by its name
    template  r1 (default): think and answer tags, accuracy and format rewarded; chat: the plain question, last number
    rewarded
"""

from ml_collections import ConfigDict

from r1jax.core.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    """The run for `task` and `template`."""
    args = parse_args(arg, task="addition", template="r1")
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.steps = 12

    config.model = ConfigDict(
        dict(
            name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
            fetch="python launch/fetch_demo.py",
            scan_layers=False,  # unrolled layers are faster on CPU
        )
    )
    config.data = ConfigDict(dict(source="addition", args=dict(low=10, high=99)))
    config.rollout = ConfigDict(dict(max_new_tokens=40))
    config.rewards = ConfigDict(dict(answer_reward=1.0, r1_format_reward=0.3))
    config.train = ConfigDict(
        dict(
            micro_batch_size=16,
            completions_per_row=8,
            old_logprobs="sampler",
        )
    )
    config.loss = ConfigDict(dict(clip_high=0.28))
    config.optimizer = ConfigDict(
        dict(
            learning_rate=2e-5,
            schedule="linear",  # constant, it falls back after ten steps
            final_share=0.1,
        )
    )
    config.eval = ConfigDict(
        dict(
            name="",  # that of the task, also of another file: eval/addition/pass@1
            strict=("answer_reward", "r1_format_reward"),
            format="r1_format_reward",
        )
    )
    set_template(config, args.template)
    set_task(config, args.task)
    return config


def set_template(config: ConfigDict, template: str) -> None:
    """How the question is put, and what is rewarded for the reply."""
    config.data.template = template
    if template == "r1":
        config.data.example = ConfigDict(
            dict(question="What is 34 + 25?", reasoning="34 + 25 = 59", answer="59", ending="<|im_end|>")
        )
    else:
        config.rewards = ConfigDict(dict(number_reward=1.0))
        config.eval.strict, config.eval.format = ("number_reward",), ""
        config.rollout.max_new_tokens = 20
        config.steps = 16
        config.rollout.prompts_per_step = 12
        config.train.completions_per_row, config.train.micro_batch_size = 16, 32


def set_task(config: ConfigDict, task: str) -> None:
    """What is asked."""
    if task == "addition":
        set_example_source(config)
        return
    config.eval.name = task
    config.steps = 5  # a look at a harder task; raise --config.steps to learn it
    config.data.args = ConfigDict()
    config.rollout.prompts_per_step, config.rollout.max_new_tokens, config.rollout.slots = 4, 200, 32
    # At 1.0 the tags come in 3% of the replies to a word problem, and a step seldom has a spread to learn from.
    config.rollout.temperature = config.eval.temperature = 0.6
    # Rows of a few hundred tokens.
    config.train.completions_per_row, config.train.micro_batch_size = 2, 8
    if task == "gsm8k":
        config.data.source = "jsonl"
        config.data.columns = ConfigDict(dict(prompt="question", solution="answer"))
        config.data.extractor = "gsm8k"
        config.data.eval_problems = 16
    else:
        config.data.source = f"reasoning_gym:{task}"
        config.data.eval_problems = 16
    set_example_source(config)


def set_example_source(config: ConfigDict) -> None:
    """The worked example belongs to the task: a run of this config on another source of problems does not show it."""
    if "example" in config.data:
        config.data.example.source = config.data.source
