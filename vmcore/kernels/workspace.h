/* Scratch memory of kernels: one growing, reused block per thread and slot. */
#ifndef VMCORE_KERNELS_WORKSPACE_H
#define VMCORE_KERNELS_WORKSPACE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "vmcore/memory.h"
#include "vmcore/work_account.h"

#define WORKSPACE_SLOTS 8

typedef struct WorkspaceSlot {
  void *data;
  size_t nbytes;
  unsigned epoch; /* value of workspace_epoch when the block was last handed out */
  WorkAccount *account; /* whom the block is charged to, or NULL */
} WorkspaceSlot;

typedef struct WorkspaceThread { /* a thread that has asked for scratch memory */
  WorkspaceSlot slots[WORKSPACE_SLOTS];
  struct WorkspaceThread *previous, *next;
  int is_listed;
} WorkspaceThread;

static __thread WorkspaceThread workspace_own;
static WorkspaceThread *workspace_threads; /* all of them: a forked child gives back what the others held */
/* Guards the list, and the slots against a fork halfway through a change. A leaf: nothing is called under it. */
static pthread_mutex_t workspace_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned workspace_epoch;
static size_t workspace_total; /* bytes held by all threads */
static pthread_key_t workspace_key;

static void workspace_set_slot(WorkspaceSlot *s, WorkspaceSlot value) {
  pthread_mutex_lock(&workspace_lock);
  *s = value;
  pthread_mutex_unlock(&workspace_lock);
}

static void workspace_give_back(WorkspaceSlot block) {
  memory_free(block.data);
  if (block.account) block.account->charge(block.account, -(int64_t)block.nbytes);
  __atomic_fetch_sub(&workspace_total, block.nbytes, __ATOMIC_RELAXED);
}

static void workspace_free_slot(WorkspaceSlot *s) {
  WorkspaceSlot block = *s;
  if (block.data == NULL) return;
  workspace_set_slot(s, (WorkspaceSlot){NULL, 0, 0, NULL});
  workspace_give_back(block);
}

static void workspace_free_slots(void) {
  for (int i = 0; i < WORKSPACE_SLOTS; ++i) workspace_free_slot(&workspace_own.slots[i]);
}

static void workspace_enter(void) {
  WorkspaceThread *own = &workspace_own;
  pthread_setspecific(workspace_key, own); /* any value but NULL makes workspace_leave run at thread exit */
  pthread_mutex_lock(&workspace_lock);
  own->is_listed = 1;
  own->previous = NULL;
  own->next = workspace_threads;
  if (own->next) own->next->previous = own;
  workspace_threads = own;
  pthread_mutex_unlock(&workspace_lock);
}

static void workspace_leave(void *unused) {
  WorkspaceThread *own = &workspace_own;
  (void)unused;
  workspace_free_slots();
  pthread_mutex_lock(&workspace_lock);
  if (own->previous) own->previous->next = own->next;
  else workspace_threads = own->next;
  if (own->next) own->next->previous = own->previous;
  own->is_listed = 0;
  pthread_mutex_unlock(&workspace_lock);
}

static void workspace_before_fork(void) { pthread_mutex_lock(&workspace_lock); }
static void workspace_after_fork(void) { pthread_mutex_unlock(&workspace_lock); }

/* The other threads do not exist here, but what they held does, and is charged. */
static void workspace_in_child(void) {
  WorkspaceThread *all = workspace_threads, *own = &workspace_own;
  workspace_threads = own->is_listed ? own : NULL;
  pthread_mutex_unlock(&workspace_lock);
  for (WorkspaceThread *t = all, *next; t; t = next) {
    next = t->next;
    if (t == own) continue;
    for (int i = 0; i < WORKSPACE_SLOTS; ++i)
      if (t->slots[i].data) workspace_give_back(t->slots[i]);
  }
  own->previous = own->next = NULL;
}

static void workspace_init(void) {
  memory_free(memory_alloc(1, MEMORY_WORKSPACE)); /* a checked build's books let go of their lock before our child runs */
  pthread_key_create(&workspace_key, workspace_leave);
  pthread_atfork(workspace_before_fork, workspace_after_fork, workspace_in_child);
}

/* The block of a slot is charged to the machine that grew it. One with a limit takes over the charge of what it finds,
 * if its limit allows so much, and else has a block made that is no larger than needed; one without uses what is there. */
static void *workspace_get(size_t slot, size_t nbytes, WorkAccount *account) {
  if (slot >= WORKSPACE_SLOTS || nbytes > SIZE_MAX / 2) return NULL;
  WorkspaceSlot *s = &workspace_own.slots[slot];
  unsigned epoch = __atomic_load_n(&workspace_epoch, __ATOMIC_RELAXED);
  if (s->data && s->nbytes >= nbytes && s->epoch == epoch) {
    if (account == NULL || s->account == account) return s->data;
    if (account->charge(account, (int64_t)s->nbytes)) {
      if (s->account) s->account->charge(s->account, -(int64_t)s->nbytes);
      s->account = account;
      return s->data;
    }
  }
  if (!workspace_own.is_listed) workspace_enter();
  workspace_free_slot(s);
  size_t rounded = (nbytes + 4095) & ~(size_t)4095;
  if (rounded == 0) rounded = 4096;
  if (account && !account->charge(account, (int64_t)rounded)) return NULL;
  void *data = memory_aligned(rounded, MEMORY_WORKSPACE);
  if (data == NULL) {
    if (account) account->charge(account, -(int64_t)rounded);
    return NULL;
  }
  workspace_set_slot(s, (WorkspaceSlot){data, rounded, epoch, account});
  __atomic_fetch_add(&workspace_total, rounded, __ATOMIC_RELAXED);
  return data;
}

/* Frees this thread's blocks now; other threads free each block when they next ask for it. */
static void workspace_trim(void) {
  __atomic_fetch_add(&workspace_epoch, 1, __ATOMIC_RELAXED);
  workspace_free_slots();
}

static size_t workspace_held(void) { return __atomic_load_n(&workspace_total, __ATOMIC_RELAXED); }

#endif
