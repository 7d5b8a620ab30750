"""Kernels that read or write at computed places: gather, scatter, one_hot, topk, nonzero.

Indices are int32 or int64, negative ones count from the end, others out of range are refused before anything depends
on them. Outputs share no byte with inputs.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from vmcore.kernels.args cimport (
    ARGS_MAX_NDIM, ARG_FAIL, ArgTensor, arg_axis, arg_count, arg_fail_one, arg_fail_pair, arg_int, arg_int_in,
    arg_output, arg_tensor, args_bind, check_disjoint, check_dtype, check_out_shape, check_same_dtype,
    check_same_shape,
)
from vmcore.kernels.workspace cimport SLOT_OTHER, workspace
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_INT, ERR_ALLOC, ERR_DTYPE, ERR_INDEX, ERR_SHAPE, ERR_VALUE, KernelEntry, Value, VmDataType, value_set_int,
)

cdef extern from "vmcore/kernels/indexing.h" nogil:
    enum:
        K_NONE, K_I64
    ctypedef struct Ranked:
        uint64_t key
        int64_t at
    int kernel_dtype(VmDataType t)
    int vm_isa_detect()
    void cast_init(int isa)
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)
    void combine_run(int dtype, int reduction, char* dst, const char* src, int64_t n, int64_t item)
    void top_ranked(Ranked* heap, int64_t k, int dtype, const char* x, int64_t n, int64_t step, uint64_t flip)
    int64_t find_nonzero(int dtype, const char* x, int64_t n, int64_t item, int64_t* at, int64_t room)
    void copy_run(char* dst, const char* src, int64_t nbytes)


cdef int check_indices(const char* op, const ArgTensor* indices, const ArgTensor* out) noexcept nogil:
    if indices.dtype.code != DL_INT or (indices.dtype.bits != 64 and indices.dtype.bits != 32):
        return arg_fail_one(op, ERR_DTYPE, "indices must be int32 or int64", "indices", indices)
    return check_disjoint(op, indices, out)


cdef inline int64_t index_at(const ArgTensor* indices, int64_t i) noexcept nogil:
    if indices.itemsize == 8:
        return (<const int64_t*>indices.data)[i]
    return (<const int32_t*>indices.data)[i]


cdef inline int64_t wrapped(int64_t index, int64_t size) noexcept nogil:
    """The index in [0, size), or -1 when it is out of range."""
    if index < 0:
        index += size
    return index if 0 <= index < size else -1


cdef int out_of_range(const char* op, int64_t index, int64_t axis, int64_t size) noexcept nogil:
    return ARG_FAIL(ERR_INDEX, "%s: index %lld is out of range for axis %lld of size %lld", op, <long long>index,
                    <long long>axis, <long long>size)


cdef inline int64_t product(const int64_t* shape, int64_t begin, int64_t end) noexcept nogil:
    cdef int64_t n = 1, d
    for d in range(begin, end):
        n *= shape[d]
    return n


cdef void element_strides(const ArgTensor* x, int64_t* strides) noexcept nogil:
    cdef int64_t step = 1
    cdef int32_t d
    for d in range(x.ndim - 1, -1, -1):
        strides[d] = step
        step *= x.shape[d]


cdef int gather(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """gather(x, indices, axis, out): numpy.take; out.shape = x.shape[:axis] + indices.shape + x.shape[axis + 1:]."""
    cdef const char* op = "gather"
    cdef ArgTensor x, indices, out
    cdef int64_t[2 * ARGS_MAX_NDIM] shape
    cdef int64_t axis, outer, run, o, i, n, index, size
    cdef int32_t d, nd = 0
    cdef char* dst
    cdef const char* src
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &indices)
            or arg_axis(op, args, 2, x.ndim, &axis) or arg_output(op, args, 3, &out) or check_same_dtype(op, &x, &out)
            or check_disjoint(op, &x, &out) or check_indices(op, &indices, &out)):
        return -1
    for d in range(axis):
        shape[nd] = x.shape[d]
        nd += 1
    for d in range(indices.ndim):
        shape[nd] = indices.shape[d]
        nd += 1
    for d in range(axis + 1, x.ndim):
        shape[nd] = x.shape[d]
        nd += 1
    if check_out_shape(op, &out, nd, shape):
        return -1
    outer = product(x.shape, 0, axis)
    run = product(x.shape, axis + 1, x.ndim) * x.itemsize
    size = x.shape[axis]
    n = indices.numel
    dst = out.data
    if out.numel == 0:
        outer = 0
    for o in range(outer):
        src = x.data + o * size * run
        for i in range(n):
            index = wrapped(index_at(&indices, i), size)
            if index < 0:
                return out_of_range(op, index_at(&indices, i), axis, size)
            copy_run(dst, src + index * run, run)
            dst += run
    return 0


cdef int elements_walk(const char* op, ArgTensor* full, ArgTensor* indices, ArgTensor* picked, int64_t axis,
                       bint scatter, int reduction, int dtype) noexcept nogil:
    """For every position p of indices: full[p with p[axis] = indices[p]] to or from picked[p]."""
    cdef int64_t[ARGS_MAX_NDIM] strides, position
    cdef int64_t i, base = 0, index, item = full.itemsize
    cdef int32_t d
    element_strides(full, strides)
    for d in range(indices.ndim):
        position[d] = 0
        if d != axis and indices.shape[d] > full.shape[d]:
            return arg_fail_pair(op, ERR_SHAPE, "indices reach beyond the tensor", "tensor", full, "indices", indices)
    for i in range(indices.numel):
        index = wrapped(index_at(indices, i), full.shape[axis])
        if index < 0:
            return out_of_range(op, index_at(indices, i), axis, full.shape[axis])
        index = (base + index * strides[axis]) * item
        if scatter:
            combine_run(dtype, reduction, full.data + index, picked.data + i * item, 1, item)
        else:
            copy_run(picked.data + i * item, full.data + index, item)
        for d in range(indices.ndim - 1, -1, -1):
            position[d] += 1
            if d != axis:
                base += strides[d]
            if position[d] < indices.shape[d]:
                break
            if d != axis:
                base -= strides[d] * position[d]
            position[d] = 0
    return 0


cdef int gather_elements(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """gather_elements(x, indices, axis, out): numpy.take_along_axis; indices may be smaller off the axis."""
    cdef const char* op = "gather_elements"
    cdef ArgTensor x, indices, out
    cdef int64_t axis
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &indices)
            or arg_axis(op, args, 2, x.ndim, &axis) or arg_output(op, args, 3, &out) or check_same_dtype(op, &x, &out)
            or check_disjoint(op, &x, &out) or check_indices(op, &indices, &out)
            or check_same_shape(op, &indices, &out)):
        return -1
    if indices.ndim != x.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "indices", &indices)
    return elements_walk(op, &x, &indices, &out, axis, False, 0, 0)


cdef int prepare_scatter(const char* op, const ArgTensor* x, const ArgTensor* indices, const ArgTensor* updates,
                         const ArgTensor* out, int64_t reduction, int* dtype) noexcept nogil:
    """The checks that both scatters share; then out = x."""
    if (check_same_dtype(op, x, out) or check_same_dtype(op, x, updates) or check_same_shape(op, x, out)
            or check_disjoint(op, x, out) or check_disjoint(op, updates, out) or check_indices(op, indices, out)):
        return -1
    dtype[0] = kernel_dtype(x.dtype)
    if dtype[0] == K_NONE and reduction != 0:
        return arg_fail_one(op, ERR_DTYPE, "no reduction on this element type", "input", x)
    if x.numel:
        memcpy(out.data, x.data, x.nbytes)
    return 0


cdef int scatter_elements(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """scatter_elements(x, indices, updates, axis, reduction, out): out = x with updates combined in along the axis.

    reduction: 0 none (the last write stays), 1 add, 2 mul, 3 max, 4 min.
    """
    cdef const char* op = "scatter_elements"
    cdef ArgTensor x, indices, updates, out
    cdef int64_t axis, reduction
    cdef int dtype
    if (arg_count(op, n_args, 6) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &indices)
            or arg_tensor(op, args, 2, &updates) or arg_axis(op, args, 3, x.ndim, &axis)
            or arg_int_in(op, args, 4, 0, 4, &reduction) or arg_output(op, args, 5, &out)
            or check_same_shape(op, &indices, &updates)):
        return -1
    if indices.ndim != x.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "indices", &indices)
    if prepare_scatter(op, &x, &indices, &updates, &out, reduction, &dtype):
        return -1
    return elements_walk(op, &out, &indices, &updates, axis, True, <int>reduction, dtype)


cdef int nd_walk(const char* op, ArgTensor* full, ArgTensor* indices, ArgTensor* picked, int64_t batch_dims,
                 bint scatter, int reduction, int dtype) noexcept nogil:
    """For every index tuple: the run of full behind it to or from the next run of picked; shapes are checked here."""
    cdef int64_t[2 * ARGS_MAX_NDIM] shape
    cdef int64_t[ARGS_MAX_NDIM] strides
    cdef int64_t depth, n_tuples, run, i, j, index, offset, per_batch, batch_step, item = full.itemsize
    cdef int32_t d, nd = 0
    if indices.ndim < 1 or batch_dims > indices.ndim - 1 or batch_dims > full.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "too few dimensions", "tensor", full, "indices", indices)
    depth = indices.shape[indices.ndim - 1]
    if depth > full.ndim - batch_dims:
        return arg_fail_pair(op, ERR_SHAPE, "index tuples are longer than the tensor's rank", "tensor", full, "indices",
                             indices)
    for d in range(indices.ndim - 1):
        if d < batch_dims and indices.shape[d] != full.shape[d]:
            return arg_fail_pair(op, ERR_SHAPE, "batch dimensions differ", "tensor", full, "indices", indices)
        shape[nd] = indices.shape[d]
        nd += 1
    for d in range(batch_dims + depth, full.ndim):
        shape[nd] = full.shape[d]
        nd += 1
    if check_out_shape(op, picked, nd, shape):
        return -1
    if picked.numel == 0:
        return 0
    element_strides(full, strides)
    run = product(full.shape, batch_dims + depth, full.ndim)
    n_tuples = product(indices.shape, 0, indices.ndim - 1)
    per_batch = product(indices.shape, batch_dims, indices.ndim - 1)
    batch_step = product(full.shape, batch_dims, full.ndim)
    for i in range(n_tuples):
        offset = i // per_batch * batch_step
        for j in range(depth):
            index = wrapped(index_at(indices, i * depth + j), full.shape[batch_dims + j])
            if index < 0:
                return out_of_range(op, index_at(indices, i * depth + j), batch_dims + j, full.shape[batch_dims + j])
            offset += index * strides[batch_dims + j]
        if scatter:
            combine_run(dtype, reduction, full.data + offset * item, picked.data + i * run * item, run, item)
        else:
            copy_run(picked.data + i * run * item, full.data + offset * item, run * item)
    return 0


cdef int gather_nd(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """gather_nd(x, indices, batch_dims, out): the last dimension of indices holds index tuples into x."""
    cdef const char* op = "gather_nd"
    cdef ArgTensor x, indices, out
    cdef int64_t batch_dims
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &indices)
            or arg_int_in(op, args, 2, 0, ARGS_MAX_NDIM, &batch_dims) or arg_output(op, args, 3, &out)
            or check_same_dtype(op, &x, &out) or check_disjoint(op, &x, &out) or check_indices(op, &indices, &out)):
        return -1
    return nd_walk(op, &x, &indices, &out, batch_dims, False, 0, 0)


cdef int scatter_nd(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """scatter_nd(x, indices, updates, reduction, out): out = x with runs of updates combined in at index tuples."""
    cdef const char* op = "scatter_nd"
    cdef ArgTensor x, indices, updates, out
    cdef int64_t reduction
    cdef int dtype
    if (arg_count(op, n_args, 5) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &indices)
            or arg_tensor(op, args, 2, &updates) or arg_int_in(op, args, 3, 0, 4, &reduction)
            or arg_output(op, args, 4, &out)
            or prepare_scatter(op, &x, &indices, &updates, &out, reduction, &dtype)):
        return -1
    return nd_walk(op, &out, &indices, &updates, 0, True, <int>reduction, dtype)


cdef int one_hot(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """one_hot(indices, off, on, axis, out): on at the index along a new axis, off elsewhere.

    The depth is out.shape[axis]; indices of any number type, truncated; those outside [-depth, depth) give no on.
    """
    cdef const char* op = "one_hot"
    cdef ArgTensor indices, off, on, out
    cdef int64_t[ARGS_MAX_NDIM] shape
    cdef int64_t axis, outer, inner, depth, o, i, j, k, at, item
    cdef int32_t d
    cdef int dtype
    if (arg_count(op, n_args, 5) or arg_tensor(op, args, 0, &indices) or arg_tensor(op, args, 1, &off)
            or arg_tensor(op, args, 2, &on) or arg_output(op, args, 4, &out) or arg_axis(op, args, 3, out.ndim, &axis)
            or check_same_dtype(op, &off, &out) or check_same_dtype(op, &on, &out) or check_disjoint(op, &indices, &out)
            or check_disjoint(op, &on, &out) or check_disjoint(op, &off, &out)):
        return -1
    dtype = kernel_dtype(indices.dtype)
    if dtype == K_NONE:
        return arg_fail_one(op, ERR_DTYPE, "indices must be numbers", "indices", &indices)
    if on.numel != 1 or off.numel != 1:
        return arg_fail_pair(op, ERR_SHAPE, "on and off must have one element", "on", &on, "off", &off)
    if out.ndim != indices.ndim + 1:
        return arg_fail_pair(op, ERR_SHAPE, "the output must have one dimension more", "indices", &indices, "output",
                             &out)
    depth = out.shape[axis]
    for d in range(out.ndim):
        shape[d] = depth if d == axis else indices.shape[d - (d > axis)]
    if check_out_shape(op, &out, out.ndim, shape):
        return -1
    if out.numel == 0:
        return 0
    outer = product(out.shape, 0, axis)
    inner = product(out.shape, axis + 1, out.ndim)
    item = out.itemsize
    for i in range(out.numel):
        copy_run(out.data + i * item, off.data, item)
    for o in range(outer):
        for j in range(inner):
            i = o * inner + j
            cast_elements(indices.data + i * indices.itemsize, dtype, indices.itemsize, <char*>&k, K_I64, 8, 1)
            at = wrapped(k, depth)
            if at >= 0:
                copy_run(out.data + ((o * depth + at) * inner + j) * item, on.data, item)
    return 0


cdef int topk(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """topk(x, k, axis, largest, sorted, values, indices): the k greatest (least) elements along the axis, in order.

    Equal elements keep their order; NaN counts as greatest. The result is sorted whether asked for or not.
    """
    cdef const char* op = "topk"
    cdef ArgTensor x, values, indices
    cdef int64_t[ARGS_MAX_NDIM] shape
    cdef int64_t k, axis, largest, is_sorted, outer, inner, n, o, j, i, base, to, item
    cdef int32_t d
    cdef int dtype
    cdef Ranked* heap
    shape[0] = 0
    if (arg_count(op, n_args, 7) or arg_tensor(op, args, 0, &x) or arg_axis(op, args, 2, x.ndim, &axis)
            or arg_int_in(op, args, 1, 0, x.shape[axis], &k) or arg_int(op, args, 3, &largest)
            or arg_int(op, args, 4, &is_sorted) or arg_output(op, args, 5, &values)
            or arg_output(op, args, 6, &indices) or check_same_dtype(op, &x, &values)
            or check_dtype(op, "indices", &indices, DL_INT, 64) or check_disjoint(op, &x, &values)
            or check_disjoint(op, &x, &indices) or check_disjoint(op, &values, &indices)):
        return -1
    for d in range(x.ndim):
        shape[d] = k if d == axis else x.shape[d]
    if check_out_shape(op, &values, x.ndim, shape) or check_out_shape(op, &indices, x.ndim, shape):
        return -1
    dtype = kernel_dtype(x.dtype)
    if dtype == K_NONE:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &x)
    if values.numel == 0:
        return 0
    heap = <Ranked*>workspace(SLOT_OTHER, k * sizeof(Ranked))
    if heap == NULL:
        return ARG_FAIL(ERR_ALLOC, "topk: no memory for %lld candidates", <long long>k)
    n = x.shape[axis]
    outer = product(x.shape, 0, axis)
    inner = product(x.shape, axis + 1, x.ndim)
    item = x.itemsize
    for o in range(outer):
        for j in range(inner):
            base = o * n * inner + j
            top_ranked(heap, k, dtype, x.data + base * item, n, inner * item, 0 if largest else ~<uint64_t>0)
            for i in range(k):
                to = (o * k + i) * inner + j
                (<int64_t*>indices.data)[to] = heap[i].at
                copy_run(values.data + to * item, x.data + (base + heap[i].at * inner) * item, item)
    return 0


cdef int nonzero_count(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """nonzero_count(x) -> the number of elements that are not zero."""
    cdef ArgTensor x
    cdef int dtype
    if arg_count("nonzero_count", n_args, 1) or arg_tensor("nonzero_count", args, 0, &x):
        return -1
    dtype = kernel_dtype(x.dtype)
    if dtype == K_NONE:
        return arg_fail_one("nonzero_count", ERR_DTYPE, "no kernel for this element type", "input", &x)
    value_set_int(ret, find_nonzero(dtype, x.data, x.numel, x.itemsize, NULL, 0))
    return 0


cdef int nonzero(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """nonzero(x, out): out[d, i] = position along dimension d of the i-th element that is not zero, row-major."""
    cdef const char* op = "nonzero"
    cdef ArgTensor x, out
    cdef int64_t count, i, rest
    cdef int64_t* at
    cdef int64_t* to
    cdef int32_t d
    cdef int dtype
    if (arg_count(op, n_args, 2) or arg_tensor(op, args, 0, &x) or arg_output(op, args, 1, &out)
            or check_dtype(op, "output", &out, DL_INT, 64) or check_disjoint(op, &x, &out)):
        return -1
    dtype = kernel_dtype(x.dtype)
    if dtype == K_NONE:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &x)
    if out.ndim != 2 or out.shape[0] != x.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "the output must be (rank, count)", "input", &x, "output", &out)
    count = out.shape[1]
    if count > x.numel:
        return ARG_FAIL(ERR_VALUE, "nonzero: the output has room for %lld of %lld elements", <long long>count,
                        <long long>x.numel)
    at = <int64_t*>workspace(SLOT_OTHER, (count + 1) * sizeof(int64_t))
    if at == NULL:
        return ARG_FAIL(ERR_ALLOC, "nonzero: no memory for %lld positions", <long long>count)
    i = find_nonzero(dtype, x.data, x.numel, x.itemsize, at, count)
    if i != count:
        return ARG_FAIL(ERR_VALUE, "nonzero: %lld elements are not zero, the output has room for %lld", <long long>i,
                        <long long>count)
    to = <int64_t*>out.data
    for i in range(count):
        rest = at[i]
        for d in range(x.ndim - 1, -1, -1):
            to[d * count + i] = rest % x.shape[d]
            rest //= x.shape[d]
    return 0


cdef KernelEntry[9] _table
_table[0] = KernelEntry("kernel.gather", gather, 0.1)
_table[1] = KernelEntry("kernel.gather_elements", gather_elements, 0.3)
_table[2] = KernelEntry("kernel.gather_nd", gather_nd, 0.2)
_table[3] = KernelEntry("kernel.scatter_elements", scatter_elements, 0.3)
_table[4] = KernelEntry("kernel.scatter_nd", scatter_nd, 0.2)
_table[5] = KernelEntry("kernel.one_hot", one_hot, 0.3)
_table[6] = KernelEntry("kernel.topk", topk, 2.0)
_table[7] = KernelEntry("kernel.nonzero_count", nonzero_count, 0.2)
_table[8] = KernelEntry("kernel.nonzero", nonzero, 0.5)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = sizeof(_table) // sizeof(_table[0])
    return _table


args_bind(fail)
cast_init(vm_isa_detect())
