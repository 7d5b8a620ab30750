"""Chains of elementwise operators on a million elements at one thread, next to numpy and numexpr."""
# ruff: noqa: F821, UP037
# Without `from __future__ import annotations`: pyvm.function reads them as values.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import pyvm
from pyvm import op
from tests.bench.report import Row, Section, Target, speedup
from tests.bench.timing import alternate, pinned

ROWS = COLUMNS = 1024
N = ROWS * COLUMNS
F32 = np.float32


@pyvm.function
def arithmetic(x: pyvm.Tensor[1048576, "float32"], y: pyvm.Tensor[1048576, "float32"]):
    return op.maximum(op.abs((x * 1.5 + y) * x - 0.5) * 0.75 + y, 0.125)


def _arithmetic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs((x * 1.5 + y) * x - 0.5) * 0.75 + y, 0.125)


def _arithmetic_out(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, F32(1.5), out=out)
    np.add(out, y, out=out)
    np.multiply(out, x, out=out)
    np.subtract(out, F32(0.5), out=out)
    np.abs(out, out=out)
    np.multiply(out, F32(0.75), out=out)
    np.add(out, y, out=out)
    np.maximum(out, F32(0.125), out=out)


@pyvm.function
def transcendental(x: pyvm.Tensor[1048576, "float32"]):
    return op.sigmoid(x) * op.tanh(x * 0.5) + op.exp(-op.sqrt(op.abs(x)))


def _transcendental(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x)) * np.tanh(x * 0.5) + np.exp(-np.sqrt(np.abs(x)))


def _transcendental_out(x: np.ndarray, out: np.ndarray, other: np.ndarray) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, F32(1), out=out)
    np.divide(F32(1), out, out=out)
    np.multiply(x, F32(0.5), out=other)
    np.tanh(other, out=other)
    np.multiply(out, other, out=out)
    np.abs(x, out=other)
    np.sqrt(other, out=other)
    np.negative(other, out=other)
    np.exp(other, out=other)
    np.add(out, other, out=out)


@pyvm.function
def broadcast(
    x: pyvm.Tensor[1024, 1024, "float32"],
    mean: pyvm.Tensor[1024, "float32"],
    scale: pyvm.Tensor[1, "float32"],
    limit: pyvm.Tensor[1024, 1024, "int32"],
):
    y = (x - mean) * scale
    return op.where(y > op.cast(limit, "float32"), y * 2.0 + mean, op.minimum(y * 0.5, x))


def _broadcast(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, limit: np.ndarray) -> np.ndarray:
    y = (x - mean) * scale
    return np.where(y > limit.astype(np.float32), y * 2 + mean, np.minimum(y * 0.5, x))


def _broadcast_out(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, limit: np.ndarray, out: np.ndarray, other: np.ndarray,
    third: np.ndarray, above: np.ndarray,
) -> None:  # fmt: skip
    np.subtract(x, mean, out=out)
    np.multiply(out, scale, out=out)
    np.copyto(other, limit)
    np.greater(out, other, out=above)
    np.multiply(out, F32(2), out=other)
    np.add(other, mean, out=other)
    np.multiply(out, F32(0.5), out=third)
    np.minimum(third, x, out=out)
    np.copyto(out, other, where=above)


@dataclass
class Chain:
    """One chain, written for each side. `steps`: operators; `buffers`: what the numpy version with out= works in."""

    name: str
    ours: Any
    numpy: Callable[..., np.ndarray]
    numpy_out: Callable[..., None]
    expression: str
    arguments: dict[str, np.ndarray]
    buffers: list[np.ndarray]


# float32 constants are arguments of numexpr: literals are float64 to it, and so would be all that they touch.
CONSTANTS = {f"c{str(value).replace('.', '_')}": F32(value) for value in (0.125, 0.5, 0.75, 1.0, 1.5, 2.0)}


