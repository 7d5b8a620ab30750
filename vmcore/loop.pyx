# HOT: no Python in run_loop; .ci checks the generated C of this file.
"""The dispatch loop: runs a decoded function until it returns.

What it assumes is proved before: operands, jump targets and arities by `vmcore.verify`, operand kinds of specialised
instructions by `vmcore.program`. What depends on data is checked here, where it happens. Everything above the top of
the register stack is none (program.h), so a call pushes a frame without initialising it.

The GIL is held on entry. It is released once, when the native work ahead is expected to exceed BUDGET_NS, and taken
back for a Python callee; `Context.thread_state` says which.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from vmcore.memory cimport MEMORY_CONTEXT, MEMORY_SCRATCH, memory_alloc, memory_calloc, memory_free
from vmcore.objects cimport (
    ArrayObj, ClosureObj, call_python, closure_new, from_value, value_kind_name,
)
from vmcore.program cimport (
    BUDGET_NS, FUNCTION_MARKER, FUNC_NATIVE, FUNC_PACKED, FUNC_VM, GIL_AUTO, GIL_HOLD, GIL_RELEASE, I_ALLOC_STORAGE,
    I_ALLOC_TENSOR, I_CALL, I_CALL_CLOSURE, I_CALL_HOOKED, I_CALL_KERNEL, I_CALL_LIBRARY, I_CALL_NATIVE,
    I_CALL_PYTHON, I_CALL_SPECIAL, I_CALL_VM, I_COPY, I_DIRECT_2, I_DIRECT_3, I_GOTO, I_GOTO_BACK, I_IF, I_LOAD,
    I_NULL, I_RET, I_TUPLE_GET, MAX_RECURSION, AllocSite, CallSite, Context, Frame, Insn, Program, VmFunc,
    literal_index, operand_at, reg_at, storage_cache_keep, storage_cache_take, tensor_cache_clear, tensor_cache_hit,
    tensor_cache_take, value_drop, value_kill, value_put, value_replace, value_reset,
)
from vmcore.status cimport fail, last_error_kind
from vmcore.storage cimport (
    Allocator, allocator_account, allocator_report, any_limit, storage_alloc, storage_refused,
)
from vmcore.threads cimport WorkAccount, set_work_account, trim_scratch
from vmcore.value cimport (
    ERR_ALLOC, ERR_DEADLINE, ERR_INDEX, ERR_INTERNAL, ERR_PYTHON, ERR_RECURSION, ERR_TYPE, VT_ARRAY, VT_BOOL,
    VT_CLOSURE, VT_FUNCTION, VT_INT, VT_NONE, VT_OPAQUE_PTR, VT_STORAGE, VT_TENSOR, Object, PackedFn, StorageObj,
    TensorObj, Value, fail_format, value_clear, value_copy, value_move, value_ptr, value_release,
    value_retain, value_set, value_set_none, value_set_object, value_type,
)

cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    PyThreadState* PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState*)
    int PyErr_CheckSignals()
    int PyErr_ExceptionMatches(PyObject* kind)
    void PyErr_Clear()
    PyObject* PyExc_Exception

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    #define SIGNAL_INTERVAL_NS 10000000
    /* CLOCK_MONOTONIC; 0: none. initial-exec: read at every entry, and 8 bytes always fit in the static block. */
    static __thread __attribute__((tls_model("initial-exec"))) int64_t vm_deadline_ns;
    /* Loops that are active on this thread's C stack, one inside the other: through callbacks, closures called from
     * native code, and hooked calls. Each costs about a kilobyte of it, at least. A thread may nest MAX_NATIVE_DEPTH;
     * it gets them NATIVE_STEP at a time, each time after a look at how much stack it has: threads may be started with
     * as little as 64 KB. `vm_native_left`: of those it got, the ones not in use. */
    #define MAX_NATIVE_DEPTH 400
    #define NATIVE_STEP 4
    static __thread __attribute__((tls_model("initial-exec"))) int vm_native_left = NATIVE_STEP;
    static __thread int vm_native_got = NATIVE_STEP;
    static __thread int vm_native_no_memory; /* memory ran out under the innermost compiled function */
    static int vm_is_main_thread(void) { return syscall(SYS_gettid) == getpid(); }
    #define CALL_NS 5    /* what a call between VM functions or a turn of a loop is taken to cost, at least */
    #define KERNEL_NS 10
    static inline int64_t vm_tensor_bytes(const Value *v) {
      return v->tag == VT_TENSOR ? ((const TensorObj *)value_ptr(v))->nbytes : 0;
    }
    static inline int64_t vm_bytes(const Value *args, int32_t n) {
      int64_t bytes = 0;
      for (int32_t i = 0; i < n; ++i) bytes += vm_tensor_bytes(args + i);
      return bytes;
    }
    """
    int64_t CALL_NS, KERNEL_NS
    bint likely(bint condition) nogil  # Cython's own macro
    void __builtin_unreachable() nogil
    int64_t SIGNAL_INTERVAL_NS
    int64_t vm_deadline_ns
    int vm_native_left, vm_native_got
    int vm_native_no_memory
    int MAX_NATIVE_DEPTH, NATIVE_STEP
    bint vm_is_main_thread() nogil
    int64_t vm_tensor_bytes(const Value* v) nogil
    int64_t vm_bytes(const Value* args, int32_t n) nogil

cdef extern from "vmcore/stack.h" nogil:
    const int64_t STACK_RESERVE
    int64_t stack_left()

