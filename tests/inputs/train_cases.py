"""Bad inputs of `python -m r1jax.train`: flags, config files, data, models, workdirs."""

import importlib.util
from typing import Any

from tests.inputs.case import NONE, Case, Files, folder, lines
from tests.inputs.jsonl_files import FILES, PROMPTS
from tests.inputs.model_folders import FOLDERS, TOKENIZERS

ROOT = "{root}/tests/stages"
TINY = {
    "grpo": f"{ROOT}/tiny_grpo.py",
    "sft": f"{ROOT}/tiny_sft.py",
    "distill": f"{ROOT}/distill/tiny_distill.py",
    "pipeline": f"{ROOT}/pipeline/tiny_pipeline.py",
}


def case(
    name: str, *argv: str, stage: str = "grpo", words: tuple[str, ...] = (), files: Files = NONE, **options: Any
) -> Case:
    """A case of a stage's tiny config; an argument `key=value` is `--config.key=value`."""
    argv = tuple(argument if argument.startswith("-") else f"--config.{argument}" for argument in argv)
    given = {argument.partition("=")[0] for argument in argv}
    usual = {"--config": TINY[stage], "--workdir": "{here}/run"}
    usual |= {"--config.model.name": "{model}"} if stage in ("grpo", "sft") else {}
    usual |= {"--config.teacher.name": "{model}", "--config.student.name": "{model}"} if stage == "distill" else {}
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    argv = (
        *whole,
        *(argument for argument in argv if argument not in ("--config=", "--workdir=", "--config.model.name=")),
    )
    return Case(name, argv, words, files, **options)


def of_value(key: str, value: str, *words: str, stage: str = "grpo") -> Case:
    """A value that its key must refuse."""
    return case(f"{stage}: {key}={value[:20]}", f"{key}={value}", stage=stage, words=words or (f"config.{key}",))


