/* Row-major matrix products on whatever BLAS the process has. Included by blas.pyx alone.
 *
 * Libraries differ in name suffix and in the width of their integers; the Fortran interface has neither row-major
 * matrices nor values as arguments. Each kind gets its own wrappers with one signature; a table holds those in use.
 */
#ifndef VMCORE_BLAS_PROVIDER_H
#define VMCORE_BLAS_PROVIDER_H

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { CBLAS_ROW_MAJOR = 101, CBLAS_NO_TRANS = 111, CBLAS_TRANS = 112 };

#define BLAS_DEFINE_CBLAS(KIND, INT, T, P) \
  typedef void (*P##gemm_##KIND##_fn)(int, int, int, INT, INT, INT, T, const T *, INT, const T *, INT, T, T *, INT); \
  typedef void (*P##gemv_##KIND##_fn)(int, int, INT, INT, T, const T *, INT, const T *, INT, T, T *, INT); \
  static P##gemm_##KIND##_fn P##gemm_##KIND##_ptr; \
  static P##gemv_##KIND##_fn P##gemv_##KIND##_ptr; \
  static void P##gemm_##KIND(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda, \
                             const T *b, int64_t ldb, T beta, T *c, int64_t ldc) { \
    P##gemm_##KIND##_ptr(CBLAS_ROW_MAJOR, ta ? CBLAS_TRANS : CBLAS_NO_TRANS, tb ? CBLAS_TRANS : CBLAS_NO_TRANS, \
                         (INT)m, (INT)n, (INT)k, alpha, a, (INT)lda, b, (INT)ldb, beta, c, (INT)ldc); \
  } \
  static void P##gemv_##KIND(int ta, int64_t m, int64_t n, T alpha, const T *a, int64_t lda, const T *x, T beta, \
                             T *y) { \
    P##gemv_##KIND##_ptr(CBLAS_ROW_MAJOR, ta ? CBLAS_TRANS : CBLAS_NO_TRANS, (INT)m, (INT)n, alpha, a, (INT)lda, x, 1, \
                         beta, y, 1); \
  }
BLAS_DEFINE_CBLAS(lp64, int, float, s)
BLAS_DEFINE_CBLAS(lp64, int, double, d)
BLAS_DEFINE_CBLAS(ilp64, int64_t, float, s)
BLAS_DEFINE_CBLAS(ilp64, int64_t, double, d)

/* Row-major C is column-major C', and C' = op(B)' @ op(A)': operands and m, n swap on the way to Fortran. */
#define BLAS_DEFINE_FORTRAN(T, P) \
  typedef void (*P##gemm_fortran_fn)(char *, char *, int *, int *, int *, T *, T *, int *, T *, int *, T *, T *, \
                                     int *); \
  typedef void (*P##gemv_fortran_fn)(char *, int *, int *, T *, T *, int *, T *, int *, T *, T *, int *); \
  static P##gemm_fortran_fn P##gemm_fortran_ptr; \
  static P##gemv_fortran_fn P##gemv_fortran_ptr; \
  static void P##gemm_fortran(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, int64_t lda, \
                              const T *b, int64_t ldb, T beta, T *c, int64_t ldc) { \
    char cta = ta ? 'T' : 'N', ctb = tb ? 'T' : 'N'; \
    int im = (int)m, in = (int)n, ik = (int)k, ia = (int)lda, ib = (int)ldb, ic = (int)ldc; \
    P##gemm_fortran_ptr(&ctb, &cta, &in, &im, &ik, &alpha, (T *)b, &ib, (T *)a, &ia, &beta, c, &ic); \
  } \
  static void P##gemv_fortran(int ta, int64_t m, int64_t n, T alpha, const T *a, int64_t lda, const T *x, T beta, \
                              T *y) { \
    char cta = ta ? 'N' : 'T'; \
    int im = (int)m, in = (int)n, ia = (int)lda, one = 1; \
    P##gemv_fortran_ptr(&cta, &in, &im, &alpha, (T *)a, &ia, (T *)x, &one, &beta, y, &one); \
  }
BLAS_DEFINE_FORTRAN(float, s)
BLAS_DEFINE_FORTRAN(double, d)

typedef struct BlasTable {
  void (*sgemm)(int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float,
                float *, int64_t);
  void (*dgemm)(int, int, int64_t, int64_t, int64_t, double, const double *, int64_t, const double *, int64_t, double,
                double *, int64_t);
  void (*sgemv)(int, int64_t, int64_t, float, const float *, int64_t, const float *, float, float *);
  void (*dgemv)(int, int64_t, int64_t, double, const double *, int64_t, const double *, double, double *);
  int64_t max_size; /* largest size or stride that the library's integers hold */
} BlasTable;

static const BlasTable blas_tables[3] = {
    {sgemm_lp64, dgemm_lp64, sgemv_lp64, dgemv_lp64, INT_MAX},
    {sgemm_ilp64, dgemm_ilp64, sgemv_ilp64, dgemv_ilp64, INT64_MAX},
    {sgemm_fortran, dgemm_fortran, sgemv_fortran, dgemv_fortran, INT_MAX},
};
enum { BLAS_LP64 = 0, BLAS_ILP64 = 1, BLAS_FORTRAN = 2 };

