/* Binary kernels with numpy broadcasting, comparisons, and `where`. One table row and one door per kernel. */
#ifndef VMCORE_KERNELS_BINARY_H
#define VMCORE_KERNELS_BINARY_H

#include <math.h>

#include "vmcore/kernels/broadcast.h"
#include "vmcore/kernels/elementwise_ops.h"
#include "vmcore/kernels/simd.h"
#include "vmcore/kernels/split.h"

enum {
#define ROW(op) +1
  N_HOT = 0 HOT_BINARY(ROW)
#undef ROW
};

#define DIRECT_BINARY(X) X(add) X(sub) X(mul) X(div) X(maximum) X(minimum)
enum {
#define ROW(op) +1
  N_DIRECT = 0 DIRECT_BINARY(ROW)
#undef ROW
};

typedef struct HotLoops {
  BinaryLoop f32[N_HOT], f64[N_HOT];
  DirectFn3 direct[N_DIRECT];
  WhereLoop where[4]; /* by log2 of the item size */
  void (*half_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_half)(const float *, uint16_t *, int64_t);
  void (*bfloat_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_bfloat)(const float *, uint16_t *, int64_t);
} HotLoops;

static int binary_direct_checked(int op, const Value *a, const Value *b, const Value *out);

#define VM_ISA_BODY "vmcore/kernels/binary_loops.h"
#include "vmcore/kernels/per_isa.h"

/* ---- scalar formulas --------------------------------------------------------------------------------------------- */

/* Python's floor division and modulo on floats. Source: numpy's npy_divmod. */
static inline double floor_mod_double(double a, double b) {
  double m = fmod(a, b);
  if (m == 0) return copysign(0.0, b);
  return (b < 0) != (m < 0) ? m + b : m;
}
static inline double floor_div_double(double a, double b) {
  if (b == 0) return a / b;
  double m = fmod(a, b), q = (a - m) / b;
  if (m != 0 && (b < 0) != (m < 0)) q -= 1;
  if (q == 0) return copysign(0.0, a / b);
  double whole = floor(q);
  return q - whole > 0.5 ? whole + 1 : whole;
}
static inline float floor_mod_float(float a, float b) {
  float m = fmodf(a, b);
  if (m == 0) return copysignf(0.0f, b);
  return (b < 0) != (m < 0) ? m + b : m;
}
static inline float floor_div_float(float a, float b) {
  if (b == 0) return a / b;
  float m = fmodf(a, b), q = (a - m) / b;
  if (m != 0 && (b < 0) != (m < 0)) q -= 1;
  if (q == 0) return copysignf(0.0f, a / b);
  float whole = floorf(q);
  return q - whole > 0.5f ? whole + 1 : whole;
}

