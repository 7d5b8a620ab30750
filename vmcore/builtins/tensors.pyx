"""Builtins that make tensors: allocation, views, copies, and stacks that grow row by row in a loop."""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from vmcore.builtins.arguments cimport (
    __builtin_mul_overflow, context_of, dtype_of, is_int, keep, no_memory, read_integer, shape_of_value, wrong_arity,
    wrong_kind,
)
from vmcore.loop cimport new_storage
from vmcore.memory cimport memory_keep
from vmcore.objects cimport VM_MAX_NDIM, tensor_new, tensor_set_shape, value_str
from vmcore.program cimport Context
from vmcore.status cimport fail
from vmcore.storage cimport Allocator, allocator_new, any_limit, storage_alloc, storage_refused
from vmcore.threads cimport trim_scratch
from vmcore.value cimport (
    ERR_ALLOC, ERR_DTYPE, ERR_INDEX, ERR_INTERNAL, ERR_SHAPE, ERR_VALUE, OBJ_READONLY, VT_NONE,
    VT_STORAGE, VT_TENSOR, DLTensor, StorageObj, TensorObj, Value, VmDataType, dltensor_data,
    dltensor_describe, dltensor_is_compact, dltensor_numel, dtype_bytes, dtype_same, fail_format, object_release,
    object_retain, value_dltensor, value_is_writable, value_ptr, value_set_object, value_type,
)


# ---- allocation ------------------------------------------------------------------------------------------------------

cdef bint dtype_is_storable(VmDataType dtype) noexcept nogil:
    """Whether elements are whole bytes, a power of two of them: what offsets and kernels count in."""
    return dtype.lanes >= 1 and dtype.bits >= 8 and dtype.bits & (dtype.bits - 1) == 0


cdef int make_tensor(
    const char* name, StorageObj* storage, int64_t offset, const int64_t* dims, uint64_t ndim, VmDataType dtype,
    Value* ret
) noexcept nogil:
    """ret := tensor over `storage` at `offset` bytes; it keeps the storage alive."""
    cdef TensorObj* t
    cdef int64_t nbytes
    if ndim > VM_MAX_NDIM:
        return fail_format(
            fail, ERR_SHAPE, "%s: %llu dimensions, at most %d", name, <unsigned long long>ndim, VM_MAX_NDIM
        )
    if not dtype_is_storable(dtype):
        return fail_format(
            fail, ERR_DTYPE, "%s: elements of %d lanes of %d bits cannot be stored", name, <int>dtype.lanes,
            <int>dtype.bits,
        )
    t = tensor_new(<int32_t>ndim)
    if t == NULL:
        return no_memory(name, sizeof(TensorObj))
    nbytes = tensor_set_shape(t, dims, dtype)
    if nbytes < 0:
        object_release(t)
        return fail(ERR_SHAPE, "alloc_tensor: a dimension is negative, or the size does not fit in 63 bits")
    if offset < 0 or offset > storage.nbytes or nbytes > storage.nbytes - offset:
        object_release(t)
        return fail_format(
            fail, ERR_INTERNAL,
            "storage allocation failure, attempted to allocate %lld at offset %lld in region that is "
            "%lld", <long long>nbytes, <long long>offset, <long long>storage.nbytes,
        )
    if offset % dtype_bytes(dtype):
        object_release(t)
        return fail_format(
            fail, ERR_VALUE, "%s: offset %lld is not a multiple of the element size %lld", name, <long long>offset,
            <long long>dtype_bytes(dtype),
        )
    t.dl.data = <char*>storage.data + offset
    object_retain(storage)
    t.storage = &storage.head
    value_set_object(ret, t)
    return 0


