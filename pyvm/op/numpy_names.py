"""Numpy's names for what the operators of the other families do, with numpy's arguments.

Nothing here is an operator of its own: each function returns calls of those. Where a name of numpy is an operator's
name already (`add`, `exp`, `where`, `transpose`, `argmax`, ...), it stands in its family.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyvm.ir.expr import Expr, TupleGetItem
from pyvm.ir.prim import Prim
from pyvm.op import elementwise as _elementwise
from pyvm.op.common import (
    FLOAT,
    TensorLike,
    as_expr,
    as_exprs,
    fail,
    known_ndim,
    normalize_axes,
    normalize_axis,
    product,
    require_dtype,
    require_ndim,
    require_shape,
)
from pyvm.op.create import fill
from pyvm.op.elementwise import cast, div, equal, is_inf, is_nan, log, logical_not, logical_or, mul, sub, where
from pyvm.op.index import gather, topk
from pyvm.op.linalg import matmul
from pyvm.op.movement import broadcast_to, concat, expand, strided_slice, transpose, trilu
from pyvm.op.reduce import (
    reduce_all,
    reduce_any,
    reduce_l2,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_prod,
    reduce_sum,
)
from pyvm.op.shape import reshape, unsqueeze
from vmcore.arguments import choice

Axis = int | Sequence[int] | None


# --- other names of operators


def _renamed(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    def constructor(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **kwargs)

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__wrapped__ = make  # type: ignore[attr-defined]  # where its parameters are
    constructor.__doc__ = f"`numpy.{name}`: another name of `pyvm.op.{make.__name__}`."
    return constructor


absolute = _renamed("absolute", _elementwise.abs)
negative = _renamed("negative", _elementwise.neg)
subtract = _renamed("subtract", _elementwise.sub)
multiply = _renamed("multiply", _elementwise.mul)
floor_divide = _renamed("floor_divide", _elementwise.floor_div)
remainder = _renamed("remainder", _elementwise.mod)
power = _renamed("power", _elementwise.pow)
isnan = _renamed("isnan", _elementwise.is_nan)
isinf = _renamed("isinf", _elementwise.is_inf)
arcsin = _renamed("arcsin", _elementwise.asin)
arccos = _renamed("arccos", _elementwise.acos)
arctan = _renamed("arctan", _elementwise.atan)
arctan2 = _renamed("arctan2", _elementwise.atan2)
arcsinh = _renamed("arcsinh", _elementwise.asinh)
arccosh = _renamed("arccosh", _elementwise.acosh)
arctanh = _renamed("arctanh", _elementwise.atanh)
invert = _renamed("invert", _elementwise.bitwise_not)


def true_divide(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.divide` of floats; integers are refused, since their quotient has another dtype: cast them first."""
    left, right = as_exprs(a, b)
    if require_dtype("true_divide", left) not in FLOAT:
        fail("true_divide", f"of {require_dtype('true_divide', left)}; cast to a float, or use floor_divide")
    return div(left, right)


divide = _renamed("divide", true_divide)


# --- reductions