/* Integer division; the door has refused zero divisors. min / -1 wraps to min. */
static inline int64_t trunc_div(int64_t a, int64_t b) { return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b; }
static inline int64_t trunc_mod(int64_t a, int64_t b) { return b == -1 ? 0 : a % b; }
static inline int64_t floor_div(int64_t a, int64_t b) {
  int64_t q = trunc_div(a, b);
  return b != -1 && a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
static inline int64_t floor_mod(int64_t a, int64_t b) {
  int64_t m = trunc_mod(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

/* Wraps; a negative exponent gives the power truncated toward zero (and 0 for base 0). */
static inline uint64_t power(uint64_t base, uint64_t exponent) {
  uint64_t result = 1;
  for (; exponent; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}
static inline int64_t signed_power(int64_t base, int64_t exponent) {
  if (exponent >= 0) return (int64_t)power((uint64_t)base, (uint64_t)exponent);
  return base == 1 ? 1 : base == -1 ? (exponent & 1 ? -1 : 1) : 0;
}

/* ---- loops that are compiled once -------------------------------------------------------------------------------- */

/* -O3 makes a vector version for strides of 1 of it. */
#define LOOP(op, s, T, R, expr)                                                                    \
  static void op##_##s(const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb) { \
    const T *pa = (const T *)a, *pb = (const T *)b;                                                \
    R *po = (R *)o;                                                                                \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                         \
      T x = pa[i * sa], y = pb[i * sb];                                                            \
      (void)y;                                                                                     \
      po[i] = (R)(expr);                                                                           \
    }                                                                                              \
  }

/* The same for both signs: on unsigned types. Arithmetic in uint64 or unsigned, so nothing overflows. */
#define ANY_SIGN_LOOPS(s, T, k)                                                   \
  LOOP(add, s, T, T, x + (uint64_t)y)                                             \
  LOOP(sub, s, T, T, x - (uint64_t)y)                                             \
  LOOP(mul, s, T, T, (uint64_t)x *y)                                              \
  LOOP(equal, s, T, uint8_t, x == y)                                              \
  LOOP(not_equal, s, T, uint8_t, x != y)                                          \
  LOOP(bitwise_and, s, T, T, x &y)                                                \
  LOOP(bitwise_or, s, T, T, x | y)                                                \
  LOOP(bitwise_xor, s, T, T, x ^ y)                                               \
  LOOP(left_shift, s, T, T, y < sizeof(T) * 8 ? (uint64_t)x << y : 0)
#define ORDER_LOOPS(s, T, k)                                                      \
  LOOP(maximum, s, T, T, x > y ? x : y)                                           \
  LOOP(minimum, s, T, T, x < y ? x : y)                                           \
  LOOP(less, s, T, uint8_t, x < y)                                                \
  LOOP(less_equal, s, T, uint8_t, x <= y)                                         \
  LOOP(greater, s, T, uint8_t, x > y)                                             \
  LOOP(greater_equal, s, T, uint8_t, x >= y)
#define SIGNED_LOOPS(s, T, k)                                                     \
  LOOP(div, s, T, T, trunc_div(x, y))                                             \
  LOOP(floor_div, s, T, T, floor_div(x, y))                                       \
  LOOP(mod, s, T, T, floor_mod(x, y))                                             \
  LOOP(fmod, s, T, T, trunc_mod(x, y))                                            \
  LOOP(pow, s, T, T, signed_power(x, y))                                          \
  LOOP(prelu, s, T, T, x < 0 ? (uint64_t)x * (uint64_t)y : (uint64_t)x)           \
  LOOP(right_shift, s, T, T, x >> (y < 0 || y >= (T)sizeof(T) * 8 ? (T)sizeof(T) * 8 - 1 : y))
#define UNSIGNED_LOOPS(s, T, k)                                                   \
  LOOP(div, s, T, T, x / y)                                                       \
  LOOP(mod, s, T, T, x % y)                                                       \
  LOOP(pow, s, T, T, power(x, y))                                                 \
  LOOP(right_shift, s, T, T, y < sizeof(T) * 8 ? x >> y : 0)
KERNEL_UNSIGNED(ANY_SIGN_LOOPS)
KERNEL_INTS(ORDER_LOOPS)
KERNEL_SIGNED(SIGNED_LOOPS)
KERNEL_UNSIGNED(UNSIGNED_LOOPS)
LOOP(floor_div, f32, float, float, floor_div_float(x, y))
LOOP(floor_div, f64, double, double, floor_div_double(x, y))
LOOP(mod, f32, float, float, floor_mod_float(x, y))
LOOP(mod, f64, double, double, floor_mod_double(x, y))
LOOP(fmod, f32, float, float, fmodf(x, y))
LOOP(fmod, f64, double, double, fmod(x, y))
LOOP(atan2, f32, float, float, atan2f(x, y))
LOOP(atan2, f64, double, double, atan2(x, y))
LOOP(power, f32, float, float, powf(x, y))
LOOP(power, f64, double, double, pow(x, y))
LOOP(square, f32, float, float, x *x)
LOOP(square, f64, double, double, x *x)
LOOP(cube, f32, float, float, x *x *x)
LOOP(cube, f64, double, double, x *x *x)
LOOP(root, f32, float, float, x == -INFINITY ? INFINITY : sqrtf(x + 0.0f))
LOOP(root, f64, double, double, x == -INFINITY ? INFINITY : sqrt(x + 0.0))
LOOP(inverse, f32, float, float, 1 / x)
LOOP(inverse, f64, double, double, 1 / x)
/* A bool may be any byte: all but 0 are true. */
LOOP(equal, bool, uint8_t, uint8_t, (x != 0) == (y != 0))
LOOP(not_equal, bool, uint8_t, uint8_t, (x != 0) != (y != 0))
LOOP(less, bool, uint8_t, uint8_t, (x == 0) & (y != 0))
LOOP(less_equal, bool, uint8_t, uint8_t, (x == 0) | (y != 0))
LOOP(greater, bool, uint8_t, uint8_t, (x != 0) & (y == 0))
LOOP(greater_equal, bool, uint8_t, uint8_t, (x != 0) | (y == 0))
LOOP(logical_and, bool, uint8_t, uint8_t, (x != 0) & (y != 0))
LOOP(logical_or, bool, uint8_t, uint8_t, (x != 0) | (y != 0))
LOOP(logical_xor, bool, uint8_t, uint8_t, (x != 0) ^ (y != 0))

/* One exponent for a whole row is usual, and some of them need no power function. */
#define POW_LOOP(s, T, k)                                                                          \
  static void pow_##s(const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb) {  \
    const T y = sb == 0 ? *(const T *)b : 0;                                                       \
    BinaryLoop loop = y == 2          ? square_##s                                                 \
                      : y == 3        ? cube_##s                                                   \
                      : y == (T)0.5   ? root_##s                                                   \
                      : y == -1       ? inverse_##s                                                \
                                      : power_##s;                                                 \
    loop(a, b, o, n, sa, sb);                                                                      \
  }
KERNEL_FLOATS(POW_LOOP)
#undef LOOP
#undef POW_LOOP

/* ---- table ------------------------------------------------------------------------------------------------------- */

static BinaryOp binary_ops[B_COUNT] = {
#define ROW(op) [B_##op] = {.name = #op},
    HOT_BINARY(ROW) OTHER_BINARY(ROW)
#undef ROW
};
static HotLoops hot;
static DirectEntry binary_direct[N_DIRECT + 1] = { /* filled by binary_init */
#define ROW(op) {"kernel." #op, NULL, NULL},
    DIRECT_BINARY(ROW)
#undef ROW
};

static const void *binary_where_loops(void) { return hot.where; }

/* Fills the table with the loops of one instruction set; called at import, and by tests for each set in turn. */
static void binary_init(int isa) {
  static const HotLoops *const versions[] = VM_ISA_TABLE(&hot_loops);
  hot = *versions[isa];
  for (int i = 0; i < N_DIRECT; ++i) binary_direct[i].direct3 = hot.direct[i];
  for (int op = 0; op < N_HOT; ++op) {
    binary_ops[op].loop[K_F32] = hot.f32[op];
    binary_ops[op].loop[K_F64] = hot.f64[op];
  }
#define SET(op, s, k) binary_ops[B_##op].loop[k] = op##_##s;
#define ANY_SIGN(s, T, k)                                                                                      \
  SET(add, s, k) SET(sub, s, k) SET(mul, s, k) SET(equal, s, k) SET(not_equal, s, k) SET(bitwise_and, s, k)    \
  SET(bitwise_or, s, k) SET(bitwise_xor, s, k) SET(left_shift, s, k)
  KERNEL_UNSIGNED(ANY_SIGN)
  ANY_SIGN(u8, , K_I8) ANY_SIGN(u16, , K_I16) ANY_SIGN(u32, , K_I32) ANY_SIGN(u64, , K_I64)
#define ORDER(s, T, k)                                                                                         \
  SET(maximum, s, k) SET(minimum, s, k) SET(less, s, k) SET(less_equal, s, k) SET(greater, s, k)               \
  SET(greater_equal, s, k) SET(div, s, k) SET(mod, s, k) SET(pow, s, k) SET(right_shift, s, k)
  KERNEL_INTS(ORDER)
#define SIGNED(s, T, k) SET(floor_div, s, k) SET(fmod, s, k) SET(prelu, s, k)
  KERNEL_SIGNED(SIGNED)
#define UNSIGNED(s, T, k) binary_ops[B_floor_div].loop[k] = div_##s, binary_ops[B_fmod].loop[k] = mod_##s;
  KERNEL_UNSIGNED(UNSIGNED)
#define FLOAT(s, T, k) SET(floor_div, s, k) SET(mod, s, k) SET(fmod, s, k) SET(atan2, s, k) SET(pow, s, k)
  KERNEL_FLOATS(FLOAT)
  SET(logical_and, bool, K_BOOL) SET(logical_or, bool, K_BOOL) SET(logical_xor, bool, K_BOOL)
  SET(equal, bool, K_BOOL) SET(not_equal, bool, K_BOOL) SET(less, bool, K_BOOL) SET(less_equal, bool, K_BOOL)
  SET(greater, bool, K_BOOL) SET(greater_equal, bool, K_BOOL)
  binary_ops[B_bitwise_and].loop[K_BOOL] = logical_and_bool;
  binary_ops[B_bitwise_or].loop[K_BOOL] = logical_or_bool;
  binary_ops[B_bitwise_xor].loop[K_BOOL] = logical_xor_bool;
  for (int op = B_equal; op <= B_greater_equal; ++op) binary_ops[op].out = OUT_BOOL;
  binary_ops[B_div].refuses_zero = binary_ops[B_floor_div].refuses_zero = 1;
  binary_ops[B_mod].refuses_zero = binary_ops[B_fmod].refuses_zero = 1;
#undef SET
#undef ANY_SIGN
#undef ORDER
#undef SIGNED
#undef UNSIGNED
#undef FLOAT
}

/* ---- doors ------------------------------------------------------------------------------------------------------- */

#define HALF_BLOCK 256

/* float16 and bfloat16: through float32, a block at a time. */
static void binary_half(BinaryLoop loop, int bfloat, int out_bool, const uint16_t *a, const uint16_t *b, char *o,
                        int64_t n, int64_t sa, int64_t sb) {
  float block_a[HALF_BLOCK], block_b[HALF_BLOCK];
  for (int64_t i = 0; i < n; i += HALF_BLOCK) {
    int64_t m = n - i < HALF_BLOCK ? n - i : HALF_BLOCK;
    (bfloat ? hot.bfloat_to_float : hot.half_to_float)(a + i * sa, block_a, sa ? m : 1);
    (bfloat ? hot.bfloat_to_float : hot.half_to_float)(b + i * sb, block_b, sb ? m : 1);
    if (out_bool) {
      loop(block_a, block_b, o + i, m, sa, sb);
    } else {
      float *to = sa ? block_a : block_b;
      loop(block_a, block_b, to, m, sa, sb);
      (bfloat ? hot.float_to_bfloat : hot.float_to_half)(to, (uint16_t *)o + i, m);
    }
  }
}

static int has_zero(const ArgTensor *t) {
#define SCAN(bits)                                                                  \
  {                                                                                 \
    const uint##bits##_t *p = (const uint##bits##_t *)t->data;                      \
    for (int64_t i = 0; i < t->numel; ++i)                                          \
      if (p[i] == 0) return 1;                                                      \
    return 0;                                                                       \
  }
  switch (t->itemsize) {
    case 1: SCAN(8)
    case 2: SCAN(16)
    case 4: SCAN(32)
    default: SCAN(64)
  }
#undef SCAN
}

typedef struct BinarySplit {
  SplitRange range;
  BinaryLoop loop;
  const char *a, *b;
  char *o;
  int64_t sa, sb, in_item, out_item;
} BinarySplit;

static void binary_piece(void *ctx, int64_t piece) {
  const BinarySplit *s = (const BinarySplit *)ctx;
  int64_t i = split_at(&s->range, piece), end = split_at(&s->range, piece + 1);
  s->loop(s->a + i * s->sa * s->in_item, s->b + i * s->sb * s->in_item, s->o + i * s->out_item, end - i, s->sa, s->sb);
}

/* The loop over n elements, in pieces on all threads if there are many. */
static inline void binary_loop(BinaryLoop loop, const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb,
                               int64_t in_item, int64_t out_item) {
  BinarySplit s;
  if (VM_LIKELY(!split_wanted(n, &s.range))) {
    loop(a, b, o, n, sa, sb);
    return;
  }
  s.loop = loop, s.a = (const char *)a, s.b = (const char *)b, s.o = (char *)o, s.sa = sa, s.sb = sb;
  s.in_item = in_item, s.out_item = out_item;
  split_run(&s.range, binary_piece, &s);
}

__attribute__((noinline)) static int binary_run(const BinaryOp *op, const ArgTensor *a, const ArgTensor *b,
                                                const ArgTensor *out) {
  if (check_same_dtype(op->name, a, b) || check_elementwise_alias(op->name, a, out) ||
      check_elementwise_alias(op->name, b, out))
    return -1;
  if (op->out == OUT_BOOL ? check_dtype(op->name, "output", out, DL_BOOL, 8) : check_same_dtype(op->name, a, out))
    return -1;
  int k = kernel_dtype(a->dtype), half = k == K_F16 || k == K_BF16;
  BinaryLoop loop = k < 0 ? NULL : op->loop[half ? K_F32 : k];
  if (loop == NULL) return arg_fail_one(op->name, ERR_DTYPE, "no kernel for this element type", "input", a);
  if (op->refuses_zero && k <= K_U64 && out->numel && has_zero(b))
    return arg_fail_one(op->name, ERR_VALUE, "integer division by zero", "divisor", b);
  if (b->numel == 1 && b->ndim <= a->ndim && !half && args_same_shape(a, out)) { /* usual, and needs no plan */
    binary_loop(loop, a->data, b->data, out->data, a->numel, a->numel != 1, 0, a->itemsize, out->itemsize);
    return 0;
  }
  const ArgTensor *in[2] = {a, b};
  Broadcast rows;
  if (broadcast_plan(op->name, in, 2, out, &rows)) return -1;
  int64_t n = rows.dim[0], sa = rows.stride[0][0], sb = rows.stride[1][0], item = a->itemsize;
  for (; rows.row < rows.n_rows; broadcast_next(&rows)) {
    const char *pa = a->data + rows.offset[0] * item, *pb = b->data + rows.offset[1] * item;
    char *po = out->data + rows.row * n * out->itemsize;
    if (half)
      binary_half(loop, k == K_BF16, op->out == OUT_BOOL, (const uint16_t *)pa, (const uint16_t *)pb, po, n, sa, sb);
    else
      binary_loop(loop, pa, pb, po, n, sa, sb, item, out->itemsize);
  }
  return 0;
}

__attribute__((noinline)) static int binary_checked(const BinaryOp *op, const Value *args, int32_t n_args) {
  ArgTensor a, b, out;
  if (arg_count(op->name, n_args, 3) || arg_tensor(op->name, args, 0, &a) || arg_tensor(op->name, args, 1, &b) ||
      arg_output(op->name, args, 2, &out))
    return -1;
  return binary_run(op, &a, &b, &out);
}

static int binary_door(const BinaryOp *op, const Value *args, int32_t n_args) {
  if (VM_LIKELY(n_args == 3)) { /* PERF: as in unary_door */
    const Value *const each[] = {&args[0], &args[1], &args[2]};
    BinaryLoop loop = op->loop[K_F32];
    const uint64_t nbytes = args_own_float32(each, 3);
    if (VM_LIKELY(nbytes && loop && op->out == OUT_SAME)) {
      loop(arg_own_data(&args[0]), arg_own_data(&args[1]), arg_own_data(&args[2]), (int64_t)(nbytes / 4), 1, 1);
      return 0;
    }
  }
  return binary_checked(op, args, n_args);
}

__attribute__((noinline)) static int binary_direct_checked(int op, const Value *a, const Value *b, const Value *out) {
  Value args[3];
  value_copy(&args[0], a);
  value_copy(&args[1], b);
  value_copy(&args[2], out);
  return binary_checked(&binary_ops[op], args, 3);
}

/* where(cond, a, b, out): out = cond ? a : b, all broadcast; any dtype of 1, 2, 4 or 8 bytes. */
static int door_where(void *self, const Value *args, int32_t n_args, Value *ret) {
  static const char op[] = "where";
  ArgTensor c, a, b, out;
  Broadcast rows;
  (void)self, (void)ret;
  if (arg_count(op, n_args, 4) || arg_tensor(op, args, 0, &c) || arg_tensor(op, args, 1, &a) ||
      arg_tensor(op, args, 2, &b) || arg_output(op, args, 3, &out) || check_dtype(op, "condition", &c, DL_BOOL, 8) ||
      check_same_dtype(op, &a, &b) || check_same_dtype(op, &a, &out) || check_elementwise_alias(op, &a, &out) ||
      check_elementwise_alias(op, &b, &out) || check_disjoint(op, &c, &out))
    return -1;
  const ArgTensor *in[3] = {&c, &a, &b};
  if (broadcast_plan(op, in, 3, &out, &rows)) return -1;
  int64_t item = a.itemsize, n = rows.dim[0], sc = rows.stride[0][0], sa = rows.stride[1][0], sb = rows.stride[2][0];
  if (item != 1 && item != 2 && item != 4 && item != 8)
    return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &a);
  WhereLoop loop = hot.where[__builtin_ctz((unsigned)item)];
  for (; rows.row < rows.n_rows; broadcast_next(&rows)) {
    const uint8_t *pc = (const uint8_t *)c.data + rows.offset[0];
    const char *pa = a.data + rows.offset[1] * item, *pb = b.data + rows.offset[2] * item;
    char *po = out.data + rows.row * n * item;
    if (sc) {
      loop(pc, pa, pb, po, n, sa, sb);
      continue;
    }
    const char *from = *pc ? pa : pb; /* one condition for the row */
    if (*pc ? sa : sb) {
      memmove(po, from, (size_t)(n * item));
    } else {
      for (int64_t i = 0; i < n; ++i) memcpy(po + i * item, from, (size_t)item);
    }
  }
  return 0;
}