# call_python needs the GIL and reports by return value; the loop holds the GIL when it calls it.
ctypedef int (*PythonCall)(void* callable, const Value* args, int32_t n_args, Value* ret) noexcept nogil


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef int64_t thread_deadline() noexcept nogil:
    """The deadline of this thread's calls on CLOCK_MONOTONIC, in ns; 0 when there is none."""
    return vm_deadline_ns


cdef void set_thread_deadline(int64_t ns) noexcept nogil:
    global vm_deadline_ns
    vm_deadline_ns = ns


# ---- the GIL, signals and deadlines ----------------------------------------------------------------------------------

cdef void hold_gil(Context* cx) noexcept nogil:
    """Takes the GIL back if this invocation released it."""
    if cx.thread_state != NULL:
        PyEval_RestoreThread(<PyThreadState*>cx.thread_state)
        cx.thread_state = NULL
        cx.budget_ns = BUDGET_NS if cx.gil_mode != GIL_RELEASE else 0


cdef inline void drop_gil(Context* cx) noexcept nogil:
    if cx.thread_state == NULL and cx.gil_mode != GIL_HOLD:
        cx.thread_state = PyEval_SaveThread()


cdef int poll(Context* cx) noexcept nogil:
    """Looks for a passed deadline and for signals, and lets other threads have the GIL. Called when the budget is
    spent, which is about every BUDGET_NS, or before a kernel that will take longer."""
    cdef int64_t now = now_ns()
    cx.budget_ns = BUDGET_NS
    if vm_deadline_ns != 0 and now > vm_deadline_ns:
        return fail_format(
            fail, ERR_DEADLINE, "deadline exceeded: the call ran %.3f ms past its deadline",
            (now - vm_deadline_ns) * 1e-6,
        )
    if cx.polled_ns == 0:
        cx.polled_ns = now  # the first poll of an invocation: Python has just looked itself
    elif now - cx.polled_ns > SIGNAL_INTERVAL_NS:
        cx.polled_ns = now
        if vm_is_main_thread():
            hold_gil(cx)
            if PyErr_CheckSignals() != 0:
                return fail(ERR_PYTHON, "")
    drop_gil(cx)  # even a long run of cheap instructions lets other threads in
    return 0


cdef inline bint deadline_passed() noexcept nogil:
    """Asked before every Python callee, whose time the budget does not know."""
    return vm_deadline_ns != 0 and now_ns() > vm_deadline_ns


cdef inline int spend(Context* cx, int64_t ns) noexcept nogil:
    """Takes estimated work from the budget of this invocation; polls when it is used up."""
    cx.budget_ns -= ns
    return poll(cx) if cx.budget_ns <= 0 else 0


cdef inline int64_t kernel_ns(const CallSite* site, int64_t nbytes) noexcept nogil:
    """Estimated run time of a kernel whose tensor arguments have `nbytes` bytes together."""
    return KERNEL_NS + (nbytes >> 10) * site.weight


cdef int invoke(Context* cx, VmFunc* func, Value* out, int gil_mode) noexcept nogil:
    """Runs `func` on the arguments at the bottom of the register stack; out := result. The GIL is held before and
    after."""
    global vm_native_left
    cdef int status
    cdef Program* program = cx.program
    cdef bint is_limited = any_limit  # there is someone to charge, or not to
    cdef WorkAccount* before = NULL
    cx.frame = cx.frames
    if vm_native_left == 0:
        return slow_invoke(cx, func, out, gil_mode)
    vm_native_left -= 1
    cx.gil_mode = gil_mode
    cx.budget_ns = BUDGET_NS
    cx.polled_ns = 0
    cx.code_shift = 0
    if program.instrument != NULL or program.profiler != NULL:
        cx.code_shift = program.hooked_code - program.code
    if gil_mode == GIL_RELEASE:
        drop_gil(cx)
    if vm_deadline_ns != 0:
        cx.budget_ns = 0
    if is_limited:
        before = set_work_account(allocator_account(<Allocator*>program.allocator))
    if func.kind == FUNC_NATIVE:
        status = call_native(cx, func, cx.stack, out)
    else:
        status = run_loop(cx, func, cx.stack, out)
    if is_limited:
        set_work_account(before)
    hold_gil(cx)
    vm_native_left += 1
    return status


cdef int invoke_deeper(Context* cx, VmFunc* func, Value* out, int gil_mode) noexcept nogil:
    cdef int status
    cdef int32_t i
    if native_take() != 0:
        for i in range(func.n_params):
            value_clear(cx.stack + i)
        return -1
    status = invoke(cx, func, out, gil_mode)
    native_give()
    return status


# Through a pointer, so that the C compiler does not inline the rare path into `invoke`.
cdef int (*slow_invoke)(Context*, VmFunc*, Value*, int) noexcept nogil
slow_invoke = invoke_deeper


cdef int native_take() noexcept nogil:
    """NATIVE_STEP more nested loops for this thread, which has none left; `native_give` takes them back."""
    global vm_native_left, vm_native_got
    cdef int64_t left
    if vm_native_got >= MAX_NATIVE_DEPTH:
        return fail_format(
            fail, ERR_RECURSION, "calls that use the C stack (through Python or native code, or while an instrument or "
            "the profiler listens) are nested deeper than %d", MAX_NATIVE_DEPTH,
        )
    left = stack_left()
    if left < STACK_RESERVE:
        return fail_format(
            fail, ERR_RECURSION, "calls that use the C stack (through Python or native code, or while an instrument or "
            "the profiler listens) are nested deeper than %d, and %lld bytes of this thread's stack are left, of which "
            "%lld are kept for what they call", vm_native_got, <long long>left, <long long>STACK_RESERVE,
        )
    vm_native_got += NATIVE_STEP
    vm_native_left += NATIVE_STEP
    return 0


