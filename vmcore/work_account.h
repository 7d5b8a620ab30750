/* Who pays for the scratch memory that kernels and libraries take: a machine with a memory limit, or nobody (NULL). */
#ifndef VMCORE_WORK_ACCOUNT_H
#define VMCORE_WORK_ACCOUNT_H

#include <stdint.h>

/* charge(self, n): takes note of n more bytes; 0 if that is too much. Each block that is charged keeps the account
 * alive until it is given back with a negative n, which is never refused. */
typedef struct WorkAccount {
  int (*charge)(struct WorkAccount *self, int64_t nbytes);
} WorkAccount;

#endif
