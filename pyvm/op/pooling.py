"""Pooling over windows and over whole spatial axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, ShapeExpr
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import StructInfo, TensorStructInfo, TupleStructInfo
from pyvm.op.attributes import FLAG, INT, INTS
from pyvm.op.common import (
    FLOAT,
    TensorLike,
    as_expr,
    check_dtype,
    check_ndim,
    define,
    fail,
    int_tuple,
    make_call,
    require_ndim,
    tensor_info,
)
from pyvm.op.convolution import Ints, check_window, pads_of, static_window_counts, taps_of, window_counts
from pyvm.op.elementwise import abs as absolute
from pyvm.op.elementwise import pow
from pyvm.op.reduce import reduce_sum
from pyvm.op.registry import KernelCall, Lowered, Op

# --- pooling ----------------------------------------------------------------------------------------------------------


def _pooled_shape(call: Call) -> tuple[TensorStructInfo, tuple[Prim, ...] | None]:
    op, attrs, x = call.op.name, call.attrs, tensor_info(call, 0)
    n = len(attrs["kernel"])
    check_ndim(op, "x", x, n + 2)
    if x.shape is None:
        return x, None
    spatial = window_counts(op, x.shape[2:], attrs["kernel"], attrs)
    return x, (*x.shape[:2], *spatial)


_MAX_DTYPES = FLOAT | {"int8", "uint8"}


def _infer_max_pool(call: Call) -> StructInfo:
    x, shape = _pooled_shape(call)
    check_dtype(call.op.name, "x", x, _MAX_DTYPES)
    values = TensorStructInfo(shape, x.dtype, len(call.attrs["kernel"]) + 2)
    if call.op is _MAX_POOL:
        return values
    return TupleStructInfo([values, TensorStructInfo(shape, "int64", values.ndim)])


def _infer_float_pool(call: Call) -> StructInfo:
    x, shape = _pooled_shape(call)
    check_dtype(call.op.name, "x", x, FLOAT)
    return TensorStructInfo(shape, x.dtype, len(call.attrs["kernel"]) + 2)


def _out_of(attrs: dict[str, Any], x: np.ndarray) -> list[int]:
    return static_window_counts("pool", x.shape[2:], attrs["kernel"], attrs)


def _evaluate_max_pool(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    parts = [taps for _, taps in taps_of(x, attrs["kernel"], _out_of(attrs, x), attrs, lowest)]
    return np.maximum.reduce(parts)


def _evaluate_max_pool_with_indices(attrs: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = _out_of(attrs, x)
    spatial = x.shape[2:]
    count = np.arange(math.prod(spatial), dtype=np.int64)
    place = count.reshape(spatial[::-1]).T if attrs["storage_order"] else count.reshape(spatial)
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(*x.shape[:2], *[1] * len(spatial))
    index = place + planes * place.size
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    values = np.stack([taps for _, taps in taps_of(x, attrs["kernel"], out, attrs, lowest)])
    indices = np.stack([taps for _, taps in taps_of(index, attrs["kernel"], out, attrs, -1)])
    # Padding never wins: a window has the first of its largest elements that lies inside.
    inside = indices >= 0
    best = np.where(inside, values, lowest).max(axis=0)
    choice = np.argmax(inside & (values == best), axis=0)[None]
    return best.astype(x.dtype), np.take_along_axis(indices, choice, 0)[0]


def _inside(attrs: dict[str, Any], x: np.ndarray, out: list[int], count_pads: bool) -> np.ndarray:
    """How many elements of each window count: those inside `x`, or inside `x` with its explicit padding."""
    n = len(attrs["kernel"])
    if not count_pads:
        ones, own = np.ones((1, 1, *x.shape[2:])), attrs
    else:
        pads = attrs["pads"]
        ones = np.ones((1, 1, *(d + pads[i] + pads[n + i] for i, d in enumerate(x.shape[2:]))))
        own = {**attrs, "pads": (0,) * (2 * n)}
    return sum(taps for _, taps in taps_of(ones, attrs["kernel"], out, own, 0.0))  # type: ignore[return-value]


def _evaluate_avg_pool(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    out = _out_of(attrs, x)
    total = sum(taps for _, taps in taps_of(x.astype(np.float64), attrs["kernel"], out, attrs, 0.0))
    return np.asarray(total / _inside(attrs, x, out, attrs["count_include_pad"])).astype(x.dtype)


def _evaluate_lp_pool(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    p = attrs["p"]
    powers = np.abs(x.astype(np.float64)) ** p
    total = sum(taps for _, taps in taps_of(powers, attrs["kernel"], _out_of(attrs, x), attrs, 0.0))
    return np.asarray(total ** (1 / p)).astype(x.dtype)


def _lower_pool(*scalars: str) -> Callable[[Call], Lowered]:
    def lower(call: Call) -> Lowered:
        shapes = [ShapeExpr(call.attrs[key]) for key in ("kernel", "strides", "pads", "dilations")]
        return KernelCall(f"kernel.{call.op.name}", [call.args[0], *shapes, *(int(call.attrs[s]) for s in scalars)])

    return lower


_WINDOW = {"kernel": INTS, "strides": INTS, "pads": INTS, "dilations": INTS, "ceil_mode": FLAG}
_MAX_POOL = define("max_pool", _infer_max_pool, _evaluate_max_pool, _lower_pool(), half=False, attrs=_WINDOW)
_MAX_POOL_WITH_INDICES = define(
    "max_pool_with_indices",
    _infer_max_pool,
    _evaluate_max_pool_with_indices,
    _lower_pool("storage_order"),
    n_outputs=2,
    half=False,
    attrs={**_WINDOW, "storage_order": INT},
)
_AVG_POOL = define(
    "avg_pool",
    _infer_float_pool,
    _evaluate_avg_pool,
    _lower_pool("count_include_pad"),
    half=False,
    attrs={**_WINDOW, "count_include_pad": FLAG},
)
_LP_POOL = define(
    "lp_pool", _infer_float_pool, _evaluate_lp_pool, _lower_pool("p"), half=False, attrs={**_WINDOW, "p": INT}
)


def _make_pool(
    op: Op,
    x: TensorLike,
    kernel: Sequence[int],
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    ceil_mode: bool,
    **attrs: int | bool,
) -> Call:
    name, n = op.name, len(kernel)
    window = {
        "kernel": int_tuple(name, "kernel", kernel, n),
        "strides": int_tuple(name, "strides", strides, n),
        "pads": pads_of(name, pads, n),
        "dilations": int_tuple(name, "dilations", dilations, n),
    }
    check_window(name, window["kernel"], window["strides"], window["dilations"])
    if n < 1:
        fail(name, "the kernel has no dimensions")
    return make_call(op, [as_expr(x)], {**window, "ceil_mode": bool(ceil_mode), **attrs})


def max_pool(
    x: TensorLike,
    kernel: Sequence[int],
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    ceil_mode: bool = False,
) -> Call:
    """Largest element of each window.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)
    kernel : sequence of int
        Size of the window, one per spatial axis.
    strides, dilations : int or sequence of int
    pads : int or sequence of int
        Padding before every spatial axis, then after; it never wins.
    ceil_mode : bool
        Whether a last, incomplete window counts.

    Returns
    -------
    Call
        Tensor (n, c, *out).

    Source: ONNX MaxPool.
    """
    return _make_pool(_MAX_POOL, x, kernel, strides, pads, dilations, ceil_mode)


def max_pool_with_indices(
    x: TensorLike,
    kernel: Sequence[int],
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    ceil_mode: bool = False,
    storage_order: int = 0,
) -> Call:
    """`max_pool`, and where each of its elements was found.

    Parameters
    ----------
    x, kernel, strides, pads, dilations, ceil_mode
        As for `max_pool`.
    storage_order : int
        Whether an index counts the spatial axes in row-major (0) or column-major (1) order.

    Returns
    -------
    Call
        Tuple of values and int64 indices into the flattened `x`.

    Source: ONNX MaxPool.
    """
    if storage_order not in (0, 1):
        fail("max_pool_with_indices", f"storage_order {storage_order}, expected 0 or 1")
    order = int(storage_order)
    return _make_pool(_MAX_POOL_WITH_INDICES, x, kernel, strides, pads, dilations, ceil_mode, storage_order=order)


def avg_pool(
    x: TensorLike,
    kernel: Sequence[int],
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Call:
    """Mean of each window.

    Parameters
    ----------
    x, kernel, strides, pads, dilations, ceil_mode
        As for `max_pool`, with zeros as padding.
    count_include_pad : bool
        Whether padding counts in the divisor (what lies beyond it in `ceil_mode` never does).

    Returns
    -------
    Call
        Tensor (n, c, *out).

    Source: ONNX AveragePool.
    """
    return _make_pool(
        _AVG_POOL, x, kernel, strides, pads, dilations, ceil_mode, count_include_pad=bool(count_include_pad)
    )


def lp_pool(
    x: TensorLike,
    kernel: Sequence[int],
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    ceil_mode: bool = False,
    p: int = 2,
) -> Call:
    """p-norm of each window.

    Parameters
    ----------
    x, kernel, strides, pads, dilations, ceil_mode
        As for `max_pool`, with zeros as padding.
    p : int
        At least 1.

    Returns
    -------
    Call
        Tensor (n, c, *out).

    Source: ONNX LpPool.
    """
    if p < 1:
        fail("lp_pool", f"p {p}, expected at least 1")
    return _make_pool(_LP_POOL, x, kernel, strides, pads, dilations, ceil_mode, p=int(p))


def _infer_global_pool(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype(call.op.name, "x", x, FLOAT)
    check_ndim(call.op.name, "x", x, 3, at_least=True)
    if x.shape is None:
        return TensorStructInfo(None, x.dtype, x.ndim)
    return TensorStructInfo((*x.shape[:2], *[1] * (x.ndim - 2)), x.dtype)


def _global_pool(name: str, fn: Callable[..., Any]) -> Op:
    def evaluate(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return np.asarray(fn(x.astype(np.float64), axis=tuple(range(2, x.ndim)), keepdims=True)).astype(x.dtype)

    return define(name, _infer_global_pool, evaluate, half=False)


_GLOBAL_AVG_POOL = _global_pool("global_avg_pool", np.mean)
_GLOBAL_MAX_POOL = _global_pool("global_max_pool", np.max)


def global_avg_pool(x: TensorLike) -> Call:
    """Mean over all spatial axes, which stay with size 1.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)

    Source: ONNX GlobalAveragePool.
    """
    return make_call(_GLOBAL_AVG_POOL, [as_expr(x)])


def global_max_pool(x: TensorLike) -> Call:
    """Largest element over all spatial axes, which stay with size 1.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)

    Source: ONNX GlobalMaxPool.
    """
    return make_call(_GLOBAL_MAX_POOL, [as_expr(x)])


def global_lp_pool(x: TensorLike, p: int = 2) -> Call:
    """p-norm over all spatial axes, which stay with size 1.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)
    p : int
        At least 1.

    Source: ONNX GlobalLpPool.
    """
    x = as_expr(x)
    if p < 1:
        fail("global_lp_pool", f"p {p}, expected at least 1")
    axes = range(2, require_ndim("global_lp_pool", x))
    return pow(reduce_sum(pow(absolute(x), float(p)), axes, keepdims=True), 1 / p)
