/* kernel.fused_elementwise: a chain of elementwise operators, run block by block so that what lies between them stays in
 * the L1 cache.
 *
 * The chain is a program of 64-bit words. A file is hostile, so it is verified against the operands it is called with;
 * what that leaves, the loops' addresses and strides, is a `FusedCode`. A call site whose program is a literal keeps the
 * first one it makes (`FusedSite`), and uses it for all calls whose operands have the same element types and strides.
 *
 *   word 0          bytes: version, inputs, constants, steps, registers, 0, 0, 0
 *   constants       one word each: the bits of one element (lowest bytes), or of a double that is a parameter
 *   steps           bytes: opcode, element type of the operands, destination, operands a, b, c, extra, 0
 *
 * An operand is an input (its number), a register (64 + number) or a constant (128 + number). The last step writes the
 * result (destination 255), the others a register. `extra` is the first of two constants that are an operator's
 * parameters, or the element type that a cast makes. Element types are numbers of dtypes.h.
 */
#ifndef VMCORE_KERNELS_FUSED_H
#define VMCORE_KERNELS_FUSED_H

#define BROADCAST_INPUTS 16

#include "vmcore/kernels/broadcast.h"
#include "vmcore/kernels/elementwise_ops.h"
#include "vmcore/kernels/simd.h"

enum {
  FUSED_VERSION = 1,
  FUSED_MAX_INPUTS = BROADCAST_INPUTS,
  FUSED_MAX_CONSTANTS = 64,
  FUSED_MAX_STEPS = 64,
  FUSED_MAX_REGISTERS = 16,
  FUSED_REGISTER = 64, /* first operand code of the registers */
  FUSED_CONSTANT = 128,
  FUSED_RESULT = 255,

  FUSED_CACHE_BYTES = 10 * 1024, /* registers, inputs and result of one block; as much again of the next one is on its way */
  FUSED_AHEAD_ELEMENTS = 1 << 16, /* from here on blocks come from beyond the L2 cache, and are fetched ahead */
  FUSED_BRIEF_ELEMENTS = 1 << 14, /* up to here one thread is enough, and nothing is fetched ahead */
  FUSED_MIN_BLOCK = 256,
  FUSED_MAX_BLOCK = 2048,
  FUSED_TILED_BLOCK = 4096,
  FUSED_MIN_ROW = 256,          /* shorter rows are put together, and their broadcast inputs spelled out */
  FUSED_VECTOR_BYTES = 64,      /* of the widest vectors */
  FUSED_STACK_BYTES = 4096,     /* scratch memory that small calls take from the stack */
  FUSED_PARALLEL_WORK = 1 << 19 /* elements x steps below which waking a thread costs more than it saves */
};

enum { FUSED_UNARY, FUSED_BINARY, FUSED_WHERE, FUSED_CAST };

typedef struct FusedOp {
  const char *name;
  uint8_t kind, index, n_params; /* index: in the table of its kind */
} FusedOp;

/* Opcodes are positions in this table, and files hold them: new operators go to its end. */
static const FusedOp fused_ops[] = {
#define U(op, n) {#op, FUSED_UNARY, U_##op, n},
#define B(op) {#op, FUSED_BINARY, B_##op, 0},
    U(relu, 0) U(abs, 0) U(neg, 0) U(square, 0) U(sqrt, 0) U(rsqrt, 0) U(reciprocal, 0) U(floor, 0) U(ceil, 0)
    U(round, 0) U(sign, 0) U(softsign, 0) U(hard_swish, 0) U(leaky_relu, 1) U(hard_sigmoid, 2)
    U(thresholded_relu, 1) U(clip, 2) U(shrink, 2) U(exp, 0) U(log, 0) U(sigmoid, 0) U(tanh, 0) U(erf, 0) U(gelu, 0)
    U(gelu_tanh, 0) U(silu, 0) U(softplus, 0) U(mish, 0) U(elu, 1) U(selu, 2) U(celu, 1) U(sin, 0) U(cos, 0)
    U(tan, 0) U(asin, 0) U(acos, 0) U(atan, 0) U(sinh, 0) U(cosh, 0) U(asinh, 0) U(acosh, 0) U(atanh, 0)
    U(bitwise_not, 0) U(logical_not, 0)
    B(add) B(sub) B(mul) B(div) B(maximum) B(minimum) B(prelu) B(equal) B(not_equal) B(less) B(less_equal) B(greater)
    B(greater_equal) B(floor_div) B(mod) B(fmod) B(pow) B(atan2) B(bitwise_and) B(bitwise_or) B(bitwise_xor)
    B(left_shift) B(right_shift) B(logical_and) B(logical_or) B(logical_xor)
    {"where", FUSED_WHERE, 0, 0}, {"cast", FUSED_CAST, 0, 0},
#undef U
#undef B
};
#define FUSED_OPS ((int)(sizeof fused_ops / sizeof fused_ops[0]))

/* ---- what other modules lend: their loops, scratch memory, threads ------------------------------------------------- */

static const UnaryOp *fused_unary;
static const BinaryOp *fused_binary;
static const WhereLoop *fused_where; /* by log2 of the item size */
static const CastLoop *fused_cast;   /* [from * K_COUNT + to] */
static void *(*fused_workspace)(size_t nbytes);
static int (*fused_threads)(void);
static void (*fused_parallel)(int64_t n_tasks, void (*fn)(void *ctx, int64_t task), void *ctx);

