"""Integer tensors whose elements are known, as numbers or as symbols, while the model is imported.

Exporters compute shapes with tensors: Shape, Gather, Mul, Concat and so on, then Reshape. Here such a tensor is its
*content*, a numpy array of dtype object with an int, a `PrimExpr`, a bool or a float per element, and the nodes that
compute it are evaluated instead of converted. What cannot be decided (a comparison of two symbols, say) has no content;
the tensor is then computed at run time like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from pyvm.ir import Prim, PrimExpr, bounds, free_vars, prove_equal, substitute, sym_max, sym_min

if TYPE_CHECKING:
    from pyvm.frontend.onnx.node import Node

Content = np.ndarray
MAX_ELEMENTS = 256  # a shape or a list of axes is far smaller; bigger tensors are data


def content_of_array(array: np.ndarray) -> Content | None:
    """The content of a constant; None if it is too big to be one of a shape, or not of numbers."""
    if array.size > MAX_ELEMENTS or array.dtype.kind not in "iubf":
        return None
    return np.array(array.reshape(-1).tolist(), dtype=object).reshape(array.shape)


def make_content(values: Sequence[Any], shape: tuple[int, ...] | None = None) -> Content:
    """A content from its elements in order; one-dimensional unless `shape` says otherwise."""
    content = np.empty(len(values), dtype=object)
    content[:] = values
    return content if shape is None else content.reshape(shape)


def is_constant(content: Content) -> bool:
    """No symbols in it."""
    return not any(isinstance(value, (PrimExpr, Ratio)) for value in content.flat)


def are_numbers(values: Sequence[Prim]) -> TypeGuard[Sequence[int]]:
    """No symbols among the values."""
    return all(isinstance(value, int) for value in values)


class Ratio:
    """A symbolic integer times a fraction, on its way through a float tensor: n * 0.5, to be rounded to an integer."""

    __slots__ = ("num", "den")

    def __init__(self, num: Prim, den: int) -> None:
        self.num, self.den = num, den

    def floor(self) -> Prim:
        """The integer below."""
        return self.num // self.den

    def ceil(self) -> Prim:
        """The integer above."""
        return (self.num + (self.den - 1)) // self.den


# --- reasoning about dimensions


def lower_bound(value: Prim) -> int | None:
    """A number that `value` is never below, dimensions being at least 1; None if there is none."""
    return _typical_bounds(value)[0]


def upper_bound(value: Prim) -> int | None:
    """A number that `value` never exceeds, dimensions being at least 1; None if there is none."""
    return _typical_bounds(value)[1]


def _typical_bounds(value: Prim) -> tuple[int | None, int | None]:
    # An empty dimension is legal, but n - 1 as the end of a slice means "all but the last", not "-1 for n = 0".
    shifted = {var: var + 1 for var in free_vars(value) if var.nonnegative}
    low, high = bounds(substitute(value, shifted))
    return low, None if high is not None and high >= 2**62 else high


def at_most(a: Prim, b: Prim) -> bool:
    """Whether a <= b is certain."""
    low = lower_bound(b - a)
    return low is not None and low >= 0


def smaller(a: Prim, b: Prim) -> Prim:
    """min(a, b), simplified where it is certain which one it is."""
    return a if at_most(a, b) else b if at_most(b, a) else sym_min(a, b)


def larger(a: Prim, b: Prim) -> Prim:
    """max(a, b), simplified where it is certain which one it is."""
    return b if at_most(a, b) else a if at_most(b, a) else sym_max(a, b)


def is_negative(value: Prim) -> Prim:
    """1 if value < 0, else 0."""
    low, high = _typical_bounds(value)
    if low is not None and low >= 0:
        return 0
    if high is not None and high < 0:
        return 1
    return sym_min(1, sym_max(0, -value))


def is_zero(value: Prim) -> Prim:
    """1 if value == 0, else 0."""
    if isinstance(value, int):
        return int(value == 0)
    if (lower_bound(value) or 0) > 0 or (upper_bound(value) or 0) < 0:
        return 0
    return 1 - sym_min(1, larger(value, -value))


def from_front(index: Prim, size: Prim) -> Prim:
    """An index that counts from the end if it is negative, counted from the front."""
    return index + is_negative(index) * size


def ceil_div(a: Prim, b: int) -> Prim:
    """a / b rounded up, b > 0."""
    return (a + (b - 1)) // b


# --- arithmetic on elements; None where the result cannot be told


def _combine(fn: Callable[[Any, Any], Any]) -> Callable[..., Content | None]:
    def apply(node: Node, *operands: Content) -> Content | None:
        result: Content | None = operands[0]
        for operand in operands[1:]:
            result = None if result is None else _elementwise(fn, result, operand)
        return result

    return apply


def _elementwise(fn: Callable[..., Any], *operands: Content) -> Content | None:
    arrays = np.broadcast_arrays(*operands)
    values = [fn(*items) for items in zip(*(array.flat for array in arrays), strict=True)]
    return None if any(value is None for value in values) else make_content(values, arrays[0].shape)


def _unary(fn: Callable[[Any], Any]) -> Callable[..., Content | None]:
    return lambda node, x: _elementwise(fn, x)


def _exact(value: Any) -> Any:
    """Floats that are integers as ints, so that they mix with symbols."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _add(a: Any, b: Any) -> Any:
    a, b = _exact(a), _exact(b)
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        a, b = (v if isinstance(v, Ratio) else Ratio(v, 1) for v in (a, b))
        if isinstance(a.num, float) or isinstance(b.num, float):
            return None
        return Ratio(a.num * b.den + b.num * a.den, a.den * b.den)
    if isinstance(a, PrimExpr) and isinstance(b, float):
        fraction = _fraction(b)
        return None if fraction is None else Ratio(a * fraction.denominator + fraction.numerator, fraction.denominator)
    if isinstance(b, PrimExpr) and isinstance(a, float):
        return _add(b, a)
    return a + b


