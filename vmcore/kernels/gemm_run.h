/* Blocking, packing and edges of the matrix product on register tiles (gemm_tile.h). Included by gemm.pyx alone.
 *
 * C = alpha * op(A) @ op(B) + beta * C, row-major. B is packed block by block into panels of two vectors,
 * [panel][k][lanes], unless A has so few rows that packing costs more than it saves. A is read in place; its rows are
 * copied only to transpose or scale them, or when their distance would put all of them into one set of the L1 cache.
 */
#ifndef VMCORE_KERNELS_GEMM_RUN_H
#define VMCORE_KERNELS_GEMM_RUN_H

#include <stddef.h>
#include <string.h>

#include "vmcore/kernels/elementwise_ops.h"
#include "vmcore/kernels/gemm.h"
#include "vmcore/kernels/simd.h"

#if VM_X86_VERSIONS
#define GEMM_TARGET_V4 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")))
#define GEMM_TARGET_V3 __attribute__((target("avx2,fma")))

#define TILE_T float
#define TILE_I int32_t
#define TILE_NAME(x) x##_f32_v4
#define TILE_ATTR GEMM_TARGET_V4
#define TILE_W 16
#define TILE_ROWS 14
#include "vmcore/kernels/gemm_tile.h"

#define TILE_T double
#define TILE_I int64_t
#define TILE_NAME(x) x##_f64_v4
#define TILE_ATTR GEMM_TARGET_V4
#define TILE_W 8
#define TILE_ROWS 14
#include "vmcore/kernels/gemm_tile.h"

#define TILE_T float
#define TILE_I int32_t
#define TILE_NAME(x) x##_f32_v3
#define TILE_ATTR GEMM_TARGET_V3
#define TILE_W 8
#define TILE_ROWS 6
#include "vmcore/kernels/gemm_tile.h"

#define TILE_T double
#define TILE_I int64_t
#define TILE_NAME(x) x##_f64_v3
#define TILE_ATTR GEMM_TARGET_V3
#define TILE_W 4
#define TILE_ROWS 6
#include "vmcore/kernels/gemm_tile.h"
#endif

#define TILE_T float
#define TILE_I int32_t
#define TILE_NAME(x) x##_f32_base
#define TILE_ATTR
#define TILE_W 4
#define TILE_ROWS 4
#include "vmcore/kernels/gemm_tile.h"

#define TILE_T double
#define TILE_I int64_t
#define TILE_NAME(x) x##_f64_base
#define TILE_ATTR
#define TILE_W 2
#define TILE_ROWS 4
#include "vmcore/kernels/gemm_tile.h"

static const GemmTiles *gemm_tiles_of(int isa, int is_double) {
#if VM_X86_VERSIONS
  if (isa == VM_ISA_V4) return is_double ? &tiles_f64_v4 : &tiles_f32_v4;
  if (isa == VM_ISA_V3) return is_double ? &tiles_f64_v3 : &tiles_f32_v3;
#endif
  (void)isa;
  return is_double ? &tiles_f64_base : &tiles_f32_base;
}

static inline int64_t gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of A further apart than a tile should read in place: a multiple of a page maps all rows to one L1 set. */
static inline int gemm_stride_clashes(int64_t lda, int64_t es) { return (lda * es) % 4096 == 0; }

static inline int64_t gemm_slab_stride(int64_t kc) { return (kc + 15) / 16 * 16 + 16; }
static inline int64_t gemm_slab_bytes(int64_t kc, int64_t es) { return GEMM_MAX_ROWS * gemm_slab_stride(kc) * es; }

