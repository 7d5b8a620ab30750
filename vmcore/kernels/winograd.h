/* Winograd's minimal filtering F(2x2, 3x3): types, products, and the tables of winograd_loops.h. Included by
 * winograd.pyx alone.
 *
 * An output tile of 2 x 2 positions is A' [(G w G') * (B' d B)] A for the 4 x 4 inputs d under it: 16 products instead
 * of 36. Over the channels these are 16 matrix products, one for each of the 16 points, of transformed inputs
 * (tiles, channels) with transformed weights (channels, outputs); the weights are made when a model is compiled.
 */
#ifndef VMCORE_KERNELS_WINOGRAD_H
#define VMCORE_KERNELS_WINOGRAD_H

#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/gemm.h"
#include "vmcore/kernels/simd.h"

#define WINOGRAD_STEP 2    /* output positions of a tile, along one axis */
#define WINOGRAD_POINTS 16 /* products of a tile */
#define WINOGRAD_COLUMNS (GEMM_PACKED_BYTES / 4) /* output channels of a panel of weights */
#define WINOGRAD_MAX_LANES 16

/* A rectangle of tiles of one image, counted row by row, and where its data lie. */
typedef struct WinogradBlock {
  int64_t in[2], out[2], pad[2]; /* sizes of a channel, zeros before it */
  int64_t in_size, out_size;     /* elements of a channel */
  int64_t row, n_rows, column, n_columns, n_tiles; /* of tiles */
  int64_t pitch, point_step;      /* of transformed inputs [point][tile][channel], elements */
  int64_t sum_pitch, sum_step;    /* of products [point][tile][output channel] */
  float *turned; /* what a vector of channels reads or writes of the block, [position][channel] */
  float *zeros;  /* a row of inputs in the same form */
} WinogradBlock;

typedef struct WinogradLoops {
  int64_t lanes;
  /* Channels x, of which n <= lanes exist, to their place in the transformed inputs. */
  void (*input)(const WinogradBlock *b, const float *x, int64_t n, float *points);
  /* Products of n <= lanes channels to their place in the output. bias: lanes elements; residual: bytes from the
   * output to what is added, or 0. */
  void (*output)(const WinogradBlock *b, const float *sums, int64_t n, const float *bias, int64_t residual, int relu,
                 float *out);
} WinogradLoops;

static inline int64_t winograd_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t winograd_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Elements of `turned` and `zeros` for blocks of so many tiles; vectors past the last position are read. */
static inline int64_t winograd_turned_size(int64_t n_rows, int64_t n_columns) {
  const int64_t positions = (WINOGRAD_STEP * n_rows + 2) * (WINOGRAD_STEP * n_columns + 2);
  return (positions + WINOGRAD_MAX_LANES) * WINOGRAD_MAX_LANES;
}
static inline int64_t winograd_zeros_size(int64_t n_columns) {
  return (WINOGRAD_STEP * n_columns + 2) * WINOGRAD_MAX_LANES;
}

/* The products of all points for n output channels, the first of which begins a panel at `weights`. */
static void winograd_products(const GemmTiles *t, const WinogradBlock *b, const float *points, const float *weights,
                              int64_t panel_step, int64_t weight_step, int64_t K, int64_t n, float *sums) {
  GemmEpilogue plain;
  memset(&plain, 0, sizeof plain);
  const int64_t width = 2 * t->lanes, blocks = (b->n_tiles + t->rows - 1) / t->rows;
  const int64_t least = b->n_tiles / blocks, taller = b->n_tiles % blocks; /* blocks of one row more come first */
  for (int64_t point = 0; point < WINOGRAD_POINTS; ++point) {
    for (int64_t j = 0; j < n; j += width) { /* a panel comes from memory once */
      const float *w = weights + j / WINOGRAD_COLUMNS * panel_step + j % WINOGRAD_COLUMNS, *a = points;
      const int two = n - j > t->lanes;
      float *c = sums + j;
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t rows = least + (i < taller);
        t->tile[rows][two](K, a, b->pitch, w, WINOGRAD_COLUMNS, c, b->sum_pitch, &plain, 0, 0);
        a += rows * b->pitch, c += rows * b->sum_pitch;
      }
    }
    points += b->point_step, weights += weight_step, sums += b->sum_step;
  }
}

#define VM_ISA_BODY "vmcore/kernels/winograd_loops.h"
#include "vmcore/kernels/per_isa.h"

static const WinogradLoops *const winograd_loops_by_isa[3] = VM_ISA_TABLE(winograd_loops);

#endif
