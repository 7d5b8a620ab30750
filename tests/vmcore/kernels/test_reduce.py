"""Reductions, argmax, argmin and cumsum against numpy and scipy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.special as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore import errors
from vmcore.kernels import reduce
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

RNG = np.random.default_rng(3)
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FORMULAS: dict[str, Callable[..., Any]] = {
    "reduce_sum": lambda x, axis: x.sum(axis),
    "reduce_mean": lambda x, axis: x.mean(axis),
    "reduce_max": lambda x, axis: x.max(axis),
    "reduce_min": lambda x, axis: x.min(axis),
    "reduce_prod": lambda x, axis: x.prod(axis),
    "reduce_l1": lambda x, axis: np.abs(x).sum(axis),
    "reduce_l2": lambda x, axis: np.sqrt((x * x).sum(axis)),
    "reduce_sum_square": lambda x, axis: (x * x).sum(axis),
    "reduce_log_sum": lambda x, axis: np.log(x.sum(axis)),
    "reduce_log_sum_exp": lambda x, axis: sp.logsumexp(x, axis),
}


@pytest.fixture(params=[2, 1, 0])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    if reduce.select_isa(request.param) != request.param:
        pytest.skip("this CPU does not have the instruction set")
    yield request.param
    reduce.select_isa()


def run(name: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool = False) -> np.ndarray:
    shape = [1 if d in axes else n for d, n in enumerate(x.shape) if keepdims or d not in axes]
    out = np.empty(shape, x.dtype)
    call_kernel(name, x, Shape(axes), out)
    return out


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_axes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), max_size=5))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)))) if shape else ())
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16"]))
    name = data.draw(st.sampled_from(sorted(FORMULAS)))
    x = np.asarray(RNG.random(shape) + 0.5).astype(dtype)
    expected = np.asarray(FORMULAS[name](x.astype(np.float64), axes))
    got = run(name, x, axes, data.draw(st.booleans()))
    np.testing.assert_allclose(got.reshape(expected.shape), expected, 4e-3 if dtype == "float16" else 1e-5, 1e-6)


@pytest.mark.parametrize("shape", [(3, 5000), (70, 129), (1, 33, 31), (4096 * 3 + 7,), (2, 64)])
@pytest.mark.parametrize("name", FORMULAS)
def test_long_runs(name: str, shape: tuple[int, ...], isa: int) -> None:
    x = (RNG.random(shape) * 0.2 + 0.9).astype(np.float32)
    for axes in ((0,), (len(shape) - 1,), tuple(range(len(shape)))):
        expected = FORMULAS[name](x.astype(np.float64), axes)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(
                run(name, x, axes), expected.astype(np.float32), 2e-4 if "prod" in name else 1e-5
            )


def test_float32_sum_is_accurate(isa: int) -> None:
    x = RNG.random(1_000_000).astype(np.float32)
    assert abs(float(run("reduce_sum", x, (0,))) / x.sum(dtype=np.float64) - 1) < 2e-7


@pytest.mark.parametrize("dtype", INTS)
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max, (6, 7, 5), dtype, endpoint=True)
    for axes in ((0,), (2,), (0, 2), (0, 1, 2), ()):
        np.testing.assert_array_equal(run("reduce_sum", x, axes), x.sum(axes, dtype=dtype))
        np.testing.assert_array_equal(run("reduce_prod", x, axes), x.prod(axes, dtype=dtype))
        np.testing.assert_array_equal(run("reduce_max", x, axes), x.max(axes))
        np.testing.assert_array_equal(run("reduce_min", x, axes), x.min(axes))
        np.testing.assert_array_equal(run("reduce_sum_square", x, axes), (x * x).sum(axes, dtype=dtype))
        np.testing.assert_array_equal(run("reduce_l1", x, axes), np.abs(x).sum(axes, dtype=dtype))
    small = (x % 5).astype(dtype)
    np.testing.assert_array_equal(run("reduce_mean", small, (1,)), np.trunc(small.sum(1) / 7).astype(dtype))
    with pytest.raises(errors.DTypeMismatchError):
        run("reduce_log_sum", x, (0,))


def test_nan_infinity_and_nothing(isa: int) -> None:
    x = np.full((3, 40), 1, np.float32)
    x[1, 7], x[2, 39], x[2, 3] = np.nan, np.inf, -np.inf
    for name in ("reduce_max", "reduce_min", "reduce_sum"):
        for axis in (0, 1):
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(run(name, x, (axis,)), FORMULAS[name](x, axis))
    empty = np.empty((0, 3), np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(run("reduce_sum", empty, (0,)), np.zeros(3))
        np.testing.assert_array_equal(run("reduce_prod", empty, (0,)), np.ones(3))
        np.testing.assert_array_equal(run("reduce_max", empty, (0,)), np.full(3, -np.inf))
        np.testing.assert_array_equal(run("reduce_min", empty, (0,)), np.full(3, np.inf))
        np.testing.assert_array_equal(run("reduce_log_sum_exp", empty, (0,)), np.full(3, -np.inf))
        assert np.isnan(run("reduce_mean", empty, (0,))).all()
    assert run("reduce_sum", empty, (1,)).shape == (0,)
    big = np.array([1000.0, 1000.0, -1000.0], np.float32)
    np.testing.assert_allclose(run("reduce_log_sum_exp", big, (0,)), 1000 + np.log(2))
    np.testing.assert_array_equal(run("reduce_log_sum_exp", np.array([-np.inf, -np.inf], np.float32), (0,)), -np.inf)
    np.testing.assert_array_equal(run("reduce_log_sum_exp", np.array([1, np.inf], np.float32), (0,)), np.inf)


def test_all_any() -> None:
    x = RNG.random((5, 6)) < 0.7
    for axes in ((0,), (1,), (0, 1)):
        np.testing.assert_array_equal(run("reduce_all", x, axes), x.all(axes))
        np.testing.assert_array_equal(run("reduce_any", x, axes), x.any(axes))
    with pytest.raises(errors.DTypeMismatchError):
        run("reduce_all", np.zeros((2, 2), np.uint8), (0,))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "uint8"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_argmax_argmin(dtype: str, axis: int) -> None:
    x = RNG.integers(0, 4, (5, 70, 3)).astype(dtype)
    if dtype == "float32":
        x[1, 5, 2] = np.nan
    for name, formula in (("argmax", np.argmax), ("argmin", np.argmin)):
        out = np.empty(np.delete(x.shape, axis), np.int64)
        call_kernel(name, x, axis, 0, out)
        np.testing.assert_array_equal(out, formula(x, axis))
        call_kernel(name, x, axis, 1, out)
        np.testing.assert_array_equal(out, x.shape[axis] - 1 - formula(np.flip(x, axis), axis))
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("argmax", np.empty((0, 2), dtype), 0, 0, np.empty(2, np.int64))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int32", "uint64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumsum(dtype: str, axis: int) -> None:
    x = RNG.integers(0, 9, (4, 6, 5)).astype(dtype)
    for exclusive in (0, 1):
        for backward in (0, 1):
            out = np.empty_like(x)
            call_kernel("cumsum", x, axis, exclusive, backward, out)
            expected = np.flip(x, axis) if backward else x
            expected = np.cumsum(expected, axis, dtype=dtype) - (expected if exclusive else 0)
            np.testing.assert_array_equal(out, np.flip(expected, axis) if backward else expected)


def test_refusals() -> None:
    x = np.zeros((2, 3), np.float32)
    for axes in ((1, 0), (0, 0), (2,), (-1,)):
        with pytest.raises(errors.ArgumentValueError, match="axes"):
            call_kernel("reduce_sum", x, Shape(axes), np.zeros((), np.float32))
    for out in (np.zeros(3, np.float32), np.zeros((2, 2), np.float32), np.zeros((), np.float32)):
        with pytest.raises(errors.ShapeMismatchError):
            call_kernel("reduce_sum", x, Shape((1,)), out)
    with pytest.raises(errors.ArgumentTypeError):
        call_kernel("reduce_sum", x, 1, np.zeros(2, np.float32))
    with pytest.raises(errors.DTypeMismatchError):
        call_kernel("argmax", x, 0, 0, np.zeros(3, np.int32))