/* The loop of an activation, NULL for none and relu, which the tiles do. */
static void *gemm_activation(const void *unary_ops, int64_t activation, int is_double) {
  static const uint8_t rows[GEMM_ACTIVATIONS] = {
      [GEMM_CLIP] = U_clip, [GEMM_SIGMOID] = U_sigmoid, [GEMM_SILU] = U_silu, [GEMM_GELU] = U_gelu,
      [GEMM_GELU_TANH] = U_gelu_tanh, [GEMM_HARD_SWISH] = U_hard_swish, [GEMM_LEAKY_RELU] = U_leaky_relu,
      [GEMM_TANH] = U_tanh, [GEMM_HARD_SIGMOID] = U_hard_sigmoid,
  };
  if (activation <= GEMM_RELU || activation >= GEMM_ACTIVATIONS) return NULL;
  return (void *)((const UnaryOp *)unary_ops)[rows[activation]].loop[is_double ? K_F64 : K_F32];
}

/* One tile whose columns end inside a panel: n < 2 * lanes columns of C are stored. B has whole panels. */
static void gemm_edge_tile(const GemmTiles *t, int64_t es, int64_t rows, int64_t n, int64_t kc, const char *a,
                           int64_t lda, const char *b, int64_t ldb, char *c, int64_t ldc, const GemmEpilogue *e,
                           int64_t row, int64_t col) {
  char out[GEMM_MAX_ROWS * GEMM_MAX_PANEL_BYTES] __attribute__((aligned(64)));
  char bias[GEMM_MAX_PANEL_BYTES] __attribute__((aligned(64)));
  int64_t width = 2 * t->lanes;
  GemmEpilogue edge = *e;
  if (e->accumulate)
    for (int64_t i = 0; i < rows; ++i) memcpy(out + i * width * es, c + i * ldc * es, (size_t)(n * es));
  if (e->col_bias) {
    memcpy(bias, (const char *)e->col_bias + col * es, (size_t)(n * es));
    edge.col_bias = bias;
  }
  if (e->residual) edge.residual = edge.relu = 0; /* it lies beside C, not beside `out` */
  t->tile[rows][n > t->lanes](kc, a, lda, b, ldb, out, width, &edge, row, 0);
  if (e->residual)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n; ++j) {
        char *o = out + (i * width + j) * es;
        const char *more = c + (i * ldc + j) * es + e->residual;
        if (es == 4) {
          const float v = *(float *)o + *(const float *)more;
          *(float *)o = e->relu && v < 0 ? 0 : v;
        } else {
          const double v = *(double *)o + *(const double *)more;
          *(double *)o = e->relu && v < 0 ? 0 : v;
        }
      }
  for (int64_t i = 0; i < rows; ++i) memcpy(c + i * ldc * es, out + i * width * es, (size_t)(n * es));
}

/* Copies rows x kc of op(A), scaled, into the slab. A points at its first element; trans: A is stored (K, M). */
#define GEMM_DEFINE_SLAB(T, NAME) \
  VM_MULTIVERSION static void NAME(T *slab, int64_t stride, const T *a, int64_t lda, int trans, int64_t rows, \
                                   int64_t kc, double alpha) { \
    for (int64_t i = 0; i < rows; ++i) { \
      T *o = slab + i * stride; \
      if (trans) { \
        for (int64_t k = 0; k < kc; ++k) o[k] = a[k * lda + i]; \
      } else { \
        memcpy(o, a + i * lda, (size_t)kc * sizeof(T)); \
      } \
      if (alpha != 1.0) \
        for (int64_t k = 0; k < kc; ++k) o[k] *= (T)alpha; \
    } \
  }
GEMM_DEFINE_SLAB(float, gemm_slab_f32)
GEMM_DEFINE_SLAB(double, gemm_slab_f64)

/* C[M, n] = op(A)[M, kc] @ panels. Panel p starts panel_bytes after panel p-1; slab may be NULL when A is read in
 * place; last: these are the last columns of C, whose odd ones may be done as dot products (their sums round
 * differently, so the choice must not depend on how columns are split over threads). A tile of A stays in L1 while the
 * panels stream from L2; the slab is used for all panels. */
