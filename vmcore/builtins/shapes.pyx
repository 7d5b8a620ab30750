"""Builtins over the shape heap: shapes matched, made, read from tensors, and computed."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from vmcore.builtins.arguments cimport (
    __builtin_add_overflow, __builtin_mul_overflow, __builtin_sub_overflow, bad_slot, context_of, heap_of, is_int,
    no_memory, read_integer, text_of, wrong_arity, wrong_kind, shape_of_value,
)
from vmcore.builtins.tensors cimport new_tensor, own_tensor
from vmcore.objects cimport VM_MAX_NDIM, ShapeObj, shape_new, value_str
from vmcore.program cimport Context
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_INT, ERR_INTERNAL, ERR_SHAPE, ERR_TYPE, ERR_VALUE, VT_NONE, VT_SHAPE, DLTensor, TensorObj, Value, VmDataType,
    dltensor_describe, dltensor_is_compact, dltensor_numel, fail_format, object_release, value_dltensor, value_ptr,
    value_set_int, value_set_object, value_type,
)


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


cdef const int64_t* dims_of(const char* name, const Value* v, int64_t* buffer, int64_t* size) noexcept nogil:
    """Dimensions of a Tensor, or as in `shape_of_value`; NULL after an error was stored."""
    cdef const DLTensor* t = value_dltensor(v)
    if t != NULL:
        size[0] = t.ndim
        return t.shape
    return shape_of_value(name, 0, "Tensor or Shape", v, buffer, size)


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
    cdef int64_t buffer[64]
    cdef const int64_t* dims
    cdef int64_t* heap = NULL
    cdef char context[256]
    if n_args < 4:
        return wrong_arity("match_shape", "at least 4", n_args)
    dims = dims_of("match_shape", &args[0], buffer, &size)
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
