"""Scratch memory of kernels: grown on demand, reused by every call of a thread, freed when the thread ends."""

from vmcore.threads cimport WorkAccount, set_scratch_trimmer, work_account

cdef extern from "vmcore/kernels/workspace.h" nogil:
    void workspace_init()
    void* workspace_get(size_t slot, size_t nbytes, WorkAccount* account)
    void workspace_trim()
    size_t workspace_held()


cdef void* workspace(size_t slot, size_t nbytes) noexcept nogil:
    return workspace_get(slot, nbytes, work_account())


cpdef void trim_workspace() noexcept:
    """Free the calling thread's scratch memory; other threads free theirs when they next need some."""
    workspace_trim()


cpdef size_t workspace_bytes() noexcept:
    """Bytes of scratch memory that all threads hold now."""
    return workspace_held()


cdef void trim_thread() noexcept nogil:
    workspace_trim()


workspace_init()
set_scratch_trimmer(trim_thread)