static void gemm_block(const GemmTiles *t, int64_t es, int64_t M, int64_t n, int64_t kc, const char *a, int64_t lda,
                       int trans_a, double alpha, const char *b, int64_t ldb, int64_t panel_bytes, char *c, int64_t ldc,
                       const GemmEpilogue *e, int64_t row, int64_t col, char *slab, int last) {
  double dots[GEMM_MAX_DOTS * GEMM_KC]; /* left uninitialised unless used */
  int64_t width = 2 * t->lanes, most = t->rows, n_dots = 0;
  /* Few panels do not pay for copies of A: tiles of six rows fit the ways of one L1 set. */
  if (slab && !trans_a && alpha == 1.0 && n <= 4 * width) slab = NULL, most = gemm_min(most, 6);
  int64_t blocks = (M + most - 1) / most;
  if (last && n > t->lanes && kc <= GEMM_KC && n % t->lanes * 4 <= t->lanes) {
    n_dots = n % t->lanes;
    n -= n_dots;
    const char *tail = b + n / width * panel_bytes + n % width * es;
    for (int64_t j = 0; j < n_dots; ++j)
      for (int64_t k = 0; k < kc; ++k) {
        if (es == 4) ((float *)dots)[j * kc + k] = ((const float *)(tail + k * ldb * es))[j];
        else dots[j * kc + k] = ((const double *)(tail + k * ldb * es))[j];
      }
  }
  for (int64_t i = 0, m = 0; i < blocks; ++i) {
    int64_t rows = M * (i + 1) / blocks - m;
    const char *at = a + (trans_a ? m : m * lda) * es;
    int64_t at_stride = lda;
    if (slab) {
      at_stride = gemm_slab_stride(kc);
      if (es == 4) gemm_slab_f32((float *)slab, at_stride, (const float *)at, lda, trans_a, rows, kc, alpha);
      else gemm_slab_f64((double *)slab, at_stride, (const double *)at, lda, trans_a, rows, kc, alpha);
      at = slab;
    }
    const char *bp = b;
    char *cm = c + m * ldc * es;
    int64_t j = 0;
    for (; j + width <= n; j += width, bp += panel_bytes)
      t->tile[rows][1](kc, at, at_stride, bp, ldb, cm + j * es, ldc, e, row + m, col + j);
    if (n - j == t->lanes)
      t->tile[rows][0](kc, at, at_stride, bp, ldb, cm + j * es, ldc, e, row + m, col + j);
    else if (n > j)
      gemm_edge_tile(t, es, rows, n - j, kc, at, at_stride, bp, ldb, cm + j * es, ldc, e, row + m, col + j);
    if (n_dots)
      t->dots(rows, n_dots, kc, at, at_stride, dots, kc, cm + n * es, ldc, 1, e, row + m, col + n);
    if (e->activation)
      for (int64_t r = 0; r < rows; ++r) {
        char *o = cm + r * ldc * es;
        e->activation(o, o, n + n_dots, e->params);
      }
    m += rows;
  }
}

/* Packs op(B)[0:kc, 0:n] into panels of `width` columns; columns past n are zero. trans: B is stored (N, K). */
#define GEMM_DEFINE_PACK(T, NAME) \
  VM_MULTIVERSION static void NAME(T *panels, const T *b, int64_t ldb, int trans, int64_t kc, int64_t n, \
                                   int64_t width) { \
    for (int64_t j0 = 0; j0 < n; j0 += width, panels += kc * width) { \
      int64_t w = n - j0 < width ? n - j0 : width; \
      if (trans) { \
        const T *src = b + j0 * ldb; \
        for (int64_t k0 = 0; k0 < kc; k0 += 16) { \
          int64_t k1 = k0 + 16 < kc ? k0 + 16 : kc; \
          for (int64_t j = 0; j < w; ++j) \
            for (int64_t k = k0; k < k1; ++k) panels[k * width + j] = src[j * ldb + k]; \
          for (int64_t k = k0; k < k1; ++k) \
            for (int64_t j = w; j < width; ++j) panels[k * width + j] = 0; \
        } \
      } else { \
        for (int64_t k = 0; k < kc; ++k) { \
          const T *src = b + k * ldb + j0; \
          T *o = panels + k * width; \
          for (int64_t j = 0; j < w; ++j) o[j] = src[j]; \
          for (int64_t j = w; j < width; ++j) o[j] = 0; \
        } \
      } \
    } \
  }
