/* Transforms of Winograd convolution (winograd.h), compiled once per instruction set by per_isa.h. Lanes are tiles that
 * lie side by side; a row of inputs is split into its even and odd columns on the way. */
#if VM_VEC == 64
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VM_VEC == 32
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VMFN(wi)){__VA_ARGS__})
#endif
#define LANES (VM_VEC / 4)
#define AT(p) (*(VMFN(wf) *)(p))
#define GET(p) (*(const VMFN(wf) *)(p))

typedef float VMFN(wf) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef int32_t VMFN(wi) __attribute__((vector_size(VM_VEC)));

/* Rows are written in ascending order, in whole vectors that overrun into what is written next or into slack. */
static void VMFN(winograd_input)(const WinogradBlock *b, const float *x, const float *x_end, float *packed) {
  const int64_t start = WINOGRAD_STEP * b->column - b->pad[1], used = WINOGRAD_STEP * b->n_columns + 2;
  const int64_t first = start < 0 ? -start : 0;
  int64_t last = b->in[1] - start < used ? b->in[1] - start : used;
  if (last < first) last = first;
  const int64_t n = last - first, pitch = b->line_pitch, flat_pitch = b->flat_pitch;
  float *const lines = b->lines + first, *flat = b->flat;
  for (int64_t r = 0; r < b->n_rows; ++r, flat += b->n_columns) {
    const float *src[4];
    int64_t whole = winograd_up(n, LANES);
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t h = WINOGRAD_STEP * (b->row + r) + i - b->pad[0];
      src[i] = b->lines + 4 * pitch; /* a row of zeros */
      if (h < 0 || h >= b->in[0]) continue;
      src[i] = x + h * b->in[1] + start + first;
      if (x_end - src[i] < whole) whole = n / LANES * LANES;
    }
    VMFN(wf) d[4];
    for (int64_t w = 0; w < whole; w += LANES) {
      for (int i = 0; i < 4; ++i) d[i] = GET(src[i] + w);
      AT(lines + w) = d[0] - d[2], AT(lines + pitch + w) = d[1] + d[2];
      AT(lines + 2 * pitch + w) = d[2] - d[1], AT(lines + 3 * pitch + w) = d[1] - d[3];
    }
    for (int64_t w = whole; w < n; ++w) {
      float s[4];
      for (int i = 0; i < 4; ++i) s[i] = src[i][w];
      lines[w] = s[0] - s[2], lines[pitch + w] = s[1] + s[2];
      lines[2 * pitch + w] = s[2] - s[1], lines[3 * pitch + w] = s[1] - s[3];
    }
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t w = n; w < used - first; w += LANES) AT(lines + i * pitch + w) = (VMFN(wf)){0};
    for (int64_t i = 0; i < 4; ++i) {
      const float *line = b->lines + i * pitch;
      float *o = flat + 4 * i * flat_pitch;
      for (int64_t t = 0; t < b->n_columns; t += LANES, line += 2 * LANES, o += LANES) {
        const VMFN(wf) l = GET(line), m = GET(line + LANES), l2 = GET(line + 2), m2 = GET(line + LANES + 2);
        const VMFN(wf) c0 = SHUFFLE(l, m, EVEN), c1 = SHUFFLE(l, m, ODD);
        const VMFN(wf) c2 = SHUFFLE(l2, m2, EVEN), c3 = SHUFFLE(l2, m2, ODD);
        AT(o) = c0 - c2, AT(o + flat_pitch) = c1 + c2;
        AT(o + 2 * flat_pitch) = c2 - c1, AT(o + 3 * flat_pitch) = c1 - c3;
      }
    }
  }
  for (int64_t point = 0; point < WINOGRAD_POINTS; ++point) {
    const float *from = b->flat + point * flat_pitch;
    float *o = packed + point * b->point_step;
    for (int64_t t = 0; t < b->n_tiles; t += 2 * LANES, o += b->panel_step)
      AT(o) = GET(from + t), AT(o + LANES) = GET(from + t + LANES);
  }
}

/* What follows the sums of a position. */
VM_INLINE VMFN(wf) VMFN(winograd_end)(VMFN(wf) v, const float *more, int relu) {
  if (more) v += GET(more);
  return relu ? (VMFN(wf))((VMFN(wi))v & ~(VMFN(wi))(v < (VMFN(wf)){0})) : v;
}

static void VMFN(winograd_output)(const WinogradBlock *b, const float *sums, float bias, int64_t residual, int relu,
                                  float *out) {
  const int64_t pitch = 2 * b->flat_pitch, step = b->sum_step;
  float *const flat = b->flat;
  for (int64_t t = 0; t < b->n_tiles; t += LANES) {
    VMFN(wf) y0[4], y1[4];
    for (int i = 0; i < 4; ++i) { /* column i of the points */
      const float *s = sums + t + i * step;
      const VMFN(wf) m0 = GET(s), m1 = GET(s + 4 * step), m2 = GET(s + 8 * step), m3 = GET(s + 12 * step);
      y0[i] = m0 + m1 + m2, y1[i] = m1 - m2 - m3;
    }
    const VMFN(wf) a = y0[0] + y0[1] + y0[2] + bias, c = y0[1] - y0[2] - y0[3] + bias;
    const VMFN(wf) e = y1[0] + y1[1] + y1[2] + bias, g = y1[1] - y1[2] - y1[3] + bias;
    AT(flat + 2 * t) = SHUFFLE(a, c, LOW), AT(flat + 2 * t + LANES) = SHUFFLE(a, c, HIGH);
    AT(flat + pitch + 2 * t) = SHUFFLE(e, g, LOW), AT(flat + pitch + 2 * t + LANES) = SHUFFLE(e, g, HIGH);
  }
  const int64_t column = WINOGRAD_STEP * b->column, left = b->out[1] - column;
  const int64_t n = left < WINOGRAD_STEP * b->n_columns ? left : WINOGRAD_STEP * b->n_columns;
  for (int64_t r = 0; r < WINOGRAD_STEP * b->n_rows; ++r) {
    const int64_t h = WINOGRAD_STEP * b->row + r;
    if (h >= b->out[0]) break;
    const float *from = flat + r % 2 * pitch + r / 2 * 2 * b->n_columns;
    float *o = out + h * b->out[1] + column;
    const float *more = residual ? (const float *)((const char *)o + residual) : NULL;
    int64_t w = 0;
    for (; w + LANES <= n; w += LANES) AT(o + w) = VMFN(winograd_end)(GET(from + w), more ? more + w : NULL, relu);
    if (w < n && n >= LANES) { /* once more from the start of the last whole vector: neighbours belong to others */
      w = n - LANES;
      AT(o + w) = VMFN(winograd_end)(GET(from + w), more ? more + w : NULL, relu);
    } else {
      for (; w < n; ++w) {
        const float v = more ? from[w] + more[w] : from[w];
        o[w] = relu && v < 0 ? 0 : v;
      }
    }
  }
}

static const WinogradLoops VMFN(winograd_loops)[1] = {{VMFN(winograd_input), VMFN(winograd_output)}};

#undef EVEN
#undef ODD
#undef LOW
#undef HIGH
#undef SHUFFLE
#undef LANES
#undef AT
#undef GET
