"""Kernels that move elements without computing: transpose, concat, slice, pad, tile, fill, ... .

All element types go by item size. Most kernels build a View and leave the loops to strided.h. Outputs share no byte
with inputs.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from vmcore.kernels.args cimport (
    ARGS_MAX_NDIM, ARG_FAIL, ArgShape, ArgTensor, arg_axis, arg_count, arg_count_min, arg_fail_kind, arg_fail_one,
    arg_fail_pair, arg_float, arg_int, arg_int_in, arg_output, arg_shape_in, arg_shape_sized, arg_tensor, args_bind,
    check_disjoint, check_out_shape, check_same_dtype, check_same_shape,
)
from vmcore.status cimport fail
from vmcore.value cimport (
    DL_INT, ERR_DTYPE, ERR_INDEX, ERR_SHAPE, ERR_VALUE, KernelEntry, VT_BOOL, VT_FLOAT, VT_INT, Value, VmDataType,
    value_dltensor, value_float, value_type,
)

cdef extern from "vmcore/kernels/strided.h" nogil:
    ctypedef struct View:
        int32_t ndim
    void view_push(View* v, int64_t dim, int64_t to, int64_t from_)
    void strided_copy(View* v, char* dst, const char* src, int64_t item)
    void fill_pattern(char* dst, const char* value, int64_t n, int64_t item)

cdef extern from "vmcore/kernels/cast.h" nogil:
    enum:
        K_NONE, K_BOOL, K_I64, K_F64
    int kernel_dtype(VmDataType t)
    int vm_isa_detect()
    void cast_init(int isa)
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)

cdef enum:
    MAX_PAD = 0x10000000000  # keeps sums of dimensions and pads far from overflow


cdef int moved(const char* op, const ArgTensor* x, const ArgTensor* out) noexcept nogil:
    """x's elements may be moved to out: one dtype, no shared byte."""
    if check_same_dtype(op, x, out) or check_disjoint(op, x, out):
        return -1
    return 0


cdef void byte_strides(const ArgTensor* x, int64_t* strides) noexcept nogil:
    cdef int64_t step = x.itemsize
    cdef int32_t d
    for d in range(x.ndim - 1, -1, -1):
        strides[d] = step
        step *= x.shape[d]


