/* Winograd's minimal filtering F(2x2, 3x3): types, and the tables of winograd_loops.h. Included by winograd.pyx alone.
 *
 * An output tile of 2 x 2 positions is A' [(G w G') * (B' d B)] A for the 4 x 4 inputs d under it: 16 products instead
 * of 36. Over the channels these are 16 matrix products, one for each of the 16 points, of transformed weights with
 * transformed inputs; the weights G w G' are made when a model is compiled.
 */
#ifndef VMCORE_KERNELS_WINOGRAD_H
#define VMCORE_KERNELS_WINOGRAD_H

#include <stdint.h>
#include <string.h>

#include "vmcore/kernels/simd.h"

#define WINOGRAD_STEP 2    /* output positions of a tile, along one axis */
#define WINOGRAD_POINTS 16 /* products of a tile */
#define WINOGRAD_MAX_LANES 16
#define WINOGRAD_LINES 5 /* rows of the buffer for rows of inputs */

/* A rectangle of tiles of one image, and where its transformed data lie. A point's tiles are packed for the matrix
 * product, [panel][channel][width]; what products make is [point][channel][tile]. Tiles are counted row by row. */
typedef struct WinogradBlock {
  int64_t in[2], out[2], pad[2]; /* sizes of a channel, zeros before it */
  int64_t row, n_rows, column, n_columns, n_tiles; /* of tiles */
  int64_t width, panel_step, point_step; /* of packed inputs, elements */
  int64_t sum_step; /* of products, from point to point */
  int64_t line_pitch, flat_pitch; /* elements of one row of the buffers below */
  float *lines; /* 4 rows of inputs, combined, and one of zeros; zero when a block begins */
  float *flat;  /* points of all tiles of one channel; after the products: 2 rows of outputs for each row of tiles */
} WinogradBlock;

typedef struct WinogradLoops {
  /* One channel x of an image; x_end: past the last element of the whole tensor. packed: its place in panel 0. */
  void (*input)(const WinogradBlock *b, const float *x, const float *x_end, float *packed);
  /* One channel of the products to its place in the output; residual: bytes from there to what is added, or 0. */
  void (*output)(const WinogradBlock *b, const float *sums, float bias, int64_t residual, int relu, float *out);
} WinogradLoops;

static inline int64_t winograd_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Elements of the two buffers for the largest blocks; what vectors reach beyond the tiles is included. */
static inline void winograd_buffers(WinogradBlock *b, int64_t n_rows, int64_t n_columns) {
  b->line_pitch = WINOGRAD_STEP * winograd_up(n_columns, WINOGRAD_MAX_LANES) + 4 * WINOGRAD_MAX_LANES;
  b->flat_pitch = winograd_up(n_rows * n_columns, 2 * WINOGRAD_MAX_LANES) + 2 * WINOGRAD_MAX_LANES;
}

#define VM_ISA_BODY "vmcore/kernels/winograd_loops.h"
#include "vmcore/kernels/per_isa.h"

static const WinogradLoops *const winograd_loops_by_isa[3] = VM_ISA_TABLE(winograd_loops);

#endif
