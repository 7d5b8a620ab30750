"""The builtins that bytecode calls: allocation, shapes, tuples, closures, checks.

Names, arguments, semantics and kinds of error follow TVM's Relax VM (`vm.builtin.*`); `pyvm.builtin.*` are ours. Every
builtin checks its arguments: bytecode may come from a hostile file.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from vmcore.arena cimport b_check_upper_bound, b_plan_arena
from vmcore.loop cimport call_nested, in_native, new_storage
from vmcore.memory cimport memory_keep
from vmcore.objects cimport (
    VM_MAX_NDIM, ClosureObj, ShapeObj, array_new, closure_new, shape_new, tensor_new, tensor_set_shape, value_kind_name,
    value_str,
)
from vmcore.program cimport (
    I_ALLOC_STORAGE, I_ALLOC_TENSOR, I_CALL, I_CALL_CLOSURE, I_COPY, I_NULL, I_TUPLE_GET, Context,
)
from vmcore.status cimport fail
from vmcore.storage cimport Allocator, allocator_new, storage_alloc, storage_refused
from vmcore.value cimport (
    DL_BOOL, DL_FLOAT, DL_INT, DL_UINT, ERR_ALLOC, ERR_DTYPE, ERR_INDEX, ERR_INTERNAL, ERR_SHAPE, ERR_TYPE, ERR_VALUE,
    VT_ARRAY, VT_BOOL, VT_CLOSURE, VT_DTYPE, VT_FLOAT, VT_FUNCTION, VT_INT, VT_NONE, VT_OBJECT, VT_OPAQUE_PTR, VT_SHAPE,
    VT_STORAGE, VT_TENSOR, ArrayObj, DLTensor, FunctionObj, KernelEntry, PackedFn, StorageObj, TensorObj, Value,
    VmDataType, dltensor_data, dltensor_describe, dltensor_is_compact, dltensor_numel, dtype_bytes, dtype_same,
    fail_format, object_release, object_retain, value_clear, value_copy, value_dltensor, value_dtype, value_ptr,
    value_is_writable, value_retain, value_set_bool, value_set_int, value_set_object, value_type,
)


# ---- argument checks -------------------------------------------------------------------------------------------------

cdef int wrong_arity(const char* name, const char* expected, int32_t n_args) noexcept nogil:
    return fail_format(fail, ERR_TYPE, "%s: expected %s arguments, got %d", name, expected, n_args)


cdef int wrong_kind(const char* name, int32_t i, const char* expected, const Value* v) noexcept nogil:
    return fail_format(
        fail, ERR_TYPE, "%s: argument #%d: expected %s, got %s", name, i, expected, value_kind_name(v)
    )


cdef int no_memory(const char* name, int64_t nbytes) noexcept nogil:
    return fail_format(fail, ERR_ALLOC, "%s: no memory for %lld bytes", name, <long long>nbytes)


cdef inline bint is_int(const Value* v) noexcept nogil:
    return value_type(v) == VT_INT or value_type(v) == VT_BOOL


cdef const char* text_of(const Value* v, char* buffer) noexcept nogil:
    """The error context string in `v` (without a context: ""), at most 255 characters, in `buffer`."""
    cdef uint64_t size = 0
    cdef const char* text = value_str(v, &size)
    if text == NULL:
        buffer[0] = 0
        return buffer
    if size > 255:
        size = 255
    memcpy(buffer, text, size)
    buffer[size] = 0
    return buffer


cdef int64_t* heap_of(const char* name, const Value* v, int64_t* size, bint write) noexcept nogil:
    """The int64 cells of a shape heap, to `write` or only to read; NULL after an error was stored."""
    cdef const DLTensor* heap = value_dltensor(v)
    if (
        heap == NULL or heap.ndim != 1 or heap.dtype.code != DL_INT or heap.dtype.bits != 64 or heap.dtype.lanes != 1
        or not dltensor_is_compact(heap)
    ):
        wrong_kind(name, 0, "a shape heap (1-d int64 Tensor)", v)
        return NULL
    if write and not value_is_writable(v):  # a constant, perhaps in a file mapped read-only
        fail_format(fail, ERR_VALUE, "%s: the shape heap is read-only", name)
        return NULL
    size[0] = heap.shape[0]
    return <int64_t*>dltensor_data(heap)


cdef int bad_slot(const char* name, int64_t slot, int64_t size) noexcept nogil:
    return fail_format(
        fail, ERR_INDEX, "%s: heap index %lld is outside a shape heap of %lld", name, <long long>slot, <long long>size
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


cdef extern from *:
    bint __builtin_mul_overflow(int64_t a, int64_t b, int64_t* out) nogil
    bint __builtin_add_overflow(int64_t a, int64_t b, int64_t* out) nogil
    bint __builtin_sub_overflow(int64_t a, int64_t b, int64_t* out) nogil


cdef Context* context_of(const char* name, const Value* v) noexcept nogil:
    """The running invocation behind the VM operand. Only the decoder makes such values, and they cannot be stored."""
    if value_type(v) != VT_OPAQUE_PTR or v.bits == 0:
        wrong_kind(name, 0, "the virtual machine (%vm)", v)
        return NULL
    return <Context*>value_ptr(v)


cdef int b_alloc_storage(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef Context* cx
    cdef ShapeObj* shape
    cdef StorageObj* storage
    cdef int64_t nbytes, i
    if n_args != 4 and n_args != 5:
        return wrong_arity("alloc_storage", "4 or 5", n_args)
    cx = context_of("alloc_storage", &args[0])
    if cx == NULL:
        return -1
    if value_type(&args[1]) != VT_SHAPE:
        return wrong_kind("alloc_storage", 1, "Shape", &args[1])
    if not is_int(&args[2]):
        return wrong_kind("alloc_storage", 2, "int (device index)", &args[2])
    if value_type(&args[3]) != VT_DTYPE:
        return wrong_kind("alloc_storage", 3, "DataType", &args[3])
    if args[2].bits != 0:
        return fail_format(
            fail, ERR_INTERNAL, "alloc_storage: device index %lld, this virtual machine has 1 device",
            <long long>args[2].bits
        )
    shape = <ShapeObj*>value_ptr(&args[1])
    nbytes = dtype_bytes(value_dtype(&args[3]))
    for i in range(<int64_t>shape.size):
        if shape.data[i] < 0:
            return fail_format(
                fail, ERR_SHAPE, "alloc_storage: dimension %lld is negative: %lld", <long long>i,
                <long long>shape.data[i]
            )
        if __builtin_mul_overflow(nbytes, shape.data[i], &nbytes):
            return fail(ERR_ALLOC, "alloc_storage: the size does not fit in 63 bits")
    storage = new_storage(cx, "alloc_storage", nbytes)
    if storage == NULL:
        return -1
    value_set_object(ret, storage)
    return 0


cdef int b_alloc_tensor(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef ShapeObj* shape
    if n_args != 4 and n_args != 5:
        return wrong_arity("alloc_tensor", "4 or 5", n_args)
    if value_type(&args[0]) != VT_STORAGE:
        return wrong_kind("alloc_tensor", 0, "Storage", &args[0])
    if not is_int(&args[1]):
        return wrong_kind("alloc_tensor", 1, "int (byte offset)", &args[1])
    if value_type(&args[2]) != VT_SHAPE:
        return wrong_kind("alloc_tensor", 2, "Shape", &args[2])
    if value_type(&args[3]) != VT_DTYPE:
        return wrong_kind("alloc_tensor", 3, "DataType", &args[3])
    shape = <ShapeObj*>value_ptr(&args[2])
    return make_tensor(
        "alloc_tensor", <StorageObj*>value_ptr(&args[0]), args[1].bits, shape.data, shape.size, value_dtype(&args[3]),
        ret
    )


# ---- values ----------------------------------------------------------------------------------------------------------

cdef int b_null_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 0:
        return wrong_arity("null_value", "0", n_args)
    return 0


cdef int b_copy(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 1:
        return wrong_arity("copy", "1", n_args)
    return keep("copy", 0, &args[0], ret)


cdef int keep(const char* name, int32_t i, const Value* source, Value* out) noexcept nogil:
    """out := source with a reference of its own; refuses what must not outlive a call."""
    cdef int32_t kind = value_type(source)
    if kind == VT_OPAQUE_PTR or (7 <= kind < VT_OBJECT and kind != 11 and kind != 12):
        return wrong_kind(name, i, "a value that can be stored", source)
    value_retain(source)
    value_copy(out, source)
    return 0


cdef int b_make_tuple(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef ArrayObj* array = array_new(n_args)
    cdef int32_t i
    if array == NULL:
        return no_memory("make_tuple", n_args * <int64_t>sizeof(Value))
    for i in range(n_args):
        if keep("make_tuple", i, &args[i], &array.data[i]) != 0:
            object_release(array)
            return -1
    value_set_object(ret, array)
    return 0


cdef int tuple_item(const char* name, const Value* args, int32_t n_args, Value** item) noexcept nogil:
    cdef ArrayObj* array
    if n_args != 2:
        return wrong_arity(name, "2", n_args)
    if value_type(&args[0]) != VT_ARRAY:
        return wrong_kind(name, 0, "tuple", &args[0])
    if not is_int(&args[1]):
        return wrong_kind(name, 1, "int", &args[1])
    array = <ArrayObj*>value_ptr(&args[0])
    if not 0 <= args[1].bits < array.size:
        return fail_format(
            fail, ERR_INDEX, "%s: index %lld is outside a tuple of %lld", name, <long long>args[1].bits,
            <long long>array.size
        )
    item[0] = &array.data[args[1].bits]
    return 0


cdef int b_tuple_getitem(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef Value* item = NULL
    if tuple_item("tuple_getitem", args, n_args, &item) != 0:
        return -1
    value_retain(item)
    value_copy(ret, item)
    return 0


cdef int b_tuple_reset_item(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """Drops one item in place. A tuple that anybody else can see is refused: items never change under a reader."""
    cdef Value* item = NULL
    cdef ArrayObj* array
    if tuple_item("tuple_reset_item", args, n_args, &item) != 0:
        return -1
    array = <ArrayObj*>value_ptr(&args[0])
    if <uint32_t>array.head.counts != 1:
        return fail(ERR_VALUE, "tuple_reset_item: the tuple is shared, its items cannot be reset")
    value_clear(item)
    return 0


cdef int b_read_if_cond(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    cdef VmDataType dtype
    cdef const char* data
    cdef char text[160]
    cdef int64_t nbytes, i
    if n_args != 1:
        return wrong_arity("read_if_cond", "1", n_args)
    if is_int(&args[0]):
        value_set_bool(ret, args[0].bits != 0)
        return 0
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("read_if_cond", 0, "bool, int or a Tensor of them", &args[0])
    dtype = t.dtype
    if dtype.code != DL_INT and dtype.code != DL_UINT and dtype.code != DL_BOOL or dtype.lanes != 1:
        return fail_format(
            fail, ERR_INTERNAL, "read_if_cond: a condition must be an integer or bool tensor, got %s",
            dltensor_describe(text, sizeof(text), t),
        )
    nbytes = dtype_bytes(dtype)
    if dltensor_numel(t) < 1:
        return fail_format(
            fail, ERR_SHAPE, "read_if_cond: a condition needs an element, got %s",
            dltensor_describe(text, sizeof(text), t)
        )
    data = <const char*>dltensor_data(t)
    for i in range(nbytes):
        if data[i]:
            value_set_bool(ret, True)
            return 0
    value_set_bool(ret, False)
    return 0


# ---- shapes ----------------------------------------------------------------------------------------------------------

cdef int b_alloc_shape_heap(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef Context* cx
    cdef VmDataType int64_type
    cdef int64_t n
    if n_args != 2:
        return wrong_arity("alloc_shape_heap", "2", n_args)
    cx = context_of("alloc_shape_heap", &args[0])
    if cx == NULL:
        return -1
    if not is_int(&args[1]):
        return wrong_kind("alloc_shape_heap", 1, "int", &args[1])
    n = args[1].bits
    int64_type.code, int64_type.bits, int64_type.lanes = DL_INT, 64, 1
    return new_tensor("alloc_shape_heap", cx, &n, 1, int64_type, ret)


cdef const int64_t* dims_of(const char* name, const Value* v, int64_t* size) noexcept nogil:
    """Dimensions of a Tensor or Shape; NULL after an error was stored."""
    cdef const DLTensor* t = value_dltensor(v)
    cdef ShapeObj* shape
    if t != NULL:
        size[0] = t.ndim
        return t.shape
    if value_type(v) == VT_SHAPE:
        shape = <ShapeObj*>value_ptr(v)
        size[0] = <int64_t>shape.size
        return shape.data
    wrong_kind(name, 0, "Tensor or Shape", v)
    return NULL


cdef int match_one(
    const char* name, const char* context, int64_t i, int64_t dim, int64_t code, int64_t operand, int64_t* heap,
    int64_t heap_size, bint whole_shape,
) noexcept nogil:
    """One (code, operand) pair of match_shape: 0 equals the operand, 1 store, 2 nothing, 3 equals the heap cell."""
    cdef int64_t expected
    if code == 2:
        return 0
    if code == 0:
        expected = operand
    elif code == 1 or code == 3:
        if heap == NULL:
            return fail_format(fail, ERR_VALUE, "%s: code %lld needs a shape heap", name, <long long>code)
        if not 0 <= operand < heap_size:
            return bad_slot(name, operand, heap_size)
        if code == 1:
            heap[operand] = dim
            return 0
        expected = heap[operand]
    else:
        return fail_format(fail, ERR_INTERNAL, "%s: unknown match code %lld", name, <long long>code)
    if dim == expected:
        return 0
    if whole_shape:
        return fail_format(
            fail, ERR_SHAPE, "%smatch_cast error, shape[%lld] mismatch to specified constant: expected %lld, got %lld",
            context, <long long>i, <long long>expected, <long long>dim,
        )
    return fail_format(
        fail, ERR_SHAPE, "%smatch_cast error, value mismatch to specified constant: expected %lld, got %lld", context,
        <long long>expected, <long long>dim,
    )


cdef int b_match_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef int64_t size = 0, heap_size = 0, i, n
    cdef const int64_t* dims
    cdef int64_t* heap = NULL
    cdef char context[256]
    if n_args < 4:
        return wrong_arity("match_shape", "at least 4", n_args)
    dims = dims_of("match_shape", &args[0], &size)
    if dims == NULL:
        return -1
    if value_type(&args[1]) != VT_NONE:
        heap = heap_of("match_shape", &args[1], &heap_size, True)
        if heap == NULL:
            return -1
    n = args[2].bits
    if value_str(&args[n_args - 1], NULL) == NULL:
        return wrong_kind("match_shape", n_args - 1, "a string (context)", &args[n_args - 1])
    if not is_int(&args[2]) or n < 0 or n > n_args or 2 * n + 4 != n_args:
        return fail_format(
            fail, ERR_INTERNAL, "match_shape: %d arguments do not fit a shape of %lld", n_args, <long long>n
        )
    text_of(&args[n_args - 1], context)
    if size != n:
        return fail_format(
            fail, ERR_SHAPE, "%smatch_cast shape size mismatch. expected ndim %lld, got %lld", context, <long long>n,
            <long long>size,
        )
    for i in range(n):
        if not is_int(&args[3 + 2 * i]) or not is_int(&args[4 + 2 * i]):
            return wrong_kind("match_shape", <int32_t>(3 + 2 * i), "int", &args[3 + 2 * i])
        if match_one(
            "match_shape", context, i, dims[i], args[3 + 2 * i].bits, args[4 + 2 * i].bits, heap, heap_size, True
        ) != 0:
            return -1
    return 0


cdef int b_match_prim_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef int64_t heap_size = 0
    cdef int64_t* heap = NULL
    cdef char context[256]
    cdef int32_t i
    if n_args != 5:
        return wrong_arity("match_prim_value", "5", n_args)
    for i in range(4):
        if i != 1 and not is_int(&args[i]):
            return wrong_kind("match_prim_value", i, "int", &args[i])
    if value_type(&args[1]) != VT_NONE:
        heap = heap_of("match_prim_value", &args[1], &heap_size, True)
        if heap == NULL:
            return -1
    return match_one(
        "match_prim_value", text_of(&args[4], context), 0, args[0].bits, args[2].bits, args[3].bits, heap, heap_size,
        False
    )


cdef int read_one(
    const char* name, int64_t code, int64_t operand, const int64_t* heap, int64_t heap_size, int64_t* out
) noexcept nogil:
    """One (code, operand) pair of make_shape. Codes: 0 the operand, 1 a heap cell."""
    if code == 0:
        out[0] = operand
        return 0
    if code != 1:
        return fail_format(fail, ERR_INTERNAL, "%s: unknown shape code %lld", name, <long long>code)
    if heap == NULL:
        return fail_format(fail, ERR_VALUE, "%s: code 1 needs a shape heap", name)
    if not 0 <= operand < heap_size:
        return bad_slot(name, operand, heap_size)
    out[0] = heap[operand]
    return 0


cdef int b_make_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef int64_t heap_size = 0, n, i
    cdef int64_t* heap = NULL
    cdef ShapeObj* shape
    if n_args < 2:
        return wrong_arity("make_shape", "at least 2", n_args)
    if value_type(&args[0]) != VT_NONE:
        heap = heap_of("make_shape", &args[0], &heap_size, False)
        if heap == NULL:
            return -1
    n = args[1].bits
    if not is_int(&args[1]) or n < 0 or n > n_args or 2 * n + 2 != n_args:
        return fail_format(fail, ERR_TYPE, "make_shape: %d arguments do not fit a shape of %lld", n_args, <long long>n)
    shape = shape_new(NULL, n)
    if shape == NULL:
        return no_memory("make_shape", n * 8)
    for i in range(n):
        if not is_int(&args[2 + 2 * i]) or not is_int(&args[3 + 2 * i]):
            object_release(shape)
            return wrong_kind("make_shape", <int32_t>(2 + 2 * i), "int", &args[2 + 2 * i])
        if read_one(
            "make_shape", args[2 + 2 * i].bits, args[3 + 2 * i].bits, heap, heap_size, <int64_t*>&shape.data[i]
        ) != 0:
            object_release(shape)
            return -1
    value_set_object(ret, shape)
    return 0


cdef int b_make_prim_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef int64_t heap_size = 0, value = 0
    cdef int64_t* heap = NULL
    if n_args != 3:
        return wrong_arity("make_prim_value", "3", n_args)
    if value_type(&args[0]) != VT_NONE:
        heap = heap_of("make_prim_value", &args[0], &heap_size, False)
        if heap == NULL:
            return -1
    if not is_int(&args[1]) or not is_int(&args[2]):
        return wrong_kind("make_prim_value", 1, "int", &args[1])
    if read_one("make_prim_value", args[1].bits, args[2].bits, heap, heap_size, &value) != 0:
        return -1
    value_set_int(ret, value)
    return 0


cdef int b_shape_of(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    cdef ShapeObj* shape
    if n_args != 1:
        return wrong_arity("shape_of", "1", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("shape_of", 0, "Tensor", &args[0])
    shape = shape_new(t.shape, t.ndim)
    if shape == NULL:
        return no_memory("shape_of", t.ndim * 8)
    value_set_object(ret, shape)
    return 0


cdef int read_integer(const DLTensor* t, int64_t i, int64_t* out) noexcept nogil:
    """out := element i of an integer or bool tensor as int64; -1 for other element types."""
    cdef const char* data = <const char*>dltensor_data(t)
    cdef int bits = t.dtype.bits
    if t.dtype.lanes != 1:
        return -1
    if t.dtype.code == DL_INT:
        if bits == 64:
            out[0] = (<const int64_t*>data)[i]
        elif bits == 32:
            out[0] = (<const int32_t*>data)[i]
        elif bits == 16:
            out[0] = (<const short*>data)[i]
        elif bits == 8:
            out[0] = (<const signed char*>data)[i]
        else:
            return -1
        return 0
    if (t.dtype.code == DL_UINT or t.dtype.code == DL_BOOL) and bits == 8:
        out[0] = (<const unsigned char*>data)[i]
        return 0
    if t.dtype.code == DL_UINT and bits == 32:
        out[0] = (<const unsigned int*>data)[i]
        return 0
    return -1


cdef int b_tensor_to_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    cdef ShapeObj* shape
    cdef char text[160]
    cdef int64_t i, n
    if n_args != 1:
        return wrong_arity("tensor_to_shape", "1", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("tensor_to_shape", 0, "Tensor", &args[0])
    if (
        t.ndim != 1 or t.dtype.code != DL_INT or t.dtype.lanes != 1 or not dltensor_is_compact(t)
        or t.dtype.bits == 8 or t.shape[0] > VM_MAX_NDIM
    ):
        return fail_format(
            fail, ERR_INTERNAL, "tensor_to_shape: expected a 1-d int16, int32 or int64 Tensor of at most %d, got %s",
            VM_MAX_NDIM, dltensor_describe(text, sizeof(text), t),
        )
    n = t.shape[0]
    shape = shape_new(NULL, n)
    if shape == NULL:
        return no_memory("tensor_to_shape", n * 8)
    for i in range(n):
        if read_integer(t, i, <int64_t*>&shape.data[i]) != 0:
            object_release(shape)
            return fail_format(
                fail, ERR_INTERNAL, "tensor_to_shape: elements must be integers, got %s",
                dltensor_describe(text, sizeof(text), t),
            )
    value_set_object(ret, shape)
    return 0


cdef int b_reshape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """A view with another shape; it may have fewer elements, as in TVM."""
    cdef const DLTensor* t
    cdef TensorObj* view
    cdef TensorObj* source
    cdef ShapeObj* shape
    cdef ArrayObj* array
    cdef int64_t dims[64]
    cdef int64_t n, i, nbytes
    cdef char text[160]
    if n_args != 2:
        return wrong_arity("reshape", "2", n_args)
    if value_type(&args[0]) != VT_TENSOR:
        return wrong_kind("reshape", 0, "Tensor", &args[0])
    t = value_dltensor(&args[0])
    if value_type(&args[1]) == VT_SHAPE:
        shape = <ShapeObj*>value_ptr(&args[1])
        n = <int64_t>shape.size
        if n <= VM_MAX_NDIM:
            memcpy(dims, shape.data, n * 8)
    elif value_type(&args[1]) == VT_ARRAY:
        array = <ArrayObj*>value_ptr(&args[1])
        n = array.size
        for i in range(n if n <= VM_MAX_NDIM else 0):
            if not is_int(&array.data[i]):
                return wrong_kind("reshape", 1, "a tuple of ints", &array.data[i])
            dims[i] = array.data[i].bits
    else:
        return wrong_kind("reshape", 1, "Shape", &args[1])
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
    view.head.flags = view.head.flags | (source.head.flags & 1)
    # The view keeps the bytes alive: through their storage, or through the tensor it was made from.
    view.storage = source.storage if source.storage != NULL else &source.head
    object_retain(view.storage)
    value_set_object(ret, view)
    return 0


cdef int b_eval_shape_expr(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """heap[dst] := postfix integer program over heap cells; see the opcodes in the body."""
    cdef int64_t heap_size = 0, i, a, b, code, operand
    cdef int64_t* heap
    cdef ShapeObj* program
    cdef int64_t stack[64]
    cdef int depth = 0
    if n_args != 3:
        return wrong_arity("eval_shape_expr", "3", n_args)
    heap = heap_of("eval_shape_expr", &args[0], &heap_size, True)
    if heap == NULL:
        return -1
    if not is_int(&args[1]):
        return wrong_kind("eval_shape_expr", 1, "int", &args[1])
    if value_type(&args[2]) != VT_SHAPE:
        return wrong_kind("eval_shape_expr", 2, "Shape", &args[2])
    if not 0 <= args[1].bits < heap_size:
        return bad_slot("eval_shape_expr", args[1].bits, heap_size)
    program = <ShapeObj*>value_ptr(&args[2])
    if program.size % 2:
        return fail_format(
            fail, ERR_VALUE, "eval_shape_expr: a program of %llu words, expected pairs",
            <unsigned long long>program.size
        )
    for i in range(<int64_t>program.size // 2):
        code = program.data[2 * i]
        operand = program.data[2 * i + 1]
        if code == 0 or code == 1:
            if depth == 64:
                return fail(ERR_VALUE, "eval_shape_expr: the expression is nested more than 64 deep")
            if code == 1:
                if not 0 <= operand < heap_size:
                    return bad_slot("eval_shape_expr", operand, heap_size)
                operand = heap[operand]
            stack[depth] = operand
            depth += 1
            continue
        if not 2 <= code <= 8 or depth < 2:
            return fail_format(fail, ERR_VALUE, "eval_shape_expr: opcode %lld with %d operands", <long long>code, depth)
        depth -= 1
        a, b = stack[depth - 1], stack[depth]
        if code == 2 and __builtin_add_overflow(a, b, &a) or code == 3 and __builtin_sub_overflow(a, b, &a) \
                or code == 4 and __builtin_mul_overflow(a, b, &a):
            return fail(ERR_VALUE, "eval_shape_expr: a dimension does not fit in 64 bits")
        elif code == 5 or code == 6:
            if b == 0:
                return fail(ERR_VALUE, "eval_shape_expr: division by zero")
            if b == -1:
                if code == 6:
                    a = 0
                elif __builtin_sub_overflow(0, a, &a):
                    return fail(ERR_VALUE, "eval_shape_expr: a dimension does not fit in 64 bits")
            elif code == 5:
                a = a / b - (1 if a % b != 0 and (a < 0) != (b < 0) else 0)
            else:
                a = a % b + (b if a % b != 0 and (a < 0) != (b < 0) else 0)
        elif code == 7:
            a = a if a < b else b
        elif code == 8:
            a = a if a > b else b
        stack[depth - 1] = a
    if depth != 1:
        return fail_format(fail, ERR_VALUE, "eval_shape_expr: the program leaves %d values, expected 1", depth)
    heap[args[1].bits] = stack[0]
    return 0


cdef int b_tensor_scalar(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef const DLTensor* t
    cdef int64_t value = 0
    cdef char text[160]
    if n_args != 1:
        return wrong_arity("tensor_scalar", "1", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return wrong_kind("tensor_scalar", 0, "Tensor", &args[0])
    if dltensor_numel(t) != 1 or read_integer(t, 0, &value) != 0:
        return fail_format(
            fail, ERR_SHAPE, "tensor_scalar: expected one integer, got %s", dltensor_describe(text, sizeof(text), t)
        )
    value_set_int(ret, value)
    return 0


cdef int b_store_dim(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef int64_t heap_size = 0
    cdef int64_t* heap
    if n_args != 3:
        return wrong_arity("store_dim", "3", n_args)
    heap = heap_of("store_dim", &args[0], &heap_size, True)
    if heap == NULL:
        return -1
    if not is_int(&args[1]) or not is_int(&args[2]):
        return wrong_kind("store_dim", 2, "int", &args[2])
    if not 0 <= args[1].bits < heap_size:
        return bad_slot("store_dim", args[1].bits, heap_size)
    heap[args[1].bits] = args[2].bits
    return 0


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
    if storage == NULL:
        return storage_refused(owner, name, nbytes)
    status = make_tensor(name, storage, 0, dims, ndim, dtype, &made)
    object_release(storage)
    if status == 0:
        out[0] = <TensorObj*>value_ptr(&made)
    return status


cdef int b_shape_to_tensor(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef VmDataType int64_type
    cdef ShapeObj* shape
    cdef TensorObj* t = NULL
    cdef int64_t n
    if n_args != 1:
        return wrong_arity("shape_to_tensor", "1", n_args)
    if value_type(&args[0]) != VT_SHAPE:
        return wrong_kind("shape_to_tensor", 0, "Shape", &args[0])
    shape = <ShapeObj*>value_ptr(&args[0])
    n = <int64_t>shape.size
    int64_type.code, int64_type.bits, int64_type.lanes = DL_INT, 64, 1
    if own_tensor(self, "shape_to_tensor", &n, 1, int64_type, &t) != 0:
        return -1
    memcpy(t.dl.data, shape.data, n * 8)
    value_set_object(ret, t)
    return 0


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
        rows.head.flags = rows.head.flags | (source.head.flags & 1)
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


# ---- checks of declared types ----------------------------------------------------------------------------------------

cdef const char* dtype_text(VmDataType t, char* buffer) noexcept nogil:
    cdef const char* name = b"int"
    if t.code == DL_UINT:
        name = b"uint"
    elif t.code == DL_FLOAT:
        name = b"float"
    elif t.code == DL_BOOL and t.bits == 8:
        snprintf(buffer, 32, "bool")
        return buffer
    elif t.code != DL_INT:
        name = b"dtype"
    snprintf(buffer, 32, "%s%d", name, <int>t.bits)
    return buffer


cdef int b_check_tensor_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """check_tensor_info(x, ndim, [dtype], context): ndim -1 and dtype None match anything."""
    cdef const DLTensor* t
    if n_args == 4 and args[0].tag == VT_TENSOR and args[1].tag == VT_INT and args[2].tag == VT_DTYPE:
        t = &(<TensorObj*>value_ptr(&args[0])).dl
        if args[1].bits == t.ndim and dtype_same(value_dtype(&args[2]), t.dtype):
            return 0
    return check_tensor_info(args, n_args)


cdef int check_tensor_info(const Value* args, int32_t n_args) noexcept nogil:
    """All forms, and the errors."""
    cdef const DLTensor* t
    cdef char context[256]
    cdef char expected[32]
    cdef char actual[32]
    if n_args != 3 and n_args != 4:
        return wrong_arity("check_tensor_info", "3 or 4", n_args)
    t = value_dltensor(&args[0])
    if t == NULL:
        return fail_format(
            fail, ERR_TYPE, "%sexpect a Tensor but get %s", text_of(&args[n_args - 1], context),
            value_kind_name(&args[0])
        )
    if not is_int(&args[1]):
        return wrong_kind("check_tensor_info", 1, "int", &args[1])
    if args[1].bits != -1 and args[1].bits != t.ndim:
        return fail_format(
            fail, ERR_SHAPE, "%sexpect Tensor with ndim %lld but get %d", text_of(&args[n_args - 1], context),
            <long long>args[1].bits, t.ndim,
        )
    if n_args == 4 and value_type(&args[2]) != VT_NONE:
        if value_type(&args[2]) != VT_DTYPE:
            return wrong_kind("check_tensor_info", 2, "DataType", &args[2])
        if not dtype_same(value_dtype(&args[2]), t.dtype):
            return fail_format(
                fail, ERR_DTYPE, "%sexpect Tensor with dtype %s but get %s", text_of(&args[n_args - 1], context),
                dtype_text(value_dtype(&args[2]), expected), dtype_text(t.dtype, actual),
            )
    return 0


cdef int check_size(const char* what, const Value* expected, int64_t size, const Value* context) noexcept nogil:
    cdef char text[256]
    if not is_int(expected):
        return wrong_kind(what, 1, "int", expected)
    if expected.bits != -1 and expected.bits != size:
        return fail_format(
            fail, ERR_SHAPE, "%sexpect %s of size %lld but get %lld", text_of(context, text), what,
            <long long>expected.bits, <long long>size,
        )
    return 0


cdef int wrong_info(const char* expected, const Value* v, const Value* context) noexcept nogil:
    cdef char text[256]
    return fail_format(fail, ERR_TYPE, "%sexpect a %s but get %s", text_of(context, text), expected, value_kind_name(v))


cdef int b_check_shape_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 3:
        return wrong_arity("check_shape_info", "3", n_args)
    if value_type(&args[0]) != VT_SHAPE:
        return wrong_info("Shape", &args[0], &args[2])
    return check_size("Shape", &args[1], <int64_t>(<ShapeObj*>value_ptr(&args[0])).size, &args[2])


cdef int b_check_tuple_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 3:
        return wrong_arity("check_tuple_info", "3", n_args)
    if value_type(&args[0]) != VT_ARRAY:
        return wrong_info("tuple", &args[0], &args[2])
    return check_size("tuple", &args[1], (<ArrayObj*>value_ptr(&args[0])).size, &args[2])


cdef int b_check_prim_value_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef VmDataType dtype
    cdef int32_t kind
    cdef bint fits
    cdef char name[32]
    if n_args != 3:
        return wrong_arity("check_prim_value_info", "3", n_args)
    if value_type(&args[1]) != VT_DTYPE:
        return wrong_kind("check_prim_value_info", 1, "DataType", &args[1])
    dtype = value_dtype(&args[1])
    kind = value_type(&args[0])
    if dtype.code == DL_FLOAT:
        fits = kind == VT_FLOAT or kind == VT_INT or kind == VT_BOOL
    else:
        fits = kind == VT_INT or kind == VT_BOOL
    return 0 if fits else wrong_info(dtype_text(dtype, name), &args[0], &args[2])


cdef int b_check_func_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 2:
        return wrong_arity("check_func_info", "2", n_args)
    if value_type(&args[0]) != VT_FUNCTION and value_type(&args[0]) != VT_CLOSURE:
        return wrong_info("function", &args[0], &args[1])
    return 0


cdef int b_check_string_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 2:
        return wrong_arity("check_string_info", "2", n_args)
    if value_str(&args[0], NULL) == NULL:
        return wrong_info("string", &args[0], &args[1])
    return 0


# ---- functions -------------------------------------------------------------------------------------------------------

cdef int b_make_closure(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """make_closure(f, saved...): saved values become trailing arguments, before those that f has captured already."""
    cdef ClosureObj* inner
    cdef ClosureObj* made
    cdef int32_t i, n_new = n_args - 1
    if n_args < 1:
        return wrong_arity("make_closure", "at least 1", n_args)
    if value_type(&args[0]) != VT_CLOSURE:
        return wrong_kind("make_closure", 0, "a VM function or closure", &args[0])
    inner = <ClosureObj*>value_ptr(&args[0])
    if <int64_t>inner.n_saved + n_new > 65535:
        return fail_format(fail, ERR_VALUE, "make_closure: %d captured values, at most 65535", inner.n_saved + n_new)
    made = closure_new(inner.machine, inner.func_index, n_new + inner.n_saved, inner.safe_call)
    if made == NULL:
        return no_memory("make_closure", (n_new + inner.n_saved) * 16)
    for i in range(n_new):
        if keep("make_closure", i + 1, &args[i + 1], &made.saved[i]) != 0:
            object_release(made)
            return -1
    for i in range(inner.n_saved):
        value_retain(&inner.saved[i])
        value_copy(&made.saved[n_new + i], &inner.saved[i])
    value_set_object(ret, made)
    return 0


cdef int call_function(
    const char* name, const Value* callee, const Value* args, int32_t n_args, Value* ret
) noexcept nogil:
    cdef int32_t kind = value_type(callee)
    if kind != VT_FUNCTION and kind != VT_CLOSURE:
        return wrong_kind(name, 0, "a function or closure", callee)
    # Functions and closures both start with header and safe_call.
    return (<FunctionObj*>value_ptr(callee)).safe_call(value_ptr(callee), args, n_args, ret)


cdef int b_invoke_closure(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """Reached only where the decoder could not make it a frame of the running loop."""
    cdef Context* cx
    cdef ClosureObj* closure
    if n_args < 2:
        return wrong_arity("invoke_closure", "at least 2", n_args)
    cx = context_of("invoke_closure", &args[0])
    if cx == NULL:
        return -1
    if value_type(&args[1]) == VT_CLOSURE and in_native(cx):
        closure = <ClosureObj*>value_ptr(&args[1])
        if closure.machine == &cx.program.head:
            return call_nested(cx, closure, &args[2], n_args - 2, ret)
    return call_function("invoke_closure", &args[1], &args[2], n_args - 2, ret)


cdef int b_call_tir_dyn(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """call_tir_dyn(f, tensors..., shape): f(tensors..., dims of shape...)."""
    cdef Value expanded[128]
    cdef ShapeObj* shape
    cdef int32_t i, n = n_args - 2
    if n_args < 2 or value_type(&args[n_args - 1]) != VT_SHAPE:
        return fail_format(
            fail, ERR_TYPE, "call_tir_dyn: expected a function, tensors and a Shape, got %d arguments", n_args
        )
    shape = <ShapeObj*>value_ptr(&args[n_args - 1])
    if n + shape.size > 128:
        return fail_format(
            fail, ERR_VALUE, "call_tir_dyn: %d tensors and %llu dimensions, at most 128", n,
            <unsigned long long>shape.size
        )
    for i in range(n):
        value_copy(&expanded[i], &args[i + 1])
    for i in range(<int32_t>shape.size):
        value_set_int(&expanded[n + i], shape.data[i])
    return call_function("call_tir_dyn", &args[0], expanded, n + <int32_t>shape.size, ret)


# ---- table -----------------------------------------------------------------------------------------------------------

cdef Allocator* _shared_allocator = NULL
cdef KernelEntry[40] _table
cdef int _n_entries = 0


cdef void add(const char* name, PackedFn fn, float ns_per_byte=0.0) noexcept:
    global _n_entries
    _table[_n_entries].name = name
    _table[_n_entries].fn = fn
    _table[_n_entries].ns_per_byte = ns_per_byte
    _n_entries += 1


cdef const KernelEntry* builtin_table(int* n) noexcept:
    n[0] = _n_entries
    return _table


cdef int builtin_opcode(PackedFn fn) noexcept nogil:
    """The internal opcode of a builtin, I_CALL for all other functions."""
    if fn == b_copy:
        return I_COPY
    if fn == b_null_value:
        return I_NULL
    if fn == b_tuple_getitem:
        return I_TUPLE_GET
    if fn == b_alloc_storage:
        return I_ALLOC_STORAGE
    if fn == b_alloc_tensor:
        return I_ALLOC_TENSOR
    if fn == b_invoke_closure:
        return I_CALL_CLOSURE
    return I_CALL


cdef bint builtin_allocates(PackedFn fn) noexcept nogil:
    """Whether `fn` takes the allocator that it uses as its self."""
    return fn == b_shape_to_tensor or fn == b_to_device or fn == b_ensure_zero_offset or fn == b_stack_push \
        or fn == b_stack_rows


_shared_allocator = allocator_new(True)
if _shared_allocator == NULL:
    raise MemoryError("builtins: no memory for an allocator")
memory_keep(_shared_allocator)
add("vm.builtin.alloc_storage", b_alloc_storage)
add("vm.builtin.alloc_tensor", b_alloc_tensor)
add("vm.builtin.null_value", b_null_value)
add("vm.builtin.copy", b_copy)
add("vm.builtin.make_tuple", b_make_tuple)
add("vm.builtin.tuple_getitem", b_tuple_getitem)
add("vm.builtin.tuple_reset_item", b_tuple_reset_item)
add("vm.builtin.read_if_cond", b_read_if_cond)
add("vm.builtin.alloc_shape_heap", b_alloc_shape_heap)
add("vm.builtin.match_shape", b_match_shape)
add("vm.builtin.match_prim_value", b_match_prim_value)
add("vm.builtin.make_shape", b_make_shape)
add("vm.builtin.make_prim_value", b_make_prim_value)
add("vm.builtin.shape_of", b_shape_of)
add("vm.builtin.tensor_to_shape", b_tensor_to_shape)
add("vm.builtin.reshape", b_reshape)
add("vm.builtin.to_device", b_to_device, 0.1)
add("vm.builtin.ensure_zero_offset", b_ensure_zero_offset, 0.1)
add("vm.builtin.check_tensor_info", b_check_tensor_info)
add("vm.builtin.check_shape_info", b_check_shape_info)
add("vm.builtin.check_tuple_info", b_check_tuple_info)
add("vm.builtin.check_prim_value_info", b_check_prim_value_info)
add("vm.builtin.check_func_info", b_check_func_info)
add("vm.builtin.check_string_info", b_check_string_info)
add("vm.builtin.make_closure", b_make_closure)
add("vm.builtin.invoke_closure", b_invoke_closure)
add("vm.builtin.call_tir_dyn", b_call_tir_dyn)
add("pyvm.builtin.eval_shape_expr", b_eval_shape_expr)
add("pyvm.builtin.plan_arena", b_plan_arena)
add("pyvm.builtin.check_upper_bound", b_check_upper_bound)
add("pyvm.builtin.stack_push", b_stack_push, 0.1)
add("pyvm.builtin.stack_rows", b_stack_rows, 0.1)
add("pyvm.builtin.tensor_scalar", b_tensor_scalar)
add("pyvm.builtin.store_dim", b_store_dim)
add("pyvm.builtin.shape_to_tensor", b_shape_to_tensor)
