"""Writes a model as a Hugging Face folder, which transformers and vLLM load.

  python -m r1jax.convert runs/grpo_zero my-model
  python -m r1jax.convert models/SmolLM2-135M-Instruct.Q4_1.gguf my-model --dtype=bfloat16

The first argument is a Hugging Face folder, a .gguf file, a hub name (org/name[@revision]), the workdir of a run (its
newest checkpoint) or one of its checkpoints; the second a folder that does not exist yet. It receives config.json, the
weights as safetensors (with an index if they are large), the tokenizer files and generation_config.json, all or
nothing; from a run also prompting.json, how the run asked its model, which evaluate and chat use.

Every tensor keeps its stored dtype (8-bit blocks become bfloat16, GGUF's quantized blocks float32), or is cast to
--dtype; the router's correction bias keeps its own. Tensors are read and written one at a time.
"""

import sys
from collections.abc import Sequence

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    stopped = "stopped; nothing was written"
    return run_command(
        __doc__, values, argv[1:], lambda arguments: convert(values, arguments), positional=True, stopped=stopped
    )


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    text = "float32, bfloat16 or float16. Default: the stored dtype of each tensor."
    flags.DEFINE_string("dtype", None, text, flag_values=values)
    return values


def convert(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Converts a model by the arguments; jax is imported only after they are checked."""
    if len(arguments) != 2:
        raise UserError(f"two arguments are needed, SRC and DST, got {len(arguments)} (see --help)")
    from r1jax.eval.prompting import describe_missing
    from r1jax.weights import export

    export.convert(arguments[0], arguments[1], dtype=values.dtype, files=describe_missing(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
