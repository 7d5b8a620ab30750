/* The host side of TVM's library ABI: what a shared library of kernels or compiled functions calls back into, and how its
 * references to those functions are bound.
 *
 * A library names its host functions in two ways. Undefined symbols of the dynamic symbol table are bound by writing the
 * library's own jump slots after a lazy dlopen, so that nothing is exported to the rest of the process and a real TVM in
 * the same process keeps its own. Context slots (`__` + name) are data symbols of the library that hold a pointer.
 */
#ifndef VMCORE_LIBRARY_H
#define VMCORE_LIBRARY_H

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include "vmcore/foreign.h"
#include "vmcore/program.h"
#include "vmcore/work_account.h"

/* What this header needs from Cython; set when the module is imported. */
static struct {
  FailFn fail;
  void (*note_no_memory)(void);
  int (*poll)(void);                                          /* -1 after the deadline */
  void *(*lookup)(void *library, const char *name);           /* a borrowed Function, NULL after an error */
  int (*last_error)(char *text, size_t size);                 /* kind and text of this thread's error */
  void (*parallel_for)(int64_t n_tasks, void (*fn)(void *, int64_t), void *ctx);
  int (*thread_count)(void);
  WorkAccount *(*account)(void); /* what workspaces are charged to */
} host;

/* ---- errors ---- */