def _sub(a: Any, b: Any) -> Any:
    return _add(a, _mul(b, -1))


def _mul(a: Any, b: Any) -> Any:
    a, b = _exact(a), _exact(b)
    if isinstance(b, (PrimExpr, Ratio)) and not isinstance(a, (PrimExpr, Ratio)):
        a, b = b, a
    if isinstance(a, Ratio):
        if isinstance(b, Ratio):
            return Ratio(a.num * b.num, a.den * b.den)
        if isinstance(b, (int, PrimExpr)):
            return Ratio(a.num * b, a.den)
    if isinstance(a, (PrimExpr, Ratio)) and isinstance(b, float):
        fraction = _fraction(b)
        if fraction is None:
            return None
        num, den = (a.num, a.den) if isinstance(a, Ratio) else (a, 1)
        return Ratio(num * fraction.numerator, den * fraction.denominator)
    return a * b


def _fraction(value: float) -> Fraction | None:
    """`value` as a fraction with a denominator small enough that rounding errors of floats do not matter."""
    if not math.isfinite(value):
        return None
    fraction = Fraction(value)
    return fraction if fraction.denominator <= 1024 else None


def _div(node: Node, a: Content, b: Content) -> Content | None:
    if node.dtype(node.name_of(0)).startswith("float"):
        return _elementwise(_div_float, a, b)
    return _elementwise(_div_int, a, b)


