"""`kernel.cast` against numpy for every pair of element types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from vmcore import errors
from vmcore.kernels import cast as cast_module
from vmcore.kernels.direct import call_kernel

RNG = np.random.default_rng(5)
DTYPES = [
    *map(np.dtype, ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")),
    *map(np.dtype, ("float16", ml_dtypes.bfloat16, "float32", "float64")),
]


def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    out = np.empty(x.shape, dtype)
    call_kernel("cast", x, out)
    return out


@pytest.mark.parametrize("to", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_every_pair(source: np.dtype, to: np.dtype) -> None:
    values = RNG.uniform(0, 127, 700)
    if source.kind != "u" and to.kind != "u":
        values -= 64
    x = values.astype(source)
    np.testing.assert_array_equal(cast(x, to), x.astype(to))


@pytest.mark.parametrize("isa", [2, 1, 0])
@pytest.mark.parametrize("to", [np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_rounding_to_halves(to: np.dtype, isa: int) -> None:
    if cast_module.select_isa(isa) != isa:
        pytest.skip("this CPU does not have the instruction set")
    scale = 10.0 ** RNG.integers(-10, 6, 20000)
    x = np.concatenate([RNG.standard_normal(20000) * scale, [0.0, -0.0, 65519, 65520, 1e300, 2**-25, 6e-8]])
    narrow = x[np.abs(x) < 1e38].astype(np.float32)
    try:
        with np.errstate(over="ignore"):
            for wide in (x, narrow) if to == np.float16 else (narrow,):
                np.testing.assert_array_equal(cast(wide, to).view(np.uint16), wide.astype(to).view(np.uint16))
        every = np.arange(65536, dtype=np.uint16).view(to)
        np.testing.assert_array_equal(cast(every, np.float32), every.astype(np.float32))
        assert np.isnan(cast(np.array([np.nan]), to).astype(float)).all()
    finally:
        cast_module.select_isa()


def test_double_to_bfloat_is_rounded_once() -> None:
    # Halfway in bfloat16 after rounding to float32 first; the true value is just above, so it rounds up.
    x = np.array([1 + 2**-8 + 2**-40, -(1 + 2**-8 + 2**-40), 1 + 2**-8 - 2**-40])
    np.testing.assert_array_equal(cast(x, ml_dtypes.bfloat16).astype(float), [1 + 2**-7, -(1 + 2**-7), 1])


@pytest.mark.parametrize("source", ["float32", "float64", "float16"])
@pytest.mark.parametrize("to", ["int32", "int64", "uint32", "uint64"])
def test_out_of_range_saturates(source: str, to: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -1.9, 1.9, -0.9] * 11, source)
    info = np.iinfo(to)
    expected = np.array([0, info.max, info.min, max(-1, info.min), 1, 0] * 11, to)
    np.testing.assert_array_equal(cast(x, to), expected)
    if source != "float16":
        for value in (1e25, float(info.max) + 1):
            assert cast(np.array([value, -1e25], source), to).tolist() == [info.max, info.min]


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("to", ["int8", "int16", "uint8", "uint16"])
def test_out_of_range_wraps_in_narrow_types(source: str, to: str) -> None:
    x = np.array([-1.5, 300.7, -129.0, 65536.5, 70000.0, -40000.0, 2147480000.0] * 9, source)
    expected = np.array([int(v) for v in x], np.int64).astype(to)
    np.testing.assert_array_equal(cast(x, to), expected)
    np.testing.assert_array_equal(cast(np.array([np.nan, np.inf, -np.inf, 1e25, 2.0**31], source), to), np.zeros(5, to))


def test_refusals() -> None:
    with pytest.raises(errors.ShapeMismatchError):
        call_kernel("cast", np.zeros(3, np.float32), np.zeros(4, np.int32))
    with pytest.raises(errors.DTypeMismatchError):
        call_kernel("cast", np.zeros(3, np.complex64), np.zeros(3, np.int32))
    buffer = np.zeros(4, np.float32)
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("cast", buffer, buffer.view(np.int32))
