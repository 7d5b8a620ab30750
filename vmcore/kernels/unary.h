/* Unary kernels: y = f(x) element by element, x and y of one shape and dtype. One table row and one door per kernel. */
#ifndef VMCORE_KERNELS_UNARY_H
#define VMCORE_KERNELS_UNARY_H

#include <math.h>

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/elementwise_ops.h"
#include "vmcore/kernels/simd.h"
#include "vmcore/kernels/split.h"

enum {
#define ROW(op) +1
  N_SIMPLE = 0 SIMPLE_UNARY(ROW), N_HOT = 0 HOT_UNARY(ROW)
#undef ROW
};

typedef struct HotLoops {
  UnaryLoop f32[N_HOT], f64[N_SIMPLE];
  void (*half_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_half)(const float *, uint16_t *, int64_t);
  void (*bfloat_to_float)(const uint16_t *, float *, int64_t);
  void (*float_to_bfloat)(const float *, uint16_t *, int64_t);
} HotLoops;

#define VM_ISA_BODY "vmcore/kernels/unary_loops.h"
#include "vmcore/kernels/per_isa.h"

/* ---- loops that are compiled once -------------------------------------------------------------------------------- */

#define LOOP(op, suffix, T, expr)                                                                 \
  static void op##_##suffix(const void *x, void *y, int64_t n, const double *p) {                 \
    const T *in = (const T *)x;                                                                   \
    T *out = (T *)y;                                                                              \
    (void)p;                                                                                      \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                        \
      T v = in[i];                                                                                \
      out[i] = (T)(expr);                                                                         \
    }                                                                                             \
  }

LOOP(exp, f64, double, exp(v))
LOOP(log, f64, double, log(v))
LOOP(sigmoid, f64, double, 1 / (1 + exp(-v)))
LOOP(tanh, f64, double, tanh(v))
LOOP(erf, f64, double, erf(v))
LOOP(gelu, f64, double, 0.5 * v * (1 + erf(v * 0.70710678118654752440)))
LOOP(gelu_tanh, f64, double, v / (1 + exp(v * (v * v * -0.07135481627260025 - 1.5957691216057308))))
LOOP(silu, f64, double, v / (1 + exp(-v)))
LOOP(softplus, f64, double, (v > 0 ? v : v == v ? 0 : v) + log1p(exp(-fabs(v))))
LOOP(mish, f64, double, v *tanh((v > 0 ? v : 0) + log1p(exp(-fabs(v)))))
LOOP(elu, f64, double, v < 0 ? p[0] * expm1(v) : v)
LOOP(selu, f64, double, p[1] * (v < 0 ? p[0] * expm1(v) : v))
LOOP(celu, f64, double, v < 0 ? p[0] * expm1(v / p[0]) : v)
#define ROW(op) LOOP(op, f32, float, op##f(v)) LOOP(op, f64, double, op(v))
LIBM_UNARY(ROW)
#undef ROW

/* Integers wrap: -min = |min| = min. `limits` of clip are integers in the bytes of p. */
#define SIGNED_LOOPS(s, T, index)                                                      \
  LOOP(abs, s, T, v < 0 ? 0 - (uint64_t)v : (uint64_t)v)                               \
  LOOP(neg, s, T, 0 - (uint64_t)v)                                                     \
  LOOP(sign, s, T, (v > 0) - (v < 0))                                                  \
  LOOP(relu, s, T, v < 0 ? 0 : v)
#define UNSIGNED_LOOPS(s, T, index)                                                    \
  LOOP(abs, s, T, v)                                                                   \
  LOOP(neg, s, T, 0 - (uint64_t)v)                                                     \
  LOOP(sign, s, T, v > 0)                                                              \
  LOOP(relu, s, T, v)
