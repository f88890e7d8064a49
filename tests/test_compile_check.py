"""The command over pretend devices in a TPU's place, its file against the contract, and its errors."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from r1jax import compile_check
from r1jax.core.errors import UserError
from r1jax.runs.chips import read_topology

CONFIG = "tests/stages/pod_grpo.py"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPU devices stand for the chips; the environment stays as it is."""
    monkeypatch.setattr(compile_check, "ENVIRONMENT", {})
    monkeypatch.setattr(compile_check, "find_devices", lambda topology: jax.devices()[: topology.devices])


def run(*flags: str) -> int:
    return compile_check.main(["compile_check", f"--config={CONFIG}", *flags])


def test_it_writes_what_the_contract_says(
    pretend: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, dump = tmp_path / "figures" / "r.json", tmp_path / "hlo"
    assert run("--topology=v5e:2x4", f"--output={output}", f"--dump_hlo={dump}") == 0
    figures = json.loads(output.read_text())
    assert (figures["chip"], figures["devices"]) == ("v5e", 8)
    assert figures["versions"].keys() == {"jax", "jaxlib", "libtpu"}
    assert figures["versions"]["jax"] == jax.__version__
    names = ["accumulate", "apply", "logprobs", "weights", "prefill", "insert", "decode", "collect"]
    assert list(figures["programs"]) == names and {f.stem for f in dump.iterdir()} == set(names)
    for program in figures["programs"].values():
        assert program["fits"] is True and program["compile_seconds"] > 0 and program["predicted_seconds"] > 0
        assert program["predicted_seconds"] >= program["exposed_seconds"] >= 0 < program["bound_seconds"]
        assert {"arguments", "temporaries", "outputs", "peak", "limit"} <= set(program["hbm_bytes"])
        assert all(set(kind) == {"count", "bytes"} for kind in program["collectives"].values())
    step = figures["programs"]["accumulate"]
    assert step["flops"] > step["model_flops"] > 0 and step["collectives"]
    assert figures["programs"]["decode"]["open_loops"]
    shown = capsys.readouterr().out
    assert "everything fits" in shown and f"jax {jax.__version__}, jaxlib" in shown
    assert run("--topology=v5e:2x4", "--programs=apply", f"--output={output}") == 0
    assert list(json.loads(output.read_text())["programs"]) == ["apply"]


def test_texts_of_a_folder_are_judged_without_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r.json"
    flags = [f"--hlo={Path(__file__).parent / 'aot' / 'programs'}", "--topology=v5p:2x2x1", f"--output={output}"]
    assert compile_check.main(["compile_check", *flags]) == 0
    programs = json.loads(output.read_text())["programs"]
    assert set(programs) == {"splash_v6e", "train_step_v5e", "train_step_v5p"}
    assert all(program["predicted_seconds"] > 0 for program in programs.values())
    assert "train_step_v5p" in capsys.readouterr().out
    assert run(*flags) == 2
    assert capsys.readouterr().err.startswith("error: --hlo judges texts that were compiled before")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--topology is missing, as in --topology=v5p:4x4x4"),
        (("--topology=h100:8",), "no such chip; known: v5e, v5p, v6e, tpu7x"),
        (("--topology=v5e:2x4", "--num_slices=0"), "--num_slices must be at least 1"),
        (("--topology=v5e:2x4", "--programs=decode,dance"), "the run has no 'dance'; it has accumulate, apply,"),
        (("--topology=v5e:2x4", "--config.mesh.data=3"), "must be divisible|need .* devices but there are 8"),
        (("--topology=v5e:2x4", "--config.mesh.data=4", "--config.mesh.fsdp=4"), "need 16 devices but there are 8"),
        (("--topology=v5e:2x4", "--config.mesh.tensor=4", "--config.mesh.data=1"), "must be divisible by the mesh"),
    ],
)
def test_a_mistake_is_one_line(
    pretend: None, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert run(*flags) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert re.search(message, errors)


def test_a_run_that_does_not_fit_exits_with_1(
    pretend: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from r1jax.aot import programs

    keep = programs.list_programs
    huge = jax.ShapeDtypeStruct((2**33,), "float32", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))

    def only_apply(config: object) -> list:
        (apply,) = [p for p in keep(config) if p.name == "apply"]
        return [dataclasses.replace(apply, resident=huge)]

    monkeypatch.setattr(programs, "list_programs", only_apply)
    assert run("--topology=v5e:2x4") == 1
    assert "apply does not fit: 16.25 GiB too much of 15.75 GiB a device" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed here")
def test_without_libtpu_it_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"\(libtpu\) does not load; install it with: pip install -e '\.\[tpu\]'"):
        compile_check.find_devices(read_topology("v5p:2x2x1"))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed here")
def test_a_slice_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in compile_check.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert len(compile_check.find_devices(read_topology("v6e:1x1"))) == 1
    with pytest.raises(UserError, match="unknown to the TPU compiler"):
        compile_check.find_devices(read_topology("v5p:1x1x4999"))
