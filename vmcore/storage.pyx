"""Allocators of storages.

A storage is one block: 64 bytes of header, then the data, both 64-byte aligned. A pooled allocator keeps freed blocks
in size classes (four per power of two, so at most 25 % of a block is unused) and never keeps more than what brings the
sum of live and kept bytes to 1.5 times the peak of the bytes asked for: before a new block is made, kept ones that
would exceed that are given back. Large blocks are mapped one by one, so that what is given back leaves no holes in the
heap.

Scratch memory of kernels and libraries belongs to threads, not to allocators. Where an allocator has a limit, a ledger
counts what its machine's calls took of it, and the limit holds for the sum.

OWNERSHIP: the creator of an allocator holds one reference, and so does every storage: tensors may outlive the virtual
machine that made them. A ledger is held by its allocator and by each block that is charged to it, which may outlive
both.
"""
from libc.stdint cimport INT64_MAX, int64_t

from vmcore.memory cimport (
    MEMORY_ALLOCATOR, MEMORY_POOLED, MEMORY_STORAGE, MEMORY_WORKSPACE, memory_calloc, memory_free, memory_poison,
    memory_set_kind,
)
from vmcore.status cimport fail
from vmcore.threads cimport WorkAccount
from vmcore.value cimport ERR_ALLOC, OBJ_DELETE_WEAK, OBJ_OWN, VT_STORAGE, StorageObj, fail_format, object_init

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from *:
    """
    #define STORAGE_HEADER 64
    #define STORAGE_CLASSES 256
    /* Size class of `nbytes` >= 1 and the capacity of its blocks. */
    static int storage_class(int64_t nbytes, int64_t *capacity) {
      if (nbytes <= 64) { *capacity = 64; return 0; }
      int log2 = 63 - __builtin_clzll((uint64_t)(nbytes - 1)); /* 2^log2 < nbytes <= 2^(log2+1) */
      int64_t step = (int64_t)1 << (log2 - 2);
      int64_t quarter = (nbytes - ((int64_t)1 << log2) + step - 1) / step; /* 1..4 */
      *capacity = ((int64_t)1 << log2) + quarter * step;
      return 4 * (log2 - 6) + (int)quarter;
    }
    static int64_t class_capacity(int size_class) {
      if (size_class == 0) return 64;
      int log2 = 6 + (size_class - 1) / 4, quarter = (size_class - 1) % 4 + 1;
      return ((int64_t)1 << log2) + quarter * ((int64_t)1 << (log2 - 2));
    }
    #include "vmcore/memory.h"
    #define MAPPED_BYTES ((int64_t)1 << 17) /* blocks of at least this capacity are mapped */
    static void *block_new(int64_t capacity) {
      size_t nbytes = (size_t)capacity + STORAGE_HEADER;
      return capacity < MAPPED_BYTES ? memory_aligned(nbytes, MEMORY_STORAGE) : memory_map(nbytes, 0, MEMORY_STORAGE);
    }
    static void block_free(void *block, int64_t capacity) {
      if (capacity < MAPPED_BYTES) memory_free(block);
      else memory_unmap(block, (size_t)capacity + STORAGE_HEADER);
    }
    static int64_t counter_add(int64_t *counter, int64_t n) { return __atomic_add_fetch(counter, n, __ATOMIC_ACQ_REL); }
    """
    enum:
        STORAGE_HEADER, STORAGE_CLASSES  # as many as MAX_CLASSES
    int storage_class(int64_t nbytes, int64_t* capacity) nogil
    int64_t class_capacity(int size_class) nogil
    void* block_new(int64_t capacity) nogil
    void block_free(void* block, int64_t capacity) nogil
    int64_t counter_add(int64_t* counter, int64_t n) nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(
        void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil
    )

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>
    static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;
    static int64_t smaller_of(int64_t known, const char *folder, const char *group, const char *file) {
      char path[600], text[32] = "";
      if (snprintf(path, sizeof path, "%s%s/%s", folder, group, file) >= (int)sizeof path) return known;
      FILE *f = fopen(path, "re");
      if (f == NULL) return known;
      int64_t limit = fgets(text, sizeof text, f) ? strtoll(text, NULL, 10) : 0; /* "max" reads as 0 */
      fclose(f);
      return limit > 0 && limit < known ? limit : known;
    }
    /* Bytes that this process may use at most: the machine's memory, or what its control groups allow. More is refused
     * here, where it is an error with a name, and not found out by the system when the pages are written. */
    static int64_t physical_bytes(void) {
      int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
      int64_t known = pages > 0 && page > 0 ? pages * page : INT64_MAX;
      char line[512];
      FILE *f = fopen("/proc/self/cgroup", "re");
      while (f != NULL && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) continue;
        *group++ = 0;
        group[strcspn(group, "\\n")] = 0;
        int unified = controllers[1] == 0;
        if (!unified && strstr(controllers, "memory") == NULL) continue;
        for (;;) { /* a limit on any group above holds for this one */
          known = unified ? smaller_of(known, "/sys/fs/cgroup", group, "memory.max")
                          : smaller_of(known, "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
          char *last = strrchr(group, '/');
          if (last == NULL) break;
          *last = 0;
        }
      }
      if (f != NULL) fclose(f);
      return known;
    }
    """
    pthread_mutex_t pools_lock  # guards the list of pools; taken before the lock of any pool
    int64_t physical_bytes() nogil

cdef struct Ledger:  # of scratch memory
    WorkAccount head
    int64_t references
    int64_t scratch_bytes  # grows under the pool's lock, shrinks without
    Pool* pool             # alive while a machine runs, which is when scratch memory is asked for

cdef struct Pool:  # what an Allocator is
    Pool* previous  # list of all pools
    Pool* next
    pthread_mutex_t lock          # guards everything below but `references`
    int64_t references
    bint pooled
    AllocatorReport books
    Ledger* ledger                # NULL without a limit
    int64_t asked_bytes, peak_asked_bytes  # as books' live and peak bytes, without what rounding up to a class adds
    StorageObj* free_blocks[STORAGE_CLASSES]  # chained through `owner`
    int64_t n_blocks[STORAGE_CLASSES]         # in use and kept


cdef Pool* _pools = NULL
cdef int64_t _physical_bytes = physical_bytes()
cdef int64_t LARGEST_STORAGE = <int64_t>1 << 47  # bytes: beyond any address space
pthread_atfork(lock_pools, unlock_pools, unlock_pools)


cdef Allocator* allocator_new(bint pooled) noexcept nogil:
    """One reference to a new allocator; NULL when memory is exhausted."""
    global _pools
    cdef Pool* self = <Pool*>memory_calloc(1, sizeof(Pool), MEMORY_ALLOCATOR)
    if self == NULL:
        return NULL
    pthread_mutex_init(&self.lock, NULL)
    self.references = 1
    self.pooled = pooled
    self.books.limit_bytes = INT64_MAX
    pthread_mutex_lock(&pools_lock)
    self.next = _pools
    if _pools != NULL:
        _pools.previous = self
    _pools = self
    pthread_mutex_unlock(&pools_lock)
    return self


cdef void lock_pools() noexcept nogil:
    """Before a fork: no other thread is inside an allocator, so that the child finds them whole and unlocked."""
    cdef Pool* pool
    pthread_mutex_lock(&pools_lock)
    pool = _pools
    while pool != NULL:
        pthread_mutex_lock(&pool.lock)
        pool = pool.next


cdef void unlock_pools() noexcept nogil:
    cdef Pool* pool = _pools
    while pool != NULL:
        pthread_mutex_unlock(&pool.lock)
        pool = pool.next
    pthread_mutex_unlock(&pools_lock)


cdef bint allocator_is_pooled(Allocator* allocator) noexcept nogil:
    """Whether freed blocks are kept for reuse."""
    return (<Pool*>allocator).pooled


cdef void allocator_release(Allocator* allocator) noexcept nogil:
    cdef Pool* self = <Pool*>allocator
    global _pools
    if counter_add(&self.references, -1) == 0:
        allocator_trim(self)
        pthread_mutex_lock(&pools_lock)
        if self.previous != NULL:
            self.previous.next = self.next
        else:
            _pools = self.next
        if self.next != NULL:
            self.next.previous = self.previous
        pthread_mutex_unlock(&pools_lock)
        pthread_mutex_destroy(&self.lock)
        if self.ledger != NULL:
            ledger_release(self.ledger)
        memory_free(self)


cdef int allocator_set_limit(Allocator* allocator, int64_t nbytes) noexcept nogil:
    global any_limit
    cdef Pool* self = <Pool*>allocator
    cdef Ledger* ledger = <Ledger*>memory_calloc(1, sizeof(Ledger), MEMORY_WORKSPACE)
    if ledger == NULL:
        return -1
    ledger.head.charge = charge
    ledger.references = 1
    ledger.pool = self
    self.ledger = ledger
    self.books.limit_bytes = nbytes
    any_limit = True
    return 0


cdef WorkAccount* allocator_account(Allocator* allocator) noexcept nogil:
    return <WorkAccount*>(<Pool*>allocator).ledger


cdef void ledger_release(Ledger* self) noexcept nogil:
    if counter_add(&self.references, -1) == 0:
        memory_free(self)


cdef bint charge(WorkAccount* account, int64_t nbytes) noexcept nogil:
    """As WorkAccount says; kept blocks make room."""
    cdef Ledger* self = <Ledger*>account
    cdef Pool* pool
    cdef StorageObj* chain
    cdef int64_t room
    if nbytes < 0:
        counter_add(&self.scratch_bytes, nbytes)
        ledger_release(self)
        return True
    pool = self.pool
    pthread_mutex_lock(&pool.lock)
    room = most_bytes(pool) - pool.books.live_bytes - nbytes
    if room < 0:
        pthread_mutex_unlock(&pool.lock)
        return False
    chain = take_out(pool, pool.books.pooled_bytes - room)
    counter_add(&self.scratch_bytes, nbytes)
    counter_add(&self.references, 1)
    pthread_mutex_unlock(&pool.lock)
    free_chain(chain)
    return True


cdef void note_use(Pool* self, int64_t nbytes) noexcept nogil:
    """Counts a storage that was asked for; its capacity is live already."""
    if self.books.live_bytes > self.books.peak_bytes:
        self.books.peak_bytes = self.books.live_bytes
    self.asked_bytes += nbytes
    if self.asked_bytes > self.peak_asked_bytes:
        self.peak_asked_bytes = self.asked_bytes


cdef StorageObj* take_kept(Pool* self, int size_class, int64_t capacity) noexcept nogil:
    """The kept block of a class that was kept last; there is one."""
    cdef StorageObj* block = self.free_blocks[size_class]
    self.free_blocks[size_class] = <StorageObj*>block.owner
    self.books.pooled_bytes -= capacity
    return block


cdef StorageObj* evict(Pool* self, int64_t nbytes, int64_t capacity) noexcept nogil:
    """Takes kept blocks out, the largest first, until a new block of `capacity` keeps the bound and the limit; a chain
    to free."""
    cdef int64_t peak = self.asked_bytes + nbytes
    cdef int64_t wanted
    cdef int64_t excess
    if self.books.pooled_bytes == 0:
        return NULL
    if peak < self.peak_asked_bytes:
        peak = self.peak_asked_bytes
    wanted = self.books.live_bytes + capacity + self.books.pooled_bytes
    excess = wanted - (peak + peak // 2)
    if wanted - limit_left(self) > excess:
        excess = wanted - limit_left(self)
    return take_out(self, excess)


cdef StorageObj* take_out(Pool* self, int64_t excess) noexcept nogil:
    """Takes kept blocks of `excess` bytes out, the largest first; a chain to free."""
    cdef int64_t size
    cdef int i = STORAGE_CLASSES - 1
    cdef StorageObj* chain = NULL
    cdef StorageObj* block
    while excess > 0 and i >= 0:
        if self.free_blocks[i] == NULL:
            i -= 1
            continue
        block = self.free_blocks[i]
        storage_class(block.nbytes if block.nbytes > 0 else 1, &size)
        take_kept(self, i, size)
        self.n_blocks[i] -= 1
        excess -= size
        block.owner = chain
        chain = block
    return chain


cdef void free_chain(StorageObj* chain) noexcept nogil:
    cdef StorageObj* block
    cdef int64_t capacity
    while chain != NULL:
        block = chain
        chain = <StorageObj*>block.owner
        storage_class(block.nbytes if block.nbytes > 0 else 1, &capacity)
        block_free(block, capacity)


cdef StorageObj* grow(Pool* self, int64_t nbytes, int size_class, int64_t capacity) noexcept nogil:
    """A new block, whose capacity is counted already; NULL, and counted no more, when memory is exhausted."""
    cdef StorageObj* block = <StorageObj*>block_new(capacity)
    if block == NULL:
        allocator_trim(self)
        block = <StorageObj*>block_new(capacity)
    pthread_mutex_lock(&self.lock)
    if block == NULL:
        self.books.live_bytes -= capacity
        self.n_blocks[size_class] -= 1
    else:
        note_use(self, nbytes)
    pthread_mutex_unlock(&self.lock)
    return block


cdef StorageObj* storage_alloc(Allocator* allocator, int64_t nbytes) noexcept nogil:
    """A storage of `nbytes` >= 0 bytes, content undefined; NULL when memory is exhausted or the limit is reached.

    INVARIANT: live, kept and scratch bytes together never exceed the limit, so that a kept block can be used again
    without looking at it.
    """
    cdef Pool* self = <Pool*>allocator
    cdef int64_t capacity
    cdef int size_class
    cdef StorageObj* block
    cdef StorageObj* chain
    if nbytes < 0 or nbytes > LARGEST_STORAGE:
        return NULL
    size_class = storage_class(nbytes if nbytes > 0 else 1, &capacity)
    pthread_mutex_lock(&self.lock)
    if self.free_blocks[size_class] != NULL:
        block = take_kept(self, size_class, capacity)
        self.books.n_pool_hits += 1
        self.books.live_bytes += capacity
        note_use(self, nbytes)
        self.books.n_allocations += 1
        self.books.total_bytes += nbytes
        pthread_mutex_unlock(&self.lock)
        memory_set_kind(block, MEMORY_STORAGE)
    else:
        if capacity > most_bytes(self) - self.books.live_bytes:
            pthread_mutex_unlock(&self.lock)
            return NULL
        chain = evict(self, nbytes, capacity)
        # Counted before it exists: no other thread can take the same room meanwhile.
        self.books.live_bytes += capacity
        self.n_blocks[size_class] += 1
        self.books.n_allocations += 1
        self.books.total_bytes += nbytes
        pthread_mutex_unlock(&self.lock)
        free_chain(chain)
        block = grow(self, nbytes, size_class, capacity)
        if block == NULL:
            return NULL
    counter_add(&self.references, 1)
    object_init(&block.head, VT_STORAGE, storage_delete)
    block.head.flags = OBJ_OWN
    block.data = <char*>block + STORAGE_HEADER
    block.nbytes = nbytes
    block.owner = self
    block.home = 0
    block.idle_refs = 0
    return block


cdef int64_t limit_left(Pool* self) noexcept nogil:
    """What the limit leaves for storages."""
    return self.books.limit_bytes - (counter_add(&self.ledger.scratch_bytes, 0) if self.ledger != NULL else 0)


cdef int64_t most_bytes(Pool* self) noexcept nogil:
    cdef int64_t left = limit_left(self)
    return left if left < _physical_bytes else _physical_bytes


cdef int storage_refused(Allocator* allocator, const char* name, int64_t nbytes) noexcept nogil:
    cdef AllocatorReport books = allocator_report(allocator)
    cdef int64_t capacity = nbytes
    if 0 <= nbytes <= LARGEST_STORAGE:
        storage_class(nbytes if nbytes > 0 else 1, &capacity)
    if books.scratch_bytes and capacity > books.limit_bytes - books.scratch_bytes - books.live_bytes:
        return fail_format(
            fail, ERR_ALLOC, "%s: no memory for %lld bytes (a block of %lld): %lld bytes are in use, and %lld as "
            "scratch memory of kernels; the virtual machine's memory limit is %lld bytes", name, <long long>nbytes,
            <long long>capacity, <long long>books.live_bytes, <long long>books.scratch_bytes,
            <long long>books.limit_bytes,
        )
    if capacity > books.limit_bytes - books.live_bytes:
        return fail_format(
            fail, ERR_ALLOC, "%s: no memory for %lld bytes (a block of %lld): %lld bytes are in use, and the virtual "
            "machine's memory limit is %lld bytes", name, <long long>nbytes, <long long>capacity,
            <long long>books.live_bytes, <long long>books.limit_bytes,
        )
    if capacity > _physical_bytes - books.live_bytes:
        return fail_format(
            fail, ERR_ALLOC, "%s: no memory for %lld bytes: %lld bytes are in use, and this process may use %lld bytes",
            name, <long long>nbytes, <long long>books.live_bytes, <long long>_physical_bytes,
        )
    return fail_format(
        fail, ERR_ALLOC, "%s: no memory for %lld bytes: the system refused, with %lld bytes in use", name,
        <long long>nbytes, <long long>books.live_bytes,
    )


cdef void storage_delete(void* object, int how) noexcept nogil:
    cdef StorageObj* block = <StorageObj*>object
    cdef Pool* self = <Pool*>block.owner
    cdef int64_t capacity
    cdef int size_class
    cdef bint keep
    if not how & OBJ_DELETE_WEAK:
        return
    size_class = storage_class(block.nbytes if block.nbytes > 0 else 1, &capacity)
    pthread_mutex_lock(&self.lock)
    self.books.live_bytes -= capacity
    self.asked_bytes -= block.nbytes
    keep = (
        self.pooled
        and self.books.live_bytes + self.books.pooled_bytes + capacity
        <= self.peak_asked_bytes + self.peak_asked_bytes // 2 + 4096
    )
    if keep:
        memory_set_kind(block, MEMORY_POOLED)
        memory_poison(&block.head.counts)
        block.owner = self.free_blocks[size_class]
        self.free_blocks[size_class] = block
        self.books.pooled_bytes += capacity
    else:
        self.n_blocks[size_class] -= 1
    pthread_mutex_unlock(&self.lock)
    if not keep:
        block_free(block, capacity)
    allocator_release(self)


cdef int64_t allocator_trim(Allocator* allocator) noexcept nogil:
    """Gives all kept blocks back to the system; returns their bytes."""
    cdef Pool* self = <Pool*>allocator
    cdef StorageObj* chain = NULL
    cdef StorageObj* block
    cdef int64_t freed
    cdef int i
    pthread_mutex_lock(&self.lock)
    freed = self.books.pooled_bytes
    self.books.pooled_bytes = 0
    for i in range(STORAGE_CLASSES):
        while self.free_blocks[i] != NULL:
            block = self.free_blocks[i]
            self.free_blocks[i] = <StorageObj*>block.owner
            self.n_blocks[i] -= 1
            block.owner = chain
            chain = block
    pthread_mutex_unlock(&self.lock)
    free_chain(chain)
    if freed > 0:
        malloc_trim(0)
    return freed


cdef AllocatorReport allocator_report(Allocator* allocator) noexcept nogil:
    cdef Pool* self = <Pool*>allocator
    cdef AllocatorReport report
    pthread_mutex_lock(&self.lock)
    report = self.books
    if self.ledger != NULL:
        report.scratch_bytes = counter_add(&self.ledger.scratch_bytes, 0)
    pthread_mutex_unlock(&self.lock)
    return report


cdef int allocator_classes(Allocator* allocator, ClassReport* out) noexcept nogil:
    cdef Pool* self = <Pool*>allocator
    cdef StorageObj* block
    cdef int i, n = 0
    pthread_mutex_lock(&self.lock)
    for i in range(STORAGE_CLASSES):
        if self.n_blocks[i] == 0:
            continue
        out[n].n_pooled = 0
        block = self.free_blocks[i]
        while block != NULL:
            out[n].n_pooled += 1
            block = <StorageObj*>block.owner
        out[n].n_live = self.n_blocks[i] - out[n].n_pooled
        out[n].block_bytes = class_capacity(i)
        n += 1
    pthread_mutex_unlock(&self.lock)
    return n
