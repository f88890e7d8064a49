"""On-policy distillation end to end: a student comes near its teacher on what it says itself, and answers better."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.core.metrics import read_rows
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.stages.distill import logits as distill_logits
from r1jax.stages.distill import on_policy as distill_on_policy
from tests.stages import runs
from tests.stages.episodes import EPISODES
from tests.stages.runs import Rows
from tests.tiny_model import write_tiny_model

FOLDER = pathlib.Path(__file__).parent
ALL_SUMS = {"data__eval_rows": 0, "data__length": 128, "train__rows_per_step": 8, "train__micro_batch_size": 8}


def distil(stage: Any, config: str, workdir: pathlib.Path, **changes: Any) -> Rows:
    settings = runs.read_settings(FOLDER / config, **changes)
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        stage.make_run(settings, workdir).train()
    return read_rows(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def student(tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that has seen a few sums: it writes numbers, seldom the right one."""
    workdir = tmp_path_factory.mktemp("student") / "run"
    runs.train(workdir, tiny_model, config=FOLDER.parent / "tiny_sft.py", steps=12, **ALL_SUMS)
    return workdir


@pytest.fixture(scope="module")
def teacher(student: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The student after many more sums."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    runs.train(workdir, student, config=FOLDER.parent / "tiny_sft.py", steps=150, **ALL_SUMS)
    return workdir


def test_the_reverse_kl_falls_and_the_accuracy_rises(
    student: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = distil(distill_on_policy, "tiny_on_policy.py", tmp_path, model__name=student, teacher__name=teacher)
    kl = [row["kl"] for row in rows]
    assert len(kl) == 30 and kl[-1] <= kl[0] / 2
    assert np.polyfit(range(30), kl, 1)[0] < 0
    before, after = (np.mean([row["reward"] for row in part]) for part in (rows[:2], rows[-2:]))
    assert after > before + 0.3  # the share of right answers, of 64 a step
    assert max(row["sampling/sampling_logp_difference/mean"] for row in rows) < 1e-5


def test_the_sampled_estimate_points_the_same_way(
    student: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """One number a token has much more noise than the whole vocabulary: it takes longer."""
    changes = {"divergence__estimator": "sampled", "steps": 130, "optimizer__learning_rate": 2e-3}
    rows = distil(
        distill_on_policy, "tiny_on_policy.py", tmp_path, model__name=student, teacher__name=teacher, **changes
    )
    kl = [row["kl"] for row in rows]
    assert np.mean(kl[-10:]) < 0.7 * np.mean(kl[:10])


def test_the_student_learns_from_the_teacher_on_every_turn(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Conversations with an environment: the divergence is that of what the student samples, of all its turns."""
    other = write_tiny_model(tmp_path / "teacher", seed=1)
    changes = {"steps": 8, "rollout__prompts_per_step": 4, "train__micro_batch_size": 16, "rollout__slots": 32}
    rows = distil(
        distill_on_policy,
        "tiny_on_policy.py",
        tmp_path / "run",
        model__name=tiny_model,
        teacher__name=other,
        **changes,
        **EPISODES,
    )
    kl = [row["kl"] for row in rows]
    assert len(kl) == 8 and kl[-1] < 0.7 * kl[0]
    assert min(row["env/turns/mean"] for row in rows) > 1
    assert max(row["sampling/sampling_logp_difference/max"] for row in rows) < 1e-4


def test_logits_of_a_teacher_teach_on_given_texts(
    student: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = (
        (FOLDER.parent / "tiny_sft.py")
        .read_text()
        .replace('"stage": "sft",', '"stage": "distill", "method": "logits",')
    )
    config = config.replace(
        '"mesh":', f'"teacher": {{"name": {str(teacher)!r}}}, "divergence": {{"top_k": 8}}, "mesh":'
    )
    (tmp_path / "config.py").write_text(config)
    rows = distil(
        distill_logits, str(tmp_path / "config.py"), tmp_path / "run", model__name=student, steps=30, **ALL_SUMS
    )
    assert rows[-1]["kl"] < rows[0]["kl"] / 2 and rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 320}, "has logits for 320 tokens, the student for 304"),
        ({"train__updates_per_step": 2, "train__micro_batch_size": 32}, r"config\.train\.updates_per_step must be 1"),
        ({"teacher__name": ""}, r"config\.teacher\.name must name the teacher"),
    ],
)
def test_a_mistake_is_named(tiny_model: pathlib.Path, tmp_path: pathlib.Path, changes: Any, message: str) -> None:
    teacher = write_tiny_model(tmp_path / "teacher", **{k: changes.pop(k) for k in list(changes) if k == "vocab_size"})
    paths = {"model__name": tiny_model, "teacher__name": teacher}
    with pytest.raises(UserError, match=message):
        distil(distill_on_policy, "tiny_on_policy.py", tmp_path / "run", **{**paths, **changes})


def test_another_vocabulary_is_refused_by_a_token(tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    teacher = write_tiny_model(tmp_path / "teacher")
    file = teacher / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"A": 36', '"A": 37').replace('"B": 37', '"B": 36'), "utf-8")
    paths = {"model__name": tiny_model, "teacher__name": teacher}
    with pytest.raises(UserError, match="the tokenizer of .* is not the student's"):
        distil(distill_on_policy, "tiny_on_policy.py", tmp_path / "run", **paths)
