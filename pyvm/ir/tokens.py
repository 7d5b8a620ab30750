"""The words of a program as text, with the place of each; the data section."""

from __future__ import annotations

import base64
import json
import re
from typing import NamedTuple

from vmcore.errors import ParseError

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
# Of nested blocks, and of expressions in one another: a hostile text ends in an error that names the limit.
MAX_DEPTH = 200
MAX_EXPRESSION_DEPTH = 100


class Token(NamedTuple):
    kind: str  # name, string, number, mark, newline, indent, dedent, end, source
    text: str
    line: int
    column: int
    quoted: bool = False


def error_at(at: Token, message: str) -> ParseError:
    return ParseError(f"line {at.line}, column {at.column}: {message}")


def tokenize(text: str) -> list[Token]:
    tokens: list[Token] = []
    indents = [0]
    brackets: list[Token] = []
    position, line, line_start = 0, 1, 0
    fresh = True  # nothing but blanks on this line so far
    length, match_at = len(text), _TOKEN.match
    while position < length:
        match = match_at(text, position)
        if match is None:
            at = Token("mark", text[position], line, position - line_start + 1)
            raise error_at(at, f"unexpected character {text[position]!r}")
        kind, word = match.lastgroup or "", match.group()
        begin, position = position, match.end()
        if kind == "space" and not word.endswith("\n"):
            continue
        at = Token("mark", text[begin], line, begin - line_start + 1)
        if kind in ("newline", "space"):
            if kind == "newline" and not brackets and not fresh:
                tokens.append(Token("newline", "\n", at.line, at.column))
            line, line_start = line + 1, position
            fresh = fresh or (kind == "newline" and not brackets)
            continue
        if kind == "comment":
            inner = word[1:].strip()
            if not fresh and not brackets and inner.startswith("[") and inner.endswith("]"):
                tokens.append(Token("source", _unescaped(f'"{inner[1:-1]}"', at), at.line, at.column))
            continue
        if fresh:
            fresh = False
            width = at.column - 1
            if width > indents[-1]:
                indents.append(width)
                tokens.append(Token("indent", "", at.line, at.column))
                if len(indents) > MAX_DEPTH:
                    raise error_at(at, f"blocks are nested too deeply: {len(indents)} levels, the limit is {MAX_DEPTH}")
            while width < indents[-1]:
                indents.pop()
                tokens.append(Token("dedent", "", at.line, at.column))
            if width != indents[-1]:
                raise error_at(at, "this indentation matches no line above")
        if word in ("(", "["):
            brackets.append(at)
        elif word in (")", "]"):
            if not brackets or brackets.pop().text + word not in ("()", "[]"):
                raise error_at(at, f"unmatched {word!r}")
        if kind == "string":
            word = _unescaped(word, at)
        elif kind == "quoted":
            tokens.append(Token("name", _unescaped(f'"{word[1:-1]}"', at), at.line, at.column, quoted=True))
            continue
        tokens.append(Token(kind, word, at.line, at.column))
    end = Token("end", "end of text", line, position - line_start + 1)
    if brackets:
        raise error_at(brackets[-1], f"{brackets[-1].text!r} is never closed")
    if not fresh:
        tokens.append(Token("newline", "\n", end.line, end.column))
    tokens += [Token("dedent", "", end.line, end.column)] * (len(indents) - 1)
    return [*tokens, end]


def _unescaped(literal: str, at: Token) -> str:
    try:
        text = str(json.loads(literal))
        text.encode("utf-8")  # no lone surrogates
    except ValueError as error:
        shown = literal.encode("utf-8", "backslashreplace").decode()
        raise error_at(at, f"malformed escape in {shown}: {error}") from error
    return text


def split_data(text: str) -> tuple[str, dict[int, bytes]]:
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
        at = Token("mark", "", number, len(line) - len(line.lstrip()) + 1)
        index, colon, literal = stripped.partition(":")
        literal = literal.strip()
        numbered = colon and index.isdecimal() and len(index) < 10
        if not numbered or len(literal) < 2 or literal[0] != '"' or literal[-1] != '"':
            raise error_at(at, 'an entry of data reads `0: "base64"`')
        if int(index) in data:
            raise error_at(at, f"data[{index}] is defined twice")
        try:
            data[int(index)] = base64.b64decode(literal[1:-1], validate=True)
        except ValueError as error:  # also for characters beyond ASCII
            raise error_at(at, f"data[{index}] is not base64: {error}") from error
    return head[1:] + "\n", data
