"""SFT runs of a tiny model: they learn, write what the contract says, and end alike however they are cut or stopped."""

import pathlib
from typing import Any

import chex
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.data.corpus import load_corpus
from r1jax.models.transformer import merge, split
from r1jax.stages import sft
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.pretrained import load_pretrained
from tests.stages import runs
from tests.stages.runs import Rows, read_params, untimed

CONFIG = pathlib.Path(__file__).with_name("tiny_sft.py")
METRICS = """loss token_accuracy grad_norm learning_rate num_tokens utilisation step_time time/input time/train
train/tokens_per_second mfu""".split()
STEPS = 12


def train(workdir: pathlib.Path, model: pathlib.Path, **changes: Any) -> Rows:
    return runs.train(workdir, model, config=CONFIG, **changes)


@pytest.fixture(scope="module")
def finished(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("sft") / "run"
    train(workdir, tiny_model, steps=STEPS, eval__every_steps=5, checkpoint__every_steps=4)
    return workdir


@pytest.fixture(scope="module")
def rows(finished: pathlib.Path) -> Rows:
    return read_rows(finished / "metrics.jsonl")


# --- One run, looked at from all sides ---


def test_it_learns_and_held_out_rows_tell(rows: Rows) -> None:
    assert rows[1]["loss"] > 4 and rows[-1]["loss"] < 1.5
    held_out = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert list(held_out) == [0, 5, 10, STEPS]
    assert held_out[0] > 4 and held_out[STEPS] < 2.5
    assert rows[-1]["eval/token_accuracy"] > rows[0]["eval/token_accuracy"] + 0.3


def test_metrics_have_the_names_of_the_contract(rows: Rows) -> None:
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for row in rows[1:]:
        assert next(iter(row)) == "step" and not set(METRICS) - set(row)
        assert not [name for name in row if name.startswith(("mtp", "balance", "router"))]  # it has none of these
        assert 0.9 < row["utilisation"] <= 1
    fed = np.diff([0, *(row["num_tokens"] for row in rows[1:])])
    np.testing.assert_allclose(fed, [8 * 64 * row["utilisation"] for row in rows[1:]])


def test_the_rate_warms_up_and_falls_as_a_cosine_to_its_floor(rows: Rows) -> None:
    after = np.arange(STEPS - 2) / (STEPS - 2)
    expected = [1.5e-3, 3e-3, *(3e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * after)) / 2))]
    np.testing.assert_allclose([row["learning_rate"] for row in rows[1:]], expected[:STEPS], rtol=1e-5)


def test_the_report_shows_its_curves(finished: pathlib.Path) -> None:
    page = (finished / "report.html").read_text("utf-8")
    assert all(title in page for title in ("Held-out loss", "Token accuracy", "Seconds a step"))


# --- The same run in other ways ---


class StoppedError(Exception):
    """What ends a run in the middle."""


