/* Padded, phase-split copies of an input: what turns every convolution and pooling window into contiguous streams.
 *
 * Along an axis with stride s and dilation d, tap j of output position o reads the padded input at o * s + j * d, which
 * is element o + (j * d) / s of the phase (j * d) % s. A plane buffer holds the phases that occur, one after another,
 * each with its own rows; then the source of any tap is `tap offset + position`, the same for all positions:
 *   address = channel * channel_step + tap[t] + row * row_step + column
 * Only a band of output rows is copied at a time, so the buffer stays in cache whatever the size of the image.
 */
#ifndef VMCORE_KERNELS_PLANES_H
#define VMCORE_KERNELS_PLANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/simd.h"

/* A window over a (D, H, W) volume; 1-D and 2-D windows have leading axes of size 1. All values are checked. */
typedef struct Window {
  int64_t in[3], out[3], kernel[3], stride[3], dilation[3], pad[3]; /* pad: at the beginning of each axis */
} Window;

#define PLANES_MAX_SIZE ((int64_t)1 << 30) /* larger attributes and sizes are refused: no sum overflows */

/* Copied elements may be read this far past the end, so that rows can be moved in whole vectors. */
#define PLANES_SLACK 64

typedef struct PlaneAxis {
  int64_t n_phases; /* phases that occur */
  int64_t shift;    /* largest element offset of a tap */
} PlaneAxis;

typedef struct Planes {
  PlaneAxis axis[3];
  int64_t rows;          /* output rows of one band */
  int64_t len[3];        /* elements of one phase along each axis: one plane, rows + shift, columns + shift */
  int64_t channel_step;  /* elements */
  int64_t taps;
} Planes;

static inline int64_t planes_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t planes_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Phases that occur along an axis: tap j has phase j * d % s, which repeats with this period. */
static inline int64_t planes_n_phases(const Window *w, int axis) {
  int64_t s = w->stride[axis];
  for (int64_t j = 1; j < w->kernel[axis]; ++j)
    if (j * w->dilation[axis] % s == 0) return j;
  return w->kernel[axis];
}

/* Layout for bands of at most `rows` output rows. Returns the elements of one channel, or -1 if they are absurdly many
 * compared with the window's own input and output (hostile dilations): such windows take the slow path. */
static int64_t planes_layout(const Window *w, int64_t rows, Planes *p) {
  __int128 natural = (__int128)w->in[0] * w->in[1] * w->in[2] + (__int128)w->out[0] * w->out[1] * w->out[2];
  __int128 size = 1;
  p->taps = 1;
  p->rows = rows;
  for (int a = 0; a < 3; ++a) {
    p->taps *= w->kernel[a];
    if (p->taps > natural + 65536 || p->taps > PLANES_MAX_SIZE) return -1;
    p->axis[a].n_phases = planes_n_phases(w, a);
    p->axis[a].shift = (w->kernel[a] - 1) * w->dilation[a] / w->stride[a];
    int64_t extent = a == 0 ? 1 : a == 1 ? rows : w->out[2];
    p->len[a] = extent + p->axis[a].shift;
    size *= (__int128)p->axis[a].n_phases * p->len[a];
    if (size > PLANES_MAX_SIZE) return -1;
  }
  if (size > 8 * natural + 65536) return -1;
  p->channel_step = (int64_t)size;
  return p->channel_step;
}

/* Offset of every tap inside a channel's buffer, in the order of the weights (kd, kh, kw). */
static void planes_taps(const Window *w, const Planes *p, int64_t *offsets) {
  int64_t period[3] = {p->axis[0].n_phases, p->axis[1].n_phases, p->axis[2].n_phases};
  for (int64_t i = 0; i < w->kernel[0]; ++i)
    for (int64_t j = 0; j < w->kernel[1]; ++j)
      for (int64_t k = 0; k < w->kernel[2]; ++k) {
        int64_t phase = (i % period[0] * period[1] + j % period[1]) * period[2] + k % period[2];
        int64_t plane = i * w->dilation[0] / w->stride[0], row = j * w->dilation[1] / w->stride[1];
        int64_t column = k * w->dilation[2] / w->stride[2];
        *offsets++ = ((phase * p->len[0] + plane) * p->len[1] + row) * p->len[2] + column;
      }
}

/* Where one phase reads along the columns: elements [first, last) of its rows lie inside the input, element i at column
 * start + i * stride; reach is where a read in whole vectors ends. */
typedef struct PlanePhase {
  int64_t d, h, start, first, last, reach;
} PlanePhase;

