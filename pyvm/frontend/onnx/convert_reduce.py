"""Reductions, ArgMax and ArgMin, cumulative sums, TopK."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import Converter, ConverterTable
from pyvm.frontend.onnx.shape_values import from_front, is_zero
from pyvm.ir import Call, Expr, Prim, ShapeExpr, sym_max, sym_min


def _reduction(fn: Callable[..., Call]) -> Converter:
    def convert(node: Node) -> Expr:
        x = node.tensor(0)
        if not node.axes_are_known():
            return _with_axes_of_run_time(node, fn, x)
        axes = node.static_axes()
        if not axes and node.has(1) and axes is not None:
            axes = None  # an empty tensor of axes is as good as none
        if axes is None and node.attr("noop_with_empty_axes", 0):
            axes = ()
        ndim = node.ndim(x)
        return fn(
            x,
            axes=tuple(range(ndim)) if axes is None else tuple(node.axis(axis, ndim) for axis in axes),
            keepdims=bool(node.attr("keepdims", 1)),
        )

    return convert


def _with_axes_of_run_time(node: Node, fn: Callable[..., Call], x: Expr) -> Expr:
    """A reduction whose axes are computed by the model: the kernel takes them as a shape, so symbols will do.

    The result's dimensions follow from 0-or-1 flags, one per axis of `x`: whether it is reduced.
    """
    shape = node.shape(x)
    ndim = len(shape)
    axes = [from_front(axis, ndim) for axis in node.ints(1)]
    if len(axes) > ndim:
        raise node.error(f"{len(axes)} axes of a tensor of {ndim} dimensions")
    if not axes:
        return fn(x, axes=() if node.attr("noop_with_empty_axes", 0) else tuple(range(ndim)), keepdims=True)
    axes = _sorted(node, axes)
    reduced = node.name_values([sum((is_zero(axis - i) for axis in axes), 0) for i in range(ndim)])
    if node.attr("keepdims", 1):
        dims = [dim + flag * (1 - dim) for dim, flag in zip(shape, reduced, strict=True)]
    else:
        # Dimension i becomes dimension `position[i]` of the result if it is kept.
        position = [i - sum(reduced[:i], 0) for i in range(ndim)]
        dims = [
            sum(((1 - reduced[i]) * is_zero(position[i] - j) * shape[i] for i in range(ndim)), 0)
            for j in range(ndim - len(axes))
        ]
    return node.kernel(fn.__name__, [x, ShapeExpr(axes)], dims, node.dtype(x))


def _sorted(node: Node, values: Sequence[Prim]) -> list[Prim]:
    """The values in increasing order, by compare and exchange."""
    values = node.name_values(values)
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            a, b = values[i : i + 2]
            values[i : i + 2] = node.name_values([sym_min(a, b), sym_max(a, b)])
    return values


def _boolean(fn: Callable[..., Call], of_bool: Callable[..., Call]) -> Converter:
    """ReduceMax and ReduceMin of bool tensors (opset 20) are "any" and "all"."""

    def convert(node: Node) -> Expr:
        chosen = of_bool if node.dtype(node.tensor(0)) == "bool" else fn
        result = _reduction(chosen)(node)
        assert isinstance(result, Expr)
        return result

    return convert


def _arg_extremum(fn: Callable[..., Call]) -> Converter:
    def convert(node: Node) -> Expr:
        x = node.tensor(0)
        return fn(
            x,
            axis=node.axis(node.attr("axis", 0), node.ndim(x)),
            keepdims=bool(node.attr("keepdims", 1)),
            select_last=bool(node.attr("select_last_index", 0)),
        )

    return convert


def _cumsum(node: Node) -> Expr:
    x = node.tensor(0)
    exclusive, reverse = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
    axis = node.integer(1)
    if isinstance(axis, int):
        return op.cumsum(x, node.axis(axis, node.ndim(x)), exclusive=exclusive, reverse=reverse)
    (axis,) = node.name_values([from_front(axis, node.ndim(x))])
    return node.kernel("cumsum", [x, axis, int(exclusive), int(reverse)], node.shape(x), node.dtype(x))


def _topk(node: Node) -> list[Expr]:
    x = node.tensor(0)
    k = node.attr("k") if node.opset < 10 else node.integer(1)
    axis = node.axis(node.attr("axis", -1), node.ndim(x))
    largest, in_order = bool(node.attr("largest", 1)), bool(node.attr("sorted", 1))
    return node.emit_all(op.topk(x, k, axis=axis, largest=largest, sorted=in_order), 2)


CONVERTERS: ConverterTable = {
    "ReduceL1": {1: _reduction(op.reduce_l1)},
    "ReduceL2": {1: _reduction(op.reduce_l2)},
    "ReduceLogSum": {1: _reduction(op.reduce_log_sum)},
    "ReduceLogSumExp": {1: _reduction(op.reduce_log_sum_exp)},
    "ReduceMax": {1: _boolean(op.reduce_max, op.reduce_any)},
    "ReduceMean": {1: _reduction(op.reduce_mean)},
    "ReduceMin": {1: _boolean(op.reduce_min, op.reduce_all)},
    "ReduceProd": {1: _reduction(op.reduce_prod)},
    "ReduceSum": {1: _reduction(op.reduce_sum)},
    "ReduceSumSquare": {1: _reduction(op.reduce_sum_square)},
    "ArgMax": {1: _arg_extremum(op.argmax)},
    "ArgMin": {1: _arg_extremum(op.argmin)},
    "CumSum": {11: _cumsum},
    "TopK": {1: _topk},
}
