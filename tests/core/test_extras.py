import importlib.metadata
import pathlib
import re
import subprocess

import pytest

from r1jax.core import extras
from r1jax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_package_that_is_there_is_returned():
    assert extras.require("json.decoder", "hub", "reading x").JSONDecoder
    extras.check_installed("json", "hub", "reading x")


@pytest.mark.parametrize("ask", [extras.require, extras.check_installed])
def test_the_line_of_a_checkout_names_its_folder(ask, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^reading x needs the package nowhere: pip install -e '\.\[hub\]'$"):
        ask("nowhere", "hub", "reading x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"pip install -e '{ROOT}\[hub\]'$"):
        ask("nowhere", "hub", "reading x")


def test_the_line_of_a_wheel_names_the_packages_of_the_extra(tmp_path, monkeypatch):
    older = [
        "jax[tpu]==1; extra == 'tpu' and python_version < '3'",
        "jax[tpu]==2 ; python_version >= '3' and extra == 'tpu'",
    ]
    listed = [
        *older,
        "numpy",
        'datasets<6,>=4; extra == "hub"',
        "pyarrow (>=20) ; extra == 'hub'",
        'wandb; extra == "wandb"',
    ]
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    assert extras.install_line("hub") == "pip install 'datasets<6,>=4' 'pyarrow(>=20)'"
    assert extras.install_line("wandb") == "pip install wandb"
    assert extras.install_line("tpu") == "pip install 'jax[tpu]==2'"  # of this Python's


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"half_there does not import \(No module named 'nowhere'\)"):
        extras.require("half_there", "hub", "reading x")


def test_nothing_tells_a_reader_to_install_r1jax_from_an_index():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    texts = {name: (ROOT / name).read_text("utf-8", "replace") for name in files if (ROOT / name).is_file()}
    wrong = [name for name, text in texts.items() if re.search(r"install (-\S+ )*[\"']?r1jax\b(?!-|/)", text)]
    assert wrong == []
