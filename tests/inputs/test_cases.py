"""Bad inputs end in exit code 2 and one line that names the key or flag; nothing is left behind, nothing is lost.

A few that need no model run here; all of them, in a warm process for each command, and 25 through fresh ones: -m slow.
"""

import itertools
import os
import pathlib
import random
import subprocess
import sys

import pytest

from tests.environment import ROOT, make_xla_flags
from tests.inputs.case import Case
from tests.inputs.jsonl_files import FILES, PROMPTS
from tests.inputs.model_folders import FOLDERS, TOKENIZERS
from tests.inputs.runner import COMMANDS, answer_all, find_faults, list_cases, read_tree, run_case

CHEAP = {
    "train": ("config syntax", "workdir a file", "grpo: checkpoint.keep=0", "sft: optimizer.learning_rate=nan"),
    "generate": ("no prompts", "output exists", "prompts a folder", "top_p nan"),
    "evaluate": ("nothing", "samples missing", "output exists", "page exists"),
    "convert": ("no argument", "target exists", "model: width is text", "model: weights are a pipe"),
    "report": ("output is the metrics", "pipeline a list", "metrics: deep", "folder missing"),
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in CHEAP for name in CHEAP[command]])
def test_a_cheap_bad_input(command: str, name: str, tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    case = next(case for case in list_cases(command) if case.name == name)
    answer = run_case(command, case, tiny_model, tmp_path)
    assert not find_faults(case, answer), answer


def test_there_are_enough() -> None:
    bad = [case for command in COMMANDS for case in list_cases(command) if case.code == 2]
    assert len(bad) >= 240 and len(FOLDERS | TOKENIZERS) >= 20 and len(FILES | PROMPTS) >= 20
    for command in COMMANDS:
        names = [case.name for case in list_cases(command)]
        assert len(names) == len(set(names)), command


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_bad_input(command: str) -> None:
    answers = [(case, answer, find_faults(case, answer)) for case, answer in answer_all(command)]
    assert not {case.name: (faults, answer.stderr[-500:]) for case, answer, faults in answers if faults}


@pytest.mark.slow
def test_a_fresh_process_answers_alike(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cases = [(command, case) for command in COMMANDS for case in list_cases(command) if not case.stdin]
    environment = {**os.environ, "XLA_FLAGS": make_xla_flags(1), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for number, (command, case) in enumerate(random.Random(17).sample(cases, 25)):
        here = tmp_path / str(number)
        here.mkdir()
        case.fill(here, tiny_model)
        before = read_tree(here)
        places = {"{here}": str(here), "{model}": str(tiny_model), "{root}": str(ROOT)}
        argv = [_replace(argument, places) for argument in case.argv]
        if any("\0" in argument for argument in argv):
            continue  # no command line can hold it
        whole = [sys.executable, "-m", f"r1jax.{command}", *argv]
        done = subprocess.run(whole, cwd=here, env=environment, capture_output=True, timeout=300)
        after = read_tree(here)
        assert done.returncode == case.code, (command, case.name, done.stderr[-500:])
        assert all(after[name] == content for name, content in before.items() if case.code == 2), case.name
        _check_line(case, done.stderr.decode("utf-8", "replace"))


def _replace(argument: str, places: dict[str, str]) -> str:
    for place, text in places.items():
        argument = argument.replace(place, text)
    return argument


def _check_line(case: Case, stderr: str) -> None:
    if case.code == 2:
        said = list(itertools.dropwhile(lambda line: not line.startswith("error: "), stderr.splitlines()))
        assert len(said) == 1 and all(word in said[0] for word in case.words), (case.name, stderr[-500:])
