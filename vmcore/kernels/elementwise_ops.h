/* What elementwise kernels are made of: the loops' types, the operators' lists, and the tables that fused.h reads too. */
#ifndef VMCORE_KERNELS_ELEMENTWISE_OPS_H
#define VMCORE_KERNELS_ELEMENTWISE_OPS_H

#include "vmcore/kernels/dtypes.h"

/* p: the kernel's parameters (two at most) as doubles. y == x, or apart from it. */
typedef void (*UnaryLoop)(const void *x, void *y, int64_t n, const double *p);

/* X(name), with the number of parameters in UNARY_PARAMS below. SIMPLE: float32 and float64 loops per instruction set;
 * VECTOR: float32 per instruction set, float64 from libm; LIBM: both from libm. */
#define SIMPLE_UNARY(X)                                                                                            \
  X(relu) X(abs) X(neg) X(square) X(sqrt) X(rsqrt) X(reciprocal) X(floor) X(ceil) X(round) X(sign) X(softsign)     \
  X(hard_swish) X(leaky_relu) X(hard_sigmoid) X(thresholded_relu) X(clip) X(shrink)
#define VECTOR_UNARY(X)                                                                                            \
  X(exp) X(log) X(sigmoid) X(tanh) X(erf) X(gelu) X(gelu_tanh) X(silu) X(softplus) X(mish) X(elu) X(selu) X(celu)
#define LIBM_UNARY(X)                                                                                              \
  X(sin) X(cos) X(tan) X(asin) X(acos) X(atan) X(sinh) X(cosh) X(asinh) X(acosh) X(atanh)
#define HOT_UNARY(X) SIMPLE_UNARY(X) VECTOR_UNARY(X)
#define ALL_UNARY(X) HOT_UNARY(X) LIBM_UNARY(X)

enum {
#define ROW(op) U_##op,
  ALL_UNARY(ROW)
#undef ROW
  U_bitwise_not, U_logical_not, U_COUNT
};

typedef struct UnaryOp {
  const char *name;
  int32_t n_params;
  UnaryLoop loop[K_COUNT]; /* NULL: the op has no such dtype; the hot rows are filled by unary_init */
} UnaryOp;

/* o[i] = f(a[i * sa], b[i * sb]); strides are 1 or 0, not both 0 unless n is 1. o is a or b, or apart from them. */
typedef void (*BinaryLoop)(const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb);
typedef void (*WhereLoop)(const uint8_t *c, const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb);

#define HOT_BINARY(X)                                                                                     \
  X(add) X(sub) X(mul) X(div) X(maximum) X(minimum) X(prelu) X(equal) X(not_equal) X(less) X(less_equal)  \
  X(greater) X(greater_equal)
#define OTHER_BINARY(X)                                                                                   \
  X(floor_div) X(mod) X(fmod) X(pow) X(atan2) X(bitwise_and) X(bitwise_or) X(bitwise_xor) X(left_shift)   \
  X(right_shift) X(logical_and) X(logical_or) X(logical_xor)

enum {
#define ROW(op) B_##op,
  HOT_BINARY(ROW) OTHER_BINARY(ROW) B_COUNT
#undef ROW
};

enum { OUT_SAME = 0, OUT_BOOL = 1 };

typedef struct BinaryOp {
  const char *name;
  int8_t out, refuses_zero; /* refuses_zero: integer divisors are scanned first */
  BinaryLoop loop[K_COUNT]; /* NULL: the op has no such dtype; filled by binary_init */
} BinaryOp;

/* y and x share no byte. */
typedef void (*CastLoop)(const void *x, void *y, int64_t n);

#endif
