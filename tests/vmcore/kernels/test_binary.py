"""Binary kernels and `where` against numpy: dtypes, broadcasting, NaN, integer edge cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vmcore import errors
from vmcore.kernels import binary
from vmcore.kernels.direct import call_kernel

RNG = np.random.default_rng(11)
FLOATS = ("float32", "float64", "float16")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "fmod": np.fmod,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@pytest.fixture(params=[2, 1, 0])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    if binary.select_isa(request.param) != request.param:
        pytest.skip("this CPU does not have the instruction set")
    yield request.param
    binary.select_isa()


def run(name: str, a: np.ndarray, b: np.ndarray, dtype: Any = None) -> np.ndarray:
    out = np.empty(np.broadcast_shapes(a.shape, b.shape), dtype or a.dtype)
    call_kernel(name, np.ascontiguousarray(a).reshape(a.shape), np.ascontiguousarray(b).reshape(b.shape), out)
    return out


def truncated(a: Any, b: Any) -> Any:
    """C's integer division."""
    exact = np.abs(a.astype(object)) // np.abs(b.astype(object))
    return np.array(np.where((a < 0) != (b < 0), -exact, exact), object)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*ARITHMETIC, "pow", "atan2", "prelu"])
def test_floats(name: str, dtype: str, isa: int) -> None:
    a = (RNG.standard_normal((9, 37)) * 3).astype(dtype)
    b = (RNG.standard_normal((9, 37)) * 3).astype(dtype)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2.5], dtype)
    a.flat[:64], b.flat[:64] = np.repeat(special, 8), np.tile(special, 8)
    formula: Callable[..., Any]
    if name == "pow":
        formula = np.power
    elif name == "atan2":
        formula = np.arctan2
    elif name == "prelu":
        formula = lambda x, s: np.where(x < 0, x * s, x)  # noqa: E731
    else:
        formula = ARITHMETIC[name]
    with np.errstate(all="ignore"):
        for left, right in ((a, b), (a, b[0, 8:9]), (a[0, 8:9], b), (a, b[:1]), (a[:, :1], b)):
            wide = (left, right) if dtype != "float16" else (left.astype("float32"), right.astype("float32"))
            expected = formula(*wide).astype(dtype)
            tolerance = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3}[dtype]
            np.testing.assert_allclose(run(name, left, right), expected, tolerance, 1e-7 if dtype == "float16" else 0)


@pytest.mark.parametrize("exponent", [2, 3, 0.5, -1, 1.5])
def test_power_with_one_exponent(exponent: float) -> None:
    x = np.abs(RNG.standard_normal((3, 40))).astype(np.float32)
    np.testing.assert_allclose(run("pow", x, np.array(exponent, np.float32)), x ** np.float32(exponent), 1e-6)


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    a, b = RNG.integers(info.min, info.max, (2, 204), dtype, endpoint=True)
    a[:4], b[:4] = [info.min, info.max, 0, 7], [info.max, info.min, 3, 2]
    b[b == 0] = 1
    small = (b % 5).astype(dtype)
    with np.errstate(over="ignore"):
        for name in ("add", "sub", "mul", "floor_div", "mod", "fmod", "maximum", "minimum"):
            np.testing.assert_array_equal(run(name, a, b), ARITHMETIC[name](a, b), name)
            np.testing.assert_array_equal(run(name, a, b[:1]), ARITHMETIC[name](a, b[:1]), name)
        np.testing.assert_array_equal(run("pow", a, small), np.power(a, small))
    wrapped = truncated(a, b)
    np.testing.assert_array_equal(
        run("div", a, b), np.array([int(v) & (2**info.bits - 1) for v in wrapped], f"uint{info.bits}").view(dtype)
    )
    for name in COMPARISONS:
        np.testing.assert_array_equal(run(name, a, b, bool), getattr(np, name)(a, b))
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        np.testing.assert_array_equal(run(name, a, b), getattr(np, name)(a, b))
    shift = RNG.integers(0, info.bits + 5, a.size).astype(dtype)
    np.testing.assert_array_equal(run("left_shift", a, shift), np.left_shift(a, shift))
    np.testing.assert_array_equal(run("right_shift", a, shift), np.right_shift(a, shift))


