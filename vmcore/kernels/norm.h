/* Loops of softmax and the normalizations for the doors in norm.pyx: float32 per instruction set, float64 once. */
#ifndef VMCORE_KERNELS_NORM_H
#define VMCORE_KERNELS_NORM_H

#include <math.h>

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/cast.h"
#include "vmcore/kernels/dtypes.h"
#include "vmcore/kernels/simd.h"

typedef struct NormLoops {
  void (*softmax_rows)(const void *x, void *y, int64_t rows, int64_t n, int log);
  void (*softmax_columns)(const void *x, void *y, int64_t n, int64_t inner, int log);
  void (*moments)(const void *x, int64_t n, int centered, double *mean, double *variance);
  void (*apply_rows)(const void *x, void *y, int64_t n, double mean, double rstd, const void *scale, const void *bias);
  void (*apply_scalar)(const void *x, void *y, int64_t n, double a, double b);
  void (*lrn)(const void *x, void *y, int64_t channels, int64_t inner, int64_t size, double alpha, double beta,
              double bias);
} NormLoops;

#define VM_ISA_BODY "vmcore/kernels/norm_loops.h"
#include "vmcore/kernels/per_isa.h"

static void softmax_columns_f64(const void *in, void *to, int64_t n, int64_t inner, int log_too) {
  for (int64_t c = 0; c < inner; ++c) {
    const double *x = (const double *)in + c;
    double *y = (double *)to + c, max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; ++i) max = x[i * inner] > max ? x[i * inner] : max;
    for (int64_t i = 0; i < n; ++i) {
      double e = exp(x[i * inner] - max);
      if (!log_too) y[i * inner] = e;
      sum += e;
    }
    const double shift = max + log(sum);
    for (int64_t i = 0; i < n; ++i) y[i * inner] = log_too ? x[i * inner] - shift : y[i * inner] / sum;
  }
}
static void softmax_rows_f64(const void *x, void *y, int64_t rows, int64_t n, int log_too) {
  for (int64_t r = 0; r < rows; ++r) softmax_columns_f64((const double *)x + r * n, (double *)y + r * n, n, 1, log_too);
}
static void moments_f64(const void *in, int64_t n, int centered, double *mean, double *variance) {
  const double *x = (const double *)in;
  double sum = 0, squares = 0;
  for (int64_t i = 0; centered && i < n; ++i) sum += x[i];
  *mean = centered ? sum / (double)n : 0;
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - *mean) * (x[i] - *mean);
  *variance = squares / (double)n;
}
static void apply_rows_f64(const void *in, void *to, int64_t n, double mean, double rstd, const void *scale,
                           const void *bias) {
  const double *x = (const double *)in, *s = (const double *)scale, *b = (const double *)bias;
  double *y = (double *)to;
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * s[i] + (b ? b[i] : 0);
}
static void apply_scalar_f64(const void *in, void *to, int64_t n, double a, double b) {
  const double *x = (const double *)in;
  double *y = (double *)to;
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * a + b;
}
static void lrn_f64(const void *in, void *to, int64_t channels, int64_t inner, int64_t size, double alpha, double beta,
                    double bias) {
  const double *x = (const double *)in;
  double *y = (double *)to;
  const int64_t before = (size - 1) / 2, after = size - 1 - before;
  for (int64_t c = 0; c < channels; ++c) {
    int64_t low = c < before ? 0 : c - before, high = channels - 1 - c < after ? channels - 1 : c + after;
    for (int64_t i = 0; i < inner; ++i) {
      double sum = 0;
      for (int64_t k = low; k <= high; ++k) sum += x[k * inner + i] * x[k * inner + i];
      y[c * inner + i] = x[c * inner + i] / pow(bias + alpha / (double)size * sum, beta);
    }
  }
}

static const NormLoops norm_loops_f64 = {softmax_rows_f64, softmax_columns_f64, moments_f64,
                                         apply_rows_f64,   apply_scalar_f64,    lrn_f64};
static NormLoops norm_loops_f32;

static void norm_init(int isa) {
  static const NormLoops *const versions[] = VM_ISA_TABLE(&norm_loops);
  norm_loops_f32 = *versions[isa];
  cast_init(isa);
}

/* y = x / (sum |x|^p)^(1/p) along the middle dimension, p 1 or 2; 0 where the sum is 0. (outer, n, inner) */
#define LP_NORM(s, T, k)                                                                                     \
  static void lp_norm_##s(const void *in, void *to, int64_t outer, int64_t n, int64_t inner, int p) {        \
    for (int64_t o = 0; o < outer * inner; ++o) {                                                            \
      const T *x = (const T *)in + o / inner * n * inner + o % inner;                                        \
      T *y = (T *)to + o / inner * n * inner + o % inner;                                                    \
      double sum = 0;                                                                                        \
      for (int64_t i = 0; i < n; ++i) {                                                                      \
        double v = x[i * inner];                                                                             \
        sum += p == 1 ? fabs(v) : v * v;                                                                     \
      }                                                                                                      \
      double norm = p == 1 ? sum : sqrt(sum);                                                                \
      for (int64_t i = 0; i < n; ++i) y[i * inner] = norm == 0 ? 0 : (T)(x[i * inner] / norm);               \
    }                                                                                                        \
  }
KERNEL_FLOATS(LP_NORM)

/* y = 1 at the first greatest element along the middle dimension, else 0. (outer, n, inner) */
#define HARDMAX(s, T, k)                                                                                     \
  static void hardmax_##s(const void *in, void *to, int64_t outer, int64_t n, int64_t inner) {               \
    for (int64_t o = 0; o < outer * inner; ++o) {                                                            \
      const T *x = (const T *)in + o / inner * n * inner + o % inner;                                        \
      T *y = (T *)to + o / inner * n * inner + o % inner;                                                    \
      int64_t best = 0;                                                                                      \
      for (int64_t i = 1; i < n; ++i)                                                                        \
        if (x[i * inner] > x[best * inner]) best = i;                                                        \
      for (int64_t i = 0; i < n; ++i) y[i * inner] = i == best;                                              \
    }                                                                                                        \
  }
KERNEL_FLOATS(HARDMAX)

#endif
