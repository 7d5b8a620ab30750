"""Operators on shapes and views: reshape and its kin, shapes as values, scalars and tensors of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyvm.ir.expr import Call, Expr, ShapeExpr
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import PrimStructInfo, ShapeStructInfo, StructInfo, TensorStructInfo
from pyvm.op.common import (
    INDEX,
    Shape,
    TensorLike,
    as_expr,
    as_shape,
    check_dtype,
    check_ndim,
    define,
    fail,
    known_tensor,
    make_call,
    normalize_axes,
    normalize_axis,
    product,
    require_shape,
    same_dim,
    shape_arg,
    shape_arg_ndim,
    show_shape,
    tensor_info,
)
from pyvm.op.registry import PackedCall, View

# --- reshape ----------------------------------------------------------------------------------------------------------


def resolve_reshape(shape: Sequence[Prim], target: Sequence[Prim], allow_zero: bool = False) -> Shape:
    """`target` with its -1 (the rest of the elements) and, unless `allow_zero`, its 0s (the dim of `shape`) replaced.

    Parameters
    ----------
    shape : sequence of int or PrimExpr
        Shape of the tensor.
    target : sequence of int or PrimExpr
        New shape; at most one -1.
    allow_zero : bool
        Whether a 0 means an empty axis.

    Raises
    ------
    CompileError
        If there are two -1, a 0 beyond the rank, or a known number of elements that the target does not divide.

    Source: ONNX Reshape, attribute allowzero.
    """
    result: list[Prim] = []
    free: int | None = None
    for i, dim in enumerate(target):
        if isinstance(dim, int) and dim == -1:
            if free is not None:
                fail("reshape", f"target {show_shape(target)} has more than one -1")
            free = i
            result.append(1)
        elif isinstance(dim, int) and dim == 0 and not allow_zero:
            if i >= len(shape):
                fail("reshape", f"0 at axis {i} of target {show_shape(target)} copies no axis of {show_shape(shape)}")
            result.append(shape[i])
        elif isinstance(dim, int) and dim < 0:
            fail("reshape", f"target {show_shape(target)} has the size {dim}")
        else:
            result.append(dim)
    if free is not None:
        result[free] = _rest(shape, result, target)
    return tuple(result)


def _rest(shape: Sequence[Prim], known: Sequence[Prim], target: Sequence[Prim]) -> Prim:
    """Elements of `shape` per element of `known`. Equal dims cancel first, so empty and symbolic axes divide too."""
    above, below = list(shape), list(known)
    for dim in known:
        if dim in above:
            above.remove(dim)
            below.remove(dim)
    total, divisor = product(above), product(below)
    if isinstance(divisor, int):
        if divisor == 0:
            fail("reshape", f"-1 in target {show_shape(target)} of {show_shape(shape)} could be any size")
        if isinstance(total, int) and total % divisor:
            fail("reshape", f"{show_shape(shape)} does not divide into {show_shape(target)}")
    return total // divisor


def _infer_reshape(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    shape = shape_arg(call, 1)
    if shape is None:
        return TensorStructInfo(None, x.dtype, shape_arg_ndim(call, 1))
    if x.shape is not None and same_dim(product(x.shape), product(shape)) is False:
        fail(
            "reshape",
            f"{show_shape(x.shape)} has {product(x.shape)} elements, {show_shape(shape)} has {product(shape)}",
        )
    return TensorStructInfo(shape, x.dtype)


_RESHAPE = define(
    "reshape",
    _infer_reshape,
    lambda attrs, x, shape: x.reshape(shape),
    lambda call: View(call.args[0], call.args[1]),
)


def reshape(x: TensorLike, shape: Expr | Sequence[Prim], allow_zero: bool = False) -> Call:
    """The elements of `x` in row-major order under another shape.

    Parameters
    ----------
    x : tensor
    shape : shape expression or sequence of int or PrimExpr
        In a sequence -1 stands for the rest of the elements, and 0 for the dim of `x` unless `allow_zero`.
    allow_zero : bool
        Whether a 0 means an empty axis.

    Returns
    -------
    Call
        A view: no bytes move.

    Source: ONNX Reshape.
    """
    x = as_expr(x)
    if isinstance(shape, ShapeExpr):
        shape = shape.values
    if not isinstance(shape, Expr):
        dims: list[Prim] = [d if not isinstance(d, np.integer) else int(d) for d in shape]
        if any(isinstance(d, int) and (d == -1 or (d == 0 and not allow_zero)) for d in dims):
            info = known_tensor(x)
            if info is not None and info.shape is not None:
                dims = list(resolve_reshape(info.shape, dims, allow_zero))
            else:
                fail("reshape", f"target {show_shape(dims)} needs the shape of the argument, got {x.struct_info}")
        shape = dims
    return make_call(_RESHAPE, [x, as_shape(shape)])


def squeeze(x: TensorLike, axes: int | Sequence[int] | None = None) -> Call:
    """`x` without axes of size 1.

    Parameters
    ----------
    x : tensor of known shape
    axes : int or sequence of int, optional
        Axes to drop, each of size 1; None: all whose size is the constant 1.

    Returns
    -------
    Call
        A view.

    Source: ONNX Squeeze.
    """
    x = as_expr(x)
    shape = require_shape("squeeze", x)
    if axes is None:
        drop = {i for i, d in enumerate(shape) if isinstance(d, int) and d == 1}
    else:
        axes = (axes,) if isinstance(axes, (int, np.integer, np.bool_)) else axes
        drop = set(normalize_axes("squeeze", axes, len(shape)))
        for axis in sorted(drop):
            # A symbolic size that may be 1 is dropped too: the view checks the number of elements at run time.
            if same_dim(shape[axis], 1) is False:
                fail("squeeze", f"axis {axis} of {show_shape(shape)} has size {shape[axis]}, expected 1")
    return make_call(_RESHAPE, [x, ShapeExpr([d for i, d in enumerate(shape) if i not in drop])])


def unsqueeze(x: TensorLike, axes: int | Sequence[int]) -> Call:
    """`x` with new axes of size 1 at the positions `axes` of the result.

    Parameters
    ----------
    x : tensor of known shape
    axes : int or sequence of int

    Returns
    -------
    Call
        A view.

    Source: ONNX Unsqueeze.
    """
    x = as_expr(x)
    shape = list(require_shape("unsqueeze", x))
    axes = (axes,) if isinstance(axes, (int, np.integer, np.bool_)) else tuple(axes)
    for axis in normalize_axes("unsqueeze", axes, len(shape) + len(axes)):
        shape.insert(axis, 1)
    return make_call(_RESHAPE, [x, ShapeExpr(shape)])


def flatten(x: TensorLike, axis: int = 1) -> Call:
    """`x` as a matrix: the axes before `axis` make the rows, the others the columns.

    Parameters
    ----------
    x : tensor of known shape
    axis : int
        0 .. ndim, negative from the back.

    Returns
    -------
    Call
        A view with two axes.

    Source: ONNX Flatten.
    """
    x = as_expr(x)
    shape = require_shape("flatten", x)
    if axis != len(shape):
        axis = normalize_axis("flatten", axis, len(shape))
    return make_call(_RESHAPE, [x, ShapeExpr((product(shape[:axis]), product(shape[axis:])))])


# --- shapes as values -------------------------------------------------------------------------------------------------


def _infer_shape_of(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    return ShapeStructInfo(x.shape, x.ndim)


_SHAPE_OF = define(
    "shape_of",
    _infer_shape_of,
    lambda attrs, x: tuple(x.shape),
    lambda call: PackedCall("vm.builtin.shape_of", list(call.args)),
)


def shape_of(x: TensorLike) -> Expr:
    """The shape of `x` as a shape value: a `ShapeExpr` where it is known, a call otherwise.

    Parameters
    ----------
    x : tensor

    Source: ONNX Shape (which returns a tensor: see `shape_to_tensor`).
    """
    x = as_expr(x)
    info = known_tensor(x)
    if info is not None and info.shape is not None:
        return ShapeExpr(info.shape)
    return make_call(_SHAPE_OF, [x])


def _infer_shape_to_tensor(call: Call) -> StructInfo:
    ndim = shape_arg_ndim(call, 0)
    return TensorStructInfo(None if ndim < 0 else (ndim,), "int64", 1)


_SHAPE_TO_TENSOR = define(
    "shape_to_tensor",
    _infer_shape_to_tensor,
    lambda attrs, shape: np.asarray(shape, np.int64).reshape(-1),
    lambda call: PackedCall("pyvm.builtin.shape_to_tensor", list(call.args)),
)


def shape_to_tensor(shape: Expr | Sequence[Prim]) -> Call:
    """The values of a shape as an int64 tensor with one axis.

    Parameters
    ----------
    shape : shape expression or sequence of int or PrimExpr
    """
    return make_call(_SHAPE_TO_TENSOR, [as_shape(shape)])


def _infer_tensor_to_shape(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype("tensor_to_shape", "x", x, INDEX)
    check_ndim("tensor_to_shape", "x", x, 1)
    size = x.shape[0] if x.shape else None
    return ShapeStructInfo(None, size if isinstance(size, int) else -1)


_TENSOR_TO_SHAPE = define(
    "tensor_to_shape",
    _infer_tensor_to_shape,
    lambda attrs, x: tuple(int(v) for v in x),
    lambda call: PackedCall("vm.builtin.tensor_to_shape", list(call.args)),
)


def tensor_to_shape(x: TensorLike) -> Call:
    """The elements of an integer tensor with one axis as a shape value.

    Its values are unknown to the compiler: name them with `BlockBuilder.match_cast` to a `ShapeStructInfo` of symbols.

    Parameters
    ----------
    x : int64 tensor, (n,)
    """
    return make_call(_TENSOR_TO_SHAPE, [as_expr(x)])


def size(x: TensorLike) -> Call:
    """The number of elements of `x` as an int64 tensor without axes.

    Parameters
    ----------
    x : tensor of known shape

    Source: ONNX Size.
    """
    n_elems = product(require_shape("size", as_expr(x)))
    return make_call(_RESHAPE, [shape_to_tensor((n_elems,)), ShapeExpr(())])


# --- scalars ----------------------------------------------------------------------------------------------------------


def _infer_tensor_scalar(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype("tensor_scalar", "x", x, INDEX | {"bool"})
    if x.shape is not None and same_dim(product(x.shape), 1) is False:
        fail("tensor_scalar", f"{show_shape(x.shape)} has {product(x.shape)} elements, expected 1")
    return PrimStructInfo("int64")


_TENSOR_SCALAR = define(
    "tensor_scalar",
    _infer_tensor_scalar,
    lambda attrs, x: int(x.reshape(())),
    lambda call: PackedCall("pyvm.builtin.tensor_scalar", list(call.args)),
)


def tensor_scalar(x: TensorLike) -> Call:
    """The only element of an integer or bool tensor as an integer scalar.

    Its value is unknown to the compiler: name it with `BlockBuilder.match_cast` to a `PrimStructInfo` with a symbol.

    Parameters
    ----------
    x : int32, int64 or bool tensor of one element
    """
    return make_call(_TENSOR_SCALAR, [as_expr(x)])
