"""Operators that move elements and compute nothing: Reshape, Transpose, Concat, Split, Slice, Pad, Expand, Tile ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import Converter, ConverterTable
from pyvm.frontend.onnx.shape_values import (
    ceil_div,
    from_front,
    is_negative,
    is_zero,
    larger,
    smaller,
)
from pyvm.ir import Call, Expr, Prim, ShapeExpr, free_vars, infer_call
from pyvm.op.registry import get_op

_INT32_MAX = 2**31 - 1


def _assumed(value: Prim) -> bool:
    """Whether `value` is made of dimensions, not of integers that the model reads from data."""
    return all(var.nonnegative for var in free_vars(value))


# --- shape changes


def _reshape(node: Node) -> Expr:
    x = node.tensor(0)
    shape = node.shape(x)
    target = tuple(node.attr("shape")) if node.opset < 5 else node.ints(1)
    keep_zeros = bool(node.attr("allowzero", 0))
    if all(_assumed(dim) for dim in target):
        return op.reshape(x, target, allow_zero=keep_zeros)
    dims: list[Prim] = []
    for i, dim in enumerate(target):
        copied = shape[i] if i < len(shape) and not keep_zeros else 0
        dims.append(dim + is_zero(dim) * copied)
    # -1 becomes 1 in the product of the others, so that dividing by it gives the dimension that is left.
    # Each factor has a name: multiplied out, a product of such sums has a term for every choice among their parts.
    known = larger(1, math.prod(node.name_values([dim + is_negative(dim) * 2 for dim in dims])))
    (rest,) = node.name_values([math.prod(shape) // known])
    dims = node.dims([dim + is_negative(dim) * (rest + 1) for dim in dims])
    return op.reshape(x, dims, allow_zero=True)


def _flatten(node: Node) -> Expr:
    return op.flatten(node.tensor(0), node.attr("axis", 1))


def _squeeze(node: Node) -> Expr:
    x = node.tensor(0)
    if node.axes_are_known():
        return op.squeeze(x, node.static_axes())
    shape = node.shape(x)
    axes = [from_front(axis, len(shape)) for axis in node.ints(1)]
    if len(axes) > len(shape):
        raise node.error(f"{len(axes)} axes of a tensor of {len(shape)} dimensions")
    dropped = [sum((is_zero(axis - i) for axis in axes), 0) for i in range(len(shape))]
    return op.reshape(x, node.dims(_without(node, shape, dropped, len(axes))), allow_zero=True)


def _without(node: Node, shape: Sequence[Prim], dropped: Sequence[Prim], n_dropped: int) -> list[Prim]:
    """The dimensions of `shape` whose flag in `dropped` is 0; there are `n_dropped` whose flag is 1."""
    dropped = node.name_values(dropped)
    position = [i - sum(dropped[:i], 0) for i in range(len(shape))]
    return [
        sum(((1 - dropped[i]) * is_zero(position[i] - j) * dim for i, dim in enumerate(shape)), 0)
        for j in range(len(shape) - n_dropped)
    ]


def _unsqueeze(node: Node) -> Expr:
    x = node.tensor(0)
    if node.axes_are_known():
        axes = node.static_axes()
        if axes is None:
            raise node.error("axes are missing")
        return op.unsqueeze(x, axes)
    shape = node.shape(x)
    ndim = len(shape) + len(node.ints(1))
    axes_now = [from_front(axis, ndim) for axis in node.ints(1)]
    added = node.name_values([sum((is_zero(axis - i) for axis in axes_now), 0) for i in range(ndim)])
    position = [i - sum(added[:i], 0) for i in range(ndim)]
    dims = [
        added[i] + sum(((1 - added[i]) * is_zero(position[i] - j) * dim for j, dim in enumerate(shape)), 0)
        for i in range(ndim)
    ]
    return op.reshape(x, node.dims(dims), allow_zero=True)


def _transpose(node: Node) -> Expr:
    x = node.tensor(0)
    return op.transpose(x, tuple(node.attr("perm", range(node.ndim(x) - 1, -1, -1))))


def _expand(node: Node) -> Expr:
    x = node.tensor(0)
    shape, target = node.shape(x), node.dims(node.ints(1))
    ndim = max(len(shape), len(target))
    shape = (1,) * (ndim - len(shape)) + shape
    target = [*(1,) * (ndim - len(target)), *target]
    # Expand broadcasts both ways: a 1 in the target keeps the dimension.
    dims = [_broadcast_dim(a, b) for a, b in zip(shape, target, strict=True)]
    if tuple(dims) == node.shape(x):
        return x
    if all(a in (1, dim) for a, dim in zip(shape, dims, strict=True)) or all(isinstance(dim, int) for dim in dims):
        return op.broadcast_to(x, dims)
    return node.kernel("broadcast_to", [x], dims, node.dtype(x))


def _broadcast_dim(a: Prim, b: Prim) -> Prim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)  # they differ: broadcast_to says so
    if isinstance(a, int):
        return a  # not 1, so the other one is 1 or the same
    return b if isinstance(b, int) else larger(a, b)


def _tile(node: Node) -> Expr:
    x = node.tensor(0)
    if node.opset < 6:
        repeats: list[Prim] = [1] * node.ndim(x)
        repeats[node.axis(node.static_ints(2)[0], node.ndim(x))] = node.integer(1)
    else:
        repeats = node.dims(node.ints(1))
    return op.tile(x, repeats)


# --- parts and wholes


def _concat(node: Node) -> Expr:
    xs = node.tensors()
    axis = node.axis(node.attr("axis", 1) if node.opset < 4 else node.attr("axis"), node.ndim(xs[0]))
    if len(xs) == 1:
        return xs[0]
    others: list[Prim | None] = list(node.shape(xs[0]))
    others[axis] = None
    return op.concat([node.agreeing(x, others) if node.ndim(x) == len(others) else x for x in xs], axis)


def _split(node: Node) -> Sequence[Expr]:
    x = node.tensor(0)
    axis = node.axis(node.attr("axis", 0), node.ndim(x))
    sizes = node.dims(node.split_sizes(node.shape(x)[axis]))
    return op.split(x, sizes, axis)


def _slice(node: Node) -> Expr:
    x = node.tensor(0)
    shape = node.shape(x)
    arguments = node.slice_arguments()
    if arguments is None:
        return _slice_with_axes_of_run_time(node, x)
    starts, ends, axes, steps = arguments
    axes = tuple(node.axis(axis, len(shape)) for axis in axes)
    begins, extents, strides = [], [], []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, extent = _range_of(node, start, end, step, shape[axis])
        begins.append(begin)
        extents.append(extent)
        strides.append(step)
    return _strided(node, x, axes, begins, extents, strides)


def _range_of(node: Node, start: Prim, end: Prim, step: Prim, size: Prim) -> tuple[Prim, Prim]:
    """First index and number of indices of start:end:step in a dimension, by the rules of ONNX Slice."""
    if not isinstance(step, int):
        return _range_of_unknown_step(node, start, end, step, size)
    if step == 0:
        raise node.error("a step is 0")
    if step > 0:
        begin = _clamp(start, 0, size, size)
        return begin, larger(0, ceil_div(_clamp(end, 0, size, size) - begin, step))
    begin = _clamp(start, 0, size - 1, size)
    return begin, larger(0, ceil_div(begin - _clamp(end, -1, size - 1, size), -step))


def _clamp(index: Prim, low: Prim, high: Prim, size: Prim) -> Prim:
    """`index`, counted from the front, within low..high. Exporters write the largest integers for "to the end"."""
    if isinstance(index, int):
        if index >= _INT32_MAX:
            return high
        if index <= -_INT32_MAX:
            return low
    return larger(low, smaller(from_front(index, size), high))


def _range_of_unknown_step(node: Node, start: Prim, end: Prim, step: Prim, size: Prim) -> tuple[Prim, Prim]:
    back = is_negative(step)  # 1 or 0, so that both rules can be written as one
    start, end = (smaller(larger(from_front(index, size), -1 - size), 2 * size + 1) for index in (start, end))
    begin = larger(0, smaller(start, size - back))
    stop = larger(-back, smaller(end, size - back))
    forward, backward = stop - begin, begin - stop
    distance = larger(0, (1 - back) * forward + back * backward)
    stride = larger(step, -step)
    return tuple(node.name_values([begin, (distance + stride - 1) // stride]))  # type: ignore[return-value]


def _strided(
    node: Node, x: Expr, axes: Sequence[int], begins: Sequence[Prim], extents: Sequence[Prim], steps: Sequence[Prim]
) -> Expr:
    """Elements begin, begin + step, ... of some axes, `extent` of them; all of the other axes."""
    shape = node.shape(x)
    first: list[Prim] = [0] * len(shape)
    stride: list[Prim] = [1] * len(shape)
    dims = list(shape)
    for axis, begin, extent, step in zip(axes, begins, extents, steps, strict=True):
        first[axis], stride[axis], dims[axis] = begin, step, extent
    dims = node.dims(dims)
    if all(isinstance(step, int) for step in stride):
        call = Call(get_op("strided_slice"), [x, ShapeExpr(first), ShapeExpr(dims)], {"steps": tuple(stride)})
        call.struct_info = infer_call(call)
        return call
    # The operator wants constant steps, the kernel does not; it checks them when the model runs.
    return node.kernel("strided_slice", [x, ShapeExpr(first), ShapeExpr(stride)], dims, node.dtype(x))


def _slice_with_axes_of_run_time(node: Node, x: Expr) -> Expr:
    """Axes are an input of the model: each axis of `x` is sliced by the values of the entry that names it, if any."""
    shape = node.shape(x)
    ndim = len(shape)
    starts, ends = node.ints(1), node.ints(2)
    axes = [from_front(axis, ndim) for axis in node.ints(3)]
    steps = node.ints(4) if node.has(4) else (1,) * len(starts)
    begins, extents, strides = [], [], []
    for i, size in enumerate(shape):
        mine = node.name_values([is_zero(axis - i) for axis in axes])
        none = 1 - sum(mine, 0)
        chosen = [sum((flag * value for flag, value in zip(mine, values, strict=True)), 0) for values in (starts, ends)]
        start, end = node.name_values([chosen[0], chosen[1] + none * size])
        (step,) = node.name_values([none + sum((flag * value for flag, value in zip(mine, steps, strict=True)), 0)])
        begin, extent = _range_of(node, start, end, step, size)
        begins.append(begin)
        extents.append(extent)
        strides.append(step)
    return _strided(node, x, range(ndim), begins, extents, strides)


# --- padding


def _pad_by_attributes(name: str) -> Converter:
    def convert(node: Node) -> Expr:
        return _padded(node, node.tensor(0), tuple(node.attr(name)), node.attr("value", 0.0))

    return convert


def _pad(node: Node) -> Expr:
    x = node.tensor(0)
    ndim = node.ndim(x)
    pads = node.ints(1)
    value: float | int | bool | None = 0
    fill: Expr | None = None
    if node.has(2):
        constant = node.constant(2)
        if constant is None:
            fill = node.tensor(2)
        else:
            value = constant.reshape(-1)[0].item()
    if node.has(3):
        axes = [from_front(axis, ndim) for axis in node.ints(3)]
        if len(pads) != 2 * len(axes):
            raise node.error(f"{len(pads)} pads for {len(axes)} axes")
        # A sum with one term for each axis that may be meant; a constant axis leaves only one of them.
        pads = tuple(
            sum((is_zero(axis - i) * pads[j + side] for j, axis in enumerate(axes)), 0)
            for side in (0, len(axes))
            for i in range(ndim)
        )
    return _padded(node, x, pads, value, fill)


def _padded(node: Node, x: Expr, pads: Sequence[Prim], value: object, fill: Expr | None = None) -> Expr:
    shape = node.shape(x)
    ndim = len(shape)
    mode = node.attr("mode", "constant")
    if len(pads) != 2 * ndim:
        raise node.error(f"{len(pads)} pads for a tensor of {ndim} dimensions")
    return node.settle(op.pad(x, tuple(pads), mode, fill if fill is not None else value))  # type: ignore[arg-type]


# --- blocks and sequences


def _space_to_depth(node: Node) -> Expr:
    x, block = node.tensor(0), node.attr("blocksize")
    if node.attr("mode", "DCR") == "DCR":
        return op.space_to_depth(x, block)
    n, c, h, w = node.shape(x)
    blocks = node.reshape(x, (n, c, h // block, block, w // block, block))
    moved = node.emit(op.transpose(blocks, (0, 1, 3, 5, 2, 4)))
    return op.reshape(moved, (n, c * block * block, h // block, w // block), allow_zero=True)


def _depth_to_space(node: Node) -> Expr:
    return op.depth_to_space(node.tensor(0), node.attr("blocksize"), node.attr("mode", "DCR"))


def _reverse_sequence(node: Node) -> Expr:
    batch, time = node.attr("batch_axis", 1), node.attr("time_axis", 0)
    return op.reverse_sequence(node.tensor(0), node.tensor(1), batch_axis=batch, time_axis=time)


def _trilu(node: Node) -> Expr:
    k = node.integer(1) if node.has(1) else 0
    x, upper = node.tensor(0), bool(node.attr("upper", 1))
    if isinstance(k, int):
        return op.trilu(x, k=k, upper=upper)
    return node.kernel("trilu", [x, k, int(upper)], node.shape(x), node.dtype(x))


CONVERTERS: ConverterTable = {
    "Concat": {1: _concat},
    "DepthToSpace": {1: _depth_to_space},
    "Expand": {8: _expand},
    "Flatten": {1: _flatten},
    "Pad": {1: _pad_by_attributes("paddings"), 2: _pad_by_attributes("pads"), 11: _pad},
    "Reshape": {1: _reshape},
    "ReverseSequence": {10: _reverse_sequence},
    "Slice": {1: _slice},
    "SpaceToDepth": {1: _space_to_depth},
    "Split": {1: _split},
    "Squeeze": {1: _squeeze},
    "Tile": {1: _tile},
    "Transpose": {1: _transpose},
    "Trilu": {14: _trilu},
    "Unsqueeze": {1: _unsqueeze},
}
