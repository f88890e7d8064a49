"""The doctor here, on eight pretend devices and in two processes: right; with faults put in, each is named."""

import dataclasses
import errno
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from r1jax import doctor
from r1jax.checkup import rates
from r1jax.core import atomic_file
from r1jax.learner.step import Learner
from r1jax.models.ops import silu_gate
from r1jax.rollout.engine import Engine
from r1jax.runs.chips import Chip
from tests.core.test_distributed import start_two
from tests.runs.test_hosts import end
from tests.stages.test_processes import only_words

CHECKS = ["hosts", "bits", "sampler", "kernels", "FLOPs", "HBM", "links", "step", "storage"]

TWO = """
import dataclasses, os, sys
from r1jax.runs import hosts
from r1jax import doctor
facts, versions, number = hosts.find_facts(), {}, os.environ["R1JAX_PROCESS_ID"]
if sys.argv[2] == "other":
    versions = {"jax": "0.9." + number}
facts = dataclasses.replace(facts, host="host" + number, versions={**facts.versions, **versions})
hosts.find_facts = lambda: facts
sys.exit(doctor.main(["doctor", "--quick", "--workdir=" + sys.argv[1]]))
"""


def run(workdir: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The exit code, and the findings of doctor.json by name."""
    code = doctor.main(["doctor", "--quick", f"--workdir={workdir}"])
    report = json.loads((workdir / "doctor.json").read_text())
    assert report["right"] == (code == 0) and report["hosts"][0]["versions"]["jax"]
    return code, {check["name"]: check for check in report["checks"]}


@pytest.mark.slow
def test_eight_pretend_devices_are_right(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = run(tmp_path / "run")
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert list(checks) == CHECKS and {check["verdict"] for check in checks.values()} == {"right", "measured"}
    assert "8 x cpu" in checks["hosts"]["text"] and re.search(
        r"^all is right: 9 checks, \d+ s; .*doctor.json$", shown, re.M
    )
    step = checks["step"]["figures"]
    assert step["predicted_peak_bytes"] > 0 and step["phases"]["sampling"]["bound_seconds"] > 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["doctor.json"]


@pytest.mark.slow
def test_each_of_five_faults_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel, the sampler, bits, a link and the storage at once; what has no fault stays right."""
    gate, generate, update, replace = silu_gate.gate_silu, Engine.generate, Learner.update, os.replace
    table = Chip("pretend", 1.0, 2**40, 1.0, 1e9, 1e9, 1, 8)
    noise = np.random.default_rng()  # seeded by the system

    def sample(self: Any, *args: Any, **options: Any) -> list:
        found = generate(self, *args, **options)
        return [dataclasses.replace(c, logprobs=tuple(x - 0.01 for x in c.logprobs)) for c in found]

    def learn(self: Any, state: Any, *args: Any) -> Any:
        state, *rest = update(self, state, *args)
        scale = state.params["norm"]["scale"]
        params = {**state.params, "norm": {"scale": scale + 1e-6 * float(noise.uniform(1, 2))}}
        return dataclasses.replace(state, params=params), *rest

    def refuse(source: Any, target: Any, **options: Any) -> None:
        if "doctor-probe" in str(target):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(target))
        replace(source, target, **options)

    monkeypatch.setattr(silu_gate, "gate_silu", lambda a, b: gate(a, b) * 1.01)  # its forward rule calls it too
    monkeypatch.setattr(Engine, "generate", sample)
    monkeypatch.setattr(Learner, "update", learn)
    monkeypatch.setattr(atomic_file.os, "replace", refuse)
    monkeypatch.setattr(rates, "find_chip", lambda kind: table)
    monkeypatch.setattr(rates, "measure_links", lambda sizes: table.ici_bandwidth / 10)
    code, checks = run(tmp_path)
    shown = capsys.readouterr().out
    assert code == 1
    wrong = {name: check for name, check in checks.items() if check["verdict"] == "wrong"}
    assert set(wrong) == {"kernels", "sampler", "bits", "links", "storage"}, shown
    assert all(check["cure"] and check["cure"] in shown for check in wrong.values())
    for name, words in {
        "kernels": "silu_gate by 0.02",
        "sampler": "differ from the trainer's by 1.0e-02",
        "bits": "gives different bits: ",
        "links": "10% of the table's",
        "storage": "cannot be renamed",
    }.items():
        assert words in wrong[name]["text"]
    assert "5 of 9 checks found something wrong: bits, sampler, kernels, links, storage" in shown


@pytest.mark.slow
def test_two_processes_are_right(tmp_path: pathlib.Path) -> None:
    (code, out, err), (other_code, other_out, other_err) = end(start_two(TWO, str(tmp_path), "same"))
    assert code == other_code == 0, out + err + other_err
    assert only_words(other_out) == [] and "all is right: 9 checks" in out
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert [host["name"] for host in report["hosts"]] == ["host0", "host1"]
    kernels = next(check for check in report["checks"] if check["name"] == "kernels")
    assert set(kernels["figures"]) == {"host0", "host1"}


def test_a_host_with_another_jax_is_named(tmp_path: pathlib.Path) -> None:
    """Before any device is used."""
    (code, out, err), (other_code, other_out, _) = end(start_two(TWO, str(tmp_path), "other"))
    assert code == other_code == 1, out + err
    assert (
        "hosts        WRONG     the processes of a run need one version of jax, but 0.9.0 on host0 and 0.9.1 on host1"
        in out
    )
    assert "1 of 1 checks found something wrong: hosts" in out and only_words(other_out) == []
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert not report["right"] and report["hosts"][1]["versions"]["jax"] == "0.9.1"


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ("my notes", (), "doctor.json exists and is no earlier result"),
        (None, ("--fast",), "fast"),
        (None, ("x",), '"x"'),
    ],
)
def test_a_mistake_is_one_line(
    content: str | None,
    flags: tuple[str, ...],
    words: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content:
        (tmp_path / "doctor.json").write_text(content)
    assert doctor.main(["doctor", f"--workdir={tmp_path}", *flags]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and words in errors
