"""Calls the public methods of the installed `tinker` SDK one by one against a server, and checks their effects.

    PYTHON sdk_methods.py http://127.0.0.1:8000 MODEL WORKDIR [PART OF A METHOD'S NAME]

A line of JSON for each method, and for its `_async` twin: {"method", "result", "words"}, where the result is `works`
(weights, values or files are as the method says), `refused` (an error that names the reason; `words` has it) or
`wrong`. MODEL is the name that is served, WORKDIR the server's. Runs in an interpreter with the SDK, not in ours.
"""

import asyncio
import dataclasses
import datetime
import json
import os
import pathlib
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tinker
from tinker import types

ADDRESS, MODEL, WORKDIR = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
IDS = [40, 41, 42, 43, 44, 45, 46, 47]
CHECKS: list[tuple[str, Callable[..., None]]] = []


def covers(*methods: str) -> Callable[..., Any]:
    """Registers a check of methods (`Client.method`)."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        CHECKS.extend((method, function) for method in methods)
        return function

    return register


def wait(value: Any) -> Any:
    return value.result() if isinstance(value, tinker.APIFuture) or hasattr(value, "result") else value


class Caller:
    """Calls a method, or its asynchronous twin, and waits for the end."""

    def __init__(self, is_async: bool):
        self.is_async = is_async

    def __call__(self, client: Any, name: str, *arguments: Any, **named: Any) -> Any:
        if not self.is_async:
            return wait(getattr(client, name)(*arguments, **named))

        async def run() -> Any:
            value = await getattr(client, f"{name}_async")(*arguments, **named)
            return await value.result_async() if hasattr(value, "result_async") else value

        return asyncio.run(run())


def make_datum(ids: list[int] | None = None, **inputs: list[float]) -> types.Datum:
    ids = ids or IDS
    arrays = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    arrays["target_tokens"] = np.asarray(ids[1:], np.int64)
    if set(arrays) == {"target_tokens"}:
        arrays["weights"] = np.ones(len(ids) - 1, np.float32)
    given = {name: types.TensorData.from_numpy(array) for name, array in arrays.items()}
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=given)


def read_logprobs(client: Any, ids: list[int] | None = None) -> np.ndarray:
    output = client.forward([make_datum(ids)], "cross_entropy").result()
    return np.array(output.loss_fn_outputs[0]["logprobs"].to_numpy())


def learn(client: Any, steps: int = 1, rate: float = 0.05) -> None:
    for _ in range(steps):
        client.forward_backward([make_datum()], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=rate)).result()


def stored_names() -> set[str]:
    """Files of the server's workdir."""
    return {str(path.relative_to(WORKDIR)) for path in WORKDIR.rglob("*") if path.is_file()}


class World:
    """Clients that the checks share."""

    service = tinker.ServiceClient(base_url=ADDRESS, api_key="tml-local", user_metadata={"who": "checks"})

    def __init__(self) -> None:
        self.rest = self.service.create_rest_client()
        self.trainer = self.fresh()
        self.session = self.service.holder.get_session_id() if hasattr(self.service.holder, "get_session_id") else ""

    def fresh(self, rank: int = 4, seed: int = 1, **named: Any) -> Any:
        return wait(self.service.create_lora_training_client(MODEL, rank=rank, seed=seed, **named))


# --- Service ---


@covers("ServiceClient.get_server_capabilities")
def check_capabilities(world: World, call: Caller) -> None:
    assert MODEL in [model.model_name for model in call(world.service, "get_server_capabilities").supported_models]


@covers("ServiceClient.create_lora_training_client")
def check_create(world: World, call: Caller) -> None:
    one = call(world.service, "create_lora_training_client", MODEL, rank=3, seed=5, user_metadata={"a": "b"})
    info = one.get_info()
    assert info.model_data.model_name == MODEL and info.lora_rank == 3
    base = wait(world.service.create_sampling_client(base_model=MODEL))
    expected = wait(base.compute_logprobs(types.ModelInput.from_ints(IDS)))[1:]
    np.testing.assert_allclose(read_logprobs(one), expected, atol=1e-4)  # a fresh adapter changes nothing
    partly = wait(world.service.create_lora_training_client(MODEL, rank=3, train_mlp=False, train_unembed=False))
    learn(partly)
    assert np.abs(read_logprobs(partly) - expected).max() > 1e-3


