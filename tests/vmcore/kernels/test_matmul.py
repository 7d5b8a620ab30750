"""kernel.matmul, kernel.gemm and kernel.matmul_integer against numpy, with every BLAS provider that is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vmcore import blas, errors, threads
from vmcore.kernels import gemm
from vmcore.kernels.direct import call_kernel

PROVIDERS = ["auto", "numpy", "scipy", "own"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param != "auto" and not blas._use(request.param):
        blas._use("auto")
        pytest.skip(f"no BLAS provider {request.param} here")
    blas.ensure_bound()
    yield request.param
    blas._use("auto")


SHAPES = [
    ((3, 4), (4, 5)), ((1, 7), (7, 9)), ((9, 7), (7, 1)), ((1, 7), (7, 1)), ((7,), (7,)), ((7,), (7, 3)),
    ((3, 7), (7,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((1, 3, 4), (6, 4, 5)), ((6, 3, 4), (1, 4, 5)),
    ((5, 1, 3, 4), (2, 4, 5)),
    ((4,), (3, 4, 5)), ((3, 2, 4), (4,)), ((33, 65), (65, 97)), ((15, 700), (700, 31)), ((64, 64), (64, 33)),
    ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)), ((0, 3, 4), (4, 5)), ((2, 0, 4), (2, 4, 5)),
    ((100, 1024), (1024, 40)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul(shapes: tuple, dtype: type, provider: str, rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(s).astype(dtype) for s in shapes)
    expected = a @ b
    out = np.full(np.shape(expected), 7, dtype)
    call_kernel("matmul", a, b, out)
    tolerance = (1e-5 if dtype == np.float32 else 1e-13) * np.sqrt(max(a.shape[-1], 1))
    np.testing.assert_allclose(out, expected, tolerance, 10 * tolerance)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul_of_integers_wraps(shapes: tuple, dtype: type, rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, np.iinfo(dtype).max, s, dtype, endpoint=True) for s in shapes)
    expected = a @ b
    out = np.full(np.shape(expected), 7, dtype)
    call_kernel("matmul", a, b, out)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes", [(5, 7, 9), (1, 40, 33), (40, 1, 33), (70, 50, 600), (3, 4, 0), (64, 64, 64), (2, 90, 17)]
)
def test_gemm(sizes: tuple, dtype: type, trans_a: int, trans_b: int, provider: str, rng: np.random.Generator) -> None:
    m, n, k = sizes
    a = rng.standard_normal((k, m) if trans_a else (m, k)).astype(dtype)
    b = rng.standard_normal((n, k) if trans_b else (k, n)).astype(dtype)
    product = (a.T if trans_a else a).astype(np.float64) @ (b.T if trans_b else b).astype(np.float64)
    tolerance = (1e-5 if dtype == np.float32 else 1e-13) * np.sqrt(max(k, 1))
    for c_shape, alpha, beta in (
        (None, 1.0, 1.0), ((m, n), 1.0, 1.0), ((n,), 0.5, 2.0), ((m, 1), 1.0, -1.0), ((1, n), 2, 1), ((), 1.0, 1.0),
        ((1, 1), -1.5, 0.0), ((m, n), 0.0, 3.0),
    ):  # fmt: skip
        c = None if c_shape is None else rng.standard_normal(c_shape).astype(dtype)
        out = np.full((m, n), np.nan, dtype)
        call_kernel("gemm", a, b, c, alpha, beta, trans_a, trans_b, out)
        expected = alpha * product + (0 if c is None else beta * c.astype(np.float64))
        np.testing.assert_allclose(out, expected, tolerance, 10 * tolerance)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(name: str, rng: np.random.Generator) -> None:
    before = gemm.instruction_set()
    try:
        gemm._use_instruction_set(name)
    except ValueError:
        pytest.skip(f"this CPU has no {name}")
    try:
        blas._use("own")
        for dtype in (np.float32, np.float64):
            for m, n, k in ((1, 1, 1), (13, 47, 29), (29, 16, 5), (31, 8, 1030), (57, 70, 64)):
                a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
                out = np.full((m, n), np.nan, dtype)
                call_kernel("matmul", a, b, out)
                np.testing.assert_allclose(out, a.astype(np.float64) @ b, 1e-4, 1e-4)
    finally:
        gemm._use_instruction_set(before)
        blas._use("auto")


def test_threads_give_the_same_bits(rng: np.random.Generator) -> None:
    before = threads.get_num_threads()
    try:
        for a_shape, b_shape in (((256, 300), (300, 512)), ((600, 128), (128, 32)), ((12, 64, 64), (12, 64, 64))):
            a, b = rng.standard_normal(a_shape, np.float32), rng.standard_normal(b_shape, np.float32)
            results = []
            for n in (1, 2, 3):
                threads.set_num_threads(n)
                out = np.zeros((a @ b).shape, np.float32)
                call_kernel("matmul", a, b, out)
                results.append(out)
            np.testing.assert_allclose(results[0], a @ b, 1e-4, 1e-3)
            assert np.array_equal(results[0], results[1])
            assert np.array_equal(results[0], results[2])
    finally:
        threads.set_num_threads(before)


def test_nan_and_infinity_pass_through() -> None:
    a = np.ones((20, 20), np.float32)
    a[3, 4], a[5, 6] = np.nan, np.inf
    out = np.zeros((20, 20), np.float32)
    call_kernel("matmul", a, np.eye(20, dtype=np.float32), out)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(np.isnan(out), np.isnan(a @ np.eye(20, dtype=np.float32)))


@pytest.mark.parametrize("a_type", [np.uint8, np.int8])
@pytest.mark.parametrize("b_type", [np.uint8, np.int8])
def test_matmul_integer(a_type: type, b_type: type, rng: np.random.Generator) -> None:
    def draw(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)

    for a_shape, b_shape in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((1, 60), (60, 70))):
        a, b = draw(a_shape, a_type), draw(b_shape, b_type)
        m, n = a_shape[-2], b_shape[-1]
        zeros = [(None, None), (draw((), a_type), draw((), b_type)), (draw((m,), a_type), draw((n,), b_type))]
        for a_zero, b_zero in zeros:
            wide_a = a.astype(np.int32) - (0 if a_zero is None else a_zero.astype(np.int32).reshape(-1, 1))
            wide_b = b.astype(np.int32) - (0 if b_zero is None else b_zero.astype(np.int32).reshape(1, -1))
            expected = wide_a @ wide_b
            out = np.zeros(expected.shape, np.int32)
            call_kernel("matmul_integer", a, b, a_zero, b_zero, out)
            assert np.array_equal(out, expected)


def test_hostile_matmul_arguments() -> None:
    f = np.float32
    a, b, out = np.ones((3, 4), f), np.ones((4, 5), f), np.zeros((3, 5), f)
    block = np.ones(100, f)
    bad: list[list] = [
        [a, b], [a, b, out, out], [], [None, b, out], [a, 1, out], [a, b, None], ["a", b, out],
        [a, b.astype(np.float64), out], [a, b, out.astype(np.float64)],
        *([v.astype(t) for v in (a, b, out)] for t in (np.float16, np.int8, bool, np.complex64)),
        [np.zeros((), f), b, out], [a, np.ones((5, 5), f), out], [a, b, np.zeros((3, 4), f)],
        [a, b, np.zeros((5, 3), f)], [a, b, np.zeros((1, 3, 5), f)], [a, b, np.zeros(15, f)], [a[:, ::-1], b, out],
        [a, np.ones((4, 10), f)[:, ::2], out], [a, b, np.zeros((3, 10), f)[:, ::2]], [a, b[::-1], out],
        [np.ones((2, 3, 4), f), np.ones((3, 4, 5), f), np.zeros((3, 3, 5), f)], [np.ones((2, 3, 4), f), b, out],
        [block[:12].reshape(3, 4), b, block[5:20].reshape(3, 5)],
        [a, block[:20].reshape(4, 5), block[:15].reshape(3, 5)],
    ]  # fmt: skip
    for args in bad:
        with pytest.raises(errors.ExecutionError, match="matmul"):
            call_kernel("matmul", *args)


def test_hostile_gemm_arguments() -> None:
    f = np.float32
    good = [np.ones((3, 4), f), np.ones((4, 5), f), np.ones(5, f), 1.0, 1.0, 0, 0, np.zeros((3, 5), f)]
    call_kernel("gemm", *good)
    changes = [
        (0, None), (0, np.ones((1, 3, 4), f)), (0, np.ones((4, 3), f)), (0, np.ones((3, 4))),
        (0, np.ones((3, 4), np.int32)), (1, np.ones(4, f)), (1, np.ones((5, 4), f)), (2, np.ones(4, f)),
        (2, np.ones((3, 4), f)), (2, np.ones((1, 3, 5), f)), (2, np.ones(5)), (2, 1.0), (3, None), (3, "1"), (4, None),
        (5, 2), (5, -1), (5, 1.0), (5, None), (6, 2), (5, 1), (6, 1), (7, np.zeros((5, 3), f)), (7, np.zeros((3, 5))),
        (7, None), (7, np.zeros((3, 10), f)[:, ::2]), (7, good[0]),
    ]  # fmt: skip
    for index, value in changes:
        args = list(good)
        args[index] = value
        with pytest.raises(errors.ExecutionError, match="gemm"):
            call_kernel("gemm", *args)
    integers = [np.ones((3, 4), np.int32), np.ones((4, 5), np.int32), None, 1, 1, 0, 0, np.zeros((3, 5), np.int32)]
    with pytest.raises(errors.DTypeMismatchError):
        call_kernel("gemm", *integers)


def test_hostile_matmul_integer_arguments() -> None:
    a, b, out = np.ones((3, 4), np.uint8), np.ones((4, 5), np.int8), np.zeros((3, 5), np.int32)
    bad: list[list] = [
        [a, b, None, None], [a, b, None, None, out.astype(np.int64)], [a.astype(np.int32), b, None, None, out],
        [a, b.astype(bool), None, None, out], [a, b, np.zeros((), np.int8), None, out],
        [a, b, np.ones(4, np.uint8), None, out], [a, b, None, np.ones(3, np.int8), out],
        [a, b, None, np.ones((5, 5), np.int8), out], [a, np.ones((5, 5), np.int8), None, None, out],
        [a[0], b, None, None, out[0]], [a, b, None, None, out.T], [a, b, 1, None, out],
    ]  # fmt: skip
    for args in bad:
        with pytest.raises(errors.ExecutionError, match="matmul_integer"):
            call_kernel("matmul_integer", *args)