static const uint8_t fused_item[K_COUNT] = {
    [K_BOOL] = 1, [K_I8] = 1, [K_I16] = 2, [K_I32] = 4, [K_I64] = 8, [K_U8] = 1, [K_U16] = 2,
    [K_U32] = 4,  [K_U64] = 8, [K_F16] = 2, [K_BF16] = 2, [K_F32] = 4, [K_F64] = 8,
};

/* Whether a step of operator `opcode` on element type `type` is allowed; `result`: what a cast makes. */
static int fused_supports(int opcode, int type, int result) {
  if (opcode < 0 || opcode >= FUSED_OPS || type < 0 || type >= K_COUNT || type == K_F16 || type == K_BF16) return 0;
  const FusedOp *op = &fused_ops[opcode];
  switch (op->kind) {
    case FUSED_UNARY: return fused_unary[op->index].loop[type] != NULL;
    case FUSED_BINARY:
      return fused_binary[op->index].loop[type] && !(fused_binary[op->index].refuses_zero && type <= K_U64);
    case FUSED_CAST: return result >= 0 && result < K_COUNT && result != type && fused_cast[type * K_COUNT + result];
    default: return 1;
  }
}

/* ---- a verified program -------------------------------------------------------------------------------------------- */

typedef struct FusedStep {
  union {
    UnaryLoop unary;
    BinaryLoop binary;
    WhereLoop where;
    CastLoop cast;
  } loop;
  const double *params;
  uint8_t kind, dst, a, b, c;
  uint8_t sa, sb, sc; /* strides: 1, or 0 where an operand is one value */
  uint8_t once;       /* all operands are one value, and so is the result */
  uint8_t item, type; /* bytes and number of the operands' element type */
  uint8_t opcode, makes_bool;
} FusedStep;

/* A step on a tile in vector registers: the running value is operand a, or b where the name has an R (reversed). */
#define TILE_PAIR(op) TILE_##op, TILE_##op##_1 /* operand b is a tile, or one value */
enum {
  TILE_PAIR(ADD), TILE_PAIR(SUB), TILE_PAIR(RSUB), TILE_PAIR(MUL), TILE_PAIR(DIV), TILE_PAIR(RDIV), TILE_PAIR(MAX),
  TILE_PAIR(RMAX), TILE_PAIR(MIN), TILE_PAIR(RMIN), TILE_PAIR(BINARY_LOOP), TILE_PAIR(BINARY_LOOP_R),
  TILE_AT_LEAST, TILE_AT_MOST, /* maximum and minimum with a constant whose order with all values is plain */
  TILE_RELU, TILE_ABS, TILE_NEG, TILE_SQUARE, TILE_SIGMOID, TILE_TANH, TILE_EXP, TILE_CLIP, TILE_LEAKY, TILE_UNARY_LOOP
};
#undef TILE_PAIR

typedef struct TileStep {
  union {
    UnaryLoop unary;
    BinaryLoop binary;
  } loop; /* for operators that are not written out: the tile goes through memory */
  const double *params;
  int32_t a_moves, b_moves; /* -1: the operand lies along the result; 0: it is a register's tile or one value */
  uint8_t op, a, b, dst;
  uint8_t loads, stores; /* a comes from memory; the result goes to memory too */
  uint8_t a_one;         /* a is one value */
} TileStep;

enum { TILE_WIDTHS = 3 };
typedef void (*TileRun)(const TileStep *first, int32_t n_steps, char *const *at, char *out, int64_t n, int ahead);
typedef struct TileLoops {
  TileRun run[TILE_WIDTHS];      /* n: a multiple of `tile` */
  int64_t tile[TILE_WIDTHS];     /* elements, powers of two, the last one a vector's */
  void (*take_part)(char *to, const char *from, int64_t n); /* less than a vector to a whole one */
  void (*keep_part)(char *to, const char *from, int64_t n);
} TileLoops;

#define VM_ISA_BODY "vmcore/kernels/fused_tiles.h"
#include "vmcore/kernels/per_isa.h"

static TileLoops tiles;

static void fused_init(int isa) {
  static const TileLoops *const versions[] = VM_ISA_TABLE(&tile_loops);
  tiles = *versions[isa];
}

typedef struct FusedCode {
  int32_t n_in, n_constants, n_steps, n_registers;
  int32_t item, item_out; /* bytes of the widest element that a register holds, and of the result's */
  int32_t brief_bytes;    /* of a register when all of them share FUSED_STACK_BYTES */
  int32_t brief_numel;    /* elements that such registers hold */
  uint8_t type_out;
  uint8_t casts;          /* the last step is a cast: the result must not lie on an input */
  uint8_t tiled;          /* tile[] has the program for vector registers */
  uint8_t plain;          /* all inputs and the result are float32, and all inputs lie along the result */
  uint8_t type_in[FUSED_MAX_INPUTS], stride_in[FUSED_MAX_INPUTS]; /* stride: 1, or 0 for one value */
  const int64_t *constants;
  FusedStep *step; /* n_steps each */
  TileStep *tile;
} FusedCode;

/* What a call site keeps. Zeroed memory of the program it belongs to, followed by the steps; written once. */
typedef struct FusedSite {
  int32_t state; /* FUSED_EMPTY, FUSED_TAKEN: somebody fills it, FUSED_READY: it never changes again */
  const int64_t *words; /* the literal that `code` was made from */
  FusedCode code;
} FusedSite;
enum { FUSED_EMPTY, FUSED_TAKEN, FUSED_READY };

