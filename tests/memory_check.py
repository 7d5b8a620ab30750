"""Checks a memory plan by following every path of a function: an oracle that shares nothing with the planner.

On each path the bindings form a line. A tensor's memory is needed from the call that fills it to the last read of it,
or of a view of it, on that line. A call must not fill memory that somebody still needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyvm
from pyvm.ir import (
    Call,
    Expr,
    Function,
    If,
    MatchCast,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    SymVar,
    Tuple,
    TupleGetItem,
    Var,
    evaluate,
)
from pyvm.ir.struct_info import ShapeStructInfo, TensorStructInfo, dtype_bytes

MAX_PATHS = 16


@dataclass(eq=False)
class Memory:
    """Where one tensor lies: bytes of a storage."""

    name: str
    storage: Var
    begin: int
    end: int

    def overlaps(self, other: Memory) -> bool:
        return self.storage is other.storage and self.begin < other.end and other.begin < self.end


def check_plan(function: Function, symbols: dict[str, int]) -> int:
    """Raises AssertionError where a call fills memory that is still needed; returns how many tensors were looked at."""
    n_tensors = 0
    symbols = plan_arenas(function.body, symbols)
    for path in islice(_paths(function.body), MAX_PATHS):
        n_tensors += _check_path(path, symbols)
    return n_tensors


Step = tuple[Var | None, Expr]


def plan_arenas(seq: SeqExpr, symbols: dict[str, int]) -> dict[str, int]:
    """The symbols, and those that arenas planned at run time give a value to: sizes and offsets."""
    plans: dict[Expr, tuple[int, ...]] = {}
    for binding in seq.bindings():
        value = binding.value
        if isinstance(value, If):
            for branch in (value.true_branch, value.false_branch):
                symbols = plan_arenas(branch, symbols)
        elif isinstance(value, Call) and getattr(value.op, "name", "") == "pyvm.builtin.plan_arena":
            table, *sizes = value.args
            numbers = [evaluate(size.value, symbols) for size in sizes]
            plan = pyvm.get_global_func("pyvm.builtin.plan_arena")
            plans[binding.var] = tuple(plan(pyvm.Shape(table.values), *numbers))
        elif isinstance(binding, MatchCast) and binding.value in plans:
            assert isinstance(binding.struct_info, ShapeStructInfo) and binding.struct_info.values is not None
            planned = zip(binding.struct_info.values, plans[binding.value], strict=True)
            symbols = {**symbols, **{symbol.name: number for symbol, number in planned if isinstance(symbol, SymVar)}}
    return symbols


def _paths(seq: SeqExpr) -> Iterator[list[Step]]:
    """Every line of bindings from the start of a sequence to its end; its value is the last step."""
    lines: list[list[Step]] = [[]]
    for binding in seq.bindings():
        if isinstance(binding.value, If):
            forks: list[list[Step]] = []
            for branch in (binding.value.true_branch, binding.value.false_branch):
                for inner in islice(_paths(branch), MAX_PATHS):
                    taken = [*inner[:-1], (binding.var, inner[-1][1])]
                    forks += [[*line, (None, binding.value.cond), *taken] for line in lines]
            lines = forks[:MAX_PATHS]
        else:
            for line in lines:
                line.append((binding.var, binding.value))
    for line in lines:
        yield [*line, (None, seq.body)]


def _reads(value: Expr) -> tuple[Expr, ...]:
    if isinstance(value, Call):
        return (*value.args, value.op) if isinstance(value.op, Var) else value.args
    if isinstance(value, Tuple):
        return value.fields
    return (value.tuple,) if isinstance(value, TupleGetItem) else (value,)


def _check_path(path: list[Step], symbols: dict[str, int]) -> int:
    memory: dict[Var, set[Memory]] = {}  # what a variable's value lies in
    allocated: list[Memory] = []
    needed_until: dict[Memory, int] = {}
    fills: list[tuple[int, Memory, list[Memory], Any]] = []
    for step, (var, value) in enumerate(path):
        name = value.op.name if isinstance(value, Call) and hasattr(value.op, "name") else ""
        reads = _reads(value)
        n_outs = value.attrs.get("destinations", 0) if isinstance(value, Call) else 0
        inputs = reads[: len(reads) - n_outs]
        found = set().union(*(memory.get(r, set()) for r in inputs if isinstance(r, Var)))
        if name != "pyvm.intrinsic.kill":
            for place in found:
                needed_until[place] = step
        if name == "vm.builtin.alloc_tensor":
            place = _place(var, value, symbols)
            allocated.append(place)
            memory[var] = {place}
        else:
            for out in reads[len(reads) - n_outs :]:
                (place,) = memory[out]
                fills.append((step, place, [m for r in inputs if isinstance(r, Var) for m in memory.get(r, ())], value))
            if var is not None and n_outs == 0:
                memory[var] = found
    filled = {place for _, place, _, _ in fills}
    for place in allocated:
        if place not in filled and place in needed_until:
            # Never filled but read: a concatenation whose parts were made in their places. Reading it reads them.
            parts = [p for p in filled if p.storage is place.storage and place.begin <= p.begin and p.end <= place.end]
            before = allocated[: allocated.index(place)]
            latest = {(p.begin, p.end): p for p in before if p in parts}
            assert sum(end - begin for begin, end in latest) >= place.end - place.begin, f"parts of {place} are missing"
            for part in latest.values():
                needed_until[part] = max(needed_until.get(part, -1), needed_until[place])
    for step, place, inputs, value in fills:
        for other in filled:
            if other is not place and place.overlaps(other):
                assert needed_until.get(other, -1) <= step or _filled_between(fills, other, step, needed_until), (
                    f"{value} fills {place}, but {other} is read later"
                )
                assert other not in inputs, f"{value} reads {other} and fills {place}"
    return len(allocated)


def _filled_between(fills: list[Any], other: Memory, step: int, needed_until: dict[Memory, int]) -> bool:
    """Whether `other` is filled after `step`, so that what lay there at `step` is not what is read."""
    return any(step < later <= needed_until[other] and place is other for later, place, _, _ in fills)


def _place(var: Var | None, value: Expr, symbols: dict[str, int]) -> Memory:
    assert isinstance(value, Call) and var is not None
    storage, offset = value.args[:2]
    info = var.struct_info
    assert isinstance(storage, Var) and isinstance(offset, PrimValue) and isinstance(info, TensorStructInfo)
    assert info.shape is not None and info.dtype is not None
    nbytes = dtype_bytes(info.dtype)
    for dim in info.shape:
        nbytes *= evaluate(dim, symbols)
    begin = evaluate(offset.value, symbols)
    assert begin % 64 == 0, f"{var.name} lies at {begin}"
    return Memory(var.name, storage, begin, begin + nbytes)


def arena_bytes_of(function: Function) -> int:
    """Bytes of the arena that the function allocates; 0 if it has none."""
    for binding in function.body.bindings():
        value = binding.value
        if isinstance(value, Call) and value.attrs.get("arena"):
            shape = value.args[0]
            assert isinstance(shape, ShapeExpr)
            return int(shape.values[0])  # type: ignore[arg-type]
    return 0
