"""Compiles every program of a run for a TPU topology without a TPU, and reports whether it fits and what it costs.

  pip install -e '.[tpu]'
  python -m r1jax.compile_check --config=configs/grpo_qwen1.5b_v6e.py --topology=v6e-16

The TPU compiler (libtpu) runs on any machine; only the config is needed, no weights and no data. For each program (a
training step's gradient and update, log-probs, prefill, decode) it reports, per device: HBM needed, including
everything else that the run keeps there, against the chip's capacity; FLOPs and collectives as compiled, with loops
counted in full (an open-ended loop, such as decoding, once: one token); useful FLOPs by formula; and the shortest time
that the chip's peak rates allow. The exit code is 1 if a program does not fit.

`at best` is a lower bound: max(FLOPs / peak, HBM bytes / bandwidth, bytes sent / links); `limit` is the largest.
`predicted` is what operations and collectives take one after the other at stated shares of the peaks, of collectives
what nothing hides; docs/predictions.md tells how it compares with published times. For GRPO and SFT follow tokens a
second and chip of sampling and updating, and seconds and chip-hours of a step and of the run, for completions of full
length. With --hlo=DIR in place of --config the optimized HLO texts in a folder, a peer's dump too, are judged by the
same formulas, without a compiler.
"""

import importlib.util
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.core.extras import install_line
from r1jax.core.outputs.ownership import check_output, check_writable, has_keys, write_output
from r1jax.runs.chips import CHIPS, Topology, read_topology
from r1jax.train import resolve, split_overrides

