from libc.stdint cimport int32_t

from vmcore.value cimport Value

cdef int b_alloc_shape_heap(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_match_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_match_prim_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_make_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_make_prim_value(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_shape_of(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_tensor_to_shape(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_shape_to_tensor(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_tensor_scalar(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_store_dim(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_eval_shape_expr(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
