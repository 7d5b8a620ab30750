/* A library that follows the ABI and nothing else: it returns, passes and stores what a script says.
 * names.h is written by foreign.py: NAMES, the functions that scripts call. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"

typedef struct { int32_t type; uint32_t small; union { int64_t i; double f; void *p; const char *s; } v; } Any;
typedef struct { void *data; int32_t dev, id, ndim; uint8_t code, bits; uint16_t lanes; int64_t *shape, *strides; uint64_t offset; } Tensor;
typedef struct { uint64_t counts; int32_t type; uint32_t pad; void (*deleter)(void *, int); char rest[64]; } Object;

extern void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *text);
extern void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);
extern int TVMBackendAnyListSetPackedArg(void *list, int index, Any *args, int offset);
extern int TVMBackendAnyListMoveFromPackedReturn(void *list, int index, Any *args, int offset);
extern int TVMBackendAnyListResetItem(void *list, int index);
extern int TVMFFIFunctionCall(void *f, Any *args, int32_t n, Any *ret);
extern int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **out);
extern void *TVMBackendAllocWorkspace(int device, int id, uint64_t nbytes, int code, int bits);
extern int TVMBackendFreeWorkspace(int device, int id, void *memory);
__attribute__((weak)) void *__tvm_ffi__library_ctx = 0;

static Tensor *tensor(const Any *a) { return a->type == 70 ? (Tensor *)((char *)a->v.p + 24) : (Tensor *)a->v.p; }
static void keep(void *self, int how) { (void)self, (void)how; }
static Object fakes[8];
static char TEXT[8192];
static const char *const TEXTS[] = {"", "text", TEXT, "TypeError", "Nobody'sError", "%s%n%d"};
static _Alignas(64) unsigned char DATA[1 << 17];

/* An object of this library's own making, with the header of the ABI. */
static Object *fake(int32_t type) {
  Object *o = &fakes[(uint32_t)type % 8];
  *o = (Object){0x0000000100000001ull, type < 64 ? 64 : type, 0, keep, {0}};
  return o;
}

/* A tensor on this library's stack: `seed` says of which shape and element type. */
static void make_tensor(Tensor *t, int64_t *dims, uint64_t seed) {
  static const uint8_t TYPES[][2] = {{2, 32}, {2, 64}, {0, 64}, {0, 32}, {1, 8}, {6, 8}, {2, 16}, {4, 16}, {0, 4}, {5, 64}};
  uint64_t pick = seed % 10, left = seed / 10;
  *t = (Tensor){DATA, 1, 0, (int32_t)(left % 5), TYPES[pick][0], TYPES[pick][1], 1, dims, NULL, 0};
  left /= 5;
  for (int i = 0; i < t->ndim; ++i, left /= 5) dims[i] = (int64_t)(left % 5);
  if (left % 5 == 0) {
    t->strides = dims + 8;
    for (int i = 0; i < t->ndim; ++i, left /= 3) dims[8 + i] = (int64_t)(left % 3);
  }
  if (left % 7 == 0) t->offset = left % 64;
  if (left % 11 == 0) t->data = DATA + left % 9;
}

static void literal(Any *out, Tensor *t, int64_t *dims, int64_t kind, int64_t small, int64_t bits) {
  *out = (Any){(int32_t)kind, (uint32_t)small, {.i = bits}};
  if (kind == 7) {
    make_tensor(t, dims, (uint64_t)bits);
    out->v.p = t;
  }
  if (kind == 8) out->v.s = TEXTS[(uint64_t)bits % 6];
}

