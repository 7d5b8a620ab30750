"""Memory plans of programs with symbolic sizes, and how close arenas come to what is alive."""

from __future__ import annotations

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.codegen import generate
from pyvm.errors import LoweringError
from pyvm.ir import IRModule, SymVar, call_packed, check_well_formed, evaluate
from pyvm.transform import eliminate_dead_code, kill_after_last_use, legalize, lower_shapes, plan_memory
from pyvm.transform.packing import most_alive, pack
from pyvm.vm import VirtualMachine
from tests.ir_text import build, tensor, text
from tests.memory_check import arena_bytes_of, check_plan
from tests.native_kernels import NATIVE
from tests.reference_vm import run

N, M = SymVar("n"), SymVar("m")
F32 = np.float32


def plan(module):
    return check_well_formed(plan_memory(check_well_formed(eliminate_dead_code(legalize(module)))))


def test_sizes_that_grow_with_one_product_lie_in_an_arena_that_grows_with_it() -> None:
    def body(bb, x):
        for i in range(4):
            x = bb.emit(op.matmul(x, np.eye(16, dtype=F32)), f"y{i}")
        return bb.emit(op.reduce_sum(x), "total")

    planned = plan(build(body, x=tensor(N, 16)))
    lines = [line.strip().split(" = ")[1] for line in text(planned).splitlines() if "alloc_" in line]
    assert lines[0].startswith('extern("vm.builtin.alloc_storage")(shape(128*n,), 0, dtype("uint8")')
    offsets = [line.split("(arena, ")[1].split(",")[0] for line in lines if "(arena" in line]
    assert offsets == ["0", "dim(64*n)", "0", "dim(64*n)"]
    assert planned["main"].attrs["arena_bytes"] == "128*n bytes"
    for n in (0, 1, 2, 7, 64):
        assert check_plan(planned["main"], {"n": n}) == 5


def test_sizes_of_several_kinds_are_placed_when_the_function_runs() -> None:
    def body(bb, x):
        y = bb.emit(op.matmul(x, np.eye(3, dtype=F32)), "y")
        z = bb.emit(op.exp(bb.emit(op.matmul(y, bb.emit(op.transpose(x))))), "z")
        return bb.emit(op.add(bb.emit(op.reduce_sum(z)), bb.emit(op.reduce_sum(y))), "total")

    module = build(body, x=tensor(N, 3))
    planned = plan(module)
    assert text(planned).count("plan_arena") == 1
    assert planned["main"].attrs["arena_bytes"] == "planned at run time"
    for n in (0, 1, 2, 7, 64):
        assert check_plan(planned["main"], {"n": n}) > 3
    machine = VirtualMachine(generate(kill_after_last_use(lower_shapes(planned))))
    for n in (0, 1, 2, 7, 64):
        x = np.random.default_rng(n).random((n, 3), dtype=F32)
        np.testing.assert_allclose(machine["main"](x).numpy(), np.exp(x @ x.T).sum() + x.sum(), rtol=1e-4)


def test_what_only_a_branch_needs_is_allocated_there() -> None:
    def body(bb, x, c):
        y = bb.emit(op.matmul(x, np.eye(4, dtype=F32)), "y")
        y = bb.emit(op.matmul(y, np.eye(4, dtype=F32)), "y1")

        def square():
            s = bb.emit(op.matmul(y, bb.emit(op.transpose(y))), "s")
            s = bb.emit(op.matmul(s, s), "s1")
            return bb.emit(op.reduce_sum(s, axes=(1,), keepdims=True))

        def plain():
            t = bb.emit(op.matmul(y, np.eye(4, dtype=F32)), "t")
            return bb.emit(op.reduce_sum(t, axes=(1,), keepdims=True))

        return bb.emit(op.add(bb.emit_if(c, square, plain), y))

    planned = plan(build(body, dataflow=False, x=tensor(N, 4), c=tensor(dtype="bool")))
    lines = text(planned).splitlines()
    storages = [line for line in lines if "alloc_storage" in line]
    depth = [len(line) - len(line.lstrip()) for line in storages]
    in_branch = [line for line, indent in zip(storages, depth, strict=True) if indent > min(depth)]
    assert len(in_branch) == 1 and "arena=True" not in in_branch[0]  # for s and s1
    tensors = [line.split(" = ") for line in lines if "builtin.alloc_tensor" in line]
    placed = {name.strip(): call.split('alloc_tensor")(')[1].split(",")[0] for name, call in tensors}
    assert placed["t"] == placed["y"] != placed["s"]  # t is no larger than y, which every path needs
    for n in (0, 1, 5, 40):
        check_plan(planned["main"], {"n": n})


