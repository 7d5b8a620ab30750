"""`kernel.cast`: conversion between all element types; the rules are in cast.h."""
from libc.stdint cimport int32_t, int64_t

from vmcore.kernels.args cimport (
    ArgTensor, arg_count, arg_fail_pair, arg_output, arg_tensor, args_bind, check_disjoint, check_same_shape,
)
from vmcore.status cimport fail
from vmcore.value cimport ERR_DTYPE, KernelEntry, Value, VmDataType

cdef extern from "vmcore/kernels/cast.h" nogil:
    enum:
        K_NONE
    int kernel_dtype(VmDataType t)
    const void* cast_loops
    void cast_init(int isa)
    int vm_isa_detect()
    void cast_elements(const char* x, int from_, int64_t item_x, char* y, int to, int64_t item_y, int64_t n)


cdef int cast(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """cast(x, out): out[i] = x[i] in out's dtype."""
    cdef ArgTensor x, out
    cdef int from_, to
    if (arg_count("cast", n_args, 2) or arg_tensor("cast", args, 0, &x) or arg_output("cast", args, 1, &out)
            or check_same_shape("cast", &x, &out) or check_disjoint("cast", &x, &out)):
        return -1
    from_ = kernel_dtype(x.dtype)
    to = kernel_dtype(out.dtype)
    if from_ == K_NONE or to == K_NONE:
        return arg_fail_pair("cast", ERR_DTYPE, "no conversion between element types", "input", &x, "output", &out)
    cast_elements(x.data, from_, x.itemsize, out.data, to, out.itemsize, x.numel)
    return 0


cdef KernelEntry[1] _table
_table[0].name = "kernel.cast"
_table[0].fn = cast
_table[0].ns_per_byte = 0.05


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 1
    return _table


cdef const void* cast_table() noexcept nogil:
    return <const void*>cast_loops


def select_isa(level=None) -> int:
    """Use the loops of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    cast_init(isa)
    return isa


args_bind(fail)
select_isa()
