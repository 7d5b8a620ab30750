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

static __thread WorkspaceSlot workspace_slots[WORKSPACE_SLOTS];
static __thread int workspace_registered;
static unsigned workspace_epoch;
static size_t workspace_total; /* bytes held by all threads */
static pthread_key_t workspace_key;

static void workspace_free_slot(WorkspaceSlot *s) {
  memory_free(s->data);
  if (s->account) s->account->charge(s->account, -(int64_t)s->nbytes);
  s->account = NULL;
  __atomic_fetch_sub(&workspace_total, s->nbytes, __ATOMIC_RELAXED);
  s->data = NULL;
  s->nbytes = 0;
}

static void workspace_free_thread(void *unused) {
  (void)unused;
  for (int i = 0; i < WORKSPACE_SLOTS; ++i) workspace_free_slot(&workspace_slots[i]);
}

static void workspace_init(void) { pthread_key_create(&workspace_key, workspace_free_thread); }

/* The block of a slot is charged to the machine that grew it. One with a limit takes over the charge of what it finds,
 * if its limit allows so much, and else has a block made that is no larger than needed; one without uses what is there. */
static void *workspace_get(size_t slot, size_t nbytes, WorkAccount *account) {
  if (slot >= WORKSPACE_SLOTS || nbytes > SIZE_MAX / 2) return NULL;
  WorkspaceSlot *s = &workspace_slots[slot];
  unsigned epoch = __atomic_load_n(&workspace_epoch, __ATOMIC_RELAXED);
  if (s->data && s->nbytes >= nbytes && s->epoch == epoch) {
    if (account == NULL || s->account == account) return s->data;
    if (account->charge(account, (int64_t)s->nbytes)) {
      if (s->account) s->account->charge(s->account, -(int64_t)s->nbytes);
      s->account = account;
      return s->data;
    }
  }
  if (!workspace_registered) { /* any value but NULL makes the destructor run at thread exit */
    workspace_registered = 1;
    pthread_setspecific(workspace_key, workspace_slots);
  }
  workspace_free_slot(s);
  size_t rounded = (nbytes + 4095) & ~(size_t)4095;
  if (rounded == 0) rounded = 4096;
  if (account && !account->charge(account, (int64_t)rounded)) return NULL;
  s->data = memory_aligned(rounded, MEMORY_WORKSPACE);
  if (s->data == NULL) {
    if (account) account->charge(account, -(int64_t)rounded);
    return NULL;
  }
  s->account = account;
  s->nbytes = rounded;
  s->epoch = epoch;
  __atomic_fetch_add(&workspace_total, rounded, __ATOMIC_RELAXED);
  return s->data;
}

/* Frees this thread's blocks now; other threads free each block when they next ask for it. */
static void workspace_trim(void) {
  __atomic_fetch_add(&workspace_epoch, 1, __ATOMIC_RELAXED);
  workspace_free_thread(NULL);
}

static size_t workspace_held(void) { return __atomic_load_n(&workspace_total, __ATOMIC_RELAXED); }

#endif
