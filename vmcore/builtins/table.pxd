# `builtin_table` lists the builtins for the registry; `builtin_opcode` tells the decoder which of them have an internal
# opcode.
from vmcore.value cimport KernelEntry, PackedFn

cdef const KernelEntry* builtin_table(int* n) noexcept
cdef int builtin_opcode(PackedFn fn) noexcept nogil
cdef bint builtin_allocates(PackedFn fn) noexcept nogil
