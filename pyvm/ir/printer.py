"""The program as text that reads like Python; `parser` is the exact inverse.

One line per binding: `name: struct info = value`, with the source operator as a comment in brackets at its end.
Variables that share a name get a suffix, so a name in the text means one variable of its function; "_" is never read.
Names that are not identifiers stand in backquotes. In a dataflow block a variable is visible outside if it is used
there or if the block lists it in `output(...)`. Constants of more than a few elements are kept in a section `data:`
after the functions.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .expr import (
    Binding,
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
from .prim import PrimExpr, SymVar, free_vars
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    StructInfo,
    TupleStructInfo,
    format_shape,
    struct_info_vars,
)

_INDENT = "    "
_MAX_INLINE_ELEMS = 4
_COMMENT_COLUMN = 60
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\Z")
KEYWORDS = frozenset({"None", "True", "False", "if", "else", "def", "return", "with", "pass"})


class _Data:
    """The arrays of the section `data:`, by the memory they view."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._index: dict[tuple[int, str, tuple[int, ...]], int] = {}

    def index_of(self, data: np.ndarray) -> int:
        key = data.__array_interface__["data"][0], str(data.dtype), data.shape
        known = self._index.get(key)
        if known is None:
            known = self._index[key] = len(self.arrays)
            self.arrays.append(data)  # kept, so that its memory stays its own
        return known

    def lines(self) -> Iterator[str]:
        if self.arrays:
            yield "\ndata:\n"
        for index, data in enumerate(self.arrays):
            text = base64.b64encode(data.tobytes()).decode()
            yield f'{_INDENT}{index}: "{text}"\n'


