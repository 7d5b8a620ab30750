"""Decoding: instruction words to a Program that the loop runs without any further check.

What the loop relies on is proved by `vmcore.verify` before; what depends on data (kinds of values, sizes) is checked
by the loop and the builtins where it happens.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy

from vmcore.blocks cimport block_alloc, blocks_free
from vmcore.builtins.table cimport builtin_allocates, builtin_opcode
from vmcore.builtins.tensors cimport dtype_is_storable
from vmcore.clears cimport MAX_FLOW_WORK, list_clears
from vmcore.isa cimport (
    ARG_CONSTANT, ARG_IMMEDIATE, ARG_REGISTER, CALL_WORDS, ISA_VM_REGISTER, ISA_VOID_REGISTER, OP_CALL, OP_GOTO,
    OP_RET, Words, isa_arg_kind, isa_arg_value,
)
from vmcore.library cimport Library
from vmcore.memory cimport MEMORY_PROGRAM, memory_calloc, memory_free
from vmcore.objects cimport ShapeObj, tensor_new, tensor_set_shape, to_value, value_str
from vmcore.registry cimport registry_get
from vmcore.storage cimport Allocator, allocator_is_pooled, allocator_new, allocator_release
from vmcore.value cimport (
    OBJ_DELETE_BOTH, OBJ_READONLY, TENSOR_INLINE_NDIM, VT_CLOSURE, VT_DTYPE, VT_FUNCTION, VT_OPAQUE_PTR, VT_SHAPE,
    VT_TENSOR, DirectEntry, VmDataType, dtype_bytes, object_init, object_release, object_retain, value_clear,
    value_copy, value_dtype, value_ptr, value_set, value_type,
)

from vmcore.status import errors

cdef extern from "vmcore/foreign.h" nogil:
    int value_align(Value* v, int depth)

cdef enum:
    MAX_SITE_ARGS = 24  # kernels with more operands get no memory of their own
cdef int64_t SMALL_STORAGE = 1 << 16     # bytes; beyond, the lock of the allocator is nothing next to the work
cdef int64_t MAX_KEPT_STORAGES = 64      # of one context, so at most 4 MiB


# ---- life of a program -----------------------------------------------------------------------------------------------

cdef void program_delete(void* self, int how) noexcept nogil:
    cdef Program* program = <Program*>self
    cdef int32_t i
    if how != OBJ_DELETE_BOTH:
        return
    if program.release != NULL:
        program.release(program)
    if program.literals != NULL:
        for i in range(program.n_literals):
            if value_type(&program.literals[i]) != VT_CLOSURE:  # a marker, not a reference
                value_clear(&program.literals[i])
    if program.funcs != NULL:
        for i in range(program.n_funcs):
            if program.funcs[i].packed != NULL:
                object_release(program.funcs[i].packed)
    blocks_free(program.sites)
    blocks_free(program.hooked_sites)
    memory_free(program.literals)
    memory_free(program.funcs)
    memory_free(program.code)
    memory_free(program.hooked_code)
    if program.allocator != NULL:
        allocator_release(<Allocator*>program.allocator)
    memory_free(program)


cdef Program* decode(
    list functions, list constants, object instr_offset, object instr_data, tuple libraries, bint pooled
) except NULL:
    cdef Words offsets = Words(instr_offset), words = Words(instr_data)
    cdef Program* program = <Program*>memory_calloc(1, sizeof(Program), MEMORY_PROGRAM)
    if program == NULL:
        raise errors.AllocationError("decode: no memory for a program")
    object_init(&program.head, 0, program_delete)
    try:
        program.allocator = allocator_new(pooled)
        program.funcs = <VmFunc*>memory_calloc(len(functions) + 1, sizeof(VmFunc), MEMORY_PROGRAM)
        program.code = <Insn*>memory_calloc(offsets.n + 1, sizeof(Insn), MEMORY_PROGRAM)
        if program.allocator == NULL or program.funcs == NULL or program.code == NULL:
            raise errors.AllocationError(f"decode: no memory for {offsets.n} instructions")
        program.n_code = offsets.n
        link(program, functions, libraries)
        decode_code(program, constants, offsets.data, words.data, program.code)
    except BaseException:
        object_release(program)
        raise
    return program


cdef int decode_hooked(Program* program, object instr_offset, object instr_data) except -1:
    cdef Words offsets = Words(instr_offset), words = Words(instr_data)
    cdef Insn* code
    if program.hooked_code != NULL:
        return 0
    code = <Insn*>memory_calloc(program.n_code + 1, sizeof(Insn), MEMORY_PROGRAM)
    if code == NULL:
        raise errors.AllocationError(f"decode: no memory for {program.n_code} instructions")
    try:
        decode_code(program, None, offsets.data, words.data, code)
    except BaseException:
        memory_free(code)
        raise
    # Shown only when it is complete. Python objects made meanwhile may have let another thread in that did the same.
    if program.hooked_code == NULL:
        program.hooked_code = code
    else:
        memory_free(code)
    return 0


cdef FunctionObj* find_packed(str name, tuple libraries) except? NULL:
    """The function called `name` with one more reference; libraries shadow the registry."""
    cdef FunctionObj* found
    for library in libraries:
        found = (<Library?>library).find(name)
        if found != NULL:
            return found
    return registry_get(name)


cdef PackedFn find_compiled(str name, tuple libraries) except? NULL:
    cdef PackedFn found
    for library in libraries:
        found = (<Library?>library).find_compiled(name)
        if found != NULL:
            return found
    return NULL


cdef int link(Program* program, list functions, tuple libraries) except -1:
    """Fills the function table; every external name must be found, and all that are not are named at once."""
    cdef VmFunc* func
    cdef list missing = []
    for index, info in enumerate(functions):
        func = &program.funcs[index]
        program.n_funcs = index + 1
        func.kind = info.kind
        func.index = index
        func.n_params = info.num_args if info.num_args > 0 else 0
        func.n_regs = info.register_file_size
        func.start = info.start_instr
        func.end = info.end_instr
        if func.kind == FUNC_PACKED:
            func.packed = find_packed(info.name, libraries)
            if func.packed == NULL:
                missing.append(info.name)
        elif func.kind == FUNC_VM:
            func.code = program.code + func.start
        else:
            func.native = find_compiled(info.name, libraries)
            if func.native == NULL:
                raise errors.LinkError(
                    f"link: '{info.name}' is a compiled function, and none of the {len(libraries)} libraries given has "
                    "it; pass the one that does: VirtualMachine(..., libraries=[pyvm.load_library(path)])"
                )
    if missing:
        names = ", ".join(repr(name) for name in missing)
        raise errors.FunctionNotFoundError(
            f"link: {len(missing)} of {len(functions)} functions have no implementation in the registry: {names}"
        )
    return 0


# ---- literals --------------------------------------------------------------------------------------------------------

cdef class Decoding:
    """What one decoding of a program remembers: its literals, deduplicated, and the allocation sites that are idle."""
    cdef Program* program
    cdef dict index_of
    cdef Py_ssize_t capacity
    cdef bint complete         # other threads run on these literals: none may be added
    cdef int64_t flow_budget   # words that the data-flow analysis of the rest of the executable may touch
    # Allocations of one kind (storage register, offset, shape, dtype) whose lives do not overlap share a site, and with
    # it a header that is then in the cache. Lives are guessed by reading the function from start to end: where a jump
    # makes that wrong, the context finds the site's header in use and makes another.
    cdef dict idle_sites       # kind -> sites that no register holds here
    cdef dict site_in          # register offset -> (kind, site)

    cdef int append(self, Value* v) except -1:
        cdef Value* grown
        cdef Py_ssize_t capacity
        cdef int index = self.program.n_literals
        if index >= MAX_LITERALS:
            raise errors.LinkError(f"decode: more than {MAX_LITERALS} constants and immediates")
        if index == self.capacity:
            capacity = 2 * self.capacity + 16
            grown = <Value*>memory_calloc(capacity, sizeof(Value), MEMORY_PROGRAM)
            if grown == NULL:
                raise errors.AllocationError(f"decode: no memory for {capacity} literals")
            if index:
                memcpy(grown, self.program.literals, index * sizeof(Value))
            memory_free(self.program.literals)
            self.program.literals = grown
            self.capacity = capacity
        value_copy(&self.program.literals[index], v)
        self.program.n_literals += 1
        return index

    cdef int add_constants(self, list constants, bint foreign) except -1:
        """`foreign`: compiled functions read the constants, so that tensors must be aligned."""
        cdef Value v
        for constant in constants:
            to_value(constant, &v)
            if value_type(&v) == VT_TENSOR:
                if foreign and value_align(&v, 0) < 0:
                    value_clear(&v)
                    raise errors.AllocationError("decode: no memory for an aligned copy of a constant")
                (<TensorObj*>value_ptr(&v)).head.flags |= OBJ_READONLY
            try:
                self.append(&v)
            except BaseException:
                value_clear(&v)
                raise
        self.program.n_constants = self.program.n_literals
        return 0

    cdef int ends(self, int32_t register) except -1:
        """The value of a register is replaced: its site, if it is a tensor of one, is idle again."""
        held = self.site_in.pop(register, None)
        if held is not None:
            self.idle_sites[held[0]].append(held[1])
        return 0

    cdef int special(self, uint64_t tag, int64_t bits) except -1:
        cdef Value v
        key = (tag, bits)
        known = self.index_of.get(key)
        if known is None:
            if self.complete:
                raise errors.InternalError("decode: the second decoding of a program met a new literal")
            value_set(&v, tag, bits)
            known = self.append(&v)
            if tag == <uint64_t>VT_FUNCTION:
                object_retain(<void*>bits)
            self.index_of[key] = known
        return known


cdef int32_t operand_of(Decoding decoding, Program* program, int64_t word, bint* is_special) except? -2147483648:
    """The decoded operand of a Call argument word."""
    cdef int64_t kind = isa_arg_kind(word), value = isa_arg_value(word)
    if kind == ARG_REGISTER:
        if value == ISA_VOID_REGISTER:
            return literal_operand(decoding.special(0, 0))
        if value == ISA_VM_REGISTER:
            is_special[0] = True
            return literal_operand(decoding.special(VT_OPAQUE_PTR, 0))
        return <int32_t>(value * REGISTER_BYTES)
    if kind == ARG_IMMEDIATE:
        return literal_operand(decoding.special(1, value))
    if kind == ARG_CONSTANT:
        return literal_operand(<int32_t>value)
    if program.funcs[value].kind == FUNC_PACKED:
        return literal_operand(decoding.special(VT_FUNCTION, <int64_t>program.funcs[value].packed))
    is_special[0] = True
    return literal_operand(decoding.special(VT_CLOSURE, value))


# ---- instructions ----------------------------------------------------------------------------------------------------

cdef int decode_code(
    Program* program, list constants, const int64_t* offsets, const int64_t* words, Insn* code
) except -1:
    """Fills `code`: the program's own, or another version of it, hooked, whose literals are then known."""
    cdef bint hooked = code != program.code
    cdef Decoding decoding = Decoding.__new__(Decoding)
    cdef int32_t f
    cdef int64_t pc, end, at
    cdef Insn* insn
    decoding.program = program
    decoding.index_of = {}
    decoding.complete = hooked
    decoding.flow_budget = MAX_FLOW_WORK
    decoding.idle_sites = {}
    decoding.site_in = {}
    if hooked:
        # The literals of the first decoding are complete: the same words give the same literals.
        decoding.capacity = program.n_literals
        rebuild_index(decoding)
    else:
        decoding.add_constants(constants, has_kind(program, FUNC_NATIVE))
    for f in range(program.n_funcs):
        if program.funcs[f].kind != FUNC_VM:
            continue
        end = program.funcs[f].end
        decoding.idle_sites.clear()
        decoding.site_in.clear()
        for pc in range(program.funcs[f].start, end):
            at = offsets[pc]
            insn = &code[pc]
            if words[at] == OP_CALL:
                decode_call(decoding, program, insn, words, at, hooked)
            elif words[at] == OP_RET:
                insn.op = I_RET
                if words[at + 1] >= ISA_VOID_REGISTER:
                    insn.a = literal_operand(decoding.special(0, 0))  # void and the VM itself leave as none
                else:
                    insn.a = <int32_t>(words[at + 1] * REGISTER_BYTES)
            elif words[at] == OP_GOTO:
                insn.op = I_GOTO if words[at + 1] > 0 else I_GOTO_BACK
                insn.b = words[at + 1] * <int64_t>sizeof(Insn)
            else:
                insn.op = I_IF
                insn.a = <int32_t>(words[at + 1] * REGISTER_BYTES)
                insn.b = words[at + 2] * <int64_t>sizeof(Insn)
        list_clears(
            program, &program.funcs[f], code, offsets, words, &decoding.flow_budget,
            &program.hooked_sites if hooked else &program.sites,
        )
    return 0


