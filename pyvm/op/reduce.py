"""Operators that combine elements along axes: reductions, argmax and argmin, cumulative sum.

A reduction is one line: `_reduction` registers it and returns its public constructor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import scipy.special

from pyvm.ir.expr import Call, Expr, ShapeExpr
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import FLAG, INT, INTS
from pyvm.op.common import (
    BOOL,
    FLOAT,
    NUMERIC,
    TensorLike,
    as_expr,
    check_dtype,
    define,
    known_ndim,
    make_call,
    normalize_axes,
    normalize_axis,
    require_ndim,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered, Op
from pyvm.op.shape import reshape
from vmcore.errors import LoweringError

# --- reductions -------------------------------------------------------------------------------------------------------


class Reduction(Protocol):
    """The constructor of a reduction."""

    def __call__(self, x: TensorLike, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Call: ...


def _reduced(x: TensorStructInfo, axes: tuple[int, ...] | None, keepdims: bool, dtype: str | None) -> TensorStructInfo:
    """Struct info of `x` reduced over normalized `axes` (None: all)."""
    if axes is None and not keepdims:
        return TensorStructInfo((), dtype)
    if x.shape is None:
        kept = x.ndim if keepdims or x.ndim < 0 or axes is None else x.ndim - len(axes)
        return TensorStructInfo(None, dtype, kept)
    drop = set(range(x.ndim) if axes is None else axes)
    shape: list[Prim] = []
    for axis, dim in enumerate(x.shape):
        if axis not in drop:
            shape.append(dim)
        elif keepdims:
            shape.append(1)
    return TensorStructInfo(shape, dtype)


def _axes_of(call: Call) -> tuple[int, ...] | None:
    """Sorted axes from the front if the rank is known; None: all axes of a tensor of unknown rank."""
    ndim, axes = tensor_info(call, 0).ndim, call.attrs["axes"]
    if axes is None:
        return None if ndim < 0 else tuple(range(ndim))
    return normalize_axes(call.op.name, axes, ndim)


def _lower_reduction(call: Call) -> Lowered:
    axes = _axes_of(call)
    if tensor_info(call, 0).ndim < 0 or axes is None:
        raise LoweringError(f"{call.op.name}: the rank of the argument is not known: {call.args[0].struct_info}")
    name = call.op.name
    if tensor_info(call, 0).dtype == "bool":  # the order of bools: max is any, min is all
        name = {"reduce_max": "reduce_any", "reduce_min": "reduce_all"}.get(name, name)
    return KernelCall(f"kernel.{name}", [call.args[0], ShapeExpr(axes)])


def _reduction(name: str, fn: Callable[..., Any], dtypes: frozenset[str], formula: str, source: str = "") -> Reduction:
    """Register y = fn(x, axis=axes, keepdims=...)."""

    def infer(call: Call) -> StructInfo:
        x = tensor_info(call, 0)
        check_dtype(name, "x", x, dtypes)
        return _reduced(x, _axes_of(call), call.attrs["keepdims"], x.dtype)

    def evaluate(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        axes = tuple(range(x.ndim)) if attrs["axes"] is None else tuple(attrs["axes"])
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        return np.asarray(fn(wide, axis=axes, keepdims=attrs["keepdims"])).astype(x.dtype)

    op = define(name, infer, evaluate, _lower_reduction, attrs={"axes": INTS.or_none(), "keepdims": FLAG})

    def constructor(x: TensorLike, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Call:
        x = as_expr(x)
        ndim = known_ndim(x)
        if axes is not None:
            axes = normalize_axes(name, (axes,) if isinstance(axes, (int, np.integer, np.bool_)) else axes, ndim)
        elif ndim >= 0:
            axes = tuple(range(ndim))
        return make_call(op, [x], {"axes": axes, "keepdims": bool(keepdims)})

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = inspect.cleandoc(
        f"""{formula} over `axes`.

        Parameters
        ----------
        x : tensor of {"bools" if dtypes == BOOL else "floats" if dtypes == FLOAT else "numbers"}, any shape
        axes : int or sequence of int, optional
            Axes to reduce, negative ones from the back; None: all; empty: none (elements are reduced one by one).
        keepdims : bool
            Whether reduced axes stay, with size 1.

        Returns
        -------
        Call
            Tensor of the dtype of `x`.

        Source: {source}.
        """
    )
    return constructor


def _lowest(x: np.ndarray) -> Any:
    return -np.inf if x.dtype.kind == "f" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min


def _highest(x: np.ndarray) -> Any:
    return np.inf if x.dtype.kind == "f" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max


def _mean(x: np.ndarray, **kw: Any) -> np.ndarray:
    return np.trunc(np.mean(x, **kw)) if x.dtype.kind in "iu" else np.mean(x, **kw)


_ORDERED = NUMERIC | BOOL

reduce_sum = _reduction("reduce_sum", np.sum, NUMERIC, "Sum", "ONNX ReduceSum")
reduce_mean = _reduction("reduce_mean", _mean, NUMERIC, "Arithmetic mean", "ONNX ReduceMean")
reduce_max = _reduction(
    "reduce_max", lambda x, **kw: np.max(x, initial=_lowest(x), **kw), _ORDERED, "Largest element", "ONNX ReduceMax"
)
reduce_min = _reduction(
    "reduce_min", lambda x, **kw: np.min(x, initial=_highest(x), **kw), _ORDERED, "Smallest element", "ONNX ReduceMin"
)
reduce_prod = _reduction("reduce_prod", np.prod, NUMERIC, "Product", "ONNX ReduceProd")
reduce_l1 = _reduction(
    "reduce_l1", lambda x, **kw: np.sum(np.abs(x), **kw), NUMERIC, "Sum of absolute values", "ONNX ReduceL1"
)
reduce_l2 = _reduction(
    "reduce_l2", lambda x, **kw: np.sqrt(np.sum(x * x, **kw)), NUMERIC, "Square root of sum of squares", "ONNX ReduceL2"
)
reduce_sum_square = _reduction(
    "reduce_sum_square", lambda x, **kw: np.sum(x * x, **kw), NUMERIC, "Sum of squares", "ONNX ReduceSumSquare"
)
reduce_log_sum = _reduction(
    "reduce_log_sum", lambda x, **kw: np.log(np.sum(x, **kw)), FLOAT, "Logarithm of the sum", "ONNX ReduceLogSum"
)


def _log_sum_exp(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> Any:
    if not axis:
        return x
    if x.size == 0:
        return np.full(np.sum(x, axis=axis, keepdims=keepdims).shape, -np.inf)
    return scipy.special.logsumexp(x, axis=axis, keepdims=keepdims)


reduce_log_sum_exp = _reduction(
    "reduce_log_sum_exp", _log_sum_exp, FLOAT, "Logarithm of the sum of exponentials", "ONNX ReduceLogSumExp"
)
reduce_all = _reduction("reduce_all", np.all, BOOL, "Whether all elements are true", "numpy.all")
reduce_any = _reduction("reduce_any", np.any, BOOL, "Whether any element is true", "numpy.any")


def _flat(x: Expr) -> Expr:
    return reshape(x, (-1,))


# --- argmax, argmin ---------------------------------------------------------------------------------------------------


def _infer_arg_extremum(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype(call.op.name, "x", x, NUMERIC)
    axis = normalize_axis(call.op.name, call.attrs["axis"], x.ndim)
    return _reduced(x, (axis,), call.attrs["keepdims"], "int64")


def _arg_extremum(name: str, fn: Callable[..., Any]) -> Op:
    def evaluate(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        axis = attrs["axis"]
        if attrs["select_last"]:
            result = x.shape[axis] - 1 - fn(np.flip(x, axis), axis=axis, keepdims=attrs["keepdims"])
        else:
            result = fn(x, axis=axis, keepdims=attrs["keepdims"])
        return np.asarray(result, np.int64)

    def lower(call: Call) -> Lowered:
        axis = normalize_axis(name, call.attrs["axis"], tensor_info(call, 0).ndim)
        return KernelCall(f"kernel.{name}", [call.args[0], axis, int(call.attrs["select_last"])])

    attrs = {"axis": INT, "keepdims": FLAG, "select_last": FLAG}
    return define(name, _infer_arg_extremum, evaluate, lower, attrs=attrs)


_ARGMAX = _arg_extremum("argmax", np.argmax)
_ARGMIN = _arg_extremum("argmin", np.argmin)


def _make_arg_extremum(op: Op, x: TensorLike, axis: int | None, keepdims: bool, select_last: bool) -> Call:
    x = as_expr(x)
    if axis is None:
        flat = _make_arg_extremum(op, _flat(x), 0, False, select_last)
        return reshape(flat, (1,) * require_ndim(op.name, x)) if keepdims else flat
    attrs = {
        "axis": normalize_axis(op.name, axis, known_ndim(x)),
        "keepdims": bool(keepdims),
        "select_last": bool(select_last),
    }
    return make_call(op, [x], attrs)


def argmax(x: TensorLike, axis: int | None = None, keepdims: bool = False, select_last: bool = False) -> Call:
    """Index of the largest element along `axis`.

    Parameters
    ----------
    x : tensor of numbers
    axis : int, optional
        None: of all elements, in order.
    keepdims : bool
        Whether the axis stays, with size 1.
    select_last : bool
        Of several largest elements take the last instead of the first.

    Returns
    -------
    Call
        int64 tensor.

    Source: ONNX ArgMax.
    """
    return _make_arg_extremum(_ARGMAX, x, axis, keepdims, select_last)


def argmin(x: TensorLike, axis: int | None = None, keepdims: bool = False, select_last: bool = False) -> Call:
    """Index of the smallest element along `axis`.

    Parameters
    ----------
    x : tensor of numbers
    axis : int, optional
        None: of all elements, in order.
    keepdims : bool
        Whether the axis stays, with size 1.
    select_last : bool
        Of several smallest elements take the last instead of the first.

    Returns
    -------
    Call
        int64 tensor.

    Source: ONNX ArgMin.
    """
    return _make_arg_extremum(_ARGMIN, x, axis, keepdims, select_last)


# --- cumsum -----------------------------------------------------------------------------------------------------------


def _infer_cumsum(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype("cumsum", "x", x, NUMERIC)
    normalize_axis("cumsum", call.attrs["axis"], x.ndim)
    return TensorStructInfo(x.shape, x.dtype, x.ndim)


def _evaluate_cumsum(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    axis = attrs["axis"]
    ordered = np.flip(x, axis) if attrs["reverse"] else x
    result = np.cumsum(ordered, axis=axis, dtype=x.dtype)
    if attrs["exclusive"]:
        shifted = np.zeros_like(result)
        head, tail = [slice(None)] * x.ndim, [slice(None)] * x.ndim
        head[axis], tail[axis] = slice(None, -1), slice(1, None)
        shifted[tuple(tail)] = result[tuple(head)]
        result = shifted
    return np.flip(result, axis) if attrs["reverse"] else result


def _lower_cumsum(call: Call) -> Lowered:
    axis = normalize_axis("cumsum", call.attrs["axis"], tensor_info(call, 0).ndim)
    return KernelCall("kernel.cumsum", [call.args[0], axis, int(call.attrs["exclusive"]), int(call.attrs["reverse"])])


_CUMSUM = define(
    "cumsum", _infer_cumsum, _evaluate_cumsum, _lower_cumsum, attrs={"axis": INT, "exclusive": FLAG, "reverse": FLAG}
)


def cumsum(x: TensorLike, axis: int | None = None, exclusive: bool = False, reverse: bool = False) -> Call:
    """Sum of the elements up to each one along `axis`.

    Parameters
    ----------
    x : tensor of numbers
    axis : int, optional
        None: of all elements, in order.
    exclusive : bool
        Whether an element is left out of its own sum.
    reverse : bool
        Sum from the end instead of from the start.

    Returns
    -------
    Call
        Tensor of the shape and dtype of `x`.

    Source: ONNX CumSum.
    """
    x = as_expr(x)
    if axis is None:
        x, axis = _flat(x), 0
    attrs = {
        "axis": normalize_axis("cumsum", axis, known_ndim(x)),
        "exclusive": bool(exclusive),
        "reverse": bool(reverse),
    }
    return make_call(_CUMSUM, [x], attrs)