class _Printer:
    """Text of one function; remembers which variable got which name."""

    def __init__(self, data: _Data | None = None) -> None:
        self.lines: list[str] = []
        self._data = data  # None: long constants are elided
        self._names: dict[Var, str] = {}
        self._taken: dict[str, int] = {}
        self._read: dict[Var, set[DataflowBlock | None]] = {}  # variable -> dataflow blocks that read it

    def name(self, var: Var) -> str:
        return quoted_name(self._name(var))

    def _name(self, var: Var) -> str:
        known = self._names.get(var)
        if known is not None:
            return known
        if var.name == "_" and var not in self._read:
            return "_"  # what no one reads needs no name
        known = "_u" if var.name == "_" else var.name
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
        self._collect_reads(function.body, None)
        for param in function.params:
            self._names[param] = param.name
            self._taken[param.name] = 1
        signed = sorted({symbol.name for symbol in function_symbols(function) if not symbol.nonnegative})
        if signed:
            self.lines.append(f"@signed({', '.join(signed)})")
        self._definition(quoted_name(name), function, 0, "")

    def _definition(self, name: str, function: Function, depth: int, source: str) -> None:
        if function.attrs:
            self.lines.append(f"{_INDENT * depth}@attrs({', '.join(self._attrs(function.attrs))})")
        params = ", ".join(f"{self.name(p)}: {_info(p.struct_info)}" for p in function.params)
        self._line(f"def {name}({params}) -> {_info(function.ret_struct_info)}:", source, depth)
        self.sequence(function.body, depth + 1, "return ")

    def sequence(self, seq: SeqExpr, depth: int, result: str) -> None:
        for block in seq.blocks:
            if not isinstance(block, DataflowBlock):
                for binding in block.bindings:
                    self.binding(binding, depth)
                continue
            self.lines.append(f"{_INDENT * depth}with dataflow():")
            for binding in block.bindings:
                self.binding(binding, depth + 1)
            unused = [
                self.name(binding.var)
                for binding in block.bindings
                if not isinstance(binding.var, DataflowVar) and self._read.get(binding.var, set()) <= {block}
            ]
            if unused:
                self.lines.append(f"{_INDENT * (depth + 1)}output({', '.join(unused)})")
            elif not block.bindings:
                self.lines.append(f"{_INDENT * (depth + 1)}pass")
        self.lines.append(f"{_INDENT * depth}{result}{self.expr(seq.body)}")

    def binding(self, binding: Binding, depth: int) -> None:
        source = "" if binding.source is None else f"[{json.dumps(binding.source, ensure_ascii=False)[1:-1]}]"
        value, info = binding.value, binding.var.struct_info
        if isinstance(binding, MatchCast):
            shown = "" if info == binding.struct_info else f": {_info(info)}"
            text = f"match_cast({self.expr(value)}, {binding.struct_info})"
            self._line(f"{self._target(binding.var)}{shown} = {text}", source, depth)
            return
        own = value.struct_info
        differs = "" if own == info or not isinstance(value, (Call, If)) else f" -> {_info(own)}"
        if isinstance(value, If):
            self._line(f"if {self.expr(value.cond)}:", source, depth)
            name = self._target(binding.var)
            self.sequence(value.true_branch, depth + 1, f"{name}: {_info(info)} = ")
            self.lines[-1] += differs
            self.lines.append(f"{_INDENT * depth}else:")
            self.sequence(value.false_branch, depth + 1, f"{name} = ")
            return
        if isinstance(value, Function):
            name = self._target(binding.var)
            if info != own:
                self.lines.append(f"{_INDENT * depth}@type({_info(info)})")
            self._definition(name, value, depth, source)
            return
        shown = "" if isinstance(info, ObjectStructInfo) and info == own else f": {_info(info)}"
        self._line(f"{self._target(binding.var)}{shown} = {self.expr(value)}{differs}", source, depth)

    def _target(self, var: Var) -> str:
        return self.name(var)

    def _line(self, text: str, comment: str, depth: int) -> None:
        text = _INDENT * depth + text
        self.lines.append(f"{text:<{_COMMENT_COLUMN}}  # {comment}" if comment else text)

    def expr(self, expr: Expr) -> str:
        if isinstance(expr, Var):
            return self.name(expr)
        if isinstance(expr, Constant):
            return self._constant(expr.data)
        if isinstance(expr, ShapeExpr):
            return f"shape{format_shape(expr.values)}"
        if isinstance(expr, PrimValue):
            return f"dim({expr.value})" if isinstance(expr.value, PrimExpr) else _scalar(expr.value)
        if isinstance(expr, StringImm):
            return _quoted(expr.value)
        if isinstance(expr, DataTypeImm):
            return f"dtype({_quoted(expr.value)})"
        if isinstance(expr, NoneImm):
            return "None"
        if isinstance(expr, GlobalVar):
            return f"@{quoted_name(expr.name)}"
        if isinstance(expr, ExternFunc):
            return f"extern({_quoted(expr.name)})"
        if isinstance(expr, Tuple):
            fields = [self.expr(field) for field in expr.fields]
            return f"({fields[0]},)" if len(fields) == 1 else f"({', '.join(fields)})"
        if isinstance(expr, TupleGetItem):
            return f"{self.expr(expr.tuple)}[{expr.index}]"
        if isinstance(expr, Call):
            return self._call(expr)
        if isinstance(expr, If):
            return f"if {self.expr(expr.cond)} ..."
        return f"<{type(expr).__name__}>"

    def _call(self, call: Call) -> str:
        callee = call.op
        args = [self.expr(arg) for arg in call.args]
        if isinstance(callee, Var):  # a variable may be called like an operator
            name = "call"
            args.insert(0, self.name(callee))
        else:
            name = self.expr(callee) if isinstance(callee, Expr) else callee.name
        return f"{name}({', '.join([*args, *self._attrs(call.attrs)])})"

    def _attrs(self, attrs: dict[str, Any]) -> list[str]:
        return [f"{key}={self._attr(value)}" for key, value in attrs.items()]

    def _attr(self, value: Any) -> str:
        if isinstance(value, str):
            return _quoted(value)
        if isinstance(value, (tuple, list)):
            listed = ", ".join(map(self._attr, value))
            if isinstance(value, list):
                return f"[{listed}]"
            return f"({listed},)" if len(value) == 1 else f"({listed})"
        if isinstance(value, np.ndarray):
            return self._constant(value)
        return _scalar(value)

    def _constant(self, data: np.ndarray) -> str:
        flat = data.reshape(-1)
        shape = "" if data.ndim == 1 else f", shape={data.shape}"
        values: Iterable[str]
        if data.dtype.kind in "biuf":
            values = (_scalar(v) for v in flat[:_MAX_INLINE_ELEMS])
        else:
            values = (str(v) for v in flat[:_MAX_INLINE_ELEMS])
        if flat.size <= _MAX_INLINE_ELEMS and (self._data is None or _reads_back(flat)):
            listed = ", ".join(values)
            return f"const({listed}, {data.dtype})" if data.ndim == 0 else f"const([{listed}], {data.dtype}{shape})"
        if self._data is None:
            return f"const([{', '.join(values)}, ...], {data.dtype}, shape={data.shape})"
        return f"const(data[{self._data.index_of(data)}], {data.dtype}, shape={data.shape})"

    def _collect_reads(self, seq: SeqExpr, outer: DataflowBlock | None) -> None:
        self._reads(seq.body, outer)
        for block in seq.blocks:
            inside = block if isinstance(block, DataflowBlock) else outer
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, If):
                    self._reads(value.cond, inside)
                    self._collect_reads(value.true_branch, inside)
                    self._collect_reads(value.false_branch, inside)
                elif isinstance(value, Function):
                    self._collect_reads(value.body, None)  # wherever the function goes, it reads
                else:
                    self._reads(value, inside)

    def _reads(self, value: Expr, block: DataflowBlock | None) -> None:
        for operand in _leaves(value):
            if isinstance(operand, Var):
                self._read.setdefault(operand, set()).add(block)


