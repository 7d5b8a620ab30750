/* float32 chains on vector registers: a tile of each input goes through all steps before the next one is read. Compiled
 * once per instruction set by per_isa.h. The formulas are those of unary_loops.h and binary_loops.h, to the bit. */
#include "vmcore/kernels/half.h"
#include "vmcore/kernels/vmath.h"

#if VM_ISA == 2
#define TILE_VECTORS 16
#else
#define TILE_VECTORS 8
#endif
#define TILE_AHEAD 2048 /* bytes that inputs and result are fetched ahead */
#define TILE_EACH _Pragma("GCC unroll 16") for (int j = 0; j < TILE_VECTORS; ++j)
#define TILE_AT(p) VF_LOAD((const float *)(p) + VL * j)
#define TILE_STORE(p) TILE_EACH VF_STORE((float *)(p) + VL * j, acc[j])
/* v: the running value, w: the other operand */
#define TILE_UNARY(op, expr) \
  case TILE_##op: \
    TILE_EACH { \
      vf v = acc[j]; \
      acc[j] = (expr); \
    } \
    break;
#define TILE_BINARY(op, expr) \
  case TILE_##op: \
    TILE_EACH { \
      vf v = acc[j], w = TILE_AT(b); \
      acc[j] = (expr); \
    } \
    break;

/* x where it is not a number, else the larger or smaller of both. */
VM_INLINE vf VMFN(tile_max)(vf x, vf y) { return VF_SELECT((x > y) | (x != x), x, y); }
VM_INLINE vf VMFN(tile_min)(vf x, vf y) { return VF_SELECT((x < y) | (x != x), x, y); }

/* n elements, a multiple of the tile. at[]: tiles of operands that do not move, and the first element of the others. */
static void VMFN(fused_tiles)(const TileStep *first, int32_t n_steps, char *const *at, char *out, int64_t n) {
  char spare[TILE_VECTORS * VM_VEC] __attribute__((aligned(64)));
  const TileStep *const last = first + n_steps;
  for (int64_t offset = 0; offset < n * 4; offset += TILE_VECTORS * VM_VEC) {
    vf acc[TILE_VECTORS];
    TILE_EACH acc[j] = TILE_AT(at[first->a] + (offset & first->a_moves));
    TILE_EACH __builtin_prefetch(at[first->a] + (offset & first->a_moves) + TILE_AHEAD + VM_VEC * j);
    TILE_EACH __builtin_prefetch(out + offset + TILE_AHEAD + VM_VEC * j, 1);
    for (const TileStep *s = first;;) {
      const char *b = at[s->b] + (offset & s->b_moves);
      if (s->b_moves) TILE_EACH __builtin_prefetch(b + TILE_AHEAD + VM_VEC * j);
      switch (s->op) {
        TILE_BINARY(ADD, v + w)
        TILE_BINARY(SUB, v - w)
        TILE_BINARY(RSUB, w - v)
        TILE_BINARY(MUL, v * w)
        TILE_BINARY(DIV, v / w)
        TILE_BINARY(RDIV, w / v)
        TILE_BINARY(MAX, VMFN(tile_max)(v, w))
        TILE_BINARY(RMAX, VMFN(tile_max)(w, v))
        TILE_BINARY(MIN, VMFN(tile_min)(v, w))
        TILE_BINARY(RMIN, VMFN(tile_min)(w, v))
        TILE_UNARY(RELU, VMFN(vmax)(VF_SET(0.0f), v))
        TILE_UNARY(ABS, VF_ABS(v))
        TILE_UNARY(NEG, -v)
        TILE_UNARY(SQUARE, v * v)
        case TILE_CLIP: {
          const vf low = VF_SET((float)s->params[0]), high = VF_SET((float)s->params[1]);
          TILE_EACH {
            vf v = acc[j];
            acc[j] = VF_SELECT(v < low, low, VF_SELECT(v > high, high, v));
          }
          break;
        }
        case TILE_LEAKY: {
          const vf alpha = VF_SET((float)s->params[0]);
          TILE_EACH {
            vf v = acc[j];
            acc[j] = VF_SELECT(v < 0.0f, v * alpha, v);
          }
          break;
        }
        case TILE_UNARY_LOOP:
          TILE_STORE(spare);
          s->loop.unary(spare, spare, TILE_VECTORS * VL, s->params);
          TILE_EACH acc[j] = TILE_AT(spare);
          break;
        default: { /* TILE_BINARY_LOOP, TILE_BINARY_LOOP_R */
          TILE_STORE(spare);
          if (s->op == TILE_BINARY_LOOP) s->loop.binary(spare, b, spare, TILE_VECTORS * VL, 1, s->b_moves != 0 || s->b_tile);
          else s->loop.binary(b, spare, spare, TILE_VECTORS * VL, s->b_moves != 0 || s->b_tile, 1);
          TILE_EACH acc[j] = TILE_AT(spare);
        }
      }
      if (s->stores) TILE_STORE(at[s->dst]);
      if (++s == last) break;
      if (s->loads) TILE_EACH acc[j] = TILE_AT(at[s->a] + (offset & s->a_moves));
    }
    TILE_STORE(out + offset);
  }
}

static const TileLoops VMFN(tile_loops) = {VMFN(fused_tiles), TILE_VECTORS *VL};
#undef TILE_VECTORS
#undef TILE_AHEAD
#undef TILE_EACH
#undef TILE_AT
#undef TILE_STORE
#undef TILE_UNARY
#undef TILE_BINARY
