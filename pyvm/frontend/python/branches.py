"""Branches that a run decides: `and`, `or`, and where the two sides of an If meet."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvm import op
from pyvm.ir import Expr, If, PrimExpr, PrimStructInfo, SymVar, TensorStructInfo, TupleStructInfo, expr
from vmcore.errors import FrontendError

from .operators import conjunction, disjunction
from .values import Condition, Env, Slot, Value, absolute, describe, flatten, join, same_value, unflatten

if TYPE_CHECKING:
    from .expressions import Expressions


def short_circuit(reader: Expressions, is_and: bool, left: Value, truth: Expr, right: ast.expr, env: Env) -> Value:
    """The right side is computed only where the left one does not decide."""
    bb, emitter = reader.emitter.bb, reader.emitter
    symbols = set(emitter.symbols)
    bb.open_scope()
    value = reader.eval(right, env)
    blocks = bb.close_scope(0)
    emitter.symbols = symbols
    if not any(block.bindings for block in blocks.blocks):
        if isinstance(left, Condition) and isinstance(value, Condition):
            return (conjunction if is_and else disjunction)(left, value)
        known = emitter.truth(value)
        if isinstance(known, bool):
            return (left if known == is_and else known) if not isinstance(left, PrimExpr) else known
    bb.open_scope()
    for binding in blocks.bindings():
        bb.emit_binding(binding)
    other = bb.close_scope(bool_tensor(reader, value))
    bb.open_scope()
    decided = bb.close_scope(emitter.tensor(not is_and))
    branches = (other, decided) if is_and else (decided, other)
    info = TensorStructInfo((), "bool")
    return emitter.value(If(truth, *branches, info))


def bool_tensor(reader: Expressions, value: Value) -> Expr:
    """The truth of a value as a bool tensor without axes."""
    if isinstance(value, Condition):
        return reader.emitter.tensor(value)
    truth = reader.emitter.truth(value)
    if isinstance(truth, bool):
        return reader.emitter.tensor(truth)
    if not isinstance(truth.struct_info, TensorStructInfo):
        if isinstance(value, PrimExpr):
            return reader.emitter.tensor(Condition(absolute(value)))  # type: ignore[arg-type]
        raise FrontendError(f"{describe(value)} has no truth value here")
    bb = reader.emitter.bb
    if truth.struct_info.dtype != "bool":
        truth = bb.emit(op.cast(truth, "bool"))
    return truth if truth.struct_info.ndim == 0 else bb.emit(op.reshape(truth, ()))  # type: ignore[union-attr]


def branch(reader: Expressions, read: Callable[[], Value]) -> tuple[Value, Any, set[SymVar]]:
    """What `read` returns, the bindings that it makes, and the symbols that are defined outside."""
    emitter = reader.emitter
    outside = set(emitter.symbols)
    emitter.bb.open_scope()
    value = read()
    sequence = emitter.bb.close_scope(0)
    emitter.symbols = set(outside)
    return value, sequence, outside


def meet(
    reader: Expressions,
    cond: Expr,
    branches: list[tuple[Value, Any, set[SymVar]]],
    names: list[tuple[str, Value, Value]],
) -> list[Value]:
    """Emits an If of two branches; returns what each of (name, value in the first, in the second) is after it."""
    bb, emitter = reader.emitter.bb, reader.emitter
    outside = branches[0][2]
    slots: list[Slot] = []
    leaves: tuple[list[Value], list[Value]] = ([], [])
    plans: list[tuple[Any, list[int | None], list[Value]]] = []
    for name, first, second in names:
        (a, tree), (b, other) = flatten(first), flatten(second)
        if tree != other:
            raise FrontendError(f"{name} is {describe(first)} on one path and {describe(second)} on another")
        places: list[int | None] = []
        for left, right in zip(a, b, strict=True):
            if same_value(left, right):
                places.append(None)
                continue
            slot = join(
                emitter.hidden(emitter.slot(left), outside), emitter.hidden(emitter.slot(right), outside), name
            )
            places.append(len(slots))
            slots.append(slot)
            leaves[0].append(left)
            leaves[1].append(right)
        plans.append((tree, places, a))
    infos = [slot.struct_info() for slot in slots]
    ends = []
    for (_, sequence, _), values in zip(branches, leaves, strict=True):
        bb.open_scope()
        for binding in sequence.bindings():
            bb.emit_binding(binding)
        put = [emitter.put(value, slot) for value, slot in zip(values, slots, strict=True)]
        ends.append(bb.close_scope(put[0] if len(put) == 1 else bb.emit(expr.Tuple(put)) if put else 0))
    info = infos[0] if len(infos) == 1 else TupleStructInfo(infos) if infos else PrimStructInfo("int64")
    if not slots and not any(block.bindings for end in ends for block in end.blocks):
        result: Expr | None = None
    else:
        result = bb.emit(If(cond, ends[0], ends[1], info))
    after: list[Value] = []
    for (name, _, _), (tree, places, known) in zip(names, plans, strict=True):
        values = []
        for place, same in zip(places, known, strict=True):
            if place is None:
                values.append(same)
                continue
            assert result is not None
            one = result if len(slots) == 1 else expr.TupleGetItem(result, place)
            values.append(emitter.take(one, slots[place], name if name.isidentifier() else "d"))
        after.append(unflatten(values, tree))
    return after
