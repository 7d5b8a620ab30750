/* float32 vector mathematics, compiled once per instruction set by per_isa.h (so: no include guard).
 *
 * Vertical code on GCC vector extensions of VM_VEC bytes. NaN goes through every function; the ends (inf, overflow,
 * underflow to denormals) are exact. Errors (dense sweeps in tests/vmcore/kernels/test_elementwise.py): exp and log
 * 1 ulp, sigmoid 3 ulp, tanh 6 ulp, erf 3e-7 absolute.
 */
#define vf VMFN(vf)
#define vi VMFN(vi)
#define vu VMFN(vu)
#define VL (VM_VEC / 4)

typedef float vf __attribute__((vector_size(VM_VEC), may_alias));
typedef int32_t vi __attribute__((vector_size(VM_VEC), may_alias));
typedef uint32_t vu __attribute__((vector_size(VM_VEC), may_alias));
typedef float VMFN(vf_any) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));

#define VF_SET(c) ((vf){} + (c))
#define VI_SET(c) ((vi){} + (c))
#define VF_LOAD(p) ((vf)(*(const VMFN(vf_any) *)(p)))
#define VF_STORE(p, v) (*(VMFN(vf_any) *)(p) = (v))
#define VF_SELECT(mask, a, b) ((vf)(((vi)(a) & (mask)) | ((vi)(b) & ~(mask))))
#define VF_ABS(x) ((vf)((vi)(x)&0x7fffffff))

/* a > b ? a : b and a < b ? a : b: the second operand where either is NaN. */
VM_INLINE vf VMFN(vmax)(vf a, vf b) {
#if VM_ISA == 2
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VM_ISA == 1
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif VM_X86_VERSIONS
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return VF_SELECT(a > b, a, b);
#endif
}

VM_INLINE vf VMFN(vmin)(vf a, vf b) {
#if VM_ISA == 2
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif VM_ISA == 1
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif VM_X86_VERSIONS
  return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
  return VF_SELECT(a < b, a, b);
#endif
}

/* v * 2^n for integral n in [-260, 260]; exact, or rounded once where the result is denormal. */
VM_INLINE vf VMFN(vscale)(vf v, vf n) {
#if VM_ISA == 2
  return (vf)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
  vi k = __builtin_convertvector(n, vi), half = k >> 1;
  return v * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
#endif
}

/* x = n ln2 + r with integral n, |r| <= ln2 / 2, for |x| < 2^20. */
VM_INLINE vf VMFN(vreduce)(vf x, vf *r) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
  vf n = x * 1.44269504f + magic - magic;
  *r = x - n * 0.693359375f + n * 2.12194440e-4f;
  return n;
}

