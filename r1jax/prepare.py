"""Encodes the data sets of a supervised run ahead, on all cores and without an accelerator.

  python -m r1jax.prepare --config=configs/sft_chat.py:data=chats.jsonl,model=Qwen/Qwen2.5-0.5B-Instruct

A run does the same at its first start if its files are large (64 MB together); afterwards every start reads the
prepared set, whatever its size. Sets are kept in $R1JAX_PREPARED, or ~/.cache/r1jax/prepared, under a digest of the
files, of columns, template and lengths, of the tokenizer and of the code that encodes: a set that fits is found again,
and any change makes another. Arguments and --config.a.b=value are those of r1jax.train.

Stopped at any moment, the same command goes on at the shard where it was; the same command in several processes, or on
several machines that share the folder, divides the work.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.train import resolve, split_overrides


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    arguments, overrides = split_overrides(argv[1:])
    values = flags.FlagValues()
    spec = "The config file, with its arguments if any: configs/X.py or configs/X.py:name=value,..."
    flags.DEFINE_string("config", None, spec, flag_values=values)

    def prepare(_: list[str]) -> None:
        resolved, workdir = resolve(values.config, None, overrides)
        from r1jax.core import console
        from r1jax.data.prepared.opening import prepare_corpus
        from r1jax.runs.model_setup import load_tokenizer
        from r1jax.stages.data_sets import list_data_sets

        console.set_up_logging()
        found = list(list_data_sets(resolved.settings, workdir))
        if not found:
            raise UserError(f"a run of the stage {resolved.settings.stage!r} has no supervised data set to prepare")
        for key, corpus, model in found:
            logging.getLogger("r1jax").info("config.%s, for %s", key, model.preset or model.name)
            for line in prepare_corpus(corpus, load_tokenizer(model)):
                print(line)

    stopped = "stopped; the same command goes on where it was"
    return run_command(__doc__, values, arguments, prepare, stopped=stopped, computes=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
