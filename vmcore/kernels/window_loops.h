/* Loops over padded planes (planes.h), compiled once per instruction set by per_isa.h (so: no include guard).
 *
 * Vectors are GCC vector types of VM_VEC bytes. target_clones would not do: GCC lowers comparisons and shuffles of
 * vector types before it clones, so the clones would run them element by element.
 */
#include "vmcore/kernels/shuffles.h"

typedef float VMFN(vf) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef double VMFN(vd) __attribute__((vector_size(VM_VEC), aligned(8), may_alias));
typedef int32_t VMFN(mf) __attribute__((vector_size(VM_VEC)));
typedef int64_t VMFN(md) __attribute__((vector_size(VM_VEC)));
typedef int32_t VMFN(mf_any) __attribute__((vector_size(VM_VEC), aligned(4), may_alias));
typedef int64_t VMFN(md_any) __attribute__((vector_size(VM_VEC), aligned(8), may_alias));

/* Elements 0, 2, 4 ... of the two vectors at src. */
VM_INLINE VMFN(mf) VMFN(even_vf)(const float *src) {
  VMFN(vf) low = *(const VMFN(vf) *)src, high = *(const VMFN(vf) *)(src + VM_VEC / 4);
  return (VMFN(mf))SHUFFLE(low, high, mf, EVEN_F);
}
VM_INLINE VMFN(md) VMFN(even_vd)(const double *src) {
  VMFN(vd) low = *(const VMFN(vd) *)src, high = *(const VMFN(vd) *)(src + VM_VEC / 8);
  return (VMFN(md))SHUFFLE(low, high, md, EVEN_D);
}

/* Copies what a band (output plane od, output rows from oh on, `rows` of them) reads of n_channels channels; positions
 * outside the input become `fill`. x: the first channel; x_end: past the last element of the whole tensor.
 *
 * The buffer is written in ascending order, so rows are moved and filled in whole vectors that overrun into what is
 * written next, as long as what they read lies inside the tensor; the last rows of the tensor go element by element.
 * Rows of one vector are one load, one mask and one store. */
