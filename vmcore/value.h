/* The value model: 16-byte Values and reference-counted objects in the ABI of TVM FFI (tvm-ffi 0.1.x), so that
 * kernels built by TVM, or by anything else that speaks that ABI, take our values directly.
 *
 * INVARIANT: a Value is always copied as two 64-bit words (value_copy / value_move), never by struct assignment:
 * a 16-byte vector load of two freshly stored words misses store forwarding and costs 4-6 ns on Zen 4. For the same
 * reason the type index is always stored as one 64-bit tag word whose upper half is zero (small strings: the length).
 */
#ifndef VMCORE_VALUE_H
#define VMCORE_VALUE_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmcore/memory.h"

#define VM_LIKELY(x) __builtin_expect(!!(x), 1)
#define VM_UNLIKELY(x) __builtin_expect(!!(x), 0)

typedef struct Value {
  uint64_t tag;  /* low 32 bits: type index; high 32 bits: length of a small string, else 0 */
  int64_t bits;  /* payload: int64, float64 bits, pointer, dtype, device, inline characters */
} Value;

enum {
  VT_NONE = 0, VT_INT = 1, VT_BOOL = 2, VT_FLOAT = 3, VT_OPAQUE_PTR = 4, VT_DTYPE = 5, VT_DEVICE = 6,
  VT_DLTENSOR_PTR = 7, VT_RAW_STR = 8, VT_BYTE_ARRAY_PTR = 9, VT_RVALUE_REF = 10, VT_SMALL_STR = 11,
  VT_SMALL_BYTES = 12,
  VT_OBJECT = 64, /* type indices from here on own a reference */
  VT_STR = 65, VT_BYTES = 66, VT_ERROR = 67, VT_FUNCTION = 68, VT_SHAPE = 69, VT_TENSOR = 70, VT_ARRAY = 71,
  VT_MAP = 72, VT_MODULE = 73, VT_PYOBJECT = 74,
  /* Dynamic range: private to this host, never stored in a file. */
  VT_STORAGE = 128, VT_CLOSURE = 129
};

/* Kinds of runtime error; vmcore.status maps each to one exception class. */
enum {
  ERR_NONE = 0, ERR_TYPE = 1, ERR_VALUE = 2, ERR_INDEX = 3, ERR_SHAPE = 4, ERR_DTYPE = 5, ERR_ALLOC = 6,
  ERR_KERNEL = 7, ERR_RECURSION = 8, ERR_DEADLINE = 9, ERR_INTERRUPT = 10, ERR_INTERNAL = 11, ERR_PYTHON = 12,
  ERR_NOT_FOUND = 13
};

/* 0 on success; -1 after an error was stored with `fail` (vmcore.status). *ret is VT_NONE on entry and owned by the
 * caller on success. Arguments are borrowed for the duration of the call. */
typedef int (*PackedFn)(void *self, const Value *args, int32_t n_args, Value *ret);

/* One native kernel or builtin. `ns_per_byte` estimates the run time from the bytes of all tensor arguments; the loop
 * uses it to decide when the GIL is worth releasing (0: negligible work). */
typedef struct KernelEntry {
  const char *name;
  PackedFn fn;
  float ns_per_byte;
} KernelEntry;

/* A second entry to a kernel of two or three tensor operands, the last one its output and the largest of them: without
 * `self`, result and argument array, for the loop to call on registers as they are. Checks all that the first one does. */
typedef int (*DirectFn2)(const Value *x, const Value *out);
typedef int (*DirectFn3)(const Value *a, const Value *b, const Value *out);
typedef int64_t (*SiteBytesFn)(const Value *const *literals, int32_t n_args);
typedef struct DirectEntry {
  const char *name; /* NULL ends a table */
  DirectFn2 direct2; /* one of the two at most; the other is NULL */
  DirectFn3 direct3;
  /* Zeroed bytes that every call site in a program gets as its `self`, or NULL: what a kernel finds out about its literal
   * operands is then found out once. literals[i]: operand i where it is a literal, else NULL; never another value later.
   * OWNERSHIP: the program's, never moved; all threads share them, and nothing is called when they are freed. Calls from
   * elsewhere have `self` NULL. */
  SiteBytesFn site_bytes;
} DirectEntry;

