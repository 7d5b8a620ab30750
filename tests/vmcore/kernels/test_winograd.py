"""kernel.conv_winograd against the sum over taps in float64, on every instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pyvm.op.winograd import restore_weights, transform_weights
from vmcore import errors, threads
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

ACTIVATIONS = {
    0: lambda v: v,
    1: lambda v: np.maximum(v, 0),
    2: lambda v: np.clip(v, -0.5, 0.75),
    4: lambda v: v / (1 + np.exp(-v)),
}


def reference(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, pads: tuple[int, ...], group: int,
    residual: np.ndarray | None = None, activation: int = 0
) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    per_group, n_out = w.shape[1], w.shape[0] // group
    result = np.zeros((x.shape[0], w.shape[0], *windows.shape[2:4]))
    for g in range(group):
        part, weights = windows[:, g * per_group : (g + 1) * per_group], w[g * n_out : (g + 1) * n_out]
        sums = np.tensordot(part, weights.astype(np.float64), ((1, 4, 5), (1, 2, 3)))
        result[:, g * n_out : (g + 1) * n_out] = np.moveaxis(sums, -1, 1)
    if bias is not None:
        result += bias.reshape(-1, 1, 1)
    if residual is not None:
        result += residual
    return np.asarray(ACTIVATIONS[activation](result))


def run(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, pads: tuple[int, ...], group: int,
    residual: np.ndarray | None = None, activation: int = 0
) -> np.ndarray:
    """The kernel's result between guards that it must not touch."""
    points, n_out = transform_weights(w, group), w.shape[0]
    shape = x.shape[0], n_out, x.shape[2] + pads[0] + pads[2] - 2, x.shape[3] + pads[1] + pads[3] - 2
    size = int(np.prod(shape))
    memory = np.full(size + 128, 77.0, np.float32)
    out = memory[64 : 64 + size].reshape(shape)
    out[:] = np.nan
    args = [x, points, bias, Shape(pads), group, activation, -0.5, 0.75, residual, out]
    call_kernel("conv_winograd", *args)
    assert np.all(memory[:64] == 77) and np.all(memory[64 + size :] == 77)
    return out


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def thread_count() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