typedef struct Fused {
  const FusedCode *code;
  int32_t n_expanded;
  int8_t expanded[FUSED_MAX_INPUTS];   /* number of its buffer, -1: read in place */
  int64_t period[FUSED_MAX_INPUTS];    /* of an expanded input, where it repeats within a block; else 0 */
  const char *data[FUSED_MAX_INPUTS];
  char *out;
  int64_t block, register_bytes, expanded_bytes, n_items, n_pieces, numel;
  int gathers;                         /* short rows: a block is some elements of the flat result, not of a row */
  int failed, tiled;
  Broadcast rows;
} Fused;

#define FUSED_FAIL(...) ARG_FAIL(ERR_VALUE, "fused_elementwise: " __VA_ARGS__)

static const double fused_no_params[2] = {0, 0};

typedef struct FusedOperands {
  uint8_t type[FUSED_MAX_REGISTERS]; /* K_COUNT: nothing was written yet */
  uint8_t stride[FUSED_MAX_REGISTERS];
} FusedOperands;

/* Checks operand `code` of step `at`, which must have element type `type`; 0 and its stride, or -1. */
static inline int fused_operand(const FusedCode *f, const FusedOperands *r, int at, unsigned code, unsigned type,
                                uint8_t *stride) {
  unsigned found;
  if (code < FUSED_REGISTER) {
    if (VM_UNLIKELY(code >= (unsigned)f->n_in)) return FUSED_FAIL("step %d reads input %u of %d", at, code, f->n_in);
    found = f->type_in[code];
    *stride = f->stride_in[code];
  } else if (code < FUSED_CONSTANT) {
    const unsigned number = code - FUSED_REGISTER;
    if (VM_UNLIKELY(number >= (unsigned)f->n_registers || r->type[number] == K_COUNT))
      return FUSED_FAIL("step %d reads register %u, which no step before it writes", at, number);
    found = r->type[number];
    *stride = r->stride[number];
  } else {
    if (VM_UNLIKELY(code - FUSED_CONSTANT >= (unsigned)f->n_constants))
      return FUSED_FAIL("step %d reads constant %u of %d", at, code - FUSED_CONSTANT, f->n_constants);
    found = type;
    *stride = 0;
  }
  if (VM_UNLIKELY(found != type))
    return FUSED_FAIL("step %d reads element type %u where it has %u", at, type, found);
  return 0;
}

/* The program for tiles in registers, if all of it is float32 and no step works on single values. */
static int fused_plan_tiles(FusedCode *f) {
  static const int8_t forms[B_COUNT][2] = { /* running value first, second */
      [B_add] = {TILE_ADD, TILE_ADD}, [B_sub] = {TILE_SUB, TILE_RSUB}, [B_mul] = {TILE_MUL, TILE_MUL},
      [B_div] = {TILE_DIV, TILE_RDIV}, [B_maximum] = {TILE_MAX, TILE_RMAX}, [B_minimum] = {TILE_MIN, TILE_RMIN},
  };
  for (int i = 0; i < f->n_steps; ++i) {
    const FusedStep *s = &f->step[i];
    if (s->once || s->item != 4 || s->type != K_F32 || s->kind > FUSED_BINARY || s->makes_bool) return 0;
  }
  for (int i = 0; i < f->n_steps; ++i) {
    const FusedStep *s = &f->step[i];
    TileStep *t = &f->tile[i];
    const unsigned before = i ? s[-1].dst : FUSED_RESULT;
    const int binary = s->kind == FUSED_BINARY, reversed = binary && s->b == before && s->a != before;
    t->a = reversed ? s->b : s->a;
    t->b = !binary ? t->a : reversed ? s->a : s->b;
    t->dst = s->dst;
    t->loads = i == 0 || t->a != before;
    t->a_moves = t->a < FUSED_REGISTER && f->stride_in[t->a] ? -1 : 0;
    t->b_moves = t->b < FUSED_REGISTER && f->stride_in[t->b] ? -1 : 0;
    t->a_one = t->a >= FUSED_CONSTANT || (t->a < FUSED_REGISTER && !f->stride_in[t->a]);
    const int b_one = t->b >= FUSED_CONSTANT || (t->b < FUSED_REGISTER && !f->stride_in[t->b]);
    t->params = s->params;
    if (!binary) {
      t->loop.unary = s->loop.unary;
      switch (fused_ops[s->opcode].index) {
        case U_relu: t->op = TILE_RELU; break;
        case U_abs: t->op = TILE_ABS; break;
        case U_neg: t->op = TILE_NEG; break;
        case U_square: t->op = TILE_SQUARE; break;
        case U_sigmoid: t->op = TILE_SIGMOID; break;
        case U_tanh: t->op = TILE_TANH; break;
        case U_exp: t->op = TILE_EXP; break;
        case U_clip: t->op = TILE_CLIP; break;
        case U_leaky_relu: t->op = TILE_LEAKY; break;
        default: t->op = TILE_UNARY_LOOP;
      }
    } else {
      const int index = fused_ops[s->opcode].index;
      const int known = index <= B_minimum;
      t->loop.binary = s->loop.binary;
      t->op = (uint8_t)((known ? forms[index][reversed] : reversed ? TILE_BINARY_LOOP_R : TILE_BINARY_LOOP) + b_one);
      if ((index == B_maximum || index == B_minimum) && t->b >= FUSED_CONSTANT) {
        float value; /* which of two zeros, and what of two NaNs comes out, takes more than one instruction */
        memcpy(&value, f->constants + (t->b - FUSED_CONSTANT), 4);
        if (value == value && (reversed || value != 0)) t->op = index == B_maximum ? TILE_AT_LEAST : TILE_AT_MOST;
      }
    }
    /* Whether somebody but the next step, once, reads the result before its register is written again. */
    t->stores = 0;
    if (s->dst == FUSED_RESULT) continue;
    for (int j = i + 1; j < f->n_steps && !t->stores; ++j) {
      const FusedStep *r = &f->step[j];
      const int reads = (r->a == s->dst) + (r->kind == FUSED_BINARY && r->b == s->dst);
      t->stores = reads > (j == i + 1);
      if (r->dst == s->dst) break;
    }
  }
  return 1;
}