def _leaves(value: Expr) -> tuple[Expr, ...]:
    if isinstance(value, Call):
        return (*value.args, value.op) if isinstance(value.op, Var) else value.args
    if isinstance(value, Tuple):
        return value.fields
    return (value.tuple,) if isinstance(value, TupleGetItem) else (value,)


def function_symbols(function: Function) -> Iterator[SymVar]:
    """All symbols that a function mentions, as often as it does."""
    yield from _symbols_of_attr(tuple(function.attrs.values()))
    for info in (*(param.struct_info for param in function.params), function.ret_struct_info):
        yield from _all_info_vars(info)
    yield from _symbols_of_sequence(function.body)


def _symbols_of_sequence(seq: SeqExpr) -> Iterator[SymVar]:
    yield from _symbols_of_value(seq.body)
    for binding in seq.bindings():
        value = binding.value
        yield from _all_info_vars(binding.var.struct_info)
        if isinstance(binding, MatchCast):
            yield from _all_info_vars(binding.struct_info)
        if isinstance(value, If):
            yield from _symbols_of_value(value.cond)
            yield from _symbols_of_sequence(value.true_branch)
            yield from _symbols_of_sequence(value.false_branch)
        elif isinstance(value, Function):
            yield from function_symbols(value)
        else:
            yield from _symbols_of_value(value)


def _symbols_of_value(value: Expr) -> Iterator[SymVar]:
    if isinstance(value, (Call, If)):
        yield from _all_info_vars(value.struct_info)
    if isinstance(value, Call):
        yield from _symbols_of_attr(tuple(value.attrs.values()))
    for leaf in _leaves(value):
        if isinstance(leaf, ShapeExpr):
            yield from _symbols_of_attr(leaf.values)
        elif isinstance(leaf, PrimValue):
            yield from _symbols_of_attr(leaf.value)


def _symbols_of_attr(value: Any) -> Iterator[SymVar]:
    if isinstance(value, PrimExpr):
        yield from free_vars(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _symbols_of_attr(item)


def _all_info_vars(info: StructInfo | None) -> Iterator[SymVar]:
    if isinstance(info, CallableStructInfo):
        for inner in (*(info.params or ()), info.ret):
            yield from _all_info_vars(inner)
    elif isinstance(info, TupleStructInfo):
        for inner in info.fields:
            yield from _all_info_vars(inner)
    elif info is not None:
        yield from struct_info_vars(info)


def _info(info: StructInfo | None) -> str:
    return "?" if info is None else str(info)


def quoted_name(name: str) -> str:
    """A name as it stands in the text."""
    if _IDENTIFIER.match(name) and name not in KEYWORDS:
        return name
    escaped = json.dumps(name, ensure_ascii=False)[1:-1].replace("`", "\\u0060")
    return f"`{escaped}`"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _scalar(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    return str(value)


def _reads_back(flat: np.ndarray) -> bool:
    """Whether the decimal form of the elements gives back every bit of them."""
    if flat.dtype.kind not in "biuf" or flat.dtype.itemsize > 8:
        return False
    values = [float(str(v)) if isinstance(v, float) else v for v in flat.tolist()]  # str drops the sign of a NaN
    return bool(np.array(values, flat.dtype).tobytes() == flat.tobytes())


@typed_nesting("format_expr")
def format_expr(expr: Expr) -> str:
    """One expression as text; long constants are elided."""
    if isinstance(expr, Function):
        return format_function("function", expr)
    return _Printer().expr(expr)


@typed_nesting("format_binding")
def format_binding(binding: Binding) -> str:
    """One binding as text; long constants are elided."""
    printer = _Printer()
    printer.binding(binding, 0)
    return "\n".join(printer.lines)


@typed_nesting("format_function")
def format_function(name: str, function: Function) -> str:
    """One function as text; long constants are elided."""
    return _function_text(name, function, None)


def _function_text(name: str, function: Function, data: _Data | None) -> str:
    printer = _Printer(data)
    printer.function(name, function)
    return "\n".join(printer.lines) + "\n"


@typed_nesting("format_module")
def format_module(module: IRModule, elide_constants: bool = False) -> str:
    """A module as text, its functions in order; without `elide_constants` it parses back to an equal module."""
    data = None if elide_constants else _Data()
    parts = []
    if module.attrs:
        parts.append(f"attrs({', '.join(_Printer(data)._attrs(module.attrs))})\n")
    parts += [_function_text(name, function, data) for name, function in module.functions.items()]
    return "\n".join(parts) + ("".join(data.lines()) if data is not None else "")
