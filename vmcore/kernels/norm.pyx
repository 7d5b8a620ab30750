"""Softmax, log-softmax, hardmax and the normalizations. Loops are in norm.h.

Outputs may be the input's memory. float16 and bfloat16 are computed in float32; parameters (scale, bias, mean,
variance) may have another float type than x.
"""
from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t
from libc.stddef cimport size_t

from vmcore.kernels.args cimport (
    ARG_FAIL, ArgTensor, arg_axis, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in, arg_optional_tensor,
    arg_output, arg_tensor, args_bind, check_disjoint, check_inplace, check_same_dtype, check_same_shape,
)
from vmcore.kernels.workspace cimport SLOT_OTHER, workspace
from vmcore.status cimport fail
from vmcore.value cimport ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, ERR_VALUE, KernelEntry, Value, VmDataType

cdef extern from "vmcore/kernels/norm.h" nogil:
    enum:
        K_NONE, K_F16, K_BF16, K_F32, K_F64
    ctypedef struct NormLoops:
        void (*softmax_rows)(const void* x, void* y, int64_t rows, int64_t n, bint log) noexcept nogil
        void (*softmax_columns)(const void* x, void* y, int64_t n, int64_t inner, bint log) noexcept nogil
        void (*moments)(const void* x, int64_t n, bint centered, double* mean, double* variance) noexcept nogil
        void (*apply_rows)(const void* x, void* y, int64_t n, double mean, double rstd, const void* scale,
                           const void* bias) noexcept nogil
        void (*apply_scalar)(const void* x, void* y, int64_t n, double a, double b) noexcept nogil
        void (*lrn)(const void* x, void* y, int64_t channels, int64_t inner, int64_t size, double alpha, double beta,
                    double bias) noexcept nogil
    NormLoops norm_loops_f32
    const NormLoops norm_loops_f64
    int kernel_dtype(VmDataType t)
    int vm_isa_detect()
    void norm_init(int isa)
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)
    void lp_norm_f32(const void* x, void* y, int64_t outer, int64_t n, int64_t inner, int p)
    void lp_norm_f64(const void* x, void* y, int64_t outer, int64_t n, int64_t inner, int p)
    void hardmax_f32(const void* x, void* y, int64_t outer, int64_t n, int64_t inner)
    void hardmax_f64(const void* x, void* y, int64_t outer, int64_t n, int64_t inner)

cdef enum:  # workspace slots; contents live during one kernel call only
    SLOT_DATA = SLOT_OTHER
    SLOT_PARAMS = SLOT_OTHER + 1


cdef struct Job:  # x -> out in float32 or float64; the halves are converted in and out
    ArgTensor x, out
    int dtype  # K_* of the tensors
    int64_t item  # bytes of an element while computing: 4 or 8
    char* from_
    char* to
    const NormLoops* loops


cdef int begin(const char* op, Job* job) noexcept nogil:
    """Check x against out and choose loops and memory."""
    if (check_same_dtype(op, &job.x, &job.out) or check_same_shape(op, &job.x, &job.out)
            or check_inplace(op, &job.x, &job.out)):
        return -1
    job.dtype = kernel_dtype(job.x.dtype)
    job.from_ = job.x.data
    job.to = job.out.data
    job.item = 8 if job.dtype == K_F64 else 4
    job.loops = &norm_loops_f64 if job.dtype == K_F64 else &norm_loops_f32
    if job.dtype == K_F16 or job.dtype == K_BF16:
        job.from_ = job.to = <char*>workspace(SLOT_DATA, <size_t>job.x.numel * 4 + 64)
        if job.to == NULL:
            return ARG_FAIL(ERR_ALLOC, "%s: no memory to convert %lld elements", op, <long long>job.x.numel)
        cast_elements(job.x.data, job.dtype, 2, job.from_, K_F32, 4, job.x.numel)
    elif job.dtype != K_F32 and job.dtype != K_F64:
        return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &job.x)
    return 0


