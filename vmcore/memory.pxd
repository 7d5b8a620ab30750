# Cython names for memory.h: where vmcore takes memory from the system. No code of its own.
from libc.stdint cimport uint64_t

cdef extern from "vmcore/memory.h" nogil:
    enum:
        MEMORY_TENSOR, MEMORY_SHAPE, MEMORY_STRING, MEMORY_ARRAY, MEMORY_CLOSURE, MEMORY_FUNCTION, MEMORY_OPAQUE
        MEMORY_STORAGE, MEMORY_POOLED, MEMORY_ALLOCATOR, MEMORY_PROGRAM, MEMORY_CONTEXT, MEMORY_EXPORT, MEMORY_SCRATCH
        MEMORY_WORKSPACE, MEMORY_LIBRARY
    enum:
        MAP_NORESERVE  # from <sys/mman.h>
    void* memory_alloc(size_t nbytes, int kind)
    void* memory_calloc(size_t n, size_t size, int kind)
    void* memory_aligned(size_t nbytes, int kind)
    void* memory_map(size_t nbytes, int flags, int kind)
    void memory_free(void* block)
    void memory_unmap(void* block, size_t nbytes)
    void memory_keep(void* block)
    void memory_set_kind(void* block, int kind)
    void memory_poison(uint64_t* counts)