cdef void native_give() noexcept nogil:
    global vm_native_left, vm_native_got
    vm_native_got -= NATIVE_STEP
    vm_native_left -= NATIVE_STEP


# ---- slow kinds of call ----------------------------------------------------------------------------------------------

cdef int patch_special(Context* cx, Value* args, int32_t n) noexcept nogil:
    """Replaces the markers of special operands: the VM by this context, a function of the program by a closure.

    Returns the number of leading arguments that are done, n on success; made closures are released by `drop_special`.
    """
    cdef int32_t i
    cdef ClosureObj* closure
    for i in range(n):
        if value_type(&args[i]) == VT_OPAQUE_PTR and args[i].bits == 0:
            value_set(&args[i], VT_OPAQUE_PTR, <int64_t>cx)
        elif value_type(&args[i]) == VT_CLOSURE and args[i].bits < cx.program.n_funcs and args[i].bits >= 0:
            closure = closure_new(
                <Object*>cx.program, <int32_t>args[i].bits, 0, <PackedFn>cx.program.closure_call
            )
            if closure == NULL:
                fail(ERR_ALLOC, "call: no memory for a closure")
                return i
            value_set_object(&args[i], closure)
    return n


cdef void drop_special(const CallSite* site, const Value* literals, Value* args, int32_t n) noexcept nogil:
    """Releases the closures that `patch_special` made in args[0..n)."""
    cdef int32_t i
    for i in range(n):
        if site.args[i] < 0 and value_type(&literals[literal_index(site.args[i])]) == VT_CLOSURE:
            value_release(&args[i])


cdef int call_special(Context* cx, CallSite* site, Value* base, Value* ret) noexcept nogil:
    """A native call with the VM itself or functions of the program among its arguments."""
    cdef Value* args = cx.args
    cdef const Value* literals = cx.program.literals
    cdef int32_t k, done
    cdef int status = -1
    for k in range(site.n_args):
        value_copy(&args[k], operand_at(base, literals, site.args[k]))
    done = patch_special(cx, args, site.n_args)
    if done == site.n_args:
        status = site.fn(site.self, args, site.n_args, ret)
    drop_special(site, literals, args, done)
    return status


cdef TensorObj* alloc_tensor(Context* cx, AllocSite* site, const Value* source) noexcept nogil:
    """A tensor over a storage, in the header that this context keeps for the site; NULL with an error stored."""
    cdef StorageObj* storage
    cdef TensorObj* t
    if value_type(source) != VT_STORAGE:
        fail_format(fail, ERR_TYPE, "alloc_tensor: argument #0: expected Storage, got %s", value_kind_name(source))
        return NULL
    storage = <StorageObj*>value_ptr(source)
    if site.offset > storage.nbytes or site.header.nbytes > storage.nbytes - site.offset:
        fail_format(
            fail, ERR_INTERNAL, "storage allocation failure, attempted to allocate %lld at offset %lld in region that "
            "is %lld", <long long>site.header.nbytes, <long long>site.offset, <long long>storage.nbytes,
        )
        return NULL
    t = tensor_cache_take(&cx.tensors, &site.header, site.slot, storage)
    if t == NULL:
        fail(ERR_ALLOC, "alloc_tensor: no memory for a tensor header")
        return NULL
    t.dl.data = <char*>storage.data + site.offset
    return t


cdef int tuple_get(const Value* source, int32_t index, Value* ret) noexcept nogil:
    cdef ArrayObj* array
    if value_type(source) != VT_ARRAY:
        return fail_format(
            fail, ERR_TYPE, "tuple_getitem: argument #0: expected tuple, got %s", value_kind_name(source)
        )
    array = <ArrayObj*>value_ptr(source)
    if index >= array.size:
        return fail_format(
            fail, ERR_INDEX, "tuple_getitem: index %d is outside a tuple of %lld", index, <long long>array.size
        )
    value_retain(&array.data[index])
    value_copy(ret, &array.data[index])
    return 0


cdef StorageObj* new_storage(Context* cx, const char* name, int64_t nbytes) noexcept nogil:
    """A storage from the machine's allocator; NULL after an error was stored.

    Before a request is refused, what this context and idle ones keep for their allocation sites is given back, and this
    thread's scratch memory.
    """
    cdef Allocator* allocator = <Allocator*>cx.program.allocator
    cdef StorageObj* storage = storage_alloc(allocator, nbytes)
    if storage == NULL:
        tensor_cache_clear(&cx.tensors)
        if cx.program.reclaim != NULL:
            hold_gil(cx)
            cx.program.reclaim(cx.program)
        if any_limit:
            trim_scratch()
        storage = storage_alloc(allocator, nbytes)
        if storage == NULL:
            storage_refused(allocator, name, nbytes)
    return storage


# ---- compiled functions ----------------------------------------------------------------------------------------------

cdef extern from "vmcore/foreign.h" nogil:
    uintptr_t FOREIGN_ALIGNMENT
    ctypedef struct LibraryFunction:
        PackedFn fn
    int value_align(Value* v, int depth)
    bint value_may_return(const Value* v)
    uintptr_t foreign_argument(const Value* v, Value* out, int64_t* nbytes)
    bint foreign_is_read_only(const Value* v)
    int foreign_result(const LibraryFunction* f, Value* ret, int (*sink)(int kind, const char* message) noexcept nogil)


