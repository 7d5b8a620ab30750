"""Kinds of attributes. An operator declares those that its calls have; a call that says others, or says one of another
kind, is refused wherever it comes from: a constructor, a program as text, a module made by hand.

    define("lp_norm", ..., attrs={"axis": INT, "p": INT})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Kind:
    """What an attribute may be.

    Attributes
    ----------
    words : str
        The same for a message: "an int".
    holds : callable
        Whether a value is one.
    is_required : bool
        Whether every call has it.
    """

    words: str
    holds: Callable[[Any], bool]
    is_required: bool = True

    def or_none(self) -> Kind:
        """This or None."""
        return replace(self, words=f"{self.words} or None", holds=lambda value: value is None or self.holds(value))

    def optional(self) -> Kind:
        """This, where a call has it."""
        return replace(self, is_required=False)


def _is_int(value: Any) -> bool:
    return type(value) is int and value in _INT64


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_int(value)


def _is_scalar(value: Any) -> bool:
    return type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**64)


def _tuple_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is tuple and all(map(holds, value))


INT = Kind("an int of 64 bits", _is_int)
NUMBER = Kind("a number", _is_number)
SCALAR = Kind("a number or a bool", _is_scalar)  # of a tensor: uint64 too
FLAG = Kind("True or False", lambda value: type(value) is bool)
TEXT = Kind("a str", lambda value: type(value) is str)
INTS = Kind("a tuple of int", _tuple_of(_is_int))
NUMBERS = Kind("a tuple of numbers", _tuple_of(_is_number))


def one_of(words: Iterable[str]) -> Kind:
    """One of some words."""
    choices = tuple(words)
    return Kind(f"one of {', '.join(choices)}", lambda value: type(value) is str and value in choices)


def wrong_attrs(kinds: Mapping[str, Kind], attrs: Mapping[str, Any]) -> str | None:
    """What is wrong with the attributes of a call; None if nothing is."""
    for name, value in attrs.items():
        kind = kinds.get(name)
        if kind is None:
            return f"no attribute is called {name!r}, expected {', '.join(kinds) or 'none'}"
        if not kind.holds(value):
            return f"attribute {name} must be {kind.words}, got {value!r:.100}"
    if len(attrs) < len(kinds):
        for name, kind in kinds.items():
            if kind.is_required and name not in attrs:
                return f"attribute {name} is missing: {kind.words}"
    return None
