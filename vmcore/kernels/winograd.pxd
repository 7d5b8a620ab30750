# Winograd convolution. Layer 2.
from vmcore.value cimport KernelEntry

cdef const KernelEntry* kernel_table(int* n) noexcept
