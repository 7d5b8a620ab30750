"""Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce

import numpy as np

from pyvm import op
from pyvm.frontend.onnx.node import Node
from pyvm.frontend.onnx.registry import ConverterTable
from pyvm.frontend.onnx.shape_values import larger, smaller
from pyvm.ir import Expr, Prim
from pyvm.op.resizing import RESIZE_COORDINATES, RESIZE_MODES, RESIZE_ROUNDINGS


class _Sampling:
    """How a node samples: the attributes of Resize, or what Upsample and Resize-10 stand for."""

    def __init__(self, node: Node) -> None:
        old = node.op_type == "Upsample" or node.opset < 11
        self.mode: str = node.attr("mode", "nearest")
        self.coordinate_mode: str = "asymmetric" if old else node.attr("coordinate_transformation_mode", "half_pixel")
        self.nearest_mode: str = "floor" if old else node.attr("nearest_mode", "round_prefer_floor")
        self.cubic_a: float = node.attr("cubic_coeff_a", -0.75)
        if self.mode not in RESIZE_MODES or self.coordinate_mode not in RESIZE_COORDINATES:
            raise node.error(f"mode {self.mode!r} with coordinates {self.coordinate_mode!r} is not supported")
        if self.nearest_mode not in RESIZE_ROUNDINGS:
            raise node.error(f"nearest_mode {self.nearest_mode!r} is not supported")
        for name in ("antialias", "exclude_outside"):
            if node.attr(name, 0) and self.mode != "nearest":
                raise node.error(f"{name} is not supported")


def _upsample(node: Node) -> Expr:
    x = node.tensor(0)
    if node.opset >= 9:
        return _by_scales(node, x, range(node.ndim(x)), 1)
    return _scaled(node, x, [float(scale) for scale in node.attr("scales")])


def _resize_10(node: Node) -> Expr:
    x = node.tensor(0)
    return _by_scales(node, x, range(node.ndim(x)), 1)


def _resize(node: Node) -> Expr:
    x = node.tensor(0)
    ndim = node.ndim(x)
    axes = [node.axis(axis, ndim) for axis in node.attr("axes", range(ndim))]
    if node.has(3) and node.shape(node.name_of(3)) != (0,):
        return _by_sizes(node, x, axes)
    if not node.has(2):
        raise node.error("neither scales nor sizes are given")
    return _by_scales(node, x, axes, 2)


def _by_scales(node: Node, x: Expr, axes: Sequence[int], index: int) -> Expr:
    ndim = node.ndim(x)
    scales = node.constant(index)
    if scales is not None:
        if scales.shape != (len(axes),):
            raise node.error(f"{scales.shape} scales for {len(axes)} axes")
        full = [1.0] * ndim
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            full[axis] = scale
        return _scaled(node, x, full)
    runtime = _one_per_dimension(node, node.cast(node.tensor(index), "float32"), axes, ndim)
    sizes = node.cast(node.emit(op.shape_to_tensor(node.shape(x))), "float32")
    result = node.emit(op.floor(node.emit(op.mul(sizes, runtime))))
    return _with_scales_of_run_time(node, x, node.dims(node.read_ints(result)), runtime)


def _one_per_dimension(node: Node, scales: Expr, axes: Sequence[int], ndim: int) -> Expr:
    """Scales of some axes, made scales of all: 1 for the others."""
    one = node.scalar_like(1, scales)
    extended = node.emit(op.concat([scales, node.reshape(one, (1,))], 0))
    places = [axes.index(axis) if axis in axes else len(axes) for axis in range(ndim)]
    return node.emit(op.gather(extended, np.array(places, np.int64), 0))


def _with_scales_of_run_time(node: Node, x: Expr, dims: Sequence[Prim], scales: Expr) -> Expr:
    """The operator wants constant scales; the kernel takes a tensor."""
    sampling = _Sampling(node)
    arguments = [
        x,
        RESIZE_MODES[sampling.mode],
        RESIZE_COORDINATES[sampling.coordinate_mode],
        RESIZE_ROUNDINGS[sampling.nearest_mode],
        sampling.cubic_a,
        node.cast(scales, "float64"),
    ]
    return node.kernel("resize", arguments, dims, node.dtype(x))


def _scaled(node: Node, x: Expr, scales: list[float]) -> Expr:
    shape = node.shape(x)
    if len(scales) != len(shape) or any(scale <= 0 or not math.isfinite(scale) for scale in scales):
        raise node.error(f"scales {scales} do not fit a tensor of {len(shape)} dimensions")
    dims = [_scaled_dim(dim, scale) for dim, scale in zip(shape, scales, strict=True)]
    return _resampled(node, x, dims, scales)


def _scaled_dim(dim: Prim, scale: float) -> Prim:
    """floor(dim * scale), the product in float32 as other runtimes have it."""
    if isinstance(dim, int):
        return math.floor(np.float32(dim) * np.float32(scale))
    ratio = Fraction(scale)
    return dim * ratio.numerator // ratio.denominator


def _by_sizes(node: Node, x: Expr, axes: Sequence[int]) -> Expr:
    shape = node.shape(x)
    sizes = node.dims(node.ints(3))
    if len(sizes) != len(axes):
        raise node.error(f"{len(sizes)} sizes for {len(axes)} axes")
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    dims = list(shape)
    for axis, size in zip(axes, sizes, strict=True):
        dims[axis] = size
    if policy == "stretch":
        return _resampled(node, x, dims, None)
    if policy not in ("not_larger", "not_smaller"):
        raise node.error(f"keep_aspect_ratio_policy {policy!r} is not known")
    # One scale for all axes: the smallest or the largest quotient. Rounding keeps order, so the same holds for results.
    pick = smaller if policy == "not_larger" else larger
    for axis in axes:
        candidates = [
            (2 * size * shape[axis] + shape[other]) // (2 * shape[other])
            for other, size in zip(axes, sizes, strict=True)
        ]
        dims[axis] = reduce(pick, candidates)
    wanted, given = (
        node.cast(node.emit(op.shape_to_tensor(values)), "float64")
        for values in (sizes, [shape[axis] for axis in axes])
    )
    quotients = node.emit(op.div(wanted, given))
    best = op.reduce_min if policy == "not_larger" else op.reduce_max
    scale = node.emit(op.broadcast_to(node.emit(best(quotients, keepdims=True)), (len(axes),)))
    return _with_scales_of_run_time(node, x, node.dims(dims), _one_per_dimension(node, scale, axes, len(shape)))


def _resampled(node: Node, x: Expr, dims: Sequence[Prim], scales: Sequence[float] | None) -> Expr:
    sampling = _Sampling(node)
    return op.resize(
        x,
        dims,
        scales,
        mode=sampling.mode,
        coordinate_mode=sampling.coordinate_mode,
        nearest_mode=sampling.nearest_mode,
        cubic_a=sampling.cubic_a,
    )


CONVERTERS: ConverterTable = {
    "Resize": {10: _resize_10, 11: _resize},
    "Upsample": {7: _upsample},
}
