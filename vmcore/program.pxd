# Cython names for program.h, and the decoder.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from vmcore.value cimport DirectFn2, DirectFn3, FunctionObj, Object, PackedFn, StorageObj, TensorObj, Value

cdef extern from "vmcore/program.h" nogil:
    enum:
        I_RET, I_GOTO, I_GOTO_BACK, I_IF, I_CALL, I_CALL_KERNEL, I_CALL_LIBRARY, I_DIRECT_2, I_DIRECT_3
        I_CALL_SPECIAL, I_CALL_PYTHON
        I_CALL_VM, I_CALL_CLOSURE, I_CALL_NATIVE, I_COPY, I_LOAD, I_NULL, I_TUPLE_GET, I_ALLOC_STORAGE, I_ALLOC_TENSOR
        I_CALL_HOOKED
    enum:
        FUNC_PACKED, FUNC_VM, FUNC_NATIVE
    const uint64_t FUNCTION_MARKER
    enum:
        GIL_AUTO, GIL_RELEASE, GIL_HOLD
    enum:
        MAX_RECURSION, BUDGET_NS, N_ARRAY_HEADERS
    size_t REGISTER_STACK_BYTES

    ctypedef struct TensorCache:
        uint64_t id
        TensorObj** slots
        StorageObj** storages
        int64_t n_slots, n_storages

    ctypedef struct Insn:
        uint16_t op, n
        int32_t a
        int64_t b
        void* p

    ctypedef struct CallSite:
        PackedFn fn
        DirectFn2 direct2
        DirectFn3 direct3
        void* self
        VmFunc* callee
        int32_t weight
        int32_t n_args
        int32_t dst
        int32_t func_index
        int32_t args[1]

    ctypedef struct AllocSite:
        TensorObj header
        int64_t offset
        int64_t slot
        int32_t storage

    ctypedef struct VmFunc:
        Insn* code
        int32_t kind, index
        int32_t n_params, n_regs
        int64_t start, end
        FunctionObj* packed
        PackedFn native

    ctypedef struct Program:
        Object head
        VmFunc* funcs
        Insn* code
        Insn* hooked_code
        Value* literals
        char* sites
        char* hooked_sites
        void* allocator
        PackedFn closure_call
        int32_t n_funcs, n_literals, n_constants, max_args
        int64_t n_code
        int64_t n_tensor_sites, n_storage_sites
        void (*release)(Program* self) noexcept nogil
        void (*reclaim)(Program* self) noexcept nogil
        Context* idle
        int64_t n_contexts
        void* instrument
        void* profiler

    ctypedef struct Frame:
        Insn* pc
        Value* base
        VmFunc* func

    ctypedef struct Context:
        Value* stack
        Value* stack_end
        Frame* frames
        Frame* frames_end
        Frame* frame
        Value* args
        Program* program
        Context* next
        void* thread_state
        int64_t budget_ns
        int32_t gil_mode
        int32_t depth
        int32_t native_depth
        int32_t made_functions
        Value* functions
        Value* top
        int64_t code_shift
        int64_t polled_ns
        TensorCache tensors
        TensorObj* array_headers[8]

    Value* reg_at(Value* base, int64_t offset)
    int64_t MAX_LITERALS
    int32_t literal_operand(int32_t index)
    int32_t literal_index(int32_t operand)
    const Value* operand_at(const Value* base, const Value* literals, int32_t operand)
    TensorObj* tensor_cache_hit(TensorCache* cache, int64_t slot, const Value* v)
    TensorObj* tensor_cache_take(TensorCache* cache, const TensorObj* source, int64_t slot, StorageObj* storage)
    StorageObj* storage_cache_take(TensorCache* cache, int64_t slot)
    void storage_cache_keep(TensorCache* cache, int64_t slot, StorageObj* storage)
    void tensor_cache_clear(TensorCache* cache)
    void value_drop(TensorCache* cache, uint64_t tag, int64_t bits)
    void value_kill(TensorCache* cache, Value* v)
    void value_reset(TensorCache* cache, Value* v)
    void value_put(TensorCache* cache, Value* dst, uint64_t tag, int64_t bits)
    void value_replace(TensorCache* cache, Value* dst, Value* src)


cdef enum:
    REGISTER_BYTES = 16  # operands are byte offsets

# Code arrives as numpy arrays of int64.
cdef Program* decode(
    list functions, list constants, object instr_offset, object instr_data, tuple libraries, bint pooled
) except NULL
"""A program ready to run, with one reference. Names are looked up in `libraries`, in order, then in the registry.

Verifies first; raises VerifyError, LinkError or MemoryError.
"""

cdef int decode_hooked(Program* program, object instr_offset, object instr_data) except -1
"""Fills `hooked_code`, for instruments."""
