# Matrix products of the BLAS that is bound, or our own before and without one. The only module that knows BLAS.
from libc.stdint cimport int64_t

cpdef str ensure_bound()

# C := alpha * op(A) @ op(B) + beta * C, row-major.  A: (m, k), B: (k, n), C: (m, n) after op; ld* in elements.
#
# beta == 0 means C is write-only and may be uninitialised. m or n == 1 goes to the matrix-vector product. Returns -1,
# with nothing stored, when scratch memory cannot be had.
cdef int gemm_rm(bint is_double, bint ta, bint tb, int64_t m, int64_t n, int64_t k, double alpha, const void* a,
                 int64_t lda, const void* b, int64_t ldb, double beta, void* c, int64_t ldc) noexcept nogil
