"""python -m tests.bench.verify: the verifier on a million instructions, straight and adversarial, in MB/s of code."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pyvm.executable import VM_FUNC, FunctionInfo, VMExecutable
from vmcore.isa import ArgKind, Opcode, pack_arg

CALL, RET, GOTO, IF = Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF
SIZES = (100_000, 300_000, 1_000_000)


def executable(code: list[list[int]], registers: int) -> VMExecutable:
    """One function with one parameter that consists of these instructions."""
    sizes = np.array([len(words) for words in code])
    functions = [FunctionInfo(VM_FUNC, "f", 0, len(code), 1, registers), FunctionInfo(0, "g")]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return VMExecutable(functions, instr_offset=offsets, instr_data=np.array([w for words in code for w in words]))


def straight(n: int) -> VMExecutable:
    """Calls in a row, each reading what the one before wrote."""
    return executable([[CALL, i % 1000 + 1, 1, 2, i % 1000, pack_arg(ArgKind.ARG_IMMEDIATE, 7)] for i in range(n)]
                      + [[RET, 1]], 1002)  # fmt: skip


def jump_table(n: int) -> VMExecutable:
    """Ifs in a row that all jump to the last instruction: a block with n predecessors."""
    return executable([[IF, 0, n - i + 1] for i in range(n)] + [[RET, 0], [RET, 0]], 1)


def branches(n: int) -> VMExecutable:
    """Branches one after the other, each writing the register that the end reads."""
    code: list[list[int]] = [[CALL, 1, 1, 0]]
    for _ in range(n // 2):
        code += [[IF, 0, 2], [CALL, 1, 1, 0]]
    return executable([*code, [RET, 1]], 2)


def nested_loops(n: int) -> VMExecutable:
    """Loops around loops: n / 3 backward jumps out of the same block, to n / 3 heads."""
    depth = n // 3
    code: list[list[int]] = [[CALL, 1, 1, 0]] + [[CALL, 1, 1, 1, 1]] * depth
    for i in range(depth):
        code += [[IF, 0, 2], [GOTO, -(3 * i + 2)]]
    return executable([*code, [RET, 1]], 2)


def irreducible(n: int) -> VMExecutable:
    """Blocks that are entered in the middle, one after the other."""
    code: list[list[int]] = [[CALL, 1, 1, 0]]
    for _ in range(n // 4):
        code += [[IF, 0, 3], [CALL, 1, 1, 1, 1], [GOTO, 2], [CALL, 1, 1, 1, 1]]
    return executable([*code, [RET, 1]], 2)


SHAPES: tuple[Callable[[int], VMExecutable], ...] = (straight, jump_table, branches, nested_loops, irreducible)


def seconds(program: VMExecutable) -> float:
    """CPU time of one verification, the best of three."""
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        program.verify()
        best = min(best, time.process_time() - begin)
    return best


if __name__ == "__main__":
    print(f"{'control flow':14} {'instructions':>12} {'MB of code':>10} {'ms':>8} {'MB/s':>6}")
    for shape in SHAPES:
        for size in SIZES:
            program = shape(size)
            mb, took = program.instr_data.nbytes / 1e6, seconds(program)
            n = len(program.instr_offset)
            print(f"{shape.__name__:14} {n:12} {mb:10.1f} {took * 1e3:8.1f} {mb / took:6.0f}")
