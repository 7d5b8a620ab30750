"""Mutations of executables that keep most of them verifiable: operands, constants, callees, jumps, register numbers."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np

import pyvm
from pyvm.executable import PACKED_FUNC, VM_FUNC, FunctionInfo, VMExecutable
from tests.fuzz.programs import Program, programs
from vmcore.isa import VM_REGISTER, VOID_REGISTER, ArgKind, Opcode, pack_arg, unpack_arg
from vmcore.types import DataType, Shape

INTS = (0, 1, -1, 2, 3, 5, 7, 8, 63, 64, 65, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, -(2**31), 2**55 - 1, -(2**55))
DIMS = (0, 1, 1, 2, 3, 4, 7, 16, 100, 4096, 2**20, 2**31, 2**32 + 1, 2**40, 2**45, 2**62, -1, -(2**63))
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint64", "bool",
    "complex64",
)  # fmt: skip


@functools.cache
def native_names() -> list[str]:
    """Builtins and kernels; what a function registered by others makes of wrong arguments is its own business."""
    return [name for name in pyvm.list_global_func_names() if "builtin" in name or name.startswith("kernel.")]


def mutated_program(rng: random.Random) -> Program:
    """A program with some changes."""
    known = programs()
    name, executable, inputs = known[rng.randrange(len(known))]
    return name, mutant(executable, rng), inputs


def mutant(executable: VMExecutable, rng: random.Random) -> VMExecutable:
    """A changed copy; the original and its arrays stay as they are."""
    functions = [copy.copy(info) for info in executable.functions]
    constants = list(executable.constants)
    data = np.array(executable.instr_data)
    if rng.random() < 0.7:  # let later instructions meet what these would refuse
        for info in functions:
            if info.name == "vm.builtin.check_tensor_info":
                info.name = "vm.builtin.make_tuple"
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        choice = rng.random()
        if choice < 0.4:
            where, old = _constant_operand(executable, data, rng)
            if where >= 0:
                data[where] = pack_arg(ArgKind.ARG_CONSTANT, len(constants))
                constants.append(_constant(rng, constants[old]))
        elif choice < 0.45 and constants:
            constants[rng.randrange(len(constants))] = _constant(rng, rng.choice(constants))
        elif choice < 0.52:
            packed = [info for info in functions if info.kind == PACKED_FUNC]
            if packed:
                rng.choice(packed).name = rng.choice(native_names())
        elif choice < 0.54:
            rng.choice(functions).register_file_size += rng.choice((1, 100, 1 << 19))
        else:
            _change_instruction(executable, data, rng, len(constants), functions)
    return VMExecutable(functions, constants, executable.instr_offset, data, executable.memory_scopes)


def _pick(executable: VMExecutable, rng: random.Random) -> int:
    """An instruction: mostly a call of a kernel or of one of the builtins that make tensors."""
    for _ in range(6):
        pc = rng.randrange(len(executable.instr_offset))
        at = executable.instr_offset[pc]
        if executable.instr_data[at] == Opcode.OP_CALL:
            name = executable.functions[executable.instr_data[at + 2]].name
            if name.startswith("kernel.") or rng.random() < (0.0 if "match" in name or "check" in name else 0.25):
                return pc
    return rng.randrange(len(executable.instr_offset))


def _constant_operand(executable: VMExecutable, data: np.ndarray, rng: random.Random) -> tuple[int, int]:
    """Where a Call has a constant as argument, and which; (-1, 0) if nothing was found."""
    for _ in range(8):
        at = int(executable.instr_offset[_pick(executable, rng)])
        if data[at] != Opcode.OP_CALL:
            continue
        found = []
        for where in range(at + 4, at + 4 + int(data[at + 3])):
            kind, value = unpack_arg(int(data[where]))
            if kind == ArgKind.ARG_CONSTANT and value < len(executable.constants):
                found.append((where, value))
        if found:
            return rng.choice(found)
    return -1, 0


def _constant(rng: random.Random, old: object) -> object:
    """Another constant, mostly of the same kind."""
    choice = rng.random()
    if isinstance(old, Shape) and choice < 0.8:
        dims = list(old) or [1]
        for _ in range(rng.choice((1, 1, 2))):
            edit = rng.random()
            if edit < 0.6 and dims:
                dims[rng.randrange(len(dims))] = rng.choice(DIMS)
            elif edit < 0.8:
                dims.insert(rng.randrange(len(dims) + 1), rng.choice(DIMS))
            elif dims:
                del dims[rng.randrange(len(dims))]
        return Shape(dims)
    if isinstance(old, np.ndarray) and choice < 0.8:
        edit = rng.random()
        if edit < 0.4 and old.size:
            changed = np.array(old)
            raw = changed.reshape(-1).view(np.uint8)
            for _ in range(3):
                raw[rng.randrange(raw.size)] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            return changed
        if edit < 0.7:
            return np.zeros([rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(5))], old.dtype)
        if old.size and old.size < 4096 and old.dtype.kind in "biuf":
            return np.asarray(old).astype(rng.choice(("float32", "float64", "int64", "int32", "uint8", "bool")))
    if isinstance(old, DataType) and choice < 0.5:
        code, bits = rng.choice((0, 1, 2, 4, 5, 6, 9)), rng.choice((0, 1, 4, 8, 16, 24, 32, 64, 128))
        return DataType.from_triple(code, bits, rng.choice((0, 1, 1, 2, 4)))
    choice = rng.random()
    if choice < 0.2:
        return rng.choice(INTS)
    if choice < 0.3:
        return rng.choice((0.0, -1.5, float("nan"), float("inf"), 1e300, 1e-40))
    if choice < 0.6:
        return Shape(rng.choice(DIMS) for _ in range(rng.randrange(5)))
    if choice < 0.7:
        return rng.choice(("", "text", "a longer text"))
    if choice < 0.8:
        return DataType(rng.choice(DTYPES))
    values = np.arange(rng.choice((1, 2, 6, 24)), dtype=np.int64) - rng.choice((0, 2))
    return values.astype(rng.choice(("float32", "int64", "bool", "uint8", "float16")))


def _operand(rng: random.Random, n_registers: int, n_constants: int, n_functions: int) -> int:
    choice = rng.random()
    if choice < 0.35 and n_registers:
        return pack_arg(ArgKind.ARG_REGISTER, rng.randrange(n_registers))
    if choice < 0.45:
        return pack_arg(ArgKind.ARG_REGISTER, rng.choice((VOID_REGISTER, VM_REGISTER)))
    if choice < 0.7 or not n_constants:
        return pack_arg(ArgKind.ARG_IMMEDIATE, rng.choice(INTS))
    if choice < 0.92:
        return pack_arg(ArgKind.ARG_CONSTANT, rng.randrange(n_constants))
    return pack_arg(ArgKind.ARG_FUNCTION, rng.randrange(n_functions))


def _change_instruction(
    executable: VMExecutable, data: np.ndarray, rng: random.Random, n_constants: int, functions: list[FunctionInfo]
) -> None:
    pc = _pick(executable, rng)
    at = int(executable.instr_offset[pc])
    owner = next(f for f in functions if f.kind == VM_FUNC and f.start_instr <= pc < f.end_instr)
    n = owner.register_file_size
    op = data[at]
    if op == Opcode.OP_CALL:
        n_args = int(data[at + 3])
        choice = rng.random()
        if choice < 0.15:
            data[at + 2] = rng.randrange(len(functions))
        elif choice < 0.3:
            data[at + 1] = rng.choice((rng.randrange(n) if n else VOID_REGISTER, VOID_REGISTER))
        elif n_args:
            where = at + 4 + rng.randrange(n_args)
            kind, value = unpack_arg(int(data[where]))
            if kind == ArgKind.ARG_IMMEDIATE and rng.random() < 0.7:
                near = rng.choice((value + 1, value - 1, -value, 2 * value, rng.choice(INTS)))
                data[where] = pack_arg(kind, max(-(2**55), min(2**55 - 1, near)))
            else:
                data[where] = _operand(rng, n, n_constants, len(functions))
            if rng.random() < 0.2:
                other = at + 4 + rng.randrange(n_args)
                data[where], data[other] = data[other], data[where]
    elif op == Opcode.OP_RET:
        data[at + 1] = rng.choice((rng.randrange(n) if n else VOID_REGISTER, VOID_REGISTER, VM_REGISTER))
    elif op == Opcode.OP_GOTO:
        data[at + 1] += rng.choice((-3, -2, -1, 1, 2, 3))
    else:
        if rng.random() < 0.5 and n:
            data[at + 1] = rng.randrange(n)
        else:
            data[at + 2] += rng.choice((-2, -1, 1, 2))
