/* Conversion loops between all element types. Float to integer truncates; what does not fit saturates to 32 and 64 bits
 * and wraps to 8 and 16 bits; NaN becomes 0. Integer to integer wraps. To bool: is not zero. float16 and bfloat16 are
 * rounded once, to nearest even. */
#ifndef VMCORE_KERNELS_CAST_H
#define VMCORE_KERNELS_CAST_H

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/elementwise_ops.h"
#include "vmcore/kernels/simd.h"

#define VM_ISA_BODY "vmcore/kernels/half.h"
#include "vmcore/kernels/per_isa.h"

#define CAST_TYPES(X)                                                                                        \
  X(i8, int8_t) X(i16, int16_t) X(i32, int32_t) \
  X(i64, int64_t) X(u8, uint8_t) X(u16, uint16_t)                          \
  X(u32, uint32_t) X(u64, uint64_t) X(f32, float) X(f64, double)

#define CAST_LOOP(from, T, to, U, expr)                                        \
  static void cast_##from##_##to(const void *x, void *y, int64_t n) {          \
    const T *VM_RESTRICT in = (const T *)x;                                    \
    U *VM_RESTRICT out = (U *)y;                                               \
    for (int64_t i = 0; i < n; ++i) {                                          \
      T v = in[i];                                                             \
      out[i] = (U)(expr);                                                      \
    }                                                                          \
  }
#define PLAIN(from, T, to, U) CAST_LOOP(from, T, to, U, v)
#define TO_BOOL(from, T) CAST_LOOP(from, T, bool, uint8_t, v != 0)
CAST_TYPES(TO_BOOL)
TO_BOOL(bool, uint8_t)
#define TO_FLOATS(from, T) CAST_LOOP(from, T, f32, float, v) CAST_LOOP(from, T, f64, double, v)
CAST_TYPES(TO_FLOATS)
/* A bool may be any byte: all but 0 are 1. */
CAST_LOOP(bool, uint8_t, f32, float, v != 0)
CAST_LOOP(bool, uint8_t, f64, double, v != 0)
CAST_LOOP(bool, uint8_t, u8, uint8_t, v != 0)
CAST_LOOP(bool, uint8_t, u16, uint16_t, v != 0)
CAST_LOOP(bool, uint8_t, u32, uint32_t, v != 0)
CAST_LOOP(bool, uint8_t, u64, uint64_t, v != 0)
/* Integer to integer depends on the target's width only. */
#define INT_TO_INTS(from, T, k)                                                                             \
  PLAIN(from, T, u8, uint8_t) PLAIN(from, T, u16, uint16_t) PLAIN(from, T, u32, uint32_t) PLAIN(from, T, u64, uint64_t)
KERNEL_INTS(INT_TO_INTS)
/* `top` is the first float above the range; both bounds are exact in float and double. */
#define FLOAT_TO_INT(from, T, to, U, low, top, high)                                                        \
  CAST_LOOP(from, T, to, U, v >= (T)(top) ? (high) : v >= (T)(low) ? (U)v : v == v ? (U)(low) : 0)
/* Narrow types wrap, as they do in numpy on x86: through int32, and 0 outside its range. */
#define FLOAT_TO_NARROW(from, T, to, U) \
  CAST_LOOP(from, T, to, U, v *v < (T)4611686018427387904.0 ? (int32_t)v : 0) /* |v| < 2^31 */
#define FLOAT_TO_INTS(from, T, k)                                                                           \
  FLOAT_TO_NARROW(from, T, i8, int8_t)                                                                      \
  FLOAT_TO_NARROW(from, T, i16, int16_t)                                                                    \
  FLOAT_TO_NARROW(from, T, u8, uint8_t)                                                                     \
  FLOAT_TO_NARROW(from, T, u16, uint16_t)                                                                   \
  FLOAT_TO_INT(from, T, i32, int32_t, INT32_MIN, 2147483648.0, INT32_MAX)                                   \
  FLOAT_TO_INT(from, T, i64, int64_t, INT64_MIN, 9223372036854775808.0, INT64_MAX)                          \
  FLOAT_TO_INT(from, T, u32, uint32_t, 0, 4294967296.0, UINT32_MAX)                                         \
  FLOAT_TO_INT(from, T, u64, uint64_t, 0, 18446744073709551616.0, UINT64_MAX)
