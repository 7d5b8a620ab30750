"""Python's operators, comparisons, indexing and attributes on values of a program."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pyvm import op
from pyvm.ir import (
    Call,
    Expr,
    ObjectStructInfo,
    Prim,
    PrimExpr,
    ShapeStructInfo,
    TensorStructInfo,
    TupleGetItem,
    bounds,
    prove_equal,
    sym_max,
    sym_min,
)
from pyvm.op.common import FLOAT
from vmcore.errors import FrontendError
from vmcore.types import DataType

from .values import Condition, Emitter, Fields, Value, absolute, describe, is_integer, is_known, is_number

# Python's operator: its sign, what it is on known values, and the operator of the program.
_BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any], Callable[[Any, Any], Call] | None]] = {
    ast.Add: ("+", operator.add, op.add),
    ast.Sub: ("-", operator.sub, op.sub),
    ast.Mult: ("*", operator.mul, op.mul),
    ast.Div: ("/", operator.truediv, op.div),
    ast.FloorDiv: ("//", operator.floordiv, op.floor_div),
    ast.Mod: ("%", operator.mod, op.mod),
    ast.Pow: ("**", operator.pow, op.pow),
    ast.MatMult: ("@", operator.matmul, op.matmul),
    ast.BitAnd: ("&", operator.and_, op.bitwise_and),
    ast.BitOr: ("|", operator.or_, op.bitwise_or),
    ast.BitXor: ("^", operator.xor, op.bitwise_xor),
    ast.LShift: ("<<", operator.lshift, op.left_shift),
    ast.RShift: (">>", operator.rshift, op.right_shift),
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_LOGIC = {ast.BitAnd: op.logical_and, ast.BitOr: op.logical_or, ast.BitXor: op.logical_xor}
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any], Callable[[Any, Any], Call]]] = {
    ast.Eq: ("==", operator.eq, op.equal),
    ast.NotEq: ("!=", operator.ne, op.not_equal),
    ast.Lt: ("<", operator.lt, op.less),
    ast.LtE: ("<=", operator.le, op.less_equal),
    ast.Gt: (">", operator.gt, op.greater),
    ast.GtE: (">=", operator.ge, op.greater_equal),
}
_SYMBOLIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)


class Operators:
    """What operators mean; every method returns a value."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter

    # --- arithmetic

    def binary(self, kind: type[ast.operator], a: Value, b: Value) -> Value:
        """a + b and its kin."""
        sign, known, make = _BINARY[kind]
        if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
            if kind not in (ast.Add, ast.Mult) or isinstance(a, Expr) or isinstance(b, Expr):
                raise FrontendError(f"{describe(a)} {sign} {describe(b)}")
            return _plain(known(a, b))
        if is_known(a) and is_known(b):
            return known(a, b)
        if (is_integer(a) or isinstance(a, bool)) and (is_integer(b) or isinstance(b, bool)):
            if kind in _SYMBOLIC:
                return known(_index(a), _index(b))
            if kind is ast.Pow and isinstance(b, int) and b >= 0:
                result: Prim = 1
                for _ in range(b):
                    result = result * a
                return result
        weak, a, b = self.same_dtype(a, b, as_float=kind is ast.Div)
        dtype = a.struct_info.dtype  # type: ignore[union-attr]
        if kind is ast.Div and dtype not in FLOAT:
            raise FrontendError(f"/ of {dtype}: use // for integers, or convert with .astype('float32')")
        if dtype == "bool" and kind in _LOGIC:
            make = _LOGIC[kind]
        elif dtype == "bool":
            raise FrontendError(f"{sign} of bool tensors; bools have & | ^ ~")
        assert make is not None
        return self.emitter.value(make(a, b), weak=weak)

    def same_dtype(self, a: Value, b: Value, as_float: bool = False) -> tuple[bool, Expr, Expr]:
        """Two values as tensors of one dtype where the rules allow it, and whether the result stands for a float.

        Numbers of Python become floats if one of them is one, or with `as_float`.
        """
        emitter = self.emitter
        strong = next((v for v in (a, b) if _has_dtype(v) and not emitter.is_weak(v)), None)
        if strong is None:
            as_float = as_float or any(isinstance(v, (float, Expr)) for v in (a, b))
            dtype = "float64" if as_float else "int64"
            return as_float, *(emitter.tensor(_not_bool(v), dtype) for v in (a, b))  # type: ignore[return-value]
        tensor = emitter.tensor(strong)
        info = tensor.struct_info
        assert isinstance(info, TensorStructInfo)
        pair = []
        for value in (a, b):
            if value is strong:
                pair.append(tensor)
                continue
            if emitter.is_weak(value) and info.dtype not in FLOAT:
                raise FrontendError(f"a float meets a tensor of {info.dtype}: convert one of them with .astype(...)")
            pair.append(emitter.tensor(value, info.dtype))
        return False, pair[0], pair[1]

    def unary(self, kind: type[ast.unaryop], value: Value) -> Value:
        """-a, +a, ~a and `not a`."""
        if kind is ast.Not:
            return self.negate(value)
        if is_known(value):
            return _UNARY[kind](value)
        if kind is ast.UAdd:
            return value
        if kind is ast.USub:
            if isinstance(value, PrimExpr):
                return value * -1
            return self.emitter.value(op.neg(self.emitter.tensor(value)), weak=self.emitter.is_weak(value))
        if isinstance(value, PrimExpr):
            return value * -1 - 1
        tensor = self.emitter.tensor(value)
        is_bool = tensor.struct_info.dtype == "bool"  # type: ignore[union-attr]
        return self.emitter.value((op.logical_not if is_bool else op.bitwise_not)(tensor))

    def negate(self, value: Value) -> Value:
        """`not value`."""
        truth = self.emitter.truth(value)
        if isinstance(truth, bool):
            return not truth
        if isinstance(value, Condition):
            return _condition(1 - sym_min(value.nonzero, 1))
        if isinstance(value, PrimExpr):
            return _condition(1 - sym_min(absolute(value), 1))
        info = truth.struct_info
        if isinstance(info, TensorStructInfo) and info.dtype != "bool":
            truth = self.emitter.bb.emit(op.cast(truth, "bool"))
        elif not isinstance(info, TensorStructInfo):
            raise FrontendError(f"not {describe(value)}")
        return self.emitter.value(op.logical_not(truth))

    def compare(self, kind: type[ast.cmpop], a: Value, b: Value) -> Value:
        """a < b and its kin."""
        if kind in (ast.Is, ast.IsNot):
            same = a is b or (isinstance(a, bool) and a == b)
            return same if kind is ast.Is else not same
        if kind in (ast.In, ast.NotIn):
            if not is_known(a) or not is_known(b):
                raise FrontendError("`in` needs values that are known while the function is read")
            return (a in b) == (kind is ast.In)
        sign, known, make = _COMPARE[kind]
        if is_known(a) and is_known(b):
            return known(a, b)
        if is_integer(a) and is_integer(b):
            return _compare_integers(kind, a, b)
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and kind in (ast.Eq, ast.NotEq):
            same = len(a) == len(b) and self._all_equal(a, b)
            return same if kind is ast.Eq else self.negate(same)
        if not _is_tensor(a) and not _is_tensor(b):
            raise FrontendError(f"{describe(a)} {sign} {describe(b)}")
        _, left, right = self.same_dtype(a, b)
        return self.emitter.value(make(left, right))

    def _all_equal(self, a: Any, b: Any) -> Value:
        result: Value = True
        for left, right in zip(a, b, strict=True):
            equal = self.compare(ast.Eq, left, right)
            if equal is False:
                return False
            if isinstance(result, Condition) and isinstance(equal, Condition):
                result = conjunction(result, equal)
            elif equal is not True:
                result = equal if result is True else self.binary(ast.BitAnd, self._bool(result), self._bool(equal))
        return result

    def _bool(self, value: Value) -> Expr:
        return self.emitter.tensor(value)

    # --- indexing

    def subscript(self, base: Value, index: Value) -> Value:
        """base[index]."""
        if isinstance(base, Fields) and isinstance(index, slice) and is_known(index):
            return tuple(base)[index]
        if isinstance(base, (tuple, list, dict, str)) or (is_known(base) and not isinstance(base, np.ndarray)):
            if not is_known(index):
                raise FrontendError(
                    f"index {describe(index)} of {describe(base)} is known at run time only: iterate over the values "
                    "themselves, or over list(range(...)) to unroll the loop"
                )
            return base[index]
        if is_known(base) and is_known(index):
            return base[index]
        info = base.struct_info if isinstance(base, Expr) else None
        if isinstance(info, ObjectStructInfo) and isinstance(index, int):
            return self.emitter.value(TupleGetItem(base, index))
        if isinstance(info, ShapeStructInfo):
            raise FrontendError("the rank of this shape is not known: name its sizes with `s: pyvm.Shape[...] = ...`")
        return self._tensor_item(self.emitter.tensor(base), index if isinstance(index, tuple) else (index,))

    def _tensor_item(self, x: Expr, items: tuple[Value, ...]) -> Value:
        info = x.struct_info
        if not isinstance(info, TensorStructInfo) or info.ndim < 0:
            raise FrontendError(f"the rank of {info} is not known: name its sizes with `x: pyvm.Tensor[...] = ...`")
        taken = sum(1 for item in items if item is not None and item is not Ellipsis)
        if taken > info.ndim or sum(1 for item in items if item is Ellipsis) > 1:
            raise FrontendError(f"{taken} indices for {info}")
        if Ellipsis not in [item for item in items if not isinstance(item, (Expr, np.ndarray, PrimExpr))]:
            items = (*items, Ellipsis)
        # Slices of all axes at once; then indices from the last axis on, so that earlier axes keep their places.
        position = next(i for i, item in enumerate(items) if item is Ellipsis)
        rest = [slice(None)] * (info.ndim - taken)
        items = (*items[:position], *rest, *items[position + 1 :])
        x = self._sliced(x, [item for item in items if item is not None])
        arrays = sum(1 for item in items if _is_array(item))
        if arrays > 1:
            raise FrontendError("one index may be a tensor with axes; for more of them, see pyvm.op.gather_nd")
        axis = info.ndim
        for item in reversed(items):
            if item is None:
                x = self.emitter.bb.emit(op.unsqueeze(x, axis))
                continue
            axis -= 1
            if not isinstance(item, slice):
                x = self._indexed(x, item, axis)
        return self.emitter.value(x)

    def _sliced(self, x: Expr, items: list[Value]) -> Expr:
        begins: list[Prim] = []
        ends: list[Prim] = []
        steps, axes = [], []
        for axis, item in enumerate(items):
            if not isinstance(item, slice) or item == slice(None):
                continue
            step = 1 if item.step is None else item.step
            if not isinstance(step, int):
                raise FrontendError("the step of a slice must be known while the function is read")
            far = 2**31 - 1
            start, stop = (None if v is None else self.emitter.integer(v) for v in (item.start, item.stop))
            begins.append((0 if step > 0 else far) if start is None else start)
            ends.append((far if step > 0 else -far) if stop is None else stop)
            steps.append(step)
            axes.append(axis)
        if not axes:
            return x
        return self.emitter.bb.emit(op.strided_slice(x, begins, ends, steps, axes))

    def _indexed(self, x: Expr, item: Value, axis: int) -> Expr:
        whole = x.struct_info
        if isinstance(item, (int, np.integer)) and isinstance(whole, TensorStructInfo) and whole.shape is not None:
            size = whole.shape[axis]
            if isinstance(size, int) and not -size <= item < size:
                raise FrontendError(f"index {item} is out of range for axis {axis} of {whole}")
        index = self.emitter.tensor(item)
        info = index.struct_info
        if isinstance(info, TensorStructInfo) and info.dtype == "bool":
            if info.ndim != 1:
                raise FrontendError(f"a mask has one axis here, not {info}; see pyvm.op.nonzero")
            count = self.emitter.value(op.nonzero_count(index), "count")
            index = self.emitter.bb.emit(op.reshape(op.nonzero(index, count), (count,)))
        elif isinstance(info, TensorStructInfo) and info.dtype not in ("int32", "int64"):
            raise FrontendError(f"an index is an integer or a mask, not {info}")
        return self.emitter.bb.emit(op.gather(x, index, axis))

    def with_item(self, base: Value, index: Value, value: Value) -> Value:
        """What `base[index] = value` makes of `base`: a new tensor."""
        if isinstance(base, (tuple, list, dict)) or is_known(base):
            raise FrontendError(f"{describe(base)} cannot be changed; build another one")
        x = self.emitter.tensor(base)
        info = x.struct_info
        if isinstance(index, (tuple, slice)) or not isinstance(info, TensorStructInfo) or info.ndim < 1:
            raise FrontendError("x[i] = v takes one integer index; see pyvm.op.scatter_nd and pyvm.op.where")
        rows = self.emitter.tensor(index)
        if isinstance(rows.struct_info, TensorStructInfo) and rows.struct_info.ndim != 0:
            raise FrontendError("x[i] = v takes one integer index; see pyvm.op.scatter_nd and pyvm.op.where")
        row = self.emitter.tensor(value, info.dtype)
        assert info.shape is not None
        row = self.emitter.bb.emit(op.expand(row, info.shape[1:]))
        position = self.emitter.bb.emit(op.reshape(op.cast(rows, "int64"), (1, 1)))
        update = self.emitter.bb.emit(op.unsqueeze(row, 0))
        return self.emitter.value(op.scatter_nd(x, position, update))

    # --- attributes

    def attribute(self, base: Value, name: str) -> Value:
        """base.name."""
        if not isinstance(base, (Expr, Condition)):
            if isinstance(base, PrimExpr):
                raise FrontendError(f"an integer has no attribute {name!r}")
            return getattr(base, name)
        x = self.emitter.tensor(base)
        info = x.struct_info
        assert isinstance(info, TensorStructInfo)
        if name == "dtype":
            return None if info.dtype is None else DataType(info.dtype)
        if name == "T":
            return self.emitter.value(op.transpose(x))
        if name in ("shape", "ndim", "size"):
            if info.shape is None:
                raise FrontendError(f"the rank of {info} is not known: name its sizes: `x: pyvm.Tensor[...] = ...`")
            if name == "shape":
                return tuple(info.shape)
            return info.ndim if name == "ndim" else op.common.product(info.shape)
        method = _METHODS.get(name)
        if method is None:
            raise FrontendError(f"a tensor has no attribute {name!r}; it has {', '.join(sorted(_METHODS))}")
        return Method(name, x)


