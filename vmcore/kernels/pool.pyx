# HOT: doors and leaves are noexcept nogil.
"""kernel.max_pool, avg_pool, lp_pool and the global pools over 1, 2 or 3 spatial dimensions.

A NaN in a window makes its maximum NaN, as in numpy; ONNX Runtime drops it unless it is the last element of the window,
which is an accident of its vector instructions. A maximum over nothing but padding is -inf.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from vmcore.kernels.args cimport (
    ARG_FAIL, ArgShape, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_int_in, arg_output, arg_shape_in,
    arg_tensor,
    args_bind, check_disjoint, check_dtype, check_out_shape, check_same_dtype,
)
from vmcore.kernels.window cimport (
    PLANES_MAX_SIZE, POOL_KIND_L1, POOL_KIND_L2, POOL_KIND_LP, POOL_KIND_MAX, POOL_KIND_SUM, Window, planes_shift_axes,
)
from vmcore.kernels.gemm cimport gemm_isa
from vmcore.kernels.workspace cimport SLOT_PLANES, SLOT_TABLES, SLOT_TILES, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, thread_count
from vmcore.value cimport DL_FLOAT, DL_INT, DL_UINT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, KernelEntry, Value

cdef extern from "<math.h>" nogil:
    double INFINITY

cdef extern from "vmcore/kernels/pool.h" nogil:
    ctypedef struct PoolRows:
        Window w
        int64_t pad_end[3]
        int kind, include_pad
        double fill
        int64_t pitch, n_lines
    ctypedef struct PoolLoops:
        int64_t lanes
        void (*rows)(const PoolRows* p, const void* x, const void* x_end, int64_t first, int64_t last, void* out,
                     const void* counts, void* lines) noexcept nogil
        void (*pairs)(int kind, int64_t half, const void* x, void* out, int64_t n) noexcept nogil
    const PoolLoops* pool_loops_by_isa[3]
    int pool_plan_rows(PoolRows* p, int64_t lanes, int64_t es)
    int64_t pool_pairs_half(const PoolRows* p, int64_t lanes)
    void pool_windows_f32(const Window* w, int kind, double p, const float* x, float* out)
    void pool_windows_f64(const Window* w, int kind, double p, const double* x, double* out)
    void pool_argmax_f32(const Window* w, bint column_major, int64_t base, const float* x, float* out, int64_t* index)
    void pool_argmax_f64(const Window* w, bint column_major, int64_t base, const double* x, double* out, int64_t* index)
    void pool_argmax_i8(const Window* w, bint column_major, int64_t base, const int8_t* x, int8_t* out, int64_t* index)
    void pool_argmax_u8(const Window* w, bint column_major, int64_t base, const uint8_t* x, uint8_t* out,
                        int64_t* index)
    int64_t pool_count(const Window* w, int a, int64_t o, const int64_t* pad_end, bint include_pad)
    void pool_divide_f32(const Window* w, const int64_t* pad_end, bint include_pad, const float* per_column, float* out)
    void pool_divide_f64(const Window* w, const int64_t* pad_end, bint include_pad, const double* per_column,
                         double* out)
    void pool_root_f32(float* out, int64_t n, int kind, double p)
    void pool_root_f64(double* out, int64_t n, int kind, double p)
    float pool_mean_f32(const float* x, int64_t n)
    double pool_mean_f64(const double* x, int64_t n)
    float pool_all_max_f32(const float* x, int64_t n)
    double pool_all_max_f64(const double* x, int64_t n)

args_bind(fail)

cdef enum:
    PARALLEL_ELEMS = 1 << 17  # taps x outputs below which waking a thread costs more than it saves

cdef enum:  # how a pool is computed
    BY_PAIRS, BY_ROWS, BY_WINDOWS

ctypedef struct PoolJob:
    PoolRows r
    const PoolLoops* loops
    int how  # BY_*
    bint is_double, averages, column_major
    double power
    int64_t es, n_channels, in_size, out_size, half, pieces
    const char* x
    const char* x_end
    char* out
    int64_t* index  # flat indices of maxima, or NULL
    int dtype_code
    int failed


cdef char* _counts(const PoolJob* job) noexcept nogil:
    """Elements that each column's windows average over, along the row; ones up to whole vectors."""
    cdef int64_t columns = job.r.w.out[2], i, n
    cdef char* counts = <char*>workspace(SLOT_TILES, <size_t>((columns + job.loops.lanes) * job.es))
    if counts == NULL:
        return NULL
    for i in range(columns + job.loops.lanes):
        n = pool_count(&job.r.w, 2, i, job.r.pad_end, job.r.include_pad) if i < columns else 1
        if job.is_double:
            (<double*>counts)[i] = <double>n
        else:
            (<float*>counts)[i] = <float>n
    return counts


