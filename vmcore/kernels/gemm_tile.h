/* Register tiles of the matrix product for one element type and one instruction set. No include guard: gemm.h includes
 * it once for each pair, after defining
 *   TILE_T        element type                     TILE_I       integer type of the same size
 *   TILE_NAME(x)  x with a suffix of its own       TILE_ATTR    target attribute of every function
 *   TILE_W        elements of one vector           TILE_ROWS    tallest tile: 14, 6 or 4
 * A tile is TILE_ROWS x 2 vectors; tiles of every smaller height, and of one vector, are there for the edges.
 *
 * PERF: vector types rather than plain loops, which GCC 12 does not keep in registers (7 instead of 118 GFLOP/s);
 * the left operand is read in place by scalar broadcasts through five row pointers, so it needs no packing.
 */
typedef TILE_T TILE_NAME(vec) __attribute__((vector_size(TILE_W * sizeof(TILE_T)), aligned(sizeof(TILE_T)), may_alias));
typedef TILE_I TILE_NAME(ivec) __attribute__((vector_size(TILE_W * sizeof(TILE_T))));

#define TILE_AHEAD 16 /* rows of B that are fetched ahead: where B is read in place, each lies in a page of its own */
#define TILE_UNROLL _Pragma("GCC unroll 16")
#define TILE_ROW(i) \
  ((const TILE_T *)((i) < 3   ? a0 + (i) * lda \
                    : (i) < 6 ? a3 + ((i) - 3) * lda \
                    : (i) < 9 ? a6 + ((i) - 6) * lda \
                    : (i) < 12 ? a9 + ((i) - 9) * lda \
                               : a12 + ((i) - 12) * lda))
#define TILE_STEP(M, V, step) \
  { \
    TILE_NAME(vec) bv[V]; \
    TILE_UNROLL for (int j = 0; j < V; ++j) bv[j] = *(const TILE_NAME(vec) *)(b + TILE_W * j); \
    TILE_UNROLL for (int j = 0; j < V; ++j) __builtin_prefetch(b + TILE_AHEAD * ldb + TILE_W * j); \
    TILE_UNROLL for (int i = 0; i < M; ++i) { \
      TILE_T x = TILE_ROW(i)[step]; \
      TILE_UNROLL for (int j = 0; j < V; ++j) acc[i][j] += x * bv[j]; \
    } \
    b += ldb; \
  }

/* c[0:M, 0:V*W] = sum_k a[i, k] * b[k, :], then what the epilogue asks for. lda, ldb, ldc in elements; K >= 0. */
#define TILE_DEFINE(M, V) \
  TILE_ATTR static void TILE_NAME(tile_##M##x##V)(int64_t K, const void *a_, int64_t lda, const void *b_, int64_t ldb, \
                                                  void *c_, int64_t ldc, const GemmEpilogue *e, int64_t row, \
                                                  int64_t col) { \
    const TILE_T *b = (const TILE_T *)b_; \
    TILE_T *c = (TILE_T *)c_; \
    TILE_NAME(vec) acc[M][V]; \
    TILE_UNROLL for (int i = 0; i < M; ++i) TILE_UNROLL for (int j = 0; j < V; ++j) acc[i][j] = (TILE_NAME(vec)){0}; \
    lda *= (int64_t)sizeof(TILE_T); \
    const char *a0 = (const char *)a_, *a3 = a0 + 3 * lda, *a6 = a0 + 6 * lda, *a9 = a0 + 9 * lda; \
    const char *a12 = a0 + 12 * lda; \
    int64_t k = 0; \
    const int64_t ahead = M * lda; \
    if (e->residual) TILE_UNROLL for (int i = 0; i < M; ++i) TILE_UNROLL for (int j = 0; j < V; ++j) \
      __builtin_prefetch((const char *)(c + i * ldc + TILE_W * j) + e->residual); \
    for (; k + 4 <= K; k += 4) { \
      if ((k & 15) == 0) TILE_UNROLL for (int i = 0; i < M; ++i) \
        __builtin_prefetch((const char *)TILE_ROW(i) + ahead, 0, 2); \
      TILE_STEP(M, V, 0) TILE_STEP(M, V, 1) TILE_STEP(M, V, 2) TILE_STEP(M, V, 3) \
      a0 += 4 * sizeof(TILE_T), a3 += 4 * sizeof(TILE_T), a6 += 4 * sizeof(TILE_T), a9 += 4 * sizeof(TILE_T); \
      a12 += 4 * sizeof(TILE_T); \
    } \
    for (; k < K; ++k) { \
      TILE_STEP(M, V, 0) \
      a0 += sizeof(TILE_T), a3 += sizeof(TILE_T), a6 += sizeof(TILE_T), a9 += sizeof(TILE_T), a12 += sizeof(TILE_T); \
    } \
    TILE_UNROLL for (int i = 0; i < M; ++i) { \
      TILE_UNROLL for (int j = 0; j < V; ++j) { \
        TILE_NAME(vec) *o = (TILE_NAME(vec) *)(c + i * ldc + TILE_W * j), v = acc[i][j]; \
        if (e->accumulate) v += *o; \
        if (e->row_bias) v += ((const TILE_T *)e->row_bias)[row + i]; \
        if (e->col_bias) v += *(const TILE_NAME(vec) *)((const TILE_T *)e->col_bias + col + TILE_W * j); \
        if (e->residual) v += *(const TILE_NAME(vec) *)((const char *)o + e->residual); \
        if (e->relu) v = (TILE_NAME(vec))((TILE_NAME(ivec))v & ~(TILE_NAME(ivec))(v < (TILE_NAME(vec)){0})); \
        *o = v; \
      } \
    } \
  }

