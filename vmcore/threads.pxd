# The thread count that governs every kernel, and a parallel loop over tasks. Layer 1: imports nothing of ours.
from libc.stdint cimport int64_t

ctypedef void (*TaskFn)(void* ctx, int64_t task) noexcept nogil

# Threads that one parallel_for may use, the caller included.
cdef int thread_count() noexcept nogil

# fn(ctx, i) for every i in 0 .. n_tasks-1, in any order, on up to thread_count() threads; returns when all are done.
#
# Runs inline when one thread is allowed, when called from a task, and when another thread is inside parallel_for.
cdef void parallel_for(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil

# The same for a job of some tens of microseconds, which is not worth waking a worker that sleeps.
cdef void parallel_for_brief(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil
