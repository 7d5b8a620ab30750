/* Matrix product on register tiles: types and the functions that the dense kernels share. The code is in gemm_run.h. */
#ifndef VMCORE_KERNELS_GEMM_H
#define VMCORE_KERNELS_GEMM_H

#include <stdint.h>

/* What happens to a finished sum before it is stored, in this order. */
typedef struct GemmEpilogue {
  const void *row_bias; /* one element per row of C, or NULL */
  const void *col_bias; /* one element per column of C, or NULL */
  int accumulate;       /* add what C holds */
  int relu;             /* negative to zero; NaN stays */
} GemmEpilogue;

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

#endif
