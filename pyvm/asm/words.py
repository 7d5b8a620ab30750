"""The words of an executable's instructions, as every text of it needs them."""

from __future__ import annotations

import numpy as np

from pyvm.checked_calls import checked
from vmcore.arguments import integer
from vmcore.errors import FormatError
from vmcore.isa import ArgKind, Opcode, format_instruction, instruction_words

from ..executable import VMExecutable

CALL, RET, GOTO, IF = (int(op) for op in (Opcode.OP_CALL, Opcode.OP_RET, Opcode.OP_GOTO, Opcode.OP_IF))
REGISTER, IMMEDIATE, CONSTANT, FUNCTION = (
    int(kind) for kind in (ArgKind.ARG_REGISTER, ArgKind.ARG_IMMEDIATE, ArgKind.ARG_CONSTANT, ArgKind.ARG_FUNCTION)
)
IMMEDIATE_LIMIT = 1 << 55  # immediates of the assembler are all that 56 bits hold


@checked
def instructions(executable: VMExecutable) -> list[list[int]]:
    """The words of every instruction.

    Raises
    ------
    FormatError
        If the offsets do not cut the words into consecutive pieces.
    """
    offsets = [*executable.instr_offset.tolist(), len(executable.instr_data)]
    if len(offsets) == 1 and offsets[0] == 0:
        return []
    if offsets[0] != 0 or any(b <= a for a, b in zip(offsets, offsets[1:], strict=False)):
        raise FormatError("the instruction offsets do not cut the code into consecutive instructions")
    data = executable.instr_data.tolist()
    return [data[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]


@checked
def instruction_text(executable: VMExecutable, pc: int) -> str:
    """One instruction in a line, for messages; never fails on a malformed one."""
    pc = integer("instruction_text", "pc", pc)
    if not 0 <= pc < len(executable.instr_offset):
        return f"no instruction {pc}"
    names = [info.name for info in executable.functions]
    return format_instruction(executable.instr_data, int(executable.instr_offset[pc]), names)


def is_whole(words: list[int]) -> bool:
    return instruction_words(np.array(words, dtype=np.int64), 0) == len(words)