/* Verifies the program and resolves it. n_in, type_in, stride_in, step and tile are set. */
static int fused_decode(const ArgShape *program, FusedCode *f) {
  if (VM_UNLIKELY(program->size < 2)) return FUSED_FAIL("a program has 2 words at least, this one %lld",
                                                        (long long)program->size);
  const uint64_t head = (uint64_t)program->data[0];
  FusedOperands r;
  if (VM_UNLIKELY((head & 255) != FUSED_VERSION))
    return FUSED_FAIL("program of version %d, this build knows %d", (int)(head & 255), FUSED_VERSION);
  const int n_in = head >> 8 & 255, n_constants = head >> 16 & 255, n_steps = head >> 24 & 255;
  f->n_registers = head >> 32 & 255;
  if (VM_UNLIKELY(n_in != f->n_in)) return FUSED_FAIL("program for %d inputs, got %d", n_in, f->n_in);
  if (VM_UNLIKELY(n_constants > FUSED_MAX_CONSTANTS || n_steps < 1 || n_steps > FUSED_MAX_STEPS ||
                  f->n_registers > FUSED_MAX_REGISTERS || head >> 40 || program->size != 1 + n_constants + n_steps))
    return FUSED_FAIL("bad program of %lld words: %d constants, %d steps, %d registers", (long long)program->size,
                      n_constants, n_steps, f->n_registers);
  f->n_constants = n_constants;
  f->n_steps = n_steps;
  f->constants = program->data + 1;
  memset(r.type, K_COUNT, sizeof r.type);
  int item = 1;
  for (int at = 0; at < n_steps; ++at) {
    const uint64_t word = (uint64_t)program->data[1 + n_constants + at];
    const unsigned opcode = word & 255, type = word >> 8 & 255, dst = word >> 16 & 255, extra = word >> 48 & 255;
    FusedStep *s = &f->step[at];
    if (VM_UNLIKELY(opcode >= (unsigned)FUSED_OPS || type >= K_COUNT || type == K_F16 || type == K_BF16 || word >> 56))
      return FUSED_FAIL("step %d: opcode %u on element type %u", at, opcode, type);
    const FusedOp *op = &fused_ops[opcode];
    unsigned result = type;
    s->kind = op->kind;
    s->dst = (uint8_t)dst;
    s->a = word >> 24 & 255, s->b = word >> 32 & 255, s->c = word >> 40 & 255;
    s->sb = s->sc = 0;
    s->item = fused_item[type];
    s->type = (uint8_t)type;
    s->opcode = (uint8_t)opcode;
    s->makes_bool = 0;
    s->params = fused_no_params;
    if (fused_operand(f, &r, at, s->a, type, &s->sa)) return -1;
    switch (op->kind) {
      case FUSED_UNARY:
        s->loop.unary = fused_unary[op->index].loop[type];
        if (VM_UNLIKELY(s->loop.unary == NULL)) return FUSED_FAIL("%s: no loop for element type %u", op->name, type);
        if (op->n_params) {
          if (VM_UNLIKELY(extra + 1 >= (unsigned)n_constants))
            return FUSED_FAIL("step %d: parameters at constant %u of %d", at, extra, n_constants);
          s->params = (const double *)(f->constants + extra);
        }
        break;
      case FUSED_BINARY: {
        const BinaryOp *row = &fused_binary[op->index];
        s->loop.binary = row->loop[type];
        if (VM_UNLIKELY(s->loop.binary == NULL || (row->refuses_zero && type <= K_U64)))
          return FUSED_FAIL("%s: no loop for element type %u", op->name, type); /* divisors would have to be scanned */
        if (fused_operand(f, &r, at, s->b, type, &s->sb)) return -1;
        if (row->out == OUT_BOOL) result = K_BOOL, s->makes_bool = 1;
        break;
      }
      case FUSED_WHERE:
        s->loop.where = fused_where[__builtin_ctz(fused_item[type])];
        if (fused_operand(f, &r, at, s->b, type, &s->sb) || fused_operand(f, &r, at, s->c, K_BOOL, &s->sc)) return -1;
        break;
      default:
        result = extra;
        if (VM_UNLIKELY(result >= K_COUNT || result == type || !fused_cast[type * K_COUNT + result]))
          return FUSED_FAIL("step %d: no cast from element type %u to %u", at, type, extra);
        s->loop.cast = fused_cast[type * K_COUNT + result];
    }
    s->once = !(s->sa | s->sb | s->sc);
    const uint8_t stride = !s->once;
    if (dst != FUSED_RESULT) {
      const unsigned number = dst - FUSED_REGISTER;
      if (VM_UNLIKELY(dst < FUSED_REGISTER || number >= (unsigned)f->n_registers || at == n_steps - 1))
        return FUSED_FAIL("step %d of %d writes operand %u", at, n_steps, dst);
      /* A loop may write over an operand only element by element: same width, same stride, and no cast. */
      const unsigned width = fused_item[result];
      const int reads = (s->a == dst && (width != s->item || s->sa != stride || op->kind == FUSED_CAST)) ||
                        (op->kind != FUSED_UNARY && op->kind != FUSED_CAST && s->b == dst &&
                         (width != s->item || s->sb != stride)) ||
                        (op->kind == FUSED_WHERE && s->c == dst && (width != 1 || s->sc != stride));
      if (VM_UNLIKELY(reads)) return FUSED_FAIL("step %d writes over register %u, which it reads", at, number);
      r.type[number] = (uint8_t)result;
      r.stride[number] = stride;
    } else if (VM_UNLIKELY(at != n_steps - 1)) {
      return FUSED_FAIL("step %d of %d writes the result", at, n_steps);
    }
    if (fused_item[result] > item) item = fused_item[result];
    f->type_out = (uint8_t)result;
  }
  f->item = item;
  f->item_out = fused_item[f->type_out];
  f->casts = f->step[n_steps - 1].kind == FUSED_CAST;
  f->plain = f->type_out == K_F32;
  for (int k = 0; k < n_in; ++k) f->plain &= f->type_in[k] == K_F32 && f->stride_in[k];
  f->tiled = n_steps > 1 && fused_plan_tiles(f);
  f->brief_bytes = FUSED_STACK_BYTES / (f->n_registers ? f->n_registers : 1) & ~63;
  f->brief_numel = f->brief_bytes / item;
  return 0;
}