cdef int transpose(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """transpose(x, perm, out): out.shape[d] = x.shape[perm[d]]."""
    cdef const char* op = "transpose"
    cdef ArgTensor x, out
    cdef ArgShape perm
    cdef int64_t[ARGS_MAX_NDIM] from_, to, shape
    cdef View view
    cdef int32_t d
    cdef int64_t seen = 0
    if (arg_count(op, n_args, 3) or arg_tensor(op, args, 0, &x)
            or arg_shape_in(op, args, 1, x.ndim, 0, x.ndim - 1, &perm) or arg_output(op, args, 2, &out)
            or moved(op, &x, &out)):
        return -1
    for d in range(x.ndim):
        shape[d] = x.shape[perm.data[d]]
        seen |= 1 << perm.data[d]
    if seen != (1 << x.ndim) - 1:
        return ARG_FAIL(ERR_VALUE, "transpose: the permutation names an axis twice")
    if check_out_shape(op, &out, x.ndim, shape):
        return -1
    byte_strides(&x, from_)
    byte_strides(&out, to)
    view.ndim = 0
    for d in range(x.ndim):
        view_push(&view, shape[d], to[d], from_[perm.data[d]])
    strided_copy(&view, out.data, x.data, x.itemsize)
    return 0


cdef int concat(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """concat(x1, ..., xn, axis, out)."""
    cdef const char* op = "concat"
    cdef ArgTensor x, out
    cdef int64_t axis, total = 0, outer = 1, inner, run, row, at = 0
    cdef int32_t i, d
    cdef char* dst
    cdef View view
    if (arg_count_min(op, n_args, 3) or arg_output(op, args, n_args - 1, &out)
            or arg_axis(op, args, n_args - 2, out.ndim, &axis)):
        return -1
    for i in range(n_args - 2):
        if arg_tensor(op, args, i, &x) or moved(op, &x, &out):
            return -1
        if x.ndim != out.ndim:
            return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "output", &out)
        for d in range(x.ndim):
            if d != axis and x.shape[d] != out.shape[d]:
                return arg_fail_pair(op, ERR_SHAPE, "a dimension other than the axis differs", "input", &x, "output",
                                     &out)
        total += x.shape[axis]
        if total > out.shape[axis]:
            break
    if total != out.shape[axis]:
        return ARG_FAIL(ERR_SHAPE, "concat: the output has %lld along axis %lld, the inputs have %s%lld",
                        <long long>out.shape[axis], <long long>axis,
                        <const char*>"at least " if total > out.shape[axis] else <const char*>"", <long long>total)
    if out.numel == 0:
        return 0
    inner = out.itemsize
    for d in range(axis):
        outer *= out.shape[d]
    for d in range(<int32_t>axis + 1, out.ndim):
        inner *= out.shape[d]
    row = inner * out.shape[axis]
    for i in range(n_args - 2):
        if arg_tensor(op, args, i, &x):
            return -1
        run = x.shape[axis] * inner
        dst = out.data + at
        view.ndim = 0
        view_push(&view, outer, row, run)
        view_push(&view, run // out.itemsize, out.itemsize, out.itemsize)
        strided_copy(&view, dst, x.data, out.itemsize)
        at += run
    return 0


cdef int strided_slice(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """strided_slice(x, begins, steps, out): out[i, ...] = x[begin + i * step, ...]; extents come from out."""
    cdef const char* op = "strided_slice"
    cdef ArgTensor x, out
    cdef ArgShape begins, steps
    cdef int64_t[ARGS_MAX_NDIM] from_, to
    cdef int64_t offset = 0, begin, step, n
    cdef int32_t d
    cdef View view
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_shape_sized(op, args, 1, x.ndim, &begins)
            or arg_shape_in(op, args, 2, x.ndim, -MAX_PAD, MAX_PAD, &steps) or arg_output(op, args, 3, &out)
            or moved(op, &x, &out)):
        return -1
    if out.ndim != x.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "output", &out)
    if out.numel == 0:
        return 0
    byte_strides(&x, from_)
    byte_strides(&out, to)
    view.ndim = 0
    for d in range(x.ndim):
        begin = begins.data[d]
        step = steps.data[d]
        n = out.shape[d]
        if (begin < 0 or begin >= x.shape[d] or n > 1 and (
                step == 0 or step > 0 and (x.shape[d] - 1 - begin) // step < n - 1
                or step < 0 and begin // -step < n - 1)):
            return ARG_FAIL(ERR_INDEX, "strided_slice: %lld elements from %lld in steps of %lld leave dimension %d of "
                            "size %lld", <long long>n, <long long>begin, <long long>step, d, <long long>x.shape[d])
        offset += begin * from_[d]
        view_push(&view, n, to[d], step * from_[d])
    strided_copy(&view, out.data, x.data + offset, x.itemsize)
    return 0


cdef int broadcast_to(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """broadcast_to(x, out): numpy broadcasting of x to out's shape."""
    cdef const char* op = "broadcast_to"
    cdef ArgTensor x, out
    cdef int64_t[ARGS_MAX_NDIM] from_, to
    cdef int32_t d, lead
    cdef View view
    if (arg_count(op, n_args, 2) or arg_tensor(op, args, 0, &x) or arg_output(op, args, 1, &out)
            or moved(op, &x, &out)):
        return -1
    lead = out.ndim - x.ndim
    byte_strides(&x, from_)
    byte_strides(&out, to)
    view.ndim = 0
    for d in range(out.ndim):
        if d < lead or x.shape[d - lead] == 1:
            view_push(&view, out.shape[d], to[d], 0)
        elif x.shape[d - lead] == out.shape[d]:
            view_push(&view, out.shape[d], to[d], from_[d - lead])
        else:
            lead = -1
            break
    if lead < 0:
        return arg_fail_pair(op, ERR_SHAPE, "the input does not broadcast to the output", "input", &x, "output", &out)
    strided_copy(&view, out.data, x.data, x.itemsize)
    return 0


cdef int tile(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """tile(x, out): x repeated out.shape[d] / x.shape[d] times along each dimension."""
    cdef const char* op = "tile"
    cdef ArgTensor x, out
    cdef int64_t[ARGS_MAX_NDIM] from_, to
    cdef int32_t d
    cdef View view
    if (arg_count(op, n_args, 2) or arg_tensor(op, args, 0, &x) or arg_output(op, args, 1, &out)
            or moved(op, &x, &out)):
        return -1
    if x.ndim != out.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "output", &out)
    byte_strides(&x, from_)
    byte_strides(&out, to)
    view.ndim = 0
    for d in range(x.ndim):
        if out.shape[d] and (x.shape[d] == 0 or out.shape[d] % x.shape[d] != 0):
            return arg_fail_pair(op, ERR_SHAPE, "the output is not a multiple of the input", "input", &x, "output",
                                 &out)
        if out.shape[d] == 0:
            continue
        view_push(&view, out.shape[d] // x.shape[d], to[d] * x.shape[d], 0)
        view_push(&view, x.shape[d], to[d], from_[d])
    if out.numel:
        strided_copy(&view, out.data, x.data, x.itemsize)
    return 0


cdef int scalar_bytes(const char* op, const Value* args, int32_t i, const ArgTensor* out, char* value) noexcept nogil:
    """The number (or tensor of one element) in argument i as one element of out's type, in value[0:16]."""
    cdef ArgTensor x
    cdef int kind = value_type(&args[i]), dtype
    cdef double d
    cdef int64_t n
    memset(value, 0, 16)
    if value_dltensor(&args[i]) != NULL:
        if arg_tensor(op, args, i, &x) or check_same_dtype(op, &x, out):
            return -1
        if x.numel != 1 or x.itemsize > 16:
            return arg_fail_one(op, ERR_SHAPE, "the value must have one element", "value", &x)
        memcpy(value, x.data, x.itemsize)
        return 0
    dtype = kernel_dtype(out.dtype)
    if dtype == K_NONE:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "output", out)
    if kind == VT_FLOAT:
        d = value_float(&args[i])
        cast_elements(<char*>&d, K_F64, 8, value, dtype, out.itemsize, 1)
    elif kind == VT_INT or kind == VT_BOOL:
        n = args[i].bits
        cast_elements(<char*>&n, K_I64, 8, value, dtype, out.itemsize, 1)
    else:
        return arg_fail_kind(op, i, "a number or a tensor", &args[i])
    return 0


cdef int fill(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """fill(value, out): every element is value (a number, or a tensor of one element)."""
    cdef ArgTensor out
    cdef char[16] value
    if (arg_count("fill", n_args, 2) or arg_output("fill", args, 1, &out)
            or scalar_bytes("fill", args, 0, &out, value)):
        return -1
    fill_pattern(out.data, value, out.numel, out.itemsize)
    return 0


cdef int copy(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """copy(x, out): the same elements in the same order; shapes may differ."""
    cdef ArgTensor x, out
    if (arg_count("copy", n_args, 2) or arg_tensor("copy", args, 0, &x) or arg_output("copy", args, 1, &out)
            or moved("copy", &x, &out)):
        return -1
    if x.numel != out.numel:
        return arg_fail_pair("copy", ERR_SHAPE, "numbers of elements differ", "input", &x, "output", &out)
    if x.numel:
        memcpy(out.data, x.data, x.nbytes)
    return 0


cdef int arange(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """arange(start, step, out): out[i] = start + i * step, computed in int64 (wrapping) or float64."""
    cdef const char* op = "arange"
    cdef ArgTensor out
    cdef double start, step
    cdef double[64] reals
    cdef int64_t[64] ints
    cdef int64_t i, j, n
    cdef int dtype
    cdef bint whole
    if (arg_count(op, n_args, 3) or arg_output(op, args, 2, &out) or arg_float(op, args, 0, &start)
            or arg_float(op, args, 1, &step)):
        return -1
    dtype = kernel_dtype(out.dtype)
    if dtype == K_NONE or dtype == K_BOOL:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "output", &out)
    whole = value_type(&args[0]) != VT_FLOAT and value_type(&args[1]) != VT_FLOAT
    for i in range(0, out.numel, 64):
        n = min(<int64_t>64, out.numel - i)
        for j in range(n):
            if whole:
                ints[j] = <int64_t>(<unsigned long long>args[0].bits
                                    + <unsigned long long>(i + j) * <unsigned long long>args[1].bits)
            else:
                reals[j] = start + <double>(i + j) * step
        cast_elements(<char*>ints if whole else <char*>reals, K_I64 if whole else K_F64, 8,
                      out.data + i * out.itemsize, dtype, out.itemsize, n)
    return 0


cdef inline int64_t pad_source(int64_t i, int64_t n, int64_t mode) noexcept nogil:
    """Index in [0, n) that position i (may be negative or beyond) of a padded dimension repeats."""
    cdef int64_t period
    if mode == 2:
        return 0 if i < 0 else n - 1 if i >= n else i
    period = n if mode == 3 else max(<int64_t>1, 2 * (n - 1))
    i %= period
    if i < 0:
        i += period
    return i if i < n else period - i


cdef int pad(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """pad(x, pads, mode, value, out): mode 0 constant, 1 reflect, 2 edge, 3 wrap; pads: all begins, then all ends."""
    cdef const char* op = "pad"
    cdef ArgTensor x, out
    cdef ArgShape pads
    cdef int64_t[ARGS_MAX_NDIM] from_, to, shape, low
    cdef int64_t mode, begin, end, i, source, offset_from = 0, offset_to = 0
    cdef int32_t d, k
    cdef char[16] value
    cdef View view
    if (arg_count(op, n_args, 5) or arg_tensor(op, args, 0, &x)
            or arg_shape_in(op, args, 1, 2 * x.ndim, -MAX_PAD, MAX_PAD, &pads) or arg_int_in(op, args, 2, 0, 3, &mode)
            or arg_output(op, args, 4, &out) or moved(op, &x, &out)):
        return -1
    if mode == 0:
        if scalar_bytes(op, args, 3, &out, value):
            return -1
    for d in range(x.ndim):
        begin = pads.data[d]
        end = pads.data[x.ndim + d]
        if mode != 0 and (begin < 0 or end < 0 or (x.shape[d] == 0 and begin + end > 0)):
            return ARG_FAIL(ERR_VALUE, "pad: only constant padding takes negative pads or empty dimensions; dimension "
                            "%d of size %lld has %lld and %lld", d, <long long>x.shape[d], <long long>begin,
                            <long long>end)
        shape[d] = x.shape[d] + begin + end
    if check_out_shape(op, &out, x.ndim, shape):
        return -1
    if out.numel == 0:
        return 0
    byte_strides(&x, from_)
    byte_strides(&out, to)
    view.ndim = 0
    for d in range(x.ndim):  # the part of x that stays, to its place in out
        low[d] = max(<int64_t>0, pads.data[d])
        offset_from += max(<int64_t>0, -pads.data[d]) * from_[d]
        offset_to += low[d] * to[d]
        shape[d] = max(<int64_t>0, x.shape[d] + min(<int64_t>0, pads.data[d]) + min(<int64_t>0, pads.data[x.ndim + d]))
        view_push(&view, shape[d], to[d], from_[d])
    if mode == 0 and x.numel != out.numel:
        fill_pattern(out.data, value, out.numel, out.itemsize)
    strided_copy(&view, out.data + offset_to, x.data + offset_from, x.itemsize)
    if mode == 0:
        return 0
    # Then dimension by dimension, innermost first: each padded slot repeats a slot that is complete along all inner
    # dimensions.
    for d in range(x.ndim - 1, -1, -1):
        offset_to -= low[d] * to[d]
        for i in range(out.shape[d]):
            if low[d] <= i < low[d] + x.shape[d]:
                continue
            source = pad_source(i - low[d], x.shape[d], mode) + low[d]
            view.ndim = 0
            for k in range(d):
                view_push(&view, x.shape[k], to[k], to[k])
            view_push(&view, to[d] // out.itemsize, out.itemsize, out.itemsize)
            strided_copy(&view, out.data + offset_to + i * to[d], out.data + offset_to + source * to[d], out.itemsize)
    return 0


cdef int trilu(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """trilu(x, k, upper, out): the upper (lower) triangle from diagonal k of the last two dimensions, else 0."""
    cdef const char* op = "trilu"
    cdef ArgTensor x, out
    cdef int64_t k, upper, rows, columns, r, row, edge, low, high, item
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_int(op, args, 1, &k)
            or arg_int(op, args, 2, &upper) or arg_output(op, args, 3, &out) or moved(op, &x, &out)
            or check_same_shape(op, &x, &out)):
        return -1
    if x.ndim < 2:
        return arg_fail_one(op, ERR_SHAPE, "needs at least 2 dimensions", "input", &x)
    if x.numel == 0:
        return 0
    columns = x.shape[x.ndim - 1]
    rows = x.shape[x.ndim - 2]
    item = x.itemsize
    k = max(-rows, min(columns, k))
    memset(out.data, 0, out.nbytes)
    for r in range(x.numel // columns):
        edge = r % rows + k  # first column of the diagonal
        low = max(<int64_t>0, min(columns, edge)) if upper else 0
        high = columns if upper else max(<int64_t>0, min(columns, edge + 1))
        row = r * columns
        if low < high:
            memcpy(out.data + (row + low) * item, x.data + (row + low) * item, (high - low) * item)
    return 0


cdef int eye(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """eye(k, out): ones on diagonal k of a matrix, zeros elsewhere."""
    cdef ArgTensor out
    cdef int64_t k, r, one = 1
    cdef char[16] value
    cdef int dtype
    if arg_count("eye", n_args, 2) or arg_int("eye", args, 0, &k) or arg_output("eye", args, 1, &out):
        return -1
    if out.ndim != 2:
        return arg_fail_one("eye", ERR_SHAPE, "needs a matrix", "output", &out)
    dtype = kernel_dtype(out.dtype)
    if dtype == K_NONE:
        return arg_fail_one("eye", ERR_DTYPE, "no kernel for this element type", "output", &out)
    if out.numel == 0:
        return 0
    memset(out.data, 0, out.nbytes)
    cast_elements(<char*>&one, K_I64, 8, value, dtype, out.itemsize, 1)
    k = max(-out.shape[0], min(out.shape[1], k))
    for r in range(out.shape[0]):
        if 0 <= r + k < out.shape[1]:
            memcpy(out.data + (r * out.shape[1] + r + k) * out.itemsize, value, out.itemsize)
    return 0


cdef int check_blocks(const char* op, const Value* args, int32_t n_out, ArgTensor* x, int64_t* block, ArgTensor* out,
                      bint to_space) noexcept nogil:
    """x (n, c, h, w) against out for depth_to_space, or with the roles exchanged."""
    cdef ArgTensor* deep = x if to_space else out
    cdef ArgTensor* wide = out if to_space else x
    if (arg_tensor(op, args, 0, x) or arg_int_in(op, args, 1, 1, 1 << 20, block) or arg_output(op, args, n_out, out)
            or moved(op, x, out)):
        return -1
    if x.ndim != 4 or out.ndim != 4:
        return arg_fail_pair(op, ERR_SHAPE, "needs 4 dimensions", "input", x, "output", out)
    if wide.shape[2] % block[0] or wide.shape[3] % block[0]:
        return arg_fail_one(op, ERR_SHAPE, "height and width must be multiples of the block", "wide side", wide)
    if (deep.shape[0] != wide.shape[0] or deep.shape[2] != wide.shape[2] // block[0]
            or deep.shape[3] != wide.shape[3] // block[0] or deep.shape[1] % (block[0] * block[0])
            or deep.shape[1] // (block[0] * block[0]) != wide.shape[1]):
        return arg_fail_pair(op, ERR_SHAPE, "shapes do not fit each other and the block", "input", x, "output", out)
    return 0


cdef int depth_to_space(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """depth_to_space(x, block, mode, out): mode 0 DCR (depth, column, row), 1 CRD."""
    cdef ArgTensor x, out
    cdef int64_t block, mode, n, c, h, w, item, plane, c_step, i_step, j_step
    cdef View view
    if (arg_count("depth_to_space", n_args, 4) or arg_int_in("depth_to_space", args, 2, 0, 1, &mode)
            or check_blocks("depth_to_space", args, 3, &x, &block, &out, True)):
        return -1
    if x.numel == 0:
        return 0
    n, c, h, w, item = x.shape[0], out.shape[1], x.shape[2], x.shape[3], x.itemsize
    plane = h * w * item
    if mode == 0:  # x: (n, block i, block j, c, h, w)
        c_step, i_step, j_step = plane, block * c * plane, c * plane
    else:  # x: (n, c, block i, block j, h, w)
        c_step, i_step, j_step = block * block * plane, block * plane, plane
    view.ndim = 0
    view_push(&view, n, c * block * block * plane, c * block * block * plane)
    view_push(&view, c, block * block * plane, c_step)
    view_push(&view, h, block * block * w * item, w * item)
    view_push(&view, block, block * w * item, i_step)
    view_push(&view, w, block * item, item)
    view_push(&view, block, item, j_step)
    strided_copy(&view, out.data, x.data, item)
    return 0


cdef int space_to_depth(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """space_to_depth(x, block, out): the inverse of depth_to_space in mode DCR."""
    cdef ArgTensor x, out
    cdef int64_t block, n, c, h, w, item, plane
    cdef View view
    if (arg_count("space_to_depth", n_args, 3)
            or check_blocks("space_to_depth", args, 2, &x, &block, &out, False)):
        return -1
    if x.numel == 0:
        return 0
    n, c, h, w, item = x.shape[0], x.shape[1], out.shape[2], out.shape[3], x.itemsize
    plane = h * w * item
    view.ndim = 0
    view_push(&view, n, c * block * block * plane, c * block * block * plane)
    view_push(&view, block, block * c * plane, block * w * item)
    view_push(&view, block, c * plane, item)
    view_push(&view, c, plane, block * block * plane)
    view_push(&view, h, w * item, block * block * w * item)
    view_push(&view, w, item, block * item)
    strided_copy(&view, out.data, x.data, item)
    return 0


cdef int reverse_sequence(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """reverse_sequence(x, lens, batch_axis, time_axis, out): the first lens[b] steps of batch entry b reversed."""
    cdef const char* op = "reverse_sequence"
    cdef ArgTensor x, lens, out
    cdef int64_t batch_axis, time_axis, b, n, base
    cdef int64_t[ARGS_MAX_NDIM] strides
    cdef int32_t d, part
    cdef View view
    if (arg_count(op, n_args, 5) or arg_tensor(op, args, 0, &x) or arg_tensor(op, args, 1, &lens)
            or arg_axis(op, args, 2, x.ndim, &batch_axis) or arg_axis(op, args, 3, x.ndim, &time_axis)
            or arg_output(op, args, 4, &out) or moved(op, &x, &out) or check_same_shape(op, &x, &out)
            or check_disjoint(op, &lens, &out)):
        return -1
    if batch_axis == time_axis:
        return ARG_FAIL(ERR_VALUE, "reverse_sequence: batch and time axis are both %lld", <long long>time_axis)
    if lens.dtype.code != DL_INT or (lens.dtype.bits != 64 and lens.dtype.bits != 32):
        return arg_fail_one(op, ERR_DTYPE, "lengths must be int32 or int64", "lengths", &lens)
    if lens.ndim != 1 or lens.shape[0] != x.shape[batch_axis]:
        return arg_fail_pair(op, ERR_SHAPE, "needs one length per batch entry", "input", &x, "lengths", &lens)
    if x.numel == 0:
        return 0
    byte_strides(&x, strides)
    for b in range(x.shape[batch_axis]):
        n = (<const int64_t*>lens.data)[b] if lens.itemsize == 8 else (<const int32_t*>lens.data)[b]
        if n < 0 or n > x.shape[time_axis]:
            return ARG_FAIL(ERR_INDEX, "reverse_sequence: length %lld of batch entry %lld is not in 0 .. %lld",
                            <long long>n, <long long>b, <long long>x.shape[time_axis])
        base = b * strides[batch_axis]
        for part in range(2):  # the reversed steps, then the others
            view.ndim = 0
            for d in range(x.ndim):
                if d == batch_axis:
                    continue
                if d != time_axis:
                    view_push(&view, x.shape[d], strides[d], strides[d])
                elif part == 0:
                    view_push(&view, n, strides[d], -strides[d])
                else:
                    view_push(&view, x.shape[d] - n, strides[d], strides[d])
            if part == 0 and n > 0:
                strided_copy(&view, out.data + base, x.data + base + (n - 1) * strides[time_axis], x.itemsize)
            elif part == 1:
                strided_copy(&view, out.data + base + n * strides[time_axis], x.data + base + n * strides[time_axis],
                             x.itemsize)
    return 0


cdef KernelEntry[14] _table
_table[0] = KernelEntry("kernel.transpose", transpose, 0.1)
_table[1] = KernelEntry("kernel.concat", concat, 0.03)
_table[2] = KernelEntry("kernel.strided_slice", strided_slice, 0.05)
_table[3] = KernelEntry("kernel.broadcast_to", broadcast_to, 0.03)
_table[4] = KernelEntry("kernel.tile", tile, 0.05)
_table[5] = KernelEntry("kernel.fill", fill, 0.02)
_table[6] = KernelEntry("kernel.copy", copy, 0.03)
_table[7] = KernelEntry("kernel.arange", arange, 0.2)
_table[8] = KernelEntry("kernel.pad", pad, 0.05)
_table[9] = KernelEntry("kernel.trilu", trilu, 0.05)
_table[10] = KernelEntry("kernel.eye", eye, 0.05)
_table[11] = KernelEntry("kernel.depth_to_space", depth_to_space, 0.1)
_table[12] = KernelEntry("kernel.space_to_depth", space_to_depth, 0.1)
_table[13] = KernelEntry("kernel.reverse_sequence", reverse_sequence, 0.05)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = sizeof(_table) // sizeof(_table[0])
    return _table


args_bind(fail)
cast_init(vm_isa_detect())
