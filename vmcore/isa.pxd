# The instruction set: opcodes, operand kinds and the layout of instruction words. The only definition; Python sees the
# same names through `isa.pyx`. A word is one int64. Jump offsets count instructions, not words, and are relative to
# the jump itself; `instr_offset[pc]` is the position of instruction `pc` in the word stream.
from libc.stdint cimport int64_t, uint64_t

cdef enum Opcode:
    OP_CALL = 1  # R[dst] := F[func](args...)      words: op dst func n_args args...
    OP_RET = 2   # return R[src]                   words: op src
    OP_GOTO = 3  # pc += offset                    words: op offset         (offset != 0)
    OP_IF = 4    # if R[cond] == 0: pc += offset   words: op cond offset    (offset > 1)

cdef enum ArgKind:  # top 8 bits of a Call argument word; the low 56 bits are its value, signed
    ARG_REGISTER = 0
    ARG_IMMEDIATE = 1
    ARG_CONSTANT = 2
    ARG_FUNCTION = 3

cdef enum FunctionKind:
    KIND_PACKED = 0  # an external name, resolved when a virtual machine is made
    KIND_VM = 1      # bytecode
    KIND_NATIVE = 2  # compiled code that works on a register file (VMTIR)

cdef enum InstructionWords:  # words before the arguments of a Call; all words of the others
    CALL_WORDS = 4
    RET_WORDS = 2
    GOTO_WORDS = 2
    IF_WORDS = 3

cdef extern from *:
    """
    #define ISA_VOID_REGISTER ((int64_t)1 << 54)       /* reads as None; a write is dropped */
    #define ISA_VM_REGISTER (((int64_t)1 << 54) + 1)   /* reads as the VM itself; a write is dropped */
    #define ISA_IMMEDIATE_MAX (((int64_t)1 << 55) - 1) /* immediates lie in -MAX..MAX */
    #define ISA_MAX_REGISTERS ((int64_t)1 << 20)       /* of one frame */
    #define ISA_MAX_ARGS ((int64_t)65535)              /* of one call */
    #define ISA_PACKED_NUM_ARGS ((int64_t)-2)          /* num_args of a function that is declared, not defined */
    """
    const int64_t ISA_VOID_REGISTER
    const int64_t ISA_VM_REGISTER
    const int64_t ISA_IMMEDIATE_MAX
    const int64_t ISA_MAX_REGISTERS
    const int64_t ISA_MAX_ARGS
    const int64_t ISA_PACKED_NUM_ARGS

cdef class Words:
    """The int64 words of a one-dimensional contiguous array, lent by it for as long as this object lives.

    Instead of typed memoryviews: every module that uses those makes Cython's types for them while it loads.
    """
    cdef Py_buffer view
    cdef const int64_t* data
    cdef int64_t n

cdef inline bint isa_is_opcode(int64_t word) noexcept nogil:
    return Opcode.OP_CALL <= word <= Opcode.OP_IF

cdef inline int64_t isa_arg(int64_t kind, int64_t value) noexcept nogil:
    """The argument word of `value`, which must fit in 56 bits."""
    return <int64_t>((<uint64_t>kind << 56) | (<uint64_t>value & <uint64_t>0x00FFFFFFFFFFFFFF))

cdef inline int64_t isa_arg_kind(int64_t word) noexcept nogil:
    return <int64_t>(<uint64_t>word >> 56)

cdef inline int64_t isa_arg_value(int64_t word) noexcept nogil:
    return <int64_t>(<uint64_t>word << 8) >> 8
