"""Symbolic integers for shapes: Python ints, `SymVar`, and sums of products of them in a canonical form.

Equal polynomials are equal objects (`==` and `hash`), whatever order they were built in, so a plain comparison is
already a proof. Quotients, remainders, minima and maxima that cannot be resolved become atoms of the polynomial.
A sum with no symbol left is a Python int: no expression ever stands for a constant.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Union

from vmcore.arguments import shown
from vmcore.errors import ArgumentTypeError, ArgumentValueError, CompileError

Monomial = tuple[tuple["PrimExpr", int], ...]  # atoms with their powers, sorted by text; () is the constant term
_INT64_MAX = 2**63 - 1
# A few hundred bytes of model can square a dimension forty times. What is beyond these is refused: CompileError.
_MAX_DEGREE = 64  # a power that two to which does not fit in 64 bits
_MAX_BITS = 1024  # of a coefficient
_MAX_PAIRS = 1 << 14  # of terms that a product multiplies out
_MAX_TEXT = 1 << 19  # characters; pads that are computed for sixteen axes take 50,000


class PrimExpr:
    """A symbolic integer: `SymVar`, a division, remainder, minimum or maximum, or a sum (`Poly`).

    Supports `+ - * // %` with ints and other expressions; `//` and `%` round towards minus infinity as in Python.
    Ordering comparisons are not defined: use `prove_equal`, `sym_min` and `sym_max`.
    """

    __slots__ = ("_text", "_hash")
    _text: str
    _hash: int

    def __add__(self, other: Prim) -> Prim:
        terms = _terms_of(other)
        return NotImplemented if terms is None else _sum(_terms(self), terms, 1)

    __radd__ = __add__

    def __sub__(self, other: Prim) -> Prim:
        terms = _terms_of(other)
        return NotImplemented if terms is None else _sum(_terms(self), terms, -1)

    def __rsub__(self, other: Prim) -> Prim:
        terms = _terms_of(other)
        return NotImplemented if terms is None else _sum(terms, _terms(self), -1)

    def __mul__(self, other: Prim) -> Prim:
        terms = _terms_of(other)
        return NotImplemented if terms is None else _product(_terms(self), terms)

    __rmul__ = __mul__

    def __neg__(self) -> Prim:
        return self * -1

    def __floordiv__(self, other: Prim) -> Prim:
        return NotImplemented if _terms_of(other) is None else floor_div(self, other)

    def __rfloordiv__(self, other: Prim) -> Prim:
        return NotImplemented if _terms_of(other) is None else floor_div(other, self)

    def __mod__(self, other: Prim) -> Prim:
        return NotImplemented if _terms_of(other) is None else floor_mod(self, other)

    def __rmod__(self, other: Prim) -> Prim:
        return NotImplemented if _terms_of(other) is None else floor_mod(other, self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, PrimExpr) and self._hash == other._hash and self._text == other._text

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        raise ArgumentTypeError(f"the symbolic integer {self} has no truth value; compare it or use prove_equal")

    def __int__(self) -> int:
        raise ArgumentTypeError(f"the symbolic integer {self} has no value at compile time")

    def _set_text(self, text: str) -> None:
        if len(text) > _MAX_TEXT:
            raise _too_large(f"has {len(text)} characters", f"{_MAX_TEXT} characters")
        # INVARIANT: the text is canonical, so equality of texts is equality of expressions.
        self._text = text
        self._hash = hash(text)


Prim = Union[int, PrimExpr]  # noqa: UP007 (evaluated at run time)


def _too_large(what: str, limit: str) -> CompileError:
    return CompileError(f"a symbolic integer {what}; the limit is {limit}")


class SymVar(PrimExpr):
    """A named integer, known only at run time. Two variables of one name are the same variable.

    Parameters
    ----------
    name : str
        An identifier.
    nonnegative : bool
        A dimension is (the default); an integer read from data may not be, and then nothing is assumed about it.
    """

    __slots__ = ("name", "nonnegative")

    def __init__(self, name: str, nonnegative: bool = True) -> None:
        if not name.isidentifier():
            raise ArgumentValueError(f"SymVar: {name!r} is not an identifier")
        self.name = name
        self.nonnegative = nonnegative
        self._set_text(name)


class FloorDiv(PrimExpr):
    """a // b that could not be resolved."""

    __slots__ = ("a", "b")

    def __init__(self, a: Prim, b: Prim) -> None:
        self.a, self.b = a, b
        self._set_text(f"{_factor(a)}//{_factor(b)}")


class FloorMod(PrimExpr):
    """a % b that could not be resolved."""

    __slots__ = ("a", "b")

    def __init__(self, a: Prim, b: Prim) -> None:
        self.a, self.b = a, b
        self._set_text(f"{_factor(a)}%{_factor(b)}")


