# Builtins that make tensors, and what other builtins make them with.
from libc.stdint cimport int32_t, int64_t, uint64_t

from vmcore.program cimport Context
from vmcore.value cimport TensorObj, Value, VmDataType

cdef bint dtype_is_storable(VmDataType dtype) noexcept nogil
cdef int new_tensor(
    const char* name, Context* cx, const int64_t* dims, uint64_t ndim, VmDataType dtype, Value* ret
) noexcept nogil
cdef int own_tensor(
    void* allocator, const char* name, const int64_t* dims, uint64_t ndim, VmDataType dtype, TensorObj** out
) noexcept nogil

cdef int b_alloc_storage(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_alloc_tensor(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_reshape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_to_device(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_ensure_zero_offset(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_stack_push(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_stack_rows(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
