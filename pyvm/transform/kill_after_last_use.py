"""Kills: dead values are released when they die, not when their function returns."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    BindingBlock,
    Expr,
    Function,
    If,
    IRModule,
    PrimStructInfo,
    SeqExpr,
    ShapeStructInfo,
    Var,
    VarBinding,
)
from pyvm.ir.nesting import typed_nesting

from .liveness import Liveness, find_deaths
from .lowered import ALLOC_STORAGE, ALLOC_TENSOR_AT, ARENA, KILL, RESHAPE, extern_call, extern_name
from .rewriter import all_bindings


@checked
@typed_nesting("kill_after_last_use")
def kill_after_last_use(module: IRModule) -> IRModule:
    """On every path, a variable that alone keeps memory alive is killed after its last use, unless that is the end.

    Not killed: parameters (the caller has them), views of the arena (their memory is the arena's), shapes and scalars.
    A branch that does not read a variable, whose other branch reads it last, kills it at its start. What a view looks
    at is not killed if it dies there: the view takes its register.
    """
    functions = {name: _kill_in(function) for name, function in module.functions.items()}
    return IRModule(functions, module.attrs)


def _kill_in(function: Function) -> Function:
    body = _sequence(function.body, find_deaths(function), _owners(function))
    return function.with_body(_without_last_kills(body))


def _without_last_kills(body: SeqExpr) -> SeqExpr:
    """The body of a function without the kills just before it returns: the frame lets go of everything anyway."""
    blocks = list(body.blocks)
    while blocks:
        bindings = list(blocks[-1].bindings)
        while bindings and extern_name(bindings[-1].value) == KILL:
            bindings.pop()
        if bindings:
            blocks[-1] = type(blocks[-1])(bindings)
            break
        blocks.pop()
    return SeqExpr(blocks, body.body)


def _owners(function: Function) -> set[Var]:
    """Variables whose value owns memory that is worth giving back early."""
    owners: set[Var] = set()
    for binding in all_bindings(function.body):
        value = binding.value
        name = extern_name(value)
        if isinstance(binding.var.struct_info, (ShapeStructInfo, PrimStructInfo)):
            continue
        if name == ALLOC_STORAGE:
            if not value.attrs.get(ARENA):  # type: ignore[attr-defined]
                owners.add(binding.var)
        elif name in (ALLOC_TENSOR_AT, RESHAPE):
            base = value.args[0]  # type: ignore[attr-defined]
            if base in owners:
                owners.add(binding.var)
        elif name != "vm.builtin.alloc_shape_heap":
            owners.add(binding.var)
    return owners


def _sequence(seq: SeqExpr, liveness: Liveness, owners: set[Var]) -> SeqExpr:
    entry = [_kill(var) for var in liveness.at_entry.get(seq, ()) if var in owners]
    blocks = []
    for block in seq.blocks:
        bindings: list[Binding] = entry
        entry = []
        for binding in block.bindings:
            value: Expr = binding.value
            dead = liveness.after[binding]
            if isinstance(value, If):
                value = If(
                    value.cond,
                    _sequence(value.true_branch, liveness, owners),
                    _sequence(value.false_branch, liveness, owners),
                    value.struct_info,
                )
                binding = VarBinding(binding.var, value, binding.source)
            bindings.append(binding)
            if takes_over(binding, dead):
                dead = tuple(var for var in dead if var is not value.args[0])  # type: ignore[attr-defined]
            for var in dead:
                # What a call returns and nobody reads never reaches a register, except from a function of the module.
                if var in owners and (var is not binding.var or extern_name(value) is None):
                    bindings.append(_kill(var))
        blocks.append(type(block)(bindings))
    body = seq.body
    handed_on = liveness.at_end.get(seq)
    if handed_on in owners:
        # The value of the branch gets a name of its own, so that the one it had can let go of it.
        assert isinstance(handed_on, Var)
        body = Var(handed_on.name, handed_on.struct_info)
        entry += [VarBinding(body, handed_on), _kill(handed_on)]
    if entry:
        blocks.append(BindingBlock(entry))
    return SeqExpr(blocks, body)


def takes_over(binding: Binding, dead: tuple[Var, ...]) -> bool:
    """Whether the result of a binding replaces its first operand in the register, which makes a kill unnecessary.

    True for views (they keep alive what they look at) of something that dies here; code generation sees to it.
    """
    name = extern_name(binding.value)
    if name not in (ALLOC_TENSOR_AT, RESHAPE) or binding.var in dead:
        return False
    return binding.value.args[0] in dead  # type: ignore[attr-defined]


def _kill(var: Var) -> Binding:
    call = extern_call(KILL, (var,))
    return VarBinding(Var("_", call.struct_info), call)
