from vmcore.value cimport DirectEntry, KernelEntry

cdef const KernelEntry* kernel_table(int* n) noexcept
cdef const DirectEntry* direct_table() noexcept
