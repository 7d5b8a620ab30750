"""Pooling kernels against a float64 definition, and against ONNX Runtime where it says what rounding up means."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vmcore import errors, threads
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


def out_sizes(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int],
    dilations: Sequence[int], ceil: bool = False
) -> list[int]:
    sizes = []
    for i, (n, k, s, d) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        room = n + pads[i] + pads[i + len(spatial)] - (k - 1) * d - 1
        size = room // s + 1
        if ceil and room % s and size * s < n + pads[i]:  # the last window must start inside the input or the left pad
            size += 1
        sizes.append(size)
    return sizes


def reference_pool(
    x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    sizes: Sequence[int], reduce: Callable[[np.ndarray, int], object]
) -> np.ndarray:
    """reduce(elements of the window inside the input, taps inside the declared padding) for every position."""
    rank = x.ndim - 2
    y = np.empty((*x.shape[:2], *sizes))
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for position in itertools.product(*map(range, sizes)):
            axes, padded = [], 1
            for a in range(rank):
                taps = [position[a] * strides[a] - pads[a] + t * dilations[a] for t in range(kernel[a])]
                axes.append([t for t in taps if 0 <= t < x.shape[a + 2]])
                padded *= sum(t < x.shape[a + 2] + pads[a + rank] for t in taps)
            y[(n, c, *position)] = reduce(x[n, c][np.ix_(*axes)].astype(np.float64).ravel(), padded)
    return y


# (input shape, kernel, strides, pads, dilations)
CASES = [
    ((1, 3, 12, 13), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((2, 2, 13, 47), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 2, 9, 100), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 2, 9, 8), (3, 2), (1, 3), (1, 0, 2, 1), (2, 3)),
    ((1, 4, 7, 7), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 2, 20, 20), (5, 5), (3, 2), (2, 1, 2, 2), (2, 1)),
    ((2, 3, 41), (4,), (3,), (1, 2), (1,)),
    ((1, 2, 5, 6, 7), (2, 3, 2), (2, 1, 2), (1, 1, 0, 0, 1, 1), (1, 1, 2)),
    ((1, 2, 60, 1), (3, 1), (2, 1), (1, 0, 1, 0), (1, 1)),
    ((1, 2, 60, 1, 1), (3, 1, 1), (2, 1, 1), (1, 0, 0, 1, 0, 0), (1, 1, 1)),
    ((0, 2, 5, 5), (2, 2), (1, 1), (0, 0, 0, 0), (1, 1)),
]


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_pools_match_definition(case: tuple, dtype: type, ceil: bool, rng: np.random.Generator) -> None:
    shape, kernel, strides, pads, dilations = case
    x = rng.standard_normal(shape).astype(dtype)
    sizes = out_sizes(shape[2:], kernel, strides, pads, dilations, ceil)
    window = [Shape(kernel), Shape(strides), Shape(pads), Shape(dilations)]
    rtol = 1e-5 if dtype == np.float32 else 1e-12

    def check(name: str, extra: list, reduce: Callable[[np.ndarray, int], object]) -> None:
        out = np.full((*shape[:2], *sizes), 7, dtype)
        call_kernel(name, x, *window, *extra, out)
        expected = reference_pool(x, kernel, strides, pads, dilations, sizes, reduce)
        np.testing.assert_allclose(out, expected, rtol, rtol, err_msg=name)

    check("max_pool", [], lambda v, padded: v.max(initial=-np.inf))
    check("avg_pool", [0], lambda v, padded: v.mean() if v.size else np.nan)
    check("avg_pool", [1], lambda v, padded: v.sum() / padded)
    for p in (1, 2, 3):
        check("lp_pool", [p], lambda v, padded, p=p: (np.abs(v) ** p).sum() ** (1 / p))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_max_pool_indices(case: tuple, order: int, dtype: type, rng: np.random.Generator) -> None:
    """Each index points at an element equal to the maximum, inside its window."""
    shape, kernel, strides, pads, dilations = case
    x = (rng.standard_normal(shape) * 20 + (50 if dtype == np.uint8 else 0)).astype(dtype)
    sizes = out_sizes(shape[2:], kernel, strides, pads, dilations)
    window = [Shape(kernel), Shape(strides), Shape(pads), Shape(dilations)]
    out, index = np.zeros((*shape[:2], *sizes), dtype), np.zeros((*shape[:2], *sizes), np.int64)
    call_kernel("max_pool_with_indices", x, *window, order, out, index)
    plain = np.zeros_like(out)
    call_kernel("max_pool", x, *window, plain)
    expected = reference_pool(x, kernel, strides, pads, dilations, sizes, lambda v, padded: v.max(initial=-np.inf))
    assert np.array_equal(out, expected)
    assert np.array_equal(plain, expected)
    channels = x.reshape(-1, *shape[2:])
    flat = channels.ravel() if order == 0 else np.concatenate([[0], *(c.ravel(order="F") for c in channels)])[1:]
    assert np.array_equal(flat[index.ravel()].reshape(out.shape), out)


def test_max_pool_keeps_nan_and_finds_infinities() -> None:
    x = np.full((1, 1, 6, 40), -np.inf, np.float32)
    x[0, 0, 2, 17] = np.nan
    out = np.zeros((1, 1, 4, 38), np.float32)
    call_kernel("max_pool", x, Shape((3, 3)), Shape((1, 1)), Shape((0, 0, 0, 0)), Shape((1, 1)), out)
    touched = np.zeros((4, 38), bool)
    touched[0:3, 15:18] = True
    assert np.array_equal(np.isnan(out[0, 0]), touched)
    assert np.all(out[0, 0][~touched] == -np.inf)


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 5, 100), (1, 2, 3, 4, 5), (3, 4), (1, 40, 60, 70)])
def test_global_pools(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal(shape).astype(dtype)
        axes = tuple(range(2, len(shape)))
        out = np.zeros((*shape[:2], *[1] * (len(shape) - 2)), dtype)
        call_kernel("global_avg_pool", x, out)
        np.testing.assert_allclose(out, x.astype(np.float64).mean(axes, keepdims=True), 1e-5, 1e-6)
        call_kernel("global_max_pool", x, out)
        assert np.array_equal(out, x.max(axes, keepdims=True))
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[0, 0, 1, 1] = np.nan
    out = np.zeros((1, 1, 1, 1), np.float32)
    call_kernel("global_max_pool", x, out)
    assert np.isnan(out[0, 0, 0, 0])


def test_threads_give_the_same_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 64, 60, 60), np.float32)
    window = [Shape((3, 3)), Shape((2, 2)), Shape((1, 1, 1, 1)), Shape((1, 1))]
    before = threads.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            threads.set_num_threads(n)
            out = np.zeros((1, 64, 30, 30), np.float32)
            call_kernel("max_pool", x, *window, out)
            mean = np.zeros((1, 64, 30, 30), np.float32)
            call_kernel("avg_pool", x, *window, 1, mean)
            results.append((out, mean))
    finally:
        threads.set_num_threads(before)
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def largest(window: np.ndarray, padded: int) -> float:
    return float(window.max()) if window.size else -np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_small_windows(dtype: type, instruction_set: str, rng: np.random.Generator) -> None:
    """All ways through: pairs of rows, whole rows, strides that are scalar; NaN, infinities and both zeros in x.

    What lies beside the output stays as it is.
    """
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, -1e-40], dtype)
    for turn in range(60):
        side = int(rng.choice([2, 4, 8, 16, 32])) if turn % 2 else int(rng.integers(1, 40))
        spatial = (side if turn % 3 == 0 else int(rng.integers(2, 9)), side)
        kernel = [int(v) for v in rng.integers(1, 4, 2)] if turn % 2 == 0 else [2, 2]
        strides = [int(v) for v in rng.integers(1, 4, 2)] if turn % 4 == 0 else [2, 2]
        pads = [int(rng.integers(0, k)) for k in kernel * 2] if turn % 2 == 0 else [0] * 4
        sizes = out_sizes(spatial, kernel, strides, pads, [1, 1])
        if min(sizes) < 1:
            continue
        shape = (int(rng.integers(0, 3)), int(rng.integers(1, 4)), *spatial)
        x = rng.standard_normal(shape).astype(dtype)
        x[rng.random(shape) < 0.05] = rng.choice(special)
        count = int(np.prod((*shape[:2], *sizes)))
        window = [Shape(kernel), Shape(strides), Shape(pads), Shape([1, 1])]
        for name, extra, reduce in (
            ("max_pool", [], largest),
            ("avg_pool", [0], lambda v, padded: v.mean() if v.size else np.nan),
            ("avg_pool", [1], lambda v, padded: v.sum() / padded if padded else np.nan),
        ):
            memory = np.full(count + 64, 7, dtype)
            out = memory[:count].reshape(*shape[:2], *sizes)
            call_kernel(name, x, *window, *extra, out)
            with np.errstate(all="ignore"):
                expected = reference_pool(x, kernel, strides, pads, [1, 1], sizes, reduce)
            np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
            assert (memory[count:] == 7).all()


@pytest.mark.parametrize("shape", [(3, 7, 8, 8), (1, 130, 4, 4), (5, 3, 31, 17)])
def test_pieces_of_channels_give_the_same_bits(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """A channel's results do not depend on the channels around it, so neither on who computes it."""
    x = rng.standard_normal(shape, np.float32)
    x[rng.random(shape) < 0.02] = np.nan
    kernel, strides = (3, 2) if shape[2] % 2 else (2, 2), (2, 2)
    sizes = out_sizes(shape[2:], kernel, strides, (0,) * 4, (1, 1))
    window = [Shape(kernel), Shape(strides), Shape((0,) * 4), Shape((1, 1))]
    for name, extra in (("max_pool", []), ("avg_pool", [0])):
        out = np.zeros((*shape[:2], *sizes), np.float32)
        call_kernel(name, x, *window, *extra, out)
        for n, c in itertools.product(range(shape[0]), range(shape[1])):
            one = np.zeros((1, 1, *sizes), np.float32)
            call_kernel(name, x[n : n + 1, c : c + 1].copy(), *window, *extra, one)
            assert one.tobytes() == out[n, c].tobytes()


