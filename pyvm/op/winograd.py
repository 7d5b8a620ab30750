"""Weights of 3 x 3 convolutions as Winograd's F(2x2, 3x3) takes them, and when it gains.

`kernel.conv_winograd` makes 2 x 2 outputs at a time with 16 multiplications instead of 36, after it has transformed the
inputs and before it transforms the products. The weights are transformed here, once.
"""

from __future__ import annotations

import numpy as np

from pyvm.ir.expr import Call, Constant
from pyvm.ir.struct_info import TensorStructInfo

WINOGRAD_LAYOUT = "winograd"
WINOGRAD_POINTS = 16
PANEL_COLUMNS = 32  # 128 bytes, as in dense.py: every width of register tile divides it
_TILE, _MAX_PAD = 2, 2  # of vmcore/kernels/winograd.pyx
_WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_BACK = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def transform_weights(weights: np.ndarray, group: int = 1) -> np.ndarray:
    """(o, c, 3, 3) -> (16, group * panels, c, 32): G w G', computed in float64.

    Each panel holds 32 output channels of one group side by side; those past the last one are 0.
    """
    n_out, n_in = weights.shape[0] // group, weights.shape[1]
    panels = -(-n_out // PANEL_COLUMNS)
    points = np.zeros((WINOGRAD_POINTS, group, n_in, panels * PANEL_COLUMNS), weights.dtype)
    wide = weights.astype(np.float64).reshape(group, n_out, n_in, 3, 3)
    transformed = np.einsum("pi,gocij,qj->pqgco", _WEIGHTS, wide, _WEIGHTS, optimize=True)
    points[..., :n_out] = transformed.reshape(WINOGRAD_POINTS, group, n_in, n_out)
    split = points.reshape(WINOGRAD_POINTS, group, n_in, panels, PANEL_COLUMNS).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(split).reshape(WINOGRAD_POINTS, group * panels, n_in, PANEL_COLUMNS)


def restore_weights(packed: np.ndarray, n_out: int, group: int = 1) -> np.ndarray:
    """The inverse of `transform_weights`, but for rounding: weights (n_out, c, 3, 3) float64."""
    panels, n_in = packed.shape[1] // group, packed.shape[2]
    points = packed.astype(np.float64).reshape(4, 4, group, panels, n_in, PANEL_COLUMNS).transpose(0, 1, 2, 3, 5, 4)
    columns = points.reshape(4, 4, group, panels * PANEL_COLUMNS, n_in)[:, :, :, : n_out // group]
    return np.ascontiguousarray(
        np.einsum("ip,pqgoc,jq->gocij", _BACK, columns, _BACK, optimize=True).reshape(n_out, n_in, 3, 3)
    )


def gains_by_winograd(call: Call) -> bool:
    """Whether a `conv` with constant weights is faster this way.

    They must be finite, float32, 3 x 3 with stride 1, without dilation, and with at most 2 zeros on a side. Then it is
    a matter of counting vectors of 16: for each tile the products of 16 points and the transforms of n_in inputs and
    n_out outputs, against the products of 9 taps for each position. Few channels do not pay for the transforms, and a
    tile or two does not fill registers. Maps whose size is unknown are taken for large.
    """
    x, w, attrs = call.args[0].struct_info, call.args[1].struct_info, call.attrs
    if not isinstance(x, TensorStructInfo) or not isinstance(w, TensorStructInfo) or w.shape is None:
        return False
    if w.dtype != "float32" or len(w.shape) != 4 or tuple(w.shape[2:]) != (3, 3):
        return False
    pads = attrs["pads"]
    if attrs["strides"] != (1, 1) or attrs["dilations"] != (1, 1) or max(pads) > _MAX_PAD:
        return False
    weights = call.args[1]
    if isinstance(weights, Constant) and not np.isfinite(weights.data).all():
        return False  # an infinity stays one in a sum of products, not in a sum of differences
    tiles, positions = 256, 1024
    if x.shape is not None and all(isinstance(size, int) for size in x.shape[2:]):
        height, width = (int(x.shape[2 + i]) + pads[i] + pads[2 + i] - 2 for i in range(2))  # type: ignore
        tiles, positions = -(-height // _TILE) * -(-width // _TILE), height * width
    n_in, n_out = int(w.shape[1]), int(w.shape[0]) // attrs["group"]  # type: ignore[call-overload]
    out_vectors = -(-n_out // 16)
    winograd = tiles * (out_vectors * (WINOGRAD_POINTS * n_in + _OUTPUT_COST) + -(-n_in // 16) * _INPUT_COST)
    direct = -(-positions // 16) * 9 * n_in * n_out
    return bool(tiles >= _LEAST_TILES and winograd < _GAIN * direct)


_INPUT_COST, _OUTPUT_COST = 110, 90  # cycles for a tile of a vector of channels; a vector of products takes one
_LEAST_TILES = 4
_GAIN = 0.9  # of the time: less is not worth larger weights
