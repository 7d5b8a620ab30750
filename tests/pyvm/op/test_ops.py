"""Every operator: inferred against evaluated, evaluated against ONNX Runtime or numpy, kernels against evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pyvm import op
from pyvm.ir import (
    BlockBuilder,
    Call,
    Constant,
    Expr,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    substitute_struct_info,
)
from pyvm.op.registry import Decompose, KernelCall, Op, PackedCall, View
from tests.pyvm.op.cases import CASES, Case, leaves
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

onnxruntime.set_default_logger_severity(4)
Apply = Callable[[Call, list[Any]], Any]


def build(case: Case, symbolic: bool = False) -> tuple[tuple[Expr, ...], dict[int, Any]]:
    """The expressions of a case, and the value of each of its parameters by identity."""
    shapes = case.dims()[0] if symbolic else [x.shape for x in case.inputs]
    params = [
        Var(f"x{i}", TensorStructInfo(shape, x.dtype))
        for i, (shape, x) in enumerate(zip(shapes, case.inputs, strict=True))
    ]
    values = {id(param): x for param, x in zip(params, case.inputs, strict=True)}
    return leaves(case.build(*params)), values


def run(expr: Expr, values: dict[int, Any], apply: Apply) -> Any:
    """The value of an expression without symbols; `apply` evaluates a call. `values` remembers what is done."""
    if id(expr) not in values:
        if isinstance(expr, Constant):
            return expr.data
        if isinstance(expr, ShapeExpr):
            return tuple(expr.values)
        if isinstance(expr, PrimValue):
            return expr.value
        if isinstance(expr, Tuple):
            return tuple(run(field, values, apply) for field in expr.fields)
        if isinstance(expr, TupleGetItem):
            return run(expr.tuple, values, apply)[expr.index]
        if isinstance(expr, SeqExpr):
            for binding in expr.bindings():
                values[id(binding.var)] = run(binding.value, values, apply)
            return run(expr.body, values, apply)
        assert isinstance(expr, Call)
        args = [run(arg, values, apply) for arg in expr.args]
        values[id(expr)] = apply(expr, args)
    return values[id(expr)]


def by_reference(call: Call, args: list[Any]) -> Any:
    """`Op.evaluate`, with its result checked against the inferred struct info."""
    assert isinstance(call.op, Op)
    kept = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
    result = call.op.evaluate(call.attrs, *args)
    for arg, before in zip(args, kept, strict=True):
        np.testing.assert_equal(arg, before, err_msg=f"{call.op.name} changed an argument")
    check_info(call.struct_info, result, call.op.name)
    return result


def check_info(info: StructInfo | None, value: Any, what: str) -> None:
    """What was inferred agrees with a value."""
    if isinstance(info, TensorStructInfo):
        assert type(value) is np.ndarray and value.flags.c_contiguous, what
        assert (info.shape, info.dtype) == (value.shape, value.dtype.name), what
    elif isinstance(info, TupleStructInfo):
        assert len(info.fields) == len(value), what
        for field, part in zip(info.fields, value, strict=True):
            check_info(field, part, what)
    elif isinstance(info, ShapeStructInfo):
        assert info.values in (None, value) and info.ndim in (-1, len(value)), what
    else:
        assert isinstance(info, PrimStructInfo) and type(value) is int, what


def by_kernel(call: Call, args: list[Any]) -> Any:
    """What `Op.lower` says, done by the native kernels."""
    assert isinstance(call.op, Op)
    values: dict[int, Any] = {}
    params: list[Expr] = []
    for i, (arg, value) in enumerate(zip(call.args, args, strict=True)):
        leaf = arg if isinstance(arg, (Constant, ShapeExpr, PrimValue)) else Var(f"a{i}", arg.struct_info)
        values[id(leaf)] = value
        params.append(leaf)
    lowered = call.op.lower(Call(call.op, params, call.attrs, call.struct_info))
    if isinstance(lowered, Decompose):
        bb = BlockBuilder()
        bb.open_scope()
        return run(bb.close_scope(lowered.expr_builder(bb)), values, by_kernel)
    if isinstance(lowered, View):
        return run(lowered.x, values, by_kernel).reshape(run(lowered.shape, values, by_kernel))
    actual = [_kernel_arg(arg, values) for arg in lowered.args]
    if isinstance(lowered, PackedCall):
        if lowered.name.startswith("kernel."):
            return call_kernel(lowered.name, *actual)
        return call.op.evaluate(call.attrs, *args)  # a builtin of the virtual machine
    assert isinstance(lowered, KernelCall)
    infos = call.struct_info.fields if isinstance(call.struct_info, TupleStructInfo) else [call.struct_info]
    outs = [_poisoned(info) for info in infos]
    assert call_kernel(lowered.kernel, *actual, *outs) is None
    for position in lowered.inplace:
        shared = actual[position].copy()
        if shared.shape == outs[0].shape and shared.dtype == outs[0].dtype:
            call_kernel(lowered.kernel, *(shared if i == position else a for i, a in enumerate(actual)), shared)
            np.testing.assert_array_equal(shared, outs[0], err_msg=f"{lowered.kernel} in place of argument {position}")
    return tuple(outs) if isinstance(call.struct_info, TupleStructInfo) else outs[0]


def _kernel_arg(arg: Any, values: dict[int, Any]) -> Any:
    value = run(arg, values, by_kernel) if isinstance(arg, Expr) else arg
    return Shape(value) if isinstance(value, tuple) else value


def _poisoned(info: Any) -> np.ndarray:
    """Memory for a result with no zero in it by chance."""
    out = np.empty(info.shape, info.dtype)
    out.reshape(-1).view(np.uint8)[...] = 0xCD if out.dtype != bool else 1
    return out


def onnx_result(case: Case) -> list[Any]:
    """The outputs of the case's ONNX operator by ONNX Runtime."""
    names = [f"x{i}" for i in range(len(case.inputs))]
    constants = [
        None if x is None else onnx.numpy_helper.from_array(np.asarray(x), f"c{i}") for i, x in enumerate(case.extra)
    ]
    infos = [expr.struct_info for expr in build(case)[0]]
    n_outputs = sum(len(info.fields) if isinstance(info, TupleStructInfo) else 1 for info in infos)
    outputs = [f"y{i}" for i in range(n_outputs)]
    inputs = names + ["" if c is None else c.name for c in constants]
    node = onnx.helper.make_node(case.onnx, inputs, outputs, **case.attrs)
    graph = onnx.helper.make_graph(
        [node],
        "case",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, case.inputs, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [c for c in constants if c is not None],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, case.inputs, strict=True)))