#define DEFINE_FILL(T, V, M) \
  static void VMFN(fill_##V)(const Window *w, const Planes *p, const void *x_, const void *x_end_, int64_t n_channels, \
                             int64_t od, int64_t oh, int64_t rows, double fill_, void *buffer_) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    const T *x = (const T *)x_, *x_end = (const T *)x_end_; \
    T *buffer = (T *)buffer_, fill = (T)fill_; \
    int64_t in_hw = w->in[1] * w->in[2], in_size = w->in[0] * in_hw, n = p->len[2], used = rows + p->axis[1].shift; \
    int64_t n_phases = p->axis[0].n_phases * p->axis[1].n_phases * p->axis[2].n_phases, stride = w->stride[2]; \
    VMFN(V) fills = (VMFN(V)){0} + fill; \
    VMFN(M) inside[PLANES_KEPT_PHASES]; /* lanes of a short row that lie inside the input */ \
    const T *x_begin = x; \
    PlanePhase kept[PLANES_KEPT_PHASES]; \
    for (int64_t i = 0; i < planes_min(n_phases, PLANES_KEPT_PHASES); ++i) { \
      kept[i] = planes_phase(w, p, i, LANES); \
      for (int64_t j = 0; j < LANES; ++j) inside[i][j] = j >= kept[i].first && j < kept[i].last ? -1 : 0; \
    } \
    for (int64_t c = 0; c < n_channels; ++c, x += in_size, buffer += p->channel_step) { \
      T *o = buffer; \
      for (int64_t phase = 0; phase < n_phases; ++phase) { \
        PlanePhase f = phase < PLANES_KEPT_PHASES ? kept[phase] : planes_phase(w, p, phase, LANES); \
        int64_t first = f.first, last = f.last; \
        int short_row = n <= LANES && stride <= 2 && phase < PLANES_KEPT_PHASES; \
        VMFN(M) mask = inside[short_row ? phase : 0]; \
        for (int64_t d = 0; d < p->len[0]; ++d, o += p->len[1] * n) { \
          int64_t id = (od + d) * w->stride[0] + f.d - w->pad[0]; \
          for (int64_t r = 0; r < used; ++r) { \
            int64_t ih = (oh + r) * w->stride[1] + f.h - w->pad[1]; \
            T *row = o + r * n; \
            if (id < 0 || id >= w->in[0] || ih < 0 || ih >= w->in[1]) { \
              for (int64_t i = 0; i < n; i += LANES) *(VMFN(V) *)(row + i) = fills; \
              continue; \
            } \
            const T *line = x + id * in_hw + ih * w->in[2], *src = line + f.start; \
            if (short_row && src >= x_begin && x_end - src >= stride * LANES) { \
              VMFN(M) v; \
              if (stride == 1) v = *(const VMFN(M##_any) *)src; \
              else v = VMFN(even_##V)(src); \
              *(VMFN(V) *)row = (VMFN(V))((v & mask) | ((VMFN(M))fills & ~mask)); \
              continue; \
            } \
            if (stride <= 2 && x_end - line >= f.reach) { \
              for (int64_t i = 0; i < first; i += LANES) *(VMFN(V) *)(row + i) = fills; \
              if (stride == 1) { \
                for (int64_t i = first; i < last; i += LANES) *(VMFN(V) *)(row + i) = *(const VMFN(V) *)(src + i); \
              } else { \
                for (int64_t i = first; i < last; i += LANES) \
                  *(VMFN(V) *)(row + i) = (VMFN(V))VMFN(even_##V)(src + 2 * i); \
              } \
              for (int64_t i = last; i < n; i += LANES) *(VMFN(V) *)(row + i) = fills; \
              continue; \
            } \
            for (int64_t i = 0; i < first; ++i) row[i] = fill; \
            for (int64_t i = first; i < last; ++i) row[i] = src[stride * i]; \
            for (int64_t i = last; i < n; ++i) row[i] = fill; \
          } \
        } \
      } \
    } \
  }

/* im2col: packs columns [q0, q0 + n) of a band (position q = row * out columns + column) and rows [k0, k1) (row k =
 * channel * taps + tap) into panels of `width` columns, [panel][k][width].
 *
 * Runs of columns inside one output row are moved in whole vectors: what overruns a run is overwritten by the next one,
 * and past the last run by the next row of the panel. So runs and rows are written in ascending order, and the panels
 * have one vector of slack. */
#define DEFINE_PACK(T, V) \
  static void VMFN(pack_##V)(const Planes *p, const int64_t *taps, const void *planes, int64_t out_columns, \
                             int64_t q0, int64_t n, int64_t k0, int64_t k1, int64_t width, void *panels_) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    T *panels = (T *)panels_; \
    int64_t row = q0 / out_columns, column = q0 % out_columns; /* of the next run */ \
    const int64_t first_tap = k0 ? k0 % p->taps : 0, first_channel = k0 ? k0 / p->taps : 0; \
    for (int64_t j = 0; j < n; j += width) { \
      int64_t left = planes_min(width, n - j), n_runs = 0, at[WINDOW_MAX_PANEL], len[WINDOW_MAX_PANEL]; \
      for (int64_t done = 0; done < left; ++n_runs) { \
        len[n_runs] = planes_min(left - done, out_columns - column); \
        at[n_runs] = row * p->len[2] + column; \
        column += len[n_runs], done += len[n_runs]; \
        if (column == out_columns) column = 0, ++row; \
      } \
      int64_t tap = first_tap; \
      const T *channel = (const T *)planes + first_channel * p->channel_step; \
      for (int64_t k = k0; k < k1; ++k, panels += width) { \
        const T *src = channel + taps[tap]; \
        if (n_runs == 1 && left == 2 * LANES) { \
          VMFN(V) low = *(const VMFN(V) *)(src + at[0]), high = *(const VMFN(V) *)(src + at[0] + LANES); \
          *(VMFN(V) *)panels = low, *(VMFN(V) *)(panels + LANES) = high; \
        } else { \
          T *o = panels; \
          for (int64_t r = 0; r < n_runs; ++r) { \
            const T *run = src + at[r]; \
            for (int64_t i = 0; i < len[r]; i += LANES) *(VMFN(V) *)(o + i) = *(const VMFN(V) *)(run + i); \
            o += len[r]; \
          } \
        } \
        if (++tap == p->taps) tap = 0, channel += p->channel_step; \
      } \
    } \
  }

#define RELU(V, M, v) ((VMFN(V))((VMFN(M))(v) & ~(VMFN(M))((v) < (VMFN(V)){0})))

/* One output channel over a band: out = bias + sum over channels and taps of weight * stream, then relu. Four vectors
 * at a time, of one row or of several. line: planes_line_size elements. */
#define DEFINE_DIRECT(T, V, M) \
  static void VMFN(direct_##V)(const Planes *p, const int64_t *taps, const void *planes, int64_t n_channels, \
                               const void *weights, double bias, int relu, int64_t rows, int64_t columns, void *out, \
                               void *line) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    int64_t n_taps = p->taps; \
    int narrow = planes_is_narrow(columns, LANES); \
    T *dst = (T *)(narrow ? line : out); \
    PlaneCursor cursor = planes_walk(p, rows, columns, LANES); \
    while (!planes_done(&cursor)) { \
      int64_t s0, s1, s2, s3, d0, d1, d2, d3; \
      planes_next(&cursor, &s0, &d0), planes_next(&cursor, &s1, &d1); \
      planes_next(&cursor, &s2, &d2), planes_next(&cursor, &s3, &d3); \
      VMFN(V) a0 = (VMFN(V)){0} + (T)bias, a1 = a0, a2 = a0, a3 = a0; \
      for (int64_t c = 0; c < n_channels; ++c) { \
        const T *channel = (const T *)planes + c * p->channel_step, *k = (const T *)weights + c * n_taps; \
        for (int64_t t = 0; t < n_taps; ++t) { \
          const T *s = channel + taps[t]; \
          T x = k[t]; \
          a0 += x * *(const VMFN(V) *)(s + s0), a1 += x * *(const VMFN(V) *)(s + s1); \
          a2 += x * *(const VMFN(V) *)(s + s2), a3 += x * *(const VMFN(V) *)(s + s3); \
        } \
      } \
      if (relu) a0 = RELU(V, M, a0), a1 = RELU(V, M, a1), a2 = RELU(V, M, a2), a3 = RELU(V, M, a3); \
      *(VMFN(V) *)(dst + d0) = a0, *(VMFN(V) *)(dst + d1) = a1; \
      *(VMFN(V) *)(dst + d2) = a2, *(VMFN(V) *)(dst + d3) = a3; \
    } \
    if (narrow) VMFN(scatter_##V)((const T *)line, rows, columns, p->len[2], (T *)out); \
  }

/* Drops the gaps of a narrow band's line. A whole vector overruns into rows that follow, as long as it ends inside the
 * last one. */
#define DEFINE_SCATTER(T, V) \
  VM_INLINE void VMFN(scatter_##V)(const T *line, int64_t rows, int64_t columns, int64_t pitch, T *out) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    int64_t whole = rows + 1 - (LANES + columns - 1) / columns, r = 0; \
    for (; r < whole; ++r, out += columns, line += pitch) *(VMFN(V) *)out = *(const VMFN(V) *)line; \
    for (; r < rows; ++r, out += columns, line += pitch) \
      for (int64_t i = 0; i < columns; ++i) out[i] = line[i]; \
  }

/* The same for one channel and a 3 x 3 window without gaps (stride 1, dilation 1): walks down the rows with three
 * partial outputs, so that each input row is loaded once. columns >= lanes. */
#define DEFINE_3X3(T, V, M) \
  static void VMFN(plain_3x3_##V)(const void *plane, int64_t pitch, const void *weights, double bias, int relu, \
                                  int64_t rows, int64_t columns, void *out) { \
    enum { LANES = VM_VEC / sizeof(T) }; \
    T w[9]; /* a copy that no store can change */ \
    memcpy(w, weights, sizeof w); \
    for (int64_t i = 0; i < columns;) { \
      int wide = i + 2 * LANES <= columns; \
      if (!wide && i + LANES > columns) i = columns - LANES; \
      const T *src = (const T *)plane + i; \
      T *o = (T *)out + i; \
      VMFN(V) b = (VMFN(V)){0} + (T)bias, above0 = b, here0 = b, above1 = b, here1 = b; \
      for (int64_t r = 0; r < rows + 2; ++r, src += pitch) { \
        VMFN(V) l0 = *(const VMFN(V) *)src, m0 = *(const VMFN(V) *)(src + 1), r0 = *(const VMFN(V) *)(src + 2); \
        VMFN(V) done = above0 + w[6] * l0 + w[7] * m0 + w[8] * r0; \
        above0 = here0 + w[3] * l0 + w[4] * m0 + w[5] * r0; \
        here0 = b + w[0] * l0 + w[1] * m0 + w[2] * r0; \
        if (r >= 2) *(VMFN(V) *)o = relu ? RELU(V, M, done) : done; \
        if (wide) { \
          VMFN(V) l1 = *(const VMFN(V) *)(src + LANES), m1 = *(const VMFN(V) *)(src + LANES + 1); \
          VMFN(V) r1 = *(const VMFN(V) *)(src + LANES + 2); \
          VMFN(V) done1 = above1 + w[6] * l1 + w[7] * m1 + w[8] * r1; \
          above1 = here1 + w[3] * l1 + w[4] * m1 + w[5] * r1; \
          here1 = b + w[0] * l1 + w[1] * m1 + w[2] * r1; \
          if (r >= 2) *(VMFN(V) *)(o + LANES) = relu ? RELU(V, M, done1) : done1; \
        } \
        if (r >= 2) o += columns; \
      } \
      i += wide ? 2 * LANES : LANES; \
    } \
  }

#define DEFINE_ALL(T, V, M) \
  DEFINE_FILL(T, V, M) \
  DEFINE_PACK(T, V) \
  DEFINE_SCATTER(T, V) \
  DEFINE_DIRECT(T, V, M) \
  DEFINE_3X3(T, V, M)
DEFINE_ALL(float, vf, mf)
DEFINE_ALL(double, vd, md)

#define TABLE(V, LANES) \
  {LANES, VMFN(fill_##V), VMFN(pack_##V), VMFN(direct_##V), VMFN(plain_3x3_##V)}
static const WindowLoops VMFN(window_loops)[2] = {TABLE(vf, VM_VEC / 4), TABLE(vd, VM_VEC / 8)};

#undef DEFINE_FILL
#undef DEFINE_PACK
#undef RELU
#undef DEFINE_DIRECT
#undef DEFINE_SCATTER
#undef DEFINE_3X3
#undef DEFINE_ALL
#undef TABLE
