"""Writes the report page of a run, or one page that compares several runs.

  python -m r1jax.report runs/grpo_zero
  python -m r1jax.report runs/a runs/b --output=comparison.html

Each DIR is the workdir of a run. The page of one run goes to report.html in its folder, a comparison to report.html in
the current folder, unless --output says otherwise. It is one self-contained file with curves, samples and config: open
it in any browser, no network needed. Training writes the page of its run by itself; this command writes it anew.
"""

import sys
from collections.abc import Sequence

from absl import flags

from r1jax.core.errors import UserError
from r1jax.eval.report import REPORT_FILE, write_comparison, write_report


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, or 2 for a user's mistake."""
    values = define_flags()
    try:
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
            print(f"{__doc__}\nFlags:")
            print(*(f"  --{name}: {values[name].help}" for name in values), sep="\n")
            return 0
        workdirs = _parse(values, argv)
        if len(workdirs) == 1:
            print(write_report(workdirs[0], values.output))
        else:
            print(write_comparison(workdirs, values.output or REPORT_FILE))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def define_flags() -> flags.FlagValues:
    """The flags of this command, apart from absl's global ones: importing this module defines none."""
    values = flags.FlagValues()
    text = "The HTML file to write. Default: report.html in DIR, or in the current folder for several runs."
    flags.DEFINE_string("output", None, text, flag_values=values)
    return values


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    try:
        _, *workdirs = values(["report", *argv[1:]])
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    if not workdirs:
        raise UserError("the folder of a run is missing, as in: python -m r1jax.report runs/grpo_zero (see --help)")
    return workdirs


if __name__ == "__main__":
    sys.exit(main(sys.argv))
