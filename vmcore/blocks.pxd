# Blocks of memory that live as long as their program. Sites that are executed together lie together, and one that fits
# in a cache line does not straddle two. Inline: there is no module of this name.
from libc.string cimport memset

from vmcore.memory cimport MEMORY_PROGRAM, memory_aligned, memory_free

cdef struct Block:
    char* next
    size_t used, size  # bytes, this header included

cdef enum:
    LINE = 64  # bytes; blocks are aligned to it
    FIRST_BLOCK = 1 << 10
    LARGEST_BLOCK = 1 << 16


cdef inline void* block_alloc(char** blocks, size_t size) except NULL:
    """`size` zeroed bytes, 16-byte aligned."""
    cdef Block* block = <Block*>blocks[0]
    cdef size_t at, total
    size = (size + 15) & ~<size_t>15
    if block != NULL:
        at = block.used
        if size <= LINE and at % LINE + size > LINE:
            at = (at + LINE - 1) & ~<size_t>(LINE - 1)
        if at + size <= block.size:
            block.used = at + size
            return <char*>block + at
    total = FIRST_BLOCK if block == NULL else min(2 * block.size, <size_t>LARGEST_BLOCK)
    total = max(total, (LINE + size + LINE - 1) & ~<size_t>(LINE - 1))
    block = <Block*>memory_aligned(total, MEMORY_PROGRAM)
    if block == NULL:
        raise MemoryError(f"decode: no memory for {total} bytes of call sites")
    memset(block, 0, total)
    block.next = blocks[0]
    block.size = total
    block.used = LINE + size
    blocks[0] = <char*>block
    return <char*>block + LINE


cdef inline void blocks_free(char* blocks) noexcept nogil:
    cdef char* next_block
    while blocks != NULL:
        next_block = (<Block*>blocks).next
        memory_free(blocks)
        blocks = next_block
