"""Names of MODELs: what is named is used, from disk or from the hub's cache at its revision, or one line says why."""

import json
import re
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.runs.model_setup import ModelConfig, describe_model
from r1jax.weights import load_pretrained
from r1jax.weights.names import find_hub_name, find_local_hub, find_model, find_revision, split_hub_name
from r1jax.weights.pretrained import name_origin, read_revision
from tests.tiny_model import write_tiny_model

FETCH = "python fetch.py"
COMMITS = {"main": "0" * 40, "v2": "1" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache with the network switched off; returns the folder that the files of org/name go to."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "models--org--name" / "snapshots" / COMMITS["main"]


def fill(hub: Path, revision: str = "main") -> Path:
    (hub.parents[1] / "refs").mkdir(parents=True, exist_ok=True)
    (hub.parents[1] / "refs" / revision).write_text(COMMITS[revision])
    return write_tiny_model(hub.with_name(COMMITS[revision]))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("org/name", ("org/name", None)),
        ("org/name-1.5B@v2", ("org/name-1.5B", "v2")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        *((name, None) for name in ("name", "a/b/c", "./a", "/a/b", "~/a", "org/a.gguf", "org/name@", "@zero/x", "")),
    ],
)
def test_hub_names_are_told_from_paths(name: str, parts: tuple[str, str | None] | None) -> None:
    assert split_hub_name(name) == parts


@pytest.mark.parametrize("path", ["models/none.gguf", "./none/model", "a/b/c", "none"])
def test_an_absent_path_names_the_command_that_makes_it(path: str) -> None:
    place = re.escape(str(Path(path).absolute()))
    with pytest.raises(UserError, match=rf"^no model {re.escape(path)}: there is no .* {place}; `{FETCH}` makes it$"):
        load_pretrained(path, fetch=FETCH)
    with pytest.raises(UserError, match=rf"{place}$"):
        find_model(path)


def test_a_hub_name_is_taken_from_the_cache_without_network(hub: Path, tiny_model: Path) -> None:
    fill(hub)
    assert find_model("org/name") == find_local_hub("org/name") == hub
    assert find_model(tiny_model) == tiny_model
    model, tokenizer = load_pretrained("org/name")
    assert tokenizer is not None
    tokens = np.arange(8)[None]
    np.testing.assert_array_equal(model(tokens), load_pretrained(tiny_model)[0](tokens))


def test_a_revision_is_taken_and_recorded(hub: Path, tmp_path: Path) -> None:
    fill(hub)
    with pytest.raises(UserError, match="^no model org/name@v2: "):
        find_model("org/name@v2")
    second = fill(hub, "v2")
    assert find_model("org/name@v2") == find_local_hub("org/name@v2") == second
    assert find_model(f"org/name@{COMMITS['v2']}") == second and find_revision(second) == COMMITS["v2"]
    describe_model(ModelConfig("org/name@v2"), tmp_path / "run")
    assert json.loads((tmp_path / "run/source.json").read_text()) == {"name": "org/name@v2", "revision": COMMITS["v2"]}
    assert read_revision(tmp_path / "run") == COMMITS["v2"]
    base = f"org/name@{COMMITS['v2']}"
    assert name_origin({"name": "org/name"}, tmp_path / "run") == base, "whatever the branch is at later"
    assert name_origin({"path": "", "hub": "org/name"}, tmp_path / "run") == base, "before 0.2.0"
    describe_model(ModelConfig(str(second)), tmp_path / "other")
    assert name_origin({"name": str(second)}, tmp_path / "other") == str(second)
    assert find_revision(tmp_path) == read_revision(tmp_path / "other") == "", "a folder has no revision"


def test_a_folder_goes_before_the_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hub)
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "org/name")
    assert find_model("org/name") == Path("org/name")


def test_a_folder_of_ours_is_not_looked_for_on_the_hub(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path, or a model that a command would make, is not a stranger's model of that name."""
    fill(hub)
    monkeypatch.chdir(tmp_path)
    assert find_hub_name("org/name") and find_hub_name("runs/x@main")
    for name, fetch in (("runs/x", ""), ("models/x", ""), ("org/name", FETCH)):
        with pytest.raises(UserError, match=rf"^no model {name}: there is no file or folder {tmp_path}/{name}"):
            find_model(name, fetch)
    (tmp_path / "org").mkdir()
    with pytest.raises(UserError, match="^no model org/name: there is no file or folder"):
        find_model("org/name")
    assert find_model("org/name@main") == hub


def test_without_cache_and_network_one_line_says_where_it_was_looked_for(hub: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^no model org/name: .* {Path('org/name').absolute()}, and the hub"
    ) as caught:
        load_pretrained("org/name")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_cache_without_weights_is_completed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may have fetched the tokenizer alone."""
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            write_tiny_model(hub)
        return str(hub)

    (fill(hub) / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_pretrained("org/name")[0].config.hidden_size == 64
    assert asked == [True, False]
