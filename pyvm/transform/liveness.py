"""Where variables die: shared by the kill pass and register allocation."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyvm.ir import Binding, Expr, Function, If, SeqExpr, Var

from .rewriter import operands


@dataclass
class Liveness:
    """Deaths of the variables of one function, on every path exactly one per variable.

    Attributes
    ----------
    after : dict
        Binding -> variables that nothing reads after it: operands it reads last, and its own if nobody reads it. A
        variable that dies in an If dies inside both branches and is not listed at the If.
    at_entry : dict
        Branch -> variables that die because this branch, unlike the other one, does not read them. The condition of
        the If is one of them.
    at_end : dict
        Branch -> its value, if that is a variable from outside the branch which nothing reads after the If.
    """

    after: dict[Binding, tuple[Var, ...]] = field(default_factory=dict)
    at_entry: dict[SeqExpr, tuple[Var, ...]] = field(default_factory=dict)
    at_end: dict[SeqExpr, Var] = field(default_factory=dict)


def find_deaths(function: Function) -> Liveness:
    """The deaths in a function; parameters included, the result of the function excluded."""
    result = Liveness()
    live = _sequence(function.body, {}, result)
    result.at_entry[function.body] = tuple(param for param in function.params if param not in live)
    return result


# A set that keeps its order, so that the same program always gives the same bytecode.
_Live = dict[Var, None]


def _add(expr: Expr, live: _Live) -> bool:
    if isinstance(expr, Var) and expr not in live:
        live[expr] = None
        return True
    return False


def _sequence(seq: SeqExpr, live: _Live, result: Liveness) -> _Live:
    """Walks backwards; `live`, what is read after the sequence, becomes what is live before it, and is returned."""
    _add(seq.body, live)
    for block in reversed(seq.blocks):
        for binding in reversed(block.bindings):
            value = binding.value
            deaths: list[Var] = []
            if binding.var in live:
                del live[binding.var]
            else:
                deaths.append(binding.var)
            if isinstance(value, If):
                live = _branches(value, live, result)
            else:
                for operand in operands(value):
                    if _add(operand, live):
                        deaths.append(operand)  # type: ignore[arg-type]
            result.after[binding] = tuple(deaths)
    return live


def _branches(value: If, live_after: _Live, result: Liveness) -> _Live:
    into_true = _sequence(value.true_branch, dict(live_after), result)
    into_false = _sequence(value.false_branch, dict(live_after), result)
    live_before = into_true | into_false
    _add(value.cond, live_before)
    for branch, into in ((value.true_branch, into_true), (value.false_branch, into_false)):
        result.at_entry[branch] = tuple(var for var in live_before if var not in into)
        if isinstance(branch.body, Var) and branch.body in into and branch.body not in live_after:
            result.at_end[branch] = branch.body
    return live_before
