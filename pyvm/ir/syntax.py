"""What a text says, before names are resolved: nodes, and the parser that makes them of words."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vmcore.errors import ArgumentTypeError, CompileError, ParseError

from .expr import Constant, DataTypeImm, Expr, ExternFunc, GlobalVar, NoneImm, PrimValue, ShapeExpr, StringImm
from .prim import Prim, SymVar, as_prim, sym_max, sym_min
from .printer import KEYWORDS
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
)
from .tokens import MAX_EXPRESSION_DEPTH, Token, error_at, split_data, tokenize

# What the text says, before names are resolved. Operands are expressions without variables, or one of these.


@dataclass(frozen=True)
class RefNode:
    name: str
    at: Token


@dataclass(frozen=True)
class CallNode:
    callee: Any  # an Expr, a RefNode, or the name of an operator
    args: list[Any]
    attrs: dict[str, Any]
    at: Token


@dataclass(frozen=True)
class TupleNode:
    fields: list[Any]
    at: Token


@dataclass(frozen=True)
class ItemNode:
    base: Any
    index: int
    at: Token


@dataclass(frozen=True)
class CastNode:
    value: Any
    info: StructInfo
    at: Token


@dataclass(frozen=True)
class IfNode:
    cond: Any
    branches: tuple[SequenceNode, SequenceNode]
    at: Token


@dataclass(frozen=True)
class FunctionNode:
    name: Token
    params: list[tuple[Token, StructInfo]]
    ret: StructInfo | None
    attrs: dict[str, Any]
    body: SequenceNode


@dataclass(frozen=True)
class StatementNode:
    target: Token
    info: StructInfo | None
    value: Any
    value_info: StructInfo | None
    source: str | None


@dataclass
class BlockNode:
    """Statements; of a dataflow block also what `output(...)` lists."""

    dataflow: bool
    statements: list[StatementNode] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)


@dataclass
class SequenceNode:
    blocks: list[BlockNode]
    result: Any


class TextParser:
    """Reads a text; `module` fills `attrs`, `functions` and `reads_of`."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ArgumentTypeError(f"parse: expected the text of a program, got {type(text).__name__}")
        program, self._data = split_data(text)
        self._arrays: dict[tuple[int, str, tuple[int, ...]], np.ndarray] = {}
        self._tokens = tokenize(program)
        self._next = 0
        self._signed: frozenset[str] = frozenset()
        self._depth = 0
        self._block: BlockNode | None = None
        self.attrs: dict[str, Any] = {}
        self.functions: list[FunctionNode] = []
        self.reads: dict[str, list[BlockNode | None]] = {}  # of the function being read
        self.reads_of: list[dict[str, list[BlockNode | None]]] = []

    # tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._token
        self._next += 1
        return token

    def _is(self, text: str) -> bool:
        token = self._tokens[self._next]
        return token.text == text and token.kind in ("mark", "name") and not token.quoted

    def _accept(self, text: str) -> bool:
        if self._is(text):
            self._next += 1
            return True
        return False

    def _unexpected(self, wanted: str) -> ParseError:
        token = self._token
        found = {"newline": "the line ends", "dedent": "the block ends", "indent": "an indented line"}
        return error_at(token, f"expected {wanted}, found {found.get(token.kind, repr(token.text))}")

    def _expect(self, text: str) -> Token:
        if not self._is(text):
            raise self._unexpected(repr(text))
        return self._take()

    def _kind(self, kind: str, wanted: str) -> Token:
        if self._token.kind != kind:
            raise self._unexpected(wanted)
        return self._take()

    def _name(self, wanted: str = "a name") -> Token:
        token = self._token
        if token.kind != "name" or (token.text in KEYWORDS and not token.quoted):
            raise self._unexpected(wanted)
        return self._take()

    def _list(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """Items up to `close`, which is taken; a comma may follow the last one."""
        items = []
        while not self._accept(close):
            items.append(item())
            if not self._is(close):
                self._expect(",")
        return items

    def _nested(self, parse_inner: Callable[[], Any]) -> Any:
        self._depth += 1
        if self._depth > MAX_EXPRESSION_DEPTH:
            found, limit = self._depth, MAX_EXPRESSION_DEPTH
            raise error_at(self._token, f"expressions are nested too deeply: {found} levels, the limit is {limit}")
        try:
            return parse_inner()
        finally:
            self._depth -= 1

    def _source(self) -> str | None:
        return self._take().text if self._token.kind == "source" else None

    def _end_line(self) -> str | None:
        source = self._source()
        self._kind("newline", "the end of the line")
        return source

    # module and functions

    def module(self) -> TextParser:
        """Reads a whole module; returns the parser."""
        if self._is("attrs"):
            self._take()
            self._expect("(")
            self.attrs = self._attr_list()
            self._end_line()
        names: set[str] = set()
        while self._token.kind != "end":
            self._signed = frozenset()
            self.reads = {}
            function, _, _ = self._function()
            if function.name.text in names:
                raise error_at(function.name, f"there are two functions {function.name.text!r}")
            names.add(function.name.text)
            self.functions.append(function)
            self.reads_of.append(self.reads)
        return self

    def struct_info(self) -> StructInfo:
        """Reads the whole text as one struct info."""
        info = self._info()
        if self._token.kind == "newline":
            self._take()
        self._kind("end", "the end of the text")
        return info

    def _function(self) -> tuple[FunctionNode, StructInfo | None, str | None]:
        """A function, the struct info of its variable where it differs, and its source."""
        attrs: dict[str, Any] = {}
        info: StructInfo | None = None
        while self._accept("@"):
            decorator = self._name("attrs, signed or type")
            self._expect("(")
            if decorator.text == "attrs":
                attrs = self._attr_list()
            elif decorator.text == "signed":
                self._signed |= {token.text for token in self._list(")", self._name)}
            elif decorator.text == "type":
                info = self._info()
                self._expect(")")
            else:
                raise error_at(decorator, f"there is no decorator @{decorator.text}; there are attrs, signed and type")
            self._end_line()
        self._expect("def")
        name = self._name("the name of the function")
        self._expect("(")
        params = self._list(")", self._param)
        ret = self._info() if self._accept("->") else None
        self._expect(":")
        source = self._end_line()
        block, self._block = self._block, None  # what a local function reads is read outside the block
        body = self._suite(is_function=True)[0]
        self._block = block
        return FunctionNode(name, params, ret, attrs, body), info, source

    def _param(self) -> tuple[Token, StructInfo]:
        name = self._name("the name of a parameter")
        if not self._accept(":"):
            raise error_at(name, f"parameter {name.text} needs struct info: `{name.text}: Tensor((2, 3), float32)`")
        return name, self._info()

    # statements

    def _suite(self, is_function: bool) -> tuple[SequenceNode, Any]:
        """An indented block. Of a branch, also its last statement, which says what it gives a value to."""
        self._kind("indent", "an indented block")
        blocks: list[BlockNode] = []
        result: Any = None
        returned = False
        while self._token.kind != "dedent":
            if returned:
                raise self._unexpected("the end of the block after `return`")
            if is_function and self._is("return"):
                self._take()
                result = self._operand()
                self._end_line()
                returned = True
            elif self._is("with"):
                blocks.append(self._dataflow())
            elif self._accept("pass"):
                self._end_line()
            else:
                if not blocks or blocks[-1].dataflow:
                    blocks.append(BlockNode(False))
                blocks[-1].statements.append(self._statement())
        at = self._take()
        if is_function:
            if not returned:
                raise error_at(at, "the function ends without `return`")
            return SequenceNode(blocks, result), None
        if not blocks or blocks[-1].dataflow or not blocks[-1].statements:
            raise error_at(at, "a branch ends with an assignment to the variable of the if")
        last = blocks[-1].statements.pop()
        if isinstance(last.value, (CastNode, IfNode, FunctionNode)):
            raise error_at(last.target, "a branch ends with a plain assignment")
        return SequenceNode(blocks, last.value), last

    def _dataflow(self) -> BlockNode:
        self._expect("with")
        at = self._expect("dataflow")
        if self._block is not None:
            raise error_at(at, "a dataflow block inside a dataflow block")
        for mark in ("(", ")", ":"):
            self._expect(mark)
        self._end_line()
        self._kind("indent", "an indented block")
        block = self._block = BlockNode(True)
        while self._token.kind != "dedent":
            if self._is("output") and self._tokens[self._next + 1].text == "(":
                self._next += 2
                block.outputs.update(token.text for token in self._list(")", self._name))
                self._end_line()
            elif self._accept("pass"):
                self._end_line()
            else:
                block.statements.append(self._statement())
        self._take()
        self._block = None
        return block

    def _statement(self) -> StatementNode:
        if self._is("if"):
            return self._if()
        if self._is("@") or self._is("def"):
            function, info, source = self._function()
            return StatementNode(function.name, info, function, None, source)
        target = self._name("a statement")
        info = self._info() if self._accept(":") else None
        self._expect("=")
        value = self._value()
        value_info = self._info() if self._accept("->") else None
        return StatementNode(target, info, value, value_info, self._end_line())

    def _if(self) -> StatementNode:
        at = self._expect("if")
        cond = self._operand()
        self._expect(":")
        source = self._end_line()
        taken, first = self._suite(is_function=False)
        self._expect("else")
        self._expect(":")
        self._end_line()
        other, second = self._suite(is_function=False)
        if first.target.text != second.target.text:
            raise error_at(
                second.target, f"the branches give values to different variables: {first.target.text} and "
                f"{second.target.text}"
            )  # fmt: skip
        node = IfNode(cond, (taken, other), at)
        return StatementNode(first.target, first.info or second.info, node, first.value_info, source)

    # expressions

    def _value(self) -> Any:
        if self._is("match_cast") and self._tokens[self._next + 1].text == "(":
            at = self._take()
            self._expect("(")
            value = self._operand()
            self._expect(",")
            info = self._info()
            self._expect(")")
            return CastNode(value, info, at)
        return self._operand()

    def _operand(self) -> Any:
        node = self._nested(self._primary)
        while self._is("["):
            at = self._take()
            node = ItemNode(node, self._integer(), at)
            self._expect("]")
        return node

    def _integer(self) -> int:
        token = self._kind("number", "an integer")
        if not token.text.isdecimal():
            raise error_at(token, f"expected an integer, found {token.text}")
        return self._whole(token)

    def _whole(self, token: Token) -> int:
        """The value of digits, which some integer type of tensors has."""
        value = int(token.text) if len(token.text) < 4000 else 1 << 64
        if value >= 1 << 64:
            raise error_at(token, f"{token.text[:40]} does not fit in 64 bits")
        return value

    def _primary(self) -> Any:
        token = self._token
        if token.kind == "string":
            return StringImm(self._take().text)
        if token.kind == "number" or self._is("-"):
            return PrimValue(self._number())
        if self._accept("@"):
            return self._call_or_leaf(GlobalVar(self._name("the name of a function").text), token)
        if self._accept("("):
            fields = self._list(")", self._operand)
            if len(fields) == 1 and self._tokens[self._next - 2].text != ",":
                return fields[0]
            return TupleNode(fields, token)
        if token.kind == "name" and not token.quoted:
            if token.text in ("True", "False"):
                return PrimValue(self._take().text == "True")
            if token.text == "None":
                self._take()
                return NoneImm()
            if self._tokens[self._next + 1].text == "(" and self._tokens[self._next + 1].kind == "mark":
                return self._form(self._take())
        name = self._name("a value")
        self.reads.setdefault(name.text, []).append(self._block)
        return RefNode(name.text, name)

    def _form(self, name: Token) -> Any:
        """What begins with `name(`: a literal, or a call."""
        self._expect("(")
        form = name.text
        if form == "shape":
            return ShapeExpr(self._list(")", self._prim))
        if form == "dim":
            value = self._prim()
            self._expect(")")
            return PrimValue(value)
        if form == "float":
            return PrimValue(self._float_form())
        if form == "dtype":
            text = self._kind("string", "an element type in quotes")
            self._expect(")")
            return self._checked(text, lambda: DataTypeImm(text.text))
        if form == "const":
            return Constant(self._array(name))
        if form == "extern":
            text = self._kind("string", "a name in quotes")
            self._expect(")")
            return self._call_or_leaf(ExternFunc(text.text), name)
        if form == "call":
            callee = self._operand()
            if not self._is(")"):
                self._expect(",")
            return self._arguments(callee, name)
        return self._arguments(form, name)

    def _call_or_leaf(self, callee: Expr, at: Token) -> Any:
        return self._arguments(callee, at) if self._accept("(") else callee

    def _arguments(self, callee: Any, at: Token) -> CallNode:
        args: list[Any] = []
        attrs: dict[str, Any] = {}
        while not self._accept(")"):
            if self._token.kind == "name" and self._tokens[self._next + 1].text == "=":
                self._attr_item(attrs)
            elif attrs:
                raise error_at(self._token, "an argument after an attribute")
            else:
                args.append(self._operand())
            if not self._is(")"):
                self._expect(",")
        return CallNode(callee, args, attrs, at)

    # attributes and numbers

    def _attr_list(self) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        self._list(")", lambda: self._attr_item(attrs))
        return attrs

    def _attr_item(self, attrs: dict[str, Any]) -> None:
        key = self._name("the name of an attribute")
        self._expect("=")
        if key.text in attrs:
            raise error_at(key, f"attribute {key.text} is given twice")
        attrs[key.text] = self._nested(self._attr)

    def _attr(self) -> Any:
        token = self._token
        if token.kind == "string":
            return self._take().text
        if self._accept("["):
            return self._list("]", lambda: self._nested(self._attr))
        if self._is("(") and not self._is_parenthesized_prim():
            self._take()
            return tuple(self._list(")", lambda: self._nested(self._attr)))
        if token.kind == "name" and not token.quoted:
            if token.text in ("True", "False", "None"):
                return {"True": True, "False": False, "None": None}[self._take().text]
            if self._tokens[self._next + 1].text == "(" and token.text in ("const", "float"):
                self._next += 2
                return self._array(token) if token.text == "const" else self._float_form()
        if token.kind == "number" or (self._is("-") and self._starts_number(self._tokens[self._next + 1])):
            after = self._tokens[self._next + (2 if self._is("-") else 1)]
            if after.text not in ("+", "-", "*", "//", "%"):
                return self._number()
        return self._prim()

    @staticmethod
    def _starts_number(token: Token) -> bool:
        return token.kind == "number" or (token.text == "float" and token.kind == "name" and not token.quoted)

    def _is_parenthesized_prim(self) -> bool:
        """Whether the bracket here closes before an operator: `(n+1)//2` and not `(n+1, 2)`."""
        depth, position = 0, self._next
        while True:
            text = self._tokens[position].text
            depth += (text in ("(", "[")) - (text in (")", "]"))
            position += 1
            if depth == 0:
                return self._tokens[position].text in ("+", "-", "*", "//", "%")
            if self._tokens[position].kind == "end":
                return False

    def _number(self) -> int | float:
        sign = -1 if self._accept("-") else 1
        if sign < 0 and self._is("float"):
            self._take()
            self._expect("(")
            return -self._float_form()
        token = self._kind("number", "a number")
        return sign * (self._whole(token) if token.text.isdecimal() else float(token.text))

    def _float_form(self) -> float:
        text = self._kind("string", '"nan", "inf" or "-inf"')
        self._expect(")")
        return float(self._checked(text, lambda: float(text.text)))

    def _checked(self, at: Token, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ParseError:
            raise
        except (ValueError, TypeError, ZeroDivisionError, IndexError, OverflowError, CompileError) as error:
            raise error_at(at, str(error)) from error

    def _array(self, at: Token) -> np.ndarray:
        """What follows `const(`."""
        if self._accept("data"):
            self._expect("[")
            index = self._integer()
            self._expect("]")
            raw: bytes | None = self._data.get(index)
            if raw is None:
                raise error_at(at, f"there is no data[{index}]; the section data has {len(self._data)} entries")
        else:
            raw, index = None, -1
            many = self._accept("[")
            elements = self._list("]", self._element) if many else [self._element()]
        self._expect(",")
        dtype = self._dtype()
        shape: tuple[int, ...] | None = None
        if self._accept(","):
            self._expect("shape")
            self._expect("=")
            self._expect("(")
            shape = tuple(self._list(")", self._integer))
        self._expect(")")
        if raw is None:
            default = (len(elements),) if many else ()
            return np.asarray(
                self._checked(at, lambda: np.array(elements, dtype).reshape(default if shape is None else shape))
            )
        if shape is None:
            raise error_at(at, "a constant from data needs its shape")
        key = index, str(dtype), shape
        if key not in self._arrays:
            # Copied: the bytes of a string have no alignment to speak of.
            self._arrays[key] = self._checked(at, lambda: np.frombuffer(raw, dtype).reshape(shape).copy())
        return self._arrays[key]

    def _element(self) -> Any:
        if self._is("..."):
            raise error_at(self._token, "the elements of this constant were elided when the text was written")
        if self._is("True") or self._is("False"):
            return self._take().text == "True"
        if self._accept("float"):
            self._expect("(")
            return self._float_form()
        return self._number()

    def _dtype(self) -> np.dtype:
        token = self._name("an element type")
        try:
            return np.dtype(token.text)
        except TypeError:
            try:
                import ml_dtypes

                return np.dtype(getattr(ml_dtypes, token.text))
            except (ImportError, AttributeError):
                raise error_at(token, f"numpy has no element type {token.text}") from None

    # symbolic integers

    def _prim(self) -> Prim:
        return self._nested(self._prim_sum)

    def _prim_sum(self) -> Prim:
        value = self._prim_product()
        while self._is("+") or self._is("-"):
            add = self._take().text == "+"
            other = self._prim_product()
            value = value + other if add else value - other
        return value

    def _prim_product(self) -> Prim:
        value = self._prim_atom()
        while self._is("*") or self._is("//") or self._is("%"):
            mark = self._take()
            other = self._prim_atom()
            if mark.text == "*":
                value = value * other
            else:
                value = self._checked(
                    mark, partial(operator.floordiv if mark.text == "//" else operator.mod, value, other)
                )
        return value

    def _prim_atom(self) -> Prim:
        if self._accept("-"):
            return -self._nested(self._prim_atom)
        if self._token.kind == "number":
            return self._integer()
        if self._accept("("):
            value = self._prim()
            self._expect(")")
            return value
        name = self._name("an integer or a symbol")
        if name.text in ("min", "max") and self._accept("("):
            values = self._list(")", self._prim)
            if not values:
                raise error_at(name, f"{name.text} of nothing")
            combine = sym_min if name.text == "min" else sym_max
            result = values[0]
            for value in values[1:]:
                result = combine(result, value)
            return as_prim(result)
        return self._checked(name, lambda: SymVar(name.text, nonnegative=name.text not in self._signed))

    # struct info

    def _info(self) -> StructInfo:
        return self._nested(self._info_inner)

    def _info_inner(self) -> StructInfo:
        name = self._name("struct info (Tensor, Shape, Prim, Tuple, Callable or Object)")
        if name.text == "Object":
            return ObjectStructInfo()
        kinds = {
            "Tensor": self._tensor_info,
            "Shape": self._shape_info,
            "Prim": self._prim_info,
            "Tuple": lambda: TupleStructInfo(self._list(")", self._info)),
            "Callable": self._callable_info,
        }
        if name.text not in kinds:
            raise error_at(name, f"there is no struct info {name.text}; there are {', '.join(kinds)} and Object")
        self._expect("(")
        return self._checked(name, kinds[name.text])

    def _dims(self) -> tuple[tuple[Prim, ...] | None, int]:
        """`(2, n)`, `ndim=2` or `?`: the dimensions and the rank."""
        if self._accept("?"):
            return None, -1
        if self._accept("ndim"):
            self._expect("=")
            return None, self._integer()
        self._expect("(")
        dims = tuple(self._list(")", self._prim))
        return dims, len(dims)

    def _tensor_info(self) -> StructInfo:
        dims, ndim = self._dims()
        self._expect(",")
        dtype = None if self._accept("?") else self._name("an element type").text
        self._expect(")")
        return TensorStructInfo(dims, dtype, ndim)

    def _shape_info(self) -> StructInfo:
        dims, ndim = self._dims()
        self._expect(")")
        return ShapeStructInfo(dims, ndim)

    def _prim_info(self) -> StructInfo:
        dtype = self._name("an element type").text
        value: Any = None
        if self._accept(","):
            value = self._attr()
        self._expect(")")
        return PrimStructInfo(dtype, value)

    def _callable_info(self) -> StructInfo:
        self._expect("(")
        params: list[StructInfo] | None = None
        if self._accept("..."):
            self._expect(")")
        else:
            params = self._list(")", self._info)
        self._expect("->")
        ret = self._info()
        self._expect(")")
        return CallableStructInfo(params, ret)
