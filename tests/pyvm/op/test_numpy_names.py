"""Operators under numpy's names and with numpy's arguments give what numpy gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import op
from pyvm.errors import CompileError
from pyvm.ir import Expr, SymVar, Tuple
from tests.ir_text import build, tensor

N = SymVar("n")

# Called twice: with pyvm.op and expressions, and with numpy and arrays. x (n, 4), y (n, 4) > 0, k (n, 4) int64.
CASES: dict[str, Callable[..., Any]] = {
    "absolute": lambda m, x, y, k: m.absolute(x),
    "negative subtract multiply": lambda m, x, y, k: m.negative(m.subtract(x, m.multiply(x, y))),
    "divide true_divide": lambda m, x, y, k: m.divide(m.true_divide(x, y), 2.0),
    "floor_divide remainder": lambda m, x, y, k: (m.floor_divide(k, 3), m.remainder(k, 3)),
    "power": lambda m, x, y, k: m.power(y, 2.5),
    "isnan isinf isfinite": lambda m, x, y, k: (m.isnan(m.log(x)), m.isinf(m.log(x * 0)), m.isfinite(m.log(x))),
    "arcs": lambda m, x, y, k: (m.arctan(x), m.arctan2(x, y), m.arcsinh(x), m.arccosh(y + 1), m.arcsin(y / 9)),
    "arcs of one": lambda m, x, y, k: (m.arccos(y / 9), m.arctanh(y / 9)),
    "invert": lambda m, x, y, k: m.invert(k),
    "sum mean": lambda m, x, y, k: (m.sum(x), m.sum(k, axis=0), m.mean(x, axis=(0, 1), keepdims=True)),
    "max min prod ptp": lambda m, x, y, k: (m.max(x, 1), m.min(x), m.prod(x, axis=-1), m.ptp(x, axis=1)),
    "any all": lambda m, x, y, k: (m.any(x > 1, axis=1), m.all(x < 9), m.any(x > 99)),
    "var std": lambda m, x, y, k: (m.var(x), m.std(x, axis=1, keepdims=True), m.var(x, axis=1, ddof=1)),
    "count_nonzero": lambda m, x, y, k: (m.count_nonzero(k), m.count_nonzero(x > 0, axis=1)),
    "argmax argmin": lambda m, x, y, k: (m.argmax(x), m.argmin(x, axis=1), m.argmax(x, axis=0, keepdims=True)),
    "logs": lambda m, x, y, k: (m.log1p(y), m.log2(y), m.log10(y), m.exp2(x), m.expm1(x), m.hypot(x, y)),
    "nan_to_num": lambda m, x, y, k: m.nan_to_num(m.log(x), nan=7.0),
    "full": lambda m, x, y, k: (m.full((2, 3), 5, "int64"), m.full(3, 0.5, "float32"), m.zeros((0, 2), "int64")),
    "ones": lambda m, x, y, k: (m.ones((2,), dtype="bool"), m.ones_like(x), m.zeros_like(k), m.full_like(x, 3)),
    "linspace": lambda m, x, y, k: m.linspace(0, 1, 5, dtype="float32"),
    "arange": lambda m, x, y, k: (m.arange(3), m.arange(2, 9, 3), m.arange(5, 0, -2)),
    "eye triu tril": lambda m, x, y, k: (m.triu(x), m.tril(x, 1), m.triu(x, -1)),
    "concatenate": lambda m, x, y, k: (m.concatenate([x, y]), m.concatenate([x, y], axis=1), m.concatenate([x], None)),
    "stack": lambda m, x, y, k: (m.stack([x, y]), m.stack([x, y], axis=-1), m.vstack([x, y]), m.hstack([x, y])),
    "ravel expand_dims": lambda m, x, y, k: (m.ravel(x), m.expand_dims(x, 0), m.expand_dims(x, (0, -1))),
    "squeeze": lambda m, x, y, k: m.squeeze(m.expand_dims(x, 1), 1),
    "axes": lambda m, x, y, k: (m.swapaxes(x, 0, 1), m.moveaxis(x, 0, -1), m.transpose(x), m.transpose(x, (1, 0))),
    "flip roll": lambda m, x, y, k: (m.flip(x), m.flip(x, axis=0), m.roll(x, 2, axis=1), m.roll(x, -1, axis=0)),
    "roll all": lambda m, x, y, k: m.roll(x, 3),
    "repeat tile": lambda m, x, y, k: (m.repeat(x, 2), m.repeat(x, 3, axis=0), m.tile(x, (2, 1))),
    "diff": lambda m, x, y, k: (m.diff(x), m.diff(x, axis=0)),
    "take": lambda m, x, y, k: (m.take(x, [1, 2, 3]), m.take(x, np.array([[0, 3]]), axis=1)),
    "take_along_axis": lambda m, x, y, k: m.take_along_axis(x, m.argsort(y, axis=1), 1),
    "sort": lambda m, x, y, k: (m.sort(x), m.sort(x, axis=0), m.sort(k, axis=None), m.argsort(x, axis=1)),
    "products": lambda m, x, y, k: (m.dot(x, np.ones((4, 2), np.float32)), m.outer(x[0], y[0]), m.inner(x[0], y[0])),
    "matmul einsum": lambda m, x, y, k: (m.matmul(x, m.transpose(y)), m.einsum("ij,kj->ik", x, y)),
    "pad": lambda m, x, y, k: m.pad(x, ((1, 0), (2, 3))),
    "where clip": lambda m, x, y, k: (m.where(x > 0, x, y), m.clip(x, -0.5, 0.5), m.maximum(x, y), m.minimum(x, 0.0)),
    "cumsum": lambda m, x, y, k: (m.cumsum(x), m.cumsum(k, axis=0)),
    "logical": lambda m, x, y, k: (m.logical_and(x > 0, y > 1), m.logical_or(x > 0, y > 1), m.logical_not(x > 0)),
    "array_equal average": lambda m, x, y, k: (m.array_equal(x, x), m.average(x), m.average(x, axis=1, weights=y)),
    "broadcast_to meshgrid": lambda m, x, y, k: (m.broadcast_to(x[0], (3, 4)), *m.meshgrid(x[0], y[0, :2])),
    "split": lambda m, x, y, k: tuple(m.split(x, 2, axis=1)),
    "isclose to zero": lambda m, x, y, k: m.sign(m.round(m.floor(m.ceil(x)))),
}


class _Numpy:
    """numpy; float32 stays float32, and unary operators of expressions are functions there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.mark.parametrize("name", CASES)
