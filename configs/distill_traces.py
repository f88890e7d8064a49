"""Distillation by traces in miniature, as in R1: a small student is trained on a teacher's correct answers.

    python -m r1jax.train --config=configs/distill_traces.py

The teacher is the model trained by `configs/grpo_zero.py` (run it first, with the same `template`); the student is the
untrained SmolLM2-135M with 27 of its 30 layers. The teacher answers sums of two numbers from 10 to 99; correct, new and
complete answers become the student's SFT set. Expected: 256 of 400 samples are correct and kept. The student, which the
missing layers have broken, solves none of 60 held-out sums before and 60% ± 6.4 of them afterwards (sampled; greedy 65%
± 6.2). One minute for the samples and ten for the student, on two busy cores.

Arguments after a colon, e.g. `configs/distill_traces.py:template=r1`:

    template  chat (default): the plain question, rewarding a correct last number; r1: think and answer tags, rewarding
              format and answer
    layers    27 (default): layers of the student, evenly spread over the model's 30; without ten layers instead of
              three its initial loss is 9 instead of 1.8, and it needs many more steps
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from r1jax.core.config import parse_args

DEMO = dict(
    name="models/SmolLM2-135M-Instruct.Q4_1.gguf",
    fetch="python launch/fetch_demo.py",
    dtype="float32",  # bfloat16 halves memory on accelerators; on CPU it is slower
    scan_layers=False,  # unrolled layers are faster on CPU
)


def get_config(arg: str = "") -> ConfigDict:
    """The run for `template`, with a student of `layers`."""
    args = parse_args(arg, template="chat", layers=27)
    is_chat = args.template == "chat"
    config = ConfigDict()
    config.stage = "distill"
    config.method = "traces"
    config.seed = 0
    config.steps = 40  # many passes over what is right of 400 samples; after 7 steps it solved 5%

    teacher = "runs/chat" if is_chat else "runs/grpo_zero"
    config.teacher = ConfigDict({**DEMO, "name": teacher})
    train = f"python -m r1jax.train --config=configs/grpo_zero.py:template={args.template}"
    config.teacher.fetch = f"{train} --workdir={teacher}"  # what to say where the teacher is not there
    config.student = ConfigDict({**DEMO, "layers": args.layers})
    config.data = ConfigDict(
        dict(source="addition", eval_problems=200, args=dict(low=10, high=99), template=args.template, seed=0)
    )
    config.generate = ConfigDict(
        dict(
            num_samples=1,  # four times as many problems teach more than four answers to each
            temperature=0.7,  # colder than in training: fewer slips, and still not one and the same wording
            max_new_tokens=20 if is_chat else 40,
            prompts=400,
        )
    )
    config.rewards = ConfigDict(dict(number_reward=1.0) if is_chat else dict(answer_reward=1.0, r1_format_reward=1.0))
    config.filters = ConfigDict(
        dict(
            min_reward=1.0 if is_chat else 2.0,
            min_pass_rate=placeholder(float),  # with several samples a prompt: leaves out what is never right
            max_pass_rate=placeholder(float),  # leaves out what is always right
            language="en",
            benchmarks=(),  # files of problems that must not be learnt; the held-out sums are other pairs anyway
            near_duplicates=0.0,  # sums are alike by nature
        )
    )
    config.corpus = ConfigDict(
        dict(
            sources={},  # sets that are mixed in, as in configs/sft_gsm8k.py
            length=256,
            bins=64,
            truncation="drop",
            read_ahead=2,
            eval_rows=16,
            epochs=placeholder(int),  # `steps` ends it
        )
    )
    config.train = ConfigDict(dict(micro_batch_size=8))
    config.optimizer = ConfigDict(
        dict(
            learning_rate=1e-4,  # with many layers left out more is needed: they have to grow together again
            schedule="cosine",
            warmup_updates=1,
            final_share=0.1,
            beta2=0.95,
        )
    )
    strict = ("number_reward",) if is_chat else ("answer_reward", "r1_format_reward")
    config.eval = ConfigDict(
        dict(
            name="addition",
            strict=strict,
            format="" if is_chat else "r1_format_reward",
        )
    )
    config.checkpoint = ConfigDict(dict(every_steps=3))
    config.log = ConfigDict(dict(show_every_steps=0))
    if not is_chat:
        config.data.example = ConfigDict(
            dict(question="What is 34 + 25?", reasoning="34 + 25 = 59", answer="59", ending="<|im_end|>")
        )
    return config
