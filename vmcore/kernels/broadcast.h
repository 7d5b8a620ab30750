/* numpy broadcasting of a few compact inputs to one compact output, as rows along the innermost dimension.
 *
 * Dimensions of size 1 are dropped and neighbours merged where every input steps through both alike, so most calls
 * come down to one or two dimensions; along the innermost one an input has stride 1 (runs) or 0 (one value). */
#ifndef VMCORE_KERNELS_BROADCAST_H
#define VMCORE_KERNELS_BROADCAST_H

#include "vmcore/kernels/args.h"

#ifndef BROADCAST_INPUTS
#define BROADCAST_INPUTS 3
#endif

typedef struct Broadcast {
  int32_t ndim, n_in;
  int64_t n_rows, row;                               /* rows of dim[0] elements */
  int64_t dim[ARGS_MAX_NDIM], index[ARGS_MAX_NDIM];  /* innermost first */
  int64_t stride[BROADCAST_INPUTS][ARGS_MAX_NDIM];   /* in elements */
  int64_t offset[BROADCAST_INPUTS];                  /* of the current row, in elements */
} Broadcast;

/* Plans the rows; fails unless out's shape is exactly the broadcast of the inputs' shapes. */
static int broadcast_plan(const char *op, const ArgTensor *const *in, int32_t n_in, const ArgTensor *out,
                          Broadcast *b) {
  int64_t run[BROADCAST_INPUTS], step[BROADCAST_INPUTS];
  int32_t nd = 0;
  for (int32_t k = 0; k < n_in; ++k) {
    run[k] = 1;
    if (in[k]->ndim > out->ndim)
      return arg_fail_pair(op, ERR_SHAPE, "rank above the output's", "input", in[k], "output", out);
  }
  for (int32_t d = 1; d <= out->ndim; ++d) {
    int64_t n = out->shape[out->ndim - d], wanted = 1;
    for (int32_t k = 0; k < n_in; ++k) {
      step[k] = 0;
      int64_t m = d <= in[k]->ndim ? in[k]->shape[in[k]->ndim - d] : 1;
      if (m == 1) continue;
      if (m != n) return arg_fail_pair(op, ERR_SHAPE, "shapes do not broadcast", "input", in[k], "output", out);
      wanted = m;
      step[k] = run[k];
      run[k] *= m;
    }
    if (wanted != n) return arg_fail_pair(op, ERR_SHAPE, "wrong output shape", "input", in[0], "output", out);
    if (n == 1) continue;
    int merge = nd > 0;
    for (int32_t k = 0; merge && k < n_in; ++k) merge = step[k] == b->stride[k][nd - 1] * b->dim[nd - 1];
    if (merge) {
      b->dim[nd - 1] *= n;
    } else {
      b->dim[nd] = n;
      b->index[nd] = 0;
      for (int32_t k = 0; k < n_in; ++k) b->stride[k][nd] = step[k];
      ++nd;
    }
  }
  if (nd == 0) {
    b->dim[0] = 1;
    for (int32_t k = 0; k < n_in; ++k) b->stride[k][0] = 1;
    nd = 1;
  }
  b->ndim = nd;
  b->n_in = n_in;
  b->row = 0;
  b->n_rows = out->numel ? out->numel / b->dim[0] : 0;
  for (int32_t k = 0; k < n_in; ++k) b->offset[k] = 0;
  return 0;
}

/* Steps to the next row: moves offset[]. */
static inline void broadcast_next(Broadcast *b) {
  ++b->row;
  for (int32_t d = 1; d < b->ndim; ++d) {
    if (++b->index[d] < b->dim[d]) {
      for (int32_t k = 0; k < b->n_in; ++k) b->offset[k] += b->stride[k][d];
      return;
    }
    b->index[d] = 0;
    for (int32_t k = 0; k < b->n_in; ++k) b->offset[k] -= b->stride[k][d] * (b->dim[d] - 1);
  }
}

/* An elementwise output may be an input of its own shape, and otherwise shares no byte with one. */
static inline int check_elementwise_alias(const char *op, const ArgTensor *x, const ArgTensor *out) {
  return args_overlap(x, out) && !args_same_shape(x, out) ? check_disjoint(op, x, out) : check_inplace(op, x, out);
}

#endif
