/* The tables of window_loops.h, one per instruction set. Included by window.pyx alone. */
#ifndef VMCORE_KERNELS_WINDOW_H
#define VMCORE_KERNELS_WINDOW_H

#include <math.h>

#include "vmcore/kernels/planes.h"

#define VM_ISA_BODY "vmcore/kernels/window_loops.h"
#include "vmcore/kernels/per_isa.h"

static const WindowLoops *const window_loops_by_isa[3] = VM_ISA_TABLE(window_loops);

#endif
