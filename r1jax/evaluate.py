r"""Evaluates a model on benchmarks, or scores existing completions.

  python -m r1jax.evaluate --model=MODEL --benchmarks=gsm8k=gsm8k_test.jsonl,svamp=svamp.jsonl --output=scores.json
  python -m r1jax.evaluate --samples=out.jsonl --output=scores.json
  python -m r1jax.evaluate --samples=out.jsonl --reward=answer_reward,accuracy_reward

--model is a Hugging Face folder, a .gguf file, a hub name (org/name[@revision]), or the workdir of a run. A benchmark
is gsm8k, svamp, aime24, aime25, math500 or gpqa: NAME takes the data set from the hub, NAME=FILE a file of it;
jsonl=FILE is any file with `prompt` (raw text or messages) and `solution`. --samples takes rows of `completions` and
`solution`, as written by `python -m r1jax.generate`, in place of a model.

The output has for each benchmark: n problems, k completions each; pass@1 (mean over completions) with its standard
error over problems; pass@k (unbiased); cons@k (majority vote); lenient_pass@1 (the last number or choice letter);
format_rate (share of answers in the requested place: \boxed{}, answer tags, `####`, or `Answer: X`); mean_length in
tokens; truncated (the share cut off at max_new_tokens). OUT.samples.jsonl has every problem with its completions.

--reward asks rewards, named as in a config, what they would pay for the completions of --samples (or for those of a
run's samples.jsonl, with a column `solution`): a table, and a page (OUT.html of --output=OUT.json; without, beside the
samples) of the completions for which two rewards differ.

A workdir, and a folder exported from one, carry how the run asked its model. By default (--template=run) questions,
sampling and grading are those of the run, and flags win; another --template asks without them. The defaults are then
DeepSeek's protocol, temperature 0.6 and top-p 0.95; it uses --num_samples 64 (AIME, GPQA) and 16 (MATH), and
--max_new_tokens 32768.

With --environment or --tools problems are answered in conversations (docs/environments.md); the answer is the last
message of the model.
"""

import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.generate import (
    choose_player,
    choose_sampling,
    define_device_flags,
    define_environment_flags,
    define_run_flags,
)

log = logging.getLogger("r1jax.evaluate")  # not __main__, whose messages are not shown

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 2048}  # where neither flags nor a run say otherwise


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    return run_command(__doc__, values, argv[1:], lambda _: evaluate(values))


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    define_run_flags(values, SAMPLING, "a completion")
    string("samples", None, "A file of completions to score, in place of --model.", flag_values=values)
    string("benchmarks", None, "NAME, NAME=FILE or jsonl=FILE; separate several by commas.", flag_values=values)
    text = "The JSON file to write. Default with --model: none, the scores are shown only."
    string("output", None, text, flag_values=values)
    string("reward", None, "Rewards to ask about --samples: NAME[,NAME…].", flag_values=values)
    integer("num_samples", None, "Completions per problem. Default: 1, or all of --samples.", flag_values=values)
    integer("limit", 0, "Use only the first N problems of each benchmark. Default: 0, all.", flag_values=values)
    integer("seed", 0, "Sampling seed; results do not depend on the batch size. Default: 0.", flag_values=values)
    integer("batch_size", 32, "Completions sampled at once; memory grows with it. Default: 32.", flag_values=values)
    define_environment_flags(values)
    define_device_flags(values)
    return values


def evaluate(values: flags.FlagValues) -> None:
    """Evaluates by the flags; problems and flags are checked before a model is loaded."""
    if values.samples and not values.output and not values.reward:
        raise UserError("--output is missing (see --help)")
    if bool(values.model) == bool(values.samples):
        raise UserError("exactly one of --model and --samples must be given (see --help)")
    if values.num_samples is not None and values.num_samples < 1:
        raise UserError(f"num_samples must be at least 1, got {values.num_samples}")
    if values.limit < 0:
        raise UserError(f"limit must be at least 0, got {values.limit}")
    if values.reward and not values.samples:
        raise UserError("--reward needs --samples, a file of completions (see --help)")
    if values.reward:
        _ask_rewards(values)
    elif values.samples:
        _score_samples(values)
    else:
        _measure_model(values)


def _score_samples(values: flags.FlagValues) -> None:
    from r1jax.runs.evaluate import check_scores, read_samples, score_benchmarks, show_scores, write_scores

    check_scores(values.output)
    name = values.benchmarks or pathlib.Path(values.samples).stem
    answered = {name: read_samples(values.samples, limit=values.limit)}
    scores, rows = score_benchmarks(answered, values.num_samples or 0)
    write_scores(values.output, values.samples, scores, rows)
    show_scores(scores)


def _ask_rewards(values: flags.FlagValues) -> None:
    from r1jax.runs.evaluate import ask_rewards

    names = [name.strip() for name in values.reward.split(",") if name.strip()]
    samples = pathlib.Path(values.samples)
    output = pathlib.Path(values.output).with_suffix(".html") if values.output else samples.with_suffix(".rewards.html")
    ask_rewards(samples, names, output, limit=values.limit)


def _measure_model(values: flags.FlagValues) -> None:
    if not values.benchmarks:
        raise UserError("--benchmarks is missing, as in --benchmarks=gsm8k=FILE.jsonl (see --help)")
    from r1jax.eval.benchmarks import load_benchmark
    from r1jax.eval.prompting import choose_prompting
    from r1jax.runs.evaluate import check_scores, measure, show_scores, write_scores
    from r1jax.runs.generate import Generation
    from r1jax.runs.sampler import load_sampler, place_sampler

    prompting = choose_prompting(values.model, values.template)
    settings = choose_sampling(values, ("temperature", "top_p", "max_new_tokens", "seed"), prompting)
    config = Generation(num_samples=1 if values.num_samples is None else values.num_samples, **settings)
    problems: dict[str, Any] = {}
    for spec in values.benchmarks.split(","):
        name, found = load_benchmark(spec, template=values.template or "chat", limit=values.limit, prompting=prompting)
        if name in problems:
            raise UserError(f"--benchmarks names {name} twice")
        problems[name] = found
    if values.output:
        check_scores(values.output)
    with place_sampler(values.mesh):
        stop_ids = prompting.stop_ids if prompting else ()
        if prompting:
            log.info("asking as the run did: %s (another --template asks without)", prompting.describe())
        sampler = load_sampler(values.model, dtype=values.dtype, slots=values.batch_size, stop_ids=stop_ids)
        scores, rows = measure(sampler, problems, config, prompting, choose_player(values, sampler, config))
        if values.output:
            write_scores(values.output, values.model, scores, rows)
    show_scores(scores)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
