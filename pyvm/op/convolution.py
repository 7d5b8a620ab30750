"""Convolution and transposed convolution; the window arithmetic that pooling shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Call, Expr, ShapeExpr
from pyvm.ir.prim import Prim, sym_min
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.activation import ACTIVATIONS, EPILOGUE, activation_args, check_operands, finish
from pyvm.op.attributes import INT, INTS, one_of
from pyvm.op.common import (
    FLOAT,
    TensorLike,
    as_expr,
    check_dtype,
    check_ndim,
    define,
    fail,
    int_tuple,
    known_ndim,
    make_call,
    require_ndim,
    same_dim,
    same_dtype,
    same_shape,
    show_shape,
    static_shape,
    tensor_info,
)
from pyvm.op.registry import KernelCall, Lowered
from pyvm.op.winograd import PANEL_COLUMNS, WINOGRAD_LAYOUT, WINOGRAD_POINTS, restore_weights

Ints = int | Sequence[int]

# --- windows, shared by convolution and pooling -----------------------------------------------------------------------


def window_count(
    op: str, dim: Prim, kernel: int, stride: int, pad_begin: int, pad_end: int, dilation: int, ceil_mode: bool = False
) -> Prim:
    """How many windows fit on an axis of size `dim`.

    With `ceil_mode` the last window may reach beyond the padding, but must start inside the axis or its left padding.

    Source: ONNX MaxPool (ceil_mode), Conv.
    """
    extent = dilation * (kernel - 1) + 1
    span = dim + pad_begin + pad_end - extent
    if isinstance(span, int) and span < 0 and not (ceil_mode and -span < stride):
        fail(op, f"a window of {extent} elements is larger than an axis of {dim} padded by {pad_begin} and {pad_end}")
    if not ceil_mode:
        return span // stride + 1
    count = (span + stride - 1) // stride + 1
    if pad_end + stride <= extent:
        return count
    starts_inside = (dim + pad_begin - 1) // stride + 1
    if isinstance(count, int) and isinstance(starts_inside, int):
        return min(count, starts_inside)
    return sym_min(count, starts_inside)


def window_counts(op: str, dims: Sequence[Prim], kernel: Sequence[int], attrs: dict[str, Any]) -> list[Prim]:
    """`window_count` of every spatial axis, with "strides", "pads", "dilations" and "ceil_mode" of `attrs`."""
    n = len(kernel)
    strides, pads, dilations = attrs["strides"], attrs["pads"], attrs["dilations"]
    ceil_mode = attrs.get("ceil_mode", False)
    return [
        window_count(op, dims[i], kernel[i], strides[i], pads[i], pads[n + i], dilations[i], ceil_mode)
        for i in range(n)
    ]


def static_window_counts(op: str, dims: Sequence[int], kernel: Sequence[int], attrs: dict[str, Any]) -> list[int]:
    """`window_counts` of constant dims."""
    return [n for n in window_counts(op, dims, kernel, attrs) if isinstance(n, int)]


def check_window(op: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> None:
    """Raise unless all three are positive."""
    for what, values in (("kernel", kernel), ("strides", strides), ("dilations", dilations)):
        if any(v < 1 for v in values):
            fail(op, f"{what} {tuple(values)} must be positive")


def pads_of(op: str, pads: Ints, n_spatial: int) -> tuple[int, ...]:
    """`pads` as one value per side of every spatial axis, none negative."""
    result = int_tuple(op, "pads", pads, 2 * n_spatial)
    if any(p < 0 for p in result):
        fail(op, f"pads {result} must not be negative")
    return result


def taps_of(
    x: np.ndarray, kernel: Sequence[int], out: Sequence[int], attrs: dict[str, Any], fill: float
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """For every kernel position: the elements of padded `x` under it in all windows, (n, c, *out)."""
    n = len(kernel)
    strides, pads, dilations = attrs["strides"], attrs["pads"], attrs["dilations"]
    grow = [(0, 0), (0, 0)]
    for i in range(n):
        reach = (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
        grow.append((pads[i], max(pads[n + i], reach - pads[i] - x.shape[2 + i], 0)))
    padded = np.pad(x, grow, constant_values=fill)
    for position in itertools.product(*map(range, kernel)):
        starts = [position[i] * dilations[i] for i in range(n)]
        window: list[Any] = [slice(starts[i], starts[i] + (out[i] - 1) * strides[i] + 1, strides[i]) for i in range(n)]
        empty = min(out) < 1
        yield position, np.zeros((*x.shape[:2], *out), x.dtype) if empty else padded[tuple([..., *window])]


# --- convolution ------------------------------------------------------------------------------------------------------


def _conv_operands(call: Call) -> tuple[TensorStructInfo, TensorStructInfo, str | None]:
    """Struct info of x and w and the common dtype, after the checks that conv and conv_transpose share."""
    op = call.op.name
    infos = [tensor_info(call, i) for i in range(len(call.args))]
    dtype = same_dtype(op, infos)
    check_dtype(op, "x", infos[0], FLOAT)
    ndim = len(call.attrs["strides"]) + 2
    check_ndim(op, "x", infos[0], ndim)
    check_ndim(op, "w", infos[1], ndim)
    if len(infos) - call.attrs.get("residual", False) == 3:
        check_ndim(op, "bias", infos[2], 1)
    return infos[0], infos[1], dtype


def _check_channels(op: str, what: str, x: TensorStructInfo, w: TensorStructInfo, actual: Prim, expected: Prim) -> None:
    if same_dim(actual, expected) is False:
        fail(op, f"x {show_shape(x.shape)}, w {show_shape(w.shape)}: {what} {actual}, expected {expected}")


def _check_bias(call: Call, channels: Prim) -> None:
    if len(call.args) - call.attrs.get("residual", False) == 3:
        bias = tensor_info(call, 2).shape
        if bias is not None and same_dim(bias[0], channels) is False:
            fail(call.op.name, f"bias {show_shape(bias)} for {channels} output channels")


def _infer_conv(call: Call) -> StructInfo:
    check_operands(call)
    x, w, dtype = _conv_operands(call)
    attrs = call.attrs
    if attrs.get("layout") == WINOGRAD_LAYOUT:
        panels = attrs["group"] * -(-(attrs["columns"] // attrs["group"]) // PANEL_COLUMNS)
        if w.shape is None or (w.shape[0], w.shape[1], w.shape[3]) != (WINOGRAD_POINTS, panels, PANEL_COLUMNS):
            fail("conv", f"transformed weights {show_shape(w.shape)} for {attrs['columns']} output channels")
        if any(attrs[key] != (1, 1) for key in ("strides", "dilations")):
            fail("conv", f"transformed weights with strides {attrs['strides']}, dilations {attrs['dilations']}, not 1")
        w = TensorStructInfo((attrs["columns"], w.shape[2], 3, 3), dtype)
    n = len(attrs["strides"])
    if x.shape is None or w.shape is None:
        return TensorStructInfo(None, dtype, n + 2)
    group = attrs["group"]
    _check_channels("conv", f"channels of x in {group} groups:", x, w, x.shape[1], w.shape[1] * group)
    if isinstance(w.shape[0], int) and w.shape[0] % group:
        fail("conv", f"w {show_shape(w.shape)}: {w.shape[0]} output channels do not divide into {group} groups")
    _check_bias(call, w.shape[0])
    kernel = static_shape(w.shape[2:])
    if kernel is None:
        fail("conv", f"w {show_shape(w.shape)}: the size of the kernel must be constant")
    spatial = window_counts("conv", x.shape[2:], kernel, attrs)
    result = TensorStructInfo((x.shape[0], w.shape[0], *spatial), dtype)
    if attrs.get("residual", False):
        more = tensor_info(call, len(call.args) - 1).shape
        if not same_shape(more, result.shape):
            fail("conv", f"residual {show_shape(more)}, expected {show_shape(result.shape)}")
    return result


def _evaluate_conv(attrs: dict[str, Any], x: np.ndarray, w: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    residual = rest[-1] if attrs.get("residual", False) else None
    bias = rest[0] if len(rest) > (residual is not None) else None
    if attrs.get("layout") == WINOGRAD_LAYOUT:
        w = restore_weights(w, attrs["columns"], attrs["group"])
    n, group = x.ndim - 2, attrs["group"]
    kernel = w.shape[2:]
    out = static_window_counts("conv", x.shape[2:], kernel, attrs)
    wide_x = x.astype(np.float64).reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])
    wide_w = w.astype(np.float64).reshape(group, w.shape[0] // group, *w.shape[1:])
    result = np.zeros((x.shape[0], group, wide_w.shape[1], *out))
    for g in range(group):
        for position, taps in taps_of(wide_x[:, g], kernel, out, attrs, 0.0):
            tap_weights = wide_w[g][(..., *position)]  # type: ignore[arg-type]
            result[:, g] += np.moveaxis(np.tensordot(tap_weights, taps, axes=(1, 1)), 0, 1)
    result = result.reshape(x.shape[0], w.shape[0], *out)
    if bias is not None:
        result += bias.reshape(-1, *[1] * n)
    return finish(attrs, result, residual).astype(x.dtype)


def _bias_or_none(call: Call) -> Expr | None:
    return call.args[2] if len(call.args) - call.attrs.get("residual", False) == 3 else None


def _lower_conv(call: Call) -> Lowered:
    attrs = call.attrs
    shapes = [ShapeExpr(attrs[key]) for key in ("strides", "pads", "dilations")]
    args = [*call.args[:2], _bias_or_none(call), *shapes, attrs["group"]]
    residual = call.args[-1] if attrs.get("residual", False) else None
    if attrs.get("layout") == WINOGRAD_LAYOUT:
        pads = ShapeExpr(attrs["pads"])
        args = [*call.args[:2], _bias_or_none(call), pads, attrs["group"], *activation_args(attrs), residual]
        return KernelCall("kernel.conv_winograd", args)
    if residual is None and attrs["activation"] in ("none", "relu"):
        return KernelCall("kernel.conv", [*args, ACTIVATIONS[attrs["activation"]]])
    return KernelCall("kernel.conv", [*args, *activation_args(attrs), residual])


_CONV = define(
    "conv",
    _infer_conv,
    _evaluate_conv,
    _lower_conv,
    half=False,
    operands=(2, 4),
    attrs={
        "strides": INTS,
        "pads": INTS,
        "dilations": INTS,
        "group": INT,
        **EPILOGUE,
        "layout": one_of([WINOGRAD_LAYOUT]).optional(),
        "columns": INT.optional(),
    },
)


def _spatial_rank(op: str, x: Expr, w: Expr) -> int:
    ndim = known_ndim(x)
    ndim = ndim if ndim >= 0 else require_ndim(op, w)
    if ndim < 3:
        fail(op, f"x has {ndim} dimensions, expected batch, channels and at least one more")
    return ndim - 2


def conv(
    x: TensorLike,
    w: TensorLike,
    bias: TensorLike | None = None,
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    group: int = 1,
    activation: str = "none",
) -> Call:
    """Convolution (cross-correlation) over 1, 2 or 3 spatial axes.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)
    w : tensor, (m, c / group, *kernel)
    bias : tensor, (m,), optional
    strides, dilations : int or sequence of int
        One per spatial axis.
    pads : int or sequence of int
        Zeros before every spatial axis, then after every spatial axis.
    group : int
        Groups of channels that do not mix.
    activation : str
        Applied to the result: "none", "relu" or another one of `pyvm.op.activation` without parameters.

    Returns
    -------
    Call
        Tensor (n, m, *out), out = (size + pads - dilation * (kernel - 1) - 1) // stride + 1.

    Source: ONNX Conv.
    """
    args = [as_expr(x), as_expr(w)]
    n = _spatial_rank("conv", *args)
    if bias is not None:
        args.append(as_expr(bias))
    if group < 1:
        fail("conv", f"group {group}, expected at least 1")
    attrs: dict[str, Any] = {
        "strides": int_tuple("conv", "strides", strides, n),
        "pads": pads_of("conv", pads, n),
        "dilations": int_tuple("conv", "dilations", dilations, n),
        "group": int(group),
        "activation": activation,
    }
    check_window("conv", (1,), attrs["strides"], attrs["dilations"])
    return make_call(_CONV, args, attrs)


def _infer_conv_transpose(call: Call) -> StructInfo:
    x, w, dtype = _conv_operands(call)
    attrs = call.attrs
    n, group = len(attrs["strides"]), attrs["group"]
    if x.shape is None or w.shape is None:
        return TensorStructInfo(None, dtype, n + 2)
    _check_channels("conv_transpose", "channels of x:", x, w, x.shape[1], w.shape[0])
    if isinstance(x.shape[1], int) and x.shape[1] % group:
        fail("conv_transpose", f"x {show_shape(x.shape)}: {x.shape[1]} channels do not divide into {group} groups")
    channels = w.shape[1] * group
    _check_bias(call, channels)
    spatial: list[Prim] = []
    for i in range(n):
        grow = attrs["dilations"][i] * (w.shape[2 + i] - 1) + attrs["output_padding"][i] + 1
        size = (x.shape[2 + i] - 1) * attrs["strides"][i] + grow - attrs["pads"][i] - attrs["pads"][n + i]
        if isinstance(size, int) and size < 0:
            fail("conv_transpose", f"x {show_shape(x.shape)}, w {show_shape(w.shape)}: output size {size} at axis {i}")
        spatial.append(size)
    return TensorStructInfo((x.shape[0], channels, *spatial), dtype)


def _evaluate_conv_transpose(
    attrs: dict[str, Any], x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    n, group = x.ndim - 2, attrs["group"]
    strides, pads, dilations, extra = (attrs[k] for k in ("strides", "pads", "dilations", "output_padding"))
    kernel = w.shape[2:]
    full = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(n)]
    wide_x = x.astype(np.float64).reshape(x.shape[0], group, -1, *x.shape[2:])
    wide_w = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    result = np.zeros((x.shape[0], group, w.shape[1], *full))
    for g in range(group):
        for position in itertools.product(*map(range, kernel)):
            tap_weights = wide_w[g][(..., *position)]  # type: ignore[arg-type]
            part = np.moveaxis(np.tensordot(tap_weights, wide_x[:, g], axes=(0, 1)), 0, 1)
            index: list[Any] = [slice(None), g, slice(None)]
            for i in range(n):
                start = position[i] * dilations[i]
                index.append(slice(start, start + (x.shape[2 + i] - 1) * strides[i] + 1, strides[i]))
            result[tuple(index)] += part
    cut: list[Any] = [slice(pads[i], full[i] - pads[n + i]) for i in range(n)]
    result = result.reshape(x.shape[0], -1, *full)[tuple([..., *cut])]
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * n)
    return result.astype(x.dtype)


def _lower_conv_transpose(call: Call) -> Lowered:
    shapes = [ShapeExpr(call.attrs[key]) for key in ("strides", "pads", "dilations", "output_padding")]
    return KernelCall("kernel.conv_transpose", [*call.args[:2], _bias_or_none(call), *shapes, call.attrs["group"]])


_CONV_TRANSPOSE = define(
    "conv_transpose",
    _infer_conv_transpose,
    _evaluate_conv_transpose,
    _lower_conv_transpose,
    half=False,
    attrs={"strides": INTS, "pads": INTS, "dilations": INTS, "output_padding": INTS, "group": INT},
)


def conv_transpose(
    x: TensorLike,
    w: TensorLike,
    bias: TensorLike | None = None,
    strides: Ints = 1,
    pads: Ints = 0,
    dilations: Ints = 1,
    output_padding: Ints = 0,
    group: int = 1,
) -> Call:
    """Transposed convolution over 1, 2 or 3 spatial axes: the gradient of `conv` with respect to its input.

    Parameters
    ----------
    x : tensor, (n, c, *spatial)
    w : tensor, (c, m / group, *kernel)
    bias : tensor, (m,), optional
    strides, dilations, output_padding : int or sequence of int
        One per spatial axis.
    pads : int or sequence of int
        Elements cut before every spatial axis, then after every spatial axis.
    group : int

    Returns
    -------
    Call
        Tensor (n, m, *out), out = (size - 1) * stride + dilation * (kernel - 1) + output_padding + 1 - pads.

    Source: ONNX ConvTranspose.
    """
    args = [as_expr(x), as_expr(w)]
    n = _spatial_rank("conv_transpose", *args)
    if bias is not None:
        args.append(as_expr(bias))
    attrs: dict[str, Any] = {
        "strides": int_tuple("conv_transpose", "strides", strides, n),
        "pads": pads_of("conv_transpose", pads, n),
        "dilations": int_tuple("conv_transpose", "dilations", dilations, n),
        "output_padding": int_tuple("conv_transpose", "output_padding", output_padding, n),
        "group": int(group),
    }
    check_window("conv_transpose", (group,), attrs["strides"], attrs["dilations"])
    return make_call(_CONV_TRANSPOSE, args, attrs)
