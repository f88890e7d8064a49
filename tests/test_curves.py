"""The command that compares ways to train: its table and plot from metrics on file, and once from real runs."""

import importlib.util
import pathlib
import textwrap
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest

from tests.environment import make_xla_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
    from r1jax.core.config import parse_args
    from tests.stages import tiny_grpo

    def get_config(arg=""):
        args = parse_args(arg, loss="grpo", seed=0)
        config = tiny_grpo.get_config()
        config.loss, config.seed, config.model.name = {"preset": args.loss}, args.seed, %r
        return config
"""


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curves", ROOT / "docs" / "curves.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(gain: float, **extra: float) -> list[dict]:
    each = [{"step": step, "reward": gain * step, "step_time": 30.0, **extra} for step in range(1, 5)]
    each[-1] |= {"eval/sums/pass@1": 0.2 + 4 * gain, "eval/sums/pass@1_stderr": 0.1, "eval/sums/greedy": 0.9}
    return [{"step": 0, "eval/sums/pass@1": 0.2, "eval/sums/greedy": 0.3}, *each]


def test_the_table_has_means_and_standard_errors_over_seeds(curves: ModuleType) -> None:
    variants = [
        curves.Variant("grpo", [rows(0.1), rows(0.2)]),
        curves.Variant("rank", [rows(0.0, **{"rewards/self_rank_reward/agreement": 0.75})]),
    ]
    head, rule, one, other = curves.tabulate(variants, "loss").splitlines()
    assert head.count("|") == rule.count("|") == one.count("|") == other.count("|")
    assert head.startswith("| loss | seeds | held-out before, sampled | held-out after, sampled |")
    assert one.startswith("| grpo | 2 | 20 ± 0 % | 80 ± 20 % | 90 ± 0 % | 0.60 ± 0.20 |") and one.endswith("| – |")
    assert other.startswith("| rank | 1 | 20 ± nan % |") and other.endswith("| 75 ± nan % |")
    assert "| 2.0 |" in one


def test_the_plot_is_an_image_with_every_seed_and_mean(curves: ModuleType) -> None:
    variants = [curves.Variant("grpo", [rows(0.1), rows(0.2)]), curves.Variant("dapo", [rows(0.1), rows(0.1)])]
    image = ET.fromstring(curves.plot(variants, "sums"))
    lines = [node for node in image.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2 * 2 * 3  # panels, variants, two seeds and their mean
    assert {"grpo", "dapo", "sums"} <= {node.text for node in image.iter() if node.tag.endswith("text")}
    assert curves.mean_curve(variants[0].curves("reward"))[-1] == (4, pytest.approx(0.6))


@pytest.mark.slow
def test_one_command_runs_all_and_goes_on_where_it_stopped(
    curves: ModuleType, tiny_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tiny.py"
    config.write_text(textwrap.dedent(CONFIG % str(tiny_model)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", make_xla_flags(1))
    flags = [f"--config={config}", "--seeds=0,1", f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}"]
    curves.main([*flags, "--vary=loss=grpo"])
    curves.main([*flags, "--vary=loss=grpo,gspo"])
    text = (tmp_path / "out.md").read_text()
    assert "| grpo | 2 |" in text and "| gspo | 2 |" in text
    ET.parse(tmp_path / "out.svg")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"loss-{loss}-seed-{seed}" for loss in ("grpo", "gspo") for seed in (0, 1)
    ]
