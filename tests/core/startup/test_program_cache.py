"""Compiled programs are kept in a folder of the user's, and a command works where that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax.core.startup import program_cache
from r1jax.core.startup.program_cache import keep_programs
from tests.environment import ROOT

SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
COMPILE = """
import os, pathlib, sys
from r1jax.core.startup.program_cache import keep_programs
folder = keep_programs(*sys.argv[1:])
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).sum())
print(folder, "hits" if "cache_hits" in events else "none", jax.config.jax_compilation_cache_max_size)
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What is set, in place of the settings of the tests' own process."""
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(program_cache, "_set", lambda name, value: told.append((name, value)))
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return told


def test_the_default_is_a_folder_of_this_cpu_in_the_users_cache(
    settings: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = keep_programs()
    assert folder == tmp_path / "r1jax" / "xla" / program_cache.identify_cpu()
    assert dict(settings)["jax_compilation_cache_dir"] == str(folder)
    assert dict(settings)["jax_compilation_cache_max_size"] == program_cache.SIZE_LIMIT
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert keep_programs() == tmp_path / "home" / ".cache" / "r1jax" / "xla" / program_cache.identify_cpu()


def test_the_environment_goes_before_the_default_and_the_flag_before_both(
    settings: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    keep_programs()
    assert settings == []
    assert keep_programs(str(tmp_path / "own")) == tmp_path / "own"
    assert dict(settings)["jax_compilation_cache_dir"] == str(tmp_path / "own")
    settings.clear()
    assert keep_programs("off") is None
    assert settings == [("jax_enable_compilation_cache", False)]


def test_a_place_that_cannot_be_written_leaves_the_cache_off(
    settings: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_programs() is None
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may write everywhere
    assert keep_programs(str(tmp_path)) is None
    assert settings == []


def test_what_a_killed_process_left_is_removed(settings: list[tuple[str, object]], tmp_path: Path) -> None:
    for name in ("whole-cache", "whole-atime", "torn-cache", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    keep_programs(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "whole-atime", "notes.txt"}


def test_processes_share_their_programs_without_a_word(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    start = lambda *arguments: subprocess.Popen(
        [sys.executable, "-c", COMPILE, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    both = [start(), start()]
    outputs = [process.communicate() for process in both]
    third = start().communicate()
    off = start("off").communicate()
    assert [error for _, error in (*outputs, third, off)] == [""] * 4
    values = {output.splitlines()[0] for output, _ in (*outputs, third, off)}
    assert len(values) == 1, "a loaded program computes what a compiled one does"
    assert third[0].splitlines()[1].endswith(f"hits {program_cache.SIZE_LIMIT}")
    assert off[0].splitlines()[1].startswith("None none")
