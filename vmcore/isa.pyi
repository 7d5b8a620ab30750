from collections.abc import Sequence
from enum import IntEnum
from typing import Self

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

class Opcode(IntEnum):
    OP_CALL = 1
    OP_RET = 2
    OP_GOTO = 3
    OP_IF = 4

class ArgKind(IntEnum):
    ARG_REGISTER = 0
    ARG_IMMEDIATE = 1
    ARG_CONSTANT = 2
    ARG_FUNCTION = 3

@disjoint_base
class Words:
    def __new__(cls, array: npt.NDArray[np.int64]) -> Self: ...

FUNCTION_KINDS: tuple[int, int, int]  # packed, VM, native
VOID_REGISTER: int
VM_REGISTER: int
IMMEDIATE_MAX: int
MAX_REGISTERS: int
MAX_ARGS: int
PACKED_NUM_ARGS: int

def pack_arg(kind: int, value: int) -> int: ...
def unpack_arg(word: int) -> tuple[int, int]: ...
def register_name(register: int) -> str: ...
def instruction_words(instr_data: npt.NDArray[np.int64], offset: int) -> int: ...
def format_instruction(instr_data: npt.NDArray[np.int64], offset: int, function_names: Sequence[str]) -> str: ...