def test_onnxruntime_agrees_on_ceil_mode(rng: np.random.Generator) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    x = rng.standard_normal((1, 2, 11, 12), np.float32)
    for op, include in (("MaxPool", 0), ("AveragePool", 0), ("AveragePool", 1)):
        attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1}
        if op == "AveragePool":
            attributes["count_include_pad"] = include
        node = helper.make_node(op, ["x"], ["y"], **attributes)
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        out = np.zeros_like(expected)
        window = [Shape((3, 3)), Shape((2, 2)), Shape((1, 0, 0, 1)), Shape((1, 1))]
        if op == "MaxPool":
            call_kernel("max_pool", x, *window, out)
        else:
            call_kernel("avg_pool", x, *window, include, out)
        np.testing.assert_allclose(out, expected, 1e-5, 1e-6)


def hostile_windows() -> dict[str, dict[int, object]]:
    """Replacements in (x, kernel, strides, pads, dilations, out) of a valid max_pool call."""
    f = np.float32
    huge = 2**62
    return {
        "x none": {0: None}, "x int": {0: 1}, "x rank 2": {0: np.ones((4, 4), f)},
        "x int32": {0: np.ones((1, 2, 8, 8), np.int32)},
        "x double": {0: np.ones((1, 2, 8, 8))}, "x strided": {0: np.ones((1, 2, 8, 16), f)[..., ::2]},
        "x reversed": {0: np.ones((1, 2, 8, 8), f)[:, :, ::-1]}, "kernel int": {1: 2}, "kernel none": {1: None},
        "kernel short": {1: Shape((2,))}, "kernel zero": {1: Shape((0, 2))}, "kernel huge": {1: Shape((huge, 2))},
        "kernel large": {1: Shape((2**30, 2**30))}, "stride zero": {2: Shape((0, 1))},
        "stride negative": {2: Shape((-2, 1))}, "stride huge": {2: Shape((huge, 1))},
        "pads short": {3: Shape((0, 0))}, "pads negative": {3: Shape((0, -1, 0, 0))},
        "pads huge": {3: Shape((huge, 0, 0, 0))}, "pads large": {3: Shape((2**30, 0, 0, 2**30))},
        "dilation zero": {4: Shape((1, 0))}, "dilation large": {4: Shape((2**30, 1))}, "out none": {5: None},
        "out larger": {5: np.zeros((1, 2, 8, 4), f)}, "out smaller": {5: np.zeros((1, 2, 3, 4), f)},
        "out channels": {5: np.zeros((1, 3, 4, 4), f)}, "out rank": {5: np.zeros((2, 4, 4), f)},
        "out dtype": {5: np.zeros((1, 2, 4, 4))}, "out strided": {5: np.zeros((1, 2, 4, 8), f)[..., ::2]},
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hostile_windows()))
def test_hostile_arguments_are_refused(name: str) -> None:
    f = np.float32
    args: list[object] = [np.ones((1, 2, 8, 8), f), Shape((2, 2)), Shape((2, 2)), Shape((0, 0, 0, 0)), Shape((1, 1)),
                          np.zeros((1, 2, 4, 4), f)]  # fmt: skip
    call_kernel("max_pool", *args)
    for index, value in hostile_windows()[name].items():
        args[index] = value
    with pytest.raises(errors.ExecutionError, match="max_pool"):
        call_kernel("max_pool", *args)
    with pytest.raises(errors.ExecutionError, match="avg_pool"):
        call_kernel("avg_pool", *args[:5], 0, args[5])


