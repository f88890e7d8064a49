"""Workdirs in a bucket: what stands for what; a whole run against an emulator of Google's storage on this machine."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from etils import epath

from r1jax.core.buckets import staging
from r1jax.core.errors import UserError
from tests.core.test_distributed import free_port
from tests.environment import ROOT
from tests.stages import runs
from tests.stages.letters import HANG
from tests.stages.test_resume import FLAGS, assert_same_run, finish

NEEDED = ("gcsfs", "gcp_storage_emulator")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def test_a_local_path_stands_for_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("four")
    assert staging.locate(tmp_path) is tmp_path and not staging.is_staged(tmp_path)
    assert staging.list_files(tmp_path) == ["a/b.txt"] and staging.find_size(tmp_path / "a" / "b.txt") == 4
    staging.push(tmp_path)
    staging.pull(tmp_path)
    assert staging.is_address("gs://bucket/run") and not staging.is_address("gs:/bucket")


def test_places_of_a_staged_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "run"
    monkeypatch.setitem(staging._remotes, local, epath.Path("gs://bucket/path/run"))
    places = [staging.locate(path) for path in (local, local / "checkpoints" / "4", tmp_path / "run.earlier-1")]
    assert [str(place) for place in places] == [
        "gs://bucket/path/run",
        "gs://bucket/path/run/checkpoints/4",
        "gs://bucket/path/run.earlier-1",
    ]
    assert all(map(staging.is_address, places))


@pytest.mark.skipif("gcsfs" not in MISSING, reason="gcsfs is installed")
def test_a_missing_package_is_named_with_its_cure() -> None:
    with pytest.raises(UserError, match=r"gs://bucket/run needs the package gcsfs: pip install .*\[gcs\]"):
        staging.stage("gs://bucket/run")


class Bucket:
    """A bucket of the emulator, by its own protocol."""

    def __init__(self, host: str):
        self.host = host

    def names(self, prefix: str) -> list[str]:
        query = urllib.parse.urlencode({"prefix": prefix, "maxResults": 10000})
        with urllib.request.urlopen(f"{self.host}/storage/v1/b/runs/o?{query}") as reply:
            return [item["name"] for item in json.load(reply).get("items", [])]

    def download(self, prefix: str, folder: pathlib.Path) -> pathlib.Path:
        for name in self.names(prefix):
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            place = f"{self.host}/download/storage/v1/b/runs/o/{urllib.parse.quote(name, safe='')}?alt=media"
            with urllib.request.urlopen(place) as reply:
                target.write_bytes(reply.read())
        return folder

    def find_unfinished(self, prefix: str) -> list[str]:
        """Steps of which there are objects, but not the one that marks a complete checkpoint."""
        names = [name.removeprefix(f"{prefix}checkpoints/") for name in self.names(f"{prefix}checkpoints/")]
        steps = {name.partition("/")[0] for name in names}
        return sorted(step for step in steps if f"{step}/commit_success.txt" not in names)


@pytest.fixture
def bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    port = free_port()
    host = f"http://127.0.0.1:{port}"
    code = (
        "from gcp_storage_emulator.server import create_server\n"
        f"server = create_server('127.0.0.1', {port}, in_memory=True, default_bucket='runs')\n"
        "server.run()"
    )
    with open(tmp_path / "emulator.log", "wb") as log:
        emulator = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, cwd=tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", host)
    try:
        for _ in range(200):
            try:
                Bucket(host).names("")
                break
            except OSError:
                time.sleep(0.1)
        yield Bucket(host)
    finally:
        emulator.kill()
        emulator.wait()


def start(model: pathlib.Path, log: pathlib.Path, **environment: str) -> subprocess.Popen:
    """A run whose workdir is in the bucket; what it says goes to `log`.log."""
    return runs.start(model, log, "--workdir=gs://runs/a/run", *FLAGS, **environment)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {' and '.join(NEEDED)} (extra gcs, and the emulator)")
def test_a_run_in_a_bucket_killed_within_saves_ends_like_a_local_one(
    bucket: Bucket, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    expected, log, prefix = tmp_path / "expected", tmp_path / "log", "a/run/"
    finish(runs.start(tiny_model, expected, *FLAGS), expected)
    kills: list[str] = []
    for _ in range(12):
        process = start(tiny_model, log, **({HANG: "6"} if not kills else {}))
        while process.poll() is None:
            if unfinished := bucket.find_unfinished(prefix):
                if kills and unfinished[-1] == kills[-1] and int(kills[-1]) < 6:
                    continue  # that of the run before, which is written anew
                process.kill()
                kills.append(unfinished[-1])
                break
            time.sleep(0.005)
        assert process.wait() in (0, -9), log.with_suffix(".log").read_text()[-3000:]
        if process.returncode == 0 or len(kills) >= 3:
            break
    assert kills, "no kill hit a save"
    said = finish(start(tiny_model, log), log)
    assert "gs://runs/a/run" in said
    found = bucket.download(prefix, tmp_path / "found")
    assert_same_run(found, expected)
    names = bucket.names(prefix)
    assert f"{prefix}report.html" in names and f"{prefix}config.json" in names and f"{prefix}model/config.json" in names
    assert any(name.startswith(f"{prefix}checkpoints/6/checksums.") for name in names)
    assert not [name for name in names if name.endswith((".lock", ".draft"))] and bucket.find_unfinished(prefix) == []
    command = [sys.executable, "-m", "r1jax.report", "gs://runs/a/run"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "gs://runs/a/run/report.html" in done.stdout
