"""Programs whose values are functions, tuples, scalars, and what Python made."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyvm import op
from pyvm.ir import (
    BlockBuilder,
    Call,
    CallableStructInfo,
    Expr,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeExpr,
    SymVar,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    as_expr,
    call_dps_packed,
    call_packed,
)
from tests.ir_text import tensor
from tests.programs.table import BOOL0, PROGRAMS, N, T, relu, text, written

# --- functions as values


def closure_captures(x, y):
    return (x + y) * y + y


text(
    closure_captures,
    """
def main(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Tensor((n,), float32):
    def shift(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return add(a, y)
    def scale(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return mul(call(shift, a), y)
    return add(call(scale, x), y)
""",
)

UNARY = "Callable((Tensor((n,), float32)) -> Tensor((n,), float32))"


def function_passed(x):
    return relu(relu(x) - 1) - 1 + 0 * x


text(
    function_passed,
    f"""
def twice(f: {UNARY}, x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return call(f, call(f, x))

def step(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return sub(relu(x), const(1.0, float32))

def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return @twice(@step, x)
""",
)


def function_returned(x, y):
    return (x - y, y - y)


text(
    function_returned,
    f"""
def subtract_from(y: Tensor((n,), float32)) -> {UNARY}:
    def f(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return sub(a, y)
    return f

def main(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Tuple(Tensor((n,), float32), Tensor((n,), float32)):
    f = @subtract_from(y)
    return (call(f, x), call(f, y))
""",
)


def functions_composed(x):
    return np.exp(-np.abs(x))


text(
    functions_composed,
    f"""
def compose(f: {UNARY}, g: {UNARY}) -> {UNARY}:
    def h(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return call(f, call(g, a))
    return h

def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    def size(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return abs(a)
    def minus(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return neg(a)
    def power(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return exp(a)
    f = @compose(power, minus)
    return call(@compose(f, size), x)
""",
)


def chosen_function(x, c):
    return np.exp(x) if c else x * x


text(
    chosen_function,
    f"""
def square(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return mul(x, x)

def main(x: Tensor((n,), float32), c: {BOOL0}) -> Tensor((n,), float32):
    def power(a: Tensor((n,), float32)) -> Tensor((n,), float32):
        return exp(a)
    if c:
        f: {UNARY} = power
    else:
        f = @square
    return call(f, x)
""",
)


def callback(f, x):
    return f(x) + 1


written(
    callback,
    lambda bb, f, x: bb.emit(op.add(bb.match_cast(bb.emit(Call(f, [x])), tensor(N)), np.float32(1))),
    f=CallableStructInfo(None, ObjectStructInfo()),
    x=tensor(N),
    draw=lambda n, rng: [lambda x: np.asarray(x) * 2, rng.uniform(size=n).astype(np.float32)],
)


# --- tuples, scalars, Python functions in the middle


def nested_tuples(pair, x):
    (a, (b, c)) = pair
    return (c, (a + x, (b,)), ())


_PAIR = TupleStructInfo([tensor(N), TupleStructInfo([tensor(N), tensor(T)])])


def _nested(bb: BlockBuilder, pair: Var, x: Var) -> Expr:
    inner = bb.emit(TupleGetItem(pair, 1))
    total = bb.emit(op.add(bb.emit(TupleGetItem(pair, 0)), x))
    return bb.emit(
        Tuple([bb.emit(TupleGetItem(inner, 1)), Tuple([total, Tuple([bb.emit(TupleGetItem(inner, 0))])]), Tuple([])])
    )


written(nested_tuples, _nested, pair=_PAIR, x=tensor(N))


def scalars_and_strings(k, f, s):
    return (k + 1, f, s, (k, 2), 2.5)


written(
    scalars_and_strings,
    lambda bb, k, f, s: bb.emit(Tuple(map(as_expr, (SymVar("k") + 1, f, s, ShapeExpr((SymVar("k"), 2)), 2.5)))),
    k=PrimStructInfo("int64", SymVar("k")),
    f=PrimStructInfo("float64"),
    s=ObjectStructInfo(),
    draw=lambda n, rng: [n, n / 2, "text" * n],
)


def python_in_the_middle(x):
    return relu(np.sort(x * 2, 1))


def _python(bb: BlockBuilder, x: Var) -> Expr:
    called = bb.emit(call_packed("test.sort", bb.emit(op.mul(x, np.float32(2))), struct_info=ObjectStructInfo()))
    return bb.emit(op.relu(bb.match_cast(called, tensor(N, 4))))


written(python_in_the_middle, _python, x=tensor(N, 4))
PROGRAMS["python_in_the_middle"].functions = {"test.sort": lambda x: np.sort(np.asarray(x), 1)}


def python_fills_the_result(x):
    return -(np.cbrt(x) + 1)


def fill_cbrt(x: Any, out: Any) -> None:
    np.copyto(np.asarray(out), np.cbrt(np.asarray(x)))


written(
    python_fills_the_result,
    lambda bb, x: bb.emit(op.neg(op.add(bb.emit(call_dps_packed("test.cbrt", [x], tensor(N, 3))), np.float32(1)))),
    x=tensor(N, 3),
)
PROGRAMS["python_fills_the_result"].functions = {"test.cbrt": fill_cbrt}


def python_makes_the_size(x):
    return np.unique(x) * 2


def _unique(bb: BlockBuilder, x: Var) -> Expr:
    found = bb.emit(call_packed("test.unique", x))
    return bb.emit(op.mul(bb.match_cast(found, tensor(SymVar("u"), dtype="int64")), np.int64(2)))


written(python_makes_the_size, _unique, x=tensor(N, dtype="int64"))
PROGRAMS["python_makes_the_size"].functions = {"test.unique": lambda x: np.unique(np.asarray(x))}