#define INT_LOOPS(s, T, index)                                                         \
  LOOP(square, s, T, (uint64_t)v *(uint64_t)v)                                         \
  LOOP(bitwise_not, s, T, ~v)                                                          \
  static void clip_##s(const void *x, void *y, int64_t n, const double *p) {           \
    int64_t limits[2];                                                                 \
    memcpy(limits, p, sizeof limits);                                                  \
    const T a = (T)limits[0], b = (T)limits[1];                                        \
    for (int64_t i = 0; i < n; ++i) {                                                  \
      T v = ((const T *)x)[i];                                                         \
      ((T *)y)[i] = v < a ? a : v > b ? b : v;                                         \
    }                                                                                  \
  }
KERNEL_SIGNED(SIGNED_LOOPS)
KERNEL_UNSIGNED(UNSIGNED_LOOPS)
KERNEL_INTS(INT_LOOPS)
LOOP(logical_not, bool, uint8_t, v == 0)
LOOP(bitwise_not, bool, uint8_t, v == 0)
#undef LOOP

/* ---- table ------------------------------------------------------------------------------------------------------- */

static UnaryOp unary_ops[U_COUNT] = {
#define ROW(op) [U_##op] = {.name = #op},
    HOT_UNARY(ROW)
#undef ROW
#define ROW(op) [U_##op] = {.name = #op, .loop = {[K_F32] = op##_f32, [K_F64] = op##_f64}},
    LIBM_UNARY(ROW)
#undef ROW
    [U_bitwise_not] = {.name = "bitwise_not"}, [U_logical_not] = {.name = "logical_not"},
};
static HotLoops hot;

/* Fills the table with the loops of one instruction set; called at import, and by tests for each set in turn. */
static void unary_init(int isa) {
  static const HotLoops *const versions[] = VM_ISA_TABLE(&hot_loops);
  hot = *versions[isa];
  for (int op = 0; op < N_HOT; ++op) unary_ops[op].loop[K_F32] = hot.f32[op];
  for (int op = 0; op < N_SIMPLE; ++op) unary_ops[op].loop[K_F64] = hot.f64[op];
#define ROW(op) unary_ops[U_##op].loop[K_F64] = op##_f64;
  VECTOR_UNARY(ROW)
#undef ROW
#define ROW(s, T, k)                                                             \
  unary_ops[U_relu].loop[k] = relu_##s, unary_ops[U_abs].loop[k] = abs_##s;      \
  unary_ops[U_neg].loop[k] = neg_##s, unary_ops[U_sign].loop[k] = sign_##s;      \
  unary_ops[U_square].loop[k] = square_##s, unary_ops[U_clip].loop[k] = clip_##s; \
  unary_ops[U_bitwise_not].loop[k] = bitwise_not_##s;
  KERNEL_INTS(ROW)
#undef ROW
  unary_ops[U_logical_not].loop[K_BOOL] = logical_not_bool;
  unary_ops[U_bitwise_not].loop[K_BOOL] = bitwise_not_bool;
  unary_ops[U_leaky_relu].n_params = unary_ops[U_elu].n_params = unary_ops[U_celu].n_params = 1;
  unary_ops[U_thresholded_relu].n_params = 1;
  unary_ops[U_selu].n_params = unary_ops[U_hard_sigmoid].n_params = unary_ops[U_shrink].n_params = 2;
}

/* ---- doors ------------------------------------------------------------------------------------------------------- */

#define HALF_BLOCK 256

/* float16 and bfloat16: through float32, a block at a time. */
static void unary_half(UnaryLoop loop, int bfloat, const uint16_t *x, uint16_t *y, int64_t n, const double *p) {
  float block[HALF_BLOCK];
  for (int64_t i = 0; i < n; i += HALF_BLOCK) {
    int64_t m = n - i < HALF_BLOCK ? n - i : HALF_BLOCK;
    (bfloat ? hot.bfloat_to_float : hot.half_to_float)(x + i, block, m);
    loop(block, block, m, p);
    (bfloat ? hot.float_to_bfloat : hot.float_to_half)(block, y + i, m);
  }
}