cdef bint has_kind(Program* program, int kind) noexcept:
    cdef int32_t f
    for f in range(program.n_funcs):
        if program.funcs[f].kind == kind:
            return True
    return False


cdef int rebuild_index(Decoding decoding) except -1:
    cdef int32_t i
    cdef Value* v
    for i in range(decoding.program.n_constants, decoding.program.n_literals):
        v = &decoding.program.literals[i]
        decoding.index_of[(v.tag, v.bits)] = i
    return 0


cdef int decode_call(
    Decoding decoding, Program* program, Insn* insn, const int64_t* words, int64_t at, bint hooked
) except -1:
    cdef VmFunc* callee = &program.funcs[words[at + 2]]
    cdef int32_t n_args = <int32_t>words[at + 3], i
    cdef int32_t dst = -1 if words[at + 1] >= ISA_VOID_REGISTER else <int32_t>(words[at + 1] * REGISTER_BYTES)
    cdef bint is_special = False
    cdef int opcode = I_CALL
    cdef CallSite* site
    cdef char** arena = &program.hooked_sites if hooked else &program.sites
    site = <CallSite*>block_alloc(arena, sizeof(CallSite) + n_args * sizeof(int32_t))
    for i in range(n_args):
        site.args[i] = operand_of(decoding, program, words[at + CALL_WORDS + i], &is_special)
    site.n_args = n_args
    site.dst = dst
    site.func_index = callee.index
    site.callee = callee
    if n_args > program.max_args:
        program.max_args = n_args
    insn.a = dst
    insn.p = site
    if callee.kind == FUNC_PACKED:
        site.fn = callee.packed.fn
        site.self = program.allocator if builtin_allocates(callee.packed.fn) else callee.packed.self
        site.weight = <int32_t>(callee.packed.ns_per_byte * 1024)
    if hooked:
        insn.op = I_CALL_HOOKED
        insn.n = is_special
        return 0
    if callee.kind != FUNC_PACKED:
        decoding.ends(dst)
        insn.op = I_CALL_VM if callee.kind == FUNC_VM else I_CALL_NATIVE
        insn.n = is_special
        return 0
    opcode = builtin_opcode(callee.packed.fn)
    if dst >= 0 and opcode != I_ALLOC_TENSOR:
        decoding.ends(dst)
    if opcode != I_CALL and specialise(decoding, program, insn, site, opcode):
        return 0
    if is_special:
        insn.op = I_CALL_SPECIAL
    elif callee.packed.is_python:
        insn.op = I_CALL_PYTHON
    elif site.weight == 0:
        insn.op = I_CALL
    elif callee.packed.is_library and n_args > 0:
        insn.op = I_CALL_LIBRARY
    else:
        insn.op = I_CALL_KERNEL
        if callee.packed.direct != NULL:
            make_direct(insn, site, callee.packed.direct)
            make_site(program, site, callee.packed.direct)
    return 0