class Method:
    """A method of a tensor, to be called."""

    def __init__(self, name: str, x: Expr) -> None:
        self.name = name
        self.x = x

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call of the operator that the method stands for."""
        return _METHODS[self.name](self.x, *args, **kwargs)


def _variadic(make: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """x.reshape(2, 3) is x.reshape((2, 3))."""

    def method(x: Expr, *args: Any) -> Any:
        return make(x, args[0] if len(args) == 1 and (args[0] is None or isinstance(args[0], (tuple, list))) else args)

    return method


_METHODS: dict[str, Callable[..., Any]] = {
    "reshape": _variadic(op.reshape),
    "transpose": _variadic(lambda x, perm: op.transpose(x, perm or None)),
    "astype": lambda x, dtype: op.cast(x, str(DataType(dtype))),
    "sum": op.sum,
    "mean": op.mean,
    "max": op.max,
    "min": op.min,
    "prod": op.prod,
    "any": op.any,
    "all": op.all,
    "var": op.var,
    "std": op.std,
    "argmax": op.argmax,
    "argmin": op.argmin,
    "argsort": op.argsort,
    "cumsum": op.cumsum,
    "clip": op.clip,
    "round": op.round,
    "squeeze": op.squeeze,
    "ravel": op.ravel,
    "flatten": op.ravel,
    "repeat": op.repeat,
    "take": op.take,
    "dot": op.dot,
    "swapaxes": op.swapaxes,
    "copy": op.copy,
}


def conjunction(a: Condition, b: Condition) -> Condition:
    """Both."""
    return Condition(sym_min(a.nonzero, 1) * sym_min(b.nonzero, 1))  # type: ignore[arg-type]


def disjunction(a: Condition, b: Condition) -> Condition:
    """At least one."""
    return Condition(sym_min(a.nonzero, 1) + sym_min(b.nonzero, 1))  # type: ignore[arg-type]


def _condition(nonzero: Prim) -> Value:
    return bool(nonzero) if isinstance(nonzero, int) else Condition(nonzero)


def _compare_integers(kind: type[ast.cmpop], a: Prim, b: Prim) -> Value:
    if kind in (ast.Eq, ast.NotEq):
        equal = prove_equal(a, b)
        if equal is not None:
            return equal == (kind is ast.Eq)
        apart = sym_max(a - b, 0) + sym_max(b - a, 0)
        return _condition(apart if kind is ast.NotEq else 1 - sym_min(apart, 1))
    if kind in (ast.Gt, ast.GtE):
        a, b = b, a
    gap = b - a if kind in (ast.Lt, ast.Gt) else b - a + 1
    low, high = bounds(gap)
    if low is not None and low > 0:
        return True
    if high is not None and high <= 0:
        return False
    return _condition(sym_max(gap, 0))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Fields) else value


def _index(value: Value) -> Prim:
    return value if isinstance(value, PrimExpr) else int(value)


def _not_bool(value: Value) -> Value:
    return int(value) if isinstance(value, bool) else value


def _has_dtype(value: Value) -> bool:
    return not is_number(value) and not isinstance(value, (PrimExpr, Condition))


def _is_tensor(value: Value) -> bool:
    info = value.struct_info if isinstance(value, Expr) else None
    return isinstance(info, TensorStructInfo) or isinstance(value, (np.ndarray, np.generic, Condition))


def _is_array(item: Value) -> bool:
    if isinstance(item, np.ndarray):
        return item.ndim > 0
    info = item.struct_info if isinstance(item, Expr) else None
    return isinstance(info, TensorStructInfo) and info.ndim != 0