/* ---- objects ------------------------------------------------------------------------------------------------- */

typedef struct Object {
  uint64_t counts; /* low 32 bits strong, high 32 bits weak; all strong references together hold one weak */
  int32_t type_index;
  uint32_t flags; /* OBJ_* below; padding in the ABI */
  void (*deleter)(void *self, int how); /* bit 0: strong count reached 0, bit 1: free the memory */
} Object;

#define OBJ_NEW_COUNTS 0x0000000100000001ull
/* flags: the upper 24 bits mark objects made by vmcore, whose private fields may be used. */
#define OBJ_OWN 0x50564d00u
#define OBJ_OWN_MASK 0xffffff00u
#define OBJ_READONLY 0x1u /* a tensor whose bytes must not be written: constants, mapped files, read-only arrays */
enum { OBJ_DELETE_STRONG = 1, OBJ_DELETE_WEAK = 2, OBJ_DELETE_BOTH = 3 };

typedef struct VmDataType {
  uint8_t code, bits;
  uint16_t lanes;
} VmDataType;

enum {
  DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_HANDLE = 3, DL_BFLOAT = 4, DL_COMPLEX = 5, DL_BOOL = 6
};

typedef struct DLTensor {
  void *data;
  int32_t device_type, device_id;
  int32_t ndim;
  VmDataType dtype;
  int64_t *shape;
  int64_t *strides; /* in elements; NULL means compact row-major */
  uint64_t byte_offset;
} DLTensor;

/* Bytes with an owner: the allocator that they go back to. */
typedef struct StorageObj {
  Object head;
  void *data;
  int64_t nbytes;
  void *owner;
  uint64_t home;     /* id of the TensorCache that keeps this storage for its allocation site, or 0 */
  int64_t idle_refs; /* references held by idle headers of `home`; only its thread looks */
} StorageObj;

#define TENSOR_INLINE_NDIM 6

/* INVARIANT: a TensorObj made by vmcore is compact row-major, has strides, byte_offset 0 and device cpu(0). */
typedef struct TensorObj {
  Object head;
  DLTensor dl;
  Object *storage; /* owned; NULL when `owner` keeps the bytes alive */
  int64_t nbytes;
  uint64_t layout; /* element type and shape in one word, see layout_of; 0: does not fit, or not on the CPU */
  void *owner;                     /* foreign owner (numpy array, DLPack producer) or NULL */
  void (*release_owner)(void *owner);
  void *wrapper;                   /* borrowed Python wrapper, guarded by the GIL, NULL when there is none */
  uint64_t home;                   /* id of the TensorCache that has a slot for this header, or 0 */
  int64_t slot;
  int64_t dims[2 * TENSOR_INLINE_NDIM]; /* shape, then strides, when ndim <= TENSOR_INLINE_NDIM */
} TensorObj;

typedef struct ShapeObj {
  Object head;
  const int64_t *data;
  uint64_t size;
  int64_t inline_data[];
} ShapeObj;

typedef struct StrObj {
  Object head;
  const char *data;
  uint64_t size;
  char inline_data[];
} StrObj;

typedef struct ArrayObj {
  Object head;
  Value *data;
  int64_t size, capacity;
  void (*data_deleter)(void *);
  Value items[];
} ArrayObj;

typedef struct FunctionObj {
  Object head;
  PackedFn safe_call; /* called with self = this object, as TVM FFI does */
  void *cpp_call;     /* always NULL here */
  /* private to vmcore: */
  PackedFn fn;        /* called with `self` below; what the loop calls */
  void *self;
  float ns_per_byte;
  int32_t is_python;  /* `self` is a PyObject*; calls need the GIL */
  const DirectEntry *direct; /* borrowed, or NULL */
  int32_t is_library; /* `self` is a LibraryFunction (foreign.h) */
} FunctionObj;

