"""Operators that move elements without computing: transpose, concat, slices, broadcasting, padding, rearrangements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Constant, Expr, ShapeExpr
from pyvm.ir.prim import Prim, PrimExpr, sym_max, sym_min
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import FLAG, INT, INTS, SCALAR, one_of
from pyvm.op.common import (
    INDEX,
    TensorLike,
    as_expr,
    as_exprs,
    as_shape,
    at_least,
    broadcast_shapes,
    check_dtype,
    check_ndim,
    define,
    fail,
    known_ndim,
    make_call,
    normalize_axis,
    require_ndim,
    require_shape,
    same_dim,
    same_dtype,
    shape_arg,
    shape_arg_ndim,
    show_shape,
    tensor_info,
)
from pyvm.op.create import fill
from pyvm.op.elementwise import where
from pyvm.op.registry import KernelCall, Lowered
from vmcore.errors import IndexRangeError

# --- transpose --------------------------------------------------------------------------------------------------------


def _infer_transpose(call: Call) -> StructInfo:
    x, perm = tensor_info(call, 0), call.attrs["perm"]
    if perm is None:
        if x.ndim < 0:
            return TensorStructInfo(None, x.dtype)
        perm = range(x.ndim)[::-1]
    if sorted(perm) != list(range(len(perm))):
        fail("transpose", f"perm {tuple(perm)} is not a permutation of {len(perm)} axes")
    check_ndim("transpose", "x", x, len(perm))
    if x.shape is None:
        return TensorStructInfo(None, x.dtype, len(perm))
    return TensorStructInfo([x.shape[p] for p in perm], x.dtype)


def _lower_transpose(call: Call) -> Lowered:
    perm = call.attrs["perm"]
    if perm is None:
        perm = range(require_ndim("transpose", call.args[0]))[::-1]
    return KernelCall("kernel.transpose", [call.args[0], ShapeExpr(perm)])


_TRANSPOSE = define(
    "transpose",
    _infer_transpose,
    lambda attrs, x: np.transpose(x, attrs["perm"]),
    _lower_transpose,
    attrs={"perm": INTS.or_none()},
)


def transpose(x: TensorLike, perm: Sequence[int] | None = None) -> Call:
    """`x` with its axes in another order: axis i of the result is axis perm[i] of `x`.

    Parameters
    ----------
    x : tensor
    perm : sequence of int, optional
        A permutation of the axes, negative ones from the back; None: reversed.

    Source: ONNX Transpose.
    """
    x = as_expr(x)
    ndim = known_ndim(x)
    if perm is None:
        axes = tuple(range(ndim))[::-1] if ndim >= 0 else None
    else:
        axes = tuple(normalize_axis("transpose", p, len(perm)) for p in perm)
    return make_call(_TRANSPOSE, [x], {"perm": axes})


# --- concat -----------------------------------------------------------------------------------------------------------


def _infer_concat(call: Call) -> StructInfo:
    infos = [tensor_info(call, i) for i in range(len(call.args))]
    dtype = same_dtype("concat", infos)
    ndim = max(info.ndim for info in infos)
    for i, info in enumerate(infos):
        check_ndim("concat", f"argument {i}", info, ndim)
    axis = normalize_axis("concat", call.attrs["axis"], ndim)
    shapes = [tuple(info.shape) for info in infos if info.shape is not None]
    if len(shapes) < len(infos):
        return TensorStructInfo(None, dtype, ndim)
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i, (a, b) in enumerate(zip(result, shape, strict=True)):
            if i != axis and not same_dim(a, b):
                fail("concat", f"shapes {' and '.join(map(show_shape, shapes))} differ outside axis {axis}")
            if i != axis and isinstance(b, int):
                result[i] = b
    result[axis] = sum((shape[axis] for shape in shapes[1:]), shapes[0][axis])
    return TensorStructInfo(result, dtype)


def _lower_concat(call: Call) -> Lowered:
    ndim = max(tensor_info(call, i).ndim for i in range(len(call.args)))
    return KernelCall("kernel.concat", [*call.args, normalize_axis("concat", call.attrs["axis"], ndim)])


_CONCAT = define(
    "concat",
    _infer_concat,
    lambda attrs, x, *more: np.concatenate((x, *more), axis=attrs["axis"]),
    _lower_concat,
    attrs={"axis": INT},
)


def concat(xs: Sequence[TensorLike], axis: int) -> Call:
    """Tensors one after the other along `axis`.

    Parameters
    ----------
    xs : sequence of tensor
        At least one; one dtype, shapes equal outside `axis`.
    axis : int

    Source: ONNX Concat.
    """
    args = as_exprs(*xs)
    if not args:
        fail("concat", "there are no tensors")
    return make_call(_CONCAT, args, {"axis": normalize_axis("concat", axis, max(known_ndim(x) for x in args))})


# --- slices -----------------------------------------------------------------------------------------------------------


def _infer_strided_slice(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    begins, extents = shape_arg(call, 1), shape_arg(call, 2)
    steps = call.attrs["steps"]
    for values in (begins, extents, steps):
        if values is not None:
            check_ndim("strided_slice", "x", x, len(values))
    return TensorStructInfo(extents, x.dtype, len(steps))


def _evaluate_strided_slice(
    attrs: dict[str, Any], x: np.ndarray, begins: Sequence[int], extents: Sequence[int]
) -> np.ndarray:
    for axis, (begin, n, step) in enumerate(zip(begins, extents, attrs["steps"], strict=True)):
        last = begin + step * (n - 1)
        if n and not (0 <= begin < x.shape[axis] and 0 <= last < x.shape[axis]):
            raise IndexRangeError(f"strided_slice: elements {begin} .. {last} of axis {axis} with size {x.shape[axis]}")
        x = np.take(x, begin + step * np.arange(n), axis=axis)
    return x


def _lower_strided_slice(call: Call) -> Lowered:
    return KernelCall("kernel.strided_slice", [call.args[0], call.args[1], ShapeExpr(call.attrs["steps"])])


_STRIDED_SLICE = define(
    "strided_slice", _infer_strided_slice, _evaluate_strided_slice, _lower_strided_slice, attrs={"steps": INTS}
)


def slice_bounds(dim: Prim, begin: Prim, end: Prim, step: int) -> tuple[Prim, Prim]:
    """First index and number of elements of `[begin:end:step]` on an axis of size `dim`, by Python's rules.

    Symbolic dims are taken to be at least 1, so that `[0:1]` has one element and `[1:]` has dim - 1. A symbolic index
    counts from the front and is taken to lie on the axis, so that `[:n]` has n elements. Where a run breaks this, the
    kernel's range check refuses.

    Source: ONNX Slice-13.
    """
    if step == 0:
        fail("strided_slice", "the step is 0")
    if isinstance(dim, int) and isinstance(begin, int) and isinstance(end, int):
        indices = range(*slice(begin, end, step).indices(dim))
        return (indices.start if len(indices) else 0), len(indices)
    low, high = (0, dim) if step > 0 else (-1, dim - 1)
    first, last = (_bounded(v, dim, low, high) for v in (begin, end))
    span = last - first if step > 0 else first - last
    n = (span + abs(step) - 1) // abs(step)
    if isinstance(begin, PrimExpr) or isinstance(end, PrimExpr) or at_least(n, 0):
        return first, n
    return first, sym_max(n, 0)


_FAR = 2**31 - 1  # exporters write "to the end" as the largest int32 or int64


def _bounded(index: Prim, dim: Prim, low: Prim, high: Prim) -> Prim:
    """`index` counted from the front and moved into low .. high."""
    if isinstance(index, PrimExpr):
        return index
    if index >= _FAR or index <= -_FAR:
        return high if index > 0 else low
    value = index + dim if index < 0 else index
    if not at_least(value, low):
        value = sym_max(value, low)
    if not at_least(high, value):
        value = sym_min(value, high)
    return value


def strided_slice(
    x: TensorLike,
    begins: Sequence[Prim],
    ends: Sequence[Prim],
    steps: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
) -> Call:
    """`x[begin:end:step]` along some axes, by Python's rules: negative indices from the back, clamped to the axis.

    Parameters
    ----------
    x : tensor of known shape
    begins, ends : sequence of int or PrimExpr
        Symbolic indices count from the front.
    steps : sequence of int, optional
        Not 0; None: 1.
    axes : sequence of int, optional
        Axes that the others speak of; None: the first ones.

    Source: ONNX Slice.
    """
    x = as_expr(x)
    shape = require_shape("strided_slice", x)
    axes = range(len(begins)) if axes is None else [normalize_axis("strided_slice", a, len(shape)) for a in axes]
    steps = [1] * len(begins) if steps is None else steps
    if not len(begins) == len(ends) == len(steps) == len(axes) or len(set(axes)) < len(axes) or len(axes) > len(shape):
        fail(
            "strided_slice",
            f"begins {show_shape(begins)}, ends {show_shape(ends)}, steps {tuple(steps)} and axes {tuple(axes)} "
            f"do not fit each other or {show_shape(shape)}",
        )
    all_begins: list[Prim] = [0] * len(shape)
    all_steps = [1] * len(shape)
    extents = list(shape)
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        begin, end = (v if isinstance(v, PrimExpr) else int(v) for v in (begin, end))
        all_begins[axis], extents[axis] = slice_bounds(shape[axis], begin, end, int(step))
        all_steps[axis] = int(step)
    return make_call(_STRIDED_SLICE, [x, ShapeExpr(all_begins), ShapeExpr(extents)], {"steps": tuple(all_steps)})


def split(x: TensorLike, sizes: int | Sequence[Prim], axis: int = 0) -> list[Expr]:
    """Consecutive pieces of `x` along `axis`, one slice each.

    Parameters
    ----------
    x : tensor of known shape
    sizes : int or sequence of int or PrimExpr
        Sizes of the pieces, which add up to the axis; an int is a number of pieces, all of the rounded up quotient but
        the last, which may be smaller.
    axis : int

    Returns
    -------
    list of Expr
        One tensor per piece.

    Source: ONNX Split.
    """
    x = as_expr(x)
    shape = require_shape("split", x)
    axis = normalize_axis("split", axis, len(shape))
    dim = shape[axis]
    if isinstance(sizes, int):
        if sizes < 1:
            fail("split", f"{sizes} pieces")
        piece = (dim + sizes - 1) // sizes if isinstance(dim, int) or dim % sizes != 0 else dim // sizes
        sizes = [piece] * (sizes - 1) + [dim - piece * (sizes - 1)]
    total = sum(sizes[1:], sizes[0]) if sizes else 0
    if same_dim(total, dim) is False:
        fail("split", f"sizes {show_shape(sizes)} add up to {total}, but axis {axis} of {show_shape(shape)} is {dim}")
    pieces: list[Expr] = []
    begin: Prim = 0
    for size in sizes:
        begins: list[Prim] = [0] * len(shape)
        begins[axis] = begin
        extents = [*shape[:axis], size, *shape[axis + 1 :]]
        attrs = {"steps": (1,) * len(shape)}
        pieces.append(make_call(_STRIDED_SLICE, [x, ShapeExpr(begins), ShapeExpr(extents)], attrs))
        begin = begin + size
    return pieces


# --- broadcast_to, tile, pad ------------------------------------------------------------------------------------------


def _infer_broadcast_to(call: Call) -> StructInfo:
    x, shape = tensor_info(call, 0), shape_arg(call, 1)
    if shape is None:
        return TensorStructInfo(None, x.dtype, shape_arg_ndim(call, 1))
    if x.shape is not None:
        source = tuple(x.shape)
        if len(source) > len(shape):
            fail("broadcast_to", f"{show_shape(source)} does not broadcast to {show_shape(shape)}")
        for a, b in zip(source, shape[len(shape) - len(source) :], strict=True):
            if not (isinstance(a, int) and a == 1) and same_dim(a, b) is not True:
                fail("broadcast_to", f"{show_shape(source)} does not broadcast to {show_shape(shape)}: {a} to {b}")
    return TensorStructInfo(shape, x.dtype)


_BROADCAST_TO = define(
    "broadcast_to",
    _infer_broadcast_to,
    lambda attrs, x, shape: np.broadcast_to(x, shape).copy(),
    lambda call: KernelCall("kernel.broadcast_to", [call.args[0]]),
)


def broadcast_to(x: TensorLike, shape: Expr | Sequence[Prim]) -> Call:
    """`x` repeated along its axes of size 1 (and new leading axes) to `shape`.

    Parameters
    ----------
    x : tensor
    shape : shape expression or sequence of int or PrimExpr
    """
    return make_call(_BROADCAST_TO, [as_expr(x), as_shape(shape)])


def expand(x: TensorLike, shape: Sequence[Prim]) -> Expr:
    """`x` broadcast together with `shape`, which may itself have axes of size 1.

    Parameters
    ----------
    x : tensor of known shape
    shape : sequence of int or PrimExpr

    Returns
    -------
    Expr
        `x` itself if its shape is the result already.

    Source: ONNX Expand.
    """
    x = as_expr(x)
    source = require_shape("expand", x)
    target = broadcast_shapes("expand", source, tuple(shape))
    return x if target == source else broadcast_to(x, target)


def _infer_tile(call: Call) -> StructInfo:
    x, repeats = tensor_info(call, 0), shape_arg(call, 1)
    if repeats is None or x.shape is None:
        return TensorStructInfo(None, x.dtype, x.ndim if repeats is None else len(repeats))
    check_ndim("tile", "x", x, len(repeats))
    return TensorStructInfo([d * r for d, r in zip(x.shape, repeats, strict=True)], x.dtype)


_TILE = define(
    "tile",
    _infer_tile,
    lambda attrs, x, repeats: np.tile(x, repeats),
    lambda call: KernelCall("kernel.tile", [call.args[0]]),
)


def tile(x: TensorLike, repeats: Sequence[Prim]) -> Call:
    """`x` repeated as a whole, repeats[i] times along axis i.

    Parameters
    ----------
    x : tensor
    repeats : sequence of int or PrimExpr
        One per axis.

    Source: ONNX Tile.
    """
    return make_call(_TILE, [as_expr(x), as_shape(repeats)])


PAD_MODES = {"constant": 0, "reflect": 1, "edge": 2, "wrap": 3}


def _infer_pad(call: Call) -> StructInfo:
    x, pads = tensor_info(call, 0), shape_arg(call, 1)
    if pads is None or x.shape is None:
        return TensorStructInfo(None, x.dtype, x.ndim)
    if len(pads) != 2 * x.ndim:
        fail("pad", f"pads {show_shape(pads)} for {show_shape(x.shape)}: expected {2 * x.ndim} values")
    shape = [d + b + e for d, b, e in zip(x.shape, pads[: x.ndim], pads[x.ndim :], strict=True)]
    if any(isinstance(d, int) and d < 0 for d in shape):
        fail("pad", f"pads {show_shape(pads)} remove more than there is of {show_shape(x.shape)}")
    return TensorStructInfo(shape, x.dtype)


def _evaluate_pad(attrs: dict[str, Any], x: np.ndarray, pads: Sequence[int]) -> np.ndarray:
    widths = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    # Negative widths cut; np.pad only adds.
    cuts = tuple(slice(max(-b, 0), d - max(-e, 0)) for d, (b, e) in zip(x.shape, widths, strict=True))
    x = x[cuts]
    grow = [(max(b, 0), max(e, 0)) for b, e in widths]
    if attrs["mode"] == "constant":
        return np.pad(x, grow, constant_values=np.asarray(attrs["value"]).astype(x.dtype))
    return np.pad(x, grow, mode=attrs["mode"])


def _lower_pad(call: Call) -> Lowered:
    return KernelCall("kernel.pad", [*call.args, PAD_MODES[call.attrs["mode"]], call.attrs["value"]])


_PAD = define("pad", _infer_pad, _evaluate_pad, _lower_pad, attrs={"mode": one_of(PAD_MODES), "value": SCALAR})


def pad(x: TensorLike, pads: Expr | Sequence[Any], mode: str = "constant", value: TensorLike = 0) -> Call:
    """`x` with elements added before and after each axis.

    Parameters
    ----------
    x : tensor
    pads : shape expression, sequence of int or PrimExpr, or sequence of pairs
        How many at the beginning of every axis, then how many at the end of every axis; negative ones remove. As pairs
        (before, after) of every axis: numpy's order.
    mode : str
        "constant" (`value`), "reflect" (mirrored without the border), "edge" (border repeated) or "wrap" (periodic).
    value : number or one-element tensor
        A value known only at run time is put in with `where`.

    Source: ONNX Pad.
    """
    x = as_expr(x)
    if isinstance(value, Constant):
        value = value.data
    if isinstance(value, Expr):
        inside = fill(require_shape("pad", x), True, "bool")
        return where(pad(inside, pads, value=False), pad(x, pads), value)
    array = np.asarray(value)
    if array.size != 1:
        fail("pad", f"value has shape {array.shape}, expected one element")
    if isinstance(pads, (tuple, list)) and pads and isinstance(pads[0], (tuple, list)):
        pads = [pair[side] for side in (0, 1) for pair in pads]
    return make_call(_PAD, [x, as_shape(pads)], {"mode": mode, "value": array.reshape(()).item()})


# --- copies and rearrangements ----------------------------------------------------------------------------------------


def _infer_same(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    return TensorStructInfo(x.shape, x.dtype, x.ndim)


_COPY = define("copy", _infer_same, lambda attrs, x: x.copy())


def copy(x: TensorLike) -> Call:
    """The elements of `x` in memory of their own.

    Parameters
    ----------
    x : tensor
    """
    return make_call(_COPY, [as_expr(x)])


def _infer_trilu(call: Call) -> StructInfo:
    check_ndim("trilu", "x", tensor_info(call, 0), 2, at_least=True)
    return _infer_same(call)


_TRILU = define(
    "trilu",
    _infer_trilu,
    lambda attrs, x: (np.triu if attrs["upper"] else np.tril)(x, attrs["k"]),
    lambda call: KernelCall("kernel.trilu", [call.args[0], call.attrs["k"], int(call.attrs["upper"])]),
    attrs={"k": INT, "upper": FLAG},
)


def trilu(x: TensorLike, k: int = 0, upper: bool = True) -> Call:
    """The upper or lower triangle of the matrices in the last two axes, zeros elsewhere.

    Parameters
    ----------
    x : tensor, (..., m, n)
    k : int
        Last diagonal that is kept: 0 is the main one, positive ones are above it.
    upper : bool

    Source: ONNX Trilu.
    """
    return make_call(_TRILU, [as_expr(x)], {"k": int(k), "upper": bool(upper)})


BLOCK_MODES = {"DCR": 0, "CRD": 1}


def _divide(op: str, dim: Prim, by: int, shape: Sequence[Prim] | None) -> Prim:
    if isinstance(dim, int) and dim % by:
        fail(op, f"size {dim} of {show_shape(shape)} is not a multiple of {by}")
    return dim // by


def _infer_depth_to_space(call: Call) -> StructInfo:
    x, block = tensor_info(call, 0), call.attrs["block"]
    check_ndim("depth_to_space", "x", x, 4)
    if x.shape is None:
        return TensorStructInfo(None, x.dtype, 4)
    n, c, h, w = x.shape
    return TensorStructInfo((n, _divide("depth_to_space", c, block * block, x.shape), h * block, w * block), x.dtype)


def _evaluate_depth_to_space(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    b = attrs["block"]
    depth = c // (b * b)
    if attrs["mode"] == "DCR":
        moved = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, depth, h * b, w * b)


def _lower_depth_to_space(call: Call) -> Lowered:
    return KernelCall("kernel.depth_to_space", [call.args[0], call.attrs["block"], BLOCK_MODES[call.attrs["mode"]]])


_DEPTH_TO_SPACE = define(
    "depth_to_space",
    _infer_depth_to_space,
    _evaluate_depth_to_space,
    _lower_depth_to_space,
    attrs={"block": INT, "mode": one_of(BLOCK_MODES)},
)


def depth_to_space(x: TensorLike, block: int, mode: str = "DCR") -> Call:
    """Blocks of channels moved into squares of pixels.

    Parameters
    ----------
    x : tensor, (n, c * block**2, h, w)
    block : int
    mode : str
        Which of the channel's factors is outermost: "DCR" the position in the block, "CRD" the channel of the result.

    Returns
    -------
    Call
        Tensor (n, c, h * block, w * block).

    Source: ONNX DepthToSpace.
    """
    if block < 1:
        fail("depth_to_space", f"block {block}, expected at least 1")
    return make_call(_DEPTH_TO_SPACE, [as_expr(x)], {"block": int(block), "mode": mode})


def _infer_space_to_depth(call: Call) -> StructInfo:
    x, block = tensor_info(call, 0), call.attrs["block"]
    check_ndim("space_to_depth", "x", x, 4)
    if x.shape is None:
        return TensorStructInfo(None, x.dtype, 4)
    n, c, h, w = x.shape
    small = [_divide("space_to_depth", d, block, x.shape) for d in (h, w)]
    return TensorStructInfo((n, c * block * block, *small), x.dtype)


def _evaluate_space_to_depth(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    b = attrs["block"]
    moved = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * b * b, h // b, w // b)


_SPACE_TO_DEPTH = define(
    "space_to_depth",
    _infer_space_to_depth,
    _evaluate_space_to_depth,
    lambda call: KernelCall("kernel.space_to_depth", [call.args[0], call.attrs["block"]]),
    attrs={"block": INT},
)


def space_to_depth(x: TensorLike, block: int) -> Call:
    """Squares of pixels moved into blocks of channels, the position in the square outermost.

    Parameters
    ----------
    x : tensor, (n, c, h * block, w * block)
    block : int

    Returns
    -------
    Call
        Tensor (n, c * block**2, h, w).

    Source: ONNX SpaceToDepth.
    """
    if block < 1:
        fail("space_to_depth", f"block {block}, expected at least 1")
    return make_call(_SPACE_TO_DEPTH, [as_expr(x)], {"block": int(block)})


def _infer_reverse_sequence(call: Call) -> StructInfo:
    x, lens = tensor_info(call, 0), tensor_info(call, 1)
    check_ndim("reverse_sequence", "x", x, 2, at_least=True)
    check_ndim("reverse_sequence", "lens", lens, 1)
    check_dtype("reverse_sequence", "lens", lens, INDEX)
    return _infer_same(call)


def _evaluate_reverse_sequence(attrs: dict[str, Any], x: np.ndarray, lens: np.ndarray) -> np.ndarray:
    moved = np.moveaxis(x, (attrs["batch_axis"], attrs["time_axis"]), (0, 1))
    result = moved.copy()
    for b, n in enumerate(lens):
        result[b, :n] = moved[b, :n][::-1]
    return np.moveaxis(result, (0, 1), (attrs["batch_axis"], attrs["time_axis"]))


def _lower_reverse_sequence(call: Call) -> Lowered:
    axes = [call.attrs["batch_axis"], call.attrs["time_axis"]]
    return KernelCall("kernel.reverse_sequence", [*call.args, *axes])


_REVERSE_SEQUENCE = define(
    "reverse_sequence",
    _infer_reverse_sequence,
    _evaluate_reverse_sequence,
    _lower_reverse_sequence,
    attrs={"batch_axis": INT, "time_axis": INT},
)


def reverse_sequence(x: TensorLike, lens: TensorLike, batch_axis: int = 1, time_axis: int = 0) -> Call:
    """The first lens[b] elements along the time axis reversed, for every b along the batch axis.

    Parameters
    ----------
    x : tensor, ndim >= 2
    lens : int32 or int64 tensor, (batch,)
    batch_axis, time_axis : int
        0 and 1, in either order.

    Source: ONNX ReverseSequence.
    """
    if {batch_axis, time_axis} != {0, 1}:
        fail("reverse_sequence", f"batch axis {batch_axis} and time axis {time_axis}, expected 0 and 1")
    attrs = {"batch_axis": int(batch_axis), "time_axis": int(time_axis)}
    return make_call(_REVERSE_SEQUENCE, [as_expr(x), as_expr(lens, "int64")], attrs)
