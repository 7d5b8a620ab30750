# Cython names for args.h: argument checks of the kernel doors. Every function returns 0, or -1 with an error stored.
# A module that uses them runs `args_bind(fail)` once at import.
from libc.stdint cimport int32_t, int64_t, uint8_t

from vmcore.value cimport FailFn, Value, VmDataType

cdef extern from "vmcore/kernels/args.h" nogil:
    enum:
        ARGS_MAX_NDIM

    ctypedef struct ArgTensor:
        char* data
        int64_t numel, nbytes
        const int64_t* shape
        int32_t ndim, itemsize
        VmDataType dtype

    ctypedef struct ArgShape:
        const int64_t* data
        int64_t size

    void args_bind(FailFn sink)
    int ARG_FAIL(int kind, const char* format, ...)
    int arg_count(const char* op, int32_t n_args, int32_t expected)
    int arg_count_min(const char* op, int32_t n_args, int32_t least)
    int arg_fail_kind(const char* op, int32_t i, const char* wanted, const Value* v)
    int arg_tensor(const char* op, const Value* args, int32_t i, ArgTensor* out)
    int arg_output(const char* op, const Value* args, int32_t i, ArgTensor* out)
    int arg_optional_tensor(const char* op, const Value* args, int32_t i, ArgTensor* out, bint* present)
    int arg_int(const char* op, const Value* args, int32_t i, int64_t* out)
    int arg_int_in(const char* op, const Value* args, int32_t i, int64_t low, int64_t high, int64_t* out)
    int arg_axis(const char* op, const Value* args, int32_t i, int32_t ndim, int64_t* out)
    int arg_float(const char* op, const Value* args, int32_t i, double* out)
    int arg_shape(const char* op, const Value* args, int32_t i, ArgShape* out)
    int arg_shape_sized(const char* op, const Value* args, int32_t i, int64_t size, ArgShape* out)
    int arg_shape_in(const char* op, const Value* args, int32_t i, int64_t size, int64_t low, int64_t high,
                     ArgShape* out)
    int arg_fail_pair(const char* op, int kind, const char* fact, const char* a_name, const ArgTensor* a,
                      const char* b_name, const ArgTensor* b)
    int arg_fail_one(const char* op, int kind, const char* fact, const char* name, const ArgTensor* t)
    bint args_same_shape(const ArgTensor* a, const ArgTensor* b)
    int check_dtype(const char* op, const char* name, const ArgTensor* t, uint8_t code, uint8_t bits)
    int check_same_dtype(const char* op, const ArgTensor* a, const ArgTensor* b)
    int check_same_shape(const char* op, const ArgTensor* x, const ArgTensor* out)
    int check_out_shape(const char* op, const ArgTensor* out, int32_t ndim, const int64_t* shape)
    bint args_overlap(const ArgTensor* a, const ArgTensor* b)
    int check_disjoint(const char* op, const ArgTensor* x, const ArgTensor* out)
    int check_inplace(const char* op, const ArgTensor* x, const ArgTensor* out)
