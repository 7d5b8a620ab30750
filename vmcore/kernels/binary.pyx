"""Binary kernels with broadcasting: `kernel.add`, `kernel.less`, `kernel.where`, ... . Loops and doors are in binary.h.

maximum and minimum pass NaN on. Integers wrap; a zero integer divisor is refused. Shifts by the width or more give
what shifting by one bit at a time would. float16 and bfloat16 go through float32.
"""
from libc.stdint cimport int64_t

from vmcore.kernels.args cimport args_bind
from vmcore.status cimport fail
from vmcore.threads cimport TaskFn, parallel_for, parallel_for_brief, thread_count
from vmcore.value cimport DirectEntry, KernelEntry

cdef extern from "vmcore/kernels/binary.h" nogil:
    const KernelEntry* binary_entries
    const DirectEntry* binary_direct
    enum:
        BINARY_ENTRIES
    const void* binary_ops
    const void* binary_where_loops()
    void binary_init(int isa)
    int vm_isa_detect()
    ctypedef void (*SplitFor)(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil
    void split_bind(SplitFor parallel, SplitFor brief, int (*threads)() noexcept nogil)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = BINARY_ENTRIES
    return binary_entries


cdef const DirectEntry* direct_table() noexcept:
    return binary_direct


cdef const void* binary_table() noexcept nogil:
    return <const void*>binary_ops


cdef const void* where_table() noexcept nogil:
    return binary_where_loops()


def select_isa(level=None) -> int:
    """Use the loops of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    binary_init(isa)
    return isa


args_bind(fail)
split_bind(parallel_for, parallel_for_brief, thread_count)
select_isa()
