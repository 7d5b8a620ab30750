# cython: boundscheck=False
"""The load-time verifier: proves every fact that the dispatch loop takes for granted.

Rules of the function table: function-kind, function-name, function-name-unique, packed-fields, function-range,
function-args, register-limit, native-registers, param-names, function-overlap, orphan-code. Of the pool and the rest:
constant-kind, memory-scope, debug-info.

Rules of the code: instr-offset (instructions follow each other without gap or overlap, from the first word to the
last), opcode, truncated, call-args, callee-index, callee-arity, dst-register, arg-kind, arg-register, arg-constant,
arg-function, ret-register, if-register, if-offset, goto-offset, jump-target (an instruction of the same function),
fall-through, undefined-register (a register is written on every path before it is read), flow-limit, code-size (at most
2**30 - 1 instructions).

Cost: one pass over the words, and for functions with jumps a data-flow analysis. That one is bounded: a program whose
analysis would need more than MAX_FLOW_WORK steps is refused (rule flow-limit); compiled models stay far below it.
Memory is linear in the size of the code. Steps are counted over the whole executable.

Code that no path reaches must be well-formed all the same; only undefined-register does not apply to it.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from vmcore.isa cimport (
    CALL_WORDS,
    GOTO_WORDS,
    IF_WORDS,
    ISA_MAX_ARGS,
    ISA_MAX_REGISTERS,
    ISA_PACKED_NUM_ARGS,
    ISA_VM_REGISTER,
    ISA_VOID_REGISTER,
    RET_WORDS,
    ArgKind,
    FunctionKind,
    Opcode,
    Words,
    isa_arg_kind,
    isa_arg_value,
)
from vmcore.memory cimport MEMORY_SCRATCH, memory_alloc, memory_calloc, memory_free

import numpy as np

from vmcore.status import errors
from vmcore.types import DataType, Shape

cdef enum:
    MAX_INSTRUCTIONS = (1 << 30) - 1
    FLOW_WORK_LIMIT = 1 << 28

MAX_FLOW_WORK = FLOW_WORK_LIMIT

cdef enum CodeRule:
    RULE_INSTR_OFFSET
    RULE_OPCODE
    RULE_TRUNCATED
    RULE_CALL_ARGS
    RULE_CALLEE_INDEX
    RULE_CALLEE_ARITY
    RULE_DST_REGISTER
    RULE_ARG_KIND
    RULE_ARG_REGISTER
    RULE_ARG_CONSTANT
    RULE_ARG_FUNCTION
    RULE_RET_REGISTER
    RULE_IF_REGISTER
    RULE_IF_OFFSET
    RULE_GOTO_OFFSET
    RULE_JUMP_TARGET
    RULE_FALL_THROUGH
    RULE_UNDEFINED_REGISTER
    RULE_FLOW_LIMIT
    RULE_CODE_SIZE

_CODE_RULES = (  # in the order of CodeRule: name, message with both facts
    ("instr-offset", "the instruction is said to start at word {found}, but the one before it ends at {expected}"),
    ("opcode", "opcode {found} is not in 1..{expected}"),
    ("truncated", "the instruction needs {found} words, but {expected} are left"),
    ("call-args", "a call with {found} arguments; a call has 0..{expected}"),
    ("callee-index", "callee {found}, but the function table has {expected} entries"),
    ("callee-arity", "a call with {found} arguments of a function that takes {expected}"),
    ("dst-register", "result register {found}, but the frame has {expected} registers"),
    ("arg-kind", "operand kind {found} is not in 0..{expected}"),
    ("arg-register", "argument register {found}, but the frame has {expected} registers"),
    ("arg-constant", "constant {found}, but the pool has {expected}"),
    ("arg-function", "function {found}, but the function table has {expected} entries"),
    ("ret-register", "returned register {found}, but the frame has {expected} registers"),
    ("if-register", "condition register {found}, but the frame has {expected} registers"),
    ("if-offset", "the offset of an If is {found}; it must be greater than {expected}"),
    ("goto-offset", "the offset of a Goto is {found}: it jumps to itself"),
    ("jump-target", "a jump to instruction {found}, but the function's instructions are {start}..{expected}"),
    ("fall-through", "the last instruction has opcode {found}: it can run past the end of the function"),
    ("undefined-register", "register {found} is read, but a path from the start of the function does not write it"),
    ("flow-limit", "the control flow needs more than {expected} steps to analyse"),
    ("code-size", "{found} instructions; the limit is {expected}"),
)


cdef int fail_code(
    CodeFailure* f, int rule, int64_t function, int64_t pc, int64_t found, int64_t expected
) noexcept nogil:
    f.rule, f.function, f.pc, f.found, f.expected = rule, function, pc, found, expected
    return -1


# ---- structure: the words are a sequence of whole instructions

cdef int check_structure(
    const int64_t* offsets, int64_t n_instr, const int64_t* data, int64_t n_words, CodeFailure* f
) noexcept nogil:
    cdef int64_t pc, at, op, left, size
    cdef int64_t next_offset = 0
    if n_instr > MAX_INSTRUCTIONS:
        return fail_code(f, RULE_CODE_SIZE, -1, -1, n_instr, MAX_INSTRUCTIONS)
    for pc in range(n_instr):
        at = offsets[pc]
        if at != next_offset:
            return fail_code(f, RULE_INSTR_OFFSET, -1, pc, at, next_offset)
        left = n_words - at
        if left < 1:
            return fail_code(f, RULE_TRUNCATED, -1, pc, 1, left)
        op = data[at]
        if op == Opcode.OP_CALL:
            size = CALL_WORDS
            if left >= CALL_WORDS:
                if not 0 <= data[at + 3] <= ISA_MAX_ARGS:
                    return fail_code(f, RULE_CALL_ARGS, -1, pc, data[at + 3], ISA_MAX_ARGS)
                size += data[at + 3]
        elif op == Opcode.OP_RET:
            size = RET_WORDS
        elif op == Opcode.OP_GOTO:
            size = GOTO_WORDS
        elif op == Opcode.OP_IF:
            size = IF_WORDS
        else:
            return fail_code(f, RULE_OPCODE, -1, pc, op, Opcode.OP_IF)
        if size > left:
            return fail_code(f, RULE_TRUNCATED, -1, pc, size, left)
        next_offset = at + size
    if next_offset != n_words:
        return fail_code(f, RULE_INSTR_OFFSET, -1, n_instr, n_words, next_offset)
    return 0


# ---- operands: every index in range, every jump inside the function

cdef inline bint is_special(int64_t register) noexcept nogil:
    return register == ISA_VOID_REGISTER or register == ISA_VM_REGISTER


cdef int check_call(
    const int64_t* words, int64_t pc, int64_t index, int64_t regs, const FunctionRow* functions, int64_t n_functions,
    int64_t n_constants, CodeFailure* f,
) noexcept nogil:
    cdef int64_t dst = words[1], callee = words[2], n_args = words[3]
    cdef int64_t i, kind, value
    if not 0 <= callee < n_functions:
        return fail_code(f, RULE_CALLEE_INDEX, index, pc, callee, n_functions)
    if not (0 <= dst < regs or is_special(dst)):
        return fail_code(f, RULE_DST_REGISTER, index, pc, dst, regs)
    if functions[callee].kind != FunctionKind.KIND_PACKED and functions[callee].num_args != n_args:
        return fail_code(f, RULE_CALLEE_ARITY, index, pc, n_args, functions[callee].num_args)
    for i in range(CALL_WORDS, CALL_WORDS + n_args):
        kind, value = isa_arg_kind(words[i]), isa_arg_value(words[i])
        if kind == ArgKind.ARG_REGISTER:
            if not (0 <= value < regs or is_special(value)):
                return fail_code(f, RULE_ARG_REGISTER, index, pc, value, regs)
        elif kind == ArgKind.ARG_CONSTANT:
            if not 0 <= value < n_constants:
                return fail_code(f, RULE_ARG_CONSTANT, index, pc, value, n_constants)
        elif kind == ArgKind.ARG_FUNCTION:
            if not 0 <= value < n_functions:
                return fail_code(f, RULE_ARG_FUNCTION, index, pc, value, n_functions)
        elif kind != ArgKind.ARG_IMMEDIATE:
            return fail_code(f, RULE_ARG_KIND, index, pc, kind, ArgKind.ARG_FUNCTION)
    return 0


cdef int check_operands(
    const int64_t* offsets, const int64_t* data, const FunctionRow* functions, int64_t n_functions, int64_t index,
    int64_t n_constants, bint* one_block, CodeFailure* f,
) noexcept nogil:
    cdef FunctionRow row = functions[index]
    cdef int64_t pc, op, offset, last, target
    cdef const int64_t* words
    one_block[0] = True
    for pc in range(row.start_instr, row.end_instr):
        words = data + offsets[pc]
        op = words[0]
        if op == Opcode.OP_CALL:
            if check_call(words, pc, index, row.register_file_size, functions, n_functions, n_constants, f) != 0:
                return -1
            continue
        if op == Opcode.OP_RET:
            if not (0 <= words[1] < row.register_file_size or is_special(words[1])):
                return fail_code(f, RULE_RET_REGISTER, index, pc, words[1], row.register_file_size)
            if pc != row.end_instr - 1:
                one_block[0] = False
            continue
        if op == Opcode.OP_GOTO:
            offset = words[1]
            if offset == 0:
                return fail_code(f, RULE_GOTO_OFFSET, index, pc, offset, 0)
        else:
            if not 0 <= words[1] < row.register_file_size:
                return fail_code(f, RULE_IF_REGISTER, index, pc, words[1], row.register_file_size)
            offset = words[2]
            if offset <= 1:
                return fail_code(f, RULE_IF_OFFSET, index, pc, offset, 1)
        # Compared before adding: the sum of a hostile offset may overflow.
        if not row.start_instr - pc <= offset < row.end_instr - pc:
            target = <int64_t>(<uint64_t>pc + <uint64_t>offset)
            return fail_code(f, RULE_JUMP_TARGET, index, pc, target, row.end_instr - 1)
        one_block[0] = False
    last = data[offsets[row.end_instr - 1]]
    if last != Opcode.OP_RET and last != Opcode.OP_GOTO:
        return fail_code(f, RULE_FALL_THROUGH, index, row.end_instr - 1, last, 0)
    return 0


# ---- definition before use
#
# A register is a candidate if some block reads it before writing it. From each such read a walk goes backwards through
# the predecessors, stopping at blocks that write the register; if it arrives at the entry, a path there writes nothing.
# The cost is that of the live ranges across blocks: next to nothing for straight-line code.

ctypedef struct Mention:  # a block writes a candidate, or reads it before writing it
    int32_t block
    int32_t candidate

ctypedef struct Flow:
    int32_t* block_of        # [n_instr] block of each instruction, per function; leaders first hold 1
    int32_t* first_pc        # [n_instr + 1] first instruction of each block, relative to the function
    int32_t* written_in      # [registers] stamp of the last block that wrote the register
    int32_t* read_in         # [registers] stamp of the last block that mentioned the register as read before written
    int32_t* candidate_of    # [registers] number of the candidate, valid where `candidate_stamp` is this function's
    int32_t* candidate_stamp  # [registers]
    int32_t stamp            # of the current block; unique in the executable, so that nothing needs clearing
    int64_t work


cdef inline void successors(
    const int64_t* offsets, const int64_t* data, int64_t last, int64_t start, const int32_t* block_of, int32_t* out,
) noexcept nogil:
    """The blocks that follow instruction `last`; -1 for none."""
    cdef const int64_t* words = data + offsets[last]
    out[0] = out[1] = -1
    if words[0] == Opcode.OP_RET:
        return
    if words[0] == Opcode.OP_GOTO:
        out[0] = block_of[last + words[1] - start]
        return
    out[0] = block_of[last + 1 - start]
    if words[0] == Opcode.OP_IF:
        out[1] = block_of[last + words[2] - start]


cdef int32_t find_blocks(
    const int64_t* offsets, const int64_t* data, int64_t start, int64_t end, bint one_block, Flow* flow
) noexcept nogil:
    """Fills `block_of` and `first_pc`; returns the number of blocks."""
    cdef int64_t pc
    cdef int32_t n_blocks = 0
    cdef const int64_t* words
    memset(flow.block_of, 0, <size_t>(end - start) * sizeof(int32_t))
    if not one_block:
        for pc in range(start, end):
            words = data + offsets[pc]
            if words[0] == Opcode.OP_CALL:
                continue
            if words[0] == Opcode.OP_GOTO:
                flow.block_of[pc + words[1] - start] = 1
            elif words[0] == Opcode.OP_IF:
                flow.block_of[pc + words[2] - start] = 1
            if pc + 1 < end:
                flow.block_of[pc + 1 - start] = 1
    flow.block_of[0] = 1
    for pc in range(end - start):
        if flow.block_of[pc]:
            flow.first_pc[n_blocks] = <int32_t>pc
            n_blocks += 1
        flow.block_of[pc] = n_blocks - 1
    flow.first_pc[n_blocks] = <int32_t>(end - start)
    return n_blocks


cdef inline void note_read(
    int64_t register, int64_t num_args, int64_t regs, int32_t block, int32_t function_stamp, Flow* flow,
    Mention* reads, int64_t* n_reads, int32_t* n_candidates,
) noexcept nogil:
    if register < num_args or register >= regs or flow.written_in[register] == flow.stamp:
        return
    if flow.read_in[register] == flow.stamp:
        return
    flow.read_in[register] = flow.stamp
    if flow.candidate_stamp[register] != function_stamp:
        flow.candidate_stamp[register] = function_stamp
        flow.candidate_of[register] = n_candidates[0]
        n_candidates[0] += 1
    reads[n_reads[0]].block = block
    reads[n_reads[0]].candidate = flow.candidate_of[register]
    n_reads[0] += 1


cdef void sort_by_candidate(
    const Mention* mentions, int64_t n, int64_t* starts, int64_t n_candidates, int32_t* blocks
) noexcept nogil:
    """Counting sort: the blocks of candidate c become blocks[starts[c] : starts[c + 1]], in their order.

    `starts` has n_candidates + 2 entries.
    """
    cdef int64_t i, c
    memset(starts, 0, <size_t>(n_candidates + 2) * sizeof(int64_t))
    for i in range(n):
        starts[mentions[i].candidate + 2] += 1
    for c in range(2, n_candidates + 2):
        starts[c] += starts[c - 1]
    for i in range(n):
        c = mentions[i].candidate + 1
        blocks[starts[c]] = mentions[i].block
        starts[c] += 1


cdef void find_predecessors(
    const int64_t* offsets, const int64_t* data, int64_t start, int32_t n_blocks, const Flow* flow,
    int32_t* starts, int32_t* predecessors,
) noexcept nogil:
    """Those of block b become predecessors[starts[b] : starts[b + 1]]; `starts` has n_blocks + 2 entries."""
    cdef int32_t block
    cdef int32_t[2] next_blocks
    cdef int k
    memset(starts, 0, <size_t>(n_blocks + 2) * sizeof(int32_t))
    for block in range(n_blocks):
        successors(offsets, data, start + flow.first_pc[block + 1] - 1, start, flow.block_of, next_blocks)
        for k in range(2):
            if next_blocks[k] >= 0:
                starts[next_blocks[k] + 2] += 1
    for block in range(2, n_blocks + 2):
        starts[block] += starts[block - 1]
    for block in range(n_blocks):
        successors(offsets, data, start + flow.first_pc[block + 1] - 1, start, flow.block_of, next_blocks)
        for k in range(2):
            if next_blocks[k] >= 0:
                predecessors[starts[next_blocks[k] + 1]] = block
                starts[next_blocks[k] + 1] += 1


cdef int report_undefined(
    const int64_t* offsets, const int64_t* data, int64_t start, int64_t index, int32_t block, int32_t candidate,
    int32_t function_stamp, const Flow* flow, CodeFailure* f,
) noexcept nogil:
    """Finds the first read of the candidate in a block that reads it before writing it."""
    cdef int64_t pc, i, register, first, n_words
    cdef const int64_t* words
    for pc in range(start + flow.first_pc[block], start + flow.first_pc[block + 1]):
        words = data + offsets[pc]
        if words[0] == Opcode.OP_GOTO:
            continue
        first, n_words = 1, 2
        if words[0] == Opcode.OP_CALL:
            first, n_words = CALL_WORDS, CALL_WORDS + words[3]
        for i in range(first, n_words):
            register = words[i]
            if words[0] == Opcode.OP_CALL:
                if isa_arg_kind(words[i]) != ArgKind.ARG_REGISTER:
                    continue
                register = isa_arg_value(words[i])
            if register < ISA_VOID_REGISTER and flow.candidate_stamp[register] == function_stamp \
                    and flow.candidate_of[register] == candidate:
                return fail_code(f, RULE_UNDEFINED_REGISTER, index, pc, register, 0)
    return fail_code(f, RULE_UNDEFINED_REGISTER, index, start + flow.first_pc[block], -1, 0)


cdef int walk_back(
    const int32_t* predecessor_starts, const int32_t* predecessors, int32_t n_candidates,
    const int32_t* reads, const int64_t* read_starts, const int32_t* writes, const int64_t* write_starts,
    int32_t* visited, int32_t* written, int32_t* stack, int64_t* work, int32_t* bad_block, int32_t* bad_candidate,
) noexcept nogil:
    """0; 1 with the block and candidate of an undefined read; 2 if the analysis takes too many steps.

    `visited` and `written` hold per block the stamp of the last candidate and start as zeros.
    """
    cdef int32_t candidate, stamp, block, predecessor
    cdef int64_t i, k, depth
    for candidate in range(n_candidates):
        stamp = candidate + 1
        for i in range(write_starts[candidate], write_starts[candidate + 1]):
            written[writes[i]] = stamp
        for i in range(read_starts[candidate], read_starts[candidate + 1]):
            if visited[reads[i]] == stamp:
                continue
            visited[reads[i]] = stamp
            stack[0], depth = reads[i], 1
            while depth:
                depth -= 1
                block = stack[depth]
                work[0] += 1
                if block == 0:
                    bad_block[0], bad_candidate[0] = reads[i], candidate
                    return 1
                for k in range(predecessor_starts[block], predecessor_starts[block + 1]):
                    predecessor = predecessors[k]
                    if visited[predecessor] != stamp and written[predecessor] != stamp:
                        visited[predecessor] = stamp
                        stack[depth] = predecessor
                        depth += 1
            if work[0] > FLOW_WORK_LIMIT:
                return 2
    return 0


cdef int check_flow(
    const int64_t* offsets, const int64_t* data, const FunctionRow* row, int64_t index, bint one_block, Flow* flow,
    CodeFailure* f,
) noexcept nogil:
    cdef int64_t start = row.start_instr, end = row.end_instr, regs = row.register_file_size
    cdef int32_t function_stamp = <int32_t>(index + 1)
    cdef int32_t n_blocks = find_blocks(offsets, data, start, end, one_block, flow)
    cdef int32_t n_candidates = 0, block
    cdef int32_t bad_block = 0, bad_candidate = 0
    cdef int64_t n_reads = 0, n_writes = 0, pc, i, dst
    cdef int64_t capacity = (offsets[end - 1] - offsets[start]) + 2  # words of the function but the last's: >= mentions
    cdef const int64_t* words
    cdef Mention* mentions
    cdef int64_t* starts
    cdef int32_t* blocks
    cdef int32_t* graph
    cdef int32_t* visited
    cdef int32_t* written
    cdef int32_t* stack
    cdef int32_t* predecessor_starts
    cdef int32_t* predecessors
    cdef int status = -2
    # One buffer: reads from the front; later, writes behind them (a word is a read or a write, never both).
    mentions = <Mention*>memory_alloc(<size_t>capacity * sizeof(Mention), MEMORY_SCRATCH)
    if mentions == NULL:
        return -2
    for block in range(n_blocks):
        flow.stamp += 1
        for pc in range(start + flow.first_pc[block], start + flow.first_pc[block + 1]):
            words = data + offsets[pc]
            if words[0] == Opcode.OP_CALL:
                for i in range(CALL_WORDS, CALL_WORDS + words[3]):
                    if isa_arg_kind(words[i]) == ArgKind.ARG_REGISTER:
                        note_read(isa_arg_value(words[i]), row.num_args, regs, block, function_stamp, flow, mentions,
                                  &n_reads, &n_candidates)
                if words[1] < regs:
                    flow.written_in[words[1]] = flow.stamp
            elif words[0] != Opcode.OP_GOTO:
                note_read(words[1], row.num_args, regs, block, function_stamp, flow, mentions, &n_reads, &n_candidates)
    if n_candidates == 0:
        memory_free(mentions)
        return 0
    # `written_in` now holds the last writing block of each register; stamps from a second range find the first
    # write of each block again.
    for block in range(n_blocks):
        flow.stamp += 1
        for pc in range(start + flow.first_pc[block], start + flow.first_pc[block + 1]):
            words = data + offsets[pc]
            if words[0] != Opcode.OP_CALL:
                continue
            dst = words[1]
            if dst >= regs or flow.written_in[dst] == flow.stamp or flow.candidate_stamp[dst] != function_stamp:
                continue
            flow.written_in[dst] = flow.stamp
            mentions[n_reads + n_writes].block = block
            mentions[n_reads + n_writes].candidate = flow.candidate_of[dst]
            n_writes += 1
    starts = <int64_t*>memory_alloc(<size_t>(2 * (n_candidates + 2)) * sizeof(int64_t), MEMORY_SCRATCH)
    blocks = <int32_t*>memory_alloc(<size_t>(n_reads + n_writes) * sizeof(int32_t), MEMORY_SCRATCH)
    graph = <int32_t*>memory_calloc(<size_t>n_blocks * 6 + 2, sizeof(int32_t), MEMORY_SCRATCH)
    if starts != NULL and blocks != NULL and graph != NULL:
        sort_by_candidate(mentions, n_reads, starts, n_candidates, blocks)
        sort_by_candidate(mentions + n_reads, n_writes, starts + n_candidates + 2, n_candidates, blocks + n_reads)
        visited, written, stack = graph, graph + n_blocks, graph + 2 * n_blocks
        predecessor_starts, predecessors = graph + 3 * n_blocks, graph + 4 * n_blocks + 2
        find_predecessors(offsets, data, start, n_blocks, flow, predecessor_starts, predecessors)
        status = walk_back(
            predecessor_starts, predecessors, n_candidates, blocks, starts, blocks + n_reads,
            starts + n_candidates + 2, visited, written, stack, &flow.work, &bad_block, &bad_candidate,
        )
        if status == 1:
            status = report_undefined(offsets, data, start, index, bad_block, bad_candidate, function_stamp, flow, f)
        elif status == 2:
            status = fail_code(f, RULE_FLOW_LIMIT, index, -1, flow.work, FLOW_WORK_LIMIT)
    memory_free(graph)
    memory_free(blocks)
    memory_free(starts)
    memory_free(mentions)
    return status


cdef int verify_code(
    const int64_t* instr_offset, int64_t n_instr, const int64_t* instr_data, int64_t n_words,
    const FunctionRow* functions, int64_t n_functions, int64_t n_constants, CodeFailure* failure,
) noexcept nogil:
    cdef Flow flow
    cdef int64_t index, max_regs = 0
    cdef bint one_block
    cdef int32_t* memory
    cdef int status = check_structure(instr_offset, n_instr, instr_data, n_words, failure)
    if status != 0:
        return status
    for index in range(n_functions):
        if functions[index].kind == FunctionKind.KIND_VM:
            max_regs = max(max_regs, functions[index].register_file_size)
    memory = <int32_t*>memory_calloc(<size_t>(2 * n_instr + 1 + 4 * max_regs), sizeof(int32_t), MEMORY_SCRATCH)
    if memory == NULL:
        return -2
    flow.block_of = memory
    flow.first_pc = flow.block_of + n_instr
    flow.written_in = flow.first_pc + n_instr + 1
    flow.read_in = flow.written_in + max_regs
    flow.candidate_of = flow.read_in + max_regs
    flow.candidate_stamp = flow.candidate_of + max_regs
    flow.stamp, flow.work = 0, 0
    for index in range(n_functions):
        if functions[index].kind != FunctionKind.KIND_VM:
            continue
        status = check_operands(
            instr_offset, instr_data, functions, n_functions, index, n_constants, &one_block, failure
        )
        if status == 0:
            status = check_flow(instr_offset, instr_data, &functions[index], index, one_block, &flow, failure)
        if status != 0:
            break
    memory_free(memory)
    return status


# ---- the doors

def _fail(str rule, str message, function=None, pc=None):
    where = "" if function is None else f"@{function}"
    if pc is not None:
        where += f"{', ' if where else ''}instruction {pc}"
    message = f"verify: {where + ': ' if where else ''}{message} [{rule}]"
    raise errors.VerifyError(message, rule=rule, function=function, pc=pc)


cdef int check_utf8(str text, str rule, str what, function=None) except -1:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _fail(rule, f"{what} {text!a} is not valid UTF-8", function)
    return 0


cdef int check_row(object info, Py_ssize_t index, FunctionRow* row, int64_t n_instr) except -1:
    """The rules of one table entry by itself; fills `row`."""
    name = info.name
    if not isinstance(name, str) or not name or "\0" in name:
        _fail("function-name", f"the name of function {index} is {name!r}, not a non-empty string without NUL")
    check_utf8(name, "function-name", "the function name")
    try:
        row.kind, row.num_args, row.register_file_size = info.kind, info.num_args, info.register_file_size
        row.start_instr, row.end_instr = info.start_instr, info.end_instr
    except (TypeError, OverflowError):
        _fail("function-range", "a field of the function table is no 64-bit integer", name)
    params = info.param_names
    if row.kind == FunctionKind.KIND_PACKED:
        fields = (row.num_args, row.start_instr, row.end_instr, row.register_file_size, len(params))
        expected = (ISA_PACKED_NUM_ARGS, 0, 0, 0, 0)
        if fields != expected:
            _fail("packed-fields", f"a packed function has the fields {fields}, not {expected}", name)
        return 0
    if row.kind != FunctionKind.KIND_VM and row.kind != FunctionKind.KIND_NATIVE:
        _fail("function-kind", f"kind {row.kind} is not in 0..{<int>FunctionKind.KIND_NATIVE}", name)
    if not 0 <= row.register_file_size <= ISA_MAX_REGISTERS:
        _fail("register-limit", f"{row.register_file_size} registers; the limit is {ISA_MAX_REGISTERS}", name)
    if not 0 <= row.num_args <= min(row.register_file_size, ISA_MAX_ARGS):
        _fail("function-args", f"{row.num_args} arguments, but {row.register_file_size} registers and at most "
              f"{ISA_MAX_ARGS} arguments", name)
    if len(params) != 0 and len(params) != row.num_args:
        _fail("param-names", f"{len(params)} parameter names for {row.num_args} arguments", name)
    for param in params:
        if not isinstance(param, str):
            _fail("param-names", f"parameter name {param!r} is not a string", name)
        check_utf8(param, "param-names", "the parameter name", name)
    if row.kind == FunctionKind.KIND_NATIVE:
        if row.start_instr != 0 or row.end_instr != 0:
            _fail("function-range", f"a compiled function has instructions {row.start_instr}..{row.end_instr}", name)
        if row.register_file_size <= row.num_args:
            _fail("native-registers", f"{row.register_file_size} registers for {row.num_args} arguments and a result",
                  name)
    elif not 0 <= row.start_instr < row.end_instr <= n_instr:
        _fail("function-range", f"instructions {row.start_instr}..{row.end_instr}, but the code has {n_instr}", name)
    return 0


cpdef int verify_parts(
    list functions, Py_ssize_t n_constants, object instr_offset, object instr_data
) except -1:
    cdef Py_ssize_t n_functions = len(functions), index
    cdef Words offsets = Words(instr_offset), words = Words(instr_data)
    cdef int64_t n_instr = offsets.n
    cdef CodeFailure failure
    cdef int status
    cdef FunctionRow* rows
    if n_functions > MAX_INSTRUCTIONS:
        _fail("function-range", f"{n_functions} functions; the limit is {MAX_INSTRUCTIONS}")
    rows = <FunctionRow*>memory_calloc(<size_t>n_functions + 1, sizeof(FunctionRow), MEMORY_SCRATCH)
    if rows == NULL:
        raise errors.AllocationError("verify: function table")
    try:
        names = {}
        for index in range(n_functions):
            check_row(functions[index], index, &rows[index], n_instr)
            name = functions[index].name
            if names.setdefault(name, index) != index:
                _fail("function-name-unique", f"functions {names[name]} and {index} have the same name", name)
        end = 0
        order = []
        for index in range(n_functions):
            if rows[index].kind == FunctionKind.KIND_VM:
                order.append((rows[index].start_instr, index))
        order.sort()
        for _, index in order:
            if rows[index].start_instr < end:
                _fail("function-overlap", f"starts at instruction {rows[index].start_instr}, but the function before "
                      f"it ends at {end}", functions[index].name)
            if rows[index].start_instr > end:
                _fail("orphan-code", f"instructions {end}..{rows[index].start_instr - 1} belong to no function",
                      None, end)
            end = rows[index].end_instr
        if end != n_instr:
            _fail("orphan-code", f"instructions {end}..{n_instr - 1} belong to no function", None, end)
        with nogil:
            status = verify_code(offsets.data, n_instr, words.data, words.n, rows, n_functions, n_constants, &failure)
        if status == -2:
            raise errors.AllocationError("verify: data-flow analysis")
        if status != 0:
            raise_code(functions, rows, n_functions, &failure)
    finally:
        memory_free(rows)
    return 0


cdef int raise_code(list functions, const FunctionRow* rows, Py_ssize_t n_functions, CodeFailure* f) except -1:
    cdef Py_ssize_t index = f.function
    cdef Py_ssize_t i
    if index < 0 and f.pc >= 0:
        for i in range(n_functions):
            if rows[i].kind == FunctionKind.KIND_VM and rows[i].start_instr <= f.pc < rows[i].end_instr:
                index = i
    rule, template = _CODE_RULES[f.rule]
    start = rows[index].start_instr if index >= 0 else 0
    message = template.format(found=f.found, expected=f.expected, start=start)
    _fail(rule, message, functions[index].name if index >= 0 else None, f.pc if f.pc >= 0 else None)


cdef int check_constant(object constant, Py_ssize_t index) except -1:
    if isinstance(constant, np.ndarray):
        if not constant.flags.c_contiguous or not constant.flags.aligned or not constant.dtype.isnative \
                or constant.dtype.kind not in "biufc" or constant.ndim > 64:
            _fail("constant-kind", f"constant {index} is an array of {constant.dtype} that is not compact and native")
    elif isinstance(constant, str):
        check_utf8(constant, "constant-kind", f"constant {index}, the string")
    elif isinstance(constant, bool) or not isinstance(constant, (Shape, int, float, DataType)):
        _fail("constant-kind", f"constant {index} is of type {type(constant).__name__}, which the pool cannot hold")
    elif isinstance(constant, int) and not -(1 << 63) <= constant < (1 << 63):
        _fail("constant-kind", f"constant {index} is {constant}, which is no 64-bit integer")
    return 0


def verify(executable) -> None:
    """Raises VerifyError unless the executable keeps every rule.

    Parameters
    ----------
    executable
        Anything with the attributes of `pyvm.VMExecutable`: functions, constants, instr_offset, instr_data, and
        optionally memory_scopes and debug.
    """
    cdef Py_ssize_t index
    cdef object constants = executable.constants
    instr_offset = np.ascontiguousarray(executable.instr_offset, dtype=np.int64)
    instr_data = np.ascontiguousarray(executable.instr_data, dtype=np.int64)
    for name, array in (("instr_offset", instr_offset), ("instr_data", instr_data)):
        if array.ndim != 1:
            _fail("instr-offset", f"{name} has {array.ndim} dimensions, not 1")
    for index in range(len(constants)):
        check_constant(constants[index], index)
    for key, scope in getattr(executable, "memory_scopes", {}).items():
        if not isinstance(key, int) or not isinstance(scope, str):
            _fail("memory-scope", f"the memory scope of constant {key!r} is {scope!r}, not a string")
        check_utf8(scope, "memory-scope", "the memory scope")
    debug = getattr(executable, "debug", ())
    if len(debug) not in (0, len(instr_offset)):
        _fail("debug-info", f"{len(debug)} entries for {len(instr_offset)} instructions")
    verify_parts(list(executable.functions), len(constants), instr_offset, instr_data)
