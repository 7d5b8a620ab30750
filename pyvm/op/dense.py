"""Product with a constant matrix, and what follows it: `linear`, made by the pass `fuse_linear`.

Its weights are packed at compile time (`pack_columns`) into the order in which kernels read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Constant, Expr
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.activation import EPILOGUE, activation_args, check_operands, finish
from pyvm.op.attributes import INT, one_of
from pyvm.op.common import (
    TensorLike,
    as_expr,
    check_dtype,
    define,
    fail,
    make_call,
    same_dim,
    same_dtype,
    same_shape,
    show_shape,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered

_FLOATS = frozenset({"float32", "float64"})
PACKED_BYTES = 128  # of a row of a panel, whatever the machine: every width of register tile divides it
PACKED_LAYOUT = "panels"


def pack_columns(weights: np.ndarray) -> np.ndarray:
    """(k, n) -> (panels, k, columns): panels of 128 bytes' worth of columns, each contiguous; columns past n are 0."""
    k, n = weights.shape
    columns = PACKED_BYTES // weights.itemsize
    panels = -(-n // columns)
    padded = np.zeros((k, panels * columns), weights.dtype)
    padded[:, :n] = weights
    return np.ascontiguousarray(padded.reshape(k, panels, columns).transpose(1, 0, 2))


def unpack_columns(packed: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `pack_columns`."""
    panels, k, columns = packed.shape
    return np.ascontiguousarray(packed.transpose(1, 0, 2).reshape(k, panels * columns)[:, :n])


def _optional(attrs: dict[str, Any], rest: tuple[Any, ...]) -> tuple[Any, Any]:
    """Bias and residual, None where there is none."""
    residual = rest[-1] if attrs.get("residual", False) else None
    n_bias = len(rest) - (residual is not None)
    return (rest[0] if n_bias else None), residual


def _columns(call: Call) -> tuple[Any, Any]:
    """K and N."""
    shape, packed = tensor_info(call, 1).shape, call.attrs.get("layout") == PACKED_LAYOUT
    if shape is None or len(shape) != (3 if packed else 2):
        fail("linear", f"weights have shape {show_shape(shape)}, expected {'panels' if packed else 'a matrix'}")
    return shape[-2], (call.attrs["columns"] if packed else shape[-1])


def _infer(call: Call) -> StructInfo:
    check_operands(call)
    infos = [tensor_info(call, i) for i in range(len(call.args))]
    dtype = same_dtype("linear", infos)
    check_dtype("linear", "a", infos[0], _FLOATS)
    k, n = _columns(call)
    a = infos[0].shape
    if a is None:
        return TensorStructInfo(None, dtype, infos[0].ndim)
    if not a or same_dim(a[-1], k) is False:
        fail("linear", f"a {show_shape(a)} does not fit weights with {k} rows")
    result = TensorStructInfo((*a[:-1], n), dtype)
    bias, residual = _optional(call.attrs, call.args[2:])
    if bias is not None and not same_shape(bias.struct_info.shape, (n,)):
        fail("linear", f"bias {show_shape(bias.struct_info.shape)} for {n} columns")
    if residual is not None and not same_shape(residual.struct_info.shape, result.shape):
        fail("linear", f"residual {show_shape(residual.struct_info.shape)}, expected {show_shape(result.shape)}")
    return result


def _evaluate(attrs: dict[str, Any], a: np.ndarray, w: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    if attrs.get("layout") == PACKED_LAYOUT:
        w = unpack_columns(w, attrs["columns"])
    bias, residual = _optional(attrs, rest)
    result = np.asarray(np.matmul(a, w))
    if bias is not None:
        result = result + bias
    return finish(attrs, result, residual).astype(a.dtype, copy=False)


def _lower(call: Call) -> Lowered:
    weights = call.args[1]
    if call.attrs.get("layout") != PACKED_LAYOUT:
        if not isinstance(weights, Constant):
            fail("linear", "the weights must be constant")
        weights = Constant(pack_columns(weights.data))
    bias, residual = _optional(call.attrs, call.args[2:])
    args = [call.args[0], weights, bias, residual, *activation_args(call.attrs)]
    return KernelCall("kernel.matmul_packed", args)


_LINEAR = define(
    "linear",
    _infer,
    _evaluate,
    _lower,
    half=False,
    operands=(2, 4),
    attrs={**EPILOGUE, "layout": one_of([PACKED_LAYOUT]).optional(), "columns": INT.optional()},
)


def linear(
    a: TensorLike,
    w: TensorLike,
    bias: TensorLike | None = None,
    residual: TensorLike | None = None,
    activation: str = "none",
    activation_params: tuple[float, ...] = (),
) -> Call:
    """activation(a @ w + bias + residual) with a constant matrix w.

    Parameters
    ----------
    a : float32 or float64 tensor, (..., k)
    w : constant tensor, (k, n)
    bias : tensor, (n,), optional
    residual : tensor, (..., n), optional
    activation : str
        One of `pyvm.op.activation.ACTIVATIONS`.
    activation_params : tuple of float
        clip: lower and upper bound; leaky_relu: alpha; hard_sigmoid: alpha, beta.

    Returns
    -------
    Call
        Tensor (..., n).
    """
    args: list[Expr] = [as_expr(a), as_expr(w)]
    attrs: dict[str, Any] = {"activation": activation}
    if activation_params:
        attrs["activation_params"] = tuple(map(float, activation_params))
    if bias is not None:
        args.append(as_expr(bias))
    if residual is not None:
        args.append(as_expr(residual))
        attrs["residual"] = True
    return make_call(_LINEAR, args, attrs)
