/* Making and freeing the native objects of value.h. Everything here runs without the GIL, except the release hooks that
 * say otherwise. OWNERSHIP: `*_new` returns one reference, or NULL when memory is exhausted. */
#ifndef VMCORE_OBJECTS_H
#define VMCORE_OBJECTS_H

#include <stddef.h>

#include "vmcore/value.h"

#define VM_MAX_NDIM 64

static inline int object_is_own(const Object *o) { return (o->flags & OBJ_OWN_MASK) == OBJ_OWN; }

__attribute__((unused)) static void plain_delete(void *self, int how) {
  if (how & OBJ_DELETE_WEAK) memory_free(self);
}

/* ---- tensors ---- */

__attribute__((unused)) static void tensor_delete(void *self, int how) {
  TensorObj *t = (TensorObj *)self;
  if (how & OBJ_DELETE_STRONG) {
    if (t->storage) object_release(t->storage);
    if (t->release_owner) t->release_owner(t->owner);
    t->storage = NULL;
    t->release_owner = NULL;
  }
  if (how & OBJ_DELETE_WEAK) memory_free(self);
}

/* A header without data, storage or shape; room for `ndim` dimensions. */
__attribute__((unused)) static TensorObj *tensor_new(int32_t ndim) {
  size_t extra = ndim > TENSOR_INLINE_NDIM ? 2 * sizeof(int64_t) * (size_t)(ndim - TENSOR_INLINE_NDIM) : 0;
  TensorObj *t = (TensorObj *)memory_alloc(sizeof(TensorObj) + extra, MEMORY_TENSOR);
  if (t == NULL) return NULL;
  object_init(&t->head, VT_TENSOR, tensor_delete);
  t->head.flags = OBJ_OWN;
  t->dl.data = NULL;
  t->dl.device_type = 1;
  t->dl.device_id = 0;
  t->dl.ndim = ndim;
  t->dl.shape = t->dims;
  t->dl.strides = t->dims + ndim;
  t->dl.byte_offset = 0;
  t->storage = NULL;
  t->nbytes = 0;
  t->layout = 0;
  t->owner = NULL;
  t->release_owner = NULL;
  t->wrapper = NULL;
  t->home = 0;
  t->slot = 0;
  return t;
}

/* The layout word of an own tensor: bit 0 is set, then the rank (3 bits), log2 of the bytes of an element (2), the type code
 * (3), and the dimensions in equal shares of the other 55 bits. Two tensors whose words are equal and not 0 have one element
 * type and one shape; kernels compare it instead of looking. 0 where a dimension is too large for its share. */
#define LAYOUT_TYPE_MASK 0x1f1ull
#define LAYOUT_FLOAT32 (1ull | 2ull << 4 | (uint64_t)DL_FLOAT << 6)
static inline uint64_t layout_of(int32_t ndim, const int64_t *shape, VmDataType dtype) {
  static const uint8_t shares[TENSOR_INLINE_NDIM + 1] = {0, 55, 27, 18, 13, 11, 9};
  const uint32_t bits = dtype.bits;
  if (ndim > TENSOR_INLINE_NDIM || dtype.lanes != 1 || bits < 8 || bits > 64 || (bits & (bits - 1)) || dtype.code > 7)
    return 0;
  uint64_t word = 1ull | (uint64_t)ndim << 1 | (uint64_t)(__builtin_ctz(bits) - 3) << 4 | (uint64_t)dtype.code << 6;
  uint64_t beyond = 0;
  for (int32_t i = 0, at = 9, share = shares[ndim]; i < ndim; ++i, at += share) {
    word |= (uint64_t)shape[i] << at;
    beyond |= (uint64_t)shape[i] >> share;
  }
  return beyond ? 0 : word;
}

/* Fills shape and compact strides. Returns the number of bytes, or -1 when a dimension is negative or the size
 * does not fit in 63 bits. */
