/* Softmax and normalization loops on float32, compiled once per instruction set by per_isa.h. */
#include "vmcore/kernels/vmath.h"

/* y = softmax(x), or its logarithm; x, y: (rows, n), y may be x. */
static void VMFN(softmax_rows_f32)(const void *in, void *to, int64_t rows, int64_t n, int log) {
  const float *x = (const float *)in;
  float *y = (float *)to;
  const int64_t whole = n / VL * VL, rest = n - whole;
  for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
    vf top = VF_SET(-__builtin_inff()), other = top, total = VF_SET(0.0f);
    int64_t i = 0;
    for (; i + 2 * VL <= whole; i += 2 * VL) {
      top = VMFN(vmax)(VF_LOAD(x + i), top);
      other = VMFN(vmax)(VF_LOAD(x + i + VL), other);
    }
    if (i < whole) top = VMFN(vmax)(VF_LOAD(x + i), top);
    if (rest) other = VMFN(vmax)(VMFN(vload_part)(x + whole, rest, -__builtin_inff()), other);
    const float max = VMFN(vhighest)(VMFN(vmax)(top, other));
    for (i = 0; i < whole; i += VL) {
      vf e = VMFN(vexp)(VF_LOAD(x + i) - max);
      if (!log) VF_STORE(y + i, e);
      total += e;
    }
    if (rest) {
      vf e = VMFN(vexp)(VMFN(vload_part)(x + whole, rest, -__builtin_inff()) - max);
      if (!log) VMFN(vstore_part)(y + whole, rest, e);
      /* the unused lanes hold exp(-inf) = 0, or NaN when every element is -inf, as it must be */
      total += e;
    }
    const float sum = VMFN(vsum)(total);
    if (log) {
      const float shift = VMFN(vlog)(VF_SET(sum))[0];
      for (i = 0; i < whole; i += VL) VF_STORE(y + i, VF_LOAD(x + i) - max - shift);
      if (rest) VMFN(vstore_part)(y + whole, rest, VMFN(vload_part)(x + whole, rest, 0.0f) - max - shift);
    } else {
      const float scale = 1.0f / sum;
      for (i = 0; i < whole; i += VL) VF_STORE(y + i, VF_LOAD(y + i) * scale);
      if (rest) VMFN(vstore_part)(y + whole, rest, VMFN(vload_part)(y + whole, rest, 0.0f) * scale);
    }
  }
}

/* y = softmax(x) along the first dimension; x, y: (n, inner), a vector of columns at a time; y may be x. */
static void VMFN(softmax_columns_f32)(const void *in, void *to, int64_t n, int64_t inner, int log) {
  for (int64_t c = 0; c < inner; c += VL) {
    const float *x = (const float *)in + c;
    float *y = (float *)to + c;
    const int64_t m = inner - c < VL ? inner - c : VL;
    vf max = VF_SET(-__builtin_inff()), total = VF_SET(0.0f);
    for (int64_t i = 0; i < n; ++i) max = VMFN(vmax)(VMFN(vload_upto)(x + i * inner, m), max);
    for (int64_t i = 0; i < n; ++i) {
      vf e = VMFN(vexp)(VMFN(vload_upto)(x + i * inner, m) - max);
      if (!log) VMFN(vstore_upto)(y + i * inner, m, e);
      total += e;
    }
    if (log) {
      vf shift = VMFN(vlog)(total);
      for (int64_t i = 0; i < n; ++i)
        VMFN(vstore_upto)(y + i * inner, m, VMFN(vload_upto)(x + i * inner, m) - max - shift);
    } else {
      vf scale = 1.0f / total;
      for (int64_t i = 0; i < n; ++i) VMFN(vstore_upto)(y + i * inner, m, VMFN(vload_upto)(y + i * inner, m) * scale);
    }
  }
}