typedef struct UnarySplit {
  SplitRange range;
  UnaryLoop loop;
  const char *x;
  char *y;
  int64_t in_item, out_item;
  const double *p;
} UnarySplit;

static void unary_piece(void *ctx, int64_t piece) {
  const UnarySplit *s = (const UnarySplit *)ctx;
  int64_t i = split_at(&s->range, piece), end = split_at(&s->range, piece + 1);
  s->loop(s->x + i * s->in_item, s->y + i * s->out_item, end - i, s->p);
}

/* The loop over n elements, in pieces on all threads if there are many. */
static inline void unary_loop(UnaryLoop loop, const void *x, void *y, int64_t n, int64_t in_item, int64_t out_item,
                              const double *p) {
  UnarySplit s;
  if (VM_LIKELY(!split_wanted(n, &s.range))) {
    loop(x, y, n, p);
    return;
  }
  s.loop = loop, s.x = (const char *)x, s.y = (char *)y, s.in_item = in_item, s.out_item = out_item, s.p = p;
  split_run(&s.range, unary_piece, &s);
}

static int unary_run(const UnaryOp *op, const ArgTensor *x, const ArgTensor *out, const double *p) {
  if (check_same_dtype(op->name, x, out) || check_same_shape(op->name, x, out) || check_inplace(op->name, x, out))
    return -1;
  int k = kernel_dtype(x->dtype);
  if (VM_LIKELY(k >= 0 && op->loop[k] != NULL)) {
    unary_loop(op->loop[k], x->data, out->data, x->numel, x->itemsize, out->itemsize, p);
    return 0;
  }
  if ((k == K_F16 || k == K_BF16) && op->loop[K_F32]) {
    unary_half(op->loop[K_F32], k == K_BF16, (const uint16_t *)x->data, (uint16_t *)out->data, x->numel, p);
    return 0;
  }
  return arg_fail_one(op->name, ERR_DTYPE, "no kernel for this element type", "input", x);
}

static const double no_params[2] = {0, 0};

__attribute__((noinline)) static int unary_checked(const UnaryOp *op, const Value *args, int32_t n_args) {
  ArgTensor x, out;
  if (arg_count(op->name, n_args, 2) || arg_tensor(op->name, args, 0, &x) || arg_output(op->name, args, 1, &out))
    return -1;
  return unary_run(op, &x, &out, no_params);
}

static int unary_door(const UnaryOp *op, const Value *args, int32_t n_args) {
  if (VM_LIKELY(n_args == 2)) { /* PERF: 16 floats take 6 ns, and twice that by the full checks (Zen 4, 2026-11) */
    const Value *const each[] = {&args[0], &args[1]};
    UnaryLoop loop = op->loop[K_F32];
    const uint64_t nbytes = args_own_float32(each, 2);
    if (VM_LIKELY(nbytes && loop)) {
      loop(arg_own_data(&args[0]), arg_own_data(&args[1]), (int64_t)(nbytes / 4), no_params);
      return 0;
    }
  }
  return unary_checked(op, args, n_args);
}

static int unary_direct(const UnaryOp *op, const Value *x, const Value *out) {
  const Value *const each[] = {x, out};
  UnaryLoop loop = op->loop[K_F32];
  const uint64_t nbytes = args_own_float32(each, 2);
  if (VM_LIKELY(nbytes && loop)) {
    loop(arg_own_data(x), arg_own_data(out), (int64_t)(nbytes / 4), no_params);
    return 0;
  }
  Value args[2];
  value_copy(&args[0], x);
  value_copy(&args[1], out);
  return unary_checked(op, args, 2);
}

static int unary_params_door(const UnaryOp *op, const Value *args, int32_t n_args) {
  ArgTensor x, out;
  double p[2] = {0, 0};
  if (arg_count(op->name, n_args, 2 + op->n_params) || arg_tensor(op->name, args, 0, &x) ||
      arg_output(op->name, args, n_args - 1, &out))
    return -1;
  for (int32_t i = 0; i < op->n_params; ++i)
    if (arg_float(op->name, args, 1 + i, &p[i])) return -1;
  return unary_run(op, &x, &out, p);
}

