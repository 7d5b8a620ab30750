/* A library as TVM exports them, by hand: kernels, functions that call back, and compiled functions. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t type, small; union { int64_t i; double f; void *p; const char *s; } v; } Any;
typedef struct { void *data; int32_t dev, id, ndim; uint8_t code, bits; uint16_t lanes; int64_t *shape, *strides; uint64_t offset; } Tensor;

extern void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);
extern int TVMBackendAnyListSetPackedArg(void *list, int index, Any *args, int offset);
extern int TVMBackendAnyListMoveFromPackedReturn(void *list, int index, Any *args, int offset);
extern int TVMBackendAnyListResetItem(void *list, int index);

#define SLOT(type, name, params) __attribute__((weak, visibility("default"))) type(*__##name) params = 0
SLOT(int, TVMFFIFunctionCall, (void *, Any *, int32_t, Any *));
SLOT(int, TVMFFIEnvModLookupFromImports, (void *, const char *, void **));
SLOT(int, TVMFFIHandleInitOnce, (void **, int (*)(void **)));
SLOT(void *, TVMBackendAllocWorkspace, (int, int, uint64_t, int, int));
SLOT(int, TVMBackendFreeWorkspace, (int, int, void *));
SLOT(int, TVMBackendParallelLaunch, (int (*)(int, void *, void *), void *, int));
__attribute__((weak)) void *__tvm_ffi__library_ctx = 0;

static Tensor *tensor(const Any *a) { return a->type == 70 ? (Tensor *)((char *)a->v.p + 24) : (Tensor *)a->v.p; }
static int64_t numel(const Tensor *t) { int64_t n = 1; for (int i = 0; i < t->ndim; ++i) n *= t->shape[i]; return n; }
static int fail(const char *kind, const char *text) {
  const char *parts[3] = {"library: ", NULL, text};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 3);
  return -1;
}
#define KERNEL(name) int __tvm_ffi_##name(void *self, const Any *args, int32_t n, Any *ret)
#define UNUSED (void)self, (void)args, (void)n, (void)ret

/* out := x + y, float32; aligned data only, as generated code has it. */
KERNEL(lib_add) {
  UNUSED;
  if (n != 3) return fail("TypeError", "lib_add: Expected 3 arguments");
  for (int i = 0; i < 3; ++i) {
    if (args[i].type != 70 && args[i].type != 7) return fail("TypeError", "lib_add: expected Tensor");
    if ((uintptr_t)tensor(&args[i])->data % 64) return fail("InternalError", "lib_add: misaligned");
    if (numel(tensor(&args[i])) != numel(tensor(&args[0]))) return fail("ValueError", "lib_add: Mismatched shape");
  }
  const float *x = tensor(&args[0])->data, *y = tensor(&args[1])->data;
  float *out = tensor(&args[2])->data;
  for (int64_t i = 0; i < numel(tensor(&args[0])); ++i) out[i] = x[i] + y[i];
  return 0;
}
/* What it got: the type indices as digits of a number. */
KERNEL(lib_kinds) {
  UNUSED;
  ret->type = 1;
  for (int i = 0; i < n; ++i) ret->v.i = ret->v.i * 100 + args[i].type;
  return 0;
}
KERNEL(lib_length) { UNUSED; ret->type = 1; ret->v.i = (int64_t)strlen(args[0].v.s); return 0; }
KERNEL(lib_half) { UNUSED; ret->type = 3; ret->v.f = args[0].type == 3 ? args[0].v.f / 2 : args[0].v.i / 2.0; return 0; }
KERNEL(lib_pointer) { UNUSED; ret->type = 4; ret->v.p = &ret; return 0; }
KERNEL(lib_silent) { UNUSED; return -1; }
KERNEL(lib_fail) { UNUSED; return fail(args[0].v.s, "as asked"); }
/* Takes a tensor last and only reads it. */
KERNEL(lib_first) { UNUSED; ret->type = 3; ret->v.f = *(float *)tensor(&args[n - 1])->data; return 0; }

static void *lookup_slot;
static int init_lookup(void **out) { return __TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, "t.lib.callback", out); }
/* Calls the host's t.lib.callback on a tensor of its own stack, an int and a string; returns the sum of the tensor. */
KERNEL(lib_callback) {
  UNUSED;
  float data[4] = {1, 2, 3, 4};
  int64_t shape[1] = {4};
  Tensor t = {data, 1, 0, 1, 2, 32, 1, shape, NULL, 0};
  Any call[4] = {{7, 0, {.p = &t}}, {1, 0, {.i = 5}}, {8, 0, {.s = "text"}}, {0, 0, {0}}};
  if (lookup_slot == NULL && __TVMFFIHandleInitOnce(&lookup_slot, init_lookup) != 0) return -1;
  if (__TVMFFIFunctionCall(lookup_slot, call, 3, &call[3]) != 0) return -1;
  ret->type = 3;
  ret->v.f = data[0] + data[1] + data[2] + data[3];
  return 0;
}
KERNEL(lib_missing) {
  UNUSED;
  void *f;
  return __TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, "t.lib.nobody", &f);
}

