"""Sparse attention: selection and the indexer's loss against float64, blocks against whole rows, warm-up."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from r1jax.core.errors import UserError
from r1jax.learner.optimizer import OptimizerConfig, make_optimizer
from r1jax.learner.supervised import SupervisedConfig, make_loss, share_weights
from r1jax.models.attention import attend, mask_bias, segment_mask
from r1jax.models.families import deepseek_v3
from r1jax.models.ops.blockwise_attention import NEGATIVE, Segments, attend_blocks
from r1jax.models.ops.selection import Selection, learn
from r1jax.models.transformer import Params, merge, split
from r1jax.weights import load_pretrained
from tests.models import golden
from tests.models.toy import assert_close, tokens

B, T, N, H, HEADS, COUNT = 2, 40, 3, 8, 16, 6
CONFIG = dataclasses.replace(deepseek_v3.VARIANTS["tiny_deepseek_v32"], mtp_depths=0)
FOLDER = golden.DENSE.with_name("families") / "deepseek_v32"


def draw(prefix: int = 0) -> tuple[Selection, tuple[jax.Array, ...], jax.Array]:
    """A selection, queries, keys and values of attention, and segments of two to a row."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    before = normal(1, prefix, H) if prefix else None
    selection = Selection(normal(B, T, HEADS, H), normal(B, T, HEADS), normal(B, T, H), before, COUNT)
    segments = jnp.broadcast_to(jnp.where(jnp.arange(T) < 25, 1, 2), (B, T)).at[:, 37:].set(0)
    return selection, (normal(B, T, N, H), normal(B, N, T, H), normal(B, N, T, H)), segments


