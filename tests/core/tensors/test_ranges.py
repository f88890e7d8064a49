"""Weights that are not on this host: only the asked ranges travel, nothing is kept, and what goes wrong is one line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import chex
import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.tensors import ranges
from r1jax.core.tensors.tensor_reader import open_tensors
from r1jax.models.transformer import split
from r1jax.weights import load_pretrained
from r1jax.weights.identity import identify_model
from r1jax.weights.names import find_model, find_revision
from r1jax.weights.safetensors_writer import Spec, write_tensors
from tests.tiny_model import write_tiny_model
from tests.weights.hub import COMMIT, Hub, serve

TOKEN = "hf_of_the_test"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny model in several files, and an empty cache."""
    folder = write_tiny_model(tmp_path / "there")
    tensors = open_tensors(folder)
    values = {name: np.array(tensors.read(name)) for name in tensors.names}
    (folder / "model.safetensors").unlink()
    specs = {name: Spec(value.shape, value.dtype) for name, value in values.items()}
    write_tensors(folder, specs, values.__getitem__, shard_bytes=150_000)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(folder) as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)  # read from HF_ENDPOINT at import
        for module in (huggingface_hub.constants, huggingface_hub.file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield hub


def test_a_hub_name_is_read_by_ranges_and_leaves_no_weights_here(hub: Hub, tmp_path: Path) -> None:
    model, tokenizer = load_pretrained("org/name")
    expected, _ = load_pretrained(hub.folder)
    chex.assert_trees_all_equal(split(model)[1], split(expected)[1])
    assert tokenizer is not None and find_revision(find_model("org/name")) == COMMIT
    stored = sum(file.stat().st_size for file in hub.folder.glob("*.safetensors"))
    assert len(list(hub.folder.glob("*.safetensors"))) > 2 and hub.weights_sent() == stored, "each byte once"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert max(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) < 10_000
    assert hub.tokens == {"hub": {True}, "storage": {False}}, "a storage host never sees the token"
    assert identify_model("org/name") == identify_model(hub.folder)


def test_rows_are_asked_for_and_an_address_that_expired_is_renewed(hub: Hub) -> None:
    tensors, before = open_tensors(find_model("org/name")), hub.weights_sent()
    expected = open_tensors(hub.folder).read(EMBEDDING)
    np.testing.assert_array_equal(tensors.read(EMBEDDING, (3, 5)), expected[3:5])
    assert hub.weights_sent() - before == expected[3:5].nbytes == tensors.count_bytes(EMBEDDING, (3, 5))
    hub.keys += 1
    np.testing.assert_array_equal(tensors.read(EMBEDDING), expected)


def test_a_whole_copy_in_the_cache_is_used_without_the_hub(hub: Hub) -> None:
    folder = find_model("org/name")
    for file in hub.folder.glob("*.safetensors"):  # as `hf download` puts them there
        shutil.copy(file, folder / file.name)
    before = sum(hub.asked.values())
    ranges._served.clear()
    open_tensors(find_model("org/name"))
    assert sum(hub.asked.values()) == before


def test_what_the_hub_lacks_or_refuses_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_model("org/name")
    hub.ranges = False
    with pytest.raises(
        UserError, match="safetensors: the server does not serve byte ranges; fetch the model with `hf "
    ):
        open_tensors(folder)
    hub.ranges = True
    first = min(hub.folder.glob("*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(content[:-7])
    with pytest.raises(UserError, match=f"{first.name}: cut off: tensor '.*' ends at byte"):
        open_tensors(folder)
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name}: missing, though model.safetensors.index.json names it"):
        open_tensors(folder)
    first.write_bytes(content)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    tensors = open_tensors(folder)
    hub.fails = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(UserError, match=r"org/name@cccccccccccc/model-00001.*: cannot be read \("):
        tensors.read(tensors.names[0])
