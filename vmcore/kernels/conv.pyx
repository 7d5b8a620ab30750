# HOT: doors and leaves are noexcept nogil.
"""kernel.conv and kernel.conv_transpose over 1, 2 or 3 spatial dimensions.

A convolution takes one of four ways, all exact to rounding:

* a window that reads one input position per output (1x1, stride 1, no padding) or the whole input is a matrix product;
* windows with few output channels per group (depthwise) are direct sums over padded planes;
* everything else is im2col into packed panels, a cache-sized block at a time, and our own matrix product, with bias
  and activation applied while a block is in registers;
* windows whose padded planes would be out of proportion to the data (hostile dilations) are summed one by one.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

from vmcore.blas cimport ensure_bound, gemm_rm
from vmcore.kernels.args cimport (
    ARG_FAIL, ArgShape, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in, arg_optional_tensor,
    arg_output, arg_shape_in, arg_tensor, args_bind, check_disjoint, check_out_shape, check_same_dtype,
    check_same_shape,
)
from vmcore.kernels.gemm cimport (
    GEMM_ACTIVATIONS, GEMM_BLOCK_BYTES, GEMM_BRIEF_FLOPS, GEMM_KC, GEMM_RELU, GemmEpilogue, GemmGrid, gemm_column,
    gemm_grid, gemm_panels, gemm_slab_size, gemm_tiles, no_epilogue, own_gemm, set_activation,
)
from vmcore.kernels.window cimport (
    PLANES_MAX_SIZE, PLANES_SLACK, Planes, Window, WindowLoops, planes_layout, planes_line_size,
    planes_shift_axes, planes_taps, window_loops,
)
from vmcore.kernels.workspace cimport SLOT_PANELS, SLOT_PLANES, SLOT_TABLES, SLOT_TILES, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, parallel_for_brief, thread_count
from vmcore.value cimport DL_FLOAT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, KernelEntry, Value

cdef extern from "vmcore/kernels/conv.h" nogil:
    void conv_slow_f32(const Window* w, const float* x, int64_t n_channels, const float* weights, float bias, bint relu,
                       float* out)
    void conv_slow_f64(const Window* w, const double* x, int64_t n_channels, const double* weights, double bias,
                       bint relu, double* out)
    void conv_scatter_f32(const Window* w, const float* columns, int64_t ldc, int64_t q0, int64_t n, float* out)
    void conv_scatter_f64(const Window* w, const double* columns, int64_t ldc, int64_t q0, int64_t n, double* out)
    void conv_fill_f32(float* out, int64_t n, float v)
    void conv_fill_f64(double* out, int64_t n, double v)
    void conv_relu_f32(float* out, int64_t n)
    void conv_relu_f64(double* out, int64_t n)
    void conv_add_f32(float* out, const float* more, int64_t n)
    void conv_add_f64(double* out, const double* more, int64_t n)

args_bind(fail)
ensure_bound()

cdef enum:
    BAND_BYTES = 768 * 1024  # padded planes of one band; larger images are done in several
    DIRECT_MAX_OUTPUTS = 3  # output channels per group up to which direct sums beat a packed product
    PARALLEL_FLOPS = 1 << 19  # multiply-adds below which waking a thread costs more than it saves
    DIRECT_BATCH_BYTES = 24 * 1024  # padded planes that are filled before they are summed: stay in L1
    TRANSPOSE_BLOCK_BYTES = 1 << 20

ctypedef struct ConvJob:
    Window w
    Planes p
    bint is_double, direct, slow
    bint relu  # what the loops apply themselves; `e` says what is left for _finish
    GemmEpilogue e  # residual and activation of the products
    int64_t es, n_batch, group, cg, og  # cg, og: input and output channels of one group
    int64_t in_size, out_size, out_plane  # elements of one channel, and of one output plane
    int64_t n_bands, m_parts, n_units, pieces
    double flops  # multiply-adds
    GemmGrid grid  # pieces of one output plane
    int64_t kc, nc, K
    const char* x
    const char* x_end
    const char* weights
    const char* bias  # NULL: none
    char* out
    int failed


cdef int64_t _ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef double _bias_at(const ConvJob* job, int64_t channel) noexcept nogil:
    if job.bias == NULL:
        return 0
    return (<const double*>job.bias)[channel] if job.is_double else (<const float*>job.bias)[channel]


cdef void _fill(bint is_double, char* out, int64_t n, double v) noexcept nogil:
    if is_double:
        conv_fill_f64(<double*>out, n, v)
    else:
        conv_fill_f32(<float*>out, n, <float>v)


cdef void _finish(const ConvJob* job, char* out, int64_t n) noexcept nogil:
    """Residual and activation on n finished elements of the output, for ways that have no epilogue for them."""
    if job.e.residual != 0:
        if job.is_double:
            conv_add_f64(<double*>out, <const double*>(out + job.e.residual), n)
        else:
            conv_add_f32(<float*>out, <const float*>(out + job.e.residual), n)
        if job.e.relu:  # the only activation that products have in their tiles
            if job.is_double:
                conv_relu_f64(<double*>out, n)
            else:
                conv_relu_f32(<float*>out, n)
    if job.e.activation != NULL:
        job.e.activation(out, out, n, job.e.params)


cdef void _finish_rows(const ConvJob* job) noexcept nogil:
    """out[n, o] += bias[o], then relu: for outputs of one position, where a product has no epilogue of its own."""
    cdef int64_t n_out = job.group * job.og, i
    cdef double v
    for i in range(job.n_batch * n_out):
        v = (<double*>job.out)[i] if job.is_double else (<float*>job.out)[i]
        v += _bias_at(job, i % n_out)
        if job.relu and v < 0:
            v = 0
        if job.is_double:
            (<double*>job.out)[i] = v
        else:
            (<float*>job.out)[i] = <float>v
    _finish(job, job.out, job.n_batch * n_out)


# ---- units of work: one image, group, output plane, band of rows and part of the output channels ---------------------


cdef int _gemm_unit(const ConvJob* job, int64_t image, int64_t g, int64_t od, int64_t c0, int64_t c1, int64_t m0,
                    int64_t m1, const int64_t* taps) noexcept nogil:
    """im2col and product for output channels [m0, m1) of group g and positions [c0, c1) of one output plane."""
    cdef int64_t es = job.es, K = job.K, lanes = gemm_tiles(job.is_double).lanes, width = 2 * lanes
    cdef int64_t oh = c0 // job.w.out[2], rows = _ceil_div(c1, job.w.out[2]) - oh, n, q0, k0, kc, slab_bytes, out_at
    cdef int64_t n_most = _ceil_div(min(c1 - c0, job.nc), width) * width + width
    cdef char* planes = <char*>workspace(SLOT_PLANES, <size_t>((job.cg * job.p.channel_step + PLANES_SLACK) * es))
    cdef char* panels = <char*>workspace(SLOT_PANELS, <size_t>(n_most * job.kc * es + 128))
    cdef char* slab = NULL
    cdef const char* w
    cdef const WindowLoops* loops = window_loops(job.is_double)
    cdef GemmEpilogue e
    slab_bytes = gemm_slab_size(job.is_double, K, job.kc)
    if slab_bytes:
        slab = <char*>workspace(SLOT_TILES, <size_t>slab_bytes)
    if planes == NULL or panels == NULL or (slab_bytes and slab == NULL):
        return -1
    w = job.x + (image * job.group + g) * job.cg * job.in_size * es
    loops.fill(&job.w, &job.p, w, job.x_end, job.cg, od, oh, rows, 0.0, planes)
    w = job.weights + (g * job.og + m0) * K * es
    q0 = c0
    while q0 < c1:
        # What is left of the plane and would be done as dot products stays with the block before it.
        n = c1 - q0 if c1 - q0 - job.nc <= lanes // 4 else job.nc
        out_at = ((image * job.group + g) * job.og + m0) * job.out_size + od * job.out_plane + q0
        k0 = 0
        while k0 < K:
            kc = min(job.kc, K - k0)
            loops.pack(&job.p, taps, planes, job.w.out[2], q0 - oh * job.w.out[2], n, k0, k0 + kc, width, panels)
            if k0 + kc == K:
                e = job.e
                e.row_bias = job.bias
            else:
                no_epilogue(&e)
            e.accumulate = k0 > 0
            gemm_panels(job.is_double, m1 - m0, n, kc, w + k0 * es, K, panels, job.out + out_at * es, job.out_size, &e,
                        g * job.og + m0, 0, slab, q0 + n == job.out_plane)
            k0 += kc
        q0 += n
    return 0


cdef int _direct_bands(const ConvJob* job, int64_t first, int64_t last, int64_t od, int64_t oh, int64_t rows,
                       const int64_t* taps) noexcept nogil:
    """Direct sums for one band of groups [first, last), counted over all images; as many at a time as fit in L1."""
    cdef int64_t es = job.es, columns = job.w.out[2], step = job.cg * job.p.channel_step
    cdef int64_t i, o, channel, batch
    cdef const WindowLoops* loops = window_loops(job.is_double)
    cdef bint plain_3x3 = job.cg == 1 and job.w.kernel[0] == 1 and job.w.kernel[1] == 3 and job.w.kernel[2] == 3 and \
        job.w.stride[1] == 1 and job.w.stride[2] == 1 and job.w.dilation[1] == 1 and job.w.dilation[2] == 1 and \
        columns >= loops.lanes
    cdef char* planes
    cdef char* line
    cdef char* out
    cdef const char* w
    batch = min(max(DIRECT_BATCH_BYTES // (step * es), 1), last - first)
    planes = <char*>workspace(SLOT_PLANES, <size_t>((batch * step + PLANES_SLACK) * es))
    line = <char*>workspace(SLOT_PANELS, <size_t>(planes_line_size(&job.p, rows) * es))
    if planes == NULL or line == NULL:
        return -1
    while first < last:
        batch = min(batch, last - first)
        loops.fill(&job.w, &job.p, job.x + first * job.cg * job.in_size * es, job.x_end, batch * job.cg, od, oh, rows,
                   0.0, planes)
        channel = first % job.group * job.og
        for i in range(batch):
            for o in range(job.og):
                out = job.out + (((first + i) * job.og + o) * job.out_size + od * job.out_plane + oh * columns) * es
                w = job.weights + channel * job.K * es
                if plain_3x3:
                    loops.plain_3x3(planes + i * step * es, job.p.len[2], w, _bias_at(job, channel), job.relu, rows,
                                    columns, out)
                else:
                    loops.direct(&job.p, taps, planes + i * step * es, job.cg, w, _bias_at(job, channel), job.relu,
                                 rows, columns, out, line)
                _finish(job, out, rows * columns)
                channel += 1
            if channel == job.group * job.og:
                channel = 0
        first += batch
    return 0


cdef int _slow_unit(const ConvJob* job, int64_t image, int64_t g) noexcept nogil:
    """Every output position of group g, one sum at a time."""
    cdef int64_t o, channel, es = job.es
    cdef const char* x = job.x + (image * job.group + g) * job.cg * job.in_size * es
    cdef char* out
    for o in range(job.og):
        channel = g * job.og + o
        out = job.out + (image * job.group * job.og + channel) * job.out_size * es
        if job.is_double:
            conv_slow_f64(&job.w, <const double*>x, job.cg, <const double*>job.weights + channel * job.K,
                          _bias_at(job, channel), job.relu, <double*>out)
        else:
            conv_slow_f32(&job.w, <const float*>x, job.cg, <const float*>job.weights + channel * job.K,
                          <float>_bias_at(job, channel), job.relu, <float*>out)
        _finish(job, out, job.out_size)
    return 0


cdef void _conv_piece(void* ctx, int64_t piece) noexcept nogil:
    cdef ConvJob* job = <ConvJob*>ctx
    cdef int64_t unit, rest, part, band, od, g, image, oh, rows, lanes = gemm_tiles(job.is_double).lanes
    cdef int64_t first = job.n_units * piece // job.pieces, last = job.n_units * (piece + 1) // job.pieces
    cdef int64_t* taps = NULL
    cdef int status
    if not job.slow:
        taps = <int64_t*>workspace(SLOT_TABLES, <size_t>job.p.taps * sizeof(int64_t))
        if taps == NULL:
            job.failed = 1
            return
        planes_taps(&job.w, &job.p, taps)
    if job.direct and not job.slow and job.n_bands == 1 and job.w.out[0] == 1:
        if _direct_bands(job, first, last, 0, 0, job.w.out[1], taps) != 0:
            job.failed = 1
        return
    for unit in range(first, last):
        if job.slow:
            status = _slow_unit(job, unit // job.group, unit % job.group)
        else:
            part, rest = unit % job.m_parts, unit // job.m_parts
            band, rest = rest % job.n_bands, rest // job.n_bands
            od, rest = rest % job.w.out[0], rest // job.w.out[0]
            g, image = rest % job.group, rest // job.group
            if job.direct:
                oh = job.w.out[1] * band // job.n_bands
                rows = job.w.out[1] * (band + 1) // job.n_bands - oh
                status = _direct_bands(job, image * job.group + g, image * job.group + g + 1, od, oh, rows, taps)
            else:
                status = _gemm_unit(job, image, g, od, gemm_column(&job.grid, band, job.out_plane, lanes),
                                    gemm_column(&job.grid, band + 1, job.out_plane, lanes),
                                    job.og * part // job.m_parts, job.og * (part + 1) // job.m_parts, taps)
        if status != 0:
            job.failed = 1
            return


cdef void _plan(ConvJob* job) noexcept nogil:
    """Choose bands and parts: planes of one band stay near L2, and every thread gets its share."""
    cdef int threads = thread_count()
    cdef int64_t lanes = gemm_tiles(job.is_double).lanes, width = 2 * lanes, rows = job.w.out[1], per_row, units
    job.m_parts = 1
    job.n_bands = 1
    job.slow = job.K == 0 or planes_layout(&job.w, rows, &job.p) < 0
    job.direct = job.og <= DIRECT_MAX_OUTPUTS
    job.flops = <double>job.n_batch * job.group * job.og * job.out_size * job.K
    if job.flops < PARALLEL_FLOPS:
        threads = 1
    if job.slow:
        job.n_units = job.n_batch * job.group
        job.pieces = 1 if threads == 1 else min(job.n_units, 8 * threads)
        return
    per_row = job.p.channel_step // job.p.len[1]
    rows = BAND_BYTES // max(job.cg * per_row * job.es, 1) - job.p.axis[1].shift
    rows = min(max(rows, 4), job.w.out[1])
    job.n_bands = _ceil_div(job.w.out[1], rows)
    units = job.n_batch * job.group * job.w.out[0]
    if job.direct:
        if threads > 1 and units * job.n_bands < 4 * threads and units % threads != 0:
            job.n_bands = min(_ceil_div(job.n_bands, threads) * threads, job.w.out[1])
        rows = _ceil_div(job.w.out[1], job.n_bands)
    else:
        job.kc = _ceil_div(job.K, _ceil_div(job.K, GEMM_KC))
        job.nc = max(GEMM_BLOCK_BYTES // (job.kc * job.es) // width, 1) * width
        gemm_grid(threads, units, job.og, job.out_plane, lanes, job.n_bands, &job.grid)
        job.n_bands, job.m_parts = job.grid.columns, job.grid.rows
        # Rows that the widest piece touches: whole panels and the remainder, beginning anywhere in a row.
        rows = _ceil_div(_ceil_div(job.grid.panels, job.n_bands) * width + lanes // 4 - 1, job.w.out[2]) + 1
        rows = min(rows, job.w.out[1])
    job.n_units = units * job.n_bands * job.m_parts
    if rows != job.p.rows:
        planes_layout(&job.w, rows, &job.p)
    job.pieces = 1 if threads == 1 else min(job.n_units, 8 * threads)


cdef void _run_pieces(ConvJob* job) noexcept nogil:
    if job.pieces == 1:
        _conv_piece(job, 0)
    elif job.flops < GEMM_BRIEF_FLOPS:
        parallel_for_brief(job.pieces, _conv_piece, job)
    else:
        parallel_for(job.pieces, _conv_piece, job)


cdef void _pointwise_piece(void* ctx, int64_t unit) noexcept nogil:
    """One image and group of a window that reads one position: out[og, positions] = w[og, cg] @ x[cg, positions]."""
    cdef ConvJob* job = <ConvJob*>ctx
    cdef int64_t g = unit % job.group, es = job.es
    cdef GemmEpilogue e = job.e
    e.row_bias = job.bias + g * job.og * es if job.bias != NULL else NULL
    if own_gemm(job.is_double, False, False, job.og, job.out_size, job.cg, 1.0,
                job.weights + g * job.og * job.cg * es, job.cg, job.x + unit * job.cg * job.in_size * es, job.in_size,
                0.0, job.out + unit * job.og * job.out_size * es, job.out_size, &e) != 0:
        job.failed = 1


cdef bint _is_pointwise(const Window* w) noexcept nogil:
    cdef int a
    for a in range(3):
        if w.kernel[a] != 1 or w.stride[a] != 1 or w.pad[a] != 0 or w.out[a] != w.in_[a]:
            return False
    return True


cdef bint _is_whole(const Window* w) noexcept nogil:
    """The window covers the input exactly: each output is one dot product."""
    cdef int a
    for a in range(3):
        if w.kernel[a] != w.in_[a] or w.pad[a] != 0 or w.out[a] != 1 or (w.kernel[a] > 1 and w.dilation[a] != 1):
            return False
    return True


cdef enum Way:
    WAY_WHOLE      # the window is the whole input: one matrix product
    WAY_POINTWISE  # it reads one position per output: a matrix product per image and group
    WAY_DIRECT     # few output channels: sums over padded planes
    WAY_PANELS     # columns packed a block at a time, and matrix products


cdef Way _way(const Window* w, int64_t group, int64_t og, int64_t K) noexcept nogil:
    """How a convolution is computed: `og` output channels a group, `K` products for each output."""
    if group == 1 and _is_whole(w) and K > 0:
        return WAY_WHOLE
    if og <= DIRECT_MAX_OUTPUTS:
        return WAY_DIRECT
    return WAY_POINTWISE if _is_pointwise(w) and K > 0 else WAY_PANELS


def way(x, w, out, pads, strides, dilations, int64_t group) -> str:
    """How a convolution of these shapes is computed: "whole", "pointwise", "direct" or "panels".

    Parameters
    ----------
    x, w, out : sequence of int
        Shapes of input, weights and result, as the kernel takes them: 3 to 5 sizes.
    pads, strides, dilations : sequence of int
        Per spatial axis; of pads, those before the axes and then those after them.
    """
    cdef Window window
    cdef int a, d, rank = len(x) - 2
    cdef int64_t K = 1
    if not 1 <= rank <= 3 or group < 1:
        raise ValueError("way: 3 to 5 sizes and a group")
    for size in w[1:]:
        K *= size
    for a in range(3):
        d = a - (3 - rank)
        window.in_[a] = window.out[a] = window.kernel[a] = window.stride[a] = window.dilation[a] = 1
        window.pad[a] = 0
        if d >= 0:
            window.in_[a], window.out[a], window.kernel[a] = x[d + 2], out[d + 2], w[d + 2]
            window.stride[a], window.dilation[a], window.pad[a] = strides[d], dilations[d], pads[d]
    return ("whole", "pointwise", "direct", "panels")[_way(&window, group, w[0] // group, K)]


cdef void _run(ConvJob* job) noexcept nogil:
    cdef int64_t unit, n_units = job.n_batch * job.group
    cdef Way chosen = _way(&job.w, job.group, job.og, job.K)
    job.failed = 0
    if chosen == WAY_WHOLE:
        job.failed = gemm_rm(job.is_double, False, True, job.n_batch, job.og, job.K, 1.0, job.x, job.K, job.weights,
                             job.K, 0.0, job.out, job.og)
        _finish_rows(job)
    elif chosen == WAY_POINTWISE:
        if n_units >= thread_count() > 1 and <double>n_units * job.og * job.out_size * job.K >= PARALLEL_FLOPS:
            parallel_for(n_units, _pointwise_piece, job)
        else:
            for unit in range(n_units):
                _pointwise_piece(job, unit)
    else:
        _plan(job)
        _run_pieces(job)


# ---- doors ----------------------------------------------------------------------------------------------------


cdef int _conv_args(const char* op, const Value* args, ConvJob* job, ArgTensor* x, ArgTensor* w, ArgTensor* bias,
                    ArgTensor* out, int32_t first_shape, int32_t i_group, int32_t i_out,
                    ArgShape* pads) noexcept nogil:
    """Arguments that both kernels have: tensors, strides, pads, dilations, group. Fills the window but its out."""
    cdef ArgShape strides, dilations
    cdef bint has_bias = False
    cdef int64_t group = 1
    cdef int32_t rank, a, d
    if arg_tensor(op, args, 0, x) or arg_tensor(op, args, 1, w) or arg_optional_tensor(op, args, 2, bias, &has_bias) \
            or arg_output(op, args, i_out, out) or check_same_dtype(op, x, w) or check_same_dtype(op, x, out) \
            or (has_bias and check_same_dtype(op, x, bias)):
        return -1
    if x.dtype.code != DL_FLOAT or (x.itemsize != 4 and x.itemsize != 8):
        return arg_fail_one(op, ERR_DTYPE, b"float32 and float64 only", b"input", x)
    if x.ndim < 3 or x.ndim > 5 or w.ndim != x.ndim:
        return arg_fail_pair(op, ERR_SHAPE, b"ranks must be equal and from 3 to 5", b"input", x, b"weights", w)
    rank = x.ndim - 2
    if arg_shape_in(op, args, first_shape, rank, 1, PLANES_MAX_SIZE, &strides) \
            or arg_shape_in(op, args, first_shape + 1, 2 * rank, 0, PLANES_MAX_SIZE, pads) \
            or arg_shape_in(op, args, first_shape + 2, rank, 1, PLANES_MAX_SIZE, &dilations) \
            or arg_int_in(op, args, i_group, 1, PLANES_MAX_SIZE, &group) \
            or check_disjoint(op, x, out) or check_disjoint(op, w, out) or (has_bias and check_disjoint(op, bias, out)):
        return -1
    for a in range(3):
        d = a - (3 - rank)
        job.w.in_[a] = job.w.out[a] = job.w.kernel[a] = job.w.stride[a] = job.w.dilation[a] = 1
        job.w.pad[a] = 0
        if d >= 0:
            job.w.in_[a] = x.shape[d + 2]
            job.w.kernel[a] = w.shape[d + 2]
            job.w.stride[a] = strides.data[d]
            job.w.dilation[a] = dilations.data[d]
            job.w.pad[a] = pads.data[d]
            if job.w.in_[a] > PLANES_MAX_SIZE or job.w.kernel[a] > PLANES_MAX_SIZE or job.w.kernel[a] < 1:
                return arg_fail_pair(op, ERR_SHAPE, b"a spatial size is zero or too large", b"input", x, b"weights", w)
    job.is_double = x.itemsize == 8
    job.es = x.itemsize
    job.n_batch = x.shape[0]
    job.group = group
    job.x, job.x_end, job.weights, job.out = x.data, x.data + x.nbytes, w.data, out.data
    job.bias = bias.data if has_bias else NULL
    return 0


cdef void _shift_axes(ConvJob* job, const ArgShape* pads, int32_t rank) noexcept nogil:
    """Let rows run along an axis that is not trivial."""
    cdef int64_t pad_end[3]
    cdef int32_t a
    for a in range(3):
        pad_end[a] = pads.data[2 * rank - 3 + a] if a >= 3 - rank else 0
    planes_shift_axes(&job.w, pad_end)


cdef int conv(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, w, [bias], strides, pads, dilations, group, activation, [p0, p1, [residual]], out). Source: ONNX Conv-11.

    x: (N, C, spatial), w: (O, C / group, kernel), bias: (O,), out: (N, O, spatial). pads: begins, then ends. The
    residual, of the shape of out, is added before the activation, whose number (gemm.h) has up to two parameters;
    these three arguments are there together or not at all.
    """
    cdef ArgTensor x, w, bias, residual, out
    cdef bint extended = n_args == 12, has_residual = False
    cdef double p0 = 0, p1 = 0
    cdef ArgShape pads
    cdef ConvJob job
    cdef int64_t activation = 0, room
    cdef int64_t expected[5]
    cdef int32_t rank, d, a
    if (not extended and arg_count(b"conv", n_args, 9)) \
            or _conv_args(b"conv", args, &job, &x, &w, &bias, &out, 3, 6, n_args - 1, &pads) \
            or arg_int_in(b"conv", args, 7, 0, GEMM_ACTIVATIONS - 1 if extended else GEMM_RELU, &activation):
        return -1
    if extended and (arg_float(b"conv", args, 8, &p0) or arg_float(b"conv", args, 9, &p1)
                     or arg_optional_tensor(b"conv", args, 10, &residual, &has_residual)):
        return -1
    no_epilogue(&job.e)
    set_activation(&job.e, job.is_double, activation, p0, p1)
    if has_residual:
        if check_same_dtype(b"conv", &residual, &out) or check_same_shape(b"conv", &residual, &out) \
                or check_disjoint(b"conv", &residual, &out):
            return -1
        job.e.residual = residual.data - out.data
    rank = x.ndim - 2
    if x.shape[1] % job.group or w.shape[1] != x.shape[1] // job.group or w.shape[0] % job.group:
        return ARG_FAIL(ERR_SHAPE, b"conv: %lld channels do not fit weights (%lld, %lld, ...) in %lld groups",
                        <long long>x.shape[1], <long long>w.shape[0], <long long>w.shape[1], <long long>job.group)
    if job.bias != NULL and (bias.ndim != 1 or bias.shape[0] != w.shape[0]):
        return arg_fail_pair(b"conv", ERR_SHAPE, b"bias must have one element per output channel", b"bias", &bias,
                             b"weights", &w)
    expected[0], expected[1] = x.shape[0], w.shape[0]
    for d in range(rank):
        a = d + 3 - rank
        room = job.w.in_[a] + pads.data[d] + pads.data[d + rank] - (job.w.kernel[a] - 1) * job.w.dilation[a] - 1
        if room < 0:
            return ARG_FAIL(ERR_SHAPE, b"conv: along axis %d the kernel reaches over %lld elements, the padded input "
                            b"has %lld", d, <long long>((job.w.kernel[a] - 1) * job.w.dilation[a] + 1),
                            <long long>(job.w.in_[a] + pads.data[d] + pads.data[d + rank]))
        job.w.out[a] = room // job.w.stride[a] + 1
        expected[d + 2] = job.w.out[a]
    if check_out_shape(b"conv", &out, x.ndim, expected):
        return -1
    if out.numel == 0:
        return 0
    _shift_axes(&job, &pads, rank)
    job.cg = w.shape[1]
    job.og = w.shape[0] // job.group
    job.in_size = job.w.in_[0] * job.w.in_[1] * job.w.in_[2]
    job.out_plane = job.w.out[1] * job.w.out[2]
    job.out_size = job.w.out[0] * job.out_plane
    job.K = job.cg * job.w.kernel[0] * job.w.kernel[1] * job.w.kernel[2]
    job.relu = activation == GEMM_RELU and job.e.residual == 0
    _run(&job)
    if job.failed:
        return fail(ERR_ALLOC, b"conv: no memory for the packed input")
    return 0


