"""Distillation of any model into a smaller one: the student learns the teacher's answers that a reward finds right.

    python -m r1jax.train --config=configs/distill.py
    python -m r1jax.train --config=configs/distill.py:teacher=NAME,student=NAME,data=FILE.jsonl --workdir=runs/mine

The teacher answers the prompts of a file (rows as for configs/grpo_jsonl.py); answers of full reward, new and complete,
become the student's training set. 100 rows are held out, which the student is asked before and after. The models may
have different tokenizers.

Without arguments the teacher is the model that `configs/grpo_jsonl.py` has trained on sums (run it first), and the
student SmolLM2-135M-Instruct, which has not seen them: 1.0% ± 1.0 -> 69.0% ± 4.6 of the held-out sums sampled, 6.0% ->
73.0% greedy, of a teacher at 48.0% and 59.0%, in 17 CPU minutes.

Sizes follow the student's parameters and the kind of device found (r1jax/runs/sizes.py), as in configs/sft_chat.py.

Arguments after a colon, e.g. `configs/distill.py:teacher=runs/mine,student=HuggingFaceTB/SmolLM2-135M-Instruct`:

    teacher   runs/grpo_jsonl (default), or another folder, .gguf file, workdir or hub name
    student   "" (default): the demo model; else a name like the teacher's
    data      "" (default): the sums of the example; else the file or data set
    reward    number (default): the last number is the solution; answer: the answer in tags or a box is, in R1-Zero's
              template; code: programs pass their tests; else module:function of your own
    samples   2 (default): answers of the teacher to a prompt
    epochs    2 (default): passes of the student over the set
    tokens    0 (default): most tokens of an answer, by the device 64 or 512, and 20 for the example
    lora      -1 (default): by the student's size; 0: train all parameters; else the rank of adapters
"""

from ml_collections import ConfigDict

from r1jax.core.config import find_shipped, parse_args
from r1jax.runs.problem_file import describe_problems
from r1jax.runs.sizes import choose_sizes

DEMO = dict(name="models/SmolLM2-135M-Instruct.Q4_1.gguf", fetch="python launch/fetch_demo.py")
TEACHER = "runs/grpo_jsonl"


def get_config(arg: str = "") -> ConfigDict:
    """The run for two models, a file and a reward."""
    args = parse_args(
        arg, teacher="runs/grpo_jsonl", student="", data="", reward="number", samples=2, epochs=2, tokens=0, lora=-1
    )
    student = dict(name=args.student) if args.student else DEMO
    sizes = choose_sizes(student["name"], args.lora)
    config = ConfigDict()
    config.stage = "distill"
    config.method = "traces"
    config.teacher = ConfigDict(dict(name=args.teacher, **sizes.model))
    if args.teacher == TEACHER:
        config.teacher.fetch = "python -m r1jax.train --config=configs/grpo_jsonl.py"
    config.student = ConfigDict({**student, **sizes.model})
    config.mesh = ConfigDict(dict(data=1, fsdp=-1))
    problems = describe_problems(args.data or find_shipped("configs/data/sums.jsonl"), args.reward)
    config.data = ConfigDict(problems.data)
    config.generate = ConfigDict(
        dict(
            num_samples=args.samples,
            temperature=0.7,  # colder than in training: fewer slips, and still not one and the same wording
            max_new_tokens=args.tokens or (sizes.new_tokens if args.data else 20),
        )
    )
    config.rewards = ConfigDict(problems.rewards)
    config.filters = ConfigDict(dict(min_reward=1.0))
    config.corpus = ConfigDict(
        dict(sources={}, length=sizes.length, bins=64, truncation="drop", eval_rows=16, epochs=args.epochs)
    )
    config.train = ConfigDict(sizes.supervised_train)
    config.lora = ConfigDict(dict(rank=sizes.lora))
    config.optimizer = ConfigDict(sizes.supervised_optimizer)
    config.eval = ConfigDict(problems.eval)
    config.log = ConfigDict(dict(show_every_steps=0))
    return config
