"""Random programs: what the pipeline makes of them computes what numpy computes, and no memory is shared wrongly."""

from __future__ import annotations

import contextlib
from collections import ChainMap
from collections.abc import Iterator

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyvm
from pyvm import op
from pyvm.codegen import generate
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    Expr,
    IRModule,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    Var,
    call_packed,
)
from pyvm.transform import DEFAULT_PIPELINE, legalize, run_passes
from pyvm.vm import VirtualMachine
from tests.ir_evaluator import PACKED, run_module
from tests.memory_check import check_plan
from tests.native_kernels import NATIVE
from tests.numpy_kernels import lower_onto_numpy
from tests.reference_vm import run

N = SymVar("n")
SIZES = (0, 1, 2, 7, 64)  # of n; numbers of rows where they are not symbolic: 16
HALF = "test.random_graphs.half"
UNARY = ("relu", "neg", "abs", "tanh", "sigmoid", "floor")
BINARY = ("add", "sub", "mul", "maximum", "minimum")


class Generator:
    """Draws a program. Every value is float32, (rows, 3) or (rows, 1), rows being 16 or the symbol n."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.bb = BlockBuilder()
        self.n_found = 0  # symbols that match_casts have defined

    def pick(self, values: list[Expr]) -> Expr:
        return values[self.data.draw(st.integers(0, len(values) - 1), label="operand")]

    def module(self) -> IRModule:
        rows = [16, N][self.data.draw(st.integers(0, 1), label="symbolic")]
        info = TensorStructInfo((rows, 3), "float32")
        helper_param = Var("v", info)
        with self.bb.function("helper", [helper_param]):
            self.bb.emit_func_output(self.bb.emit(op.sub(op.relu(helper_param), np.float32(1))))
        self.helper_info = CallableStructInfo([info], info)
        narrow = TensorStructInfo((rows, 1), "float32")
        params = [Var("x", info), Var("y", narrow), Var("c", TensorStructInfo((), "bool"))]
        with self.bb.function("main", params):
            values: list[Expr] = [*params[:2]]
            self.emit_some(values, params[2], depth=0)
            outs = [self.pick(values) for _ in range(self.data.draw(st.integers(1, 3), label="outputs"))]
            self.bb.emit_func_output(self.bb.emit(Tuple([values[-1], *outs])))
        return self.bb.get()

    def emit_some(self, values: list[Expr], cond: Expr, depth: int) -> None:
        for _ in range(self.data.draw(st.integers(1, 10 if depth == 0 else 4), label="length")):
            values.append(self.emit_one(values, cond, depth))

    def emit_one(self, values: list[Expr], cond: Expr, depth: int) -> Expr:
        bb, x = self.bb, self.pick(values)
        kind = self.data.draw(st.integers(0, 11 if depth < 2 else 10), label="kind")
        wide = x.struct_info.shape[1] == 3  # type: ignore[union-attr]
        if kind <= 1:
            return bb.emit(getattr(op, self.data.draw(st.sampled_from(UNARY)))(x))
        if kind <= 3:
            return bb.emit(getattr(op, self.data.draw(st.sampled_from(BINARY)))(x, self.pick(values)))
        if kind == 4:
            weights = np.arange(9, dtype=np.float32).reshape(3, 3) / 8 - 0.5
            return bb.emit(op.matmul(x, weights) if wide else op.matmul(x, weights[:1]))
        if kind == 5:
            return bb.emit(op.softmax(x, axis=1) if wide else op.reduce_max(x, axes=(1,), keepdims=True))
        if kind == 6:  # views, and back
            rows, columns = x.struct_info.shape  # type: ignore[union-attr]
            flat = bb.emit(op.reshape(x, (rows * columns,)))
            return bb.emit(op.reshape(bb.emit(op.neg(flat)) if wide else flat, (rows, columns)))
        if kind == 7 and self.data.draw(st.booleans(), label="rows"):  # may be made without a copy
            rows, columns = x.struct_info.shape  # type: ignore[union-attr]
            same = [v for v in values if v.struct_info == x.struct_info]
            both = bb.emit(op.concat([x, self.pick(same), self.pick(same)], 0))
            return bb.emit(op.reduce_max(bb.emit(op.reshape(both, (3, rows, columns))), axes=(0,)))
        if kind == 7:
            both = bb.emit(op.concat([x, self.pick(values)], 1))
            return bb.emit(op.reduce_sum(both, axes=(1,), keepdims=True))
        if kind == 8:
            if wide:
                return bb.emit(Call(bb.declare("helper", self.helper_info), [x]))
            pair = bb.emit(Tuple([x, self.pick(values)]))
            return bb.emit(TupleGetItem(pair, self.data.draw(st.integers(0, 1), label="field")))
        if kind == 9:  # memory that grows with the square of n
            square = bb.emit(op.matmul(x, bb.emit(op.transpose(x))))
            square = bb.emit(op.softmax(square, axis=1)) if self.data.draw(st.booleans(), label="soft") else square
            return bb.emit(op.matmul(square, self.pick(values)))
        if kind == 10:  # a size that only the data tell
            self.n_found += 1
            info = TensorStructInfo((SymVar(f"m{self.n_found}"), *x.struct_info.shape[1:]), "float32")  # type: ignore[union-attr]
            found = bb.match_cast(bb.emit(call_packed(HALF, x)), info)
            inner = [found]
            for _ in range(self.data.draw(st.integers(1, 3), label="inner")):
                inner.append(bb.emit(op.tanh(self.pick(inner)) if wide else op.add(self.pick(inner), self.pick(inner))))
            total = bb.emit(op.reduce_sum(self.pick(inner), axes=(0,), keepdims=True))
            return bb.emit(op.add(x, total))

        def branch() -> Expr:
            inner = list(values)
            self.emit_some(inner, cond, depth + 1)
            # Both branches must agree on the shape, so the value is as wide as x.
            same = [v for v in inner if v.struct_info == x.struct_info]
            return self.pick(same)

        return bb.emit_if(cond, branch, branch)


def is_symbolic(module: IRModule) -> bool:
    """Whether the number of rows is a symbol."""
    return module["main"].params[0].struct_info.shape[0] != 16  # type: ignore[union-attr]


def arrays_of(rows: int, flag: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 3)).astype(np.float32) / 4
    y = rng.standard_normal((rows, 1)).astype(np.float32) / 4
    return {"x": x, "y": y, "c": np.array(flag)}


@contextlib.contextmanager
def half_registered() -> Iterator[None]:
    """The function whose result only the data tell the size of."""

    def half(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(x)[: (len(x) + 1) // 2])

    PACKED[HALF] = half
    pyvm.register_func(HALF, lambda x: pyvm.tensor(half(x.numpy())), override=True)
    try:
        yield
    finally:
        del PACKED[HALF]
        pyvm.remove_global_func(HALF)


def assert_same(got: tuple[np.ndarray, ...], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-6)


def check_plans(module: IRModule, sizes: tuple[int, ...], bounded: bool) -> None:
    """Live buffers never overlap, whatever the sizes; the arena of the bounded plan holds the largest."""
    for function in module.functions.values():
        for n in sizes:
            found = {f"m{k}": (n + 1) // 2 for k in range(1, 200)}
            check_plan(function, {"n": n, **found})
        assert not bounded or isinstance(function.attrs["arena_bytes"], int)


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@settings(SETTINGS, max_examples=120)
@given(st.data())
def test_pipeline_computes_what_numpy_computes(data: st.DataObject) -> None:
    module = Generator(data).module()
    symbolic = is_symbolic(module)
    bounded = symbolic and data.draw(st.booleans(), label="bounded")
    if bounded:
        module = IRModule(module.functions, {"upper_bounds": (("n", 7), *((f"m{k}", 7) for k in range(1, 200)))})
    sizes = tuple(n for n in SIZES if n <= 7 or not bounded) if symbolic else (16,)

    def look(number: int, name: str, after: IRModule) -> None:
        if name == "plan_memory":
            check_plans(after, sizes, bounded)

    with half_registered():
        lowered, functions = lower_onto_numpy(module, after_each=look)
        executable = generate(lowered)
        executable.verify()
        for rows in (data.draw(st.sampled_from(sizes), label="rows"),):
            for flag in (False, True):
                inputs = arrays_of(rows, flag)
                got = run(executable, "main", inputs.values(), {**functions, **PACKED})
                assert_same(got, run_module(module, inputs))


@settings(SETTINGS, max_examples=40)
@given(st.data())
def test_every_pass_keeps_the_meaning(data: st.DataObject) -> None:
    """After each pass from operators to operators, the program is well-formed and numpy computes the same from it."""
    module = Generator(data).module()
    rows = data.draw(st.sampled_from(SIZES if is_symbolic(module) else (16,)), label="rows")
    inputs = arrays_of(rows, data.draw(st.booleans(), label="flag"))
    expected: list[np.ndarray] = []

    def same(number: int, name: str, result: IRModule) -> None:
        assert_same(tuple(run_module(result, inputs)), expected)

    with half_registered():
        expected += run_module(module, inputs)
        run_passes(module, DEFAULT_PIPELINE[: DEFAULT_PIPELINE.index(legalize)], same, check=True)


@settings(SETTINGS, max_examples=100)
@given(st.data())
def test_native_kernels_in_place(data: st.DataObject) -> None:
    """The same with the native kernels, which work in place where the plan lets them, on both machines."""
    module = Generator(data).module()
    with half_registered():
        executable = generate(run_passes(module, DEFAULT_PIPELINE, check=True))
        machine = VirtualMachine(executable)
        for rows in SIZES if is_symbolic(module) else (16,):  # each call gets memory that the one before used
            inputs = arrays_of(rows, data.draw(st.booleans(), label="flag"))
            expected = run_module(module, inputs)
            assert_same(run(executable, "main", inputs.values(), ChainMap(PACKED, NATIVE)), expected)
            assert_same(machine["main"](*inputs.values()), expected)
