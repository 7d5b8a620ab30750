# HOT: leaves are noexcept nogil.
"""Loops over padded planes that convolution and pooling share."""
from vmcore.kernels.gemm cimport gemm_isa

cdef extern from "vmcore/kernels/window.h" nogil:
    const WindowLoops* window_loops_by_isa[3]


cdef const WindowLoops* window_loops(bint is_double) noexcept nogil:
    return window_loops_by_isa[gemm_isa()] + is_double
