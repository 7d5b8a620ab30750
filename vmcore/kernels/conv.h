/* Loops of convolution beside those of window_loops.h. Included by conv.pyx alone. Layout NC(D)(H)W; the doors check
 * sizes.
 */
#ifndef VMCORE_KERNELS_CONV_H
#define VMCORE_KERNELS_CONV_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/planes.h"
#include "vmcore/kernels/simd.h"

/* ---- no scratch memory: windows whose padded copy would be out of proportion ------------------------------------- */

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

#define CONV_DEFINE_FINISH(T, s) \
  VM_MULTIVERSION static void conv_add_##s(T *out, const T *more, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] += more[i]; \
  } \
  VM_MULTIVERSION static void conv_relu_##s(T *out, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] = out[i] < 0 ? 0 : out[i]; \
  }
CONV_DEFINE_FINISH(float, f32)
CONV_DEFINE_FINISH(double, f64)

#endif
