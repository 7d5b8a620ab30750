"""Checks of what public functions are given: a wrong argument is an error that names the function, the parameter, what
it takes and what came.

Each check returns the argument in the form that the function works with.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmcore import errors
else:
    from vmcore.status import errors  # the same, imported when there is an error


def shown(value: object) -> str:
    """`value` for a message: its type and what it prints as, shortened; the type alone where printing fails."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, type)):
        return repr(value)
    try:
        text = repr(value)
    except Exception:
        return f"a {kind}"
    if text.startswith("<") or "\n" in text:
        return f"a {kind}"
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"


def wrong_type(function: str, parameter: str, expected: str, value: object) -> errors.ArgumentTypeError:
    """The error of an argument of another kind."""
    return errors.ArgumentTypeError(f"{function}: {parameter} must be {expected}, got {shown(value)}")


def wrong_value(function: str, parameter: str, expected: str, value: object) -> errors.ArgumentValueError:
    """The error of an argument of the right kind that cannot be used."""
    return errors.ArgumentValueError(f"{function}: {parameter} must be {expected}, got {shown(value)}")


def integer(function: str, parameter: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """An int, or what has `__index__`, from `low` to `high`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(function, parameter, "an int", value) from None
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise wrong_value(function, parameter, bounds, number)
    return number


def number(function: str, parameter: str, value: Any) -> float:
    """A float, or what has `__float__` or `__index__`; text is none."""
    if isinstance(value, (str, bytes, bytearray)):
        raise wrong_type(function, parameter, "a number", value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise wrong_type(function, parameter, "a number", value) from None
    except OverflowError:
        raise wrong_value(function, parameter, "a number that a float can hold", value) from None


def text(function: str, parameter: str, value: Any) -> str:
    """A str that can be encoded."""
    if not isinstance(value, str):
        raise wrong_type(function, parameter, "a str", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.ArgumentValueError(f"{function}: {parameter} {value!a:.60} is no text: {error.reason}") from None
    return value


def without_mask(function: str, array: Any) -> Any:
    """An array that is none of `numpy.ma`: what its mask hides is garbage to everyone else."""
    import numpy as np  # here: whoever has an array has it loaded

    if isinstance(array, np.ma.MaskedArray):
        raise errors.ArgumentTypeError(
            f"{function}: this {type(array).__name__} has a mask, which a tensor cannot have "
            f"({np.ma.count_masked(array)} of {array.size} elements masked); pass array.filled(value)"
        )
    return array


def is_iterable(value: object) -> bool:
    """Whether it can be gone through item by item and is no text and no mapping; the items are not looked at."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        return False
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1


def flag(function: str, parameter: str, value: Any) -> bool:
    """True or False, of Python or numpy; the integers 0 and 1 stand for them."""
    if isinstance(value, (bool, int)) or type(value).__name__ in ("bool", "bool_"):
        if value == 0 or value == 1:
            return bool(value)
    raise wrong_type(function, parameter, "True or False", value)


def choice(function: str, parameter: str, value: Any, choices: Iterable[str]) -> str:
    """One of some words."""
    if not isinstance(value, str):
        raise wrong_type(function, parameter, f"one of {', '.join(choices)}", value)
    if value not in choices:
        raise wrong_value(function, parameter, f"one of {', '.join(choices)}", value)
    return value


def path(function: str, parameter: str, value: Any) -> str:
    """The path of a file as a str."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise wrong_type(function, parameter, "a path", value)
    try:
        name = os.fsdecode(value)
        encoded = os.fsencode(name)
    except (TypeError, UnicodeError) as error:
        raise wrong_value(function, parameter, f"the name of a file ({error})", value) from None
    if not encoded or b"\0" in encoded:
        raise wrong_value(function, parameter, "the name of a file", value)
    return name
