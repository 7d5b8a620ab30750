/* memory.h of a checked build: books of every block, failures on demand, poison in what was freed.
 *
 * A block has a prefix that links it into the books. A freed block is filled with poison and held back for a while; what
 * is written into it is found when it leaves, and an object that is counted after its death is found at once.
 *
 * The books are one object for all extension modules. They share no symbols, but a unique object is the same everywhere
 * in a process.
 */
#ifndef VMCORE_MEMORY_CHECKED_H
#define VMCORE_MEMORY_CHECKED_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MEMORY_LIVE 0x6c6976656c697665ull
#define MEMORY_DEAD 0x6465616464656164ull
#define MEMORY_POISON 0xdb
#define MEMORY_POISON_WORD 0xdbdbdbdbdbdbdbdbull
#define MEMORY_HELD 1024     /* freed blocks that are held back */
#define MEMORY_HELD_SIZE 2048 /* larger ones are not */

typedef struct MemoryBlock {
  struct MemoryBlock *previous, *next;
  uint64_t magic, serial;
  size_t nbytes;
  void *start;   /* what the system gave */
  int32_t kind, kept;
  uint64_t unused;
} MemoryBlock;
_Static_assert(sizeof(MemoryBlock) == MEMORY_ALIGNMENT, "a block stays aligned");

typedef struct MemoryBooks {
  pthread_mutex_t lock; /* guards everything; a leaf: nothing is called under it */
  MemoryBlock *blocks;
  uint64_t n_requests, n_refused; /* since memory_fail_at was called */
  uint64_t fail_at;               /* number of the request that fails; 0: none */
  uint64_t serial;                /* blocks made so far */
  int32_t fail_all, prepared, reported, n_held;
  MemoryBlock *held[MEMORY_HELD];
} MemoryBooks;
#define MEMORY_BOOKS_BYTES "16384"
_Static_assert(sizeof(MemoryBooks) <= 16384, "the books fit in their object");

extern MemoryBooks vmcore_memory_books;
__asm__(".pushsection .bss.vmcore_memory_books,\"awG\",%nobits,vmcore_memory_books,comdat\n"
        ".balign 64\n"
        ".type vmcore_memory_books, %gnu_unique_object\n"
        ".size vmcore_memory_books, " MEMORY_BOOKS_BYTES "\n"
        "vmcore_memory_books:\n"
        ".zero " MEMORY_BOOKS_BYTES "\n"
        ".popsection\n");

__attribute__((unused)) static const char *memory_kind_name(int kind) {
  static const char *const names[MEMORY_KINDS] = {
      "tensor", "shape", "string", "array", "closure", "function", "opaque", "storage", "pooled", "allocator",
      "program", "context", "export", "scratch", "workspace", "library",
  };
  return kind >= 0 && kind < MEMORY_KINDS ? names[kind] : "?";
}

__attribute__((noreturn, cold, noinline, unused)) static void memory_defect(const char *what, const void *address) {
  fprintf(stderr, "vmcore: %s (%p)\n", what, address);
  abort();
}

static void memory_lock(void) { pthread_mutex_lock(&vmcore_memory_books.lock); }
static void memory_unlock(void) { pthread_mutex_unlock(&vmcore_memory_books.lock); }

/* Whether this request must fail. */
static int memory_refused(void) {
  MemoryBooks *books = &vmcore_memory_books;
  int refused, prepare;
  memory_lock();
  prepare = !books->prepared;
  books->prepared = 1;
  ++books->n_requests;
  refused = books->fail_at != 0 && (books->n_requests == books->fail_at ||
                                    (books->fail_all && books->n_requests > books->fail_at));
  books->n_refused += (uint64_t)refused;
  memory_unlock();
  if (prepare) pthread_atfork(memory_lock, memory_unlock, memory_unlock);
  if (refused) errno = ENOMEM;
  return refused;
}

static void *memory_enter(void *start, size_t nbytes, int kind) {
  MemoryBooks *books = &vmcore_memory_books;
  MemoryBlock *block = (MemoryBlock *)start;
  block->magic = MEMORY_LIVE;
  block->nbytes = nbytes;
  block->start = start;
  block->kind = kind;
  block->kept = 0;
  block->previous = NULL;
  memory_lock();
  block->serial = ++books->serial;
  block->next = books->blocks;
  if (books->blocks) books->blocks->previous = block;
  books->blocks = block;
  memory_unlock();
  return block + 1;
}

static MemoryBlock *memory_block_of(void *data, const char *what) {
  MemoryBlock *block = (MemoryBlock *)data - 1;
  if (((uintptr_t)data & (MEMORY_ALIGNMENT - 1)) != 0 || block->magic != MEMORY_LIVE) memory_defect(what, data);
  return block;
}

