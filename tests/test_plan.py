"""The command by the closed form and over pretend results, its config, and its errors."""

import dataclasses
import pathlib
from typing import Any

import pytest

from r1jax import plan
from r1jax.aot import planner

TINY = ("--model=tiny_llama", "--length=128", "--prompts_per_step=8")


def run(*flags: str) -> int:
    return plan.main(["plan", *flags])


def test_gpus_have_the_closed_form(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.py"
    assert run(*TINY, "--topology=h100:8", f"--output={output}") == 0
    shown = capsys.readouterr().out
    assert "h100:8: 8 devices of 74.5 GiB" in shown and "by the closed form, not compiled" in shown
    assert "likely" in shown and plan.MARK in output.read_text()
    assert run(*TINY, "--topology=h100:4", f"--output={output}") == 0, "an earlier plan makes room"


def test_the_best_of_what_was_compiled_and_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first by the closed form does not fit, the second is slower than the third."""
    monkeypatch.setattr(plan, "read_machine", lambda text: (plan.read_topology(text), True))
    chosen: list[Any] = []

    def compile_all(job: Any, planned: Any, topology: Any, say: Any, seconds: float) -> list[Any]:
        programs = lambda fits: {"accumulate": {"hbm_bytes": {"peak": 2**30}, "fits": fits}}
        phases = lambda seconds: {"updating": {"predicted_seconds": seconds}}
        results = [
            {"programs": programs(fits), "phases": phases(s)} for fits, s in ((False, 1.0), (True, 3.0), (True, 2.0))
        ]
        chosen.extend(dataclasses.replace(p, compiled=r) for p, r in zip(planned, results, strict=True))
        return chosen

    monkeypatch.setattr(planner, "compile_candidates", compile_all)
    assert run(*TINY, "--topology=v5e:2x4") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"best: {chosen[2].candidate.name}"


def test_what_fits_nowhere_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model=deepseek_v3_671b", "--topology=t4:1", "--length=1024", "--prompts_per_step=1") == 1
    assert "nothing fits by the closed form" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--model and --topology are missing"),
        (("--model=tiny_llama",), "--model and --topology are missing"),
        ((*TINY, "--topology=h100"), "the number of GPUs is missing, as in h100:8"),
        ((*TINY, "--topology=x100:8"), "no such chip"),
        ((*TINY, "--topology=h100:8", "--prompt_length=500"), "--length must exceed --prompt_length"),
        ((*TINY, "--topology=h100:8", "--objective=fame"), "objective"),
        ((*TINY, "--topology=h100:7"), "no mesh of 7 devices divides"),
        (("--model=nobody/nothing", "--topology=h100:8"), "sizes of nobody/nothing are not known"),
        (("--model=nothing", "--topology=h100:8"), "unknown model shape 'nothing'"),
    ],
)
def test_a_mistake_is_one_line(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors


def test_a_config_of_another_hand_is_kept(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("my own")
    assert run(*TINY, "--topology=h100:8", f"--output={tmp_path / 'mine.py'}") == 2
    assert "exists" in capsys.readouterr().err and (tmp_path / "mine.py").read_text() == "my own"
