"""Symbolic integers, against Python's arithmetic on numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.errors import CompileError
from pyvm.ir import Prim, SymVar, bounds, evaluate, free_vars, parse_prim, prove_equal, substitute, sym_max, sym_min

N, M, K = SymVar("n"), SymVar("m"), SymVar("k")


def test_equal_polynomials_are_equal_objects() -> None:
    assert N + 1 - 1 == N
    assert (N + M) * (N - M) == N * N - M * M
    assert hash(2 * N + M) == hash(M + N + N)
    assert N - N == 0 and isinstance(N - N, int)
    assert N != M and N != 0


def test_division_cancels_what_divides() -> None:
    assert (2 * N) // 2 == N
    assert (2 * N + 1) // 2 == N
    assert (4 * N * M) // (2 * M) == 2 * N
    assert (N + 1) // (N + 1) == 1
    assert (6 * N + 6 * M) // (2 * N + 2 * M) == 3
    assert (2 * N + 2 * M) // 4 == (N + M) // 2
    assert (N // 2) // 3 == N // 6
    assert (N - 1) // 2 + 1 == (N + 1) // 2
    assert (N % 4) // 4 == 0
    assert 7 // N != 7


def test_remainder_drops_multiples() -> None:
    assert (4 * N + 6) % 4 == 2
    assert (5 * N) % 4 == N % 4
    assert (N % 3) % 5 == N % 3
    assert (N * M) % N == 0


def test_minimum_and_maximum_know_dimensions_are_not_negative() -> None:
    assert sym_max(N, 0) == N
    assert sym_min(N + 1, N) == N
    assert sym_min(N, 2**63 - 1) == N
    assert str(sym_max(N - 3, 0)) == "max(n-3, 0)"
    assert sym_min(sym_min(N, 5), 3) == sym_min(3, N)
    anything = SymVar("i", nonnegative=False)
    assert str(sym_max(anything, 0)) == "max(i, 0)"


def test_prove_equal_knows_three_answers() -> None:
    assert prove_equal(N + N, 2 * N) is True
    assert prove_equal(N + 1, N) is False
    assert prove_equal(N + 1, 0) is False
    assert prove_equal(N, M) is None
    assert prove_equal(3, 3) is True


def test_substitute_simplifies_again() -> None:
    assert substitute(N * M + N // 2, {N: 4}) == 4 * M + 2
    assert substitute(N - M, {M: N}) == 0
    assert free_vars(N * M + K // 2) == {N, M, K}


def test_truth_and_int_are_refused() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(N + 1)
    with pytest.raises(TypeError, match="no value at compile time"):
        int(N)
    with pytest.raises(TypeError):
        N + 1.5  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError):
        N // 0


def test_text_is_python() -> None:
    for text in ("n", "2*n+1", "n//2", "-n+4", "min(n, 3)*2", "(n+m)//(k+1)", "n%2", "n*n-m"):
        parsed = parse_prim(text)
        assert parse_prim(str(parsed)) == parsed
    with pytest.raises(ValueError, match="not a shape expression"):
        parse_prim("n**2")
    with pytest.raises(ValueError, match="not a shape expression"):
        parse_prim("__import__('os')")
    with pytest.raises(ValueError, match="identifier"):
        SymVar("2n")


LEAVES = st.one_of(st.sampled_from([N, M, K]), st.integers(-5, 12))


def _combine(children: st.SearchStrategy) -> st.SearchStrategy:
    pair = st.tuples(children, children)
    return st.one_of(
        pair.map(lambda p: ("+", *p)),
        pair.map(lambda p: ("-", *p)),
        pair.map(lambda p: ("*", *p)),
        pair.map(lambda p: ("min", *p)),
        pair.map(lambda p: ("max", *p)),
        st.tuples(children, st.integers(-4, 6).filter(bool)).map(lambda p: ("//", *p)),
        st.tuples(children, st.integers(-4, 6).filter(bool)).map(lambda p: ("%", *p)),
    )


FORMULAS = st.recursive(LEAVES, _combine, max_leaves=12)
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def _symbolic(formula):
    if not isinstance(formula, tuple):
        return formula
    op, a, b = formula[0], _symbolic(formula[1]), _symbolic(formula[2])
    return sym_min(a, b) if op == "min" else sym_max(a, b) if op == "max" else OPERATIONS[op](a, b)


def _numeric(formula, environment):
    if not isinstance(formula, tuple):
        return formula if isinstance(formula, int) else environment[formula.name]
    op, a, b = formula[0], _numeric(formula[1], environment), _numeric(formula[2], environment)
    return min(a, b) if op == "min" else max(a, b) if op == "max" else OPERATIONS[op](a, b)


@settings(max_examples=300, deadline=None)
@given(FORMULAS, st.fixed_dictionaries({"n": st.integers(0, 40), "m": st.integers(0, 40), "k": st.integers(0, 40)}))
def test_simplification_keeps_the_value(formula, environment) -> None:
    expression = _symbolic(formula)
    value = _numeric(formula, environment)
    assert evaluate(expression, environment) == value
    assert evaluate(parse_prim(str(expression)), environment) == value
    assert substitute(expression, {N: environment["n"], M: environment["m"], K: environment["k"]}) == value
    low, high = bounds(expression)
    assert low is None or low <= value
    assert high is None or value <= high


GROWTH: dict[str, Callable[[Prim, Prim], Prim]] = {
    "squares": lambda a, b: a * a,
    "coefficients": lambda a, b: a * 7_000_000_000_000_000_000,
    "polynomials": lambda a, b: (a + b) * a,
    "terms": lambda a, b: a * (b + SymVar("v" + "x" * len(str(a))) + 1),
    "quotients": lambda a, b: (a + 1) // b * (a + 2),
    "extrema": lambda a, b: sym_max(sym_min(a, b * 2) * 3 + a, b),
}


@pytest.mark.parametrize("name", GROWTH)
def test_what_doubles_for_ever_is_refused_soon(name: str) -> None:
    """A kilobyte of model can ask for each of these; before there was a limit some took hours and gigabytes."""
    value: Prim = N
    start = time.process_time()
    with pytest.raises(CompileError, match="a symbolic integer .*the limit is"):
        for _ in range(400):
            value = GROWTH[name](value, M)
            bounds(value)
            prove_equal(value, M)
    assert time.process_time() - start < 10
