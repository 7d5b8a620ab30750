"""From the text of a program to the module: the exact inverse of `printer`.

Written by hand, a text may leave out more: struct info of results (it is inferred), `-> ...` of functions that are not
called before their result is known, and calls may be nested where the printer shows variables.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vmcore.errors import CompileError, ParseError

from .builder import erase_branch, infer_call
from .expr import (
    LEAVES,
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
    VarBinding,
)
from .prim import Prim, SymVar, as_prim, sym_max, sym_min
from .printer import KEYWORDS
from .rules import contradict
from .struct_info import (
    CallableStructInfo,
    ObjectStructInfo,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    TensorStructInfo,
    TupleStructInfo,
    common_struct_info,
)

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\\\n)
      |(?P<comment>\#[^\n]*)
      |(?P<newline>\n)
      |(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
      |(?P<name>[A-Za-z_][A-Za-z_0-9]*)
      |(?P<string>"(?:[^"\\\n]|\\.)*")
      |(?P<quoted>`(?:[^`\\\n]|\\.)*`)
      |(?P<mark>->|//|\.\.\.|[-+*%()\[\]:,=@?])
    """,
    re.VERBOSE,
)
_MAX_DEPTH = 200  # of nested blocks and expressions: a hostile text ends in an error, not in a recursion limit


@dataclass(frozen=True)
class _Token:
    kind: str  # name, string, number, mark, newline, indent, dedent, end, source
    text: str
    line: int
    column: int
    quoted: bool = False


# What the text says, before names are resolved. Operands are expressions without variables, or one of these.


@dataclass(frozen=True)
class _Ref:
    name: str
    at: _Token


@dataclass(frozen=True)
class _CallNode:
    callee: Any  # an Expr, a _Ref, or the name of an operator
    args: list[Any]
    attrs: dict[str, Any]
    at: _Token


@dataclass(frozen=True)
class _TupleNode:
    fields: list[Any]
    at: _Token


@dataclass(frozen=True)
class _ItemNode:
    base: Any
    index: int
    at: _Token


@dataclass(frozen=True)
class _CastNode:
    value: Any
    info: StructInfo
    at: _Token


@dataclass(frozen=True)
class _IfNode:
    cond: Any
    branches: tuple[_Sequence, _Sequence]
    at: _Token


@dataclass(frozen=True)
class _FunctionNode:
    name: _Token
    params: list[tuple[_Token, StructInfo]]
    ret: StructInfo | None
    attrs: dict[str, Any]
    body: _Sequence


@dataclass(frozen=True)
class _Statement:
    target: _Token
    info: StructInfo | None
    value: Any
    value_info: StructInfo | None
    source: str | None


@dataclass
class _Block:
    """Statements; of a dataflow block also what `output(...)` lists."""

    dataflow: bool
    statements: list[_Statement] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)


@dataclass
class _Sequence:
    blocks: list[_Block]
    result: Any


def parse(text: str) -> IRModule:
    """The module that a text describes.

    Parameters
    ----------
    text : str
        What `IRModule.script()` returns, or a program written by hand in the same form.

    Returns
    -------
    IRModule
        Equal to the one that was printed (`structural_equal`).

    Raises
    ------
    ParseError
        Names line, column and what is wrong there.
    """
    return _Builder(_Parser(text)).module()


def _error(at: _Token, message: str) -> ParseError:
    return ParseError(f"line {at.line}, column {at.column}: {message}")


