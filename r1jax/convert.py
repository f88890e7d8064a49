"""Writes a model as a Hugging Face folder, which transformers and vLLM load.

  python -m r1jax.convert runs/grpo_zero my-model
  python -m r1jax.convert models/SmolLM2-135M-Instruct.Q4_1.gguf my-model --dtype=bfloat16

The first argument is a Hugging Face folder, a .gguf file, a hub name (org/name[@revision]), the workdir of a run (its
newest checkpoint) or one of its checkpoints; the second a folder that does not exist yet. It receives config.json, the
weights as safetensors (with an index if they are large), the tokenizer files and generation_config.json, all or
nothing; from a run also prompting.json, how the run asked its model, which evaluate and chat use.

  python -m r1jax.convert runs/lora my-adapters --adapter

writes only the adapters of a run that trained some (config.lora.rank), a few MB in the files of the library peft, which
peft and vLLM load onto the base. Such a folder, ours or another's, is a MODEL too, and converts to a whole one.

Every tensor keeps its stored dtype (8-bit blocks become bfloat16, GGUF's quantized blocks float32), or is cast to
--dtype; the router's correction bias keeps its own. Tensors are read and written one at a time.
"""

from __future__ import annotations

import collections
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError

if TYPE_CHECKING:  # imports jax
    from r1jax.weights.safetensors_writer import Spec


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    stopped = "stopped; nothing was written"
    return run_command(
        __doc__,
        values,
        argv[1:],
        lambda arguments: convert(values, arguments),
        positional=True,
        stopped=stopped,
        keeps_programs=False,
    )


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    text = "float32, bfloat16 or float16. Default: the stored dtype of each tensor."
    flags.DEFINE_string("dtype", None, text, flag_values=values)
    only = "Write only a run's adapters, as adapter_config.json and adapter_model.safetensors (float32)."
    flags.DEFINE_bool("adapter", False, only, flag_values=values)
    return values


def convert(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Converts a model by the arguments; jax is imported only after they are checked."""
    if len(arguments) != 2:
        raise UserError(f"two arguments are needed, SRC and DST, got {len(arguments)} (see --help)")
    if not all(arguments):
        raise UserError("SRC names a model and DST a new folder; one of them is empty (see --help)")
    if values.adapter and values.dtype:
        raise UserError("--adapter writes float32; leave --dtype out")
    from r1jax.core.distributed import is_writer
    from r1jax.eval.model_card import CARD, describe_model
    from r1jax.eval.prompting import describe_missing
    from r1jax.weights import export

    source, folder = arguments
    export.check_new(folder)
    files = {**describe_missing(source), CARD: describe_model(source, folder, adapters=values.adapter)}
    if values.adapter:
        specs = export.convert_adapters(source, folder, files=files)
    else:
        specs = export.convert(source, folder, dtype=values.dtype, files=files)
    if is_writer():
        print("\n".join(describe_folder(folder, specs)))


def describe_folder(folder: str, specs: Mapping[str, Spec]) -> list[str]:
    """Lines that tell what was written: parameters by dtype, and each file with its size."""
    counts: collections.Counter[str] = collections.Counter()
    for spec in specs.values():
        counts[str(spec.dtype)] += math.prod(spec.shape)
    short = lambda count: f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
    kinds = ", ".join(f"{short(count)} {dtype}" for dtype, count in counts.most_common())
    files = sorted(pathlib.Path(folder).iterdir())
    width = max(len(file.name) for file in files)
    sizes = [f"  {file.name:<{width}}  {_format_size(file.stat().st_size):>9}" for file in files]
    return [f"{folder}: {kinds} parameters in {len(specs)} tensors", *sizes]


def _format_size(size: int) -> str:
    return f"{size:,} B" if size < 1000 else f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
