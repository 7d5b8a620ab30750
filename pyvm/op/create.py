"""Operators that make tensors from scalars and shapes: fill, arange, eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Constant, Expr, ShapeExpr
from pyvm.ir.prim import Prim, PrimExpr, sym_max
from pyvm.ir.struct_info import PrimStructInfo, StructInfo, TensorStructInfo, dtype_name
from pyvm.op.attributes import INT, SCALAR, TEXT
from pyvm.op.common import (
    NUMERIC,
    TensorLike,
    as_prim,
    as_shape,
    at_least,
    check_dtype,
    define,
    fail,
    make_call,
    product,
    require_dtype,
    same_dim,
    shape_arg,
    shape_arg_ndim,
    show_shape,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered

# --- new tensors ------------------------------------------------------------------------------------------------------


def _infer_fill(call: Call) -> StructInfo:
    if len(call.args) == 2 and not isinstance(call.args[1].struct_info, PrimStructInfo):
        value = tensor_info(call, 1)
        check_dtype("fill", "value", value, frozenset({call.attrs["dtype"]}))
        if value.shape is not None and same_dim(product(value.shape), 1) is False:
            fail("fill", f"value has shape {show_shape(value.shape)}, expected one element")
    return TensorStructInfo(shape_arg(call, 0), call.attrs["dtype"], shape_arg_ndim(call, 0))


def _evaluate_fill(attrs: dict[str, Any], shape: Sequence[int], value: Any = None) -> np.ndarray:
    content = attrs["value"] if value is None else np.asarray(value).reshape(())
    return np.full(shape, content, attrs["dtype"])


def _lower_fill(call: Call) -> Lowered:
    return KernelCall("kernel.fill", [call.args[1] if len(call.args) == 2 else call.attrs["value"]])


_FILL = define("fill", _infer_fill, _evaluate_fill, _lower_fill, attrs={"value": SCALAR.or_none(), "dtype": TEXT})


def fill(shape: Expr | Sequence[Prim], value: TensorLike, dtype: str | None = None) -> Call:
    """A tensor whose elements are all `value`.

    Parameters
    ----------
    shape : shape expression or sequence of int or PrimExpr
    value : number, scalar of the program (a float or bool) or one-element tensor
    dtype : str, optional
        None: that of `value`, float32 for a float, int64 for an int.

    Source: ONNX ConstantOfShape.
    """
    if isinstance(value, Constant):
        value = value.data
    if isinstance(value, Expr):
        info = value.struct_info
        dtype = dtype or (info.dtype if isinstance(info, PrimStructInfo) else require_dtype("fill", value))
        return make_call(_FILL, [as_shape(shape), value], {"value": None, "dtype": dtype_name(dtype)})
    array = np.asarray(value)
    if array.size != 1:
        fail("fill", f"value has shape {array.shape}, expected one element")
    if dtype is None:
        dtype = "float32" if isinstance(value, float) else array.dtype.name
    number = array.reshape(()).item()
    if isinstance(number, int) and number >= 2**63:  # a register holds int64
        args = [as_shape(shape), Constant(array.reshape(()))]
        return make_call(_FILL, args, {"value": None, "dtype": dtype_name(dtype)})
    return make_call(_FILL, [as_shape(shape)], {"value": number, "dtype": dtype_name(dtype)})


def _infer_arange(call: Call) -> StructInfo:
    return TensorStructInfo(shape_arg(call, 2), call.attrs["dtype"], 1)


def _evaluate_arange(attrs: dict[str, Any], start: float, step: float, shape: Sequence[int]) -> np.ndarray:
    dtype = np.dtype(attrs["dtype"])
    count = np.arange(shape[0], dtype=np.int64 if dtype.kind in "iu" else np.float64)
    return np.add(start, np.multiply(step, count)).astype(dtype)


_ARANGE = define(
    "arange",
    _infer_arange,
    _evaluate_arange,
    lambda call: KernelCall("kernel.arange", list(call.args[:2])),
    attrs={"dtype": TEXT},
)


def arange(
    start: Prim | float, stop: Prim | float | None = None, step: Prim | float = 1, dtype: str | None = None
) -> Call:
    """start, start + step, ... before stop.

    Parameters
    ----------
    start, stop, step : number or PrimExpr
        With one argument, start is 0. Symbolic bounds need an integer step.
    dtype : str, optional
        None: int64, or float32 if an argument is a float.

    Returns
    -------
    Call
        Tensor (ceil((stop - start) / step),).

    Source: ONNX Range.
    """
    if dtype is not None and dtype_name(dtype) not in NUMERIC:
        fail("arange", f"dtype {dtype}, expected a number")
    if stop is None:
        start, stop = 0, start
    if dtype is None:
        dtype = "float32" if any(isinstance(v, float) for v in (start, stop, step)) else "int64"
    if isinstance(step, PrimExpr) or step == 0:
        fail("arange", f"step {step}, expected a constant other than 0")
    args = [as_prim(start), as_prim(step), ShapeExpr((_range_size(start, stop, step),))]
    return make_call(_ARANGE, args, {"dtype": dtype_name(dtype)})


def _range_size(start: Prim | float, stop: Prim | float, step: int | float) -> Prim:
    """max(0, ceil((stop - start) / step)). Symbolic dims are taken to be at least 1."""
    if isinstance(start, float) or isinstance(stop, float) or isinstance(step, float):
        if isinstance(start, PrimExpr) or isinstance(stop, PrimExpr):
            fail("arange", f"{start}, {stop}, {step}: a symbolic bound next to a float")
        return max(0, math.ceil((stop - start) / step))
    span = stop - start if step > 0 else start - stop
    n = (span + abs(step) - 1) // abs(step)
    return n if at_least(n, 0) else sym_max(n, 0)


def _infer_eye(call: Call) -> StructInfo:
    return TensorStructInfo(shape_arg(call, 0), call.attrs["dtype"], 2)


_EYE = define(
    "eye",
    _infer_eye,
    lambda attrs, shape: np.eye(shape[0], shape[1], attrs["k"], dtype=attrs["dtype"]),
    lambda call: KernelCall("kernel.eye", [call.attrs["k"]]),
    attrs={"k": INT, "dtype": TEXT},
)


def eye(rows: Prim, cols: Prim | None = None, k: int = 0, dtype: str = "float32") -> Call:
    """A matrix of zeros with ones on diagonal `k`.

    Parameters
    ----------
    rows, cols : int or PrimExpr
        None: as many columns as rows.
    k : int
        Diagonal: 0 is the main one, positive ones are above it.
    dtype : str

    Source: ONNX EyeLike.
    """
    shape = as_shape((rows, rows if cols is None else cols))
    return make_call(_EYE, [shape], {"k": int(k), "dtype": dtype_name(dtype)})
