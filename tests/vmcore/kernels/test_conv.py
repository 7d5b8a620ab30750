"""kernel.conv and kernel.conv_transpose against a float64 sum over taps, and against ONNX Runtime on a few layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from vmcore import errors, threads
from vmcore.kernels import gemm
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

TOLERANCE = {np.dtype(np.float32): (2e-5, 2e-5), np.dtype(np.float64): (1e-12, 1e-12)}


def reference_conv(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], group: int, relu: bool
) -> np.ndarray:
    """The definition: one strided slice of the padded input per tap, in float64."""
    rank = x.ndim - 2
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    kernel = w.shape[2:]
    sizes = zip(padded.shape[2:], kernel, dilations, strides, strict=True)
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in sizes]
    n_out = w.shape[0] // group
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, out, strides, strict=True)
        )
        for g in range(group):
            part = padded[(slice(None), slice(g * w.shape[1], (g + 1) * w.shape[1]), *window)]
            weights = w[(slice(g * n_out, (g + 1) * n_out), slice(None), *tap)].astype(np.float64)
            y[:, g * n_out : (g + 1) * n_out] += np.einsum("oc,nc...->no...", weights, part)
    if b is not None:
        y += b.reshape(1, -1, *[1] * rank)
    return np.maximum(y, 0) if relu else y


def run_conv(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], group: int = 1, activation: int = 0, out: np.ndarray | None = None
) -> np.ndarray:
    if out is None:
        rank = x.ndim - 2
        spatial = [
            (n + pads[i] + pads[i + rank] - (k - 1) * dilations[i] - 1) // strides[i] + 1
            for i, (n, k) in enumerate(zip(x.shape[2:], w.shape[2:], strict=True))
        ]
        out = np.full((x.shape[0], w.shape[0], *spatial), np.nan, x.dtype)
    call_kernel("conv", x, w, b, Shape(strides), Shape(pads), Shape(dilations), group, activation, out)
    return out


# (input shape, weight shape, strides, pads, dilations, group)
CASES = [
    ((1, 3, 17, 19), (8, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 16, 9, 9), (40, 16, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 64, 14, 14), (32, 64, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((1, 3, 33, 35), (16, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 5, 11, 13), (7, 5, 3, 2), (2, 3), (0, 1, 2, 0), (1, 1), 1),
    ((1, 4, 20, 20), (6, 4, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    ((1, 4, 20, 23), (6, 4, 3, 3), (2, 2), (3, 3, 3, 3), (3, 2), 1),
    ((1, 4, 20, 20), (6, 4, 3, 4), (3, 3), (4, 4, 4, 4), (2, 3), 1),
    ((1, 12, 10, 10), (24, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    ((1, 6, 40, 40), (6, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    ((2, 6, 7, 7), (6, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    ((1, 6, 37, 37), (6, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 6),
    ((1, 6, 15, 9), (12, 1, 5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 6),
    ((1, 6, 21, 70), (6, 1, 5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 6),
    ((1, 6, 16, 16), (6, 1, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 6),
    ((3, 8, 12, 12), (2, 8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 8, 5, 5), (9, 8, 5, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 8, 1, 1), (9, 8, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 200, 7, 7), (30, 200, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 1, 76, 32), (24, 1, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 5, 50), (7, 5, 5), (1,), (2, 2), (1,), 1),
    ((1, 6, 50, 1), (9, 6, 5, 1), (1, 1), (2, 0, 1, 0), (1, 1), 1),
    ((1, 3, 40, 1, 1), (8, 3, 3, 1, 1), (2, 1, 1), (1, 0, 0, 0, 0, 0), (1, 1, 1), 1),
    ((1, 3, 9, 1), (8, 3, 3, 2), (1, 1), (1, 1, 1, 0), (1, 1), 1),
    ((1, 3, 9, 1), (8, 3, 3, 1), (1, 1), (1, 0, 1, 0), (1, 3), 1),
    ((1, 5, 50), (8, 5, 4), (3,), (0, 3), (2,), 1),
    ((1, 4, 130), (4, 1, 3), (1,), (1, 1), (1,), 4),
    ((1, 3, 6, 8, 9), (5, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    ((1, 4, 7, 8, 9), (4, 2, 2, 3, 2), (2, 1, 2), (1, 0, 1, 0, 1, 0), (1, 2, 1), 2),
    ((1, 4, 5, 8, 20), (4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 4),
    ((1, 2, 3, 3), (4, 2, 3, 3), (1, 1), (5, 4, 6, 7), (1, 1), 1),
    ((0, 2, 8, 8), (4, 2, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 0, 8, 8), (4, 0, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 2, 4, 4), (3, 2, 2, 2), (1, 1), (900, 900, 900, 900), (900, 900), 1),
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=["default", "baseline"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = gemm.instruction_set()
    if request.param != "default":
        gemm._use_instruction_set(request.param)
    yield request.param
    gemm._use_instruction_set(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_matches_definition(case: tuple, dtype: type, instruction_set: str, rng: np.random.Generator) -> None:
    x_shape, w_shape, strides, pads, dilations, group = case
    x = rng.standard_normal(x_shape).astype(dtype)
    w = rng.standard_normal(w_shape).astype(dtype)
    b = rng.standard_normal(w_shape[0]).astype(dtype)
    rtol, atol = TOLERANCE[np.dtype(dtype)]
    for bias, relu in ((None, False), (b, False), (b, True)):
        expected = reference_conv(x, w, bias, strides, pads, dilations, group, relu)
        actual = run_conv(x, w, bias, strides, pads, dilations, group, int(relu))
        np.testing.assert_allclose(actual, expected, rtol, atol * max(1.0, np.sqrt(w[0].size)))


def test_avx2_tiles(rng: np.random.Generator) -> None:
    before = gemm.instruction_set()
    if before == "baseline":
        pytest.skip("this CPU has no AVX2")
    x, w = rng.standard_normal((1, 20, 13, 13), np.float32), rng.standard_normal((33, 20, 3, 3), np.float32)
    try:
        gemm._use_instruction_set("avx2")
        actual = run_conv(x, w, None, (1, 1), (1, 1, 1, 1), (1, 1))
    finally:
        gemm._use_instruction_set(before)
    expected = reference_conv(x, w, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, False)
    np.testing.assert_allclose(actual, expected, 2e-5, 2e-4)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_give_the_same_bits(n_threads: int, rng: np.random.Generator) -> None:
    layers = [
        ((1, 64, 28, 28), (64, 64, 3, 3), 1), ((1, 256, 14, 14), (256, 256, 1, 1), 1),
        ((1, 64, 56, 56), (64, 1, 3, 3), 64), ((1, 256, 14, 14), (128, 256, 3, 3), 1),
        ((4, 16, 28, 28), (16, 16, 1, 1), 1),
    ]  # fmt: skip
    before = threads.get_num_threads()
    try:
        for x_shape, w_shape, group in layers:
            pad = w_shape[2] // 2
            x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
            threads.set_num_threads(1)
            one = run_conv(x, w, None, (1, 1), (pad,) * 4, (1, 1), group)
            threads.set_num_threads(n_threads)
            many = run_conv(x, w, None, (1, 1), (pad,) * 4, (1, 1), group)
            assert np.array_equal(many, one)
    finally:
        threads.set_num_threads(before)


def test_nan_and_relu(rng: np.random.Generator) -> None:
    """relu keeps NaN, and a NaN reaches only the outputs whose window holds it."""
    x = rng.standard_normal((1, 4, 12, 12)).astype(np.float32)
    x[0, 0, 5, 5] = np.nan
    w = rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    y = run_conv(x, w, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, 1)
    touched = np.zeros((12, 12), bool)
    touched[4:7, 4:7] = True
    assert np.array_equal(np.isnan(y[0, 3]), touched)


# (input, weights (C, O / group, kernel), strides, pads, dilations, output padding, group)
TRANSPOSE_CASES = [
    ((1, 3, 5, 6), (3, 4, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1),
    ((2, 4, 7, 7), (4, 2, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (0, 0), 1),
    ((1, 6, 5, 5), (6, 3, 3, 3), (1, 1), (1, 0, 2, 1), (2, 1), (0, 0), 2),
    ((1, 4, 9), (4, 5, 4), (3,), (1, 2), (1,), (2,), 1),
    ((1, 2, 3, 4, 5), (2, 3, 2, 3, 2), (2, 1, 2), (0, 1, 0, 1, 0, 1), (1, 1, 1), (0, 0, 1), 1),
    ((1, 4, 9, 1), (4, 5, 4, 1), (3, 1), (1, 0, 2, 0), (1, 1), (2, 0), 1),
    ((1, 16, 30, 30), (16, 1, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (0, 0), 16),
    ((1, 24, 40, 40), (24, 24, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (0, 0), 1),
]


def reference_conv_transpose(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    extra: Sequence[int], group: int
) -> np.ndarray:
    """Every input element adds its scaled kernel to the full output, which is then cropped."""
    rank = x.ndim - 2
    full = [
        s * (n - 1) + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
    ]
    n_out, n_in = w.shape[1], x.shape[1] // group
    y = np.zeros((x.shape[0], n_out * group, *full))
    for tap in itertools.product(*map(range, w.shape[2:])):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        for g in range(group):
            weights = w[(slice(g * n_in, (g + 1) * n_in), slice(None), *tap)].astype(np.float64)
            part = np.einsum("co,nc...->no...", weights, x[:, g * n_in : (g + 1) * n_in].astype(np.float64))
            y[(slice(None), slice(g * n_out, (g + 1) * n_out), *window)] += part
    crop = tuple(slice(pads[i], full[i] - pads[i + rank]) for i in range(rank))
    return y[(slice(None), slice(None), *crop)] + b.reshape(1, -1, *[1] * rank)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", TRANSPOSE_CASES, ids=[f"{i}" for i in range(len(TRANSPOSE_CASES))])
def test_conv_transpose(case: tuple, dtype: type, n_threads: int, rng: np.random.Generator) -> None:
    x_shape, w_shape, strides, pads, dilations, extra, group = case
    x, w = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    b = rng.standard_normal(w_shape[1] * group).astype(dtype)
    expected = reference_conv_transpose(x, w, b, strides, pads, dilations, extra, group)
    out = np.full(expected.shape, np.nan, dtype)
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(n_threads)
        call_kernel(
            "conv_transpose", x, w, b, Shape(strides), Shape(pads), Shape(dilations), Shape(extra), group, out
        )
    finally:
        threads.set_num_threads(before)
    rtol, atol = TOLERANCE[np.dtype(dtype)]
    np.testing.assert_allclose(out, expected, rtol, 10 * atol)


def test_onnxruntime_agrees(rng: np.random.Generator) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    layers = [((1, 64, 28, 28), (64, 64, 3, 3), 1, 1, 1), ((1, 3, 64, 64), (32, 3, 7, 7), 2, 3, 1),
              ((1, 32, 28, 28), (32, 1, 3, 3), 2, 1, 32), ((1, 96, 14, 14), (40, 96, 1, 1), 1, 0, 1)]  # fmt: skip
    for x_shape, w_shape, stride, pad, group in layers:
        x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=[pad] * 4, group=group, kernel_shape=w_shape[2:]
        )
        kind = onnx.TensorProto.FLOAT
        info = [helper.make_tensor_value_info(n, kind, s) for n, s in (("x", x_shape), ("w", w_shape))]
        graph = helper.make_graph([node], "g", info, [helper.make_tensor_value_info("y", kind, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})[0]
        actual = run_conv(x, w, None, (stride, stride), (pad,) * 4, (1, 1), group)
        np.testing.assert_allclose(actual, expected, 1e-4, 1e-4)


ONE = Shape((1, 1))


def hostile_arguments() -> dict[str, tuple[list, type]]:
    """Argument lists that the door must refuse, with the error it must raise."""
    f = np.float32

    def base() -> list:
        return [np.ones((1, 4, 8, 8), f), np.ones((6, 4, 3, 3), f), None, ONE, Shape((0, 0, 0, 0)), ONE, 1, 0,
                np.zeros((1, 6, 6, 6), f)]  # fmt: skip

    def with_(**changes: object) -> list:
        args = base()
        for key, value in changes.items():
            args[int(key[1:])] = value
        return args

    shared = np.ones(4096, f)
    huge = 2**62
    return {
        "too few": (base()[:-1], errors.ArgumentTypeError),
        "too many": ([*base(), 1], errors.ArgumentTypeError),
        "no arguments": ([], errors.ArgumentTypeError),
        "x is none": (with_(_0=None), errors.ArgumentTypeError),
        "x is int": (with_(_0=3), errors.ArgumentTypeError),
        "w is a string": (with_(_1="w"), errors.ArgumentTypeError),
        "strides is int": (with_(_3=1), errors.ArgumentTypeError),
        "strides is a tensor": (with_(_3=np.ones(2, np.int64)), errors.ArgumentTypeError),
        "group is float": (with_(_6=1.0), errors.ArgumentTypeError),
        "integers": (with_(_0=np.ones((1, 4, 8, 8), np.int32)), errors.DTypeMismatchError),
        "all integers": (
            [*(a.astype(np.int32) for a in base()[:2]), *base()[2:8], np.zeros((1, 6, 6, 6), np.int32)],
            errors.DTypeMismatchError,
        ),
        "half": (
            [*(a.astype(np.float16) for a in base()[:2]), *base()[2:8], np.zeros((1, 6, 6, 6), np.float16)],
            errors.DTypeMismatchError,
        ),
        "mixed": (with_(_1=np.ones((6, 4, 3, 3), np.float64)), errors.DTypeMismatchError),
        "out dtype": (with_(_8=np.zeros((1, 6, 6, 6), np.float64)), errors.DTypeMismatchError),
        "bias dtype": (with_(_2=np.ones(6, np.float64)), errors.DTypeMismatchError),
        "bias size": (with_(_2=np.ones(5, f)), errors.ShapeMismatchError),
        "bias rank": (with_(_2=np.ones((6, 1), f)), errors.ShapeMismatchError),
        "rank 2": (with_(_0=np.ones((4, 8), f)), errors.ShapeMismatchError),
        "rank 6": (
            with_(_0=np.ones((1, 4, 2, 2, 2, 2), f), _1=np.ones((6, 4, 1, 1, 1, 1), f)), errors.ShapeMismatchError
        ),
        "ranks differ": (with_(_1=np.ones((6, 4, 3), f)), errors.ShapeMismatchError),
        "channels": (with_(_1=np.ones((6, 3, 3, 3), f)), errors.ShapeMismatchError),
        "group does not divide": (with_(_6=3), errors.ShapeMismatchError),
        "group zero": (with_(_6=0), errors.ArgumentValueError),
        "group negative": (with_(_6=-1), errors.ArgumentValueError),
        "group huge": (with_(_6=huge), errors.ArgumentValueError),
        "out rows": (with_(_8=np.zeros((1, 6, 5, 6), f)), errors.ShapeMismatchError),
        "out channels": (with_(_8=np.zeros((1, 5, 6, 6), f)), errors.ShapeMismatchError),
        "out batch": (with_(_8=np.zeros((2, 6, 6, 6), f)), errors.ShapeMismatchError),
        "out rank": (with_(_8=np.zeros((6, 6, 6), f)), errors.ShapeMismatchError),
        "kernel empty": (with_(_1=np.ones((6, 4, 0, 3), f)), errors.ShapeMismatchError),
        "kernel larger than input": (with_(_1=np.ones((6, 4, 9, 3), f)), errors.ShapeMismatchError),
        "stride zero": (with_(_3=Shape((0, 1))), errors.ArgumentValueError),
        "stride negative": (with_(_3=Shape((-1, 1))), errors.ArgumentValueError),
        "stride huge": (with_(_3=Shape((huge, 1))), errors.ArgumentValueError),
        "too few strides": (with_(_3=Shape((1,))), errors.ArgumentValueError),
        "too few pads": (with_(_4=Shape((0, 0))), errors.ArgumentValueError),
        "pad negative": (with_(_4=Shape((-1, 0, 0, 0))), errors.ArgumentValueError),
        "pad huge": (with_(_4=Shape((huge, 0, 0, 0))), errors.ArgumentValueError),
        "pad large": (with_(_4=Shape((2**29, 0, 0, 0))), errors.ShapeMismatchError),
        "dilation zero": (with_(_5=Shape((0, 1))), errors.ArgumentValueError),
        "dilation huge": (with_(_5=Shape((huge, 1))), errors.ArgumentValueError),
        "dilation large": (with_(_5=Shape((2**29, 1))), errors.ShapeMismatchError),
        "activation": (with_(_7=2), errors.ArgumentValueError),
        "x strided": (with_(_0=np.ones((1, 4, 8, 16), f)[..., ::2]), errors.ArgumentValueError),
        "x reversed": (with_(_0=np.ones((1, 4, 8, 8), f)[..., ::-1]), errors.ArgumentValueError),
        "out strided": (with_(_8=np.zeros((1, 6, 6, 12), f)[..., ::2]), errors.ArgumentValueError),
        "out overlaps x": (
            with_(_0=shared[:256].reshape(1, 4, 8, 8), _8=shared[100:316].reshape(1, 6, 6, 6)),
            errors.ArgumentValueError,
        ),
        "out overlaps w": (
            with_(_1=shared[:216].reshape(6, 4, 3, 3), _8=shared[:216].reshape(1, 6, 6, 6)), errors.ArgumentValueError
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hostile_arguments()))
def test_hostile_arguments_are_refused(name: str) -> None:
    args, error = hostile_arguments()[name]
    with pytest.raises(error, match="conv"):
        call_kernel("conv", *args)


def test_hostile_dilation_needs_no_memory() -> None:
    """Taps far outside a tiny image: legal, and summed without a padded copy."""
    far = 2**20
    x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((4, 1, 2, 2), np.float32)
    y = run_conv(x, w, None, (1, 1), (0, 0, far, far), (far, far))
    assert y.shape == (1, 4, 3, 3)
    assert np.array_equal(y, np.ones((1, 4, 3, 3)))


def test_hostile_transpose_is_refused() -> None:
    f = np.float32
    x, w, out = np.ones((1, 4, 3, 3), f), np.ones((4, 2, 2, 2), f), np.zeros((1, 2, 4, 4), f)
    zeros, pads = Shape((0, 0)), Shape((0, 0, 0, 0))
    good = [x, w, None, ONE, pads, ONE, zeros, 1, out]
    call_kernel("conv_transpose", *good)
    for index, value in (
        (8, np.zeros((1, 2, 4, 5), f)), (7, 3), (7, 0), (6, Shape((2**40, 0))), (6, Shape((-1, 0))), (6, Shape((1, 0))),
        (4, Shape((0, 0, 0, 9))), (4, Shape((2**30, 0, 0, 0))), (3, Shape((2**30, 1))), (1, np.ones((3, 2, 2, 2), f)),
        (1, w[:, :, ::-1]), (0, x.astype(np.float64)), (0, None), (2, np.ones(3, f)), (8, x),
    ):  # fmt: skip
        args = list(good)
        args[index] = value
        with pytest.raises(errors.ExecutionError, match="conv_transpose"):
            call_kernel("conv_transpose", *args)