def test_sizes_known_after_a_match_cast() -> None:
    def body(bb, x):
        found = bb.emit(call_packed("user.nonzero", x))
        m = bb.match_cast(found, tensor(M, 16), "m")
        for i in range(3):
            m = bb.emit(op.matmul(m, np.eye(16, dtype=F32)), f"y{i}")
        return bb.emit(op.reduce_sum(m), "total")

    planned = plan(build(body, dataflow=False, x=tensor(N, 16)))
    lines = text(planned).splitlines()
    (at,) = (i for i, line in enumerate(lines) if "shape(128*m,)" in line)
    assert "match_cast" in lines[at - 1]
    for m in (0, 1, 9):
        check_plan(planned["main"], {"n": 3, "m": m})


def test_upper_bounds_make_an_arena_of_fixed_size() -> None:
    def body(bb, x):
        y = bb.emit(op.matmul(x, np.eye(3, dtype=F32)), "y")
        z = bb.emit(op.matmul(y, bb.emit(op.transpose(x))), "z")
        return bb.emit(op.add(bb.emit(op.reduce_sum(z)), bb.emit(op.reduce_sum(y))), "total")

    module = build(body, x=tensor(N, 3))
    module = IRModule(module.functions, {"upper_bounds": (("n", 8),)})
    planned = plan(module)
    assert planned["main"].attrs["arena_bytes"] == arena_bytes_of(planned["main"]) >= 8 * 8 * 4
    for n in (0, 1, 8):
        check_plan(planned["main"], {"n": n})
    executable = pyvm.compile(build(body, x=tensor(N, 3)), bounds={"n": 8})
    assert f"arena of @main: {executable.arenas()['main']} bytes" in executable.stats()
    machine = VirtualMachine(executable)
    for n in (0, 3, 8):
        x = np.random.default_rng(n).random((n, 3), dtype=F32)
        np.testing.assert_allclose(machine["main"](x).numpy(), (x @ x.T).sum() + x.sum(), rtol=1e-4)
    with pytest.raises(pyvm.errors.ShapeMismatchError, match=r"fn=main.*param=x.*n is 9, above .* bound of 8"):
        machine["main"](np.zeros((9, 3), F32))
    with pytest.raises(ValueError, match="n is 9"):
        run(executable, "main", [np.zeros((9, 3), F32)], NATIVE)
    for bounds, message in (({"k": 3}, "no symbolic dimension is called 'k'; there are: n"), ({"n": 0}, "n=0")):
        with pytest.raises(pyvm.errors.CompileError, match=message):
            pyvm.compile(build(body, x=tensor(N, 3)), bounds=bounds)
    with pytest.raises(LoweringError, match="expected .name, number. pairs"):
        plan(IRModule(module.functions, {"upper_bounds": 7}))


def test_plans_made_at_run_time_come_close_to_what_is_alive() -> None:
    """Blocks of attention: sizes grow with n and with its square, and which is larger depends on n."""

    def body(bb, x):
        for _ in range(3):
            q, k, v = (bb.emit(op.matmul(x, np.eye(32, dtype=F32))) for _ in range(3))
            scores = bb.emit(op.softmax(bb.emit(op.matmul(q, bb.emit(op.transpose(k)))), axis=1))
            x = bb.emit(op.add(bb.emit(op.matmul(scores, v)), x))
            wide = bb.emit(op.relu(bb.emit(op.matmul(x, np.ones((32, 128), F32)))))
            x = bb.emit(op.add(bb.emit(op.matmul(wide, np.ones((128, 32), F32))), x))
        return bb.emit(op.reduce_sum(x))

    planned = plan(build(body, x=tensor(N, 32)))
    (call,) = (b.value for b in planned["main"].body.bindings() if "plan_arena" in str(getattr(b.value, "op", "")))
    table = call.args[0].values
    place = pyvm.get_global_func("pyvm.builtin.plan_arena")
    for n in (0, 1, 2, 7, 16, 33, 64, 100, 128, 200, 500, 1000):
        check_plan(planned["main"], {"n": n})
        sizes = [evaluate(size.value, {"n": n}) for size in call.args[1:]]
        total = place(pyvm.Shape(table), *sizes)[0]
        alive = most_alive(table[::3], table[1::3], [sizes[which] for which in table[2::3]])
        assert alive <= total <= 1.15 * alive + 64 * len(table) // 3


def test_compiled_arenas_of_random_lives_come_close_to_what_is_alive() -> None:
    rng = np.random.default_rng(3)
    for n in (10, 50, 200):
        begins = np.sort(rng.integers(0, n, n)).tolist()
        ends = [b + int(rng.integers(0, 10)) for b in begins]
        sizes = (rng.integers(1, 100, n) * 64).tolist()
        assert pack(begins, ends, sizes)[1] <= 1.15 * most_alive(begins, ends, sizes)
