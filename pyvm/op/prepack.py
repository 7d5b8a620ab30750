"""Constant operands in the layout that a kernel wants: what operators declare and the pass `pack_weights` carries out.

An operator that has packers for an operand takes the packed constant too, which its attributes then name (`layout`),
and evaluates and lowers all forms alike. Layouts do not depend on the machine that compiles: executables run anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyvm.ir.expr import Call
from pyvm.op.dense import PACKED_LAYOUT, pack_columns
from pyvm.op.winograd import WINOGRAD_LAYOUT, gains_by_winograd, transform_weights


@dataclass(frozen=True)
class Packer:
    """How a constant operand is packed.

    Attributes
    ----------
    operand : int
        Position of the operand.
    layout : str
        The attribute "layout" of a call with the packed operand.
    pack : callable
        The packed array of an array and of the attribute "group" of the call (1 where there is none).
    attrs : callable
        What the packed array does not say about the array, as attributes of the call.
    applies : callable
        Whether a call of the operator, whose operand is constant, gains by it.
    """

    operand: int
    layout: str
    pack: Callable[[np.ndarray, int], np.ndarray]
    attrs: Callable[[np.ndarray], dict[str, Any]]
    applies: Callable[[Call], bool]


# By operator; the first that applies is used. A kernel that wants its weights in an order of its own adds a line here.
PACKERS: dict[str, tuple[Packer, ...]] = {
    "linear": (
        Packer(
            1,
            PACKED_LAYOUT,
            lambda weights, group: pack_columns(weights),
            lambda weights: {"columns": weights.shape[1]},
            lambda call: True,
        ),
    ),
    "conv": (
        Packer(
            1,
            WINOGRAD_LAYOUT,
            transform_weights,
            lambda weights: {"columns": weights.shape[0]},
            gains_by_winograd,
        ),
    ),
}
