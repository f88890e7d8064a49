"""Settings of the fuzzers: a few fixed examples in the default tests; as many as asked for by R1JAX_FUZZ_EXAMPLES.

R1JAX_FUZZ_EXAMPLES=20000 pytest -n0 tests/fuzz -k safetensors
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from r1jax.core.errors import UserError

EXAMPLES = int(os.environ.get("R1JAX_FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 12,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# Values where another one belongs; halves of surrogate pairs among the texts.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "flip", "insert", "delete", "cut", "repeat", "number"]),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def damaged(draw, data):
    """Bytes with a few changes: single bytes, pieces, large numbers, a cut."""
    for share, kind, piece in draw(_CHANGES):
        at = int(share * len(data))
        if kind == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "flip":
            data = data[:at] + bytes(byte ^ 1 << piece[0] % 8 for byte in data[at : at + 1]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(piece) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 40] * piece[0] + data[at + 40 :]
        else:
            data = data[:at] + (b"\xff" * 8 if piece[0] % 2 else piece[:1] + b"\0" * 7) + data[at + 8 :]
    return data


@st.composite
def altered(draw, value):
    """A JSON value with a few of its parts replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        value = _alter(draw, value)
    return value


def _alter(draw, value):
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: inner for name, inner in value.items() if name != key}
        return rest if draw(st.integers(0, 5)) == 0 else {**rest, key: _alter(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _alter(draw, value[place]), *value[place + 1 :]]
    return draw(VALUES)


def read_or_refuse(read):
    """Result of `read()`, or None if it refuses in one short line; any other error is a fault."""
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:500]
        return None