__attribute__((unused)) static int64_t tensor_set_shape(TensorObj *t, const int64_t *shape, VmDataType dtype) {
  int64_t stride = 1, nbytes;
  int empty = 0;
  t->dl.dtype = dtype;
  for (int32_t i = t->dl.ndim; i-- > 0;) {
    if (shape[i] < 0) return -1;
    t->dl.shape[i] = shape[i];
    t->dl.strides[i] = stride;
    if (shape[i] == 0) empty = 1;
    if (__builtin_mul_overflow(stride, shape[i] ? shape[i] : 1, &stride)) return -1;
  }
  if (__builtin_mul_overflow(stride, dtype_bytes(dtype), &nbytes)) return -1;
  t->nbytes = empty ? 0 : nbytes;
  t->layout = layout_of(t->dl.ndim, t->dl.shape, dtype);
  return t->nbytes;
}

/* What one context keeps between the executions of its allocation sites; no lock, because one thread uses it at a time.
 *
 * A storage site keeps its storage, a tensor site its header, shape and all, with the reference to its storage: in a
 * steady state neither counts atomically nor takes the allocator's lock. A storage is free for reuse when all its
 * references are this cache's own: the slot's, and those of headers that are idle (`idle_refs`). Nobody else can then reach
 * it, nor make a reference to it. Other headers go on a list. */
#define TENSOR_CACHE_SIZE 64
typedef struct TensorCache {
  uint64_t id;           /* never used again: an address would be, and a header of a dead cache taken for one's own */
  TensorObj **slots;     /* one per tensor site, NULL while the header is in use */
  StorageObj **storages; /* one per storage site */
  TensorObj *head;       /* chained through `owner` */
  int64_t n_slots, n_storages;
  int32_t size;
} TensorCache;

/* A header like `source` (at most TENSOR_INLINE_NDIM dimensions), for `slot`; NULL when memory is exhausted. */
__attribute__((noinline, unused)) static TensorObj *tensor_cache_fill(TensorCache *cache, const TensorObj *source,
                                                                      int64_t slot) {
  TensorObj *t = cache->head;
  if (t != NULL) {
    cache->head = (TensorObj *)t->owner;
    --cache->size;
  } else {
    t = (TensorObj *)memory_alloc(sizeof(TensorObj), MEMORY_TENSOR);
    if (t == NULL) return NULL;
  }
  memcpy(t, source, sizeof(TensorObj));
  t->dl.shape = t->dims;
  t->dl.strides = t->dims + t->dl.ndim;
  t->home = cache->id;
  t->slot = slot;
  return t;
}

/* The header of tensor site `slot` when it is idle and was used over the storage in `v` last (so that it has its data),
 * one reference; else NULL. */
static inline TensorObj *tensor_cache_hit(TensorCache *cache, int64_t slot, const Value *v) {
  TensorObj *t = cache->slots[slot];
  if (VM_UNLIKELY(v->tag != VT_STORAGE || t == NULL || t->storage != (Object *)value_ptr(v))) return NULL;
  cache->slots[slot] = NULL;
  --((StorageObj *)value_ptr(v))->idle_refs;
  return t;
}

/* The header of tensor site `slot` over `storage`: one reference. NULL when memory is exhausted. */
static inline TensorObj *tensor_cache_take(TensorCache *cache, const TensorObj *source, int64_t slot,
                                           StorageObj *storage) {
  TensorObj *t = cache->slots[slot];
  if (VM_UNLIKELY(t == NULL)) {
    t = tensor_cache_fill(cache, source, slot);
    if (t == NULL) return NULL;
  } else {
    cache->slots[slot] = NULL;
    if (VM_LIKELY(t->storage == &storage->head)) {
      --storage->idle_refs;
      return t;
    }
    if (t->storage) {
      --((StorageObj *)t->storage)->idle_refs;
      object_release(t->storage);
    }
  }
  object_retain(storage);
  t->storage = &storage->head;
  return t;
}

