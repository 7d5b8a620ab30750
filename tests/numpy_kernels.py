"""Lowers a module onto numpy: each operator becomes a packed function that calls its reference.

Everything after lowering (memory plan, shape heap, kills, code generation) is the real thing, so a difference from
`ir_evaluator` is theirs. In-place hints are taken over from the real lowering; the functions read their inputs before
they write, so a wrong hint shows with the native kernels only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyvm.ir import Binding, Call, IRModule, Var, as_expr
from pyvm.op.registry import KernelCall, Op
from pyvm.transform import LOWER, OPTIMIZE, run_passes
from pyvm.transform.legalize import Legalizer


class NumpyLegalizer(Legalizer):
    """Legalization to packed functions named numpy.<operator>.<number>."""

    def __init__(self, module: IRModule, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__(module)
        self.functions = functions

    def lower_call(self, old_var: Var, binding: Binding, call: Call, op: Op) -> None:
        lowered = op.lower(call)
        if not isinstance(lowered, KernelCall):
            super().lower_call(old_var, binding, call, op)
            return
        name = f"numpy.{op.name}.{len(self.functions)}"
        self.functions[name] = _filler(op, call)
        same = [i for i in lowered.inplace if i < len(call.args) and lowered.args[i] is call.args[i]]
        self.destination_call(binding, name, map(as_expr, call.args), tuple(same))


def _filler(op: Op, call: Call) -> Callable[..., None]:
    n_inputs = len(call.args)

    def fill(*args: Any) -> None:
        inputs, outputs = args[:n_inputs], args[n_inputs:]
        result = op.evaluate(call.attrs, *inputs)
        parts = result if isinstance(result, tuple) else (result,)
        for out, part in zip(outputs, parts, strict=True):
            assert out.shape == part.shape and out.dtype == part.dtype, (op.name, out.shape, part.shape)
            np.copyto(out, part)

    return fill


def lower_onto_numpy(
    module: IRModule, check: bool = True, after_each: Callable[[int, str, IRModule], None] | None = None
) -> tuple[IRModule, dict[str, Callable[..., Any]]]:
    """The module after the whole pipeline, and the functions it calls."""
    functions: dict[str, Callable[..., Any]] = {}

    def legalize_onto_numpy(module: IRModule) -> IRModule:
        return NumpyLegalizer(module, functions).run()

    passes = [*OPTIMIZE, legalize_onto_numpy, *LOWER[1:]]
    return run_passes(module, passes, after_each, check=check), functions
