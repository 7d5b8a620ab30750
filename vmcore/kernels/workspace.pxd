# Thread-local scratch memory of kernels, charged to the machine that runs (vmcore.threads.WorkAccount).

cdef enum:
    SLOT_PANELS = 0  # packed operand of a matrix product
    SLOT_TILES = 1  # copied rows of the other operand
    SLOT_PLANES = 2  # padded copy of an input
    SLOT_TABLES = 3  # index tables, partial results
    SLOT_OTHER = 4  # first of the slots that no dense kernel uses

# At least `nbytes` of this thread's slot, 64-byte aligned, contents undefined; NULL when memory cannot be had, or
# the memory limit of the machine that runs does not allow it.
#
# Valid until this thread asks for the same slot again. Slots are 0 .. 7.
cdef void* workspace(size_t slot, size_t nbytes) noexcept nogil

# Returns the calling thread's scratch memory; other threads return theirs when they next need some.
cpdef void trim_workspace() noexcept

cpdef size_t workspace_bytes() noexcept
