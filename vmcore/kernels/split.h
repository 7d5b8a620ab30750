/* Splits elementwise loops over long tensors into pieces for the thread pool. */
#ifndef VMCORE_KERNELS_SPLIT_H
#define VMCORE_KERNELS_SPLIT_H

#include <stddef.h>
#include <stdint.h>

#define SPLIT_ELEMS (1 << 16) /* shorter loops take less time than to hand them out */
#define SPLIT_BRIEF (1 << 19) /* longer ones are worth waking a thread for */
/* Pieces end at multiples of this, so that vectors and what is left over fall as in one loop: the bits are the same. */
#define SPLIT_UNIT 4096

typedef void (*SplitTask)(void *ctx, int64_t task);
typedef void (*SplitFor)(int64_t n_tasks, SplitTask fn, void *ctx);

static SplitFor split_for, split_for_brief; /* vmcore.threads; set at import */
static int (*split_threads)(void);

static void split_bind(SplitFor parallel, SplitFor brief, int (*threads)(void)) {
  split_for = parallel;
  split_for_brief = brief;
  split_threads = threads;
}

typedef struct SplitRange {
  int64_t n, pieces;
} SplitRange;

static inline int64_t split_at(const SplitRange *r, int64_t piece) {
  return piece == r->pieces ? r->n : r->n / SPLIT_UNIT * piece / r->pieces * SPLIT_UNIT;
}

/* Whether n elements are shared out; then `r` says how. */
static inline int split_wanted(int64_t n, SplitRange *r) {
  if (n < SPLIT_ELEMS) return 0;
  int threads = split_threads();
  if (threads < 2) return 0;
  r->n = n;
  r->pieces = 2 * threads < n / SPLIT_UNIT ? 2 * threads : n / SPLIT_UNIT;
  return 1;
}

static inline void split_run(const SplitRange *r, SplitTask fn, void *ctx) {
  (r->n < SPLIT_BRIEF ? split_for_brief : split_for)(r->pieces, fn, ctx);
}

#endif
