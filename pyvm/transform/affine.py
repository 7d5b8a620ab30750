"""A scale and a shift per output channel, written into the constant weights of a convolution or a gemm.

Computed in float64 and rounded once. Not a pass: what `fold_batch_norm` and `fold_scale_shift` share.
"""

from __future__ import annotations

import numpy as np

from pyvm.ir import Call, Constant
from pyvm.op.activation import is_plain

from .producers import both_sources


def n_output_channels(call: Call) -> int | None:
    """Channels of the result of a convolution or a gemm that can be rescaled; None if it cannot be."""
    weights = call.args[1]
    if not isinstance(weights, Constant) or weights.data.dtype not in (np.float32, np.float64):
        return None
    if len(call.args) > 2 and not isinstance(call.args[2], Constant):
        return None
    if call.op.name == "conv":
        return weights.data.shape[0] if is_plain(call.attrs) else None
    if len(call.args) > 2:
        addend = call.args[2].data  # type: ignore[attr-defined]
        if addend.ndim == 2 and addend.shape[0] != 1:
            return None
    return weights.data.shape[0 if call.attrs["trans_b"] else 1]


def rescaled(call: Call, after: Call, scale: np.ndarray, shift: np.ndarray) -> Call | None:
    """The call that computes `after`, which is scale * call + shift per channel; None if a weight is not finite then.

    Parameters
    ----------
    call : Call
        A convolution or gemm for which `n_output_channels` is not None.
    after : Call
        What it replaces; gives the struct info.
    scale, shift : float64 arrays, (channels,)
    """
    weights = call.args[1].data  # type: ignore[attr-defined]
    attrs = call.attrs
    start = call.args[2].data.astype(np.float64) if len(call.args) > 2 else np.zeros(1)  # type: ignore[attr-defined]
    if call.op.name == "conv":
        along = scale.reshape(-1, *[1] * (weights.ndim - 1))
    else:
        start = start * attrs["beta"]
        attrs = {**attrs, "beta": 1.0}
        along = scale.reshape(-1, 1) if attrs["trans_b"] else scale
    with np.errstate(all="ignore"):
        new_weights = (weights.astype(np.float64) * along).astype(weights.dtype)
        new_bias = (np.broadcast_to(start.reshape(-1), scale.shape) * scale + shift).astype(weights.dtype)
    if not (np.isfinite(new_weights).all() and np.isfinite(new_bias).all()):
        return None
    args = call.args[0], Constant(new_weights), Constant(new_bias)
    return Call(call.op, args, attrs, after.struct_info, both_sources(call, after, "is folded into the weights"))
