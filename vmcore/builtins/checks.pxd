from libc.stdint cimport int32_t

from vmcore.value cimport Value

cdef int b_check_tensor_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_shape_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_tuple_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_prim_value_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_func_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_string_info(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
