# HOT: leaves are noexcept nogil.
"""Matrix product on register tiles: what convolutions run on, and what stands in where there is no BLAS."""
from libc.stdint cimport int64_t
from libc.stddef cimport size_t

from vmcore.kernels.elementwise cimport unary_table
from vmcore.kernels.workspace cimport SLOT_PANELS, SLOT_TILES, workspace
from vmcore.threads cimport parallel_for, parallel_for_brief, thread_count

cdef extern from "vmcore/kernels/simd.h":
    int vm_isa_detect()

cdef extern from "vmcore/kernels/gemm_run.h" nogil:
    ctypedef struct GemmPlan:
        int64_t kc, nc
        bint direct, use_slab
        int64_t panels_bytes, slab_bytes
    const GemmTiles* gemm_tiles_of(int isa, bint is_double)
    bint gemm_stride_clashes(int64_t lda, int64_t es)
    int64_t gemm_slab_bytes(int64_t kc, int64_t es)
    void gemm_block(const GemmTiles* t, int64_t es, int64_t M, int64_t n, int64_t kc, const char* a, int64_t lda,
                    bint trans_a, double alpha, const char* b, int64_t ldb, int64_t panel_bytes, char* c, int64_t ldc,
                    const GemmEpilogue* e, int64_t row, int64_t col, char* slab, bint last)
    void gemm_plan(const GemmTiles* t, int64_t es, bint trans_a, bint trans_b, int64_t M, int64_t N, int64_t K,
                   double alpha, int64_t lda, GemmPlan* p)
    void gemm_run(const GemmTiles* t, const GemmPlan* p, int64_t es, bint trans_a, bint trans_b, int64_t M, int64_t N,
                  int64_t K, double alpha, const char* a, int64_t lda, const char* b, int64_t ldb, double beta, char* c,
                  int64_t ldc, const GemmEpilogue* epilogue, char* panels, char* slab)
    void gemm_run_packed(const GemmTiles* t, int64_t es, int64_t M, int64_t N, int64_t K, const char* a, int64_t lda,
                         const char* b, char* c, int64_t ldc, const GemmEpilogue* e, char* slab)
    void* gemm_activation(const void* unary_ops, int64_t activation, bint is_double)

cdef enum:
    PARALLEL_FLOPS = 1 << 20  # multiply-adds below which waking a thread costs more than it saves

cdef int _isa = vm_isa_detect()
cdef const GemmTiles* _tiles[2]
_tiles[0] = gemm_tiles_of(_isa, False)
_tiles[1] = gemm_tiles_of(_isa, True)


cdef const GemmTiles* gemm_tiles(bint is_double) noexcept nogil:
    return _tiles[is_double]


cdef int gemm_isa() noexcept nogil:
    return _isa


def instruction_set() -> str:
    """Name of the instruction set that the tiles use."""
    return ("baseline", "avx2", "avx512")[_isa]


def _use_instruction_set(str name) -> None:
    """Test door: use the tiles of `name`; a set that this CPU lacks is refused."""
    global _isa
    isa = ("baseline", "avx2", "avx512").index(name)
    if isa > vm_isa_detect():
        raise ValueError(f"instruction set {name} is not available on this CPU")
    _isa = isa
    _tiles[0] = gemm_tiles_of(_isa, False)
    _tiles[1] = gemm_tiles_of(_isa, True)


cdef void no_epilogue(GemmEpilogue* e) noexcept nogil:
    e.row_bias = NULL
    e.col_bias = NULL
    e.accumulate = False
    e.residual = 0
    e.relu = False
    e.activation = NULL
    e.params[0] = e.params[1] = 0


cdef void set_activation(GemmEpilogue* e, bint is_double, int64_t activation, double p0, double p1) noexcept nogil:
    e.relu = activation == GEMM_RELU
    e.activation = <void (*)(const void*, void*, int64_t, const double*) noexcept nogil>gemm_activation(
        unary_table(), activation, is_double)
    e.params[0], e.params[1] = p0, p1


