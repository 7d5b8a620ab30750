from libc.stdint cimport int32_t

from vmcore.value cimport Value

cdef int b_null_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_copy(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_make_tuple(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_tuple_getitem(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_tuple_reset_item(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_read_if_cond(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_make_closure(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_invoke_closure(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_call_tir_dyn(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
