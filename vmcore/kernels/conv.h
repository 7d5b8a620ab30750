/* Loops of convolution: im2col into packed panels, direct sums for depthwise, scatter for the transposed one.
 * Included by conv.pyx alone. Layout NC(D)(H)W; sizes are checked by the doors.
 */
#ifndef VMCORE_KERNELS_CONV_H
#define VMCORE_KERNELS_CONV_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/planes.h"
#include "vmcore/kernels/simd.h"

/* ---- im2col ---------------------------------------------------------------------------------------------------- */

#define CONV_MAX_PANEL 32

/* Packs columns [q0, q0 + n) of a band (position q = row * out columns + column) and rows [k0, k1) of the im2col matrix
 * (row k = channel * taps + tap) into panels of `width` columns.
 *
 * Runs of columns inside one output row are moved in whole vectors of 64 bytes: what overruns a run is overwritten by
 * the next one, and past the last run by the next row of the panel. So runs and rows are written in ascending order,
 * the panels have 64 bytes of slack, and the planes have PLANES_SLACK elements of it.
 */
#define CONV_DEFINE_PACK(T, NAME) \
  VM_MULTIVERSION static void NAME(const Planes *p, const int64_t *taps, const T *planes, int64_t out_columns, \
                                   int64_t q0, int64_t n, int64_t k0, int64_t k1, int64_t width, T *panels) { \
    enum { STEP = 64 / sizeof(T) }; \
    for (int64_t j = 0; j < n; j += width) { \
      int64_t left = planes_min(width, n - j), n_runs = 0, at[CONV_MAX_PANEL], len[CONV_MAX_PANEL]; \
      for (int64_t done = 0, q = q0 + j; done < left; ++n_runs) { \
        int64_t row = q / out_columns, column = q % out_columns; \
        len[n_runs] = planes_min(left - done, out_columns - column); \
        at[n_runs] = row * p->len[2] + column; \
        q += len[n_runs]; \
        done += len[n_runs]; \
      } \
      int64_t tap = k0 % p->taps; \
      const T *channel = planes + k0 / p->taps * p->channel_step; \
      if (n_runs == 1) { \
        for (int64_t k = k0; k < k1; ++k) { \
          const T *src = channel + taps[tap] + at[0]; \
          for (int64_t i = 0; i < width; i += STEP) memcpy(panels + i, src + i, 64); \
          panels += width; \
          if (++tap == p->taps) tap = 0, channel += p->channel_step; \
        } \
      } else { \
        for (int64_t k = k0; k < k1; ++k) { \
          const T *src = channel + taps[tap]; \
          T *o = panels; \
          for (int64_t r = 0; r < n_runs; ++r) { \
            for (int64_t i = 0; i < len[r]; i += STEP) memcpy(o + i, src + at[r] + i, 64); \
            o += len[r]; \
          } \
          panels += width; \
          if (++tap == p->taps) tap = 0, channel += p->channel_step; \
        } \
      } \
    } \
  }
CONV_DEFINE_PACK(float, conv_pack_f32)
CONV_DEFINE_PACK(double, conv_pack_f64)

/* ---- direct: few input channels per output -------------------------------------------------------------------------- */

/* One output channel over `rows` rows of a band: out = bias + sum over channels and taps of weight * stream, then relu.
 * Four vectors at a time; at the end of a row they overlap. Rows shorter than a vector are done as one stream over all
 * padded rows into `line` (whose gaps are dropped), so that narrow maps fill vectors too. */