cdef int new_tensor(
    const char* name, Context* cx, const int64_t* dims, uint64_t ndim, VmDataType dtype, Value* ret
) noexcept nogil:
    """ret := fresh tensor, content undefined, from the allocator of the running virtual machine."""
    cdef int64_t nbytes = dtype_bytes(dtype)
    cdef uint64_t i
    cdef StorageObj* storage
    cdef int status
    for i in range(ndim):
        if dims[i] < 0:
            return fail_format(
                fail, ERR_SHAPE, "%s: dimension %llu is negative: %lld", name, <unsigned long long>i, <long long>dims[i]
            )
        if __builtin_mul_overflow(nbytes, dims[i], &nbytes):
            return fail_format(fail, ERR_ALLOC, "%s: the size of the tensor does not fit in 63 bits", name)
    storage = new_storage(cx, name, nbytes)
    if storage == NULL:
        return -1
    status = make_tensor(name, storage, 0, dims, ndim, dtype, ret)
    object_release(storage)
    return status


cdef int b_alloc_storage(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef Context* cx
    cdef const int64_t* dims
    cdef int64_t buffer[64]
    cdef StorageObj* storage
    cdef VmDataType dtype
    cdef const char* scope
    cdef uint64_t size = 0
    cdef int64_t nbytes, i, ndim
    if n_args != 4 and n_args != 5:
        return wrong_arity("alloc_storage", "4 or 5", n_args)
    cx = context_of("alloc_storage", &args[0])
    if cx == NULL:
        return -1
    dims = shape_of_value("alloc_storage", 1, "Shape", &args[1], buffer, &ndim)
    if dims == NULL:
        return -1
    if not is_int(&args[2]):
        return wrong_kind("alloc_storage", 2, "int (device index)", &args[2])
    if dtype_of("alloc_storage", 3, &args[3], &dtype) != 0:
        return -1
    if n_args == 5:
        scope = value_str(&args[4], &size)
        if scope == NULL:
            return wrong_kind("alloc_storage", 4, "string (memory scope)", &args[4])
        if size != 0 and (size != 6 or memcmp(scope, "global", 6) != 0):
            return fail_format(
                fail, ERR_INTERNAL, "alloc_storage: memory scope \"%.*s\" is not available, only \"global\"",
                <int>size if size < 64 else 64, scope,
            )
    if args[2].bits != 0:
        return fail_format(
            fail, ERR_INTERNAL, "alloc_storage: device index %lld, this virtual machine has 1 device",
            <long long>args[2].bits
        )
    nbytes = dtype_bytes(dtype)
    for i in range(ndim):
        if dims[i] < 0:
            return fail_format(
                fail, ERR_SHAPE, "alloc_storage: dimension %lld is negative: %lld", <long long>i,
                <long long>dims[i]
            )
        if __builtin_mul_overflow(nbytes, dims[i], &nbytes):
            return fail(ERR_ALLOC, "alloc_storage: the size does not fit in 63 bits")
    storage = new_storage(cx, "alloc_storage", nbytes)
    if storage == NULL:
        return -1
    value_set_object(ret, storage)
    return 0


cdef int b_alloc_tensor(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const int64_t* dims
    cdef int64_t buffer[64]
    cdef int64_t ndim
    cdef VmDataType dtype
    if n_args != 4 and n_args != 5:
        return wrong_arity("alloc_tensor", "4 or 5", n_args)
    if value_type(&args[0]) != VT_STORAGE:
        return wrong_kind("alloc_tensor", 0, "Storage", &args[0])
    if not is_int(&args[1]):
        return wrong_kind("alloc_tensor", 1, "int (byte offset)", &args[1])
    dims = shape_of_value("alloc_tensor", 2, "Shape", &args[2], buffer, &ndim)
    if dims == NULL or dtype_of("alloc_tensor", 3, &args[3], &dtype) != 0:
        return -1
    return make_tensor(
        "alloc_tensor", <StorageObj*>value_ptr(&args[0]), args[1].bits, dims, <uint64_t>ndim, dtype, ret
    )


# ---- views and copies ------------------------------------------------------------------------------------------------

cdef int b_reshape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """A view with another shape; it may have fewer elements, as in TVM."""
    cdef const DLTensor* t
    cdef TensorObj* view
    cdef TensorObj* source
    cdef const int64_t* dims
    cdef int64_t buffer[64]
    cdef int64_t n, nbytes
    cdef char text[160]
    if n_args != 2:
        return wrong_arity("reshape", "2", n_args)
    if value_type(&args[0]) != VT_TENSOR:
        return wrong_kind("reshape", 0, "Tensor", &args[0])
    t = value_dltensor(&args[0])
    dims = shape_of_value("reshape", 1, "Shape", &args[1], buffer, &n)
    if dims == NULL:
        return -1
    if n > VM_MAX_NDIM:
        return fail_format(fail, ERR_SHAPE, "reshape: %lld dimensions, at most %d", <long long>n, VM_MAX_NDIM)
    if not dltensor_is_compact(t):
        return fail_format(fail, ERR_VALUE, "reshape: %s is not contiguous", dltensor_describe(text, sizeof(text), t))
    view = tensor_new(<int32_t>n)
    if view == NULL:
        return no_memory("reshape", sizeof(TensorObj))
    nbytes = tensor_set_shape(view, dims, t.dtype)
    if nbytes < 0 or nbytes > dltensor_numel(t) * dtype_bytes(t.dtype):
        dltensor_describe(text, sizeof(text), t)
        object_release(view)
        if nbytes < 0:
            return fail_format(
                fail, ERR_SHAPE, "reshape: %s to a shape with a negative dimension or without a size", text
            )
        return fail_format(
            fail, ERR_SHAPE, "reshape: %s holds fewer bytes than the %lld of the new shape", text, <long long>nbytes
        )
    view.dl.data = dltensor_data(t)
    view.dl.device_type = t.device_type
    view.dl.device_id = t.device_id
    if t.device_type != 1:
        view.layout = 0  # kernels that go by it assume the CPU
    source = <TensorObj*>value_ptr(&args[0])
    view.head.flags = view.head.flags | (source.head.flags & OBJ_READONLY)
    # The view keeps the bytes alive: through their storage, or through the tensor it was made from.
    view.storage = source.storage if source.storage != NULL else &source.head
    object_retain(view.storage)
    value_set_object(ret, view)
    return 0


cdef Allocator* _shared_allocator = NULL


cdef int own_tensor(
    void* allocator, const char* name, const int64_t* dims, uint64_t ndim, VmDataType dtype, TensorObj** out
) noexcept nogil:
    """A fresh tensor for a builtin that is not given the virtual machine. `allocator` is the builtin's self: decoding
    makes it that of the program (`builtin_allocates`); it is NULL in calls from elsewhere, which share one."""
    cdef Allocator* owner = <Allocator*>allocator if allocator != NULL else _shared_allocator
    cdef StorageObj* storage
    cdef int64_t nbytes = dtype_bytes(dtype)
    cdef uint64_t i
    cdef Value made
    cdef int status
    for i in range(ndim):
        if dims[i] < 0 or __builtin_mul_overflow(nbytes, dims[i], &nbytes):
            return fail_format(
                fail, ERR_SHAPE, "%s: a dimension is negative, or the size does not fit in 63 bits", name
            )
    storage = storage_alloc(owner, nbytes)
    if storage == NULL and any_limit:
        trim_scratch()  # before a request is refused, as in new_storage
        storage = storage_alloc(owner, nbytes)
    if storage == NULL:
        return storage_refused(owner, name, nbytes)
    status = make_tensor(name, storage, 0, dims, ndim, dtype, &made)
    object_release(storage)
    if status == 0:
        out[0] = <TensorObj*>value_ptr(&made)
    return status


cdef int copy_tensor(void* allocator, const char* name, const DLTensor* t, Value* ret) noexcept nogil:
    cdef TensorObj* copy = NULL
    cdef char text[160]
    if not dltensor_is_compact(t):
        return fail_format(fail, ERR_VALUE, "%s: %s is not contiguous", name, dltensor_describe(text, sizeof(text), t))
    if own_tensor(allocator, name, t.shape, t.ndim, t.dtype, &copy) != 0:
        return -1
    memcpy(copy.dl.data, dltensor_data(t), copy.nbytes)
    value_set_object(ret, copy)
    return 0


cdef int b_to_device(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    if n_args != 3 and n_args != 4:
        return wrong_arity("to_device", "3 or 4", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("to_device", 0, "Tensor", &args[0])
    if not is_int(&args[1]) or not is_int(&args[2]):
        return wrong_kind("to_device", 1, "int", &args[1])
    if args[1].bits != 1 or args[2].bits != 0:
        return fail_format(
            fail, ERR_INTERNAL, "to_device: device (%lld, %lld) is not available, only cpu(0)", <long long>args[1].bits,
            <long long>args[2].bits,
        )
    return copy_tensor(self, "to_device", t, ret)


cdef int b_ensure_zero_offset(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    if n_args != 1:
        return wrong_arity("ensure_zero_offset", "1", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("ensure_zero_offset", 0, "Tensor", &args[0])
    if t.byte_offset == 0 and value_type(&args[0]) == VT_TENSOR:
        return keep("ensure_zero_offset", 0, &args[0], ret)
    return copy_tensor(self, "ensure_zero_offset", t, ret)


# ---- stacks: tensors that grow row by row in a loop ------------------------------------------------------------------

cdef extern from *:
    """
    #define STACK_GUESS_BYTES ((int64_t)1 << 20)  /* what is taken at first for a number of rows that may not come */
    #define VM_MAX_ROWS ((int64_t)1 << 61)
    """
    const int64_t STACK_GUESS_BYTES
    const int64_t VM_MAX_ROWS


cdef const DLTensor* stack_of(const char* name, const Value* args, int64_t* count) noexcept nogil:
    """The tensor in args[0] and the number of rows in args[1]; NULL after an error was stored."""
    cdef const DLTensor* stack = value_dltensor(&args[0])
    cdef const DLTensor* number = value_dltensor(&args[1])
    cdef char text[160]
    if stack == NULL or stack.ndim < 1 or not dltensor_is_compact(stack):
        wrong_kind(name, 0, "a contiguous Tensor of rows", &args[0])
        return NULL
    if number == NULL or dltensor_numel(number) != 1 or read_integer(number, 0, count) != 0:
        wrong_kind(name, 1, "an integer Tensor of one element", &args[1])
        return NULL
    if not 0 <= count[0] <= stack.shape[0]:
        dltensor_describe(text, sizeof(text), stack)
        fail_format(fail, ERR_INDEX, "%s: %lld rows of %s", name, <long long>count[0], text)
        return NULL
    return stack


cdef int b_stack_push(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(stack, n, row, limit, certain) -> a stack whose row n is `row` and whose rows before it are those of `stack`.

    Where `stack` has room, it is the result itself, so nothing else may look at its rows from n on. Where not, it is
    copied into one of twice the size; into one of `limit` rows (None: not known) at first, if these many are `certain`
    to come, else if they take little memory.
    """
    cdef const DLTensor* stack
    cdef const DLTensor* row
    cdef const DLTensor* limit
    cdef int64_t count = 0, row_bytes, room, wanted = 0, i
    cdef int64_t[VM_MAX_NDIM] dims
    cdef TensorObj* grown = NULL
    cdef char text[160]
    cdef char other[160]
    if n_args != 5:
        return wrong_arity("stack_push", "5", n_args)
    stack = stack_of("stack_push", args, &count)
    if stack == NULL:
        return -1
    row = value_dltensor(&args[2])
    if row == NULL or not dltensor_is_compact(row):
        return wrong_kind("stack_push", 2, "a contiguous Tensor", &args[2])
    if value_type(&args[3]) != VT_NONE:
        limit = value_dltensor(&args[3])
        if limit == NULL or dltensor_numel(limit) != 1 or read_integer(limit, 0, &wanted) != 0:
            return wrong_kind("stack_push", 3, "an integer Tensor of one element", &args[3])
    if not is_int(&args[4]):
        return wrong_kind("stack_push", 4, "int", &args[4])
    if row.ndim + 1 != stack.ndim or not dtype_same(row.dtype, stack.dtype):
        room = -1
    else:
        room = stack.shape[0]
        for i in range(row.ndim):
            if row.shape[i] != stack.shape[i + 1]:
                room = -1
    if room < 0:
        dltensor_describe(text, sizeof(text), row)
        dltensor_describe(other, sizeof(other), stack)
        return fail_format(fail, ERR_SHAPE, "stack_push: %s is no row of %s", text, other)
    row_bytes = dltensor_numel(row) * dtype_bytes(row.dtype)
    if count < room and value_is_writable(&args[0]):
        memcpy(<char*>dltensor_data(stack) + count * row_bytes, dltensor_data(row), row_bytes)
        return keep("stack_push", 0, &args[0], ret)
    if not args[4].bits and row_bytes != 0 and wanted > STACK_GUESS_BYTES // row_bytes:
        wanted = STACK_GUESS_BYTES // row_bytes
    if room > VM_MAX_ROWS:
        return fail(ERR_ALLOC, "stack_push: the number of rows does not fit in 62 bits")
    dims[0] = wanted if wanted > 2 * room else 2 * room
    if dims[0] < count + 1:
        dims[0] = count + 1
    for i in range(row.ndim):
        dims[i + 1] = row.shape[i]
    if own_tensor(self, "stack_push", dims, stack.ndim, stack.dtype, &grown) != 0:
        return -1
    memcpy(grown.dl.data, dltensor_data(stack), count * row_bytes)
    memcpy(<char*>grown.dl.data + count * row_bytes, dltensor_data(row), row_bytes)
    value_set_object(ret, grown)
    return 0


cdef int b_stack_rows(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(stack, n, reverse) -> its first n rows, last one first with `reverse`; a view if half of `stack`."""
    cdef const DLTensor* stack
    cdef int64_t count = 0, row_bytes, i
    cdef int64_t[VM_MAX_NDIM] dims
    cdef TensorObj* rows = NULL
    cdef TensorObj* source
    if n_args != 3:
        return wrong_arity("stack_rows", "3", n_args)
    stack = stack_of("stack_rows", args, &count)
    if stack == NULL:
        return -1
    if not is_int(&args[2]):
        return wrong_kind("stack_rows", 2, "int", &args[2])
    memcpy(dims, stack.shape, stack.ndim * sizeof(int64_t))
    dims[0] = count
    if not args[2].bits and count == stack.shape[0]:
        return keep("stack_rows", 0, &args[0], ret)
    if not args[2].bits and count >= stack.shape[0] // 2 and value_type(&args[0]) == VT_TENSOR:
        source = <TensorObj*>value_ptr(&args[0])
        rows = tensor_new(stack.ndim)
        if rows == NULL:
            return no_memory("stack_rows", sizeof(TensorObj))
        tensor_set_shape(rows, dims, stack.dtype)
        rows.dl.data = dltensor_data(stack)
        rows.head.flags = rows.head.flags | (source.head.flags & OBJ_READONLY)
        rows.storage = source.storage if source.storage != NULL else &source.head
        object_retain(rows.storage)
        value_set_object(ret, rows)
        return 0
    if own_tensor(self, "stack_rows", dims, stack.ndim, stack.dtype, &rows) != 0:
        return -1
    if not args[2].bits:
        memcpy(rows.dl.data, dltensor_data(stack), rows.nbytes)
    elif count > 0:
        row_bytes = rows.nbytes // count
        for i in range(count):
            memcpy(
                <char*>rows.dl.data + i * row_bytes, <char*>dltensor_data(stack) + (count - 1 - i) * row_bytes,
                row_bytes
            )
    value_set_object(ret, rows)
    return 0


_shared_allocator = allocator_new(True)
if _shared_allocator == NULL:
    raise MemoryError("builtins: no memory for an allocator")
memory_keep(_shared_allocator)
