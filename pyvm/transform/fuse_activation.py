"""Activations into the operators that can apply them themselves."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, ExternFunc, GlobalVar, IRModule, TensorStructInfo, Var, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.op.activation import activation_of

from .producers import FusingRewriter, both_sources


@checked
@typed_nesting("fuse_activation")
def fuse_activation(module: IRModule) -> IRModule:
    """No activation follows a convolution or `linear` that nothing else reads: their attributes name it instead."""
    return _FuseActivation(module).run()


class _FuseActivation(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and not isinstance(value.op, (ExternFunc, GlobalVar, Var)) and value.args:
            attrs = activation_of(value)
            operand = value.args[0]
            made = self.sole_producer(operand, "conv") or self.sole_producer(operand, "linear") if attrs else None
            info = operand.struct_info
            if made is not None and made.attrs["activation"] == "none" and isinstance(info, TensorStructInfo):
                if value.op.name == "relu" or info.dtype in ("float32", "float64"):
                    all_attrs = {**made.attrs, **attrs}  # type: ignore[dict-item]
                    fused = Call(made.op, made.args, all_attrs, value.struct_info, both_sources(made, value))
                    self.keep(VarBinding(binding.var, fused, fused.source))
                    return
        self.keep(binding)
