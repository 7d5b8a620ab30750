"""Operators that address elements by the values of a tensor: gather, scatter, one_hot, topk, nonzero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, PrimValue
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import PrimStructInfo, StructInfo, TensorStructInfo, TupleStructInfo
from pyvm.op.attributes import FLAG, INT, one_of
from pyvm.op.common import (
    ALL,
    INDEX,
    NUMERIC,
    TensorLike,
    as_expr,
    as_exprs,
    as_shape,
    check_dtype,
    check_ndim,
    define,
    fail,
    known_ndim,
    known_tensor,
    make_call,
    normalize_axis,
    same_dim,
    same_dtype,
    shape_arg,
    show_shape,
    tensor_info,
)
from pyvm.op.elementwise import cast
from pyvm.op.registry import KernelCall, Lowered, PackedCall
from vmcore.errors import IndexRangeError

# --- gather -----------------------------------------------------------------------------------------------------------


def _infer_gather(call: Call) -> StructInfo:
    x, indices = tensor_info(call, 0), tensor_info(call, 1)
    check_dtype("gather", "indices", indices, INDEX)
    check_ndim("gather", "x", x, 1, at_least=True)
    axis = normalize_axis("gather", call.attrs["axis"], x.ndim)
    if x.shape is not None and indices.shape is not None:
        return TensorStructInfo((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)
    known = x.ndim >= 0 and indices.ndim >= 0
    return TensorStructInfo(None, x.dtype, x.ndim - 1 + indices.ndim if known else -1)


def _check_indices(op: str, indices: np.ndarray, dim: Any) -> None:
    bad = (indices < -np.asarray(dim)) | (indices >= dim)
    if np.any(bad):
        raise IndexRangeError(f"{op}: index {indices[bad].flat[0]} is outside an axis of size {np.max(dim)}")


def _evaluate_gather(attrs: dict[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    _check_indices("gather", indices, x.shape[attrs["axis"]])
    return np.take(x, indices, axis=attrs["axis"])


def _lower_axis(call: Call) -> Lowered:
    """The inputs, then the axis."""
    axis = normalize_axis(call.op.name, call.attrs["axis"], tensor_info(call, 0).ndim)
    return KernelCall(f"kernel.{call.op.name}", [*call.args, axis])


_GATHER = define("gather", _infer_gather, _evaluate_gather, _lower_axis, attrs={"axis": INT})


def gather(x: TensorLike, indices: TensorLike, axis: int = 0) -> Call:
    """Slices of `x` along `axis` at `indices`.

    Parameters
    ----------
    x : tensor, ndim >= 1
    indices : int32 or int64 tensor, any shape
        Negative ones count from the back.
    axis : int

    Returns
    -------
    Call
        Tensor with the axes of `indices` in place of `axis`.

    Source: ONNX Gather.
    """
    x = as_expr(x)
    return make_call(_GATHER, [x, as_expr(indices, "int64")], {"axis": normalize_axis("gather", axis, known_ndim(x))})


def _check_fits_outside(op: str, x: TensorStructInfo, indices: TensorStructInfo, axis: int) -> None:
    """Raise if `indices` is larger than `x` outside `axis`."""
    if x.shape is None or indices.shape is None:
        return
    for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)):
        if i != axis and isinstance(a, int) and isinstance(b, int) and b > a:
            fail(op, f"indices {show_shape(indices.shape)} exceed {show_shape(x.shape)} at axis {i}")


def _infer_gather_elements(call: Call) -> StructInfo:
    x, indices = tensor_info(call, 0), tensor_info(call, 1)
    check_dtype("gather_elements", "indices", indices, INDEX)
    if x.ndim >= 0:
        check_ndim("gather_elements", "indices", indices, x.ndim)
    axis = normalize_axis("gather_elements", call.attrs["axis"], x.ndim)
    _check_fits_outside("gather_elements", x, indices, axis)
    return TensorStructInfo(indices.shape, x.dtype, indices.ndim if indices.ndim >= 0 else x.ndim)


def _element_index(axis: int, indices: np.ndarray, dim: int) -> tuple[np.ndarray, ...]:
    """Index arrays that address, for every position of `indices`, that position with `axis` replaced."""
    grid: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = np.where(indices < 0, indices + dim, indices)
    return tuple(grid)


def _evaluate_gather_elements(attrs: dict[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = attrs["axis"]
    _check_indices("gather_elements", indices, x.shape[axis])
    return x[_element_index(axis, indices, x.shape[axis])]


_GATHER_ELEMENTS = define(
    "gather_elements", _infer_gather_elements, _evaluate_gather_elements, _lower_axis, attrs={"axis": INT}
)


def gather_elements(x: TensorLike, indices: TensorLike, axis: int = 0) -> Call:
    """y[i, j, k] = x[indices[i, j, k], j, k] for axis 0, and so on.

    Parameters
    ----------
    x : tensor
    indices : int32 or int64 tensor of the rank of `x`
        Outside `axis` no larger than `x`. Negative ones count from the back.
    axis : int

    Returns
    -------
    Call
        Tensor of the shape of `indices`.

    Source: ONNX GatherElements.
    """
    x = as_expr(x)
    attrs = {"axis": normalize_axis("gather_elements", axis, known_ndim(x))}
    return make_call(_GATHER_ELEMENTS, [x, as_expr(indices, "int64")], attrs)


def _infer_gather_nd(call: Call) -> StructInfo:
    x, indices, batch = tensor_info(call, 0), tensor_info(call, 1), call.attrs["batch_dims"]
    check_dtype("gather_nd", "indices", indices, INDEX)
    check_ndim("gather_nd", "indices", indices, batch + 1, at_least=True)
    check_ndim("gather_nd", "x", x, batch + 1, at_least=True)
    if x.shape is None or indices.shape is None:
        return TensorStructInfo(None, x.dtype)
    depth = indices.shape[-1]
    if not isinstance(depth, int) or not 1 <= depth <= x.ndim - batch:
        fail("gather_nd", f"indices {show_shape(indices.shape)} with {batch} batch axes on {show_shape(x.shape)}")
    for i in range(batch):
        if same_dim(x.shape[i], indices.shape[i]) is False:
            fail("gather_nd", f"batch axis {i}: {show_shape(x.shape)} and {show_shape(indices.shape)} differ")
    return TensorStructInfo((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)


def _nd_index(op: str, indices: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Index arrays for the last axis of `indices`, wrapped to `shape`."""
    _check_indices(op, indices, np.asarray(shape[: indices.shape[-1]]))
    return tuple(
        np.where(indices[..., i] < 0, indices[..., i] + shape[i], indices[..., i]) for i in range(indices.shape[-1])
    )