# --- tokens


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    indents = [0]
    brackets: list[_Token] = []
    position, line, line_start = 0, 1, 0
    fresh = True  # nothing but blanks on this line so far
    while position < len(text):
        match = _TOKEN.match(text, position)
        at = _Token("mark", text[position], line, position - line_start + 1)
        if match is None:
            raise _error(at, f"unexpected character {text[position]!r}")
        kind, word = match.lastgroup or "", match.group()
        position = match.end()
        if kind == "newline" or (kind == "space" and word.endswith("\n")):
            if kind == "newline" and not brackets and not fresh:
                tokens.append(_Token("newline", "\n", at.line, at.column))
            line, line_start = line + 1, position
            fresh = fresh or (kind == "newline" and not brackets)
            continue
        if kind == "space":
            continue
        if kind == "comment":
            inner = word[1:].strip()
            if not fresh and not brackets and inner.startswith("[") and inner.endswith("]"):
                tokens.append(_Token("source", _unescaped(f'"{inner[1:-1]}"', at), at.line, at.column))
            continue
        if fresh:
            fresh = False
            width = at.column - 1
            if width > indents[-1]:
                indents.append(width)
                tokens.append(_Token("indent", "", at.line, at.column))
                if len(indents) > _MAX_DEPTH:
                    raise _error(at, "blocks are nested too deeply")
            while width < indents[-1]:
                indents.pop()
                tokens.append(_Token("dedent", "", at.line, at.column))
            if width != indents[-1]:
                raise _error(at, "this indentation matches no line above")
        if word in ("(", "["):
            brackets.append(at)
        elif word in (")", "]"):
            if not brackets or brackets.pop().text + word not in ("()", "[]"):
                raise _error(at, f"unmatched {word!r}")
        if kind == "string":
            word = _unescaped(word, at)
        elif kind == "quoted":
            tokens.append(_Token("name", _unescaped(f'"{word[1:-1]}"', at), at.line, at.column, quoted=True))
            continue
        tokens.append(_Token(kind, word, at.line, at.column))
    end = _Token("end", "end of text", line, position - line_start + 1)
    if brackets:
        raise _error(brackets[-1], f"{brackets[-1].text!r} is never closed")
    if not fresh:
        tokens.append(_Token("newline", "\n", end.line, end.column))
    tokens += [_Token("dedent", "", end.line, end.column)] * (len(indents) - 1)
    return [*tokens, end]


def _unescaped(literal: str, at: _Token) -> str:
    try:
        return str(json.loads(literal))
    except ValueError as error:
        raise _error(at, f"malformed escape in {literal}: {error}") from error


def _split_data(text: str) -> tuple[str, dict[int, bytes]]:
    """The program and the section `data:`."""
    head, mark, tail = ("\n" + text).rpartition("\ndata:\n")
    if not mark:
        return text, {}
    data: dict[int, bytes] = {}
    first = head.count("\n") + 2
    for number, line in enumerate(tail.split("\n"), first):
        stripped = line.strip()
        if not stripped:
            continue
        at = _Token("mark", "", number, len(line) - len(line.lstrip()) + 1)
        index, colon, literal = stripped.partition(":")
        literal = literal.strip()
        if not colon or not index.isdecimal() or len(literal) < 2 or literal[0] != '"' or literal[-1] != '"':
            raise _error(at, 'an entry of data reads `0: "base64"`')
        if int(index) in data:
            raise _error(at, f"data[{index}] is defined twice")
        try:
            data[int(index)] = base64.b64decode(literal[1:-1], validate=True)
        except binascii.Error as error:
            raise _error(at, f"data[{index}] is not base64: {error}") from error
    return head[1:] + "\n", data


# --- text to nodes