/* Takes the four functions of one kind; nothing is callable before blas_publish. */
static void blas_store(int kind, void *sgemm, void *dgemm, void *sgemv, void *dgemv) {
  if (kind == BLAS_LP64) {
    sgemm_lp64_ptr = (sgemm_lp64_fn)sgemm, dgemm_lp64_ptr = (dgemm_lp64_fn)dgemm;
    sgemv_lp64_ptr = (sgemv_lp64_fn)sgemv, dgemv_lp64_ptr = (dgemv_lp64_fn)dgemv;
  } else if (kind == BLAS_ILP64) {
    sgemm_ilp64_ptr = (sgemm_ilp64_fn)sgemm, dgemm_ilp64_ptr = (dgemm_ilp64_fn)dgemm;
    sgemv_ilp64_ptr = (sgemv_ilp64_fn)sgemv, dgemv_ilp64_ptr = (dgemv_ilp64_fn)dgemv;
  } else {
    sgemm_fortran_ptr = (sgemm_fortran_fn)sgemm, dgemm_fortran_ptr = (dgemm_fortran_fn)dgemm;
    sgemv_fortran_ptr = (sgemv_fortran_fn)sgemv, dgemv_fortran_ptr = (dgemv_fortran_fn)dgemv;
  }
}

static const BlasTable *blas_active; /* NULL: our own matrix product */
static void blas_publish(int kind) {
  __atomic_store_n(&blas_active, kind < 0 ? NULL : &blas_tables[kind], __ATOMIC_RELEASE);
}
static inline const BlasTable *blas_table(void) { return __atomic_load_n(&blas_active, __ATOMIC_ACQUIRE); }

/* RTLD_LOCAL: a library loaded for us must not satisfy the symbols of others. */
static void *blas_open(const char *path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
static void *blas_open_loaded(const char *path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD); }
static void *blas_symbol(void *handle, const char *name) { return dlsym(handle, name); }

static void blas_call_set_threads(void *fn, int kind, int n) {
  if (kind == BLAS_ILP64) ((void (*)(int64_t))fn)(n); /* the width is the library's; a register holds both */
  else ((void (*)(int))fn)(n);
}
static int blas_call_get_threads(void *fn) { return ((int (*)(void))fn)(); }
static const char *blas_call_config(void *fn) { return ((const char *(*)(void))fn)(); }

/* ---- the gate: no call is inside the library while the process forks, ends, or changes its thread count -------------
 *
 * OpenBLAS stops its threads before a fork and frees its buffers when the process ends, whoever computes in them:
 * the forked child or the ending process hangs or crashes. So calls are counted; whoever closes the gate waits for
 * those inside, which never wait for anything of ours. After the end it stays closed: daemon threads sleep there.
 */
static struct {
  int inside; /* calls in the library */
  int closed, ended;
  pthread_t closer; /* may pass itself: destructors of the process may compute */
  pthread_mutex_t turn, lock; /* turn: held from close to open; lock: guards sleeping at the gate */
  pthread_cond_t opened;
} blas_gate = {.turn = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER};

static void blas_leave(void) { __atomic_sub_fetch(&blas_gate.inside, 1, __ATOMIC_RELEASE); }

static void blas_enter(void) {
  for (;;) {
    __atomic_add_fetch(&blas_gate.inside, 1, __ATOMIC_SEQ_CST);
    if (__builtin_expect(!__atomic_load_n(&blas_gate.closed, __ATOMIC_SEQ_CST), 1)) return;
    if (pthread_equal(__atomic_load_n(&blas_gate.closer, __ATOMIC_RELAXED), pthread_self())) return;
    blas_leave();
    pthread_mutex_lock(&blas_gate.lock);
    while (__atomic_load_n(&blas_gate.closed, __ATOMIC_RELAXED)) pthread_cond_wait(&blas_gate.opened, &blas_gate.lock);
    pthread_mutex_unlock(&blas_gate.lock);
  }
}

static void blas_close(void) {
  if (blas_gate.ended) return;
  pthread_mutex_lock(&blas_gate.turn);
  __atomic_store_n(&blas_gate.closer, pthread_self(), __ATOMIC_RELAXED);
  __atomic_store_n(&blas_gate.closed, 1, __ATOMIC_SEQ_CST);
  const struct timespec pause = {0, 20000};
  while (__atomic_load_n(&blas_gate.inside, __ATOMIC_SEQ_CST)) nanosleep(&pause, NULL);
}

static void blas_reopen(void) {
  if (blas_gate.ended) return;
  pthread_mutex_lock(&blas_gate.lock);
  __atomic_store_n(&blas_gate.closed, 0, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast(&blas_gate.opened);
  pthread_mutex_unlock(&blas_gate.lock);
  pthread_mutex_unlock(&blas_gate.turn);
}

static void blas_reopen_in_child(void) {
  if (blas_gate.ended) return;
  pthread_mutex_init(&blas_gate.turn, NULL);
  pthread_mutex_init(&blas_gate.lock, NULL);
  pthread_cond_init(&blas_gate.opened, NULL);
  blas_gate.inside = blas_gate.closed = 0;
}

static void blas_end(void) {
  blas_close();
  blas_gate.ended = 1;
}

/* After the library is loaded: of what is registered later, what happens before a fork and at the end happens first. */
static void blas_guard(void) {
  static int guarded;
  if (guarded) return;
  guarded = 1;
  pthread_atfork(blas_close, blas_reopen, blas_reopen_in_child);
  atexit(blas_end);
}

#endif