# Settings that libtpu otherwise requests from a cloud machine's metadata; a compiler needs none of them. It also takes
# a lock that keeps other processes off the chips, although this one uses no chip.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first): 0 if all fits, 1 if not, 2 for a user's mistake."""
    values, fits = define_flags(), True

    def check(_: list[str]) -> None:
        nonlocal fits
        if values.hlo and (values.config or values.programs or values.dump_hlo or overrides):
            raise UserError("--hlo judges texts that were compiled before: without --config, --programs and --dump_hlo")
        settings = None if values.hlo else resolve(values.config, None, overrides)[0].settings
        if not values.topology:
            raise UserError(
                f"--topology is missing, as in --topology=v5p:4x4x4; chips: {', '.join(CHIPS)} (see --help)"
            )
        topology = read_topology(values.topology, values.num_slices)
        check_outputs(values.output, values.dump_hlo)
        if values.hlo:
            check_texts(pathlib.Path(values.hlo), topology, values.output)
            return
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        wanted = values.programs.split(",") if values.programs else None
        fits = check_run(settings, topology, wanted=wanted, output=values.output, dump=values.dump_hlo)

    rest, overrides = split_overrides(argv[1:])
    code = run_command(__doc__, values, rest, check, keeps_programs=False)  # its seconds of compiling are figures
    return code or int(not fits)


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    texts = {
        "config": "The config file, with its arguments if any: configs/X.py or configs/X.py:name=value,...",
        "topology": f"The slice: chip ({', '.join(CHIPS)}) and chips along each axis, as in v5p:8x8x8 or v6e:4x4; or a "
        "machine's type, as in v6e-16, v5litepod-8 or v5p-64.",
        "programs": "Names of the programs to compile: accumulate,decode. Default: all programs of the run.",
        "output": "A JSON file to write the figures to.",
        "hlo": "A folder of optimized HLO texts (*.txt, *.hlo, also .gz) to judge, in place of a config.",
        "dump_hlo": "A folder to write each compiled program to, as text (NAME.txt).",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    slices = "Number of such slices; the mesh axis `data` spans them. Default: 1."
    flags.DEFINE_integer("num_slices", 1, slices, flag_values=values)
    return values


def check_outputs(output: str | None, dump: str | None) -> None:
    """Raises UserError if a file of another hand stands where figures or programs go, or none can be written there."""
    if output:
        check_output(pathlib.Path(output), lambda path: has_keys(path, ("chip", "devices", "programs")))
    if dump:
        check_writable(pathlib.Path(dump) / "program.txt", flag="--dump_hlo")
        folder = pathlib.Path(dump)
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not (file.is_file() and _begins_as_program(file)):
                raise UserError(f"{file} is no compiled program; name another folder, or a new one (--dump_hlo)")


def _begins_as_program(file: pathlib.Path) -> bool:
    with open(file, "rb") as stream:
        return file.suffix == ".txt" and stream.read(9) == b"HloModule" or ".txt.old-" in file.name


def check_run(
    settings: Any, topology: Topology, *, wanted: Sequence[str] | None, output: str | None, dump: str | None
) -> bool:
    """Compiles and prints each program (only those in `wanted`, if given); returns whether all fit."""
    from r1jax.aot.compiled import Report, compile_program
    from r1jax.aot.programs import list_programs
    from r1jax.aot.step_costs import find_step_costs
    from r1jax.core.sharding import make_mesh, use_mesh

    mesh_config = settings.mesh
    report = Report(topology)
    with use_mesh(make_mesh(mesh_config, find_devices(topology)), dict(mesh_config.rules)):
        programs = choose_programs(list_programs(settings), wanted)
        print(report.head(), flush=True)
        for program in programs:
            compiled = compile_program(program, topology)
            report.add(program.name, compiled)
            print(report.line(program.name), flush=True)
            if dump and compiled.text:
                write_output({pathlib.Path(dump) / f"{program.name}.txt": compiled.text}, flag="--dump_hlo")
        costs = find_step_costs(settings, report.programs, topology)
    report.further = costs.as_dict() if costs else {}
    if output:
        write_output({pathlib.Path(output): json.dumps(report.as_dict(), indent=1) + "\n"})
    print(*(costs.lines() if costs else ()), *report.advice(), sep="\n")
    return report.fits


def check_texts(folder: pathlib.Path, topology: Topology, output: str | None) -> None:
    """Prints, and writes, the figures of every program text in a folder."""
    from r1jax.aot.program_texts import HEAD, judge_texts

    print(HEAD)
    programs = {}
    for judged in judge_texts(folder, topology):
        print(judged.line(), flush=True)
        programs[judged.name] = judged.as_dict()
    if output:
        report = {"chip": topology.chip.name, "devices": topology.devices, "programs": programs}
        write_output({pathlib.Path(output): json.dumps(report, indent=1) + "\n"})


def choose_programs(programs: Sequence[Any], wanted: Sequence[str] | None) -> list[Any]:
    """The programs named in `wanted`, in the run's order. Raises UserError for an unknown name."""
    names = [program.name for program in programs]
    if unknown := [name for name in wanted or () if name not in names]:
        raise UserError(
            f"--programs={','.join(wanted or ())}: the run has no {unknown[0]!r}; it has {', '.join(names)}"
        )
    return [program for program in programs if wanted is None or program.name in wanted]


def find_devices(topology: Topology) -> list[Any]:
    """The devices of a topology according to its compiler. Raises UserError without libtpu or for a shape that does not
    exist.
    """
    from jax.experimental import topologies

    options: dict[str, Any] = {} if topology.slices == 1 else {"num_slices": topology.slices}
    if any(size % 2 for size in topology.shape[:2]):
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = topologies.get_topology_desc(topology.name, platform="tpu", **options).devices
    except Exception as error:  # jax and libtpu raise several types here
        text = " ".join(str(error).split())
        if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
            raise UserError(
                f"the TPU compiler (libtpu) does not load; install it with: {install_line('tpu')} ({text[:200]})"
            ) from None
        raise UserError(f"--topology={topology.name}: unknown to the TPU compiler ({text[:200]})") from None
    if len(found) != topology.devices:
        raise UserError(
            f"--topology={topology.name}: {topology.devices} devices expected, the compiler has {len(found)}"
        )
    return list(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