/* The storage that storage site `slot` used last, with one more reference, if nobody uses it any more; else NULL. */
static inline StorageObj *storage_cache_take(TensorCache *cache, int64_t slot) {
  StorageObj *s = cache->storages[slot];
  if (s == NULL) return NULL;
  uint64_t counts = __atomic_load_n(&s->head.counts, __ATOMIC_ACQUIRE);
  if (counts != OBJ_NEW_COUNTS + (uint64_t)s->idle_refs) return NULL;
  s->head.counts = counts + 1; /* plain: nobody else can reach it */
  return s;
}

/* Keeps a storage for its site, instead of the one that it kept. */
__attribute__((unused)) static void storage_cache_keep(TensorCache *cache, int64_t slot, StorageObj *storage) {
  StorageObj *old = cache->storages[slot];
  if (old != NULL) {
    old->home = 0;
    object_release(old);
  }
  object_retain(storage);
  storage->home = cache->id;
  cache->storages[slot] = storage;
}

/* Gives everything that is kept back. Tensors and storages that are in use meanwhile do not count as this cache's
 * afterwards: a storage has no home, and a header comes back without one. */
__attribute__((unused)) static void tensor_cache_clear(TensorCache *cache) {
  while (cache->head) {
    TensorObj *t = cache->head;
    cache->head = (TensorObj *)t->owner;
    memory_free(t);
  }
  cache->size = 0;
  for (int64_t i = 0; i < cache->n_slots; ++i) {
    if (cache->slots[i] == NULL) continue;
    if (cache->slots[i]->storage) {
      --((StorageObj *)cache->slots[i]->storage)->idle_refs;
      object_release(cache->slots[i]->storage);
    }
    memory_free(cache->slots[i]);
    cache->slots[i] = NULL;
  }
  for (int64_t i = 0; i < cache->n_storages; ++i) {
    if (cache->storages[i] == NULL) continue;
    cache->storages[i]->home = 0;
    object_release(cache->storages[i]);
    cache->storages[i] = NULL;
  }
}

/* Drops the last reference to an own tensor and keeps its header, when there is room. INVARIANT: a kept header has one
 * strong and one weak reference, no owner and no wrapper; in a slot it may keep its storage, on the list it has none. */
__attribute__((noinline, unused)) static void tensor_recycle(TensorCache *cache, TensorObj *t) {
  if (VM_LIKELY(t->home == cache->id && cache->slots[t->slot] == NULL)) {
    StorageObj *storage = (StorageObj *)t->storage; /* its site gave it one */
    if (VM_LIKELY(storage->home == cache->id)) {
      ++storage->idle_refs;
    } else {
      t->storage = NULL;
      object_release(storage);
    }
    cache->slots[t->slot] = t;
    return;
  }
  if (t->dl.ndim > TENSOR_INLINE_NDIM || cache->size >= TENSOR_CACHE_SIZE) {
    tensor_delete(t, OBJ_DELETE_BOTH);
    return;
  }
  if (t->storage) object_release(t->storage);
  if (t->release_owner) t->release_owner(t->owner);
  t->owner = cache->head;
  cache->head = t;
  ++cache->size;
}

/* Releases the reference that the two words of a Value held. A count of exactly one strong and one weak reference means
 * that nobody else can reach the object, so that its count needs no atomic access any more. */
static inline void value_drop(TensorCache *cache, uint64_t tag, int64_t bits) {
  if ((int32_t)tag < VT_OBJECT) return;
  Object *o = (Object *)bits;
  if (tag == VT_TENSOR && __atomic_load_n(&o->counts, __ATOMIC_ACQUIRE) == OBJ_NEW_COUNTS && object_is_own(o)) {
    tensor_recycle(cache, (TensorObj *)o);
    return;
  }
  object_release(o);
}

/* The same for a value that is likely to be a tensor of this cache: the usual way is inline. */
static inline void value_kill(TensorCache *cache, Value *v) {
  uint64_t tag = v->tag;
  TensorObj *t = (TensorObj *)v->bits;
  v->tag = VT_NONE;
  if (tag == VT_TENSOR && __atomic_load_n(&t->head.counts, __ATOMIC_ACQUIRE) == OBJ_NEW_COUNTS &&
      object_is_own(&t->head) && t->home == cache->id && cache->slots[t->slot] == NULL &&
      ((StorageObj *)t->storage)->home == cache->id) {
    ++((StorageObj *)t->storage)->idle_refs;
    cache->slots[t->slot] = t;
    return;
  }
  value_drop(cache, tag, (int64_t)t);
}