#define CONV_RELU(v, I) ((__typeof__(v))((I)(v) & ~(I)((v) < (__typeof__(v)){0})))
#define CONV_DEFINE_DIRECT(T, I, NAME, LANES) \
  typedef I NAME##_mask __attribute__((vector_size(LANES * sizeof(T)))); \
  typedef T NAME##_vec __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias)); \
  VM_MULTIVERSION static void NAME(const Planes *p, const int64_t *taps, const T *planes, int64_t n_channels, \
                                   const T *weights, T bias, int relu, int64_t rows, int64_t columns, T *out, \
                                   T *line) { \
    int64_t n_taps = p->taps, pitch = p->len[2], narrow = columns < LANES; \
    int64_t n = narrow ? ((rows - 1) * pitch + columns + 4 * LANES - 1) / (4 * LANES) * (4 * LANES) : columns; \
    NAME##_vec zero = {0}; \
    for (int64_t r = 0; r < (narrow ? 1 : rows); ++r) { \
      const T *src = planes + r * pitch; \
      T *dst = narrow ? line : out + r * columns; \
      for (int64_t i = 0; i < n; i += 4 * LANES) { \
        int64_t i1 = planes_min(i + LANES, n - LANES), i2 = planes_min(i + 2 * LANES, n - LANES); \
        int64_t i0 = planes_min(i, n - LANES), i3 = planes_min(i + 3 * LANES, n - LANES); \
        NAME##_vec a0 = zero + bias, a1 = a0, a2 = a0, a3 = a0; \
        for (int64_t c = 0; c < n_channels; ++c) { \
          const T *channel = src + c * p->channel_step, *k = weights + c * n_taps; \
          if (i0 + LANES >= n) { /* one vector is left */ \
            for (int64_t t = 0; t < n_taps; ++t) a0 += k[t] * *(const NAME##_vec *)(channel + taps[t] + i0); \
          } else { \
            for (int64_t t = 0; t < n_taps; ++t) { \
              const T *s = channel + taps[t]; \
              T x = k[t]; \
              a0 += x * *(const NAME##_vec *)(s + i0), a1 += x * *(const NAME##_vec *)(s + i1); \
              a2 += x * *(const NAME##_vec *)(s + i2), a3 += x * *(const NAME##_vec *)(s + i3); \
            } \
          } \
        } \
        if (relu) { \
          a0 = CONV_RELU(a0, NAME##_mask), a1 = CONV_RELU(a1, NAME##_mask); \
          a2 = CONV_RELU(a2, NAME##_mask), a3 = CONV_RELU(a3, NAME##_mask); \
        } \
        *(NAME##_vec *)(dst + i0) = a0; \
        if (i0 + LANES < n) { \
          *(NAME##_vec *)(dst + i1) = a1, *(NAME##_vec *)(dst + i2) = a2, *(NAME##_vec *)(dst + i3) = a3; \
        } \
      } \
    } \
    if (narrow) { \
      /* a whole vector overruns into rows that follow, as long as it ends inside the last one */ \
      int64_t whole = rows + 1 - (LANES + columns - 1) / columns, r = 0; \
      for (; r < whole; ++r, out += columns, line += pitch) *(NAME##_vec *)out = *(const NAME##_vec *)line; \
      for (; r < rows; ++r, out += columns, line += pitch) \
        for (int64_t i = 0; i < columns; ++i) out[i] = line[i]; \
    } \
  }
#define CONV_LANES_F32 16
#define CONV_LANES_F64 8
CONV_DEFINE_DIRECT(float, int32_t, conv_direct_f32, CONV_LANES_F32)
CONV_DEFINE_DIRECT(double, int64_t, conv_direct_f64, CONV_LANES_F64)

/* The same for one channel and a 3 x 3 window without gaps (stride 1, dilation 1): each input row is loaded once and
 * used for the three output rows that it touches. columns >= lanes. */
#define CONV_DEFINE_3X3(T, NAME, LANES) \
  typedef T NAME##_vec __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias)); \
  VM_MULTIVERSION static void NAME(const T *plane, int64_t pitch, const T *weights, T bias, int relu, int64_t rows, \
                                   int64_t columns, T *out) { \
    T w[9]; /* a copy that no store can change */ \
    memcpy(w, weights, sizeof w); \
    for (int64_t i = 0; i < columns;) { \
      int wide = i + 2 * LANES <= columns; \
      if (!wide && i + LANES > columns) i = columns - LANES; \
      const T *src = plane + i; \
      T *o = out + i; \
      NAME##_vec zero = {0}, b = zero + bias, above0 = b, here0 = b, above1 = b, here1 = b; \
      for (int64_t r = 0; r < rows + 2; ++r, src += pitch) { \
        NAME##_vec l0 = *(const NAME##_vec *)src, m0 = *(const NAME##_vec *)(src + 1); \
        NAME##_vec r0 = *(const NAME##_vec *)(src + 2); \
        NAME##_vec done = above0 + w[6] * l0 + w[7] * m0 + w[8] * r0; \
        above0 = here0 + w[3] * l0 + w[4] * m0 + w[5] * r0; \
        here0 = b + w[0] * l0 + w[1] * m0 + w[2] * r0; \
        if (r >= 2) *(NAME##_vec *)o = done; \
        if (wide) { \
          NAME##_vec l1 = *(const NAME##_vec *)(src + LANES), m1 = *(const NAME##_vec *)(src + LANES + 1); \
          NAME##_vec r1 = *(const NAME##_vec *)(src + LANES + 2); \
          NAME##_vec done1 = above1 + w[6] * l1 + w[7] * m1 + w[8] * r1; \
          above1 = here1 + w[3] * l1 + w[4] * m1 + w[5] * r1; \
          here1 = b + w[0] * l1 + w[1] * m1 + w[2] * r1; \
          if (r >= 2) *(NAME##_vec *)(o + LANES) = done1; \
        } \
        if (r >= 2) o += columns; \
      } \
      i += wide ? 2 * LANES : LANES; \
    } \
    if (relu) \
      for (int64_t i = 0; i < rows * columns; ++i) out[i] = out[i] < 0 ? 0 : out[i]; \
  }
CONV_DEFINE_3X3(float, conv_3x3_f32, CONV_LANES_F32)
CONV_DEFINE_3X3(double, conv_3x3_f64, CONV_LANES_F64)

/* ---- no scratch memory: windows whose padded copy would be out of proportion ---------------------------------------- */

#define CONV_DEFINE_SLOW(T, NAME) \
  static void NAME(const Window *w, const T *x, int64_t n_channels, const T *weights, T bias, int relu, T *out) { \
    int64_t in_hw = w->in[1] * w->in[2], in_size = w->in[0] * in_hw; \
    for (int64_t od = 0; od < w->out[0]; ++od) \
      for (int64_t oh = 0; oh < w->out[1]; ++oh) \
        for (int64_t ow = 0; ow < w->out[2]; ++ow) { \
          T sum = bias; \
          const T *k = weights; \
          for (int64_t c = 0; c < n_channels; ++c) \
            for (int64_t kd = 0; kd < w->kernel[0]; ++kd) \
              for (int64_t kh = 0; kh < w->kernel[1]; ++kh) \
                for (int64_t kw = 0; kw < w->kernel[2]; ++kw, ++k) { \
                  int64_t d = od * w->stride[0] + kd * w->dilation[0] - w->pad[0]; \
                  int64_t h = oh * w->stride[1] + kh * w->dilation[1] - w->pad[1]; \
                  int64_t v = ow * w->stride[2] + kw * w->dilation[2] - w->pad[2]; \
                  if (d >= 0 && d < w->in[0] && h >= 0 && h < w->in[1] && v >= 0 && v < w->in[2]) \
                    sum += *k * x[c * in_size + d * in_hw + h * w->in[2] + v]; \
                } \
          *out++ = relu && sum < 0 ? 0 : sum; \
        } \
  }
CONV_DEFINE_SLOW(float, conv_slow_f32)
CONV_DEFINE_SLOW(double, conv_slow_f64)

/* ---- transposed ------------------------------------------------------------------------------------------------- */

/* Adds columns[tap][position] (positions [q0, q0 + n) of the input volume, rows `ldc` apart) to one output channel. The
 * window maps output (here w->in) to input (w->out) as in the forward convolution. */
#define CONV_DEFINE_SCATTER(T, NAME) \
  VM_MULTIVERSION static void NAME(const Window *w, const T *columns, int64_t ldc, int64_t q0, int64_t n, T *out) { \
    int64_t hw = w->in[1] * w->in[2], stride = w->stride[2]; \
    for (int64_t kd = 0; kd < w->kernel[0]; ++kd) \
      for (int64_t kh = 0; kh < w->kernel[1]; ++kh) \
        for (int64_t kw = 0; kw < w->kernel[2]; ++kw, columns += ldc) { \
          int64_t start = kw * w->dilation[2] - w->pad[2]; \
          int64_t lo = start >= 0 ? 0 : (-start + stride - 1) / stride; \
          int64_t hi = start >= w->in[2] ? 0 : (w->in[2] - start + stride - 1) / stride; \
          for (int64_t q = q0; q < q0 + n;) { \
            int64_t ow = q % w->out[2], rest = q / w->out[2], run = planes_min(q0 + n - q, w->out[2] - ow); \
            int64_t d = rest / w->out[1] * w->stride[0] + kd * w->dilation[0] - w->pad[0]; \
            int64_t h = rest % w->out[1] * w->stride[1] + kh * w->dilation[1] - w->pad[1]; \
            if (d >= 0 && d < w->in[0] && h >= 0 && h < w->in[1]) { \
              const T *src = columns + (q - q0) - ow; \
              T *o = out + d * hw + h * w->in[2] + start; \
              int64_t first = planes_max(lo, ow), last = planes_min(hi, ow + run); \
              if (stride == 1) { \
                for (int64_t i = first; i < last; ++i) o[i] += src[i]; \
              } else { \
                for (int64_t i = first; i < last; ++i) o[stride * i] += src[i]; \
              } \
            } \
            q += run; \
          } \
        } \
  }
CONV_DEFINE_SCATTER(float, conv_scatter_f32)
CONV_DEFINE_SCATTER(double, conv_scatter_f64)

VM_MULTIVERSION static void conv_fill_f32(float *out, int64_t n, float v) {
  for (int64_t i = 0; i < n; ++i) out[i] = v;
}
VM_MULTIVERSION static void conv_fill_f64(double *out, int64_t n, double v) {
  for (int64_t i = 0; i < n; ++i) out[i] = v;
}

#endif
