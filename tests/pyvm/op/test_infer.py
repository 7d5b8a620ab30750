"""Struct-info rules beyond the case table: refusals, unknown ranks, symbolic slices and windows, element types."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from pyvm import op
from pyvm.ir import (
    Call,
    Expr,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Var,
    evaluate,
)
from pyvm.op.convolution import window_count
from pyvm.op.movement import slice_bounds
from pyvm.op.registry import KernelCall, View, get_op, register_op
from pyvm.op.resizing import scaled_size
from pyvm.op.shape import resolve_reshape
from tests.pyvm.op.test_ops import by_kernel, by_reference, check_close, flat, run
from vmcore.errors import CompileError, InternalError

N, M = SymVar("n"), SymVar("m")


def tensor(*shape: Any, dtype: str | None = "float32") -> Var:
    return Var("x", TensorStructInfo(shape, dtype))


def unknown(ndim: int = -1, dtype: str | None = "float32") -> Var:
    return Var("x", TensorStructInfo(None, dtype, ndim))


INDICES = tensor(3, dtype="int64")

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: op.add(tensor(N, 4), tensor(3, 4)),
        r"add: .*\(n, 4\) and \(3, 4\).* n and 3 at axis -2 cannot be proved",
    ),
    (lambda: op.mul(tensor(2, 4), tensor(3, 4)), r"mul: shapes \(2, 4\) and \(3, 4\).*2 and 3 at axis -2 differ"),
    (lambda: op.add(tensor(2), tensor(2, dtype="int64")), r"add: .*different dtypes \(float32, int64\)"),
    (lambda: op.add(tensor(2, dtype="int64"), 1.5), r"the number 1.5 next to a tensor of int64 is not an integer"),
    (lambda: op.add(tensor(2, dtype="int8"), 200), r"the number 200 next to a tensor of int8 is out of its range"),
    (lambda: op.exp(tensor(2, dtype="int32")), r"exp: x has dtype int32, expected one of bfloat16, float16"),
    (lambda: op.relu(ShapeExpr((1, 2))), r"relu: argument 0 must be a tensor"),
    (lambda: op.where(tensor(2), 1.0, tensor(2)), r"where: cond has dtype float32"),
    (lambda: op.clip(tensor(2), np.zeros(2)), r"clip: a bound has shape \(2,\)"),
    (lambda: op.celu(tensor(2), 0.0), r"celu: alpha is 0"),
    (lambda: op.cast(tensor(2), "complex64"), r"cast: cannot convert to complex64"),
    (
        lambda: op.matmul(tensor(8, 64), tensor(32, 16)),
        r"lhs \(8, 64\), rhs \(32, 16\): inner sizes 64 and 32 differ",
    ),
    (lambda: op.matmul(tensor(8, N), tensor(M, 16)), r"inner sizes n and m cannot be proved equal"),
    (lambda: op.matmul(tensor(), tensor(2, 2)), r"matmul: .*a scalar has no matrix product"),
    (lambda: op.gemm(tensor(2, 3), tensor(3, 4), tensor(5, 4)), r"gemm: shapes \(5, 4\) and \(2, 4\) do not broadcast"),
    (lambda: op.gemm(tensor(2, 3), tensor(3, 4), tensor(2, 2, 4)), r"gemm: c \(2, 2, 4\) does not broadcast"),
    (lambda: op.einsum("ij,jk->il", tensor(2, 3), tensor(3, 4)), r"output letter 'l' is in no operand"),
    (lambda: op.einsum("ii->i", tensor(2, 2)), r"repeats a letter"),
    (lambda: op.einsum("ij,jk", tensor(2, 3), tensor(4, 5)), r"'j' is 3 in one operand and 4 in another"),
    (lambda: op.einsum("ij", tensor(2)), r"does not fit an operand of 1 dimensions"),
    (lambda: op.reduce_sum(tensor(2, 3), 2), r"reduce_sum: axis 2 is outside a tensor of 2 dimensions"),
    (lambda: op.reduce_sum(tensor(2, 3), (0, -2)), r"reduce_sum: axes .* name an axis .* twice"),
    (lambda: op.conv(tensor(1, 3, 8, 8), tensor(4, 2, 3, 3)), r"conv: x \(1, 3, 8, 8\), w \(4, 2, 3, 3\): channels"),
    (lambda: op.conv(tensor(1, 3, 2, 8), tensor(4, 3, 3, 3)), r"a window of 3 elements is larger than an axis of 2"),
    (lambda: op.conv(tensor(1, 3, 8, 8), tensor(4, 3, 3, 3), tensor(5)), r"conv: bias \(5\) for 4 output channels"),
    (lambda: op.conv(tensor(1, 3, 8, 8), tensor(4, 3, 3, 3), pads=(1, 1)), r"pads \(1, 1\) has 2 values, expected 4"),
    (lambda: op.conv(tensor(1, 3, 8, 8), tensor(4, 3, 3, 3), strides=0), r"strides \(0, 0\) must be positive"),
    (lambda: op.max_pool(tensor(1, 3, 8), (3,), pads=(1, -1)), r"max_pool: pads \(1, -1\) must not be negative"),
    (lambda: op.conv(tensor(1, 3), tensor(4, 3)), r"conv: x has 2 dimensions"),
    (lambda: op.max_pool(tensor(1, 3, 8), (3, 3)), r"max_pool: x has 3 dimensions \(1, 3, 8\), expected 4"),
    (lambda: op.batch_norm(tensor(1, 3, 8), *[tensor(4)] * 4), r"batch_norm: argument 1 \(4\) for 3 channels"),
    (lambda: op.layer_norm(tensor(2, 3), tensor(2)), r"layer_norm: argument 1 \(2\), the normalized axes are \(3\)"),
    (lambda: op.group_norm(tensor(1, 3, 8), tensor(3), tensor(3), 2), r"3 channels .* do not divide into 2 groups"),
    (lambda: op.transpose(tensor(2, 3), (0, 0)), r"transpose: perm \(0, 0\) is not a permutation"),
    (lambda: op.concat([tensor(2, 3), tensor(2, 4)], 0), r"concat: shapes \(2, 3\) and \(2, 4\) differ outside axis 0"),
    (lambda: op.concat([], 0), r"concat: there are no tensors"),
    (lambda: op.strided_slice(tensor(4), (0,), (4,), (0,)), r"the step is 0"),
    (lambda: op.strided_slice(tensor(4), (0, 0), (4,)), r"do not fit each other"),
    (lambda: op.split(tensor(4), (3, 2)), r"sizes \(3, 2\) add up to 5, but axis 0 of \(4\) is 4"),
    (lambda: op.broadcast_to(tensor(2, 3), (2, 4)), r"broadcast_to: \(2, 3\) does not broadcast to \(2, 4\): 3 to 4"),
    (lambda: op.pad(tensor(2, 3), (1, 1)), r"pad: pads \(1, 1\) for \(2, 3\): expected 4 values"),
    (lambda: op.pad(tensor(2), (-2, -1)), r"pad: .* remove more than there is"),
    (lambda: op.pad(tensor(2), (1, 1), "mirror"), r"pad: attribute mode must be one of constant, .*, got 'mirror'"),
    (lambda: op.gather(tensor(2), tensor(2)), r"gather: indices has dtype float32"),
    (lambda: op.gather_nd(tensor(2, 3), tensor(4, 3, dtype="int64")), r"gather_nd: indices \(4, 3\)"),
    (
        lambda: op.scatter_elements(tensor(2), tensor(3, dtype="int64"), tensor(4)),
        r"indices \(3\) and updates \(4\) differ",
    ),
    (
        lambda: op.scatter_nd(tensor(2, 3), tensor(1, 1, dtype="int64"), tensor(1, 4)),
        r"updates \(1, 4\), expected \(1, 3\)",
    ),
    (
        lambda: op.scatter_nd(tensor(2), op.unsqueeze(INDICES, 1), tensor(3), "sum"),
        r"scatter_nd: attribute reduction must be one of none, .*, got 'sum'",
    ),
    (lambda: op.topk(tensor(2, 3), 4), r"topk: k is 4, but axis 1 of \(2, 3\) is 3"),
    (lambda: op.depth_to_space(tensor(1, 6, 2, 2), 2), r"depth_to_space: size 6 .* is not a multiple of 4"),
    (lambda: op.reshape(tensor(2, 3), (4, 2)), r"reshape: \(2, 3\) has 6 elements, \(4, 2\) has 8"),
    (lambda: op.reshape(tensor(2, 3), (-1, 4)), r"reshape: \(2, 3\) does not divide into \(-1, 4\)"),
    (lambda: op.reshape(tensor(2, 3), (-1, -1)), r"more than one -1"),
    (lambda: op.reshape(tensor(2, 3), (2, 3, 0)), r"0 at axis 2 .* copies no axis"),
    (lambda: op.reshape(unknown(), (-1, 3)), r"needs the shape of the argument"),
    (lambda: op.squeeze(tensor(2, 3), 0), r"squeeze: axis 0 of \(2, 3\) has size 2"),
    (lambda: op.resize(tensor(N), scales=(3.14159,)), r"resize: scale 3.14159 of the symbolic dim n"),
    (lambda: op.fill((2,), np.zeros(3)), r"fill: value has shape \(3,\)"),
    (lambda: op.arange(0, 5, 0), r"arange: step 0"),
    (lambda: get_op("rellu"), r"there is no operator 'rellu'; did you mean .*relu"),
]


@pytest.mark.parametrize("build, message", REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_refusal_names_operator_and_both_facts(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        build()


UNKNOWN: list[tuple[Callable[[Expr], Expr], int, int]] = [  # build, rank of x, rank of the result
    (op.relu, -1, -1),
    (lambda x: op.add(x, 1.0), -1, -1),
    (lambda x: op.add(x, tensor(2, 3)), 1, 2),
    (lambda x: op.reduce_sum(x, -1), -1, -1),
    (lambda x: op.reduce_sum(x, -1), 3, 2),
    (lambda x: op.reduce_sum(x, -1, True), 3, 3),
    (lambda x: op.reduce_sum(x), -1, 0),
    (lambda x: op.softmax(x), -1, -1),
    (lambda x: op.matmul(x, tensor(3, 4)), 3, 3),
    (lambda x: op.matmul(x, tensor(3, 4)), -1, -1),
    (lambda x: op.conv(x, tensor(4, 3, 3, 3)), -1, 4),
    (lambda x: op.max_pool(x, (2, 2)), -1, 4),
    (lambda x: op.transpose(x), -1, -1),
    (lambda x: op.transpose(x, (0, 2, 1)), -1, 3),
    (lambda x: op.concat([x, tensor(2, 3)], 1), 2, 2),
    (lambda x: op.gather(x, np.array([1])), 3, 3),
    (lambda x: op.reshape(x, (2, 3)), -1, 2),
    (lambda x: op.reshape(x, Var("s", ShapeStructInfo(None, 3))), -1, 3),
    (lambda x: op.layer_norm(x, tensor(4)), -1, -1),
    (lambda x: op.pad(x, (0, 1, 1, 0)), 2, 2),
]


@pytest.mark.parametrize("build, ndim, result", UNKNOWN)
def test_unknown_shape_keeps_what_is_known(build: Callable[[Expr], Expr], ndim: int, result: int) -> None:
    info = build(unknown(ndim)).struct_info
    assert isinstance(info, TensorStructInfo)
    assert (info.ndim, info.dtype) == (result, "float32")


def test_call_without_struct_info_waits_for_its_arguments() -> None:
    x = Var("x")
    call = op.relu(x)
    assert call.struct_info is None and call.args == (x,)
    assert op.softmax(x).attrs == {"axis": -1}


def test_numbers_take_the_dtype_of_the_other_argument() -> None:
    assert op.mul(2, tensor(3, dtype="float16")).struct_info == TensorStructInfo((3,), "float16")
    assert op.where(tensor(3, dtype="bool"), 0, tensor(3, dtype="int8")).struct_info == TensorStructInfo((3,), "int8")


@pytest.mark.parametrize("seed", range(20))
def test_symbolic_slice_is_pythons(seed: int) -> None:
    rng = random.Random(seed)
    far = [-(2**63), -(2**31), 2**31 - 1, 2**63 - 1]
    for _ in range(20):
        begin, end = (rng.choice(far) if rng.random() < 0.2 else rng.randint(-6, 6) for _ in range(2))
        step = rng.choice([1, 1, 2, 3, -1, -2])
        first, count = slice_bounds(N, begin, end, step)
        for size in range(1, 9):
            expected = range(*slice(begin, end, step).indices(size))
            got = evaluate(first, {N: size}), evaluate(count, {N: size})
            assert got[1] == len(expected), (begin, end, step, size, count)
            assert not expected or got[0] == expected[0], (begin, end, step, size, first)


def test_usual_slices_stay_simple() -> None:
    assert slice_bounds(N, 0, 1, 1) == (0, 1)
    assert slice_bounds(N, 1, 2**63 - 1, 1) == (1, N - 1)
    assert slice_bounds(N, 0, -1, 1) == (0, N - 1)
    assert slice_bounds(N, -1, -(2**63), -1) == (N - 1, N)
    assert slice_bounds(512, 0, N, 1) == (0, N)
    assert slice_bounds(2 * N, 0, 2**63 - 1, 2) == (0, N)


@pytest.mark.parametrize("seed", range(20))
def test_symbolic_window_count_is_the_static_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        kernel, stride, dilation = rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 3)
        extent = dilation * (kernel - 1) + 1
        pads = rng.randint(0, extent - 1), rng.randint(0, extent - 1)
        for ceil_mode in (False, True):
            symbolic = window_count("pool", N, kernel, stride, *pads, dilation, ceil_mode)
            for size in range(max(1, extent - sum(pads)), extent + 9):
                starts = list(range(-pads[0], size + pads[1] - extent + 1, stride))
                if ceil_mode and (size + sum(pads) - extent) % stride and starts[-1] + stride < size:
                    starts.append(starts[-1] + stride)
                static = window_count("pool", size, kernel, stride, *pads, dilation, ceil_mode)
                assert static == len(starts) == evaluate(symbolic, {N: size})


def test_usual_windows_stay_simple() -> None:
    assert window_count("conv", N, 3, 1, 1, 1, 1) == N
    assert window_count("pool", N, 2, 2, 0, 0, 1) == N // 2
    assert window_count("pool", N, 3, 2, 0, 0, 1, True) == N // 2


def test_reshape_resolves_symbols() -> None:
    assert resolve_reshape((N, 3, M), (0, -1)) == (N, 3 * M)
    assert resolve_reshape((N, M, 4), (-1, 4)) == (N * M, 4)
    assert resolve_reshape((N, 12, 64), (0, 0, 4, -1)) == (N, 12, 4, 16)
    assert resolve_reshape((N, 6), (-1, 4)) == (6 * N // 4, 4)
    assert resolve_reshape((0, 3), (0, -1)) == (0, 3)
    assert resolve_reshape((N, M), (N, -1)) == (N, M)


def test_symbolic_sizes() -> None:
    assert op.concat([tensor(N, 2), tensor(3, 2), tensor(M, 2)], 0).struct_info == TensorStructInfo(
        (N + M + 3, 2), "float32"
    )
    assert [x.struct_info.shape for x in op.split(tensor(2 * N), 2)] == [(N,), (N,)]  # type: ignore[union-attr]
    assert op.flatten(tensor(N, 3, M)).struct_info == TensorStructInfo((N, 3 * M), "float32")
    assert op.expand(tensor(N, 1), (1, M)).struct_info == TensorStructInfo((N, M), "float32")
    assert op.squeeze(tensor(N, 3), 0).struct_info == TensorStructInfo((3,), "float32")
    assert op.arange(N).struct_info == TensorStructInfo((N,), "int64")
    assert scaled_size(N, 2.0) == 2 * N and scaled_size(N, 0.5) == N // 2
    assert op.topk(tensor(4, N), M).struct_info.fields[1] == TensorStructInfo((4, M), "int64")  # type: ignore[union-attr]
    assert op.nonzero(tensor(4, N), M).struct_info == TensorStructInfo((2, M), "int64")


def test_shape_of_a_known_shape_is_a_literal() -> None:
    literal = op.shape_of(tensor(N, 3))
    assert isinstance(literal, ShapeExpr) and literal.values == (N, 3)
    call = op.shape_of(unknown(2))
    assert isinstance(call, Call) and call.struct_info == ShapeStructInfo(None, 2)


def test_packed_calls() -> None:
    info = TensorStructInfo((2, N), "float32")
    assert op.call_packed("f", [tensor(2), 3, "s"], info).struct_info == info
    call = op.call_dps_packed("g", [tensor(2), (1, N)], info)
    assert call.attrs["dps"] and isinstance(call.args[1], ShapeExpr)


def test_views_and_symbolic_arguments_lower_as_they_are() -> None:
    view = get_op("reshape").lower(op.reshape(tensor(N, 6), (-1, 3)))
    assert isinstance(view, View) and isinstance(view.shape, ShapeExpr) and view.shape.values == (2 * N, 3)
    lowered = get_op("strided_slice").lower(op.strided_slice(tensor(N), (2,), (2**63 - 1,)))
    assert isinstance(lowered, KernelCall)
    begins = lowered.args[1]
    assert isinstance(begins, ShapeExpr) and evaluate(begins.values[0], {N: 1}) == 1


def test_inplace_only_where_nothing_is_broadcast() -> None:
    assert _inplace(op.add(tensor(N, 4), tensor(N, 4))) == (0, 1)
    assert _inplace(op.add(tensor(N, 4), tensor(4))) == (0,)
    assert _inplace(op.add(tensor(N, 1), tensor(4))) == ()
    assert _inplace(op.softmax(tensor(N, 4))) == (0,)
    assert _inplace(op.equal(tensor(N), tensor(N))) == (0, 1)  # of no use: the result has another dtype
    assert _inplace(op.matmul(tensor(4, 4), tensor(4, 4))) == ()


def _inplace(call: Call) -> tuple[int, ...]:
    lowered = get_op(call.op.name).lower(call)
    assert isinstance(lowered, KernelCall)
    return lowered.inplace


def _twice(fn: Callable[..., Any], x: Expr) -> Any:
    return fn(x, x)


DTYPES = ["bool", "float16", "float32", "float64"] + [f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)]
UNARY = """relu abs neg sign square exp sigmoid floor is_nan is_inf leaky_relu logical_not bitwise_not softmax copy
transpose trilu global_avg_pool argmax argmin cumsum reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_l1
reduce_l2 reduce_sum_square reduce_log_sum reduce_log_sum_exp reduce_all reduce_any""".split()
BINARY = """add sub mul div floor_div mod fmod pow maximum minimum prelu atan2 bitwise_and left_shift equal not_equal
less greater_equal logical_and logical_xor""".split()
SWEPT: dict[str, Callable[[Any], Any]] = {  # every dtype that these operators admit must have a kernel
    **{name: getattr(op, name) for name in UNARY},
    **{name: partial(_twice, getattr(op, name)) for name in BINARY},
    "clip": lambda x: op.clip(x, 1, 2),
    "where": lambda x: op.where(np.arange(12).reshape(2, 3, 2) % 2 == 0, x, x),
    "matmul": lambda x: op.matmul(x, op.transpose(x, (0, 2, 1))),
    "concat": lambda x: op.concat([x, x], 1),
    "strided_slice": lambda x: op.strided_slice(x, (0, 1), (2, 3)),
    "broadcast_to": lambda x: op.broadcast_to(x, (4, 2, 3, 2)),
    "tile": lambda x: op.tile(x, (1, 2, 1)),
    "pad": lambda x: op.pad(x, (0, 0, 1, 0, 1, 1), value=1),
    "gather": lambda x: op.gather(x, np.array([1, 0]), 1),
    "topk": lambda x: op.topk(x, 2, 1),
    "nonzero": lambda x: op.nonzero(x, 12),
    "fill": lambda x: op.fill((2, 3), 1, x.struct_info.dtype),
    "arange": lambda x: op.arange(1, 7, 2, x.struct_info.dtype),
    "eye": lambda x: op.eye(2, 3, 0, x.struct_info.dtype),
    "one_hot": lambda x: op.one_hot(
        np.array([1, 2]), 4, np.zeros((), x.struct_info.dtype), np.ones((), x.struct_info.dtype)
    ),
    "resize": lambda x: op.resize(x, (2, 3, 4)),
    "resize_linear": lambda x: op.resize(x, (2, 3, 4), mode="linear"),
    "scatter_elements": lambda x: op.scatter_elements(
        x, np.zeros((2, 1, 2), np.int64), op.strided_slice(x, (0, 1), (2, 2)), 1, "add"
    ),
}


@pytest.mark.parametrize("name", SWEPT)
def test_every_dtype_that_is_admitted_has_a_kernel(name: str) -> None:
    admitted = 0
    for dtype in DTYPES:
        x = Var("x", TensorStructInfo((2, 3, 2), dtype))
        data = np.arange(1, 13).reshape(2, 3, 2) % 5 + 1
        try:
            call = SWEPT[name](x)
        except CompileError:
            continue
        admitted += 1
        values = {id(x): data.astype(dtype)}
        expected = flat([run(call, dict(values), by_reference)])
        actual = flat([run(call, dict(values), by_kernel)])
        for part, want in zip(actual, expected, strict=True):
            check_close(part, want, 2e-3 if dtype == "float16" else 1e-5, f"{name} of {dtype}")
    assert admitted


def test_registry() -> None:
    relu = get_op("relu")
    assert op.ops["relu"] is relu and "relu" in op.ops and len(op.ops) == len(op.list_op_names())
    assert copy.deepcopy(relu) is relu and pickle.loads(pickle.dumps(relu)) is relu
    with pytest.raises(InternalError, match="'relu' is registered twice"):
        register_op(relu)


def test_every_public_constructor_is_documented_and_typed() -> None:
    for name in op.__all__:
        function = getattr(op, name)
        if inspect.isfunction(function):
            assert function.__doc__ and function.__name__ == name, name
            assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name


def test_evaluate_refuses_what_a_kernel_refuses() -> None:
    with pytest.raises(IndexError, match="gather: index 5 is outside an axis of size 3"):
        get_op("gather").evaluate({"axis": 0}, np.zeros(3), np.array([0, 5]))
    with pytest.raises(IndexError, match="strided_slice: elements 2 .. 4 of axis 0 with size 3"):
        get_op("strided_slice").evaluate({"steps": (1,)}, np.zeros(3), (2,), (3,))
