"""What a run says: a bar on a terminal, plain lines elsewhere, nothing twice, no text of a model obeyed."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from absl import logging as absl_logging
from rich.console import Console

from r1jax.core.console import (
    Progress,
    format_time,
    name_figures,
    set_up_logging,
    show_samples,
    show_table,
    silence,
)

METRICS = {
    "reward": 0.5,
    "rewards/answer_reward/mean": 0.4,
    "rewards/r1_format_reward/mean": 0.9,
    "step_time": 7.12,
    "time/rollout": 3.9,
    "time/reward": 0.02,
    "time/train": 3.1,
    "eval/addition/pass@1": 0.41,
    "eval/addition/pass@1_stderr": 0.035,
}
HOSTILE = "[red]x[/red] \x1b[31m \udc80 \u202e é漢\n</think>"


def _console(*, terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_named_and_rounded() -> None:
    figures = name_figures(METRICS)
    assert list(figures) == ["reward", "format", "addition/pass@1", "s/step"]
    assert figures["format"] == "90%" and figures["addition/pass@1"] == "41.0% ± 3.5"
    assert figures["s/step"] == "7.1 (rollout 3.9, reward 0.0, train 3.1)"
    assert name_figures({"reward": None, "loss": 1.25}) == {"loss": "1.25"}
    shares = {"collection/kept": 0.5, "collection/cut_off": 0.375, "collection/reward": 0.125}
    assert name_figures(shares) == {"kept": "50.0%", "dropped": "cut off 37.5%, reward 12.5%"}
    assert name_figures({"collection/kept": 1.0}) == {"kept": "100.0%"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.7, "1:00"), (754, "12:34"), (3600 * 26 + 61, "26:01:01")]
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_time_left_leaves_out_the_first_step_and_what_was_done_before() -> None:
    clock, console = Clock(), _console(terminal=False)
    with Progress(30, start=10, console=console, clock=clock) as progress:
        progress.update(10, {"eval/addition/pass@1": 0.02})
        clock.now = 100.0  # The first step compiles.
        progress.update(11, METRICS)
        assert progress.seconds_left() is None
        clock.now = 105.0
        progress.update(12, METRICS)
        assert progress.seconds_left() == 5 * 18
        clock.now = 107.0
        assert progress.seconds_left() == 5 * 18 - 2
        clock.now = 500.0
        assert progress.seconds_left() == 0


def test_plain_lines_where_there_is_no_terminal() -> None:
    clock, console = Clock(), _console(terminal=False)
    with Progress(2, title="grpo", console=console, clock=clock) as progress:
        for step in (1, 2):
            clock.now = 60.0 * step
            progress.update(step, METRICS)
    first, last = _text(console).splitlines()
    assert first.startswith("grpo 1/2  reward 0.500  format 90%") and first.endswith("elapsed 1:00")
    assert last.endswith("elapsed 2:00")
    assert "\x1b" not in _text(console)


def test_bar_on_a_terminal() -> None:
    console = _console(terminal=True)
    with Progress(4, title="grpo", console=console) as progress:
        progress.update(1, METRICS)
        progress.update(2, {"reward": 0.7})
    last = _text(console).rsplit("grpo 2/4", 1)[1]
    assert "━" in last and "elapsed" in last and "reward 0.700" in last
    assert "addition/pass@1 41.0% ± 3.5" in last, "held-out figures stay until the next evaluation"


def test_bar_goes_away_when_the_run_fails() -> None:
    console = _console(terminal=True)
    with pytest.raises(RuntimeError), Progress(4, console=console):
        raise RuntimeError
    assert _text(console).rstrip().endswith("\x1b[?25h"), "the cursor is back"


SAMPLES = [
    {
        "prompt": "head " * 100 + "What is 12 + 30?",
        "completion": HOSTILE,
        "reward": reward,
        "rewards": {"answer_reward": reward, "other": None},
        "advantage": 0.5,
        "length": 31,
        "finish_reason": "stop",
    }
    for reward in (0.0, 1.0, 0.25, 0.5, 0.75)
]


@pytest.mark.parametrize("terminal", [False, True])
def test_samples_from_best_to_worst(terminal: bool) -> None:
    console = _console(terminal=terminal, width=120)
    show_samples(SAMPLES, limit=3, title="step 5", console=console)
    text = _text(console)
    assert "step 5: 3 of 5" in text
    assert text.index("reward 1") < text.index("reward 0.5") < text.index("answer_reward 0 ")
    assert "reward 0.25" not in text and "What is 12 + 30?" in text and "advantage +0.50" in text and "other –" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_models_text_is_shown_not_obeyed(terminal: bool) -> None:
    console = _console(terminal=terminal, width=120)
    show_samples(SAMPLES[:1], console=console)
    text = _text(console)
    assert "[red]x[/red]" in text and "é漢" in text and "</think>" in text
    assert not any(letter in text for letter in ("\x1b[31m", "\udc80", "\u202e"))
    text.encode()


def test_samples_may_be_messages_and_lack_fields() -> None:
    console = _console(terminal=False)
    show_samples([{"prompt": [{"role": "user", "content": "Hi"}], "completion": "a\nb"}], console=console)
    assert "prompt: user: Hi" in _text(console) and "completion: a\\nb" in _text(console)
    show_samples([], console=console)


def test_table_aligns_numbers() -> None:
    rows = [{"measure": "strict", "before": "2.0% ± 1.0", "after": 41.25}, {"measure": "format rate", "before": None}]
    console = _console(terminal=False)
    show_table("before and after", rows, console=console)
    assert _text(console).splitlines() == [
        "before and after",
        "  measure          before  after",
        "  strict       2.0% ± 1.0  41.25",
        "  format rate           –      –",
    ]
    console = _console(terminal=True)
    show_table("[red]title", rows, console=console)
    assert "[red]title" in _text(console) and "2.0% ± 1.0" in _text(console)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level, ours = list(root.handlers), root.level, logging.getLogger("r1jax").level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("r1jax").setLevel(ours)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_without_rows_is_not_shown(terminal: bool) -> None:
    console = _console(terminal=terminal)
    show_table("before and after", [], console=console)
    assert _text(console) == ""


def test_log_lines_come_once(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    absl_logging.use_absl_handler()
    set_up_logging()
    set_up_logging()
    logging.getLogger("r1jax.learner").info("resumes from step %d", 5)
    logging.getLogger("orbax").info("chatter")
    logging.getLogger("orbax").warning("[bold]slow disk")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[9:] for line in err.splitlines()] == ["resumes from step 5", "warning: [bold]slow disk"]


def test_a_terminal_without_unicode_does_not_end_a_run() -> None:
    code = "from r1jax.core.console import show_table; show_table('a → b', [{'é漢': '±'}])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"a ? b" in done.stdout


def test_a_silent_console_shows_no_progress_and_no_samples(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, title="grpo", console=silence()) as progress:
        progress.update(1, METRICS)
    show_samples([{"prompt": "p", "completion": "c", "reward": 1.0}], console=silence())
    assert capsys.readouterr() == ("", "")
