"""Allocators of storages.

A storage is one block: 64 bytes of header, then the data, both 64-byte aligned. A pooled allocator keeps freed blocks
in size classes (four per power of two, so at most 25 % of a block is unused) and never keeps more than what brings the
sum of live and kept bytes to 1.5 times the peak of the bytes asked for: before a new block is made, kept ones that
would exceed that are given back. Large blocks are mapped one by one, so that what is given back leaves no holes in the
heap.

OWNERSHIP: the creator of an allocator holds one reference, and so does every storage: tensors may outlive the virtual
machine that made them.
"""
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from vmcore.value cimport OBJ_DELETE_WEAK, OBJ_OWN, VT_STORAGE, StorageObj, object_init

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from "<stdlib.h>" nogil:
    void* calloc(size_t n, size_t size)

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
    #include <stdlib.h>
    #include <sys/mman.h>
    #define MAPPED_BYTES ((int64_t)1 << 17) /* blocks of at least this capacity are mapped */
    static void *block_new(int64_t capacity) {
      void *memory = NULL;
      size_t nbytes = (size_t)capacity + STORAGE_HEADER;
      if (capacity < MAPPED_BYTES) return posix_memalign(&memory, 64, nbytes) ? NULL : memory;
      memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      return memory == MAP_FAILED ? NULL : memory;
    }
    static void block_free(void *block, int64_t capacity) {
      if (capacity < MAPPED_BYTES) free(block);
      else munmap(block, (size_t)capacity + STORAGE_HEADER);
    }
    static int64_t counter_add(int64_t *counter, int64_t n) { return __atomic_add_fetch(counter, n, __ATOMIC_ACQ_REL); }
    """
    enum:
        STORAGE_HEADER, STORAGE_CLASSES
    int storage_class(int64_t nbytes, int64_t* capacity) nogil
    void* block_new(int64_t capacity) nogil
    void block_free(void* block, int64_t capacity) nogil
    int64_t counter_add(int64_t* counter, int64_t n) nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(
        void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil
    )

cdef extern from *:
    """
    #include <unistd.h>
    #include <pthread.h>
    static pthread_mutex_t pools_lock = PTHREAD_MUTEX_INITIALIZER;
    /* Bytes of this machine's memory: more is refused here, where it is an error with a name, and not found out by the
     * system when the pages are written. */
    static int64_t physical_bytes(void) {
      int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
      return pages > 0 && page > 0 ? pages * page : INT64_MAX;
    }
    """
    pthread_mutex_t pools_lock  # guards the list of pools; taken before the lock of any pool
    int64_t physical_bytes() nogil

cdef struct Pool:  # what an Allocator is
    Pool* previous  # list of all pools
    Pool* next
    pthread_mutex_t lock          # guards everything below but `references`
    int64_t references
    bint pooled
    AllocatorReport books
    int64_t asked_bytes, peak_asked_bytes  # as books' live and peak bytes, without what rounding up to a class adds
    StorageObj* free_blocks[STORAGE_CLASSES]  # chained through `owner`


cdef Pool* _pools = NULL
cdef int64_t _physical_bytes = physical_bytes()
pthread_atfork(lock_pools, unlock_pools, unlock_pools)


cdef Allocator* allocator_new(bint pooled) noexcept nogil:
    """One reference to a new allocator; NULL when memory is exhausted."""
    global _pools
    cdef Pool* self = <Pool*>calloc(1, sizeof(Pool))
    if self == NULL:
        return NULL
    pthread_mutex_init(&self.lock, NULL)
    self.references = 1
    self.pooled = pooled
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
        free(self)


cdef void count_live(Pool* self, int64_t nbytes, int64_t capacity) noexcept nogil:
    self.books.live_bytes += capacity
    if self.books.live_bytes > self.books.peak_bytes:
        self.books.peak_bytes = self.books.live_bytes
    self.asked_bytes += nbytes
    if self.asked_bytes > self.peak_asked_bytes:
        self.peak_asked_bytes = self.asked_bytes


cdef StorageObj* evict(Pool* self, int64_t nbytes, int64_t capacity) noexcept nogil:
    """Takes kept blocks out, the largest first, until a new block of `capacity` keeps the bound; a chain to free."""
    cdef int64_t peak = self.asked_bytes + nbytes
    cdef int64_t excess
    cdef int64_t size
    cdef int i = STORAGE_CLASSES - 1
    cdef StorageObj* chain = NULL
    cdef StorageObj* block
    if peak < self.peak_asked_bytes:
        peak = self.peak_asked_bytes
    excess = self.books.live_bytes + capacity + self.books.pooled_bytes - (peak + peak // 2)
    if self.books.pooled_bytes == 0:
        return NULL
    while excess > 0 and i >= 0:
        block = self.free_blocks[i]
        if block == NULL:
            i -= 1
            continue
        self.free_blocks[i] = <StorageObj*>block.owner
        storage_class(block.nbytes if block.nbytes > 0 else 1, &size)
        self.books.pooled_bytes -= size
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


cdef StorageObj* storage_alloc(Allocator* allocator, int64_t nbytes) noexcept nogil:
    """A storage of `nbytes` >= 0 bytes, content undefined; NULL when memory is exhausted."""
    cdef Pool* self = <Pool*>allocator
    cdef int64_t capacity
    cdef int size_class
    cdef StorageObj* block = NULL
    cdef StorageObj* chain = NULL
    if nbytes < 0 or nbytes > (<int64_t>1 << 47):  # beyond any address space
        return NULL
    size_class = storage_class(nbytes if nbytes > 0 else 1, &capacity)
    pthread_mutex_lock(&self.lock)
    if capacity > _physical_bytes - self.books.live_bytes:
        pthread_mutex_unlock(&self.lock)
        return NULL
    self.books.n_allocations += 1
    self.books.total_bytes += nbytes
    if self.pooled:
        block = self.free_blocks[size_class]
        if block != NULL:
            self.free_blocks[size_class] = <StorageObj*>block.owner
            self.books.pooled_bytes -= capacity
            self.books.n_pool_hits += 1
            count_live(self, nbytes, capacity)
        else:
            chain = evict(self, nbytes, capacity)
    pthread_mutex_unlock(&self.lock)
    if block == NULL:
        free_chain(chain)
        block = <StorageObj*>block_new(capacity)
        if block == NULL:
            allocator_trim(self)
            block = <StorageObj*>block_new(capacity)
            if block == NULL:
                return NULL
        pthread_mutex_lock(&self.lock)
        count_live(self, nbytes, capacity)
        pthread_mutex_unlock(&self.lock)
    counter_add(&self.references, 1)
    object_init(&block.head, VT_STORAGE, storage_delete)
    block.head.flags = OBJ_OWN
    block.data = <char*>block + STORAGE_HEADER
    block.nbytes = nbytes
    block.owner = self
    block.home = 0
    block.idle_refs = 0
    return block


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
        block.owner = self.free_blocks[size_class]
        self.free_blocks[size_class] = block
        self.books.pooled_bytes += capacity
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
    pthread_mutex_unlock(&self.lock)
    return report
