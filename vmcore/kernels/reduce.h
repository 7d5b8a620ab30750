/* Loops of reductions, argmax/argmin and cumsum for the doors in reduce.pyx. */
#ifndef VMCORE_KERNELS_REDUCE_H
#define VMCORE_KERNELS_REDUCE_H

#include <math.h>

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/cast.h"
#include "vmcore/kernels/dtypes.h"
#include "vmcore/kernels/simd.h"

/* The associative part of each kernel; mean, l2, log_sum ... finish it in reduce_finish. */
#define REDUCTIONS(X) X(sum) X(abs) X(square) X(max) X(min) X(prod)
enum {
#define ROW(op) R_##op,
  REDUCTIONS(ROW) R_COUNT
#undef ROW
};
enum { FINISH_NONE, FINISH_MEAN, FINISH_SQRT, FINISH_LOG };

typedef void (*ReduceLoop)(const void *x, int64_t n, void *acc);
typedef struct ReducePair {
  ReduceLoop row, column;
} ReducePair;
typedef void (*ExpSum)(const void *x, int64_t n, const void *max, double *sum, int column);
typedef struct ReduceLoops {
  ReducePair f32[R_COUNT], f64[R_COUNT];
  ExpSum exp_sum;
} ReduceLoops;

#define VM_ISA_BODY "vmcore/kernels/reduce_loops.h"
#include "vmcore/kernels/per_isa.h"

/* U: unsigned type of T's width; sums and products wrap. */
#define INT_REDUCTION(op, s, T, map, combine)                                   \
  static void row_##op##_##s(const void *in, int64_t n, void *acc) {            \
    const T *x = (const T *)in;                                                 \
    T a = *(T *)acc;                                                            \
    for (int64_t i = 0; i < n; ++i) {                                           \
      T v = x[i];                                                               \
      v = (T)(map);                                                             \
      a = (T)(combine);                                                         \
    }                                                                           \
    *(T *)acc = a;                                                              \
  }                                                                             \
  static void column_##op##_##s(const void *in, int64_t n, void *acc) {         \
    const T *VM_RESTRICT x = (const T *)in;                                     \
    T *VM_RESTRICT y = (T *)acc;                                                \
    for (int64_t j = 0; j < n; ++j) {                                           \
      T v = x[j], a = y[j];                                                     \
      v = (T)(map);                                                             \
      y[j] = (T)(combine);                                                      \
    }                                                                           \
  }
#define INT_REDUCTIONS(s, T, k)                                                 \
  INT_REDUCTION(sum, s, T, v, (uint64_t)a + (uint64_t)v)                        \
  INT_REDUCTION(abs, s, T, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, (uint64_t)a + (uint64_t)v) \
  INT_REDUCTION(square, s, T, (uint64_t)v *(uint64_t)v, (uint64_t)a + (uint64_t)v) \
  INT_REDUCTION(max, s, T, v, v > a ? v : a)                                    \
  INT_REDUCTION(min, s, T, v, v < a ? v : a)                                    \
  INT_REDUCTION(prod, s, T, v, (uint64_t)a *(uint64_t)v)
KERNEL_INTS(INT_REDUCTIONS)

static ReducePair reduce_pairs[K_COUNT][R_COUNT]; /* filled by reduce_init; row == NULL: no such dtype */

static ExpSum exp_sum_f32;

