# HOT: doors and leaves are noexcept nogil.
"""kernel.matmul, kernel.gemm and kernel.matmul_integer."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from vmcore.blas cimport ensure_bound, gemm_rm
from vmcore.kernels.args cimport (
    ARG_FAIL, ArgTensor, arg_count, arg_fail_one, arg_fail_pair, arg_float, arg_int_in,
    arg_optional_tensor, arg_output, arg_tensor, args_bind, check_disjoint, check_dtype, check_out_shape,
    check_same_dtype, check_same_shape,
)
from vmcore.kernels.gemm cimport (
    GEMM_ACTIVATIONS, GEMM_PACKED_BYTES, GemmEpilogue, no_epilogue, packed_gemm, set_activation,
)
from vmcore.kernels.workspace cimport SLOT_TABLES, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, thread_count
from vmcore.value cimport DL_FLOAT, DL_INT, DL_UINT, ERR_ALLOC, ERR_DTYPE, ERR_SHAPE, KernelEntry, Value

cdef extern from "vmcore/kernels/matmul_int.h" nogil:
    void matmul_i32(const uint32_t* a, const uint32_t* b, uint32_t* c, int64_t M, int64_t N, int64_t K)
    void matmul_i64(const uint64_t* a, const uint64_t* b, uint64_t* c, int64_t M, int64_t N, int64_t K)
    int32_t matmul_byte(const void* p, int64_t i, bint is_signed)
    void matmul_widen(int32_t* dst, const void* src, bint is_signed, int64_t n, int32_t zero)

args_bind(fail)
ensure_bound()

cdef enum:
    KIND_F32 = 0
    KIND_F64 = 1
    KIND_I32 = 2
    KIND_I64 = 3
    PARALLEL_FLOPS = 1 << 20  # multiply-adds below which waking a thread costs more than it saves

ctypedef struct MatmulJob:
    int kind
    int64_t itemsize, M, N, K, n_batch, pieces
    const char* a
    const char* b
    char* c
    int32_t rank  # batch dimensions
    int64_t dims[16]
    int64_t a_step[16]  # elements of a from one index to the next; 0 where a is broadcast
    int64_t b_step[16]
    int failed


cdef int _kind_of(const ArgTensor* t) noexcept nogil:
    """The arithmetic for t's element type, -1 if there is none."""
    if t.dtype.code == DL_FLOAT:
        return KIND_F32 if t.itemsize == 4 else KIND_F64 if t.itemsize == 8 else -1
    if t.dtype.code == DL_INT or t.dtype.code == DL_UINT:
        return KIND_I32 if t.itemsize == 4 else KIND_I64 if t.itemsize == 8 else -1
    return -1


cdef int _product(int kind, const char* a, const char* b, char* c, int64_t M, int64_t N, int64_t K) noexcept nogil:
    """c[M, N] = a[M, K] @ b[K, N], all compact."""
    if kind == KIND_I32:
        matmul_i32(<const uint32_t*>a, <const uint32_t*>b, <uint32_t*>c, M, N, K)
    elif kind == KIND_I64:
        matmul_i64(<const uint64_t*>a, <const uint64_t*>b, <uint64_t*>c, M, N, K)
    else:
        return gemm_rm(kind == KIND_F64, False, False, M, N, K, 1.0, a, K, b, N, 0.0, c, N)
    return 0


cdef void _batches(void* ctx, int64_t piece) noexcept nogil:
    """One piece of the batch indices, in row-major order of the broadcast batch."""
    cdef MatmulJob* job = <MatmulJob*>ctx
    cdef int64_t first = job.n_batch * piece // job.pieces, last = job.n_batch * (piece + 1) // job.pieces
    cdef int64_t i, rest, a_at, b_at, at
    cdef int32_t d
    for i in range(first, last):
        rest, a_at, b_at = i, 0, 0
        for d in range(job.rank - 1, -1, -1):
            at = rest % job.dims[d]
            rest = rest // job.dims[d]
            a_at += at * job.a_step[d]
            b_at += at * job.b_step[d]
        if _product(job.kind, job.a + a_at * job.itemsize, job.b + b_at * job.itemsize,
                    job.c + i * job.M * job.N * job.itemsize, job.M, job.N, job.K) != 0:
            job.failed = 1


