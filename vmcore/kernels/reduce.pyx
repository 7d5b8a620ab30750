"""Reductions over any axes, argmax, argmin and cumsum. Loops are in reduce.h.

Sums of float32 are collected in double per block of a row. max and min pass NaN on. Integer sums and products wrap.
float16 and bfloat16 are reduced as float32.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from vmcore.kernels.args cimport (
    ARGS_MAX_NDIM, ARG_FAIL, ArgShape, ArgTensor, arg_axis, arg_count, arg_fail_one, arg_fail_pair, arg_int,
    arg_output, arg_shape, arg_tensor, args_bind, check_disjoint, check_dtype, check_same_dtype, check_same_shape,
)
from vmcore.kernels.workspace cimport SLOT_OTHER, workspace
from vmcore.status cimport fail
from vmcore.value cimport DL_BOOL, DL_INT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, ERR_VALUE, KernelEntry, Value, VmDataType

cdef extern from "vmcore/kernels/reduce.h" nogil:
    enum:
        K_NONE, K_BOOL, K_F16, K_BF16, K_F32, K_F64
        R_sum, R_abs, R_square, R_max, R_min, R_prod
        FINISH_NONE, FINISH_MEAN, FINISH_SQRT, FINISH_LOG
    ctypedef void (*ReduceLoop)(const void* x, int64_t n, void* acc) noexcept nogil
    ctypedef struct ReducePair:
        ReduceLoop row, column
    ReducePair reduce_pairs[13][6]
    ctypedef void (*ArgExtremeLoop)(const void* x, int64_t outer, int64_t n, int64_t inner, bint smallest, bint last,
                                    int64_t* out) noexcept nogil
    ArgExtremeLoop* arg_extreme_loops
    ctypedef void (*CumsumLoop)(const void* x, int64_t outer, int64_t n, int64_t inner, bint exclusive, bint reverse,
                                void* y) noexcept nogil
    CumsumLoop* cumsum_loops
    int kernel_dtype(VmDataType t)
    int vm_isa_detect()
    void reduce_init(int isa)
    void reduce_start(int op, int dtype, void* out, int64_t n)
    void reduce_finish(int finish, int dtype, void* out, int64_t n, int64_t count)
    void (*exp_sum_f32)(const void* x, int64_t n, const void* max_, double* sum_, bint column) noexcept nogil
    void exp_sum_f64(const void* x, int64_t n, const void* max_, double* sum_, bint column)
    void exp_finish_f32(void* max_, const double* sum_, int64_t n)
    void exp_finish_f64(void* max_, const double* sum_, int64_t n)
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)

cdef enum:  # workspace slots; contents live during one kernel call only
    SLOT_INPUT = SLOT_OTHER
    SLOT_OUTPUT = SLOT_OTHER + 1
    SLOT_SUMS = SLOT_OTHER + 2


cdef struct Plan:  # the walk over x: dimensions innermost first, neighbours of one kind merged
    int32_t ndim
    bint inner_reduced
    int64_t n_inner  # length of the runs along the innermost dimension
    int64_t n_runs
    int64_t count  # elements that go into one output
    int64_t dim[ARGS_MAX_NDIM]
    int64_t out_stride[ARGS_MAX_NDIM]  # 0 along reduced dimensions


cdef int make_plan(const char* op, const ArgTensor* x, const ArgShape* axes, const ArgTensor* out,
                   Plan* plan) noexcept nogil:
    """Check axes and out's shape (kept dimensions in order, ones anywhere) and lay out the walk."""
    cdef bint[ARGS_MAX_NDIM] reduced
    cdef int32_t d, at, nd = 0
    cdef int64_t i, n, run = 1, previous = -1
    memset(reduced, 0, sizeof(reduced))
    plan.count = 1
    for i in range(axes.size):
        n = axes.data[i]
        if n <= previous or n >= x.ndim:
            return ARG_FAIL(ERR_VALUE, "%s: axes must be ascending and below the rank %d, axis %lld is not", op,
                            x.ndim, <long long>n)
        previous = n
        reduced[n] = True
        plan.count *= x.shape[n]
    at = out.ndim
    for d in range(x.ndim - 1, -1, -1):
        n = x.shape[d]
        if not reduced[d] and n != 1:
            at -= 1
            while at >= 0 and out.shape[at] == 1:
                at -= 1
            if at < 0 or out.shape[at] != n:
                return arg_fail_pair(op, ERR_SHAPE, "the output does not have the kept dimensions", "input", x,
                                     "output", out)
        if n == 1:
            continue
        if nd > 0 and (plan.out_stride[nd - 1] == 0) == reduced[d]:
            plan.dim[nd - 1] *= n
        else:
            plan.dim[nd] = n
            plan.out_stride[nd] = 0 if reduced[d] else run
            nd += 1
        if not reduced[d]:
            run *= n
    while at > 0:
        at -= 1
        if out.shape[at] != 1:
            return arg_fail_pair(op, ERR_SHAPE, "the output does not have the kept dimensions", "input", x, "output",
                                 out)
    if nd == 0:
        plan.dim[0] = 1
        plan.out_stride[0] = 0
        nd = 1
    plan.ndim = nd
    plan.inner_reduced = plan.out_stride[0] == 0
    plan.n_inner = plan.dim[0]
    plan.n_runs = 1
    for d in range(1, nd):
        plan.n_runs *= plan.dim[d]
    if plan.n_inner == 0:
        plan.n_runs = 0
    return 0


