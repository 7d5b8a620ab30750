/* Transforms of Winograd convolution (winograd.h), compiled once per instruction set by per_isa.h. Lanes are channels,
 * so that maps of any size fill them; channels are turned into lanes on the way in, and back on the way out.
 */
#if VM_VEC == 64
#define LANES 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VM_VEC == 32
#define LANES 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LANES 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VMFN(wi)){__VA_ARGS__})
#endif
#define AT(p) (*(VMFN(wf) *)(p))
#define GET(p) (*(const VMFN(wf) *)(p))

typedef float VMFN(wf) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef int32_t VMFN(wi) __attribute__((vector_size(VM_VEC)));

/* v[i][j] becomes v[j][i]: each step puts a row between those that lie half of them further on. */
VM_INLINE void VMFN(winograd_turn)(VMFN(wf) * v) {
  VMFN(wf) u[LANES];
  for (int step = 1; step < LANES; step *= 2) {
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES / 2; ++i) {
      u[2 * i] = SHUFFLE(v[i], v[i + LANES / 2], LOW);
      u[2 * i + 1] = SHUFFLE(v[i], v[i + LANES / 2], HIGH);
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) v[i] = u[i];
  }
}

/* [channel][position] to [position][channel] for n positions. The last vectors are done from the end backwards. */
static void VMFN(winograd_turn_in)(const float *const *src, int64_t at, int64_t n, float *to) {
  VMFN(wf) v[LANES];
  if (n < LANES) {
    for (int64_t i = 0; i < LANES; ++i)
      for (int64_t p = 0; p < n; ++p) to[p * LANES + i] = src[i][at + p];
    return;
  }
  for (int64_t p = 0; p < n; p += LANES) {
    const int64_t q = p + LANES <= n ? p : n - LANES;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) v[i] = GET(src[i] + at + q);
    VMFN(winograd_turn)(v);
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) AT(to + (q + i) * LANES) = v[i];
  }
}

/* B' d for column w of the inputs; columns beside the image are zero. */
VM_INLINE void VMFN(winograd_column)(const float *const *line, int64_t w, int64_t width, VMFN(wf) * s) {
  if (w < 0 || w >= width) {
    s[0] = s[1] = s[2] = s[3] = (VMFN(wf)){0};
    return;
  }
  const VMFN(wf) d0 = GET(line[0] + w * LANES), d1 = GET(line[1] + w * LANES);
  const VMFN(wf) d2 = GET(line[2] + w * LANES), d3 = GET(line[3] + w * LANES);
  s[0] = d0 - d2, s[1] = d1 + d2, s[2] = d2 - d1, s[3] = d1 - d3;
}

static void VMFN(winograd_input)(const WinogradBlock *b, const float *x, int64_t n, float *points) {
  const int64_t h0 = WINOGRAD_STEP * b->row - b->pad[0], w0 = WINOGRAD_STEP * b->column - b->pad[1];
  const int64_t top = h0 > 0 ? h0 : 0, left = w0 > 0 ? w0 : 0, pitch = b->pitch, step = b->point_step;
  const int64_t bottom = winograd_min(h0 + WINOGRAD_STEP * b->n_rows + 2, b->in[0]);
  const int64_t right = winograd_min(w0 + WINOGRAD_STEP * b->n_columns + 2, b->in[1]), width = right - left;
  if (bottom > top && width > 0) {
    const float *src[LANES];
    for (int64_t i = 0; i < LANES; ++i) src[i] = x + winograd_min(i, n - 1) * b->in_size + top * b->in[1] + left;
    if (width == b->in[1]) {
      VMFN(winograd_turn_in)(src, 0, (bottom - top) * width, b->turned);
    } else {
      for (int64_t r = 0; r < bottom - top; ++r)
        VMFN(winograd_turn_in)(src, r * b->in[1], width, b->turned + r * width * LANES);
    }
  }
  for (int64_t r = 0; r < b->n_rows; ++r) {
    const float *line[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t h = h0 + WINOGRAD_STEP * r + i;
      line[i] = h >= top && h < bottom ? b->turned + (h - top) * width * LANES : b->zeros;
    }
    int64_t w = w0 - left;
    VMFN(wf) s0[4], s1[4], s2[4], s3[4]; /* by columns; the last two of a tile are the first two of the next */
    VMFN(winograd_column)(line, w, width, s0), VMFN(winograd_column)(line, w + 1, width, s1);
    for (int64_t c = 0; c < b->n_columns; ++c, points += pitch) {
      w += 2;
      VMFN(winograd_column)(line, w, width, s2), VMFN(winograd_column)(line, w + 1, width, s3);
      float *o = points;
      _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i, o += 4 * step) {
        AT(o) = s0[i] - s2[i], AT(o + step) = s1[i] + s2[i];
        AT(o + 2 * step) = s2[i] - s1[i], AT(o + 3 * step) = s1[i] - s3[i];
        s0[i] = s2[i], s1[i] = s3[i];
      }
    }
  }
}

