"""Products with constant matrices."""

from __future__ import annotations

import numpy as np

from pyvm.checked_calls import checked
from pyvm.ir import Binding, Call, Constant, Expr, IRModule, TensorStructInfo, Var, VarBinding
from pyvm.ir.nesting import typed_nesting
from pyvm.op import linear
from pyvm.op.common import same_shape

from .producers import FusingRewriter, both_sources, is_call_of

_MOST_PADDING = 1.25  # columns are packed by 32 (float32): a few of them would grow too much


@checked
@typed_nesting("fuse_linear")
def fuse_linear(module: IRModule) -> IRModule:
    """Every product of floats with a constant matrix of enough columns is a `linear`, which takes its weights packed.

    A stack of matrices stays one: reshapes to a tall matrix and back, which `fuse_bias` makes, are gone.
    """
    return _FuseLinear(module).run()


class _FuseLinear(FusingRewriter):
    def visit(self, binding: Binding) -> None:
        binding = self.remap(binding)
        value = binding.value
        new = None
        if isinstance(value, Call):
            if is_call_of(value, "matmul"):
                new = _of_matmul(value)
            elif is_call_of(value, "gemm"):
                new = _of_gemm(value)
            elif is_call_of(value, "reshape"):
                new = self._unstacked(value)
        if new is None or not isinstance(value, Call) or new.struct_info != value.struct_info:
            self.keep(binding)
            return
        source = new.source or value.source
        self.keep(VarBinding(binding.var, Call(new.op, new.args, new.attrs, value.struct_info, source), source))

    def _unstacked(self, back: Call) -> Call | None:
        """`linear` on x for the reshape of a `linear` on a reshape of x that had only joined the leading axes."""
        inner, info = self.sole_producer(back.args[0], "linear"), back.struct_info
        if inner is None or not isinstance(info, TensorStructInfo) or info.shape is None or info.ndim < 2:
            return None
        flat = inner.args[0]
        if not isinstance(flat, Var) or flat not in self._made_by:
            return None
        tall, block = self._made_by[flat]
        if block is not self._block or not is_call_of(tall, "reshape"):
            return None
        x = tall.args[0].struct_info
        if not isinstance(x, TensorStructInfo) or x.shape is None or not same_shape(x.shape[:-1], info.shape[:-1]):
            return None
        new = linear(tall.args[0], inner.args[1], inner.args[2] if len(inner.args) == 3 else None)
        return Call(new.op, new.args, new.attrs, new.struct_info, both_sources(inner, back))


def _packs_well(weights: np.ndarray) -> bool:
    if weights.dtype not in (np.float32, np.float64) or weights.ndim != 2 or weights.size == 0:
        return False
    columns = 128 // weights.itemsize
    n = weights.shape[1]
    return -(-n // columns) * columns <= _MOST_PADDING * n


def _of_matmul(call: Call) -> Call | None:
    a, b = call.args
    info = a.struct_info
    if not isinstance(b, Constant) or not _packs_well(b.data) or not isinstance(info, TensorStructInfo):
        return None
    return linear(a, b) if info.shape is not None and info.ndim >= 1 else None


def _of_gemm(call: Call) -> Call | None:
    a, b = call.args[:2]
    attrs = call.attrs
    if not isinstance(b, Constant) or attrs["trans_a"] or attrs["alpha"] != 1.0:
        return None
    weights = b.data.T if attrs["trans_b"] else b.data
    if not _packs_well(weights):
        return None
    bias: Expr | None = None
    if len(call.args) == 3 and attrs["beta"] != 0.0:
        c = call.args[2]
        if not isinstance(c, Constant) or c.data.size not in (1, weights.shape[1]):
            return None
        if c.data.ndim == 2 and c.data.shape[0] != 1:
            return None
        scaled = (c.data.astype(np.float64) * attrs["beta"]).astype(c.data.dtype)
        bias = Constant(np.ascontiguousarray(np.broadcast_to(scaled.reshape(-1), (weights.shape[1],))))
    packed = linear(a, Constant(np.ascontiguousarray(weights)) if attrs["trans_b"] else b, bias)
    return Call(packed.op, packed.args, packed.attrs, packed.struct_info, call.source)