cdef inline int64_t next_run(const Plan* plan, int64_t* index, int64_t offset) noexcept nogil:
    """Output offset of the run after this one."""
    cdef int32_t d
    for d in range(1, plan.ndim):
        index[d] += 1
        offset += plan.out_stride[d]
        if index[d] < plan.dim[d]:
            break
        offset -= plan.out_stride[d] * plan.dim[d]
        index[d] = 0
    return offset


cdef void walk(const Plan* plan, ReducePair pair, const char* x, char* out, int64_t item) noexcept nogil:
    """out (+)= x over all runs."""
    cdef int64_t[ARGS_MAX_NDIM] index
    cdef int64_t _run, offset = 0
    cdef ReduceLoop loop = pair.row if plan.inner_reduced else pair.column
    memset(index, 0, sizeof(index))
    for _run in range(plan.n_runs):
        loop(x, plan.n_inner, out + offset * item)
        x += plan.n_inner * item
        offset = next_run(plan, index, offset)


cdef int log_sum_exp(const char* op, const Plan* plan, int dtype, const char* x, char* out, int64_t n_out,
                     int64_t item) noexcept nogil:
    """out = log(sum(exp(x - max))) + max: first the maxima into out, then the sums into a workspace."""
    cdef int64_t[ARGS_MAX_NDIM] index
    cdef int64_t _run, offset = 0
    cdef double* sums = <double*>workspace(SLOT_SUMS, n_out * sizeof(double))
    if sums == NULL:
        return ARG_FAIL(ERR_ALLOC, "%s: no memory for %lld sums", op, <long long>n_out)
    reduce_start(R_max, dtype, out, n_out)
    walk(plan, reduce_pairs[dtype][R_max], x, out, item)
    memset(sums, 0, n_out * sizeof(double))
    memset(index, 0, sizeof(index))
    for _run in range(plan.n_runs):
        if dtype == K_F32:
            exp_sum_f32(x, plan.n_inner, out + offset * item, sums + offset, not plan.inner_reduced)
        else:
            exp_sum_f64(x, plan.n_inner, out + offset * item, sums + offset, not plan.inner_reduced)
        x += plan.n_inner * item
        offset = next_run(plan, index, offset)
    if dtype == K_F32:
        exp_finish_f32(out, sums, n_out)
    else:
        exp_finish_f64(out, sums, n_out)
    return 0


cdef int as_float32(const char* op, const ArgTensor* x, int dtype, char** data) noexcept nogil:
    """*data = x's elements as float32 in a workspace."""
    data[0] = <char*>workspace(SLOT_INPUT, x.numel * 4 + 64)
    if data[0] == NULL:
        return ARG_FAIL(ERR_ALLOC, "%s: no memory to convert %lld elements", op, <long long>x.numel)
    cast_elements(x.data, dtype, 2, data[0], K_F32, 4, x.numel)
    return 0