cdef void _windows(const PoolJob* job, int64_t channel, const char* counts) noexcept nogil:
    """One channel of one image, one output after the other."""
    cdef const char* x = job.x + channel * job.in_size * job.es
    cdef char* out = job.out + channel * job.out_size * job.es
    if job.is_double:
        pool_windows_f64(&job.r.w, job.r.kind, job.power, <const double*>x, <double*>out)
        if counts != NULL:
            pool_divide_f64(&job.r.w, job.r.pad_end, job.r.include_pad, <const double*>counts, <double*>out)
    else:
        pool_windows_f32(&job.r.w, job.r.kind, job.power, <const float*>x, <float*>out)
        if counts != NULL:
            pool_divide_f32(&job.r.w, job.r.pad_end, job.r.include_pad, <const float*>counts, <float*>out)


cdef void _argmax(const PoolJob* job, int64_t channel) noexcept nogil:
    cdef const char* x = job.x + channel * job.in_size * job.es
    cdef char* out = job.out + channel * job.out_size * job.es
    cdef int64_t* index = job.index + channel * job.out_size
    cdef int64_t base = channel * job.in_size
    if job.dtype_code == DL_INT:
        pool_argmax_i8(&job.r.w, job.column_major, base, <const int8_t*>x, <int8_t*>out, index)
    elif job.dtype_code == DL_UINT:
        pool_argmax_u8(&job.r.w, job.column_major, base, <const uint8_t*>x, <uint8_t*>out, index)
    elif job.is_double:
        pool_argmax_f64(&job.r.w, job.column_major, base, <const double*>x, <double*>out, index)
    else:
        pool_argmax_f32(&job.r.w, job.column_major, base, <const float*>x, <float*>out, index)


cdef void _pool_piece(void* ctx, int64_t piece) noexcept nogil:
    cdef PoolJob* job = <PoolJob*>ctx
    cdef int64_t first = job.n_channels * piece // job.pieces, last = job.n_channels * (piece + 1) // job.pieces
    cdef int64_t channel, rows = job.r.w.out[0] * job.r.w.out[1], n = (last - first) * job.out_size
    cdef char* out = job.out + first * job.out_size * job.es
    cdef char* counts = NULL
    cdef char* lines
    if job.index != NULL:
        for channel in range(first, last):
            _argmax(job, channel)
        return
    if job.how == BY_PAIRS:
        job.loops.pairs(job.r.kind, job.half, job.x + first * job.in_size * job.es, out, n)
        return
    if job.averages:
        counts = _counts(job)
        if counts == NULL:
            job.failed = 1
            return
    if job.how == BY_ROWS:
        lines = <char*>workspace(SLOT_PLANES, <size_t>(job.r.n_lines * job.r.pitch * job.es))
        if lines == NULL:
            job.failed = 1
            return
        job.loops.rows(&job.r, job.x, job.x_end, first * rows, last * rows, job.out, counts, lines)
    else:
        for channel in range(first, last):
            _windows(job, channel, counts)
    if job.r.kind >= POOL_KIND_L2:
        if job.is_double:
            pool_root_f64(<double*>out, n, job.r.kind, job.power)
        else:
            pool_root_f32(<float*>out, n, job.r.kind, job.power)


cdef void _plan(PoolJob* job) noexcept nogil:
    """How: by what the windows are alone, so that the bits are the same for any number of threads."""
    job.loops = pool_loops_by_isa[gemm_isa()] + job.is_double
    job.r.fill = -INFINITY if job.r.kind == POOL_KIND_MAX else 0.0
    job.half = pool_pairs_half(&job.r, job.loops.lanes)
    if job.half:
        job.how = BY_PAIRS
    elif job.r.kind != POOL_KIND_LP and pool_plan_rows(&job.r, job.loops.lanes, job.es):
        job.how = BY_ROWS
    else:
        job.how = BY_WINDOWS


