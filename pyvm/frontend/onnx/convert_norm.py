"""Normalizations and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pyvm import op
from pyvm.frontend.onnx.convert_elementwise import broadcast
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import Converter, ConverterTable
from pyvm.ir import Call, Expr

# --- softmax


def _softmax(fn: Callable[[Expr, int], Call]) -> Converter:
    def convert(node: Node) -> Expr:
        x = node.tensor(0)
        return fn(x, node.axis(node.attr("axis", -1), node.ndim(x)))

    return convert


def _softmax_of_rows(fn: Callable[[Expr, int], Call]) -> Converter:
    """Before opset 13: the axes from `axis` on are one row."""

    def convert(node: Node) -> Expr:
        x = node.tensor(0)
        shape = node.shape(x)
        axis = node.axis(node.attr("axis", 1), len(shape)) if shape else 0
        if axis >= len(shape) - 1:
            return fn(x, axis)
        rows = node.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        return op.reshape(node.emit(fn(rows, 1)), shape, allow_zero=True)

    return convert


# --- over a batch or a channel


def _batch_norm(node: Node) -> Sequence[Expr | None]:
    x = node.tensor(0)
    dtype = node.dtype(x)
    if not node.attr("spatial", 1) and node.ndim(x) > 2:
        raise node.error("spatial = 0 (statistics per element) is not supported")
    scale, bias, mean, var = (node.cast(node.tensor(i), dtype) for i in range(1, 5))
    eps = node.attr("epsilon", 1e-5)
    if not (node.opset >= 14 and node.attr("training_mode", 0)):
        return [op.batch_norm(x, scale, bias, mean, var, eps)]
    # Statistics of this batch, and running ones moved towards them.
    momentum = node.attr("momentum", 0.9)
    axes = [axis for axis in range(node.ndim(x)) if axis != 1]
    wide = [1 if axis != 1 else node.shape(x)[1] for axis in range(node.ndim(x))]
    batch_mean = node.emit(op.reduce_mean(x, axes=axes))
    centered = node.emit(op.sub(x, node.reshape(batch_mean, wide)))
    batch_var = node.emit(op.reduce_mean(node.emit(op.square(centered)), axes=axes))
    outputs: list[Expr | None] = [op.batch_norm(x, scale, bias, batch_mean, batch_var, eps)]
    for running, current in ((mean, batch_mean), (var, batch_var)):
        kept = node.emit(op.mul(running, node.scalar_like(momentum, running)))
        outputs.append(op.add(kept, node.emit(op.mul(current, node.scalar_like(1 - momentum, running)))))
    return outputs


def _instance_norm(node: Node) -> Expr:
    return op.instance_norm(node.tensor(0), node.tensor(1), node.tensor(2), node.attr("epsilon", 1e-5))


def _group_norm(node: Node) -> Expr:
    x, scale, bias = (node.tensor(i) for i in range(3))
    groups = node.attr("num_groups")
    channels = node.shape(x)[1]
    if node.opset < 21:  # one scale per group; later per channel
        per_group = channels // groups
        scale, bias = (
            node.reshape(node.emit(op.broadcast_to(node.reshape(v, (groups, 1)), (groups, per_group))), (channels,))
            for v in (scale, bias)
        )
    return op.group_norm(x, scale, bias, groups, node.attr("epsilon", 1e-5))


def _lrn(node: Node) -> Expr:
    return op.lrn(
        node.tensor(0),
        size=node.attr("size"),
        alpha=node.attr("alpha", 1e-4),
        beta=node.attr("beta", 0.75),
        bias=node.attr("bias", 1.0),
    )


# --- over the last axes


def _layer_norm(node: Node) -> Sequence[Expr | None]:
    x, scale, bias = node.tensor(0), node.tensor(1), node.optional(2)
    shape = node.shape(x)
    axis, eps = node.axis(node.attr("axis", -1), len(shape)), node.attr("epsilon", 1e-5)
    fits = all(v is None or node.shape(v) == shape[axis:] for v in (scale, bias))
    if fits and not node.wants(1) and not node.wants(2):
        return [op.layer_norm(x, scale, bias, axis, eps)]
    # The optional outputs, and scales that broadcast, take the long way; statistics are float32 at least.
    dtype = node.dtype(x)
    wide = node.cast(x, "float32") if dtype in ("float16", "bfloat16") else x
    axes = tuple(range(axis, len(shape)))
    mean = node.emit(op.reduce_mean(wide, axes=axes, keepdims=True))
    centered = node.emit(op.sub(wide, mean))
    var = node.emit(op.reduce_mean(node.emit(op.square(centered)), axes=axes, keepdims=True))
    inverse = node.emit(op.rsqrt(node.emit(op.add(var, node.scalar_like(eps, var)))))
    result = node.cast(node.emit(op.mul(centered, inverse)), dtype)
    result = node.emit(broadcast(node, op.mul, result, scale))
    if bias is not None:
        result = node.emit(broadcast(node, op.add, result, bias))
    return [result, mean, inverse]


def _rms_norm(node: Node) -> Expr:
    x, scale = node.tensor(0), node.tensor(1)
    shape = node.shape(x)
    axis, eps = node.axis(node.attr("axis", -1), len(shape)), node.attr("epsilon", 1e-5)
    if node.shape(scale) == shape[axis:] and node.dtype(scale) == node.dtype(x):
        return op.rms_norm(x, scale, axis, eps)
    wide = node.cast(x, "float32") if node.dtype(x) in ("float16", "bfloat16") else x
    axes = tuple(range(axis, len(shape)))
    power = node.emit(op.reduce_mean(node.emit(op.square(wide)), axes=axes, keepdims=True))
    inverse = node.emit(op.rsqrt(node.emit(op.add(power, node.scalar_like(eps, power)))))
    result = node.cast(node.emit(op.mul(wide, inverse)), node.dtype(scale))
    return broadcast(node, op.mul, result, scale)


def _lp_normalization(node: Node) -> Expr:
    x = node.tensor(0)
    return op.lp_norm(x, node.axis(node.attr("axis", -1), node.ndim(x)), node.attr("p", 2))


def _mean_variance_normalization(node: Node) -> Expr:
    """(x - E[x]) / sqrt(E[x^2] - E[x]^2), with the small constant of the operator's definition."""
    x = node.tensor(0)
    axes = tuple(node.axis(axis, node.ndim(x)) for axis in node.attr("axes", (0, 2, 3)))
    mean = node.emit(op.reduce_mean(x, axes=axes, keepdims=True))
    centered = node.emit(op.sub(x, mean))
    var = node.emit(op.reduce_mean(node.emit(op.square(centered)), axes=axes, keepdims=True))
    deviation = node.emit(op.add(node.emit(op.sqrt(var)), node.scalar_like(1e-9, x)))
    return op.div(centered, deviation)


CONVERTERS: ConverterTable = {
    "BatchNormalization": {1: _batch_norm},
    "GroupNormalization": {18: _group_norm},
    "Hardmax": {1: _softmax_of_rows(op.hardmax), 13: _softmax(op.hardmax)},
    "InstanceNormalization": {1: _instance_norm},
    "LRN": {1: _lrn},
    "LayerNormalization": {17: _layer_norm},
    "LogSoftmax": {1: _softmax_of_rows(op.log_softmax), 13: _softmax(op.log_softmax)},
    "LpNormalization": {1: _lp_normalization},
    "MeanVarianceNormalization": {9: _mean_variance_normalization},
    "RMSNormalization": {23: _rms_norm},
    "Softmax": {1: _softmax_of_rows(op.softmax), 13: _softmax(op.softmax)},
}