static inline PlanePhase planes_phase(const Window *w, const Planes *p, int64_t phase, int64_t lanes) {
  int64_t n_h = p->axis[1].n_phases, n_w = p->axis[2].n_phases, stride = w->stride[2], n = p->len[2];
  PlanePhase f;
  f.d = phase / (n_h * n_w) * w->dilation[0] % w->stride[0];
  f.h = phase / n_w % n_h * w->dilation[1] % w->stride[1];
  f.start = phase % n_w * w->dilation[2] % stride - w->pad[2];
  f.first = f.start >= 0 ? 0 : planes_min(n, (-f.start + stride - 1) / stride);
  f.last = f.start >= w->in[2] ? 0 : planes_min(n, (w->in[2] - f.start + stride - 1) / stride);
  if (f.last < f.first) f.last = f.first;
  f.reach = f.start + stride * (f.first + (f.last - f.first + lanes - 1) / lanes * lanes);
  return f;
}
#define PLANES_KEPT_PHASES 9 /* computed once for all channels */

/* Copies what a band (output plane od, output rows from oh on, `rows` of them) reads of n_channels channels; positions
 * outside the input become `fill`. x points at the first channel, x_end past the last element of the whole tensor.
 *
 * The buffer is written in ascending order, so rows are moved and filled in whole vectors that overrun into what is
 * written next, as long as what they read lies inside the tensor; the last rows of the tensor go element by element.
 */
#if defined(__clang__)
#define PLANES_EVEN(a, b, index, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PLANES_EVEN(a, b, index, ...) __builtin_shuffle(a, b, index)
#endif
#define PLANES_DEFINE(T, I, NAME, ...) \
  typedef T NAME##_vec __attribute__((vector_size(64), aligned(sizeof(T)), may_alias)); \
  typedef I NAME##_index __attribute__((vector_size(64), unused)); \
  VM_MULTIVERSION static void NAME(const Window *w, const Planes *p, const T *x, const T *x_end, int64_t n_channels, \
                                   int64_t od, int64_t oh, int64_t rows, T fill, T *buffer) { \
    enum { LANES = 64 / sizeof(T) }; \
    const NAME##_index even __attribute__((unused)) = {__VA_ARGS__}; \
    int64_t in_hw = w->in[1] * w->in[2], in_size = w->in[0] * in_hw, n = p->len[2], used = rows + p->axis[1].shift; \
    int64_t n_phases = p->axis[0].n_phases * p->axis[1].n_phases * p->axis[2].n_phases, stride = w->stride[2]; \
    NAME##_vec fills = (NAME##_vec){0} + fill; \
    PlanePhase kept[PLANES_KEPT_PHASES]; \
    for (int64_t i = 0; i < planes_min(n_phases, PLANES_KEPT_PHASES); ++i) kept[i] = planes_phase(w, p, i, LANES); \
    for (int64_t c = 0; c < n_channels; ++c, x += in_size, buffer += p->channel_step) { \
      T *o = buffer; \
      for (int64_t phase = 0; phase < n_phases; ++phase) { \
        PlanePhase f = phase < PLANES_KEPT_PHASES ? kept[phase] : planes_phase(w, p, phase, LANES); \
        int64_t first = f.first, last = f.last; \
        for (int64_t d = 0; d < p->len[0]; ++d, o += p->len[1] * n) { \
          int64_t id = (od + d) * w->stride[0] + f.d - w->pad[0]; \
          for (int64_t r = 0; r < used; ++r) { \
            int64_t ih = (oh + r) * w->stride[1] + f.h - w->pad[1]; \
            T *row = o + r * n; \
            if (id < 0 || id >= w->in[0] || ih < 0 || ih >= w->in[1]) { \
              for (int64_t i = 0; i < n; i += LANES) *(NAME##_vec *)(row + i) = fills; \
              continue; \
            } \
            const T *line = x + id * in_hw + ih * w->in[2], *src = line + f.start; \
            if (stride <= 2 && x_end - line >= f.reach) { \
              for (int64_t i = 0; i < first; i += LANES) *(NAME##_vec *)(row + i) = fills; \
              if (stride == 1) { \
                for (int64_t i = first; i < last; i += LANES) \
                  *(NAME##_vec *)(row + i) = *(const NAME##_vec *)(src + i); \
              } else { \
                for (int64_t i = first; i < last; i += LANES) { \
                  NAME##_vec low = *(const NAME##_vec *)(src + 2 * i); \
                  NAME##_vec high = *(const NAME##_vec *)(src + 2 * i + LANES); \
                  *(NAME##_vec *)(row + i) = PLANES_EVEN(low, high, even, __VA_ARGS__); \
                } \
              } \
              for (int64_t i = last; i < n; i += LANES) *(NAME##_vec *)(row + i) = fills; \
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
PLANES_DEFINE(float, int32_t, planes_fill_f32, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
PLANES_DEFINE(double, int64_t, planes_fill_f64, 0, 2, 4, 6, 8, 10, 12, 14)

#endif
