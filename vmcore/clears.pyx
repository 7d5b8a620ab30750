"""What a Ret clears.

INVARIANT: everything above the top of the register stack is none, so that a new frame needs no initialisation. Each
Ret therefore clears exactly the registers that may hold something there: a forward may-be-set analysis over basic
blocks.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from vmcore.blocks cimport block_alloc
from vmcore.builtins.table cimport builtin_opcode
from vmcore.isa cimport ISA_VOID_REGISTER, OP_CALL, OP_GOTO, OP_IF, OP_RET
from vmcore.memory cimport MEMORY_SCRATCH, memory_calloc, memory_free
from vmcore.program cimport FUNC_PACKED, I_NULL, REGISTER_BYTES, Insn, Program, VmFunc

cdef extern from *:
    int __builtin_popcountll(uint64_t x) noexcept nogil
    int __builtin_ctzll(uint64_t x) noexcept nogil

cdef int64_t LONG_CLEAR_LIST = 512  # beyond, a Ret clears its whole frame
cdef int64_t MAX_DATAFLOW_WORDS = 1 << 24  # of all sets of one function: beyond, every Ret clears its whole frame


cdef struct Flow:
    Program* program
    char** blocks           # where the lists go
    const int64_t* offsets  # of this function: offsets[0] is its first instruction
    const int64_t* words
    int64_t n_insns, n_words, n_blocks
    int32_t* block_of       # per instruction: 1-based block number at a leader, else 0
    int64_t* leader         # per block: its first instruction
    uint64_t* sets          # per block: registers that may be set on entry; row 0 is the running set
    int32_t* pending        # stack of blocks to visit
    int64_t n_pending
    uint8_t* state          # per block: 1 in the stack, 2 reached


cdef int list_clears(
    Program* program, VmFunc* func, Insn* code, const int64_t* offsets, const int64_t* words, int64_t* budget,
    char** blocks,
) except -1:
    cdef Flow flow
    cdef int64_t visits = 0, i
    cdef int32_t block
    if func.n_regs == 0:
        return 0
    memset(&flow, 0, sizeof(Flow))
    flow.program = program
    flow.blocks = blocks
    flow.offsets = &offsets[func.start]
    flow.words = words
    flow.n_insns = func.end - func.start
    flow.n_words = (func.n_regs + 63) // 64
    code += func.start
    try:
        flow.block_of = <int32_t*>flow_alloc(flow.n_insns + 1, sizeof(int32_t))
        find_blocks(&flow)
        budget[0] -= (flow.n_blocks + 1) * flow.n_words
        if (flow.n_blocks + 1) * flow.n_words > MAX_DATAFLOW_WORDS or budget[0] < 0:
            return 0
        flow.leader = <int64_t*>flow_alloc(flow.n_blocks + 1, sizeof(int64_t))
        flow.sets = <uint64_t*>flow_alloc((flow.n_blocks + 1) * flow.n_words, sizeof(uint64_t))
        flow.pending = <int32_t*>flow_alloc(flow.n_blocks + 1, sizeof(int32_t))
        flow.state = <uint8_t*>flow_alloc(flow.n_blocks + 1, 1)
        for i in range(flow.n_insns):
            if flow.block_of[i]:
                flow.leader[flow.block_of[i]] = i
        for i in range(func.n_params):
            flow.sets[i // 64] |= <uint64_t>1 << (i % 64)
        join(&flow, 0)
        while flow.n_pending > 0:
            flow.n_pending -= 1
            block = flow.pending[flow.n_pending]
            flow.state[block] &= 2
            visits += 1
            budget[0] -= 3 * flow.n_words
            # Adversarial control flow: exactness is not worth the time.
            if visits > 16 * flow.n_blocks + 1024 or budget[0] < 0:
                return 0
            walk_block(&flow, block, NULL)
        for i in range(1, flow.n_blocks + 1):
            if flow.state[i] & 2:
                walk_block(&flow, <int32_t>i, code)
    finally:
        memory_free(flow.block_of)
        memory_free(flow.leader)
        memory_free(flow.sets)
        memory_free(flow.pending)
        memory_free(flow.state)
    return 0


cdef void* flow_alloc(int64_t n, size_t size) except NULL:
    cdef void* memory = memory_calloc(n, size, MEMORY_SCRATCH)
    if memory == NULL:
        raise MemoryError(f"decode: no memory for {n} entries of {size} bytes")
    return memory


cdef void find_blocks(Flow* flow) noexcept nogil:
    """Numbers the basic blocks: leaders are the entry, jump targets, and what follows a jump or a Ret."""
    cdef int64_t i, at
    flow.block_of[0] = 1
    for i in range(flow.n_insns):
        at = flow.offsets[i]
        if flow.words[at] == OP_CALL:
            continue
        flow.block_of[i + 1] = 1  # one past the end has room
        if flow.words[at] == OP_GOTO:
            flow.block_of[i + flow.words[at + 1]] = 1
        elif flow.words[at] == OP_IF:
            flow.block_of[i + flow.words[at + 2]] = 1
    for i in range(flow.n_insns):
        if flow.block_of[i]:
            flow.n_blocks += 1
            flow.block_of[i] = <int32_t>flow.n_blocks


cdef int walk_block(Flow* flow, int32_t block, Insn* code) except -1:
    """Runs the running set through a block; into its successors (`code` NULL), or into the list of its Ret."""
    cdef int64_t i = flow.leader[block], at
    memcpy(flow.sets, flow.sets + block * flow.n_words, flow.n_words * sizeof(uint64_t))
    while True:
        at = flow.offsets[i]
        if flow.words[at] == OP_CALL:
            transfer_call(flow, at)
        elif flow.words[at] == OP_RET:
            if code != NULL:
                write_clears(flow, &code[i])
            return 0
        elif code != NULL:
            return 0
        elif flow.words[at] == OP_GOTO:
            join(flow, i + flow.words[at + 1])
            return 0
        else:
            join(flow, i + flow.words[at + 2])
            join(flow, i + 1)
            return 0
        i += 1
        if flow.block_of[i]:
            if code == NULL:
                join(flow, i)
            return 0


cdef void transfer_call(Flow* flow, int64_t at) noexcept nogil:
    cdef int64_t dst = flow.words[at + 1]
    cdef VmFunc* callee = &flow.program.funcs[flow.words[at + 2]]
    if dst >= ISA_VOID_REGISTER:
        return
    if callee.kind == FUNC_PACKED and flow.words[at + 3] == 0 and builtin_opcode(callee.packed.fn) == I_NULL:
        flow.sets[dst // 64] &= ~(<uint64_t>1 << (dst % 64))
    else:
        flow.sets[dst // 64] |= <uint64_t>1 << (dst % 64)


cdef void join(Flow* flow, int64_t target) noexcept nogil:
    """Joins the running set into the block at `target`; queues it when that changed it or it is new."""
    cdef int32_t block = flow.block_of[target]
    cdef uint64_t* into = flow.sets + block * flow.n_words
    cdef int64_t i
    cdef bint changed = not flow.state[block] & 2
    for i in range(flow.n_words):
        if flow.sets[i] & ~into[i]:
            into[i] |= flow.sets[i]
            changed = True
    if changed and not flow.state[block] & 1:
        flow.state[block] = 3
        flow.pending[flow.n_pending] = block
        flow.n_pending += 1


cdef int write_clears(Flow* flow, Insn* insn) except -1:
    cdef int64_t i, bit, count = 0, result = insn.a // REGISTER_BYTES  # moved out by the Ret itself; < 0: a literal
    cdef uint64_t word
    cdef int32_t* listed
    for i in range(flow.n_words):
        count += __builtin_popcountll(flow.sets[i])
    if count > LONG_CLEAR_LIST:
        return 0
    listed = <int32_t*>block_alloc(flow.blocks, (count + 1) * sizeof(int32_t))
    count = 0
    for i in range(flow.n_words):
        word = flow.sets[i]
        while word:
            bit = i * 64 + __builtin_ctzll(word)
            word &= word - 1
            if bit != result:
                listed[count] = <int32_t>(bit * REGISTER_BYTES)
                count += 1
    insn.n = <uint16_t>count
    insn.p = listed
    return 0
