"""Softmax and its kin, normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special

from pyvm.ir.expr import Call
from pyvm.ir.struct_info import StructInfo, TensorStructInfo
from pyvm.op.attributes import INT, NUMBER
from pyvm.op.common import (
    FLOAT,
    TensorLike,
    as_expr,
    check_dtype,
    check_ndim,
    define,
    fail,
    known_ndim,
    make_call,
    normalize_axes,
    normalize_axis,
    same_dim,
    same_dtype,
    show_shape,
    tensor_info,
)
from pyvm.op.elementwise import add, div, mul, sqrt, sub
from pyvm.op.reduce import reduce_mean
from pyvm.op.registry import KernelCall, Lowered, Op

# --- softmax ----------------------------------------------------------------------------------------------------------


def _infer_along_axis(call: Call) -> StructInfo:
    x = tensor_info(call, 0)
    check_dtype(call.op.name, "x", x, FLOAT)
    normalize_axis(call.op.name, call.attrs["axis"], x.ndim)
    return TensorStructInfo(x.shape, x.dtype, x.ndim)


def _along_axis(name: str, fn: Callable[[np.ndarray, int], Any]) -> Op:
    def evaluate(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return np.asarray(fn(x.astype(np.float64), attrs["axis"])).astype(x.dtype) if x.size else x.copy()

    def lower(call: Call) -> Lowered:
        axis = normalize_axis(name, call.attrs["axis"], tensor_info(call, 0).ndim)
        return KernelCall(f"kernel.{name}", [call.args[0], axis], (0,))

    return define(name, _infer_along_axis, evaluate, lower, attrs={"axis": INT})


def _hardmax(x: np.ndarray, axis: int) -> np.ndarray:
    result = np.zeros_like(x)
    np.put_along_axis(result, np.argmax(x, axis=axis, keepdims=True), 1, axis)
    return result


_SOFTMAX = _along_axis("softmax", scipy.special.softmax)
_LOG_SOFTMAX = _along_axis("log_softmax", scipy.special.log_softmax)
_HARDMAX = _along_axis("hardmax", _hardmax)


def _make_along_axis(op: Op, x: TensorLike, axis: int) -> Call:
    x = as_expr(x)
    return make_call(op, [x], {"axis": normalize_axis(op.name, axis, known_ndim(x))})


def softmax(x: TensorLike, axis: int = -1) -> Call:
    """exp(x) / sum(exp(x)) along `axis`.

    Parameters
    ----------
    x : tensor of floats
    axis : int

    Source: ONNX Softmax-13.
    """
    return _make_along_axis(_SOFTMAX, x, axis)


def log_softmax(x: TensorLike, axis: int = -1) -> Call:
    """x - log(sum(exp(x))) along `axis`.

    Parameters
    ----------
    x : tensor of floats
    axis : int

    Source: ONNX LogSoftmax-13.
    """
    return _make_along_axis(_LOG_SOFTMAX, x, axis)


def hardmax(x: TensorLike, axis: int = -1) -> Call:
    """1 at the first largest element along `axis`, 0 elsewhere.

    Parameters
    ----------
    x : tensor of floats
    axis : int

    Source: ONNX Hardmax-13.
    """
    return _make_along_axis(_HARDMAX, x, axis)


# --- normalization ----------------------------------------------------------------------------------------------------


def _infer_norm(call: Call, n_params: int) -> TensorStructInfo:
    """Struct info of x after checks of dtypes; arguments 1 .. n_params are vectors over its channels."""
    op = call.op.name
    infos = [tensor_info(call, i) for i in range(len(call.args))]
    dtype = same_dtype(op, infos)
    check_dtype(op, "x", infos[0], FLOAT)
    if n_params:
        check_ndim(op, "x", infos[0], 2, at_least=True)
    for i in range(1, n_params + 1):
        check_ndim(op, f"argument {i}", infos[i], 1)
        shape, param = infos[0].shape, infos[i].shape
        if shape is not None and param is not None and same_dim(shape[1], param[0]) is False:
            fail(op, f"argument {i} {show_shape(param)} for {shape[1]} channels of x {show_shape(shape)}")
    return TensorStructInfo(infos[0].shape, dtype, infos[0].ndim)


def _infer_layer_norm(call: Call) -> StructInfo:
    x = _infer_norm(call, 0)
    axis = normalize_axis(call.op.name, call.attrs["axis"], x.ndim)
    for i in range(1, len(call.args)):
        shape = tensor_info(call, i).shape
        if x.shape is None or shape is None:
            continue
        normalized = x.shape[axis:]
        if len(shape) != len(normalized) or any(
            same_dim(a, b) is False for a, b in zip(shape, normalized, strict=True)
        ):
            fail(call.op.name, f"argument {i} {show_shape(shape)}, the normalized axes are {show_shape(normalized)}")
    return x


def _standardized(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axis=axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=axes, keepdims=True) + eps)


def _evaluate_layer_norm(
    attrs: dict[str, Any], x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    axes = tuple(range(attrs["axis"] % x.ndim, x.ndim))
    result = _standardized(x, axes, attrs["eps"]) * scale
    return (result if bias is None else result + bias).astype(x.dtype)


def _lower_layer_norm(call: Call) -> Lowered:
    axis = normalize_axis("layer_norm", call.attrs["axis"], tensor_info(call, 0).ndim)
    bias = call.args[2] if len(call.args) == 3 else None
    return KernelCall("kernel.layer_norm", [*call.args[:2], bias, axis, call.attrs["eps"]], (0,))


_LAYER_NORM = define(
    "layer_norm", _infer_layer_norm, _evaluate_layer_norm, _lower_layer_norm, attrs={"axis": INT, "eps": NUMBER}
)


def layer_norm(
    x: TensorLike, scale: TensorLike, bias: TensorLike | None = None, axis: int = -1, eps: float = 1e-5
) -> Call:
    """(x - mean) / sqrt(variance + eps) * scale + bias, moments over the axes from `axis` on.

    Parameters
    ----------
    x : tensor of floats
    scale, bias : tensor, x.shape[axis:]
    axis : int
    eps : float

    Source: ONNX LayerNormalization.
    """
    x = as_expr(x)
    args = [x, as_expr(scale)]
    if bias is not None:
        args.append(as_expr(bias))
    return make_call(_LAYER_NORM, args, {"axis": normalize_axis("layer_norm", axis, known_ndim(x)), "eps": float(eps)})


def _evaluate_rms_norm(attrs: dict[str, Any], x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    axes = tuple(range(attrs["axis"] % x.ndim, x.ndim))
    wide = x.astype(np.float64)
    return (wide / np.sqrt((wide**2).mean(axis=axes, keepdims=True) + attrs["eps"]) * scale).astype(x.dtype)


def _lower_rms_norm(call: Call) -> Lowered:
    axis = normalize_axis("rms_norm", call.attrs["axis"], tensor_info(call, 0).ndim)
    return KernelCall("kernel.rms_norm", [*call.args, axis, call.attrs["eps"]], (0,))


_RMS_NORM = define(
    "rms_norm", _infer_layer_norm, _evaluate_rms_norm, _lower_rms_norm, attrs={"axis": INT, "eps": NUMBER}
)


def rms_norm(x: TensorLike, scale: TensorLike, axis: int = -1, eps: float = 1e-5) -> Call:
    """x / sqrt(mean(x**2) + eps) * scale, mean over the axes from `axis` on.

    Parameters
    ----------
    x : tensor of floats
    scale : tensor, x.shape[axis:]
    axis : int
    eps : float

    Source: ONNX RMSNormalization.
    """
    x = as_expr(x)
    attrs = {"axis": normalize_axis("rms_norm", axis, known_ndim(x)), "eps": float(eps)}
    return make_call(_RMS_NORM, [x, as_expr(scale)], attrs)


def _per_channel(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    return v.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))


def _evaluate_batch_norm(
    attrs: dict[str, Any], x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> np.ndarray:
    factor = _per_channel(scale, x) / np.sqrt(_per_channel(var, x) + attrs["eps"])
    return ((x - _per_channel(mean, x)) * factor + _per_channel(bias, x)).astype(x.dtype)


def _lower_with_eps(call: Call) -> Lowered:
    return KernelCall(f"kernel.{call.op.name}", [*call.args, call.attrs["eps"]], (0,))


_BATCH_NORM = define(
    "batch_norm", lambda call: _infer_norm(call, 4), _evaluate_batch_norm, _lower_with_eps, attrs={"eps": NUMBER}
)


def batch_norm(
    x: TensorLike, scale: TensorLike, bias: TensorLike, mean: TensorLike, var: TensorLike, eps: float = 1e-5
) -> Call:
    """(x - mean) / sqrt(var + eps) * scale + bias, per channel, with given moments.

    Parameters
    ----------
    x : tensor of floats, (n, c, ...)
    scale, bias, mean, var : tensor, (c,)
    eps : float

    Source: ONNX BatchNormalization, inference.
    """
    return make_call(_BATCH_NORM, [as_expr(v) for v in (x, scale, bias, mean, var)], {"eps": float(eps)})


def _evaluate_instance_norm(attrs: dict[str, Any], x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    normal = _standardized(x, tuple(range(2, x.ndim)), attrs["eps"])
    return (normal * _per_channel(scale, x) + _per_channel(bias, x)).astype(x.dtype)


_INSTANCE_NORM = define(
    "instance_norm",
    lambda call: _infer_norm(call, 2),
    _evaluate_instance_norm,
    _lower_with_eps,
    half=False,
    attrs={"eps": NUMBER},
)


def instance_norm(x: TensorLike, scale: TensorLike, bias: TensorLike, eps: float = 1e-5) -> Call:
    """(x - mean) / sqrt(variance + eps) * scale + bias, moments per sample and channel.

    Parameters
    ----------
    x : tensor of floats, (n, c, ...)
    scale, bias : tensor, (c,)
    eps : float

    Source: ONNX InstanceNormalization.
    """
    return make_call(_INSTANCE_NORM, [as_expr(v) for v in (x, scale, bias)], {"eps": float(eps)})


def _infer_group_norm(call: Call) -> StructInfo:
    x, groups = _infer_norm(call, 2), call.attrs["groups"]
    if x.shape is not None and isinstance(x.shape[1], int) and x.shape[1] % groups:
        fail("group_norm", f"{x.shape[1]} channels of x {show_shape(x.shape)} do not divide into {groups} groups")
    return x


def _evaluate_group_norm(attrs: dict[str, Any], x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    grouped = x.reshape(x.shape[0], attrs["groups"], -1)
    normal = _standardized(grouped, (2,), attrs["eps"]).reshape(x.shape)
    return (normal * _per_channel(scale, x) + _per_channel(bias, x)).astype(x.dtype)


_GROUP_NORM = define(
    "group_norm",
    _infer_group_norm,
    _evaluate_group_norm,
    lambda call: KernelCall("kernel.group_norm", [*call.args, call.attrs["groups"], call.attrs["eps"]], (0,)),
    attrs={"groups": INT, "eps": NUMBER},
)


def group_norm(x: TensorLike, scale: TensorLike, bias: TensorLike, groups: int, eps: float = 1e-5) -> Call:
    """(x - mean) / sqrt(variance + eps) * scale + bias, moments per sample and group of channels.

    Parameters
    ----------
    x : tensor of floats, (n, c, ...)
    scale, bias : tensor, (c,)
    groups : int
        Divides c.
    eps : float

    Source: ONNX GroupNormalization-21.
    """
    if groups < 1:
        fail("group_norm", f"groups {groups}, expected at least 1")
    args = [as_expr(v) for v in (x, scale, bias)]
    return make_call(_GROUP_NORM, args, {"groups": int(groups), "eps": float(eps)})


def _infer_lrn(call: Call) -> StructInfo:
    return _infer_norm(call, 0)


def _evaluate_lrn(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    size = attrs["size"]
    before, after = min((size - 1) // 2, x.shape[1]), min(size // 2, x.shape[1])  # beyond, nothing is added
    wide = x.astype(np.float64)
    squares = np.pad(wide**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(before + after + 1))
    return (wide / (attrs["bias"] + attrs["alpha"] / size * total) ** attrs["beta"]).astype(x.dtype)


_LRN = define(
    "lrn",
    _infer_lrn,
    _evaluate_lrn,
    lambda call: KernelCall("kernel.lrn", [call.args[0], *(call.attrs[k] for k in ("size", "alpha", "beta", "bias"))]),
    attrs={"size": INT, "alpha": NUMBER, "beta": NUMBER, "bias": NUMBER},
)


def lrn(x: TensorLike, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Call:
    """x / (bias + alpha / size * sum of x**2 over `size` neighbouring channels) ** beta.

    Parameters
    ----------
    x : tensor of floats, (n, c, ...)
    size : int
        Channels in the sum: (size - 1) // 2 before and size // 2 after each one.
    alpha, beta, bias : float

    Source: ONNX LRN.
    """
    if size < 1:
        fail("lrn", f"size {size}, expected at least 1")
    attrs = {"size": int(size), "alpha": float(alpha), "beta": float(beta), "bias": float(bias)}
    return make_call(_LRN, [as_expr(x)], attrs)


def _evaluate_lp_norm(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    norm = np.linalg.norm(wide, ord=attrs["p"], axis=attrs["axis"], keepdims=True)
    return np.where(norm == 0, 0, wide / norm).astype(x.dtype)


def _lower_lp_norm(call: Call) -> Lowered:
    axis = normalize_axis("lp_norm", call.attrs["axis"], tensor_info(call, 0).ndim)
    return KernelCall("kernel.lp_norm", [call.args[0], axis, call.attrs["p"]], (0,))


_LP_NORM = define("lp_norm", _infer_along_axis, _evaluate_lp_norm, _lower_lp_norm, attrs={"axis": INT, "p": INT})


def lp_norm(x: TensorLike, axis: int = -1, p: int = 2) -> Call:
    """x divided by its p-norm along `axis`; 0 where the norm is 0.

    Parameters
    ----------
    x : tensor of floats
    axis : int
    p : int
        1 or 2.

    Source: ONNX LpNormalization.
    """
    if p not in (1, 2):
        fail("lp_norm", f"p {p}, expected 1 or 2")
    x = as_expr(x)
    return make_call(_LP_NORM, [x], {"axis": normalize_axis("lp_norm", axis, known_ndim(x)), "p": int(p)})


def mean_variance_normalization(x: TensorLike, axes: Sequence[int] = (0, 2, 3), eps: float = 1e-9) -> Call:
    """(x - mean) / (sqrt(variance) + eps), moments over `axes`; composed of other operators.

    Parameters
    ----------
    x : tensor of floats
    axes : sequence of int
    eps : float

    Source: ONNX MeanVarianceNormalization.
    """
    x = as_expr(x)
    axes = normalize_axes("mean_variance_normalization", axes, known_ndim(x))
    centered = sub(x, reduce_mean(x, axes, keepdims=True))
    deviation = sqrt(reduce_mean(mul(centered, centered), axes, keepdims=True))
    return div(centered, add(deviation, eps))