/* ---- running it -------------------------------------------------------------------------------------------------- */

/* o[0:n] = value */
static void fused_fill(char *o, const char *value, int64_t n, int64_t item) {
#define FILL(T)                                           \
  {                                                       \
    const T v = *(const T *)value;                        \
    for (int64_t i = 0; i < n; ++i) ((T *)o)[i] = v;      \
    return;                                               \
  }
  switch (item) {
    case 1: FILL(uint8_t)
    case 2: FILL(uint16_t)
    case 4: FILL(uint32_t)
    default: FILL(uint64_t)
  }
#undef FILL
}

/* All steps on one block, one after the other; at[]: where operands are. With `ahead`, the lines of the next block are
 * fetched meanwhile, a few per step: the first step alone would wait for memory, and the others leave it idle. */
static void fused_steps(const FusedCode *f, char *const *at, int64_t n_block, int ahead) {
  const FusedStep *s = f->step;
  int64_t line = 0;
  for (const FusedStep *end = s + f->n_steps; s < end; ++s) {
    if (ahead) {
      const int64_t until = n_block * (s - f->step + 1) / f->n_steps;
      for (; line < until; line += 16) {
        for (int k = 0; k < f->n_in; ++k)
          if (f->stride_in[k]) __builtin_prefetch(at[k] + (n_block + line) * fused_item[f->type_in[k]], 0, 3);
        __builtin_prefetch(at[FUSED_RESULT] + (n_block + line) * f->item_out, 1, 3);
      }
    }
    const int64_t n = s->once ? 1 : n_block;
    const char *a = at[s->a];
    char *o = at[s->dst];
    switch (s->kind) {
      case FUSED_UNARY: s->loop.unary(a, o, n, s->params); break;
      case FUSED_BINARY: s->loop.binary(a, at[s->b], o, n, s->once | s->sa, s->once | s->sb); break;
      case FUSED_CAST: s->loop.cast(a, o, n); break;
      default:
        if (s->sc | s->once) {
          s->loop.where((const uint8_t *)at[s->c], a, at[s->b], o, n, s->once | s->sa, s->once | s->sb);
        } else { /* one condition for all of the block */
          const int first = *(const uint8_t *)at[s->c] != 0;
          const char *from = first ? a : at[s->b];
          if (first ? s->sa : s->sb) memmove(o, from, (size_t)(n * s->item));
          else fused_fill(o, from, n, s->item);
        }
    }
  }
  const FusedStep *last = s - 1;
  if (last->once && n_block > 1) {
    uint64_t value = 0;
    memcpy(&value, at[FUSED_RESULT], (size_t)f->item_out);
    fused_fill(at[FUSED_RESULT], (const char *)&value, n_block, f->item_out);
  }
}

/* All steps on one block. `tiled`: in vector registers. at[] is used up. */
static void fused_block(const FusedCode *f, char **at, int64_t n, int tiled, int ahead) {
  char part[FUSED_MAX_INPUTS + 1][FUSED_VECTOR_BYTES] __attribute__((aligned(64)));
  if (!tiled) {
    fused_steps(f, at, n, ahead);
    return;
  }
  for (int i = 0; i < TILE_WIDTHS; ++i) {
    const int64_t run = n & -tiles.tile[i];
    if (!run) continue;
    tiles.run[i](f->tile, f->n_steps, at, at[FUSED_RESULT], run, ahead ? -1 : 0);
    n -= run;
    if (!n) return;
    for (int k = 0; k < f->n_in; ++k) at[k] += f->stride_in[k] * run * 4;
    at[FUSED_RESULT] += run * 4;
  }
  for (int k = 0; k < f->n_in; ++k)
    if (f->stride_in[k]) { /* what follows the elements in a part is computed with, but not kept */
      tiles.take_part(part[k], at[k], n);
      at[k] = part[k];
    }
  tiles.run[TILE_WIDTHS - 1](f->tile, f->n_steps, at, part[FUSED_MAX_INPUTS], tiles.tile[TILE_WIDTHS - 1], 0);
  tiles.keep_part(at[FUSED_RESULT], part[FUSED_MAX_INPUTS], n);
}

