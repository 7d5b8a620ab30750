"""One line of assembler text as tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from vmcore.errors import FormatError
from vmcore.isa import VM_REGISTER, VOID_REGISTER

_TOKEN = re.compile(
    r"""[ \t\r]*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<base64>base64[ \t]+[A-Za-z0-9+/=]*)
    | (?P<register>%(?:-?\d+|void|vm)(?!\w))
    | (?P<function>@[A-Za-z0-9_.$:/-]+|@(?="))
    | (?P<arrow>->)
    | (?P<number>[+-]?(?:0x[0-9a-fA-F]+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?|inf(?!\w)|nan(?!\w)))
    | (?P<word>[A-Za-z_][A-Za-z0-9_.$:/-]*)
    | (?P<punct>[(),=\[\]!?{}:])
    | (?P<comment>;.*)
    )""",
    re.VERBOSE,
)
_END = ("end", "")


class Line:
    """The tokens of one line with a position."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.ends: list[int] = []
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        position, length = 0, len(text.rstrip())
        while position < length:
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise self.fail(f"{text[position:].strip()[:40]!r} is no token")
            if match.lastgroup == "comment":
                break
            token = match[match.lastgroup]
            if match.lastgroup == "word" and token.endswith(":"):  # a label; elsewhere ':' may be part of a name
                token = token[:-1]
                self.tokens.append(("word", token))
                self.ends.append(match.end() - 1)
                position = match.end() - 1
                continue
            self.tokens.append((match.lastgroup, token))
            self.ends.append(match.end())
            position = match.end()
            if token == "signature" and len(self.tokens) == 1:  # JSON follows the function name
                position = self._signature(position)

    def _signature(self, position: int) -> int:
        match = _TOKEN.match(self.text, position)
        if match is None or match.lastgroup != "function":
            raise self.fail("signature needs a function name")
        self.tokens.append(("function", match["function"]))
        position = match.end()
        if match["function"] == "@":
            match = _TOKEN.match(self.text, position)
            if match is None or match.lastgroup != "string":
                raise self.fail("signature needs a function name")
            self.tokens.append(("string", match["string"]))
            position = match.end()
        self.tokens.append(("json", self.text[position:].strip()))
        self.ends += [position] * (len(self.tokens) - len(self.ends))
        return len(self.text)

    def fail(self, message: str) -> FormatError:
        return FormatError(f"asm, line {self.number}: {message}")

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def next(self, kind: str | None = None, text: str | None = None) -> str:
        found = self.peek()
        if (kind is not None and found[0] != kind) or (text is not None and found[1] != text):
            raise self.fail(f"expected {text or kind}, found {found[1][:40] or 'the end of the line'!r}")
        self.at += 1
        return found[1]

    def accept(self, text: str) -> bool:
        if self.peek()[1] == text and self.kind in ("punct", "arrow", "word"):
            self.at += 1
            return True
        return False

    def integer(self) -> int:
        text = self.next("number")
        try:
            return int(text, 0)
        except ValueError:
            raise self.fail(f"{text[:40]} is no integer") from None

    def string(self, any_text: bool = False) -> str:
        """With `any_text` a lone surrogate too, which the verifier refuses where such a string can stand."""
        text = self.next("string")
        try:
            value: str = json.loads(text)
            if not any_text:
                value.encode("utf-8")
        except ValueError:
            raise self.fail(f"{text[:40]} is no valid string") from None
        return value

    def function(self) -> str:
        name = self.next("function")[1:]
        return name if name else self.string(any_text=True)

    def register(self) -> int:
        text = self.next("register")
        if text == "%void":
            return VOID_REGISTER
        if text == "%vm":
            return VM_REGISTER
        return self.int64(text[1:])

    def int64(self, text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            raise self.fail(f"{str(text)[:40]} is no integer") from None
        if not -(2**63) <= value < 2**63:
            raise self.fail(f"{value} does not fit in 64 bits")
        return value

    def items(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """A list of items, separated by commas, whose opening bracket was read."""
        values: list[Any] = []
        while not self.accept(close):
            if values:
                self.next("punct", ",")
            values.append(item())
        return values