KERNEL_FLOATS(FLOAT_TO_INTS)

/* double -> float rounded to odd: a second rounding to fewer bits then gives what one rounding would. */
static void cast_odd_f64_f32(const double *in, float *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float f = (float)in[i];
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((double)f != in[i] && in[i] == in[i] && !(bits & 1) && (bits & 0x7f800000) != 0x7f800000) {
      int grow = (f < 0 ? -(double)f : (double)f) < (in[i] < 0 ? -in[i] : in[i]);
      bits = grow ? bits + 1 : bits - 1;
      memcpy(&f, &bits, 4);
    }
    out[i] = f;
  }
}

#define INT_ROW(from)                                                                                             \
  {cast_##from##_bool, cast_##from##_u8, cast_##from##_u16, cast_##from##_u32, cast_##from##_u64, cast_##from##_u8, \
   cast_##from##_u16, cast_##from##_u32, cast_##from##_u64, NULL, NULL, cast_##from##_f32, cast_##from##_f64}
#define FLOAT_ROW(from)                                                                                           \
  {cast_##from##_bool, cast_##from##_i8, cast_##from##_i16, cast_##from##_i32, cast_##from##_i64, cast_##from##_u8, \
   cast_##from##_u16, cast_##from##_u32, cast_##from##_u64, NULL, NULL, cast_##from##_f32, cast_##from##_f64}
static const CastLoop cast_loops[K_COUNT][K_COUNT] = {
    [K_BOOL] = INT_ROW(bool), [K_I8] = INT_ROW(i8), [K_I16] = INT_ROW(i16), [K_I32] = INT_ROW(i32),
    [K_I64] = INT_ROW(i64), [K_U8] = INT_ROW(u8), [K_U16] = INT_ROW(u16), [K_U32] = INT_ROW(u32),
    [K_U64] = INT_ROW(u64),
    [K_F32] = FLOAT_ROW(f32), [K_F64] = FLOAT_ROW(f64),
};

typedef struct HalfLoops {
  void (*half_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_half)(const float *, uint16_t *, int64_t);
  void (*bfloat_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_bfloat)(const float *, uint16_t *, int64_t);
} HalfLoops;
static HalfLoops half_loops;

static void cast_init(int isa) {
#define ROW(isa) {half_to_float_n_##isa, float_to_half_n_##isa, bfloat_to_float_n_##isa, float_to_bfloat_n_##isa}
#if VM_X86_VERSIONS
  static const HalfLoops versions[] = {ROW(base), ROW(v3), ROW(v4)};
#else
  static const HalfLoops versions[] = {ROW(base), ROW(base), ROW(base)};
#endif
#undef ROW
  half_loops = versions[isa];
}

#define CAST_BLOCK 256

/* Converts n elements; `from` and `to` are K_* indices. Half types go through blocks of float32. */
static void cast_elements(const char *x, int from, int64_t item_x, char *y, int to, int64_t item_y, int64_t n) {
  if (from == to) {
    memcpy(y, x, (size_t)(n * item_x));
    return;
  }
  int half_in = from == K_F16 || from == K_BF16, half_out = to == K_F16 || to == K_BF16;
  if (!half_in && !half_out) {
    cast_loops[from][to](x, y, n);
    return;
  }
  float block[CAST_BLOCK];
  double wide[CAST_BLOCK];
  for (int64_t i = 0; i < n; i += CAST_BLOCK) {
    int64_t m = n - i < CAST_BLOCK ? n - i : CAST_BLOCK;
    const char *in = x + i * item_x;
    char *out = y + i * item_y;
    const float *values = block;
    if (half_in) {
      (from == K_F16 ? half_loops.half_to_float : half_loops.bfloat_to_float)((const uint16_t *)in, block, m);
    } else if (from == K_F32) {
      values = (const float *)in;
    } else {
      if (from == K_F64) {
        cast_odd_f64_f32((const double *)in, block, m);
      } else {
        cast_loops[from][K_F64](in, wide, m);
        cast_odd_f64_f32(wide, block, m);
      }
    }
    if (half_out)
      (to == K_F16 ? half_loops.float_to_half : half_loops.float_to_bfloat)(values, (uint16_t *)out, m);
    else
      cast_loops[K_F32][to](values, out, m);
  }
}

#endif
