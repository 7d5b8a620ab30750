/* Matrix product on register tiles: types and the functions that the dense kernels share. The code is in gemm_run.h. */
#ifndef VMCORE_KERNELS_GEMM_H
#define VMCORE_KERNELS_GEMM_H

#include <stdint.h>

/* What happens to a finished sum before it is stored, in this order. */
typedef struct GemmEpilogue {
  const void *row_bias; /* one element per row of C, or NULL */
  const void *col_bias; /* one element per column of C, or NULL */
  int accumulate;       /* add what C holds */
  int64_t residual;     /* bytes from each element of C to another one that is added, or 0; C itself cannot be meant */
  int relu;             /* negative to zero; NaN stays */
  /* Applied to finished rows of a tile strip, still in cache; or NULL. */
  void (*activation)(const void *x, void *y, int64_t n, const double *params);
  double params[2];
} GemmEpilogue;

/* Activations by the number that programs hold: append only. Each takes up to two parameters. */
enum {
  GEMM_NONE, GEMM_RELU, GEMM_CLIP, GEMM_SIGMOID, GEMM_SILU, GEMM_GELU, GEMM_GELU_TANH, GEMM_HARD_SWISH, GEMM_LEAKY_RELU,
  GEMM_TANH, GEMM_HARD_SIGMOID, GEMM_ACTIVATIONS
};

#define GEMM_PACKED_BYTES 128 /* columns of a matrix packed for good lie together in rows of this size, on any machine */

/* C[M, V vectors] from A (row-major, read in place) and rows of B that lie ldb elements apart. */
typedef void (*GemmTile)(int64_t K, const void *a, int64_t lda, const void *b, int64_t ldb, void *c, int64_t ldc,
                         const GemmEpilogue *e, int64_t row, int64_t col);

#define GEMM_MAX_ROWS 14
#define GEMM_MAX_DOTS 4 /* most odd columns that gemm_block does as dot products */
#define GEMM_DOTS_ROWS 16 /* most rows of A for which A @ B' is done as dot products: packing B' would cost more */
#define GEMM_MAX_PANEL_BYTES 128 /* two of the widest vectors */

typedef struct GemmTiles {
  int rows;  /* tallest tile */
  int lanes; /* elements of one vector; a panel is two vectors wide */
  void (*pack)(const void *b, int64_t ldb, int64_t kc, int64_t n, void *panels);
  /* C[i * c_row + j * c_col] for rows i of A and `columns` j that are contiguous along K, ld_columns apart. */
  void (*dots)(int64_t rows, int64_t n_columns, int64_t kc, const void *a, int64_t lda, const void *columns,
               int64_t ld_columns, void *c, int64_t c_row, int64_t c_col, const GemmEpilogue *e, int64_t row,
               int64_t col);
  GemmTile tile[GEMM_MAX_ROWS + 1][2];
} GemmTiles;

#define GEMM_KC 512 /* most rows of B in one block: a tile of A (14 x KC) stays in L1 */
#define GEMM_IN_PLACE_BYTES (256 * 1024) /* a B up to this size is in cache already: a few rows of A use it in place */
#define GEMM_BLOCK_BYTES (448 * 1024) /* one packed block of B: stays in L2 */

/* ---- sharing a product among threads ----------------------------------------------------------------------------- */

#define GEMM_BRIEF_FLOPS (1 << 22) /* multiply-adds below which waking a sleeping thread is not worth it */
#define GEMM_PACK_ROWS 10 /* packing a panel takes as long as that many rows of the product */

/* A product in columns x rows pieces. Columns are cut between panels, so that every element is summed in the same
 * order whatever the number of pieces; a remainder that would be done as dot products stays with the panel before it. */
typedef struct GemmGrid {
  int64_t panels, columns, rows;
} GemmGrid;

static inline int64_t gemm_whole_panels(int64_t N, int64_t lanes) {
  int64_t panels = N / (2 * lanes) + (N % (2 * lanes) > lanes / 4);
  return panels ? panels : 1;
}

static inline int64_t gemm_column(const GemmGrid *g, int64_t piece, int64_t N, int64_t lanes) {
  return piece == g->columns ? N : g->panels * piece / g->columns * 2 * lanes;
}

/* Chooses the pieces of each of `units` products [M, N] for the threads there are: the least time of the busiest one,
 * where pieces of rows each pack their columns again; among about equal times the most pieces, of which late or
 * disturbed threads take fewer. At least min_columns pieces of columns, for the sake of memory. */
static inline void gemm_grid(int64_t threads, int64_t units, int64_t M, int64_t N, int64_t lanes, int64_t min_columns,
                             GemmGrid *g) {
  int64_t panels = gemm_whole_panels(N, lanes);
  double whole = (double)N / (double)(2 * lanes), best = 0;
  g->panels = panels;
  g->columns = min_columns < panels ? min_columns : panels;
  g->rows = 1;
  if (threads <= 1) return;
  int64_t least = g->columns;
  for (int64_t rows = 1; rows <= 2 * threads && (rows == 1 || M >= GEMM_MAX_ROWS * rows); rows += rows < 4 ? 1 : rows / 2)
    for (int64_t k = 4; k >= 1; --k) {
      int64_t columns = (k * threads + units * rows - 1) / (units * rows);
      columns = columns < least ? least : columns > panels ? panels : columns;
      int64_t rounds = (units * columns * rows + threads - 1) / threads;
      double width = (double)((panels + columns - 1) / columns);
      if (width > whole) width = whole;
      double time = (double)rounds * width * ((double)M / (double)rows + GEMM_PACK_ROWS);
      if (best == 0 || time < 0.98 * best) best = time, g->columns = columns, g->rows = rows;
    }
}

#endif