def test_other_hostile_arguments() -> None:
    f = np.float32
    window = [Shape((2, 2)), Shape((2, 2)), Shape((0, 0, 0, 0)), Shape((1, 1))]
    x, out, index = np.ones((1, 2, 8, 8), f), np.zeros((1, 2, 4, 4), f), np.zeros((1, 2, 4, 4), np.int64)
    bad = [
        ("max_pool", [x, *window]), ("max_pool", [x, *window, x[:, :, :4, :4]]), ("max_pool", [x, *window, out, out]),
        ("max_pool_with_indices", [x, *window, 2, out, index]), ("max_pool_with_indices", [x, *window, 0, out, out]),
        ("max_pool_with_indices", [x, *window, 0, out, index[:, :1]]),
        ("max_pool_with_indices", [x, *window, 0, out, np.zeros((1, 2, 4, 4), np.int32)]),
        ("avg_pool", [x, *window, 2, out]), ("avg_pool", [x, *window, 0.5, out]), ("lp_pool", [x, *window, 0, out]),
        ("lp_pool", [x, *window, 2**40, out]), ("global_avg_pool", [x]), ("global_avg_pool", [x, out]),
        ("global_avg_pool", [np.ones(3, f), np.zeros(3, f)]),
        ("global_max_pool", [np.ones((1, 2, 0), f), np.zeros((1, 2, 1), f)]),
        ("global_max_pool", [x.astype(np.int32), np.zeros((1, 2, 1, 1), np.int32)]),
    ]  # fmt: skip
    for name, args in bad:
        with pytest.raises(errors.ExecutionError, match=name):
            call_kernel(name, *args)


