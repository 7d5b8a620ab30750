"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, ExternFunc, GlobalVar, IRModule, Var, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.op.prepack import PACKERS, Packer

from .rewriter import Rewriter


@checked
@typed_nesting("pack_weights")
def pack_weights(module: IRModule) -> IRModule:
    """Constant operands have the layout that `pyvm.op.prepack` declares; one constant is packed once.

    Kernels then read them as they lie, instead of putting them in order in every call.
    """
    return _PackWeights(module).run()


class _PackWeights(Rewriter):
    def run(self) -> IRModule:
        self._packed: dict[tuple[int, str], tuple[np.ndarray, Constant]] = {}
        return super().run()

    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and not isinstance(value.op, (ExternFunc, GlobalVar, Var)):
            for packer in PACKERS.get(value.op.name, ()) if "layout" not in value.attrs else ():
                weights = value.args[packer.operand]
                if isinstance(weights, Constant) and packer.applies(value):
                    args = list(value.args)
                    args[packer.operand] = self._pack(weights, packer, value.attrs.get("group", 1))
                    attrs = {**value.attrs, "layout": packer.layout, **packer.attrs(weights.data)}
                    packed = Call(value.op, args, attrs, value.struct_info, value.source)
                    self.keep(VarBinding(binding.var, packed, binding.source))
                    return
        self.keep(binding)

    def _pack(self, weights: Constant, packer: Packer, group: int) -> Constant:
        data = weights.data
        key = data.__array_interface__["data"][0], f"{packer.layout} {group} {data.shape} {data.dtype}"
        if key not in self._packed:  # the array is kept, so that its address stays its own
            self._packed[key] = data, Constant(packer.pack(data, group))
        return self._packed[key][1]
