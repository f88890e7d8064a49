"""Bad inputs of `python -m r1jax.doctor`, all of which are found before any check."""

from tests.inputs.case import Case, folder

CASES = [
    Case("doctor.json of another hand", ("--workdir={here}/w",), ("doctor.json", "exists"), {"w/doctor.json": "notes"}),
    Case("doctor.json a folder", ("--workdir={here}/w",), ("doctor.json", "folder"), {"w/doctor.json": folder}),
    Case("workdir a file", ("--workdir={here}/w",), ("--workdir",), {"w": "my notes"}),
    Case("workdir below a file", ("--workdir={here}/w/x",), ("--workdir",), {"w": "my notes"}),
    Case("workdir in /proc", ("--workdir=/proc/none",), ("/proc/none",)),
    Case("unknown flag", ("--qiuck",), ("qiuck",)),
    Case("quick is text", ("--quick=very",), ("quick",)),
    Case("positional", ("stray",), ("stray",)),
]
