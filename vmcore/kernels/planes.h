/* Padded, phase-split copies of an input: what turns every convolution window into contiguous streams.
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

#define WINDOW_MAX_PANEL 32 /* widest packed panel, in columns */

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

/* Moves the axes so that the last one is not a trivial one (1-D data in 2-D clothes, columns of size 1): rows are what
 * vectors run along, and leaving out axes of size 1 does not change the order of elements. pad_end goes along. */
static inline void planes_shift_axes(Window *w, int64_t *pad_end) {
  for (int turn = 0; turn < 2; ++turn) {
    if (w->in[2] != 1 || w->out[2] != 1 || w->kernel[2] != 1 || w->pad[2] != 0 || pad_end[2] != 0) return;
    int64_t *const fields[6] = {w->in, w->out, w->kernel, w->stride, w->dilation, w->pad};
    for (int i = 0; i < 6; ++i) {
      fields[i][2] = fields[i][1], fields[i][1] = fields[i][0];
      fields[i][0] = i == 5 ? 0 : 1;
    }
    pad_end[2] = pad_end[1], pad_end[1] = pad_end[0], pad_end[0] = 0;
  }
}

static inline int64_t planes_over_stride(int64_t n, int64_t stride) { return stride == 1 ? n : n / stride; }

/* Phases that occur along an axis: tap j has phase j * d % s, which repeats with this period. */
static inline int64_t planes_n_phases(const Window *w, int axis) {
  int64_t s = w->stride[axis];
  if (s == 1) return 1; /* PERF: no divisions here and below, which are most of the time of a tiny window */
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
    p->axis[a].shift = planes_over_stride((w->kernel[a] - 1) * w->dilation[a], w->stride[a]);
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
  const int64_t n_d = p->axis[0].n_phases, n_h = p->axis[1].n_phases, n_w = p->axis[2].n_phases;
  for (int64_t i = 0, phase_d = 0; i < w->kernel[0]; ++i, phase_d = phase_d + 1 == n_d ? 0 : phase_d + 1) {
    const int64_t plane = planes_over_stride(i * w->dilation[0], w->stride[0]);
    for (int64_t j = 0, phase_h = 0; j < w->kernel[1]; ++j, phase_h = phase_h + 1 == n_h ? 0 : phase_h + 1) {
      const int64_t row = planes_over_stride(j * w->dilation[1], w->stride[1]);
      for (int64_t k = 0, phase_w = 0; k < w->kernel[2]; ++k, phase_w = phase_w + 1 == n_w ? 0 : phase_w + 1) {
        const int64_t phase = (phase_d * n_h + phase_h) * n_w + phase_w;
        const int64_t column = planes_over_stride(k * w->dilation[2], w->stride[2]);
        *offsets++ = ((phase * p->len[0] + plane) * p->len[1] + row) * p->len[2] + column;
      }
    }
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
  if (phase == 0) { /* the first of all: no divisions */
    f.d = f.h = 0;
    f.start = -w->pad[2];
  } else {
    f.d = phase / (n_h * n_w) * w->dilation[0] % w->stride[0];
    f.h = phase / n_w % n_h * w->dilation[1] % w->stride[1];
    f.start = phase % n_w * w->dilation[2] % stride - w->pad[2];
  }
  f.first = f.start >= 0 ? 0 : planes_min(n, planes_over_stride(-f.start + stride - 1, stride));
  f.last = f.start >= w->in[2] ? 0 : planes_min(n, planes_over_stride(w->in[2] - f.start + stride - 1, stride));
  if (f.last < f.first) f.last = f.first;
  f.reach = f.start + stride * (f.first + (f.last - f.first + lanes - 1) / lanes * lanes);
  return f;
}
#define PLANES_KEPT_PHASES 9 /* computed once for all channels */

/* Walks the vectors of a band's output: where each reads in the planes and where it goes. A row's last vector overlaps
 * the one before it. Rows shorter than a vector (narrow) are walked as one row with the gaps of the padded rows in it:
 * the caller collects it in a line of planes_line_size elements and drops the gaps. */
typedef struct PlaneCursor {
  int64_t row, at;                /* next vector */
  int64_t rows, columns, pitch, lanes;
} PlaneCursor;

static inline int planes_is_narrow(int64_t columns, int64_t lanes) { return columns < lanes; }

static inline int64_t planes_line_size(const Planes *p, int64_t rows) { return (rows * p->len[2] + 127) / 64 * 64; }

static inline PlaneCursor planes_walk(const Planes *p, int64_t rows, int64_t columns, int64_t lanes) {
  PlaneCursor c = {0, 0, rows, columns, p->len[2], lanes};
  if (planes_is_narrow(columns, lanes)) {
    c.columns = ((rows - 1) * c.pitch + columns + lanes - 1) / lanes * lanes;
    c.rows = 1;
  }
  return c;
}

/* Source and destination offsets of the next vector; after the last one, those of the last one again. */
static inline void planes_next(PlaneCursor *c, int64_t *source, int64_t *target) {
  int64_t column = planes_min(c->at, c->columns - c->lanes);
  *source = c->row * c->pitch + column;
  *target = c->row * c->columns + column;
  if (c->at + c->lanes < c->columns) c->at += c->lanes;
  else if (c->row + 1 < c->rows) ++c->row, c->at = 0;
  else c->at = c->columns; /* stays on the last vector */
}
static inline int planes_done(const PlaneCursor *c) { return c->at == c->columns; }

/* The loops over planes for one element type and instruction set (window_loops.h). Elements are float or double. */
typedef struct WindowLoops {
  int64_t lanes; /* elements of one vector */
  void (*fill)(const Window *w, const Planes *p, const void *x, const void *x_end, int64_t n_channels, int64_t od,
               int64_t oh, int64_t rows, double fill, void *buffer);
  void (*pack)(const Planes *p, const int64_t *taps, const void *planes, int64_t out_columns, int64_t q0, int64_t n,
               int64_t k0, int64_t k1, int64_t width, void *panels);
  void (*direct)(const Planes *p, const int64_t *taps, const void *planes, int64_t n_channels, const void *weights,
                 double bias, int relu, int64_t rows, int64_t columns, void *out, void *line);
  void (*plain_3x3)(const void *plane, int64_t pitch, const void *weights, double bias, int relu, int64_t rows,
                    int64_t columns, void *out);
} WindowLoops;

enum { POOL_KIND_MAX = 0, POOL_KIND_SUM = 1, POOL_KIND_L1 = 2, POOL_KIND_L2 = 3, POOL_KIND_LP = 4 };

#endif