# ---- transposed: columns = w' @ x, scattered onto the output ----------------------------------------------------


cdef void _transpose_piece(void* ctx, int64_t unit) noexcept nogil:
    """Output channels of one part of one image and group. Here the window maps the output (in) to the input (out), cg
    and og are the channels of x and of out, and K is the elements of one weight kernel."""
    cdef ConvJob* job = <ConvJob*>ctx
    cdef int64_t part = unit % job.m_parts, group_at = unit // job.m_parts, g = group_at % job.group, es = job.es
    cdef int64_t m0 = job.og * part // job.m_parts, m1 = job.og * (part + 1) // job.m_parts, o, q0, n
    cdef int64_t positions = job.out_size
    cdef char* columns
    cdef const char* x = job.x + group_at * job.cg * positions * es
    cdef char* out = job.out + (group_at * job.og + m0) * job.in_size * es
    for o in range(m0, m1):
        _fill(job.is_double, out + (o - m0) * job.in_size * es, job.in_size, _bias_at(job, g * job.og + o))
    if positions == 0 or job.cg == 0 or m0 == m1:
        return
    columns = <char*>workspace(SLOT_PLANES, <size_t>((m1 - m0) * job.K * job.nc * es))
    if columns == NULL:
        job.failed = 1
        return
    q0 = 0
    while q0 < positions:
        n = min(job.nc, positions - q0)
        if own_gemm(job.is_double, True, False, (m1 - m0) * job.K, n, job.cg, 1.0,
                    job.weights + (g * job.cg * job.og + m0) * job.K * es, job.og * job.K, x + q0 * es, positions, 0.0,
                    columns, n, NULL) != 0:
            job.failed = 1
            return
        for o in range(m1 - m0):
            if job.is_double:
                conv_scatter_f64(&job.w, <double*>columns + o * job.K * n, n, q0, n, <double*>out + o * job.in_size)
            else:
                conv_scatter_f32(&job.w, <float*>columns + o * job.K * n, n, q0, n, <float*>out + o * job.in_size)
        q0 += n


