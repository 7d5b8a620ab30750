"""Operators that pick or place elements by index: Gather, Scatter and their kin, OneHot, NonZero, Compress."""

from __future__ import annotations

import math

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.ir import Expr, Prim, PrimStructInfo


def _indices(node: Node, index: int) -> Expr:
    x = node.tensor(index)
    return x if node.dtype(x) in ("int32", "int64") else node.cast(x, "int64")


def _gather(node: Node) -> Expr:
    return op.gather(node.tensor(0), _indices(node, 1), axis=node.attr("axis", 0))


def _gather_elements(node: Node) -> Expr:
    return op.gather_elements(node.tensor(0), _indices(node, 1), axis=node.attr("axis", 0))


def _gather_nd(node: Node) -> Expr:
    return op.gather_nd(node.tensor(0), _indices(node, 1), batch_dims=node.attr("batch_dims", 0))


def _scatter_elements(node: Node) -> Expr:
    return op.scatter_elements(
        node.tensor(0),
        _indices(node, 1),
        node.tensor(2),
        axis=node.attr("axis", 0),
        reduction=node.attr("reduction", "none"),
    )


def _scatter_nd(node: Node) -> Expr:
    return op.scatter_nd(node.tensor(0), _indices(node, 1), node.tensor(2), reduction=node.attr("reduction", "none"))


def _one_hot(node: Node) -> Expr:
    depth = node.constant(1)
    if depth is not None:
        size: Prim = int(depth.reshape(()))
    else:
        count = node.cast(node.tensor(1), "int64")
        (size,) = node.dims(node.read_ints(node.reshape(count, (1,))))
    values = node.tensor(2)
    off, on = (node.emit(piece) for piece in op.split(values, [1, 1], 0))
    indices = node.cast(node.tensor(0), "int64") if node.dtype(node.name_of(0)) != "int32" else node.tensor(0)
    return op.one_hot(indices, size, off, on, axis=node.attr("axis", -1))


def _nonzero_indices(node: Node, x: Expr) -> Expr:
    count = node.fresh_dim("count")
    counted = node.emit(op.nonzero_count(x))
    node.bind_symbol(counted, PrimStructInfo("int64", count))
    return op.nonzero(x, count)


def _nonzero(node: Node) -> Expr:
    return _nonzero_indices(node, node.tensor(0))


def _compress(node: Node) -> Expr:
    x, condition = node.tensor(0), node.tensor(1)
    axis = node.attr("axis", None)
    if axis is None:
        x = node.reshape(x, (math.prod(node.shape(x)),))
        axis = 0
    indices = node.emit(_nonzero_indices(node, condition))
    return op.gather(x, node.reshape(indices, (node.shape(indices)[1],)), axis=axis)


CONVERTERS: ConverterTable = {
    "Compress": {9: _compress},
    "Gather": {1: _gather},
    "GatherElements": {11: _gather_elements},
    "GatherND": {11: _gather_nd},
    "NonZero": {9: _nonzero},
    "OneHot": {9: _one_hot},
    "Scatter": {9: _scatter_elements},
    "ScatterElements": {11: _scatter_elements},
    "ScatterND": {11: _scatter_nd},
}
