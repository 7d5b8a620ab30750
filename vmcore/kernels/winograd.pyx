# HOT: doors and leaves are noexcept nogil.
"""kernel.conv_winograd: 3 x 3 convolution with stride 1 by Winograd's F(2x2, 3x3), on weights transformed beforehand.

It takes 16 multiplications where the definition has 36, and rounds no worse (the transforms only add and subtract, and
those of the weights are done in double precision when the model is compiled). Each unit of work transforms the inputs
of a block of tiles into cache, multiplies them with the weights at each of the 16 points on the register tiles of the
matrix product, and transforms the sums back; bias, residual and activation are applied as rows are written.

An infinity or a NaN in the inputs makes NaN of all results of the tiles that read it, not only of those whose window it
is in: differences of the inputs are what is multiplied.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from vmcore.kernels.args cimport (
    ARG_FAIL, ArgShape, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in, arg_optional_tensor,
    arg_output, arg_shape_in, arg_tensor, args_bind, check_disjoint, check_out_shape, check_same_dtype,
    check_same_shape,
)
from vmcore.kernels.gemm cimport (
    GEMM_ACTIVATIONS, GEMM_BRIEF_FLOPS, GEMM_MAX_ROWS, GemmEpilogue, GemmTiles, gemm_isa, gemm_tiles, no_epilogue,
    set_activation,
)
from vmcore.kernels.workspace cimport SLOT_PANELS, SLOT_PLANES, SLOT_TABLES, SLOT_TILES, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, parallel_for_brief, thread_count
from vmcore.value cimport DL_FLOAT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, KernelEntry, Value

cdef extern from "vmcore/kernels/winograd.h" nogil:
    enum:
        WINOGRAD_STEP, WINOGRAD_POINTS, WINOGRAD_COLUMNS, WINOGRAD_MAX_LANES
    ctypedef struct WinogradBlock:
        int64_t in_ "in"[2]
        int64_t out[2]
        int64_t pad[2]
        int64_t in_size, out_size
        int64_t row, n_rows, column, n_columns, n_tiles
        int64_t pitch, point_step, sum_pitch, sum_step
        float* turned
        float* zeros
    ctypedef struct WinogradLoops:
        int64_t lanes
        void (*input)(const WinogradBlock* b, const float* x, int64_t n, float* points) noexcept nogil
        void (*output)(const WinogradBlock* b, const float* sums, int64_t n, const float* bias, int64_t residual,
                       bint relu, float* out) noexcept nogil
    const WinogradLoops* winograd_loops_by_isa[3]
    int64_t winograd_up(int64_t n, int64_t unit)
    int64_t winograd_turned_size(int64_t n_rows, int64_t n_columns)
    int64_t winograd_zeros_size(int64_t n_columns)
    void winograd_products(const GemmTiles* t, const WinogradBlock* b, const float* points, const float* weights,
                           int64_t panel_step, int64_t weight_step, int64_t K, int64_t n, float* sums)

args_bind(fail)

cdef enum:
    BLOCK_BYTES = 384 * 1024  # transformed inputs and some of the results of a block: they stay in L2
    SUM_BYTES = 256 * 1024  # products that wait to be transformed back
    MAX_PAD = 2
    SKEW = 16  # elements between rows or points, so that they do not all lie in one set of the L1 cache
    PARALLEL_FLOPS = 1 << 19  # multiply-adds below which waking a thread costs more than it saves

ctypedef struct WinogradJob:
    WinogradBlock block  # what all blocks have in common
    int64_t n_batch, group, cg, og  # cg, og: input and output channels of one group
    int64_t tile_rows, tile_columns  # of an image
    int64_t block_rows, block_columns  # of the largest block
    int64_t n_blocks[2]  # of an image, down and across
    int64_t panels  # of the weights of one group
    int64_t chunk, parts  # panels that are done at a time; pieces that they are cut into for threads
    int64_t n_units, pieces
    GemmEpilogue e
    const float* x
    const float* weights
    const float* bias  # NULL: none
    float* out
    int failed


cdef int64_t _ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef void _plan(WinogradJob* job) noexcept nogil:
    """Choose blocks and parts, and do them. INVARIANT: blocks do not depend on the number of threads."""
    cdef int64_t most, n, units, p, rounds, best = 0, threads = thread_count()
    cdef double flops
    job.tile_rows = _ceil_div(job.block.out[0], WINOGRAD_STEP)
    job.tile_columns = _ceil_div(job.block.out[1], WINOGRAD_STEP)
    job.block.pitch = winograd_up(job.cg, WINOGRAD_MAX_LANES)
    if job.block.pitch * 4 % 2048 == 0:
        job.block.pitch += SKEW
    n = job.block.pitch + WINOGRAD_COLUMNS * min(job.panels, 2)  # for inputs and for results
    most = max(BLOCK_BYTES // (WINOGRAD_POINTS * 4 * n), 2 * GEMM_MAX_ROWS)
    job.n_blocks[1] = _ceil_div(job.tile_columns, most)
    job.block_columns = _ceil_div(job.tile_columns, job.n_blocks[1])
    job.n_blocks[0] = _ceil_div(job.tile_rows, max(most // job.block_columns, 1))
    job.block_rows = _ceil_div(job.tile_rows, job.n_blocks[0])
    job.n_blocks[0] = _ceil_div(job.tile_rows, job.block_rows)
    n = job.block_rows * job.block_columns
    job.block.point_step = n * job.block.pitch + SKEW
    job.chunk = min(max(SUM_BYTES // (WINOGRAD_POINTS * 4 * WINOGRAD_COLUMNS * n), 1), job.panels)
    units = job.n_batch * job.group * job.n_blocks[0] * job.n_blocks[1]
    flops = <double>units * n * WINOGRAD_POINTS * job.cg * job.og
    job.parts = 1
    if flops < PARALLEL_FLOPS:
        threads = 1
    if threads > 1:  # the fewest parts that keep all threads busy to the end
        for p in range(1, min(2 * threads, job.panels) + 1):
            rounds = _ceil_div(units * p, threads) * (_ceil_div(job.panels, p) * WINOGRAD_COLUMNS + GEMM_MAX_ROWS // 2)
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
    cdef const WinogradLoops* loops = winograd_loops_by_isa[gemm_isa()]
    cdef int64_t part = unit % job.parts, rest = unit // job.parts, lanes = loops.lanes, c, o, n, panel, last, g, at
    cdef int64_t n_lanes
    cdef int64_t panel_step = job.cg * WINOGRAD_COLUMNS, weight_step = panel_step * job.panels * job.group
    cdef WinogradBlock b = job.block
    cdef float bias[WINOGRAD_MAX_LANES]
    cdef float* points
    cdef float* sums
    cdef float* out
    b.column = rest % job.n_blocks[1] * job.block_columns
    rest = rest // job.n_blocks[1]
    b.row = rest % job.n_blocks[0] * job.block_rows
    at = rest // job.n_blocks[0]  # image and group
    g = at % job.group
    b.n_rows = min(job.block_rows, job.tile_rows - b.row)
    b.n_columns = min(job.block_columns, job.tile_columns - b.column)
    b.n_tiles = b.n_rows * b.n_columns
    b.sum_pitch = job.chunk * WINOGRAD_COLUMNS
    b.sum_step = b.n_tiles * b.sum_pitch + SKEW
    points = <float*>workspace(SLOT_PLANES, <size_t>(WINOGRAD_POINTS * b.point_step) * sizeof(float))
    sums = <float*>workspace(SLOT_PANELS, <size_t>(WINOGRAD_POINTS * b.sum_step) * sizeof(float))
    b.turned = <float*>workspace(
        SLOT_TILES, <size_t>winograd_turned_size(job.block_rows, job.block_columns) * sizeof(float)
    )
    c = winograd_zeros_size(job.block_columns) * <int64_t>sizeof(float)
    b.zeros = <float*>workspace(SLOT_TABLES, <size_t>c)
    if points == NULL or sums == NULL or b.turned == NULL or b.zeros == NULL:
        return -1
    memset(b.zeros, 0, <size_t>c)
    c = 0
    while c < job.cg:
        loops.input(&b, job.x + (at * job.cg + c) * b.in_size, min(lanes, job.cg - c), points + c)
        c += lanes
    memset(bias, 0, sizeof(bias))
    panel, last = job.panels * part // job.parts, job.panels * (part + 1) // job.parts
    while panel < last:
        n = min(min(job.chunk, last - panel) * WINOGRAD_COLUMNS, job.og - panel * WINOGRAD_COLUMNS)
        winograd_products(gemm_tiles(False), &b, points, job.weights + (g * job.panels + panel) * panel_step,
                          panel_step, weight_step, job.cg, n, sums)
        o = 0
        while o < n:
            c, n_lanes = panel * WINOGRAD_COLUMNS + o, min(lanes, n - o)
            if job.bias != NULL:
                memcpy(bias, job.bias + g * job.og + c, <size_t>n_lanes * sizeof(float))
            out = job.out + (at * job.og + c) * b.out_size
            loops.output(&b, sums + o, n_lanes, bias, job.e.residual, job.e.relu, out)
            if job.e.activation != NULL:
                for c in range(n_lanes):
                    _activate(job, &b, out + c * b.out_size)
            o += lanes
        panel += job.chunk
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

    x: (N, C, H, W) float32, u: (16, panels, C / group, 32), the weights as op/winograd.py transforms them; bias: (O,),
    out and residual: (N, O, H', W'). pads: begins, then ends, of at most 2 each. Activations are numbered in gemm.h.
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
    if x.ndim != 4 or u.ndim != 4 or out.ndim != 4 or u.shape[0] != WINOGRAD_POINTS or u.shape[3] != WINOGRAD_COLUMNS \
            or x.shape[1] % group or out.shape[1] % group or u.shape[2] != x.shape[1] // group:
        return arg_fail_pair(b"conv_winograd", ERR_SHAPE, b"the transformed weights do not fit", b"input", &x,
                             b"weights", &u)
    job.og = out.shape[1] // group
    job.panels = job.og // WINOGRAD_COLUMNS + (job.og % WINOGRAD_COLUMNS != 0)
    if u.shape[1] % group or u.shape[1] // group != job.panels:
        return arg_fail_pair(b"conv_winograd", ERR_SHAPE, b"the transformed weights have other output channels",
                             b"weights", &u, b"output", &out)
    expected[0], expected[1] = x.shape[0], out.shape[1]
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
    if has_bias and (bias.ndim != 1 or bias.shape[0] != out.shape[1]):
        return arg_fail_pair(b"conv_winograd", ERR_SHAPE, b"bias must have one element per output channel", b"bias",
                             &bias, b"output", &out)
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
    job.cg = u.shape[2]
    job.block.in_size, job.block.out_size = x.shape[2] * x.shape[3], out.shape[2] * out.shape[3]
    job.x, job.weights, job.out = <const float*>x.data, <const float*>u.data, <float*>out.data
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
