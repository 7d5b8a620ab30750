"""Offsets of buffers in one arena: buffers that are alive at the same time do not overlap.

The memory planner calls `place_in_order` with one order after the other. Where sizes are known only when a function
runs, its bytecode calls `pyvm.builtin.plan_arena`, which decides on the spot: some 10 ns per buffer for few buffers.
"""
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport qsort
from libc.string cimport memmove

import numpy as np

from vmcore.isa cimport Words
from vmcore.memory cimport MEMORY_SCRATCH, memory_alloc, memory_free
from vmcore.objects cimport ShapeObj, shape_new, value_kind_name, value_str
from vmcore.status cimport fail
from vmcore.value cimport (
    ERR_ALLOC, ERR_INDEX, ERR_SHAPE, ERR_TYPE, ERR_VALUE, VT_BOOL, VT_INT, VT_SHAPE, DLTensor, Value, dltensor_data,
    dltensor_is_compact, fail_format, object_release, value_dltensor, value_ptr, value_set_object, value_type,
)


cdef extern from *:
    """
    #define ARENA_ALIGNMENT 64
    #define ARENA_MAX_BUFFERS 16384      /* bounds the time that one call can take: some 0.3 s in the worst case */
    #define ARENA_MAX_SORTED 256         /* up to here, other orders are worth their n * n comparisons each */
    #define ARENA_MAX_PROMOTIONS 12
    #define ARENA_MAX_BYTES ((int64_t)1 << 62)
    """
    const int64_t ARENA_ALIGNMENT
    const int64_t ARENA_MAX_BUFFERS
    const int64_t ARENA_MAX_SORTED
    const int64_t ARENA_MAX_PROMOTIONS
    const int64_t ARENA_MAX_BYTES

MAX_BUFFERS = ARENA_MAX_BUFFERS


cdef struct Buffer:
    int64_t begin  # the first and the last moment at which it is needed
    int64_t end
    int64_t size
    int64_t offset
    int64_t index
    double rank  # what an order goes by


cdef int64_t place(Buffer** order, int64_t n, bint in_time_order, Buffer** placed, int64_t* peak) noexcept nogil:
    """Gives each buffer the smallest gap that fits between those placed before it; returns the bytes of all, or -1.

    `placed` has room for n pointers. With `in_time_order`, begins do not decrease in `order`, what has ended is not
    looked at again, and `peak` becomes the most bytes that are needed at one moment.
    """
    cdef int64_t n_placed = 0, total = 0, live = 0, k, j, kept, reach, gap, best_gap, best
    cdef Buffer* b
    cdef Buffer* other
    for k in range(n):
        b = order[k]
        reach = 0
        best = -1
        best_gap = 0
        kept = 0
        for j in range(n_placed):
            other = placed[j]
            if in_time_order:
                if other.end < b.begin:
                    live -= other.size
                    continue
                placed[kept] = other
                kept += 1
            elif other.begin > b.end or other.end < b.begin:
                continue
            gap = other.offset - reach
            if gap >= b.size and (best < 0 or gap < best_gap):
                best, best_gap = reach, gap
            if other.offset + other.size > reach:
                reach = other.offset + other.size
        if in_time_order:
            n_placed = kept
        # A gap between two buffers before the open end, which would make the arena larger or keep it open.
        b.offset = best if best >= 0 else reach
        if b.offset > ARENA_MAX_BYTES - b.size:
            return -1
        if b.offset + b.size > total:
            total = b.offset + b.size
        live += b.size
        if in_time_order and live > peak[0]:
            peak[0] = live
        j = n_placed
        while j > 0 and placed[j - 1].offset > b.offset:
            j -= 1
        memmove(&placed[j + 1], &placed[j], (n_placed - j) * sizeof(Buffer*))
        placed[j] = b
        n_placed += 1
    return total


cdef int higher_rank_first(const void* a, const void* b) noexcept nogil:
    cdef const Buffer* x = (<const Buffer**>a)[0]
    cdef const Buffer* y = (<const Buffer**>b)[0]
    if x.rank != y.rank:
        return -1 if x.rank > y.rank else 1
    if x.size != y.size:
        return -1 if x.size > y.size else 1
    return -1 if x.index < y.index else 1


