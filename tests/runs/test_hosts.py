"""Facts that processes exchange at the start of a run, what is refused, and which of them speaks."""

import dataclasses
import subprocess

import pytest

from r1jax.core.errors import UserError
from r1jax.runs.hosts import Facts, compare, describe, find_facts, name_processes
from tests.core.test_distributed import start_two

ONE = Facts("a", {"Python": "3.12.1", "r1jax": "1", "jax": "0.10.2", "jaxlib": "0.10.2"}, ["--config=x"], {})


def other(host: str = "b", arguments: tuple[str, ...] = ("--config=x",), **versions: str) -> Facts:
    return dataclasses.replace(ONE, host=host, arguments=list(arguments), versions={**ONE.versions, **versions})


@pytest.mark.parametrize("package", ["r1jax", "jax", "jaxlib", "libtpu"])
def test_different_versions_are_refused_by_package_version_and_host(package: str) -> None:
    here = ONE.versions.get(package, "nothing" if package != "libtpu" else "none")
    with pytest.raises(UserError, match=rf"one version of {package}, but {here} on a, c and 9\.9 on b; install"):
        compare([ONE, other(**{package: "9.9"}), other("c")])


def test_other_differences_are_a_line_each() -> None:
    odd = dataclasses.replace(other(arguments=("--config=y",), Python="3.11.2"), settings={"XLA_FLAGS": "--z"})
    assert compare([ONE, odd]) == [
        "the versions of Python differ: 3.12.1 on a and 3.11.2 on b",
        "the command lines differ, and processes of different configs hang: --config=x on a and --config=y on b",
        "XLA_FLAGS differs: nothing on a and --z on b",
    ]
    assert compare([ONE, other()]) == [] == compare([ONE])


def test_one_line_names_hosts_devices_and_versions() -> None:
    versions = "Python 3.12.1, r1jax 1, jax 0.10.2, jaxlib 0.10.2"
    assert describe([ONE], [(0, "cpu")] * 8) == f"a: 8 x cpu; {versions}"
    four = [(0, "TPU v6e"), (0, "TPU v6e"), (1, "TPU v6e"), (1, "TPU v6e")]
    assert describe([ONE, other()], four) == f"2 processes, 4 x TPU v6e, 2 each: a b; {versions}"
    assert describe([ONE, other()], four[:3]) == (
        f"2 processes, 3 x TPU v6e, not the same number each: a (2) b (1); {versions}"
    )


def test_processes_of_one_host_are_told_apart() -> None:
    assert name_processes([ONE, other()]) == ["a", "b"]
    assert name_processes([ONE, other("a")]) == ["a/0", "a/1"]


def test_the_facts_of_this_process() -> None:
    facts = find_facts()
    assert facts.host and set(facts.versions) >= {"Python", "r1jax", "jax", "jaxlib"} and "XLA_FLAGS" in facts.settings


SPEAKS = """
import logging
from r1jax.core import console
from r1jax.runs.prologue import open_run
with open_run():
    pass
with open_run():  # the next stage of a pipeline
    log = logging.getLogger("r1jax.stages")
    log.info("a step")
    log.warning("a slow disk")
    with console.Progress(2, title="step") as progress:
        progress.update(1, {"loss": 1.0})
    console.show_table("after", [{"loss": 1.0}])
    console.show_samples([{"prompt": "p", "completion": "c", "reward": 1.0}])
"""
DISAGREES = """
import dataclasses, os, sys
from r1jax.runs import hosts
from r1jax import train
facts = hosts.find_facts()
own = {**facts.versions, "jax": "0.9." + os.environ["R1JAX_PROCESS_ID"]}
hosts.find_facts = lambda: dataclasses.replace(facts, host="host" + os.environ["R1JAX_PROCESS_ID"], versions=own)
sys.exit(train.main(["train", "--config=tests/stages/tiny_sft.py", "--workdir=" + sys.argv[1]]))
"""


def end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        return [(process.wait(timeout=120), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_the_first_process_alone_shows_progress_and_each_line_has_its_process() -> None:
    (code, out, err), (other_code, other_out, other_err) = end(start_two(SPEAKS))
    assert code == other_code == 0, err + other_err
    assert "step 1/2  loss 1" in out and "after\n" in out and "reward 1" in out
    lines, others = ([line[9:] for line in text.splitlines() if "[Gloo]" not in line] for text in (err, other_err))
    names = [lines[0].split()[5].rstrip(";"), others[0].split()[5].rstrip(";")]
    assert [name[-2:] for name in names] == ["/0", "/1"]
    assert lines[0] == f"process 1 of 2 is {names[0]}; {names[0]} shows progress"
    assert lines[1].startswith(f"[{names[0]}] 2 processes, 4 x cpu, 2 each: {names[0]} {names[1]}; Python 3")
    assert lines[2:] == [f"[{names[0]}] a step", f"warning: [{names[0]}] a slow disk"]
    assert other_out == "" and others == [
        f"process 2 of 2 is {names[1]}; {names[0]} shows progress",
        f"warning: [{names[1]}] a slow disk",
    ]


@pytest.mark.slow
def test_a_run_of_processes_of_different_versions_is_refused_on_each(tmp_path_factory: pytest.TempPathFactory) -> None:
    for code, out, err in end(start_two(DISAGREES, str(tmp_path_factory.mktemp("run")))):
        assert code == 2 and out == ""
        assert "error: the processes of a run need one version of jax, but 0.9.0 on host0 and 0.9.1 on host1" in err
