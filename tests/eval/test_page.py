"""The report page in a browser: curves are drawn, pointing reads them, samples turn, hostile texts do nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1jax.core.metrics import MetricsWriter
from r1jax.eval.report import write_comparison, write_report

TEXTS = "(selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent)"


def _texts(tab: Any, selector: str) -> list[str]:
    return tab.run(f"({TEXTS})({selector!r})")


def test_every_chart_is_drawn(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=20)))
    titles = _texts(tab, "section.charts figure .title")
    assert titles[:3] == ["Held-out: addition", "Reward", "Reward by name"]
    assert {"Entropy", "KL to the reference", "Gradient norm", "Seconds a step", "Tokens per second"} <= set(titles)
    assert tab.run(
        "[...document.querySelectorAll('section.charts svg')].every((svg) => svg.querySelector('path[d^=M]'))"
    )
    assert not tab.run("document.body.innerHTML.includes('NaN')")
    assert tab.complaints() == []


def test_first_step_that_compiles_is_cut_off_and_said(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=40)))
    assert any(note.startswith("1 value above the axis, up to 4") for note in _texts(tab, ".note"))


def test_pointing_at_a_step_reads_it_in_all_charts(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=20, evaluate_every=10)))
    before = _texts(tab, ".key b")
    tab.run("document.querySelectorAll('figure svg')[1].scrollIntoView({block: 'center', behavior: 'instant'})")
    box = "document.querySelectorAll('figure svg')[1].getBoundingClientRect()"
    x, y, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    # From the left margin to the right one the axis goes from step 0 to step 20.
    middle = x + 46 + (width - 46 - 14) * 0.35
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=middle, y=y + height / 2)
    assert _texts(tab, "figure .step")[:3] == ["step 10", "step 7", "step 7"]
    assert _texts(tab, ".key b") != before
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert _texts(tab, ".key b") == before


def test_smoothing_keeps_the_raw_curve(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=30)))
    assert tab.run("document.querySelectorAll('path.raw').length") == 0
    tab.run("document.getElementById('smooth').click()")
    assert tab.run("document.querySelectorAll('path.raw').length") > 10


def test_samples_are_filtered_sorted_and_turned(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=10, samples=6)))
    assert _texts(tab, ".turn .count") == ["1 of 60"]
    choose = "(name, value) => { const box = document.querySelector(`[aria-label=${name}]`);" + (
        "box.value = value; box.dispatchEvent(new Event('change')); }"
    )
    tab.run(f"({choose})('Step', '4')")
    assert _texts(tab, ".turn .count") == ["1 of 6"] and set(_texts(tab, ".list .at")) == {"4"}
    tab.run(f"({choose})('Step', ''); ({choose})('Order', 'highest reward first')")
    rewards = [float(text) for text in _texts(tab, ".list b")]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] > rewards[-1]
    tab.run("document.querySelector('.turn button:last-child').click()")
    assert _texts(tab, ".turn .count") == ["2 of 60"]
    key = "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true})"
    tab.run(f"document.querySelector('.panes').dispatchEvent({key})")
    assert _texts(tab, ".turn .count") == ["1 of 60"]
    facts = dict(zip(_texts(tab, ".detail dt"), _texts(tab, ".detail dd"), strict=True))
    assert facts["answer_reward"] == "1" and facts["finish"] == "stop" and "gold answer" in facts
    assert facts["answer"] == "✓ right" and _texts(tab, ".answer.right")
    assert _texts(tab, "pre.completion .tag") == ["</think>", "<answer>", "</answer>"]
    assert _texts(tab, "pre.completion .think")[0].startswith("I add the tens")


def test_config_is_searched(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    tab.open(write_report(make_run(tmp_path / "run", steps=1)))
    tab.run("document.getElementById('config-search').value = 'WARM'")
    tab.run("document.getElementById('config-search').dispatchEvent(new Event('input'))")
    assert _texts(tab, ".config tr:not([hidden]) th") == ["optimizer.warmup_steps"]


def test_comparison_shows_a_line_a_run_and_what_differs(
    tab: Any, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / name, seed=seed, steps=10) for seed, name in enumerate("ab")]
    tab.open(write_comparison(runs, tmp_path / "both.html"))
    assert tab.run(
        "[...document.querySelectorAll('.grid svg')].every((svg) => svg.querySelectorAll('path.line').length === 2)"
    )
    assert set(_texts(tab, ".config tbody tr:not([hidden]) th")) == {"seed", "optimizer.learning_rate"}
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [390, 820])
def test_narrow_pages_do_not_scroll_sideways(
    tab: Any, make_run: Callable[..., Path], tmp_path: Path, width: int
) -> None:
    path = write_report(make_run(tmp_path / ("a_very_long_run_name_" * 6), steps=5))
    tab.open(path, width=width, phone=True)
    assert tab.run("document.documentElement.scrollWidth") == width


def test_hostile_texts_do_nothing(tab: Any, tmp_path: Path) -> None:
    attack = "document.documentElement.dataset.owned = 1"
    texts = [
        f"</script><script>{attack}</script>",
        f"<img src=x onerror='{attack}'>",
        f"<svg onload='{attack}'></svg><think><answer><b>bold</b>",
        f"javascript:{attack}",
    ]
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    writer.write(1, {"reward": 1.0, **{f"rewards/{text}/mean": 1.0 for text in texts}, f"eval/{texts[1]}/greedy": 0.5})
    writer.write_samples(
        1, [{"prompt": text, "completion": text, "rewards": {text: 1.0}, text: text} for text in texts]
    )
    writer.close()
    (tmp_path / "run" / "config.json").write_text("{}")
    tab.open(write_report(tmp_path / "run"))
    for text in texts:
        assert _texts(tab, "pre.completion") == [text]
        tab.run("document.querySelector('.turn button:last-child').click()")
    assert tab.run("document.querySelectorAll('#browser img, #browser b b, #browser svg, figure img').length") == 0
    assert not tab.run("'owned' in document.documentElement.dataset")
    assert tab.complaints() == []


def test_policy_stops_a_script_that_got_in(tab: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    """The second lock: even a page whose escaping had failed would not run it."""
    path = write_report(make_run(tmp_path / "run", steps=1))
    attack = "document.documentElement.dataset.owned = 1"
    path.write_text(
        path.read_text().replace("<main>", f"<main><script>{attack}</script><img src=x onerror='{attack}'>")
    )
    tab.open(path)
    assert not tab.run("'owned' in document.documentElement.dataset")
