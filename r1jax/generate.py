"""Completes the prompts of a file with a model.

  python -m r1jax.generate --model=models/SmolLM2-135M-Instruct.Q4_1.gguf --prompts=in.jsonl --output=out.jsonl

--model is a Hugging Face folder, a .gguf file, a hub name (org/name[@revision]), or the workdir of a run. --prompts is
a file of rows (.jsonl, .parquet, .arrayrecord, or a hub data set): each has `prompt`, a text or a list of {role,
content} messages for the model's chat template, or `tokens`, a list of ids. A text goes to the model as it is;
--template makes a prompt of it, `run` as the run did that trained the model, with the run's sampling where no flag says
otherwise.

The output has one row per input row, in the same order: all its fields, and `completions`, `completion_tokens`,
`logprobs` (one per token, of the distribution after temperature and before top-k and top-p) and `finish_reasons`
(`stop` or `length`), one of each per sample. Run the same command again to continue an interrupted one: complete rows
are kept. With --environment or --tools a completion is a conversation (docs/environments.md): its tokens are all behind
the prompt, and `completion_messages`, `completion_sampled` (1 for a token that was sampled) and `environment_rewards`
come besides.
"""

import dataclasses
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError

if TYPE_CHECKING:
    from r1jax.eval.prompting import Prompting

log = logging.getLogger("r1jax.generate")  # not __main__, whose messages are not shown

TEMPLATE_HELP = (
    "How a question becomes a prompt: run (as in MODEL's run), chat (the model's chat template), r1, question_reply, "
    "plain, or a raw text with {question}."
)


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    stopped = "stopped; the same command continues with the missing rows"
    return run_command(__doc__, values, argv[1:], lambda _: generate(values), stopped=stopped)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    string, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    string("model", None, "Hugging Face folder, .gguf file, hub name, or workdir of a run.", flag_values=values)
    string("prompts", None, "The file of rows to complete.", flag_values=values)
    string("output", None, "The JSONL file to write.", flag_values=values)
    integer("num_samples", 1, "Completions per row. Default: 1.", flag_values=values)
    number("temperature", 1.0, "Sampling temperature; 0 is greedy. Default: 1.", flag_values=values)
    number("top_p", 1.0, "Nucleus sampling: probability mass to sample from. Default: 1, all.", flag_values=values)
    integer("top_k", 0, "Sample from the k most likely tokens. Default: 0, all.", flag_values=values)
    text = "Sample from tokens with at least this share of the likeliest one's probability. Default: 0, all."
    number("min_p", 0.0, text, flag_values=values)
    integer("max_new_tokens", 256, "Most tokens of a completion. Default: 256.", flag_values=values)
    integer("seed", 0, "Sampling seed; results do not depend on the batch size. Default: 0.", flag_values=values)
    integer("batch_size", 64, "Completions sampled at once; memory grows with it. Default: 64.", flag_values=values)
    text = " Default: none, a text goes to the model as it is."
    string("template", None, TEMPLATE_HELP + text, flag_values=values)
    define_environment_flags(values)
    define_device_flags(values)
    return values


def define_environment_flags(values: flags.FlagValues) -> None:
    """Flags of conversations with an environment."""
    string = flags.DEFINE_string
    text = "Environment that answers replies: a registered name, module:Class, or a JSON object of several by name."
    string("environment", None, text, flag_values=values)
    string(
        "tools", None, "Plain functions as tools, separated by commas: calculate, module:function.", flag_values=values
    )
    string("episode", None, 'Keys of config.episode as a JSON object: {"max_turns": 4}.', flag_values=values)


def choose_player(values: flags.FlagValues, sampler: Any, config: Any) -> Any:
    """The maker of trajectories from rows that the flags ask for; None without environment and tools."""
    from r1jax.runs.episodes.player import Player, read_environment, read_episode

    environment, tools = read_environment(values.environment), [t for t in (values.tools or "").split(",") if t]
    if not (environment or tools):
        if values.episode:
            raise UserError("--episode needs --environment or --tools")
        return None
    episode = read_episode(values.episode)

    def make(rows: Sequence[Any]) -> Player:
        asked = [(row.columns["prompt"], row.columns) for row in rows]
        return Player(sampler, asked, config, episode, environment=environment, tools=tools)

    return make