def _div_int(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    # The operator rounds towards zero, // towards minus infinity: the same where both are positive.
    low = lower_bound(a)
    return a // b if low is not None and low >= 0 and (lower_bound(b) or 0) > 0 else None


def _div_float(a: Any, b: Any) -> Any:
    a, b = _exact(a), _exact(b)
    if isinstance(a, (PrimExpr, Ratio)) and isinstance(b, int) and b > 0:
        num, den = (a.num, a.den) if isinstance(a, Ratio) else (a, 1)
        quotient = num // (den * b)
        return quotient if quotient * (den * b) == num else Ratio(num, den * b)
    if isinstance(a, (PrimExpr, Ratio)) and isinstance(b, float) and b:
        return _mul(a, 1 / b)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and b:
        return a / b
    if isinstance(a, PrimExpr) and isinstance(b, PrimExpr):
        quotient = a // b
        return quotient if quotient * b == a else None
    return None


def _mod_int(a: Any, b: Any) -> Any:
    if isinstance(b, int) and b == 0:
        return None
    return a % b if isinstance(b, int) or (lower_bound(b) or 0) > 0 else None


def _compare(when_equal: bool, when_less: bool, when_greater: bool) -> Callable[[Any, Any], bool | None]:
    def decide(a: Any, b: Any) -> bool | None:
        a, b = _exact(a), _exact(b)
        if isinstance(a, Ratio) or isinstance(b, Ratio):
            return None
        if not isinstance(a, PrimExpr) and not isinstance(b, PrimExpr):
            return when_equal if a == b else when_less if a < b else when_greater
        if isinstance(a, float) or isinstance(b, float):
            return None
        if prove_equal(a, b):
            return when_equal
        low, high = _typical_bounds(a - b)
        if low is not None and low > 0:
            return when_greater
        if high is not None and high < 0:
            return when_less
        possible = {when_equal, when_less, when_greater}
        if low is not None and low >= 0:
            possible = {when_equal, when_greater}
        elif high is not None and high <= 0:
            possible = {when_equal, when_less}
        return possible.pop() if len(possible) == 1 else None

    return decide


def _extremum(pick: Callable[[Prim, Prim], Prim], plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        a, b = _exact(a), _exact(b)
        if isinstance(a, (int, PrimExpr)) and isinstance(b, (int, PrimExpr)):
            return pick(a, b)
        return plain(a, b) if isinstance(a, float) and isinstance(b, float) else None

    return apply


def _absolute(x: Any) -> Any:
    if isinstance(x, (int, float)):
        return abs(x)
    return x if isinstance(x, PrimExpr) and (lower_bound(x) or 0) >= 0 and lower_bound(x) is not None else None


def _rounding(of_ratio: Callable[[Ratio], Prim], of_float: Callable[[float], int]) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        if isinstance(x, Ratio):
            return of_ratio(x)
        if isinstance(x, float):
            return of_float(x) if math.isfinite(x) else None
        return x

    return apply


# --- operators


def _cast(node: Node, x: Content) -> Content | None:
    return convert(x, node.dtype_attr("to"))


def convert(x: Content, dtype: str) -> Content | None:
    """The content after a cast."""
    if dtype.startswith("float"):
        return _elementwise(lambda v: v if isinstance(v, (PrimExpr, Ratio)) else float(v), x)
    if dtype == "bool":
        return _elementwise(_truth, x)
    if dtype in ("int32", "int64"):
        return _elementwise(_truncate, x)
    return None


def _truth(value: Any) -> bool | None:
    if isinstance(value, Ratio):
        return None
    if isinstance(value, PrimExpr):
        return True if (lower_bound(value) or 0) > 0 or (upper_bound(value) or 0) < 0 else None
    return bool(value)


def _truncate(value: Any) -> Any:
    if isinstance(value, Ratio):
        low = lower_bound(value.num)
        return value.floor() if low is not None and low >= 0 else None
    if isinstance(value, PrimExpr):
        return value
    return int(value) if math.isfinite(value) else None


def _gather(node: Node, x: Content, indices: Content) -> Content | None:
    if not is_constant(indices) or x.ndim == 0:
        return None
    axis = node.attr("axis", 0)
    positions = indices.astype(np.int64)
    size = x.shape[axis]
    if positions.size and not -size <= int(positions.min()) <= int(positions.max()) < size:
        raise node.error(f"index {positions.tolist()} is outside a dimension of {size}")
    return np.take(x, positions, axis=axis)


def _slice(node: Node, x: Content) -> Content | None:
    spec = node.slice_arguments()
    if spec is None:
        return None
    index = [slice(None)] * x.ndim
    starts, ends, axes, steps = spec
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
            return None
        # An end before the beginning means "down to the first element", which Python writes as None.
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def _unsqueeze(node: Node, x: Content) -> Content | None:
    axes = node.static_axes() if node.axes_are_known() else None
    return None if axes is None else np.expand_dims(x, axes)


def _squeeze(node: Node, x: Content) -> Content | None:
    return np.squeeze(x, node.static_axes()) if node.axes_are_known() else None


def _reshape(node: Node, x: Content, target: Content | None = None) -> Content | None:
    shape = node.attr("shape", ()) if target is None else target.tolist()
    if not all(isinstance(dim, int) for dim in shape):
        return None
    if not node.attr("allowzero", 0):
        shape = [x.shape[i] if dim == 0 else dim for i, dim in enumerate(shape)]
    return x.reshape(tuple(shape))


def _expand(node: Node, x: Content, target: Content) -> Content | None:
    if not is_constant(target):
        return None
    shape = np.broadcast_shapes(x.shape, tuple(target.tolist()))
    return np.broadcast_to(x, shape) if math.prod(shape) <= MAX_ELEMENTS else None


def _tile(node: Node, x: Content, repeats: Content) -> Content | None:
    if not is_constant(repeats) or math.prod(repeats.tolist()) * x.size > MAX_ELEMENTS:
        return None
    return np.tile(x, tuple(repeats.tolist()))


def _split(node: Node, x: Content) -> list[Content] | None:
    axis = node.attr("axis", 0)
    sizes = node.split_sizes(x.shape[axis])
    if not are_numbers(sizes):
        return None
    return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def _reduce(fn: Callable[[Any, Any], Any], start: Any) -> Callable[[Node, Content], Content | None]:
    def apply(node: Node, x: Content) -> Content | None:
        axes = node.static_axes() if node.axes_are_known() else (x.ndim,)
        if x.ndim > 1 or axes not in (None, (0,), (-1,), ()):
            return None
        if not axes and node.attr("noop_with_empty_axes", 0):
            return x
        total = start
        for value in x.flat:
            total = value if total is None else fn(total, value)
        if total is None:
            return None
        return make_content([total], (1,) * x.ndim if node.attr("keepdims", 1) else ())

    return apply


def _where(node: Node, cond: Content, a: Content, b: Content) -> Content | None:
    return _elementwise(lambda c, p, q: p if c else q, cond, a, b)


def _concat(node: Node, *parts: Content) -> Content | None:
    return np.concatenate(parts, axis=node.attr("axis", 1))


_EVALUATORS: dict[str, Callable[..., Content | list[Content] | None]] = {
    "Abs": _unary(_absolute),
    "Add": _combine(_add),
    "And": _combine(lambda a, b: a and b),
    "Cast": _cast,
    "Ceil": _unary(_rounding(Ratio.ceil, math.ceil)),
    "Concat": _concat,
    "Div": _div,
    "Equal": _combine(_compare(True, False, False)),
    "Expand": _expand,
    "Flatten": lambda node, x: x.reshape(1, -1) if x.ndim == 1 and node.attr("axis", 1) == 0 else None,
    "Floor": _unary(_rounding(Ratio.floor, math.floor)),
    "Gather": _gather,
    "Greater": _combine(_compare(False, False, True)),
    "GreaterOrEqual": _combine(_compare(True, False, True)),
    "Identity": lambda node, x: x,
    "Less": _combine(_compare(False, True, False)),
    "LessOrEqual": _combine(_compare(True, True, False)),
    "Max": _combine(_extremum(larger, max)),
    "Min": _combine(_extremum(smaller, min)),
    "Mod": lambda node, a, b: None if node.attr("fmod", 0) else _elementwise(_mod_int, a, b),
    "Mul": _combine(_mul),
    "Neg": _unary(lambda v: _mul(v, -1)),
    "Not": _unary(lambda v: not v),
    "Or": _combine(lambda a, b: a or b),
    "ReduceMax": _reduce(_extremum(larger, max), None),
    "ReduceMin": _reduce(_extremum(smaller, min), None),
    "ReduceProd": _reduce(_mul, 1),
    "ReduceSum": _reduce(_add, 0),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _combine(_sub),
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
# These read their arguments through the node (attributes in old opsets, inputs in new ones); only the data counts here.
_DATA_ONLY = frozenset({"Slice", "Split", "Squeeze", "Unsqueeze", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"})


def evaluate(node: Node) -> list[Content] | None:
    """The contents of the outputs of `node`, if it computes on symbols and the result can be told, else None."""
    evaluator = _EVALUATORS.get(node.op_type)
    if evaluator is None or not node.n_inputs or not node.has_symbols():
        return None
    contents = [node.content(i) for i in range(1 if node.op_type in _DATA_ONLY else node.n_inputs)]
    if any(content is None for content in contents):
        return None
    try:
        result = evaluator(node, *contents)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None  # not something shapes do; the converter will handle it or say what is wrong
    if result is None:
        return None
    # numpy turns an element without dimensions into a scalar.
    return [
        value if isinstance(value, np.ndarray) else make_content([value], ())
        for value in (result if isinstance(result, list) else [result])
    ]