cdef int reduce_door(const char* op, const Value* args, int32_t n_args, int reduction, int finish,
                     bint exponential) noexcept nogil:
    """Reduce x over the axes; `finish` turns the reduction into the result; `exponential`: log-sum-exp instead."""
    cdef ArgTensor x, out
    cdef ArgShape axes
    cdef Plan plan
    cdef char* data
    cdef char* result
    cdef int dtype, work
    if (arg_count(op, n_args, 3) or arg_tensor(op, args, 0, &x) or arg_shape(op, args, 1, &axes)
            or arg_output(op, args, 2, &out) or check_same_dtype(op, &x, &out) or check_disjoint(op, &x, &out)
            or make_plan(op, &x, &axes, &out, &plan)):
        return -1
    dtype = kernel_dtype(x.dtype)
    work = K_F32 if dtype == K_F16 or dtype == K_BF16 else dtype
    if dtype == K_NONE or reduce_pairs[work][reduction].row == NULL or (
            (exponential or finish == FINISH_LOG) and work != K_F32 and work != K_F64):
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &x)
    if out.numel == 0:
        return 0
    data = x.data
    result = out.data
    if work != dtype:
        if as_float32(op, &x, dtype, &data):
            return -1
        result = <char*>workspace(SLOT_OUTPUT, out.numel * 4)
        if result == NULL:
            return ARG_FAIL(ERR_ALLOC, "%s: no memory for %lld results", op, <long long>out.numel)
    if exponential:
        if log_sum_exp(op, &plan, work, data, result, out.numel, 4 if work == K_F32 else 8):
            return -1
    else:
        reduce_start(reduction, work, result, out.numel)
        walk(&plan, reduce_pairs[work][reduction], data, result, x.itemsize if work == dtype else 4)
        reduce_finish(finish, work, result, out.numel, plan.count)
    if work != dtype:
        cast_elements(result, K_F32, 4, out.data, dtype, 2, out.numel)
    return 0


