/* TILE_RUN: a chain on tiles of TILE_VECTORS vectors. Included by fused_tiles.h (so: no include guard). */
#define TILE_EACH _Pragma("GCC unroll 16") for (int j = 0; j < TILE_VECTORS; ++j)
#define TILE_AT(p) VF_LOAD((const float *)(p) + VL * j)
#define TILE_STORE(p) TILE_EACH VF_STORE((float *)(p) + VL * j, acc[j])
/* v: the running value, w: the other operand, which is a tile or (TILE_..._1) one value */
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
    break; \
    TILE_BINARY_1(op##_1, expr)
#define TILE_BINARY_1(op, expr) \
  case TILE_##op: { \
    const vf w = VMFN(tile_one)(*(const float *)b); \
    TILE_EACH { \
      vf v = acc[j]; \
      acc[j] = (expr); \
    } \
    break; \
  }

/* acc = operand a of step s */
#define TILE_LOAD(s) \
  { \
    const char *a = at[(s)->a] + (offset & (s)->a_moves); \
    if ((s)->a_one) { \
      const vf w = VMFN(tile_one)(*(const float *)a); \
      TILE_EACH acc[j] = w; \
    } else { \
      TILE_EACH acc[j] = TILE_AT(a); \
    } \
  }

/* n elements, a multiple of the tile. at[]: the first element of each operand. `ahead`: the data comes from beyond the L2
 * cache. */
static void TILE_RUN(const TileStep *first, int32_t n_steps, char *const *at, char *out, int64_t n, int ahead) {
  char spare[TILE_VECTORS * VM_VEC] __attribute__((aligned(64)));
  const TileStep *const last = first + n_steps;
  for (int64_t offset = 0; offset < n * 4; offset += TILE_VECTORS * VM_VEC) {
    vf acc[TILE_VECTORS];
    if (ahead) {
      TILE_EACH __builtin_prefetch(at[first->a] + (offset & first->a_moves) + TILE_AHEAD + VM_VEC * j);
      TILE_EACH __builtin_prefetch(out + offset + TILE_AHEAD + VM_VEC * j, 1);
    }
    TILE_LOAD(first)
    for (const TileStep *s = first;;) {
      const char *b = at[s->b] + (offset & s->b_moves);
      if (ahead & s->b_moves) TILE_EACH __builtin_prefetch(b + TILE_AHEAD + VM_VEC * j);
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
        TILE_BINARY_1(AT_LEAST, VMFN(vmax)(w, v))
        TILE_BINARY_1(AT_MOST, VMFN(vmin)(w, v))
        TILE_UNARY(RELU, VMFN(vmax)(VF_SET(0.0f), v))
        TILE_UNARY(ABS, VF_ABS(v))
        TILE_UNARY(NEG, -v)
        TILE_UNARY(SQUARE, v * v)
        TILE_UNARY(SIGMOID, VMFN(vsigmoid)(v))
        TILE_UNARY(TANH, VMFN(vtanh)(v))
        TILE_UNARY(EXP, VMFN(vexp)(v))
        case TILE_CLIP: {
          const vf low = VMFN(tile_one)((float)s->params[0]), high = VMFN(tile_one)((float)s->params[1]);
          TILE_EACH {
            vf v = acc[j];
            acc[j] = VF_SELECT(v < low, low, VF_SELECT(v > high, high, v));
          }
          break;
        }
        case TILE_LEAKY: {
          const vf alpha = VMFN(tile_one)((float)s->params[0]);
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
        case TILE_BINARY_LOOP:
        case TILE_BINARY_LOOP_1:
          TILE_STORE(spare);
          s->loop.binary(spare, b, spare, TILE_VECTORS * VL, 1, s->op == TILE_BINARY_LOOP);
          TILE_EACH acc[j] = TILE_AT(spare);
          break;
        default: /* TILE_BINARY_LOOP_R, TILE_BINARY_LOOP_R_1 */
          TILE_STORE(spare);
          s->loop.binary(b, spare, spare, TILE_VECTORS * VL, s->op == TILE_BINARY_LOOP_R, 1);
          TILE_EACH acc[j] = TILE_AT(spare);
      }
      if (s->stores) TILE_STORE(at[s->dst]);
      if (++s == last) break;
      if (s->loads) TILE_LOAD(s)
    }
    TILE_STORE(out + offset);
  }
}

#undef TILE_VECTORS
#undef TILE_RUN
#undef TILE_EACH
#undef TILE_AT
#undef TILE_STORE
#undef TILE_LOAD
#undef TILE_UNARY
#undef TILE_BINARY
#undef TILE_BINARY_1
