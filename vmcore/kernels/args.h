/* Argument checks shared by the kernel doors. Bytecode is hostile: a door learns everything it relies on through these.
 *
 * Every arg_* and check_* function returns 0, or stores an error and returns -1, so that a door reads
 *     if (arg_count(op, n_args, 3) || arg_tensor(op, args, 0, &x) || ...) return -1;
 * Each module binds the error sink once at import: args_bind(fail).
 */
#ifndef VMCORE_KERNELS_ARGS_H
#define VMCORE_KERNELS_ARGS_H

#include <stddef.h>

#include "vmcore/objects.h"

#define ARGS_MAX_NDIM 16

/* A checked tensor argument: on the CPU, compact row-major, one lane, whole bytes per element, size that fits int64. */
typedef struct ArgTensor {
  char *data;
  int64_t numel, nbytes;
  const int64_t *shape;
  int32_t ndim, itemsize;
  VmDataType dtype;
} ArgTensor;

typedef struct ArgShape {
  const int64_t *data;
  int64_t size;
} ArgShape;

static FailFn args_sink;
static void args_bind(FailFn sink) { args_sink = sink; }
#define ARG_FAIL(kind, ...) (fail_format(args_sink, kind, __VA_ARGS__), -1)

/* Visibly -1 to the compiler, which then knows that what follows a passed check is initialised. */
#define arg_fail_kind(...) (arg_fail_kind_(__VA_ARGS__), -1)
#define arg_fail_tensor(...) (arg_fail_tensor_(__VA_ARGS__), -1)
#define arg_fail_pair(...) (arg_fail_pair_(__VA_ARGS__), -1)
#define arg_fail_one(...) (arg_fail_one_(__VA_ARGS__), -1)

/* ---- one argument ------------------------------------------------------------------------------------------------ */

static inline int arg_count(const char *op, int32_t n_args, int32_t expected) {
  if (VM_LIKELY(n_args == expected)) return 0;
  return ARG_FAIL(ERR_TYPE, "%s: takes %d arguments, got %d", op, expected, n_args);
}

static inline int arg_count_min(const char *op, int32_t n_args, int32_t least) {
  if (VM_LIKELY(n_args >= least)) return 0;
  return ARG_FAIL(ERR_TYPE, "%s: takes at least %d arguments, got %d", op, least, n_args);
}

__attribute__((noinline, cold)) static int arg_fail_kind_(const char *op, int32_t i, const char *wanted,
                                                         const Value *v) {
  return ARG_FAIL(ERR_TYPE, "%s: argument %d must be %s, got a value of type index %d", op, i, wanted, value_type(v));
}

__attribute__((noinline, cold)) static int arg_fail_tensor_(const char *op, int32_t i, const DLTensor *t) {
  if (t->device_type != 1)
    return ARG_FAIL(ERR_VALUE, "%s: argument %d is on device type %d, kernels run on 1 (cpu)", op, i, t->device_type);
  if (t->ndim < 0 || t->ndim > ARGS_MAX_NDIM)
    return ARG_FAIL(ERR_SHAPE, "%s: argument %d has rank %d, kernels take 0 to %d", op, i, t->ndim, ARGS_MAX_NDIM);
  if (t->dtype.lanes != 1 || t->dtype.bits < 8 || t->dtype.bits % 8)
    return ARG_FAIL(ERR_DTYPE, "%s: argument %d has %d lanes of %d bits, kernels take one lane of whole bytes", op, i,
                    t->dtype.lanes, t->dtype.bits);
  char text[128];
  dltensor_describe(text, sizeof text, t);
  if (!dltensor_is_compact(t))
    return ARG_FAIL(ERR_VALUE, "%s: argument %d, %s, is not compact row-major; copy it first", op, i, text);
  return ARG_FAIL(ERR_SHAPE, "%s: argument %d, %s, has an impossible shape or no data", op, i, text);
}

