"""The instruction set as Python sees it: opcodes, operand kinds, word layout. `isa.pxd` is the definition."""
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer


# Members of the enums that `__getattr__` makes.
_ENUMS = {
    "Opcode": {
        "OP_CALL": Opcode.OP_CALL, "OP_RET": Opcode.OP_RET, "OP_GOTO": Opcode.OP_GOTO, "OP_IF": Opcode.OP_IF,
    },
    "ArgKind": {
        "ARG_REGISTER": ArgKind.ARG_REGISTER, "ARG_IMMEDIATE": ArgKind.ARG_IMMEDIATE,
        "ARG_CONSTANT": ArgKind.ARG_CONSTANT, "ARG_FUNCTION": ArgKind.ARG_FUNCTION,
    },
}
FUNCTION_KINDS = (FunctionKind.KIND_PACKED, FunctionKind.KIND_VM, FunctionKind.KIND_NATIVE)
VOID_REGISTER = ISA_VOID_REGISTER
VM_REGISTER = ISA_VM_REGISTER
IMMEDIATE_MAX = ISA_IMMEDIATE_MAX
MAX_REGISTERS = ISA_MAX_REGISTERS
MAX_ARGS = ISA_MAX_ARGS
PACKED_NUM_ARGS = ISA_PACKED_NUM_ARGS


def __getattr__(name):
    """`Opcode` and `ArgKind` as enums of Python, made on first use: serving needs none, and making one costs 0.2 ms."""
    if name not in _ENUMS:
        raise AttributeError(f"module 'vmcore.isa' has no attribute {name!r}")
    from enum import IntEnum

    # setdefault: threads that come here together get the same type
    return globals().setdefault(name, IntEnum(name, _ENUMS[name], module=__name__))


cdef class Words:
    def __cinit__(self, array):
        PyObject_GetBuffer(array, &self.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        if self.view.ndim != 1 or self.view.itemsize != 8 or self.view.format[0] not in b"lq":
            raise ValueError(f"expected a one-dimensional array of int64, got {array.dtype} of {self.view.ndim} dims")
        self.data = <const int64_t*>self.view.buf
        self.n = self.view.shape[0]

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


def pack_arg(int kind, int64_t value) -> int:
    """The word of a Call argument.

    Raises
    ------
    ValueError
        If `kind` is not an operand kind or `value` does not fit in 56 bits.
    """
    if not 0 <= kind <= ArgKind.ARG_FUNCTION:
        raise ValueError(f"pack_arg: operand kind {kind} is not in 0..3")
    if not -ISA_IMMEDIATE_MAX - 1 <= value <= ISA_IMMEDIATE_MAX:
        raise ValueError(f"pack_arg: {value} does not fit in 56 bits")
    return isa_arg(kind, value)


def unpack_arg(int64_t word) -> tuple[int, int]:
    """(kind, value) of a Call argument word; the kind of a malformed word may be outside `ArgKind`."""
    return isa_arg_kind(word), isa_arg_value(word)


def register_name(int64_t register) -> str:
    """`%3`, `%void` or `%vm`."""
    if register == ISA_VOID_REGISTER:
        return "%void"
    if register == ISA_VM_REGISTER:
        return "%vm"
    return f"%{register}"


# These two read single words of a numpy array.

def instruction_words(instr_data, int64_t offset) -> int:
    """Number of words of the instruction at `offset`; 0 if there is no whole instruction of a known opcode."""
    cdef int64_t left = len(instr_data) - offset
    cdef int64_t op, n_args, size
    if offset < 0 or left < 1:
        return 0
    op = instr_data[offset]
    if op == Opcode.OP_CALL:
        if left < CALL_WORDS:
            return 0
        n_args = instr_data[offset + 3]
        return CALL_WORDS + n_args if 0 <= n_args <= left - CALL_WORDS else 0
    if op == Opcode.OP_RET:
        size = RET_WORDS
    elif op == Opcode.OP_GOTO:
        size = GOTO_WORDS
    elif op == Opcode.OP_IF:
        size = IF_WORDS
    else:
        return 0
    return size if size <= left else 0


def format_instruction(instr_data, int64_t offset, function_names) -> str:
    """One instruction as a person reads it: ``call @vm.builtin.copy (%0, 1, c[2]) -> %3``.

    Meant for error messages: works for malformed instructions too. `function_names` is indexed by function index.
    """
    cdef int64_t size = instruction_words(instr_data, offset)
    cdef int64_t op, i, kind, value
    if size == 0:
        return f"malformed instruction at word {offset}"
    op = instr_data[offset]
    if op == Opcode.OP_RET:
        return f"ret {register_name(instr_data[offset + 1])}"
    if op == Opcode.OP_GOTO:
        return f"goto {instr_data[offset + 1]:+d}"
    if op == Opcode.OP_IF:
        return f"if {register_name(instr_data[offset + 1])}, {instr_data[offset + 2]:+d}"

    def function(index):
        return f"@{function_names[index]}" if 0 <= index < len(function_names) else f"f[{index}]"

    args = []
    for i in range(offset + CALL_WORDS, offset + size):
        kind, value = isa_arg_kind(instr_data[i]), isa_arg_value(instr_data[i])
        if kind == ArgKind.ARG_REGISTER:
            args.append(register_name(value))
        elif kind == ArgKind.ARG_IMMEDIATE:
            args.append(str(value))
        elif kind == ArgKind.ARG_CONSTANT:
            args.append(f"c[{value}]")
        elif kind == ArgKind.ARG_FUNCTION:
            args.append(function(value))
        else:
            args.append(f"?{instr_data[i]:#x}")
    text = f"call {function(instr_data[offset + 2])} ({', '.join(args)})"
    if instr_data[offset + 1] != ISA_VOID_REGISTER:
        text += f" -> {register_name(instr_data[offset + 1])}"
    return text
