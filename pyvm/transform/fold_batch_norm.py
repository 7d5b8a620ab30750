"""Batch normalization into the weights of what computes its input."""

from __future__ import annotations

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, IRModule, VarBinding
from pyvm.ir.nesting import typed_nesting

from .affine import n_output_channels, rescaled
from .producers import FusingRewriter, is_call_of


@checked
@typed_nesting("fold_batch_norm")
def fold_batch_norm(module: IRModule) -> IRModule:
    """No batch normalization with constant statistics follows a convolution or gemm with constant weights alone.

    (y - mean) * scale / sqrt(var + eps) + bias is a scale and a shift per channel of y, so y can compute it itself.
    """
    return _FoldBatchNorm(module).run()


class _FoldBatchNorm(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and is_call_of(value, "batch_norm"):
            folded = self._folded(value)
            if folded is not None:
                self.keep(VarBinding(binding.var, folded, folded.source))
                return
        self.keep(binding)

    def _folded(self, norm: Call) -> Call | None:
        params = norm.args[1:5]
        if not all(isinstance(param, Constant) for param in params):
            return None
        producer = self.sole_producer(norm.args[0], "conv") or self.sole_producer(norm.args[0], "gemm")
        if producer is None or n_output_channels(producer) is None:
            return None
        scale, bias, mean, var = (param.data.astype(np.float64) for param in params)  # type: ignore[attr-defined]
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(var + norm.attrs["eps"])
            return rescaled(producer, norm, factor, bias - mean * factor)