static int host_error_kind(const char *kind) {
  static const struct { const char *name; int kind; } kinds[] = {
      {"TypeError", ERR_TYPE},     {"ValueError", ERR_VALUE},       {"IndexError", ERR_INDEX},
      {"MemoryError", ERR_ALLOC},  {"InternalError", ERR_INTERNAL}, {"RuntimeError", ERR_KERNEL},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    if (strcmp(kind, kinds[i].name) == 0) return kinds[i].kind;
  return ERR_NONE;
}

static void host_set_error_parts(const char *kind, const char **parts, int32_t n) {
  char text[1024];
  size_t used = 0;
  int code = host_error_kind(kind);
  text[0] = 0;
  if (code == ERR_NONE) {
    code = ERR_KERNEL;
    used = (size_t)snprintf(text, sizeof text, "%.100s: ", kind);
  }
  for (int32_t i = 0; i < n && used < sizeof text; ++i)
    if (parts[i]) used += (size_t)snprintf(text + used, sizeof text - used, "%s", parts[i]);
  host.fail(code, text);
}

static void host_set_error(const char *kind, const char *message) { host_set_error_parts(kind, &message, 1); }

/* ---- register lists of compiled functions ---- */

/* Compiled code does not look at what these return. When memory runs out, the value is none and `note_no_memory` makes the
 * whole compiled function fail when it returns. */

static int host_set_packed_arg(void *list, int index, Value *args, int offset) {
  Value *item = (Value *)list + index;
  if (VM_UNLIKELY(item->tag == FUNCTION_MARKER)) {
    /* A function of the program becomes a closure when it is first used; the context drops it when the outermost
     * compiled function returns. The word before a function list is its context. */
    Context *cx = (Context *)value_ptr((Value *)list - 1);
    ClosureObj *closure =
        closure_new(&cx->program->head, (int32_t)item->bits, 0, cx->program->closure_call);
    if (closure == NULL) {
      host.note_no_memory();
      value_set_none(&args[offset]);
      return -1;
    }
    value_set_object(item, closure);
    cx->made_functions = 1;
  }
  value_copy(&args[offset], item);
  return 0;
}

static int host_move_from_return(void *list, int index, Value *args, int offset) {
  Value *item = (Value *)list + index, *v = &args[offset];
  if (!value_may_return(v)) value_set_none(v); /* what is borrowed, or of unknown make, cannot be kept */
  value_move(item, v);
  if (value_align(item, 0) < 0) {
    host.note_no_memory();
    value_clear(item);
    return -1;
  }
  return 0;
}

static int host_reset_item(void *list, int index) {
  value_clear((Value *)list + index);
  return 0;
}

/* ---- calls out of a library ---- */

/* Tensors that live on the library's stack reach Python as copies, and what Python wrote comes back. */
static int host_call_python(FunctionObj *f, Value *args, int32_t n, Value *ret) {
  Value *own = (Value *)memory_alloc(((size_t)n + 1) * sizeof(Value), MEMORY_SCRATCH);
  int status = -1;
  int32_t made;
  if (own == NULL) return host.fail(ERR_ALLOC, "call: no memory for arguments");
  for (made = 0; made < n; ++made) {
    value_copy(&own[made], &args[made]);
    if (value_type(&args[made]) == VT_DLTENSOR_PTR) {
      const DLTensor *t = (const DLTensor *)value_ptr(&args[made]);
      TensorObj *copy;
      if (!dltensor_is_compact(t)) {
        host.fail(ERR_VALUE, "call: a tensor argument is not compact");
        break;
      }
      copy = tensor_aligned_copy(t);
      if (copy == NULL) {
        host.fail(ERR_ALLOC, "call: no memory for a copy of a tensor argument");
        break;
      }
      value_set_object(&own[made], copy);
    }
  }
  if (made == n) status = f->safe_call(f, own, n, ret);
  for (int32_t i = 0; i < made; ++i) {
    if (value_type(&args[i]) != VT_DLTENSOR_PTR) continue;
    TensorObj *copy = (TensorObj *)value_ptr(&own[i]);
    void *data = dltensor_data((const DLTensor *)value_ptr(&args[i]));
    if (status == 0 && memcmp(data, copy->dl.data, (size_t)copy->nbytes) != 0)
      memcpy(data, copy->dl.data, (size_t)copy->nbytes);
    object_release(copy);
  }
  memory_free(own);
  return status;
}

static int host_function_call(void *func, Value *args, int32_t n, Value *ret) {
  FunctionObj *f = (FunctionObj *)func;
  if (host.poll() != 0) return -1;
  if (f->head.type_index == VT_FUNCTION && f->is_python) return host_call_python(f, args, n, ret);
  return f->safe_call(f, args, n, ret);
}

static int host_lookup(void *library, const char *name, void **out) {
  *out = host.lookup(library, name);
  return *out == NULL ? -1 : 0;
}

/* Several threads may run `init` at once, which is harmless: it only looks a function up. A lock here could wait for a
 * thread that waits for the GIL, which this thread may hold. */
static int host_init_once(void **slot, int (*init)(void **)) {
  void *made = NULL;
  if (__atomic_load_n(slot, __ATOMIC_ACQUIRE) != NULL) return 0;
  if (init(&made) != 0) return -1;
  __atomic_store_n(slot, made, __ATOMIC_RELEASE);
  return 0;
}

/* ---- workspace and threads ---- */

#define WORKSPACE_HEADER MEMORY_ALIGNMENT

typedef struct WorkspaceHeader { /* before the bytes that the library gets */
  WorkAccount *account;          /* whom they are charged to, or NULL */
  int64_t nbytes;
} WorkspaceHeader;
static int64_t workspace_total; /* bytes that all libraries hold */

static void *host_alloc_workspace(int device_type, int device_id, uint64_t nbytes, int code, int bits) {
  WorkAccount *account = host.account();
  int64_t size = nbytes < (uint64_t)1 << 62 ? (int64_t)nbytes + WORKSPACE_HEADER : -1;
  char *block = NULL;
  (void)device_id, (void)code, (void)bits;
  if (device_type == 1 && size > 0 && (account == NULL || account->charge(account, size))) {
    block = (char *)memory_aligned((size_t)size, MEMORY_LIBRARY);
    if (block == NULL && account != NULL) account->charge(account, -size);
  }
  if (block == NULL) {
    fail_format(host.fail, ERR_ALLOC, "workspace: no %llu bytes on device type %d%s", (unsigned long long)nbytes,
                device_type, account ? " within the virtual machine's memory limit" : "");
    return NULL;
  }
  *(WorkspaceHeader *)block = (WorkspaceHeader){account, size};
  __atomic_add_fetch(&workspace_total, size, __ATOMIC_RELAXED);
  return block + WORKSPACE_HEADER;
}

static int host_free_workspace(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  if (memory == NULL) return 0;
  char *block = (char *)memory - WORKSPACE_HEADER;
  WorkspaceHeader header = *(WorkspaceHeader *)block;
  memory_free(block);
  __atomic_sub_fetch(&workspace_total, header.nbytes, __ATOMIC_RELAXED);
  if (header.account != NULL) header.account->charge(header.account, -header.nbytes);
  return 0;
}

static int64_t library_workspace_held(void) { return __atomic_load_n(&workspace_total, __ATOMIC_RELAXED); }

typedef struct ParallelEnv {
  void *sync_handle;
  int32_t num_task;
} ParallelEnv;
typedef int (*ParallelFn)(int task, ParallelEnv *env, void *data);
typedef struct ParallelJob {
  ParallelFn fn;
  void *data;
  ParallelEnv env;
  int failed; /* atomic: the kind of the first error, whose text follows */
  char text[512];
} ParallelJob;

static void parallel_task(void *ctx, int64_t i) {
  ParallelJob *job = (ParallelJob *)ctx;
  char text[512];
  int none = ERR_NONE, kind;
  if (job->fn((int)i, &job->env, job->data) == 0) return;
  kind = host.last_error(text, sizeof text);
  if (kind == ERR_NONE) {
    kind = ERR_KERNEL;
    strcpy(text, "a parallel task failed without an error");
  }
  if (__atomic_compare_exchange_n(&job->failed, &none, kind, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    memcpy(job->text, text, sizeof text);
}

/* The library divides the work by env->num_task, whatever that is. */
static int launch(ParallelFn fn, void *data, int n_tasks) {
  ParallelJob job = {.fn = fn, .data = data, .env = {NULL, n_tasks}, .failed = ERR_NONE};
  host.parallel_for(n_tasks, parallel_task, &job);
  return job.failed == ERR_NONE ? 0 : host.fail(job.failed, job.text);
}
static int host_launch(ParallelFn fn, void *data, int wanted) {
  int n = host.thread_count();
  return launch(fn, data, wanted > 0 && wanted < n ? wanted : n);
}
/* For libraries with barriers, which need all tasks at the same time: one task is always enough. */
static int host_launch_one(ParallelFn fn, void *data, int wanted) {
  (void)wanted;
  return launch(fn, data, 1);
}
static int host_barrier(int task, ParallelEnv *env) {
  (void)task;
  return env->num_task == 1 ? 0 : host.fail(ERR_INTERNAL, "barrier: the tasks do not run at the same time");
}

/* ---- binding ---- */

typedef struct HostSymbol {
  const char *name;
  void *function;
} HostSymbol;

static const HostSymbol host_symbols[] = {
    {"TVMFFIErrorSetRaisedFromCStr", (void *)host_set_error},
    {"TVMFFIErrorSetRaisedFromCStrParts", (void *)host_set_error_parts},
    {"TVMFFIFunctionCall", (void *)host_function_call},
    {"TVMFFIEnvModLookupFromImports", (void *)host_lookup},
    {"TVMFFIHandleInitOnce", (void *)host_init_once},
    {"TVMBackendAllocWorkspace", (void *)host_alloc_workspace},
    {"TVMBackendFreeWorkspace", (void *)host_free_workspace},
    {"TVMBackendParallelLaunch", (void *)host_launch},
    {"TVMBackendParallelBarrier", (void *)host_barrier},
    {"TVMBackendAnyListSetPackedArg", (void *)host_set_packed_arg},
    {"TVMBackendAnyListMoveFromPackedReturn", (void *)host_move_from_return},
    {"TVMBackendAnyListResetItem", (void *)host_reset_item},
};
#define N_HOST_SYMBOLS (sizeof host_symbols / sizeof host_symbols[0])

#if defined(__x86_64__)
#define VM_JUMP_SLOT 7 /* R_X86_64_JUMP_SLOT */
#elif defined(__aarch64__)
#define VM_JUMP_SLOT 1026 /* R_AARCH64_JUMP_SLOT */
#else
#error "the jump slots of this architecture are not known here"
#endif

/* Points the library's jump slots of host functions at them. */
static void library_bind_symbols(void *handle, void *launch_function) {
  struct link_map *map = NULL;
  const ElfW(Rela) *slots = NULL;
  const ElfW(Sym) *symbols = NULL;
  const char *names = NULL;
  size_t size = 0;
  int now = 0;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == NULL) return;
  for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; ++d) {
    if (d->d_tag == DT_JMPREL) slots = (const ElfW(Rela) *)d->d_un.d_ptr;
    if (d->d_tag == DT_PLTRELSZ) size = d->d_un.d_val;
    if (d->d_tag == DT_SYMTAB) symbols = (const ElfW(Sym) *)d->d_un.d_ptr;
    if (d->d_tag == DT_STRTAB) names = (const char *)d->d_un.d_ptr;
    if (d->d_tag == DT_BIND_NOW || (d->d_tag == DT_FLAGS && d->d_un.d_val & DF_BIND_NOW) ||
        (d->d_tag == DT_FLAGS_1 && d->d_un.d_val & DF_1_NOW))
      now = 1;
  }
  if (slots == NULL || symbols == NULL || names == NULL || now) return; /* bound at once: its slots are read-only */
  for (size_t i = 0; i < size / sizeof *slots; ++i) {
    const char *name = names + symbols[ELF64_R_SYM(slots[i].r_info)].st_name;
    if (ELF64_R_TYPE(slots[i].r_info) != VM_JUMP_SLOT || strncmp(name, "TVM", 3) != 0) continue;
    for (size_t k = 0; k < N_HOST_SYMBOLS; ++k)
      if (strcmp(name, host_symbols[k].name) == 0)
        *(void **)(map->l_addr + slots[i].r_offset) =
            host_symbols[k].function == (void *)host_launch ? launch_function : host_symbols[k].function;
  }
}

/* Opens a library and binds it; NULL, with the loader's words in dlerror(), when that fails. Opening the same file again
 * gives the same handle, and binding it again changes nothing. */
static void *library_open(const char *path) {
  char name[80];
  void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL), *launch_function;
  if (handle == NULL) return NULL;
  launch_function = dlsym(handle, "__TVMBackendParallelBarrier") ? (void *)host_launch_one : (void *)host_launch;
  library_bind_symbols(handle, launch_function);
  for (size_t k = 0; k < N_HOST_SYMBOLS; ++k) {
    void **slot;
    snprintf(name, sizeof name, "__%s", host_symbols[k].name);
    slot = (void **)dlsym(handle, name);
    if (slot)
      *slot = host_symbols[k].function == (void *)host_launch ? launch_function : host_symbols[k].function;
  }
  return handle;
}