/* dst[0:n] = elements [first, first + n) of input k as it is broadcast to the result. */
static void fused_expand(const Fused *f, int k, int64_t first, int64_t n, char *dst) {
  const Broadcast *b = &f->rows;
  const int64_t item = fused_item[f->code->type_in[k]], row = b->dim[0], step = b->stride[k][0];
  int64_t index[ARGS_MAX_NDIM], rest = first, offset = 0;
  for (int32_t d = 0; d < b->ndim; ++d) {
    index[d] = rest % b->dim[d];
    rest /= b->dim[d];
    if (d) offset += index[d] * b->stride[k][d];
  }
  while (n > 0) {
    const int64_t run = row - index[0] < n ? row - index[0] : n;
    const char *from = f->data[k] + (offset + index[0] * step) * item;
    if (step) memcpy(dst, from, (size_t)(run * item));
    else fused_fill(dst, from, run, item);
    dst += run * item;
    n -= run;
    index[0] = 0;
    for (int32_t d = 1; d < b->ndim; ++d) {
      offset += b->stride[k][d];
      if (++index[d] < b->dim[d]) break;
      offset -= b->stride[k][d] * b->dim[d];
      index[d] = 0;
    }
  }
}

/* at[]: the constants, and registers of `nbytes` each from `scratch` on. */
static inline void fused_place(const FusedCode *c, char **at, char *scratch, int64_t nbytes) {
  for (int i = 0; i < c->n_constants; ++i) at[FUSED_CONSTANT + i] = (char *)(c->constants + i);
  for (int i = 0; i < c->n_registers; ++i) at[FUSED_REGISTER + i] = scratch + i * nbytes;
}

/* Items [first, last) of the work. `scratch`: registers and expanded inputs. */
static void fused_run(const Fused *f, int64_t first, int64_t last, char *scratch) {
  char *now[FUSED_RESULT + 1], *at[FUSED_RESULT + 1]; /* of the block at hand; of the next one */
  const Broadcast *b = &f->rows;
  const FusedCode *c = f->code;
  const int64_t row = b->dim[0];
  fused_place(c, now, scratch, f->register_bytes);
  scratch += c->n_registers * f->register_bytes;
  if (f->gathers || b->ndim == 1) {
    const int ahead = f->numel >= FUSED_AHEAD_ELEMENTS && f->n_expanded == 0 && c->n_steps > 1;
    for (int k = 0; k < c->n_in; ++k)
      if (f->expanded[k] < 0) {
        at[k] = (char *)f->data[k] + c->stride_in[k] * first * f->block * fused_item[c->type_in[k]];
      } else {
        at[k] = scratch + f->expanded[k] * f->expanded_bytes;
        if (f->period[k]) { /* the same in every block: the last, shorter one takes its beginning */
          const int64_t n = f->block < f->numel ? f->block : f->numel;
          fused_expand(f, k, 0, n, at[k]);
        }
      }
    at[FUSED_RESULT] = f->out + first * f->block * c->item_out;
    for (int64_t i = first; i < last; ++i) {
      const int64_t start = i * f->block, n = f->numel - start < f->block ? f->numel - start : f->block;
      for (int k = 0; k < c->n_in; ++k)
        if (f->expanded[k] >= 0 && !f->period[k]) fused_expand(f, k, start, n, at[k]);
      for (int k = 0; k < c->n_in; ++k) now[k] = at[k];
      now[FUSED_RESULT] = at[FUSED_RESULT];
      fused_block(c, now, n, f->tiled, ahead);
      for (int k = 0; k < c->n_in; ++k)
        if (f->expanded[k] < 0) at[k] += c->stride_in[k] * f->block * fused_item[c->type_in[k]];
      at[FUSED_RESULT] += f->block * c->item_out;
    }
    return;
  }
  /* Rows, in segments of one block. */
  Broadcast at_row = *b;
  const int64_t segments = (row + f->block - 1) / f->block;
  int64_t rest = first / segments, segment = first % segments;
  at_row.row = rest;
  for (int32_t d = 1; d < b->ndim; ++d) {
    at_row.index[d] = rest % b->dim[d];
    rest /= b->dim[d];
    for (int k = 0; k < c->n_in; ++k) at_row.offset[k] += at_row.index[d] * b->stride[k][d];
  }
  for (int64_t i = first; i < last; ++i) {
    const int64_t start = segment * f->block, n = row - start < f->block ? row - start : f->block;
    for (int k = 0; k < c->n_in; ++k)
      now[k] = (char *)f->data[k] + (at_row.offset[k] + c->stride_in[k] * start) * fused_item[c->type_in[k]];
    now[FUSED_RESULT] = f->out + (at_row.row * row + start) * c->item_out;
    fused_block(c, now, n, f->tiled, 0);
    if (++segment == segments) {
      segment = 0;
      broadcast_next(&at_row);
    }
  }
}

static int64_t fused_scratch_bytes(const Fused *f) {
  return f->code->n_registers * f->register_bytes + f->n_expanded * f->expanded_bytes;
}

