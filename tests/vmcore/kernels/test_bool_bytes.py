"""A bool tensor may hold bytes other than 0 and 1 (numpy views make them): every kernel takes them as true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.fuzz.kernels import Template, templates
from vmcore.kernels.direct import call_kernel


def _cases() -> list[Template]:
    """The calls with a bool input."""
    return [
        (name, args)
        for name, args in templates()
        if any(isinstance(a, np.ndarray) and a.dtype == bool and a.size for a in args[:-1])
    ]


@pytest.fixture(scope="module")
def cases() -> list[Template]:
    return _cases()


def test_bytes_other_than_one_are_true(cases: list[Template]) -> None:
    rng = np.random.default_rng(5)
    names = set()
    for name, args in cases:
        inputs = [i for i, a in enumerate(args[:-1]) if isinstance(a, np.ndarray) and a.dtype == bool]
        odd, plain = [], []
        for i, arg in enumerate(args):
            if i in inputs:
                raw = rng.choice(np.array([0, 0, 1, 2, 127, 128, 255], np.uint8), arg.shape)
                odd.append(np.array(raw).view(bool))
                plain.append(np.array(raw) != 0)
            else:
                odd.append(np.array(arg) if isinstance(arg, np.ndarray) else arg)
                plain.append(np.array(arg) if isinstance(arg, np.ndarray) else arg)
        first, second = call_kernel(name, *odd), call_kernel(name, *plain)
        assert first == second, name
        for a, b in zip(odd, plain, strict=True):
            if isinstance(a, np.ndarray) and a.dtype == bool:
                assert np.array_equal(a.view(np.uint8) != 0, b.view(np.uint8) != 0), name
            elif isinstance(a, np.ndarray):
                assert a.tobytes() == b.tobytes(), name
        names.add(name)
    assert {"kernel.where", "kernel.cast", "kernel.equal", "kernel.logical_and", "kernel.reduce_all"} <= names, names


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("equal", np.equal),
        ("not_equal", np.not_equal),
        ("less", np.less),
        ("less_equal", np.less_equal),
        ("greater", np.greater),
        ("greater_equal", np.greater_equal),
        ("logical_and", np.logical_and),
        ("logical_or", np.logical_or),
        ("logical_xor", np.logical_xor),
        ("bitwise_and", np.logical_and),
        ("bitwise_or", np.logical_or),
        ("bitwise_xor", np.logical_xor),
    ],
)
def test_binary(name: str, oracle: np.ufunc) -> None:
    a = np.repeat(np.array([0, 1, 2, 255], np.uint8), 4)
    b = np.tile(np.array([0, 1, 2, 255], np.uint8), 4)
    out = np.zeros(16, bool)
    call_kernel(name, a.view(bool), b.view(bool), out)
    assert np.array_equal(out.view(np.uint8), oracle(a != 0, b != 0))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "uint8", "uint32", "float16", "float32", "float64"])
def test_cast(dtype: str) -> None:
    x, out = np.array([0, 1, 2, 128, 255], np.uint8), np.zeros(5, dtype)
    call_kernel("cast", x.view(bool), out)
    assert out.tolist() == [0, 1, 1, 1, 1]


def test_nonzero() -> None:
    x, out = np.array([0, 1, 2, 0, 255], np.uint8), np.zeros((1, 3), np.int64)
    assert call_kernel("nonzero_count", x.view(bool)) == 3
    call_kernel("nonzero", x.view(bool), out)
    assert out.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize(("name", "oracle"), [("argmax", np.argmax), ("argmin", np.argmin)])
@pytest.mark.parametrize("axis", [0, 1])
def test_extremes(name: str, oracle: Callable[..., np.ndarray], axis: int) -> None:
    raw = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (9, 7))
    raw[:, 0], raw[:, 1], raw[0], raw[1] = 0, (1, 2, 255) * 3, 0, (3, 255, 1, 2, 7, 1, 1)
    truth = raw != 0
    first, last = np.zeros(raw.shape[1 - axis], np.int64), np.zeros(raw.shape[1 - axis], np.int64)
    call_kernel(name, raw.view(bool), axis, 0, first)
    call_kernel(name, raw.view(bool), axis, 1, last)
    assert first.tolist() == oracle(truth, axis=axis).tolist()
    assert last.tolist() == (raw.shape[axis] - 1 - oracle(np.flip(truth, axis), axis=axis)).tolist()
