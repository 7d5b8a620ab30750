/* The element types that kernels know, numbered for tables. */
#ifndef VMCORE_KERNELS_DTYPES_H
#define VMCORE_KERNELS_DTYPES_H

#include "vmcore/value.h"

/* The numbers are part of the programs of kernel.fused_elementwise, which files hold: they stay. */
enum {
  K_BOOL, K_I8, K_I16, K_I32, K_I64, K_U8, K_U16, K_U32, K_U64, K_F16, K_BF16, K_F32, K_F64, K_COUNT, K_NONE = -1
};

/* Integer types as X(suffix, C type, index). */
#define KERNEL_SIGNED(X) X(i8, int8_t, K_I8) X(i16, int16_t, K_I16) X(i32, int32_t, K_I32) X(i64, int64_t, K_I64)
#define KERNEL_UNSIGNED(X) X(u8, uint8_t, K_U8) X(u16, uint16_t, K_U16) X(u32, uint32_t, K_U32) X(u64, uint64_t, K_U64)
#define KERNEL_INTS(X) KERNEL_SIGNED(X) KERNEL_UNSIGNED(X)
#define KERNEL_FLOATS(X) X(f32, float, K_F32) X(f64, double, K_F64)

/* Index of an element type, or K_NONE. */
static inline int kernel_dtype(VmDataType t) {
  static const int8_t index[DL_BOOL + 1][9] = {
      [DL_INT] = {-1, K_I8, K_I16, -1, K_I32, -1, -1, -1, K_I64},
      [DL_UINT] = {-1, K_U8, K_U16, -1, K_U32, -1, -1, -1, K_U64},
      [DL_FLOAT] = {-1, -1, K_F16, -1, K_F32, -1, -1, -1, K_F64},
      [DL_HANDLE] = {-1, -1, -1, -1, -1, -1, -1, -1, -1},
      [DL_BFLOAT] = {-1, -1, K_BF16, -1, -1, -1, -1, -1, -1},
      [DL_COMPLEX] = {-1, -1, -1, -1, -1, -1, -1, -1, -1},
      [DL_BOOL] = {-1, K_BOOL, -1, -1, -1, -1, -1, -1, -1},
  };
  if (t.code > DL_BOOL || t.bits > 64 || t.lanes != 1) return K_NONE;
  return index[t.code][t.bits >> 3];
}

#endif