cdef Value* function_list(Context* cx) noexcept nogil:
    """This context's list of the functions for compiled code: one entry each, after a word for the context."""
    cdef Program* program = cx.program
    cdef int32_t i
    if cx.functions == NULL:
        cx.functions = <Value*>memory_calloc(program.n_funcs + 1, sizeof(Value), MEMORY_CONTEXT)
        if cx.functions == NULL:
            return NULL
        value_set(cx.functions, VT_OPAQUE_PTR, <int64_t>cx)
        for i in range(program.n_funcs):
            if program.funcs[i].packed != NULL:
                value_set(cx.functions + 1 + i, VT_FUNCTION, <int64_t>program.funcs[i].packed)
            else:
                value_set(cx.functions + 1 + i, FUNCTION_MARKER, i)
    return cx.functions + 1


cdef void drop_made_functions(Context* cx) noexcept nogil:
    """Turns the closures that compiled code asked for back into markers: a closure keeps its program alive."""
    cdef int32_t i
    cdef Value* entry
    cx.made_functions = 0
    for i in range(cx.program.n_funcs):
        entry = cx.functions + 1 + i
        if cx.program.funcs[i].packed == NULL and entry.tag != FUNCTION_MARKER:
            value_release(entry)
            value_set(entry, FUNCTION_MARKER, i)


cdef void note_no_memory() noexcept nogil:
    global vm_native_no_memory
    vm_native_no_memory = 1


cdef bint forget_exception(Context* cx) noexcept nogil:
    """Clears the Python exception that is set, but for those that are no Exception: an interrupt is no consequence."""
    hold_gil(cx)
    if not PyErr_ExceptionMatches(PyExc_Exception):
        return False
    PyErr_Clear()
    return True


cdef int run_native(Context* cx, VmFunc* func, Value* params, Value* out) noexcept nogil:
    """The call itself: registers in, result out of the register after the parameters."""
    cdef Value args[4]
    cdef Value result
    cdef Value* functions = function_list(cx)
    cdef int32_t i
    cdef int status, outer
    cdef bint refused
    global vm_native_no_memory
    if functions == NULL:
        return fail(ERR_ALLOC, "call: no memory for a list of functions")
    for i in range(func.n_params):
        if value_align(params + i, 0) < 0:
            return fail(ERR_ALLOC, "call: no memory for an aligned copy of an argument, or a tuple is nested too deep")
    value_set(&args[0], VT_OPAQUE_PTR, <int64_t>cx)
    value_set(&args[1], VT_OPAQUE_PTR, <int64_t>params)
    value_set(&args[2], VT_OPAQUE_PTR, <int64_t>cx.program.literals)
    value_set(&args[3], VT_OPAQUE_PTR, <int64_t>functions)
    value_set_none(&result)
    outer = vm_native_no_memory
    vm_native_no_memory = 0
    status = func.native(NULL, args, 4, &result)
    refused = vm_native_no_memory != 0
    vm_native_no_memory = outer
    if refused and (status == 0 or last_error_kind() != ERR_PYTHON or forget_exception(cx)):
        return fail(ERR_ALLOC, "call: no memory for a value in a compiled function")
    if status != 0:
        return -1
    if not value_may_return(params + func.n_params):
        return fail(ERR_INTERNAL, "the compiled function returned a value that cannot be kept")
    value_move(out, params + func.n_params)
    return 0


cdef int call_native(Context* cx, VmFunc* func, Value* params, Value* out) noexcept nogil:
    """Runs a compiled function on the register list at `params`, which begins with its arguments; out := result.

    The list is none afterwards. The frame record at cx.frame is its own, and stays for the traceback when it fails.
    """
    cdef Frame* record = cx.frame
    cdef Value* top = cx.top
    cdef Value* v
    cdef int status
    global vm_native_left
    if vm_native_left == 0:
        if native_take() == 0:
            status = call_native(cx, func, params, out)
            native_give()
            return status
        status = -1
    elif record >= cx.frames_end or params + func.n_regs > cx.stack_end:
        status = recursion_error()
    else:
        record.pc = NULL
        record.base = params
        record.func = func
        cx.frame = record + 1
        cx.top = params + func.n_regs
        vm_native_left -= 1
        cx.native_depth += 1
        if cx.gil_mode == GIL_AUTO and KERNEL_NS + vm_bytes(params, func.n_params) >= BUDGET_NS:
            drop_gil(cx)
        status = run_native(cx, func, params, out)
        cx.native_depth -= 1
        vm_native_left += 1
        cx.top = top
        if status == 0:
            cx.frame = record
        if cx.native_depth == 0 and cx.made_functions:
            drop_made_functions(cx)
    v = params
    while v < params + func.n_regs and v < cx.stack_end:
        value_clear(v)
        v += 1
    return status


cdef inline int push_args(
    Context* cx, CallSite* site, bint special, const Value* base, Value* params
) noexcept nogil:
    """params := the arguments of a call, owned. `special`: there are markers among them. On failure params are none."""
    cdef const Value* literals = cx.program.literals
    cdef const Value* v
    cdef int32_t k
    for k in range(site.n_args):
        v = operand_at(base, literals, site.args[k])
        if not special:
            value_retain(v)
        value_copy(params + k, v)
    return own_special(cx, site, params) if special else 0


