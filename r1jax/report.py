"""Writes the report page of a run, or one page that compares several runs.

  python -m r1jax.report runs/grpo_zero
  python -m r1jax.report runs/grpo_zero --watch
  python -m r1jax.report runs/a runs/b --output=comparison.html

Each DIR is the workdir of a run. The page of one run or pipeline goes to report.html in its folder, a comparison to
comparison.html in the folder that holds the runs (runs/), unless --output is given. It is one self-contained file with
curves, samples and config, which any browser opens without a network. Training writes the page of its run by itself;
this command rewrites it, once or, with --watch, whenever the run has written something; the page then reloads itself.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from r1jax.core.buckets.staging import is_address, locate, push, stage
from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, SAMPLES_FILE
from r1jax.eval.pipeline_report import RECORD_FILE, is_pipeline, write_story
from r1jax.eval.report import find_default_output, write_comparison, write_report

REFRESH = 15  # seconds between the reloads of a watched page


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, or 2 for a user's mistake."""
    values = define_flags()

    def report(workdirs: list[str]) -> None:
        if not workdirs:
            raise UserError("the folder of a run is missing, as in: python -m r1jax.report runs/grpo_zero (see --help)")
        print(write_page(workdirs, values.output, refresh=REFRESH if values.watch else 0), flush=True)
        if values.watch:
            watch(workdirs, values.output)

    return run_command(__doc__, values, argv[1:], report, positional=True, computes=False)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    text = "The HTML file to write. Default: report.html in DIR, or comparison.html beside several runs."
    flags.DEFINE_string("output", None, text, flag_values=values)
    text = "Rewrite the page whenever a run writes, until Ctrl-C; the page reloads itself meanwhile."
    flags.DEFINE_bool("watch", False, text, flag_values=values)
    return values


def write_page(workdirs: Sequence[str], output: str | None, *, refresh: int = 0) -> pathlib.Path:
    """Writes the page of one run or pipeline, or of several runs; refresh: seconds between its reloads (0: none).

    Runs may be in a bucket, and their page then goes there too.
    """
    local = [str(stage(folder)) if is_address(folder) else folder for folder in workdirs]
    page = _write_page(local, output, refresh=refresh)
    for folder in local:
        push(pathlib.Path(folder))
    return page if output else locate(page)


def _write_page(workdirs: Sequence[str], output: str | None, *, refresh: int) -> pathlib.Path:
    if len(workdirs) > 1:
        return write_comparison(workdirs, output or find_default_output(workdirs), refresh=refresh)
    if is_pipeline(workdirs[0]):
        return write_story(workdirs[0], output, refresh=refresh)
    return write_report(workdirs[0], output, refresh=refresh)


def watch(workdirs: Sequence[str], output: str | None, seconds: float = 5.0) -> None:
    """Rewrites the page after every change until Ctrl-C, and then once more, as a page that does not reload itself.

    seconds: between two looks at the files.
    """
    seen = find_times(workdirs)
    try:
        while True:
            time.sleep(seconds)
            if (now := find_times(workdirs)) != seen:
                seen = now
                write_page(workdirs, output, refresh=REFRESH)
    except KeyboardInterrupt:
        write_page(workdirs, output)


def find_times(workdirs: Sequence[str]) -> dict[pathlib.Path, float]:
    """When each file that a page is made of was written."""
    names = (METRICS_FILE, SAMPLES_FILE, RECORD_FILE)
    files = [file for folder in workdirs for name in names for file in sorted(pathlib.Path(folder).glob(f"**/{name}"))]
    return {file: file.stat().st_mtime for file in files}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
