"""Data in a bucket of an emulator on this machine: each kind of file, by address, folder and pattern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1jax.core.buckets import objects
from r1jax.core.buckets.objects import download_object, find_objects, identify_object, open_object
from r1jax.core.errors import UserError
from r1jax.data.files import read_rows
from r1jax.data.formats import split_file
from tests.core.buckets.test_staging import MISSING, NEEDED, Bucket
from tests.core.buckets.test_staging import bucket as bucket
from tests.data.test_files import KINDS, ROWS


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {' and '.join(NEEDED)} (extra gcs, and the emulator)")
def test_rows_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    objects._make_client.cache_clear()
    system = objects._make_client()
    for kind, write in KINDS.items():
        write(tmp_path / f"rows{kind}")
        system.put_file(str(tmp_path / f"rows{kind}"), f"gs://runs/data/{kind[1:]}/rows{kind}")
        rows = read_rows(f"gs://runs/data/{kind[1:]}/rows{kind}")
        assert [row.columns for row in rows] == ROWS
        assert rows[0].place == f"gs://runs/data/{kind[1:]}/rows{kind}:1"
    assert find_objects("gs://runs/data") == sorted(f"gs://runs/data/{kind[1:]}/rows{kind}" for kind in KINDS)
    assert len(read_rows("gs://runs/data")) == len(ROWS) * len(KINDS)
    assert len(read_rows("gs://runs/data/*/rows.jsonl")) == len(ROWS)
    name = "gs://runs/data/jsonl/rows.jsonl"
    assert len(split_file(name, 100)) > 1
    with open_object(name) as file:
        file.seek(10)
        assert file.read(5) == (tmp_path / "rows.jsonl").read_bytes()[10:15]
    download_object(name, tmp_path / "copy.jsonl")
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    facts = identify_object(name)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "other"}) + "\n")
    system.put_file(str(tmp_path / "rows.jsonl"), name)
    assert identify_object(name) != facts and identify_object(name) == identify_object(name)
    for missing in ("gs://runs/none.jsonl", "gs://runs/none/*.jsonl"):
        with pytest.raises(UserError, match=r"no (such object|object matches):? gs://runs/none"):
            read_rows(missing)
    objects._make_client.cache_clear()
