"""The program as text that reads like Python: one line per binding, struct info and source operator as comments.

Variables that share a name get a suffix, so a name in the text means one variable of its function; "_" is never read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .expr import (
    Binding,
    Call,
    Constant,
    DataflowBlock,
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
from .struct_info import ObjectStructInfo, StructInfo, format_shape

_INDENT = "    "
_MAX_INLINE_ELEMS = 4
_COMMENT_COLUMN = 60


class _Printer:
    """Text of one function; remembers which variable got which name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[Var, str] = {}
        self._taken: dict[str, int] = {}

    def name(self, var: Var) -> str:
        known = self._names.get(var)
        if known is None and var.name == "_":
            return "_"  # what no one reads needs no name
        if known is None:
            known = var.name
            count = self._taken.get(known, 0)
            while count and f"{known}__{count}" in self._taken:
                count += 1
            self._taken[known] = count + 1
            if count:
                known = f"{known}__{count}"
                self._taken[known] = 1
            self._names[var] = known
        return known

    def function(self, name: str, function: Function) -> None:
        params = ", ".join(f"{self.name(p)}: {_info(p.struct_info)}" for p in function.params)
        self.lines.append(f"def {name}({params}) -> {_info(function.ret_struct_info)}:")
        if function.attrs:
            listed = ", ".join(f"{key}={_attr(value)}" for key, value in function.attrs.items())
            self.lines.append(f"{_INDENT}# {listed}")
        self.sequence(function.body, 1, "return ")

    def sequence(self, seq: SeqExpr, depth: int, result: str) -> None:
        for block in seq.blocks:
            inner = depth
            if isinstance(block, DataflowBlock):
                self.lines.append(f"{_INDENT * depth}with dataflow():")
                inner += 1
            for binding in block.bindings:
                self.binding(binding, inner)
        self.lines.append(f"{_INDENT * depth}{result}{self.expr(seq.body)}")

    def binding(self, binding: Binding, depth: int) -> None:
        source = f"  [{binding.source}]" if binding.source else ""
        if isinstance(binding, MatchCast):
            text = f"{self.name(binding.var)} = match_cast({self.expr(binding.value)}, {binding.struct_info})"
            self._line(text, source.strip(), depth)
            return
        value = binding.value
        if isinstance(value, If):
            self._line(f"if {self.expr(value.cond)}:", source.strip(), depth)
            name = self.name(binding.var)
            self.sequence(value.true_branch, depth + 1, f"{name} = ")
            self.lines.append(f"{_INDENT * depth}else:")
            self.sequence(value.false_branch, depth + 1, f"{name} = ")
            return
        info = binding.var.struct_info
        shown = "" if info is None or isinstance(info, ObjectStructInfo) else str(info)
        self._line(f"{self.name(binding.var)} = {self.expr(value)}", (shown + source).strip(), depth)

    def _line(self, text: str, comment: str, depth: int) -> None:
        text = _INDENT * depth + text
        self.lines.append(f"{text:<{_COMMENT_COLUMN}}  # {comment}" if comment else text)

    def expr(self, expr: Expr) -> str:
        if isinstance(expr, Var):
            return self.name(expr)
        if isinstance(expr, Constant):
            return _constant(expr.data)
        if isinstance(expr, ShapeExpr):
            return f"shape{format_shape(expr.values)}"
        if isinstance(expr, PrimValue):
            return str(expr.value)
        if isinstance(expr, StringImm):
            return _quoted(expr.value)
        if isinstance(expr, DataTypeImm):
            return f"dtype({_quoted(expr.value)})"
        if isinstance(expr, NoneImm):
            return "None"
        if isinstance(expr, GlobalVar):
            return f"@{expr.name}"
        if isinstance(expr, ExternFunc):
            return f"extern({_quoted(expr.name)})"
        if isinstance(expr, Tuple):
            fields = [self.expr(field) for field in expr.fields]
            return f"({fields[0]},)" if len(fields) == 1 else f"({', '.join(fields)})"
        if isinstance(expr, TupleGetItem):
            return f"{self.expr(expr.tuple)}[{expr.index}]"
        if isinstance(expr, Call):
            callee = expr.op
            name = f"extern({_quoted(callee.name)})" if isinstance(callee, ExternFunc) else callee.name
            if isinstance(callee, GlobalVar):
                name = f"@{callee.name}"
            elif isinstance(callee, Var):
                name = self.name(callee)
            args = [self.expr(arg) for arg in expr.args]
            args += [f"{key}={_attr(value)}" for key, value in expr.attrs.items()]
            return f"{name}({', '.join(args)})"
        if isinstance(expr, If):
            return f"if {self.expr(expr.cond)} ..."
        return f"<{type(expr).__name__}>"


def _info(info: StructInfo | None) -> str:
    return "?" if info is None else str(info)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _attr(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (tuple, list)):
        listed = ", ".join(map(_attr, value))
        if isinstance(value, list):
            return f"[{listed}]"
        return f"({listed},)" if len(value) == 1 else f"({listed})"
    if isinstance(value, np.ndarray):
        return _constant(value)
    return str(value)


def _constant(data: np.ndarray) -> str:
    flat = data.reshape(-1)
    values: Iterable[str] = (repr(v.item()) if data.dtype.kind in "biuf" else str(v) for v in flat[:_MAX_INLINE_ELEMS])
    listed = ", ".join(values)
    if data.ndim == 0:
        return f"const({listed}, {data.dtype})"
    if flat.size <= _MAX_INLINE_ELEMS:
        shape = "" if data.ndim == 1 else f", shape={data.shape}"
        return f"const([{listed}], {data.dtype}{shape})"
    return f"const([{listed}, ...], {data.dtype}, shape={data.shape})"


def format_expr(expr: Expr) -> str:
    """One expression as text."""
    if isinstance(expr, Function):
        return format_function("function", expr)
    return _Printer().expr(expr)


def format_binding(binding: Binding) -> str:
    """One binding as text."""
    printer = _Printer()
    printer.binding(binding, 0)
    return "\n".join(printer.lines)


def format_function(name: str, function: Function) -> str:
    """One function as text."""
    printer = _Printer()
    printer.function(name, function)
    return "\n".join(printer.lines) + "\n"


def format_module(module: IRModule) -> str:
    """A module as text, its functions in order."""
    return "\n".join(format_function(name, function) for name, function in module.functions.items())