def define_run_flags(values: flags.FlagValues, defaults: Mapping[str, Any], unit: str) -> None:
    """Flags of a command that asks a model as its run did: MODEL, template, and sampling with the run's values unless a
    flag is given. defaults: temperature, top_p and max_new_tokens where no run says otherwise. unit: what is sampled.
    """
    text = "Hugging Face folder, .gguf file, hub name, or workdir of a run."
    flags.DEFINE_string("model", None, text, flag_values=values)
    text = TEMPLATE_HELP + " Default: run where MODEL carries it, else chat."
    flags.DEFINE_string("template", None, text, flag_values=values)
    for name, meaning in (
        ("temperature", "Sampling temperature; 0 is greedy."),
        ("top_p", "Nucleus sampling: probability mass to sample from."),
    ):
        text = f"{meaning} Default: the run's, or {defaults[name]}."
        flags.DEFINE_float(name, defaults[name], text, flag_values=values)
    limit = int(defaults["max_new_tokens"])
    text = f"Most tokens of {unit}. Default: the run's, or {limit}."
    flags.DEFINE_integer("max_new_tokens", limit, text, flag_values=values)


def define_device_flags(values: flags.FlagValues) -> None:
    """Flags of a model's precision and placement."""
    text = "Dtype of weights and computation: float32, bfloat16 or float16. Default: float32."
    flags.DEFINE_string("dtype", "float32", text, flag_values=values)
    text = "Mesh axes to shard the model over: fsdp=4,tensor=2. Default: one CPU, or a copy on each accelerator."
    flags.DEFINE_string("mesh", "", text, flag_values=values)


def generate(values: flags.FlagValues) -> None:
    """Generates by the flags; jax is imported only after they are checked."""
    for name in ("model", "prompts", "output"):
        if not values[name].value:
            raise UserError(f"--{name} is missing (see --help)")
    from r1jax.data.files import read_rows
    from r1jax.eval.prompting import name_prompting
    from r1jax.runs.generate import Generation, check_output, generate_file
    from r1jax.runs.sampler import load_sampler, place_sampler
    from r1jax.weights.identity import identify_model

    prompting = name_prompting(values.model, values.template) if values.template else None
    names = ("num_samples", "temperature", "top_p", "top_k", "min_p", "max_new_tokens", "seed")
    config = Generation(**choose_sampling(values, names, prompting))
    rows = read_rows(values.prompts, key="--prompts")
    if not rows:
        raise UserError(f"--prompts={values.prompts} holds no rows")
    model = {"model": values.model, "model_digest": identify_model(values.model), "dtype": values.dtype}
    model["template"] = prompting.to_text() if prompting else ""
    played = {name: values[name].value for name in ("environment", "tools", "episode") if values[name].value}
    model |= played
    check_output(pathlib.Path(values.output), {**model, **dataclasses.asdict(config)})
    with place_sampler(values.mesh):
        if not prompting and any(isinstance(row.columns.get("prompt"), str) for row in rows):
            _note_template(values.model)
        stop_ids = prompting.stop_ids if prompting else ()
        sampler = load_sampler(values.model, dtype=values.dtype, slots=values.batch_size, stop_ids=stop_ids)
        wrap, play = prompting.wrap if prompting else None, choose_player(values, sampler, config)
        if play and (lacking := next((row.place for row in rows if "prompt" not in row.columns), None)):
            raise UserError(f"{lacking}: a row needs prompt where there is an environment")
        generate_file(sampler, rows, values.output, config, model=model, wrap=wrap, play=play)


def choose_sampling(values: flags.FlagValues, names: Sequence[str], prompting: "Prompting | None") -> dict[str, Any]:
    """Values of the sampling flags: a flag that was given, else the run's value, else the flag's default."""
    own: dict[str, Any] = dict(prompting.sampling) if prompting else {}
    if prompting:
        names = (*names, *(name for name in own if name not in names))
    return {name: values[name].value if name not in own or _is_given(values, name) else own[name] for name in names}


def _is_given(values: flags.FlagValues, name: str) -> bool:
    return name in values and bool(values[name].present)


def _note_template(model: str) -> None:
    """Says that MODEL carries a template which is not used."""
    from r1jax.eval.prompting import read_prompting

    found = read_prompting(model)
    if found is not None:
        log.info("%s carries a prompt template (%s): --template=run puts texts into it", model, found.describe())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