cdef int64_t place_by_rank(Buffer* buffers, int64_t n, Buffer** order, int by) noexcept nogil:
    """`place` in order of size (by = 0), of size times lifetime (1), of lifetime (2)."""
    cdef int64_t i, peak = 0
    cdef double lasting
    for i in range(n):
        lasting = <double>buffers[i].end - <double>buffers[i].begin + 1
        if by < 2:
            buffers[i].rank = <double>buffers[i].size * (lasting if by == 1 else 1.0)
        else:
            buffers[i].rank = lasting
        order[i] = &buffers[i]
    qsort(order, n, sizeof(Buffer*), higher_rank_first)
    return place(order, n, False, order + n, &peak)


cdef int64_t plan(Buffer* buffers, int64_t n, int64_t* offsets) noexcept nogil:
    """Writes `offsets` of buffers whose begins do not decrease; returns the bytes of all, -1 or -2 (no memory).

    In order of time first. Where that takes more than is ever needed at once, and buffers are few, the best of three
    orders beside it; then buffers that reach to the top are placed first, some times.
    """
    cdef int64_t i, best, found, reach, highest, peak = 0, unused = 0
    cdef int by
    cdef Buffer* top
    cdef Buffer** order = <Buffer**>memory_alloc((2 * n + 1) * sizeof(Buffer*), MEMORY_SCRATCH)
    if order == NULL:
        return -2
    for i in range(n):
        order[i] = &buffers[i]
    best = place(order, n, True, order + n, &peak)
    for i in range(n):
        offsets[i] = buffers[i].offset
    if 0 <= best and n <= ARENA_MAX_SORTED:
        for by in range(3):
            if best == peak:
                break
            found = place_by_rank(buffers, n, order, by)
            if 0 <= found < best:
                best = found
                for i in range(n):
                    offsets[i] = buffers[i].offset
        # `order` holds the buffers as they were placed last, by lifetime.
        for _ in range(ARENA_MAX_PROMOTIONS):
            if best == peak:
                break
            reach = highest = 0
            for i in range(n):
                if order[i].offset + order[i].size > reach:
                    reach, highest = order[i].offset + order[i].size, i
            top = order[highest]
            memmove(order + 1, order, highest * sizeof(Buffer*))
            order[0] = top
            found = place(order, n, False, order + n, &unused)
            if found < 0:
                break
            if found < best:
                best = found
                for i in range(n):
                    offsets[i] = buffers[i].offset
    memory_free(order)
    return best


