"""Weights of 3 x 3 convolutions as Winograd's F(2x2, 3x3) takes them, and when it gains.

`kernel.conv_winograd` makes 2 x 2 outputs at a time with 16 multiplications instead of 36, after it has transformed the
inputs and before it transforms the products. The weights are transformed here, once.
"""

from __future__ import annotations

import numpy as np

from pyvm.ir.expr import Call
from pyvm.ir.struct_info import TensorStructInfo

WINOGRAD_LAYOUT = "winograd"
WINOGRAD_POINTS = 16
_TILE, _MAX_PAD = 2, 2  # of vmcore/kernels/winograd.pyx
_WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_BACK = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def transform_weights(weights: np.ndarray) -> np.ndarray:
    """(o, c, 3, 3) -> (16, o, c): G w G', computed in float64."""
    points = np.einsum("pi,ocij,qj->pqoc", _WEIGHTS, weights.astype(np.float64), _WEIGHTS)
    return np.ascontiguousarray(points.reshape(WINOGRAD_POINTS, *weights.shape[:2]).astype(weights.dtype))


def restore_weights(points: np.ndarray) -> np.ndarray:
    """The inverse of `transform_weights`, but for rounding: (16, o, c) -> (o, c, 3, 3) float64."""
    square = points.astype(np.float64).reshape(4, 4, *points.shape[1:])
    return np.ascontiguousarray(np.einsum("ip,pqoc,jq->ocij", _BACK, square, _BACK))


def gains_by_winograd(call: Call) -> bool:
    """Whether a `conv` with constant weights is faster this way.

    It must be float32, 3 x 3 with stride 1, without dilation, and with at most 2 zeros on a side. Then it is a matter
    of counting vectors of 16: the products of 16 points for each 2 x 2 tile, and the transforms of c inputs and o
    outputs, against the products of 9 taps for each position. Tiles of small maps leave vectors empty, and few
    channels do not pay for the transforms. Maps whose size is unknown are taken for large.
    """
    x, w, attrs = call.args[0].struct_info, call.args[1].struct_info, call.attrs
    if not isinstance(x, TensorStructInfo) or not isinstance(w, TensorStructInfo) or w.shape is None:
        return False
    if w.dtype != "float32" or len(w.shape) != 4 or tuple(w.shape[2:]) != (3, 3):
        return False
    if attrs["strides"] != (1, 1) or attrs["dilations"] != (1, 1) or max(attrs["pads"]) > _MAX_PAD:
        return False
    tiles, positions = 1.0, 1.0  # vectors
    if x.shape is not None and all(isinstance(size, int) for size in x.shape[2:]):
        pads = attrs["pads"]
        height, width = (int(x.shape[2 + i]) + pads[i] + pads[2 + i] - 2 for i in range(2))  # type: ignore[call-overload]
        tiles = -(-(-(-height // _TILE) * -(-width // _TILE)) // 16)
        positions = -(-height * width // 16)
    else:
        tiles, positions = 1.0, 4.0
    n_in, n_out = int(w.shape[1]), int(w.shape[0]) // attrs["group"]  # type: ignore[call-overload]
    transforms = tiles * (_INPUT_COST * n_in + _OUTPUT_COST * n_out)
    return bool(tiles * WINOGRAD_POINTS * n_in * n_out + transforms < _GAIN * positions * 9 * n_in * n_out)


_INPUT_COST, _OUTPUT_COST = 90, 70  # cycles for a vector of tiles of one channel; a product takes one
_GAIN = 0.9  # of the time: less is not worth larger weights
