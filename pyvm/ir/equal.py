"""Structural equality: whether two modules are the same program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .expr import (
    Binding,
    BindingBlock,
    Call,
    Constant,
    DataflowBlock,
    DataflowVar,
    DataTypeImm,
    Expr,
    ExternFunc,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    NoneImm,
    PrimValue,
    SeqExpr,
    ShapeExpr,
    StringImm,
    Tuple,
    TupleGetItem,
    Var,
)
from .nesting import typed_nesting


@typed_nesting("structural_equal")
def structural_equal(a: IRModule | Function, b: IRModule | Function) -> bool:
    """Whether `a` and `b` are equal but for the names of variables.

    Compared: functions and their order, names of parameters, attributes, bindings in order and their sources, struct
    info, constants bit by bit, which variables are visible outside their dataflow block. Not compared: names of
    variables that bindings or local functions define, and where a run of bindings outside dataflow blocks is cut into
    blocks.
    """
    if isinstance(a, Function) or isinstance(b, Function):
        return isinstance(a, Function) and isinstance(b, Function) and _Comparison().top_function(a, b)
    return (
        list(a.functions) == list(b.functions)
        and _same_attrs(a.attrs, b.attrs)
        and all(_Comparison().top_function(f, b.functions[name]) for name, f in a.functions.items())
    )


class _Comparison:
    """The variables of one function of the left side, and which ones of the right side they stand for."""

    def __init__(self) -> None:
        self._left: dict[Var, Var] = {}
        self._right: dict[Var, Var] = {}

    def top_function(self, a: Function, b: Function) -> bool:
        return [p.name for p in a.params] == [p.name for p in b.params] and self.function(a, b)

    def function(self, a: Function, b: Function) -> bool:
        return (
            len(a.params) == len(b.params)
            and a.ret_struct_info == b.ret_struct_info
            and _same_attrs(a.attrs, b.attrs)
            and all(map(self._define, a.params, b.params))
            and self._sequence(a.body, b.body)
        )

    def _define(self, a: Var, b: Var) -> bool:
        self._left[a], self._right[b] = b, a
        return isinstance(a, DataflowVar) == isinstance(b, DataflowVar) and a.struct_info == b.struct_info

    def _sequence(self, a: SeqExpr, b: SeqExpr) -> bool:
        ours, theirs = _blocks(a), _blocks(b)
        return len(ours) == len(theirs) and all(map(self._block, ours, theirs)) and self._leaf(a.body, b.body)

    def _block(self, a: tuple[bool, list[Binding]], b: tuple[bool, list[Binding]]) -> bool:
        return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(self._binding, a[1], b[1]))

    def _binding(self, a: Binding, b: Binding) -> bool:
        if type(a) is not type(b) or a.source != b.source:
            return False
        if isinstance(a, MatchCast) and isinstance(b, MatchCast) and a.struct_info != b.struct_info:
            return False
        if isinstance(a.value, Function):  # its body may call the function itself
            return self._define(a.var, b.var) and self._value(a.value, b.value)
        return self._value(a.value, b.value) and self._define(a.var, b.var)

    def _value(self, a: Expr, b: Expr) -> bool:
        if isinstance(a, Call) and isinstance(b, Call):
            callee = self._leaf(a.op, b.op) if isinstance(a.op, Expr) and isinstance(b.op, Expr) else a.op is b.op
            return (
                callee
                and a.struct_info == b.struct_info
                and _same_attrs(a.attrs, b.attrs)
                and self._leaves(a.args, b.args)
            )
        if isinstance(a, Tuple) and isinstance(b, Tuple):
            return self._leaves(a.fields, b.fields)
        if isinstance(a, TupleGetItem) and isinstance(b, TupleGetItem):
            return a.index == b.index and self._leaf(a.tuple, b.tuple)
        if isinstance(a, If) and isinstance(b, If):
            return (
                a.struct_info == b.struct_info
                and self._leaf(a.cond, b.cond)
                and self._sequence(a.true_branch, b.true_branch)
                and self._sequence(a.false_branch, b.false_branch)
            )
        if isinstance(a, Function) and isinstance(b, Function):
            return self.function(a, b)
        return self._leaf(a, b)

    def _leaves(self, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> bool:
        return len(a) == len(b) and all(map(self._leaf, a, b))

    def _leaf(self, a: Expr, b: Expr) -> bool:
        if isinstance(a, Var) and isinstance(b, Var):
            return self._left.get(a) is b and self._right.get(b) is a
        if type(a) is not type(b):
            return False
        if isinstance(a, Constant):
            return _same_value(a.data, b.data)  # type: ignore[attr-defined]
        if isinstance(a, ShapeExpr):
            return a.values == b.values  # type: ignore[attr-defined]
        if isinstance(a, (PrimValue, StringImm, DataTypeImm)):
            return _same_value(a.value, b.value)  # type: ignore[attr-defined]
        if isinstance(a, (GlobalVar, ExternFunc)):
            return a == b
        return isinstance(a, NoneImm)


def _blocks(seq: SeqExpr) -> list[tuple[bool, list[Binding]]]:
    """Dataflow blocks one by one, what is between them in one piece."""
    result: list[tuple[bool, list[Binding]]] = []
    block: BindingBlock
    for block in seq.blocks:
        dataflow = isinstance(block, DataflowBlock)
        if not dataflow and result and not result[-1][0]:
            result[-1][1].extend(block.bindings)
        elif dataflow or block.bindings:
            result.append((dataflow, list(block.bindings)))
    return result


def _same_attrs(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return list(a) == list(b) and all(_same_value(a[key], b[key]) for key in a)


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, np.generic):
        a = a.item()
    if isinstance(b, np.generic):
        b = b.item()
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same_value, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)  # tells -0.0 from 0.0, and finds a NaN equal to itself
    return type(a) is type(b) and bool(a == b)
