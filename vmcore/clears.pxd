from libc.stdint cimport int64_t

from vmcore.program cimport Insn, Program, VmFunc

cdef enum:
    MAX_FLOW_WORK = 1 << 27  # words touched for all functions of a program together: beyond, every Ret clears its frame

cdef int list_clears(
    Program* program, VmFunc* func, Insn* code, const int64_t* offsets, const int64_t* words, int64_t* budget,
    char** blocks,
) except -1
"""Gives every Ret of `func` its list of registers to clear, in `blocks`; where that is too much work, a Ret clears its
frame. `code` is that of the program; `budget` is what is left of MAX_FLOW_WORK. Raises MemoryError.
"""
