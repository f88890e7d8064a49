"""Real training on two stand-in hosts by launch/tpu_pod.py, from a wheel, through two preemptions."""

import sys
import sysconfig
from pathlib import Path

import pytest
from pod.bundle import build_wheel
from stand_in import ROOT, StandIn

from r1jax.core.metrics import read_rows
from tests.core.test_distributed import free_port
from tests.environment import make_xla_flags
from tests.stages.runs import untimed

STEPS = 4


def prepare(folder: Path, wheel: Path) -> StandIn:
    """A cloud whose two hosts make real virtual environments, with the packages of this one but for r1jax itself."""
    cloud = StandIn(folder, wheel)
    shared = {
        "STANDIN_PYTHON": sys.executable,
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": make_xla_flags(1),
        "R1JAX_COORDINATOR": f"localhost:{free_port()}",
        "R1JAX_PROCESS_COUNT": "2",
    }
    cloud.write("environment.json", {f"r1-w-{host}": {**shared, "R1JAX_PROCESS_ID": str(host)} for host in range(2)})
    return cloud


@pytest.mark.slow
def test_a_run_that_is_preempted_twice_ends_with_the_bits_of_an_undisturbed_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "wheel").mkdir()
    wheel = build_wheel(tmp_path / "wheel")
    train = (
        f"--config={ROOT / 'tests' / 'stages' / 'tiny_sft.py'}",
        f"--config.model.name={tiny_model}",
        f"--config.steps={STEPS}",
        "--config.mesh.data=2",
        "--config.train.micro_batch_size=4",
        "--config.checkpoint.every_steps=1",
    )
    rows = {}
    for name, preemptions in (("calm", 0), ("preempted", 2)):
        cloud = prepare(tmp_path / name, wheel)
        process = cloud.open("run", "--poll-seconds=1", train=train)
        try:
            for number in range(1, preemptions + 1):
                metrics = cloud.workdir / "metrics.jsonl"
                saved = lambda step: (cloud.workdir / "checkpoints" / str(step)).is_dir()  # noqa: B023
                cloud.until(lambda: metrics.exists() and any(map(saved, range(number, STEPS))), 600)  # noqa: B023
                cloud.plan(("resources describe", "state SUSPENDED"))
                cloud.until(lambda: cloud.verbs().count("queued-resources create") == number + 1, 300)  # noqa: B023
                cloud.hosts("r1-w-0", "r1-w-1", queue=["ACTIVE"])
            out, _ = process.communicate(timeout=900)
        finally:
            process.kill()
            cloud.end()
        assert process.returncode == 0, out
        assert f"try {preemptions + 1} of 20" in out and "r1 is deleted" in out
        assert cloud.logs().count("exit code 0") == 2
        rows[name] = untimed(read_rows(cloud.workdir / "metrics.jsonl"))
    assert [row["step"] for row in rows["calm"]][-1] == STEPS
    assert rows["preempted"] == rows["calm"]