cdef int _run(const char* op, PoolJob* job) noexcept nogil:
    cdef double work
    cdef const Window* w = &job.r.w
    job.failed = 0
    if job.index == NULL:
        _plan(job)
    work = <double>job.n_channels * job.out_size * min(w.kernel[0], w.in_[0]) * min(w.kernel[1], w.in_[1]) * \
        min(w.kernel[2], w.in_[2])
    if work >= PARALLEL_ELEMS and job.n_channels > 1 and thread_count() > 1:
        job.pieces = min(job.n_channels, 4 * thread_count())
        parallel_for(job.pieces, _pool_piece, job)
    else:
        job.pieces = 1
        _pool_piece(job, 0)
    if job.failed:
        return ARG_FAIL(ERR_ALLOC, b"%s: no memory for padded rows", op)
    return 0


# ---- doors ----------------------------------------------------------------------------------------------------


cdef int _pool_args(const char* op, const Value* args, int32_t i_out, PoolJob* job, ArgTensor* x,
                    ArgTensor* out, bint keep_axes=False) noexcept nogil:
    """(x, kernel, strides, pads, dilations, ..., out): fills the window. The output may be rounded down or up
    (ceil_mode), so its spatial shape decides which; both are checked."""
    cdef ArgShape kernel, strides, pads, dilations
    cdef int32_t rank, d, a
    cdef int64_t room, least
    if arg_tensor(op, args, 0, x) or arg_output(op, args, i_out, out) or check_same_dtype(op, x, out):
        return -1
    if x.ndim < 3 or x.ndim > 5 or out.ndim != x.ndim or out.shape[0] != x.shape[0] or out.shape[1] != x.shape[1]:
        return arg_fail_pair(op, ERR_SHAPE, b"ranks must be equal and from 3 to 5, batch and channels equal", b"input",
                             x, b"output", out)
    rank = x.ndim - 2
    if arg_shape_in(op, args, 1, rank, 1, PLANES_MAX_SIZE, &kernel) \
            or arg_shape_in(op, args, 2, rank, 1, PLANES_MAX_SIZE, &strides) \
            or arg_shape_in(op, args, 3, 2 * rank, 0, PLANES_MAX_SIZE, &pads) \
            or arg_shape_in(op, args, 4, rank, 1, PLANES_MAX_SIZE, &dilations) or check_disjoint(op, x, out):
        return -1
    for a in range(3):
        d = a - (3 - rank)
        job.r.w.in_[a] = job.r.w.out[a] = job.r.w.kernel[a] = job.r.w.stride[a] = job.r.w.dilation[a] = 1
        job.r.w.pad[a] = job.r.pad_end[a] = 0
        if d < 0:
            continue
        job.r.w.in_[a] = x.shape[d + 2]
        job.r.w.out[a] = out.shape[d + 2]
        job.r.w.kernel[a] = kernel.data[d]
        job.r.w.stride[a] = strides.data[d]
        job.r.w.dilation[a] = dilations.data[d]
        job.r.w.pad[a] = pads.data[d]
        job.r.pad_end[a] = pads.data[d + rank]
        if job.r.w.in_[a] > PLANES_MAX_SIZE:
            return arg_fail_one(op, ERR_SHAPE, b"a spatial size is too large", b"input", x)
        room = job.r.w.in_[a] + job.r.w.pad[a] + job.r.pad_end[a] - (job.r.w.kernel[a] - 1) * job.r.w.dilation[a] - 1
        least = room // job.r.w.stride[a] + 1 if room >= 0 else 0
        if job.r.w.out[a] < least or job.r.w.out[a] > least + 1 or \
                (job.r.w.out[a] > least and room >= 0 and room % job.r.w.stride[a] == 0):
            return ARG_FAIL(ERR_SHAPE, b"%s: along axis %d the output has %lld positions; the padded input of %lld has "
                            b"room for %lld windows of %lld, rounded down", op, d, <long long>job.r.w.out[a],
                            <long long>(job.r.w.in_[a] + job.r.w.pad[a] + job.r.pad_end[a]), <long long>least,
                            <long long>((job.r.w.kernel[a] - 1) * job.r.w.dilation[a] + 1))
    if not keep_axes:
        planes_shift_axes(&job.r.w, job.r.pad_end)
    job.is_double = x.itemsize == 8
    job.dtype_code = x.dtype.code
    job.es = x.itemsize
    job.n_channels = x.shape[0] * x.shape[1]
    job.in_size = job.r.w.in_[0] * job.r.w.in_[1] * job.r.w.in_[2]
    job.out_size = job.r.w.out[0] * job.r.w.out[1] * job.r.w.out[2]
    job.x, job.x_end, job.out = x.data, x.data + x.nbytes, out.data
    job.index = NULL
    job.averages = job.column_major = False
    job.r.include_pad = False
    job.power = 0
    return 0


