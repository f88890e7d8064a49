"""Files of a hub data set by its card, by name, or of the hub's conversion."""

import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from r1jax.core.errors import UserError
from r1jax.data import hub
from r1jax.data.files import read_rows
from r1jax.data.hub import HubName, choose_files, split_name

FILES = ["README.md", "data/train-1.parquet", "data/train-0.parquet", "data/test-0.parquet", "main/train.jsonl.gz"]
CARD = [
    {"config_name": "main", "data_files": "main/*"},
    {"config_name": "all", "default": True, "data_files": [{"split": "train", "path": ["data/train-*"]}]},
]


def test_names_have_a_revision_a_config_and_a_split() -> None:
    assert split_name("org/name") == HubName("org/name", None, "", "train")
    assert split_name("org/name@v1.0:test") == HubName("org/name", "v1.0", "", "test")
    assert split_name("org/name@refs/pr/1:main:test") == HubName("org/name", "refs/pr/1", "main", "test")
    assert not any(map(split_name, ("name", "a/b/c", "org/na me", "org/name:a:b:c", "/tmp/x")))


@pytest.mark.parametrize(
    ("name", "card", "expected"),
    [
        ("org/name", [], ["data/train-0.parquet", "data/train-1.parquet", "main/train.jsonl.gz"]),
        ("org/name:test", [], ["data/test-0.parquet"]),
        ("org/name:main:train", [], ["main/train.jsonl.gz"]),
        ("org/name:dev", [], []),
        ("org/name", CARD, ["data/train-0.parquet", "data/train-1.parquet"]),
        ("org/name:main:train", CARD, ["main/train.jsonl.gz"]),
    ],
)
def test_files_of_a_split(name: str, card: list[dict[str, Any]], expected: list[str]) -> None:
    parts = split_name(name)
    assert parts is not None and choose_files(FILES, card, parts) == expected


@pytest.mark.parametrize("name", ["org/name:test", "org/name:other:train"])
def test_what_a_card_lacks_is_refused(name: str) -> None:
    parts = split_name(name)
    assert parts is not None
    with pytest.raises(UserError, match="org/name has the (splits train|configs main, all), got"):
        choose_files(FILES, CARD, parts)


def test_rows_come_from_the_files_of_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0000.jsonl").write_text('{"a": 1}\n')
    asked: list[Any] = []

    def ask(_: Any, repository: str, revision: str | None) -> Any:
        names = ["script.py"] if revision is None else ["default/train/0000.jsonl"]
        asked.append((repository, revision))
        return types.SimpleNamespace(sha="abc", siblings=[types.SimpleNamespace(rfilename=name) for name in names])

    def download(repository: str, file: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, revision))
        return str(tmp_path / "0000.jsonl")

    monkeypatch.setattr(hub, "_ask", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [row.columns for row in read_rows("org/name")] == [{"a": 1}]
    converted = ("org/name", "default/train/0000.jsonl", "dataset", "abc")
    assert asked == [("org/name", None), ("org/name", hub.CONVERTED), converted]
    monkeypatch.setattr(hub, "_ask", lambda *_: 1 / 0)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"cannot get the data set org/name from the hub \(division by zero\)"):
        read_rows("org/name")
