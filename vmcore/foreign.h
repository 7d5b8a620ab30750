/* Values on their way into and out of native code that vmcore did not compile: kernels and compiled functions of shared
 * libraries. Such code assumes 64-byte aligned tensor data and checks neither that nor the kind of an object. */
#ifndef VMCORE_FOREIGN_H
#define VMCORE_FOREIGN_H

#include "vmcore/objects.h"

#define FOREIGN_ALIGNMENT MEMORY_ALIGNMENT
#define FOREIGN_MAX_NESTING 200

static inline int data_is_aligned(const void *data, int64_t nbytes) {
  return nbytes == 0 || ((uintptr_t)data & (FOREIGN_ALIGNMENT - 1)) == 0;
}

/* out := v, borrowed. Has a bit of FOREIGN_ALIGNMENT - 1 set when a kernel of a library must not get it as it is: a
 * misaligned tensor, or an object of another kind. Adds the bytes of a tensor to *nbytes. */
static inline uintptr_t foreign_argument(const Value *v, Value *out, int64_t *nbytes) {
  uint64_t tag = v->tag;
  int64_t bits = v->bits;
  out->tag = tag; /* two words, as value_copy */
  out->bits = bits;
  if (VM_UNLIKELY(tag != VT_TENSOR)) return (int32_t)tag >= VT_OBJECT;
  *nbytes += ((const TensorObj *)bits)->nbytes;
  return (uintptr_t)((const TensorObj *)bits)->dl.data;
}

/* A tensor that a kernel must not write, which it does with its last argument. */
static inline int foreign_is_read_only(const Value *v) {
  return v->tag == VT_TENSOR && ((const Object *)value_ptr(v))->flags & OBJ_READONLY;
}

/* A compact tensor with the elements of `t` (which is compact) in aligned memory of its own; NULL: no memory. */
__attribute__((unused)) static TensorObj *tensor_aligned_copy(const DLTensor *t) {
  void *data;
  TensorObj *copy = tensor_new(t->ndim);
  int64_t nbytes;
  if (copy == NULL) return NULL;
  nbytes = tensor_set_shape(copy, t->shape, t->dtype);
  data = nbytes < 0 ? NULL : memory_aligned(nbytes ? (size_t)nbytes : 1, MEMORY_STORAGE);
  if (data == NULL) {
    object_release(copy);
    return NULL;
  }
  memcpy(data, dltensor_data(t), (size_t)nbytes);
  copy->dl.data = data;
  copy->owner = data;
  copy->release_owner = memory_free;
  return copy;
}

/* Replaces misaligned tensors in `v`, which is owned, by aligned copies; in tuples too, which are then copied.
 * 0, 1 when something was replaced, or -1: no memory, or nested too deep. */
__attribute__((unused)) static int value_align(Value *v, int depth) {
  if (v->tag == VT_TENSOR) {
    TensorObj *t = (TensorObj *)value_ptr(v), *copy;
    if (data_is_aligned(t->dl.data, t->nbytes)) return 0;
    copy = tensor_aligned_copy(&t->dl);
    if (copy == NULL) return -1;
    object_release(t);
    value_set_object(v, copy);
    return 1;
  }
  if (v->tag == VT_ARRAY) {
    ArrayObj *array = (ArrayObj *)value_ptr(v), *copy;
    int changed = 0;
    if (depth >= FOREIGN_MAX_NESTING) return -1;
    copy = array_new(array->size);
    if (copy == NULL) return -1;
    for (int64_t i = 0; i < array->size; ++i) {
      int status;
      value_retain(&array->data[i]);
      value_copy(&copy->data[i], &array->data[i]);
      status = value_align(&copy->data[i], depth + 1);
      if (status < 0) {
        object_release(copy);
        return -1;
      }
      changed |= status;
    }
    if (!changed) {
      object_release(copy);
      return 0;
    }
    object_release(array);
    value_set_object(v, copy);
    return 1;
  }
  return 0;
}

/* Whether foreign code may return `v`: a plain value, or an object that vmcore made. */
__attribute__((unused)) static int value_may_return(const Value *v) {
  int32_t kind = value_type(v);
  if (kind >= VT_OBJECT) return value_ptr(v) != NULL && object_is_own((const Object *)value_ptr(v));
  return kind != VT_OPAQUE_PTR && (kind < VT_DLTENSOR_PTR || kind == VT_SMALL_STR || kind == VT_SMALL_BYTES);
}

/* `self` of a library's kernel. */
typedef struct LibraryFunction {
  PackedFn fn;
  char name[];
} LibraryFunction;

/* Looks at what a kernel returned: 0 if it can be kept, else it is none and an error is stored. */
__attribute__((unused)) static int foreign_result(const LibraryFunction *f, Value *ret, FailFn sink) {
  if (value_may_return(ret)) return 0;
  int32_t kind = value_type(ret);
  value_set_none(ret); /* what it is, and whose, is unknown: it is not touched */
  return fail_format(sink, ERR_KERNEL, "%s: the library returned a value of kind %d, which cannot be kept", f->name,
                     kind);
}

#endif