/* `v` becomes none; what it held is released through the cache. */
static inline void value_reset(TensorCache *cache, Value *v) {
  uint64_t tag = v->tag;
  int64_t bits = v->bits;
  v->tag = VT_NONE;
  value_drop(cache, tag, bits);
}

/* dst := the value of these words, whose reference it takes over; what dst held is released through the cache. */
static inline void value_put(TensorCache *cache, Value *dst, uint64_t tag, int64_t bits) {
  uint64_t old_tag = dst->tag;
  int64_t old_bits = dst->bits;
  value_set(dst, tag, bits);
  value_drop(cache, old_tag, old_bits);
}

/* dst := src, src becomes none, what dst held is released through the cache. */
static inline void value_replace(TensorCache *cache, Value *dst, Value *src) {
  uint64_t tag = src->tag;
  int64_t bits = src->bits;
  src->tag = VT_NONE;
  value_put(cache, dst, tag, bits);
}

/* ---- shapes, strings, arrays ---- */

__attribute__((unused)) static ShapeObj *shape_new(const int64_t *dims, uint64_t size) {
  ShapeObj *s = (ShapeObj *)memory_alloc(sizeof(ShapeObj) + size * sizeof(int64_t), MEMORY_SHAPE);
  if (s == NULL) return NULL;
  object_init(&s->head, VT_SHAPE, plain_delete);
  s->head.flags = OBJ_OWN;
  s->data = s->inline_data;
  s->size = size;
  if (dims) memcpy(s->inline_data, dims, size * sizeof(int64_t));
  return s;
}

__attribute__((unused)) static StrObj *str_new(const char *text, uint64_t size) {
  StrObj *s = (StrObj *)memory_alloc(sizeof(StrObj) + size + 1, MEMORY_STRING);
  if (s == NULL) return NULL;
  object_init(&s->head, VT_STR, plain_delete);
  s->head.flags = OBJ_OWN;
  s->data = s->inline_data;
  s->size = size;
  memcpy(s->inline_data, text, size);
  s->inline_data[size] = 0;
  return s;
}

/* Containers can be nested without bound by a program, their deletion must not be: past DELETE_DEPTH levels an object is
 * put on a per-thread list that the outermost deletion drains. */
#define DELETE_DEPTH 32
typedef struct DeleteState {
  int depth;
  Object *deferred; /* chained through `counts`, which are dead by then */
} DeleteState;
static __thread DeleteState vm_delete_state __attribute__((unused));

/* Runs `clear` (which drops the members) for `self`, now or later, then frees its memory if `how` says so. */
__attribute__((unused)) static void container_delete(void *self, int how, void (*clear)(void *)) {
  DeleteState *state = &vm_delete_state;
  if (how & OBJ_DELETE_STRONG) {
    if (state->depth >= DELETE_DEPTH && how == OBJ_DELETE_BOTH) {
      ((Object *)self)->counts = (uint64_t)(uintptr_t)state->deferred;
      state->deferred = (Object *)self;
      return;
    }
    ++state->depth;
    clear(self);
    --state->depth;
  }
  if (how & OBJ_DELETE_WEAK) memory_free(self);
  while (state->depth == 0 && state->deferred) {
    Object *next = state->deferred;
    state->deferred = (Object *)(uintptr_t)next->counts;
    next->deleter(next, OBJ_DELETE_BOTH);
  }
}

static void array_clear(void *self) {
  ArrayObj *a = (ArrayObj *)self;
  for (int64_t i = 0; i < a->size; ++i) value_clear(&a->data[i]);
  a->size = 0;
}