GEMM_DEFINE_PACK(float, gemm_pack_f32)
GEMM_DEFINE_PACK(double, gemm_pack_f64)

static void gemm_pack(const GemmTiles *t, int64_t es, char *panels, const char *b, int64_t ldb, int trans, int64_t kc,
                      int64_t n) {
  int64_t width = 2 * t->lanes, whole = trans ? 0 : n / width * width;
  if (whole) {
    t->pack(b, ldb, kc, whole, panels);
    panels += whole * kc * es, b += whole * es, n -= whole;
  }
  if (es == 4) gemm_pack_f32((float *)panels, (const float *)b, ldb, trans, kc, n, width);
  else gemm_pack_f64((double *)panels, (const double *)b, ldb, trans, kc, n, width);
}

VM_MULTIVERSION static void gemm_scale_f32(float *c, int64_t n, double beta) {
  for (int64_t j = 0; j < n; ++j) c[j] = beta == 0.0 ? 0.0f : c[j] * (float)beta;
}
VM_MULTIVERSION static void gemm_scale_f64(double *c, int64_t n, double beta) {
  for (int64_t j = 0; j < n; ++j) c[j] = beta == 0.0 ? 0.0 : c[j] * beta;
}

/* Columns of the next block of at most nc when `left` are left: a remainder for dot products does not stay alone. */
static inline int64_t gemm_block_columns(const GemmTiles *t, int64_t nc, int64_t left) {
  return left - nc <= t->lanes / 4 ? left : nc;
}

typedef struct GemmPlan {
  int64_t kc, nc;       /* block of B */
  int direct;           /* B is read in place but for the last, incomplete panel */
  int use_slab;
  int64_t panels_bytes, slab_bytes; /* scratch memory */
} GemmPlan;

static void gemm_plan(const GemmTiles *t, int64_t es, int trans_a, int trans_b, int64_t M, int64_t N, int64_t K,
                      double alpha, int64_t lda, GemmPlan *p) {
  int64_t width = 2 * t->lanes, blocks = (K + GEMM_KC - 1) / GEMM_KC;
  p->kc = blocks ? (K + blocks - 1) / blocks : 0;
  int64_t per_block = GEMM_BLOCK_BYTES / ((p->kc ? p->kc : 1) * es) / width * width;
  p->nc = per_block < width ? width : per_block;
  p->direct = !trans_b && M <= 2 * t->rows && K * N * es <= GEMM_IN_PLACE_BYTES;
  if (p->direct) p->kc = K; /* C is written once */
  p->use_slab = trans_a || alpha != 1.0 || (gemm_stride_clashes(lda, es) && M > 4);
  int64_t n = (gemm_min(N, p->nc) + width - 1) / width * width + width; /* a block may take in what is left of N */
  p->panels_bytes = (p->direct ? width : n) * (p->kc ? p->kc : 1) * es;
  p->slab_bytes = p->use_slab ? gemm_slab_bytes(p->kc, es) : 0;
}

