/* Copies between strided views of up to STRIDED_MAX_NDIM dimensions: what transpose, slice, concat, tile, expand, pad
 * and depth-to-space come down to. Strides are in bytes and may be 0 or negative on the source side. */
#ifndef VMCORE_KERNELS_STRIDED_H
#define VMCORE_KERNELS_STRIDED_H

#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/simd.h"

#define STRIDED_MAX_NDIM 34
#define TRANSPOSE_TILE 16

typedef struct View {
  int32_t ndim;
  int64_t dim[STRIDED_MAX_NDIM], to[STRIDED_MAX_NDIM], from[STRIDED_MAX_NDIM]; /* outermost first */
} View;

static inline void view_push(View *v, int64_t dim, int64_t to, int64_t from) {
  v->dim[v->ndim] = dim;
  v->to[v->ndim] = to;
  v->from[v->ndim] = from;
  ++v->ndim;
}

/* Drops dimensions of size 1 and merges neighbours that both sides step through alike. Returns 0 when there is nothing
 * to copy. */
static int view_simplify(View *v) {
  int32_t nd = 0;
  for (int32_t d = 0; d < v->ndim; ++d) {
    if (v->dim[d] == 0) return 0;
    if (v->dim[d] == 1) continue;
    if (nd > 0 && v->to[nd - 1] == v->to[d] * v->dim[d] && v->from[nd - 1] == v->from[d] * v->dim[d]) {
      v->dim[nd - 1] *= v->dim[d];
      v->to[nd - 1] = v->to[d];
      v->from[nd - 1] = v->from[d];
      continue;
    }
    v->dim[nd] = v->dim[d], v->to[nd] = v->to[d], v->from[nd] = v->from[d];
    ++nd;
  }
  v->ndim = nd;
  return 1;
}

/* dst[i * to] = src[i * from] */
static void strided_run(char *dst, const char *src, int64_t n, int64_t to, int64_t from, int64_t item) {
  if (to == item && from == item) {
    memcpy(dst, src, (size_t)(n * item));
    return;
  }
#define RUN(T)                                                                                    \
  {                                                                                               \
    if (to == item && from == 0) {                                                                \
      const T v = *(const T *)src;                                                                \
      for (int64_t i = 0; i < n; ++i) ((T *)dst)[i] = v;                                          \
    } else {                                                                                      \
      for (int64_t i = 0; i < n; ++i) *(T *)(dst + i * to) = *(const T *)(src + i * from);        \
    }                                                                                             \
    return;                                                                                       \
  }
  switch (item) {
    case 1: RUN(uint8_t)
    case 2: RUN(uint16_t)
    case 4: RUN(uint32_t)
    case 8: RUN(uint64_t)
    default:
      for (int64_t i = 0; i < n; ++i) memcpy(dst + i * to, src + i * from, (size_t)item);
  }
#undef RUN
}

/* dst[a * to + b] = src[a + b * from] (a, b in elements of one type; to, from in bytes), in tiles that stay in L1. */
#define TRANSPOSE(T)                                                                                           \
  static void transpose_##T(char *dst, const char *src, int64_t na, int64_t nb, int64_t to, int64_t from) {    \
    for (int64_t b0 = 0; b0 < nb; b0 += TRANSPOSE_TILE)                                                        \
      for (int64_t a0 = 0; a0 < na; a0 += TRANSPOSE_TILE) {                                                    \
        int64_t a1 = na - a0 < TRANSPOSE_TILE ? na : a0 + TRANSPOSE_TILE;                                      \
        int64_t b1 = nb - b0 < TRANSPOSE_TILE ? nb : b0 + TRANSPOSE_TILE;                                      \
        for (int64_t a = a0; a < a1; ++a)                                                                      \
          for (int64_t b = b0; b < b1; ++b) ((T *)(dst + a * to))[b] = ((const T *)(src + b * from))[a];       \
      }                                                                                                        \
  }
