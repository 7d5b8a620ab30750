/* Several versions of hot loops, chosen once per process by what the CPU can do. Never -march=native.
 *
 * Two ways: VM_MULTIVERSION on one function; or a header of loops included once per instruction set between
 * `#include VM_ISA_BEGIN` style pragmas (see vmath.h), with a table of function pointers chosen at import.
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

enum { VM_ISA_BASE = 0, VM_ISA_V3 = 1, VM_ISA_V4 = 2 };

/* The best instruction set that both this build and this CPU have. */
static int vm_isa_detect(void) {
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
