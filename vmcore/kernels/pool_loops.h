/* Pooling along rows, compiled once per instruction set by per_isa.h (so: no include guard). Included by pool.h.
 *
 * An output row first combines the input rows under its windows, whole vectors at a time, into a line with the padding on
 * both sides; then the taps of each window along the line. Lines are made some at a time, across channels, so that
 * nothing waits for a store it has just made. Columns of vectors that lie past the end of a row are computed with, but
 * never kept: outputs are written in ascending order, and the last ones in parts. */
#include "vmcore/kernels/shuffles.h"

typedef float VMFN(pf) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef double VMFN(pd) __attribute__((vector_size(VM_VEC), aligned(8), may_alias));
typedef int32_t VMFN(pmf) __attribute__((vector_size(VM_VEC)));
typedef int64_t VMFN(pmd) __attribute__((vector_size(VM_VEC)));

/* x where it is larger or NaN, else a: the maximum is NaN where one of them is, and the first of two zeros. */
#if VM_ISA == 2
VM_INLINE VMFN(pf) VMFN(larger_pf)(VMFN(pf) a, VMFN(pf) x) {
  const __m512 v = (__m512)x;
  return (VMFN(pf))_mm512_mask_mov_ps(_mm512_max_ps(v, (__m512)a), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
}
VM_INLINE VMFN(pd) VMFN(larger_pd)(VMFN(pd) a, VMFN(pd) x) {
  const __m512d v = (__m512d)x;
  return (VMFN(pd))_mm512_mask_mov_pd(_mm512_max_pd(v, (__m512d)a), _mm512_cmp_pd_mask(v, v, _CMP_UNORD_Q), v);
}
#elif VM_ISA == 1
VM_INLINE VMFN(pf) VMFN(larger_pf)(VMFN(pf) a, VMFN(pf) x) {
  const __m256 v = (__m256)x;
  return (VMFN(pf))_mm256_blendv_ps(_mm256_max_ps(v, (__m256)a), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
VM_INLINE VMFN(pd) VMFN(larger_pd)(VMFN(pd) a, VMFN(pd) x) {
  const __m256d v = (__m256d)x;
  return (VMFN(pd))_mm256_blendv_pd(_mm256_max_pd(v, (__m256d)a), v, _mm256_cmp_pd(v, v, _CMP_UNORD_Q));
}
#else
#define LARGER(V, M) \
  VM_INLINE VMFN(V) VMFN(larger_##V)(VMFN(V) a, VMFN(V) x) { \
    const VMFN(M) later = (x > a) | (x != x); \
    return (VMFN(V))(((VMFN(M))x & later) | ((VMFN(M))a & ~later)); \
  }
LARGER(pf, pmf)
LARGER(pd, pmd)
#undef LARGER
#endif

#define DEFINE_POOL(T, V, M, EVEN, ODD) \
  VM_INLINE VMFN(V) VMFN(combine_##V)(int kind, VMFN(V) a, VMFN(V) x) { \
    if (kind == POOL_KIND_MAX) return VMFN(larger_##V)(a, x); \
    return a + x; \
  } \
  VM_INLINE VMFN(V) VMFN(tap_##V)(int kind, VMFN(V) x) { \
    if (kind == POOL_KIND_L2) return x * x; \
    if (kind != POOL_KIND_L1) return x; \
    VMFN(M) minus = x < (VMFN(V)){}; \
    return (VMFN(V))(((VMFN(M))-x & minus) | ((VMFN(M))x & ~minus)); \
  } \
  VM_INLINE VMFN(V) VMFN(part_##V)(const T *p, int64_t n) { \
    VMFN(V) v = {}; \
    memcpy(&v, p, (size_t)n * sizeof(T)); \
    return v; \
  } \
  VM_INLINE void VMFN(keep_##V)(T *p, const T *end, VMFN(V) v) { \
    if (end - p >= (int64_t)(VM_VEC / sizeof(T))) *(VMFN(V) *)p = v; \
    else memcpy(p, &v, (size_t)(end - p) * sizeof(T)); \
  } \
\
  /* lines[0:columns] = the rows under the windows of one output row, combined. */ \
  VM_INLINE void VMFN(line_##V)(const PoolRows *p, int kind, const T *x, const T *x_end, int64_t od, int64_t oh, \
                                T *line) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    const Window *w = &p->w; \
    const int64_t columns = w->in[2], in_hw = w->in[1] * columns; \
    int64_t d0, d1, h0, h1; \
    pool_clip(w, 0, od, &d0, &d1); \
    pool_clip(w, 1, oh, &h0, &h1); \
    const T *first = x + (od * w->stride[0] - w->pad[0]) * in_hw + (oh * w->stride[1] - w->pad[1]) * columns; \
    const int64_t step_d = w->dilation[0] * in_hw, step_h = w->dilation[1] * columns; \
    const VMFN(V) fill = (VMFN(V)){} + (T)p->fill; \
    const int64_t rows = d1 - d0 == 1 ? h1 - h0 : 0; \
    const T *above = first + d0 * step_d + h0 * step_h; \
    if (rows >= 1 && rows <= 3 && x_end - (above + (rows - 1) * step_h) >= (columns + LANES - 1) / LANES * LANES) { \
      const T *second = rows > 1 ? above + step_h : above, *third = second + (rows > 2 ? step_h : 0); \
      for (int64_t i = 0; i < columns; i += LANES) { \
        VMFN(V) acc = VMFN(tap_##V)(kind, *(const VMFN(V) *)(above + i)); \
        if (rows > 1) acc = VMFN(combine_##V)(kind, acc, VMFN(tap_##V)(kind, *(const VMFN(V) *)(second + i))); \
        if (rows > 2) acc = VMFN(combine_##V)(kind, acc, VMFN(tap_##V)(kind, *(const VMFN(V) *)(third + i))); \
        *(VMFN(V) *)(line + i) = acc; \
      } \
    } else { \
      for (int64_t i = 0; i < columns; i += LANES) { \
        VMFN(V) acc = fill; \
        for (int64_t d = d0; d < d1; ++d) \
          for (int64_t h = h0; h < h1; ++h) { \
            const T *row = first + d * step_d + h * step_h + i; \
            VMFN(V) v = VM_LIKELY(x_end - row >= LANES) ? *(const VMFN(V) *)row : VMFN(part_##V)(row, columns - i); \
            v = VMFN(tap_##V)(kind, v); \
            if (d == d0 && h == h0) acc = v; \
            else acc = VMFN(combine_##V)(kind, acc, v); \
          } \
        *(VMFN(V) *)(line + i) = acc; \
      } \
    } \
    for (int64_t i = columns; i < p->reads - w->pad[2]; i += LANES) *(VMFN(V) *)(line + i) = fill; \
  } \
\
  /* out[0:columns] = the taps of each window along the line, combined. */ \
  VM_INLINE void VMFN(windows_##V)(const PoolRows *p, int kind, const T *line, T divisor, const T *counts, T *out, \
                                   const T *out_end) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    const int64_t columns = p->w.out[2], taps = p->w.kernel[2], step = p->w.dilation[2], stride = p->w.stride[2]; \
    for (int64_t i = 0; i < columns; i += LANES) { \
      VMFN(V) acc; \
      if (stride == 1) { \
        acc = *(const VMFN(V) *)(line + i); \
        if (taps > 1) acc = VMFN(combine_##V)(kind, acc, *(const VMFN(V) *)(line + i + step)); \
        for (int64_t j = 2; j < taps; ++j) { \
          VMFN(V) v = *(const VMFN(V) *)(line + i + j * step); \
          acc = VMFN(combine_##V)(kind, acc, v); \
        } \
      } else if (stride == 2) { \
        const T *at = line + 2 * i; \
        VMFN(V) low = *(const VMFN(V) *)at, high = *(const VMFN(V) *)(at + LANES), v; \
        acc = SHUFFLE(low, high, M, EVEN); \
        int64_t j = 1; \
        if (step == 1 && taps > 1) { \
          v = SHUFFLE(low, high, M, ODD); \
          acc = VMFN(combine_##V)(kind, acc, v); \
          j = 2; \
        } \
        for (; j < taps; ++j) { \
          low = *(const VMFN(V) *)(at + j * step), high = *(const VMFN(V) *)(at + j * step + LANES); \
          v = SHUFFLE(low, high, M, EVEN); \
          acc = VMFN(combine_##V)(kind, acc, v); \
        } \
      } else { \
        T lanes[LANES] = {0}; \
        for (int64_t k = 0; k < planes_min(LANES, columns - i); ++k) { \
          const T *at = line + (i + k) * stride; \
          T a = at[0]; \
          for (int64_t j = 1; j < taps; ++j) { \
            const T v = at[j * step]; \
            a = kind == POOL_KIND_MAX ? POOL_MAX(a, v) : a + v; \
          } \
          lanes[k] = a; \
        } \
        memcpy(&acc, lanes, sizeof acc); \
      } \
      if (counts) acc /= divisor * *(const VMFN(V) *)(counts + i); \
      VMFN(keep_##V)(out + i, out_end, acc); \
    } \
  } \
\
  VM_INLINE void VMFN(rows_of_##V)(const PoolRows *p, int kind, const T *x, const T *x_end, int64_t first, int64_t last, \
                                   T *out, const T *counts, T *lines) { \
    const Window *w = &p->w; \
    const int64_t size = w->in[0] * w->in[1] * w->in[2], columns = w->out[2]; \
    const T *const out_end = out + last * columns; \
    T divisor[POOL_LINES] = {0}; \
    int64_t oh = first % w->out[1], od = first / w->out[1] % w->out[0]; \
    x += first / (w->out[1] * w->out[0]) * size; \
    for (int64_t b = 0; b < p->n_lines; ++b) \
      for (int64_t i = 0; i < w->pad[2]; ++i) lines[b * p->pitch + i] = (T)p->fill; \
    while (first < last) { \
      const int64_t n = planes_min(p->n_lines, last - first); \
      for (int64_t b = 0; b < n; ++b) { \
        VMFN(line_##V)(p, kind, x, x_end, od, oh, lines + b * p->pitch + w->pad[2]); \
        if (counts) \
          divisor[b] = (T)(pool_count(w, 0, od, p->pad_end, p->include_pad) * \
                           pool_count(w, 1, oh, p->pad_end, p->include_pad)); \
        if (++oh == w->out[1]) { \
          oh = 0; \
          if (++od == w->out[0]) od = 0, x += size; \
        } \
      } \
      for (int64_t b = 0; b < n; ++b) \
        VMFN(windows_##V)(p, kind, lines + b * p->pitch, divisor[b], counts, out + (first + b) * columns, out_end); \
      first += n; \
    } \
  } \
\
  /* Output rows [first, last), counted over all channels. counts: of each column's windows along the row, or NULL. */ \
  static void VMFN(pool_rows_##V)(const PoolRows *p, const void *x, const void *x_end, int64_t first, int64_t last, \
                                  void *out, const void *counts, void *lines) { \
    switch (p->kind) { \
      case POOL_KIND_MAX: \
        VMFN(rows_of_##V)(p, POOL_KIND_MAX, (const T *)x, (const T *)x_end, first, last, (T *)out, NULL, (T *)lines); \
        break; \
      case POOL_KIND_SUM: \
        VMFN(rows_of_##V)(p, POOL_KIND_SUM, (const T *)x, (const T *)x_end, first, last, (T *)out, (const T *)counts, \
                          (T *)lines); \
        break; \
      case POOL_KIND_L1: \
        VMFN(rows_of_##V)(p, POOL_KIND_L1, (const T *)x, (const T *)x_end, first, last, (T *)out, NULL, (T *)lines); \
        break; \
      default: \
        VMFN(rows_of_##V)(p, POOL_KIND_L2, (const T *)x, (const T *)x_end, first, last, (T *)out, NULL, (T *)lines); \
    } \
  } \
\
  /* Windows of 2 x 2 side by side without padding, on an input of which `half` columns, a divisor of the lanes, make one \
   * output row: pairs of neighbours first, wherever rows end, then pairs of groups of `half`. n outputs. */ \
  VM_INLINE void VMFN(pairs_of_##V)(int kind, int64_t half, const void *x_, void *out_, int64_t n) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    const T *x = (const T *)x_; \
    T *out = (T *)out_; \
    const T *const out_end = out + n; \
    VMFN(M) upper, lower; \
    for (int64_t k = 0; k < LANES; ++k) upper[k] = k / half * 2 * half + k % half, lower[k] = upper[k] + half; \
    for (; out < out_end; out += LANES, x += 4 * LANES) { \
      VMFN(V) v[4]; \
      if (VM_LIKELY(out_end - out >= LANES)) memcpy(v, x, sizeof v); \
      else memset(v, 0, sizeof v), memcpy(v, x, (size_t)(out_end - out) * 4 * sizeof(T)); \
      VMFN(V) a = SHUFFLE(v[0], v[1], M, EVEN), b = SHUFFLE(v[0], v[1], M, ODD); \
      VMFN(V) c = SHUFFLE(v[2], v[3], M, EVEN), d = SHUFFLE(v[2], v[3], M, ODD); \
      a = VMFN(combine_##V)(kind, a, b), c = VMFN(combine_##V)(kind, c, d); \
      b = VMFN(pick_##V)(a, c, upper), d = VMFN(pick_##V)(a, c, lower); \
      b = VMFN(combine_##V)(kind, b, d); \
      if (kind != POOL_KIND_MAX) b /= (T)4; \
      VMFN(keep_##V)(out, out_end, b); \
    } \
  } \
  static void VMFN(pool_pairs_##V)(int kind, int64_t half, const void *x, void *out, int64_t n) { \
    if (kind == POOL_KIND_MAX) VMFN(pairs_of_##V)(POOL_KIND_MAX, half, x, out, n); \
    else VMFN(pairs_of_##V)(POOL_KIND_SUM, half, x, out, n); \
  }

/* Lanes at[] of the two vectors. */
#define DEFINE_PICK(T, V, M) \
  VM_INLINE VMFN(V) VMFN(pick_##V)(VMFN(V) low, VMFN(V) high, VMFN(M) at) { PICK(T, V, M) }
#if defined(__clang__)
#define PICK(T, V, M) \
  enum { LANES = VM_VEC / sizeof(T) }; \
  VMFN(V) picked; \
  for (int k = 0; k < LANES; ++k) picked[k] = at[k] < LANES ? low[at[k]] : high[at[k] - LANES]; \
  return picked;
#else
#define PICK(T, V, M) return __builtin_shuffle(low, high, at);
#endif
DEFINE_PICK(float, pf, pmf)
DEFINE_PICK(double, pd, pmd)
DEFINE_POOL(float, pf, pmf, EVEN_F, ODD_F)
DEFINE_POOL(double, pd, pmd, EVEN_D, ODD_D)

static const PoolLoops VMFN(pool_loops)[2] = {
    {VM_VEC / 4, VMFN(pool_rows_pf), VMFN(pool_pairs_pf)}, {VM_VEC / 8, VMFN(pool_rows_pd), VMFN(pool_pairs_pd)}};

#undef DEFINE_POOL
#undef DEFINE_PICK
#undef PICK
