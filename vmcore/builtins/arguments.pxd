# What the builtins have in common: checks of their arguments and the errors. Inline: there is no module of this name.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from vmcore.objects cimport VM_MAX_NDIM, ShapeObj, value_kind_name, value_str
from vmcore.program cimport Context
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_BFLOAT, DL_BOOL, DL_FLOAT, DL_INT, DL_UINT, ERR_ALLOC, ERR_INDEX, ERR_SHAPE, ERR_TYPE, ERR_VALUE, VT_ARRAY,
    VT_BOOL, VT_DTYPE, VT_INT, VT_OBJECT, VT_OPAQUE_PTR, VT_SHAPE, ArrayObj, DLTensor, Value, VmDataType,
    dltensor_data, dltensor_is_compact, fail_format, value_copy, value_dltensor, value_dtype, value_is_writable,
    value_ptr, value_retain, value_type,
)

cdef extern from *:
    bint __builtin_mul_overflow(int64_t a, int64_t b, int64_t* out) nogil
    bint __builtin_add_overflow(int64_t a, int64_t b, int64_t* out) nogil
    bint __builtin_sub_overflow(int64_t a, int64_t b, int64_t* out) nogil


cdef inline int wrong_arity(const char* name, const char* expected, int32_t n_args) noexcept nogil:
    return fail_format(fail, ERR_TYPE, "%s: expected %s arguments, got %d", name, expected, n_args)


cdef inline int wrong_kind(const char* name, int32_t i, const char* expected, const Value* v) noexcept nogil:
    return fail_format(
        fail, ERR_TYPE, "%s: argument #%d: expected %s, got %s", name, i, expected, value_kind_name(v)
    )


cdef inline int no_memory(const char* name, int64_t nbytes) noexcept nogil:
    return fail_format(fail, ERR_ALLOC, "%s: no memory for %lld bytes", name, <long long>nbytes)


cdef inline bint is_int(const Value* v) noexcept nogil:
    return value_type(v) == VT_INT or value_type(v) == VT_BOOL


cdef inline const char* text_of(const Value* v, char* buffer) noexcept nogil:
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


cdef inline bint dtype_of_text(const char* text, uint64_t size, VmDataType* out) noexcept nogil:
    """out := the type of a name such as "float32"; whether it is one."""
    cdef uint64_t i
    cdef int32_t bits = 0
    out.lanes = 1
    if size == 4 and memcmp(text, "bool", 4) == 0:
        out.code, out.bits = DL_BOOL, 8
        return True
    if size > 3 and memcmp(text, "int", 3) == 0:
        out.code, i = DL_INT, 3
    elif size > 4 and memcmp(text, "uint", 4) == 0:
        out.code, i = DL_UINT, 4
    elif size > 5 and memcmp(text, "float", 5) == 0:
        out.code, i = DL_FLOAT, 5
    elif size > 6 and memcmp(text, "bfloat", 6) == 0:
        out.code, i = DL_BFLOAT, 6
    else:
        return False
    while i < size:
        if not 48 <= text[i] <= 57 or bits > 25:
            return False
        bits = 10 * bits + text[i] - 48
        i += 1
    if not 0 < bits < 256:
        return False
    out.bits = <unsigned char>bits
    return True


cdef inline int dtype_of(const char* name, int32_t i, const Value* v, VmDataType* out) noexcept nogil:
    """out := the element type in argument `i`: a DataType, or the name of one, as in TVM."""
    cdef uint64_t size = 0
    cdef const char* text
    if value_type(v) == VT_DTYPE:
        out[0] = value_dtype(v)
        return 0
    text = value_str(v, &size)
    if text == NULL:
        return wrong_kind(name, i, "DataType", v)
    if not dtype_of_text(text, size, out):
        return fail_format(
            fail, ERR_VALUE, "%s: argument #%d: \"%.*s\" is not a data type", name, i,
            <int>size if size < 64 else 64, text,
        )
    return 0


cdef inline const int64_t* shape_of_value(
    const char* name, int32_t i, const char* expected, const Value* v, int64_t* buffer, int64_t* size
) noexcept nogil:
    """Dimensions in argument `i`, a Shape or a tuple of ints (then in `buffer`, VM_MAX_NDIM long); NULL: an error."""
    cdef ShapeObj* shape
    cdef ArrayObj* array
    cdef int64_t k
    if value_type(v) == VT_SHAPE:
        shape = <ShapeObj*>value_ptr(v)
        size[0] = <int64_t>shape.size
        return shape.data
    if value_type(v) != VT_ARRAY:
        wrong_kind(name, i, expected, v)
        return NULL
    array = <ArrayObj*>value_ptr(v)
    size[0] = array.size
    if array.size > VM_MAX_NDIM:
        fail_format(
            fail, ERR_SHAPE, "%s: argument #%d: %lld dimensions, at most %d", name, i, <long long>array.size,
            VM_MAX_NDIM,
        )
        return NULL
    for k in range(array.size):
        if not is_int(&array.data[k]):
            wrong_kind(name, i, "a tuple of ints", &array.data[k])
            return NULL
        buffer[k] = array.data[k].bits
    return buffer


cdef inline int64_t* heap_of(const char* name, const Value* v, int64_t* size, bint write) noexcept nogil:
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


cdef inline int bad_slot(const char* name, int64_t slot, int64_t size) noexcept nogil:
    return fail_format(
        fail, ERR_INDEX, "%s: heap index %lld is outside a shape heap of %lld", name, <long long>slot, <long long>size
    )


cdef inline Context* context_of(const char* name, const Value* v) noexcept nogil:
    """The running invocation behind the VM operand. Only the decoder makes such values, and they cannot be stored."""
    if value_type(v) != VT_OPAQUE_PTR or v.bits == 0:
        wrong_kind(name, 0, "the virtual machine (%vm)", v)
        return NULL
    return <Context*>value_ptr(v)


cdef inline int keep(const char* name, int32_t i, const Value* source, Value* out) noexcept nogil:
    """out := source with a reference of its own; refuses what must not outlive a call."""
    cdef int32_t kind = value_type(source)
    if kind == VT_OPAQUE_PTR or (7 <= kind < VT_OBJECT and kind != 11 and kind != 12):
        return wrong_kind(name, i, "a value that can be stored", source)
    value_retain(source)
    value_copy(out, source)
    return 0


cdef inline int read_integer(const DLTensor* t, int64_t i, int64_t* out) noexcept nogil:
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
