"""Batch normalization into the weights of what computes its input."""

from __future__ import annotations

import numpy as np

from pyvm.ir import Binding, Call, Constant, IRModule, VarBinding

from .producers import FusingRewriter, both_sources, is_call_of


def fold_batch_norm(module: IRModule) -> IRModule:
    """No batch normalization with constant statistics follows a convolution or gemm with constant weights alone.

    y = (conv(x, w, b) - mean) * scale / sqrt(var + eps) + bias is a convolution with weights w * k and bias
    (b - mean) * k + bias, where k = scale / sqrt(var + eps) is per output channel. Computed in float64, rounded once.
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
        affine = _per_channel(norm)
        if affine is None:
            return None
        factor, mean, bias = affine
        conv = self.sole_producer(norm.args[0], "conv")
        if conv is not None:
            return _into_conv(conv, norm, factor, mean, bias)
        gemm = self.sole_producer(norm.args[0], "gemm")
        return None if gemm is None else _into_gemm(gemm, norm, factor, mean, bias)


def _per_channel(norm: Call) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(k, mean, bias) in float64, if the statistics are constants."""
    params = norm.args[1:5]
    if len(params) != 4 or not all(isinstance(p, Constant) for p in params):
        return None
    scale, bias, mean, var = (p.data.astype(np.float64) for p in params)  # type: ignore[attr-defined]
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + norm.attrs["eps"])
    return factor, mean, bias


def _into_conv(conv: Call, norm: Call, factor: np.ndarray, mean: np.ndarray, bias: np.ndarray) -> Call | None:
    weights = conv.args[1]
    if not isinstance(weights, Constant) or conv.attrs["activation"] != "none":
        return None
    start: np.ndarray | float = 0.0
    if len(conv.args) > 2:
        if not isinstance(conv.args[2], Constant):
            return None
        start = conv.args[2].data.astype(np.float64)
    dtype = weights.data.dtype
    per_row = factor.reshape(-1, *[1] * (weights.data.ndim - 1))
    new_weights = (weights.data.astype(np.float64) * per_row).astype(dtype)
    new_bias = ((start - mean) * factor + bias).astype(dtype)
    args = conv.args[0], Constant(new_weights), Constant(new_bias)
    return Call(conv.op, args, conv.attrs, norm.struct_info, both_sources(conv, norm))


def _into_gemm(gemm: Call, norm: Call, factor: np.ndarray, mean: np.ndarray, bias: np.ndarray) -> Call | None:
    weights = gemm.args[1]
    if not isinstance(weights, Constant):
        return None
    start = np.zeros(factor.size)
    if len(gemm.args) > 2:
        addend = gemm.args[2]
        if not isinstance(addend, Constant) or (addend.data.ndim == 2 and addend.data.shape[0] != 1):
            return None
        start = np.broadcast_to(gemm.attrs["beta"] * addend.data.astype(np.float64), (1, factor.size)).reshape(-1)
    dtype = weights.data.dtype
    per_column = factor.reshape(-1, 1) if gemm.attrs["trans_b"] else factor
    new_weights = (weights.data.astype(np.float64) * per_column).astype(dtype)
    new_bias = ((start - mean) * factor + bias).astype(dtype)
    args = gemm.args[0], Constant(new_weights), Constant(new_bias)
    return Call(gemm.op, args, {**gemm.attrs, "beta": 1.0}, norm.struct_info, both_sources(gemm, norm))
