"""Packing of any completions: every token is predicted once, from its prompt and its past, or the shape is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data.packing import RowShape, pack_completions
from tests.data.test_packing import check
from tests.fuzz.budget import FUZZ

IDS = st.integers(100, 999)


@st.composite
def batches(draw):
    prefix = tuple(draw(st.lists(IDS, max_size=3)))
    prompts = [(*prefix, *ids) for ids in draw(st.lists(st.lists(IDS, min_size=1, max_size=7), min_size=1, max_size=6))]
    groups = draw(st.lists(st.integers(1, 5), min_size=len(prompts), max_size=len(prompts)))
    owners = [owner for owner, count in enumerate(groups) for _ in range(count)]
    completions = [tuple(draw(st.lists(IDS, min_size=1, max_size=5))) for _ in owners]
    skip = draw(st.none() | st.lists(st.booleans(), min_size=len(owners), max_size=len(owners)))
    return prefix, prompts, owners, completions, skip


@FUZZ
@given(batch=batches(), rows=st.integers(1, 4), share=st.booleans(), multiple=st.integers(1, 5))
def test_every_kept_token_is_a_target_once(batch, rows, share, multiple):
    prefix, prompts, owners, completions, skip = batch
    shape = RowShape(7, 5, rows, prefix=len(prefix), share_prompts=share)
    packed = pack_completions(prompts, completions, owners, shape, multiple=multiple, skip=skip)
    assert len(packed.tokens) % multiple == 0 and packed.tokens.shape[1] == shape.length
    check(prompts, completions, owners, shape, packed, [not left_out for left_out in skip or [False] * len(owners)])


@FUZZ
@given(prompt=st.integers(0, 20), completion=st.integers(0, 20))
def test_what_does_not_fit_is_refused(prompt, completion):
    pack = lambda: pack_completions([(1,) * prompt], [(2,) * completion], [0], RowShape(7, 5, 2))
    if prompt <= 7 and 0 < completion <= 5:
        assert pack().counts[1] == completion
    else:
        with pytest.raises(ValueError, match="do not fit"):
            pack()
