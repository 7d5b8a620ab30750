/* Loops of pooling beside those of window_loops.h. Included by pool.pyx alone. NaN anywhere in a window makes its
 * maximum NaN.
 */
#ifndef VMCORE_KERNELS_POOL_H
#define VMCORE_KERNELS_POOL_H

#include <math.h>
#include <stdint.h>

#include "vmcore/kernels/planes.h"
#include "vmcore/kernels/simd.h"

/* max that keeps NaN from either side */
#define POOL_MAX(m, v) (((v) > (m)) | ((v) != (v)) ? (v) : (m))

/* Taps [*first, *last) of an axis that lie inside the input, for output position o; and how many lie inside the padded
 * input, whose end is the input plus `pad_end`. */
static inline void pool_clip(const Window *w, int a, int64_t o, int64_t *first, int64_t *last) {
  int64_t start = o * w->stride[a] - w->pad[a], d = w->dilation[a], k = w->kernel[a], n = w->in[a];
  if (VM_LIKELY(start >= 0 && start + (k - 1) * d < n)) {
    *first = 0, *last = k;
    return;
  }
  *first = start >= 0 ? 0 : planes_min((-start + d - 1) / d, k);
  *last = start >= n ? *first : planes_max(planes_min((n - start + d - 1) / d, k), *first);
}
/* Where the outer loop over the taps [first, last) of three axes ends: at its beginning where there are none. An input
 * without elements may have axes of any size, so that the other loops could run for years with nothing to do. */
static inline int64_t pool_outer_end(const int64_t *first, const int64_t *last) {
  return last[1] > first[1] && last[2] > first[2] ? last[0] : first[0];
}
static inline int64_t pool_padded_taps(const Window *w, int a, int64_t o, int64_t pad_end) {
  int64_t start = o * w->stride[a] - w->pad[a], d = w->dilation[a], n = w->in[a] + pad_end;
  return start >= n ? 0 : planes_min((n - start + d - 1) / d, w->kernel[a]);
}

/* One output at a time, for powers other than 1 and 2, and where padded rows would be out of proportion. Taps outside the
 * input are skipped, so a window may be of any size. */
#define POOL_DEFINE_WINDOWS(T, NAME, ABS, POW) \
  static void NAME(const Window *w, int kind, double p, const T *x, T *out) { \
    int64_t hw = w->in[1] * w->in[2], lo[3], hi[3]; \
    for (int64_t od = 0; od < w->out[0]; ++od) { \
      pool_clip(w, 0, od, &lo[0], &hi[0]); \
      for (int64_t oh = 0; oh < w->out[1]; ++oh) { \
        pool_clip(w, 1, oh, &lo[1], &hi[1]); \
        for (int64_t ow = 0; ow < w->out[2]; ++ow) { \
          pool_clip(w, 2, ow, &lo[2], &hi[2]); \
          T acc = kind == POOL_KIND_MAX ? (T)-INFINITY : 0; \
          const int64_t end = pool_outer_end(lo, hi); \
          for (int64_t i = lo[0]; i < end; ++i) \
            for (int64_t j = lo[1]; j < hi[1]; ++j) { \
              const T *row = x + (od * w->stride[0] - w->pad[0] + i * w->dilation[0]) * hw + \
                             (oh * w->stride[1] - w->pad[1] + j * w->dilation[1]) * w->in[2] + ow * w->stride[2] - \
                             w->pad[2]; \
              for (int64_t k = lo[2]; k < hi[2]; ++k) { \
                T v = row[k * w->dilation[2]]; \
                if (kind == POOL_KIND_MAX) acc = POOL_MAX(acc, v); \
                else if (kind == POOL_KIND_SUM) acc += v; \
                else if (kind == POOL_KIND_L1) acc += ABS(v); \
                else if (kind == POOL_KIND_L2) acc += v * v; \
                else acc += POW(ABS(v), (T)p); \
              } \
            } \
          *out++ = acc; \
        } \
      } \
    } \
  }
POOL_DEFINE_WINDOWS(float, pool_windows_f32, fabsf, powf)
POOL_DEFINE_WINDOWS(double, pool_windows_f64, fabs, pow)

/* Maximum of each window and the flat index of its first occurrence inside the volume, plus `base`; -1 for a window
 * without an input element. column_major counts indices with the first spatial axis fastest. */
