# The dispatch loop.
from libc.stdint cimport int64_t

from vmcore.program cimport Context, VmFunc
from vmcore.value cimport Value

cdef int invoke(Context* cx, VmFunc* func, Value* out, int gil_mode) noexcept nogil
cdef int64_t thread_deadline() noexcept nogil
cdef void set_thread_deadline(int64_t ns) noexcept nogil
cdef int64_t now_ns() noexcept nogil