TRANSPOSE(uint8_t)
TRANSPOSE(uint16_t)
TRANSPOSE(uint32_t)
TRANSPOSE(uint64_t)

typedef uint32_t Quad __attribute__((vector_size(16), aligned(4), may_alias));

/* A 4 x 4 block in registers. */
static inline void transpose_block(char *dst, const char *src, int64_t to, int64_t from) {
  Quad a = *(const Quad *)src, b = *(const Quad *)(src + from);
  Quad c = *(const Quad *)(src + 2 * from), d = *(const Quad *)(src + 3 * from);
  Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  *(Quad *)dst = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(Quad *)(dst + to) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(Quad *)(dst + 2 * to) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(Quad *)(dst + 3 * to) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

/* transpose_uint32_t by 4 x 4 blocks: whole cache lines of dst are filled one after the other. */
static void transpose_blocks(char *dst, const char *src, int64_t na, int64_t nb, int64_t to, int64_t from) {
  const int64_t whole_a = na & ~3ll, whole_b = nb & ~3ll;
  for (int64_t b0 = 0; b0 < whole_b; b0 += TRANSPOSE_TILE) {
    const int64_t b1 = whole_b - b0 < TRANSPOSE_TILE ? whole_b : b0 + TRANSPOSE_TILE;
    for (int64_t a = 0; a < whole_a; a += 4)
      for (int64_t b = b0; b < b1; b += 4) transpose_block(dst + a * to + b * 4, src + b * from + a * 4, to, from);
  }
  if (whole_a < na) transpose_uint32_t(dst + whole_a * to, src + whole_a * 4, na - whole_a, nb, to, from);
  if (whole_b < nb) transpose_uint32_t(dst + whole_b * 4, src + whole_b * from, whole_a, nb - whole_b, to, from);
}

/* Copies all elements of the view; dst and src share no byte, unless the view only reads what it does not write. */
static void strided_copy(View *v, char *dst, const char *src, int64_t item) {
  int64_t index[STRIDED_MAX_NDIM];
  if (!view_simplify(v)) return;
  if (v->ndim == 0) {
    memcpy(dst, src, (size_t)item);
    return;
  }
  /* The two innermost loops: a run along the last dimension, or a transposition of it with the dimension along which
   * the source is contiguous. */
  int32_t last = v->ndim - 1, swap = -1;
  if (v->from[last] != item && v->to[last] == item && item <= 8 && (item & (item - 1)) == 0)
    for (int32_t d = 0; d < last; ++d)
      if (v->from[d] == item && v->dim[d] > 1) swap = d;
  int64_t n = v->dim[last], to = v->to[last], from = v->from[last], n_swap = 1, to_swap = 0;
  if (swap >= 0) {
    n_swap = v->dim[swap], to_swap = v->to[swap];
    for (int32_t d = swap; d + 1 < last; ++d)
      v->dim[d] = v->dim[d + 1], v->to[d] = v->to[d + 1], v->from[d] = v->from[d + 1];
    --last;
  }
  for (int32_t d = 0; d < last; ++d) index[d] = 0;
  for (;;) {
    if (swap < 0)
      strided_run(dst, src, n, to, from, item);
    else if (item == 4)
      transpose_blocks(dst, src, n_swap, n, to_swap, from);
    else if (item == 8)
      transpose_uint64_t(dst, src, n_swap, n, to_swap, from);
    else if (item == 2)
      transpose_uint16_t(dst, src, n_swap, n, to_swap, from);
    else
      transpose_uint8_t(dst, src, n_swap, n, to_swap, from);
    int32_t d = last - 1;
    for (; d >= 0; --d) {
      dst += v->to[d], src += v->from[d];
      if (++index[d] < v->dim[d]) break;
      dst -= v->to[d] * v->dim[d], src -= v->from[d] * v->dim[d];
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

/* n elements with one value */
static void fill_pattern(char *dst, const char *value, int64_t n, int64_t item) {
  strided_run(dst, value, n, item, 0, item);
}

#endif
