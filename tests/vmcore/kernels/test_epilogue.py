"""What kernel.matmul_packed and kernel.conv do to their own results: bias, residual, activation; packed weights."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm.op.activation import ACTIVATIONS, finish
from pyvm.op.dense import pack_columns, unpack_columns
from vmcore import errors, threads
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

PARAMS = {"clip": (-0.5, 1.5), "leaky_relu": (0.1,), "hard_sigmoid": (0.2, 0.5)}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


def attrs_of(name: str) -> dict:
    return {"activation": name, "activation_params": PARAMS.get(name, ())}


def codes(name: str) -> tuple:
    return (ACTIVATIONS[name], *(PARAMS.get(name, ()) + (0.0, 0.0))[:2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 32), (64, 33), (0, 4), (20, 97)])
def test_packing_has_an_inverse(shape: tuple[int, int], dtype: type, rng: np.random.Generator) -> None:
    w = rng.standard_normal(shape).astype(dtype)
    packed = pack_columns(w)
    assert packed.shape[1:] == (shape[0], 128 // w.itemsize)
    assert np.array_equal(unpack_columns(packed, shape[1]), w)


SIZES = [
    (1, 1, 1), (1, 64, 40), (2, 5, 31), (16, 384, 384), (15, 700, 33), (33, 65, 97), (7, 1024, 64), (40, 1024, 100),
    (3, 0, 32), (0, 4, 32), (130, 513, 260), (29, 20, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_packed_products(size: tuple, dtype: type, instruction_set: str, rng: np.random.Generator) -> None:
    m, k, n = size
    a, w = rng.standard_normal((m, k)).astype(dtype), (rng.standard_normal((k, n)) / max(k, 1) ** 0.5).astype(dtype)
    bias, residual = rng.standard_normal(n).astype(dtype), rng.standard_normal((m, n)).astype(dtype)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for name in ACTIVATIONS:
        for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
            if name not in ("none", "relu", "gelu") and r is None:
                continue
            expected = a.astype(np.float64) @ w.astype(np.float64) + (0 if b is None else b)
            expected = finish(attrs_of(name), expected, r)
            out = np.full((m, n), 7, dtype)
            call_kernel("matmul_packed", a, pack_columns(w), b, r, *codes(name), out)
            np.testing.assert_allclose(out, expected, tolerance, tolerance, err_msg=name)


def test_leading_axes_and_threads(rng: np.random.Generator) -> None:
    a, w = rng.standard_normal((3, 50, 300)).astype(np.float32), rng.standard_normal((300, 500)).astype(np.float32)
    residual = rng.standard_normal((3, 50, 500)).astype(np.float32)
    before = threads.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            threads.set_num_threads(n)
            out = np.empty((3, 50, 500), np.float32)
            call_kernel("matmul_packed", a, pack_columns(w), None, residual, *codes("silu"), out)
            results.append(out)
    finally:
        threads.set_num_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_packed_operands_are_checked() -> None:
    a, w, out = np.ones((4, 8), np.float32), np.ones((2, 8, 32), np.float32), np.zeros((4, 64), np.float32)
    call_kernel("matmul_packed", a, w, None, None, 0, 0.0, 0.0, out)
    assert (out == 8).all()
    good = [a, w, None, None, 0, 0.0, 0.0, out]
    for position, value in (
        (0, np.ones((4, 9), np.float32)),
        (0, np.ones((4, 8))),
        (0, np.ones((), np.float32)),
        (1, np.ones((2, 8, 16), np.float32)),
        (1, np.ones((3, 8, 32), np.float32)),
        (1, np.ones((8, 64), np.float32)),
        (1, np.ones((2, 9, 32), np.float32)),
        (2, np.ones(63, np.float32)),
        (2, np.ones((1, 64), np.float32)),
        (2, np.ones(64)),
        (3, np.ones((4, 63), np.float32)),
        (3, out),
        (4, 11),
        (4, -1),
        (5, None),
        (7, np.zeros((4, 65), np.float32)),
        (7, np.zeros((5, 64), np.float32)),
    ):
        args = list(good)
        args[position] = value
        with pytest.raises(errors.ExecutionError, match="matmul_packed"):
            call_kernel("matmul_packed", *args)


# (input, weights, strides, pads, group): each way that a convolution takes
CONVOLUTIONS = {
    "pointwise": ((2, 8, 9, 11), (24, 8, 1, 1), (1, 1), (0, 0, 0, 0), 1),
    "im2col": ((1, 6, 14, 13), (20, 6, 3, 3), (2, 1), (1, 1, 1, 1), 1),
    "deep": ((1, 200, 7, 7), (33, 200, 3, 3), (1, 1), (1, 1, 1, 1), 1),
    "depthwise": ((2, 6, 20, 21), (6, 1, 3, 3), (1, 1), (1, 1, 1, 1), 6),
    "depthwise 5x5": ((1, 4, 20, 21), (4, 1, 5, 5), (2, 2), (2, 2, 2, 2), 4),
    "few outputs": ((1, 5, 30, 31), (2, 5, 3, 3), (1, 1), (1, 1, 1, 1), 1),
    "whole input": ((3, 5, 4, 4), (30, 5, 4, 4), (1, 1), (0, 0, 0, 0), 1),
    "groups": ((1, 8, 10, 10), (16, 4, 3, 3), (1, 1), (1, 1, 1, 1), 2),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("way", CONVOLUTIONS)
def test_convolutions(way: str, dtype: type, instruction_set: str, rng: np.random.Generator) -> None:
    x_shape, w_shape, strides, pads, group = CONVOLUTIONS[way]
    x = rng.standard_normal(x_shape).astype(dtype)
    w = (rng.standard_normal(w_shape) / np.prod(w_shape[1:]) ** 0.5).astype(dtype)
    bias = rng.standard_normal(w_shape[0]).astype(dtype)
    spatial = [
        (x_shape[2 + i] + pads[i] + pads[2 + i] - w_shape[2 + i]) // strides[i] + 1 for i in range(2)
    ]  # fmt: skip
    plain = np.zeros((x_shape[0], w_shape[0], *spatial), dtype)
    window = (Shape(strides), Shape(pads), Shape((1, 1)), group)
    call_kernel("conv", x, w, bias, *window, 0, plain)  # test_conv.py compares it with its definition
    residual = rng.standard_normal(plain.shape).astype(dtype)
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    for name in ACTIVATIONS:
        for more in (None, residual):
            expected = finish(attrs_of(name), plain.astype(np.float64), more)
            out = np.full_like(plain, 7)
            call_kernel("conv", x, w, bias, *window, *codes(name), more, out)
            np.testing.assert_allclose(out, expected, tolerance, 8 * tolerance, err_msg=name)


def test_arguments_of_a_convolution_are_checked() -> None:
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 1, 1), np.float32)
    out = np.zeros((1, 3, 4, 4), np.float32)
    window = (Shape((1, 1)), Shape((0, 0, 0, 0)), Shape((1, 1)), 1)
    for tail in (
        (99, 0.0, 0.0, None, out),
        (0, None, 0.0, None, out),
        (0, 0.0, 0.0, np.ones((1, 3, 4, 5), np.float32), out),
        (0, 0.0, 0.0, np.ones((1, 3, 4, 4)), out),
        (0, 0.0, 0.0, out, out),
        (2, out),
        (0, 0.0, out),
    ):
        with pytest.raises(errors.ExecutionError, match="conv"):
            call_kernel("conv", x, w, None, *window, *tail)