typedef struct { void *sync; int32_t num_task; } Env;
typedef struct { int64_t n; int64_t *sums; } Job;
static int task(int id, void *env, void *data) {
  Job *job = data;
  int tasks = ((Env *)env)->num_task;
  for (int64_t i = id; i < job->n; i += tasks) __atomic_fetch_add(job->sums, i, __ATOMIC_RELAXED);
  return job->n == 13 ? fail("ValueError", "thirteen") : 0;
}
/* 0 + 1 + ... + n - 1, in parallel, through a workspace. */
KERNEL(lib_sum_to) {
  UNUSED;
  Job job = {args[0].v.i, __TVMBackendAllocWorkspace(1, 0, 8, 0, 64)};
  if (job.sums == NULL || (uintptr_t)job.sums % 64) return fail("MemoryError", "no workspace");
  *job.sums = 0;
  int status = __TVMBackendParallelLaunch(task, &job, 0);
  ret->type = 1;
  ret->v.i = *job.sums;
  __TVMBackendFreeWorkspace(1, 0, job.sums);
  return status;
}

/* ---- compiled functions: args are context, registers, constants, functions ---- */

static int find(const char *name, void **out) { return __TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, name, out); }
static int call(const char *name, Any *args, int n) {
  void *f;
  memset(&args[n], 0, sizeof(Any));
  return find(name, &f) ? -1 : __TVMFFIFunctionCall(f, args, n, &args[n]);
}
#define COMPILED(name) int __tvm_ffi___vmtir__##name(void *self, const Any *args, int32_t n, Any *ret)

/* add(x, y): a fresh tensor x + y of x's shape, by builtins and the kernel above. regs=5 */
COMPILED(add) {
  UNUSED;
  void *r = args[1].v.p, *c = args[2].v.p;
  Any a[8];
  TVMBackendAnyListSetPackedArg(r, 0, a, 0);
  if (call("vm.builtin.shape_of", a, 1)) return -1;
  TVMBackendAnyListMoveFromPackedReturn(r, 3, a, 1);
  a[0] = args[0];
  TVMBackendAnyListSetPackedArg(c, 0, a, 1); /* shape(4096) */
  a[2] = (Any){1, 0, {.i = 0}};
  TVMBackendAnyListSetPackedArg(c, 1, a, 3); /* dtype(uint8) */
  a[4] = (Any){8, 0, {.s = "global"}};
  if (call("vm.builtin.alloc_storage", a, 5)) return -1;
  TVMBackendAnyListMoveFromPackedReturn(r, 4, a, 5);
  TVMBackendAnyListSetPackedArg(r, 4, a, 0);
  a[1] = (Any){1, 0, {.i = 0}};
  TVMBackendAnyListSetPackedArg(r, 3, a, 2);
  TVMBackendAnyListSetPackedArg(c, 2, a, 3); /* dtype(float32) */
  if (call("vm.builtin.alloc_tensor", a, 4)) return -1;
  TVMBackendAnyListMoveFromPackedReturn(r, 2, a, 4);
  TVMBackendAnyListResetItem(r, 4);
  TVMBackendAnyListSetPackedArg(r, 0, a, 0);
  TVMBackendAnyListSetPackedArg(r, 1, a, 1);
  TVMBackendAnyListSetPackedArg(r, 2, a, 2);
  memset(&a[3], 0, sizeof(Any));
  return __tvm_ffi_lib_add(NULL, a, 3, &a[3]);
}
/* apply(f, x): entry f (an index) of the function list on x, through invoke_closure. regs=3 */
COMPILED(apply) {
  UNUSED;
  void *r = args[1].v.p, *f = args[3].v.p;
  Any a[5];
  a[0] = args[0];
  TVMBackendAnyListSetPackedArg(f, (int)((Any *)r)[0].v.i, a, 1);
  TVMBackendAnyListSetPackedArg(r, 1, a, 2);
  if (call("vm.builtin.invoke_closure", a, 3)) return -1;
  TVMBackendAnyListMoveFromPackedReturn(r, 2, a, 3);
  return 0;
}
/* self_of(x): its own function list entry 0, as a value that outlives the call. regs=2 */
COMPILED(value_of) {
  UNUSED;
  void *r = args[1].v.p, *f = args[3].v.p;
  Any a[3];
  TVMBackendAnyListSetPackedArg(f, (int)((Any *)r)[0].v.i, a, 0);
  if (call("vm.builtin.copy", a, 1)) return -1;
  TVMBackendAnyListMoveFromPackedReturn(r, 1, a, 1);
  return 0;
}
/* depth(n): calls itself, function list entry 0, n times; returns n. regs=2 */
COMPILED(depth) {
  UNUSED;
  Any *r = args[1].v.p;
  Any a[4];
  int64_t left = r[0].v.i;
  r[1] = (Any){1, 0, {.i = left}};
  if (left == 0) return 0;
  a[0] = args[0];
  TVMBackendAnyListSetPackedArg(args[3].v.p, 0, a, 1);
  a[2] = (Any){1, 0, {.i = left - 1}};
  return call("vm.builtin.invoke_closure", a, 3);
}
/* forever(): calls a builtin until that fails. regs=1 */
COMPILED(forever) {
  UNUSED;
  Any a[2] = {{1, 0, {.i = 1}}, {0, 0, {0}}};
  while (call("vm.builtin.copy", a, 1) == 0) {}
  return -1;
}
COMPILED(refuse) { UNUSED; return fail("ValueError", "refused"); }
COMPILED(leak) { UNUSED; ((Any *)args[1].v.p)[0] = (Any){4, 0, {.p = &n}}; return 0; }
