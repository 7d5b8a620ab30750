"""What fusing passes share: who computed an operand, and whether anybody else reads it."""

from __future__ import annotations

from pyvm.ir import Binding, BindingBlock, Call, Expr, ExternFunc, Function, GlobalVar, Var
from pyvm.ir.source import Source, notes_of

from .rewriter import Rewriter, count_uses


class FusingRewriter(Rewriter):
    """A rewriter that can look back from an operand to the operator call that made it."""

    def rewrite_function(self, name: str, function: Function) -> Function:
        self._uses = count_uses(function)
        self._made_by: dict[Var, tuple[Call, BindingBlock | None]] = {}
        return super().rewrite_function(name, function)

    def keep(self, binding: Binding) -> None:
        if isinstance(binding.value, Call):
            self._made_by[binding.var] = binding.value, self._block
        super().keep(binding)

    def sole_producer(self, operand: Expr, op_name: str) -> Call | None:
        """The call of `op_name` that made `operand`, if it is in this block and nothing else reads its result.

        In the same block, what the call reads is still visible. The call stays, unused, for dead code elimination.
        """
        if not isinstance(operand, Var) or self._uses.get(operand) != 1 or operand not in self._made_by:
            return None
        call, block = self._made_by[operand]
        return call if block is self._block and is_call_of(call, op_name) else None


def is_call_of(value: Expr, op_name: str) -> bool:
    """Whether a bound value is a call of the operator of this name."""
    if not isinstance(value, Call) or isinstance(value.op, (ExternFunc, GlobalVar, Var)):
        return False
    return value.op.name == op_name


def both_sources(first: Call, second: Call, how: str = "is done by the same call") -> str | None:
    """The source of a call that does the work of two: of `first` and of `second`, which read its result alone."""
    known = [call.source for call in (first, second) if call.source is not None]
    if not known:
        return None
    note = f"{second.op.name} {how}, as nothing else reads what was between"  # type: ignore[union-attr]
    notes = dict.fromkeys((*notes_of(first.source), note, *notes_of(second.source)))
    return Source(" + ".join(known), tuple(notes))