/* (e^r - 1 - r) / r^2 for |r| <= ln2 / 2 */
VM_INLINE vf VMFN(vexp_poly)(vf r) {
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

VM_INLINE vf VMFN(vexp)(vf x) {
  x = VMFN(vmin)(VF_SET(89.0f), VMFN(vmax)(VF_SET(-104.0f), x)); /* order: NaN passes */
  vf r, n = VMFN(vreduce)(x, &r);
  return VMFN(vscale)(VMFN(vexp_poly)(r) * (r * r) + r + 1.0f, n);
}

VM_INLINE vf VMFN(vexpm1)(vf x) {
  x = VMFN(vmin)(VF_SET(89.0f), VMFN(vmax)(VF_SET(-18.0f), x));
  vf r, n = VMFN(vreduce)(x, &r);
  vf q = VMFN(vexp_poly)(r) * (r * r) + r, s = VMFN(vscale)(VF_SET(1.0f), n - 1.0f);
  return ((q * s) + (s - 0.5f)) * 2.0f; /* one factor 2 last, so that n = 128 does not overflow early */
}

VM_INLINE vf VMFN(vlog)(vf x) {
  vi tiny = x < 1.17549435e-38f;
  vf v = VF_SELECT(tiny, x * 8388608.0f, x); /* denormals: scale by 2^23 */
  vi bits = (vi)((vu)v - 0x3f3504f3u);       /* mantissa in [sqrt(1/2), sqrt(2)); wraps for negative x */
  vi e = (bits >> 23) - (tiny & 23);
  vf f = (vf)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f, n = __builtin_convertvector(e, vf), z = f * f;
  vf p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  vf y = p * f * z + n * -2.12194440e-4f - 0.5f * z;
  y = f + y + n * 0.693359375f;
  y = VF_SELECT((vi)x == 0x7f800000, x, y);
  y = VF_SELECT(x == 0.0f, VF_SET(-__builtin_inff()), y);
  return VF_SELECT((x < 0.0f) | (x != x), VF_SET(__builtin_nanf("")), y);
}

/* log(1 + t) for t in [0, 1]: log(u) plus what rounding u = 1 + t lost, over u; 1.5 - u / 2 is near enough to 1 / u. */
VM_INLINE vf VMFN(vlog1p)(vf t) {
  vf u = 1.0f + t;
  return VMFN(vlog)(u) + (t - (u - 1.0f)) * (1.5f - 0.5f * u);
}

VM_INLINE vf VMFN(vsigmoid)(vf x) { return 1.0f / (1.0f + VMFN(vexp)(-x)); }

/* Odd rational approximation on [-7.9, 7.9]; Source: Eigen's ptanh coefficients. */
VM_INLINE vf VMFN(vtanh)(vf x) {
  vf c = VMFN(vmin)(VF_SET(7.90531110763549805f), VMFN(vmax)(VF_SET(-7.90531110763549805f), x)), s = c * c;
  vf p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = (p * s + 4.89352455891786e-03f) * c;
  vf q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return VF_SELECT(VF_ABS(x) < 4e-4f, x, p / q);
}

/* Odd rational approximation on [-4, 4]; Source: Eigen's perf coefficients. Exactly +-1 beyond 3.92. */
VM_INLINE vf VMFN(verf)(vf x) {
  vf c = VMFN(vmin)(VF_SET(4.0f), VMFN(vmax)(VF_SET(-4.0f), x)), s = c * c;
  vf p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = (p * s - 1.60960333262415e-02f) * c;
  vf q = s * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  vf one = (vf)(((vi)x & (int32_t)0x80000000) | 0x3f800000);
  return VF_SELECT(VF_ABS(x) > 3.92f, one, p / q);
}

VM_INLINE float VMFN(vsum)(vf v) {
#if VM_ISA == 2
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0.0f;
  for (int i = 0; i < VL; ++i) s += v[i];
  return s;
#endif
}

/* The largest lane; lanes must not be NaN. */
VM_INLINE float VMFN(vhighest)(vf v) {
#if VM_ISA == 2
  return _mm512_reduce_max_ps((__m512)v);
#else
  float top = v[0];
  for (int i = 1; i < VL; ++i) top = v[i] > top ? v[i] : top;
  return top;
#endif
}

/* Lanes below n from p, the others `fill`. */
VM_INLINE vf VMFN(vload_part)(const float *p, int64_t n, float fill) {
#if VM_ISA == 2
  return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
#else
  float lanes[VL];
  for (int i = 0; i < VL; ++i) lanes[i] = i < n ? p[i] : fill;
  return VF_LOAD(lanes);
#endif
}

VM_INLINE void VMFN(vstore_part)(float *p, int64_t n, vf v) {
#if VM_ISA == 2
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  float lanes[VL];
  VF_STORE(lanes, v);
  memcpy(p, lanes, (size_t)n * 4);
#endif
}

/* The first m <= VL lanes; the unused ones are 0. */
VM_INLINE vf VMFN(vload_upto)(const float *p, int64_t m) {
  if (m == VL) return VF_LOAD(p);
  return VMFN(vload_part)(p, m, 0.0f);
}

VM_INLINE void VMFN(vstore_upto)(float *p, int64_t m, vf v) {
  if (m == VL) VF_STORE(p, v);
  else VMFN(vstore_part)(p, m, v);
}