static inline int arg_tensor(const char *op, const Value *args, int32_t i, ArgTensor *out) {
  const DLTensor *t = value_dltensor(&args[i]);
  if (VM_UNLIKELY(t == NULL)) return arg_fail_kind(op, i, "a tensor", &args[i]);
  int32_t ndim = t->ndim;
  if (VM_UNLIKELY(t->device_type != 1 || (uint32_t)ndim > ARGS_MAX_NDIM || t->dtype.lanes != 1 || t->dtype.bits < 8 ||
                  t->dtype.bits % 8))
    return arg_fail_tensor(op, i, t);
  const int64_t *shape = t->shape, *strides = t->strides;
  int32_t itemsize = t->dtype.bits / 8;
  int64_t nbytes = itemsize;
  uint64_t bad = 0, skewed = 0, empty = 0;
  for (int32_t d = ndim; d-- > 0;) {
    int64_t n = shape[d];
    if (strides) skewed |= (uint64_t)(n != 1) & (uint64_t)(strides[d] * itemsize != nbytes);
    empty |= (uint64_t)(n == 0);
    bad |= (uint64_t)__builtin_mul_overflow(nbytes, n ? n : 1, &nbytes) | (uint64_t)(n < 0);
  }
  if (VM_UNLIKELY(empty)) nbytes = 0, skewed = 0;
  if (VM_UNLIKELY(bad | skewed) || VM_UNLIKELY(t->data == NULL && nbytes)) return arg_fail_tensor(op, i, t);
  out->data = (char *)t->data + t->byte_offset;
  out->nbytes = nbytes;
  out->numel = (itemsize & (itemsize - 1)) == 0 ? nbytes >> __builtin_ctz((unsigned)itemsize) : nbytes / itemsize;
  out->shape = shape;
  out->ndim = ndim;
  out->itemsize = itemsize;
  out->dtype = t->dtype;
  return 0;
}

/* A tensor that the kernel writes: not one whose bytes are constant (they may be mapped read-only). */
static inline int arg_output(const char *op, const Value *args, int32_t i, ArgTensor *out) {
  if (VM_UNLIKELY(arg_tensor(op, args, i, out))) return -1;
  const Object *o = (const Object *)value_ptr(&args[i]);
  if (args[i].tag == VT_TENSOR && (o->flags & (OBJ_OWN_MASK | OBJ_READONLY)) == (OBJ_OWN | OBJ_READONLY))
    return ARG_FAIL(ERR_VALUE, "%s: argument %d is an output, but the tensor is read-only", op, i);
  return 0;
}

/* As arg_tensor, but none is allowed: then out->data and out->shape are NULL and *present is 0. */
static inline int arg_optional_tensor(const char *op, const Value *args, int32_t i, ArgTensor *out, int *present) {
  *present = value_type(&args[i]) != VT_NONE;
  if (*present) return arg_tensor(op, args, i, out);
  memset(out, 0, sizeof *out);
  return 0;
}

static inline int arg_int(const char *op, const Value *args, int32_t i, int64_t *out) {
  int32_t type = value_type(&args[i]);
  if (VM_UNLIKELY(type != VT_INT && type != VT_BOOL)) return arg_fail_kind(op, i, "an integer", &args[i]);
  *out = args[i].bits;
  return 0;
}

/* An integer in [low, high]. */
static inline int arg_int_in(const char *op, const Value *args, int32_t i, int64_t low, int64_t high, int64_t *out) {
  if (VM_UNLIKELY(arg_int(op, args, i, out))) return -1;
  if (VM_LIKELY(*out >= low && *out <= high)) return 0;
  return ARG_FAIL(ERR_VALUE, "%s: argument %d is %lld, it must be from %lld to %lld", op, i, (long long)*out,
                  (long long)low, (long long)high);
}

/* An axis of a tensor of rank ndim, 0 <= *out < ndim; negative axes count from the end. */
static inline int arg_axis(const char *op, const Value *args, int32_t i, int32_t ndim, int64_t *out) {
  if (VM_UNLIKELY(arg_int(op, args, i, out))) return -1;
  if (*out < 0) *out += ndim;
  if (VM_LIKELY(*out >= 0 && *out < ndim)) return 0;
  return ARG_FAIL(ERR_INDEX, "%s: axis %lld is out of range for rank %d", op, (long long)args[i].bits, ndim);
}

static inline int arg_float(const char *op, const Value *args, int32_t i, double *out) {
  int32_t type = value_type(&args[i]);
  if (VM_LIKELY(type == VT_FLOAT)) {
    *out = value_float(&args[i]);
    return 0;
  }
  if (VM_UNLIKELY(type != VT_INT && type != VT_BOOL)) return arg_fail_kind(op, i, "a number", &args[i]);
  *out = (double)args[i].bits;
  return 0;
}