cdef int _check_float(const char* op, const ArgTensor* x) noexcept nogil:
    if x.dtype.code == DL_FLOAT and (x.itemsize == 4 or x.itemsize == 8):
        return 0
    return arg_fail_one(op, ERR_DTYPE, b"float32 and float64 only", b"input", x)


cdef int _check_maximum(const char* op, const ArgTensor* x) noexcept nogil:
    if x.itemsize == 1 and (x.dtype.code == DL_INT or x.dtype.code == DL_UINT):
        return 0
    if x.dtype.code == DL_FLOAT and (x.itemsize == 4 or x.itemsize == 8):
        return 0
    return arg_fail_one(op, ERR_DTYPE, b"float32, float64, int8 and uint8 only", b"input", x)


cdef int max_pool(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, kernel, strides, pads, dilations, out): the maximum of every window. Source: ONNX MaxPool-12."""
    cdef ArgTensor x, out
    cdef PoolJob job
    if arg_count(b"max_pool", n_args, 6) or _pool_args(b"max_pool", args, 5, &job, &x, &out) \
            or _check_maximum(b"max_pool", &x):
        return -1
    if out.numel == 0:
        return 0
    job.r.kind = POOL_KIND_MAX
    if job.dtype_code != DL_FLOAT:  # the indices are computed on the way and dropped
        job.index = <int64_t*>workspace(SLOT_TABLES, <size_t>job.out_size * sizeof(int64_t))
        return _max_pool_bytes(&job)
    return _run(b"max_pool", &job)


cdef int _max_pool_bytes(PoolJob* job) noexcept nogil:
    cdef int64_t channel
    cdef int64_t* index = job.index
    if index == NULL:
        return fail(ERR_ALLOC, b"max_pool: no memory for the indices")
    for channel in range(job.n_channels):
        job.index = index - channel * job.out_size  # every channel writes the same scratch indices
        _argmax(job, channel)
    return 0


cdef int max_pool_with_indices(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, kernel, strides, pads, dilations, storage_order, out, indices int64). Source: ONNX MaxPool-12.

    Indices count elements of the whole input (N, C, spatial), the spatial axes row-major (0) or column-major (1).
    """
    cdef ArgTensor x, out, indices
    cdef PoolJob job
    cdef int64_t order = 0
    if arg_count(b"max_pool_with_indices", n_args, 8) \
            or _pool_args(b"max_pool_with_indices", args, 6, &job, &x, &out, True) \
            or _check_maximum(b"max_pool_with_indices", &x) \
            or arg_int_in(b"max_pool_with_indices", args, 5, 0, 1, &order) \
            or arg_output(b"max_pool_with_indices", args, 7, &indices) \
            or check_dtype(b"max_pool_with_indices", b"indices", &indices, DL_INT, 64) \
            or check_out_shape(b"max_pool_with_indices", &indices, out.ndim, out.shape) \
            or check_disjoint(b"max_pool_with_indices", &x, &indices) \
            or check_disjoint(b"max_pool_with_indices", &out, &indices):
        return -1
    if out.numel == 0:
        return 0
    job.r.kind = POOL_KIND_MAX
    job.column_major = order == 1
    job.index = <int64_t*>indices.data
    return _run(b"max_pool_with_indices", &job)


cdef int avg_pool(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, kernel, strides, pads, dilations, count_include_pad, out). Source: ONNX AveragePool-19.

    With count_include_pad, declared padding counts as zeros; what ceil_mode adds beyond it never counts.
    """
    cdef ArgTensor x, out
    cdef PoolJob job
    cdef int64_t counts_pad = 0
    if arg_count(b"avg_pool", n_args, 7) or _pool_args(b"avg_pool", args, 6, &job, &x, &out) \
            or _check_float(b"avg_pool", &x) or arg_int_in(b"avg_pool", args, 5, 0, 1, &counts_pad):
        return -1
    if out.numel == 0:
        return 0
    job.r.kind = POOL_KIND_SUM
    job.averages = True
    job.r.include_pad = counts_pad == 1
    return _run(b"avg_pool", &job)


cdef int lp_pool(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, kernel, strides, pads, dilations, p, out): (sum |x|^p)^(1/p) of every window. Source: ONNX LpPool-18."""
    cdef ArgTensor x, out
    cdef PoolJob job
    cdef int64_t p = 2
    if arg_count(b"lp_pool", n_args, 7) or _pool_args(b"lp_pool", args, 6, &job, &x, &out) \
            or _check_float(b"lp_pool", &x) or arg_int_in(b"lp_pool", args, 5, 1, PLANES_MAX_SIZE, &p):
        return -1
    if out.numel == 0:
        return 0
    job.r.kind = POOL_KIND_L1 if p == 1 else POOL_KIND_L2 if p == 2 else POOL_KIND_LP
    job.power = <double>p
    return _run(b"lp_pool", &job)