__attribute__((unused)) static void array_delete(void *self, int how) { container_delete(self, how, array_clear); }

/* Items start as none. */
__attribute__((unused)) static ArrayObj *array_new(int64_t size) {
  ArrayObj *a = (ArrayObj *)memory_alloc(sizeof(ArrayObj) + (size_t)size * sizeof(Value), MEMORY_ARRAY);
  if (a == NULL) return NULL;
  object_init(&a->head, VT_ARRAY, array_delete);
  a->head.flags = OBJ_OWN;
  a->data = a->items;
  a->size = a->capacity = size;
  a->data_deleter = NULL;
  memset(a->items, 0, (size_t)size * sizeof(Value));
  return a;
}

/* A function of a virtual machine with its captured trailing arguments. Starts like a FunctionObj, so that foreign code
 * can call it through safe_call. */
typedef struct ClosureObj {
  Object head;
  PackedFn safe_call;
  void *cpp_call;
  Object *machine; /* owned: a closure may outlive the VirtualMachine that made it */
  int32_t func_index;
  int32_t n_saved;
  Value saved[];
} ClosureObj;

static void closure_clear(void *self) {
  ClosureObj *c = (ClosureObj *)self;
  for (int32_t i = 0; i < c->n_saved; ++i) value_clear(&c->saved[i]);
  c->n_saved = 0;
  if (c->machine) object_release(c->machine);
  c->machine = NULL;
}

__attribute__((unused)) static void closure_delete(void *self, int how) { container_delete(self, how, closure_clear); }

/* Retains `machine`; the saved values start as none. */
__attribute__((unused)) static ClosureObj *closure_new(Object *machine, int32_t func_index, int32_t n_saved,
                                                       PackedFn safe_call) {
  ClosureObj *c = (ClosureObj *)memory_alloc(sizeof(ClosureObj) + (size_t)n_saved * sizeof(Value), MEMORY_CLOSURE);
  if (c == NULL) return NULL;
  object_init(&c->head, VT_CLOSURE, closure_delete);
  c->head.flags = OBJ_OWN;
  c->safe_call = safe_call;
  c->cpp_call = NULL;
  object_retain(machine);
  c->machine = machine;
  c->func_index = func_index;
  c->n_saved = n_saved;
  memset(c->saved, 0, (size_t)n_saved * sizeof(Value));
  return c;
}

/* The characters of a string value, or NULL when `v` is no string. `size` may be NULL. */
static inline const char *value_str(const Value *v, uint64_t *size) {
  switch (value_type(v)) {
    case VT_STR:
      if (size) *size = ((StrObj *)value_ptr(v))->size;
      return ((StrObj *)value_ptr(v))->data;
    case VT_SMALL_STR: /* inline, zero-terminated: at most 7 characters in 8 bytes */
      if (size) *size = (v->tag >> 32) & 7; /* native code may have written any length */
      return (const char *)&v->bits;
    case VT_RAW_STR:
      if (size) *size = strlen((const char *)value_ptr(v));
      return (const char *)value_ptr(v);
    default:
      return NULL;
  }
}

/* Name of the kind of `v` for messages, as TVM's type keys read. */
__attribute__((unused)) static const char *value_kind_name(const Value *v) {
  switch (value_type(v)) {
    case VT_NONE: return "None";
    case VT_INT: return "int";
    case VT_BOOL: return "bool";
    case VT_FLOAT: return "float";
    case VT_OPAQUE_PTR: return "opaque pointer";
    case VT_DTYPE: return "DataType";
    case VT_DEVICE: return "Device";
    case VT_DLTENSOR_PTR: case VT_TENSOR: return "Tensor";
    case VT_RAW_STR: case VT_SMALL_STR: case VT_STR: return "string";
    case VT_SHAPE: return "Shape";
    case VT_ARRAY: return "tuple";
    case VT_FUNCTION: return "function";
    case VT_CLOSURE: return "closure";
    case VT_STORAGE: return "Storage";
    case VT_PYOBJECT: return "Python object";
    default: return "object";
  }
}

#endif