/* give(mode, type, small, bits, value): a result, or a failure. */
int __tvm_ffi_fz_give(void *self, const Any *args, int32_t n, Any *ret) {
  (void)self;
  if (n != 5) return -1;
  int64_t mode = args[0].v.i, type = args[1].v.i, small = args[2].v.i, bits = args[3].v.i;
  memset(TEXT, 'a', sizeof TEXT - 1);
  const char *parts[4] = {"first ", NULL, TEXTS[(uint64_t)bits % 6], "last"};
  if (mode == 0) *ret = (Any){(int32_t)type, (uint32_t)small, {.i = type < 64 ? bits : 0}};
  if (mode == 1) {
    *ret = args[4];
    if (ret->type >= 64) __atomic_fetch_add(&((Object *)ret->v.p)->counts, 1, __ATOMIC_RELAXED);
    if (ret->type == 8) ret->type = 0;
  }
  if (mode == 2) *ret = (Any){fake((int32_t)type)->type, 0, {.p = fake((int32_t)type)}};
  if (mode == 3) {
    TVMFFIErrorSetRaisedFromCStrParts(TEXTS[(uint64_t)small % 6], parts, (int32_t)(bits & 3));
    return -1;
  }
  if (mode == 4) return (int)small;
  if (mode == 5) TVMFFIErrorSetRaisedFromCStr(TEXTS[(uint64_t)small % 6], TEXTS[(uint64_t)bits % 6]);
  if (mode == 6) {
    *ret = (Any){1, 0, {.i = bits}};
    return -1;
  }
  if (mode == 7 && (args[4].type == 70 || args[4].type == 7)) {
    Tensor *t = tensor(&args[4]);
    int64_t size = (t->bits * t->lanes + 7) / 8;
    for (int i = 0; i < t->ndim; ++i) size *= t->shape[i];
    memset(t->data, (int)small, (size_t)size);
  }
  if (mode == 8) {
    void *memory = TVMBackendAllocWorkspace((int)(1 + small % 2), 0, (uint64_t)bits, 0, 8);
    if (memory == NULL) return -1;
    TVMBackendFreeWorkspace(1, 0, memory);
  }
  return 0;
}

/* call(script, value): calls NAMES[script[0]] with arguments as the script's rows say; gives back its result. */
int __tvm_ffi_fz_call(void *self, const Any *args, int32_t n, Any *ret) {
  (void)self;
  if (n != 2 || args[0].type != 70) return -1;
  const int64_t *words = tensor(&args[0])->data;
  Any call[8];
  Tensor tensors[7];
  int64_t dims[7][16];
  int count = (int)(words[1] % 7);
  void *f;
  if (TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, NAMES[words[0] % N_NAMES], &f) != 0) return -1;
  for (int i = 0; i < count; ++i) {
    const int64_t *row = words + 2 + 3 * i;
    if (row[0] < 0) call[i] = args[1];
    else literal(&call[i], &tensors[i], dims[i], row[0], row[1], row[2]);
  }
  memset(&call[count], 0, sizeof(Any));
  int status = TVMFFIFunctionCall(f, call, count, &call[count]);
  *ret = call[count];
  return status;
}

/* run(value, script): a compiled function. Rows of four words: what to do and three operands. Registers 2.. are written. */
int __tvm_ffi___vmtir__fz_run(void *self, const Any *args, int32_t n, Any *ret) {
  (void)self, (void)n, (void)ret;
  void *r = args[1].v.p, *constants = args[2].v.p, *functions = args[3].v.p;
  if (((Any *)r)[1].type != 70) return -1;
  const int64_t *words = tensor(&((Any *)r)[1])->data;
  Any call[8], made;
  Tensor tensors[8];
  int64_t dims[8][16];
  void *f;
  memset(call, 0, sizeof call);
  for (int64_t i = 0; i < words[0]; ++i) {
    const int64_t *row = words + 1 + 4 * i;
    int slot = (int)((uint64_t)row[2] % 7), target = 2 + (int)((uint64_t)row[1] % 6);
    switch (row[0] % 8) {
      case 0:
        literal(&made, &tensors[7], dims[7], row[2], row[3] & 255, row[3]);
        if (TVMBackendAnyListMoveFromPackedReturn(r, target, &made, 0) != 0) return -1;
        memset(call, 0, sizeof call); /* what a slot borrows may be gone now */
        break;
      case 1: TVMBackendAnyListSetPackedArg(r, (int)((uint64_t)row[1] % 8), call, slot); break;
      case 2: TVMBackendAnyListSetPackedArg(constants, (int)((uint64_t)row[1] % N_CONSTANTS), call, slot); break;
      case 3: TVMBackendAnyListSetPackedArg(functions, (int)((uint64_t)row[1] % N_FUNCTIONS), call, slot); break;
      case 4: literal(&call[slot], &tensors[slot], dims[slot], row[3] % 9, row[3] & 7, row[3] / 9); break;
      case 5: call[slot] = args[0]; break;
      case 6: {
        if (TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, NAMES[(uint64_t)row[1] % N_NAMES], &f) != 0) return -1;
        memset(&call[slot], 0, sizeof(Any));
        if (TVMFFIFunctionCall(f, call, slot, &call[slot]) != 0) return -1;
        TVMBackendAnyListMoveFromPackedReturn(r, 2 + (int)((uint64_t)row[3] % 6), call, slot);
        memset(call, 0, sizeof call);
        break;
      }
      default:
        TVMBackendAnyListResetItem(r, target);
        memset(call, 0, sizeof call);
    }
  }
  return 0;
}