/* A bound of clip on an integer tensor, moved into [low, high]; fractions round toward the inside of the interval. */
static int clip_bound(const Value *args, int32_t i, int upper, int64_t low, int64_t high, int64_t *out) {
  if (value_type(&args[i]) == VT_FLOAT) {
    double d = value_float(&args[i]);
    if (d != d) return ARG_FAIL(ERR_VALUE, "clip: bound %d of an integer tensor is NaN", i);
    d = upper ? floor(d) : ceil(d);
    *out = d >= 9.2233720368547758e18 ? INT64_MAX : d <= -9.2233720368547758e18 ? INT64_MIN : (int64_t)d;
  } else if (arg_int("clip", args, i, out)) {
    return -1;
  }
  *out = *out < low ? low : *out > high ? high : *out;
  return 0;
}

/* clip(x, [lo], [hi], out). With lo > hi the result is hi, as numpy's. */
static int door_clip(void *self, const Value *args, int32_t n_args, Value *ret) {
  ArgTensor x, out;
  double p[2] = {-HUGE_VAL, HUGE_VAL};
  (void)self, (void)ret;
  if (arg_count("clip", n_args, 4) || arg_tensor("clip", args, 0, &x) || arg_output("clip", args, 3, &out)) return -1;
  int has_low = value_type(&args[1]) != VT_NONE, has_high = value_type(&args[2]) != VT_NONE;
  if (x.dtype.code == DL_INT || x.dtype.code == DL_UINT) {
    int is_signed = x.dtype.code == DL_INT, bits = x.dtype.bits > 64 ? 64 : x.dtype.bits;
    /* uint64 above int64's range is reachable by no bound: an open end is spelled UINT64_MAX below. */
    int64_t high = is_signed ? INT64_MAX >> (64 - bits) : bits == 64 ? INT64_MAX : (1ll << bits) - 1;
    int64_t low = is_signed ? -high - 1 : 0, limits[2] = {low, !has_high && !is_signed && bits == 64 ? -1 : high};
    if (has_low && clip_bound(args, 1, 0, low, high, &limits[0])) return -1;
    if (has_high && clip_bound(args, 2, 1, low, high, &limits[1])) return -1;
    if (has_high && limits[0] > limits[1]) limits[0] = limits[1];
    memcpy(p, limits, sizeof p);
  } else {
    if (has_low && arg_float("clip", args, 1, &p[0])) return -1;
    if (has_high && arg_float("clip", args, 2, &p[1])) return -1;
    if (p[0] > p[1]) p[0] = p[1];
  }
  return unary_run(&unary_ops[U_clip], &x, &out, p);
}

/* is_nan, is_inf: bit tests on any float type, bool out. */
static int float_class(const char *op, const ArgTensor *x, const ArgTensor *out, int nan, int negative, int positive) {
  if (check_dtype(op, "output", out, DL_BOOL, 8) || check_same_shape(op, x, out) || check_disjoint(op, x, out))
    return -1;
  uint8_t *y = (uint8_t *)out->data;
  int64_t n = x->numel;
#define BIT_TEST(T, infinity)                                                                     \
  {                                                                                               \
    const T *bits = (const T *)x->data, sign = (T)1 << (sizeof(T) * 8 - 1), inf = (T)(infinity); \
    for (int64_t i = 0; i < n; ++i) {                                                             \
      T b = bits[i], magnitude = b & (T)(sign - 1);                                               \
      y[i] = nan ? magnitude > inf : magnitude == inf && (b & sign ? negative : positive);        \
    }                                                                                             \
    return 0;                                                                                     \
  }
  switch (kernel_dtype(x->dtype)) {
    case K_F16: BIT_TEST(uint16_t, 0x7c00)
    case K_BF16: BIT_TEST(uint16_t, 0x7f80)
    case K_F32: BIT_TEST(uint32_t, 0x7f800000)
    case K_F64: BIT_TEST(uint64_t, 0x7ff0000000000000)
    default: return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", x);
  }
#undef BIT_TEST
}

