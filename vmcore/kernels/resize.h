/* One dimension of a resize: x (outer, n_in, inner) -> y (outer, n_out, inner), y[i] = sum of weight * x[tap]. */
#ifndef VMCORE_KERNELS_RESIZE_H
#define VMCORE_KERNELS_RESIZE_H

#include <math.h>

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/cast.h"
#include "vmcore/kernels/dtypes.h"
#include "vmcore/kernels/simd.h"

enum { RESIZE_NEAREST = 0, RESIZE_LINEAR = 1, RESIZE_CUBIC = 2 };

/* Where position i of the output lies in the input, in float32 like ONNX Runtime, so that nearest neighbours at ties
 * are the same. Source: ONNX Resize, coordinate_transformation_mode. */
static float resize_source(int coord, float i, float scale, float n_in, float n_out) {
  switch (coord) {
    case 1: return i / scale;
    case 2: return n_out > 1 ? i * (n_in - 1) / (n_out - 1) : 0;
    case 3: return n_out > 1 ? (i + 0.5f) / scale - 0.5f : 0;
    case 4: return n_in / 2 * (1 - n_out / (scale * n_in)) + (i + 0.5f) / scale - 0.5f;
    default: return (i + 0.5f) / scale - 0.5f;
  }
}

static inline int64_t resize_clamp(double at, int64_t n) { return at > 0 ? (at < (double)n ? (int64_t)at : n - 1) : 0; }

/* Fills taps[n_out * n_taps] (in [0, n_in)) and weights. n_taps: nearest 1, linear 2, cubic 4. */
static void resize_taps(int mode, int coord, int nearest, double cubic_a, double scale, int64_t n_in, int64_t n_out,
                        int64_t *taps, double *weights) {
  for (int64_t i = 0; i < n_out; ++i) {
    double at = resize_source(coord, (float)i, (float)scale, (float)n_in, (float)n_out), low = floor(at), f = at - low;
    if (mode == RESIZE_NEAREST) {
      double whole = nearest == 0 ? ceil(at - 0.5) : nearest == 1 ? floor(at + 0.5) : nearest == 2 ? low : ceil(at);
      taps[i] = resize_clamp(whole, n_in);
      weights[i] = 1;
    } else if (mode == RESIZE_LINEAR) {
      taps[2 * i] = resize_clamp(low, n_in), taps[2 * i + 1] = resize_clamp(low + 1, n_in);
      weights[2 * i] = 1 - f, weights[2 * i + 1] = f;
    } else {
      const double a = cubic_a, g = 1 - f;
      for (int k = 0; k < 4; ++k) taps[4 * i + k] = resize_clamp(low + k - 1, n_in);
      weights[4 * i] = ((a * (f + 1) - 5 * a) * (f + 1) + 8 * a) * (f + 1) - 4 * a;
      weights[4 * i + 1] = ((a + 2) * f - (a + 3)) * f * f + 1;
      weights[4 * i + 2] = ((a + 2) * g - (a + 3)) * g * g + 1;
      weights[4 * i + 3] = ((a * (g + 1) - 5 * a) * (g + 1) + 8 * a) * (g + 1) - 4 * a;
    }
  }
}

#define RESIZE_PASS(s, T, k)                                                                                      \
  VM_MULTIVERSION static void resize_pass_##s(const void *in, void *to, int64_t outer, int64_t n_in,              \
                                              int64_t n_out, int64_t inner, int n_taps, const int64_t *taps,      \
                                              const double *weights) {                                            \
    for (int64_t o = 0; o < outer; ++o) {                                                                         \
      const T *VM_RESTRICT x = (const T *)in + o * n_in * inner;                                                  \
      T *VM_RESTRICT y = (T *)to + o * n_out * inner;                                                             \
      if (inner == 1 && n_taps == 2) {                                                                            \
        for (int64_t i = 0; i < n_out; ++i)                                                                       \
          y[i] = x[taps[2 * i]] * (T)weights[2 * i] + x[taps[2 * i + 1]] * (T)weights[2 * i + 1];                 \
        continue;                                                                                                 \
      }                                                                                                           \
      for (int64_t i = 0; i < n_out; ++i) {                                                                       \
        const int64_t *tap = taps + i * n_taps;                                                                   \
        const T *a = x + tap[0] * inner, *b = x + tap[n_taps > 1] * inner;                                        \
        const T wa = (T)weights[i * n_taps], wb = (T)weights[i * n_taps + 1];                                     \
        T *row = y + i * inner;                                                                                   \
        for (int64_t j = 0; j < inner; ++j) row[j] = a[j] * wa + b[j] * wb;                                       \
        if (n_taps == 2) continue;                                                                                \
        const T *c = x + tap[2] * inner, *d = x + tap[3] * inner;                                                 \
        const T wc = (T)weights[i * n_taps + 2], wd = (T)weights[i * n_taps + 3];                                 \
        for (int64_t j = 0; j < inner; ++j) row[j] += c[j] * wc + d[j] * wd;                                      \
      }                                                                                                           \
    }                                                                                                             \
  }
KERNEL_FLOATS(RESIZE_PASS)

/* Nearest: any element type by size. */
static void resize_pick(const char *x, char *y, int64_t outer, int64_t n_in, int64_t n_out, int64_t inner, int64_t item,
                        const int64_t *taps) {
  const int64_t run = inner * item;
  int64_t times = n_in && n_out % n_in == 0 ? n_out / n_in : 0; /* each element this often in a row, or 0 */
  for (int64_t i = 0; times && i < n_out; ++i)
    if (taps[i] != i / times) times = 0;
#define PICK(T)                                                                 \
  if (times == 2) {                                                             \
    for (int64_t i = 0; i < outer * n_in; ++i) {                                \
      const T v = ((const T *)x)[i];                                            \
      ((T *)y)[2 * i] = v, ((T *)y)[2 * i + 1] = v;                             \
    }                                                                           \
    return;                                                                     \
  }                                                                             \
  for (int64_t o = 0; o < outer; ++o, x += n_in * run, y += n_out * run)        \
    for (int64_t i = 0; i < n_out; ++i) ((T *)y)[i] = ((const T *)x)[taps[i]];  \
  return;
  switch (run) {
    case 1: PICK(uint8_t)
    case 2: PICK(uint16_t)
    case 4: PICK(uint32_t)
    case 8: PICK(uint64_t)
  }
#undef PICK
  for (int64_t o = 0; o < outer; ++o, x += n_in * run, y += n_out * run)
    for (int64_t i = 0; i < n_out; ++i) memcpy(y + i * run, x + taps[i] * run, (size_t)run);
}

#endif
