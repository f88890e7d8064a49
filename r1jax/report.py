"""Writes the report page of a run, or one page that compares several runs.

  python -m r1jax.report runs/grpo_zero
  python -m r1jax.report runs/a runs/b --output=comparison.html

Each DIR is the workdir of a run. The page of one run or pipeline goes to report.html in its folder, a comparison to
report.html in the current folder, unless --output is given. It is one self-contained file with curves, samples and
config, which any browser opens without a network. Training writes the page of its run by itself; this command rewrites
it.
"""

import sys
from collections.abc import Sequence

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.eval.pipeline_report import is_pipeline, write_story
from r1jax.eval.report import REPORT_FILE, write_comparison, write_report


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, or 2 for a user's mistake."""
    values = define_flags()

    def report(workdirs: list[str]) -> None:
        if not workdirs:
            raise UserError("the folder of a run is missing, as in: python -m r1jax.report runs/grpo_zero (see --help)")
        if len(workdirs) == 1 and is_pipeline(workdirs[0]):
            print(write_story(workdirs[0], values.output))
        elif len(workdirs) == 1:
            print(write_report(workdirs[0], values.output))
        else:
            print(write_comparison(workdirs, values.output or REPORT_FILE))

    return run_command(__doc__, values, argv[1:], report, positional=True, computes=False)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    text = "The HTML file to write. Default: report.html in DIR, or in the current folder for several runs."
    flags.DEFINE_string("output", None, text, flag_values=values)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv))
