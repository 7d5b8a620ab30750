"""Constants, and shapes and integers that become tensors: Shape, Size, ConstantOfShape, Range, EyeLike."""

from __future__ import annotations

import math

import numpy as np

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.frontend.onnx.shape_values import Content, larger, make_content
from pyvm.ir import Constant, Expr


def _constant(node: Node) -> Expr:
    for name in ("value", "sparse_value"):
        if node.has_attr(name):
            return Constant(node.attr(name))
    for name, dtype in (("value_int", "int64"), ("value_ints", "int64"), ("value_float", "f4"), ("value_floats", "f4")):
        if node.has_attr(name):
            return Constant(np.array(node.attr(name), dtype))
    raise node.error("has no value, or one of strings, which are not supported")


def _shape(node: Node) -> Content:
    shape = node.shape(node.name_of(0))
    start, end = node.attr("start", 0), node.attr("end", len(shape))
    return make_content(shape[slice(start, end)])


def _size(node: Node) -> Content:
    return make_content([math.prod(node.shape(node.name_of(0)))], ())


def _constant_of_shape(node: Node) -> Expr:
    value = node.attr("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise node.error(f"attribute 'value' must have one element, it has {value.size}")
    shape = node.dims(node.ints(0))
    return op.fill(shape, value.reshape(()).item(), str(value.dtype))


def _range(node: Node) -> Expr:
    dtype = node.dtype(node.name_of(0))
    constants = [node.constant(i) for i in range(3)]
    if all(value is not None for value in constants):
        numbers = [value.reshape(()).item() for value in constants if value is not None]
        if not numbers[2]:
            raise node.error("delta is 0")
        start, limit, delta = numbers
        return op.arange(start, limit, delta, dtype)
    if not dtype.startswith("int"):
        return _range_of_floats(node, dtype)
    start, limit, delta = (node.integer(i) for i in range(3))
    if isinstance(delta, int):
        if delta == 0:
            raise node.error("delta is 0")
        return node.settle(op.arange(start, limit, delta, dtype))
    # The number of steps by the rule for either sign of delta, then start + delta * step.
    quotient = -((start - limit) // delta)
    (count,) = node.dims([larger(0, quotient)])
    steps = node.emit(op.arange(count, dtype="int64"))
    moved = node.emit(op.mul(steps, node.emit(op.shape_to_tensor((delta,)))))
    return node.cast(node.emit(op.add(moved, node.emit(op.shape_to_tensor((start,))))), dtype)


def _range_of_floats(node: Node, dtype: str) -> Expr:
    """The number of steps is computed in the type of the bounds and then read as an integer."""
    start, limit, delta = node.tensors()
    steps = node.emit(op.ceil(node.emit(op.div(node.emit(op.sub(limit, start)), delta))))
    (count,) = node.read_ints(node.reshape(node.cast(steps, "int64"), (1,)))
    (count,) = node.dims([larger(0, count)])
    numbers = node.cast(node.emit(op.arange(count, dtype="int64")), dtype)
    return op.add(node.emit(op.mul(numbers, delta)), start)


def _eye_like(node: Node) -> Expr:
    x = node.name_of(0)
    shape = node.shape(x)
    if len(shape) != 2:
        raise node.error(f"the input has {len(shape)} dimensions, expected 2")
    dtype = node.dtype_attr("dtype") if node.has_attr("dtype") else node.dtype(x)
    return op.eye(*shape, k=node.attr("k", 0), dtype=dtype)


CONVERTERS: ConverterTable = {
    "Constant": {1: _constant},
    "ConstantOfShape": {9: _constant_of_shape},
    "EyeLike": {9: _eye_like},
    "Range": {11: _range},
    "Shape": {1: _shape},
    "Size": {1: _size},
}