static void reduce_init(int isa) {
  static const ReduceLoops *const versions[] = VM_ISA_TABLE(&reduce_loops);
  memcpy(reduce_pairs[K_F32], versions[isa]->f32, sizeof reduce_pairs[0]);
  memcpy(reduce_pairs[K_F64], versions[isa]->f64, sizeof reduce_pairs[0]);
  exp_sum_f32 = versions[isa]->exp_sum;
#define ROW(s, T, k)                                                                                  \
  {                                                                                                   \
    const ReducePair row[R_COUNT] = {{row_sum_##s, column_sum_##s}, {row_abs_##s, column_abs_##s},    \
                                     {row_square_##s, column_square_##s}, {row_max_##s, column_max_##s}, \
                                     {row_min_##s, column_min_##s}, {row_prod_##s, column_prod_##s}}; \
    memcpy(reduce_pairs[k], row, sizeof row);                                                         \
  }
  KERNEL_INTS(ROW)
#undef ROW
  reduce_pairs[K_BOOL][R_max] = reduce_pairs[K_U8][R_max];
  reduce_pairs[K_BOOL][R_min] = reduce_pairs[K_U8][R_min];
  cast_init(isa);
}

/* The neutral element of reduction `op`, n times. */
static void reduce_start(int op, int dtype, void *out, int64_t n) {
#define FILL(T, lowest, highest)                                                                   \
  {                                                                                                \
    T *y = (T *)out, v = (T)(op == R_max ? (lowest) : op == R_min ? (highest) : op == R_prod ? 1 : 0); \
    for (int64_t i = 0; i < n; ++i) y[i] = v;                                                      \
    return;                                                                                        \
  }
  switch (dtype) {
    case K_F32: FILL(float, -INFINITY, INFINITY)
    case K_F64: FILL(double, -INFINITY, INFINITY)
    case K_I8: FILL(int8_t, INT8_MIN, INT8_MAX)
    case K_I16: FILL(int16_t, INT16_MIN, INT16_MAX)
    case K_I32: FILL(int32_t, INT32_MIN, INT32_MAX)
    case K_I64: FILL(int64_t, INT64_MIN, INT64_MAX)
    case K_BOOL: FILL(uint8_t, 0, 1)
    case K_U8: FILL(uint8_t, 0, UINT8_MAX)
    case K_U16: FILL(uint16_t, 0, UINT16_MAX)
    case K_U32: FILL(uint32_t, 0, UINT32_MAX)
    default: FILL(uint64_t, 0, UINT64_MAX)
  }
#undef FILL
}

/* Integer means truncate; the mean of nothing is NaN, or 0 for integers. */
static void reduce_finish(int finish, int dtype, void *out, int64_t n, int64_t count) {
  if (finish == FINISH_NONE) return;
#define EACH(T, expr)                                 \
  {                                                   \
    T *y = (T *)out;                                  \
    for (int64_t i = 0; i < n; ++i) {                 \
      T v = y[i];                                     \
      y[i] = (T)(expr);                               \
    }                                                 \
    return;                                           \
  }
#define FINISH_INT(s, T, k)                                                          \
  case k:                                                                            \
    if (finish == FINISH_MEAN && (T)-1 < 0) EACH(T, count ? (int64_t)v / count : 0)  \
    if (finish == FINISH_MEAN) EACH(T, count ? (uint64_t)v / (uint64_t)count : 0)    \
    EACH(T, sqrt((double)v))
#define FINISH_FLOAT(s, T, k)                                                        \
  case k:                                                                            \
    if (finish == FINISH_MEAN) EACH(T, v / (T)count)                                 \
    if (finish == FINISH_SQRT) EACH(T, sqrt(v))                                      \
    EACH(T, log(v))
  switch (dtype) {
    KERNEL_FLOATS(FINISH_FLOAT)
    KERNEL_INTS(FINISH_INT)
  }
#undef EACH
#undef FINISH_INT
#undef FINISH_FLOAT
}

/* ---- log(sum(exp(x))) -------------------------------------------------------------------------------------------- */

static void exp_sum_f64(const void *in, int64_t n, const void *max, double *sum, int column) {
  const double *x = (const double *)in, *m = (const double *)max;
  for (int64_t i = 0; i < n; ++i) {
    double shift = m[column ? i : 0];
    sum[column ? i : 0] += exp(x[i] - (isinf(shift) ? 0.0 : shift));
  }
}

#define EXP_FINISH(s, T, k)                                                                                     \
  static void exp_finish_##s(void *max, const double *sum, int64_t n) {                                         \
    T *m = (T *)max;                                                                                            \
    for (int64_t i = 0; i < n; ++i) m[i] = (T)(log(sum[i]) + (isinf(m[i]) ? 0.0 : (double)m[i]));               \
  }
KERNEL_FLOATS(EXP_FINISH)

/* ---- argmax, argmin ---------------------------------------------------------------------------------------------- */

/* x: (outer, n, inner), out: (outer, inner). The first extreme, or the last with `last`; NaN is extreme, as numpy's. */
#define ARG_BLOCK 64
#define ARG_EXTREME(s, T, k)                                                                                   \
  static void arg_extreme_##s(const void *in, int64_t outer, int64_t n, int64_t inner, int smallest, int last, \
                              int64_t *out) {                                                                  \
    for (int64_t o = 0; inner == 1 && o < outer; ++o) { /* a fast pass for the value, then one for its place */\
      const T *x = (const T *)in + o * n;                                                                      \
      T best = x[0];                                                                                           \
      reduce_pairs[k][smallest ? R_min : R_max].row(x, n, &best);                                              \
      int64_t at = last ? n - 1 : 0;                                                                           \
      while (last ? at > 0 : at < n - 1) { /* bounded, should another thread write x meanwhile */             \
        if (x[at] == best || (best != best && x[at] != x[at])) break;                                          \
        at += last ? -1 : 1;                                                                                   \
      }                                                                                                        \
      out[o] = at;                                                                                             \
    }                                                                                                          \
    for (int64_t o = 0; inner != 1 && o < outer; ++o)                                                          \
      for (int64_t from = 0; from < inner; from += ARG_BLOCK) {                                                \
        int64_t m = inner - from < ARG_BLOCK ? inner - from : ARG_BLOCK;                                       \
        const T *x = (const T *)in + o * n * inner + from;                                                     \
        int64_t *at = out + o * inner + from;                                                                  \
        T best[ARG_BLOCK];                                                                                     \
        for (int64_t j = 0; j < m; ++j) best[j] = x[j], at[j] = 0;                                             \
        for (int64_t i = 1; i < n; ++i)                                                                        \
          for (int64_t j = 0; j < m; ++j) {                                                                    \
            T v = x[i * inner + j], b = best[j];                                                               \
            int take = smallest ? v < b : v > b;                                                               \
            take |= (v != v) & ((b == b) | last);                                                              \
            take |= last & (v == b);                                                                           \
            if (take) best[j] = v, at[j] = i;                                                                  \
          }                                                                                                    \
      }                                                                                                        \
  }
KERNEL_INTS(ARG_EXTREME)
KERNEL_FLOATS(ARG_EXTREME)

/* Any byte but 0 is true. Where no element is the wanted one all are equal. */
static void arg_extreme_bool(const void *in, int64_t outer, int64_t n, int64_t inner, int smallest, int last,
                             int64_t *out) {
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t j = 0; j < inner; ++j) {
      const uint8_t *x = (const uint8_t *)in + o * n * inner + j;
      int64_t first = last ? n - 1 : 0, step = last ? -1 : 1, at = first;
      while (at >= 0 && at < n && (x[at * inner] != 0) == (smallest != 0)) at += step;
      out[o * inner + j] = at >= 0 && at < n ? at : first;
    }
}

typedef void (*ArgExtremeLoop)(const void *x, int64_t outer, int64_t n, int64_t inner, int smallest, int last,
                               int64_t *out);
static const ArgExtremeLoop arg_extreme_loops[K_COUNT] = {
#define ROW(s, T, k) [k] = arg_extreme_##s,
    KERNEL_INTS(ROW) KERNEL_FLOATS(ROW)[K_BOOL] = arg_extreme_bool,
#undef ROW
};

/* ---- cumsum ------------------------------------------------------------------------------------------------------ */

#define CUMSUM(s, T, k)                                                                                         \
  static void cumsum_##s(const void *in, int64_t outer, int64_t n, int64_t inner, int exclusive, int reverse,   \
                         void *to) {                                                                            \
    for (int64_t o = 0; o < outer; ++o) {                                                                       \
      const T *x = (const T *)in + o * n * inner;                                                               \
      T *y = (T *)to + o * n * inner;                                                                           \
      int64_t step = reverse ? -inner : inner, at = reverse ? (n - 1) * inner : 0;                              \
      for (int64_t i = 0; i < n; ++i, at += step)                                                               \
        for (int64_t j = 0; j < inner; ++j) {                                                                   \
          T before = i ? y[at - step + j] : 0;                                                                  \
          y[at + j] = (T)(before + (exclusive ? (i ? x[at - step + j] : 0) : x[at + j]));                       \
        }                                                                                                       \
    }                                                                                                           \
  }
KERNEL_UNSIGNED(CUMSUM)
KERNEL_FLOATS(CUMSUM)

typedef void (*CumsumLoop)(const void *x, int64_t outer, int64_t n, int64_t inner, int exclusive, int reverse, void *y);
static const CumsumLoop cumsum_loops[K_COUNT] = {
    [K_I8] = cumsum_u8, [K_I16] = cumsum_u16, [K_I32] = cumsum_u32, [K_I64] = cumsum_u64, [K_U8] = cumsum_u8,
    [K_U16] = cumsum_u16, [K_U32] = cumsum_u32, [K_U64] = cumsum_u64, [K_F32] = cumsum_f32, [K_F64] = cumsum_f64,
};

#endif
