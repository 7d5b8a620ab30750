# HOT: doors and leaves are noexcept nogil.
"""kernel.conv_winograd: 3 x 3 convolution with stride 1 by Winograd's F(2x2, 3x3), on weights transformed beforehand.

It takes 16 multiplications where the definition has 36, and rounds no worse (the transforms only add and subtract, and
those of the weights are done in double precision when the model is compiled). Each unit of work transforms the inputs
of a block of tiles into cache, multiplies them with the weights at each of the 16 points on the register tiles of the
matrix product, and transforms the sums back; bias, residual and activation are applied as rows are written.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from vmcore.kernels.args cimport (
    ARG_FAIL, ArgShape, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in, arg_optional_tensor,
    arg_output, arg_shape_in, arg_tensor, args_bind, check_disjoint, check_out_shape, check_same_dtype,
    check_same_shape,
)
from vmcore.kernels.gemm cimport (
    GEMM_ACTIVATIONS, GEMM_BRIEF_FLOPS, GEMM_KC, GEMM_MAX_ROWS, GemmEpilogue, gemm_isa, gemm_panels, gemm_tiles,
    no_epilogue, set_activation,
)
from vmcore.kernels.workspace cimport SLOT_PANELS, SLOT_PLANES, SLOT_TABLES, SLOT_TILES, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, parallel_for_brief, thread_count
from vmcore.value cimport DL_FLOAT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, KernelEntry, Value

cdef extern from "vmcore/kernels/winograd.h" nogil:
    enum:
        WINOGRAD_STEP, WINOGRAD_POINTS, WINOGRAD_LINES
    ctypedef struct WinogradBlock:
        int64_t in_ "in"[2]
        int64_t out[2]
        int64_t pad[2]
        int64_t row, n_rows, column, n_columns, n_tiles
        int64_t width, panel_step, point_step, sum_step, line_pitch, flat_pitch
        float* lines
        float* flat
    ctypedef struct WinogradLoops:
        void (*input)(const WinogradBlock* b, const float* x, const float* x_end, float* packed) noexcept nogil
        void (*output)(const WinogradBlock* b, const float* sums, float bias, int64_t residual, bint relu,
                       float* out) noexcept nogil
    const WinogradLoops* winograd_loops_by_isa[3]
    int64_t winograd_up(int64_t n, int64_t unit)
    void winograd_buffers(WinogradBlock* b, int64_t n_rows, int64_t n_columns)

args_bind(fail)

cdef enum:
    INPUT_BYTES = 640 * 1024  # transformed inputs of a block: most of L2
    SUM_BYTES = 256 * 1024  # products that wait to be transformed back
    LOAD_TILES = 4  # tiles that could be multiplied with the weights in the time that it takes to read them once more
    MAX_PAD = 2
    SKEW = 16  # elements between points, so that they do not all lie in one set of the L1 cache
    PARALLEL_FLOPS = 1 << 19  # multiply-adds below which waking a thread costs more than it saves

ctypedef struct WinogradJob:
    WinogradBlock block  # what all blocks have in common; buffers and place are missing
    int64_t n_batch, group, cg, og  # cg, og: input and output channels of one group
    int64_t in_size, out_size
    int64_t tile_rows, tile_columns  # of an image
    int64_t block_rows, block_columns  # of the largest block
    int64_t n_blocks[2]  # of an image, down and across
    int64_t chunk, parts  # output channels that are done at a time; pieces that they are cut into for threads
    int64_t n_units, pieces
    GemmEpilogue e
    const float* x
    const float* x_end
    const float* weights
    const float* bias  # NULL: none
    float* out
    int failed


cdef int64_t _ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef int64_t _product_columns(int64_t n_tiles, int64_t lanes, int64_t cg) noexcept nogil:
    """Columns of the products: whole vectors, unless the last few tiles are better done as dot products."""
    if n_tiles > lanes and n_tiles % lanes * 4 <= lanes and cg <= GEMM_KC:
        return n_tiles
    return winograd_up(n_tiles, lanes)


cdef void _plan(WinogradJob* job) noexcept nogil:
    """Choose blocks and parts. INVARIANT: blocks do not depend on the number of threads, or sums would."""
    cdef int64_t lanes = gemm_tiles(False).lanes, width = 2 * lanes, most, rows, cost, best = 0, n, units, p, rounds
    cdef int64_t threads = thread_count()
    cdef double flops
    job.tile_rows = _ceil_div(job.block.out[0], WINOGRAD_STEP)
    job.tile_columns = _ceil_div(job.block.out[1], WINOGRAD_STEP)
    most = max(INPUT_BYTES // (WINOGRAD_POINTS * 4 * max(job.cg, 1)) // width * width, width)
    job.n_blocks[1] = _ceil_div(job.tile_columns, most)
    job.block_columns = _ceil_div(job.tile_columns, job.n_blocks[1])
    job.block_rows = 1
    for rows in range(1, job.tile_rows + 1):  # of the heights that fit, the one whose vectors are fullest
        if rows > 1 and (job.n_blocks[1] > 1 or rows * job.tile_columns > most):
            break
        n = rows * job.block_columns
        cost = _ceil_div(job.tile_rows, rows) * (_product_columns(n, lanes, job.cg) + LOAD_TILES)
        if best == 0 or cost <= best:
            best = cost
            job.block_rows = rows
    job.n_blocks[0] = _ceil_div(job.tile_rows, job.block_rows)
    n = job.block_rows * job.block_columns
    job.block.width = width
    job.block.panel_step = job.cg * width
    job.block.point_step = _ceil_div(n, width) * job.block.panel_step + SKEW
    winograd_buffers(&job.block, job.block_rows, job.block_columns)
    job.chunk = SUM_BYTES // (WINOGRAD_POINTS * 4 * winograd_up(n, lanes)) // GEMM_MAX_ROWS * GEMM_MAX_ROWS
    job.chunk = min(max(job.chunk, GEMM_MAX_ROWS), job.og)
    units = job.n_batch * job.group * job.n_blocks[0] * job.n_blocks[1]
    flops = <double>units * n * WINOGRAD_POINTS * job.cg * job.og
    job.parts = 1
    if flops < PARALLEL_FLOPS:
        threads = 1
    if threads > 1:  # the fewest parts that keep all threads busy to the end
        best = 0
        for p in range(1, min(2 * threads, max(job.og // GEMM_MAX_ROWS, 1)) + 1):
            rounds = _ceil_div(units * p, threads) * (job.og // p + GEMM_MAX_ROWS // 2)
            if best == 0 or rounds < best - best // 32:
                best = rounds
                job.parts = p
    job.n_units = units * job.parts
    job.pieces = 1 if threads == 1 else job.n_units
    if job.pieces == 1:
        _piece(job, 0)
    elif flops < GEMM_BRIEF_FLOPS:
        parallel_for_brief(job.pieces, _piece, job)
    else:
        parallel_for(job.pieces, _piece, job)


cdef int _unit(const WinogradJob* job, int64_t unit) noexcept nogil:
    """One block of one group of one image, for one part of its output channels."""
    cdef int64_t part = unit % job.parts, rest = unit // job.parts, lanes = gemm_tiles(False).lanes, n, c, o, o1, point
    cdef int64_t across = rest % job.n_blocks[1], down, at, first, last, channel
    cdef WinogradBlock b = job.block
    cdef const WinogradLoops* loops = winograd_loops_by_isa[gemm_isa()]
    cdef GemmEpilogue plain
    cdef float* packed
    cdef float* sums
    cdef float* out
    cdef const float* w
    rest = rest // job.n_blocks[1]
    down, at = rest % job.n_blocks[0], rest // job.n_blocks[0]  # at: image and group
    b.row, b.column = down * job.block_rows, across * job.block_columns
    b.n_rows = min(job.block_rows, job.tile_rows - b.row)
    b.n_columns = min(job.block_columns, job.tile_columns - b.column)
    b.n_tiles = b.n_rows * b.n_columns
    n = _product_columns(b.n_tiles, lanes, job.cg)
    b.sum_step = job.chunk * n + SKEW
    packed = <float*>workspace(SLOT_PLANES, <size_t>(WINOGRAD_POINTS * b.point_step) * sizeof(float))
    sums = <float*>workspace(SLOT_PANELS, <size_t>(WINOGRAD_POINTS * b.sum_step + lanes) * sizeof(float))
    b.lines = <float*>workspace(SLOT_TABLES, <size_t>(WINOGRAD_LINES * b.line_pitch) * sizeof(float))
    b.flat = <float*>workspace(SLOT_TILES, <size_t>(WINOGRAD_POINTS * b.flat_pitch) * sizeof(float))
    if packed == NULL or sums == NULL or b.lines == NULL or b.flat == NULL:
        return -1
    memset(b.lines, 0, <size_t>(WINOGRAD_LINES * b.line_pitch) * sizeof(float))
    memset(b.flat, 0, <size_t>(WINOGRAD_POINTS * b.flat_pitch) * sizeof(float))  # lanes past the last tile are read
    for c in range(job.cg):
        loops.input(&b, job.x + (at * job.cg + c) * job.in_size, job.x_end, packed + c * b.width)
    no_epilogue(&plain)
    first, last = job.og * part // job.parts, job.og * (part + 1) // job.parts
    o = first
    while o < last:
        o1 = min(o + job.chunk, last)
        for point in range(WINOGRAD_POINTS):
            w = job.weights + (point * job.group * job.og + at % job.group * job.og + o) * job.cg
            gemm_panels(False, o1 - o, n, job.cg, w, job.cg, packed + point * b.point_step, sums + point * b.sum_step,
                        n, &plain, 0, 0, NULL, True)
        for c in range(o, o1):
            channel = at * job.og + c
            out = job.out + channel * job.out_size
            loops.output(&b, sums + (c - o) * n, 0 if job.bias == NULL else job.bias[channel % (job.group * job.og)],
                         job.e.residual, job.e.relu, out)
            if job.e.activation != NULL:
                _activate(job, &b, out)
        o = o1
    return 0


cdef void _activate(const WinogradJob* job, const WinogradBlock* b, float* out) noexcept nogil:
    """Apply the activation to the rows of a channel that a block has written."""
    cdef int64_t h = b.row * WINOGRAD_STEP, end = min(h + b.n_rows * WINOGRAD_STEP, b.out[0])
    cdef int64_t w = b.column * WINOGRAD_STEP, n = min(b.n_columns * WINOGRAD_STEP, b.out[1] - w)
    if n == b.out[1]:
        job.e.activation(out + h * n, out + h * n, (end - h) * n, job.e.params)
        return
    while h < end:
        job.e.activation(out + h * b.out[1] + w, out + h * b.out[1] + w, n, job.e.params)
        h += 1


cdef void _piece(void* ctx, int64_t piece) noexcept nogil:
    cdef WinogradJob* job = <WinogradJob*>ctx
    cdef int64_t unit, first = job.n_units * piece // job.pieces, last = job.n_units * (piece + 1) // job.pieces
    for unit in range(first, last):
        if _unit(job, unit) != 0:
            job.failed = 1
            return


cdef int conv_winograd(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(x, u, [bias], pads, group, activation, p0, p1, [residual], out): a 3 x 3 convolution with stride 1.

    x: (N, C, H, W) float32, u: (16, O, C / group), the weights as op/winograd.py transforms them; bias: (O,), out and
    residual: (N, O, H', W'). pads: begins, then ends, of at most 2 each. Activations are numbered in gemm.h.
    """
    cdef ArgTensor x, u, bias, residual, out
    cdef ArgShape pads
    cdef bint has_bias = False, has_residual = False
    cdef int64_t group = 1, activation = 0, size
    cdef double p0 = 0, p1 = 0
    cdef int64_t expected[4]
    cdef WinogradJob job
    cdef int d
    if arg_count(b"conv_winograd", n_args, 10) or arg_tensor(b"conv_winograd", args, 0, &x) \
            or arg_tensor(b"conv_winograd", args, 1, &u) \
            or arg_optional_tensor(b"conv_winograd", args, 2, &bias, &has_bias) \
            or arg_shape_in(b"conv_winograd", args, 3, 4, 0, MAX_PAD, &pads) \
            or arg_int_in(b"conv_winograd", args, 4, 1, 1 << 30, &group) \
            or arg_int_in(b"conv_winograd", args, 5, 0, GEMM_ACTIVATIONS - 1, &activation) \
            or arg_float(b"conv_winograd", args, 6, &p0) or arg_float(b"conv_winograd", args, 7, &p1) \
            or arg_optional_tensor(b"conv_winograd", args, 8, &residual, &has_residual) \
            or arg_output(b"conv_winograd", args, 9, &out) or check_same_dtype(b"conv_winograd", &x, &u) \
            or check_same_dtype(b"conv_winograd", &x, &out) or check_disjoint(b"conv_winograd", &x, &out) \
            or check_disjoint(b"conv_winograd", &u, &out):
        return -1
    if x.dtype.code != DL_FLOAT or x.itemsize != 4:
        return arg_fail_one(b"conv_winograd", ERR_DTYPE, b"float32 only", b"input", &x)
    if x.ndim != 4 or u.ndim != 3 or u.shape[0] != WINOGRAD_POINTS or x.shape[1] % group or u.shape[1] % group \
            or u.shape[2] != x.shape[1] // group:
        return arg_fail_pair(b"conv_winograd", ERR_SHAPE, b"the transformed weights do not fit", b"input", &x,
                             b"weights", &u)
    expected[0], expected[1] = x.shape[0], u.shape[1]
    for d in range(2):
        job.block.in_[d], job.block.pad[d] = x.shape[d + 2], pads.data[d]
        size = x.shape[d + 2] + pads.data[d] + pads.data[d + 2] - 2
        if size <= 0 or x.shape[d + 2] > 1 << 30:
            return ARG_FAIL(ERR_SHAPE, b"conv_winograd: a 3 x 3 window along axis %d of %lld elements, %lld padded", d,
                            <long long>x.shape[d + 2], <long long>(size + 2))
        expected[d + 2] = job.block.out[d] = size
    if check_out_shape(b"conv_winograd", &out, 4, expected):
        return -1
    if has_bias and (check_same_dtype(b"conv_winograd", &bias, &out) or check_disjoint(b"conv_winograd", &bias, &out)):
        return -1
    if has_bias and (bias.ndim != 1 or bias.shape[0] != u.shape[1]):
        return arg_fail_pair(b"conv_winograd", ERR_SHAPE, b"bias must have one element per output channel", b"bias",
                             &bias, b"weights", &u)
    no_epilogue(&job.e)
    set_activation(&job.e, False, activation, p0, p1)
    if has_residual:
        if check_same_dtype(b"conv_winograd", &residual, &out) or check_same_shape(b"conv_winograd", &residual, &out) \
                or check_disjoint(b"conv_winograd", &residual, &out):
            return -1
        job.e.residual = residual.data - out.data
    if out.numel == 0:
        return 0
    job.n_batch, job.group = x.shape[0], group
    job.cg, job.og = u.shape[2], u.shape[1] // group
    job.in_size, job.out_size = x.shape[2] * x.shape[3], out.shape[2] * out.shape[3]
    job.x, job.x_end = <const float*>x.data, <const float*>(x.data + x.nbytes)
    job.weights, job.out = <const float*>u.data, <float*>out.data
    job.bias = <const float*>bias.data if has_bias else NULL
    job.failed = 0
    _plan(&job)
    if job.failed:
        return fail(ERR_ALLOC, b"conv_winograd: no memory for transformed inputs")
    return 0


cdef KernelEntry _table[1]
_table[0].name, _table[0].fn, _table[0].ns_per_byte = b"kernel.conv_winograd", conv_winograd, 2.0


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 1
    return _table