class _Parser:
    def __init__(self, text: str) -> None:
        program, self._data = _split_data(text)
        self._arrays: dict[tuple[int, str, tuple[int, ...]], np.ndarray] = {}
        self._tokens = _tokenize(program)
        self._next = 0
        self._signed: frozenset[str] = frozenset()
        self._depth = 0
        self._block: _Block | None = None
        self.attrs: dict[str, Any] = {}
        self.functions: list[_FunctionNode] = []
        self.reads: dict[str, list[_Block | None]] = {}  # of the function being read
        self.reads_of: list[dict[str, list[_Block | None]]] = []
        self._module()

    # tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _is(self, text: str) -> bool:
        token = self._token
        return token.text == text and token.kind in ("mark", "name") and not token.quoted

    def _accept(self, text: str) -> bool:
        if self._is(text):
            self._next += 1
            return True
        return False

    def _unexpected(self, wanted: str) -> ParseError:
        token = self._token
        found = {"newline": "the line ends", "dedent": "the block ends", "indent": "an indented line"}
        return _error(token, f"expected {wanted}, found {found.get(token.kind, repr(token.text))}")

    def _expect(self, text: str) -> _Token:
        if not self._is(text):
            raise self._unexpected(repr(text))
        return self._take()

    def _kind(self, kind: str, wanted: str) -> _Token:
        if self._token.kind != kind:
            raise self._unexpected(wanted)
        return self._take()

    def _name(self, wanted: str = "a name") -> _Token:
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
        if self._depth > _MAX_DEPTH:
            raise _error(self._token, "expressions are nested too deeply")
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

    def _module(self) -> None:
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
                raise _error(function.name, f"there are two functions {function.name.text!r}")
            names.add(function.name.text)
            self.functions.append(function)
            self.reads_of.append(self.reads)

    def _function(self) -> tuple[_FunctionNode, StructInfo | None, str | None]:
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
                raise _error(decorator, f"there is no decorator @{decorator.text}; there are attrs, signed and type")
            self._end_line()
        self._expect("def")
        name = self._name("the name of the function")
        self._expect("(")
        params = self._list(")", self._param)
        ret = self._info() if self._accept("->") else None
        self._expect(":")
        source = self._end_line()
        block, self._block = self._block, None  # what a local function reads is read outside the block
        body = self._nested(lambda: self._suite(is_function=True))[0]
        self._block = block
        return _FunctionNode(name, params, ret, attrs, body), info, source

    def _param(self) -> tuple[_Token, StructInfo]:
        name = self._name("the name of a parameter")
        if not self._accept(":"):
            raise _error(name, f"parameter {name.text} needs struct info: `{name.text}: Tensor((2, 3), float32)`")
        return name, self._info()

    # statements

    def _suite(self, is_function: bool) -> tuple[_Sequence, _Statement | None]:
        """An indented block. Of a branch, also its last statement, which says what it gives a value to."""
        self._kind("indent", "an indented block")
        blocks: list[_Block] = []
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
                    blocks.append(_Block(False))
                blocks[-1].statements.append(self._statement())
        at = self._take()
        if is_function:
            if not returned:
                raise _error(at, "the function ends without `return`")
            return _Sequence(blocks, result), None
        if not blocks or blocks[-1].dataflow or not blocks[-1].statements:
            raise _error(at, "a branch ends with an assignment to the variable of the if")
        last = blocks[-1].statements.pop()
        if isinstance(last.value, (_CastNode, _IfNode, _FunctionNode)):
            raise _error(last.target, "a branch ends with a plain assignment")
        return _Sequence(blocks, last.value), last

    def _dataflow(self) -> _Block:
        self._expect("with")
        at = self._expect("dataflow")
        if self._block is not None:
            raise _error(at, "a dataflow block inside a dataflow block")
        for mark in ("(", ")", ":"):
            self._expect(mark)
        self._end_line()
        self._kind("indent", "an indented block")
        block = self._block = _Block(True)
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

    def _statement(self) -> _Statement:
        if self._is("if"):
            return self._if()
        if self._is("@") or self._is("def"):
            function, info, source = self._function()
            return _Statement(function.name, info, function, None, source)
        target = self._name("a statement")
        info = self._info() if self._accept(":") else None
        self._expect("=")
        value = self._value()
        value_info = self._info() if self._accept("->") else None
        return _Statement(target, info, value, value_info, self._end_line())

    def _if(self) -> _Statement:
        at = self._expect("if")
        cond = self._operand()
        self._expect(":")
        source = self._end_line()
        taken, first = self._nested(lambda: self._suite(is_function=False))
        self._expect("else")
        self._expect(":")
        self._end_line()
        other, second = self._nested(lambda: self._suite(is_function=False))
        if first.target.text != second.target.text:
            raise _error(
                second.target, f"the branches give values to different variables: {first.target.text} and "
                f"{second.target.text}"
            )  # fmt: skip
        node = _IfNode(cond, (taken, other), at)
        return _Statement(first.target, first.info or second.info, node, first.value_info, source)

    # expressions

    def _value(self) -> Any:
        if self._is("match_cast") and self._tokens[self._next + 1].text == "(":
            at = self._take()
            self._expect("(")
            value = self._operand()
            self._expect(",")
            info = self._info()
            self._expect(")")
            return _CastNode(value, info, at)
        return self._operand()

    def _operand(self) -> Any:
        node = self._nested(self._primary)
        while self._is("["):
            at = self._take()
            node = _ItemNode(node, self._integer(), at)
            self._expect("]")
        return node

    def _integer(self) -> int:
        token = self._kind("number", "an integer")
        if not token.text.isdecimal():
            raise _error(token, f"expected an integer, found {token.text}")
        return int(token.text)

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
            return _TupleNode(fields, token)
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
        return _Ref(name.text, name)

    def _form(self, name: _Token) -> Any:
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

    def _call_or_leaf(self, callee: Expr, at: _Token) -> Any:
        return self._arguments(callee, at) if self._accept("(") else callee

    def _arguments(self, callee: Any, at: _Token) -> _CallNode:
        args: list[Any] = []
        attrs: dict[str, Any] = {}
        while not self._accept(")"):
            if self._token.kind == "name" and self._tokens[self._next + 1].text == "=":
                self._attr_item(attrs)
            elif attrs:
                raise _error(self._token, "an argument after an attribute")
            else:
                args.append(self._operand())
            if not self._is(")"):
                self._expect(",")
        return _CallNode(callee, args, attrs, at)

    # attributes and numbers

    def _attr_list(self) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        self._list(")", lambda: self._attr_item(attrs))
        return attrs

    def _attr_item(self, attrs: dict[str, Any]) -> None:
        key = self._name("the name of an attribute")
        self._expect("=")
        if key.text in attrs:
            raise _error(key, f"attribute {key.text} is given twice")
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
        if token.kind == "number" or self._is("-"):
            after = self._tokens[self._next + (2 if self._is("-") else 1)]
            if after.text not in ("+", "-", "*", "//", "%"):
                return self._number()
        return self._prim()

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
        return sign * (int(token.text) if token.text.isdecimal() else float(token.text))

    def _float_form(self) -> float:
        text = self._kind("string", '"nan", "inf" or "-inf"')
        self._expect(")")
        return float(self._checked(text, lambda: float(text.text)))

    def _checked(self, at: _Token, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ValueError, TypeError, ZeroDivisionError, IndexError, OverflowError, CompileError) as error:
            raise _error(at, str(error)) from error

    def _array(self, at: _Token) -> np.ndarray:
        """What follows `const(`."""
        if self._accept("data"):
            self._expect("[")
            index = self._integer()
            self._expect("]")
            raw: bytes | None = self._data.get(index)
            if raw is None:
                raise _error(at, f"there is no data[{index}]; the section data has {len(self._data)} entries")
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
            raise _error(at, "a constant from data needs its shape")
        key = index, str(dtype), shape
        if key not in self._arrays:
            # Copied: the bytes of a string have no alignment to speak of.
            self._arrays[key] = self._checked(at, lambda: np.frombuffer(raw, dtype).reshape(shape).copy())
        return self._arrays[key]

    def _element(self) -> Any:
        if self._is("..."):
            raise _error(self._token, "the elements of this constant were elided when the text was written")
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
                raise _error(token, f"numpy has no element type {token.text}") from None

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
                raise _error(name, f"{name.text} of nothing")
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
            raise _error(name, f"there is no struct info {name.text}; there are {', '.join(kinds)} and Object")
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