#define BINARY_DOORS(X)                                                                                            \
  X(add, .03f) X(sub, .03f) X(mul, .03f) X(div, .03f) X(maximum, .03f) X(minimum, .03f) X(prelu, .03f)             \
  X(equal, .03f) X(not_equal, .03f) X(less, .03f) X(less_equal, .03f) X(greater, .03f) X(greater_equal, .03f)      \
  X(floor_div, .5f) X(mod, .5f) X(fmod, .5f) X(pow, .5f) X(atan2, 1) X(bitwise_and, .03f) X(bitwise_or, .03f)      \
  X(bitwise_xor, .03f) X(left_shift, .05f) X(right_shift, .05f) X(logical_and, .03f) X(logical_or, .03f)           \
  X(logical_xor, .03f)

#define DOOR(op, cost)                                                                  \
  static int door_##op(void *self, const Value *args, int32_t n_args, Value *ret) {     \
    (void)self, (void)ret;                                                              \
    return binary_door(&binary_ops[B_##op], args, n_args);                              \
  }
BINARY_DOORS(DOOR)
#undef DOOR

static const KernelEntry binary_entries[] = {
#define ROW(op, cost) {"kernel." #op, door_##op, cost},
    BINARY_DOORS(ROW)
#undef ROW
    {"kernel.where", door_where, .03f},
};
#define BINARY_ENTRIES ((int)(sizeof binary_entries / sizeof binary_entries[0]))

#endif
