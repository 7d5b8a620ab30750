"""Kernels that move elements, against numpy: transpose, concat, slices, pad, tile, fill and the like."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore import errors
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

RNG = np.random.default_rng(2)
DTYPES = ("uint8", "float16", "float32", "int64", "complex128")


def filled(shape: Any, dtype: str = "float32") -> np.ndarray:
    return np.asarray(RNG.integers(0, 100, shape)).astype(dtype)


def run(name: str, *args: object, like: np.ndarray) -> None:
    """The kernel's output equals `like`."""
    out = np.full(like.shape, 77, like.dtype)
    call_kernel(name, *args, out)
    np.testing.assert_array_equal(out, like, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 3, 4), (17, 33), (1, 5, 1, 40), (3, 0, 2), (2, 3, 4, 5, 2), (), (65, 16), (3, 130)]
)
def test_transpose(shape: tuple[int, ...], dtype: str) -> None:
    x = filled(shape, dtype)
    for perm in itertools.permutations(range(len(shape))):
        run("transpose", x, Shape(perm), like=x.transpose(perm))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_transpose_any(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 6), max_size=6))
    perm = data.draw(st.permutations(range(len(shape))))
    x = filled(shape, data.draw(st.sampled_from(DTYPES)))
    run("transpose", x, Shape(perm), like=x.transpose(perm))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_strided_slice(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), max_size=4))
    begins, steps, index = [], [], []
    for n in shape:
        begin = data.draw(st.integers(0, n - 1))
        step = data.draw(st.sampled_from([1, 2, 3, -1, -2]))
        count = data.draw(st.integers(0, (n - 1 - begin) // step + 1 if step > 0 else begin // -step + 1))
        begins.append(begin)
        steps.append(step)
        index.append(np.arange(count) * step + begin)
    x = filled(shape, data.draw(st.sampled_from(DTYPES)))
    run("strided_slice", x, Shape(begins), Shape(steps), like=x[np.ix_(*index)] if shape else x)


def test_strided_slice_stays_inside() -> None:
    x = filled((5, 3))
    cases = [
        (Shape((0, 0)), Shape((1, 1)), (6, 3)),
        (Shape((3, 0)), Shape((2, 1)), (2, 3)),
        (Shape((1, 0)), Shape((-1, 1)), (3, 3)),
        (Shape((-1, 0)), Shape((1, 1)), (1, 3)),
        (Shape((0, 3)), Shape((1, 1)), (1, 1)),
        (Shape((0, 0)), Shape((0, 1)), (2, 3)),
        (Shape((2**62, 0)), Shape((1, 1)), (1, 3)),
        (Shape((4, 0)), Shape((2**40, 1)), (2, 3)),
    ]
    for begins, steps, shape in cases:
        with pytest.raises(errors.IndexRangeError):
            call_kernel("strided_slice", x, begins, steps, np.empty(shape, np.float32))
    with pytest.raises(errors.ArgumentValueError):
        call_kernel("strided_slice", x, Shape((0, 0)), Shape((2**63 - 1, 1)), np.empty((2, 3), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat(axis: int, dtype: str) -> None:
    parts = []
    for n in (1, 4, 0, 9):
        shape = [3, 4, 5]
        shape[axis] = n
        parts.append(filled(shape, dtype))
    run("concat", *parts, axis, like=np.concatenate(parts, axis))
    run("concat", parts[1], axis, like=parts[1])
    with pytest.raises(errors.ShapeMismatchError):
        call_kernel("concat", parts[1], parts[0], axis, parts[1].copy())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_broadcast_and_tile(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = filled(shape, dtype)
    repeats = [data.draw(st.integers(0, 3)) for _ in shape]
    run("tile", x, like=np.tile(x, repeats))
    target = [data.draw(st.integers(0, 3)) for _ in range(data.draw(st.integers(0, 2)))]
    target += [data.draw(st.integers(0, 4)) if n == 1 else n for n in shape]
    run("broadcast_to", x, like=np.broadcast_to(x, target))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pad(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4))
    mode = data.draw(st.integers(0, 3))
    pads = np.array([data.draw(st.integers(0, 9)) for _ in range(2 * len(shape))], int).reshape(2, -1)
    x = filled(shape, data.draw(st.sampled_from(["uint8", "float16", "float32", "int64"])))
    name: Any = ("constant", "reflect", "edge", "wrap")[mode]
    expected = np.pad(x, pads.T, name, **({"constant_values": 7} if mode == 0 else {})) if shape else x
    run("pad", x, Shape(pads.ravel()), mode, 7, like=expected)


def test_pad_crops_and_refuses() -> None:
    x = filled((4, 6))
    run("pad", x, Shape((-1, 2, 0, -3)), 0, 1.5, like=np.pad(x[1:, :3], ((0, 0), (2, 0)), constant_values=1.5))
    run("pad", x, Shape((-5, 0, 3, 0)), 0, 0, like=np.zeros((2, 6), np.float32))
    run(
        "pad", x, Shape((1, 0, 0, 0)), 0, np.array([3], np.float32), like=np.pad(x, ((1, 0), (0, 0)), constant_values=3)
    )
    for args in ((Shape((-1, 0, 0, 0)), 1, 0), (Shape((0, 0, 0)), 0, 0), (Shape((0, 0, 0, 0)), 4, 0)):
        with pytest.raises(errors.ArgumentValueError):
            call_kernel("pad", x, *args, x.copy())
    with pytest.raises(errors.ShapeMismatchError):
        call_kernel("pad", x, Shape((1, 0, 0, 0)), 0, 0, x.copy())


def test_fill_copy_arange_eye() -> None:
    for dtype in ("bool", "int8", "uint64", "float16", "float32", "float64"):
        run("fill", 1, like=np.ones((3, 4), dtype))
        run("fill", np.ones((), dtype), like=np.ones((), dtype))
        run("fill", 0.0, like=np.zeros((0, 2), dtype))
        for k in (-9, -1, 0, 2, 9):
            run("eye", k, like=np.eye(3, 5, k, dtype))
    run("fill", 2.5, like=np.full(200, 2.5, np.float32))
    run("fill", np.array([2 + 1j]), like=np.full(3, 2 + 1j))
    x = filled((3, 4))
    run("copy", x, like=x.reshape(2, 6))
    run("arange", 3, -2, like=np.arange(3, -297, -2, np.int64))
    run("arange", 5, 3, like=(np.arange(100) * 3 + 5).astype(np.float16))
    run("arange", 0.5, 0.25, like=np.arange(130, dtype=np.float32) * np.float32(0.25) + np.float32(0.5))
    with pytest.raises(errors.DTypeMismatchError):
        call_kernel("fill", np.ones((), np.float64), x)
    with pytest.raises(errors.ArgumentTypeError):
        call_kernel("fill", None, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trilu(dtype: str) -> None:
    for shape in ((4, 6), (2, 5, 3), (0, 3), (3, 0)):
        x = filled(shape, dtype)
        for k in (-7, -2, 0, 1, 7, 2**62, -(2**62)):
            bounded = max(-20, min(20, k))
            run("trilu", x, k, 1, like=np.triu(x, bounded))
            run("trilu", x, k, 0, like=np.tril(x, bounded))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_and_space(block: int, dtype: str) -> None:
    n, c, h, w = 2, 3, 4, 5
    x = filled((n, c * block * block, h, w), dtype)
    dcr = x.reshape(n, block, block, c, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c, h * block, w * block)
    crd = x.reshape(n, c, block, block, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c, h * block, w * block)
    run("depth_to_space", x, block, 0, like=dcr)
    run("depth_to_space", x, block, 1, like=crd)
    run("space_to_depth", dcr, block, like=x)
    with pytest.raises(errors.ShapeMismatchError):
        call_kernel("depth_to_space", x, block + 1, 0, dcr.copy())


def test_reverse_sequence() -> None:
    for batch_axis, time_axis in ((0, 1), (1, 0), (2, 0)):
        x = filled((4, 5, 3))
        lens = RNG.integers(0, x.shape[time_axis] + 1, x.shape[batch_axis])
        expected = x.copy()
        for b, n in enumerate(lens):
            part = np.moveaxis(np.moveaxis(expected, batch_axis, 0)[b], time_axis - (time_axis > batch_axis), 0)
            part[:n] = part[:n][::-1].copy()
        run("reverse_sequence", x, lens.astype(np.int32), batch_axis, time_axis, like=expected)
        with pytest.raises(errors.IndexRangeError):
            call_kernel("reverse_sequence", x, lens + 9, batch_axis, time_axis, x.copy())


def test_refusals() -> None:
    x = filled((2, 3))
    for perm in (Shape((0, 0)), Shape((0, 2)), Shape((0,)), Shape((0, -1))):
        with pytest.raises(errors.ArgumentValueError):
            call_kernel("transpose", x, perm, x.copy())
    for name, args in (("tile", (x,)), ("broadcast_to", (x,))):
        with pytest.raises(errors.ShapeMismatchError):
            call_kernel(name, *args, np.empty((3, 3), np.float32))
    with pytest.raises(errors.ArgumentValueError, match="overlap"):
        call_kernel("transpose", x, Shape((1, 0)), x.reshape(3, 2))