# --- nodes to the module


class _Builder:
    def __init__(self, parsed: _Parser) -> None:
        self._parsed = parsed
        self._globals: dict[str, StructInfo] = {}
        self._reads: dict[str, list[_Block | None]] = {}
        self._scope: dict[str, Var] = {}
        self._bindings: list[Binding] = []
        self._dataflow = False

    def module(self) -> IRModule:
        for node in self._parsed.functions:
            self._globals[node.name.text] = _signature(node)
        functions = {}
        for node, reads in zip(self._parsed.functions, self._parsed.reads_of, strict=True):
            self._reads, self._scope = reads, {}
            function = self._function(node)
            functions[node.name.text] = function
            self._globals[node.name.text] = function.struct_info  # type: ignore[assignment]
        return IRModule(functions, self._parsed.attrs)

    def _function(self, node: _FunctionNode) -> Function:
        params = []
        for name, info in node.params:
            params.append(self._define(name, Var(name.text, info)))
        return Function(params, self._sequence(node.body), node.ret, node.attrs)

    def _define(self, name: _Token, var: Var) -> Var:
        if name.text == "_" and name.text not in self._reads:
            return var
        if name.text in self._scope:
            raise _error(name, f"variable {name.text} is bound twice")
        self._scope[name.text] = var
        return var

    def _sequence(self, node: _Sequence) -> SeqExpr:
        outer, outer_scope, dataflow = self._bindings, dict(self._scope), self._dataflow
        blocks: list[BindingBlock] = []
        self._dataflow = False
        for block in node.blocks:
            self._bindings = []
            self._dataflow = block.dataflow
            for statement in block.statements:
                self._statement(statement, block)
            self._dataflow = False
            missing = block.outputs - {statement.target.text for statement in block.statements}
            if missing:
                at = block.statements[0].target if block.statements else _Token("mark", "", 1, 1)
                raise _error(at, f"output({sorted(missing)[0]}): the dataflow block does not bind it")
            blocks.append((DataflowBlock if block.dataflow else BindingBlock)(self._bindings))
        self._bindings = []
        body = self._leaf(node.result)
        if self._bindings:
            blocks.append(BindingBlock(self._bindings))
        self._bindings, self._scope, self._dataflow = outer, outer_scope, dataflow
        return SeqExpr(blocks, body)

    def _statement(self, node: _Statement, block: _Block) -> None:
        name, value = node.target, node.value
        # Visible outside its dataflow block: listed there, or read elsewhere.
        hidden = block.dataflow and name.text not in block.outputs
        hidden = hidden and all(reader is block for reader in self._reads.get(name.text, ()))
        kind = DataflowVar if hidden else Var
        if isinstance(value, _CastNode):
            cast = self._leaf(value.value)
            var = self._define(name, kind(name.text, node.info or value.info))
            self._bindings.append(MatchCast(var, cast, value.info, node.source))
            return
        if isinstance(value, _FunctionNode):
            var = self._define(name, kind(name.text, node.info or _signature(value)))
            scope, bindings, dataflow = dict(self._scope), self._bindings, self._dataflow
            function = self._function(value)
            self._scope, self._bindings, self._dataflow = scope, bindings, dataflow
            if node.info is None:
                var.struct_info = function.struct_info
            self._bindings.append(VarBinding(var, function, node.source))
            return
        bound = self._value(value, node.value_info or node.info, node.source)
        if node.info is not None and contradict(node.info, bound.struct_info):
            raise _error(name, f"{name.text} is declared {node.info}, but its value is {bound.struct_info}")
        var = self._define(name, kind(name.text, node.info or bound.struct_info or ObjectStructInfo()))
        self._bindings.append(VarBinding(var, bound, node.source))

    def _value(self, node: Any, info: StructInfo | None, source: str | None) -> Expr:
        """A bound value; `info` is what the text says about it."""
        if isinstance(node, _CallNode):
            return self._call(node, info, source)
        if isinstance(node, _TupleNode):
            return Tuple([self._leaf(item) for item in node.fields])
        if isinstance(node, _ItemNode):
            base = self._leaf(node.base)
            try:
                item = TupleGetItem(base, node.index)
            except IndexError as error:
                raise _error(node.at, str(error)) from error
            item.struct_info = item.struct_info or info or ObjectStructInfo()
            return item
        if isinstance(node, _IfNode):
            cond = self._leaf(node.cond)
            taken, other = (self._sequence(branch) for branch in node.branches)
            if info is None:
                info = common_struct_info(erase_branch(taken), erase_branch(other))
            return If(cond, taken, other, info)
        return self._leaf(node)

    def _call(self, node: _CallNode, info: StructInfo | None, source: str | None) -> Call:
        args = [self._leaf(arg) for arg in node.args]
        callee: Any = node.callee
        if isinstance(callee, str):
            from pyvm.op.registry import get_op

            try:
                callee = get_op(callee)
            except CompileError as error:
                raise _error(node.at, str(error)) from error
        else:
            callee = self._leaf(callee)
            if not isinstance(callee, (GlobalVar, ExternFunc, Var)):
                raise _error(node.at, f"{callee} cannot be called")
        try:
            inferred = infer_call(Call(callee, args, node.attrs, info, source))
        except CompileError as error:
            raise _error(node.at, str(error)) from error
        if info is not None and contradict(info, inferred):
            raise _error(node.at, f"the value is declared {info}, but it is {inferred}")
        return Call(callee, args, node.attrs, info or inferred, source)

    def _leaf(self, node: Any) -> Expr:
        """An operand; what is no leaf is bound to a variable first."""
        if isinstance(node, _Ref):
            var = self._scope.get(node.name)
            if var is None:
                raise _error(node.at, f"variable {node.name} is used where it is not defined")
            return var
        if isinstance(node, GlobalVar):
            if node.name not in self._globals:
                return node  # the check of the module says so, with the binding
            return GlobalVar(node.name, self._globals[node.name])
        if isinstance(node, LEAVES):
            return node
        value = self._value(node, None, None)
        var = (DataflowVar if self._dataflow else Var)("v", value.struct_info or ObjectStructInfo())
        self._bindings.append(VarBinding(var, value))
        return var


def _signature(node: _FunctionNode) -> StructInfo:
    return CallableStructInfo([info for _, info in node.params], node.ret)
