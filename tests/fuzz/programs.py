"""What is mutated: an executable for every operator case, the golden programs, the demo, and random programs."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.executable import VMExecutable
from pyvm.ir import BlockBuilder, IRModule, TensorStructInfo, Tuple, Var
from tests.fuzz.watch import CallbackError
from tests.pyvm.op.cases import CASES, Case, leaves
from tests.random_programs import FUNCTIONS, random_program

GOLDEN = Path(__file__).parent.parent / "golden"
N_RANDOM = 40

# What programs reach only on purpose: closures that call themselves through native code, tuples in tuples, the VM as a
# value, writes to constants, views, conditions.
SPECIAL = """
func @main(%0 x, %1 n) regs=9
  call @vm.builtin.make_tuple (%0, %0, %1) -> %2
  call @vm.builtin.make_tuple (%2, %2) -> %3
  call @vm.builtin.make_closure (@twice, %3) -> %4
  call @vm.builtin.invoke_closure (%vm, %4, %1) -> %5
  call @vm.builtin.call_tir_dyn (@again, %1, shape()) -> %6
  call @give_vm (%vm, %0) -> %7
  call @vm.builtin.tuple_reset_item (%3, 0)
  call @pyvm.builtin.tensor_scalar (c[0]) -> %8
  if %8, L8
  call @vm.builtin.reshape (%0, shape(6)) -> %7
L8:
  call @vm.builtin.make_tuple (%7, %5, @twice, @fuzz.identity) -> %7
  ret %7
func @twice(%0 n, %1 t) regs=3
  call @vm.builtin.tuple_getitem (%1, 1) -> %2
  call @vm.builtin.make_tuple (%2, %2, %0) -> %2
  ret %2
func @again(%0) regs=2
  call @vm.builtin.read_if_cond (%0) -> %1
  if %1, L15
  call @vm.builtin.call_tir_dyn (@again, 0, shape()) -> %1
L15:
  call @fuzz.identity (%0) -> %1
  ret %1
func @give_vm(%0, %1) regs=4
  call @vm.builtin.alloc_storage (%0, shape(256), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(2, 3), dtype(float32)) -> %3
  call @kernel.add (%1, %1, %3)
  call @vm.builtin.alloc_shape_heap (%0, 4) -> %2
  call @vm.builtin.match_shape (%3, %2, 2, 1, 0, 1, 1, "x: ")
  call @pyvm.builtin.store_dim (%2, 3, 7)
  ret %3
c[0] = tensor int64 (1) [0]
"""

Inputs = Callable[[], tuple[Any, ...]]
Program = tuple[str, VMExecutable, Inputs]


def op_module(case: Case, symbolic: bool) -> IRModule:
    """`main` computes the case from its inputs."""
    shapes = case.dims()[0] if symbolic else [x.shape for x in case.inputs]
    params = [
        Var(f"x{i}", TensorStructInfo(shape, str(x.dtype)))
        for i, (shape, x) in enumerate(zip(shapes, case.inputs, strict=True))
    ]
    bb = BlockBuilder()
    with bb.function("main", params):
        values = [bb.emit(expr) for expr in leaves(case.build(*params))]
        bb.emit_func_output(values[0] if len(values) == 1 else Tuple(values))
    return bb.get()


@functools.cache
def op_modules() -> list[IRModule]:
    """The operator cases as modules."""
    return [op_module(case, bool(i % 2) and case.symbolic) for i, case in enumerate(CASES)]


def _tensors(*arrays: np.ndarray) -> Inputs:
    return lambda: tuple(array.copy() for array in arrays)


@functools.cache
def programs() -> list[Program]:
    """All of them; the same list every time."""
    found: list[Program] = []
    for case in CASES:
        for symbolic in (False, True) if case.symbolic else (False,):
            try:
                executable = pyvm.compile(op_module(case, symbolic))
            except errors.CompileError:
                continue  # cases of what has no kernel: they test inference only
            found.append((f"{case.id}{'/symbolic' if symbolic else ''}", executable, _tensors(*case.inputs)))
    register()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for path in sorted(GOLDEN.glob("*.vmasm")):
        found.append((path.name, assemble(path.read_text()), _tensors(x)))
    for _ in range(20):
        found.append(("special", assemble(SPECIAL), lambda: (x.copy(), 3)))
    for seed in range(N_RANDOM):
        executable, args = random_program(random.Random(seed))
        found.append((f"random {seed}", executable, lambda args=args: tuple(args)))
    return found


def register() -> None:
    """The Python functions that the programs call."""
    for name, function in {
        "fuzz.identity": lambda x=None, *rest: x,
        **{name: functools.partial(_apply, function) for name, function in FUNCTIONS.items()},
        "add": lambda a=0, b=0, *rest: _apply(operator.add, a, b),
        "sub": lambda a=0, b=0, *rest: _apply(operator.sub, a, b),
        "less": lambda a=0, b=0, *rest: _apply(operator.lt, a, b),
        "kernel.double": lambda x=0, out=0, *rest: _apply(lambda: np.multiply(x, 2, out=np.asarray(out))),
    }.items():
        pyvm.register_func(name, function, override=True)


def _apply(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        raise CallbackError(str(error)) from None
