/* float32 chains on vector registers: a tile of each input goes through all steps before the next one is read. Compiled
 * once per instruction set by per_isa.h. The formulas are those of unary_loops.h and binary_loops.h, to the bit. */
#include "vmcore/kernels/half.h"
#include "vmcore/kernels/vmath.h"

#define TILE_AHEAD 2048 /* bytes that inputs and result are fetched ahead */

/* c in all lanes, a negative zero too (VF_SET adds it to zero) */
VM_INLINE vf VMFN(tile_one)(float c) {
  int32_t bits;
  memcpy(&bits, &c, 4);
  return (vf)((vi){} + bits);
}

/* x where it is not a number, else the larger or smaller of both. */
VM_INLINE vf VMFN(tile_max)(vf x, vf y) { return VF_SELECT((x > y) | (x != x), x, y); }
VM_INLINE vf VMFN(tile_min)(vf x, vf y) { return VF_SELECT((x < y) | (x != x), x, y); }

/* n elements, less than a vector, to and from a whole one. */
static void VMFN(fused_take_part)(char *to, const char *from, int64_t n) {
  VF_STORE((float *)to, VMFN(vload_part)((const float *)from, n, 0.0f));
}
static void VMFN(fused_keep_part)(char *to, const char *from, int64_t n) {
  VMFN(vstore_part)((float *)to, n, VF_LOAD((const float *)from));
}

/* As wide as the vector registers allow; and narrower for what is left. */
#if VM_ISA == 2
#define TILE_VECTORS 16
#define TILE_LANES (16 * VL)
#else
#define TILE_VECTORS 8
#define TILE_LANES (8 * VL)
#endif
#define TILE_RUN VMFN(fused_tiles)
#include "vmcore/kernels/fused_tile_run.h"

#define TILE_VECTORS 4
#define TILE_RUN VMFN(fused_quads)
#include "vmcore/kernels/fused_tile_run.h"

#define TILE_VECTORS 1
#define TILE_RUN VMFN(fused_vectors)
#include "vmcore/kernels/fused_tile_run.h"

static const TileLoops VMFN(tile_loops) = {
    {VMFN(fused_tiles), VMFN(fused_quads), VMFN(fused_vectors)}, {TILE_LANES, 4 * VL, VL}, VMFN(fused_take_part),
    VMFN(fused_keep_part)};
#undef TILE_AHEAD
#undef TILE_LANES