cdef int finish(Job* job) noexcept nogil:
    if job.to != job.out.data:
        cast_elements(job.to, K_F32, 4, job.out.data, job.dtype, 2, job.x.numel)
    return 0


cdef void split_at(const ArgTensor* x, int64_t axis, int64_t* outer, int64_t* inner) noexcept nogil:
    """x as (outer, x.shape[axis], inner)."""
    cdef int32_t d
    outer[0] = inner[0] = 1
    for d in range(axis):
        outer[0] *= x.shape[d]
    for d in range(axis + 1, x.ndim):
        inner[0] *= x.shape[d]


cdef int softmax_door(const char* op, const Value* args, int32_t n_args, bint log) noexcept nogil:
    """(x, axis, out)."""
    cdef Job job
    cdef int64_t axis, outer, n, inner, o, step
    if (arg_count(op, n_args, 3) or arg_tensor(op, args, 0, &job.x) or arg_axis(op, args, 1, job.x.ndim, &axis)
            or arg_output(op, args, 2, &job.out) or begin(op, &job)):
        return -1
    if job.x.numel == 0:
        return 0
    split_at(&job.x, axis, &outer, &inner)
    n = job.x.shape[axis]
    if inner == 1:
        job.loops.softmax_rows(job.from_, job.to, outer, n, log)
    else:
        step = n * inner * job.item
        for o in range(outer):
            job.loops.softmax_columns(job.from_ + o * step, job.to + o * step, n, inner, log)
    return finish(&job)


