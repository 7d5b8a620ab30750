from vmcore.value cimport KernelEntry

cdef const KernelEntry* kernel_table(int* n) noexcept

# The table of loops as fused.h declares it, by operator and element type; its entries follow select_isa.
cdef const void* cast_table() noexcept nogil
