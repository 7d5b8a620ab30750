/* Reduction loops on float32 and float64, compiled once per instruction set by per_isa.h.
 *
 * row: *acc = *acc (+) reduction of x[0..n).  column: acc[j] = acc[j] (+) x[j] for j < n.
 * Rows run on 128-byte lane arrays, so no reassociation flag is needed; sums of float32 are collected per block in
 * double. */
#include "vmcore/kernels/vmath.h"

#define LANES(T) (128 / (int)sizeof(T))
#define ROW_BLOCK 4096

#define FLOAT_REDUCTION(op, s, T, A, init, map, combine)                             \
  static void VMFN(row_##op##_##s)(const void *in, int64_t n, void *acc) {           \
    const T *x = (const T *)in;                                                      \
    A total = *(T *)acc;                                                             \
    for (int64_t from = 0; from < n; from += ROW_BLOCK) {                            \
      int64_t m = n - from < ROW_BLOCK ? n - from : ROW_BLOCK, i = 0;                \
      const T *block = x + from;                                                     \
      A part = init;                                                                 \
      if (m >= LANES(T)) {                                                           \
        T lanes[LANES(T)];                                                           \
        for (int j = 0; j < LANES(T); ++j) lanes[j] = init;                          \
        for (; i + LANES(T) <= m; i += LANES(T))                                     \
          for (int j = 0; j < LANES(T); ++j) {                                       \
            T v = block[i + j], a = lanes[j];                                        \
            v = map;                                                                 \
            lanes[j] = combine;                                                      \
          }                                                                          \
        for (int j = 0; j < LANES(T); ++j) {                                         \
          A v = lanes[j], a = part;                                                  \
          part = combine;                                                            \
        }                                                                            \
      }                                                                              \
      for (; i < m; ++i) {                                                           \
        A v = block[i], a = part;                                                    \
        v = map;                                                                     \
        part = combine;                                                              \
      }                                                                              \
      A v = part, a = total;                                                         \
      total = combine;                                                               \
    }                                                                                \
    *(T *)acc = (T)total;                                                            \
  }                                                                                  \
  static void VMFN(column_##op##_##s)(const void *in, int64_t n, void *acc) {        \
    const T *VM_RESTRICT x = (const T *)in;                                          \
    T *VM_RESTRICT y = (T *)acc;                                                     \
    for (int64_t j = 0; j < n; ++j) {                                                \
      T v = x[j], a = y[j];                                                          \
      v = map;                                                                       \
      y[j] = combine;                                                                \
    }                                                                                \
  }

#define FLOAT_REDUCTIONS(s, T)                                                                     \
  FLOAT_REDUCTION(sum, s, T, double, 0, v, a + v)                                                  \
  FLOAT_REDUCTION(abs, s, T, double, 0, v < 0 ? -v : v, a + v)                                     \
  FLOAT_REDUCTION(square, s, T, double, 0, v *v, a + v)                                            \
  FLOAT_REDUCTION(max, s, T, T, -__builtin_inff(), v, (v > a) | (v != v) ? v : a)                  \
  FLOAT_REDUCTION(min, s, T, T, __builtin_inff(), v, (v < a) | (v != v) ? v : a)                   \
  FLOAT_REDUCTION(prod, s, T, T, 1, v, a *v)
FLOAT_REDUCTIONS(f32, float)
FLOAT_REDUCTIONS(f64, double)

/* sum[j] += exp(x[i] - shift) over a run that goes to one output (row) or to n outputs (column); an infinite shift
 * counts as 0, so that exp(inf) = inf and exp(-inf) = 0 come out. */
static void VMFN(exp_sum_f32)(const void *in, int64_t n, const void *max, double *sum, int column) {
  const float *x = (const float *)in, *m = (const float *)max;
  const vf largest = VF_SET(__builtin_inff());
  vf shift = VMFN(vload_part)(m, 1, 0.0f)[0] + VF_SET(0.0f);
  shift = VF_SELECT(VF_ABS(shift) == largest, VF_SET(0.0f), shift);
  for (int64_t i = 0; i < n; i += VL) {
    const int64_t lanes = n - i < VL ? n - i : VL;
    if (column) {
      shift = VMFN(vload_upto)(m + i, lanes);
      shift = VF_SELECT(VF_ABS(shift) == largest, VF_SET(0.0f), shift);
    }
    vf e = VMFN(vexp)(VMFN(vload_upto)(x + i, lanes) - shift);
    if (column) {
      for (int j = 0; j < lanes; ++j) sum[i + j] += e[j];
    } else if (lanes == VL) {
      *sum += VMFN(vsum)(e);
    } else {
      for (int j = 0; j < lanes; ++j) *sum += e[j];
    }
  }
}

static const ReduceLoops VMFN(reduce_loops) = {
#define ROW(op) {VMFN(row_##op##_f32), VMFN(column_##op##_f32)},
    {REDUCTIONS(ROW)},
#undef ROW
#define ROW(op) {VMFN(row_##op##_f64), VMFN(column_##op##_f64)},
    {REDUCTIONS(ROW)},
#undef ROW
    VMFN(exp_sum_f32),
};
#undef FLOAT_REDUCTION
#undef FLOAT_REDUCTIONS