static inline int arg_shape(const char *op, const Value *args, int32_t i, ArgShape *out) {
  if (VM_UNLIKELY(value_type(&args[i]) != VT_SHAPE)) return arg_fail_kind(op, i, "a shape", &args[i]);
  const ShapeObj *s = (const ShapeObj *)value_ptr(&args[i]);
  if (VM_UNLIKELY(s->size > (1u << 20)))
    return ARG_FAIL(ERR_VALUE, "%s: argument %d is a shape of impossible length", op, i);
  out->data = s->data;
  out->size = (int64_t)s->size;
  return 0;
}

/* A shape with exactly `size` values. */
static inline int arg_shape_sized(const char *op, const Value *args, int32_t i, int64_t size, ArgShape *out) {
  if (VM_UNLIKELY(arg_shape(op, args, i, out))) return -1;
  if (VM_LIKELY(out->size == size)) return 0;
  return ARG_FAIL(ERR_VALUE, "%s: argument %d has %lld values, %lld are needed", op, i, (long long)out->size,
                  (long long)size);
}

/* As arg_shape_sized, with every value in [low, high]. */
static inline int arg_shape_in(const char *op, const Value *args, int32_t i, int64_t size, int64_t low, int64_t high,
                               ArgShape *out) {
  if (VM_UNLIKELY(arg_shape_sized(op, args, i, size, out))) return -1;
  for (int64_t d = 0; d < size; ++d)
    if (VM_UNLIKELY(out->data[d] < low || out->data[d] > high))
      return ARG_FAIL(ERR_VALUE, "%s: value %lld of argument %d is %lld, it must be from %lld to %lld", op,
                      (long long)d, i, (long long)out->data[d], (long long)low, (long long)high);
  return 0;
}

/* ---- relations between tensors ----------------------------------------------------------------------------------- */

static const char *arg_describe(char *text, size_t size, const ArgTensor *t) {
  DLTensor dl;
  memset(&dl, 0, sizeof dl);
  dl.ndim = t->ndim;
  dl.dtype = t->dtype;
  dl.shape = (int64_t *)t->shape;
  return dltensor_describe(text, size, &dl);
}

/* "op: <fact>: a is (2, 3) float32, b is (3,) int64" */
__attribute__((noinline, cold)) static int arg_fail_pair_(const char *op, int kind, const char *fact,
                                                         const char *a_name, const ArgTensor *a, const char *b_name,
                                                         const ArgTensor *b) {
  char text_a[128], text_b[128];
  return ARG_FAIL(kind, "%s: %s: %s is %s, %s is %s", op, fact, a_name, arg_describe(text_a, sizeof text_a, a), b_name,
                  arg_describe(text_b, sizeof text_b, b));
}

/* "op: <fact>: name is (2, 3) float32" */
__attribute__((noinline, cold)) static int arg_fail_one_(const char *op, int kind, const char *fact, const char *name,
                                                        const ArgTensor *t) {
  char text[128];
  return ARG_FAIL(kind, "%s: %s: %s is %s", op, fact, name, arg_describe(text, sizeof text, t));
}

static inline int args_same_shape(const ArgTensor *a, const ArgTensor *b) {
  if (a->ndim != b->ndim) return 0;
  for (int32_t d = 0; d < a->ndim; ++d)
    if (a->shape[d] != b->shape[d]) return 0;
  return 1;
}

static inline int check_dtype(const char *op, const char *name, const ArgTensor *t, uint8_t code, uint8_t bits) {
  if (VM_LIKELY(t->dtype.code == code && t->dtype.bits == bits)) return 0;
  return arg_fail_one(op, ERR_DTYPE, "wrong element type", name, t);
}

/* a and b have one element type. */
static inline int check_same_dtype(const char *op, const ArgTensor *a, const ArgTensor *b) {
  if (VM_LIKELY(dtype_same(a->dtype, b->dtype))) return 0;
  return arg_fail_pair(op, ERR_DTYPE, "element types differ", "one operand", a, "another", b);
}