cdef int enter_native(
    Context* cx, VmFunc* func, Insn* pc, CallSite* site, Value* base, Value* ret
) noexcept nogil:
    """A Call of a compiled function from the frame that cx.frame is free for; ret := its result."""
    cdef Frame* mine = cx.frame
    cdef Value* params = base + func.n_regs
    if mine + 1 >= cx.frames_end or params + site.callee.n_regs > cx.stack_end:
        return recursion_error()
    if spend(cx, CALL_NS) != 0:
        return -1
    if push_args(cx, site, pc.n, base, params) != 0:
        return -1
    return finish_native(cx, func, pc, site, base, ret)


cdef int finish_native(Context* cx, VmFunc* func, Insn* pc, CallSite* site, Value* base, Value* ret) noexcept nogil:
    """Calls the compiled function whose arguments lie above the caller's frame."""
    cdef Frame* mine = cx.frame
    mine.pc = pc
    mine.base = base
    mine.func = func
    cx.frame = mine + 1
    if call_native(cx, site.callee, base + func.n_regs, ret) != 0:
        return -1
    cx.frame = mine
    return 0


cdef bint in_native(Context* cx) noexcept nogil:
    return cx.top != NULL


cdef int call_nested(Context* cx, ClosureObj* closure, const Value* args, int32_t n, Value* ret) noexcept nogil:
    """Calls a function of the running program from compiled code (`in_native`), on the same context."""
    cdef VmFunc* callee = &cx.program.funcs[closure.func_index]
    cdef Value* params = cx.top
    cdef int32_t i
    cdef int status
    if n + closure.n_saved != callee.n_params:
        return fail_format(
            fail, ERR_TYPE, "invoke_closure: the function takes %d arguments, got %d and %d captured",
            callee.n_params, n, closure.n_saved,
        )
    if cx.frame >= cx.frames_end or params + callee.n_regs > cx.stack_end:
        return recursion_error()
    if spend(cx, CALL_NS) != 0:
        return -1
    for i in range(n):
        value_retain(&args[i])
        value_copy(params + i, &args[i])
    for i in range(closure.n_saved):
        value_retain(&closure.saved[i])
        value_copy(params + n + i, &closure.saved[i])
    cx.top = NULL
    if callee.kind == FUNC_NATIVE:
        status = call_native(cx, callee, params, ret)
    else:
        status = run_loop(cx, callee, params, ret)
    cx.top = params
    return status


cdef int recursion_error() noexcept nogil:
    return fail_format(
        fail, ERR_RECURSION, "calls are nested deeper than %d, or their registers do not fit in the register stack",
        MAX_RECURSION,
    )


cdef uintptr_t library_arguments(
    const CallSite* site, const Value* base, const Value* literals, Value* args
) noexcept nogil:
    """args := the arguments of a library's kernel; what `foreign_argument` says of them together. A function apart, and
    without their size, so that the loop keeps its variables in registers."""
    cdef uintptr_t look = 0
    cdef int64_t nbytes = 0  # counted by the caller
    cdef int32_t k
    for k in range(site.n_args):
        look |= foreign_argument(operand_at(base, literals, site.args[k]), args + k, &nbytes)
    return look


cdef inline void store_result(Context* cx, Value* base, const Insn* pc, Value* ret) noexcept nogil:
    """Moves the result of a Call into its register; drops it when the Call has none."""
    if pc.a >= 0:
        value_replace(&cx.tensors, reg_at(base, pc.a), ret)
    elif not likely(ret.tag == VT_NONE):
        value_reset(&cx.tensors, ret)


# ---- the loop --------------------------------------------------------------------------------------------------------

