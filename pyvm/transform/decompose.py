"""Decomposition of operators that have no kernel of their own."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Expr, ExternFunc, GlobalVar, IRModule, Var
from pyvm.ir.nesting import typed_nesting
from pyvm.ir.source import noted
from pyvm.op.registry import Decompose
from vmcore.errors import LoweringError

from .rewriter import Rewriter

_MAX_DEPTH = 32


@checked
@typed_nesting("decompose")
def decompose(module: IRModule) -> IRModule:
    """Every operator lowers to one call or view: those that lower to other operators are written out as these."""
    return _Decompose(module).run()


class _Decompose(Rewriter):
    _depth = 0

    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        lowered = _lower(value)
        if not isinstance(lowered, Decompose):
            self.keep(binding)
            return
        if self._depth == _MAX_DEPTH:
            raise LoweringError(f"{value.op.name}: decomposes into itself, or deeper than {_MAX_DEPTH} levels")  # type: ignore[attr-defined]
        note = f"part of {value.op.name}, for which there is no one kernel"  # type: ignore[attr-defined]
        self.bb.open_scope()
        with self.bb.source(noted(binding.source, note)):
            emitted = self.bb.close_scope(lowered.expr_builder(self.bb))
        self._depth += 1
        for inner in emitted.bindings():
            self.visit(inner)
        self._depth -= 1
        # The new variables are no dataflow variables, so they are visible wherever the old one was.
        self.replace(binding.var, self.leaf(emitted.body))


def _lower(value: Expr) -> object:
    if isinstance(value, Call) and not isinstance(value.op, (ExternFunc, GlobalVar, Var)):
        return value.op.lowered(value)
    return None
