# Where buffers lie in one arena, decided while a function runs (pyvm.builtin.plan_arena) and by the memory planner.
from libc.stdint cimport int32_t, int64_t

from vmcore.value cimport Value

cdef int b_plan_arena(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
cdef int b_check_upper_bound(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil
