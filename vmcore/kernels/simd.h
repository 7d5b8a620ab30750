/* Several versions of hot loops, chosen by what the CPU can do. Never -march=native.
 *
 * VM_MULTIVERSION clones one function. A whole family of loops goes into a header without include guard, named by
 * VM_ISA_BODY, and `#include "vmcore/kernels/per_isa.h"` compiles it once per instruction set; the family's table of
 * function pointers is then picked at import with vm_isa_detect().
 */
#ifndef VMCORE_KERNELS_SIMD_H
#define VMCORE_KERNELS_SIMD_H

#include <stdint.h> /* pulls in <features.h>, which defines __GLIBC__ */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__ELF__) && \
    defined(__GLIBC__)
#define VM_X86_VERSIONS 1
#include <immintrin.h>
#define VM_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VM_X86_VERSIONS 0
#define VM_MULTIVERSION
#endif

#define VM_INLINE static inline __attribute__((always_inline, unused))
#define VM_RESTRICT __restrict__

enum { VM_ISA_BASE = 0, VM_ISA_V3 = 1, VM_ISA_V4 = 2 };

/* The best instruction set that both this build and this CPU have. */
__attribute__((unused)) static int vm_isa_detect(void) {
#if VM_X86_VERSIONS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      return VM_ISA_V4;
    return VM_ISA_V3;
  }
#endif
  return VM_ISA_BASE;
}

#endif