static inline int check_same_shape(const char *op, const ArgTensor *x, const ArgTensor *out) {
  if (VM_LIKELY(args_same_shape(x, out))) return 0;
  return arg_fail_pair(op, ERR_SHAPE, "shapes differ", "input", x, "output", out);
}

/* The output has exactly this shape. */
static inline int check_out_shape(const char *op, const ArgTensor *out, int32_t ndim, const int64_t *shape) {
  int same = out->ndim == ndim;
  for (int32_t d = 0; same && d < ndim; ++d) same = out->shape[d] == shape[d];
  if (VM_LIKELY(same)) return 0;
  ArgTensor wanted = *out;
  wanted.ndim = ndim;
  wanted.shape = shape;
  return arg_fail_pair(op, ERR_SHAPE, "wrong output shape", "output", out, "expected", &wanted);
}

static inline int args_overlap(const ArgTensor *a, const ArgTensor *b) {
  return a->data < b->data + b->nbytes && b->data < a->data + a->nbytes;
}

/* The output shares no byte with an input. */
static inline int check_disjoint(const char *op, const ArgTensor *x, const ArgTensor *out) {
  if (VM_LIKELY(!args_overlap(x, out))) return 0;
  return arg_fail_pair(op, ERR_VALUE, "the output overlaps an input", "input", x, "output", out);
}

/* The output is the input's memory (same start, same bytes) or shares no byte with it. */
static inline int check_inplace(const char *op, const ArgTensor *x, const ArgTensor *out) {
  if (VM_LIKELY((x->data == out->data && x->nbytes == out->nbytes) || !args_overlap(x, out))) return 0;
  return arg_fail_pair(op, ERR_VALUE, "the output overlaps an input in part", "input", x, "output", out);
}

/* ---- the short way for small tensors ----------------------------------------------------------------------------- */

/* Bytes of each of `k` tensors, when all are float32, of one shape and made by vmcore (so: on the CPU, compact), and
 * the last one may be written and is one of the others or shares no byte with them; 0 otherwise, and when there is
 * nothing to do: the caller then takes the full checks, which word the errors. */
static inline __attribute__((always_inline)) uint64_t args_own_float32(const Value *const *args, int k) {
  /* PERF: type index and flags are compared as one word, and so are element type and shape (the layout word). */
  const uint64_t head = (uint64_t)VT_TENSOR | (uint64_t)OBJ_OWN << 32, read_only = (uint64_t)OBJ_READONLY << 32;
  uint64_t bad = 0, word;
  for (int i = 0; i < k; ++i) bad |= args[i]->tag ^ VT_TENSOR;
  if (VM_UNLIKELY(bad)) return 0;
  const TensorObj *out = (const TensorObj *)value_ptr(args[k - 1]);
  memcpy(&word, &out->head.type_index, 8);
  bad = word ^ head;
  for (int i = 0; i < k - 1; ++i) {
    memcpy(&word, &((const TensorObj *)value_ptr(args[i]))->head.type_index, 8);
    bad |= (word & ~read_only) ^ head;
  }
  if (VM_UNLIKELY(bad)) return 0; /* only own tensors have what is read from here on */
  bad = (out->layout & LAYOUT_TYPE_MASK) ^ LAYOUT_FLOAT32;
  for (int i = 0; i < k - 1; ++i) bad |= ((const TensorObj *)value_ptr(args[i]))->layout ^ out->layout;
  if (VM_UNLIKELY(bad)) return 0;
  const uintptr_t to = (uintptr_t)out->dl.data, nbytes = (uintptr_t)out->nbytes;
  for (int i = 0; i < k - 1; ++i) { /* overlap: closer than nbytes on either side, but not the same */
    const uintptr_t from = (uintptr_t)((const TensorObj *)value_ptr(args[i]))->dl.data;
    if (to - from + nbytes - 1 < 2 * nbytes - 1 && VM_UNLIKELY(to != from)) return 0;
  }
  return nbytes;
}

_Static_assert(offsetof(Object, flags) == offsetof(Object, type_index) + 4,
               "args_own_float32 compares this pair as one word, on a little-endian machine");

static inline void *arg_own_data(const Value *v) { return ((const TensorObj *)value_ptr(v))->dl.data; }

#endif