def test_like_numpy(name: str) -> None:
    case = CASES[name]

    @pyvm.function(name="main")
    def main(x: pyvm.Tensor["n", 4, "float32"], y: pyvm.Tensor["n", 4, "float32"], k: pyvm.Tensor["n", 4, "int64"]):  # noqa: F821, UP037
        return case(op, x, y, k)

    rng = np.random.default_rng(1)
    for n in (1, 5):
        x = rng.standard_normal((n, 4)).astype(np.float32)
        y = rng.uniform(0.1, 5, (n, 4)).astype(np.float32)
        k = rng.integers(-3, 6, (n, 4))
        with np.errstate(all="ignore"):
            expected = case(_Numpy(), x, y, k)
        assert_like(main(x, y, k), expected)


def assert_like(got: Any, expected: Any) -> None:
    """Equal shapes, kinds of element types and values."""
    got = got if isinstance(got, tuple) else (got,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape and ours.dtype.kind == theirs.dtype.kind, (ours, theirs)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


COMMON = """
absolute add all any arange arccos arcsin arctan argmax argmin argsort array_equal broadcast_to ceil clip
concatenate copy cos cosh count_nonzero cumsum diff divide dot einsum equal exp expand_dims expm1 eye flip floor
floor_divide full full_like greater greater_equal hstack isfinite isinf isnan less less_equal linspace log log10
log1p log2 logical_and logical_not logical_or logical_xor matmul max maximum mean meshgrid min minimum mod moveaxis
multiply negative nonzero not_equal ones ones_like outer pad power prod ravel reciprocal repeat reshape roll round
sign sin sinh size sort split sqrt square squeeze stack std subtract sum swapaxes take take_along_axis tan tanh tile
transpose tril triu var vstack where zeros zeros_like softmax layer_norm topk
"""


def test_common_names_exist() -> None:
    assert not [name for name in COMMON.split() if name not in op.__all__]


def test_integers_are_not_divided() -> None:
    with pytest.raises(CompileError, match="true_divide: of int64; cast to a float, or use floor_divide"):
        build(lambda bb, k: bb.emit(op.divide(k, 2)), k=tensor(N, dtype="int64"))


def test_unstack() -> None:
    def body(bb: Any, x: Expr) -> Expr:
        return bb.emit(Tuple(op.unstack(x, 1)))

    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    got = pyvm.VirtualMachine(pyvm.compile(build(body, False, x=tensor(N, 3))))["main"](x)
    np.testing.assert_array_equal(np.stack([np.asarray(part) for part in got], 1), x)