#define POOL_DEFINE_ARGMAX(T, NAME, LOWEST) \
  static void NAME(const Window *w, int column_major, int64_t base, const T *x, T *out, int64_t *index) { \
    int64_t hw = w->in[1] * w->in[2], lo[3], hi[3]; \
    for (int64_t od = 0; od < w->out[0]; ++od) { \
      pool_clip(w, 0, od, &lo[0], &hi[0]); \
      for (int64_t oh = 0; oh < w->out[1]; ++oh) { \
        pool_clip(w, 1, oh, &lo[1], &hi[1]); \
        for (int64_t ow = 0; ow < w->out[2]; ++ow) { \
          pool_clip(w, 2, ow, &lo[2], &hi[2]); \
          T best = LOWEST; \
          int64_t best_d = -1, best_h = 0, best_w = 0; \
          const int64_t end = pool_outer_end(lo, hi); \
          for (int64_t i = lo[0]; i < end; ++i) \
            for (int64_t j = lo[1]; j < hi[1]; ++j) \
              for (int64_t k = lo[2]; k < hi[2]; ++k) { \
                int64_t d = od * w->stride[0] - w->pad[0] + i * w->dilation[0]; \
                int64_t h = oh * w->stride[1] - w->pad[1] + j * w->dilation[1]; \
                int64_t c = ow * w->stride[2] - w->pad[2] + k * w->dilation[2]; \
                T v = x[d * hw + h * w->in[2] + c]; \
                if (best_d < 0 || v > best || (v != v && best == best)) best = v, best_d = d, best_h = h, best_w = c; \
              } \
          *out++ = best; \
          if (best_d < 0) *index++ = -1; \
          else if (column_major) *index++ = base + best_d + w->in[0] * (best_h + w->in[1] * best_w); \
          else *index++ = base + best_d * hw + best_h * w->in[2] + best_w; \
        } \
      } \
    } \
  }
POOL_DEFINE_ARGMAX(float, pool_argmax_f32, -INFINITY)
POOL_DEFINE_ARGMAX(double, pool_argmax_f64, -INFINITY)
POOL_DEFINE_ARGMAX(int8_t, pool_argmax_i8, INT8_MIN)
POOL_DEFINE_ARGMAX(uint8_t, pool_argmax_u8, 0)

/* Elements that a window averages over along one axis. include_pad: padding counts, as far as it is declared. */
static inline int64_t pool_count(const Window *w, int a, int64_t o, const int64_t *pad_end, int include_pad) {
  int64_t first, last;
  if (include_pad) return pool_padded_taps(w, a, o, pad_end[a]);
  pool_clip(w, a, o, &first, &last);
  return last - first;
}

/* ---- along rows -------------------------------------------------------------------------------------------------- */

enum { POOL_LINES = 16, POOL_LINES_BYTES = 16 * 1024 };

typedef struct PoolRows {
  Window w;
  int64_t pad_end[3];
  int kind, include_pad;
  double fill;            /* what padding counts as */
  int64_t reads, pitch;   /* elements of a line that windows read, and its size with what vectors overrun */
  int64_t n_lines;        /* that are made at a time */
} PoolRows;

typedef struct PoolLoops {
  int64_t lanes;
  void (*rows)(const PoolRows *p, const void *x, const void *x_end, int64_t first, int64_t last, void *out,
               const void *counts, void *lines);
  void (*pairs)(int kind, int64_t half, const void *x, void *out, int64_t n);
} PoolLoops;

#define VM_ISA_BODY "vmcore/kernels/pool_loops.h"
#include "vmcore/kernels/per_isa.h"

static const PoolLoops *const pool_loops_by_isa[3] = VM_ISA_TABLE(pool_loops);

/* Sizes of the lines; 0 where they would be out of proportion with the input and the output (hostile padding, or rows of
 * an input without elements), and where windows are mostly padding, which lines would read tap by tap. */