typedef struct PyObjectObj {
  Object head;
  void *object; /* PyObject*, owned */
} PyObjectObj;

/* ---- words of a Value ---------------------------------------------------------------------------------------- */

static inline void value_copy(Value *dst, const Value *src) {
  uint64_t tag = src->tag, bits = (uint64_t)src->bits;
  __asm__("" : "+r"(tag), "+r"(bits)); /* keep two scalar words: see the file comment */
  dst->tag = tag;
  dst->bits = (int64_t)bits;
}

static inline void value_set(Value *dst, uint64_t tag, int64_t bits) {
  __asm__("" : "+r"(tag), "+r"(bits));
  dst->tag = tag;
  dst->bits = bits;
}

static inline int32_t value_type(const Value *v) { return (int32_t)v->tag; }
static inline int value_is_object(const Value *v) { return (int32_t)v->tag >= VT_OBJECT; }
static inline void *value_ptr(const Value *v) { return (void *)v->bits; }
static inline double value_float(const Value *v) {
  double d;
  memcpy(&d, &v->bits, 8);
  return d;
}
static inline void value_set_none(Value *v) { value_set(v, VT_NONE, 0); }
static inline void value_set_int(Value *v, int64_t i) { value_set(v, VT_INT, i); }
static inline void value_set_bool(Value *v, int b) { value_set(v, VT_BOOL, b != 0); }
static inline void value_set_float(Value *v, double d) {
  int64_t bits;
  memcpy(&bits, &d, 8);
  value_set(v, VT_FLOAT, bits);
}
static inline void value_set_object(Value *v, void *object) { /* takes over one reference */
  value_set(v, (uint64_t)(uint32_t)((Object *)object)->type_index, (int64_t)object);
}
static inline void value_set_dtype(Value *v, VmDataType t) {
  value_set(v, VT_DTYPE, (int64_t)((uint64_t)t.code | (uint64_t)t.bits << 8 | (uint64_t)t.lanes << 16));
}
static inline VmDataType value_dtype(const Value *v) {
  VmDataType t = {(uint8_t)v->bits, (uint8_t)(v->bits >> 8), (uint16_t)(v->bits >> 16)};
  return t;
}

/* ---- reference counts ---------------------------------------------------------------------------------------- */

static inline void object_init(Object *o, int32_t type_index, void (*deleter)(void *, int)) {
  o->counts = OBJ_NEW_COUNTS;
  o->type_index = type_index;
  o->flags = 0;
  o->deleter = deleter;
}

static inline void object_retain(void *object) {
  memory_check_object(&((Object *)object)->counts, "an object is retained after its death");
  __atomic_fetch_add(&((Object *)object)->counts, 1, __ATOMIC_RELAXED);
}

__attribute__((noinline, unused)) static void object_release_last(Object *o, uint64_t old) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  if (old == OBJ_NEW_COUNTS) {
    if (o->deleter) o->deleter(o, OBJ_DELETE_BOTH);
    return;
  }
  if (o->deleter) o->deleter(o, OBJ_DELETE_STRONG);
  old = __atomic_fetch_sub(&o->counts, 1ull << 32, __ATOMIC_ACQ_REL);
  if ((old >> 32) == 1 && o->deleter) o->deleter(o, OBJ_DELETE_WEAK);
}

static inline void object_release(void *object) {
  Object *o = (Object *)object;
  memory_check_object(&o->counts, "an object is released after its death");
  uint64_t old = __atomic_fetch_sub(&o->counts, 1, __ATOMIC_RELEASE);
  if (VM_UNLIKELY((uint32_t)old == 1)) object_release_last(o, old);
}