class Extremum(PrimExpr):
    """The minimum or the maximum of two or more values, none of which is known to win."""

    __slots__ = ("kind", "args")

    def __init__(self, kind: str, args: tuple[Prim, ...]) -> None:
        self.kind, self.args = kind, args
        self._set_text(f"{kind}({', '.join(map(str, args))})")


class Poly(PrimExpr):
    """A sum of products: two terms or more, or one that is not a plain atom."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = terms
        text = "".join(_term_text(mono, coeff) for mono, coeff in terms.items())
        self._set_text(text[1:] if text.startswith("+") else text)


def _factor(value: Prim) -> str:
    if isinstance(value, (int, SymVar, Extremum)) and not (isinstance(value, int) and value < 0):
        return str(value)
    return f"({value})"


def _term_text(mono: Monomial, coeff: int) -> str:
    sign, size = ("-", -coeff) if coeff < 0 else ("+", coeff)
    factors = [str(size)] if size != 1 or not mono else []
    for atom, power in mono:
        factors += [_factor(atom)] * power
    return sign + "*".join(factors)


def _terms(value: Prim) -> dict[Monomial, int]:
    if isinstance(value, Poly):
        return value.terms
    if isinstance(value, PrimExpr):
        return {((value, 1),): 1}
    return {(): value} if value else {}


def _terms_of(value: object) -> dict[Monomial, int] | None:
    if isinstance(value, PrimExpr):
        return _terms(value)
    try:
        return _terms(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        return None


def _mono_key(mono: Monomial) -> tuple[bool, int, str]:
    # Highest degree first, the constant last.
    return not mono, -sum(power for _, power in mono), "*".join(f"{atom}^{power}" for atom, power in mono)


def _from_terms(terms: dict[Monomial, int]) -> Prim:
    terms = {mono: coeff for mono, coeff in terms.items() if coeff}
    bits = max((coeff.bit_length() for coeff in terms.values()), default=0)
    if bits > _MAX_BITS:
        raise _too_large(f"has a coefficient of {bits} bits", f"{_MAX_BITS} bits")
    if not terms:
        return 0
    if len(terms) == 1:
        ((mono, coeff),) = terms.items()
        if not mono:
            return coeff
        if coeff == 1 and len(mono) == 1 and mono[0][1] == 1:
            return mono[0][0]
    return Poly({mono: terms[mono] for mono in sorted(terms, key=_mono_key)})


def _sum(a: dict[Monomial, int], b: dict[Monomial, int], sign: int) -> Prim:
    terms = dict(a)
    for mono, coeff in b.items():
        terms[mono] = terms.get(mono, 0) + sign * coeff
    return _from_terms(terms)


def _mono_product(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    degree = sum(powers.values())
    if degree > _MAX_DEGREE:
        raise _too_large(f"has a product of {degree} factors", f"{_MAX_DEGREE} factors")
    return tuple(sorted(powers.items(), key=lambda item: item[0]._text))


def _product(a: dict[Monomial, int], b: dict[Monomial, int]) -> Prim:
    terms: dict[Monomial, int] = {}
    if len(a) * len(b) > _MAX_PAIRS:
        raise _too_large(f"is a product of sums of {len(a)} and {len(b)} terms", f"{_MAX_PAIRS} products of terms")
    for mono_a, coeff_a in a.items():
        for mono_b, coeff_b in b.items():
            mono = _mono_product(mono_a, mono_b)
            terms[mono] = terms.get(mono, 0) + coeff_a * coeff_b
    return _from_terms(terms)


def _exact_quotient(a: Prim, b: Prim) -> Prim | None:
    """a / b as a polynomial if b is a single term that divides every term of a, else None."""
    divisor = _terms(b)
    if len(divisor) != 1:
        if a == b:
            return 1
        quotient = _terms(a)
        if len(quotient) == len(divisor):  # k * b for a constant k, the only other case that shapes produce
            k, rest = divmod(next(iter(quotient.values())), next(iter(divisor.values())))
            if not rest and k and _product(divisor, {(): k}) == a:
                return k
        return None
    ((mono_b, coeff_b),) = divisor.items()
    terms: dict[Monomial, int] = {}
    for mono, coeff in _terms(a).items():
        if coeff % coeff_b:
            return None
        powers = dict(mono)
        for atom, power in mono_b:
            left = powers.get(atom, 0) - power
            if left < 0:
                return None
            if left:
                powers[atom] = left
            else:
                del powers[atom]
        terms[tuple(powers.items())] = coeff // coeff_b
    return _from_terms(terms)


def floor_div(a: Prim, b: Prim) -> Prim:
    """a // b. A symbolic divisor is taken to be non-zero, so (n*k) // n is k."""
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError(f"{a} // 0")
        if isinstance(a, int):
            return a // b
        if b == 1:
            return a
        if b < 0:
            return floor_div(-a, -b)
        whole: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for mono, coeff in _terms(a).items():
            # The constant is reduced to 0..b-1, which makes (n-1)//2+1 and (n+1)//2 the same expression.
            if coeff % b == 0 or not mono:
                whole[mono] = coeff // b
                coeff %= b
            if coeff:
                rest[mono] = coeff
        # (g*y + c) // (g*b) is (y + c//g) // b.
        common = math.gcd(b, *(coeff for mono, coeff in rest.items() if mono))
        if common > 1:
            b //= common
            rest = {mono: coeff // common for mono, coeff in rest.items()}
        remainder = _from_terms(rest)
        if isinstance(remainder, int):
            quotient: Prim = remainder // b
        elif isinstance(remainder, FloorDiv) and isinstance(remainder.b, int) and remainder.b > 0:
            quotient = floor_div(remainder.a, remainder.b * b)
        else:
            lower, upper = bounds(remainder)
            if lower is not None and upper is not None and lower // b == upper // b:
                quotient = lower // b
            else:
                quotient = FloorDiv(remainder, b)
        return _from_terms(whole) + quotient
    exact = _exact_quotient(a, b)
    if exact is not None:
        return exact
    return FloorDiv(a, b)


def floor_mod(a: Prim, b: Prim) -> Prim:
    """a % b, with the sign of b."""
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError(f"{a} % 0")
        if isinstance(a, int):
            return a % b
        if b > 0:
            a = _from_terms({mono: coeff % b for mono, coeff in _terms(a).items()})
            if isinstance(a, int):
                return a % b
            lower, upper = bounds(a)
            if lower is not None and upper is not None and lower >= 0 and upper < b:
                return a
        return FloorMod(a, b)
    if _exact_quotient(a, b) is not None:
        return 0
    return FloorMod(a, b)


def _extremum(kind: str, values: Iterable[Prim]) -> Prim:
    sign = 1 if kind == "min" else -1
    flat: list[Prim] = []
    for value in values:
        flat += value.args if isinstance(value, Extremum) and value.kind == kind else (value,)
    kept: list[Prim] = []
    for value in flat:
        # `value` loses if some kept one is never worse; kept ones that are never better than `value` go.
        gaps = [bounds((value - other) * sign) for other in kept]
        if any(low is not None and low >= 0 for low, _ in gaps):
            continue
        kept = [other for other, (_, high) in zip(kept, gaps, strict=True) if high is None or high > 0]
        kept.append(value)
    if len(kept) == 1:
        return kept[0]
    return Extremum(kind, tuple(sorted(kept, key=lambda v: (isinstance(v, int), str(v)))))


def sym_min(a: Prim, b: Prim) -> Prim:
    """The smaller of a and b."""
    return _extremum("min", (a, b))


def sym_max(a: Prim, b: Prim) -> Prim:
    """The larger of a and b."""
    return _extremum("max", (a, b))


Bounds = tuple[int | None, int | None]


def bounds(value: Prim, limits: Mapping[str, int] | None = None) -> Bounds:
    """The smallest and largest possible value, None where unbounded. A dimension lies in 0 .. 2**63-1.

    `limits` gives the largest values of some symbols, by name.
    """
    if not isinstance(value, PrimExpr):
        number = operator.index(value)
        return number, number
    if isinstance(value, SymVar):
        upper = (limits or {}).get(value.name)
        if upper is not None:
            return (0 if value.nonnegative else None), upper
        return (0, _INT64_MAX) if value.nonnegative else (None, None)
    if isinstance(value, FloorMod):
        if isinstance(value.b, int):
            return (0, value.b - 1) if value.b > 0 else (value.b + 1, 0)
        return None, None
    if isinstance(value, FloorDiv):
        lower, upper = bounds(value.a, limits)
        if isinstance(value.b, int):  # canonical: positive
            return (None if lower is None else lower // value.b), (None if upper is None else upper // value.b)
        if lower is not None and lower >= 0 and (bounds(value.b, limits)[0] or -1) >= 0:
            return 0, upper
        return (0, None) if lower is not None and lower >= 0 and bounds(value.b, limits)[0] == 0 else (None, None)
    if isinstance(value, Extremum):
        lows, highs = zip(*(bounds(arg, limits) for arg in value.args), strict=True)
        known_lows = [low for low in lows if low is not None]
        known_highs = [high for high in highs if high is not None]
        if value.kind == "min":
            return (
                min(known_lows) if len(known_lows) == len(lows) else None,
                min(known_highs) if known_highs else None,
            )
        return (
            max(known_lows) if known_lows else None,
            max(known_highs) if len(known_highs) == len(highs) else None,
        )
    assert isinstance(value, Poly)
    total_low: int | None = 0
    total_high: int | None = 0
    for mono, coeff in value.terms.items():
        low, high = _mono_bounds(mono, limits)
        if coeff < 0:
            low, high = high, low
        total_low = None if low is None or total_low is None else total_low + coeff * low
        total_high = None if high is None or total_high is None else total_high + coeff * high
    return total_low, total_high


def _mono_bounds(mono: Monomial, limits: Mapping[str, int] | None) -> Bounds:
    low: int | None = 1
    high: int | None = 1
    for atom, power in mono:
        atom_low, atom_high = bounds(atom, limits)
        if atom_low is None or atom_low < 0:
            if len(mono) == 1 and power == 1:
                return atom_low, atom_high
            return (0 if all(p % 2 == 0 for _, p in mono) else None), None
        low = None if low is None else low * atom_low**power
        high = None if high is None or atom_high is None else high * atom_high**power
    return low, high


def prove_equal(a: Prim, b: Prim) -> bool | None:
    """True if a == b for all values of the symbols, False if for none, None if that is not known."""
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    low, high = bounds(difference)
    if (low is not None and low > 0) or (high is not None and high < 0):
        return False
    return None


def substitute(value: Prim, mapping: Mapping[SymVar, Prim]) -> Prim:
    """`value` with every symbol of `mapping` replaced, simplified anew."""
    if isinstance(value, int) or not mapping:
        return value
    if isinstance(value, SymVar):
        return mapping.get(value, value)
    if isinstance(value, FloorDiv):
        return floor_div(substitute(value.a, mapping), substitute(value.b, mapping))
    if isinstance(value, FloorMod):
        return floor_mod(substitute(value.a, mapping), substitute(value.b, mapping))
    if isinstance(value, Extremum):
        return _extremum(value.kind, (substitute(arg, mapping) for arg in value.args))
    assert isinstance(value, Poly)
    total: Prim = 0
    for mono, coeff in value.terms.items():
        term: Prim = coeff
        for atom, power in mono:
            replaced = substitute(atom, mapping)
            for _ in range(power):
                term = term * replaced
        total = total + term
    return total


def evaluate(value: Prim, environment: Mapping[SymVar, int] | Mapping[str, int]) -> int:
    """The number that `value` stands for when the symbols have these values (keyed by SymVar or by name).

    Raises
    ------
    KeyError
        If a symbol has no value.
    ZeroDivisionError
        If a divisor is zero.
    """
    if not isinstance(value, PrimExpr):
        return operator.index(value)
    if isinstance(value, SymVar):
        found = environment.get(value)  # type: ignore[call-overload]
        return int(environment[value.name] if found is None else found)  # type: ignore[index]
    if isinstance(value, FloorDiv):
        return evaluate(value.a, environment) // evaluate(value.b, environment)
    if isinstance(value, FloorMod):
        return evaluate(value.a, environment) % evaluate(value.b, environment)
    if isinstance(value, Extremum):
        pick = min if value.kind == "min" else max
        return pick(evaluate(arg, environment) for arg in value.args)
    assert isinstance(value, Poly)
    total = 0
    for mono, coeff in value.terms.items():
        for atom, power in mono:
            coeff *= evaluate(atom, environment) ** power
        total += coeff
    return total


def free_vars(value: Prim) -> frozenset[SymVar]:
    """The symbols of `value`."""
    if not isinstance(value, PrimExpr):
        return frozenset()
    if isinstance(value, SymVar):
        return frozenset((value,))
    if isinstance(value, (FloorDiv, FloorMod)):
        return free_vars(value.a) | free_vars(value.b)
    if isinstance(value, Extremum):
        return frozenset().union(*map(free_vars, value.args))
    assert isinstance(value, Poly)
    return frozenset().union(*(free_vars(atom) for mono in value.terms for atom, _ in mono))


def as_prim(value: object) -> Prim:
    """`value` as a Python int or PrimExpr; raises ArgumentTypeError for anything that is not an integer."""
    if isinstance(value, PrimExpr):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(f"expected an int or a symbolic integer, got {shown(value)}") from None


_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def parse_prim(text: str) -> Prim:
    """The expression that `str` printed: integers, names, `+ - * // %`, parentheses, `min(...)` and `max(...)`.

    Raises
    ------
    ValueError
        If the text is anything else.
    """
    try:
        return _from_ast(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise ArgumentValueError(f"not a shape expression: {text!a:.200}: {error}") from error


def _from_ast(node: ast.expr) -> Prim:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return SymVar(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_from_ast(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_from_ast(node.left), _from_ast(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max") and node.args:
        return _extremum(node.func.id, [_from_ast(arg) for arg in node.args])
    raise SyntaxError(f"unexpected {type(node).__name__}")
