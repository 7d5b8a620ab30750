"""Softmax and the normalizations against float64 formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.special as sp

from vmcore import errors
from vmcore.kernels import norm
from vmcore.kernels.direct import call_kernel

RNG = np.random.default_rng(9)
DTYPES = ("float32", "float64", "float16")
SHAPES = ((3, 4, 5), (2, 1, 70), (50,), (5, 33, 3), (1, 1, 1, 40), (2, 16, 17))


@pytest.fixture(params=[2, 1, 0])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    if norm.select_isa(request.param) != request.param:
        pytest.skip("this CPU does not have the instruction set")
    yield request.param
    norm.select_isa()


def check(name: str, x: np.ndarray, *args: object, expected: np.ndarray) -> None:
    """The kernel's result equals `expected`, into fresh memory and (but for lrn) in place."""
    rtol, atol = {"float32": (2e-5, 2e-6), "float64": (1e-12, 1e-12), "float16": (4e-3, 8e-3)}[x.dtype.name]
    out = np.empty_like(x)
    call_kernel(name, x, *args, out)
    np.testing.assert_allclose(out, expected.reshape(x.shape), rtol, atol, err_msg=name)
    if name != "lrn":
        x = x.copy()
        call_kernel(name, x, *args, x)
        np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_family(shape: tuple[int, ...], dtype: str, isa: int) -> None:
    x = (RNG.standard_normal(shape) * 3).astype(dtype)
    wide = x.astype(np.float64)
    for axis in range(-1, len(shape)):
        check("softmax", x, axis, expected=sp.softmax(wide, axis))
        check("log_softmax", x, axis, expected=sp.log_softmax(wide, axis))
        hard = np.zeros_like(wide)
        np.put_along_axis(hard, wide.argmax(axis, keepdims=True), 1, axis)
        check("hardmax", x, axis, expected=hard)
        check("lp_norm", x, axis, 1, expected=wide / np.abs(wide).sum(axis, keepdims=True))
        check("lp_norm", x, axis, 2, expected=wide / np.sqrt((wide**2).sum(axis, keepdims=True)))


def test_softmax_extremes(isa: int) -> None:
    x = np.array([[1000, 1000, -1000], [-np.inf, 0, 0], [0, np.nan, 1]] * 3, np.float32)
    with np.errstate(all="ignore"):
        for axis in (0, 1):
            for layout in (x, np.ascontiguousarray(x.T)):
                check("softmax", layout, axis, expected=sp.softmax(layout.astype(np.float64), axis))
    out = np.empty((1, 20), np.float32)
    call_kernel("softmax", np.full((1, 20), -np.inf, np.float32), 1, out)
    assert np.isnan(out).all()
    zeros = np.zeros((2, 4), np.float32)
    check("lp_norm", zeros, 1, 2, expected=zeros)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1100), (3, 16)])
def test_layer_and_rms_norm(shape: tuple[int, ...], dtype: str, isa: int) -> None:
    x = (RNG.standard_normal(shape) * 2 + 1).astype(dtype)
    for axis in range(-1, len(shape)):
        rows = x.astype(np.float64).reshape(*shape[: axis % len(shape)], -1)
        scale, bias = RNG.standard_normal((2, rows.shape[-1]))
        normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-3)
        params = [scale.astype(dtype), bias.astype(dtype)]
        check("layer_norm", x, *params, axis, 1e-3, expected=normal * params[0] + params[1].astype(np.float64))
        check("layer_norm", x, params[0], None, axis, 1e-3, expected=normal * params[0])
        root = np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-3)
        check("rms_norm", x, scale.astype("float32"), axis, 1e-3, expected=rows / root * scale.astype("float32"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 6), (3, 4, 5), (2, 6, 7, 5), (1, 8, 33)])
