"""Tells what a machine is worth for training: checks every part that a run relies on, with a cure for what is wrong.

  python -m r1jax.doctor --workdir=runs/mine
  python -m r1jax.doctor --quick

On all devices of all processes of a run (started as a run is, see docs/launch.md) it compares: versions and code of the
hosts; each kernel with its formula; the sampler's log-probs with the trainer's; one seed twice, bit for bit; rates of
matrix products, memory and links with the table of chips; a small GRPO step with what the compiler predicts of its
time and memory; and a checkpoint with what the storage of --workdir gives back. It takes a minute on CPUs and up to ten
on a pod.

The verdict is printed and written to doctor.json in the workdir (default: runs/doctor). The exit code is 1 if something
is wrong. Send the file along with a report of a fault, or to tell how a machine does.
"""

import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.outputs.ownership import check_output, has_keys, write_output
from r1jax.train import check_workdir, upload

FILE = "doctor.json"
VERSIONS_CURE = "install one version of every package on all hosts (launch/tpu_pod.py and launch/ do)"
WATCHDOG_MINUTES = 10.0


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first): 0 if all is right, 1 if not, 2 for a user's mistake."""
    values, right = define_flags(), True

    def look(_: list[str]) -> None:
        nonlocal right
        workdir = check_workdir(values.workdir)
        check_output(workdir / FILE, lambda path: has_keys(path, ("checks", "right")), flag="--workdir")
        right = examine(workdir, quick=values.quick)

    code = run_command(__doc__, values, argv[1:], look, keeps_programs=False)  # the first step's time counts
    return code or int(not right)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    folder = "Folder, or gs:// address, whose storage is checked and where doctor.json goes. Default: runs/doctor."
    flags.DEFINE_string("workdir", "runs/doctor", folder, flag_values=values)
    flags.DEFINE_bool("quick", False, "Smaller sizes and a smaller model: a minute or two.", flag_values=values)
    return values


def examine(workdir: pathlib.Path, *, quick: bool) -> bool:
    """Checks everything, prints and writes the verdict; returns whether all is right."""
    from r1jax.checkup.findings import Examination, Finding
    from r1jax.core import console, distributed
    from r1jax.core.watchdog import Watchdog
    from r1jax.runs import hosts
    from r1jax.runs.prologue import join

    begin = time.perf_counter()
    console.set_up_logging()
    distributed.start()
    facts, first = hosts.meet(), hosts.find_index() == 0
    examination = Examination(hosts.name_processes(facts), lambda text: print(text, flush=True) if first else None)
    with Watchdog(WATCHDOG_MINUTES):
        try:
            join()
        except UserError as error:  # no device can be used: the processes would wait for each other
            examination.add(Finding("hosts", "wrong", str(error), VERSIONS_CURE))
        else:
            examination.add(Finding("hosts", "right", hosts.describe(facts, list_devices())))
            check_devices(examination, workdir, quick=quick)
    report = describe(examination, facts, time.perf_counter() - begin, quick=quick)
    if first:
        write_output({workdir / FILE: json.dumps(report, indent=1) + "\n"}, flag="--workdir")
        wrong, count = examination.wrong, len(examination.findings)
        verdict = f"{len(wrong)} of {count} checks found something wrong: {', '.join(wrong)}"
        print(f"{verdict if wrong else f'all is right: {count} checks'}, {report['seconds']:.0f} s; {workdir / FILE}")
        upload(workdir)
    return not examination.wrong


def list_devices() -> list[tuple[int, str]]:
    """The process and the kind of each device."""
    import jax

    return [(device.process_index, device.device_kind) for device in jax.devices()]


def check_devices(examination: Any, workdir: pathlib.Path, *, quick: bool) -> None:
    """All checks that use devices, on all of them, in this order: the small run first, for its peak of memory."""
    import jax

    from r1jax.checkup import kernels, rates, small_run, storage
    from r1jax.checkup.findings import Finding
    from r1jax.core.sharding import make_mesh, use_mesh

    settings, sizes = small_run.make_settings(quick=quick), rates.choose_sizes(jax.default_backend(), quick=quick)
    with use_mesh(make_mesh(settings.mesh)):
        runs: list[Any] = []

        def run_twice() -> Finding:
            runs.extend(small_run.run_once(settings) for _ in range(2))
            return small_run.check_bits(*runs)

        examination.do("bits", run_twice)
        if runs:
            examination.do("sampler", lambda: small_run.check_sampler(runs[0]))
    examination.do("kernels", lambda: kernels.check_kernels(quick=quick))
    flops = examination.do("FLOPs", lambda: rates.check_flops(sizes))
    memory = examination.do("HBM", lambda: rates.check_memory(sizes))
    links = examination.do("links", lambda: rates.check_links(sizes))
    with use_mesh(make_mesh(settings.mesh)):
        if runs:
            expect = lambda: expect_step(settings, [flops, memory, links])
            examination.do("step", lambda: small_run.check_step(runs[1], expect))
        examination.do("storage", lambda: storage.check_storage(workdir, 16 if quick else 256))


def expect_step(settings: Any, findings: Sequence[Any]) -> Any:
    """The small run's step according to the compiler, at the rates of these findings (FLOPs, memory, links)."""
    import jax

    from r1jax.aot.expected_step import expect_step as expect
    from r1jax.checkup.small_run import Expected
    from r1jax.runs.chips import Chip

    flops, memory, links = (max(finding.figures.get("measured", [float("inf")])) for finding in findings)
    kind = jax.local_devices()[0].device_kind
    return Expected(*expect(settings, Chip(kind, flops, 2**62, memory, links, links, 1, jax.device_count())))


def describe(examination: Any, facts: Sequence[Any], seconds: float, *, quick: bool) -> dict[str, Any]:
    """The content of doctor.json."""
    import dataclasses

    return {
        "right": not examination.wrong,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "quick": quick,
        "hosts": [
            {"name": name, "versions": fact.versions, "settings": fact.settings}
            for name, fact in zip(examination.hosts, facts, strict=True)
        ],
        "processors": os.cpu_count(),
        "checks": [dataclasses.asdict(finding) for finding in examination.findings],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