@pytest.mark.parametrize("part", ["first", "second"])
def test_stopped_at_a_random_step_and_started_again_it_ends_bit_for_bit_the_same(
    finished: pathlib.Path, tiny_model: pathlib.Path, tmp_path: pathlib.Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = range(1, STEPS), sft.SFTRun.step
    # Drawn here and not in a parameter, which every worker of a test run must find alike; a failure shows it.
    stop = int(
        np.random.default_rng().choice(steps[: len(steps) // 2] if part == "first" else steps[len(steps) // 2 :])
    )

    def stopping(run: sft.SFTRun, number: int) -> Any:
        if number == stop + 1:
            raise StoppedError
        return step(run, number)

    changes = {"steps": STEPS, "eval__every_steps": 5, "checkpoint__every_steps": 4}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(sft.SFTRun, "step", stopping)
        train(tmp_path, tiny_model, **changes)
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == stop
    found = train(tmp_path, tiny_model, **changes)
    assert untimed(found) == untimed(read_rows(finished / "metrics.jsonl"))
    expected, params = read_params(finished), read_params(tmp_path)
    assert params.keys() == expected.keys()
    for name in expected:
        assert params[name].tobytes() == expected[name].tobytes(), name


def test_eight_devices_and_small_micro_batches_take_the_same_steps(
    rows: Rows, tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    changes = {"mesh__fsdp": 4, "mesh__data": 2, "train__micro_batch_size": 1, "train__logits_chunk": 16}
    found = train(tmp_path, tiny_model, devices=8, steps=STEPS, data__eval_rows=20, **changes)
    for one, other in zip(rows[1:3], found[1:3], strict=True):
        for name in ("loss", "token_accuracy", "grad_norm", "num_tokens"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    assert found[0]["eval/loss"] == pytest.approx(rows[0]["eval/loss"], rel=1e-5)


def test_epochs_show_every_example_once_each(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    settings = runs.read_settings(CONFIG, model__name=tiny_model, steps=0, data__epochs=2)
    corpus = load_corpus(settings.data, Tokenizer.from_folder(tiny_model))
    run = sft.SFTRun(settings, tmp_path)
    counted, run.steps = run.steps, run.steps + 1
    with pytest.raises(
        UserError, match=rf"the data ended before step {run.steps} of {run.steps}: config\.data\.epochs"
    ):
        run.train()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(counted + 1))
    assert run.num_tokens == 2 * sum(len(example.tokens) for example in corpus.train[0])


def test_fresh_weights_of_a_named_shape_learn_text(tmp_path: pathlib.Path) -> None:
    """Base training: bytes, plain text, a model with experts and a prediction depth."""
    (tmp_path / "text.jsonl").write_text('{"text": "one two three four five six seven"}\n' * 6)
    source = {"text": {"path": str(tmp_path / "text.jsonl")}}
    changes = {"model__preset": "tiny_deepseek_v3", "model__sizes": '{"vocab_size": 264, "num_layers": 2}', "steps": 12}
    data = {"data__sources": source, "data__eval_rows": 0, "train__rows_per_step": 2, "train__micro_batch_size": 2}
    rows = train(tmp_path / "run", pathlib.Path(), **changes, **data, model__name="", optimizer__learning_rate=1e-2)
    assert rows[0]["loss"] == pytest.approx(np.log(264), rel=0.05) and rows[-1]["loss"] < 3
    assert rows[-1]["mtp_loss"] < rows[0]["mtp_loss"] - 1 and 1.5 < rows[-1]["balance_loss"] < 6
    assert rows[-1]["router/max_violation"] > 0
    assert "eval/loss" not in rows[-1]
    moved = {name: bias for name, bias in read_params(tmp_path / "run").items() if "correction_bias" in name}
    assert len(moved) == 2 and all(0 < np.abs(bias).max() <= 12e-3 + 1e-6 for bias in moved.values())
    model, tokenizer = load_pretrained(tmp_path / "run")
    assert (model.config.num_layers, model.config.vocab_size) == (2, 264) and len(model.mtp) == 1
    np.testing.assert_array_equal(model.embed.embedding[...], read_params(tmp_path / "run")["['embed']['embedding']"])
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("one")) == "one"


def test_adapters_alone_are_trained_and_saved(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    changes = {"lora__rank": 4, "optimizer__learning_rate": 1e-2, "steps": STEPS}
    run = sft.SFTRun(runs.read_settings(CONFIG, model__name=tiny_model, **changes), tmp_path)
    run.train()
    found = read_rows(tmp_path / "metrics.jsonl")
    assert found[-1]["eval/loss"] < found[0]["eval/loss"] - 2
    graph, base = split(load_pretrained(tiny_model)[0])
    chex.assert_trees_all_equal(base, run.trainable.base)
    tokens = np.arange(4, 40).reshape(2, 18)
    expected = merge(run.trainable.graph, run.trainable.whole(run.state.params))(tokens)
    exported, tokenizer = load_pretrained(tmp_path)  # the workdir is a model itself
    np.testing.assert_allclose(exported(tokens), expected, atol=1e-5)
    assert tokenizer is not None and np.abs(expected - merge(graph, base)(tokens)).max() > 1
    saved = read_params(tmp_path)
    assert {name.rpartition("[")[2] for name in saved} == {"'a']", "'b']"}
    assert sum(array.size for array in saved.values()) < 20_000
    again = train(tmp_path, tiny_model, lora__rank=4, optimizer__learning_rate=1e-2, steps=STEPS)
    assert again == found  # what is finished is restored, and stays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"set config\.steps, or set it to 0 and config\.data\.epochs"),
        ({"data__epochs": 1}, r"set config\.steps, or set it to 0 and config\.data\.epochs"),
        (
            {"train__micro_batch_size": 3},
            r"config\.train\.micro_batch_size = 3 must divide config\.train\.rows_per_step",
        ),
        ({"train__logits_chunk": 24}, r"config\.train\.logits_chunk = 24 must divide config\.data\.length = 64"),
        ({"lora__rank": -1}, r"config\.lora\.rank must be at least 0"),
        ({"lora__rank": 2, "lora__targets": "q_proj"}, r'config\.lora\.targets: no linear map matches "q_proj"'),
        ({"model__preset": "huge"}, "unknown model shape 'huge'"),
        (
            {"model__preset": "tiny_llama"},
            r"config\.model\.sizes\.vocab_size must be at least the tokenizer.s 260 tokens, got 256 for tiny_llama",
        ),
        (
            {"model__preset": "tiny_llama", "model__sizes": '{"depth": 2}'},
            r"config\.model\.sizes must be among vocab_size",
        ),
    ],
)
def test_a_mistake_is_named(
    tiny_model: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    if "model__preset" in changes:
        changes = {**changes, "model__name": "", "model__tokenizer": tiny_model}
    with pytest.raises(UserError, match=message):
        train(tmp_path, tiny_model, **changes)
