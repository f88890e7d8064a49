"""Trains a model by a config file, and resumes an interrupted run.

  python -m r1jax.train --config=configs/grpo_zero.py

A config is a Python file that describes the task, the model and the settings; it begins with its goal, command and
expected result. The configs that come with r1jax are found by their names (configs/X.py) from any folder. Two ways to
change a run without editing the file:

  --config=configs/grpo_zero.py:template=chat      an argument of the file, after a colon, several with commas
  --config.optimizer.learning_rate=3e-6            one value of the config, by its dotted name

A misspelt name or a value of the wrong type is an error before anything is loaded. --dry_run shows what a run would
use, need and resume, and computes nothing; --help_config lists every key with its meaning.

Everything a run writes is in --workdir: config.json, metrics.jsonl, samples.jsonl, report.html (open it in a browser),
TensorBoard events and checkpoints. Repeat the command to resume from the last checkpoint; name another --workdir to
start from scratch. Ctrl-C stops a run.
"""

import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.config import load_config
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_writable, shorten
from r1jax.core.resolution import Resolved
from r1jax.core.sinks.trackers import check_tracker
from r1jax.core.startup.heap import share_arena
from r1jax.stages.registry import find_stage, find_trackers, resolve_run, stage_of


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    share_arena()
    arguments, overrides = split_overrides(argv[1:])
    values = define_flags()

    def train(_: list[str]) -> None:
        if values.help_config:
            print(describe_config(values.config), end="")
            return
        resolved, workdir = resolve(values.config, values.workdir, overrides)
        if values.dry_run:
            from r1jax.aot.dry_run import describe_run

            for line in describe_run(resolved, workdir):
                print(line)
            return
        if not is_staged(workdir):
            check_writable(workdir / "config.json", flag="--workdir")
        start(resolved.settings, workdir)

    stopped = "stopped; the same command resumes from the last checkpoint"
    return run_command(__doc__, values, arguments, train, stopped=stopped)


def start(settings: Any, workdir: pathlib.Path) -> None:
    """Runs the stage of checked settings to its end."""
    for key, name in find_trackers(settings).items():  # before anything is loaded
        check_tracker(name, key)
    try:
        stage_of(settings).run(settings, workdir)
    finally:
        upload(workdir)
    from r1jax.core import distributed  # imports jax, so only after the config is checked

    distributed.wait("the end of the run")


def is_staged(workdir: pathlib.Path) -> bool:
    """Whether a workdir stands for one in a bucket."""
    staging = sys.modules.get("r1jax.core.buckets.staging")  # imported where there is such a workdir
    return staging is not None and staging.is_staged(workdir)


def upload(workdir: pathlib.Path) -> None:
    """Uploads the records of a workdir that stands for one in a bucket, by the first process."""
    if is_staged(workdir) and "jax" in sys.modules:
        from r1jax.core import distributed
        from r1jax.core.buckets import staging

        if distributed.is_writer():
            staging.push(workdir)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    spec = "The config file, with its arguments if any: configs/X.py or configs/X.py:name=value,..."
    flags.DEFINE_string("config", None, spec, flag_values=values)
    folder = "Folder of the run's files, to write and to resume from. Default: runs/X for configs/X.py."
    flags.DEFINE_string("workdir", None, folder, flag_values=values)
    keys = "List every key of the config's stage, or of all stages without --config, with type, default and meaning."
    flags.DEFINE_bool("help_config", False, keys, flag_values=values)
    plan = "Print the resolved config, sizes, missing files and what would be resumed, and exit without computing."
    flags.DEFINE_bool("dry_run", False, plan, flag_values=values)
    return values


def describe_config(spec: str | None) -> str:
    """The reference of the keys of a config's stage (None: of all stages)."""
    from r1jax.stages.config_reference import describe_all, describe_stage  # imports every stage

    if not spec:
        return describe_all()
    config = load_config(spec)
    return describe_stage(find_stage(config).CONFIG, config.stage)


def split_overrides(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Extracts `--config.a.b=v` and `--config.a.b v` from the arguments: (the other arguments, {"a.b": "v"}).

    A `--config.a.b` without a value means true.
    """
    rest, overrides = [], {}
    queue = list(args)
    while queue:
        arg = queue.pop(0)
        match = re.fullmatch(r"--?config\.([^=]+)(=.*)?", arg, re.DOTALL)
        if match is None:
            rest.append(arg)
        elif match[2] is not None:
            overrides[match[1]] = match[2][1:]
        else:
            overrides[match[1]] = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
    return rest, overrides


def resolve(spec: str | None, workdir: str | None, overrides: dict[str, str]) -> tuple[Resolved, pathlib.Path]:
    """Checked settings of a config file and flags, and the workdir.

    Raises:
      UserError: for a missing file, an unknown key, a value of the wrong type, or a workdir that is a file.
    """
    if not spec:
        raise UserError("--config is missing, as in --config=configs/grpo_zero.py (see --help)")
    config = load_config(spec)
    folder = check_workdir(workdir or f"runs/{pathlib.Path(spec.partition(':')[0]).stem}")
    return resolve_run(config, overrides), folder


def check_workdir(workdir: str | pathlib.Path) -> pathlib.Path:
    """The path of a workdir, or the local folder that stands for one in a bucket. Raises UserError if it, or a folder
    above it, is a file.
    """
    if str(workdir).startswith("gs://"):
        from r1jax.core.buckets.staging import stage  # needs packages that other runs do without

        return stage(str(workdir))
    folder = pathlib.Path(workdir)
    try:
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"--workdir={folder} must name a folder, but {path} is a file")
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--workdir={shorten(folder)} names no folder: {reason}") from None
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv))
