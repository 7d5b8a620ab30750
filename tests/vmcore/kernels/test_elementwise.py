"""Unary kernels against numpy and scipy in float64, for every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.special as sp

from vmcore import errors
from vmcore.kernels import elementwise
from vmcore.kernels.direct import call_kernel

RNG = np.random.default_rng(7)
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def sigmoid(v: Any) -> Any:
    return sp.expit(v)


def softplus(v: Any) -> Any:
    return np.logaddexp(0, v)


FORMULAS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda v: np.maximum(v, 0),
    "abs": np.abs,
    "neg": np.negative,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "reciprocal": lambda v: 1 / v,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sign": np.sign,
    "softsign": lambda v: v / (1 + np.abs(v)),
    "hard_swish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
    "exp": np.exp,
    "log": np.log,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "erf": sp.erf,
    "gelu": lambda v: 0.5 * v * (1 + sp.erf(v / np.sqrt(2))),
    "gelu_tanh": lambda v: v * sigmoid(2 * np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)),
    "silu": lambda v: v * sigmoid(v),
    "softplus": softplus,
    "mish": lambda v: v * np.tanh(softplus(v)),
    **{n: getattr(np, n) for n in ("sin", "cos", "tan", "sinh", "cosh")},
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
}
PARAMETERS: dict[str, tuple[tuple[float, ...], Callable[..., Any]]] = {
    "leaky_relu": ((0.1,), lambda v, a: np.where(v < 0, a * v, v)),
    "elu": ((1.5,), lambda v, a: np.where(v < 0, a * np.expm1(v), v)),
    "selu": ((1.67, 1.05), lambda v, a, g: g * np.where(v < 0, a * np.expm1(v), v)),
    "celu": ((2.0,), lambda v, a: np.where(v < 0, a * np.expm1(v / a), v)),
    "hard_sigmoid": ((0.2, 0.5), lambda v, a, b: np.clip(a * v + b, 0, 1)),
    "thresholded_relu": ((1.0,), lambda v, a: np.where(v <= a, 0, v)),
    "shrink": ((0.3, 0.8), lambda v, bias, lam: np.where(v < -lam, v + bias, np.where(v > lam, v - bias, v * 0))),
}
# Largest |error| allowed in units of float32's last place of the reference, plus an absolute term.
ULPS = {"exp": (1.1, 0), "log": (1, 0), "sigmoid": (3, 1e-38), "tanh": (6, 0), "erf": (8, 3e-7), "softplus": (4, 1e-38)}


@pytest.fixture(params=[2, 1, 0])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    if elementwise.select_isa(request.param) != request.param:
        pytest.skip("this CPU does not have the instruction set")
    yield request.param
    elementwise.select_isa()


def unary(name: str, x: np.ndarray, *params: object) -> np.ndarray:
    out = np.empty_like(x)
    call_kernel(name, x, *params, out)
    return out


def specials(dtype: str) -> np.ndarray:
    return np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 1e30, -1e30], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, dtype: str, isa: int) -> None:
    x = (RNG.standard_normal(1003) * 4).astype(dtype)
    if dtype != "float16":
        x = np.concatenate([x, np.linspace(-110, 100, 1000).astype(dtype), specials(dtype)])
    with np.errstate(all="ignore"):
        expected = FORMULAS[name](x.astype(np.float64)).astype(dtype)
    tolerance = {"float32": (4e-6, 2e-6), "float64": (1e-13, 1e-14), "float16": (2e-3, 1e-3)}[dtype]
    np.testing.assert_allclose(unary(name, x), expected, *tolerance)


@pytest.mark.parametrize("name", ULPS)
def test_accuracy(name: str, isa: int) -> None:
    x = np.linspace(-104, 89, 400_001).astype(np.float32)
    x = np.concatenate([x, np.linspace(-4, 4, 200_001).astype(np.float32), np.float32(2) ** np.arange(-149, 127)])
    if name == "log":
        x = np.abs(x)
    with np.errstate(all="ignore"):
        exact = FORMULAS[name](x.astype(np.float64))
    fine = np.isfinite(exact) & (np.abs(exact) < 3.4e38)
    got, exact = unary(name, x)[fine].astype(np.float64), exact[fine]
    ulps, absolute = ULPS[name]
    unit = np.spacing(np.maximum(np.abs(exact), 1.2e-38).astype(np.float32)).astype(np.float64)
    assert np.max((np.abs(got - exact) - absolute) / unit) <= ulps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str, dtype: str, isa: int) -> None:
    params, formula = PARAMETERS[name]
    x = np.concatenate([(RNG.standard_normal(77) * 3).astype(dtype), specials(dtype)])
    with np.errstate(all="ignore"):
        expected = formula(x.astype(np.float64), *params).astype(dtype)
    np.testing.assert_allclose(unary(name, x, *params), expected, 3e-6, 1e-6)


def test_far_left_of_gelu_is_zero(isa: int) -> None:
    x = np.array([-1e30, -100.0, -20.0], np.float32)
    for name in ("gelu", "gelu_tanh", "silu", "mish"):
        assert np.all(np.abs(unary(name, x)) < 1e-7), name


@pytest.mark.parametrize("n", [0, 1, 3, 15, 16, 17, 31, 33, 64, 100])
def test_every_length_writes_exactly_its_elements(n: int, isa: int) -> None:
    for name in ("exp", "relu", "log", "sqrt"):
        buffer = np.full(n + 40, 7, np.float32)
        x = np.linspace(0.5, 2, n + 40).astype(np.float32)
        call_kernel(name, x[:n], buffer[:n])
        np.testing.assert_allclose(buffer[:n], FORMULAS[name](x[:n]), 1e-6)
        assert np.all(buffer[n:] == 7)


def test_scalar_shape_and_in_place() -> None:
    x = np.array(2.0, np.float32)
    call_kernel("square", x, x)
    assert x == 4
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    call_kernel("neg", y, y)
    assert y[1, 2] == -5


@pytest.mark.parametrize("dtype", INTS)
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([info.min, 0, 1, 3, info.max] + [5] * 40, dtype)
    with np.errstate(over="ignore"):
        for name, formula in (("abs", np.abs), ("neg", np.negative), ("sign", np.sign), ("square", np.square)):
            np.testing.assert_array_equal(unary(name, x), formula(x))
    np.testing.assert_array_equal(unary("relu", x), np.maximum(x, 0))
    np.testing.assert_array_equal(unary("bitwise_not", x), ~x)
    np.testing.assert_array_equal(unary("clip", x, 1, 4), np.clip(x, 1, 4))
    np.testing.assert_array_equal(unary("clip", x, None, 2.9), np.minimum(x, 2))
    np.testing.assert_array_equal(
        unary("clip", x, -(2**62), None), x if info.bits < 64 else np.maximum(x, -(2**62) if info.min else 0)
    )
    np.testing.assert_array_equal(unary("clip", x, None, None), x)
    with pytest.raises(errors.DTypeMismatchError):
        unary("exp", x)


def test_clip_passes_nan_and_takes_either_bound() -> None:
    x = np.array([-3, np.nan, 0.5, 9], np.float32)
    np.testing.assert_array_equal(unary("clip", x, -1.0, 6.0), np.array([-1, np.nan, 0.5, 6], np.float32))
    np.testing.assert_array_equal(unary("clip", x, None, 0), np.array([-3, np.nan, 0, 0], np.float32))
    np.testing.assert_array_equal(unary("clip", x, 4, 2), np.clip(x, 4, 2))
    with pytest.raises(errors.ArgumentValueError):
        unary("clip", np.zeros(3, np.int32), float("nan"), None)


def test_logical_not_and_classes() -> None:
    flags = np.array([True, False, True])
    np.testing.assert_array_equal(unary("logical_not", flags), ~flags)
    for dtype in ("float16", "float32", "float64"):
        x = specials("float64").astype(dtype) if dtype != "float16" else np.array([0, np.inf, -np.inf, np.nan], dtype)
        out = np.empty(x.shape, bool)
        call_kernel("is_nan", x, out)
        np.testing.assert_array_equal(out, np.isnan(x))
        for negative, positive in ((True, True), (True, False), (False, True), (False, False)):
            call_kernel("is_inf", x, negative, positive, out)
            expected = (np.isposinf(x) if positive else False) | (
                np.isneginf(x) if negative else np.zeros(x.shape, bool)
            )
            np.testing.assert_array_equal(out, expected)