cdef int make_site(Program* program, CallSite* site, const DirectEntry* direct) except -1:
    """Gives a call of a kernel the memory that it asks for."""
    cdef const Value* literals[MAX_SITE_ARGS]
    cdef int64_t nbytes
    cdef int32_t i
    if direct.site_bytes == NULL or site.n_args > MAX_SITE_ARGS:
        return 0
    for i in range(site.n_args):
        literals[i] = NULL if site.args[i] >= 0 else &program.literals[literal_index(site.args[i])]
    nbytes = direct.site_bytes(literals, site.n_args)
    if nbytes > 0:
        site.self = block_alloc(&program.sites, <size_t>nbytes)
    return 0


cdef void make_direct(Insn* insn, CallSite* site, const DirectEntry* direct) noexcept:
    """Uses a kernel's direct entry where the call has its form: an output register, and no use for a result."""
    cdef int32_t n = 2 if direct.direct2 != NULL else 3
    if direct.direct2 == NULL and direct.direct3 == NULL:
        return
    if site.n_args != n or site.args[n - 1] < 0 or insn.a >= 0:
        return
    if n == 2:
        insn.op = I_DIRECT_2
        site.direct2 = direct.direct2
    else:
        insn.op = I_DIRECT_3
        site.direct3 = direct.direct3


