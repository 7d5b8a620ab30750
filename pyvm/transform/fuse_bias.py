"""Biases of matrix products."""

from __future__ import annotations

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, IRModule, Prim, TensorStructInfo, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.op import gemm, reshape

from .producers import FusingRewriter, both_sources, is_call_of


@checked
@typed_nesting("fuse_bias")
def fuse_bias(module: IRModule) -> IRModule:
    """No constant vector is added to the product of something with a constant matrix alone: that is one gemm.

    A stack of matrices is seen as one tall matrix for it, which moves no bytes.
    """
    return _FuseBias(module).run()


class _FuseBias(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and is_call_of(value, "add"):
            for index, operand in enumerate(value.args):
                product = self.sole_producer(operand, "matmul")
                if product is not None and self._fused(binding, value, product, value.args[1 - index]):
                    return
        self.keep(binding)

    def _fused(self, binding: Binding, add: Call, product: Call, bias: object) -> bool:
        left, right = product.args
        info, result = left.struct_info, add.struct_info
        if not (isinstance(right, Constant) and isinstance(bias, Constant) and isinstance(info, TensorStructInfo)):
            return False
        if info.shape is None or info.ndim < 2 or right.data.ndim != 2 or info.dtype not in ("float32", "float64"):
            return False
        width = right.data.shape[1]
        if bias.data.shape[-1:] != (width,) or bias.data.size != width or bias.data.ndim > info.ndim:
            return False
        source = both_sources(product, add)
        with self.bb.source(source):
            if info.ndim == 2:
                fused = self.bb.normalize(gemm(left, right, bias.data.reshape(-1)))
            else:
                rows: Prim = 1
                for dim in info.shape[:-1]:
                    rows = rows * dim
                tall = self.bb.emit(reshape(left, (rows, info.shape[-1])))
                flat = self.bb.emit(gemm(tall, right, bias.data.reshape(-1)))
                fused = self.bb.normalize(reshape(flat, (*info.shape[:-1], width)))
        if fused.struct_info != result:
            return False
        self.keep(VarBinding(binding.var, fused, source))
        return True