def chains() -> list[Chain]:
    """The chains and their arguments."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(N, dtype=np.float32) for _ in range(2))
    rows = x.reshape(ROWS, COLUMNS)
    empty = partial(np.empty, N, np.float32)
    square = partial(np.empty, (ROWS, COLUMNS), np.float32)
    return [
        Chain(
            "8 arithmetic operators",
            arithmetic,
            _arithmetic,
            _arithmetic_out,
            "maximum(abs((x * c1_5 + y) * x - c0_5) * c0_75 + y, c0_125)",
            {"x": x, "y": y},
            [empty()],
        ),
        Chain(
            "9 operators: sigmoid, tanh, exp, sqrt ...",
            transcendental,
            _transcendental,
            _transcendental_out,
            "c1_0 / (c1_0 + exp(-x)) * tanh(x * c0_5) + exp(-sqrt(abs(x)))",
            {"x": x},
            [empty(), empty()],
        ),
        Chain(
            "9 operators: a row, a scalar, int32, where",
            broadcast,
            _broadcast,
            _broadcast_out,
            "where((x - mean) * scale > limit, (x - mean) * scale * c2_0 + mean, "
            "minimum((x - mean) * scale * c0_5, x))",
            {
                "x": rows,
                "mean": rng.standard_normal(COLUMNS, dtype=np.float32),
                "scale": np.array([1.5], np.float32),
                "limit": rng.integers(-2, 3, (ROWS, COLUMNS), dtype=np.int32),
            },
            [square(), square(), square(), np.empty((ROWS, COLUMNS), np.bool_)],
        ),
    ]


def run(quick: bool) -> Section:
    """Two rows per chain: next to numpy as people write it, and next to numexpr, if that is installed."""
    section = Section("fusion", f"elementwise chains on {N} elements at 1 thread, us (medians; minima in the notes)")
    try:
        import numexpr
    except ImportError as error:
        numexpr = None
        section.remarks.append(f"without numexpr: {error}")
    before = pyvm.get_num_threads()
    pyvm.set_num_threads(1)
    threads = numexpr.set_num_threads(1) if numexpr else 0
    try:
        with pinned():
            for chain in chains():
                section.rows += _rows(chain, numexpr, 8 if quick else 60)
    finally:
        pyvm.set_num_threads(before)
        if numexpr:
            numexpr.set_num_threads(threads)
    section.remarks.append("numpy: as people write it, new arrays in between; out=: the same on kept arrays")
    section.remarks.append("numexpr: compiled before (re_evaluate), into a kept array")
    return section


def _rows(chain: Chain, numexpr: Any, rounds: int) -> list[Row]:
    function = pyvm.VirtualMachine(chain.ours.compile())[chain.numpy.__name__.lstrip("_")]
    arguments = list(chain.arguments.values())
    expected = chain.numpy(*arguments)
    chain.numpy_out(*arguments, *chain.buffers)
    for result in (function(*arguments).numpy(), chain.buffers[0]):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: chain.numpy(*arguments),
        "out": lambda: chain.numpy_out(*arguments, *chain.buffers),
        "pyvm": lambda: function(*arguments),
    }
    if numexpr is not None:
        names = {**CONSTANTS, **chain.arguments}
        out = np.empty(expected.shape, np.float32)
        numexpr.evaluate(chain.expression, local_dict=names, out=out, casting="same_kind")
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        calls["numexpr"] = lambda: numexpr.re_evaluate(local_dict=names)
    times = {side: values / 1e3 for side, values in alternate(calls, rounds, 3).items()}
    middle = {side: float(np.median(values)) for side, values in times.items()}
    best = {side: float(values.min()) for side, values in times.items()}

    def note(side: str) -> str:
        return f"minima {best[side]:.0f} / {best['pyvm']:.0f} = {best[side] / best['pyvm']:.2f}"

    details: dict[str, object] = {"median_us": middle, "minimum_us": best}
    with_out = f"; numpy with out= {middle['out']:.0f}, {middle['out'] / middle['pyvm']:.2f}"
    rows = [
        speedup(
            chain.name,
            "us",
            middle["pyvm"],
            "numpy",
            middle["numpy"],
            Target(3),
            note=note("numpy") + with_out,
            details=details,
        )
    ]
    if numexpr is not None:
        rows.append(
            speedup(
                f"{chain.name}, numexpr",
                "us",
                middle["pyvm"],
                "numexpr",
                middle["numexpr"],
                Target(1),
                note=note("numexpr"),
            )
        )
    return rows
