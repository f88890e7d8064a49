"""Lets a model complete the prompts of a file.

  python -m r1jax.generate --model=models/SmolLM2-135M-Instruct.Q4_1.gguf --prompts=in.jsonl --output=out.jsonl

--model is a Hugging Face folder, a .gguf file, a hub name (org/name), or the workdir of a run. --prompts is a file of
rows (.jsonl, .parquet, .arrayrecord, or a hub data set): each has `prompt`, a text or a list of {role, content}
messages for the model's chat template, or `tokens`, a list of ids.

The output has one row for each input row, in the same order: all its fields, and `completions`, `completion_tokens`,
`logprobs` (one a token, of the distribution after temperature and before top-k and top-p) and `finish_reasons`
(`stop` or `length`), one of each a sample. Start the same command again to go on where it was stopped: rows that are
there already are kept.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    stopped = "stopped; the same command goes on with the rows that are missing"
    return run_command(__doc__, values, argv[1:], lambda _: generate(values), stopped=stopped)


def define_flags() -> flags.FlagValues:
    """The flags of this command, apart from absl's global ones: importing this module defines none."""
    values = flags.FlagValues()
    string, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    string("model", None, "Hugging Face folder, .gguf file, hub name, or workdir of a run.", flag_values=values)
    string("prompts", None, "The file of rows to complete.", flag_values=values)
    string("output", None, "The JSONL file to write.", flag_values=values)
    integer("num_samples", 1, "Completions of each row. Default: 1.", flag_values=values)
    number("temperature", 1.0, "0 takes the likeliest token each time. Default: 1.", flag_values=values)
    number("top_p", 1.0, "The share of probability to sample from. Default: 1, all.", flag_values=values)
    integer("top_k", 0, "How many of the likeliest tokens to sample from. Default: 0, all.", flag_values=values)
    integer("max_new_tokens", 256, "Tokens of a completion at most. Default: 256.", flag_values=values)
    integer("seed", 0, "The outcome is a function of it, whatever the batch. Default: 0.", flag_values=values)
    integer("batch_size", 64, "Completions sampled at once; the memory grows with it. Default: 64.", flag_values=values)
    define_device_flags(values)
    return values


def define_device_flags(values: flags.FlagValues) -> None:
    """Where and in what precision a model runs."""
    text = "float32, bfloat16 or float16: of weights and computation. Default: float32."
    flags.DEFINE_string("dtype", "float32", text, flag_values=values)
    text = "Axes to split the model over, as fsdp=4,tensor=2. Default: one CPU, or a copy on each accelerator."
    flags.DEFINE_string("mesh", "", text, flag_values=values)


def generate(values: flags.FlagValues) -> None:
    """What the flags ask for; jax is imported only after they are checked."""
    for name in ("model", "prompts", "output"):
        if not values[name].value:
            raise UserError(f"--{name} is missing (see --help)")
    from r1jax.data.files import read_rows
    from r1jax.runs.generate import Generation, check_output, generate_file
    from r1jax.runs.sampler import load_sampler, place_sampler
    from r1jax.weights.identity import identify_model

    names = ("num_samples", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    settings: dict[str, Any] = {name: values[name].value for name in names}
    config = Generation(**settings)
    rows = read_rows(values.prompts, key="--prompts")
    if not rows:
        raise UserError(f"--prompts={values.prompts} holds no rows")
    model = {"model": values.model, "model_digest": identify_model(values.model), "dtype": values.dtype}
    check_output(pathlib.Path(values.output), {**model, **dataclasses.asdict(config)})
    with place_sampler(values.mesh):
        sampler = load_sampler(values.model, dtype=values.dtype, slots=values.batch_size)
        generate_file(sampler, rows, values.output, config, model=model)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