def flat(values: list[Any]) -> list[Any]:
    """Results with tuples opened; shapes stay whole."""
    return [part for v in values for part in (v if isinstance(v, tuple) and any(map(_is_array, v)) else (v,))]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def check_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    if not isinstance(actual, np.ndarray):
        assert actual == expected, what
        return
    expected = np.asarray(expected)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    if actual.dtype.kind == "f":
        np.testing.assert_allclose(actual, expected, tolerance, tolerance, err_msg=what)
    else:
        np.testing.assert_array_equal(actual, expected, err_msg=what)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_evaluate_agrees_with_infer_and_oracle(case: Case) -> None:
    exprs, values = build(case)
    actual = flat([run(expr, values, by_reference) for expr in exprs])
    if case.onnx is not None:
        expected = onnx_result(case)
    elif case.oracle is not None:
        expected = [case.oracle(*case.inputs)]
    else:
        return
    for part, want in zip(actual, expected, strict=True):
        check_close(part, want, case.tolerance, case.id)


@pytest.mark.parametrize("case", [c for c in CASES if c.symbolic], ids=lambda case: case.id)
def test_symbolic_infer_agrees_with_static_infer(case: Case) -> None:
    sizes = case.dims()[1]
    for static, symbolic in zip(build(case)[0], build(case, symbolic=True)[0], strict=True):
        assert static.struct_info is not None and symbolic.struct_info is not None
        assert substitute_struct_info(symbolic.struct_info, sizes) == static.struct_info
        if isinstance(symbolic.struct_info, TensorStructInfo):
            assert symbolic.struct_info.shape is not None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_agrees_with_evaluate(case: Case) -> None:
    exprs, values = build(case)
    expected = flat([run(expr, dict(values), by_reference) for expr in exprs])
    actual = flat([run(expr, dict(values), by_kernel) for expr in exprs])
    for part, want in zip(actual, expected, strict=True):
        check_close(part, want, max(case.tolerance, 1e-5 if np.asarray(want).dtype == np.float32 else 0), case.id)


def test_every_operator_has_a_case() -> None:
    seen: set[str] = set()

    def note(call: Call, args: list[Any]) -> Any:
        assert isinstance(call.op, Op)
        seen.add(call.op.name)
        return by_reference(call, args)

    for case in CASES:
        exprs, values = build(case)
        for expr in exprs:
            run(expr, values, note)
    assert set(op.list_op_names()) - seen <= {"shape_of"}  # of a known shape it is the shape itself
