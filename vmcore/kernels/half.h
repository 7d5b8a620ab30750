/* float16 and bfloat16 <-> float32, round to nearest even; NaN stays NaN. Included inside per_isa.h bodies. */
VM_INLINE float VMFN(half_to_float)(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff) << 13, bits;
  float scaled;
  if ((h & 0x7c00) == 0x7c00) {
    bits = sign | 0x7f800000 | magnitude;
  } else { /* 2^112 moves the exponent bias, for denormals too */
    memcpy(&scaled, &magnitude, 4);
    scaled *= 5.192296858534828e33f;
    memcpy(&bits, &scaled, 4);
    bits |= sign;
  }
  memcpy(&scaled, &bits, 4);
  return scaled;
}

VM_INLINE uint16_t VMFN(float_to_half)(float f) {
  uint32_t bits, sign;
  memcpy(&bits, &f, 4);
  sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 2^16 or more */
  if (bits < 0x38800000) {                                   /* denormal: let the adder round */
    float v;
    memcpy(&v, &bits, 4);
    v += 0.5f;
    memcpy(&bits, &v, 4);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  return (uint16_t)(sign | ((bits + 0xc8000fff + (bits >> 13 & 1)) >> 13));
}

static void VMFN(half_to_float_n)(const uint16_t *x, float *y, int64_t n) {
  int64_t i = 0;
#if VM_ISA > 0
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
  for (; i < n; ++i) y[i] = VMFN(half_to_float)(x[i]);
}

static void VMFN(float_to_half_n)(const float *x, uint16_t *y, int64_t n) {
  int64_t i = 0;
#if VM_ISA > 0
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) y[i] = VMFN(float_to_half)(x[i]);
}

static void VMFN(bfloat_to_float_n)(const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = (uint32_t)x[i] << 16;
    memcpy(y + i, &bits, 4);
  }
}

static void VMFN(float_to_bfloat_n)(const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    y[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}
