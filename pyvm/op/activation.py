"""Activations that kernels apply to their own results while these are in cache: attributes shared by conv and linear.

`activation` is the name, `activation_params` its parameters (absent without any), `residual` says that the last
argument is a tensor of the result's shape that is added before the activation (absent otherwise).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyvm.ir.expr import Call
from pyvm.op.attributes import FLAG, NUMBERS, one_of
from pyvm.op.registry import get_op
from vmcore.errors import CompileError

# The number of each in programs: vmcore/kernels/gemm.h.
ACTIVATIONS = {
    "none": 0,
    "relu": 1,
    "clip": 2,
    "sigmoid": 3,
    "silu": 4,
    "gelu": 5,
    "gelu_tanh": 6,
    "hard_swish": 7,
    "leaky_relu": 8,
    "tanh": 9,
    "hard_sigmoid": 10,
}
_PARAMS: dict[str, tuple[str, ...]] = {
    "clip": ("lo", "hi"),
    "leaky_relu": ("alpha",),
    "hard_sigmoid": ("alpha", "beta"),
}
EPILOGUE = {
    "activation": one_of(ACTIVATIONS),
    "activation_params": NUMBERS.optional(),
    "residual": FLAG.optional(),
}


def activation_of(call: Call) -> dict[str, Any] | None:
    """The attributes that make a kernel do the work of `call`, which is an activation; None if there are none."""
    name = call.op.name
    if name not in ACTIVATIONS or name == "none":
        return None
    params = [call.attrs[key] for key in _PARAMS.get(name, ())]
    if name == "clip":
        low, high = (-math.inf if params[0] is None else params[0]), (math.inf if params[1] is None else params[1])
        params = [min(low, high), high]  # where they cross, `hi` wins
    attrs: dict[str, Any] = {"activation": name}
    if params:
        attrs["activation_params"] = tuple(map(float, params))
    return attrs


def check_operands(call: Call) -> None:
    """Raise unless there are two operands, perhaps a bias, a residual if the attributes say so, and the activation's
    parameters."""
    n = len(call.args)
    residual = bool(call.attrs.get("residual", False))
    if n - residual not in (2, 3):
        which = "with" if residual else "without"
        counts = f"{2 + residual} or {3 + residual}"
        raise CompileError(f"{call.op.name}: takes {counts} operands {which} a residual, got {n}")
    name, given = call.attrs["activation"], len(call.attrs.get("activation_params", ()))
    if given != len(_PARAMS.get(name, ())):
        raise CompileError(f"{call.op.name}: {name} takes {len(_PARAMS.get(name, ()))} activation_params, got {given}")


def activation_args(attrs: dict[str, Any]) -> list[int | float]:
    """Number and two parameters, as kernels take them."""
    params = [float(value) for value in attrs.get("activation_params", ())]
    return [ACTIVATIONS[attrs["activation"]], *(params + [0.0, 0.0])[:2]]


def is_plain(attrs: dict[str, Any]) -> bool:
    """Whether nothing follows the sums and the bias yet."""
    return attrs["activation"] == "none" and not attrs.get("residual", False)


def finish(attrs: dict[str, Any], result: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    """Reference of what follows the sums and the bias."""
    if residual is not None:
        result = result + residual
    name = attrs["activation"]
    if name == "none":
        return result
    values = dict(zip(_PARAMS.get(name, ()), attrs.get("activation_params", ()), strict=True))
    return np.asarray(get_op(name).evaluate(values, result))
