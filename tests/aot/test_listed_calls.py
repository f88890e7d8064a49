"""The programs that a run lists from its config are those that it calls: one small step of each kind of stage, with
shapes, types, places and donations of every call held against the list; and the metric `mfu` against sums by hand.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from r1jax.core.errors import UserError
from r1jax.core.sharding import make_mesh, use_mesh
from r1jax.core.structs import Program
from r1jax.data.tasks import load_task
from r1jax.models.families import qwen3_moe
from r1jax.rewards.base import load_rewards
from r1jax.rollout.engine import Engine
from r1jax.runs.abstract_model import Prompts, find_sizes
from r1jax.runs.hardware import peak_flops
from r1jax.stages import grpo, rejection_sampling, sft
from r1jax.stages.collection import collect
from r1jax.stages.distill import logits, on_policy, traces
from r1jax.stages.pipeline import pipeline
from r1jax.stages.preferences import dpo, reward_model
from r1jax.stages.registry import resolve_run
from tests.aot.calls import Call, compare, record
from tests.stages import tiny_grpo, tiny_sft
from tests.stages.distill import tiny_distill, tiny_on_policy
from tests.stages.preferences import tiny_preferences
from tests.tiny_model import write_tiny_model

# Jitted functions of engines, learners and updates that no list holds: they make empty slots, or move what is there.
UNLISTED = {"_init", "mix", "_balance"}
ROLLOUT = {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 4, "slots": 4, "prefill_batch": 2}
SMALL: dict[str, Any] = {
    **{f"rollout.{key}": value for key, value in ROLLOUT.items()},
    **{"train.micro_batch_size": 4, "train.completions_per_row": 2, "data.eval_problems": 2},
}
MAKERS: dict[Any, Any] = {
    grpo: grpo.GRPORun,
    sft: sft.SFTRun,
    on_policy: on_policy.make_run,
    logits: logits.make_run,
    dpo: dpo.DPORun,
    reward_model: reward_model.RewardModelRun,
}
REFERENCE = {"train.updates_per_step": 2, "loss.kl_coefficient": 0.01, "train.micro_batch_size": 2}
EXPERTS = {"model.preset": "tiny_qwen3_moe", "model.sizes": {"vocab_size": 264, "num_layers": 1}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    return record(monkeypatch)


@pytest.fixture(autouse=True)
def compile_fast() -> Iterator[None]:
    """One step each: compiling is all the work, and what is computed does not matter."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """All engines that are made."""
    made: list[Engine] = []
    init = Engine.__init__

    def keep(self: Engine, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", keep)
    return made


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), seed=1)


def change(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """The config with values at dotted keys."""
    with config.unlocked():
        for key, value in values.items():
            *path, name = key.split(".")
            section = config
            for part in path:
                if part not in section:
                    section[part] = ConfigDict()
                section = section[part]
            section[name] = value
    return config


def find_prompts(engine: Engine) -> Prompts:
    """What the data told of prompts."""
    return Prompts(engine.config.prefix, engine.config.prompt_columns)


def take_step(stage: Any, config: ConfigDict, workdir: pathlib.Path, devices: int = 1) -> tuple[Any, list[Program]]:
    """(metrics of one step of a training stage, what the stage lists)."""
    settings = resolve_run(config).settings
    make_run = MAKERS[stage]
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:devices])):
        run = make_run(settings, workdir)
        metrics, _ = run.step(1)
        run.evaluate()
        prompts = find_prompts(run.engine) if hasattr(run, "engine") else Prompts()
        return metrics, stage.programs(settings, prompts)


def count_by_hand(sizes: Any) -> tuple[int, int, int]:
    """FLOPs of a forward pass: (a token in the blocks, logits of a position, a query-key pair)."""
    D, heads = sizes.hidden_size, sizes.num_heads * sizes.head_dim
    attention = 2 * D * heads + 2 * D * sizes.num_kv_heads * sizes.head_dim
    if isinstance(sizes, qwen3_moe.Config):
        mixed = D * sizes.num_experts + sizes.active_experts * 3 * D * sizes.expert_size
    else:
        mixed = 3 * D * sizes.intermediate_size
    layers = sizes.num_layers
    return 2 * layers * (attention + mixed), 2 * D * sizes.vocab_size, 4 * layers * heads


def check_mfu(metrics: dict[str, Any], calls: list[Call], sizes: Any, *, rank: int = 0) -> None:
    """`mfu` is what the formula gives for the rows that were fed. rank: of adapters on all maps of the blocks."""
    body, head, pair = count_by_hand(sizes)
    batches = [call.last for call in calls if call.name == "_accumulate"]
    fed = sum(int((batch["segments"] > 0).sum()) for batch in batches)
    pairs = sum(int((batch["positions"] + 1)[batch["segments"] > 0].sum()) for batch in batches)
    targets = sum(int((batch["weights"] > 0).sum()) for batch in batches)
    expected = 3 * (body * fed + head * targets + pair * pairs)
    if rank:
        D, heads, kv = sizes.hidden_size, sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        maps = 2 * (D + heads) + 2 * (D + kv) + 3 * (D + sizes.intermediate_size)
        low_rank = 2 * sizes.num_layers * rank * maps
        expected = 2 * (body * fed + head * targets) + 3 * (pair * pairs + low_rank * fed)
    peak = peak_flops() * jax.device_count()
    assert metrics["mfu"] * metrics["time/train"] * peak == pytest.approx(expected, rel=1e-6)
    assert metrics["flops"] >= expected * (1 - 1e-9)


def names(programs: list[Program]) -> list[str]:
    return [program.name for program in programs]


def leave_out_updates(calls: list[Call], programs: list[Program]) -> tuple[list[Call], list[Program]]:
    """What is listed and called without updates and what follows them first: where weights are split, XLA places norms'
    gradients as it likes, and so the norms.
    """
    return (
        [call for call in calls if call.name not in ("_apply", "_convert")],
        [program for program in programs if program.name not in ("apply", "weights")],
    )


ROLLS = ["prefix", "prefill", "insert", "decode"]
SPREAD = [*ROLLS, "collect"]  # on several devices


@pytest.mark.parametrize(
    ("changes", "devices", "expected"),
    [
        pytest.param({}, 1, ["accumulate", "apply", *ROLLS], id="plain"),
        pytest.param({"lora.rank": 4, "mesh.fsdp": 2}, 2, ["accumulate", "apply", "weights", *SPREAD], id="lora"),
        pytest.param(
            {"lora.rank": 4, "mesh.fsdp": 2, "rollout.mesh": "same"},
            2,
            ["accumulate", "apply", *SPREAD],
            id="lora sampled as in training",
            marks=pytest.mark.slow,
        ),
        pytest.param(REFERENCE, 1, ["accumulate", "apply", "logprobs", *ROLLS], id="reference"),
        pytest.param(
            {**EXPERTS, "train.replay_experts": True}, 1, ["accumulate", "apply", *ROLLS], id="replay of experts"
        ),
        pytest.param(
            {**EXPERTS, "train.replay_experts": True, "mesh.expert": 2, "mesh.fsdp": 2}
            | {"rollout.mesh": "tensor=2", "rollout.prefill_batch": 4},
            4,
            ["accumulate", "apply", "weights", *SPREAD],
            id="replay of experts on a mesh",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {**REFERENCE, "mesh.fsdp": 2, "mesh.tensor": 2, "rollout.temperature_schedule": ((1, 1.0), (9, 0.5))},
            4,
            ["accumulate", "apply", "logprobs", "weights", *SPREAD],
            id="reference on a mesh",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_grpo(
    calls: list[Call],
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    changes: dict[str, Any],
    devices: int,
    expected: list[str],
) -> None:
    path = "" if "model.preset" in changes else tiny_model
    config = change(tiny_grpo.get_config(), {**SMALL, "model.name": str(path), **changes})
    metrics, programs = take_step(grpo, config, tmp_path / "run", devices)
    assert names(programs) == expected
    if "rollout.mesh" in changes and "lora.rank" not in changes:
        calls, programs = leave_out_updates(calls, programs)
    compare(calls, programs)
    if "logprobs" not in expected and "rollout.mesh" not in changes:
        _, sizes = find_sizes(resolve_run(config).settings.model)
        check_mfu(metrics, calls, sizes, rank=changes.get("lora.rank", 0))


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grpo_with_the_policy_as_judge(
    calls: list[Call], tiny_model: pathlib.Path, tmp_path: pathlib.Path, devices: int
) -> None:
    """A judge's prompt of the size that is listed: a question and one answer. On two devices it has the layout of
    rollouts.
    """
    judge = {"weight": 1.0, "template": "{question} {response}", "as_written": True, "max_characters": 2}
    values = {"model.name": str(tiny_model), "rewards": ConfigDict({"judge_reward": judge}), "mesh.fsdp": devices}
    config = change(tiny_grpo.get_config(), {**SMALL, **values})
    metrics, programs = take_step(grpo, config, tmp_path / "run", devices)
    rolls = ROLLS if devices == 1 else ["weights", *SPREAD]
    judging = [f"judge.{name}" for name in rolls if name not in ("prefix", "weights")]
    assert names(programs) == ["accumulate", "apply", *rolls, *judging]
    compare(*(leave_out_updates(calls, programs) if devices > 1 else (calls, programs)))
    assert "rewards/judge_reward/mean" in metrics


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_grpo_with_an_environment(
    calls: list[Call], tiny_model: pathlib.Path, tmp_path: pathlib.Path, devices: int
) -> None:
    """The continuous engine's programs take the place of the others; on two devices no beginning is shared."""
    episode = {"max_turns": 3, "turn_tokens": 16, "max_tokens": 96, "stop_texts": tuple("eto1ansk")}
    values = {
        "model.name": str(tiny_model),
        "mesh.fsdp": devices,
        "environment": "tests.environments.toys:Talker",
        "episode": ConfigDict(episode),
        "data.template": "chat",
        "rewards": ConfigDict({"environment_reward": 1.0}),
        "eval.strict": ("environment_reward",),
        "eval.format": "",
    }
    config = change(tiny_grpo.get_config(), {**SMALL, **values})
    _, programs = take_step(grpo, config, tmp_path / "run", devices)
    rolls = ["feed", "start", "decode", "stop"]
    assert names(programs) == ["accumulate", "apply", *(["weights", *rolls] if devices == 2 else [*rolls, "copy"])]
    compare(*(leave_out_updates(calls, programs) if devices > 1 else (calls, programs)))


