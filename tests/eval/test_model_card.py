import json
import pathlib
import shutil

import pytest

from r1jax.eval.model_card import describe_model, find_licence

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "workdir_format1" / "run"


@pytest.fixture
def workdir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A run with the records of the fixture, on a base whose card names a licence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model" / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Tiny\n")
    run = tmp_path / "run"
    (run / "checkpoints" / "2").mkdir(parents=True)
    shutil.copyfile(RUN / "config.json", run / "config.json")
    rows = [
        {"step": step, "eval/sums/pass@1": rate, "eval/sums/pass@1_stderr": 0.02} for step, rate in ((0, 0.1), (2, 0.5))
    ]
    rows.append({"step": 4, "eval/sums/pass@1": 0.9, "eval/sums/pass@1_stderr": 0.02})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_the_card_of_a_run_has_base_data_recipe_figures_and_licence(workdir: pathlib.Path) -> None:
    card = describe_model(workdir / "checkpoints" / "2", "out/my-model")
    lines = ("license: apache-2.0", "library_name: transformers", "pipeline_tag: text-generation", "tags:")
    head = "\n".join(["---", *lines, "- r1jax", "- grpo", "---", ""])
    assert card.startswith(f"{head}\n# my-model\n\nMade from `tiny_model` by reinforcement learning (GRPO)")
    assert "from step 2 of the run `run`" in card
    for row in (
        "| base | `tiny_model` |",
        "| data | `addition` |",
        "| rewards | ",
        "prompts x",
        "| learning rate | 0.002",
    ):
        assert row in card, row
    assert "10.0% ± 2.0 | 50.0% ± 2.0 | +40.0 points" in card and "90.0%" not in card, "figures of the exported step"
    assert "apache-2.0, as `tiny_model` names it" in card
    assert "library_name: peft" in describe_model(workdir / "checkpoints" / "2", "out", adapters=True)


def test_a_card_that_is_there_goes_along(workdir: pathlib.Path) -> None:
    assert describe_model("tiny_model", "out") == pathlib.Path("tiny_model/README.md").read_text()
    pathlib.Path("tiny_model/README.md").unlink()
    card = describe_model("tiny_model", "out")
    assert (
        "`tiny_model`, converted by r1jax" in card and "whose files here name none" in card and "license:" not in card
    )


def test_the_licence_of_a_run_is_that_of_its_base(workdir: pathlib.Path) -> None:
    assert find_licence("tiny_model") == find_licence(workdir / "checkpoints" / "2") == "apache-2.0"
    assert find_licence("no/such") == find_licence("") == ""
