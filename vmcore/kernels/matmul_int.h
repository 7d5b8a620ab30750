/* Integer matrix products: C[M, N] = A[M, K] @ B[K, N], row-major, wrapping like numpy's. Included by matmul.pyx. */
#ifndef VMCORE_KERNELS_MATMUL_INT_H
#define VMCORE_KERNELS_MATMUL_INT_H

#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/simd.h"

/* Unsigned arithmetic of the same width gives the wrapped bits for signed types too, without undefined behaviour. */
#define MATMUL_INT(T, NAME) \
  VM_MULTIVERSION static void NAME(const T *a, const T *b, T *c, int64_t M, int64_t N, int64_t K) { \
    for (int64_t i = 0; i < M; ++i, a += K, c += N) { \
      memset(c, 0, (size_t)N * sizeof(T)); \
      for (int64_t k = 0; k < K; ++k) { \
        const T x = a[k], *row = b + k * N; \
        for (int64_t j = 0; j < N; ++j) c[j] += x * row[j]; \
      } \
    } \
  }
MATMUL_INT(uint32_t, matmul_i32)
MATMUL_INT(uint64_t, matmul_i64)

static inline int32_t matmul_byte(const void *p, int64_t i, int is_signed) {
  return is_signed ? ((const int8_t *)p)[i] : ((const uint8_t *)p)[i];
}

/* dst[i] = src[i] - zero, in 32 bits. */
static void matmul_widen(int32_t *dst, const void *src, int is_signed, int64_t n, int32_t zero) {
  if (is_signed)
    for (int64_t i = 0; i < n; ++i) dst[i] = ((const int8_t *)src)[i] - zero;
  else
    for (int64_t i = 0; i < n; ++i) dst[i] = ((const uint8_t *)src)[i] - zero;
}

#endif