def _reduction(name: str, make: Callable[..., Expr]) -> Callable[..., Expr]:
    def constructor(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Expr:
        return make(x, axis, keepdims)

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = (
        f"`numpy.{name}` over `axis` (an int, several, or None for all), of the dtype of `x`: see {make.__name__}."
    )
    return constructor


sum = _reduction("sum", reduce_sum)
mean = _reduction("mean", reduce_mean)
max = _reduction("max", reduce_max)
min = _reduction("min", reduce_min)
prod = _reduction("prod", reduce_prod)
all = _reduction("all", reduce_all)
any = _reduction("any", reduce_any)


def var(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Expr:
    """`numpy.var`: mean squared distance from the mean; divided by the number of elements less `ddof`."""
    x = as_expr(x)
    dtype = require_dtype("var", x)
    if dtype not in FLOAT:
        fail("var", f"x has dtype {dtype}, expected a float")
    apart = sub(x, reduce_mean(x, axis, True))
    if not ddof:
        return reduce_mean(mul(apart, apart), axis, keepdims)
    shape = require_shape("var", x)
    axes = _axes("var", axis, len(shape))
    count = product([shape[i] for i in axes]) - ddof
    return div(reduce_sum(mul(apart, apart), axis, keepdims), as_expr(count, dtype))


def std(x: TensorLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Expr:
    """`numpy.std`: square root of `var`."""
    return _elementwise.sqrt(var(x, axis, keepdims, ddof))


def ptp(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Expr:
    """`numpy.ptp`: largest less smallest element."""
    x = as_expr(x)
    return sub(reduce_max(x, axis, keepdims), reduce_min(x, axis, keepdims))


def count_nonzero(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Expr:
    """`numpy.count_nonzero`: an int64 tensor."""
    x = as_expr(x)
    return reduce_sum(cast(cast(x, "bool"), "int64"), axis, keepdims)


def norm(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Expr:
    """`numpy.linalg.norm` with ord=None: square root of the sum of squares."""
    return reduce_l2(x, axis, keepdims)


def _axes(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return normalize_axes(name, (axis,) if isinstance(axis, (int, np.integer, np.bool_)) else axis, ndim)


# --- elementwise


def isfinite(x: TensorLike) -> Expr:
    """`numpy.isfinite`."""
    x = as_expr(x)
    return logical_not(logical_or(is_nan(x), is_inf(x)))


def log1p(x: TensorLike) -> Expr:
    """`numpy.log1p`, computed as log(1 + x)."""
    x = as_expr(x)
    return log(_elementwise.add(x, 1.0))


def expm1(x: TensorLike) -> Expr:
    """`numpy.expm1`, computed as exp(x) - 1."""
    return sub(_elementwise.exp(as_expr(x)), 1.0)


def log2(x: TensorLike) -> Expr:
    """`numpy.log2`."""
    return mul(log(as_expr(x)), 1 / math.log(2))


def log10(x: TensorLike) -> Expr:
    """`numpy.log10`."""
    return mul(log(as_expr(x)), 1 / math.log(10))


def exp2(x: TensorLike) -> Expr:
    """`numpy.exp2`."""
    return _elementwise.exp(mul(as_expr(x), math.log(2)))


def hypot(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.hypot`: sqrt(a*a + b*b)."""
    a, b = as_exprs(a, b)
    return _elementwise.sqrt(_elementwise.add(mul(a, a), mul(b, b)))


def nan_to_num(x: TensorLike, nan: float = 0.0) -> Expr:
    """`numpy.nan_to_num` of NaN only: `x` with `nan` where it is NaN."""
    x = as_expr(x)
    return where(is_nan(x), nan, x)


# --- new tensors


def full(shape: Expr | Sequence[Prim] | Prim, value: TensorLike, dtype: str | None = None) -> Expr:
    """`numpy.full`. Without `dtype`, a float makes float32, an int int64."""
    return fill(shape if isinstance(shape, (Expr, tuple, list)) else (shape,), value, dtype)


def zeros(shape: Expr | Sequence[Prim] | Prim, dtype: str = "float32") -> Expr:
    """`numpy.zeros`, of float32 unless said otherwise."""
    return full(shape, _number(0, dtype), dtype)


def ones(shape: Expr | Sequence[Prim] | Prim, dtype: str = "float32") -> Expr:
    """`numpy.ones`, of float32 unless said otherwise."""
    return full(shape, _number(1, dtype), dtype)


def full_like(x: TensorLike, value: TensorLike, dtype: str | None = None) -> Expr:
    """`numpy.full_like`: the shape of `x`, and its dtype unless said otherwise."""
    x = as_expr(x)
    dtype = dtype or require_dtype("full_like", x)
    return fill(require_shape("full_like", x), value, dtype)


def zeros_like(x: TensorLike, dtype: str | None = None) -> Expr:
    """`numpy.zeros_like`."""
    x = as_expr(x)
    dtype = dtype or require_dtype("zeros_like", x)
    return full_like(x, _number(0, dtype), dtype)


def ones_like(x: TensorLike, dtype: str | None = None) -> Expr:
    """`numpy.ones_like`."""
    x = as_expr(x)
    dtype = dtype or require_dtype("ones_like", x)
    return full_like(x, _number(1, dtype), dtype)


def _number(value: int, dtype: str) -> bool | int | float:
    return bool(value) if dtype == "bool" else float(value) if dtype in FLOAT else value


def linspace(start: float, stop: float, num: int = 50, endpoint: bool = True, dtype: str = "float32") -> Expr:
    """`numpy.linspace` of numbers known at compile time, of float32 unless said otherwise."""
    return as_expr(np.linspace(start, stop, num, endpoint).astype(dtype))


# --- joining and taking apart


def concatenate(xs: Sequence[TensorLike], axis: int | None = 0) -> Expr:
    """`numpy.concatenate`; axis None: of the tensors flattened."""
    if axis is None:
        return concat([ravel(x) for x in xs], 0)
    return concat(xs, axis)


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Expr:
    """`numpy.stack`: along a new axis."""
    args = as_exprs(*xs)
    if not args:
        fail("stack", "there are no tensors")
    axis = normalize_axis("stack", axis, require_ndim("stack", args[0]) + 1)
    return concat([unsqueeze(x, axis) for x in args], axis)


def vstack(xs: Sequence[TensorLike]) -> Expr:
    """`numpy.vstack`: tensors with one axis become rows."""
    return concat([_at_least(x, 2) for x in as_exprs(*xs)], 0)


def hstack(xs: Sequence[TensorLike]) -> Expr:
    """`numpy.hstack`: along axis 1, or 0 of tensors with one axis."""
    args = [_at_least(x, 1) for x in as_exprs(*xs)]
    if not args:
        fail("hstack", "takes at least 1 tensor, got 0")
    return concat(args, 0 if known_ndim(args[0]) == 1 else 1)


def _at_least(x: Expr, ndim: int) -> Expr:
    missing = ndim - require_ndim("stack", x)
    return unsqueeze(x, tuple(range(missing))) if missing > 0 else x


def unstack(x: TensorLike, axis: int = 0) -> list[Expr]:
    """`numpy.unstack`: the pieces along an axis of known size, without it."""
    x = as_expr(x)
    shape = require_shape("unstack", x)
    axis = normalize_axis("unstack", axis, len(shape))
    dim = shape[axis]
    if not isinstance(dim, int):
        fail("unstack", f"axis {axis} of size {dim}: the size must be known")
    return [gather(x, i, axis) for i in range(dim)]


# --- shapes


def ravel(x: TensorLike) -> Expr:
    """`numpy.ravel`: one axis."""
    return reshape(x, (-1,))


def expand_dims(x: TensorLike, axis: int | Sequence[int]) -> Expr:
    """`numpy.expand_dims`."""
    return unsqueeze(x, axis)


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Expr:
    """`numpy.swapaxes`."""
    x = as_expr(x)
    ndim = require_ndim("swapaxes", x)
    first, second = (normalize_axis("swapaxes", axis, ndim) for axis in (axis1, axis2))
    perm = list(range(ndim))
    perm[first], perm[second] = second, first
    return transpose(x, perm)


def moveaxis(x: TensorLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Expr:
    """`numpy.moveaxis`."""
    x = as_expr(x)
    ndim = require_ndim("moveaxis", x)
    sources = [normalize_axis("moveaxis", a, ndim) for a in ((source,) if isinstance(source, int) else source)]
    targets = [
        normalize_axis("moveaxis", a, ndim) for a in ((destination,) if isinstance(destination, int) else destination)
    ]
    if len(sources) != len(targets) or len({*sources}) < len(sources) or len({*targets}) < len(targets):
        fail("moveaxis", f"from {tuple(sources)} to {tuple(targets)}")
    perm = [axis for axis in range(ndim) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        perm.insert(target, axis)
    return transpose(x, perm)


def flip(x: TensorLike, axis: Axis = None) -> Expr:
    """`numpy.flip`: the order of the elements along some axes reversed."""
    x = as_expr(x)
    axes = _axes("flip", axis, require_ndim("flip", x))
    far = 2**31 - 1
    return strided_slice(x, [far] * len(axes), [-far] * len(axes), [-1] * len(axes), axes)


def roll(x: TensorLike, shift: int, axis: int | None = None) -> Expr:
    """`numpy.roll` along one axis, or of all elements in order; `shift` is smaller than the axis."""
    x = as_expr(x)
    shape = require_shape("roll", x)
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), shape)
    axis = normalize_axis("roll", axis, len(shape))
    dim = shape[axis]
    if isinstance(dim, int):
        shift %= builtins.max(dim, 1)
    if shift == 0:
        return x
    cut = dim - shift if shift > 0 else -shift
    tail = strided_slice(x, (cut,), (dim,), axes=(axis,))
    return concat([tail, strided_slice(x, (0,), (cut,), axes=(axis,))], axis)


def repeat(x: TensorLike, repeats: int, axis: int | None = None) -> Expr:
    """`numpy.repeat`: each element, or each slice along `axis`, `repeats` times in a row."""
    x = as_expr(x)
    if axis is None:
        x, axis = ravel(x), 0
    shape = require_shape("repeat", x)
    axis = normalize_axis("repeat", axis, len(shape))
    wide = expand(unsqueeze(x, axis + 1), (*shape[: axis + 1], repeats, *shape[axis + 1 :]))
    return reshape(wide, (*shape[:axis], shape[axis] * repeats, *shape[axis + 1 :]), allow_zero=True)


def triu(x: TensorLike, k: int = 0) -> Expr:
    """`numpy.triu`."""
    return trilu(x, k, upper=True)


def tril(x: TensorLike, k: int = 0) -> Expr:
    """`numpy.tril`."""
    return trilu(x, k, upper=False)


def diff(x: TensorLike, axis: int = -1) -> Expr:
    """`numpy.diff` of order 1."""
    x = as_expr(x)
    axis = normalize_axis("diff", axis, require_ndim("diff", x))
    far = 2**31 - 1
    later = strided_slice(x, (1,), (far,), axes=(axis,))
    return sub(later, strided_slice(x, (0,), (-1,), axes=(axis,)))


def meshgrid(a: TensorLike, b: TensorLike, indexing: str = "xy") -> list[Expr]:
    """`numpy.meshgrid` of two tensors with one axis."""
    a, b = as_exprs(a, b)
    choice("meshgrid", "indexing", indexing, ("xy", "ij"))
    for x in (a, b):
        if require_ndim("meshgrid", x) != 1:
            fail("meshgrid", f"takes tensors with one axis, got one with {require_ndim('meshgrid', x)}")
    (n,), (m,) = require_shape("meshgrid", a), require_shape("meshgrid", b)
    if indexing == "ij":
        return [broadcast_to(unsqueeze(a, 1), (n, m)), broadcast_to(unsqueeze(b, 0), (n, m))]
    if indexing != "xy":
        fail("meshgrid", f"indexing {indexing!r}, expected 'xy' or 'ij'")
    return [broadcast_to(unsqueeze(a, 0), (m, n)), broadcast_to(unsqueeze(b, 1), (m, n))]


# --- taking and sorting


def take(x: TensorLike, indices: TensorLike | Sequence[Any], axis: int | None = None) -> Expr:
    """`numpy.take`; axis None: from the tensor flattened."""
    x = ravel(x) if axis is None else as_expr(x)
    if isinstance(indices, Sequence):
        try:
            indices = np.asarray(indices)
        except ValueError as error:
            fail("take", f"the indices are no array: {error}")
    return gather(x, as_expr(indices, "int64"), axis or 0)


def take_along_axis(x: TensorLike, indices: TensorLike, axis: int) -> Expr:
    """`numpy.take_along_axis`, of shapes that are equal outside `axis`."""
    from pyvm.op.index import gather_elements

    return gather_elements(x, indices, axis)


def _ordered(x: TensorLike, axis: int | None) -> tuple[Expr, Expr]:
    x = as_expr(x)
    if axis is None:
        x, axis = ravel(x), 0
    shape = require_shape("sort", x)
    axis = normalize_axis("sort", axis, len(shape))
    best = topk(x, shape[axis], axis, largest=False)
    return TupleGetItem(best, 0), TupleGetItem(best, 1)


def sort(x: TensorLike, axis: int | None = -1) -> Expr:
    """`numpy.sort`: from the smallest to the largest along `axis` (None: of the tensor flattened)."""
    return _ordered(x, axis)[0]


def argsort(x: TensorLike, axis: int | None = -1) -> Expr:
    """`numpy.argsort` with kind="stable": int64 indices that sort `x`."""
    return _ordered(x, axis)[1]


# --- products


def dot(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.dot` of tensors with one or two axes, and of `a` with more axes by `b` with one or two."""
    a, b = as_exprs(a, b)
    if require_ndim("dot", b) > 2:
        fail("dot", f"of {a.struct_info} and {b.struct_info}; see matmul and einsum")
    if 0 in (known_ndim(a), known_ndim(b)):
        return mul(a, b)
    return matmul(a, b)


def outer(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.outer`: a[i] * b[j]."""
    a, b = as_exprs(a, b)
    return mul(unsqueeze(ravel(a), 1), unsqueeze(ravel(b), 0))


def inner(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.inner` of two tensors with one axis."""
    a, b = as_exprs(a, b)
    if (require_ndim("inner", a), require_ndim("inner", b)) != (1, 1):
        fail("inner", f"of {a.struct_info} and {b.struct_info}; see matmul and einsum")
    return reduce_sum(mul(a, b))


def array_equal(a: TensorLike, b: TensorLike) -> Expr:
    """`numpy.array_equal` of tensors whose shapes are equal: a bool tensor without axes."""
    a, b = as_exprs(a, b)
    return reduce_all(equal(a, b))


def average(x: TensorLike, axis: Axis = None, weights: TensorLike | None = None) -> Expr:
    """`numpy.average`; `weights` have the shape of `x`."""
    if weights is None:
        return reduce_mean(x, axis)
    x, weights = as_exprs(x, weights)
    return div(reduce_sum(mul(x, weights), axis), reduce_sum(weights, axis))

