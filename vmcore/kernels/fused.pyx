"""`kernel.fused_elementwise`: chains of elementwise operators, block by block in cache. Program and loops: fused.h."""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t

from vmcore.kernels.args cimport args_bind
from vmcore.kernels.binary cimport binary_table, where_table
from vmcore.kernels.cast cimport cast_table
from vmcore.kernels.elementwise cimport unary_table
from vmcore.kernels.workspace cimport SLOT_OTHER, workspace
from vmcore.status cimport fail
from vmcore.threads cimport parallel_for, thread_count
from vmcore.value cimport DirectEntry, KernelEntry, Value

cdef extern from "vmcore/kernels/fused.h" nogil:
    ctypedef struct FusedOp:
        const char* name
        uint8_t kind, n_params
    const FusedOp* fused_ops
    int FUSED_OPS
    const void* fused_unary
    const void* fused_binary
    const void* fused_where
    const void* fused_cast
    void* (*fused_workspace)(size_t nbytes) noexcept nogil
    int (*fused_threads)() noexcept nogil
    void (*fused_parallel)(int64_t n_tasks, void (*fn)(void* ctx, int64_t task) noexcept nogil,
                           void* ctx) noexcept nogil
    enum:
        FUSED_VERSION, FUSED_MAX_INPUTS, FUSED_MAX_CONSTANTS, FUSED_MAX_STEPS, FUSED_MAX_REGISTERS
        FUSED_REGISTER, FUSED_CONSTANT, FUSED_RESULT
    bint fused_supports(int opcode, int type, int result)
    void fused_init(int isa)
    int vm_isa_detect()
    int fused_door(void* self, const Value* args, int32_t n_args, Value* ret)
    const DirectEntry* fused_direct


cdef void* _scratch(size_t nbytes) noexcept nogil:
    return workspace(SLOT_OTHER, nbytes)


def opcodes() -> dict[str, tuple[int, str, int]]:
    """Opcode, kind ("unary", "binary", "where", "cast") and number of parameters of each operator, by name."""
    kinds = ("unary", "binary", "where", "cast")
    return {(<bytes>fused_ops[i].name).decode(): (i, kinds[fused_ops[i].kind], fused_ops[i].n_params)
            for i in range(FUSED_OPS)}


def supports(int opcode, int type, int result=-1) -> bool:
    """Whether a step of this opcode may have operands of element type `type` (and, a cast, make `result`)."""
    return fused_supports(opcode, type, result)


def select_isa(level=None) -> int:
    """Use the tiles of instruction set `level` (0 base, 1 x86-64-v3, 2 x86-64-v4), capped by the CPU; None: the best.

    Returns the level in use. For tests and benchmarks; not safe while kernels run.
    """
    cdef int best = vm_isa_detect()
    cdef int isa = best if level is None else max(0, min(best, level))
    fused_init(isa)
    return isa


# Element types by their number.
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16",
          "float32", "float64")
VERSION = FUSED_VERSION
MAX_INPUTS = FUSED_MAX_INPUTS
MAX_CONSTANTS = FUSED_MAX_CONSTANTS
MAX_STEPS = FUSED_MAX_STEPS
MAX_REGISTERS = FUSED_MAX_REGISTERS
FIRST_REGISTER = FUSED_REGISTER  # operand codes
FIRST_CONSTANT = FUSED_CONSTANT
RESULT = FUSED_RESULT

cdef KernelEntry[1] _table
_table[0].name = "kernel.fused_elementwise"
_table[0].fn = fused_door
_table[0].ns_per_byte = 0.1


cdef const KernelEntry* kernel_table(int* n) noexcept:
    n[0] = 1
    return _table


cdef const DirectEntry* direct_table() noexcept:
    return fused_direct


args_bind(fail)
fused_unary = unary_table()
fused_binary = binary_table()
fused_where = where_table()
fused_cast = cast_table()
fused_workspace = _scratch
fused_threads = thread_count
fused_parallel = parallel_for
select_isa()