ctypedef struct GlobalJob:
    bint is_double, maximum
    int64_t n_channels, size, pieces
    const char* x
    char* out


cdef void _global_piece(void* ctx, int64_t piece) noexcept nogil:
    cdef GlobalJob* job = <GlobalJob*>ctx
    cdef const double* d
    cdef const float* f
    cdef int64_t i
    for i in range(job.n_channels * piece // job.pieces, job.n_channels * (piece + 1) // job.pieces):
        if job.is_double:
            d = <const double*>job.x + i * job.size
            (<double*>job.out)[i] = pool_all_max_f64(d, job.size) if job.maximum else pool_mean_f64(d, job.size)
        else:
            f = <const float*>job.x + i * job.size
            (<float*>job.out)[i] = pool_all_max_f32(f, job.size) if job.maximum else pool_mean_f32(f, job.size)


cdef int _global_pool(const char* op, const Value* args, int32_t n_args, bint maximum) noexcept nogil:
    """(x, out): one value per channel. x: (N, C, spatial), out: (N, C, 1, ...)."""
    cdef ArgTensor x, out
    cdef GlobalJob job
    cdef int64_t expected[16]
    cdef int32_t d
    if arg_count(op, n_args, 2) or arg_tensor(op, args, 0, &x) or arg_output(op, args, 1, &out) \
            or check_same_dtype(op, &x, &out) or _check_float(op, &x):
        return -1
    if x.ndim < 2:
        return arg_fail_one(op, ERR_SHAPE, b"input needs a batch and a channel dimension", b"input", &x)
    job.size = 1
    for d in range(x.ndim):
        expected[d] = x.shape[d] if d < 2 else 1
        if d >= 2:
            job.size *= x.shape[d]
    if check_out_shape(op, &out, x.ndim, expected) or check_disjoint(op, &x, &out):
        return -1
    if out.numel == 0:
        return 0
    if job.size == 0:
        return arg_fail_one(op, ERR_SHAPE, b"nothing to pool over", b"input", &x)
    job.is_double = x.itemsize == 8
    job.maximum = maximum
    job.n_channels = out.numel
    job.x, job.out = x.data, out.data
    if thread_count() > 1 and x.numel >= PARALLEL_ELEMS and job.n_channels > 1:
        job.pieces = min(job.n_channels, thread_count())
        parallel_for(job.pieces, _global_piece, &job)
    else:
        job.pieces = 1
        _global_piece(&job, 0)
    return 0


cdef int global_avg_pool(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, out): the mean of every channel. Source: ONNX GlobalAveragePool-1."""
    return _global_pool(b"global_avg_pool", args, n_args, False)


cdef int global_max_pool(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, out): the maximum of every channel. Source: ONNX GlobalMaxPool-1."""
    return _global_pool(b"global_max_pool", args, n_args, True)


cdef KernelEntry _table[6]
_table[0].name, _table[0].fn, _table[0].ns_per_byte = b"kernel.max_pool", max_pool, 0.2
_table[1].name, _table[1].fn, _table[1].ns_per_byte = b"kernel.max_pool_with_indices", max_pool_with_indices, 0.5
_table[2].name, _table[2].fn, _table[2].ns_per_byte = b"kernel.avg_pool", avg_pool, 0.2
_table[3].name, _table[3].fn, _table[3].ns_per_byte = b"kernel.lp_pool", lp_pool, 0.5
_table[4].name, _table[4].fn, _table[4].ns_per_byte = b"kernel.global_avg_pool", global_avg_pool, 0.03
_table[5].name, _table[5].fn, _table[5].ns_per_byte = b"kernel.global_max_pool", global_max_pool, 0.03


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 6
    return _table
