"""Builtins that check arguments against their declared types, with the texts of TVM's errors."""
from libc.stdint cimport int32_t, int64_t
from libc.stdio cimport snprintf

from vmcore.builtins.arguments cimport dtype_of, is_int, text_of, wrong_arity, wrong_kind
from vmcore.objects cimport ShapeObj, value_kind_name, value_str
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_BOOL, DL_FLOAT, DL_INT, DL_UINT, ERR_DTYPE, ERR_SHAPE, ERR_TYPE, VT_ARRAY, VT_BOOL, VT_CLOSURE, VT_DTYPE,
    VT_FLOAT, VT_FUNCTION, VT_INT, VT_NONE, VT_SHAPE, VT_TENSOR, ArrayObj, DLTensor, TensorObj, Value, VmDataType,
    dtype_same, fail_format, value_dltensor, value_dtype, value_ptr, value_type,
)


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
    cdef VmDataType dtype
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
        if dtype_of("check_tensor_info", 2, &args[2], &dtype) != 0:
            return -1
        if not dtype_same(dtype, t.dtype):
            return fail_format(
                fail, ERR_DTYPE, "%sexpect Tensor with dtype %s but get %s", text_of(&args[n_args - 1], context),
                dtype_text(dtype, expected), dtype_text(t.dtype, actual),
            )
    return 0


cdef int check_size(const char* what, const Value* expected, int64_t size, const Value* context) noexcept nogil:
    """Compares a size with the expected one; -1 is any for a Shape, as for a Tensor, and none for a tuple."""
    cdef char text[256]
    if not is_int(expected):
        return wrong_kind(what, 1, "int", expected)
    if expected.bits != size and (expected.bits != -1 or what[0] == 116):  # "t"uple
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
    cdef char context[256]
    if n_args != 3:
        return wrong_arity("check_prim_value_info", "3", n_args)
    if dtype_of("check_prim_value_info", 1, &args[1], &dtype) != 0:
        return -1
    kind = value_type(&args[0])
    if dtype.code == DL_FLOAT:
        fits = kind == VT_FLOAT or kind == VT_INT or kind == VT_BOOL
    else:
        fits = kind == VT_INT or kind == VT_BOOL
    if fits:
        return 0
    if kind == VT_TENSOR and (<TensorObj*>value_ptr(&args[0])).dl.ndim == 0:
        return fail_format(
            fail, ERR_TYPE, "%sexpect a %s but get Tensor (a numpy scalar is one of 0 dimensions: pass x.item())",
            text_of(&args[2], context), dtype_text(dtype, name),
        )
    return wrong_info(dtype_text(dtype, name), &args[0], &args[2])


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
