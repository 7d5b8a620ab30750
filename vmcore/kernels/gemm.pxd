# Our own matrix product on register tiles (AVX-512, AVX2, 128-bit vectors). Layer 2.
from libc.stdint cimport int64_t

cdef extern from "vmcore/kernels/gemm.h" nogil:
    enum:
        GEMM_KC, GEMM_BLOCK_BYTES, GEMM_MAX_ROWS, GEMM_DOTS_ROWS, GEMM_BRIEF_FLOPS, GEMM_PACKED_BYTES
        GEMM_ACTIVATIONS, GEMM_RELU
    ctypedef struct GemmEpilogue:
        const void* row_bias
        const void* col_bias
        bint accumulate
        int64_t residual
        bint relu
        void (*activation)(const void* x, void* y, int64_t n, const double* params) noexcept nogil
        double[2] params
    ctypedef struct GemmTiles:
        int rows, lanes
        void (*dots)(int64_t rows, int64_t n_columns, int64_t kc, const void* a, int64_t lda, const void* columns,
                     int64_t ld_columns, void* c, int64_t c_row, int64_t c_col, const GemmEpilogue* e, int64_t row,
                     int64_t col) noexcept nogil
    ctypedef struct GemmGrid:
        int64_t panels, columns, rows
    int64_t gemm_column(const GemmGrid* g, int64_t piece, int64_t N, int64_t lanes)
    void gemm_grid(int64_t threads, int64_t units, int64_t M, int64_t N, int64_t lanes, int64_t min_columns,
                   GemmGrid* g)

# Register tiles of the best instruction set that this process may use.
cdef const GemmTiles* gemm_tiles(bint is_double) noexcept nogil

# Instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512.
cdef int gemm_isa() noexcept nogil

# C[M, n] = A[M, kc] @ B for B packed as [panel][kc][2 * lanes]; `slab` (gemm_slab_size bytes) or NULL.
#
# `last`: these columns end the product, whatever the number of threads.
cdef void gemm_panels(bint is_double, int64_t M, int64_t n, int64_t kc, const void* a, int64_t lda, const void* panels,
                      void* c, int64_t ldc, const GemmEpilogue* e, int64_t row, int64_t col, void* slab,
                      bint last) noexcept nogil

# An epilogue that changes nothing.
cdef void no_epilogue(GemmEpilogue* e) noexcept nogil

# Lets `e` apply activation number 0 .. GEMM_ACTIVATIONS - 1 with its two parameters.
cdef void set_activation(GemmEpilogue* e, bint is_double, int64_t activation, double p0, double p1) noexcept nogil

# Bytes of scratch memory for rows of A that lie lda apart; 0: read A in place.
cdef int64_t gemm_slab_size(bint is_double, int64_t lda, int64_t kc) noexcept nogil

# C := alpha * op(A) @ op(B) + beta * C, row-major, then row_bias, col_bias and relu of `e` (NULL: none).
#
# A: (M, K), B: (K, N), C: (M, N) after op; ld* in elements. beta == 0: C may be uninitialised. Splits the work over
# thread_count() threads when it is large. Returns -1 without an error message if scratch memory cannot be had.
cdef int own_gemm(bint is_double, bint trans_a, bint trans_b, int64_t M, int64_t N, int64_t K, double alpha,
                  const void* a, int64_t lda, const void* b, int64_t ldb, double beta, void* c, int64_t ldc,
                  const GemmEpilogue* e) noexcept nogil

# C := A @ B, then what `e` says, for B packed as [panel][K][GEMM_PACKED_BYTES]; A: (M, K), C: (M, N), both compact.
#
# Threads and result as own_gemm.
cdef int packed_gemm(bint is_double, int64_t M, int64_t N, int64_t K, const void* a, const void* packed, void* c,
                     const GemmEpilogue* e) noexcept nogil