/* The whole product, or a piece of columns and rows of the product that was planned, on this thread. `panels` and `slab` have the sizes of the plan. */
static void gemm_run(const GemmTiles *t, const GemmPlan *p, int64_t es, int trans_a, int trans_b, int64_t M, int64_t N,
                     int64_t K, double alpha, const char *a, int64_t lda, const char *b, int64_t ldb, double beta,
                     char *c, int64_t ldc, const GemmEpilogue *epilogue, char *panels, char *slab) {
  int64_t width = 2 * t->lanes;
  if (!p->use_slab) slab = NULL;
  if (beta != 0.0 && beta != 1.0)
    for (int64_t i = 0; i < M; ++i) {
      if (es == 4) gemm_scale_f32((float *)(c + i * ldc * es), N, beta);
      else gemm_scale_f64((double *)(c + i * ldc * es), N, beta);
    }
  GemmEpilogue e = *epilogue;
  e.accumulate = beta != 0.0;
  if (p->direct) {
    int64_t whole = N / width * width;
    for (int64_t j = 0; j < whole; j += width) /* one panel at a time, so that it comes from memory once */
      gemm_block(t, es, M, width, K, a, lda, trans_a, alpha, b + j * es, ldb, 0, c + j * es, ldc, &e, 0, j, slab, 0);
    if (N > whole) {
      gemm_pack(t, es, panels, b + whole * es, ldb, 0, K, N - whole);
      gemm_block(t, es, M, N - whole, K, a, lda, trans_a, alpha, panels, width, 0, c + whole * es, ldc, &e, 0, whole,
                 slab, 0);
    }
    return;
  }
  for (int64_t n0 = 0, n; n0 < N; n0 += n) {
    int64_t k0 = 0;
    n = gemm_block_columns(t, p->nc, N - n0);
    do { /* once for K == 0 too: the epilogue still runs */
      int64_t kc = gemm_min(p->kc, K - k0);
      GemmEpilogue part = e;
      part.accumulate = e.accumulate || k0 > 0;
      if (k0 + kc < K) part.row_bias = part.col_bias = NULL, part.activation = NULL, part.residual = part.relu = 0;
      gemm_pack(t, es, panels, b + (trans_b ? n0 * ldb + k0 : k0 * ldb + n0) * es, ldb, trans_b, kc, n);
      gemm_block(t, es, M, n, kc, a + (trans_a ? k0 * lda : k0) * es, lda, trans_a, alpha, panels, width,
                 kc * width * es, c + n0 * es, ldc, &part, 0, n0, slab, n0 + n == N);
      k0 += kc;
    } while (k0 < K);
  }
}

/* C[M, N] = A @ B for B packed for good: [panel][K][GEMM_PACKED_BYTES], panels being `packed` columns wide. Where tiles are
 * narrower than that, a panel is read as several that lie side by side. Odd columns are a tile
 * like all others: threads may begin at any panel. */
static void gemm_run_packed(const GemmTiles *t, int64_t es, int64_t M, int64_t N, int64_t K, const char *a, int64_t lda,
                            const char *b, char *c, int64_t ldc, const GemmEpilogue *e, char *slab) {
  const int64_t width = 2 * t->lanes, packed = GEMM_PACKED_BYTES / es, blocks = K ? (K + GEMM_KC - 1) / GEMM_KC : 1;
  const int64_t kc_most = (K + blocks - 1) / blocks;
  int64_t nc = packed, panel_bytes = width * es;
  if (width == packed) {
    nc = GEMM_BLOCK_BYTES / ((kc_most ? kc_most : 1) * es) / width * width;
    nc = nc < width ? width : nc;
    panel_bytes = K * GEMM_PACKED_BYTES;
  }
  for (int64_t n0 = 0; n0 < N; n0 += nc) {
    int64_t n = gemm_min(nc, N - n0), k0 = 0;
    do { /* once for K == 0 too: the epilogue still runs */
      const int64_t kc = gemm_min(kc_most, K - k0);
      GemmEpilogue part = *e;
      part.accumulate = k0 > 0;
      if (k0 + kc < K) part.row_bias = part.col_bias = NULL, part.activation = NULL, part.residual = part.relu = 0;
      gemm_block(t, es, M, n, kc, a + k0 * es, lda, 0, 1.0, b + n0 / packed * K * GEMM_PACKED_BYTES + k0 * GEMM_PACKED_BYTES,
                 packed, panel_bytes, c + n0 * es, ldc, &part, 0, n0, slab, 0);
      k0 += kc;
    } while (k0 < K);
  }
}

#endif
