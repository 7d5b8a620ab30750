# The dispatch loop.
from libc.stdint cimport int32_t, int64_t

from vmcore.objects cimport ClosureObj
from vmcore.program cimport Context, VmFunc
from vmcore.value cimport StorageObj, Value

cdef int invoke(Context* cx, VmFunc* func, Value* out, int gil_mode) noexcept nogil
cdef int64_t thread_deadline() noexcept nogil
cdef void set_thread_deadline(int64_t ns) noexcept nogil
cdef int64_t now_ns() noexcept nogil
cdef void note_no_memory() noexcept nogil
"""Makes the running compiled function fail with AllocationError when it returns."""
cdef bint in_native(Context* cx) noexcept nogil
cdef StorageObj* new_storage(Context* cx, const char* name, int64_t nbytes) noexcept nogil
cdef int call_nested(Context* cx, ClosureObj* closure, const Value* args, int32_t n, Value* ret) noexcept nogil