cdef int softmax(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return softmax_door("softmax", args, n_args, False)


cdef int log_softmax(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    return softmax_door("log_softmax", args, n_args, True)


cdef int hardmax(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """hardmax(x, axis, out): 1 at the first greatest element along the axis, else 0."""
    cdef Job job
    cdef int64_t axis, outer, inner
    if (arg_count("hardmax", n_args, 3) or arg_tensor("hardmax", args, 0, &job.x)
            or arg_axis("hardmax", args, 1, job.x.ndim, &axis) or arg_output("hardmax", args, 2, &job.out)
            or begin("hardmax", &job)):
        return -1
    if job.x.numel == 0:
        return 0
    split_at(&job.x, axis, &outer, &inner)
    if job.dtype == K_F64:
        hardmax_f64(job.from_, job.to, outer, job.x.shape[axis], inner)
    else:
        hardmax_f32(job.from_, job.to, outer, job.x.shape[axis], inner)
    return finish(&job)


cdef int lp_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """lp_norm(x, axis, p, out): x over its 1- or 2-norm along the axis."""
    cdef Job job
    cdef int64_t axis, p, outer, inner
    if (arg_count("lp_norm", n_args, 4) or arg_tensor("lp_norm", args, 0, &job.x)
            or arg_axis("lp_norm", args, 1, job.x.ndim, &axis) or arg_int_in("lp_norm", args, 2, 1, 2, &p)
            or arg_output("lp_norm", args, 3, &job.out) or begin("lp_norm", &job)):
        return -1
    if job.x.numel == 0:
        return 0
    split_at(&job.x, axis, &outer, &inner)
    if job.dtype == K_F64:
        lp_norm_f64(job.from_, job.to, outer, job.x.shape[axis], inner, <int>p)
    else:
        lp_norm_f32(job.from_, job.to, outer, job.x.shape[axis], inner, <int>p)
    return finish(&job)


cdef int convert_params(const char* op, Job* job, ArgTensor** params, int32_t n_params,
                        char** converted) noexcept nogil:
    """converted[i] = params[i] in the computing type, in a workspace unless it has that type already."""
    cdef int32_t i
    cdef int dtype, work = K_F64 if job.dtype == K_F64 else K_F32
    cdef int64_t n_bytes = 0
    cdef char* memory = NULL
    for i in range(n_params):
        if kernel_dtype(params[i].dtype) != work:
            n_bytes += params[i].numel * job.item
    if n_bytes:
        memory = <char*>workspace(SLOT_PARAMS, <size_t>n_bytes)
        if memory == NULL:
            return ARG_FAIL(ERR_ALLOC, "%s: no memory for %lld bytes of parameters", op, <long long>n_bytes)
    for i in range(n_params):
        dtype = kernel_dtype(params[i].dtype)
        if check_disjoint(op, params[i], &job.out):
            return -1
        if params[i].data == NULL and params[i].numel == 0:
            converted[i] = NULL  # absent
        elif dtype == work:
            converted[i] = params[i].data
        elif dtype == K_F16 or dtype == K_BF16 or dtype == K_F32 or dtype == K_F64:
            converted[i] = memory
            cast_elements(params[i].data, dtype, params[i].itemsize, memory, work, job.item, params[i].numel)
            memory += params[i].numel * job.item
        else:
            return arg_fail_one(op, ERR_DTYPE, "parameters must be floating point", "parameter", params[i])
    return 0


cdef inline double number(const Job* job, const char* values, int64_t i) noexcept nogil:
    if job.item == 4:
        return (<const float*>values)[i]
    return (<const double*>values)[i]


cdef int row_norm(const char* op, Job* job, ArgTensor* scale, ArgTensor* bias, int64_t axis, double eps,
                  bint centered) noexcept nogil:
    """Normalize x as rows over [axis, ndim); scale and bias hold one value per element of a row."""
    cdef int64_t rows = 1, n = 1, r, step
    cdef double mean, variance
    cdef ArgTensor* params[2]
    cdef char* values[2]
    cdef int32_t d
    for d in range(job.x.ndim):
        if d < axis:
            rows *= job.x.shape[d]
        else:
            n *= job.x.shape[d]
    params[0] = scale
    params[1] = bias
    if scale.numel != n:
        return arg_fail_pair(op, ERR_SHAPE, "scale must have one value per normalized element", "input", &job.x,
                             "scale", scale)
    if bias.shape != NULL and bias.numel != n:
        return arg_fail_pair(op, ERR_SHAPE, "bias must have one value per normalized element", "input", &job.x, "bias",
                             bias)
    if job.x.numel == 0:
        return 0
    if convert_params(op, job, params, 2, values):
        return -1
    step = n * job.item
    for r in range(rows):
        job.loops.moments(job.from_ + r * step, n, centered, &mean, &variance)
        job.loops.apply_rows(job.from_ + r * step, job.to + r * step, n, mean, 1.0 / sqrt(variance + eps), values[0],
                             values[1])
    return finish(job)


cdef int layer_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """layer_norm(x, scale, [bias], axis, eps, out): (x - mean) / sqrt(var + eps) * scale + bias over [axis, ndim)."""
    cdef Job job
    cdef ArgTensor scale, bias
    cdef bint has_bias
    cdef int64_t axis
    cdef double eps
    if (arg_count("layer_norm", n_args, 6) or arg_tensor("layer_norm", args, 0, &job.x)
            or arg_tensor("layer_norm", args, 1, &scale) or arg_optional_tensor("layer_norm", args, 2, &bias, &has_bias)
            or arg_axis("layer_norm", args, 3, job.x.ndim, &axis) or arg_float("layer_norm", args, 4, &eps)
            or arg_output("layer_norm", args, 5, &job.out) or begin("layer_norm", &job)):
        return -1
    return row_norm("layer_norm", &job, &scale, &bias, axis, eps, True)


cdef int rms_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """rms_norm(x, scale, axis, eps, out): x / sqrt(mean(x^2) + eps) * scale over [axis, ndim)."""
    cdef Job job
    cdef ArgTensor scale, bias
    cdef int64_t axis
    cdef double eps
    bias.data = NULL
    bias.shape = NULL
    bias.numel = bias.nbytes = 0
    if (arg_count("rms_norm", n_args, 5) or arg_tensor("rms_norm", args, 0, &job.x)
            or arg_tensor("rms_norm", args, 1, &scale) or arg_axis("rms_norm", args, 2, job.x.ndim, &axis)
            or arg_float("rms_norm", args, 3, &eps) or arg_output("rms_norm", args, 4, &job.out)
            or begin("rms_norm", &job)):
        return -1
    return row_norm("rms_norm", &job, &scale, &bias, axis, eps, False)


cdef int check_channels(const char* op, const Job* job, const ArgTensor* parameter, const char* name,
                        int64_t wanted) noexcept nogil:
    if parameter.numel == wanted:
        return 0
    return arg_fail_pair(op, ERR_SHAPE, "a parameter must have one value per channel (dimension 1)", "input", &job.x,
                         name, parameter)


cdef int split_channels(const char* op, const Job* job, int64_t* channels, int64_t* inner) noexcept nogil:
    cdef int64_t outer
    if job.x.ndim < 2:
        return arg_fail_one(op, ERR_SHAPE, "needs at least 2 dimensions (batch, channel)", "input", &job.x)
    split_at(&job.x, 1, &outer, inner)
    channels[0] = job.x.shape[1]
    return 0


cdef int batch_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """batch_norm(x, scale, bias, mean, var, eps, out): (x - mean[c]) / sqrt(var[c] + eps) * scale[c] + bias[c]."""
    cdef const char* op = "batch_norm"
    cdef Job job
    cdef ArgTensor[4] tensors
    cdef ArgTensor* params[4]
    cdef char* values[4]
    cdef int64_t channels, inner, i, c, step
    cdef double eps, factor
    cdef int32_t k
    if arg_count(op, n_args, 7) or arg_tensor(op, args, 0, &job.x):
        return -1
    for k in range(4):
        params[k] = &tensors[k]
        if arg_tensor(op, args, 1 + k, &tensors[k]):
            return -1
    if (arg_float(op, args, 5, &eps) or arg_output(op, args, 6, &job.out) or begin(op, &job)
            or split_channels(op, &job, &channels, &inner)):
        return -1
    for k in range(4):
        if check_channels(op, &job, &tensors[k], "parameter", channels):
            return -1
    if job.x.numel == 0:
        return 0
    if convert_params(op, &job, params, 4, values):
        return -1
    step = inner * job.item
    for i in range(job.x.shape[0]):
        for c in range(channels):
            factor = number(&job, values[0], c) / sqrt(number(&job, values[3], c) + eps)
            job.loops.apply_scalar(job.from_ + (i * channels + c) * step, job.to + (i * channels + c) * step, inner,
                                   factor, number(&job, values[1], c) - number(&job, values[2], c) * factor)
    return finish(&job)


cdef int grouped_norm(const char* op, Job* job, ArgTensor* scale, ArgTensor* bias, int64_t groups,
                      double eps) noexcept nogil:
    """Normalize each of `groups` runs of channels of a sample; scale and bias per channel, or per group."""
    cdef ArgTensor* params[2]
    cdef char* values[2]
    cdef int64_t channels, inner, per_group, row, c, at, step
    cdef double mean, variance, factor
    if split_channels(op, job, &channels, &inner):
        return -1
    if groups <= 0 or channels % groups != 0:
        return ARG_FAIL(ERR_VALUE, "%s: %lld channels do not divide into %lld groups", op, <long long>channels,
                        <long long>groups)
    per_group = channels // groups
    params[0] = scale
    params[1] = bias
    if scale.numel != groups or bias.numel != groups:
        if (check_channels(op, job, scale, "scale", channels) or check_channels(op, job, bias, "bias", channels)):
            return -1
    if job.x.numel == 0:
        return 0
    if convert_params(op, job, params, 2, values):
        return -1
    step = inner * job.item
    for row in range(job.x.shape[0] * groups):
        job.loops.moments(job.from_ + row * per_group * step, per_group * inner, True, &mean, &variance)
        for c in range(per_group):
            at = row % groups
            if scale.numel == channels:
                at = at * per_group + c
            factor = number(job, values[0], at) / sqrt(variance + eps)
            job.loops.apply_scalar(job.from_ + (row * per_group + c) * step, job.to + (row * per_group + c) * step,
                                   inner, factor, number(job, values[1], at) - mean * factor)
    return finish(job)


cdef int instance_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """instance_norm(x, scale, bias, eps, out): every channel of every sample normalized by itself."""
    cdef const char* op = "instance_norm"
    cdef Job job
    cdef ArgTensor scale, bias
    cdef double eps
    if (arg_count(op, n_args, 5) or arg_tensor(op, args, 0, &job.x) or arg_tensor(op, args, 1, &scale)
            or arg_tensor(op, args, 2, &bias) or arg_float(op, args, 3, &eps) or arg_output(op, args, 4, &job.out)
            or begin(op, &job)):
        return -1
    if job.x.ndim < 2 or job.x.shape[1] == 0:
        return arg_fail_one(op, ERR_SHAPE, "needs at least 2 dimensions and a channel", "input", &job.x)
    return grouped_norm(op, &job, &scale, &bias, job.x.shape[1], eps)


cdef int group_norm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """group_norm(x, scale, bias, groups, eps, out); scale and bias per channel (ONNX 21) or per group (ONNX 18)."""
    cdef const char* op = "group_norm"
    cdef Job job
    cdef ArgTensor scale, bias
    cdef int64_t groups
    cdef double eps
    if (arg_count(op, n_args, 6) or arg_tensor(op, args, 0, &job.x) or arg_tensor(op, args, 1, &scale)
            or arg_tensor(op, args, 2, &bias) or arg_int_in(op, args, 3, 1, 1 << 30, &groups)
            or arg_float(op, args, 4, &eps) or arg_output(op, args, 5, &job.out) or begin(op, &job)):
        return -1
    return grouped_norm(op, &job, &scale, &bias, groups, eps)


cdef int lrn(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """lrn(x, size, alpha, beta, bias, out): x / (bias + alpha / size * sum of squares over `size` channels) ^ beta."""
    cdef const char* op = "lrn"
    cdef Job job
    cdef int64_t size, channels, inner, i, step
    cdef double alpha, beta, bias
    if (arg_count(op, n_args, 6) or arg_tensor(op, args, 0, &job.x) or arg_int_in(op, args, 1, 1, 1 << 30, &size)
            or arg_float(op, args, 2, &alpha) or arg_float(op, args, 3, &beta) or arg_float(op, args, 4, &bias)
            or arg_output(op, args, 5, &job.out) or check_disjoint(op, &job.x, &job.out) or begin(op, &job)
            or split_channels(op, &job, &channels, &inner)):
        return -1
    if job.x.numel == 0:
        return 0
    if job.to != job.out.data:  # converted halves: the window reads neighbours, so it cannot run in place
        job.to = <char*>workspace(SLOT_PARAMS, <size_t>job.x.numel * 4)
        if job.to == NULL:
            return ARG_FAIL(ERR_ALLOC, "%s: no memory for %lld results", op, <long long>job.x.numel)
    step = channels * inner * job.item
    for i in range(job.x.shape[0]):
        job.loops.lrn(job.from_ + i * step, job.to + i * step, channels, inner, size, alpha, beta, bias)
    return finish(&job)


cdef KernelEntry[10] _table
_table[0] = KernelEntry("kernel.softmax", softmax, 0.06)
_table[1] = KernelEntry("kernel.log_softmax", log_softmax, 0.06)
_table[2] = KernelEntry("kernel.hardmax", hardmax, 0.1)
_table[3] = KernelEntry("kernel.lp_norm", lp_norm, 0.2)
_table[4] = KernelEntry("kernel.layer_norm", layer_norm, 0.05)
_table[5] = KernelEntry("kernel.rms_norm", rms_norm, 0.05)
_table[6] = KernelEntry("kernel.batch_norm", batch_norm, 0.03)
_table[7] = KernelEntry("kernel.instance_norm", instance_norm, 0.05)
_table[8] = KernelEntry("kernel.group_norm", group_norm, 0.05)
_table[9] = KernelEntry("kernel.lrn", lrn, 0.2)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = sizeof(_table) // sizeof(_table[0])
    return _table


def select_isa(level=None) -> int:
    """Use the loops of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    norm_init(isa)
    return isa


args_bind(fail)
select_isa()
