"""Resampling of tensors to another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Expr
from pyvm.ir.prim import Prim
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import NUMBER, NUMBERS, one_of
from pyvm.op.common import (
    FLOAT,
    NUMERIC,
    TensorLike,
    as_expr,
    as_shape,
    check_dtype,
    check_ndim,
    define,
    fail,
    make_call,
    require_shape,
    shape_arg,
    show_shape,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered

# --- resize -----------------------------------------------------------------------------------------------------------

RESIZE_MODES = {"nearest": 0, "linear": 1, "cubic": 2}
RESIZE_COORDINATES = {
    "half_pixel": 0,
    "asymmetric": 1,
    "align_corners": 2,
    "pytorch_half_pixel": 3,
    "half_pixel_symmetric": 4,
}
RESIZE_ROUNDINGS = {"round_prefer_floor": 0, "round_prefer_ceil": 1, "floor": 2, "ceil": 3}


def _infer_resize(call: Call) -> StructInfo:
    x, shape = tensor_info(call, 0), shape_arg(call, 1)
    check_dtype("resize", "x", x, NUMERIC if call.attrs["mode"] == "nearest" else FLOAT | {"uint8", "int8", "int32"})
    if shape is None:
        return TensorStructInfo(None, x.dtype, x.ndim)
    check_ndim("resize", "x", x, len(shape))
    return TensorStructInfo(shape, x.dtype)


def _source_positions(attrs: dict[str, Any], n_in: int, n_out: int, scale: float) -> np.ndarray:
    """Coordinate in the input of every index of an output axis."""
    i = np.arange(n_out, dtype=np.float64)
    mode = attrs["coordinate_mode"]
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * ((n_in - 1) / (n_out - 1)) if n_out > 1 else np.zeros(n_out)
    if mode == "pytorch_half_pixel" and n_out <= 1:
        return np.zeros(n_out)
    position = (i + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        # The output is cut to whole pixels; half of what is missing belongs to each side.
        center = n_in / 2
        return center * (1 - n_out / (scale * n_in)) + (i + 0.5) / scale - 0.5
    return position


def _axis_weights(attrs: dict[str, Any], n_in: int, n_out: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights, (n_out, taps), of the input elements that make each output element of an axis."""
    position = _source_positions(attrs, n_in, n_out, scale)
    if attrs["mode"] == "nearest":
        rounding = attrs["nearest_mode"]
        if rounding == "round_prefer_floor":
            index = np.ceil(position - 0.5)
        elif rounding == "round_prefer_ceil":
            index = np.floor(position + 0.5)
        else:
            index = np.floor(position) if rounding == "floor" else np.ceil(position)
        return np.clip(index, 0, n_in - 1).astype(np.int64)[:, None], np.ones((n_out, 1))
    base = np.floor(position)
    t = (position - base)[:, None]
    if attrs["mode"] == "linear":
        offsets, weights = np.arange(2), np.concatenate([1 - t, t], axis=1)
    else:
        a = attrs["cubic_a"]
        offsets = np.arange(-1, 3)
        d = np.abs(t - offsets)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    return np.clip(base[:, None] + offsets, 0, n_in - 1).astype(np.int64), weights


def _evaluate_resize(attrs: dict[str, Any], x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    scales = attrs["scales"] or [n / d if d else 1.0 for n, d in zip(shape, x.shape, strict=True)]
    result = x if attrs["mode"] == "nearest" else x.astype(np.float64)
    for axis, (n_out, scale) in enumerate(zip(shape, scales, strict=True)):
        if n_out == x.shape[axis] and scale == 1:
            continue
        indices, weights = _axis_weights(attrs, x.shape[axis], n_out, scale)
        if attrs["mode"] == "nearest":
            result = np.take(result, indices[:, 0], axis=axis)
            continue
        moved = np.moveaxis(result, axis, -1)
        result = np.moveaxis((moved[..., indices] * weights).sum(axis=-1), -1, axis)
    if x.dtype.kind in "iu" and attrs["mode"] != "nearest":
        limits = np.iinfo(x.dtype)
        result = np.clip(np.trunc(result), limits.min, limits.max)
    return result.astype(x.dtype)


def _lower_resize(call: Call) -> Lowered:
    attrs = call.attrs
    scales = None if attrs["scales"] is None else np.asarray(attrs["scales"], np.float64)
    codes = [
        RESIZE_MODES[attrs["mode"]],
        RESIZE_COORDINATES[attrs["coordinate_mode"]],
        RESIZE_ROUNDINGS[attrs["nearest_mode"]],
    ]
    return KernelCall("kernel.resize", [call.args[0], *codes, attrs["cubic_a"], scales])


_RESIZE = define(
    "resize",
    _infer_resize,
    _evaluate_resize,
    _lower_resize,
    half=False,
    attrs={
        "mode": one_of(RESIZE_MODES),
        "coordinate_mode": one_of(RESIZE_COORDINATES),
        "nearest_mode": one_of(RESIZE_ROUNDINGS),
        "cubic_a": NUMBER,
        "scales": NUMBERS.or_none(),
    },
)


def scaled_size(dim: Prim, scale: float) -> Prim:
    """floor(dim * scale) for a resize; a symbolic dim takes the scale as a fraction with a small denominator."""
    if isinstance(dim, int):
        return math.floor(dim * scale)
    ratio = Fraction(scale).limit_denominator(100)
    if abs(float(ratio) - scale) > 1e-7 * scale:
        fail("resize", f"scale {scale} of the symbolic dim {dim} is not a simple fraction")
    return dim * ratio.numerator // ratio.denominator


def resize(
    x: TensorLike,
    shape: Expr | Sequence[Prim] | None = None,
    scales: Sequence[float] | None = None,
    mode: str = "nearest",
    coordinate_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_a: float = -0.75,
) -> Call:
    """`x` resampled to another size, axis by axis.

    Parameters
    ----------
    x : tensor
    shape : shape expression or sequence of int or PrimExpr, optional
        Size of the result, one per axis; None: floor(size * scale).
    scales : sequence of float, optional
        Scale of each axis; None: quotient of the sizes.
    mode : str
        "nearest", "linear" or "cubic".
    coordinate_mode : str
        "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel" or "half_pixel_symmetric".
    nearest_mode : str
        "round_prefer_floor", "round_prefer_ceil", "floor" or "ceil".
    cubic_a : float
        Coefficient of the cubic kernel.

    Source: ONNX Resize, without antialias and exclude_outside.
    """
    x = as_expr(x)
    if scales is not None:
        scales = tuple(float(s) for s in scales)
        if any(not (math.isfinite(s) and s > 0) for s in scales):
            fail("resize", f"scales {scales} must be positive")
    if shape is None:
        if scales is None:
            fail("resize", "needs a shape or scales")
        source = require_shape("resize", x)
        if len(source) != len(scales):
            fail("resize", f"{len(scales)} scales for {show_shape(source)}")
        shape = [scaled_size(d, s) for d, s in zip(source, scales, strict=True)]
    attrs = {
        "mode": mode,
        "coordinate_mode": coordinate_mode,
        "nearest_mode": nearest_mode,
        "cubic_a": float(cubic_a),
        "scales": scales,
    }
    return make_call(_RESIZE, [x, as_shape(shape)], attrs)