static int door_is_nan(void *self, const Value *args, int32_t n_args, Value *ret) {
  ArgTensor x, out;
  (void)self, (void)ret;
  if (arg_count("is_nan", n_args, 2) || arg_tensor("is_nan", args, 0, &x) || arg_output("is_nan", args, 1, &out))
    return -1;
  return float_class("is_nan", &x, &out, 1, 0, 0);
}

static int door_is_inf(void *self, const Value *args, int32_t n_args, Value *ret) {
  ArgTensor x, out;
  int64_t negative = 0, positive = 0;
  (void)self, (void)ret;
  if (arg_count("is_inf", n_args, 4) || arg_tensor("is_inf", args, 0, &x) || arg_int("is_inf", args, 1, &negative) ||
      arg_int("is_inf", args, 2, &positive) || arg_output("is_inf", args, 3, &out))
    return -1;
  return float_class("is_inf", &x, &out, 0, negative != 0, positive != 0);
}

#define PLAIN_UNARY(X)                                                                                              \
  X(relu, .03f) X(abs, .03f) X(neg, .03f) X(square, .03f) X(sqrt, .05f) X(rsqrt, .08f) X(reciprocal, .04f)          \
  X(floor, .03f) X(ceil, .03f) X(round, .03f) X(sign, .03f) X(softsign, .05f) X(hard_swish, .05f) X(exp, .05f)      \
  X(log, .1f) X(sigmoid, .06f) X(tanh, .06f) X(erf, .06f) X(gelu, .06f) X(gelu_tanh, .06f) X(silu, .06f)            \
  X(softplus, .2f) X(mish, .1f) X(sin, 1) X(cos, 1) X(tan, 1) X(asin, 1) X(acos, 1) X(atan, 1) X(sinh, 1)           \
  X(cosh, 1) X(asinh, 1) X(acosh, 1) X(atanh, 1) X(bitwise_not, .03f) X(logical_not, .03f)
#define PARAM_UNARY(X)                                                                                              \
  X(leaky_relu, .03f) X(elu, .08f) X(selu, .08f) X(celu, .08f) X(hard_sigmoid, .03f) X(thresholded_relu, .03f)      \
  X(shrink, .03f)

#define DOOR(op, cost)                                                                      \
  static int door_##op(void *self, const Value *args, int32_t n_args, Value *ret) {         \
    (void)self, (void)ret;                                                                  \
    return unary_door(&unary_ops[U_##op], args, n_args);                                    \
  }                                                                                         \
  static int direct_##op(const Value *x, const Value *out) { return unary_direct(&unary_ops[U_##op], x, out); }
PLAIN_UNARY(DOOR)
#undef DOOR
#define DOOR(op, cost)                                                                      \
  static int door_##op(void *self, const Value *args, int32_t n_args, Value *ret) {         \
    (void)self, (void)ret;                                                                  \
    return unary_params_door(&unary_ops[U_##op], args, n_args);                             \
  }
PARAM_UNARY(DOOR)
#undef DOOR

static const KernelEntry unary_entries[] = {
#define ROW(op, cost) {"kernel." #op, door_##op, cost},
    PLAIN_UNARY(ROW) PARAM_UNARY(ROW)
#undef ROW
    {"kernel.clip", door_clip, .03f},
    {"kernel.is_nan", door_is_nan, .03f},
    {"kernel.is_inf", door_is_inf, .03f},
};
static const DirectEntry unary_direct_entries[] = {
#define ROW(op, cost) {"kernel." #op, direct_##op, NULL},
    PLAIN_UNARY(ROW)
#undef ROW
    {NULL, NULL, NULL},
};
#define UNARY_ENTRIES ((int)(sizeof unary_entries / sizeof unary_entries[0]))

#endif
