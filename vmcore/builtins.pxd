# The vm.builtin.* PackedFuncs. `builtin_table` lists them for the registry; `builtin_opcode` tells the decoder which of
# them have an internal opcode.
from vmcore.value cimport KernelEntry, PackedFn, VmDataType

cdef const KernelEntry* builtin_table(int* n) noexcept
cdef bint dtype_is_storable(VmDataType dtype) noexcept nogil
cdef int builtin_opcode(PackedFn fn) noexcept nogil
cdef bint builtin_allocates(PackedFn fn) noexcept nogil
