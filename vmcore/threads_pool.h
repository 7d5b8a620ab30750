/* One process-wide pool of sleeping worker threads and the thread count that governs it.
 *
 * The pool serves one caller at a time; a second caller, a nested call and a task that runs on a worker do their work
 * inline instead of waiting. Workers are created when a job first needs them and never spin. A forked child starts
 * with an empty pool.
 */
#ifndef VMCORE_THREADS_POOL_H
#define VMCORE_THREADS_POOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <signal.h>
#include <stdint.h>

typedef void (*TaskFn)(void *ctx, int64_t task);

#define POOL_MAX_THREADS 256
#define POOL_STACK_BYTES (1 << 20)
#define POOL_SPINS 400 /* about 5 microseconds */

#if defined(__x86_64__) || defined(__i386__)
#define pool_pause() __builtin_ia32_pause()
#else
#define pool_pause() ((void)0)
#endif

static int pool_count = 1; /* threads that one parallel_for may use, the caller included */

static struct {
  pthread_mutex_t lock; /* guards everything below but next */
  pthread_cond_t work, done;
  int n_workers;    /* threads that exist */
  int wanted;       /* workers that the open job still takes */
  int active;       /* workers inside the open job */
  TaskFn fn;
  void *ctx;
  int64_t n_tasks;
  int64_t next;     /* next task to hand out, atomic */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
static int pool_busy; /* atomic: a job is open */

static int pool_get_count(void) { return __atomic_load_n(&pool_count, __ATOMIC_RELAXED); }
static void pool_set_count(int n) { __atomic_store_n(&pool_count, n, __ATOMIC_RELAXED); }

static void pool_run_tasks(TaskFn fn, void *ctx, int64_t n_tasks) {
  for (int64_t i; (i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < n_tasks;) fn(ctx, i);
}

static void *pool_worker(void *unused) {
  (void)unused;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (pool.wanted == 0) pthread_cond_wait(&pool.work, &pool.lock);
    --pool.wanted;
    ++pool.active;
    TaskFn fn = pool.fn;
    void *ctx = pool.ctx;
    int64_t n_tasks = pool.n_tasks;
    pthread_mutex_unlock(&pool.lock);
    pool_run_tasks(fn, ctx, n_tasks);
    pthread_mutex_lock(&pool.lock);
    if (--pool.active == 0) pthread_cond_signal(&pool.done);
  }
  return NULL;
}

/* Starts workers up to `n`, with every signal blocked so that Python's handlers stay on Python's threads.
 * INVARIANT: pool.lock is held. Fewer workers than asked for only cost speed. */
static void pool_grow(int n) {
  pthread_attr_t attr;
  sigset_t all, old;
  if (pool.n_workers >= n || pthread_attr_init(&attr)) return;
  pthread_attr_setstacksize(&attr, POOL_STACK_BYTES);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  while (pool.n_workers < n) {
    pthread_t thread;
    if (pthread_create(&thread, &attr, pool_worker, NULL)) break;
    ++pool.n_workers;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attr);
}

static void pool_parallel_for(int64_t n_tasks, TaskFn fn, void *ctx) {
  int threads = pool_get_count();
  if (threads > n_tasks) threads = (int)n_tasks;
  if (threads <= 1 || __atomic_exchange_n(&pool_busy, 1, __ATOMIC_ACQUIRE)) {
    for (int64_t i = 0; i < n_tasks; ++i) fn(ctx, i);
    return;
  }
  pthread_mutex_lock(&pool.lock);
  pool_grow(threads - 1);
  pool.fn = fn;
  pool.ctx = ctx;
  pool.n_tasks = n_tasks;
  pool.wanted = threads - 1 < pool.n_workers ? threads - 1 : pool.n_workers;
  __atomic_store_n(&pool.next, 0, __ATOMIC_RELAXED);
  int wanted = pool.wanted;
  pthread_mutex_unlock(&pool.lock); /* first, or the woken worker would wait for it */
  if (wanted == 1) pthread_cond_signal(&pool.work);
  else pthread_cond_broadcast(&pool.work);
  pool_run_tasks(fn, ctx, n_tasks);
  /* The last task of a worker ends soon after ours: a short spin saves two context switches. */
  for (int i = 0; i < POOL_SPINS && __atomic_load_n(&pool.active, __ATOMIC_RELAXED); ++i) pool_pause();
  pthread_mutex_lock(&pool.lock);
  pool.wanted = 0; /* a worker that wakes up later finds no job and sleeps on */
  while (pool.active) pthread_cond_wait(&pool.done, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
  __atomic_store_n(&pool_busy, 0, __ATOMIC_RELEASE);
}

static void pool_reset_in_child(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.work, NULL);
  pthread_cond_init(&pool.done, NULL);
  pool.n_workers = pool.wanted = pool.active = 0;
  pool_busy = 0;
}

static void pool_init(void) { pthread_atfork(NULL, NULL, pool_reset_in_child); }

#endif
