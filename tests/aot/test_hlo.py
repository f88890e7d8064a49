"""HLO text read back: instructions, types, attributes with line breaks; lengths of loops from the program alone."""

import pytest

from r1jax.aot.hlo import NOTHING, Array, parse_arrays, parse_module, read_loop

TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %three = s32[] constant(3)
  %next = s32[] add(%three, %i)
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"body":"a}
"}}
  ROOT %out = (s32[], f32[8]) tuple(%next, %kernel)
}, execution_thread="sparsecore"

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%i, %bound), direction=DIRECTION
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(256)S(1)} parameter(0)
  %start = s32[] constant(2)
  %copied = s32[] copy(%start)
  %state = (s32[], f32[8]) tuple(%copied, %x)
  %loop = (s32[], f32[8]) while(%state), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def loop_count(text: str) -> int | None:
    module = parse_module(text)
    entry = module.computations[module.entry]
    (loop,) = (i for i in entry.instructions.values() if i.opcode == "while")
    return read_loop(module, entry, loop, NOTHING).length


def test_computations_and_their_instructions() -> None:
    module = parse_module(TEXT)
    assert (set(module.computations), module.entry, module.partitions) == ({"body", "condition", "main"}, "main", 4)
    body = module.computations["body"]
    assert list(body.instructions) == ["state", "i", "three", "next", "x", "kernel", "out"] and body.root == "out"
    kernel = body.instructions["kernel"]
    assert kernel.attribute("custom_call_target") == '"tpu_custom_call"'
    assert kernel.attribute("backend_config").endswith('"}') and kernel.operands == ["x"]
    assert module.computations["main"].instructions["x"].results == (Array("f32", (8,), 1),)
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_module("HloModule nothing")


def test_types() -> None:
    arrays = parse_arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(5)}, pred[], /*index=2*/s4[7]{0}, f8e4m3fn[4]{0})")
    assert [(a.shape, a.space, a.bytes) for a in arrays] == [((2, 3), 5, 12), ((), 0, 1), ((7,), 0, 4), ((4,), 0, 4)]


@pytest.mark.parametrize(
    ("direction", "bound", "count"),
    [("LT", 11, 3), ("LT", 12, 4), ("LE", 11, 4), ("LT", 2, 0), ("NE", 11, 3), ("NE", 12, None), ("GT", 0, None)],
)
def test_a_loop_is_counted_from_start_step_and_bound(direction: str, bound: int, count: int | None) -> None:
    assert loop_count(TEXT.replace("DIRECTION", direction).replace("BOUND", str(bound))) == count
