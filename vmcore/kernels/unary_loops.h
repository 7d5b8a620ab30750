/* Hot unary loops on float32 and float64, compiled once per instruction set by per_isa.h. */
#include "vmcore/kernels/half.h"
#include "vmcore/kernels/vmath.h"

/* One loop over whole vectors and one masked vector for the rest; `v` is the vector, `p` the parameters. */
#define VECTOR_LOOP(op, expr)                                                     \
  static void VMFN(op##_f32)(const void *x, void *y, int64_t n, const double *p) { \
    const float *in = (const float *)x;                                           \
    float *out = (float *)y;                                                      \
    (void)p;                                                                      \
    int64_t i = 0;                                                                \
    for (; i + VL <= n; i += VL) {                                                \
      vf v = VF_LOAD(in + i);                                                     \
      VF_STORE(out + i, (expr));                                                  \
    }                                                                             \
    if (i < n) {                                                                  \
      vf v = VMFN(vload_part)(in + i, n - i, 0.0f);                               \
      VMFN(vstore_part)(out + i, n - i, (expr));                                  \
    }                                                                             \
  }

VM_INLINE vf VMFN(vgelu)(vf x) { return 0.5f * x * (1.0f + VMFN(verf)(x * 0.70710678f)); }
VM_INLINE vf VMFN(vgelu_tanh)(vf x) { /* x sigmoid(2u): exact 0 far left, where 1 + tanh(u) would cancel */
  return x / (1.0f + VMFN(vexp)(x * (x * x * -0.0713548163f - 1.5957691216f)));
}
VM_INLINE vf VMFN(vsoftplus)(vf x) {
  return VMFN(vmax)(VF_SET(0.0f), x) + VMFN(vlog1p)(VMFN(vexp)(-VF_ABS(x)));
}
VM_INLINE vf VMFN(vmish)(vf x) { /* tanh(log(1 + e^x)) = m / (m + 2), m = e^x (e^x + 2) */
  vf e = VMFN(vexp)(VMFN(vmin)(VF_SET(20.0f), x)), m = e * (e + 2.0f);
  return x * (m / (m + 2.0f));
}

VECTOR_LOOP(exp, VMFN(vexp)(v))
VECTOR_LOOP(log, VMFN(vlog)(v))
VECTOR_LOOP(sigmoid, VMFN(vsigmoid)(v))
VECTOR_LOOP(tanh, VMFN(vtanh)(v))
VECTOR_LOOP(erf, VMFN(verf)(v))
VECTOR_LOOP(gelu, VMFN(vgelu)(v))
VECTOR_LOOP(gelu_tanh, VMFN(vgelu_tanh)(v))
VECTOR_LOOP(silu, v / (1.0f + VMFN(vexp)(-v)))
VECTOR_LOOP(softplus, VMFN(vsoftplus)(v))
VECTOR_LOOP(mish, VMFN(vmish)(v))
VECTOR_LOOP(elu, VF_SELECT(v < 0.0f, (float)p[0] * VMFN(vexpm1)(v), v))
VECTOR_LOOP(selu, (float)p[1] * VF_SELECT(v < 0.0f, (float)p[0] * VMFN(vexpm1)(v), v))
VECTOR_LOOP(celu, VF_SELECT(v < 0.0f, (float)p[0] * VMFN(vexpm1)(v / (float)p[0]), v))

/* Loops that the compiler vectorises; `v` is the element, a and b the parameters in the element type T. */
#define SIMPLE_LOOP(op, suffix, T, expr)                                                       \
  static void VMFN(op##_##suffix)(const void *x, void *y, int64_t n, const double *p) {        \
    const T *in = (const T *)x;                                                                \
    T *out = (T *)y;                                                                           \
    const T a = (T)p[0], b = (T)p[1];                                                          \
    (void)a, (void)b;                                                                          \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) { /* y is x or apart from it */       \
      T v = in[i];                                                                             \
      out[i] = (expr);                                                                         \
    }                                                                                          \
  }

#define SIMPLE_LOOPS(suffix, T, F)                                                             \
  SIMPLE_LOOP(relu, suffix, T, v < 0 ? 0 : v)                                                  \
  SIMPLE_LOOP(abs, suffix, T, F(__builtin_fabs)(v))                                            \
  SIMPLE_LOOP(neg, suffix, T, -v)                                                              \
  SIMPLE_LOOP(square, suffix, T, v *v)                                                         \
  SIMPLE_LOOP(sqrt, suffix, T, F(__builtin_sqrt)(v))                                           \
  SIMPLE_LOOP(rsqrt, suffix, T, 1 / F(__builtin_sqrt)(v))                                      \
  SIMPLE_LOOP(reciprocal, suffix, T, 1 / v)                                                    \
  SIMPLE_LOOP(floor, suffix, T, F(__builtin_floor)(v))                                         \
  SIMPLE_LOOP(ceil, suffix, T, F(__builtin_ceil)(v))                                           \
  SIMPLE_LOOP(round, suffix, T, F(__builtin_rint)(v))                                          \
  SIMPLE_LOOP(sign, suffix, T, v > 0 ? (T)1 : v < 0 ? (T)-1 : v + 0)                           \
  SIMPLE_LOOP(softsign, suffix, T, v / (1 + F(__builtin_fabs)(v)))                             \
  SIMPLE_LOOP(hard_swish, suffix, T, v *(v < -3 ? 0 : v > 3 ? 1 : v / 6 + (T)0.5))             \
  SIMPLE_LOOP(leaky_relu, suffix, T, v < 0 ? v * a : v)                                        \
  SIMPLE_LOOP(hard_sigmoid, suffix, T, v *a + b < 0 ? 0 : v * a + b > 1 ? 1 : v * a + b)       \
  SIMPLE_LOOP(thresholded_relu, suffix, T, v <= a ? 0 : v)                                     \
  SIMPLE_LOOP(clip, suffix, T, v < a ? a : v > b ? b : v)                                      \
  SIMPLE_LOOP(shrink, suffix, T, v < -b ? v + a : v > b ? v - a : v == v ? 0 : v)

#define WITH_F(name) name##f
#define AS_IS(name) name
SIMPLE_LOOPS(f32, float, WITH_F)
SIMPLE_LOOPS(f64, double, AS_IS)
#undef WITH_F
#undef AS_IS

/* Order: unary_ops in unary.h. */
static const HotLoops VMFN(hot_loops) = {
#define ROW(op) VMFN(op##_f32),
    {HOT_UNARY(ROW)},
#undef ROW
#define ROW(op) VMFN(op##_f64),
    {SIMPLE_UNARY(ROW)},
#undef ROW
    VMFN(half_to_float_n), VMFN(float_to_half_n), VMFN(bfloat_to_float_n), VMFN(float_to_bfloat_n),
};
#undef VECTOR_LOOP
#undef SIMPLE_LOOP
#undef SIMPLE_LOOPS