HUGE = "1" + "0" * 30
VALUES = [
    *(of_value("optimizer.learning_rate", value) for value in ("nan", "inf", "fast")),
    *(of_value("optimizer.learning_rate", value, "config.optimizer", "learning_rate") for value in ("-1", "-inf")),
    *(of_value("optimizer.learning_rate", value, stage="sft") for value in ("nan", "inf")),
    *(of_value("optimizer.beta1", value) for value in ("1.5", "-0.1", "nan")),
    *(of_value("optimizer.beta2", value) for value in ("1", "nan")),
    *(of_value("optimizer.epsilon", value) for value in ("-1", "nan")),
    *(of_value("optimizer.weight_decay", value) for value in ("nan", "-1")),
    *(of_value("optimizer.clip_norm", value) for value in ("nan", "-1")),
    of_value("optimizer.final_share", "nan"),
    of_value("optimizer.final_share", "-2"),
    of_value("optimizer.schedule", "sawtooth"),
    of_value("optimizer.warmup_updates", "-1", "config.optimizer", "warmup_updates"),
    of_value("optimizer.warmup_updates", "2.5"),
    *(of_value("checkpoint.keep", value) for value in ("0", "1", "-1", "two")),
    *(of_value("checkpoint.every_steps", value) for value in ("-1", "0.5")),
    *(of_value("checkpoint.every_minutes", value) for value in ("-1", "nan", "inf")),
    *(of_value("seed", value) for value in ("-1", HUGE, "1.5", "one")),
    *(of_value("data.seed", value) for value in ("-1", HUGE)),
    of_value("data.seed", "-1", stage="sft"),
    of_value("seed", "-1", stage="sft"),
    *(of_value("steps", value) for value in ("0", "-1", "many")),
    of_value("steps", "0", stage="sft"),
    *(of_value("rollout.max_new_tokens", value) for value in ("0", "1000000000", "1000000000000")),
    *(of_value("rollout.slots", value) for value in ("0", "-1", "1000000000")),
    of_value("rollout.prompts_per_step", "0"),
    of_value("rollout.prompts_per_step", "1000000000"),
    of_value("rollout.group_size", "1"),
    of_value("rollout.group_size", "1000000000"),
    *(of_value("rollout.temperature", value) for value in ("nan", "inf", "0", "-1")),
    of_value("rollout.top_p", "nan"),
    of_value("rollout.top_k", "-1"),
    of_value("rollout.min_p", "nan"),
    of_value("rollout.prefill_batch", "0"),
    of_value("rollout.cache_pieces", "0"),
    of_value("rollout.max_prompt_tokens", "-1"),
    of_value("rollout.max_prompt_tokens", "1"),
    of_value("rollout.max_prompt_tokens", "1000000000", "memory"),
    of_value("rollout.temperature_schedule", "((2, 1.0), (1, 1.0))"),
    of_value("train.micro_batch_size", "0"),
    of_value("train.micro_batch_size", "7"),
    of_value("train.updates_per_step", "3"),
    of_value("train.completions_per_row", "0"),
    of_value("train.logits_chunk", "-1"),
    of_value("train.logits_chunk", "7"),
    of_value("train.min_group_std", "nan"),
    of_value("train.difference_alarm", "nan"),
    of_value("train.rows_per_step", "0", stage="sft"),
    of_value("train.micro_batch_size", "3", stage="sft"),
    of_value("loss.clip_low", "nan"),
    of_value("loss.clip_high", "-1"),
    of_value("loss.kl_coefficient", "nan"),
    of_value("loss.kl_coefficient", "-1"),
    of_value("loss.preset", "ppo"),
    of_value("loss.entropy_coefficient", "inf"),
    of_value("reference.mixing", "2"),
    of_value("reference.every_updates", "-1"),
    of_value("dynamic_sampling.max_rounds", "0"),
    of_value("curriculum.skip", "2"),
    of_value("curriculum.skip", "nan"),
    of_value("lora.rank", "-1"),
    of_value("lora.rank", "1000000000"),
    of_value("eval.every_steps", "-1"),
    of_value("eval.temperature", "inf"),
    of_value("eval.strict", "()"),
    of_value("eval.lenient", "no_such_reward", "no_such_reward"),
    of_value("guards.max_skipped", "0"),
    of_value("guards.spike_factor", "nan"),
    of_value("guards.spikes", "perhaps"),
    of_value("watchdog_minutes", "nan"),
    of_value("watchdog_minutes", "-1"),
    of_value("log.show_every_steps", "-1"),
    of_value("log.samples_per_step", "-2"),
    of_value("mesh.data", "0", "mesh"),
    of_value("mesh.tensor", "3", "mesh"),
    of_value("mesh.tensor", "-1", "mesh"),
    of_value("mesh.rows", "2", "mesh"),
    of_value("model.dtype", "int8"),
    of_value("model.remat", "some"),
    of_value("model.layers", "99", "layers"),
    of_value("model.layers", "-1", "layers"),
    of_value("model.preset", "enormous", "preset"),
    of_value("data.eval_problems", "-1"),
    of_value("data.eval_problems", "100000"),
    of_value("data.args.low", "50", "low=50", "config.data.args"),
    of_value("data.args.high", "1000000000", "high=1000000000", "config.data.args"),
    of_value("data.source", "substraction"),
    of_value("data.template", "hello"),
    of_value("data.length", "0", stage="sft"),
    of_value("data.length", "1000000000", stage="sft"),
    of_value("data.bins", "0", stage="sft"),
    of_value("data.eval_rows", "-1", stage="sft"),
    of_value("data.epochs", "0", stage="sft"),
    of_value("loss.mtp_weight", "nan", stage="sft"),
    of_value("stage", "reinforce", "config.stage", "grpo"),
    of_value("optimizer", "fast"),
    of_value("optimizer.learning_rat", "1", "learning_rate"),
    of_value("rewards", "{}"),
    of_value("rewards", '{"no_such_reward": 1}', "no_such_reward"),
    of_value("rewards", '{"answer_reward": NaN}', "answer_reward"),
    of_value("rewards", '{"answer_reward": "much"}', "answer_reward"),
    of_value("rewards", '{"no.module:reward": 1}', "no.module"),
    of_value("generate.num_samples", "0", stage="distill"),
    of_value("generate.max_new_tokens", "1000000000", stage="distill"),
    of_value("method", "osmosis", "method", stage="distill"),
    of_value("filters.min_reward", "nan", stage="distill"),
    of_value("stages.base.steps", "0", "stage base", "config.steps", stage="pipeline"),
    of_value("stages.bsae.steps", "1", "base", stage="pipeline"),
    of_value("order", "base,nothing", "nothing", stage="pipeline"),
    of_value("rerun", "nothing", "nothing", stage="pipeline"),
    of_value("skip", "nothing", "nothing", stage="pipeline"),
    of_value("stages.zero.optimizer.learning_rate", "nan", "learning_rate", "zero", stage="pipeline"),
]

CONFIGS = [
    case(
        "config without stage",
        "--config={here}/c.py",
        words=("config.stage", "None"),
        files={"c.py": "import ml_collections as m\nget_config = lambda arg='': m.ConfigDict()\n"},
    ),
    case("adapters for nothing", "lora.rank=4", "lora.targets=nothing.*", words=("config.lora.targets",)),
    # What a reward needs is known at its first call, when the workdir is there already.
    case("reward without its column", 'rewards={"json:dumps": 1}', words=("dumps", "config.data"), new=("run",)),
    case("no config", "--config=", words=("--config",)),
    case("config missing", "--config={here}/none.py", words=("none.py",)),
    case("config a folder", "--config={here}/c.py", words=("c.py",), files={"c.py": folder}),
    *(
        case(f"config {name}", "--config={here}/c.py", words=("c.py",), files={"c.py": text})
        for name, text in {
            "empty": "",
            "syntax": "def get_config(:",
            "raises": "raise RuntimeError('no')",
            "ends": "import sys; sys.exit(0)",
            "raises inside": "def get_config(arg=''):\n    return {}['x']\n",
            "returns none": "def get_config(arg=''):\n    pass\n",
            "returns a list": "def get_config(arg=''):\n    return [1]\n",
            "binary": b"\xff\xfe\x00",
        }.items()
    ),
    case("argument unknown", "--config={root}/configs/grpo_zero.py:colour=red", words=("colour",)),
    case("key without config", "--confg.steps=1", words=("confg",)),
    case("positional", "--config.steps=1", "--", "stray", words=("stray",)),
    case("unknown flag", "--work_dir=x", words=("work_dir",)),
]

