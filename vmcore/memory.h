/* Every byte that vmcore takes from the system, by malloc or by mmap, is taken and given back here. In a checked build
 * (VMCORE_CHECKED, see memory_checked.h) books are kept of all of it, and any request can be made to fail. */
#ifndef VMCORE_MEMORY_H
#define VMCORE_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

/* What a block is for; the names are in memory_checked.h, in this order. */
enum {
  MEMORY_TENSOR, MEMORY_SHAPE, MEMORY_STRING, MEMORY_ARRAY, MEMORY_CLOSURE, MEMORY_FUNCTION, MEMORY_OPAQUE,
  MEMORY_STORAGE,   /* bytes of tensors with their header */
  MEMORY_POOLED,    /* a storage that its allocator keeps for reuse */
  MEMORY_ALLOCATOR, MEMORY_PROGRAM, MEMORY_CONTEXT,
  MEMORY_EXPORT,    /* what a consumer of DLPack or of a buffer gives back */
  MEMORY_SCRATCH,   /* given back by whoever asked, before it returns */
  MEMORY_WORKSPACE, /* of a thread: until the thread ends, or the next trim */
  MEMORY_LIBRARY,   /* of a shared library, or asked for by one */
  MEMORY_KINDS
};

#define MEMORY_ALIGNMENT 64

#ifdef VMCORE_CHECKED
#include "vmcore/memory_checked.h"
#else

static inline void *memory_alloc(size_t nbytes, int kind) {
  (void)kind;
  return malloc(nbytes);
}

static inline void *memory_calloc(size_t n, size_t size, int kind) {
  (void)kind;
  return calloc(n, size);
}

/* 64-byte aligned. */
static inline void *memory_aligned(size_t nbytes, int kind) {
  void *block = NULL;
  (void)kind;
  return posix_memalign(&block, MEMORY_ALIGNMENT, nbytes) ? NULL : block;
}

/* Whole pages of zeros; `flags` are added to those of mmap. NULL when they cannot be had. */
static inline void *memory_map(size_t nbytes, int flags, int kind) {
  void *block = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  (void)kind;
  return block == MAP_FAILED ? NULL : block;
}

static inline void memory_free(void *block) { free(block); }
static inline void memory_unmap(void *block, size_t nbytes) { munmap(block, nbytes); }

/* The block stays for as long as the process does: it is no leak. */
static inline void memory_keep(void *block) { (void)block; }
static inline void memory_set_kind(void *block, int kind) { (void)block, (void)kind; }

/* Called before the counts of an object change. */
static inline void memory_check_object(const uint64_t *counts, const char *what) { (void)counts, (void)what; }
/* The object is dead, though its memory is not given back: whoever counts it from now on is wrong. */
static inline void memory_poison(uint64_t *counts) { (void)counts; }

#endif
#endif
