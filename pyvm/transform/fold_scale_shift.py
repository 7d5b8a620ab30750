"""Arithmetic with constants per channel into the weights of what computes the other operand."""

from __future__ import annotations

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, Expr, IRModule, TensorStructInfo, VarBinding
from pyvm.ir.nesting import typed_nesting

from .affine import n_output_channels, rescaled
from .producers import FusingRewriter, is_call_of

_OPERATORS = ("add", "sub", "mul", "div")


@checked
@typed_nesting("fold_scale_shift")
def fold_scale_shift(module: IRModule) -> IRModule:
    """No sum, difference, product or quotient with a constant per channel follows a convolution or gemm alone.

    The convolution or gemm has constant weights, which then contain it. Exporters write biases and normalizations so.
    """
    return _FoldScaleShift(module).run()


class _FoldScaleShift(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        if isinstance(value, Call) and any(is_call_of(value, name) for name in _OPERATORS):
            folded = self._folded(value)
            if folded is not None:
                self.keep(VarBinding(binding.var, folded, folded.source))
                return
        self.keep(binding)

    def _folded(self, call: Call) -> Call | None:
        for index, operand in enumerate(call.args):
            constant = call.args[1 - index]
            producer = self.sole_producer(operand, "conv") or self.sole_producer(operand, "gemm")
            if producer is None or not isinstance(constant, Constant):
                continue
            n_channels = n_output_channels(producer)
            values = None if n_channels is None else _per_channel(constant, operand, n_channels)
            if values is None:
                continue
            affine = _scale_and_shift(call.op.name, values, constant_first=index == 1)
            if affine is not None:
                return rescaled(producer, call, *affine)
        return None


def _per_channel(constant: Constant, operand: Expr, n_channels: int) -> np.ndarray | None:
    """The constant as one number per channel (axis 1), if that is all it is."""
    info = operand.struct_info
    if not isinstance(info, TensorStructInfo) or constant.data.ndim > info.ndim:
        return None
    shape = (1,) * (info.ndim - constant.data.ndim) + constant.data.shape
    if any(dim != 1 for axis, dim in enumerate(shape) if axis != 1) or shape[1] not in (1, n_channels):
        return None
    return np.broadcast_to(constant.data.astype(np.float64).reshape(-1), (n_channels,))


def _scale_and_shift(operator: str, values: np.ndarray, constant_first: bool) -> tuple[np.ndarray, np.ndarray] | None:
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if operator == "add":
        return ones, values
    if operator == "sub":
        return (-ones, values) if constant_first else (ones, -values)
    if operator == "mul":
        return values, zeros
    if constant_first or not values.all():
        return None
    return 1 / values, zeros