@covers(
    "ServiceClient.create_training_client_from_state", "ServiceClient.create_training_client_from_state_with_optimizer"
)
def check_from_state(world: World, call: Caller, method: str) -> None:
    client = world.fresh()
    learn(client, 2)
    path = wait(client.save_state(f"origin-{time.time_ns()}")).path
    other = call(world.service, method.partition(".")[2], path)
    np.testing.assert_allclose(read_logprobs(other), read_logprobs(client), atol=1e-6)
    learn(client), learn(other)
    difference = np.abs(read_logprobs(other) - read_logprobs(client)).max()
    assert (difference < 1e-5) == method.endswith("with_optimizer"), difference


@covers("ServiceClient.create_sampling_client")
def check_sampler(world: World, call: Caller) -> None:
    path = wait(world.trainer.save_weights_for_sampler(f"s-{time.time_ns()}")).path
    for given in ({"model_path": path}, {"base_model": MODEL}):
        sampler = call(world.service, "create_sampling_client", **given)
        params = types.SamplingParams(max_tokens=4, seed=1)
        found = wait(sampler.sample(types.ModelInput.from_ints(IDS), 1, params))
        assert 1 <= len(found.sequences[0].tokens) <= 4


@covers("ServiceClient.create_rest_client")
def check_rest(world: World, call: Caller) -> None:
    assert isinstance(world.service.create_rest_client(), type(world.rest))


@covers("ServiceClient.get_console_url", "TrainingClient.get_console_url")
def check_url(world: World, call: Caller, method: str) -> None:
    client = world.service if method.startswith("Service") else world.trainer
    assert client.get_console_url().startswith("http")


@covers(
    "ServiceClient.holder", "ServiceClient.get_telemetry", "TrainingClient.get_telemetry", "RestClient.get_telemetry"
)
def check_local(world: World, call: Caller, method: str) -> None:
    client = {"S": world.service, "T": world.trainer, "R": world.rest}[method[0]]
    found = getattr(client, method.partition(".")[2])
    if callable(found):
        found()


@covers("ServiceClient.copy_weights", "RestClient.copy_weights")
def check_copy(world: World, call: Caller, method: str) -> None:
    client = world.fresh()
    learn(client)
    path = wait(client.save_state(f"c-{time.time_ns()}")).path
    owner = world.service if method.startswith("Service") else world.rest
    os.environ["TINKER_PROJECT_ID"] = "mine"  # which the SDK asks for
    copied = call(owner, "copy_weights", path)
    assert copied != path and copied.startswith("tinker://")
    other = world.fresh(seed=9)
    wait(other.load_state(copied))
    np.testing.assert_allclose(read_logprobs(other), read_logprobs(client), atol=1e-6)


@covers("ServiceClient.create_custom_loss")
def check_handle_of_loss(world: World, call: Caller) -> None:
    def total(logprobs: Any) -> Any:
        loss = -logprobs.sum()
        return loss, {"custom/total:sum": loss}

    handle = call(world.service, "create_custom_loss", total, {"logprobs": 1})
    one, other = world.fresh(), world.fresh()
    wait(one.forward_backward_custom([make_datum()], handle))
    wait(other.forward_backward([make_datum()], "cross_entropy"))
    for client in (one, other):
        wait(client.optim_step(types.AdamParams(learning_rate=0.05)))
    np.testing.assert_allclose(read_logprobs(one), read_logprobs(other), atol=1e-5)


@covers("ServiceClient.close")
def check_close(world: World, call: Caller) -> None:
    service = tinker.ServiceClient(base_url=ADDRESS, api_key="tml-local")
    wait(service.create_lora_training_client(MODEL, rank=2))
    wait(service.close("success"))


# --- Training ---


