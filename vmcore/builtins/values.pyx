"""Builtins over values of any kind: copies, tuples, conditions, closures and calls of them."""
from libc.stdint cimport int32_t, int64_t, uint32_t

from vmcore.builtins.arguments cimport (
    context_of, is_int, keep, no_memory, shape_of_value, wrong_arity, wrong_kind,
)
from vmcore.loop cimport call_nested, in_native
from vmcore.objects cimport ClosureObj, array_new, closure_new
from vmcore.program cimport Context
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_BOOL, DL_INT, DL_UINT, ERR_INDEX, ERR_INTERNAL, ERR_SHAPE, ERR_TYPE, ERR_VALUE, VT_ARRAY, VT_CLOSURE,
    VT_FUNCTION, ArrayObj, DLTensor, FunctionObj, Value, VmDataType, dltensor_data, dltensor_describe,
    dltensor_numel, dtype_bytes, fail_format, object_release, value_clear, value_copy, value_dltensor, value_ptr,
    value_retain, value_set_bool, value_set_int, value_set_object, value_type,
)


cdef int b_null_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 0:
        return wrong_arity("null_value", "0", n_args)
    return 0


cdef int b_copy(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if n_args != 1:
        return wrong_arity("copy", "1", n_args)
    return keep("copy", 0, &args[0], ret)


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
    cdef const int64_t* dims
    cdef int64_t buffer[64]
    cdef int64_t size
    cdef int32_t i, n = n_args - 2
    if n_args < 2:
        return fail_format(
            fail, ERR_TYPE, "call_tir_dyn: expected a function, tensors and a Shape, got %d arguments", n_args
        )
    dims = shape_of_value("call_tir_dyn", n_args - 1, "Shape", &args[n_args - 1], buffer, &size)
    if dims == NULL:
        return -1
    if n + size > 128:
        return fail_format(
            fail, ERR_VALUE, "call_tir_dyn: %d tensors and %lld dimensions, at most 128", n, <long long>size
        )
    for i in range(n):
        value_copy(&expanded[i], &args[i + 1])
    for i in range(<int32_t>size):
        value_set_int(&expanded[n + i], dims[i])
    return call_function("call_tir_dyn", &args[0], expanded, n + <int32_t>size, ret)