static MemoryBlock *memory_leave(void *data) {
  MemoryBooks *books = &vmcore_memory_books;
  MemoryBlock *block = memory_block_of(data, "memory is freed that is not in the books, or was freed before");
  memory_lock();
  if (block->previous) block->previous->next = block->next;
  else books->blocks = block->next;
  if (block->next) block->next->previous = block->previous;
  memory_unlock();
  block->magic = MEMORY_DEAD;
  return block;
}

__attribute__((unused)) static void *memory_aligned(size_t nbytes, int kind) {
  void *start = NULL;
  if (nbytes > SIZE_MAX / 2 || memory_refused()) return NULL;
  if (posix_memalign(&start, MEMORY_ALIGNMENT, nbytes + sizeof(MemoryBlock)) != 0) return NULL;
  memset((char *)start + sizeof(MemoryBlock), 0xa5, nbytes); /* nobody may rely on zeros */
  return memory_enter(start, nbytes, kind);
}

__attribute__((unused)) static void *memory_alloc(size_t nbytes, int kind) { return memory_aligned(nbytes, kind); }

__attribute__((unused)) static void *memory_calloc(size_t n, size_t size, int kind) {
  size_t nbytes;
  void *data = __builtin_mul_overflow(n, size, &nbytes) ? NULL : memory_aligned(nbytes, kind);
  return data ? memset(data, 0, nbytes) : NULL;
}

__attribute__((unused)) static void *memory_map(size_t nbytes, int flags, int kind) {
  void *start;
  if (memory_refused()) return NULL;
  start = mmap(NULL, nbytes + sizeof(MemoryBlock), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return start == MAP_FAILED ? NULL : memory_enter(start, nbytes, kind);
}

__attribute__((unused)) static void memory_free(void *data) {
  MemoryBooks *books = &vmcore_memory_books;
  MemoryBlock *block, *out = NULL;
  if (data == NULL) return;
  block = memory_leave(data);
  memset(data, MEMORY_POISON, block->nbytes < MEMORY_HELD_SIZE ? block->nbytes : MEMORY_HELD_SIZE);
  if (block->nbytes > MEMORY_HELD_SIZE) {
    free(block->start);
    return;
  }
  memory_lock();
  out = books->held[books->n_held];
  books->held[books->n_held] = block;
  books->n_held = (books->n_held + 1) % MEMORY_HELD;
  memory_unlock();
  if (out == NULL) return;
  for (size_t i = 0; i < out->nbytes; ++i)
    if (((unsigned char *)(out + 1))[i] != MEMORY_POISON) memory_defect(memory_kind_name(out->kind), out + 1);
  free(out->start);
}

__attribute__((unused)) static void memory_unmap(void *data, size_t nbytes) {
  MemoryBlock *block = memory_leave(data);
  if (block->nbytes != nbytes) memory_defect("memory is unmapped with another size than it has", data);
  munmap(block->start, nbytes + sizeof(MemoryBlock));
}

__attribute__((unused)) static void memory_keep(void *data) {
  memory_block_of(data, "what is to be kept is not in the books")->kept = 1;
}

__attribute__((unused)) static void memory_set_kind(void *data, int kind) {
  memory_block_of(data, "what changes its kind is not in the books")->kind = kind;
}

static inline void memory_check_object(const uint64_t *counts, const char *what) {
  uint64_t value = __atomic_load_n(counts, __ATOMIC_RELAXED);
  if (value == MEMORY_POISON_WORD || (uint32_t)value == 0 || value >> 32 == 0) memory_defect(what, counts);
}

static inline void memory_poison(uint64_t *counts) { *counts = MEMORY_POISON_WORD; }

/* At the end of the process: what is left is appended to the file named by VMCORE_BOOKS, one block a line: process, kind,
 * bytes, number. Not listed: what is kept for the process, workspaces of threads, and pooled storages, whose allocator
 * is listed if it was not released. */
__attribute__((destructor, unused)) static void memory_report_at_exit(void) {
  MemoryBooks *books = &vmcore_memory_books;
  const char *path = getenv("VMCORE_BOOKS");
  char line[160];
  int file;
  if (path == NULL || __atomic_exchange_n(&books->reported, 1, __ATOMIC_ACQ_REL)) return;
  file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file < 0) return;
  memory_lock();
  for (MemoryBlock *block = books->blocks; block; block = block->next) {
    if (block->kept || block->kind == MEMORY_WORKSPACE || block->kind == MEMORY_POOLED) continue;
    int n = snprintf(line, sizeof line, "%d %s %zu %llu\n", (int)getpid(), memory_kind_name(block->kind),
                     block->nbytes, (unsigned long long)block->serial);
    if (write(file, line, (size_t)n) != n) break;
  }
  int n = snprintf(line, sizeof line, "%d end %llu\n", (int)getpid(), (unsigned long long)books->serial);
  if (write(file, line, (size_t)n) != n) perror("VMCORE_BOOKS");
  memory_unlock();
  close(file);
}

#endif