static int pool_plan_rows(PoolRows *p, int64_t lanes, int64_t es) {
  const Window *w = &p->w;
  if (w->in[0] * w->in[1] * w->in[2] == 0 || w->kernel[2] / 2 > w->in[2]) return 0;
  const int64_t out = (w->out[2] + lanes - 1) / lanes * lanes, span = (w->kernel[2] - 1) * w->dilation[2];
  p->reads = (w->out[2] - 1) * w->stride[2] + span + 1;
  p->pitch = planes_max(p->reads, w->in[2] + w->pad[2]) + 2 * lanes;
  p->pitch = planes_max(p->pitch, planes_min(w->stride[2], 2) * out + span + 2 * lanes);
  if (p->pitch > 4 * (w->in[2] + out) + 4096) return 0;
  p->n_lines = planes_max(1, planes_min(POOL_LINES, POOL_LINES_BYTES / (p->pitch * es)));
  return 1;
}

/* Half of the columns where the windows are those of the loop over pairs, else 0. */
static int64_t pool_pairs_half(const PoolRows *p, int64_t lanes) {
  const Window *w = &p->w;
  const int64_t half = w->in[2] / 2;
  int plain = w->kernel[0] == 1 && w->stride[0] == 1 && w->in[0] == w->out[0] && w->pad[0] == 0 && p->pad_end[0] == 0;
  for (int a = 1; a < 3; ++a)
    plain &= w->kernel[a] == 2 && w->stride[a] == 2 && w->dilation[a] == 1 && w->pad[a] == 0 && p->pad_end[a] == 0 &&
             w->in[a] == 2 * w->out[a];
  return plain && half <= lanes && lanes % half == 0 && p->kind <= POOL_KIND_SUM ? half : 0;
}

/* out[i] /= elements that window i averages over; per_column: the counts of the last axis, the same for every row. */
#define POOL_DEFINE_DIVIDE(T, NAME) \
  VM_MULTIVERSION static void NAME(const Window *w, const int64_t *pad_end, int include_pad, const T *per_column, \
                                   T *out) { \
    for (int64_t od = 0; od < w->out[0]; ++od) \
      for (int64_t oh = 0; oh < w->out[1]; ++oh, out += w->out[2]) { \
        T n = (T)(pool_count(w, 0, od, pad_end, include_pad) * pool_count(w, 1, oh, pad_end, include_pad)); \
        for (int64_t ow = 0; ow < w->out[2]; ++ow) out[ow] /= n * per_column[ow]; \
      } \
  }
POOL_DEFINE_DIVIDE(float, pool_divide_f32)
POOL_DEFINE_DIVIDE(double, pool_divide_f64)

#define POOL_DEFINE_ROOT(T, NAME, POW, SQRT) \
  static void NAME(T *out, int64_t n, int kind, double p) { \
    if (kind == POOL_KIND_L2) \
      for (int64_t i = 0; i < n; ++i) out[i] = SQRT(out[i]); \
    else if (kind == POOL_KIND_LP) \
      for (int64_t i = 0; i < n; ++i) out[i] = POW(out[i], (T)(1.0 / p)); \
  }
POOL_DEFINE_ROOT(float, pool_root_f32, powf, sqrtf)
POOL_DEFINE_ROOT(double, pool_root_f64, pow, sqrt)

/* Mean and maximum of n > 0 elements. Sums run in 16 lanes, so that the loop vectorises without reordering flags. */
#define POOL_DEFINE_GLOBAL(T, MEAN, MAX) \
  VM_MULTIVERSION static T MEAN(const T *x, int64_t n) { \
    T lane[16] = {0}, sum = 0; \
    int64_t i = 0; \
    for (; i + 16 <= n; i += 16) \
      for (int j = 0; j < 16; ++j) lane[j] += x[i + j]; \
    for (; i < n; ++i) sum += x[i]; \
    for (int j = 0; j < 16; ++j) sum += lane[j]; \
    return sum / (T)n; \
  } \
  VM_MULTIVERSION static T MAX(const T *x, int64_t n) { \
    T lane[16], best; \
    int64_t i = 0; \
    for (int j = 0; j < 16; ++j) lane[j] = x[0]; \
    for (; i + 16 <= n; i += 16) \
      for (int j = 0; j < 16; ++j) lane[j] = POOL_MAX(lane[j], x[i + j]); \
    best = lane[0]; \
    for (int j = 1; j < 16; ++j) best = POOL_MAX(best, lane[j]); \
    for (; i < n; ++i) best = POOL_MAX(best, x[i]); \
    return best; \
  }
POOL_DEFINE_GLOBAL(float, pool_mean_f32, pool_all_max_f32)
POOL_DEFINE_GLOBAL(double, pool_mean_f64, pool_all_max_f64)

#endif
