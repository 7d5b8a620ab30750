/* One process-wide pool of worker threads and the thread count that governs it.
 *
 * The pool serves one caller at a time; a second caller, a nested call and a task that runs on a worker do their work
 * inline instead of waiting. Workers are created when a job first needs them. After a job they look out for the next
 * one for POOL_SPIN_NS, since the operators of a run follow each other closely, then sleep until they are woken: a
 * process that runs nothing uses no processor time. A forked child starts with an empty pool.
 *
 * A job never uses more threads than the calling thread has processors, and workers run where their caller may run.
 * A sleeping worker is woken on a processor other than the caller's: left to itself, Linux on a virtual machine takes
 * halted processors for busy ones and queues the worker behind its caller.
 */
#ifndef VMCORE_THREADS_POOL_H
#define VMCORE_THREADS_POOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

#include "vmcore/work_account.h"

typedef void (*TaskFn)(void *ctx, int64_t task);

static __thread WorkAccount *work_account_now; /* of the machine that runs on this thread */
static void (*scratch_trimmer)(void);

#define POOL_MAX_THREADS 256
#define POOL_STACK_BYTES (1 << 20)
#define POOL_SPIN_NS 50000
#define POOL_SERIES_NS 200000 /* brief jobs that follow each other this closely wake sleeping workers */
#define POOL_PAUSES 16 /* between two looks at the clock */

#if defined(__x86_64__) || defined(__i386__)
#define pool_pause() __builtin_ia32_pause()
#else
#define pool_pause() ((void)0)
#endif

static int pool_count = 1; /* threads that one parallel_for may use, the caller included */

static int pool_get_count(void) { return __atomic_load_n(&pool_count, __ATOMIC_RELAXED); }
static void pool_set_count(int n) { __atomic_store_n(&pool_count, n, __ATOMIC_RELAXED); }

/* The state of the open job in one word, so that a worker joins with one compare-and-swap: workers that may still join,
 * workers inside, and whether the caller sleeps until they are out.
 * INVARIANT: fn, ctx, account, n_tasks change only while nobody may join and nobody is inside. */
#define POOL_JOINABLE 0x10000u
#define POOL_ACTIVE_MASK 0x7fffu
#define POOL_CALLER_SLEEPS 0x8000u

typedef struct PoolWorker {
  pthread_t thread;
  pthread_cond_t work;
  int asleep; /* guarded by pool.lock */
} PoolWorker;