cdef int run_loop(Context* cx, VmFunc* func, Value* base, Value* out) noexcept nogil:
    """Runs `func` on the frame at `base`, whose first registers hold its arguments, which it takes over; out := result.

    `out` must be none. Returns 0, or -1 with an error stored; then all frames are unwound and
    cx.frames[entry .. cx.frame) lists where each of them was, outermost first.
    """
    cdef const Value* literals = cx.program.literals
    cdef Value* args = cx.args
    cdef Value* next_base
    cdef Value* v
    cdef Frame* entry = cx.frame
    cdef Frame* fr = entry
    cdef Insn* pc = func.code + cx.code_shift
    cdef CallSite* site
    cdef VmFunc* callee
    cdef ClosureObj* closure
    cdef StorageObj* storage
    cdef AllocSite* alloc
    cdef TensorObj* tensor
    cdef Value ret
    cdef uint64_t tag
    cdef int64_t bits, nbytes
    cdef uintptr_t look
    cdef int32_t k, n
    cdef int32_t* listed
    value_set_none(&ret)
    while True:
        if pc.op == I_CALL:
            site = <CallSite*>pc.p
            n = site.n_args
            for k in range(n):
                value_copy(&args[k], operand_at(base, literals, site.args[k]))
            if site.fn(site.self, args, n, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_CALL_KERNEL:
            site = <CallSite*>pc.p
            n = site.n_args
            nbytes = 0
            for k in range(n):
                v = <Value*>operand_at(base, literals, site.args[k])
                tag = v.tag
                bits = v.bits
                args[k].tag = tag  # two words, as value_copy; here they are also looked at
                args[k].bits = bits
                if tag == VT_TENSOR:
                    nbytes += (<TensorObj*>bits).nbytes
            if spend(cx, kernel_ns(site, nbytes)) != 0:
                break
            if site.fn(site.self, args, n, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_CALL_LIBRARY:
            site = <CallSite*>pc.p
            n = site.n_args
            nbytes = 0
            if likely(n == 3):  # without a loop: two inputs and an output, as most kernels have
                look = foreign_argument(operand_at(base, literals, site.args[0]), args, &nbytes)
                look |= foreign_argument(operand_at(base, literals, site.args[1]), args + 1, &nbytes)
                v = <Value*>operand_at(base, literals, site.args[2])
                look |= foreign_argument(v, args + 2, &nbytes)
            else:
                look = library_arguments(site, base, literals, args)
                nbytes = vm_bytes(args, n)
                v = <Value*>operand_at(base, literals, site.args[n - 1])
            if spend(cx, kernel_ns(site, nbytes)) != 0:
                break
            if likely(look & (FOREIGN_ALIGNMENT - 1) == 0 and not foreign_is_read_only(v)):
                if (<LibraryFunction*>site.self).fn(NULL, args, n, &ret) != 0:
                    break
                if likely(ret.tag == VT_NONE and pc.a < 0):  # as kernels do
                    pc += 1
                    continue
                if foreign_result(<LibraryFunction*>site.self, &ret, fail) != 0:
                    break
            elif site.fn(site.self, args, n, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_COPY:
            v = reg_at(base, pc.b)
            value_retain(v)
            value_put(&cx.tensors, reg_at(base, pc.a), v.tag, v.bits)
            pc += 1
        elif pc.op == I_DIRECT_3:
            site = <CallSite*>pc.p
            v = reg_at(base, site.args[2])
            if spend(cx, kernel_ns(site, 2 * vm_tensor_bytes(v))) != 0:  # the output is the largest operand
                break
            if site.direct3(
                operand_at(base, literals, site.args[0]), operand_at(base, literals, site.args[1]), v
            ) != 0:
                break
            pc += 1
        elif pc.op == I_DIRECT_2:
            site = <CallSite*>pc.p
            v = reg_at(base, site.args[1])
            if spend(cx, kernel_ns(site, 2 * vm_tensor_bytes(v))) != 0:
                break
            if site.direct2(operand_at(base, literals, site.args[0]), v) != 0:
                break
            pc += 1
        elif pc.op == I_NULL:
            value_kill(&cx.tensors, reg_at(base, pc.a))
            pc += 1
        elif pc.op == I_ALLOC_TENSOR:
            alloc = <AllocSite*>pc.p
            v = reg_at(base, alloc.storage)
            tensor = tensor_cache_hit(&cx.tensors, alloc.slot, v)
            if not likely(tensor != NULL):
                tensor = alloc_tensor(cx, alloc, v)
                if tensor == NULL:
                    break
            value_put(&cx.tensors, reg_at(base, pc.a), VT_TENSOR, <int64_t>tensor)
            pc += 1
        elif pc.op == I_IF:
            v = reg_at(base, pc.a)
            if value_type(v) != VT_INT and value_type(v) != VT_BOOL:
                fail_format(fail, ERR_TYPE, "If: the condition must be int or bool, got %s", value_kind_name(v))
                break
            pc += 1
            if not likely(v.bits != 0):
                pc = <Insn*>(<char*>(pc - 1) + (pc - 1).b)
        elif pc.op == I_GOTO:
            pc = <Insn*>(<char*>pc + pc.b)
        elif pc.op == I_GOTO_BACK:
            if spend(cx, CALL_NS) != 0:
                break
            pc = <Insn*>(<char*>pc + pc.b)
        elif pc.op == I_CALL_VM:
            site = <CallSite*>pc.p
            callee = site.callee
            next_base = base + func.n_regs
            if fr == cx.frames_end or next_base + callee.n_regs > cx.stack_end:
                recursion_error()
                break
            if spend(cx, CALL_NS) != 0:
                break
            if push_args(cx, site, pc.n, base, next_base) != 0:
                break
            fr.pc = pc
            fr.base = base
            fr.func = func
            fr += 1
            base = next_base
            func = callee
            pc = callee.code + cx.code_shift
        elif pc.op == I_RET:
            v = <Value*>operand_at(base, literals, pc.a)
            tag = v.tag
            bits = v.bits
            if pc.a >= 0:
                v.tag = VT_NONE
            else:
                value_retain(v)
            listed = <int32_t*>pc.p
            if listed != NULL:
                for k in range(pc.n):
                    value_reset(&cx.tensors, reg_at(base, listed[k]))
            else:
                for k in range(func.n_regs):
                    value_reset(&cx.tensors, base + k)
            if fr == entry:
                cx.frame = entry
                value_set(out, tag, bits)
                return 0
            fr -= 1
            pc = fr.pc
            base = fr.base
            func = fr.func
            if pc.a >= 0:
                value_put(&cx.tensors, reg_at(base, pc.a), tag, bits)
            else:
                value_drop(&cx.tensors, tag, bits)
            pc += 1
        elif pc.op == I_CALL_PYTHON:
            site = <CallSite*>pc.p
            for k in range(site.n_args):
                value_copy(&args[k], operand_at(base, literals, site.args[k]))
            if deadline_passed() and poll(cx) != 0:
                break
            if cx.thread_state != NULL:
                hold_gil(cx)
            if (<PythonCall>call_python)(site.self, args, site.n_args, &ret) != 0:
                fail(ERR_PYTHON, "")
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_LOAD:
            v = <Value*>(literals + pc.b)
            value_retain(v)
            value_put(&cx.tensors, reg_at(base, pc.a), v.tag, v.bits)
            pc += 1
        elif pc.op == I_TUPLE_GET:
            if tuple_get(reg_at(base, pc.b), pc.n, &ret) != 0:
                break
            value_replace(&cx.tensors, reg_at(base, pc.a), &ret)
            pc += 1
        elif pc.op == I_ALLOC_STORAGE:
            storage = storage_cache_take(&cx.tensors, pc.n - 1) if pc.n else NULL
            if storage == NULL:
                storage = new_storage(cx, "alloc_storage", pc.b)
                if storage == NULL:
                    break
                if pc.n:
                    storage_cache_keep(&cx.tensors, pc.n - 1, storage)
            value_put(&cx.tensors, reg_at(base, pc.a), VT_STORAGE, <int64_t>storage)
            pc += 1
        elif pc.op == I_CALL_SPECIAL:
            if call_special(cx, <CallSite*>pc.p, base, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_CALL_CLOSURE:
            site = <CallSite*>pc.p
            v = <Value*>operand_at(base, literals, site.args[1])
            if value_type(v) == VT_CLOSURE and site.args[1] >= 0 \
                    and (<ClosureObj*>value_ptr(v)).machine == <Object*>cx.program \
                    and cx.program.funcs[(<ClosureObj*>value_ptr(v)).func_index].kind == FUNC_VM:
                closure = <ClosureObj*>value_ptr(v)
                callee = &cx.program.funcs[closure.func_index]
                n = site.n_args - 2
                if n + closure.n_saved != callee.n_params:
                    fail_format(
                        fail, ERR_TYPE, "invoke_closure: the function takes %d arguments, got %d and %d captured",
                        callee.n_params, n, closure.n_saved,
                    )
                    break
                next_base = base + func.n_regs
                if fr == cx.frames_end or next_base + callee.n_regs > cx.stack_end:
                    recursion_error()
                    break
                if spend(cx, CALL_NS) != 0:
                    break
                if push_closure_args(cx, site, closure, base, next_base) != 0:
                    break
                fr.pc = pc
                fr.base = base
                fr.func = func
                fr += 1
                base = next_base
                func = callee
                pc = callee.code + cx.code_shift
            else:
                if call_special(cx, site, base, &ret) != 0:
                    break
                store_result(cx, base, pc, &ret)
                pc += 1
        elif pc.op == I_CALL_NATIVE:
            cx.frame = fr
            if enter_native(cx, func, pc, <CallSite*>pc.p, base, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        elif pc.op == I_CALL_HOOKED:
            cx.frame = fr
            if call_hooked(cx, func, pc, base, &ret) != 0:
                break
            store_result(cx, base, pc, &ret)
            pc += 1
        else:
            __builtin_unreachable()  # the decoder writes no other opcode
    unwind(cx, entry, fr, func, pc, base)
    value_clear(&ret)
    return -1


cdef void unwind(Context* cx, Frame* entry, Frame* fr, VmFunc* func, Insn* pc, Value* base) noexcept nogil:
    """Clears all frames from the innermost to `entry` and leaves their positions behind for the traceback."""
    cdef Value* v
    cdef Frame* at
    # A trace that a nested run left behind (hooked calls) lies above: keep it.
    if cx.frame <= fr:
        cx.frame = fr + 1
    fr.pc = pc
    fr.func = func
    fr.base = base
    at = fr
    while True:
        v = at.base
        while v < at.base + at.func.n_regs:
            value_clear(v)
            v += 1
        if at == entry:
            return
        at -= 1


cdef int own_special(Context* cx, CallSite* site, Value* params) noexcept nogil:
    """Makes a callee's parameters, copied but not retained, its own, and replaces the markers among them: the VM, and
    functions of the program. On failure params are none."""
    cdef int32_t k, i
    cdef ClosureObj* closure
    for k in range(site.n_args):
        if site.args[k] >= 0 or (value_type(params + k) != VT_OPAQUE_PTR and value_type(params + k) != VT_CLOSURE):
            value_retain(params + k)
        elif value_type(params + k) == VT_OPAQUE_PTR:
            value_set(params + k, VT_OPAQUE_PTR, <int64_t>cx)
        else:
            closure = closure_new(<Object*>cx.program, <int32_t>params[k].bits, 0, <PackedFn>cx.program.closure_call)
            if closure == NULL:
                for i in range(site.n_args):
                    if i < k:
                        value_clear(params + i)
                    else:
                        value_set_none(params + i)
                return fail(ERR_ALLOC, "call: no memory for a closure")
            value_set_object(params + k, closure)
    return 0


cdef int push_closure_args(
    Context* cx, CallSite* site, ClosureObj* closure, Value* base, Value* params
) noexcept nogil:
    """params := the call's arguments, then the captured values, all owned."""
    cdef const Value* literals = cx.program.literals
    cdef int32_t k, n = site.n_args - 2
    cdef const Value* v
    cdef ClosureObj* made
    for k in range(n):
        v = operand_at(base, literals, site.args[k + 2])
        if value_type(v) == VT_OPAQUE_PTR:
            value_set(params + k, VT_OPAQUE_PTR, <int64_t>cx)
        elif value_type(v) == VT_CLOSURE and site.args[k + 2] < 0:
            made = closure_new(<Object*>cx.program, <int32_t>v.bits, 0, <PackedFn>cx.program.closure_call)
            if made == NULL:
                while k > 0:
                    k -= 1
                    value_clear(params + k)
                return fail(ERR_ALLOC, "call: no memory for a closure")
            value_set_object(params + k, made)
        else:
            value_retain(v)
            value_copy(params + k, v)
    for k in range(closure.n_saved):
        value_retain(&closure.saved[k])
        value_copy(params + n + k, &closure.saved[k])
    return 0


# ---- hooked calls: instruments and the profiler ----------------------------------------------------------------------

cdef int call_hooked(Context* cx, VmFunc* func, Insn* pc, Value* base, Value* ret) noexcept nogil:
    """Any Call while an instrument or a profiler listens: slower, on C recursion, with every step visible."""
    cdef CallSite* site = <CallSite*>pc.p
    cdef const Value* literals = cx.program.literals
    cdef Value* args
    cdef Frame* mine = cx.frame
    cdef int32_t k, done
    cdef int status = -1
    cdef int skip = 0
    cdef int64_t started, ended, allocated
    global vm_native_left
    if vm_native_left == 0:
        if native_take() != 0:
            return -1
        status = call_hooked(cx, func, pc, base, ret)
        native_give()
        return status
    args = <Value*>memory_alloc((site.n_args + 1) * sizeof(Value), MEMORY_SCRATCH)
    if args == NULL:
        return fail(ERR_ALLOC, "call: no memory for arguments")
    for k in range(site.n_args):
        value_copy(&args[k], operand_at(base, literals, site.args[k]))
    done = patch_special(cx, args, site.n_args)
    if done == site.n_args:
        hold_gil(cx)
        skip = (<HookCall>hook_before)(cx, site, args, ret)
        if skip < 0:
            fail(ERR_PYTHON, "")
        else:
            status = 0
            allocated = allocator_report(<Allocator*>cx.program.allocator).total_bytes
            started = now_ns()
            if skip == 0:
                cx.depth += 1
                vm_native_left -= 1
                status = call_plain(cx, func, mine, pc, site, args, base, ret)
                vm_native_left += 1
                cx.depth -= 1
            ended = now_ns()
            if status == 0 and skip == 0:  # nobody hears of the end of a call that was not made
                hold_gil(cx)
                allocated = allocator_report(<Allocator*>cx.program.allocator).total_bytes - allocated
                status = (<AfterCall>hook_after)(
                    cx, site, args, ret, pc - cx.program.hooked_code, started, ended, allocated
                )
                cx.frame = mine
                if status != 0:
                    fail(ERR_PYTHON, "")
    drop_special(site, literals, args, done)
    memory_free(args)
    return status


cdef int call_plain(
    Context* cx, VmFunc* func, Frame* mine, Insn* pc, CallSite* site, Value* args, Value* base, Value* ret
) noexcept nogil:
    cdef Value* params = base + func.n_regs
    cdef int32_t k
    if site.callee.kind == FUNC_PACKED:
        if site.callee.packed.is_python and pc.n == 0:
            if deadline_passed() and poll(cx) != 0:
                return -1
            hold_gil(cx)
            if (<PythonCall>call_python)(site.self, args, site.n_args, ret) != 0:
                return fail(ERR_PYTHON, "")
            return 0
        if site.weight != 0 and spend(cx, kernel_ns(site, vm_bytes(args, site.n_args))) != 0:
            return -1
        return site.fn(site.self, args, site.n_args, ret)
    if mine + 1 >= cx.frames_end or params + site.callee.n_regs > cx.stack_end:
        return recursion_error()
    if spend(cx, CALL_NS) != 0:
        return -1
    for k in range(site.n_args):
        value_retain(&args[k])
        value_copy(params + k, &args[k])
    if site.callee.kind == FUNC_NATIVE:
        cx.frame = mine
        return finish_native(cx, func, pc, site, base, ret)
    mine.pc = pc
    mine.base = base
    mine.func = func
    cx.frame = mine + 1
    return run_loop(cx, site.callee, params, ret)


ctypedef int (*HookCall)(Context* cx, CallSite* site, const Value* args, Value* ret) noexcept nogil
ctypedef int (*AfterCall)(
    Context* cx, CallSite* site, const Value* args, Value* ret, int64_t pc, int64_t started, int64_t ended,
    int64_t allocated,
) noexcept nogil


cdef object visible_args(CallSite* site, const Value* args):
    """The arguments as Python sees them; the VM itself shows as None."""
    cdef int32_t k
    cdef list items = []
    for k in range(site.n_args):
        items.append(None if value_type(&args[k]) == VT_OPAQUE_PTR else from_value(&args[k]))
    return items


cdef int hook_before(Context* cx, CallSite* site, const Value* args, Value* ret) except -1:
    """Tells the instrument; 1 when it asks to skip the call. On failure the exception is set, as in `call_python`."""
    if cx.program.instrument == NULL:
        return 0
    # A reference of our own: another thread may set another instrument meanwhile.
    cdef object instrument = <object>cx.program.instrument
    verdict = instrument(site.func_index, True, None, visible_args(site, args))
    return 1 if verdict else 0


cdef int hook_after(
    Context* cx, CallSite* site, const Value* args, Value* ret, int64_t pc, int64_t started, int64_t ended,
    int64_t allocated,
) except -1:
    cdef object hook  # a reference of our own, as in hook_before
    cdef object result = None if value_type(ret) == VT_OPAQUE_PTR else from_value(ret)
    if cx.program.profiler != NULL:
        hook = <object>cx.program.profiler
        hook(pc, site.func_index, started, ended, cx.depth, allocated, visible_args(site, args), result)
    if cx.program.instrument != NULL:
        hook = <object>cx.program.instrument
        hook(site.func_index, False, result, visible_args(site, args))
    return 0