def expected_losses() -> dict[str, tuple[dict[str, list[float]], Callable[..., float], dict[str, float]]]:
    """Inputs, the documentation's formula, and the settings of each loss; in float64."""
    n = len(IDS) - 1
    old = list(np.linspace(-7.0, -4.0, n))
    gains = list(np.linspace(-1.0, 1.5, n))
    weights = list(np.linspace(0.2, 1.0, n))
    ratio = lambda p: np.exp(p - np.array(old))
    return {
        "cross_entropy": ({"weights": weights}, lambda p: -(p * weights).sum(), {}),
        "importance_sampling": (
            {"logprobs": old, "advantages": gains},
            lambda p: -(ratio(p) * gains).sum(),
            {},
        ),
        "ppo": (
            {"logprobs": old, "advantages": gains},
            lambda p: -np.minimum(ratio(p) * gains, np.clip(ratio(p), 0.9, 1.1) * gains).sum(),
            {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
        ),
        "cispo": (
            {"logprobs": old, "advantages": gains},
            lambda p: -(np.clip(ratio(p), 0.8, 1.2) * p * gains).sum(),
            {},
        ),
        "dro": (
            {"logprobs": old, "advantages": gains},
            lambda p: -(p * gains - 0.5 * 0.1 * (p - np.array(old)) ** 2).sum(),
            {"beta": 0.1},
        ),
    }


@covers("TrainingClient.forward", "TrainingClient.forward_backward")
def check_losses(world: World, call: Caller, method: str) -> None:
    client, name = world.fresh(), method.partition(".")[2]
    for loss, (inputs, formula, settings) in expected_losses().items():
        output = call(client, name, [make_datum(**inputs)], loss, settings or None)
        logprobs = np.array(output.loss_fn_outputs[0]["logprobs"].to_numpy(), np.float64)
        np.testing.assert_allclose(logprobs, read_logprobs(client), atol=1e-5)
        np.testing.assert_allclose(output.metrics["loss:sum"], formula(logprobs), rtol=1e-5, err_msg=loss)
    before = read_logprobs(client)
    client.optim_step(types.AdamParams(learning_rate=0.05)).result()
    moved = np.abs(read_logprobs(client) - before).max()
    assert (moved > 1e-3) == (name == "forward_backward"), moved  # forward leaves no gradient


@covers("TrainingClient.forward_backward_custom")
def check_custom(world: World, call: Caller) -> None:
    one, other = world.fresh(), world.fresh()

    def loss(data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        total = -sum(values.sum() for values in logprobs)
        return total, {"mine": float(total)}

    output = call(one, "forward_backward_custom", [make_datum()], loss)
    wait(other.forward_backward([make_datum()], "cross_entropy"))
    for client in (one, other):
        wait(client.optim_step(types.AdamParams(learning_rate=0.05)))
    np.testing.assert_allclose(read_logprobs(one), read_logprobs(other), atol=1e-5)
    assert "mine" in output.metrics


@covers("TrainingClient.optim_step")
def check_update(world: World, call: Caller) -> None:
    client = world.fresh()
    before = read_logprobs(client)
    wait(client.forward_backward([make_datum()], "cross_entropy"))
    told = call(client, "optim_step", types.AdamParams(learning_rate=0.05))
    assert read_logprobs(client).sum() > before.sum() + 0.1 and told.metrics["grad_norm"] > 0


@covers("TrainingClient.save_state", "TrainingClient.load_state", "TrainingClient.load_state_with_optimizer")
def check_state(world: World, call: Caller, method: str) -> None:
    own = lambda name: call if method.endswith(f".{name}") else Caller(False)
    client, files = world.fresh(), stored_names()
    learn(client, 2)
    saved = own("save_state")(client, "save_state", f"w-{time.time_ns()}")
    assert stored_names() > files and saved.path.startswith("tinker://")
    known = read_logprobs(client)
    learn(client, 2)
    ahead = read_logprobs(client)
    name = "load_state_with_optimizer" if method.endswith("optimizer") else "load_state"
    own(name)(client, name, saved.path)
    np.testing.assert_allclose(read_logprobs(client), known, atol=1e-6)
    learn(client, 2)
    difference = np.abs(read_logprobs(client) - ahead).max()
    assert (difference < 1e-4) == (name == "load_state_with_optimizer"), difference


@covers(
    "TrainingClient.save_weights_for_sampler",
    "TrainingClient.create_sampling_client",
    "TrainingClient.save_weights_and_get_sampling_client",
)
def check_sampled_weights(world: World, call: Caller, method: str) -> None:
    client = world.fresh()
    learn(client, 2)
    if method.endswith("and_get_sampling_client"):
        sampler = call(client, "save_weights_and_get_sampling_client")
    else:
        save, create = (call, Caller(False)) if method.endswith("for_sampler") else (Caller(False), call)
        path = save(client, "save_weights_for_sampler", f"p-{time.time_ns()}").path
        sampler = create(client, "create_sampling_client", path)
    found = wait(sampler.compute_logprobs(types.ModelInput.from_ints(IDS)))
    np.testing.assert_allclose(found[1:], read_logprobs(client), atol=1e-4)
    learn(client)  # a snapshot stays
    np.testing.assert_allclose(
        wait(sampler.compute_logprobs(types.ModelInput.from_ints(IDS)))[1:], found[1:], atol=1e-6
    )


@covers("TrainingClient.save_weights_external")
def check_external(world: World, call: Caller) -> None:
    call(world.fresh(), "save_weights_external", "x")


@covers("TrainingClient.get_info")
def check_info(world: World, call: Caller) -> None:
    info = call(world.trainer, "get_info")
    assert info.model_data.model_name == MODEL and info.lora_rank == 4 and info.is_lora


@covers("TrainingClient.get_tokenizer", "SamplingClient.get_tokenizer")
def check_tokenizer(world: World, call: Caller, method: str) -> None:
    sampler = wait(world.service.create_sampling_client(base_model=MODEL))
    tokenizer = (world.trainer if method.startswith("Training") else sampler).get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("once upon", add_special_tokens=False)) == "once upon"


# --- Sampling ---


@covers("SamplingClient.create")
def check_sampler_create(world: World, call: Caller) -> None:
    create = type(wait(world.service.create_sampling_client(base_model=MODEL))).create
    sampler = wait(create(world.service.holder, base_model=MODEL))
    assert sampler.get_base_model() == MODEL


@covers("SamplingClient.sample")
def check_sample(world: World, call: Caller) -> None:
    client = world.fresh()
    learn(client, 3, rate=0.1)
    sampler = wait(client.save_weights_and_get_sampling_client())
    prompt, params = types.ModelInput.from_ints(IDS[:4]), types.SamplingParams(max_tokens=4, temperature=0.0)
    options = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 2, "topk_sample_logprobs": 2}
    found = call(sampler, "sample", prompt, 2, params, **options)
    first = found.sequences[0]
    assert len(found.sequences) == 2 and first.tokens == found.sequences[1].tokens  # greedy
    whole = [*IDS[:4], *first.tokens]
    expected = read_logprobs(client, whole)
    np.testing.assert_allclose(first.logprobs, expected[3:], atol=1e-4)
    np.testing.assert_allclose(found.prompt_logprobs[1:], expected[:3], atol=1e-4)
    assert len(found.topk_prompt_logprobs) == 4 and found.topk_prompt_logprobs[1][0][1] >= expected[0] - 1e-4
    warm = lambda seed: call(
        sampler, "sample", prompt, 1, types.SamplingParams(max_tokens=8, seed=seed, temperature=1.0)
    )
    assert warm(3).sequences[0].tokens == warm(3).sequences[0].tokens
    assert len({tuple(warm(seed).sequences[0].tokens) for seed in range(6)}) > 1
    stop = call(
        sampler, "sample", prompt, 1, types.SamplingParams(max_tokens=4, temperature=0.0, stop=[first.tokens[1]])
    )
    assert stop.sequences[0].tokens == first.tokens[:2] and stop.sequences[0].stop_reason == "stop"


