/* How much of its C stack a thread has left. Threads may be started with as little as 64 KB. */
#ifndef VMCORE_STACK_H
#define VMCORE_STACK_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STACK_RESERVE ((int64_t)160 << 10)
#else
#define STACK_RESERVE ((int64_t)40 << 10) /* for some nested calls, and what a callback or BLAS takes at their end */
#endif

/* Bytes below the caller; INT64_MAX on a stack that is not the thread's own. A look at the system once per thread. */
static __attribute__((noinline, unused)) int64_t stack_left(void) {
  static __thread char *begin, *end;
  char *here = (char *)__builtin_frame_address(0);
  if (end == NULL) {
    pthread_attr_t attributes;
    void *lowest;
    size_t nbytes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return INT64_MAX;
    if (pthread_attr_getstack(&attributes, &lowest, &nbytes) == 0) {
      begin = (char *)lowest;
      end = begin + nbytes;
    }
    pthread_attr_destroy(&attributes);
  }
  return here >= begin && here < end ? here - begin : INT64_MAX;
}

#endif