@pytest.mark.parametrize("seed", range(12))
def test_random_layers(seed: int, instruction_set: str) -> None:
    """Odd sizes, paddings of each side, groups, empty and larger batches, all that may follow; the same bits for any
    number of threads."""
    rng = np.random.default_rng(seed)
    for case in range(8):
        group = int(rng.choice([1, 1, 2, 3]))
        n_in, n_out = group * int(rng.integers(1, 24)), group * int(rng.integers(1, 36))
        pads = tuple(map(int, rng.integers(0, 3, 4)))
        height, width = (int(max(rng.integers(1, 30), 3 - pads[i] - pads[i + 2])) for i in range(2))
        if case == 7:
            height, width = max(3, int(rng.integers(1, 4))), int(rng.integers(300, 700))
        x = normal(rng, int(rng.choice([0, 1, 2, 7])), n_in, height, width)
        w = normal(rng, n_out, n_in // group, 3, 3) / np.float32(np.sqrt(9 * n_in / group))
        bias = normal(rng, n_out) if rng.random() < 0.6 else None
        activation = int(rng.choice(list(ACTIVATIONS)))
        expected = reference(x, w, bias, pads, group)
        residual = normal(rng, *expected.shape) if rng.random() < 0.5 else None
        expected = reference(x, w, bias, pads, group, residual, activation)
        results = []
        for n_threads in (1, 2, 3, 8):
            threads.set_num_threads(n_threads)
            results.append(run(x, w, bias, pads, group, residual, activation))
        np.testing.assert_allclose(results[0], expected, 1e-5, 2e-5)
        assert all(np.array_equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize(
    "channels, size", [((64, 64), 56), ((128, 96), 28), ((96, 128), 14), ((512, 40), 7), ((600, 20), 9)]
)
def test_layers_of_real_networks(channels: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(size)
    x = normal(rng, 1, channels[0], size, size)
    w = normal(rng, channels[1], channels[0], 3, 3) / np.float32(np.sqrt(9 * channels[0]))
    results = []
    for n_threads in (1, 2, 5):
        threads.set_num_threads(n_threads)
        results.append(run(x, w, None, (1, 1, 1, 1), 1))
    np.testing.assert_allclose(results[0], reference(x, w, None, (1, 1, 1, 1), 1), 1e-5, 1e-5)
    assert all(np.array_equal(results[0], result) for result in results[1:])


def test_rounds_no_worse_than_the_sum_over_taps() -> None:
    rng = np.random.default_rng(5)
    x, w = normal(rng, 1, 64, 40, 40), normal(rng, 64, 64, 3, 3) / np.float32(24)
    exact = reference(x, w, None, (1, 1, 1, 1), 1)
    direct, one = np.empty(exact.shape, np.float32), Shape((1, 1))
    call_kernel("conv", x, w, None, one, Shape((1, 1, 1, 1)), one, 1, 0, direct)
    error = [np.abs(y - exact).mean() for y in (run(x, w, None, (1, 1, 1, 1), 1), direct)]
    assert error[0] < 1.5 * error[1]


def test_a_nan_stays_near() -> None:
    """It reaches the results of its own tiles, which are those under the window and their neighbours."""
    x = np.ones((1, 20, 16, 16), np.float32)
    x[0, 3, 6, 7] = np.nan
    y = run(x, np.ones((20, 20, 3, 3), np.float32), None, (1, 1, 1, 1), 1)
    assert np.isnan(y[0, :, 5:8, 6:9]).all()
    y[0, :, 4:8, 6:10] = 0
    assert np.isfinite(y).all()


@pytest.mark.parametrize("group, n_out", [(1, 5), (1, 64), (2, 70), (3, 99)])
def test_weights_and_back(group: int, n_out: int) -> None:
    """Panels of 32 output channels of one group; what fills the last one is zero."""
    w = normal(np.random.default_rng(1), n_out, 7, 3, 3)
    packed = transform_weights(w, group)
    panels = -(-n_out // group // 32)
    assert packed.shape == (16, group * panels, 7, 32) and packed.dtype == w.dtype
    assert np.count_nonzero(packed) == 16 * 7 * n_out
    np.testing.assert_array_equal(packed[0, 0, :, 0], w[0, :, 0, 0])
    np.testing.assert_allclose(restore_weights(packed, n_out, group), w, 1e-6, 1e-6)


def test_no_channels() -> None:
    x, bias = np.zeros((2, 0, 5, 5), np.float32), np.arange(3, dtype=np.float32)
    y = run(x, np.zeros((3, 0, 3, 3), np.float32), bias, (0, 0, 0, 0), 1)
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))
    assert run(x, np.zeros((0, 0, 3, 3), np.float32), None, (0, 0, 0, 0), 1).shape == (2, 0, 3, 3)


def hostile_arguments() -> dict[str, tuple[int, Any, type[Exception]]]:
    """Position, value and error of an argument that is refused; the others fit (1, 8, 6, 6) -> (1, 40, 6, 6)."""
    f = np.float32
    shape = errors.ShapeMismatchError
    return {
        "weights with fewer points": (1, np.ones((15, 2, 8, 32), f), shape),
        "weights with more points": (1, np.ones((36, 2, 8, 32), f), shape),
        "weights of other channels": (1, np.ones((16, 2, 7, 32), f), shape),
        "weights of fewer outputs": (1, np.ones((16, 1, 8, 32), f), shape),
        "weights of more outputs": (1, np.ones((16, 3, 8, 32), f), shape),
        "narrow panels": (1, np.ones((16, 2, 8, 31), f), shape),
        "weights not transformed": (1, np.ones((40, 8, 3, 3), f), shape),
        "weights of doubles": (1, np.ones((16, 2, 8, 32)), errors.DTypeMismatchError),
        "weights cut short": (1, np.ones((16, 2, 8), f), shape),
        "weights empty": (1, np.ones((16, 2, 0, 32), f), shape),
        "input rank": (0, np.ones((8, 6, 6), f), shape),
        "input channels": (0, np.ones((1, 9, 6, 6), f), shape),
        "input too small": (0, np.ones((1, 8, 0, 6), f), shape),
        "bias": (2, np.ones(41, f), shape),
        "pads": (3, Shape((1, 1, 1, 3)), errors.ArgumentValueError),
        "pads negative": (3, Shape((1, 1, 1, -1)), errors.ArgumentValueError),
        "pads of two": (3, Shape((1, 1)), errors.ArgumentValueError),
        "group": (4, 2, shape),
        "group that does not divide": (4, 3, shape),
        "group of none": (4, 0, errors.ArgumentValueError),
        "activation": (5, 99, errors.ArgumentValueError),
        "residual": (8, np.ones((1, 40, 6, 5), f), shape),
        "output": (9, np.ones((1, 40, 6, 5), f), shape),
        "output rank": (9, np.ones((40, 6, 6), f), shape),
        "output channels": (9, np.ones((1, 65, 6, 6), f), shape),
        "output of doubles": (9, np.ones((1, 40, 6, 6)), errors.DTypeMismatchError),
    }


@pytest.mark.parametrize("name", list(hostile_arguments()))
def test_hostile_arguments_are_refused(name: str) -> None:
    f = np.float32
    args: list[Any] = [np.ones((1, 8, 6, 6), f), np.ones((16, 2, 8, 32), f), None, Shape((1, 1, 1, 1)), 1, 0, 0.0, 0.0]
    args += [None, np.zeros((1, 40, 6, 6), f)]
    call_kernel("conv_winograd", *args)
    index, value, error = hostile_arguments()[name]
    args[index] = value
    with pytest.raises(error, match="conv_winograd"):
        call_kernel("conv_winograd", *args)


def test_outputs_that_overlap_are_refused() -> None:
    memory, points = np.zeros(1000, np.float32), np.ones((16, 1, 8, 32), np.float32)
    x, out = memory[:288].reshape(1, 8, 6, 6), memory[200:488].reshape(1, 8, 6, 6)
    other = np.zeros_like(x)
    for args in ((x, points, None, out), (other, points, out, out), (other, points, out.reshape(-1)[:8], out)):
        bias, residual = (args[2], None) if args[2] is not None and args[2].ndim == 1 else (None, args[2])
        with pytest.raises(errors.ArgumentValueError, match="overlaps"):
            call_kernel(
                "conv_winograd", args[0], args[1], bias, Shape((1, 1, 1, 1)), 1, 0, 0.0, 0.0, residual, args[3]
            )