cdef bint literal_is(Program* program, int32_t operand, int kind) noexcept:
    return operand < 0 and value_type(&program.literals[literal_index(operand)]) == kind


cdef bint specialise(Decoding decoding, Program* program, Insn* insn, CallSite* site, int opcode) except -1:
    """Rewrites the Call of a builtin into its internal opcode where the operands allow it."""
    cdef int32_t n = site.n_args
    cdef const int32_t* args = site.args
    cdef Value* literals = program.literals
    cdef int64_t nbytes
    if opcode == I_CALL_CLOSURE:
        if n < 2 or not literal_is(program, args[0], VT_OPAQUE_PTR):
            return False
        if literal_is(program, args[1], VT_CLOSURE):
            return specialise_direct_call(program, insn, site)
        insn.op = I_CALL_CLOSURE
        return True
    if site.dst < 0:
        return False
    if opcode == I_NULL and n == 0:
        insn.op = I_NULL
        return True
    if opcode == I_COPY and n == 1:
        if args[0] >= 0:
            insn.op = I_COPY
            insn.b = args[0]
            return True
        if not (literal_is(program, args[0], VT_OPAQUE_PTR) or literal_is(program, args[0], VT_CLOSURE)):
            insn.op = I_LOAD
            insn.b = literal_index(args[0])
            return True
        return False
    if opcode == I_TUPLE_GET and n == 2 and args[0] >= 0 and literal_is(program, args[1], 1):
        if not 0 <= literals[literal_index(args[1])].bits <= 65535:
            return False
        insn.op = I_TUPLE_GET
        insn.n = <uint16_t>literals[literal_index(args[1])].bits
        insn.b = args[0]
        return True
    if opcode == I_ALLOC_STORAGE and 4 <= n <= 5:
        if not (
            literal_is(program, args[0], VT_OPAQUE_PTR) and literal_is(program, args[1], VT_SHAPE)
            and literal_is(program, args[2], 1) and literals[literal_index(args[2])].bits == 0
            and literal_is(program, args[3], VT_DTYPE) and (n == 4 or is_global(program, args[4]))
        ):
            return False
        nbytes = shape_bytes(
            <ShapeObj*>value_ptr(&literals[literal_index(args[1])]), value_dtype(&literals[literal_index(args[3])])
        )
        if nbytes < 0:
            return False  # the builtin raises when it is reached
        insn.op = I_ALLOC_STORAGE
        insn.b = nbytes
        # Small storages only: one that is kept for its site cannot serve another site, as one from the pool can.
        if (
            nbytes <= SMALL_STORAGE and program.n_storage_sites < MAX_KEPT_STORAGES
            and allocator_is_pooled(<Allocator*>program.allocator)
        ):
            program.n_storage_sites += 1
            insn.n = <uint16_t>program.n_storage_sites
        return True
    if opcode == I_ALLOC_TENSOR and 4 <= n <= 5:
        return specialise_alloc_tensor(decoding, program, insn, site)
    return False