/* What follows the sums of a position. */
VM_INLINE VMFN(wf) VMFN(winograd_end)(VMFN(wf) v, const float *more, int relu) {
  if (more) v += GET(more);
  return relu ? (VMFN(wf))((VMFN(wi))v & ~(VMFN(wi))(v < (VMFN(wf)){0})) : v;
}

/* [position][channel] to n channels of the output, `positions` of each, then what follows. */
static void VMFN(winograd_turn_out)(const WinogradBlock *b, const float *from, int64_t positions, int64_t n,
                                    int64_t residual, int relu, float *out) {
  VMFN(wf) v[LANES];
  for (int64_t p = 0; p < positions; p += LANES) {
    const int64_t q = p + LANES <= positions || positions < LANES ? p : positions - LANES;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) v[i] = GET(from + (q + i) * LANES);
    VMFN(winograd_turn)(v);
    for (int64_t i = 0; i < n; ++i) {
      float *o = out + i * b->out_size + q;
      const float *more = residual ? (const float *)((const char *)o + residual) : NULL;
      if (positions >= LANES) {
        AT(o) = VMFN(winograd_end)(v[i], more, relu);
        continue;
      }
      for (int64_t j = 0; j < positions; ++j) {
        const float s = more ? v[i][j] + more[j] : v[i][j];
        o[j] = relu && s < 0 ? 0 : s;
      }
    }
  }
}

static void VMFN(winograd_output)(const WinogradBlock *b, const float *sums, int64_t n, const float *bias,
                                  int64_t residual, int relu, float *out) {
  const int64_t h0 = WINOGRAD_STEP * b->row, w0 = WINOGRAD_STEP * b->column, step = b->sum_step;
  const int64_t rows = winograd_min(WINOGRAD_STEP * b->n_rows, b->out[0] - h0);
  const int64_t columns = winograd_min(WINOGRAD_STEP * b->n_columns, b->out[1] - w0);
  const VMFN(wf) start = GET(bias);
  for (int64_t r = 0; r < b->n_rows; ++r)
    for (int64_t c = 0; c < b->n_columns; ++c, sums += b->sum_pitch) {
      VMFN(wf) y0[4], y1[4];
      _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) { /* column i of the points */
        const float *s = sums + i * step;
        const VMFN(wf) m0 = GET(s), m1 = GET(s + 4 * step), m2 = GET(s + 8 * step), m3 = GET(s + 12 * step);
        y0[i] = m0 + m1 + m2, y1[i] = m1 - m2 - m3;
      }
      float *o = b->turned + (WINOGRAD_STEP * r * columns + WINOGRAD_STEP * c) * LANES;
      const int beside = WINOGRAD_STEP * c + 1 < columns, below = WINOGRAD_STEP * r + 1 < rows;
      AT(o) = y0[0] + y0[1] + y0[2] + start;
      if (beside) AT(o + LANES) = y0[1] - y0[2] - y0[3] + start;
      if (below) AT(o + columns * LANES) = y1[0] + y1[1] + y1[2] + start;
      if (beside && below) AT(o + (columns + 1) * LANES) = y1[1] - y1[2] - y1[3] + start;
    }
  out += h0 * b->out[1] + w0;
  if (columns == b->out[1]) {
    VMFN(winograd_turn_out)(b, b->turned, rows * columns, n, residual, relu, out);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      VMFN(winograd_turn_out)(b, b->turned + r * columns * LANES, columns, n, residual, relu, out + r * b->out[1]);
  }
}

static const WinogradLoops VMFN(winograd_loops)[1] = {{LANES, VMFN(winograd_input), VMFN(winograd_output)}};

#undef LOW
#undef HIGH
#undef SHUFFLE
#undef LANES
#undef AT
#undef GET
