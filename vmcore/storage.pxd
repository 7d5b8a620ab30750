# Where the bytes of tensors come from: one Allocator per virtual machine, naive or pooled, with its books.
from libc.stdint cimport int64_t

from vmcore.threads cimport WorkAccount
from vmcore.value cimport StorageObj

ctypedef void Allocator  # opaque

cdef struct AllocatorReport:
    int64_t live_bytes      # held by storages that are in use
    int64_t peak_bytes      # highest live_bytes so far
    int64_t pooled_bytes    # kept for reuse
    int64_t limit_bytes     # live, kept and scratch bytes together never exceed it; INT64_MAX: no limit
    int64_t scratch_bytes   # scratch memory of kernels and libraries; counted for machines with a limit only
    int64_t n_allocations   # requests so far that were not refused
    int64_t n_pool_hits     # requests served from the pool
    int64_t total_bytes     # requested so far

cdef struct ClassReport:    # blocks of one size
    int64_t block_bytes
    int64_t n_live
    int64_t n_pooled

cdef enum:
    MAX_CLASSES = 256

cdef bint any_limit  # some allocator of this process has a limit, or had one
cdef WorkAccount* allocator_account(Allocator* allocator) noexcept nogil
"""What scratch memory is charged to; NULL without a limit."""
cdef Allocator* allocator_new(bint pooled) noexcept nogil
cdef bint allocator_is_pooled(Allocator* allocator) noexcept nogil
cdef void allocator_release(Allocator* self) noexcept nogil
cdef int allocator_set_limit(Allocator* self, int64_t nbytes) noexcept nogil
"""To be set once, before use; -1 if memory is exhausted."""
cdef StorageObj* storage_alloc(Allocator* self, int64_t nbytes) noexcept nogil
cdef int storage_refused(Allocator* self, const char* name, int64_t nbytes) noexcept nogil
"""Stores the AllocationError of a storage_alloc that gave NULL: what was asked for, what is in use, the limit; -1."""
cdef int64_t allocator_trim(Allocator* self) noexcept nogil
cdef AllocatorReport allocator_report(Allocator* self) noexcept nogil
cdef int allocator_classes(Allocator* self, ClassReport* out) noexcept nogil
"""Fills `out`, which has room for MAX_CLASSES, with the sizes of which there are blocks; returns how many."""
