"""Dead code elimination."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import (
    Binding,
    BindingBlock,
    DataflowBlock,
    DataflowVar,
    Expr,
    Function,
    If,
    IRModule,
    MatchCast,
    SeqExpr,
    Var,
    VarBinding,
)
from pyvm.ir.expr import LEAVES
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.rules import is_pure

from .rewriter import Rewriter, operands


@checked
@typed_nesting("eliminate_dead_code")
def eliminate_dead_code(module: IRModule) -> IRModule:
    """Every binding is used or has a side effect, and no variable is a second name for another value.

    Checks (`MatchCast`) stay: they may fail, and they define symbols.
    """
    forwarded = _ForwardAliases(module).run()
    functions = {name: _without_dead_bindings(function) for name, function in forwarded.functions.items()}
    return IRModule(functions, module.attrs)


class _ForwardAliases(Rewriter):
    """Uses of `v` in `v = leaf` read the leaf. A dataflow variable that is the output of its block becomes the output.

    `out = lv` (what `emit_output` of a variable makes) cannot be forwarded, as `lv` ends with its block; instead the
    binding of `lv` binds `out`.
    """

    def rewrite_function(self, name: str, function: Function) -> Function:
        self._outputs: dict[Var, Var] = {}
        return super().rewrite_function(name, function)

    def rewrite_block(self, block: BindingBlock) -> None:
        if isinstance(block, DataflowBlock):
            defined = {binding.var for binding in block.bindings}
            for binding in block.bindings:
                value = binding.value
                if (
                    isinstance(binding, VarBinding)
                    and not isinstance(binding.var, DataflowVar)
                    and isinstance(value, DataflowVar)
                    and value in defined
                ):
                    self._outputs.setdefault(value, binding.var)
        super().rewrite_block(block)

    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        var, value = binding.var, binding.value
        if isinstance(binding, VarBinding):
            if value is var:  # `out = lv`, and `lv` was bound as `out` already
                return
            if isinstance(value, Var):
                if isinstance(value, DataflowVar) and not isinstance(var, DataflowVar):
                    self.keep(binding)
                    return
                self.replace(var, value)
                return
            if isinstance(value, LEAVES):
                self.replace(var, value)
                return
        out = self._outputs.get(var)
        if out is None:
            self.keep(binding)
            return
        self.replace(var, out)
        if isinstance(binding, MatchCast):
            self.keep(MatchCast(out, value, binding.struct_info, binding.source))
        else:
            self.keep(VarBinding(out, value, binding.source))


def _without_dead_bindings(function: Function) -> Function:
    body = _live_sequence(function.body, set(), result_used=True)
    return function if body is function.body else function.with_body(body)


def _mark(expr: Expr, live: set[Var]) -> None:
    if isinstance(expr, Var):
        live.add(expr)


def _live_sequence(seq: SeqExpr, live: set[Var], result_used: bool) -> SeqExpr:
    """The sequence without dead bindings, walked backwards; adds to `live` what it reads.

    Variables are bound once, so one set serves all branches: a branch's own variables mean nothing outside it.
    """
    if result_used:
        _mark(seq.body, live)
    blocks: list[BindingBlock] = []
    changed = False
    for block in reversed(seq.blocks):
        kept: list[Binding] = []
        for binding in reversed(block.bindings):
            value = binding.value
            used = binding.var in live
            if not used and isinstance(binding, VarBinding) and is_pure(value):
                changed = True
                continue
            if isinstance(value, If):
                # An unused If that stays has effects; its value is a leaf of the branches and costs nothing.
                branches = (
                    _live_sequence(value.true_branch, live, True),
                    _live_sequence(value.false_branch, live, True),
                )
                if branches[0] is not value.true_branch or branches[1] is not value.false_branch:
                    binding = VarBinding(
                        binding.var, If(value.cond, branches[0], branches[1], value.struct_info), binding.source
                    )
                    changed = True
            for operand in operands(value):
                _mark(operand, live)
            kept.append(binding)
        if len(kept) == len(block.bindings) and not changed:
            blocks.append(block)
        elif kept:
            blocks.append(type(block)(reversed(kept)))
    if not changed and len(blocks) == len(seq.blocks):
        return seq
    return SeqExpr(reversed(blocks), seq.body)