@covers("SamplingClient.compute_logprobs")
def check_compute(world: World, call: Caller) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    found = call(sampler, "compute_logprobs", types.ModelInput.from_ints(IDS))
    assert found[0] is None
    np.testing.assert_allclose(found[1:], read_logprobs(world.trainer), atol=1e-4)


@covers("SamplingClient.get_base_model")
def check_base(world: World, call: Caller) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    assert call(sampler, "get_base_model") == MODEL


@covers("SamplingClient.get_sampler_handle", "SamplingClient.from_sampler_handle")
def check_handle(world: World, call: Caller, method: str) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    other = type(sampler).from_sampler_handle(sampler.get_sampler_handle(), api_key="tml-local")
    prompt = types.ModelInput.from_ints(IDS)
    assert wait(other.compute_logprobs(prompt)) == wait(sampler.compute_logprobs(prompt))


@covers("SamplingClient pickled")
def check_pickle(world: World, call: Caller) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    other = pickle.loads(pickle.dumps(sampler))
    prompt = types.ModelInput.from_ints(IDS)
    assert wait(other.compute_logprobs(prompt)) == wait(sampler.compute_logprobs(prompt))


@covers("SamplingClient.get_telemetry", "SamplingClient.on_queue_state_change")
def check_sampler_local(world: World, call: Caller, method: str) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    if method.endswith("telemetry"):
        sampler.get_telemetry()
    else:
        from tinker.lib.api_future_impl import QueueState

        sampler.on_queue_state_change(QueueState.ACTIVE, None)


