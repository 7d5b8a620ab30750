"""Sums into the operators that can add to their own results."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import Binding, BindingBlock, Call, Function, IRModule, TensorStructInfo, Var, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.op.activation import is_plain
from pyvm.op.common import same_shape

from .producers import FusingRewriter, both_sources, is_call_of


@checked
@typed_nesting("fuse_residual")
def fuse_residual(module: IRModule) -> IRModule:
    """No sum of two tensors of one shape follows a convolution or product that nothing else reads.

    That one adds the other tensor itself, element by element while its result is in cache. Where both operands are such
    results, the later one does.
    """
    return _FuseResidual(module).run()


class _FuseResidual(FusingRewriter):
    def rewrite_function(self, name: str, function: Function) -> Function:
        self._order: dict[Var, int] = {}
        return super().rewrite_function(name, function)

    def rewrite_block(self, block: BindingBlock) -> None:
        for binding in block.bindings:
            self._order[binding.var] = len(self._order)
        super().rewrite_block(block)

    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and is_call_of(value, "add"):
            fused = self._fused(value)
            if fused is not None:
                self.keep(VarBinding(binding.var, fused, fused.source))
                return
        self.keep(binding)

    def _fused(self, add: Call) -> Call | None:
        candidates = []
        for index, operand in enumerate(add.args):
            other = add.args[1 - index]
            producer = self.sole_producer(operand, "conv") or self.sole_producer(operand, "linear")
            if producer is None or other is operand or not isinstance(operand, Var) or not isinstance(other, Var):
                continue
            infos = operand.struct_info, other.struct_info, producer.args[0].struct_info
            mine, more, x = infos
            if not all(isinstance(i, TensorStructInfo) and i.shape is not None for i in infos):
                continue
            if x.dtype not in ("float32", "float64") or not same_shape(mine.shape, more.shape):  # type: ignore[union-attr]
                continue
            if is_plain(producer.attrs):
                candidates.append((self._order.get(operand, 0), producer, other))
        if not candidates:
            return None
        _, producer, other = max(candidates, key=lambda candidate: candidate[0])
        attrs = {**producer.attrs, "residual": True}
        return Call(producer.op, (*producer.args, other), attrs, add.struct_info, both_sources(producer, add))
