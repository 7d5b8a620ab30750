/* Typed helpers of indexing.pyx: combining runs (scatter), ordering keys and a bounded heap (topk). */
#ifndef VMCORE_KERNELS_INDEXING_H
#define VMCORE_KERNELS_INDEXING_H

#include "vmcore/kernels/args.h"
#include "vmcore/kernels/cast.h"
#include "vmcore/kernels/dtypes.h"

enum { COMBINE_NONE = 0, COMBINE_ADD = 1, COMBINE_MUL = 2, COMBINE_MAX = 3, COMBINE_MIN = 4 };

/* dst[i] = dst[i] (+) src[i]; integers wrap, max and min pass NaN on. W: type in which add and mul are computed. */
#define COMBINE(s, T, W)                                                                              \
  static void combine_##s(char *to, const char *from, int64_t n, int reduction) {                     \
    T *dst = (T *)to;                                                                                 \
    const T *src = (const T *)from;                                                                   \
    for (int64_t i = 0; i < n; ++i) {                                                                 \
      T a = dst[i], b = src[i];                                                                       \
      switch (reduction) {                                                                            \
        case COMBINE_ADD: dst[i] = (T)((W)a + (W)b); break;                                           \
        case COMBINE_MUL: dst[i] = (T)((W)a * (W)b); break;                                           \
        case COMBINE_MAX: dst[i] = a > b || a != a ? a : b; break;                                    \
        case COMBINE_MIN: dst[i] = a < b || a != a ? a : b; break;                                    \
        default: dst[i] = b;                                                                          \
      }                                                                                               \
    }                                                                                                 \
  }
#define INT_COMBINE(s, T, k) COMBINE(s, T, uint64_t)
#define FLOAT_COMBINE(s, T, k) COMBINE(s, T, T)
KERNEL_INTS(INT_COMBINE)
KERNEL_FLOATS(FLOAT_COMBINE)

static void combine_run(int dtype, int reduction, char *dst, const char *src, int64_t n, int64_t item) {
  if (reduction == COMBINE_NONE) {
    if (item == 4 && n == 1) memcpy(dst, src, 4);
    else memcpy(dst, src, (size_t)(n * item));
    return;
  }
  if (dtype == K_F16 || dtype == K_BF16) {
    float a[64], b[64];
    for (int64_t i = 0; i < n; i += 64) {
      int64_t m = n - i < 64 ? n - i : 64;
      cast_elements(dst + i * 2, dtype, 2, (char *)a, K_F32, 4, m);
      cast_elements(src + i * 2, dtype, 2, (char *)b, K_F32, 4, m);
      combine_f32((char *)a, (const char *)b, m, reduction);
      cast_elements((const char *)a, K_F32, 4, dst + i * 2, dtype, 2, m);
    }
    return;
  }
  switch (dtype) {
#define ROW(s, T, k) \
  case k: combine_##s(dst, src, n, reduction); return;
    KERNEL_INTS(ROW)
    KERNEL_FLOATS(ROW)
#undef ROW
    default: /* bool: add and max are or, mul and min are and */
      for (int64_t i = 0; i < n; ++i)
        dst[i] = reduction == COMBINE_ADD || reduction == COMBINE_MAX ? dst[i] | src[i] : (dst[i] != 0) & (src[i] != 0);
  }
}

/* An unsigned key that orders as the elements do; NaN is greatest, -0 equals 0. */
static uint64_t order_key(int dtype, const char *p) {
  switch (dtype) {
#define SIGNED(s, T, k) \
  case k: return (uint64_t)(int64_t)*(const T *)p ^ 1ull << 63;
#define UNSIGNED(s, T, k) \
  case k: return *(const T *)p;
    KERNEL_SIGNED(SIGNED)
    KERNEL_UNSIGNED(UNSIGNED)
#undef SIGNED
#undef UNSIGNED
    case K_BOOL: return *(const uint8_t *)p != 0;
    default: {
      double d;
      uint64_t bits;
      if (dtype == K_F64) d = *(const double *)p;
      else if (dtype == K_F32) d = *(const float *)p;
      else cast_elements(p, dtype, 2, (char *)&d, K_F64, 8, 1);
      if (d != d) return UINT64_MAX;
      d += 0.0;
      memcpy(&bits, &d, 8);
      return bits >> 63 ? ~bits : bits | 1ull << 63;
    }
  }
}

typedef struct Ranked {
  uint64_t key;
  int64_t at;
} Ranked;

/* a is ranked after b: smaller key, or the same key further on. */
static inline int ranked_after(const Ranked *a, const Ranked *b) {
  return a->key != b->key ? a->key < b->key : a->at > b->at;
}

static void heap_sink(Ranked *heap, int64_t n, int64_t i) { /* the last-ranked entry is at the root */
  Ranked moved = heap[i];
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= n) break;
    if (child + 1 < n && ranked_after(&heap[child + 1], &heap[child])) ++child;
    if (!ranked_after(&heap[child], &moved)) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = moved;
}

/* heap[0..k) = the k first-ranked of n elements `step` bytes apart, in rank order; flip: ~0 for the smallest. */
static void top_ranked(Ranked *heap, int64_t k, int dtype, const char *x, int64_t n, int64_t step, uint64_t flip) {
  for (int64_t i = 0; i < n; ++i) {
    Ranked entry = {order_key(dtype, x + i * step) ^ flip, i};
    if (i < k) {
      heap[i] = entry;
      if (i == k - 1)
        for (int64_t j = k / 2; j-- > 0;) heap_sink(heap, k, j);
    } else if (ranked_after(&heap[0], &entry)) {
      heap[0] = entry;
      heap_sink(heap, k, 0);
    }
  }
  for (int64_t m = k - 1; m > 0; --m) { /* the root is last of what remains */
    Ranked last = heap[0];
    heap[0] = heap[m];
    heap[m] = last;
    heap_sink(heap, m, 0);
  }
}

/* Number of elements that are not zero among n; with `at`, their positions too (at most `room` are written). */
static int64_t find_nonzero(int dtype, const char *x, int64_t n, int64_t item, int64_t *at, int64_t room) {
  uint64_t mask = ~0ull; /* the sign bit of a float does not count */
  if (dtype == K_F64) mask >>= 1;
  else if (dtype == K_F32) mask = 0x7fffffff;
  else if (dtype == K_F16 || dtype == K_BF16) mask = 0x7fff;
  int64_t count = 0;
#define SCAN(T)                                    \
  for (int64_t i = 0; i < n; ++i)                  \
    if (((const T *)x)[i] & (T)mask) {             \
      if (at && count < room) at[count] = i;       \
      ++count;                                     \
    }                                              \
  return count;
  switch (item) {
    case 1: SCAN(uint8_t)
    case 2: SCAN(uint16_t)
    case 4: SCAN(uint32_t)
    default: SCAN(uint64_t)
  }
#undef SCAN
}

/* One small run; the usual sizes become plain moves. */
static inline void copy_run(char *dst, const char *src, int64_t nbytes) {
  if (nbytes == 4) memcpy(dst, src, 4);
  else if (nbytes == 8) memcpy(dst, src, 8);
  else memcpy(dst, src, (size_t)nbytes);
}

#endif