# --- Listing ---


@dataclasses.dataclass
class Saved:
    run: str
    path: str
    id: str


def save(world: World, name: str = "") -> Saved:
    client = world.fresh()
    path = wait(client.save_state(name or f"l-{time.time_ns()}")).path
    run = path.removeprefix("tinker://").partition("/")[0]
    return Saved(run, path, path.partition("/weights/")[2] and f"weights/{path.rpartition('/')[2]}")


@covers("RestClient.get_server_capabilities")
def check_rest_capabilities(world: World, call: Caller) -> None:
    assert MODEL in [model.model_name for model in call(world.rest, "get_server_capabilities").supported_models]


@covers("RestClient.get_training_run", "RestClient.get_training_run_by_tinker_path")
def check_run(world: World, call: Caller, method: str) -> None:
    saved = save(world)
    key = saved.path if method.endswith("path") else saved.run
    run = call(world.rest, method.partition(".")[2], key)
    assert run.training_run_id == saved.run and run.base_model == MODEL and run.lora_rank == 4


@covers("RestClient.get_weights_info_by_tinker_path")
def check_weights(world: World, call: Caller) -> None:
    info = call(world.rest, "get_weights_info_by_tinker_path", save(world).path)
    assert info.base_model == MODEL and info.lora_rank == 4


@covers("RestClient.list_training_runs")
def check_runs(world: World, call: Caller) -> None:
    saved = save(world)
    found = call(world.rest, "list_training_runs", limit=200)
    assert saved.run in [run.training_run_id for run in found.training_runs]
    assert len(call(world.rest, "list_training_runs", limit=1, offset=1).training_runs) == 1


@covers("RestClient.list_checkpoints", "RestClient.list_user_checkpoints")
def check_checkpoints(world: World, call: Caller, method: str) -> None:
    saved = save(world)
    arguments = [saved.run] if method.endswith(".list_checkpoints") else [200]
    found = call(world.rest, method.partition(".")[2], *arguments).checkpoints
    assert saved.path in [one.tinker_path for one in found]


@covers("RestClient.delete_checkpoint", "RestClient.delete_checkpoint_from_tinker_path")
def check_delete(world: World, call: Caller, method: str) -> None:
    saved = save(world)
    arguments = [saved.path] if method.endswith("path") else [saved.run, saved.id]
    call(world.rest, method.partition(".")[2], *arguments)
    assert not wait(world.rest.list_checkpoints(saved.run)).checkpoints


@covers("RestClient.set_checkpoint_ttl_from_tinker_path")
def check_ttl(world: World, call: Caller) -> None:
    saved = save(world)
    call(world.rest, "set_checkpoint_ttl_from_tinker_path", saved.path, 3600)
    (found,) = wait(world.rest.list_checkpoints(saved.run)).checkpoints
    left = found.expires_at - datetime.datetime.now(datetime.UTC)
    assert 3000 < left.total_seconds() <= 3600
    call(world.rest, "set_checkpoint_ttl_from_tinker_path", saved.path, None)
    (found,) = wait(world.rest.list_checkpoints(saved.run)).checkpoints
    assert found.expires_at is None


