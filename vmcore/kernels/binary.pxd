from vmcore.value cimport DirectEntry, KernelEntry

cdef const KernelEntry* kernel_table(int* n) noexcept
cdef const DirectEntry* direct_table() noexcept

# The table of loops as fused.h declares it, by operator and element type; its entries follow select_isa.
cdef const void* binary_table() noexcept nogil
cdef const void* where_table() noexcept nogil