cdef int conv_transpose(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, w, [bias], strides, pads, dilations, output_padding, group, out). Source: ONNX ConvTranspose-11.

    x: (N, C, spatial), w: (C, O / group, kernel), bias: (O,), out: (N, O, spatial).
    """
    cdef ArgTensor x, w, bias, out
    cdef ArgShape pads, extra
    cdef ConvJob job
    cdef int64_t expected[5]
    cdef int64_t size, n_units, width
    cdef int32_t rank, d, a
    cdef int threads
    if arg_count(b"conv_transpose", n_args, 9) \
            or _conv_args(b"conv_transpose", args, &job, &x, &w, &bias, &out, 3, 7, 8, &pads):
        return -1
    rank = x.ndim - 2
    if arg_shape_in(b"conv_transpose", args, 6, rank, 0, PLANES_MAX_SIZE, &extra):
        return -1
    if w.shape[0] != x.shape[1] or x.shape[1] % job.group != 0:
        return ARG_FAIL(ERR_SHAPE, b"conv_transpose: input has %lld channels, weights take %lld in %lld groups",
                        <long long>x.shape[1], <long long>w.shape[0], <long long>job.group)
    if w.shape[1] > PLANES_MAX_SIZE or (job.bias != NULL and (bias.ndim != 1 or
                                                              bias.shape[0] != w.shape[1] * job.group)):
        return arg_fail_pair(b"conv_transpose", ERR_SHAPE, b"bias must have one element per output channel", b"bias",
                             &bias, b"weights", &w)
    expected[0], expected[1] = x.shape[0], w.shape[1] * job.group
    for d in range(rank):
        a = d + 3 - rank
        size = job.w.stride[a] * (job.w.in_[a] - 1) + extra.data[d] + (job.w.kernel[a] - 1) * job.w.dilation[a] + 1 - \
            pads.data[d] - pads.data[d + rank]
        if job.w.in_[a] == 0 or size < 0:
            return ARG_FAIL(ERR_SHAPE, b"conv_transpose: axis %d of size %lld would become %lld", d,
                            <long long>job.w.in_[a], <long long>size)
        expected[d + 2] = size
        job.w.out[a] = job.w.in_[a]
        job.w.in_[a] = size
    if check_out_shape(b"conv_transpose", &out, x.ndim, expected):
        return -1
    if out.numel == 0:
        return 0
    _shift_axes(&job, &pads, rank)
    job.cg = x.shape[1] // job.group
    job.og = w.shape[1]
    job.in_size = job.w.in_[0] * job.w.in_[1] * job.w.in_[2]
    job.out_size = job.w.out[0] * job.w.out[1] * job.w.out[2]
    job.K = job.w.kernel[0] * job.w.kernel[1] * job.w.kernel[2]
    job.relu = False
    no_epilogue(&job.e)
    job.failed = 0
    threads = thread_count()
    n_units = job.n_batch * job.group
    job.m_parts = 1
    if threads > 1 and n_units % threads != 0 and \
            <double>n_units * job.og * job.K * job.cg * job.out_size >= PARALLEL_FLOPS:
        job.m_parts = min(job.og, threads)
    width = 2 * gemm_tiles(job.is_double).lanes
    job.nc = max(TRANSPOSE_BLOCK_BYTES // max(job.og // job.m_parts * job.K * job.es, 1) // width, 1) * width
    job.nc = min(job.nc, max(job.out_size, 1))
    if job.m_parts == 1 and n_units == 1:
        _transpose_piece(&job, 0)
    else:
        parallel_for(n_units * job.m_parts, _transpose_piece, &job)
    if job.failed:
        return fail(ERR_ALLOC, b"conv_transpose: no memory for the columns")
    return 0


cdef KernelEntry _table[2]
_table[0].name, _table[0].fn, _table[0].ns_per_byte = b"kernel.conv", conv, 2.0
_table[1].name, _table[1].fn, _table[1].ns_per_byte = b"kernel.conv_transpose", conv_transpose, 2.0


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 2
    return _table