cdef void gemm_panels(bint is_double, int64_t M, int64_t n, int64_t kc, const void* a, int64_t lda, const void* panels,
                      void* c, int64_t ldc, const GemmEpilogue* e, int64_t row, int64_t col, void* slab,
                      bint last) noexcept nogil:
    cdef const GemmTiles* t = _tiles[is_double]
    cdef int64_t es = 8 if is_double else 4
    gemm_block(t, es, M, n, kc, <const char*>a, lda, False, 1.0, <const char*>panels, 2 * t.lanes,
               kc * 2 * t.lanes * es, <char*>c, ldc, e, row, col, <char*>slab, last)


cdef int64_t gemm_slab_size(bint is_double, int64_t lda, int64_t kc) noexcept nogil:
    cdef int64_t es = 8 if is_double else 4
    return gemm_slab_bytes(kc, es) if gemm_stride_clashes(lda, es) else 0


ctypedef struct GemmJob:
    bint is_double, trans_a, trans_b, packed
    int64_t M, N, K, lda, ldb, ldc
    double alpha, beta
    const char* a
    const char* b
    char* c
    GemmEpilogue e
    GemmGrid grid
    int64_t column_lanes  # half of what a piece of columns is a multiple of
    int failed


cdef int _run_piece(GemmJob* job, int64_t m0, int64_t m1, int64_t n0, int64_t n1) noexcept nogil:
    cdef const GemmTiles* t = _tiles[job.is_double]
    cdef int64_t es = 8 if job.is_double else 4
    cdef GemmPlan plan
    cdef GemmEpilogue e = job.e
    cdef char* panels
    cdef char* slab = NULL
    if m1 <= m0 or n1 <= n0:
        return 0
    if job.packed:
        return _run_packed_piece(job, m0, m1, n0, n1)
    # INVARIANT: what is chosen depends on the whole product alone, or the sums would differ with the number of threads.
    if job.trans_b and not job.trans_a and job.M <= GEMM_DOTS_ROWS and job.alpha == 1 and job.K > 0 and \
            (job.beta == 0 or job.beta == 1) and e.row_bias == NULL and e.col_bias == NULL and not e.relu \
            and e.residual == 0 and e.activation == NULL:
        e.accumulate = job.beta == 1  # C' = B @ A'
        t.dots(n1 - n0, m1 - m0, job.K, job.b + n0 * job.ldb * es, job.ldb, job.a + m0 * job.lda * es, job.lda,
               job.c + (m0 * job.ldc + n0) * es, 1, job.ldc, &e, 0, 0)
        return 0
    gemm_plan(t, es, job.trans_a, job.trans_b, job.M, job.N, job.K, job.alpha, job.lda, &plan)
    panels = <char*>workspace(SLOT_PANELS, <size_t>plan.panels_bytes)
    if plan.use_slab:
        slab = <char*>workspace(SLOT_TILES, <size_t>plan.slab_bytes)
    if panels == NULL or (plan.use_slab and slab == NULL):
        return -1
    if e.row_bias != NULL:
        e.row_bias = <const char*>e.row_bias + m0 * es
    if e.col_bias != NULL:
        e.col_bias = <const char*>e.col_bias + n0 * es
    gemm_run(t, &plan, es, job.trans_a, job.trans_b, m1 - m0, n1 - n0, job.K, job.alpha,
             job.a + (m0 if job.trans_a else m0 * job.lda) * es, job.lda,
             job.b + (n0 * job.ldb if job.trans_b else n0) * es, job.ldb, job.beta,
             job.c + (m0 * job.ldc + n0) * es, job.ldc, &e, panels, slab)
    return 0