cdef bint is_global(Program* program, int32_t operand) noexcept:
    """Whether the operand is a constant, the memory scope that there is."""
    cdef uint64_t size = 0
    cdef const char* text = value_str(&program.literals[literal_index(operand)], &size) if operand < 0 else NULL
    return text != NULL and size == 6 and memcmp(text, "global", 6) == 0


cdef bint specialise_direct_call(Program* program, Insn* insn, CallSite* site) except -1:
    """invoke_closure of a function of this program is a plain call of it; with a wrong arity the builtin raises."""
    cdef VmFunc* callee = &program.funcs[program.literals[literal_index(site.args[1])].bits]
    cdef CallSite* direct
    cdef int32_t i
    cdef bint is_special = False
    if site.n_args - 2 != callee.n_params:
        return False
    direct = <CallSite*>block_alloc(&program.sites, sizeof(CallSite) + callee.n_params * sizeof(int32_t))
    for i in range(callee.n_params):
        direct.args[i] = site.args[i + 2]
        if literal_is(program, direct.args[i], VT_OPAQUE_PTR) or literal_is(program, direct.args[i], VT_CLOSURE):
            is_special = True
    direct.n_args = callee.n_params
    direct.dst = site.dst
    direct.func_index = callee.index
    direct.callee = callee
    insn.p = direct
    insn.n = is_special
    insn.op = I_CALL_VM if callee.kind == FUNC_VM else I_CALL_NATIVE
    return True


