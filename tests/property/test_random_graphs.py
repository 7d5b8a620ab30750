"""Random programs: what the pipeline makes of them computes what numpy computes, and no memory is shared wrongly."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
)
from pyvm.transform import DEFAULT_PIPELINE, run_passes
from pyvm.vm import VirtualMachine
from tests.ir_evaluator import run_module
from tests.memory_check import check_plan
from tests.native_kernels import NATIVE
from tests.numpy_kernels import lower_onto_numpy
from tests.reference_vm import run

N = SymVar("n")
UNARY = ("relu", "neg", "abs", "tanh", "sigmoid", "floor")
BINARY = ("add", "sub", "mul", "maximum", "minimum")


class Generator:
    """Draws a program. Every value is float32, (rows, 3) or (rows, 1), rows being 16 or the symbol n."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.bb = BlockBuilder()

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
        kind = self.data.draw(st.integers(0, 9 if depth < 2 else 8), label="kind")
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

        def branch() -> Expr:
            inner = list(values)
            self.emit_some(inner, cond, depth + 1)
            # Both branches must agree on the shape, so the value is as wide as x.
            same = [v for v in inner if v.struct_info == x.struct_info]
            return self.pick(same)

        return bb.emit_if(cond, branch, branch)


def rows_of(module: IRModule) -> int:
    """Rows to run with: 5 where they are symbolic."""
    return 16 if module["main"].params[0].struct_info.shape[0] == 16 else 5  # type: ignore[union-attr]


def arrays_of(rows: int, flag: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    y = rng.standard_normal((rows, 1)).astype(np.float32)
    return {"x": x, "y": y, "c": np.array(flag)}


def assert_same(got: tuple[np.ndarray, ...], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_pipeline_computes_what_numpy_computes(data: st.DataObject) -> None:
    module = Generator(data).module()
    lowered, functions = lower_onto_numpy(module)
    executable = generate(lowered)
    executable.verify()
    for function in lowered.functions.values():
        check_plan(function, {"n": 5})
    for flag in (False, True):
        inputs = arrays_of(rows_of(module), flag)
        assert_same(run(executable, "main", inputs.values(), functions), run_module(module, inputs))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_native_kernels_in_place(data: st.DataObject) -> None:
    """The same with the native kernels, which work in place where the plan lets them, on both machines."""
    module = Generator(data).module()
    executable = generate(run_passes(module, DEFAULT_PIPELINE, check=True))
    inputs = arrays_of(rows_of(module), data.draw(st.booleans(), label="flag"))
    expected = run_module(module, inputs)
    assert_same(run(executable, "main", inputs.values(), NATIVE), expected)
    machine = VirtualMachine(executable)
    for _ in range(2):  # the second call gets memory that the first one used
        assert_same(machine["main"](*inputs.values()), expected)
