"""Gather, scatter, one_hot, topk and nonzero against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore import errors
from vmcore.kernels.direct import call_kernel

RNG = np.random.default_rng(4)
DTYPES = ("uint8", "float16", "float32", "int64", "complex128")


def filled(shape: Any, dtype: str = "float32") -> np.ndarray:
    return np.asarray(RNG.integers(0, 100, shape)).astype(dtype)


def run(name: str, *args: object, like: np.ndarray) -> None:
    out = np.full(like.shape, 77, like.dtype)
    call_kernel(name, *args, out)
    np.testing.assert_array_equal(out, like, name)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_gather(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    indices = RNG.integers(-n, n, data.draw(st.lists(st.integers(0, 4), max_size=3)))
    indices = np.asarray(indices).astype(data.draw(st.sampled_from(["int32", "int64"])))
    x = filled(shape, data.draw(st.sampled_from(DTYPES)))
    run("gather", x, indices, axis, like=np.take(x, indices, axis))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_and_scatter_elements(axis: int) -> None:
    x = filled((4, 5, 6))
    shape = [3, 4, 5]
    shape[axis] = 7
    indices = RNG.integers(-x.shape[axis], x.shape[axis], shape)
    part = x[tuple(slice(None) if d == axis else slice(shape[d]) for d in range(3))]
    run("gather_elements", x, indices, axis, like=np.take_along_axis(part, indices, axis))
    updates = filled(shape)
    for reduction, combine in enumerate((lambda a, b: b, np.add, np.multiply, np.maximum, np.minimum)):
        expected = x.copy()
        for at in np.ndindex(*shape):
            to = list(at)
            to[axis] = indices[at]
            expected[tuple(to)] = combine(expected[tuple(to)], updates[at])
        run("scatter_elements", x, indices, updates, axis, reduction, like=expected)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int8", "uint16", "int32", "int64", "uint64", "bool"]
)
@pytest.mark.parametrize("reduction", [0, 1, 2, 3, 4])
def test_scatter_nd(dtype: str, reduction: int) -> None:
    x = (filled((4, 5, 3)) % 4).astype(dtype)
    combine: Any = (lambda a, b: b, np.add, np.multiply, np.maximum, np.minimum)[reduction]
    for depth in (0, 1, 2, 3):
        tuples = RNG.integers(0, 3, (2, 2, depth)) - 3
        updates = (filled((2, 2, *x.shape[depth:])) % 3).astype(dtype)
        expected = x.copy()
        for at in np.ndindex(2, 2):
            to = tuple(tuples[at])
            expected[to] = combine(expected[to], updates[at])
        run("scatter_nd", x, tuples, updates, reduction, like=expected)


def test_gather_nd() -> None:
    x = filled((2, 3, 4, 5))
    for batch_dims in (0, 1, 2):
        for depth in range(1, 4 - batch_dims + 1):
            batch = x.shape[:batch_dims]
            tuples = np.stack([RNG.integers(-n, n, (*batch, 3)) for n in x.shape[batch_dims : batch_dims + depth]], -1)
            expected = np.empty((*batch, 3, *x.shape[batch_dims + depth :]), x.dtype)
            for at in np.ndindex(*batch, 3):
                expected[at] = x[at[:batch_dims]][tuple(tuples[at])]
            run("gather_nd", x, tuples, batch_dims, like=expected)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32"])
def test_one_hot(dtype: str) -> None:
    indices = np.array([[0, 2, 4], [1, 9, 3]]).astype(dtype)
    for axis in (0, 1, 2, -1):
        hot = (indices[..., None] == np.arange(5)).astype(np.float32) * 3 - 1
        run(
            "one_hot",
            indices,
            np.array(-1, np.float32),
            np.array([2], np.float32),
            axis,
            like=np.moveaxis(hot, -1, axis),
        )
    if dtype != "uint8":
        run(
            "one_hot",
            np.array([-1, -5, -6], dtype),
            np.array(0),
            np.array(1),
            -1,
            like=np.eye(5, dtype=int)[[4, 0, 0]] * [[1], [1], [0]],
        )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_topk(dtype: str, axis: int) -> None:
    x = RNG.integers(0, 30, (6, 40, 3)).astype(dtype)
    if dtype != "bool" and not dtype.startswith("u"):
        x = (x.astype(np.float64) - 15).astype(dtype)
    n = x.shape[axis]
    for k in (0, 1, 3, n):
        for largest in (0, 1):
            keys = x.astype(np.float64)
            order = np.argsort(-keys if largest else keys, axis, kind="stable")
            expected = np.take(order, np.arange(k), axis)
            values, at = np.empty(expected.shape, dtype), np.empty(expected.shape, np.int64)
            call_kernel("topk", x, k, axis, largest, 1, values, at)
            np.testing.assert_array_equal(at, expected)
            np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis))
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("topk", x, n + 1, axis, 1, 1, x.copy(), np.empty(x.shape, np.int64))


def test_topk_extremes() -> None:
    x = np.array([0.0, -0.0, np.inf, np.nan, -np.inf, 1], np.float32)
    values, at = np.empty(6, np.float32), np.empty(6, np.int64)
    call_kernel("topk", x, 6, 0, 1, 1, values, at)
    assert at.tolist() == [3, 2, 5, 0, 1, 4]
    y = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, 2**53 + 1, 2**53])
    values = np.empty(4, np.int64)
    call_kernel("topk", y, 4, 0, 0, 1, values, np.empty(4, np.int64))
    np.testing.assert_array_equal(values, np.sort(y))


@pytest.mark.parametrize("dtype", ["bool", "int16", "float16", "float32", "float64"])
def test_nonzero(dtype: str) -> None:
    for shape in ((3, 4, 5), (7,), (0, 3), ()):
        x = np.asarray(RNG.integers(0, 2, shape)).astype(dtype)
        if dtype.startswith("float"):
            np.negative(x, out=x)
        count = call_kernel("nonzero_count", x)
        assert count == np.count_nonzero(x)
        run("nonzero", x, like=np.array(np.argwhere(x).T, np.int64).reshape(len(shape), np.count_nonzero(x)))
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("nonzero", np.ones(4, dtype), np.empty((1, 3), np.int64))
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("nonzero", np.zeros(4, dtype), np.empty((1, 3), np.int64))


def test_indices_out_of_range() -> None:
    x, updates = filled((3, 4)), filled((1, 4))
    for bad in (3, -4, 2**40, -(2**62)):
        index = np.array([[bad, 0, 0, 0]])
        for call in (
            lambda index=index: call_kernel("gather", x, index[0], 0, np.empty((4, 4), np.float32)),
            lambda index=index: call_kernel("gather_elements", x, index, 0, updates.copy()),
            lambda index=index: call_kernel("gather_nd", x, index[0, :2].copy(), 0, np.empty((), np.float32)),
            lambda index=index: call_kernel("scatter_elements", x, index, updates, 0, 0, x.copy()),
            lambda index=index: call_kernel("scatter_nd", x, index[:, :1].copy(), updates, 1, x.copy()),
        ):
            with pytest.raises(errors.IndexRangeError):
                call()


def test_refusals() -> None:
    x = filled((3, 4))
    index = np.zeros((3, 4), np.int64)
    refused: list[tuple[type[Exception], str, tuple[object, ...]]] = [
        (errors.DTypeMismatchError, "gather", (x, x, 0, filled((3, 4, 4)))),
        (errors.ShapeMismatchError, "gather", (x, index, 0, filled((3, 4, 3)))),
        (errors.ShapeMismatchError, "gather_elements", (x, index[0], 0, filled(4))),
        (errors.ShapeMismatchError, "gather_elements", (x[:2], index, 1, filled((3, 4)))),
        (errors.ShapeMismatchError, "gather_nd", (x, index, 0, filled(3))),
        (errors.ShapeMismatchError, "gather_nd", (x, index, 2, filled(3))),
        (errors.ShapeMismatchError, "scatter_elements", (x, index, filled((3, 3)), 0, 0, filled((3, 4)))),
        (errors.ArgumentValueError, "scatter_elements", (x, index, x.copy(), 0, 5, filled((3, 4)))),
        (errors.ArgumentValueError, "scatter_elements", (x, index, x.copy(), 0, 0, x)),
        (errors.ShapeMismatchError, "one_hot", (index, x[:1, :1], x[:1, :1], 0, filled((3, 4)))),
        (errors.IndexRangeError, "topk", (x, 1, 2, 1, 1, filled((1, 4)), index[:1])),
        (errors.ShapeMismatchError, "nonzero", (x, index)),
    ]
    for error, name, args in refused:
        with pytest.raises(error):
            call_kernel(name, *args)