SHORT = {"train.rows_per_step": 2, "train.micro_batch_size": 1, "data.eval_rows": 2, "data.length": 32, "steps": 1}
SUPERVISED = ["accumulate", "apply", "measure"]


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        pytest.param({"mesh.fsdp": 2}, 2, id="plain"),
        pytest.param({"lora.rank": 4}, 1, id="lora"),
        pytest.param(
            {"model.preset": "tiny_deepseek_v3", "model.sizes": {"vocab_size": 264, "num_layers": 2}}, 1, id="mtp"
        ),
    ],
)
def test_sft(
    calls: list[Call], tiny_model: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any], devices: int
) -> None:
    path = "" if "model.preset" in changes else tiny_model
    config = change(tiny_sft.get_config(), {**SHORT, "model.name": str(path), **changes})
    metrics, programs = take_step(sft, config, tmp_path / "run", devices)
    assert names(programs) == SUPERVISED
    compare(calls, programs)
    if "model.preset" not in changes:
        _, sizes = find_sizes(resolve_run(config).settings.model)
        check_mfu(metrics, calls, sizes, rank=changes.get("lora.rank", 0))
    else:
        assert metrics["mtp_loss"] > 0


CRITIC = ["critic.accumulate", "critic.apply", "critic.values"]


def test_ppo(calls: list[Call], engines: list[Engine], tiny_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The reference's log-probs, and the critic's programs."""
    changes = {"loss.preset": "ppo", "model.name": str(tiny_model)}
    config = tiny_grpo.get_config()
    del config["loss"]
    config.loss = {}
    _, programs = take_step(grpo, change(config, {**SMALL, **changes}), tmp_path / "run")
    assert names(programs) == ["accumulate", "apply", "logprobs", *CRITIC, *ROLLS]
    compare(calls, programs)


@pytest.mark.parametrize(
    ("stage", "changes", "devices", "further"),
    [
        pytest.param(dpo, {"mesh.fsdp": 2}, 2, ["score"], id="dpo"),
        pytest.param(dpo, {"loss.type": "kto"}, 1, ["score"], id="kto", marks=pytest.mark.slow),
        pytest.param(
            dpo, {"loss.reference": "base", "lora.rank": 4}, 1, [], id="dpo of adapters", marks=pytest.mark.slow
        ),
        pytest.param(reward_model, {"lora.rank": 4, "mesh.fsdp": 2}, 2, [], id="reward model"),
    ],
)
def test_preferences(
    calls: list[Call],
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    stage: Any,
    changes: dict[str, Any],
    devices: int,
    further: list[str],
) -> None:
    name = stage.__name__.rpartition(".")[2]
    config = change(tiny_preferences.get_config(name), {**SHORT, "model.name": str(tiny_model), **changes})
    _, programs = take_step(stage, config, tmp_path / "run", devices)
    assert names(programs) == [*SUPERVISED, *further]
    compare(calls, programs)


def test_on_policy_distillation(
    calls: list[Call], tiny_model: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    paths = {"model.name": str(tiny_model), "teacher.name": str(teacher)}
    config = change(tiny_on_policy.get_config(), {**SMALL, **paths})
    _, programs = take_step(on_policy, config, tmp_path / "run")
    assert names(programs) == ["accumulate", "apply", *ROLLS]
    compare(calls, programs)
    assert list(programs[0].arguments[2]) == ["teacher"]


def test_distillation_by_logits(
    calls: list[Call], tiny_model: pathlib.Path, teacher: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    paths = {"model.name": str(tiny_model), "teacher.name": str(teacher), "lora.rank": 4}
    config = change(tiny_sft.get_config(), {**SHORT, "stage": "distill", "method": "logits", **paths})
    _, programs = take_step(logits, config, tmp_path / "run")
    assert names(programs) == SUPERVISED
    compare(calls, programs)
    assert list(programs[0].arguments[2]) == ["base", "teacher"]


def test_distillation_by_traces(
    calls: list[Call],
    engines: list[Engine],
    tiny_model: pathlib.Path,
    teacher: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    """The whole of it: the teacher answers, the student learns a step and is measured before and after."""
    config = change(
        tiny_distill.get_config(),
        {
            **{key.replace("data.", "corpus."): value for key, value in SHORT.items()},
            "data.eval_problems": 2,
            **{"corpus.length": 96, "checkpoint.every_steps": 0},
            **{"teacher.name": str(teacher), "student.name": str(tiny_model)},
        },
    )
    settings = resolve_run(config).settings
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        traces.distil(settings, tmp_path / "run")
        programs = traces.programs(settings, find_prompts(engines[0]))
    assert names(programs) == [*(f"teacher.{name}" for name in ROLLS), *SUPERVISED, *ROLLS]
    compare(calls, programs)


def test_rejection_sampling(
    calls: list[Call], engines: list[Engine], tiny_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Its cache grows once."""
    generate = {"num_samples": 4, "max_new_tokens": 64, "slots": 4, "top_k": 5, "prompts": 2}
    data = {"source": "addition", "template": "plain", "args": {"low": 1, "high": 9}, "eval_problems": 2}
    values = {"model": {"name": str(tiny_model)}, "data": data, "generate": generate}
    stage = {"stage": "rejection_sampling", "rewards": {"number_reward": 1.0}, "filters": {"min_reward": 2.0}}
    settings = resolve_run(ConfigDict({**stage, **values})).settings
    with use_mesh(make_mesh(settings.mesh, jax.devices()[:1])):
        rows = load_task(settings.data).train[:2]
        sampling = settings.model, rows, settings.generate, load_rewards(settings.rewards), settings.filters
        with pytest.raises(UserError, match="none of the teacher's 8 samples"):
            collect(*sampling, tmp_path, judged_by=settings.rewards)
        programs = rejection_sampling.programs(settings, find_prompts(engines[0]))
    assert names(programs) == [*ROLLS, "grow"]
    (decode,) = [program for program in programs if program.name == "decode"]
    grown = next(number for number, call in enumerate(calls) if call.name == "_grow")
    before = {number for number, call in enumerate(calls[:grown]) if call.name in ("_decode", "insert")}
    assert all(calls[number].find_difference(decode) for number in before)  # its cache was the shorter one
    compare([call for number, call in enumerate(calls) if number not in before], programs)


def test_a_pipeline(
    calls: list[Call],
    engines: list[Engine],
    tiny_model: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Supervised training, then reinforcement of its model."""
    supervised = change(tiny_sft.get_config(), {**SHORT, "model.name": str(tiny_model)})
    reinforced = change(tiny_grpo.get_config(), {**SMALL, "steps": 1, "model.name": str(tiny_model)})
    stages = {"first": supervised.to_dict(), "second": {**reinforced.to_dict(), "init": "first"}}
    for stage in stages.values():
        stage["mesh"] = {"data": 1}
    config = ConfigDict(
        {"stage": "pipeline", "order": tuple(stages), "stages": stages, "measure": {"data": {"source": "file"}}}
    )
    settings = resolve_run(config).settings
    for name in ("_share_programs", "_forget"):
        monkeypatch.setattr(pipeline, name, lambda *args: None)
    monkeypatch.setattr(pipeline, "_measure", lambda planned, entry, *args: entry.setdefault("metrics", {}))
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: devices)
    pipeline.run(settings, tmp_path / "run")
    with use_mesh(make_mesh(settings.mesh)):
        programs = pipeline.programs(settings, find_prompts(engines[0]))
    assert names(programs) == [
        *(f"first.{name}" for name in SUPERVISED),
        *(f"second.{name}" for name in ("accumulate", "apply", *ROLLS)),
    ]
    compare(calls, programs)
