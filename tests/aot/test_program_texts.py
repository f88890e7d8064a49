"""Texts of any origin: figures by name, and files that are no program."""

import gzip
from pathlib import Path

import pytest

from r1jax.aot.costs import measure
from r1jax.aot.program_texts import judge_texts
from r1jax.core.errors import UserError
from r1jax.runs.chips import read_topology

PROGRAMS = Path(__file__).parent / "programs"
TOPOLOGY = read_topology("v5p:2x2x1")


def test_every_text_of_a_folder_is_judged_as_ours_are(tmp_path: Path) -> None:
    text = gzip.decompress((PROGRAMS / "train_step_v5p.txt.gz").read_bytes())
    (tmp_path / "peer.hlo").write_bytes(text)
    (tmp_path / "again.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "notes.md").write_text("not read")
    again, peer = judge_texts(tmp_path, TOPOLOGY)
    assert (again.name, peer.name) == ("again", "peer") and again.as_dict() == peer.as_dict()
    own = measure(text.decode(), 1, TOPOLOGY.devices, TOPOLOGY.chip)
    assert peer.predicted == own.busy + own.exposed > 0 and peer.as_dict()["flops"] == own.flops
    assert peer.line().startswith("peer ") and peer.line().endswith("links")


@pytest.mark.parametrize(
    "content", [b"", b"notes", b"HloModule x\n", b"\xff\xfe", b"ENTRY %m (a: f32[2]) -> f32[2] {\n}\n"]
)
def test_what_is_no_program_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    if content.startswith(b"ENTRY"):  # a program that does nothing
        assert next(judge_texts(tmp_path, TOPOLOGY)).costs.flops == 0
        return
    with pytest.raises(UserError, match=r"x.txt is no optimized HLO text"):
        list(judge_texts(tmp_path, TOPOLOGY))


def test_a_folder_without_programs_is_named(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="--hlo"):
            list(judge_texts(place, TOPOLOGY))
