"""Bytes moved by small programs, compiled for a real TPU target, against figures by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_jax.compilation.hlo import Shape, arrays, parse
from omni_jax.compilation.targets import parse_target
from omni_jax.compilation.toolchain import CompilerError, check_compiler, environment
from omni_jax.compilation.traffic import loop_traffic, traffic

WEIGHTS = 4096 * 4096 * 2  # bytes


@pytest.fixture(scope="module")
def programs():
    target = parse_target("v5e-4")
    try:
        check_compiler(target)
    except CompilerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    script = Path(__file__).parent / "tpu_programs.py"
    done = subprocess.run([sys.executable, str(script)], env=environment(target), capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("PROGRAMS ")]
    assert found, done.stderr[-2000:]
    return {name: parse(text) for name, text in json.loads(found[-1].removeprefix("PROGRAMS ")).items()}


def close(value, expected, more=0.01):
    return expected <= value <= expected * (1 + more)


def test_a_scan_reads_each_weight_of_its_stack_once(programs):
    moved = traffic(programs["scanned_stack"])
    assert close(moved.hbm, 6 * WEIGHTS)
    assert moved.guessed == []  # the compiler's loop has a known length


def test_weights_in_int8_count_half(programs):
    assert close(traffic(programs["scanned_int8"]).hbm, 6 * WEIGHTS / 2)


def test_a_decoding_loop_reads_the_weights_and_writes_one_slot_a_step(programs):
    step = loop_traffic(programs["decoding"])
    assert close(step.hbm, WEIGHTS + 8 * 4096 * 2)
    assert step.host_transfers == 0


def test_a_loop_of_unknown_length_runs_as_often_as_the_caller_says_and_is_reported(programs):
    once, often = (traffic(programs["decoding"], unknown_trips=n) for n in (1, 1000))
    assert len(often.guessed) == 1
    assert close(often.hbm - once.hbm, 999 * (WEIGHTS + 8 * 4096 * 2))


def test_a_sum_over_devices_counts_what_each_puts_in(programs):
    moved = traffic(programs["summed"], devices=4)
    part = 8 * 4096 * 128 * 4
    assert moved.collectives == {"all-reduce": part}
    assert moved.wire == 2 * part * 3 / 4  # a ring sends every part round twice, but for its own


def test_a_gather_over_devices_counts_its_result(programs):
    moved = traffic(programs["gathered"], devices=4)
    assert moved.collectives == {"all-gather": 4 * 8 * 4096 * 128 * 4}


def test_a_slice_of_a_large_array_is_read_alone(programs):
    assert close(traffic(programs["picked"]).hbm, 2 * WEIGHTS)


def test_a_kernel_moves_its_operands_or_what_its_estimate_says(programs):
    whole, part = (65536 + 256) * 1024 * 2, 2 * 256 * 1024 * 2
    assert close(traffic(programs["kernel"]).hbm, whole)
    assert close(traffic(programs["kernel_with_cost"]).hbm, part)
    assert traffic(programs["kernel"], kernels={"first_rows": lambda inputs, results: 5}).hbm == 5
    assert close(traffic(programs["kernel"], kernels={"first_rows": lambda inputs, results: None}).hbm, whole)


def test_the_largest_moves_are_named_with_the_operation_they_came_from(programs):
    move = traffic(programs["scanned_stack"]).moves[0]
    assert "dot_general" in move.source
    assert move.times == 6


HOST = """HloModule m
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %token = token[] after-all()
  %out = token[] outfeed(%p, %token)
  %back = f32[8]{0:S(5)} copy(%p)
  %call = f32[8]{0} custom-call(%p), custom_call_target="xla_python_cpu_callback"
  %mine = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"
  ROOT %sum = f32[8]{0} add(%call, %mine)
}
"""


def test_everything_that_reaches_the_host_is_counted():
    assert traffic(parse(HOST)).host_transfers == 3


LOOP = """HloModule m
%body (s: (s32[], f32[1024])) -> (s32[], f32[1024]) {{
  %s = (s32[], f32[1024]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[1024]{{0}} get-tuple-element(%s), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %y = f32[1024]{{0}} negate(%x)
  ROOT %t = (s32[], f32[1024]{{0}}) tuple(%next, %y)
}}
%condition (s: (s32[], f32[1024])) -> pred[] {{
  %s = (s32[], f32[1024]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %end = s32[] constant({end})
  ROOT %more = pred[] compare(%i, %end), direction={direction}
}}
ENTRY %main (x: f32[1024]) -> (s32[], f32[1024]) {{
  %x = f32[1024]{{0}} parameter(0)
  %first = s32[] constant({first})
  %t = (s32[], f32[1024]{{0}}) tuple(%first, %x)
  ROOT %w = (s32[], f32[1024]{{0}}) while(%t), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
    ("first", "end", "step", "direction", "trips"),
    [
        (0, 5, 1, "LT", 5),
        (0, 5, 2, "LT", 3),
        (1, 5, 1, "LE", 5),
        (9, 0, -3, "GT", 3),
        (9, 0, -3, "GE", 4),
        (0, 6, 2, "NE", 3),
        (7, 5, 1, "LT", 0),
    ],
)
def test_the_length_of_a_loop_follows_from_its_counter(first, end, step, direction, trips):
    module = parse(LOOP.format(first=first, end=end, step=step, direction=direction))
    moved = traffic(module, unknown_trips=1000)
    assert moved.guessed == []
    copied = sum(move.total for move in moved.moves if move.opcode == "negate")
    assert copied == trips * 2 * 4096


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[3584]{0:T(1024)(128)(2,1)}", 2 * 4096),
        ("bf16[28,4,128]{2,1,0:T(8,128)(2,1)}", 2 * 28 * 8 * 128),
        ("f32[100,10]{0,1:T(8,128)}", 4 * 16 * 128),
        ("f32[100,10]{1,0}", 4000),
        ("pred[7]{0}", 7),
        ("f8e4m3fn[16]{0}", 16),
        ("s4[16]{0}", 8),
        ("f32[]", 4),
    ],
)
def test_the_size_of_an_array_has_the_padding_to_whole_tiles(text, size):
    module = parse(f"HloModule m\nENTRY %main (p: f32[]) -> f32[] {{\n  ROOT %p = {text} parameter(0)\n}}\n")
    (shape,) = arrays(module.main.root.type)
    assert isinstance(shape, Shape)
    assert shape.bytes == size


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_f {}")


# How XLA's TPU compiler writes a gather that goes on while a matrix product runs: it stands in three fusions.
CHAIN = """HloModule m
%start (p: bf16[64,128]) -> (bf16[64,128], bf16[256,128]) {
  %p = bf16[64,128]{1,0} parameter(0)
  %g = bf16[256,128]{1,0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}
%meanwhile (p: bf16[64,128], q: bf16[256,128], x: bf16[128,128]) -> (bf16[128,128], bf16[64,128], bf16[256,128]) {
  %p = bf16[64,128]{1,0} parameter(0)
  %q = bf16[256,128]{1,0} parameter(1)
  %x = bf16[128,128]{1,0} parameter(2)
  %y = bf16[128,128]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g = bf16[256,128]{1,0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %t = (bf16[128,128]{1,0}, bf16[64,128]{1,0}, bf16[256,128]{1,0}) tuple(%y, %p, %q)
}
%done (p: bf16[64,128], q: bf16[256,128]) -> bf16[256,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %q = bf16[256,128]{1,0} parameter(1)
  %g = bf16[256,128]{1,0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %c = bf16[256,128]{1,0} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}
ENTRY %main (p: bf16[64,128], x: bf16[128,128]) -> bf16[256,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %x = bf16[128,128]{1,0} parameter(1)
  %async-collective-start.1 = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) fusion(%p), kind=kCustom, calls=%start
  %a = bf16[64,128]{1,0} get-tuple-element(%async-collective-start.1), index=0
  %b = bf16[256,128]{1,0} get-tuple-element(%async-collective-start.1), index=1
  %f = (bf16[128,128]{1,0}, bf16[64,128]{1,0}, bf16[256,128]{1,0}) fusion(%a, %b, %x), kind=kOutput, calls=%meanwhile
  %c = bf16[64,128]{1,0} get-tuple-element(%f), index=1
  %d = bf16[256,128]{1,0} get-tuple-element(%f), index=2
  ROOT %async-collective-done.1 = bf16[256,128]{1,0} fusion(%c, %d), kind=kCustom, calls=%done
}
"""


def test_a_collective_that_runs_beside_other_work_happens_once():
    moved = traffic(parse(CHAIN))
    part, whole, product = 64 * 128 * 2, 256 * 128 * 2, 2 * 128 * 128 * 2
    assert moved.collectives == {"all-gather": whole}
    assert moved.hbm == part + whole + product