cdef int b_plan_arena(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(table, size...) -> shape(bytes of the arena, offset of each buffer).

    The table holds three numbers per buffer: begin, end, which of the sizes is its. Begins do not decrease. A size that
    is negative counts as zero: it belongs to a tensor whose own allocation will be refused.
    """
    cdef ShapeObj* table
    cdef ShapeObj* result
    cdef Buffer* buffers
    cdef int64_t i, n, which, size, total
    if n_args < 1:
        return fail_format(fail, ERR_TYPE, "plan_arena: expected at least 1 argument, got %d", n_args)
    if value_type(&args[0]) != VT_SHAPE:
        return fail_format(
            fail, ERR_TYPE, "plan_arena: argument #0: expected Shape, got %s", value_kind_name(&args[0])
        )
    for i in range(1, n_args):
        if value_type(&args[i]) != VT_INT and value_type(&args[i]) != VT_BOOL:
            return fail_format(
                fail, ERR_TYPE, "plan_arena: argument #%lld: expected int, got %s", <long long>i,
                value_kind_name(&args[i])
            )
    table = <ShapeObj*>value_ptr(&args[0])
    n = <int64_t>(table.size // 3)
    if table.size % 3 or n > ARENA_MAX_BUFFERS:
        return fail_format(
            fail, ERR_VALUE, "plan_arena: a table of %llu numbers, expected 3 for each of at most %lld buffers",
            <unsigned long long>table.size, <long long>ARENA_MAX_BUFFERS
        )
    result = shape_new(NULL, n + 1)
    buffers = <Buffer*>memory_alloc((n + 1) * sizeof(Buffer), MEMORY_SCRATCH)
    if result == NULL or buffers == NULL:
        if result != NULL:
            object_release(result)
        memory_free(buffers)
        return fail_format(fail, ERR_ALLOC, "plan_arena: no memory for %lld buffers", <long long>n)
    for i in range(n):
        which = table.data[3 * i + 2]
        if not 0 <= which < n_args - 1:
            object_release(result)
            memory_free(buffers)
            return fail_format(
                fail, ERR_INDEX, "plan_arena: buffer %lld has size %lld of %d", <long long>i, <long long>which,
                n_args - 1
            )
        size = args[1 + which].bits
        if size < 0:
            size = 0
        if size > ARENA_MAX_BYTES:
            total = -1
            break
        buffers[i].begin = table.data[3 * i]
        buffers[i].end = table.data[3 * i + 1]
        buffers[i].size = (size + ARENA_ALIGNMENT - 1) // ARENA_ALIGNMENT * ARENA_ALIGNMENT
        buffers[i].index = i
        if i and buffers[i].begin < buffers[i - 1].begin:
            object_release(result)
            memory_free(buffers)
            return fail_format(fail, ERR_VALUE, "plan_arena: buffer %lld begins before the one before it", <long long>i)
    else:
        total = plan(buffers, n, <int64_t*>&result.data[1])
    memory_free(buffers)
    if total < 0:
        object_release(result)
        if total == -2:
            return fail_format(fail, ERR_ALLOC, "plan_arena: no memory for %lld buffers", <long long>n)
        return fail(ERR_ALLOC, "plan_arena: the arena does not fit in 62 bits")
    (<int64_t*>result.data)[0] = total
    value_set_object(ret, result)
    return 0


cdef int b_check_upper_bound(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(heap, slot, bound, name of the symbol, context): refuses a symbol whose value is above its declared bound."""
    cdef const DLTensor* heap
    cdef const char* name
    cdef const char* context
    cdef int64_t value
    if n_args != 5:
        return fail_format(fail, ERR_TYPE, "check_upper_bound: expected 5 arguments, got %d", n_args)
    heap = value_dltensor(&args[0])
    name = value_str(&args[3], NULL)
    context = value_str(&args[4], NULL)
    if (
        heap == NULL or heap.ndim != 1 or heap.dtype.code != 0 or heap.dtype.bits != 64 or heap.dtype.lanes != 1
        or not dltensor_is_compact(heap) or value_type(&args[1]) != VT_INT or value_type(&args[2]) != VT_INT
        or name == NULL or context == NULL
    ):
        return fail_format(fail, ERR_TYPE, "check_upper_bound: expected a shape heap, two integers and two strings")
    if not 0 <= args[1].bits < heap.shape[0]:
        return fail_format(
            fail, ERR_INDEX, "check_upper_bound: heap index %lld is outside a shape heap of %lld",
            <long long>args[1].bits, <long long>heap.shape[0]
        )
    value = (<const int64_t*>dltensor_data(heap))[args[1].bits]
    if value > args[2].bits:
        return fail_format(
            fail, ERR_SHAPE, "%.300s%.60s is %lld, above its declared upper bound of %lld", context, name,
            <long long>value, <long long>args[2].bits
        )
    return 0


# ---- for the planner -------------------------------------------------------------------------------------------------

def place_in_order(order, begins, ends, sizes):
    """Places buffers one after the other, each in the smallest gap that fits.

    Parameters
    ----------
    order, begins, ends, sizes : int64 arrays of one length
        `order` is a permutation; a buffer is needed from `begins` to `ends` inclusive; sizes in bytes are not changed.

    Returns
    -------
    (offsets, total)
        An int64 array, and the bytes of all.
    """
    cdef Words orders = Words(order), first = Words(begins), last = Words(ends), size = Words(sizes)
    cdef int64_t i, n = orders.n, total, peak = 0
    cdef Buffer* buffers = <Buffer*>memory_alloc((n + 1) * sizeof(Buffer), MEMORY_SCRATCH)
    cdef Buffer** pointers = <Buffer**>memory_alloc((2 * n + 1) * sizeof(Buffer*), MEMORY_SCRATCH)
    result = np.empty(n, np.int64)
    cdef Words placed = Words(result)
    cdef int64_t* offsets = <int64_t*>placed.data
    try:
        if buffers == NULL or pointers == NULL:
            raise MemoryError
        if not n == first.n == last.n == size.n:
            raise ValueError("place_in_order: arrays of different lengths")
        for i in range(n):
            if not 0 <= orders.data[i] < n or not 0 <= size.data[i] <= ARENA_MAX_BYTES:
                raise ValueError(f"place_in_order: item {i} is out of range")
            buffers[i] = Buffer(first.data[i], last.data[i], size.data[i], 0, i, 0)
            pointers[i] = &buffers[orders.data[i]]
        with nogil:
            total = place(pointers, n, False, pointers + n, &peak)
        if total < 0:
            raise OverflowError("place_in_order: the arena does not fit in 62 bits")
        for i in range(n):
            offsets[i] = buffers[i].offset
    finally:
        memory_free(buffers)
        memory_free(pointers)
    return result, total