def test_hostile_kernel_larger_than_everything() -> None:
    """A window of a billion positions over a tiny padded input: legal, and needs neither memory nor time."""
    far = 2**29
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    out = np.zeros((1, 1, 4, 4), np.float32)
    call_kernel(
        "max_pool", x, Shape((far, far)), Shape((1, 1)), Shape((far - 1, far - 1, 1, 1)), Shape((1, 1)), out[:, :, :, :]
    )
    assert out[0, 0, 3, 3] == 8
    assert out[0, 0, 0, 0] == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "lp_pool", "max_pool_with_indices"])
def test_hostile_axes_of_an_empty_input(op: str, axis: int) -> None:
    """An input without elements may have axes of a billion positions: they are neither walked nor copied."""
    far = 2**30
    x = np.empty([1, 1] + [0 if a == axis else far for a in range(3)], np.float32)
    window = [1 if a == axis else far for a in range(3)]
    pads = [int(a == axis) for a in range(3)] + [0] * 3
    out, index = np.full((1, 1, 1, 1, 1), 7, np.float32), np.full((1, 1, 1, 1, 1), 7, np.int64)
    one = Shape((1, 1, 1))
    more = {"avg_pool": [1, out], "lp_pool": [3, out], "max_pool_with_indices": [0, out, index]}
    call_kernel(op, x, Shape(window), one, Shape(pads), one, *more.get(op, [out]))
    assert out.item() == (-np.inf if op.startswith("max") else 0)
    assert op != "max_pool_with_indices" or index.item() == -1
