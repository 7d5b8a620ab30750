"""Programs as text that cannot hold: refused by the compiler, or when they run, with both facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.vm import VirtualMachine
from tests.ir_text import compiled


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("relu()", "relu: takes 1 operand, got 0"),
        ("matmul(x)", "matmul: takes 2 operands, got 1"),
        ("concat()", "concat: takes at least 1 operand, got 0"),
        ("relu(x, x)", "relu: takes 1 operand, got 2"),
        ("add(x, x, x)", "add: takes 2 operands, got 3"),
        ("layer_norm(x, x, x, x)", "layer_norm: takes 2 to 3 operands, got 4"),
        ('linear(x, x, x, x, activation="relu")', "linear: takes 2 or 3 operands without a residual, got 4"),
        ("cast(x)", "cast: attribute dtype is missing: a str"),
        ("relu(x, alpha=1.0)", "relu: no attribute is called 'alpha', expected none"),
        ("clip(x, low=None, hi=1)", "clip: no attribute is called 'low', expected lo, hi"),
        ("leaky_relu(x, alpha=n)", "leaky_relu: attribute alpha must be a number, got n"),
        ("softmax(x, axis=True)", "softmax: attribute axis must be an int of 64 bits, got True"),
        ("transpose(x, perm=(0.5,))", "transpose: attribute perm must be a tuple of int or None, got"),
        ('linear(x, x, activation="clip")', "linear: clip takes 2 activation_params, got 0"),
        ('extern("")(x)', "must be a str without NUL that is not empty, got ''"),
        ('extern("a\\u0000b")(x)', "must be a str without NUL that is not empty, got"),
    ],
)
def test_calls_that_no_operator_takes(call: str, problem: str) -> None:
    with pytest.raises(errors.CompileError, match=problem):
        compiled(f"def main(x: Tensor((2, 3), float32)) -> Object:\n    return {call}\n")


@pytest.mark.parametrize(
    ("known", "cast", "problem"),
    [
        ("Tensor((), float32)", "Tensor((n,), float32)", "ndim 1 but get 0"),
        ("Tensor((2, 3), float32)", "Tensor((2,), float32)", "ndim 1 but get 2"),
        ("Shape((2,))", "Shape((2, m))", "size 2 but get 1"),
        ("Tuple(Tensor((n,), float32))", "Tuple(Tensor((n,), float32), Tensor((m,), float32))", "size 2 but get 1"),
        ("Tuple(Object, Object)", "Tuple(Tensor((n,), float32))", "size 1 but get 2"),
        ("Tensor((n,), float32)", "Shape((m,))", "expect a Shape but get Tensor"),
    ],
)
def test_a_cast_that_cannot_hold_is_refused_when_it_runs(known: str, cast: str, problem: str) -> None:
    vm = VirtualMachine(
        compiled(
            f"def main(x: Tensor((n,), float32), y: {known}) -> Object:\n    z = match_cast(y, {cast})\n    return z\n"
        )
    )
    one = np.zeros(3, np.float32)
    values: dict[str, Any] = {"Tensor((), float32)": one.sum(), "Tensor((2, 3), float32)": np.zeros((2, 3), "float32")}
    values |= {"Shape((2,))": pyvm.Shape((2,)), "Tuple(Tensor((n,), float32))": (one,), "Tuple(Object, Object)": (1, 2)}
    with pytest.raises(errors.VMError, match=problem):
        vm["main"](one, values.get(known, one))