static void fused_piece(void *ctx, int64_t piece) {
  Fused *f = (Fused *)ctx;
  char *scratch = (char *)fused_workspace((size_t)fused_scratch_bytes(f));
  if (scratch == NULL) {
    __atomic_store_n(&f->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  fused_run(f, f->n_items * piece / f->n_pieces, f->n_items * (piece + 1) / f->n_pieces, scratch);
}

/* How each input is read: fills stride_in. Before decoding; the broadcast is planned. */
static void fused_plan_inputs(Fused *f, int n_in, uint8_t *stride_in) {
  const Broadcast *b = &f->rows;
  f->gathers = b->ndim > 1 && b->dim[0] < FUSED_MIN_ROW;
  f->n_expanded = 0;
  for (int k = 0; k < n_in; ++k) {
    f->expanded[k] = -1;
    f->period[k] = 0;
    stride_in[k] = (uint8_t)b->stride[k][0];
    if (!f->gathers) continue;
    int64_t run = 1, period = 1;
    int full = 1, one = 1;
    for (int32_t d = 0; d < b->ndim; ++d) {
      full &= b->stride[k][d] == run;
      one &= b->stride[k][d] == 0;
      run *= b->dim[d];
      if (b->stride[k][d]) period = run;
    }
    stride_in[k] = !one;
    if (full || one) continue;
    f->expanded[k] = (int8_t)f->n_expanded++;
    f->period[k] = period;
  }
}

/* Size of a block, and how many there are; after decoding. */
static void fused_plan_blocks(Fused *f) {
  const FusedCode *c = f->code;
  int64_t item = c->item;
  f->tiled = c->tiled;
  for (int k = 0; k < c->n_in; ++k)
    if (f->expanded[k] >= 0 && fused_item[c->type_in[k]] > item) item = fused_item[c->type_in[k]];
  int64_t arrays = c->n_registers + f->n_expanded + 2;
  int64_t block = FUSED_CACHE_BYTES / (arrays * item) & ~63ll;
  block = block < FUSED_MIN_BLOCK ? FUSED_MIN_BLOCK : block > FUSED_MAX_BLOCK ? FUSED_MAX_BLOCK : block;
  if (f->tiled && f->n_expanded == 0) block = FUSED_TILED_BLOCK; /* registers hold one tile only */
  if (f->gathers) { /* whole periods, so that one expansion serves all blocks: each period divides the longer ones */
    int64_t longest = 1;
    for (int k = 0; k < c->n_in; ++k)
      if (f->period[k] <= block && f->period[k] > longest) longest = f->period[k];
    for (int k = 0; k < c->n_in; ++k)
      if (f->period[k] > longest) f->period[k] = 0;
    block = block / longest * longest;
  }
  if (!f->gathers && f->rows.ndim > 1) {
    const int64_t row = f->rows.dim[0];
    if (block > row) block = row;
    f->n_items = f->rows.n_rows * ((row + block - 1) / block);
  } else {
    if (block > f->numel) block = f->numel;
    f->n_items = (f->numel + block - 1) / block;
  }
  f->block = block;
  f->expanded_bytes = (block * item + 63) & ~63ll;
  f->register_bytes = f->tiled && block > tiles.tile[0] ? tiles.tile[0] * 4 : f->expanded_bytes;
}

static int fused_execute(Fused *f) {
  char small[FUSED_STACK_BYTES] __attribute__((aligned(64)));
  f->failed = 0;
  f->n_pieces = 1;
  fused_plan_blocks(f);
  const int threads = fused_threads();
  if (threads > 1 && f->n_items > 1 && f->numel * f->code->n_steps >= FUSED_PARALLEL_WORK) {
    f->n_pieces = f->n_items < 4 * threads ? f->n_items : 4 * threads;
    fused_parallel(f->n_pieces, fused_piece, f);
  } else if (fused_scratch_bytes(f) <= FUSED_STACK_BYTES) {
    fused_run(f, 0, f->n_items, small);
  } else {
    fused_piece(f, 0);
  }
  if (f->failed) return ARG_FAIL(ERR_ALLOC, "fused_elementwise: no memory for %lld bytes of registers",
                                 (long long)fused_scratch_bytes(f));
  return 0;
}

/* n elements of a plain program, few enough to stay on this thread and in the L2 cache: no plan is needed. */
static inline __attribute__((always_inline)) void fused_brief(const FusedCode *c, const Value *args, char *out,
                                                              int64_t n) {
  char small[FUSED_STACK_BYTES] __attribute__((aligned(64)));
  char *at[FUSED_RESULT + 1];
  fused_place(c, at, small, c->brief_bytes);
  for (int k = 0; k < c->n_in; ++k) at[k] = (char *)arg_own_data(&args[1 + k]);
  at[FUSED_RESULT] = out;
  fused_block(c, at, n, c->tiled, 0);
}

/* Memory that decoding fills on the stack, and that a site may keep a copy of. */
typedef struct FusedDecoding {
  FusedCode code;
  FusedStep step[FUSED_MAX_STEPS];
  TileStep tile[FUSED_MAX_STEPS];
} FusedDecoding;

static int64_t fused_literal_steps(const ShapeObj *program) {
  if (program->size < 2) return 0;
  const int64_t n = program->data[0] >> 24 & 255;
  return n < FUSED_MAX_STEPS ? n : FUSED_MAX_STEPS;
}

/* A site's bytes: room for the steps of its program. Whether they make sense is found out later. */
static int64_t fused_site_bytes(const Value *const *literals, int32_t n_args) {
  if (n_args < 3 || literals[0] == NULL || value_type(literals[0]) != VT_SHAPE) return 0;
  const int64_t n = fused_literal_steps((const ShapeObj *)value_ptr(literals[0]));
  return (int64_t)(sizeof(FusedSite) + n * (sizeof(FusedStep) + sizeof(TileStep)));
}

/* The code that a site keeps for this program; NULL if it has none (yet). */
static inline const FusedCode *fused_kept(const FusedSite *site, const ArgShape *program) {
  if (site == NULL || __atomic_load_n(&site->state, __ATOMIC_ACQUIRE) != FUSED_READY || site->words != program->data)
    return NULL;
  return &site->code;
}

/* Keeps a copy of `code`, if the site is empty. code->n_steps is what the site has room for: both come from the literal's
 * first word, which decoding has checked. */
static void fused_keep(FusedSite *site, const ArgShape *program, const FusedCode *code) {
  int32_t expected = FUSED_EMPTY;
  if (site == NULL || !__atomic_compare_exchange_n(&site->state, &expected, FUSED_TAKEN, 0, __ATOMIC_ACQ_REL,
                                                   __ATOMIC_RELAXED))
    return;
  site->words = program->data;
  site->code = *code;
  site->code.step = (FusedStep *)(site + 1);
  site->code.tile = (TileStep *)(site->code.step + code->n_steps);
  memcpy(site->code.step, code->step, (size_t)code->n_steps * sizeof *code->step);
  if (code->tiled) memcpy(site->code.tile, code->tile, (size_t)code->n_steps * sizeof *code->tile);
  __atomic_store_n(&site->state, FUSED_READY, __ATOMIC_RELEASE);
}

/* The general way: any element types and shapes, and the first call of a site. */
static __attribute__((noinline)) int fused_general(FusedSite *site, const ArgShape *program, const Value *args,
                                                   int32_t n_args) {
  static const char op[] = "fused_elementwise";
  const int n_in = n_args - 2;
  Fused f;
  FusedDecoding own;
  ArgTensor in[FUSED_MAX_INPUTS], out;
  const ArgTensor *inputs[FUSED_MAX_INPUTS];
  for (int k = 0; k < n_in; ++k) {
    if (arg_tensor(op, args, 1 + k, &in[k])) return -1;
    const int type = kernel_dtype(in[k].dtype);
    if (VM_UNLIKELY(type < 0 || type == K_F16 || type == K_BF16))
      return arg_fail_one(op, ERR_DTYPE, "no kernel for this element type", "input", &in[k]);
    inputs[k] = &in[k];
    own.code.type_in[k] = (uint8_t)type;
    f.data[k] = in[k].data;
  }
  if (arg_output(op, args, n_args - 1, &out) || broadcast_plan(op, inputs, n_in, &out, &f.rows)) return -1;
  fused_plan_inputs(&f, n_in, own.code.stride_in);
  const FusedCode *code = fused_kept(site, program);
  if (code == NULL || code->n_in != n_in || memcmp(code->type_in, own.code.type_in, (size_t)n_in) ||
      memcmp(code->stride_in, own.code.stride_in, (size_t)n_in)) {
    own.code.n_in = n_in;
    own.code.step = own.step;
    own.code.tile = own.tile;
    if (fused_decode(program, &own.code)) return -1;
    fused_keep(site, program, &own.code);
    code = &own.code;
  }
  if (VM_UNLIKELY(code->type_out != kernel_dtype(out.dtype)))
    return arg_fail_one(op, ERR_DTYPE, "the program makes another element type", "output", &out);
  for (int k = 0; k < n_in; ++k)
    if (code->casts ? check_disjoint(op, &in[k], &out) : check_elementwise_alias(op, &in[k], &out)) return -1;
  f.code = code;
  f.out = out.data;
  f.numel = out.numel;
  return out.numel ? fused_execute(&f) : 0;
}

/* (program, inputs..., out): out = the program's result, elementwise with numpy broadcasting. out may be an input of its
 * own shape and item size, unless a cast comes last. self: a FusedSite or NULL. */
static int fused_door(void *self, const Value *args, int32_t n_args, Value *ret) {
  static const char op[] = "fused_elementwise";
  ArgShape program;
  (void)ret;
  if (arg_count_min(op, n_args, 3) || arg_shape(op, args, 0, &program)) return -1;
  if (VM_UNLIKELY(n_args - 2 > FUSED_MAX_INPUTS))
    return ARG_FAIL(ERR_TYPE, "%s: takes up to %d inputs, got %d", op, FUSED_MAX_INPUTS, n_args - 2);
  const FusedCode *code = fused_kept((const FusedSite *)self, &program);
  if (VM_LIKELY(code != NULL) && code->plain && !code->casts && code->n_in == n_args - 2) {
    const Value *each[FUSED_MAX_INPUTS + 1];
    for (int k = 0; k <= code->n_in; ++k) each[k] = &args[1 + k];
    const int64_t n = (int64_t)args_own_float32(each, code->n_in + 1) / 4;
    const int in_tiles = code->tiled && tiles.tile[0] <= code->brief_numel;
    if (n && n <= (in_tiles ? FUSED_BRIEF_ELEMENTS : code->brief_numel)) {
      fused_brief(code, args, (char *)arg_own_data(&args[n_args - 1]), n);
      return 0;
    }
  }
  return fused_general((FusedSite *)self, &program, args, n_args);
}

static const DirectEntry fused_direct[] = {{"kernel.fused_elementwise", NULL, NULL, fused_site_bytes}, {NULL}};

#endif
