# Where the bytes of tensors come from: one Allocator per virtual machine, naive or pooled, with its books.
from libc.stdint cimport int64_t

from vmcore.value cimport StorageObj

ctypedef void Allocator  # opaque

cdef struct AllocatorReport:
    int64_t live_bytes      # held by storages that are in use
    int64_t peak_bytes      # highest live_bytes so far
    int64_t pooled_bytes    # kept for reuse
    int64_t n_allocations   # requests so far
    int64_t n_pool_hits     # requests served from the pool
    int64_t total_bytes     # requested so far

cdef Allocator* allocator_new(bint pooled) noexcept nogil
cdef bint allocator_is_pooled(Allocator* allocator) noexcept nogil
cdef void allocator_release(Allocator* self) noexcept nogil
cdef StorageObj* storage_alloc(Allocator* self, int64_t nbytes) noexcept nogil
cdef int64_t allocator_trim(Allocator* self) noexcept nogil
cdef AllocatorReport allocator_report(Allocator* self) noexcept nogil