def test_channel_norms(shape: tuple[int, ...], dtype: str, isa: int) -> None:
    x = (RNG.standard_normal(shape) * 2 + 1).astype(dtype)
    wide = x.astype(np.float64)
    channels = shape[1]
    per_channel = (1, channels) + (1,) * (len(shape) - 2)
    scale, bias, mean = (RNG.standard_normal(channels).astype(dtype) for _ in range(3))
    var = (RNG.random(channels) + 0.5).astype(dtype)
    s, b, m, v = (p.astype(np.float64).reshape(per_channel) for p in (scale, bias, mean, var))
    check("batch_norm", x, scale, bias, mean, var, 1e-5, expected=(wide - m) / np.sqrt(v + 1e-5) * s + b)
    if len(shape) > 2:
        inner = tuple(range(2, len(shape)))
        normal = (wide - wide.mean(inner, keepdims=True)) / np.sqrt(wide.var(inner, keepdims=True) + 1e-2)
        check("instance_norm", x, scale, bias, 1e-2, expected=normal * s + b)
    for groups in (1, 2, channels):
        grouped = wide.reshape(shape[0], groups, -1)
        normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-2)
        check("group_norm", x, scale, bias, groups, 1e-2, expected=normal.reshape(shape) * s + b)
    by_group = normal = None
    grouped = wide.reshape(shape[0], 2, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-2)
    by_group = normal * scale[:2].astype(np.float64)[:, None] + bias[:2].astype(np.float64)[:, None]
    check("group_norm", x, scale[:2].copy(), bias[:2].copy(), 2, 1e-2, expected=by_group)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_lrn(dtype: str, size: int, isa: int) -> None:
    x = RNG.standard_normal((2, 7, 5, 5)).astype(dtype)
    wide = x.astype(np.float64)
    total = np.zeros_like(wide)
    for c in range(7):
        low, high = max(0, c - (size - 1) // 2), min(7, c + size // 2 + 1)
        total[:, c] = (wide[:, low:high] ** 2).sum(1)
    check("lrn", x, size, 0.1, 0.75, 1.5, expected=wide / (1.5 + 0.1 / size * total) ** 0.75)


def test_empty_and_refused() -> None:
    x = np.zeros((0, 4), np.float32)
    for name, args in (
        ("softmax", (1,)),
        ("log_softmax", (0,)),
        ("layer_norm", (np.ones(4, np.float32), None, 1, 1e-5)),
    ):
        call_kernel(name, x, *args, x.copy())
    y = np.zeros((2, 4), np.float32)
    ones = np.ones(4, np.float32)
    refused: list[tuple[type[Exception], Callable[[], object]]] = [
        (errors.IndexRangeError, lambda: call_kernel("softmax", y, 2, y)),
        (errors.ShapeMismatchError, lambda: call_kernel("softmax", y, 1, np.zeros((4, 2), np.float32))),
        (errors.DTypeMismatchError, lambda: call_kernel("softmax", y.astype(int), 1, y.astype(int))),
        (errors.ShapeMismatchError, lambda: call_kernel("layer_norm", y, ones[:3], None, 1, 1e-5, y)),
        (errors.DTypeMismatchError, lambda: call_kernel("layer_norm", y, ones.astype(int), None, 1, 1e-5, y)),
        (errors.ShapeMismatchError, lambda: call_kernel("batch_norm", y, ones, ones, ones, ones[:3], 1e-5, y)),
        (errors.ShapeMismatchError, lambda: call_kernel("batch_norm", ones, ones, ones, ones, ones, 1e-5, ones.copy())),
        (errors.ArgumentValueError, lambda: call_kernel("group_norm", y, ones, ones, 3, 1e-5, y)),
        (errors.ArgumentValueError, lambda: call_kernel("lrn", y, 3, 0.1, 0.7, 1.0, y)),
        (errors.ArgumentValueError, lambda: call_kernel("lp_norm", y, 1, 3, y)),
    ]
    for error, call in refused:
        with pytest.raises(error):
            call()
