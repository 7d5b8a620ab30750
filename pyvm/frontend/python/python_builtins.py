"""Python's own functions on values of the program."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvm import op
from pyvm.ir import Expr, PrimExpr, sym_max, sym_min
from vmcore.errors import FrontendError

from .branches import bool_tensor
from .values import Condition, Range, Value, absolute, describe, is_integer, is_known

if TYPE_CHECKING:
    from .expressions import Expressions


def _len(reader: Expressions, value: Value) -> Value:
    if isinstance(value, (tuple, list)):
        return len(value)
    shape = reader.operators.attribute(value, "shape") if isinstance(value, Expr) else ()
    if not shape:
        raise FrontendError(f"len of {describe(value)}")
    return shape[0]


def _int(reader: Expressions, value: Value = 0) -> Value:
    return reader.emitter.integer(value)


def _float(reader: Expressions, value: Value = 0.0) -> Value:
    tensor = reader.emitter.tensor(value, "float64")
    return reader.emitter.value(reader.emitter.bb.emit(op.cast(op.reshape(tensor, ()), "float64")), weak=True)


def _bool(reader: Expressions, value: Value = False) -> Value:
    return value if isinstance(value, Condition) else bool_tensor(reader, value)


def _abs(reader: Expressions, value: Value) -> Value:
    return absolute(value) if isinstance(value, PrimExpr) else op.abs(reader.emitter.tensor(value))


def _extremum(prim: Callable[..., Any], make: Callable[..., Any]) -> Callable[..., Value]:
    def of(reader: Expressions, *values: Value) -> Value:
        items = reader.sequence(values[0]) if len(values) == 1 else list(values)
        result = items[0]
        for item in items[1:]:
            if is_integer(result) and is_integer(item):
                result = prim(result, item)
            else:
                weak, left, right = reader.operators.same_dtype(result, item)
                result = reader.emitter.value(make(left, right), weak=weak)
        return result

    return of


def _sum(reader: Expressions, values: Value, start: Value = 0) -> Value:
    items = reader.sequence(values)
    result = start
    for index, item in enumerate(items):
        result = item if index == 0 and isinstance(start, int) and start == 0 else reader.operators.binary(
            ast.Add, result, item
        )  # fmt: skip
    return result


def _range(reader: Expressions, *bounds: Value) -> Value:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else bounds
    if not isinstance(step, int) or step == 0:
        raise FrontendError("the step of a range is a number known while the function is read, and not 0")
    return Range(reader.emitter.integer(start), reader.emitter.integer(stop), step)


def _isinstance(reader: Expressions, value: Value, kinds: Any) -> bool:
    return False if not is_known(value) and not isinstance(value, (tuple, list)) else isinstance(value, kinds)


def _print(reader: Expressions, *values: Value, **options: Any) -> Value:
    raise FrontendError("print in a program: register a function that prints, and use pyvm.call_packed")


BUILTINS: dict[Any, Callable[..., Value]] = {
    len: _len,
    int: _int,
    float: _float,
    bool: _bool,
    abs: _abs,
    min: _extremum(sym_min, op.minimum),
    max: _extremum(sym_max, op.maximum),
    sum: _sum,
    range: _range,
    isinstance: _isinstance,
    print: _print,
}
ALWAYS = frozenset({print})