cdef int _batch_dims(const ArgTensor* a, const ArgTensor* b, int32_t a_rank, int32_t b_rank,
                     MatmulJob* job) noexcept nogil:
    """Broadcast the leading a_rank and b_rank dimensions into the job; -1 if they do not fit."""
    cdef int32_t rank = max(a_rank, b_rank), d, ia, ib
    cdef int64_t a_dim, b_dim, a_step = job.M * job.K, b_step = job.K * job.N
    job.rank = rank
    job.n_batch = 1
    for d in range(rank - 1, -1, -1):
        ia, ib = d - (rank - a_rank), d - (rank - b_rank)
        a_dim = a.shape[ia] if ia >= 0 else 1
        b_dim = b.shape[ib] if ib >= 0 else 1
        if a_dim != b_dim and a_dim != 1 and b_dim != 1:
            return -1
        job.dims[d] = b_dim if a_dim == 1 else a_dim
        job.a_step[d] = 0 if a_dim == 1 else a_step
        job.b_step[d] = 0 if b_dim == 1 else b_step
        a_step *= a_dim
        b_step *= b_dim
        job.n_batch *= job.dims[d]
    return 0


cdef int matmul(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(a, b, out): numpy's matmul. a: ([batch,] M, K) or (K,), b: ([batch,] K, N) or (K,); out shares no byte."""
    cdef ArgTensor a, b, out
    cdef MatmulJob job
    cdef int64_t expected[18]
    cdef int32_t n_expected, a_rank, b_rank
    cdef bint threaded
    if arg_count(b"matmul", n_args, 3) or arg_tensor(b"matmul", args, 0, &a) or arg_tensor(b"matmul", args, 1, &b) \
            or arg_output(b"matmul", args, 2, &out) or check_same_dtype(b"matmul", &a, &b) \
            or check_same_dtype(b"matmul", &a, &out):
        return -1
    job.kind = _kind_of(&a)
    if job.kind < 0:
        return arg_fail_one(b"matmul", ERR_DTYPE, b"float32, float64 and 32- and 64-bit integers only", b"lhs", &a)
    if a.ndim == 0 or b.ndim == 0:
        return arg_fail_pair(b"matmul", ERR_SHAPE, b"operands need a dimension", b"lhs", &a, b"rhs", &b)
    job.K = a.shape[a.ndim - 1]
    job.M = 1 if a.ndim == 1 else a.shape[a.ndim - 2]
    job.N = 1 if b.ndim == 1 else b.shape[b.ndim - 1]
    if job.K != (b.shape[0] if b.ndim == 1 else b.shape[b.ndim - 2]):
        return arg_fail_pair(b"matmul", ERR_SHAPE, b"inner sizes differ", b"lhs", &a, b"rhs", &b)
    a_rank = max(a.ndim - 2, 0)
    b_rank = max(b.ndim - 2, 0)
    if _batch_dims(&a, &b, a_rank, b_rank, &job) != 0:
        return arg_fail_pair(b"matmul", ERR_SHAPE, b"batch sizes do not broadcast", b"lhs", &a, b"rhs", &b)
    n_expected = job.rank
    memcpy(expected, job.dims, job.rank * sizeof(int64_t))
    if a.ndim > 1:
        expected[n_expected] = job.M
        n_expected += 1
    if b.ndim > 1:
        expected[n_expected] = job.N
        n_expected += 1
    if check_out_shape(b"matmul", &out, n_expected, expected) or check_disjoint(b"matmul", &a, &out) \
            or check_disjoint(b"matmul", &b, &out):
        return -1
    if out.numel == 0:
        return 0
    if job.K == 0:
        memset(out.data, 0, out.nbytes)
        return 0
    if b_rank == 0 and b.ndim == 2 and job.rank > 0:  # one product: the batch of a continues its rows
        job.M *= job.n_batch
        job.n_batch = 1
        job.rank = 0
    job.a, job.b, job.c = a.data, b.data, out.data
    job.itemsize = a.itemsize
    job.failed = 0
    threaded = thread_count() > 1 and job.n_batch > 1 and \
        <double>job.M * job.N * job.K * job.n_batch >= PARALLEL_FLOPS
    job.pieces = min(job.n_batch, 4 * thread_count()) if threaded else 1
    if threaded:
        parallel_for(job.pieces, _batches, &job)
    else:
        _batches(&job, 0)
    if job.failed:
        return fail(ERR_ALLOC, b"matmul: no memory for the packed operand")
    return 0


cdef int _spread(const ArgTensor* c, const ArgTensor* out) noexcept nogil:
    """out = c broadcast to (M, N); -1 if the shapes do not fit."""
    cdef int64_t M = out.shape[0], N = out.shape[1], es = out.itemsize, i, j
    cdef int64_t rows = c.shape[c.ndim - 2] if c.ndim == 2 else 1
    cdef int64_t cols = c.shape[c.ndim - 1] if c.ndim >= 1 else 1
    cdef char* o = out.data
    if c.ndim > 2 or (rows != M and rows != 1) or (cols != N and cols != 1):
        return -1
    for i in range(M):
        for j in range(1 if cols == N else N):
            memcpy(o + (i * N + j) * es, c.data + (i * cols * es if rows == M else 0), cols * es)
    return 0


cdef int gemm(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(a, b, [c], alpha, beta, trans_a, trans_b, out): alpha * op(a) @ op(b) + beta * c. Source: ONNX Gemm-13."""
    cdef ArgTensor a, b, c, out
    cdef bint has_c = False
    cdef double alpha = 1, beta = 1
    cdef int64_t trans_a = 0, trans_b = 0, M, N, K
    cdef int64_t expected[2]
    cdef int kind
    if arg_count(b"gemm", n_args, 8) or arg_tensor(b"gemm", args, 0, &a) or arg_tensor(b"gemm", args, 1, &b) \
            or arg_optional_tensor(b"gemm", args, 2, &c, &has_c) or arg_float(b"gemm", args, 3, &alpha) \
            or arg_float(b"gemm", args, 4, &beta) or arg_int_in(b"gemm", args, 5, 0, 1, &trans_a) \
            or arg_int_in(b"gemm", args, 6, 0, 1, &trans_b) or arg_output(b"gemm", args, 7, &out) \
            or check_same_dtype(b"gemm", &a, &b) or check_same_dtype(b"gemm", &a, &out):
        return -1
    kind = _kind_of(&a)
    if kind != KIND_F32 and kind != KIND_F64:
        return arg_fail_one(b"gemm", ERR_DTYPE, b"float32 and float64 only", b"lhs", &a)
    if a.ndim != 2 or b.ndim != 2:
        return arg_fail_pair(b"gemm", ERR_SHAPE, b"operands must be matrices", b"lhs", &a, b"rhs", &b)
    M, K = a.shape[trans_a], a.shape[1 - trans_a]
    N = b.shape[1 - trans_b]
    if K != b.shape[trans_b]:
        return arg_fail_pair(b"gemm", ERR_SHAPE, b"inner sizes differ after transposition", b"lhs", &a, b"rhs", &b)
    expected[0], expected[1] = M, N
    if check_out_shape(b"gemm", &out, 2, expected) or check_disjoint(b"gemm", &a, &out) \
            or check_disjoint(b"gemm", &b, &out):
        return -1
    if has_c and (check_same_dtype(b"gemm", &c, &out) or check_disjoint(b"gemm", &c, &out)):
        return -1
    if has_c and out.numel and _spread(&c, &out) != 0:
        return arg_fail_pair(b"gemm", ERR_SHAPE, b"the addend does not broadcast to the output", b"addend", &c,
                             b"output", &out)
    if gemm_rm(kind == KIND_F64, trans_a, trans_b, M, N, K, alpha, a.data, max(a.shape[1], 1), b.data,
               max(b.shape[1], 1), beta if has_c else 0.0, out.data, N) != 0:
        return fail(ERR_ALLOC, b"gemm: no memory for the packed operand")
    return 0


cdef int matmul_packed(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(a, b, [bias], [residual], activation, p0, p1, out): activation(a @ b + bias + residual).

    a: (..., K), b: (panels, K, columns) as op/dense.py packs (K, N), columns being 128 bytes; bias: (N,), residual and
    out: (..., N). Activations are numbered in gemm.h.
    """
    cdef ArgTensor a, b, bias, residual, out
    cdef bint has_bias = False, has_residual = False, is_double
    cdef int64_t activation = 0, M = 1, N, K, columns
    cdef double p0 = 0, p1 = 0
    cdef int64_t expected[16]
    cdef int32_t d
    cdef GemmEpilogue e
    if arg_count(b"matmul_packed", n_args, 8) or arg_tensor(b"matmul_packed", args, 0, &a) \
            or arg_tensor(b"matmul_packed", args, 1, &b) \
            or arg_optional_tensor(b"matmul_packed", args, 2, &bias, &has_bias) \
            or arg_optional_tensor(b"matmul_packed", args, 3, &residual, &has_residual) \
            or arg_int_in(b"matmul_packed", args, 4, 0, GEMM_ACTIVATIONS - 1, &activation) \
            or arg_float(b"matmul_packed", args, 5, &p0) or arg_float(b"matmul_packed", args, 6, &p1) \
            or arg_output(b"matmul_packed", args, 7, &out) or check_same_dtype(b"matmul_packed", &a, &b) \
            or check_same_dtype(b"matmul_packed", &a, &out):
        return -1
    is_double = _kind_of(&a) == KIND_F64
    if not is_double and _kind_of(&a) != KIND_F32:
        return arg_fail_one(b"matmul_packed", ERR_DTYPE, b"float32 and float64 only", b"lhs", &a)
    columns = GEMM_PACKED_BYTES // a.itemsize
    if a.ndim < 1 or out.ndim != a.ndim or b.ndim != 3 or b.shape[2] != columns or b.shape[1] != a.shape[a.ndim - 1]:
        return arg_fail_pair(b"matmul_packed", ERR_SHAPE, b"the packed matrix does not fit", b"lhs", &a, b"packed", &b)
    K, N = b.shape[1], out.shape[out.ndim - 1]
    for d in range(a.ndim - 1):
        expected[d] = a.shape[d]
        M *= a.shape[d]
    expected[a.ndim - 1] = N
    if b.shape[0] != N // columns + (N % columns != 0):
        return arg_fail_pair(
            b"matmul_packed", ERR_SHAPE, b"the packed matrix has other columns", b"packed", &b, b"output", &out
        )
    if check_out_shape(b"matmul_packed", &out, a.ndim, expected) or check_disjoint(b"matmul_packed", &a, &out) \
            or check_disjoint(b"matmul_packed", &b, &out):
        return -1
    no_epilogue(&e)
    if has_bias:
        if check_same_dtype(b"matmul_packed", &bias, &out) or check_disjoint(b"matmul_packed", &bias, &out):
            return -1
        if bias.ndim != 1 or bias.shape[0] != N:
            return arg_fail_pair(b"matmul_packed", ERR_SHAPE, b"bias must have one element per column", b"bias", &bias,
                                 b"output", &out)
        e.col_bias = bias.data
    if has_residual:
        if check_same_dtype(b"matmul_packed", &residual, &out) or check_same_shape(b"matmul_packed", &residual, &out) \
                or check_disjoint(b"matmul_packed", &residual, &out):
            return -1
        e.residual = residual.data - out.data
    if out.numel == 0:
        return 0
    set_activation(&e, is_double, activation, p0, p1)
    if packed_gemm(is_double, M, N, K, a.data, b.data, out.data, &e) != 0:
        return fail(ERR_ALLOC, b"matmul_packed: no memory for a copy of rows")
    return 0


cdef int matmul_integer(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """(a, b, [a_zero], [b_zero], out int32): (a - a_zero) @ (b - b_zero) of 8-bit matrices. Source: MatMulInteger-10.

    a: ([batch,] M, K), b: ([batch,] K, N) or (K, N); a_zero: one element or M of them, b_zero: one or N.
    """
    cdef ArgTensor a, b, a_zero, b_zero, out
    cdef bint has_a = False, has_b = False, a_signed, b_signed
    cdef MatmulJob job
    cdef int64_t expected[18]
    cdef int64_t batch, i, k, a_at, b_at, rest, at, n_wide
    cdef int32_t d, zero
    cdef int32_t* wide
    cdef int32_t* row
    if arg_count(b"matmul_integer", n_args, 5) or arg_tensor(b"matmul_integer", args, 0, &a) \
            or arg_tensor(b"matmul_integer", args, 1, &b) \
            or arg_optional_tensor(b"matmul_integer", args, 2, &a_zero, &has_a) \
            or arg_optional_tensor(b"matmul_integer", args, 3, &b_zero, &has_b) \
            or arg_output(b"matmul_integer", args, 4, &out) \
            or check_dtype(b"matmul_integer", b"output", &out, DL_INT, 32):
        return -1
    if a.itemsize != 1 or b.itemsize != 1 or (a.dtype.code != DL_INT and a.dtype.code != DL_UINT) \
            or (b.dtype.code != DL_INT and b.dtype.code != DL_UINT):
        return arg_fail_pair(b"matmul_integer", ERR_DTYPE, b"operands must be int8 or uint8", b"lhs", &a, b"rhs", &b)
    if (has_a and check_same_dtype(b"matmul_integer", &a, &a_zero)) \
            or (has_b and check_same_dtype(b"matmul_integer", &b, &b_zero)):
        return -1
    if a.ndim < 2 or b.ndim < 2 or a.shape[a.ndim - 1] != b.shape[b.ndim - 2]:
        return arg_fail_pair(b"matmul_integer", ERR_SHAPE, b"operands must be matrices with equal inner sizes", b"lhs",
                             &a, b"rhs", &b)
    job.M, job.K, job.N = a.shape[a.ndim - 2], a.shape[a.ndim - 1], b.shape[b.ndim - 1]
    if _batch_dims(&a, &b, a.ndim - 2, b.ndim - 2, &job) != 0:
        return arg_fail_pair(b"matmul_integer", ERR_SHAPE, b"batch sizes do not broadcast", b"lhs", &a, b"rhs", &b)
    memcpy(expected, job.dims, job.rank * sizeof(int64_t))
    expected[job.rank], expected[job.rank + 1] = job.M, job.N
    if check_out_shape(b"matmul_integer", &out, job.rank + 2, expected) or check_disjoint(b"matmul_integer", &a, &out) \
            or check_disjoint(b"matmul_integer", &b, &out):
        return -1
    if has_a and a_zero.numel != 1 and (a_zero.ndim != 1 or a_zero.numel != job.M):
        return arg_fail_pair(b"matmul_integer", ERR_SHAPE, b"the zero point must have one element or one per row",
                             b"lhs", &a, b"zero point", &a_zero)
    if has_b and b_zero.numel != 1 and (b_zero.ndim != 1 or b_zero.numel != job.N):
        return arg_fail_pair(b"matmul_integer", ERR_SHAPE, b"the zero point must have one element or one per column",
                             b"rhs", &b, b"zero point", &b_zero)
    if out.numel == 0:
        return 0
    a_signed, b_signed = a.dtype.code == DL_INT, b.dtype.code == DL_INT
    n_wide = job.K * job.N
    wide = <int32_t*>workspace(SLOT_TABLES, <size_t>(n_wide + job.K) * sizeof(int32_t))
    if wide == NULL:
        return ARG_FAIL(ERR_ALLOC, b"matmul_integer: no memory for %lld widened elements", <long long>n_wide)
    row = wide + n_wide
    for batch in range(job.n_batch):
        rest, a_at, b_at = batch, 0, 0
        for d in range(job.rank - 1, -1, -1):
            at = rest % job.dims[d]
            rest = rest // job.dims[d]
            a_at += at * job.a_step[d]
            b_at += at * job.b_step[d]
        if has_b and b_zero.numel != 1:
            for k in range(job.K):
                for i in range(job.N):
                    wide[k * job.N + i] = matmul_byte(b.data, b_at + k * job.N + i, b_signed) - \
                        matmul_byte(b_zero.data, i, b_signed)
        elif batch == 0 or b.ndim > 2:
            zero = matmul_byte(b_zero.data, 0, b_signed) if has_b else 0
            matmul_widen(wide, b.data + b_at, b_signed, n_wide, zero)
        for i in range(job.M):
            zero = matmul_byte(a_zero.data, i if a_zero.numel != 1 else 0, a_signed) if has_a else 0
            matmul_widen(row, a.data + a_at + i * job.K, a_signed, job.K, zero)
            matmul_i32(<const uint32_t*>row, <const uint32_t*>wide,
                       <uint32_t*>out.data + (batch * job.M + i) * job.N, 1, job.N, job.K)
    return 0


cdef KernelEntry _table[4]
_table[0].name, _table[0].fn, _table[0].ns_per_byte = b"kernel.matmul", matmul, 2.0
_table[1].name, _table[1].fn, _table[1].ns_per_byte = b"kernel.gemm", gemm, 2.0
_table[2].name, _table[2].fn, _table[2].ns_per_byte = b"kernel.matmul_integer", matmul_integer, 2.0
_table[3].name, _table[3].fn, _table[3].ns_per_byte = b"kernel.matmul_packed", matmul_packed, 2.0


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 4
    return _table
