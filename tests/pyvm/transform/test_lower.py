"""Passes from operators to instructions: text before and after."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm import op
from pyvm.errors import LoweringError
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    PrimValue,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    call_dps_packed,
    call_packed,
    check_well_formed,
)
from pyvm.transform import (
    LOWER,
    eliminate_dead_code,
    kill_after_last_use,
    legalize,
    lower_shapes,
    plan_memory,
    run_passes,
)
from pyvm.transform.packing import best_fit, pack
from tests.ir_text import build, expect, tensor, text
from tests.memory_check import arena_bytes_of, check_plan

N, M = SymVar("n"), SymVar("m")
F32 = np.float32


# --- legalize


def test_legalize_makes_destination_passing_calls() -> None:
    def body(bb, x):
        y = bb.emit(op.add(x, F32(1)), "y")
        flat = bb.emit(op.reshape(y, (4 * N,)), "flat")
        return bb.emit(op.gemm(y, np.ones((4, 3), F32), alpha=0.5), "z"), flat

    module = build(lambda bb, x: bb.emit(Tuple(body(bb, x)), "t"), x=tensor(N, 4))
    expect(
        check_well_formed(eliminate_dead_code(legalize(module))),
        """
        def main:
            y = extern("pyvm.intrinsic.alloc_tensor")(shape(n, 4), dtype("float32"))
            _ = extern("kernel.add")(x, const(1.0, float32), y, destinations=1, inplace=(0,))
            flat = extern("vm.builtin.reshape")(y, shape(4*n,))
            z = extern("pyvm.intrinsic.alloc_tensor")(shape(n, 3), dtype("float32"))
            _ = extern("kernel.gemm")(y, const([1.0, 1.0, 1.0, 1.0, ...], float32, shape=(4, 3)), None, 0.5, 1.0, 0, 0, z, destinations=1)
            t = (z, flat)
            return t
        """,  # noqa: E501
    )


def test_legalize_reads_fields_of_known_tuples_directly() -> None:
    def body(bb, x):
        both = bb.emit(op.topk(x, 2, axis=0), "both")
        values = bb.emit(TupleGetItem(both, 0), "values")
        mine = bb.emit(call_dps_packed("user.split", [values], TupleStructInfo([tensor(1), tensor(1)])), "mine")
        return bb.emit(TupleGetItem(mine, 1), "second")

    expect(
        check_well_formed(eliminate_dead_code(legalize(build(body, x=tensor(5))))),
        """
        def main:
            both_0 = extern("pyvm.intrinsic.alloc_tensor")(shape(2,), dtype("float32"))
            both_1 = extern("pyvm.intrinsic.alloc_tensor")(shape(2,), dtype("int64"))
            _ = extern("kernel.topk")(x, 2, 0, 1, 1, both_0, both_1, destinations=2)
            mine_0 = extern("pyvm.intrinsic.alloc_tensor")(shape(1,), dtype("float32"))
            mine_1 = extern("pyvm.intrinsic.alloc_tensor")(shape(1,), dtype("float32"))
            _ = extern("user.split")(both_0, mine_0, mine_1, destinations=2)
            return mine_1
        """,
    )


def test_views_that_change_nothing_go() -> None:
    def body(bb, x):
        same = bb.emit(op.reshape(x, (N, 4)), "same")
        weights = bb.emit(op.reshape(np.arange(4, dtype=F32), (2, 2)), "w")
        return bb.emit(Tuple([same, weights]), "t")

    expect(
        legalize(build(body, dataflow=False, x=tensor(N, 4))),
        """
        def main:
            t = (x, const([0.0, 1.0, 2.0, 3.0], float32, shape=(2, 2)))
            return t
        """,
    )


def test_a_result_of_unknown_shape_is_an_error() -> None:
    def body(bb, x):
        with bb.source("n7 (Custom-1)"):
            return bb.emit(call_dps_packed("user.f", [x], TensorStructInfo(None, "float32", 1)))

    with pytest.raises(LoweringError, match=r"user.f: cannot allocate .* Tensor\(ndim=1, float32\) .* n7"):
        legalize(build(body, x=tensor(N)))


# --- plan_memory


def plan(module):
    return check_well_formed(plan_memory(check_well_formed(eliminate_dead_code(legalize(module)))))


def test_static_tensors_share_one_arena() -> None:
    def body(bb, x):
        for i in range(4):
            x = bb.emit(op.matmul(x, np.eye(4, dtype=F32)), f"y{i}")
        return x

    planned = plan(build(body, x=tensor(8, 4)))
    expect(
        planned,
        """
        def main:
            arena = extern("vm.builtin.alloc_storage")(shape(256,), 0, dtype("uint8"), "global", arena=True)
            y0 = extern("vm.builtin.alloc_tensor")(arena, 0, shape(8, 4), dtype("float32"))
            _ = extern("kernel.matmul")(x, const([1.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4)), y0, destinations=1)
            y1 = extern("vm.builtin.alloc_tensor")(arena, 128, shape(8, 4), dtype("float32"))
            _ = extern("kernel.matmul")(y0, const([1.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4)), y1, destinations=1)
            y2 = extern("vm.builtin.alloc_tensor")(arena, 0, shape(8, 4), dtype("float32"))
            _ = extern("kernel.matmul")(y1, const([1.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4)), y2, destinations=1)
            storage = extern("vm.builtin.alloc_storage")(shape(8, 4), 0, dtype("float32"), "global")
            y3 = extern("vm.builtin.alloc_tensor")(storage, 0, shape(8, 4), dtype("float32"))
            _ = extern("kernel.matmul")(y2, const([1.0, 0.0, 0.0, 0.0, ...], float32, shape=(4, 4)), y3, destinations=1)
            return y3
        """,  # noqa: E501
    )
    assert planned["main"].attrs["arena_bytes"] == arena_bytes_of(planned["main"]) == 256
    assert planned["main"].attrs["tensor_bytes"] == 3 * 128
    assert check_plan(planned["main"], {}) == 4


def test_elementwise_calls_work_in_place() -> None:
    def body(bb, x):
        y = bb.emit(op.matmul(x, np.eye(4, dtype=F32)), "y")
        z = bb.emit(op.relu(y), "z")
        kept = bb.emit(op.exp(z), "kept")
        return bb.emit(op.add(bb.emit(op.neg(kept), "minus"), kept), "sum")

    planned = plan(build(body, x=tensor(16, 4)))
    calls = [line.split("extern(")[1] for line in text(planned).splitlines() if "kernel." in line]
    assert calls[1:] == [
        '"kernel.relu")(y, y, destinations=1, inplace=(0,))',
        '"kernel.exp")(y, y, destinations=1, inplace=(0,))',
        '"kernel.neg")(y, minus, destinations=1, inplace=(0,))',  # y is read again, so not here
        '"kernel.add")(minus, y, minus, destinations=1, inplace=(0, 1))',
    ]
    assert check_plan(planned["main"], {}) == 2


def test_concatenations_are_made_in_place() -> None:
    eye = np.eye(16, dtype=F32)

    def body(bb, x):
        a, b = bb.emit(op.matmul(x, eye), "a"), bb.emit(op.matmul(x, eye), "b")
        ab = bb.emit(op.concat([a, b], 0), "ab")
        c = bb.emit(op.relu(bb.emit(op.matmul(ab, eye), "c0")), "c")
        abc = bb.emit(op.concat([ab, c], 0), "abc")
        return bb.emit(op.add(bb.emit(op.reduce_sum(abc, axes=(0,))), bb.emit(op.reduce_sum(a, axes=(0,)))), "out")

    planned = plan(build(body, x=tensor(1, 16)))
    lines = [line.split("(arena, ") for line in text(planned).splitlines() if "(arena" in line]
    offsets = {line[0].split(" = ")[0].strip(): int(line[1].split(",")[0]) for line in lines}
    start = offsets["abc"]
    assert {name: offsets[name] - start for name in ("a", "b", "ab", "c0")} == {"a": 0, "b": 64, "ab": 0, "c0": 128}
    assert "concat" not in text(planned)
    check_plan(planned["main"], {})


def test_concatenations_that_need_a_copy() -> None:
    eye = np.eye(16, dtype=F32)

    def parameter(bb, x):
        return bb.emit(op.concat([x, bb.emit(op.matmul(x, eye))], 0))

    def twice(bb, x):
        y = bb.emit(op.matmul(x, eye))
        return bb.emit(op.concat([y, y], 0))

    def inner_axis(bb, x):
        rows = [bb.emit(op.matmul(bb.emit(op.concat([x, x], 0)), eye)) for _ in range(2)]
        return bb.emit(op.concat(rows, 1))

    def unaligned(bb, x):
        return bb.emit(op.concat([bb.emit(op.matmul(x, eye[:, :3])) for _ in range(2)], 1))

    def kept(bb, x):
        y = bb.emit(op.matmul(x, eye))
        return bb.emit(Tuple([y, bb.emit(op.concat([y, bb.emit(op.exp(y))], 0))]))

    for body, n_copies in ((parameter, 1), (twice, 1), (inner_axis, 3), (unaligned, 1), (kept, 1)):
        planned = plan(build(body, x=tensor(1, 16)))
        assert text(planned).count("kernel.concat") == n_copies, body.__name__
        check_plan(planned["main"], {})


def test_what_leaves_the_function_has_its_own_storage() -> None:
    def body(bb, x):
        a, b, c, d = (bb.emit(op.matmul(x, np.eye(4, dtype=F32) * F32(k))) for k in range(4))
        bb.emit(call_packed("user.keeps", bb.emit(op.reshape(a, (16,)))))
        pair = bb.emit(Tuple([b, x]))
        total = bb.emit(op.add(c, d))
        return bb.emit(Tuple([pair, bb.emit(op.reshape(total, (2, 8)))]))

    planned = plan(build(body, dataflow=False, x=tensor(4, 4)))
    assert text(planned).count("alloc_storage") == 4  # a, b, the sum (made in c or d), and the arena for the other
    assert planned["main"].attrs["arena_bytes"] == 64
    check_plan(planned["main"], {})


def test_branches_share_memory() -> None:
    def chain(bb, x):
        for _ in range(3):
            x = bb.emit(op.matmul(x, np.eye(4, dtype=F32)))
        return bb.emit(op.reduce_sum(x, axes=(0,)))

    def body(bb, x, c):
        r = bb.emit_if(c, lambda: chain(bb, x), lambda: chain(bb, x))
        return bb.emit(op.add(r, r))

    planned = plan(build(body, dataflow=False, x=tensor(8, 4), c=tensor(dtype="bool")))
    assert planned["main"].attrs["arena_bytes"] <= 2 * 128 + 64
    assert check_plan(planned["main"], {}) > 0


def test_a_branch_that_may_be_a_parameter_is_not_overwritten() -> None:
    def body(bb, x, c):
        y = bb.emit(op.matmul(x, np.eye(4, dtype=F32)), "y")
        r = bb.emit_if(c, lambda: y, lambda: x, "r")
        return bb.emit(op.relu(r), "z")

    planned = plan(build(body, dataflow=False, x=tensor(8, 4), c=tensor(dtype="bool")))
    assert '"kernel.relu")(r, z, ' in text(planned)


def test_recursion_plans_each_call() -> None:
    bb = BlockBuilder()
    x = Var("x", tensor(4))
    itself = bb.declare("main", CallableStructInfo([x.struct_info], tensor(4)))
    with bb.function("main", [x]):
        y = bb.emit(op.exp(x), "y")
        z = bb.emit(Call(itself, [y]), "z")
        bb.emit_func_output(bb.emit(op.add(bb.emit(op.neg(z), "w"), x), "out"))
    planned = plan(bb.get())
    assert planned["main"].attrs["arena_bytes"] == 0  # y may be kept by the callee; w becomes the result in place
    check_plan(planned["main"], {})


@pytest.mark.parametrize("place", [best_fit, pack])
def test_placement_never_overlaps(place) -> None:
    rng = np.random.default_rng(5)
    for n in (1, 7, 60):
        begins = np.sort(rng.integers(0, 3 * n, n)).tolist()
        ends = [b + int(rng.integers(0, 12)) for b in begins]
        sizes = (rng.integers(1, 9, n) * 64).tolist()
        offsets, total = place(begins, ends, sizes)
        assert total == max(o + s for o, s in zip(offsets, sizes, strict=True))
        assert total <= sum(sizes)
        buffers = list(zip(begins, ends, sizes, strict=True))
        assert total >= max(sum(s for b, e, s in buffers if b <= t <= e) for t in range(4 * n + 12))
        for i in range(n):
            for j in range(i):
                apart_in_time = ends[j] < begins[i] or ends[i] < begins[j]
                apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
                assert apart_in_time or apart


def test_the_memory_check_finds_a_broken_plan() -> None:
    def body(bb, x):
        a = bb.emit(op.matmul(x, np.eye(4, dtype=F32)))
        b = bb.emit(op.matmul(a, np.eye(4, dtype=F32)))
        return bb.emit(op.concat([a, b], 1))

    planned = plan(build(body, x=tensor(8, 4)))
    check_plan(planned["main"], {})
    for binding in planned["main"].body.bindings():
        if isinstance(binding.value, Call) and binding.value.op.name == "vm.builtin.alloc_tensor":
            binding.value.args[1].value = 0
    with pytest.raises(AssertionError, match="is read later|reads"):
        check_plan(planned["main"], {})


# --- lower_shapes


def test_symbols_become_slots() -> None:
    def body(bb, x, s, k, pair):
        m = bb.match_cast(bb.emit(call_packed("user.f", x)), tensor(M, 2 * N), "m")
        first = bb.emit(call_packed("user.g", ShapeExpr((N, M + 1, 3)), PrimValue(N // 2)), "first")
        second = bb.emit(call_packed("user.g", ShapeExpr((N, M + 1, 3)), PrimValue(7)), "second")
        return bb.emit(Tuple([m, first, second]), "t")

    module = build(
        body,
        dataflow=False,
        x=tensor(N, 4),
        s=ShapeStructInfo((2 * N, M)),
        k=PrimStructInfo("int64", SymVar("k")),
        pair=TupleStructInfo([tensor(N), ObjectStructInfo()]),
    )
    lowered = check_well_formed(lower_shapes(module))
    expect(
        lowered,
        """
        def main:
            shape_heap = extern("vm.builtin.alloc_shape_heap")(6)
            _ = extern("vm.builtin.check_tensor_info")(x, 2, dtype("float32"), ctx)
            _ = extern("vm.builtin.match_shape")(x, shape_heap, 2, 1, 0, 0, 4, ctx)
            _ = extern("vm.builtin.check_shape_info")(s, 2, ctx)
            _ = extern("vm.builtin.match_shape")(s, shape_heap, 2, 2, 0, 1, 1, ctx)
            _ = extern("vm.builtin.check_prim_value_info")(k, dtype("int64"), ctx)
            _ = extern("vm.builtin.match_prim_value")(k, shape_heap, 1, 2, ctx)
            _ = extern("vm.builtin.check_tuple_info")(pair, 2, ctx)
            field = extern("vm.builtin.tuple_getitem")(pair, 0)
            _ = extern("vm.builtin.check_tensor_info")(field, 1, dtype("float32"), ctx)
            _ = extern("vm.builtin.match_shape")(field, shape_heap, 1, 3, 0, ctx)
            _ = extern("pyvm.builtin.eval_shape_expr")(shape_heap, 3, shape(1, 0, 0, 2, 4, 0))
            _ = extern("vm.builtin.match_shape")(s, shape_heap, 2, 3, 3, 2, 0, ctx)
            gv = extern("user.f")(x)
            _ = extern("vm.builtin.check_tensor_info")(gv, 2, dtype("float32"), ctx)
            _ = extern("vm.builtin.match_shape")(gv, shape_heap, 2, 3, 1, 2, 0, ctx)
            _ = extern("vm.builtin.match_shape")(gv, shape_heap, 2, 2, 0, 3, 3, ctx)
            _ = extern("pyvm.builtin.eval_shape_expr")(shape_heap, 4, shape(1, 1, 0, 1, 2, 0))
            shape = extern("vm.builtin.make_shape")(shape_heap, 3, 1, 0, 1, 4, 0, 3)
            _ = extern("pyvm.builtin.eval_shape_expr")(shape_heap, 5, shape(1, 0, 0, 2, 5, 0))
            dim = extern("vm.builtin.make_prim_value")(shape_heap, 1, 5)
            first = extern("user.g")(shape, dim)
            second = extern("user.g")(shape, 7)
            t = (gv, first, second)
            return t
        """,
    )
    assert "fn=main, loc=param[0], param=x, annotation=Tensor((n, 4), float32)) " in str(lowered)


def test_sizes_of_a_branch_are_not_known_after_it() -> None:
    def body(bb, x, c):
        bb.emit_if(c, lambda: bb.emit(call_packed("f", ShapeExpr((2 * N,)))), lambda: x, "r")
        return bb.emit(call_packed("f", ShapeExpr((2 * N,))), "late")

    lowered = lower_shapes(build(body, dataflow=False, x=tensor(N), c=tensor(dtype="bool")))
    assert text(lowered).count("eval_shape_expr") == 2
    assert text(lowered).count("make_shape") == 2


def test_static_functions_have_no_heap() -> None:
    lowered = lower_shapes(build(lambda bb, x: bb.emit(call_packed("f", x), "y"), dataflow=False, x=tensor(2, 3)))
    expect(
        lowered,
        """
        def main:
            _ = extern("vm.builtin.check_tensor_info")(x, 2, dtype("float32"), ctx)
            _ = extern("vm.builtin.match_shape")(x, None, 2, 0, 2, 0, 3, ctx)
            y = extern("f")(x)
            return y
        """,
    )


def test_an_undefined_symbol_is_an_error() -> None:
    module = build(lambda bb, x: bb.emit(call_packed("f", ShapeExpr((M,)))), dataflow=False, x=tensor(N))
    with pytest.raises(LoweringError, match="@main: no parameter and no match_cast before this gives m a value"):
        lower_shapes(module)


def test_a_result_may_be_a_symbolic_shape() -> None:
    module = build(lambda bb, x: ShapeExpr((N, 2)), dataflow=False, x=tensor(N))
    expect(
        check_well_formed(lower_shapes(module)),
        """
        def main:
            shape_heap = extern("vm.builtin.alloc_shape_heap")(1)
            _ = extern("vm.builtin.check_tensor_info")(x, 1, dtype("float32"), ctx)
            _ = extern("vm.builtin.match_shape")(x, shape_heap, 1, 1, 0, ctx)
            shape = extern("vm.builtin.make_shape")(shape_heap, 2, 1, 0, 0, 2)
            return shape
        """,
    )


# --- kill_after_last_use


def test_values_die_after_their_last_use_on_every_path() -> None:
    def body(bb, x, c):
        a = bb.emit(call_packed("f", x), "a")
        b = bb.emit(call_packed("f", a), "b")
        r = bb.emit_if(c, lambda: bb.emit(call_packed("g", a), "r1"), lambda: b, "r")
        return bb.emit(call_packed("h", r), "last")

    expect(
        check_well_formed(kill_after_last_use(build(body, dataflow=False, x=tensor(2), c=tensor(dtype="bool")))),
        """
        def main:
            a = extern("f")(x)
            b = extern("f")(a)
            if c:
                _ = extern("pyvm.intrinsic.kill")(b)
                r1 = extern("g")(a)
                _ = extern("pyvm.intrinsic.kill")(a)
                r = r1
            else:
                _ = extern("pyvm.intrinsic.kill")(a)
                b__1 = b
                _ = extern("pyvm.intrinsic.kill")(b)
                r = b__1
            last = extern("h")(r)
            return last
        """,
    )


def test_views_of_the_arena_and_what_a_view_replaces_are_not_killed() -> None:
    def body(bb, x):
        y = bb.emit(op.matmul(x, np.eye(4, dtype=F32)), "y")
        return bb.emit(op.matmul(y, np.eye(4, dtype=F32)), "z")

    lowered = run_passes(build(body, x=tensor(8, 4)), LOWER, check=True)
    assert "kill" not in str(lowered)
    dynamic = run_passes(build(body, x=tensor(N, 4)), LOWER, check=True)
    assert "kill" not in str(dynamic)  # two storages, each becomes its tensor; y is let go at the return
