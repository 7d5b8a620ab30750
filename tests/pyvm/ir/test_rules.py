"""Each rule of well-formedness has a program that breaks exactly this rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pyvm.errors import WellFormedError
from pyvm.ir import (
    BindingBlock,
    Call,
    Constant,
    DataflowBlock,
    DataflowVar,
    ExternFunc,
    Function,
    GlobalVar,
    If,
    IRModule,
    MatchCast,
    ObjectStructInfo,
    SeqExpr,
    ShapeExpr,
    ShapeStructInfo,
    SymVar,
    TensorStructInfo,
    Tuple,
    TupleGetItem,
    TupleStructInfo,
    Var,
    VarBinding,
    call_dps_packed,
    check_well_formed,
)
from pyvm.ir.rules import RULES

N = SymVar("n")
INFO = TensorStructInfo((N, 4), "float32")
FLAG = TensorStructInfo((), "bool")


def fill(*args, info=INFO):
    return call_dps_packed("fill", args, info)


def function(params, blocks, result) -> IRModule:
    return IRModule({"main": Function(params, SeqExpr(blocks, result))})


def nested_call() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    return function([x], [BindingBlock([VarBinding(y, fill(fill(x)))])], y)


def no_struct_info() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    call = Call(ExternFunc("f"), [x])
    return function([x], [BindingBlock([VarBinding(y, call)])], y)


def bound_twice() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    return function([x], [BindingBlock([VarBinding(y, fill(x)), VarBinding(y, fill(x))])], y)


def used_before_definition() -> IRModule:
    x, y, z = Var("x", INFO), Var("y", INFO), Var("z", INFO)
    return function([x], [BindingBlock([VarBinding(z, fill(y)), VarBinding(y, fill(x))])], z)


def used_outside_branch() -> IRModule:
    x, c, y, z = Var("x", INFO), Var("c", FLAG), Var("y", INFO), Var("z", INFO)
    branch = SeqExpr([BindingBlock([VarBinding(y, fill(x))])], y)
    choice = If(c, branch, SeqExpr([], x), INFO)
    return function([x, c], [BindingBlock([VarBinding(z, choice)])], y)


def dataflow_variable_leaves() -> IRModule:
    x, y, z = Var("x", INFO), DataflowVar("y", INFO), Var("z", INFO)
    first, second = DataflowBlock([VarBinding(y, fill(x))]), BindingBlock([VarBinding(z, fill(y))])
    return function([x], [first, second], z)


def dataflow_variable_outside() -> IRModule:
    x, y = Var("x", INFO), DataflowVar("y", INFO)
    return function([x], [BindingBlock([VarBinding(y, fill(x))])], x)


def effect_in_dataflow() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    return function([x], [DataflowBlock([VarBinding(y, Call(ExternFunc("f"), [x], None, INFO))])], y)


def unknown_symbol() -> IRModule:
    x, y = Var("x", INFO), Var("y", ShapeStructInfo((SymVar("m"),)))
    return function([x], [BindingBlock([VarBinding(y, ShapeExpr((SymVar("m"),)))])], y)


def unknown_symbol_in_parameter() -> IRModule:
    x = Var("x", TensorStructInfo((2 * SymVar("m"),), "float32"))
    return function([x], [], x)


def illegal_dtype() -> IRModule:
    x = Var("x", TensorStructInfo((4,), "int4"))
    return function([x], [], x)


def disagreement() -> IRModule:
    x, y = Var("x", INFO), Var("y", TensorStructInfo((N, 5), "float32"))
    return function([x], [BindingBlock([VarBinding(y, fill(x))])], y)


def result_disagreement() -> IRModule:
    x = Var("x", INFO)
    return IRModule({"main": Function([x], SeqExpr([], x), TensorStructInfo((N, 4), "int8"))})


def missing_callee() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    return function([x], [BindingBlock([VarBinding(y, Call(GlobalVar("gone"), [x], None, INFO))])], y)


def wrong_arity() -> IRModule:
    x, y = Var("x", INFO), Var("y", INFO)
    return function([x], [BindingBlock([VarBinding(y, Call(GlobalVar("main"), [x, x], None, INFO))])], y)


def float_condition() -> IRModule:
    x, y = Var("x", TensorStructInfo((), "float32")), Var("y", TensorStructInfo((), "float32"))
    choice = If(x, SeqExpr([], x), SeqExpr([], x), x.struct_info)
    return function([x], [BindingBlock([VarBinding(y, choice)])], y)


def missing_field() -> IRModule:
    x, y = Var("x", TupleStructInfo([INFO])), Var("y", INFO)
    item = TupleGetItem(x, 0)
    item.index = 1
    return function([x], [BindingBlock([VarBinding(y, item)])], y)


BROKEN: dict[str, list[Callable[[], IRModule]]] = {
    "normal-form": [nested_call],
    "struct-info-present": [no_struct_info],
    "single-assignment": [bound_twice],
    "scoping": [used_before_definition, used_outside_branch],
    "dataflow-scoping": [dataflow_variable_leaves, dataflow_variable_outside],
    "dataflow-purity": [effect_in_dataflow],
    "symbol-scoping": [unknown_symbol, unknown_symbol_in_parameter],
    "dtype-legality": [illegal_dtype],
    "struct-info-agreement": [disagreement, result_disagreement],
    "callee": [missing_callee, wrong_arity],
    "condition": [float_condition],
    "tuple-index": [missing_field],
}


def test_every_rule_has_a_program_that_breaks_it() -> None:
    assert set(BROKEN) == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule, make", [(rule, make) for rule, makers in BROKEN.items() for make in makers])
def test_broken_program_names_its_rule(rule: str, make: Callable[[], IRModule]) -> None:
    with pytest.raises(WellFormedError, match=f"^rule {rule}: .* in @main, after pass some_pass") as caught:
        check_well_formed(make(), after="some_pass")
    bindings = make()["main"].body.blocks
    if bindings and make is not result_disagreement and make is not used_outside_branch:
        assert any(note.startswith("binding: ") for note in caught.value.__notes__)


def test_a_sound_program_passes() -> None:
    x, c, y, z = Var("x", INFO), Var("c", FLAG), DataflowVar("y", INFO), Var("z", INFO)
    m = SymVar("m")
    cast = Var("cast", TensorStructInfo((m, 4), "float32"))
    pair, choice = Var("pair", None), Var("choice", INFO)
    both = Tuple([z, Constant(np.zeros(3, np.float32))])
    pair.struct_info = both.struct_info
    module = function(
        [x, c],
        [
            DataflowBlock([VarBinding(y, fill(x)), VarBinding(z, fill(y))]),
            BindingBlock(
                [
                    MatchCast(cast, z, cast.struct_info),
                    VarBinding(pair, both),
                    VarBinding(choice, If(c, SeqExpr([], z), SeqExpr([], x), INFO)),
                    VarBinding(Var("_", ObjectStructInfo()), Call(ExternFunc("f"), [ShapeExpr((m, N))], None, INFO)),
                ]
            ),
        ],
        choice,
    )
    assert check_well_formed(module) is module