#define TILE_BOTH(M) TILE_DEFINE(M, 1) TILE_DEFINE(M, 2)
TILE_BOTH(1) TILE_BOTH(2) TILE_BOTH(3) TILE_BOTH(4)
#if TILE_ROWS >= 6
TILE_BOTH(5) TILE_BOTH(6)
#endif
#if TILE_ROWS >= 14
TILE_BOTH(7) TILE_BOTH(8) TILE_BOTH(9) TILE_BOTH(10) TILE_BOTH(11) TILE_BOTH(12) TILE_BOTH(13) TILE_BOTH(14)
#endif

/* Packs whole panels: b[0:kc, 0:n], n a multiple of two vectors, into [panel][kc][2 * TILE_W]. Eight rows at a time,
 * the next eight on their way: B usually comes from memory, each row from a page of its own. */
TILE_ATTR static void TILE_NAME(pack)(const void *b_, int64_t ldb, int64_t kc, int64_t n, void *panels_) {
  const TILE_T *b = (const TILE_T *)b_;
  for (int64_t k0 = 0; k0 < kc; k0 += 8, b += 8 * ldb) {
    int64_t rows = kc - k0 < 8 ? kc - k0 : 8;
    TILE_T *o = (TILE_T *)panels_ + k0 * 2 * TILE_W;
    for (int64_t j = 0; j < n; j += 2 * TILE_W, o += (kc - rows) * 2 * TILE_W)
      for (int64_t k = 0; k < rows; ++k, o += 2 * TILE_W) {
        const TILE_T *src = b + k * ldb + j;
        __builtin_prefetch(src + 8 * ldb);
        __builtin_prefetch(src + 8 * ldb + TILE_W);
        *(TILE_NAME(vec) *)o = *(const TILE_NAME(vec) *)src;
        *(TILE_NAME(vec) *)(o + TILE_W) = *(const TILE_NAME(vec) *)(src + TILE_W);
      }
  }
}

/* Dot products along K, which fill vectors where a tile would compute mostly padding (49 columns are 48 + 1), and which
 * read the rows of a transposed matrix as they lie. Four rows of A share each load of a column. */
TILE_ATTR static void TILE_NAME(dots)(int64_t rows, int64_t n_columns, int64_t kc, const void *a_, int64_t lda,
                                      const void *columns, int64_t ld_columns, void *c_, int64_t c_row, int64_t c_col,
                                      const GemmEpilogue *e, int64_t row, int64_t col) {
  const TILE_T *a = (const TILE_T *)a_;
  for (int64_t i = 0; i < rows; i += 4) {
    const TILE_T *a0 = a + i * lda, *a1 = a0 + (i + 1 < rows ? lda : 0), *a2 = a1 + (i + 2 < rows ? lda : 0);
    const TILE_T *a3 = a2 + (i + 3 < rows ? lda : 0);
    for (int64_t j = 0; j < n_columns; ++j) {
      const TILE_T *b = (const TILE_T *)columns + j * ld_columns;
      TILE_NAME(vec) s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
      TILE_T sum[4] = {0, 0, 0, 0};
      int64_t k = 0;
      for (; k + TILE_W <= kc; k += TILE_W) {
        TILE_NAME(vec) x = *(const TILE_NAME(vec) *)(b + k);
        s0 += x * *(const TILE_NAME(vec) *)(a0 + k), s1 += x * *(const TILE_NAME(vec) *)(a1 + k);
        s2 += x * *(const TILE_NAME(vec) *)(a2 + k), s3 += x * *(const TILE_NAME(vec) *)(a3 + k);
      }
      for (; k < kc; ++k) {
        sum[0] += b[k] * a0[k], sum[1] += b[k] * a1[k];
        sum[2] += b[k] * a2[k], sum[3] += b[k] * a3[k];
      }
      for (int l = 0; l < TILE_W; ++l) sum[0] += s0[l], sum[1] += s1[l], sum[2] += s2[l], sum[3] += s3[l];
      for (int64_t r = 0; r < 4 && i + r < rows; ++r) {
        TILE_T v = sum[r], *o = (TILE_T *)c_ + (i + r) * c_row + j * c_col;
        if (e->accumulate) v += *o;
        if (e->row_bias) v += ((const TILE_T *)e->row_bias)[row + i + r];
        if (e->col_bias) v += ((const TILE_T *)e->col_bias)[col + j];
        if (e->residual) v += *(const TILE_T *)((const char *)o + e->residual);
        *o = e->relu && v < 0 ? 0 : v;
      }
    }
  }
}

#define TILE_ENTRY(M) {TILE_NAME(tile_##M##x1), TILE_NAME(tile_##M##x2)},
static const GemmTiles TILE_NAME(tiles) = {
    TILE_ROWS, TILE_W, TILE_NAME(pack), TILE_NAME(dots),
    {{0, 0}, TILE_ENTRY(1) TILE_ENTRY(2) TILE_ENTRY(3) TILE_ENTRY(4)
#if TILE_ROWS >= 6
    TILE_ENTRY(5) TILE_ENTRY(6)
#endif
#if TILE_ROWS >= 14
    TILE_ENTRY(7) TILE_ENTRY(8) TILE_ENTRY(9) TILE_ENTRY(10) TILE_ENTRY(11) TILE_ENTRY(12) TILE_ENTRY(13) TILE_ENTRY(14)
#endif
    }};

#undef TILE_T
#undef TILE_I
#undef TILE_NAME
#undef TILE_ATTR
#undef TILE_W
#undef TILE_ROWS
#undef TILE_AHEAD
#undef TILE_UNROLL
#undef TILE_ROW
#undef TILE_STEP
#undef TILE_DEFINE
#undef TILE_BOTH
#undef TILE_ENTRY