/* *mean and *variance (about the mean) of x[0..n); without `centered` about 0: the mean square. */
static void VMFN(moments_f32)(const void *in, int64_t n, int centered, double *mean, double *variance) {
  const float *x = (const float *)in;
  const int64_t whole = n / VL * VL;
  double sum = 0, squares = 0;
  for (int64_t from = 0; centered && from < whole; from += 512 * VL) {
    vf a = VF_SET(0.0f), b = a;
    int64_t i = from, end = whole - from < 512 * VL ? whole : from + 512 * VL;
    for (; i + 2 * VL <= end; i += 2 * VL) a += VF_LOAD(x + i), b += VF_LOAD(x + i + VL);
    if (i < end) a += VF_LOAD(x + i);
    sum += VMFN(vsum)(a + b);
  }
  for (int64_t i = whole; centered && i < n; ++i) sum += x[i];
  const float center = centered ? (float)(sum / (double)n) : 0.0f;
  for (int64_t from = 0; from < whole; from += 512 * VL) {
    vf a = VF_SET(0.0f), b = a;
    int64_t i = from, end = whole - from < 512 * VL ? whole : from + 512 * VL;
    for (; i + 2 * VL <= end; i += 2 * VL) {
      vf u = VF_LOAD(x + i) - center, v = VF_LOAD(x + i + VL) - center;
      a += u * u, b += v * v;
    }
    if (i < end) {
      vf u = VF_LOAD(x + i) - center;
      a += u * u;
    }
    squares += VMFN(vsum)(a + b);
  }
  for (int64_t i = whole; i < n; ++i) squares += (double)((x[i] - center) * (x[i] - center));
  *mean = center;
  *variance = squares / (double)n;
}

/* y[i] = (x[i] - mean) * rstd * scale[i] + bias[i]; bias may be NULL. */
static void VMFN(apply_rows_f32)(const void *in, void *to, int64_t n, double mean, double rstd, const void *scale,
                                 const void *bias) {
  const float *x = (const float *)in, *s = (const float *)scale, *b = (const float *)bias;
  float *y = (float *)to;
  const float m = (float)mean, r = (float)rstd;
  if (b) {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - m) * r * s[i] + b[i];
  } else {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - m) * r * s[i];
  }
}

/* y[i] = x[i] * a + b */
static void VMFN(apply_scalar_f32)(const void *in, void *to, int64_t n, double a, double b) {
  const float *x = (const float *)in, factor = (float)a, term = (float)b;
  float *y = (float *)to;
  _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor + term;
}

/* One sample of LRN; x, y: (channels, inner). y = x / (bias + alpha / size * sum of squares over the window)^beta */
static void VMFN(lrn_f32)(const void *in, void *to, int64_t channels, int64_t inner, int64_t size, double alpha,
                          double beta, double bias) {
  const int64_t before = (size - 1) / 2, after = size - 1 - before;
  const float factor = (float)(alpha / (double)size), offset = (float)bias, exponent = (float)-beta;
  for (int64_t c = 0; c < channels; ++c) {
    int64_t low = c < before ? 0 : c - before, high = channels - 1 - c < after ? channels - 1 : c + after;
    for (int64_t i = 0; i < inner; i += VL) {
      const float *x = (const float *)in + i;
      float *y = (float *)to + c * inner + i;
      const int64_t m = inner - i < VL ? inner - i : VL;
      vf sum = VF_SET(0.0f), v, d;
      for (int64_t k = low; k <= high; ++k) {
        v = VMFN(vload_upto)(x + k * inner, m);
        sum += v * v;
      }
      v = VMFN(vload_upto)(x + c * inner, m);
      d = v * VMFN(vexp)(VMFN(vlog)(sum * factor + offset) * exponent);
      VMFN(vstore_upto)(y, m, d);
    }
  }
}

static const NormLoops VMFN(norm_loops) = {
    VMFN(softmax_rows_f32), VMFN(softmax_columns_f32), VMFN(moments_f32),
    VMFN(apply_rows_f32),   VMFN(apply_scalar_f32),    VMFN(lrn_f32),
};
