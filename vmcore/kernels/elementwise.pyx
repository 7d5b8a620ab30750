"""Unary kernels: `kernel.relu`, `kernel.exp`, ... . Loops, table and doors are in unary.h; numpy and ONNX semantics.

relu and clip pass NaN on. Integer negation and absolute value wrap. float16 and bfloat16 go through float32.
"""
from libc.stdint cimport int64_t

from vmcore.kernels.args cimport args_bind
from vmcore.status cimport fail
from vmcore.threads cimport TaskFn, parallel_for, parallel_for_brief, thread_count
from vmcore.value cimport DirectEntry, KernelEntry

cdef extern from "vmcore/kernels/unary.h" nogil:
    const KernelEntry* unary_entries
    const DirectEntry* unary_direct_entries
    enum:
        UNARY_ENTRIES
    const void* unary_ops
    void unary_init(int isa)
    int vm_isa_detect()
    ctypedef void (*SplitFor)(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil
    void split_bind(SplitFor parallel, SplitFor brief, int (*threads)() noexcept nogil)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = UNARY_ENTRIES
    return unary_entries


cdef const DirectEntry* direct_table() noexcept:
    return unary_direct_entries


cdef const void* unary_table() noexcept nogil:
    return <const void*>unary_ops


def select_isa(level=None) -> int:
    """Use the loops of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    unary_init(isa)
    return isa


args_bind(fail)
split_bind(parallel_for, parallel_for_brief, thread_count)
select_isa()
