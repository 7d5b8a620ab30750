/* Hot binary loops on float32 and float64, and `where` by item size; compiled once per instruction set by per_isa.h. */
#include "vmcore/kernels/half.h"

#define HOT_LOOP(op, s, T, R, expr)                                                                        \
  static void VMFN(op##_##s)(const void *a, const void *b, void *o, int64_t n, int64_t sa, int64_t sb) {   \
    const T *pa = (const T *)a, *pb = (const T *)b;                                                        \
    R *po = (R *)o;                                                                                        \
    if (VM_LIKELY(sa & sb)) {                                                                              \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                               \
        T x = pa[i], y = pb[i];                                                                            \
        po[i] = (expr);                                                                                    \
      }                                                                                                    \
    } else if (sa) {                                                                                       \
      const T y = *pb;                                                                                     \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                               \
        T x = pa[i];                                                                                       \
        po[i] = (expr);                                                                                    \
      }                                                                                                    \
    } else {                                                                                               \
      const T x = *pa;                                                                                     \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                               \
        T y = pb[i];                                                                                       \
        po[i] = (expr);                                                                                    \
      }                                                                                                    \
    }                                                                                                      \
  }

#define HOT_LOOPS(s, T)                                          \
  HOT_LOOP(add, s, T, T, x + y)                                  \
  HOT_LOOP(sub, s, T, T, x - y)                                  \
  HOT_LOOP(mul, s, T, T, x *y)                                   \
  HOT_LOOP(div, s, T, T, x / y)                                  \
  HOT_LOOP(maximum, s, T, T, (x > y) | (x != x) ? x : y)         \
  HOT_LOOP(minimum, s, T, T, (x < y) | (x != x) ? x : y)         \
  HOT_LOOP(prelu, s, T, T, x < 0 ? x * y : x)                    \
  HOT_LOOP(equal, s, T, uint8_t, x == y)                         \
  HOT_LOOP(not_equal, s, T, uint8_t, x != y)                     \
  HOT_LOOP(less, s, T, uint8_t, x < y)                           \
  HOT_LOOP(less_equal, s, T, uint8_t, x <= y)                    \
  HOT_LOOP(greater, s, T, uint8_t, x > y)                        \
  HOT_LOOP(greater_equal, s, T, uint8_t, x >= y)
HOT_LOOPS(f32, float)
HOT_LOOPS(f64, double)

#define WHERE_LOOP(bits)                                                                                     \
  static void VMFN(where_##bits)(const uint8_t *c, const void *a, const void *b, void *o, int64_t n,         \
                                 int64_t sa, int64_t sb) {                                                   \
    typedef uint##bits##_t T;                                                                                \
    const T *pa = (const T *)a, *pb = (const T *)b;                                                          \
    T *po = (T *)o, xa = *pa, xb = *pb;                                                                      \
    if (sa & sb) {                                                                                           \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                                 \
        T x = pa[i], y = pb[i];                                                                              \
        po[i] = c[i] ? x : y;                                                                                \
      }                                                                                                      \
    } else if (sa) {                                                                                         \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                                 \
        T x = pa[i];                                                                                         \
        po[i] = c[i] ? x : xb;                                                                               \
      }                                                                                                      \
    } else if (sb) {                                                                                         \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                                 \
        T y = pb[i];                                                                                         \
        po[i] = c[i] ? xa : y;                                                                               \
      }                                                                                                      \
    } else {                                                                                                 \
      _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) po[i] = c[i] ? xa : xb;                           \
    }                                                                                                        \
  }
WHERE_LOOP(8)
WHERE_LOOP(16)
WHERE_LOOP(32)
WHERE_LOOP(64)

typedef float VMFN(lanes) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef int32_t VMFN(lane_bits) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
#define LANES_SELECT(m, a, b) \
  ((VMFN(lanes))(((VMFN(lane_bits))(a) & (VMFN(lane_bits))(m)) | ((VMFN(lane_bits))(b) & ~(VMFN(lane_bits))(m))))

/* Direct entries for tensors of one shape; x and y are whole vectors, what is left over goes to the loop above. */
#define DIRECT(op, expr)                                                                              \
  static int VMFN(direct_##op)(const Value *a, const Value *b, const Value *out) {                    \
    const Value *const args[] = {a, b, out};                                                          \
    const uint64_t nbytes = args_own_float32(args, 3), rest = nbytes % VM_VEC, whole = nbytes - rest; \
    if (VM_UNLIKELY(nbytes == 0)) return binary_direct_checked(B_##op, a, b, out);                    \
    const char *pa = (const char *)arg_own_data(a), *pb = (const char *)arg_own_data(b);              \
    char *po = (char *)arg_own_data(out);                                                             \
    for (uint64_t i = 0; i < whole; i += VM_VEC) {                                                    \
      VMFN(lanes) x = *(const VMFN(lanes) *)(pa + i), y = *(const VMFN(lanes) *)(pb + i);             \
      *(VMFN(lanes) *)(po + i) = (expr);                                                              \
    }                                                                                                 \
    if (rest) VMFN(op##_f32)(pa + whole, pb + whole, po + whole, (int64_t)(rest / 4), 1, 1);          \
    return 0;                                                                                         \
  }
DIRECT(add, x + y)
DIRECT(sub, x - y)
DIRECT(mul, x *y)
DIRECT(div, x / y)
DIRECT(maximum, LANES_SELECT((x > y) | (x != x), x, y))
DIRECT(minimum, LANES_SELECT((x < y) | (x != x), x, y))

static const HotLoops VMFN(hot_loops) = {
#define ROW(op) VMFN(op##_f32),
    {HOT_BINARY(ROW)},
#undef ROW
#define ROW(op) VMFN(op##_f64),
    {HOT_BINARY(ROW)},
#undef ROW
#define ROW(op) VMFN(direct_##op),
    {DIRECT_BINARY(ROW)},
#undef ROW
    {VMFN(where_8), VMFN(where_16), VMFN(where_32), VMFN(where_64)},
    VMFN(half_to_float_n), VMFN(float_to_half_n), VMFN(bfloat_to_float_n), VMFN(float_to_bfloat_n),
};
#undef HOT_LOOP
#undef HOT_LOOPS
#undef WHERE_LOOP
#undef LANES_SELECT
#undef DIRECT
