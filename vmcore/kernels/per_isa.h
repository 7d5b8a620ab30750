/* Compiles the header named by VM_ISA_BODY once per instruction set. Inside it, VMFN(name) is this version's name,
 * VM_ISA its index and VM_VEC its vector width in bytes. */
#include "vmcore/kernels/simd.h"

#if VM_X86_VERSIONS
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt")
#pragma GCC target("prefer-vector-width=512")
#define VM_ISA 2
#define VM_VEC 64
#define VMFN(name) name##_v4
#include VM_ISA_BODY
#undef VMFN
#undef VM_VEC
#undef VM_ISA
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt")
#define VM_ISA 1
#define VM_VEC 32
#define VMFN(name) name##_v3
#include VM_ISA_BODY
#undef VMFN
#undef VM_VEC
#undef VM_ISA
#pragma GCC pop_options
#endif

#define VM_ISA 0
#define VM_VEC 16
#define VMFN(name) name##_base
#include VM_ISA_BODY
#undef VMFN
#undef VM_VEC
#undef VM_ISA
#undef VM_ISA_BODY

/* The versions of one table, by VM_ISA_*. */
#ifndef VM_ISA_TABLE
#if VM_X86_VERSIONS
#define VM_ISA_TABLE(name) {name##_base, name##_v3, name##_v4}
#else
#define VM_ISA_TABLE(name) {name##_base, name##_base, name##_base}
#endif
#endif
