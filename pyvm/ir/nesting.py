"""Programs that are nested more deeply than can be followed end in a CompileError, not in Python's RecursionError."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from vmcore.errors import CompileError

from .expr import Expr, Function, If, SeqExpr

_P = ParamSpec("_P")
_R = TypeVar("_R")


def nesting(sequence: SeqExpr) -> int:
    """How many branches and local functions lie within each other, at most; found without recursion."""
    deepest = 0
    waiting = [(sequence, 0)]
    while waiting:
        seq, depth = waiting.pop()
        deepest = max(deepest, depth)
        for block in seq.blocks:
            for binding in block.bindings:
                value: Expr = binding.value
                if isinstance(value, If):
                    waiting += [(value.true_branch, depth + 1), (value.false_branch, depth + 1)]
                elif isinstance(value, Function):
                    waiting.append((value.body, depth + 1))
    return deepest


def _depth_of(value: Any) -> int:
    """The nesting of a module, a function or a sequence; 0 of anything else."""
    functions = getattr(value, "functions", None)
    if isinstance(functions, dict):
        return max((nesting(function.body) for function in functions.values()), default=0)
    if isinstance(value, Function):
        return nesting(value.body)
    return nesting(value) if isinstance(value, SeqExpr) else 0


def too_deep(what: str, value: Any = None, error: type[CompileError] = CompileError) -> CompileError:
    """The error for a RecursionError in `what`, which works on `value`; says how deep that is, and the limit."""
    depth = _depth_of(value)
    nested = f"branches and functions are nested {depth} deep" if depth else "nested too deeply"
    return error(f"{what}: {nested}; {recursion_limit()}")


def recursion_limit() -> str:
    """The limit in words, for messages."""
    return f"Python's recursion limit is {sys.getrecursionlimit()} frames (sys.setrecursionlimit raises it)"


def typed_nesting(
    what: str, error: type[CompileError] = CompileError
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator: a RecursionError becomes an `error` that names `what` and how deep the first argument is nested.

    Only the way out is touched: a call costs what it cost before.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                return function(*args, **kwargs)
            except RecursionError:
                pass  # outside of the handler its many frames are gone
            raise too_deep(what, args[0] if args else None, error)

        return guarded

    return wrap
