"""Activations into the operators that can apply them themselves."""

from __future__ import annotations

from pyvm.ir import Binding, Call, IRModule, VarBinding

from .producers import FusingRewriter, both_sources, is_call_of


def fuse_activation(module: IRModule) -> IRModule:
    """No relu follows a convolution that nothing else reads: the convolution has the attribute activation="relu"."""
    return _FuseActivation(module).run()


class _FuseActivation(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and is_call_of(value, "relu"):
            conv = self.sole_producer(value.args[0], "conv")
            if conv is not None and conv.attrs["activation"] == "none":
                attrs = {**conv.attrs, "activation": "relu"}
                fused = Call(conv.op, conv.args, attrs, value.struct_info, both_sources(conv, value))
                self.keep(VarBinding(binding.var, fused, fused.source))
                return
        self.keep(binding)