def _evaluate_gather_nd(attrs: dict[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    batch = attrs["batch_dims"]
    if not batch:
        return x[_nd_index("gather_nd", indices, x.shape)]
    lead = x.shape[:batch]
    depth = indices.shape[-1]
    shape = (*indices.shape[:-1], *x.shape[batch + depth :])
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_i = indices.reshape(-1, *indices.shape[batch:])
    parts = [flat_x[b][_nd_index("gather_nd", flat_i[b], flat_x.shape[1:])] for b in range(math.prod(lead))]
    return np.stack(parts).reshape(shape) if parts else np.zeros(shape, x.dtype)


_GATHER_ND = define(
    "gather_nd",
    _infer_gather_nd,
    _evaluate_gather_nd,
    lambda call: KernelCall("kernel.gather_nd", [*call.args, call.attrs["batch_dims"]]),
    attrs={"batch_dims": INT},
)


def gather_nd(x: TensorLike, indices: TensorLike, batch_dims: int = 0) -> Call:
    """Slices of `x` at index vectors: y[i, j] = x[indices[i, j, 0], indices[i, j, 1], ...].

    Parameters
    ----------
    x : tensor
    indices : int32 or int64 tensor, (..., depth)
        Negative ones count from the back.
    batch_dims : int
        Leading axes that `x` and `indices` share.

    Returns
    -------
    Call
        Tensor of shape indices.shape[:-1] + x.shape[batch_dims + depth:].

    Source: ONNX GatherND.
    """
    return make_call(_GATHER_ND, [as_expr(x), as_expr(indices, "int64")], {"batch_dims": int(batch_dims)})


# --- scatter ----------------------------------------------------------------------------------------------------------

REDUCTIONS = {"none": 0, "add": 1, "mul": 2, "max": 3, "min": 4}
_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(x: np.ndarray, index: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    result = x.copy()
    if reduction == "none":
        result[index] = updates
    else:
        _COMBINE[reduction].at(result, index, updates)
    return result


def _infer_scatter_elements(call: Call) -> StructInfo:
    x, indices, updates = (tensor_info(call, i) for i in range(3))
    dtype = same_dtype("scatter_elements", [x, updates])
    check_dtype("scatter_elements", "indices", indices, INDEX)
    axis = normalize_axis("scatter_elements", call.attrs["axis"], x.ndim)
    if x.ndim >= 0:
        check_ndim("scatter_elements", "indices", indices, x.ndim)
        check_ndim("scatter_elements", "updates", updates, x.ndim)
    _check_fits_outside("scatter_elements", x, indices, axis)
    if indices.shape is not None and updates.shape is not None:
        for a, b in zip(indices.shape, updates.shape, strict=True):
            if same_dim(a, b) is False:
                fail(
                    "scatter_elements",
                    f"indices {show_shape(indices.shape)} and updates {show_shape(updates.shape)} differ",
                )
    return TensorStructInfo(x.shape, dtype, x.ndim)


def _evaluate_scatter_elements(
    attrs: dict[str, Any], x: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    axis = attrs["axis"]
    _check_indices("scatter_elements", indices, x.shape[axis])
    return _scatter(x, _element_index(axis, indices, x.shape[axis]), updates, attrs["reduction"])


def _lower_scatter_elements(call: Call) -> Lowered:
    axis = normalize_axis("scatter_elements", call.attrs["axis"], tensor_info(call, 0).ndim)
    return KernelCall("kernel.scatter_elements", [*call.args, axis, REDUCTIONS[call.attrs["reduction"]]])


_SCATTER_ELEMENTS = define(
    "scatter_elements",
    _infer_scatter_elements,
    _evaluate_scatter_elements,
    _lower_scatter_elements,
    attrs={"axis": INT, "reduction": one_of(REDUCTIONS)},
)


def scatter_elements(
    x: TensorLike, indices: TensorLike, updates: TensorLike, axis: int = 0, reduction: str = "none"
) -> Call:
    """A copy of `x` with y[indices[i, j], j] set to (or combined with) updates[i, j] for axis 0, and so on.

    Parameters
    ----------
    x : tensor
    indices : int32 or int64 tensor of the rank of `x`
        Negative ones count from the back. With "none", no two may name the same element.
    updates : tensor of the shape of `indices` and the dtype of `x`
    axis : int
    reduction : str
        "none", "add", "mul", "max" or "min".

    Source: ONNX ScatterElements.
    """
    x = as_expr(x)
    attrs = {
        "axis": normalize_axis("scatter_elements", axis, known_ndim(x)),
        "reduction": reduction,
    }
    return make_call(_SCATTER_ELEMENTS, [x, as_expr(indices, "int64"), as_expr(updates)], attrs)


def _infer_scatter_nd(call: Call) -> StructInfo:
    x, indices, updates = (tensor_info(call, i) for i in range(3))
    dtype = same_dtype("scatter_nd", [x, updates])
    check_dtype("scatter_nd", "indices", indices, INDEX)
    check_ndim("scatter_nd", "indices", indices, 1, at_least=True)
    if x.shape is not None and indices.shape is not None:
        depth = indices.shape[-1]
        if not isinstance(depth, int) or not 1 <= depth <= x.ndim:
            fail("scatter_nd", f"indices {show_shape(indices.shape)} on {show_shape(x.shape)}")
        expected = (*indices.shape[:-1], *x.shape[depth:])
        if updates.shape is not None and (
            len(updates.shape) != len(expected)
            or any(same_dim(a, b) is False for a, b in zip(updates.shape, expected, strict=True))
        ):
            fail("scatter_nd", f"updates {show_shape(updates.shape)}, expected {show_shape(expected)}")
    return TensorStructInfo(x.shape, dtype, x.ndim)


def _evaluate_scatter_nd(attrs: dict[str, Any], x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    return _scatter(x, _nd_index("scatter_nd", indices, x.shape), updates, attrs["reduction"])


_SCATTER_ND = define(
    "scatter_nd",
    _infer_scatter_nd,
    _evaluate_scatter_nd,
    lambda call: KernelCall("kernel.scatter_nd", [*call.args, REDUCTIONS[call.attrs["reduction"]]]),
    attrs={"reduction": one_of(REDUCTIONS)},
)


def scatter_nd(x: TensorLike, indices: TensorLike, updates: TensorLike, reduction: str = "none") -> Call:
    """A copy of `x` with the slices at index vectors set to (or combined with) `updates`.

    Parameters
    ----------
    x : tensor
    indices : int32 or int64 tensor, (..., depth)
        Negative ones count from the back.
    updates : tensor, indices.shape[:-1] + x.shape[depth:]
        Of the dtype of `x`.
    reduction : str
        "none", "add", "mul", "max" or "min".

    Source: ONNX ScatterND.
    """
    args = [as_expr(x), as_expr(indices, "int64"), as_expr(updates)]
    return make_call(_SCATTER_ND, args, {"reduction": reduction})


# --- one_hot ---------------------------------------------------------------------------------------------------------


def _infer_one_hot(call: Call) -> StructInfo:
    indices, off, on = (tensor_info(call, i) for i in range(3))
    depth = shape_arg(call, 3)
    dtype = same_dtype("one_hot", [off, on])
    check_dtype("one_hot", "indices", indices, INDEX)
    axis = call.attrs["axis"]
    if indices.ndim >= 0:
        axis = normalize_axis("one_hot", axis, indices.ndim + 1)
    if indices.shape is None or depth is None:
        return TensorStructInfo(None, dtype, indices.ndim + 1 if indices.ndim >= 0 else -1)
    return TensorStructInfo((*indices.shape[:axis], depth[0], *indices.shape[axis:]), dtype)


def _evaluate_one_hot(
    attrs: dict[str, Any], indices: np.ndarray, off: np.ndarray, on: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    depth = shape[0]
    axis = attrs["axis"] % (indices.ndim + 1)
    wrapped = np.where(indices < 0, indices + depth, indices)
    classes = np.arange(depth).reshape(-1, *[1] * (indices.ndim - axis))
    return np.where(np.expand_dims(wrapped, axis) == classes, on.reshape(()), off.reshape(()))


def _lower_one_hot(call: Call) -> Lowered:
    ndim = tensor_info(call, 0).ndim
    axis = normalize_axis("one_hot", call.attrs["axis"], ndim + 1 if ndim >= 0 else -1)
    return KernelCall("kernel.one_hot", [*call.args[:3], axis])


_ONE_HOT = define("one_hot", _infer_one_hot, _evaluate_one_hot, _lower_one_hot, attrs={"axis": INT})


def one_hot(indices: TensorLike, depth: Prim, off: TensorLike, on: TensorLike, axis: int = -1) -> Call:
    """A new axis of size `depth` that is `on` at the index and `off` elsewhere.

    Parameters
    ----------
    indices : tensor of numbers
        Cast to int64 if need be. Negative ones count from `depth`; those outside of it give `off` everywhere.
    depth : int or PrimExpr
    off, on : one-element tensor of one dtype, or a number
    axis : int
        Position of the new axis in the result.

    Source: ONNX OneHot.
    """
    indices = as_expr(indices, "int64")
    info = known_tensor(indices)
    if info is not None and info.dtype is not None and info.dtype not in INDEX:
        indices = cast(indices, "int64")
    ndim = known_ndim(indices)
    attrs = {"axis": normalize_axis("one_hot", axis, ndim + 1 if ndim >= 0 else -1)}
    return make_call(_ONE_HOT, [indices, *as_exprs(off, on), as_shape((depth,))], attrs)


# --- data-dependent ---------------------------------------------------------------------------------------------------


def _infer_topk(call: Call) -> StructInfo:
    x, k = tensor_info(call, 0), shape_arg(call, 1)
    check_dtype("topk", "x", x, NUMERIC)
    axis = normalize_axis("topk", call.attrs["axis"], x.ndim)
    if x.shape is None or k is None:
        return TupleStructInfo([TensorStructInfo(None, dtype, x.ndim) for dtype in (x.dtype, "int64")])
    dim = x.shape[axis]
    if isinstance(dim, int) and isinstance(k[0], int) and not 0 <= k[0] <= dim:
        fail("topk", f"k is {k[0]}, but axis {axis} of {show_shape(x.shape)} is {dim}")
    shape = (*x.shape[:axis], k[0], *x.shape[axis + 1 :])
    return TupleStructInfo([TensorStructInfo(shape, dtype) for dtype in (x.dtype, "int64")])


def _evaluate_topk(attrs: dict[str, Any], x: np.ndarray, k: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    axis = attrs["axis"]
    if attrs["largest"]:
        # A stable ascending sort of the reversed axis puts equal elements in falling order of index: reverse it.
        flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = x.shape[axis] - 1 - np.flip(flipped, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    indices = np.take(order, np.arange(k[0]), axis=axis)
    return np.take_along_axis(x, indices, axis), indices.astype(np.int64)


def _lower_topk(call: Call) -> Lowered:
    axis = normalize_axis("topk", call.attrs["axis"], tensor_info(call, 0).ndim)
    k = shape_arg(call, 1)
    if k is None:
        fail("topk", "k must be an int or a symbol")
    flags = [int(call.attrs["largest"]), int(call.attrs["sorted"])]
    return KernelCall("kernel.topk", [call.args[0], PrimValue(k[0]), axis, *flags])


_TOPK = define(
    "topk", _infer_topk, _evaluate_topk, _lower_topk, n_outputs=2, attrs={"axis": INT, "largest": FLAG, "sorted": FLAG}
)


def topk(x: TensorLike, k: Prim, axis: int = -1, largest: bool = True, sorted: bool = True) -> Call:
    """The `k` largest or smallest elements along `axis`, and their indices; of equal ones the first come first.

    Parameters
    ----------
    x : tensor of numbers
    k : int or PrimExpr
    axis : int
    largest : bool
    sorted : bool
        Whether the result must be in order.

    Returns
    -------
    Call
        Tuple of values, in the dtype of `x`, and int64 indices; both have size `k` along `axis`.

    Source: ONNX TopK.
    """
    x = as_expr(x)
    attrs = {
        "axis": normalize_axis("topk", axis, known_ndim(x)),
        "largest": bool(largest),
        "sorted": bool(sorted),
    }
    return make_call(_TOPK, [x, as_shape((k,))], attrs)


def _infer_nonzero_count(call: Call) -> StructInfo:
    check_dtype("nonzero_count", "x", tensor_info(call, 0), ALL)
    return PrimStructInfo("int64")


_NONZERO_COUNT = define(
    "nonzero_count",
    _infer_nonzero_count,
    lambda attrs, x: int(np.count_nonzero(x)),
    lambda call: PackedCall("kernel.nonzero_count", list(call.args)),
)


def nonzero_count(x: TensorLike) -> Call:
    """How many elements are not zero, as an integer scalar.

    Name it with `BlockBuilder.match_cast` to `PrimStructInfo("int64", SymVar(...))` and pass that symbol to `nonzero`.

    Parameters
    ----------
    x : tensor
    """
    return make_call(_NONZERO_COUNT, [as_expr(x)])


def _infer_nonzero(call: Call) -> StructInfo:
    x, count = tensor_info(call, 0), shape_arg(call, 1)
    if x.ndim < 0 or count is None:
        return TensorStructInfo(None, "int64", 2)
    return TensorStructInfo((x.ndim, count[0]), "int64")


_NONZERO = define(
    "nonzero",
    _infer_nonzero,
    lambda attrs, x, count: np.asarray(np.nonzero(np.atleast_1d(x)), np.int64).reshape(x.ndim, count[0]),
    lambda call: KernelCall("kernel.nonzero", [call.args[0]]),
)


def nonzero(x: TensorLike, count: Prim) -> Call:
    """Indices of the elements that are not zero, in row-major order.

    Parameters
    ----------
    x : tensor
    count : int or PrimExpr
        How many there are: `nonzero_count`.

    Returns
    -------
    Call
        int64 tensor (ndim, count).

    Source: ONNX NonZero.
    """
    return make_call(_NONZERO, [as_expr(x), as_shape((count,))])