/* ---- kernels ---- */

static LibraryFunction *library_function_new(PackedFn fn, const char *name) {
  LibraryFunction *f = (LibraryFunction *)memory_alloc(sizeof(LibraryFunction) + strlen(name) + 1, MEMORY_LIBRARY);
  if (f == NULL) return NULL;
  memory_keep(f); /* functions of a library are never forgotten */
  f->fn = fn;
  strcpy(f->name, name);
  return f;
}

/* Why argument `v` cannot be passed as it is: 0 it can, 1 it needs a substitute, -1 it must not be passed. */
static int library_argument(const Value *v, int is_last) {
  int32_t kind = value_type(v);
  if (kind < VT_OBJECT) return 0;
  if (kind == VT_STR) return 1;
  if (kind != VT_TENSOR) return -1;
  const TensorObj *t = (const TensorObj *)value_ptr(v);
  return !data_is_aligned(t->dl.data, t->nbytes) || (is_last && t->head.flags & OBJ_READONLY);
}

/* A call with aligned substitutes of tensors; what the kernel wrote into them is copied back. */
__attribute__((noinline)) static int library_call_bounced(const LibraryFunction *f, const Value *args, int32_t n,
                                                         Value *ret) {
  Value *own = (Value *)memory_alloc((size_t)n * sizeof(Value), MEMORY_SCRATCH);
  int status = -1;
  int32_t made;
  if (own == NULL) return host.fail(ERR_ALLOC, "call: no memory for arguments");
  for (made = 0; made < n; ++made) {
    value_copy(&own[made], &args[made]);
    if (!library_argument(&args[made], made == n - 1)) continue;
    if (value_type(&args[made]) == VT_STR) { /* a view of its characters, which end with a zero */
      value_set(&own[made], VT_RAW_STR, (int64_t)((StrObj *)value_ptr(&args[made]))->data);
      continue;
    }
    const TensorObj *t = (const TensorObj *)value_ptr(&args[made]);
    TensorObj *copy = NULL;
    for (int32_t k = 0; k < made && copy == NULL; ++k) { /* the same bytes stay the same bytes */
      const TensorObj *before = (const TensorObj *)value_ptr(&args[k]);
      if (args[k].tag == VT_TENSOR && own[k].bits != args[k].bits && before->dl.data == t->dl.data &&
          before->nbytes == t->nbytes) {
        copy = tensor_new(t->dl.ndim);
        if (copy == NULL) break;
        tensor_set_shape(copy, t->dl.shape, t->dl.dtype);
        copy->dl.data = ((TensorObj *)value_ptr(&own[k]))->dl.data;
      }
    }
    if (copy == NULL) copy = tensor_aligned_copy(&t->dl);
    if (copy == NULL) {
      host.fail(ERR_ALLOC, "call: no memory for an aligned copy of an argument");
      break;
    }
    value_set_object(&own[made], copy);
  }
  if (made == n) status = f->fn(NULL, own, n, ret);
  for (int32_t i = 0; i < made; ++i) {
    if (args[i].tag != VT_TENSOR || own[i].bits == args[i].bits) continue;
    const TensorObj *t = (const TensorObj *)value_ptr(&args[i]);
    TensorObj *copy = (TensorObj *)value_ptr(&own[i]);
    if (status == 0 && memcmp(t->dl.data, copy->dl.data, (size_t)t->nbytes) != 0) {
      if (t->head.flags & OBJ_READONLY)
        status = fail_format(host.fail, ERR_VALUE, "%s: argument #%d was written, but is read-only", f->name, i);
      else
        memcpy(t->dl.data, copy->dl.data, (size_t)t->nbytes);
    }
  }
  for (int32_t i = 0; i < made; ++i) /* last, because substitutes of the same bytes share them */
    if (args[i].tag == VT_TENSOR && own[i].bits != args[i].bits) object_release(value_ptr(&own[i]));
  memory_free(own);
  return status;
}

/* The PackedFunc of a library kernel. Library code takes the pointer of any object but a tensor for a DLTensor, so no
 * other object is ever passed; tensors are passed aligned. The loop calls `fn` itself where one look at the arguments
 * (`foreign_argument`) shows that none needs this. */
static int library_call(void *self, const Value *args, int32_t n, Value *ret) {
  const LibraryFunction *f = (const LibraryFunction *)self;
  int bounce = 0, status;
  for (int32_t i = 0; i < n; ++i) {
    int how = library_argument(&args[i], i == n - 1);
    if (how < 0)
      return fail_format(host.fail, ERR_TYPE, "%s: argument #%d: a library kernel takes tensors, scalars and strings, got %s",
                         f->name, i, value_kind_name(&args[i]));
    bounce |= how;
  }
  status = bounce ? library_call_bounced(f, args, n, ret) : f->fn(NULL, args, n, ret);
  return status == 0 ? foreign_result(f, ret, host.fail) : -1;
}

#endif