cdef int64_t shape_bytes(ShapeObj* shape, VmDataType dtype) noexcept:
    """Bytes of a compact tensor, or -1."""
    cdef TensorObj* t
    cdef int64_t nbytes
    if shape.size > 64:
        return -1
    t = tensor_new(<int32_t>shape.size)
    if t == NULL:
        return -1
    nbytes = tensor_set_shape(t, shape.data, dtype)
    object_release(t)
    return nbytes


cdef bint specialise_alloc_tensor(
    Decoding decoding, Program* program, Insn* insn, CallSite* site
) except -1:
    cdef const int32_t* args = site.args
    cdef Value* literals = program.literals
    cdef ShapeObj* shape
    cdef AllocSite* alloc
    cdef TensorObj* template
    cdef VmDataType dtype
    if not (
        args[0] >= 0 and literal_is(program, args[1], 1) and literal_is(program, args[2], VT_SHAPE)
        and literal_is(program, args[3], VT_DTYPE)
    ):
        return False
    shape = <ShapeObj*>value_ptr(&literals[literal_index(args[2])])
    if shape.size > <uint64_t>TENSOR_INLINE_NDIM or literals[literal_index(args[1])].bits < 0:
        return False
    dtype = value_dtype(&literals[literal_index(args[3])])
    if not dtype_is_storable(dtype) or literals[literal_index(args[1])].bits % dtype_bytes(dtype):
        return False  # the builtin raises when it is reached
    template = tensor_new(<int32_t>shape.size)
    if template == NULL:
        raise errors.AllocationError("decode: no memory for a tensor header")
    if tensor_set_shape(template, shape.data, dtype) < 0:
        object_release(template)
        return False  # the builtin raises when it is reached
    try:
        kind = (args[0], literals[literal_index(args[1])].bits, literals[literal_index(args[3])].bits,
                PyBytes_FromStringAndSize(<const char*>shape.data, shape.size * sizeof(int64_t)))
        idle = decoding.idle_sites.setdefault(kind, [])
        if idle:
            alloc = <AllocSite*><size_t>idle.pop()
        else:
            alloc = <AllocSite*>block_alloc(&program.sites, sizeof(AllocSite))
            memcpy(&alloc.header, template, sizeof(TensorObj))
            alloc.offset = literals[literal_index(args[1])].bits
            alloc.storage = args[0]
            alloc.slot = program.n_tensor_sites
            program.n_tensor_sites += 1
    finally:
        object_release(template)
    decoding.ends(site.dst)
    decoding.site_in[site.dst] = (kind, <size_t>alloc)
    insn.op = I_ALLOC_TENSOR
    insn.p = alloc
    return True
