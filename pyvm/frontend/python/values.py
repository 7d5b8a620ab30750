"""What a name stands for while a Python function is read, and how values of several paths become one.

A value is a Python object (known now), a symbolic integer, an `Expr` (known at run time), a `Condition`, or a tuple or
list of values.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyvm import op
from pyvm.ir import (
    BlockBuilder,
    CallableStructInfo,
    Constant,
    Expr,
    GlobalVar,
    If,
    NoneImm,
    ObjectStructInfo,
    Prim,
    PrimExpr,
    PrimStructInfo,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    StringImm,
    StructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    common_struct_info,
    free_vars,
    struct_info_vars,
    sym_max,
    sym_min,
)
from pyvm.ir.rules import contradict
from pyvm.ir.struct_info import erase_unknown
from pyvm.op.common import FLOAT, same_dim
from vmcore.errors import FrontendError

Value = Any
Env = dict[str, Value]


@dataclass(frozen=True)
class Undefined:
    """A name without a value here, and why."""

    why: str


@dataclass(frozen=True)
class Condition:
    """A truth value of integers, known at run time: whether `nonzero` is not 0. Never negative."""

    nonzero: PrimExpr


class Fields(tuple[Value, ...]):
    """The fields of a value that is a tuple or a shape at run time, and that value."""

    expr: Expr

    @classmethod
    def of(cls, expr: Expr, fields: Iterable[Value]) -> Fields:
        made = cls(fields)
        made.expr = expr
        return made


class Range:
    """`range(...)` with bounds of run time."""

    def __init__(self, start: Value, stop: Value, step: int) -> None:
        self.start, self.stop, self.step = start, stop, step


class Inline:
    """A lambda, whose body is read where it is called."""

    def __init__(self, node: ast.Lambda, env: Env, defaults: Env) -> None:
        self.node = node
        self.env = dict(env)  # what its free names were when it was made
        self.defaults = defaults
        self.last: Env | None = None  # the names of the comprehension that made it, as the last round left them


@dataclass(frozen=True)
class LocalFunction:
    """A function defined inside the function that is read."""

    name: str
    var: Var
    params: tuple[str, ...] = ()


def is_integer(value: Value) -> bool:
    """Whether `value` is an integer that may be a size."""
    return isinstance(value, (int, np.integer, PrimExpr)) and not isinstance(value, bool)


def is_number(value: Value) -> bool:
    """Whether `value` is a number known now, without an element type of its own (numpy's float64 is a float)."""
    return isinstance(value, (bool, int, float))


def is_known(value: Value) -> bool:
    """Whether nothing of `value` waits for run time."""
    if isinstance(value, (tuple, list)):
        return not isinstance(value, Fields) and all(map(is_known, value))
    if isinstance(value, dict):
        return all(map(is_known, value.values()))
    if isinstance(value, slice):
        return all(map(is_known, (value.start, value.stop, value.step)))
    return not isinstance(value, (Expr, PrimExpr, Condition, LocalFunction, Undefined))


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are the same one, as far as it can be seen without running anything."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_value, a, b))
    return isinstance(a, (bool, int, float, str, PrimExpr, Condition)) and bool(a == b)


def describe(value: Value) -> str:
    """What a value is, for messages."""
    if isinstance(value, Expr):
        return str(value.struct_info)
    if isinstance(value, Condition):
        return "a bool known at run time"
    if isinstance(value, PrimExpr):
        return f"the integer {value}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__ if not isinstance(value, Fields) else 'tuple'} of {len(value)}"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"


def satisfies(actual: StructInfo | None, wanted: StructInfo) -> bool:
    """Whether every value of `actual` has `wanted`, provably."""
    if actual == wanted or isinstance(wanted, ObjectStructInfo):
        return True
    if isinstance(wanted, TensorStructInfo) and isinstance(actual, TensorStructInfo):
        if wanted.dtype is not None and wanted.dtype != actual.dtype:
            return False
        if wanted.shape is None:
            return wanted.ndim in (-1, actual.ndim)
        return _same_dims(actual.shape, wanted.shape)
    if isinstance(wanted, ShapeStructInfo) and isinstance(actual, ShapeStructInfo):
        return wanted.ndim in (-1, actual.ndim) if wanted.values is None else _same_dims(actual.values, wanted.values)
    if isinstance(wanted, PrimStructInfo) and isinstance(actual, PrimStructInfo):
        return wanted.dtype == actual.dtype and wanted.value in (None, actual.value)
    if isinstance(wanted, TupleStructInfo) and isinstance(actual, TupleStructInfo):
        return len(actual.fields) == len(wanted.fields) and all(map(satisfies, actual.fields, wanted.fields))
    return isinstance(wanted, CallableStructInfo) and isinstance(actual, CallableStructInfo)


def _same_dims(actual: tuple[Prim, ...] | None, wanted: tuple[Prim, ...]) -> bool:
    return actual is not None and len(actual) == len(wanted) and all(map(same_dim, actual, wanted))


def difference(actual: StructInfo | None, wanted: StructInfo) -> str:
    """Where two struct infos contradict each other: dim, expected, actual."""
    if isinstance(actual, TensorStructInfo) and isinstance(wanted, TensorStructInfo):
        if actual.shape is not None and wanted.shape is not None and len(actual.shape) == len(wanted.shape):
            for axis, (dim, other) in enumerate(zip(actual.shape, wanted.shape, strict=True)):
                if isinstance(dim, int) and isinstance(other, int) and dim != other:
                    return f"dim {axis}: expected {other}, actual {dim}"
        if actual.ndim != wanted.ndim and actual.ndim >= 0 and wanted.ndim >= 0:
            return f"rank: expected {wanted.ndim}, actual {actual.ndim}"
        if actual.dtype != wanted.dtype:
            return f"dtype: expected {wanted.dtype}, actual {actual.dtype}"
    if isinstance(actual, TupleStructInfo) and isinstance(wanted, TupleStructInfo):
        if len(actual.fields) == len(wanted.fields):
            for index, (field, declared) in enumerate(zip(actual.fields, wanted.fields, strict=True)):
                if contradict(field, declared):
                    return f"field {index}: {difference(field, declared)}"
        return f"fields: expected {len(wanted.fields)}, actual {len(actual.fields)}"
    return f"expected {wanted}, actual {actual}"


@dataclass(frozen=True)
class Slot:
    """What is known of a value that comes from several paths.

    Attributes
    ----------
    kind : str
        "int", "tensor", "object", or "static": the value itself.
    dtype, dims : of a tensor; a dim that differs between paths is None, all of them are None where the rank is unknown
    weak : bool
        The tensor stands for a Python float.
    value : of a static slot
    info : of an object slot
    """

    kind: str
    dtype: str | None = None
    dims: tuple[Prim | None, ...] | None = None
    weak: bool = False
    value: Value = None
    info: StructInfo | None = None

    def struct_info(self) -> StructInfo:
        """Of the value, without names for sizes that are not known."""
        if self.kind == "int":
            return PrimStructInfo("int64")
        if self.kind == "tensor":
            if self.dims is None:
                return TensorStructInfo(None, self.dtype)
            if None in self.dims:
                return TensorStructInfo(None, self.dtype, len(self.dims))
            return TensorStructInfo(self.dims, self.dtype)  # type: ignore[arg-type]
        return self.info or ObjectStructInfo()


def join(a: Slot, b: Slot, name: str) -> Slot:
    """What is known of a value that is `a` or `b`.

    Raises
    ------
    FrontendError
        If nothing can be both.
    """
    if a == b:
        return a
    if a.kind == "int" and b.kind == "tensor" and b.dims == ():
        return Slot("tensor", b.dtype if b.dtype != "bool" else "int64", (), b.weak)
    if b.kind == "int" and a.kind == "tensor" and a.dims == ():
        return join(b, a, name)
    if a.kind == "tensor" and b.kind == "tensor":
        if a.weak != b.weak:
            weak, strong = (a, b) if a.weak else (b, a)
            if strong.dtype in FLOAT and strong.dims == ():
                return Slot("tensor", strong.dtype, ())
        if a.dtype == b.dtype and (a.dims is None or b.dims is None):
            return Slot("tensor", a.dtype)
        if a.dtype == b.dtype and a.dims is not None and b.dims is not None and len(a.dims) == len(b.dims):
            dims = tuple(
                p if p is not None and q is not None and same_dim(p, q) else None
                for p, q in zip(a.dims, b.dims, strict=True)
            )
            return Slot("tensor", a.dtype, dims, a.weak and b.weak)
    if a.kind == "object" and b.kind == "object":
        return Slot("object", info=common_struct_info(a.struct_info(), b.struct_info()))
    raise FrontendError(f"{name} is {_slot_text(a)} on one path and {_slot_text(b)} on another")


def _slot_text(slot: Slot) -> str:
    if slot.kind == "static":
        return describe(slot.value)
    if slot.kind == "int":
        return "an integer"
    if slot.weak:
        return "a float"
    if slot.kind == "tensor" and slot.dims is not None:
        return f"Tensor(({', '.join('?' if dim is None else str(dim) for dim in slot.dims)}), {slot.dtype})"
    return str(slot.struct_info())


def flatten(value: Value) -> tuple[list[Value], Any]:
    """The leaves of nested tuples and lists, and what is needed to put them together again."""
    if isinstance(value, (tuple, list)):
        leaves, trees = [], []
        for item in value:
            inner, tree = flatten(item)
            leaves += inner
            trees.append(tree)
        return leaves, (list if isinstance(value, list) else tuple, tuple(trees))
    return [value], None


def unflatten(leaves: list[Value], tree: Any) -> Value:
    """The inverse of `flatten`; takes its leaves from the front of the list."""
    if tree is None:
        return leaves.pop(0)
    kind, trees = tree
    return kind([unflatten(leaves, inner) for inner in trees])


class Emitter:
    """Makes bindings for values: the only place that knows how a value is written down.

    Attributes
    ----------
    bb : BlockBuilder
    symbols : set of SymVar
        Symbols that have a value here.
    """

    def __init__(self, bb: BlockBuilder, to_global: Callable[[Any], GlobalVar | None]) -> None:
        self.bb = bb
        self.symbols: set[SymVar] = set()
        self._taken: set[str] = set()
        self._weak: set[Var] = set()
        self._to_global = to_global

    # --- names

    def define(self, info: StructInfo | None) -> None:
        """The symbols of `info` have a value from here on."""
        found = struct_info_vars(info)
        self.symbols |= found
        self._taken |= {symbol.name for symbol in found}

    def fresh(self, hint: str, nonnegative: bool = True) -> SymVar:
        """A symbol that the function does not have yet."""
        hint = hint if hint.isidentifier() else "d"
        name, count = hint, 0
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._taken.add(name)
        symbol = SymVar(name, nonnegative)
        self.symbols.add(symbol)
        return symbol

    def snapshot(self) -> tuple[set[SymVar], set[str], dict[str, int]]:
        """What `restore` goes back to when something was only tried."""
        return set(self.symbols), set(self._taken), dict(self.bb._names)

    def restore(self, state: tuple[set[SymVar], set[str], dict[str, int]]) -> None:
        self.symbols, self._taken, self.bb._names = set(state[0]), set(state[1]), dict(state[2])

    # --- from the program to values

    def value(self, expr: Expr | list[Any] | tuple[Any, ...], hint: str = "", weak: bool = False) -> Value:
        """The value of an expression, bound to a variable unless it is one: tuples taken apart, sizes named."""
        if isinstance(expr, (list, tuple)):
            if not any(isinstance(item, Expr) and not isinstance(item, (Var, Constant)) for item in expr):
                return expr
            return type(expr)(self.value(item) for item in expr)
        if not isinstance(expr, Expr):
            return expr
        leaf = expr if isinstance(expr, (Var, Constant, GlobalVar)) else self._leaf_of(expr, hint)
        info = leaf.struct_info
        if isinstance(info, TensorStructInfo):
            if info.shape is None and info.ndim >= 0:
                dims = [self.fresh(f"{hint or 'd'}_{axis}") for axis in range(info.ndim)]
                leaf = self.bb.match_cast(leaf, TensorStructInfo(dims, info.dtype), hint)
            if weak and isinstance(leaf, Var):
                self._weak.add(leaf)
            return leaf
        if isinstance(info, PrimStructInfo):
            return self._scalar(leaf, info, hint)
        if isinstance(info, TupleStructInfo):
            items = (self.value(TupleGetItem(leaf, index)) for index in range(len(info.fields)))
            return Fields.of(leaf, items)
        if isinstance(info, ShapeStructInfo) and info.ndim >= 0:
            if info.values is None:
                values = [self.fresh(f"{hint or 's'}_{axis}", nonnegative=False) for axis in range(info.ndim)]
                leaf = self.bb.match_cast(leaf, ShapeStructInfo(values), hint)
                return Fields.of(leaf, values)
            return Fields.of(leaf, info.values)
        return leaf

    def _leaf_of(self, expr: Expr, hint: str) -> Expr:
        normal = self.bb.normalize(expr)
        leaf = self.bb._atom(normal) if not hint else normal
        return leaf if not hint else self.bb.emit(leaf, hint)

    def _scalar(self, leaf: Expr, info: PrimStructInfo, hint: str) -> Value:
        if info.dtype == "int64":
            if isinstance(info.value, (int, PrimExpr)):
                return info.value
            symbol = self.fresh(hint or "i", nonnegative=False)
            self.bb.match_cast(leaf, PrimStructInfo("int64", symbol), hint)
            return symbol
        if isinstance(leaf, PrimValue):
            return leaf.value
        return self.value(op.fill((), leaf, info.dtype), hint, weak=info.dtype == "float64")

    def is_weak(self, value: Value) -> bool:
        """Whether a tensor stands for a Python float, which takes the dtype of what it meets."""
        return isinstance(value, Var) and value in self._weak

    def weakened(self, var: Var) -> Var:
        """`var`, which stands for a Python float."""
        self._weak.add(var)
        return var

    def cast_checked(self, value: Value, info: StructInfo, what: str) -> Value:
        """`value` with struct info `info`, checked at run time where it is not known; new symbols get their values."""
        leaf = self.leaf(value, info)
        if contradict(leaf.struct_info, info):
            raise FrontendError(f"{what}: {difference(leaf.struct_info, info)}")
        if struct_info_vars(info) <= self.symbols and satisfies(leaf.struct_info, info):
            return self.value(leaf)
        self.define(info)
        return self.value(self.bb.match_cast(leaf, info))

    # --- from values to the program

    def tensor(self, value: Value, dtype: str | None = None) -> Expr:
        """`value` as a tensor; a number, also one of run time, gets `dtype` (float64, int64 or bool by default)."""
        if isinstance(value, Expr):
            info = value.struct_info
            if not isinstance(info, TensorStructInfo):
                raise FrontendError(f"expected a tensor, found {info}; name its type: `x: pyvm.Tensor[...] = ...`")
            if dtype is not None and self.is_weak(value) and dtype != info.dtype and dtype in FLOAT:
                return self.bb.emit(op.cast(value, dtype))
            return value
        if isinstance(value, Condition):
            count = self.bb.emit(op.reshape(op.shape_to_tensor((value.nonzero,)), ()))
            return self.bb.emit(op.not_equal(count, 0))
        if isinstance(value, PrimExpr):
            tensor = op.reshape(op.shape_to_tensor((value,)), ())
            return self.bb.emit(tensor if dtype in (None, "int64", "bool") else op.cast(tensor, str(dtype)))
        if is_number(value):
            default = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "float64"
            return op.common.as_expr(value, dtype or default)
        array = value if isinstance(value, np.ndarray) else _as_array(value)
        if array is None:
            raise FrontendError(f"expected a tensor, found {describe(value)}")
        return Constant(array)

    def leaf(self, value: Value, info: StructInfo | None = None) -> Expr:
        """`value` as an operand; numbers and tuples become what `info` says where it says something."""
        if isinstance(info, TensorStructInfo) and (is_number(value) or isinstance(value, (PrimExpr, Condition))):
            return self.tensor(value, info.dtype)
        if isinstance(info, TensorStructInfo) and self.is_weak(value):
            return self.tensor(value, info.dtype)
        if isinstance(info, PrimStructInfo):
            value = self._as_scalar(value, info)
        if isinstance(value, Fields):
            if info is None or satisfies(value.expr.struct_info, info):
                return value.expr
        if isinstance(value, (tuple, list)):
            if isinstance(info, ShapeStructInfo):
                if not all(map(is_integer, value)):
                    raise FrontendError(f"a shape holds integers, found {describe(value)}")
                return ShapeExpr(value)
            inner = info.fields if isinstance(info, TupleStructInfo) and len(info.fields) == len(value) else None
            fields = [self.leaf(item, inner[i] if inner else None) for i, item in enumerate(value)]
            return self.bb.emit(Tuple(fields))
        if isinstance(value, Expr):
            return value
        if isinstance(value, LocalFunction):
            return value.var
        if isinstance(value, Condition):
            return self.tensor(value)
        if isinstance(value, (bool, int, float, PrimExpr, np.integer)):
            return PrimValue(value)  # type: ignore[arg-type]
        if value is None:
            return NoneImm()
        if isinstance(value, str):
            return StringImm(value)
        if isinstance(value, Undefined):
            raise FrontendError(value.why)
        function = self._to_global(value)
        if function is not None:
            return function
        array = value if isinstance(value, np.ndarray) else _as_array(value)
        if array is None:
            raise FrontendError(f"{describe(value)} cannot be a value of the program")
        return Constant(array)

    def _as_scalar(self, value: Value, info: PrimStructInfo) -> Value:
        """What is passed for a Python scalar."""
        if info.dtype == "int64" and isinstance(value, Expr) and isinstance(value.struct_info, TensorStructInfo):
            return self.integer(value)
        if info.dtype == "float64" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return float(value)
        is_tensor = isinstance(value, Expr) and isinstance(value.struct_info, TensorStructInfo)
        if info.dtype == "bool" and (is_tensor or isinstance(value, Condition)):
            truth = self.truth(value)
            if isinstance(truth, bool):
                return PrimValue(truth)
            yes, no = SeqExpr([], PrimValue(True)), SeqExpr([], PrimValue(False))
            return self.bb.emit(If(truth, yes, no, PrimStructInfo("bool")))
        return value

    def integer(self, value: Value, hint: str = "i") -> Prim:
        """`value` as an integer that may be a size."""
        if is_integer(value) or isinstance(value, bool):
            return value if isinstance(value, PrimExpr) else int(value)
        if isinstance(value, Condition):
            return sym_min(value.nonzero, 1)
        tensor = self.tensor(value)
        info = tensor.struct_info
        if isinstance(info, TensorStructInfo) and info.dtype not in ("int32", "int64", "bool", None):
            tensor = self.bb.emit(op.cast(tensor, "int64"))
        if isinstance(tensor, Constant) and tensor.data.size == 1:
            return int(tensor.data.reshape(()))
        return self.value(op.tensor_scalar(tensor), hint)

    def truth(self, value: Value) -> bool | Expr:
        """`value` as a condition: a bool if it is known now."""
        if isinstance(value, Condition):
            return PrimValue(value.nonzero)
        if isinstance(value, PrimExpr):
            return PrimValue(absolute(value))
        if not isinstance(value, Expr):
            if isinstance(value, LocalFunction):
                return True
            return bool(value)
        info = value.struct_info
        if isinstance(value, Constant) and value.data.size == 1:
            return bool(value.data.reshape(()))
        if isinstance(info, TensorStructInfo):
            if info.shape is not None and any(isinstance(dim, int) and dim != 1 for dim in info.shape):
                raise FrontendError(f"the truth of {info}: a condition has one element; use .any() or .all()")
            if info.dtype in FLOAT:
                return self.bb.emit(op.not_equal(value, 0.0))
        elif not isinstance(info, (ObjectStructInfo, PrimStructInfo)):
            raise FrontendError(f"{describe(value)} has no truth value")
        return value

    # --- paths that meet

    def slot(self, value: Value) -> Slot:
        """What is known of a leaf."""
        if is_integer(value):
            return Slot("int")
        if isinstance(value, (bool, Condition)):
            return Slot("tensor", "bool", ())
        if isinstance(value, float):
            return Slot("tensor", "float64", (), weak=True)
        if isinstance(value, LocalFunction):
            return Slot("object", info=value.var.struct_info)
        if isinstance(value, Expr):
            info = value.struct_info
            if isinstance(info, TensorStructInfo):
                return Slot("tensor", info.dtype, info.shape, self.is_weak(value))
            return Slot("object", info=info)
        function = self._to_global(value)
        if function is not None:
            return Slot("object", info=function.struct_info)
        array = value if isinstance(value, np.ndarray) else _as_array(value)
        if array is not None:
            return Slot("tensor", array.dtype.name, array.shape)
        return Slot("static", value=value)

    def hidden(self, slot: Slot, visible: set[SymVar]) -> Slot:
        """`slot` as it is known where only the symbols `visible` are."""
        if slot.kind == "tensor" and slot.dims is not None:
            dims = tuple(
                dim if dim is None or isinstance(dim, int) or free_vars(dim) <= visible else None for dim in slot.dims
            )
            return Slot("tensor", slot.dtype, dims, slot.weak)
        if slot.kind == "object" and slot.info is not None:
            return Slot("object", info=erase_unknown(slot.info, frozenset(visible)))
        return slot

    def put(self, value: Value, slot: Slot) -> Expr:
        """`value` as what the slot says."""
        if slot.kind == "static":
            return NoneImm()
        if slot.kind == "tensor":
            return self.tensor(value, slot.dtype)
        return self.leaf(value, PrimStructInfo("int64") if slot.kind == "int" else None)

    def take(self, expr: Expr, slot: Slot, name: str) -> Value:
        """The value of a variable that a slot describes; sizes that are not known get names."""
        if slot.kind == "static":
            return slot.value
        if slot.kind == "tensor" and slot.dims is not None and None in slot.dims:
            if isinstance(expr, TupleGetItem):
                expr = self.bb.emit(expr, name)
            dims = [self.fresh(f"{name}_{i}") if dim is None else dim for i, dim in enumerate(slot.dims)]
            expr = self.bb.match_cast(expr, TensorStructInfo(dims, slot.dtype), name)
        return self.value(expr, name if not isinstance(expr, Var) else "", weak=slot.weak)


def absolute(value: Prim) -> Prim:
    """|value|."""
    return sym_max(value, value * -1)


def _as_array(value: Value) -> np.ndarray | None:
    if isinstance(value, np.generic) or type(value).__name__ == "Tensor" and hasattr(value, "numpy"):
        return np.asarray(value)
    return None