def select_plainly(selection: Selection, seen_BTS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index scores, and the mask of selected keys, in float64, query by query."""
    queries, weights, keys = (np.asarray(x, np.float64) for x in (selection.queries, selection.weights, selection.keys))
    scores = (np.maximum(np.einsum("bthd,bsd->bths", queries, keys), 0) * weights[..., None]).sum(2)
    chosen = np.zeros(seen_BTS.shape, bool)
    for b in range(B):
        for t in range(T):
            visible = np.flatnonzero(seen_BTS[b, t])
            chosen[b, t, visible[np.argsort(-scores[b, t, visible])][:COUNT]] = True
    return scores, chosen


def test_a_query_attends_to_the_visible_keys_of_the_highest_scores() -> None:
    selection, _, segments = draw()
    seen = segment_mask(segments)
    narrowed, _ = selection.narrow(mask_bias(seen), None)
    np.testing.assert_array_equal(narrowed > NEGATIVE / 2, select_plainly(selection, np.asarray(seen))[1])


def test_the_loss_is_the_divergence_of_the_heads_mean_from_the_scores() -> None:
    selection, (q, k, v), segments = draw()
    seen = segment_mask(segments)
    scores, chosen = select_plainly(selection, np.asarray(seen))
    narrowed, _ = selection.narrow(mask_bias(seen), None)
    found = learn(q, k, v, narrowed, scale=0.3, selection=selection)[..., 0, 0]

    def normalize(x: np.ndarray) -> np.ndarray:
        x = np.where(chosen, x, -np.inf)[:, :37]
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    queries, keys = np.asarray(q, np.float64), np.asarray(k, np.float64).swapaxes(2, 3)
    heads = [0.3 * queries[:, :, n] @ keys[:, n] for n in range(N)]
    p, r = np.mean([normalize(head) for head in heads], axis=0), normalize(scores)
    expected = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(r, 1e-300)), 0).sum(-1)
    np.testing.assert_allclose(found[:, :37], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 5])
def test_blocks_of_queries_give_what_whole_rows_give(prefix: int) -> None:
    selection, (q, k, v), segments = draw(prefix)
    seen = mask_bias(segment_mask(segments))
    narrowed, own = selection.narrow(seen, None)
    before: Any = None
    if prefix:
        before = {name: jax.random.normal(jax.random.key(i), (1, N, prefix, H)) for i, name in enumerate("kv")}
    whole = None if before is None else {**before, "bias": own}
    marked = Segments(segments, selection=selection)
    blocks = attend_blocks(attend, q, k, v, marked, before, scale=0.3, block=4)
    np.testing.assert_allclose(blocks[:, :37], attend(q, k, v, narrowed, whole, scale=0.3)[:, :37], atol=2e-6)
    losses = attend_blocks(learn, q, k, v, marked, before, scale=0.3, block=4, tell=True)
    expected = learn(q, k, v, narrowed, whole, scale=0.3, selection=selection)
    np.testing.assert_allclose(losses[:, :37], expected[:, :37], rtol=1e-6, atol=2e-6)


def make_gradient(params: Params, graph: Any, weight: float) -> tuple[Params, dict]:
    ids = tokens(2, 40)
    batch = {
        "tokens": ids,
        "targets": np.roll(np.asarray(ids), -1, 1),
        "positions": np.broadcast_to(np.arange(40), (2, 40)),
        "segments": np.ones((2, 40), np.int32),
        "weights": np.ones((2, 40), np.float32),
    }
    config = SupervisedConfig(mtp_weight=0.0, balance_weight=0.0, index_weight=weight)
    gradient, sums = jax.jit(jax.grad(make_loss(graph, config), has_aux=True))(params, None, *share_weights([batch]))
    return gradient, sums


def split_indexers(tree: Params) -> tuple[list, list]:
    """Leaves of indexers, and the others."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    inside = lambda path: "indexer" in jax.tree_util.keystr(path)
    return [leaf for path, leaf in flat if inside(path)], [leaf for path, leaf in flat if not inside(path)]


def test_indexers_learn_from_their_own_loss_alone() -> None:
    graph, params = split(deepseek_v3.build(CONFIG, rngs=nnx.Rngs(0), scan_layers=True))
    with_loss, sums = make_gradient(params, graph, 1.0)
    without, _ = make_gradient(params, graph, 0.0)
    (learnt, model), (still, same) = split_indexers(with_loss), split_indexers(without)
    assert all(jnp.abs(leaf).max() > 0 for leaf in learnt) and not any(leaf.any() for leaf in still)
    assert_close(model, same, 1e-6)
    assert 0 < sums["index"] < 1


def test_a_warm_up_attends_to_all_keys_and_moves_indexers_only() -> None:
    dense = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, dense=True))
    full = deepseek_v3.build(dataclasses.replace(CONFIG, index=None), rngs=nnx.Rngs(0))
    graph, params = split(deepseek_v3.build(dense, rngs=nnx.Rngs(0)))
    own = split(full)[1]
    plain = jax.tree_util.tree_map_with_path(lambda path, _: _get(params, path), own)
    ids = tokens(2, 40)
    np.testing.assert_allclose(merge(graph, params)(ids), merge(split(full)[0], plain)(ids), atol=1e-5)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, only="indexer"), 30)
    state, losses = optimizer.init(params), []
    first = params
    for _ in range(12):
        gradient, sums = make_gradient(params, graph, 1.0)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(sums["index"]))
    assert losses[-1] < 0.9 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, split_indexers(params)[1], split_indexers(first)[1])
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) > 0]
    assert sum(leaf.size for leaf in moments) < 3 * sum(leaf.size for leaf in split_indexers(params)[0])


def _get(tree: Any, path: Any) -> Any:
    for entry in path:
        tree = tree[entry.key]
    return tree


def test_a_part_that_no_parameter_is_named_by_is_refused() -> None:
    with pytest.raises(UserError, match=r"config\.optimizer\.only must be part of a parameter's name, got 'indexers'"):
        make_optimizer(OptimizerConfig(only="indexers"), 1).init({"layers": {"indexer": {"kernel": jnp.ones(3)}}})


def test_files_without_indexers_get_fresh_ones(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(FOLDER / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "indexer" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
    model, _ = load_pretrained(tmp_path, sizes={"index": {"dense": True}})
    (fresh, rest), (_, same) = split_indexers(split(model)[1]), split_indexers(split(load_pretrained(FOLDER)[0])[1])
    jax.tree.map(np.testing.assert_array_equal, rest, same)
    assert len(fresh) == 15 and all(jnp.isfinite(leaf).all() for leaf in fresh)
    assert json.loads((tmp_path / "config.json").read_text())["index_topk"] == CONFIG.index.count - 4
