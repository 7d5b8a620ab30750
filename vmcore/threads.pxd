# The thread count that governs every kernel, and a parallel loop over tasks. Layer 1: imports nothing of ours.
from libc.stdint cimport int64_t

cdef extern from "vmcore/work_account.h" nogil:
    ctypedef struct WorkAccount:  # who pays for scratch memory; the header says how
        bint (*charge)(WorkAccount* self, int64_t nbytes) noexcept nogil

ctypedef void (*TaskFn)(void* ctx, int64_t task) noexcept nogil

# Threads that one parallel_for may use, the caller included.
cdef int thread_count() noexcept nogil

# fn(ctx, i) for every i in 0 .. n_tasks-1, in any order, on up to thread_count() threads; returns when all are done.
#
# Runs inline when one thread is allowed, when called from a task, and when another thread is inside parallel_for.
cdef void parallel_for(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil

# The same for a job of some tens of microseconds, which is not worth waking a worker that sleeps.
cdef void parallel_for_brief(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil

# The account of the machine that runs on this thread, on workers that of the job's caller; NULL without a memory limit.
cdef WorkAccount* work_account() noexcept nogil

# Sets it; returns the one before.
cdef WorkAccount* set_work_account(WorkAccount* account) noexcept nogil

# Gives back what this thread keeps as scratch memory of kernels; none of them may be running on it.
cdef void trim_scratch() noexcept nogil
cdef void set_scratch_trimmer(void (*trimmer)() noexcept nogil) noexcept nogil