cdef int reduce_sum(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_sum", args, n_args, R_sum, FINISH_NONE, False)


cdef int reduce_mean(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_mean", args, n_args, R_sum, FINISH_MEAN, False)


cdef int reduce_max(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_max", args, n_args, R_max, FINISH_NONE, False)


cdef int reduce_min(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_min", args, n_args, R_min, FINISH_NONE, False)


cdef int reduce_prod(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_prod", args, n_args, R_prod, FINISH_NONE, False)


cdef int reduce_l1(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_l1", args, n_args, R_abs, FINISH_NONE, False)


cdef int reduce_l2(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_l2", args, n_args, R_square, FINISH_SQRT, False)


cdef int reduce_sum_square(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_sum_square", args, n_args, R_square, FINISH_NONE, False)


cdef int reduce_log_sum(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_log_sum", args, n_args, R_sum, FINISH_LOG, False)


cdef int reduce_log_sum_exp(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return reduce_door("reduce_log_sum_exp", args, n_args, R_max, FINISH_NONE, True)


cdef inline int check_bool_input(const char* op, const Value* args, int32_t n_args) noexcept nogil:
    cdef ArgTensor x
    if arg_count(op, n_args, 3) or arg_tensor(op, args, 0, &x):
        return -1
    return check_dtype(op, "input", &x, DL_BOOL, 8)


cdef int reduce_all(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if check_bool_input("reduce_all", args, n_args):
        return -1
    return reduce_door("reduce_all", args, n_args, R_min, FINISH_NONE, False)


cdef int reduce_any(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    if check_bool_input("reduce_any", args, n_args):
        return -1
    return reduce_door("reduce_any", args, n_args, R_max, FINISH_NONE, False)


cdef void split_at(const ArgTensor* x, int64_t axis, int64_t* outer, int64_t* inner) noexcept nogil:
    """x as (outer, x.shape[axis], inner)."""
    cdef int32_t d
    outer[0] = inner[0] = 1
    for d in range(axis):
        outer[0] *= x.shape[d]
    for d in range(axis + 1, x.ndim):
        inner[0] *= x.shape[d]


cdef int arg_extreme(const char* op, const Value* args, int32_t n_args, bint smallest) noexcept nogil:
    """argmax / argmin (x, axis, select_last, out int64); out has x's dimensions without the axis, or with 1 there."""
    cdef ArgTensor x, out
    cdef ArgShape axes
    cdef Plan plan
    cdef int64_t axis, last, outer, inner
    cdef char* data
    cdef int dtype
    if (arg_count(op, n_args, 4) or arg_tensor(op, args, 0, &x) or arg_axis(op, args, 1, x.ndim, &axis)
            or arg_int(op, args, 2, &last) or arg_output(op, args, 3, &out)
            or check_dtype(op, "output", &out, DL_INT, 64) or check_disjoint(op, &x, &out)):
        return -1
    axes.data = &axis
    axes.size = 1
    if make_plan(op, &x, &axes, &out, &plan):
        return -1
    if out.numel == 0:
        return 0
    if x.shape[axis] == 0:
        return arg_fail_one(op, ERR_VALUE, "no elements along the axis", "input", &x)
    dtype = kernel_dtype(x.dtype)
    data = x.data
    if dtype == K_F16 or dtype == K_BF16:
        if as_float32(op, &x, dtype, &data):
            return -1
        dtype = K_F32
    if dtype == K_NONE:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &x)
    split_at(&x, axis, &outer, &inner)
    arg_extreme_loops[dtype](data, outer, x.shape[axis], inner, smallest, last != 0, <int64_t*>out.data)
    return 0


cdef int argmax(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return arg_extreme("argmax", args, n_args, False)


cdef int argmin(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return arg_extreme("argmin", args, n_args, True)


cdef int cumsum(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """cumsum(x, axis, exclusive, reverse, out)."""
    cdef ArgTensor x, out
    cdef int64_t axis, exclusive, reverse, outer, inner
    cdef char* data
    cdef char* result
    cdef int dtype
    if (arg_count("cumsum", n_args, 5) or arg_tensor("cumsum", args, 0, &x)
            or arg_axis("cumsum", args, 1, x.ndim, &axis) or arg_int("cumsum", args, 2, &exclusive)
            or arg_int("cumsum", args, 3, &reverse) or arg_output("cumsum", args, 4, &out)
            or check_same_dtype("cumsum", &x, &out) or check_same_shape("cumsum", &x, &out)
            or check_disjoint("cumsum", &x, &out)):
        return -1
    if x.numel == 0:
        return 0
    dtype = kernel_dtype(x.dtype)
    split_at(&x, axis, &outer, &inner)
    if dtype == K_F16 or dtype == K_BF16:
        result = <char*>workspace(SLOT_OUTPUT, x.numel * 4)
        if result == NULL:
            return ARG_FAIL(ERR_ALLOC, "cumsum: no memory to convert %lld elements", <long long>x.numel)
        if as_float32("cumsum", &x, dtype, &data):
            return -1
        cumsum_loops[<int>K_F32](data, outer, x.shape[axis], inner, exclusive != 0, reverse != 0, result)
        cast_elements(result, K_F32, 4, out.data, dtype, 2, x.numel)
        return 0
    if dtype == K_NONE or cumsum_loops[dtype] == NULL:
        return arg_fail_one("cumsum", ERR_DTYPE, "no kernel for this element type", "input", &x)
    cumsum_loops[dtype](x.data, outer, x.shape[axis], inner, exclusive != 0, reverse != 0, out.data)
    return 0


cdef KernelEntry[15] _table
_table[0] = KernelEntry("kernel.reduce_sum", reduce_sum, 0.03)
_table[1] = KernelEntry("kernel.reduce_mean", reduce_mean, 0.03)
_table[2] = KernelEntry("kernel.reduce_max", reduce_max, 0.03)
_table[3] = KernelEntry("kernel.reduce_min", reduce_min, 0.03)
_table[4] = KernelEntry("kernel.reduce_prod", reduce_prod, 0.03)
_table[5] = KernelEntry("kernel.reduce_l1", reduce_l1, 0.03)
_table[6] = KernelEntry("kernel.reduce_l2", reduce_l2, 0.03)
_table[7] = KernelEntry("kernel.reduce_sum_square", reduce_sum_square, 0.03)
_table[8] = KernelEntry("kernel.reduce_log_sum", reduce_log_sum, 0.05)
_table[9] = KernelEntry("kernel.reduce_log_sum_exp", reduce_log_sum_exp, 1.0)
_table[10] = KernelEntry("kernel.reduce_all", reduce_all, 0.1)
_table[11] = KernelEntry("kernel.reduce_any", reduce_any, 0.1)
_table[12] = KernelEntry("kernel.argmax", argmax, 0.2)
_table[13] = KernelEntry("kernel.argmin", argmin, 0.2)
_table[14] = KernelEntry("kernel.cumsum", cumsum, 0.3)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = sizeof(_table) // sizeof(_table[0])
    return _table


def select_isa(level=None) -> int:
    """Use the loops of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    reduce_init(isa)
    return isa


args_bind(fail)
select_isa()
