"""The number of threads decides who computes what, never a single bit of the result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import pyvm
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

COUNTS = (1, 2, 3, 5, 8, 17)


@pytest.fixture(autouse=True)
def thread_count() -> Iterator[None]:
    before = pyvm.get_num_threads()
    yield
    pyvm.set_num_threads(before)


def same_for_all_counts(kernel: str, out_shape: tuple[int, ...], *args: object, dtype: type = np.float32) -> None:
    expected = b""
    for n in COUNTS:
        pyvm.set_num_threads(n)
        out = np.full(out_shape, np.nan, dtype)
        call_kernel(kernel, *args, out)
        assert not np.isnan(out).any()
        if n == 1:
            expected = out.tobytes()
        assert out.tobytes() == expected, f"{n} threads"


# Planes whose last panel is whole, has odd columns, or few enough for dot products; bands by memory; few channels.
CONVS = [
    ((1, 64, 14, 14), (64, 64, 3, 3), 1),
    ((1, 256, 14, 14), (48, 256, 3, 3), 1),
    ((1, 128, 7, 7), (256, 128, 3, 3), 1),
    ((1, 32, 28, 28), (40, 32, 5, 5), 2),
    ((2, 16, 33, 31), (20, 16, 3, 3), 1),
    ((1, 96, 56, 56), (24, 96, 3, 3), 1),
    ((1, 3, 97, 113), (64, 3, 7, 7), 2),
    ((1, 200, 13, 13), (300, 200, 1, 1), 1),
    ((1, 512, 14, 14), (130, 512, 1, 1), 1),
    ((1, 64, 57, 57), (32, 64, 1, 1), 1),
    ((3, 20, 1, 300), (33, 20, 1, 9), 1),
    ((1, 48, 40, 40), (48, 1, 3, 3), 1),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x_shape", "w_shape", "stride"), CONVS, ids=str)
def test_conv(x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in (x_shape, w_shape, w_shape[:1]))
    kh, kw = w_shape[2:]
    out = (x_shape[0], w_shape[0], (x_shape[2] - kh) // stride + 1, (x_shape[3] - kw) // stride + 1)
    args = (x, w, b, Shape([stride, stride]), Shape([0] * 4), Shape([1, 1]), x_shape[1] // w_shape[1], 1)
    same_for_all_counts("conv", out, *args, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes",
    [
        (300, 196, 700),
        (27, 3000, 600),
        (28, 500, 130),
        (60, 1000, 256),
        (500, 35, 1100),
        (2000, 17, 64),
        (15, 4000, 300),
    ],
    ids=str,
)
def test_matmul(sizes: tuple[int, int, int], dtype: type) -> None:
    m, n, k = sizes
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    same_for_all_counts("matmul", (m, n), a, b, dtype=dtype)
    for trans_a, trans_b in ((0, 1), (1, 0), (1, 1)):
        x, y = (a.T.copy() if trans_a else a), (b.T.copy() if trans_b else b)
        same_for_all_counts("gemm", (m, n), x, y, None, 1.0, 1.0, trans_a, trans_b, dtype=dtype)


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, 300_001, 700_003])
def test_elementwise(size: int) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, size)).astype(np.float32)
    for kernel in ("relu", "exp", "tanh", "sin"):
        same_for_all_counts(kernel, (size,), x)
    for kernel in ("add", "div", "pow"):
        same_for_all_counts(kernel, (size,), np.abs(x), y)
    same_for_all_counts("mul", (size,), x, np.float32([1.7]))
    same_for_all_counts("add", (3, size), np.stack([x, y, x]), y)


def test_pooling_and_reductions() -> None:
    x = np.random.default_rng(3).standard_normal((1, 70, 61, 67)).astype(np.float32)
    pads, ones = Shape([0, 0, 0, 0]), Shape([1, 1])
    same_for_all_counts("max_pool", (1, 70, 30, 33), x, Shape([3, 3]), Shape([2, 2]), pads, ones)
    same_for_all_counts("global_avg_pool", (1, 70, 1, 1), x)
