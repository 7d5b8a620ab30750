# Shared libraries of kernels and compiled functions.
from vmcore.value cimport FunctionObj, PackedFn


cdef class Library:
    cdef void* handle
    cdef readonly str path
    cdef dict functions
    cdef FunctionObj* find(self, str name) except? NULL
    cdef PackedFn find_compiled(self, str name) except? NULL