def test_integer_edges() -> None:
    for dtype in SIGNED:
        low = np.array([np.iinfo(dtype).min] * 3, dtype)
        minus = np.array([-1] * 3, dtype)
        np.testing.assert_array_equal(run("div", low, minus), low)
        np.testing.assert_array_equal(run("floor_div", low, minus), low)
        np.testing.assert_array_equal(run("mod", low, minus), 0 * low)
        np.testing.assert_array_equal(run("fmod", low, minus), 0 * low)
        np.testing.assert_array_equal(run("right_shift", low, minus), minus)
        np.testing.assert_array_equal(run("left_shift", low, minus), 0 * low)
    base = np.array([2, 1, -1, -1, 0, -3], np.int64)
    np.testing.assert_array_equal(run("pow", base, np.array([-1, -5, -2, -3, -1, 3], np.int64)), [0, 1, 1, -1, 0, -27])
    for name in ("div", "floor_div", "mod", "fmod"):
        for dtype in SIGNED + UNSIGNED:
            with pytest.raises(errors.ArgumentValueError, match="zero"):
                run(name, np.ones(3, dtype), np.array([1, 0, 1], dtype))
        assert run(name, np.ones((0, 3), np.int32), np.zeros(3, np.int32)).size == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_comparisons_follow_ieee(dtype: str, isa: int) -> None:
    values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan], dtype)
    for name in COMPARISONS:
        np.testing.assert_array_equal(
            run(name, values[:, None], values, bool), getattr(np, name)(values[:, None], values)
        )


def test_logical() -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    for name in ("logical_and", "logical_or", "logical_xor", "equal", "not_equal", "less", "greater_equal"):
        np.testing.assert_array_equal(run(name, a, b, bool), getattr(np, name)(a, b))


@settings(max_examples=150, deadline=None)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=5, max_side=4, min_side=0), data=st.data())
def test_broadcasting(shapes: hnp.BroadcastableShapes, data: st.DataObject) -> None:
    a, b = (np.arange(np.prod(s), dtype=np.float32).reshape(s) + k for k, s in enumerate(shapes.input_shapes))
    name = data.draw(st.sampled_from(["add", "sub", "less"]))
    got = run(name, a, b, bool if name == "less" else None)
    np.testing.assert_array_equal(got, {"add": a + b, "sub": a - b, "less": a < b}[name])
    assert got.shape == shapes.result_shape


@settings(max_examples=150, deadline=None)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=4, min_side=0), data=st.data())
def test_where(shapes: hnp.BroadcastableShapes, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["int8", "float16", "float32", "int64"]))
    c, a, b = shapes.input_shapes
    cond = RNG.random(c) < 0.5 if c else np.array(RNG.random() < 0.5)
    x = RNG.integers(0, 100, a or None)
    y = RNG.integers(0, 100, b or None)
    x, y = np.asarray(x).astype(dtype), np.asarray(y).astype(dtype)
    out = np.empty(shapes.result_shape, dtype)
    call_kernel("where", cond, x, y, out)
    np.testing.assert_array_equal(out, np.where(cond, x, y))


def test_in_place_where_it_is_allowed() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    call_kernel("add", a, np.ones(3, np.float32), a)
    np.testing.assert_array_equal(a, np.arange(6).reshape(2, 3) + 1)
    call_kernel("mul", a, a, a)
    np.testing.assert_array_equal(a, (np.arange(6).reshape(2, 3) + 1) ** 2)
    buffer = np.zeros(9, np.float32)
    for left, right, out in ((buffer[:6], buffer[6:7], buffer[1:7]), (buffer[:6], buffer[:1], buffer[:6])):
        with pytest.raises(errors.ArgumentValueError, match="overlap"):
            call_kernel("add", left, right, out)
    with pytest.raises(errors.ArgumentValueError, match="overlap"):
        call_kernel("less", buffer, buffer, buffer.view(bool)[:9])