static inline void value_retain(const Value *v) {
  if (value_is_object(v)) object_retain(value_ptr(v));
}
static inline void value_release(const Value *v) {
  if (value_is_object(v)) object_release(value_ptr(v));
}
/* Releases what `dst` held and moves `src` into it; `src` becomes none. */
static inline void value_move(Value *dst, Value *src) {
  uint64_t tag = src->tag, old_tag = dst->tag;
  int64_t bits = src->bits, old_bits = dst->bits;
  src->tag = VT_NONE;
  value_set(dst, tag, bits);
  if ((int32_t)old_tag >= VT_OBJECT) object_release((void *)old_bits);
}
/* Releases what `v` held; it becomes none. */
static inline void value_clear(Value *v) {
  uint64_t old_tag = v->tag;
  int64_t old_bits = v->bits;
  value_set(v, VT_NONE, 0);
  if ((int32_t)old_tag >= VT_OBJECT) object_release((void *)old_bits);
}

/* ---- what kernels read --------------------------------------------------------------------------------------- */

static inline int dtype_equal(VmDataType a, uint8_t code, uint8_t bits) {
  return a.code == code && a.bits == bits && a.lanes == 1;
}
static inline int dtype_same(VmDataType a, VmDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}
static inline int64_t dtype_bytes(VmDataType t) { return ((int64_t)t.bits * t.lanes + 7) / 8; }

/* The DLTensor in `v`, or NULL when `v` is no tensor. */
static inline const DLTensor *value_dltensor(const Value *v) {
  if (VM_LIKELY(v->tag == VT_TENSOR)) return &((const TensorObj *)value_ptr(v))->dl;
  return v->tag == VT_DLTENSOR_PTR ? (const DLTensor *)value_ptr(v) : NULL;
}
/* False for a tensor whose bytes must not be written; kernels ask before they fill an output. */
static inline int value_is_writable(const Value *v) {
  return v->tag != VT_TENSOR || !(((const Object *)value_ptr(v))->flags & OBJ_READONLY);
}
static inline void *dltensor_data(const DLTensor *t) { return (char *)t->data + t->byte_offset; }
static inline int64_t dltensor_numel(const DLTensor *t) {
  int64_t n = 1;
  for (int32_t i = 0; i < t->ndim; ++i) n *= t->shape[i];
  return n;
}
static inline int dltensor_is_compact(const DLTensor *t) {
  if (t->strides == NULL) return 1;
  int64_t expected = 1;
  for (int32_t i = t->ndim; i-- > 0;) {
    if (t->shape[i] == 0) return 1;
    if (t->shape[i] != 1 && t->strides[i] != expected) return 0;
    expected *= t->shape[i];
  }
  return 1;
}
static inline int dltensor_same_shape(const DLTensor *a, const DLTensor *b) {
  if (a->ndim != b->ndim) return 0;
  for (int32_t i = 0; i < a->ndim; ++i)
    if (a->shape[i] != b->shape[i]) return 0;
  return 1;
}

/* "(2, 3) float32" into buf (for messages); returns buf. */
__attribute__((unused)) static const char *dltensor_describe(char *buf, size_t size, const DLTensor *t) {
  static const char *const names[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  size_t used = (size_t)snprintf(buf, size, "(");
  for (int32_t i = 0; i < t->ndim && used < size; ++i)
    used += (size_t)snprintf(buf + used, size - used, i ? ", %lld" : "%lld", (long long)t->shape[i]);
  if (used < size)
    snprintf(buf + used, size - used, t->dtype.code == DL_BOOL ? ") %s" : ") %s%d",
             t->dtype.code <= DL_BOOL ? names[t->dtype.code] : "dtype", t->dtype.bits);
  return buf;
}

/* Formats a message and hands it to `sink` (vmcore.status.fail); returns -1 for `return fail_format(...)`. */
typedef int (*FailFn)(int kind, const char *message);
__attribute__((unused, cold, noinline, format(printf, 3, 4))) static int fail_format(FailFn sink, int kind,
                                                                                     const char *format, ...) {
  char message[512];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  return sink(kind, message);
}

#endif
