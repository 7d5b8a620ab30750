"""`kernel.resize`: nearest, linear and cubic interpolation in any number of dimensions, one dimension at a time.

Source: ONNX Resize-19 without antialias, exclude_outside and the region of interest. Nearest takes any element type;
linear and cubic compute in float64 for float64 and in float32 otherwise, and integers are truncated at the end.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from vmcore.kernels.args cimport (
    ARGS_MAX_NDIM, ARG_FAIL, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in,
    arg_optional_tensor, arg_output, arg_tensor, args_bind, check_disjoint, check_dtype, check_same_dtype,
)
from vmcore.kernels.workspace cimport SLOT_OTHER, workspace
from vmcore.status cimport fail
from vmcore.value cimport DL_FLOAT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, ERR_VALUE, KernelEntry, Value, VmDataType

cdef extern from "vmcore/kernels/resize.h" nogil:
    enum:
        K_NONE, K_F32, K_F64
        RESIZE_NEAREST, RESIZE_LINEAR, RESIZE_CUBIC
    int kernel_dtype(VmDataType t)
    int vm_isa_detect()
    void cast_init(int isa)
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)
    void resize_taps(int mode, int coord, int nearest, double cubic_a, double scale, int64_t n_in, int64_t n_out,
                     int64_t* taps, double* weights)
    void resize_pass_f32(const void* x, void* y, int64_t outer, int64_t n_in, int64_t n_out, int64_t inner, int n_taps,
                         const int64_t* taps, const double* weights)
    void resize_pass_f64(const void* x, void* y, int64_t outer, int64_t n_in, int64_t n_out, int64_t inner, int n_taps,
                         const int64_t* taps, const double* weights)
    void resize_pick(const char* x, char* y, int64_t outer, int64_t n_in, int64_t n_out, int64_t inner, int64_t item,
                     const int64_t* taps)

cdef enum:  # workspace slots; contents live during one kernel call only
    SLOT_TAPS = SLOT_OTHER
    SLOT_PING = SLOT_OTHER + 1
    SLOT_PONG = SLOT_OTHER + 2
    SLOT_CONVERTED = SLOT_OTHER + 3


cdef struct Pass:  # one resized dimension: (outer, n_in, inner) -> (outer, n_out, inner)
    int64_t outer, n_in, n_out, inner
    int64_t* taps
    double* weights


cdef void run_pass(const Pass* p, int n_taps, const char* from_, char* to, int64_t item, bint nearest,
                   bint wide) noexcept nogil:
    if nearest:
        resize_pick(from_, to, p.outer, p.n_in, p.n_out, p.inner, item, p.taps)
    elif wide:
        resize_pass_f64(from_, to, p.outer, p.n_in, p.n_out, p.inner, n_taps, p.taps, p.weights)
    else:
        resize_pass_f32(from_, to, p.outer, p.n_in, p.n_out, p.inner, n_taps, p.taps, p.weights)


cdef int plan_passes(const ArgTensor* x, const ArgTensor* out, const double* factors, int64_t mode, int64_t coord,
                     int64_t nearest, double cubic_a, int n_taps, int32_t batch_dims, Pass* passes,
                     int64_t* largest) noexcept nogil:
    """Order the passes over one batch entry (dimensions from batch_dims on) and compute their taps.

    Shrinking dimensions come first, so that no intermediate is larger than input and output. Returns the number of
    passes, or -1; *largest is the most elements that an intermediate of one entry has.
    """
    cdef int64_t[ARGS_MAX_NDIM] shape
    cdef int64_t total = 0, n
    cdef int32_t d, k, growing
    cdef int n_passes = 0
    cdef Pass* p
    cdef char* memory
    largest[0] = 0
    for d in range(batch_dims, x.ndim):
        shape[d] = x.shape[d]
        total += out.shape[d]
    memory = <char*>workspace(SLOT_TAPS, <size_t>(total * n_taps * 16 + 64))
    if memory == NULL:
        return ARG_FAIL(ERR_ALLOC, "resize: no memory for the taps of %lld positions", <long long>total)
    for growing in range(2):
        for d in range(x.ndim - 1, batch_dims - 1, -1):
            if (out.shape[d] >= x.shape[d]) != (growing == 1) or (out.shape[d] == x.shape[d] and factors[d] == 1.0):
                continue
            p = &passes[n_passes]
            n_passes += 1
            p.n_in, p.n_out, p.outer, p.inner = x.shape[d], out.shape[d], 1, 1
            for k in range(batch_dims, x.ndim):
                if k < d:
                    p.outer *= shape[k]
                elif k > d:
                    p.inner *= shape[k]
            shape[d] = p.n_out
            n = p.outer * p.n_out * p.inner
            largest[0] = max(largest[0], n)
            p.taps = <int64_t*>memory
            p.weights = <double*>(memory + p.n_out * n_taps * 8)
            memory += p.n_out * n_taps * 16
            resize_taps(<int>mode, <int>coord, <int>nearest, cubic_a, factors[d], p.n_in, p.n_out, p.taps, p.weights)
    return n_passes


cdef int resize(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """resize(x, mode, coord, nearest_mode, cubic_a, [scales], out).

    mode: 0 nearest, 1 linear, 2 cubic. coord: 0 half_pixel, 1 asymmetric, 2 align_corners, 3 pytorch_half_pixel,
    4 half_pixel_symmetric. nearest_mode: 0 round_prefer_floor, 1 round_prefer_ceil, 2 floor, 3 ceil. scales: float64,
    one per dimension; without them out.shape / x.shape.
    """
    cdef const char* op = "resize"
    cdef ArgTensor x, scales, out
    cdef bint has_scales, wide
    cdef int64_t mode, coord, nearest, item, largest, batch = 1, entry_in = 1, entry_out = 1, i
    cdef double[ARGS_MAX_NDIM] factors
    cdef double cubic_a
    cdef int32_t d, batch_dims = 0
    cdef Pass passes[ARGS_MAX_NDIM]
    cdef int dtype, work, n_taps, n_passes, j
    cdef char* source
    cdef char* result
    cdef char* from_
    cdef char* to
    cdef char* buffers[2]
    if (arg_count(op, n_args, 7) or arg_tensor(op, args, 0, &x) or arg_int_in(op, args, 1, 0, 2, &mode)
            or arg_int_in(op, args, 2, 0, 4, &coord) or arg_int_in(op, args, 3, 0, 3, &nearest)
            or arg_float(op, args, 4, &cubic_a) or arg_optional_tensor(op, args, 5, &scales, &has_scales)
            or arg_output(op, args, 6, &out) or check_same_dtype(op, &x, &out) or check_disjoint(op, &x, &out)):
        return -1
    if x.ndim != out.ndim:
        return arg_fail_pair(op, ERR_SHAPE, "ranks differ", "input", &x, "output", &out)
    if has_scales:
        if check_dtype(op, "scales", &scales, DL_FLOAT, 64):
            return -1
        if scales.ndim != 1 or scales.numel != x.ndim:
            return arg_fail_pair(op, ERR_SHAPE, "needs one scale per dimension", "input", &x, "scales", &scales)
    for d in range(x.ndim):
        if x.shape[d] == 0 and out.shape[d] != 0:
            return arg_fail_pair(op, ERR_SHAPE, "an empty dimension cannot grow", "input", &x, "output", &out)
        factors[d] = <double>out.shape[d] / max(<int64_t>1, x.shape[d])
        if has_scales:
            factors[d] = (<const double*>scales.data)[d]
            if not 1e-9 < factors[d] < 1e9:
                return ARG_FAIL(ERR_VALUE, "resize: scale %g of dimension %d is not in 1e-9 .. 1e9", factors[d], d)
    if out.numel == 0:
        return 0
    dtype = kernel_dtype(x.dtype)
    item = x.itemsize
    source = x.data
    result = out.data
    work = dtype
    wide = dtype == K_F64
    n_taps = 1 if mode == RESIZE_NEAREST else 2 if mode == RESIZE_LINEAR else 4
    if mode != RESIZE_NEAREST:
        if dtype == K_NONE:
            return arg_fail_one(op, ERR_DTYPE, "no interpolation on this element type", "input", &x)
        if not wide and dtype != K_F32:
            work = K_F32
            source = <char*>workspace(SLOT_CONVERTED, <size_t>(x.numel + out.numel) * 4)
            if source == NULL:
                return ARG_FAIL(ERR_ALLOC, "resize: no memory to convert %lld elements", <long long>x.numel)
            cast_elements(x.data, dtype, item, source, K_F32, 4, x.numel)
            result = source + x.numel * 4
            item = 4
    # Leading dimensions that stay as they are: one entry at a time, so that intermediates stay in the cache.
    while batch_dims < x.ndim and out.shape[batch_dims] == x.shape[batch_dims] and factors[batch_dims] == 1.0:
        batch *= x.shape[batch_dims]
        batch_dims += 1
    for d in range(batch_dims, x.ndim):
        entry_in *= x.shape[d]
        entry_out *= out.shape[d]
    n_passes = plan_passes(&x, &out, factors, mode, coord, nearest, cubic_a, n_taps, batch_dims, passes, &largest)
    if n_passes < 0:
        return -1
    buffers[0] = <char*>workspace(SLOT_PING, <size_t>(largest * item))
    buffers[1] = <char*>workspace(SLOT_PONG, <size_t>(largest * item))
    if buffers[0] == NULL or buffers[1] == NULL:
        return ARG_FAIL(ERR_ALLOC, "resize: no memory for %lld bytes", <long long>(largest * item))
    if n_passes == 0:
        memcpy(result, source, out.numel * item)
        batch = 0
    for i in range(batch):
        from_ = source + i * entry_in * item
        for j in range(n_passes):
            to = result + i * entry_out * item if j == n_passes - 1 else buffers[j & 1]
            run_pass(&passes[j], n_taps, from_, to, item, mode == RESIZE_NEAREST, wide)
            from_ = to
    if work != dtype:
        cast_elements(result, K_F32, 4, out.data, dtype, out.itemsize, out.numel)
    return 0


cdef KernelEntry[1] _table
_table[0] = KernelEntry("kernel.resize", resize, 0.3)


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 1
    return _table


args_bind(fail)
cast_init(vm_isa_detect())