@covers("RestClient.list_sessions", "RestClient.get_session")
def check_sessions(world: World, call: Caller, method: str) -> None:
    saved = save(world)
    if method.endswith("list_sessions"):
        found = call(world.rest, "list_sessions", limit=100).sessions
        assert any(saved.run.startswith(one) for one in found)
    else:
        session = next(one for one in wait(world.rest.list_sessions(limit=100)).sessions if saved.run.startswith(one))
        assert saved.run in call(world.rest, "get_session", session).training_run_ids


@covers("RestClient.get_sampler")
def check_get_sampler(world: World, call: Caller) -> None:
    sampler = wait(world.trainer.save_weights_and_get_sampling_client())
    id = pickle.loads(pickle.dumps(sampler))._sampling_session_id
    assert call(world.rest, "get_sampler", id).base_model == MODEL


@covers(
    "RestClient.get_external_weights_urls",
    "RestClient.publish_checkpoint_from_tinker_path",
    "RestClient.unpublish_checkpoint_from_tinker_path",
)
def check_published(world: World, call: Caller, method: str) -> None:
    path = save(world).path
    path = path.replace("/weights/", "/external_weights/") if "external" in method else path
    call(world.rest, method.partition(".")[2], path)


@covers("RestClient.whoami", "RestClient.get_current_checkpoint_storage_usage", "RestClient.get_audit_log")
def check_account(world: World, call: Caller, method: str) -> None:
    assert call(world.rest, method.partition(".")[2]) is not None


@covers("RestClient.get_billing_usage")
def check_billing(world: World, call: Caller) -> None:
    call(world.rest, "get_billing_usage", datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2))


@covers("RestClient.assign_session_project", "RestClient.export_session_trace")
def check_session_work(world: World, call: Caller, method: str) -> None:
    session = wait(world.rest.list_sessions()).sessions[0]
    arguments = [session, "p"] if "project" in method else [session]
    call(world.rest, method.partition(".")[2], *arguments)


@covers("RestClient.search_sessions")
def check_search(world: World, call: Caller) -> None:
    call(world.rest, "search_sessions", types.SessionSearchRequest())


def run_check(world: World, method: str, function: Callable[..., None], is_async: bool) -> dict[str, str]:
    shown = f"{method}_async" if is_async else method
    takes_method = function.__code__.co_argcount == 3
    begin = time.monotonic()
    try:
        function(world, Caller(is_async), *([method] if takes_method else []))
    except AssertionError as error:
        told = {"result": "wrong", "words": str(error)[:300]}
    except Exception as error:
        is_refusal = isinstance(error, tinker.TinkerError) or "requires JWT" in str(error)  # the SDK's own
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        told = {"result": "refused" if is_refusal else "wrong", "words": words}
    else:
        told = {"result": "works", "words": ""}
    return {"method": shown, **told, "seconds": str(round(time.monotonic() - begin, 1))}


def find_client(method: str) -> Any:
    names = {"ServiceClient": tinker.ServiceClient, "TrainingClient": tinker.TrainingClient}
    names |= {"SamplingClient": tinker.SamplingClient, "RestClient": getattr(tinker, "RestClient", None)}
    return names.get(method.partition(".")[0])


def main() -> None:
    world = World()
    part = "".join(sys.argv[4:5])
    for method, function in CHECKS:
        if part not in method:
            continue
        client, name = find_client(method) or type(world.rest), method.partition(".")[2]
        for is_async in (False, True):
            if not is_async or hasattr(client, f"{name}_async"):
                print(json.dumps(run_check(world, method, function, is_async)), flush=True)
    covered = {method for method, _ in CHECKS}
    for client in (tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient, type(world.rest)):
        for name in vars(client):
            known = {name, name.removesuffix("_async")}
            if not name.startswith("_") and not covered & {f"{client.__name__}.{each}" for each in known}:
                print(
                    json.dumps({"method": f"{client.__name__}.{name}", "result": "unseen", "words": "", "seconds": "0"})
                )


if __name__ == "__main__":
    main()