# With its client a bucket's name is looked up, and the client's own threads may print long after.
WITHOUT_CLIENT = [case("workdir a bucket without client", "--workdir=gs://nothing/run", words=("gs://nothing",))]
WORKDIRS = [
    *([] if importlib.util.find_spec("gcsfs") else WITHOUT_CLIENT),
    case("workdir a file", words=("--workdir", "file"), files={"run": "my notes"}),
    case("workdir below a file", "--workdir={here}/a/run", words=("--workdir", "file"), files={"a": "my notes"}),
    case("workdir in /proc", "--workdir=/proc/none/run", words=("--workdir", "/proc/none")),
    case("workdir read-only", "--workdir=/sys/run", words=("--workdir", "/sys/run")),
    case("workdir of 300 characters", "--workdir={here}/" + "x" * 300, words=("--workdir",)),
    case("workdir with zero byte", "--workdir={here}/a\0b", words=("--workdir",)),
    case(
        "workdir in use",
        words=("--workdir",),
        files={"run/.lock": '{"host": "elsewhere", "process": 1, "time": 99999999999}'},
    ),
    case(
        "checkpoints is a file",
        words=("checkpoints", "--workdir"),
        files={"run/checkpoints": "my notes"},
        new=("run/.lock",),
    ),
    case("pipeline record a list", stage="pipeline", words=("pipeline.json",), files={"run/pipeline.json": "[]"}),
    case(
        "pipeline record of later format",
        stage="pipeline",
        words=("pipeline.json",),
        files={"run/pipeline.json": '{"format": 99, "stages": []}'},
    ),
]

ROW = {"prompt": "1 + 1 =", "solution": "2"}
DATA = [
    case("data missing", "data.source=file", "data.path={here}/none.jsonl", words=("none.jsonl", "config.data.path")),
    case("data without path", "data.source=file", words=("config.data.path",)),
    case(
        "data a folder",
        "data.source=file",
        "data.path={here}/d.jsonl",
        words=("d.jsonl", "folder"),
        files={"d.jsonl": folder},
    ),
    case(
        "data of one row",
        "data.source=file",
        "data.path={here}/in.jsonl",
        words=("eval_problems",),
        files={"in.jsonl": lines(ROW)},
    ),
    case(
        "data parquet broken",
        "data.source=file",
        "data.path={here}/in.parquet",
        words=("in.parquet",),
        files={"in.parquet": "x"},
    ),
    case(
        "prompt beyond the positions",
        "data.source=file",
        "data.path={here}/in.jsonl",
        "data.eval_problems=0",
        words=("512",),
        files={"in.jsonl": lines(*[{**ROW, "prompt": f"{n} " + "a" * 5000} for n in range(9)])},
    ),
    case(
        "held-out file missing",
        "data.source=file",
        "data.path={here}/in.jsonl",
        "data.eval_path={here}/none.jsonl",
        words=("none.jsonl",),
        files={"in.jsonl": lines(ROW)},
    ),
    case("gym task unknown", "data.source=reasoning_gym:nothing", words=("reasoning",)),
]
DATA += [
    case(
        f"data: {name}",
        "data.source=file",
        "data.path={here}/rows.jsonl",
        "data.eval_problems=0",
        words=("config.data" if word == "rows.jsonl" else word,),
        files={"rows.jsonl": content},
    )
    for name, (content, word) in {**FILES, **PROMPTS}.items()
]
DATA += [
    case(
        f"sft data: {name}",
        "data.sources={'rows': {'path': '{here}/rows.jsonl', 'template': 'plain'}}",
        "data.eval_rows=0",
        stage="sft",
        words=("config.data" if word == "rows.jsonl" else word,),
        files={"rows.jsonl": content},
    )
    for name, (content, word) in FILES.items()
]

SOME = (
    "empty folder",
    "config is a list",
    "negative width",
    "width is text",
    "layers 2.5",
    "layers 1,000,000",
    "no weights",
)
MODELS = [
    case("model missing", "model.name={here}/none", words=("none",)),
    case("model empty", "model.name=", words=("config.model.name",)),
    *(
        case(f"model: {name}", "model.name={here}/m", words=FOLDERS[name][1], files={"m": FOLDERS[name][0]})
        for name in SOME
    ),
    *(
        case(f"model: {name}", "model.name={here}/m", words=words, files={"m": make})
        for name, (make, words) in TOKENIZERS.items()
    ),
]
FINE = [
    case("fine: dry run", "--dry_run", code=0),
    case("fine: one step", "steps=1", "--workdir={here}/ü y", code=0, new=("ü y",)),
]

CASES = [*VALUES, *CONFIGS, *WORKDIRS, *DATA, *MODELS, *FINE]
