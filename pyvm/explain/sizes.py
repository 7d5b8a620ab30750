"""Sizes that may depend on symbols: sums and products of `pyvm.ir.prim` that stay small whatever a program says.

A size is an int, an expression in symbols, or None where it is not known. A program may be hostile: an expression that
would grow beyond what a person reads becomes None instead of taking the machine down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyvm.ir.prim import (
    FloorDiv,
    FloorMod,
    Poly,
    Prim,
    PrimExpr,
    SymVar,
    evaluate,
    floor_div,
    floor_mod,
    parse_prim,
    substitute,
    sym_max,
    sym_min,
)

Size = Prim | None
Dims = tuple[Size, ...]

_MAX_TERMS = 32  # of a sum
_MAX_TEXT = 300  # characters of an expression
_MAX_BITS = 120  # of a number
_MAX_PARENTHESES = 6  # of an expression in text: what they multiply out to grows exponentially


def bounded(value: Size) -> Size:
    """`value`, or None if it is too long or too large to mean anything."""
    if isinstance(value, int):
        return value if value.bit_length() <= _MAX_BITS else None
    if value is None or len(str(value)) > _MAX_TEXT:
        return None
    if isinstance(value, Poly) and any(coeff.bit_length() > _MAX_BITS for coeff in value.terms.values()):
        return None
    return value


def _n_terms(value: Prim) -> int:
    return len(value.terms) if isinstance(value, Poly) else 1


def add(*sizes: Size) -> Size:
    """The sum; None if a part is not known."""
    total: Size = 0
    for size in sizes:
        if size is None or total is None:
            return None
        total = bounded(total + size)
    return total


def known_sum(sizes: Iterable[Size]) -> tuple[Size, int]:
    """The sum of the known sizes, and how many are not known."""
    total: Size = 0
    unknown = 0
    for size in sizes:
        after = add(total, size)
        if after is None:
            unknown += 1
        else:
            total = after
    return total, unknown


def sub(a: Size, b: Size) -> Size:
    """a - b."""
    return None if a is None or b is None else bounded(a - b)


def mul(*sizes: Size) -> Size:
    """The product; None if a factor is not known."""
    total: Size = 1
    for size in sizes:
        if size is None or total is None or _n_terms(total) * _n_terms(size) > _MAX_TERMS:
            return None
        total = bounded(total * size)
    return total


def div(a: Size, b: Size) -> Size:
    """a // b."""
    if a is None or b is None or (isinstance(b, int) and b == 0):
        return None
    return bounded(floor_div(a, b))


def mod(a: Size, b: Size) -> Size:
    """a % b."""
    if a is None or b is None or (isinstance(b, int) and b == 0):
        return None
    return bounded(floor_mod(a, b))


def smaller(a: Size, b: Size) -> Size:
    """min(a, b)."""
    return None if a is None or b is None else bounded(sym_min(a, b))


def larger(a: Size, b: Size) -> Size:
    """max(a, b)."""
    return None if a is None or b is None else bounded(sym_max(a, b))


def product(dims: Iterable[Size] | None) -> Size:
    """Number of elements of a shape."""
    return None if dims is None else mul(*dims)


def align(value: Size, unit: int = 64) -> Size:
    """`value` up to the next multiple of `unit`, which an empty buffer takes too: it has an address."""
    if isinstance(value, int):
        return max(-(-value // unit), 1) * unit
    return value


def symbol(name: str, nonnegative: bool = True) -> SymVar:
    """A symbol; characters that a name cannot have become underscores."""
    name = re.sub(r"\W", "_", name)[:60]
    return SymVar(name if name.isidentifier() else f"_{name}", nonnegative)


def parse(text: object) -> Size:
    """A dimension of a signature: an int, or an expression in text. None for what is neither."""
    if isinstance(text, int):
        return bounded(int(text))
    if not isinstance(text, str) or len(text) > _MAX_TEXT or text.count("(") > _MAX_PARENTHESES:
        return None
    try:
        return bounded(parse_prim(text))
    except (ValueError, MemoryError, RecursionError):
        return None


def symbols(value: Size) -> set[str]:
    """The names in an expression."""
    if not isinstance(value, PrimExpr):
        return set()
    if isinstance(value, SymVar):
        return {value.name}
    if isinstance(value, (FloorDiv, FloorMod)):
        return symbols(value.a) | symbols(value.b)
    if isinstance(value, Poly):
        return set().union(*(symbols(atom) for mono in value.terms for atom, _ in mono))
    return set().union(*(symbols(arg) for arg in value.args))  # type: ignore[attr-defined]


def replace(value: Size, mapping: Mapping[SymVar, Prim]) -> Size:
    """`value` with symbols replaced."""
    if not isinstance(value, PrimExpr) or not mapping:
        return value
    try:
        grown = max((_n_terms(new) for new in mapping.values()), default=1)
        degree = max((sum(p for _, p in mono) for mono in value.terms), default=0) if isinstance(value, Poly) else 1
        if grown > 1 and (degree > 4 or grown**degree > _MAX_TERMS):
            return None
        return bounded(substitute(value, mapping))
    except ZeroDivisionError:
        return None


def number(value: Size, dims: Mapping[str, int]) -> int | None:
    """The number that `value` is for these values of the symbols; None if that is not known.

    None also for what is negative: the program refuses such values of the symbols when it runs.
    """
    if value is None or isinstance(value, int):
        return value
    try:
        result = evaluate(value, dims)
    except (KeyError, ZeroDivisionError):
        return None
    return result if result >= 0 else None


def to_json(value: Size) -> int | str | None:
    """An int, the text of an expression, or None."""
    return value if value is None or isinstance(value, int) else str(value)