static struct {
  uint32_t state __attribute__((aligned(64)));
  int64_t next __attribute__((aligned(64))); /* next task to hand out */
  TaskFn fn __attribute__((aligned(64)));
  void *ctx;
  WorkAccount *account; /* the caller's, for the workers too */
  int64_t n_tasks;
  int64_t last_brief; /* when the last brief job found workers asleep */
  int sleepers; /* written under the lock, read without it */
  int n_workers;
  pthread_mutex_t lock;
  pthread_cond_t done;
#ifdef __linux__
  cpu_set_t cpus; /* where the workers of the open job may run; guarded by the lock */
#endif
  PoolWorker workers[POOL_MAX_THREADS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
static int pool_busy; /* a job is open or about to be */

static inline int64_t pool_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Processors that the calling thread may use; asked again when the coarse clock has moved on. */
static int pool_caller_cpus(void) {
#ifdef __linux__
  static __thread int cpus;
  static __thread int64_t asked = -1;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
  if (now != asked) {
    cpu_set_t set;
    cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : POOL_MAX_THREADS;
    asked = now;
  }
  return cpus;
#else
  return POOL_MAX_THREADS;
#endif
}

static void pool_run_tasks(TaskFn fn, void *ctx, int64_t n_tasks) {
  for (int64_t i; (i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < n_tasks;) fn(ctx, i);
}

/* Takes part in the open job, if it takes one more; false if not. */
static int pool_join(void) {
  uint32_t state = __atomic_load_n(&pool.state, __ATOMIC_RELAXED);
  while (state >= POOL_JOINABLE)
    if (__atomic_compare_exchange_n(&pool.state, &state, state - POOL_JOINABLE + 1, 0, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
      work_account_now = pool.account;
      pool_run_tasks(pool.fn, pool.ctx, pool.n_tasks);
      work_account_now = NULL;
      if (__atomic_sub_fetch(&pool.state, 1, __ATOMIC_RELEASE) == POOL_CALLER_SLEEPS) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
      }
      return 1;
    }
  return 0;
}

/* A processor of the caller for each worker in turn, never the one where the caller is. */
typedef struct PoolPlaces {
  int here, cpu, some; /* some: there are processors to choose from */
} PoolPlaces;

/* INVARIANT: pool.lock is held. */
static void pool_places(PoolPlaces *p) {
  p->some = 0;
#ifdef __linux__
  p->here = sched_getcpu();
  p->cpu = -1;
  p->some = sched_getaffinity(0, sizeof pool.cpus, &pool.cpus) == 0 && CPU_COUNT(&pool.cpus) > 1;
#endif
}

#ifdef __linux__
static void pool_next_place(PoolPlaces *p, cpu_set_t *place) {
  do p->cpu = (p->cpu + 1) % CPU_SETSIZE;
  while (!CPU_ISSET(p->cpu, &pool.cpus) || p->cpu == p->here);
  CPU_ZERO(place);
  CPU_SET(p->cpu, place);
}
#endif

static void *pool_worker(void *arg) {
  PoolWorker *self = (PoolWorker *)arg;
  int placed = 1; /* on one processor, where we were started or woken; soon to be lifted */
  pthread_mutex_lock(&pool.lock);
  for (;;) {
#ifdef __linux__
    cpu_set_t cpus = pool.cpus;
#endif
    pthread_mutex_unlock(&pool.lock);
    pool_join();
#ifdef __linux__
    if (placed && CPU_COUNT(&cpus)) sched_setaffinity(0, sizeof cpus, &cpus);
#endif
    int64_t end = pool_now() + POOL_SPIN_NS;
    do {
      if (pool_join()) end = pool_now() + POOL_SPIN_NS;
      for (int i = 0; i < POOL_PAUSES && __atomic_load_n(&pool.state, __ATOMIC_RELAXED) < POOL_JOINABLE; ++i)
        pool_pause();
    } while (pool_now() < end);
    pthread_mutex_lock(&pool.lock);
    self->asleep = 1;
    /* Before the look at the state, as the caller publishes the state before it looks for sleepers. */
    __atomic_add_fetch(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
    placed = 0;
    while (self->asleep && __atomic_load_n(&pool.state, __ATOMIC_SEQ_CST) < POOL_JOINABLE) {
      pthread_cond_wait(&self->work, &pool.lock);
      placed = !self->asleep; /* the caller has counted us out; its job may be over by now */
    }
    if (self->asleep) {
      self->asleep = 0;
      __atomic_sub_fetch(&pool.sleepers, 1, __ATOMIC_RELAXED);
    }
  }
  return NULL;
}

/* Starts workers up to `n`, with every signal blocked so that Python's handlers stay on Python's threads.
 * INVARIANT: pool.lock is held. Fewer workers than asked for only cost speed. */
static void pool_grow(int n) {
  pthread_attr_t attr;
  sigset_t all, old;
  PoolPlaces places;
  if (pool.n_workers >= n || pthread_attr_init(&attr)) return;
  pthread_attr_setstacksize(&attr, POOL_STACK_BYTES);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pool_places(&places);
  while (pool.n_workers < n) {
    PoolWorker *worker = &pool.workers[pool.n_workers];
    worker->asleep = 0;
    if (pthread_cond_init(&worker->work, NULL)) break;
#ifdef __linux__
    if (places.some) {
      cpu_set_t place;
      pool_next_place(&places, &place);
      pthread_attr_setaffinity_np(&attr, sizeof place, &place);
    }
#endif
    if (pthread_create(&worker->thread, &attr, pool_worker, worker)) break;
    ++pool.n_workers;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attr);
}

/* Wakes up to `n` sleeping workers. */
static void pool_wake(int n) {
  PoolPlaces places;
  pthread_mutex_lock(&pool.lock);
  pool_places(&places);
  for (int i = 0; i < pool.n_workers && n > 0; ++i) {
    PoolWorker *worker = &pool.workers[i];
    if (!worker->asleep) continue;
#ifdef __linux__
    if (places.some) {
      cpu_set_t place;
      pool_next_place(&places, &place);
      pthread_setaffinity_np(worker->thread, sizeof place, &place);
    }
#endif
    worker->asleep = 0;
    __atomic_sub_fetch(&pool.sleepers, 1, __ATOMIC_RELAXED);
    pthread_cond_signal(&worker->work);
    --n;
  }
  pthread_mutex_unlock(&pool.lock);
}

/* brief: a job of some tens of microseconds. It is not worth the wake-up of a sleeping worker, which takes as long,
 * unless more of them come: alone it runs on whoever is awake. */
static void pool_parallel_for(int64_t n_tasks, TaskFn fn, void *ctx, int brief) {
  int threads = pool_get_count(), cpus;
  if (threads > n_tasks) threads = (int)n_tasks;
  if (threads > 1 && threads > (cpus = pool_caller_cpus())) threads = cpus;
  if (threads <= 1 || __atomic_exchange_n(&pool_busy, 1, __ATOMIC_ACQUIRE)) {
    for (int64_t i = 0; i < n_tasks; ++i) fn(ctx, i);
    return;
  }
  int helpers = threads - 1;
  if (brief && pool.n_workers - __atomic_load_n(&pool.sleepers, __ATOMIC_RELAXED) < helpers) {
    int64_t now = pool_now(), last = pool.last_brief;
    pool.last_brief = now;
    if (now - last > POOL_SERIES_NS) {
      helpers = pool.n_workers - __atomic_load_n(&pool.sleepers, __ATOMIC_RELAXED);
      if (helpers <= 0) {
        __atomic_store_n(&pool_busy, 0, __ATOMIC_RELEASE);
        for (int64_t i = 0; i < n_tasks; ++i) fn(ctx, i);
        return;
      }
    }
  }
  if (pool.n_workers < helpers) {
    pthread_mutex_lock(&pool.lock);
    pool_grow(helpers);
    pthread_mutex_unlock(&pool.lock);
    if (helpers > pool.n_workers) helpers = pool.n_workers;
  }
  pool.fn = fn;
  pool.ctx = ctx;
  pool.account = work_account_now;
  pool.n_tasks = n_tasks;
  __atomic_store_n(&pool.next, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool.state, (uint32_t)helpers * POOL_JOINABLE, __ATOMIC_SEQ_CST);
  int awake = pool.n_workers - __atomic_load_n(&pool.sleepers, __ATOMIC_SEQ_CST);
  if (awake < helpers) pool_wake(helpers - awake);
  pool_run_tasks(fn, ctx, n_tasks);
  /* Nobody joins any more. The last task of a worker ends soon after ours: a short spin saves two context switches. */
  uint32_t state = __atomic_and_fetch(&pool.state, POOL_ACTIVE_MASK, __ATOMIC_ACQUIRE);
  if (state) {
    int64_t end = pool_now() + POOL_SPIN_NS;
    do
      for (int i = 0; i < POOL_PAUSES && (state = __atomic_load_n(&pool.state, __ATOMIC_ACQUIRE)); ++i) pool_pause();
    while (state && pool_now() < end);
    if (state) {
      pthread_mutex_lock(&pool.lock);
      __atomic_or_fetch(&pool.state, POOL_CALLER_SLEEPS, __ATOMIC_RELAXED);
      while (__atomic_load_n(&pool.state, __ATOMIC_ACQUIRE) != POOL_CALLER_SLEEPS)
        pthread_cond_wait(&pool.done, &pool.lock);
      __atomic_store_n(&pool.state, 0, __ATOMIC_RELAXED);
      pthread_mutex_unlock(&pool.lock);
    }
  }
  __atomic_store_n(&pool_busy, 0, __ATOMIC_RELEASE);
}

static void pool_reset_in_child(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.done, NULL);
  pool.n_workers = pool.sleepers = 0;
  pool.state = 0;
  pool_busy = 0;
}

static void pool_init(void) { pthread_atfork(NULL, NULL, pool_reset_in_child); }

#endif