cdef int _run_packed_piece(GemmJob* job, int64_t m0, int64_t m1, int64_t n0, int64_t n1) noexcept nogil:
    cdef int64_t es = 8 if job.is_double else 4, slab_bytes = 0
    cdef GemmEpilogue e = job.e
    cdef char* slab = NULL
    if m1 - m0 > 4 and gemm_stride_clashes(job.lda, es):
        slab_bytes = gemm_slab_bytes(GEMM_KC, es)
        slab = <char*>workspace(SLOT_TILES, <size_t>slab_bytes)
        if slab == NULL:
            return -1
    if e.col_bias != NULL:
        e.col_bias = <const char*>e.col_bias + n0 * es
    gemm_run_packed(_tiles[job.is_double], es, m1 - m0, n1 - n0, job.K, job.a + m0 * job.lda * es, job.lda,
                    job.b + n0 * es // GEMM_PACKED_BYTES * job.K * GEMM_PACKED_BYTES,
                    job.c + (m0 * job.ldc + n0) * es, job.ldc, &e, slab)
    return 0


cdef void _task(void* ctx, int64_t i) noexcept nogil:
    cdef GemmJob* job = <GemmJob*>ctx
    cdef int64_t row = i // job.grid.columns, column = i % job.grid.columns, lanes = job.column_lanes
    if _run_piece(job, job.M * row // job.grid.rows, job.M * (row + 1) // job.grid.rows,
                  gemm_column(&job.grid, column, job.N, lanes), gemm_column(&job.grid, column + 1, job.N, lanes)) != 0:
        job.failed = 1


cdef int own_gemm(bint is_double, bint trans_a, bint trans_b, int64_t M, int64_t N, int64_t K, double alpha,
                  const void* a, int64_t lda, const void* b, int64_t ldb, double beta, void* c, int64_t ldc,
                  const GemmEpilogue* e) noexcept nogil:
    cdef GemmJob job
    if M == 0 or N == 0:
        return 0
    job.is_double, job.trans_a, job.trans_b = is_double, trans_a, trans_b
    job.M, job.N, job.K, job.lda, job.ldb, job.ldc = M, N, (K if alpha != 0 else 0), lda, ldb, ldc
    job.alpha, job.beta = alpha, beta
    job.a, job.b, job.c = <const char*>a, <const char*>b, <char*>c
    job.packed = False
    if e == NULL:
        no_epilogue(&job.e)
    else:
        job.e = e[0]
    job.e.accumulate = False
    job.column_lanes = _tiles[is_double].lanes
    return _spread_out(&job)


cdef int packed_gemm(bint is_double, int64_t M, int64_t N, int64_t K, const void* a, const void* packed, void* c,
                     const GemmEpilogue* e) noexcept nogil:
    cdef GemmJob job
    if M == 0 or N == 0:
        return 0
    job.is_double, job.trans_a, job.trans_b, job.packed = is_double, False, False, True
    job.M, job.N, job.K, job.lda, job.ldb, job.ldc = M, N, K, K, 0, N
    job.alpha, job.beta = 1, 0
    job.a, job.b, job.c = <const char*>a, <const char*>packed, <char*>c
    job.e = e[0]
    job.e.accumulate = False
    job.column_lanes = GEMM_PACKED_BYTES // (16 if is_double else 8)
    return _spread_out(&job)


cdef int _spread_out(GemmJob* job) noexcept nogil:
    """Run the job in pieces of columns and rows."""
    cdef int64_t M = job.M, N = job.N
    cdef double flops = <double>M * N * job.K
    cdef int threads = thread_count()
    job.failed = 0
    if threads == 1 or flops < PARALLEL_FLOPS or (N < 4 * job.column_lanes and M < 2 * GEMM_MAX_ROWS):
        return _run_piece(job, 0, M, 0, N)
    gemm_grid(threads, 1, M, N, job.column_lanes, 1, &job.grid)
    if flops < GEMM_BRIEF_FLOPS:
        parallel_for_brief(job.grid.columns * job.grid.rows, _task, job)
    else:
        parallel_for(job.grid.columns * job.grid.rows, _task, job)
    return -1 if job.failed else 0
