"""A virtual machine over a Program: contexts, functions callable from Python, closures called from native code.

Entry from Python is the hot path of small models: `BoundFunction` implements the vectorcall protocol, borrows numpy
arrays through headers that its Context keeps, and wraps the result without an intermediate.
"""
cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t

from vmcore.loop cimport invoke, now_ns, set_thread_deadline, thread_deadline
from vmcore.memory cimport (
    MAP_NORESERVE, MEMORY_CONTEXT, MEMORY_PROGRAM, memory_calloc, memory_free, memory_map, memory_unmap,
)
from vmcore.objects cimport (
    ClosureObj, Tensor, borrow_array, forbid_new, from_value, own_array, take_value, tensor_new,
    to_value,
)
from vmcore.program cimport (
    FUNC_PACKED, GIL_AUTO, GIL_HOLD, GIL_RELEASE, MAX_RECURSION, N_ARRAY_HEADERS, REGISTER_STACK_BYTES,
    Context, Frame, Program, VmFunc, decode, decode_hooked, tensor_cache_clear,
)
from vmcore.status cimport fail, raise_status, take_error
from vmcore.storage cimport (
    MAX_CLASSES, AllocatorReport, ClassReport, allocator_classes, allocator_report, allocator_set_limit, allocator_trim,
)
from vmcore.value cimport (
    ERR_ALLOC, ERR_TYPE, OBJ_NEW_COUNTS, TENSOR_INLINE_NDIM, VT_FUNCTION, VT_OPAQUE_PTR, VT_TENSOR, FunctionObj,
    Object, StorageObj,
    TensorObj, Value, fail_format,
    object_release, object_retain, value_clear, value_copy, value_retain, value_set, value_set_none,
    value_type,
)

from _thread import RLock  # what `threading` has; that module is not cheap to import
from types import SimpleNamespace

from vmcore.status import arguments, errors
from vmcore.verify import verify as verify_executable

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    ctypedef enum PyGILState_STATE:
        pass
    object vm_call "PyObject_Call"(object callable, tuple args, dict kwargs)
    PyGILState_STATE PyGILState_Ensure() nogil
    void PyGILState_Release(PyGILState_STATE) nogil
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf)

cdef extern from *:
    """
    /* Cython gives `__call__` a tuple; this makes the type use vectorcall instead. `offset` is that of the function
     * pointer in the object. */
    static void vm_enable_vectorcall(PyObject *type_object, Py_ssize_t offset) {
      PyTypeObject *type = (PyTypeObject *)type_object;
      type->tp_vectorcall_offset = offset;
      type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
      type->tp_call = PyVectorcall_Call;
      PyType_Modified(type);
    }
    static uint64_t vm_new_cache_id(void) {
      static uint64_t last;
      return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    }
    static uint64_t vm_counts(const TensorObj *t) { return __atomic_load_n(&t->head.counts, __ATOMIC_ACQUIRE); }
    """
    void vm_enable_vectorcall(object type_object, Py_ssize_t offset)
    uint64_t vm_new_cache_id() nogil
    uint64_t vm_counts(const TensorObj* t) nogil


# ---- contexts --------------------------------------------------------------------------------------------------------

cdef Context* context_new(Program* program) noexcept nogil:
    """A context for one invocation at a time; NULL after an error was stored.

    The register stack is reserved, not committed: its pages start as zeros, which are none.
    """
    cdef Context* cx = <Context*>memory_calloc(1, sizeof(Context), MEMORY_CONTEXT)
    cdef void* stack
    if cx == NULL:
        fail(ERR_ALLOC, "call: no memory for a context")
        return NULL
    stack = memory_map(REGISTER_STACK_BYTES, MAP_NORESERVE, MEMORY_CONTEXT)
    cx.frames = <Frame*>memory_calloc(MAX_RECURSION + 2, sizeof(Frame), MEMORY_CONTEXT)
    cx.args = <Value*>memory_calloc(program.max_args + 1, sizeof(Value), MEMORY_CONTEXT)
    cx.tensors.slots = <TensorObj**>memory_calloc(program.n_tensor_sites + 1, sizeof(TensorObj*), MEMORY_CONTEXT)
    cx.tensors.storages = <StorageObj**>memory_calloc(program.n_storage_sites + 1, sizeof(StorageObj*), MEMORY_CONTEXT)
    cx.tensors.id = vm_new_cache_id()
    cx.tensors.n_slots = program.n_tensor_sites
    cx.tensors.n_storages = program.n_storage_sites
    if stack == NULL or cx.frames == NULL or cx.args == NULL or cx.tensors.slots == NULL \
            or cx.tensors.storages == NULL:
        if stack != NULL:
            memory_unmap(stack, REGISTER_STACK_BYTES)
        memory_free(cx.frames)
        memory_free(cx.args)
        memory_free(cx.tensors.slots)
        memory_free(cx.tensors.storages)
        memory_free(cx)
        fail_format(fail, ERR_ALLOC, "call: no memory for a register stack of %zu bytes", REGISTER_STACK_BYTES)
        return NULL
    cx.stack = <Value*>stack
    cx.stack_end = <Value*>(<char*>stack + REGISTER_STACK_BYTES)
    cx.frames_end = cx.frames + MAX_RECURSION
    cx.frame = cx.frames
    cx.program = program
    program.n_contexts += 1
    return cx


cdef void context_free(Context* cx) noexcept nogil:
    cdef int i
    cx.program.n_contexts -= 1
    for i in range(N_ARRAY_HEADERS):
        if cx.array_headers[i] != NULL:
            object_release(cx.array_headers[i])
    tensor_cache_clear(&cx.tensors)
    memory_unmap(cx.stack, REGISTER_STACK_BYTES)
    memory_free(cx.frames)
    memory_free(cx.args)
    memory_free(cx.tensors.slots)
    memory_free(cx.functions)
    memory_free(cx.tensors.storages)
    memory_free(cx)


cdef inline Context* context_get(Program* program) noexcept:
    """A context of this program, idle or new. The free list is guarded by the GIL."""
    cdef Context* cx = program.idle
    if cx != NULL:
        program.idle = cx.next
        return cx
    return context_new(program)


cdef inline void context_put(Context* cx) noexcept:
    cx.next = cx.program.idle
    cx.program.idle = cx


cdef void free_idle_contexts(Program* program) noexcept nogil:
    """Needs the GIL, or a program that nobody can run any more."""
    cdef Context* cx
    while program.idle != NULL:
        cx = program.idle
        program.idle = cx.next
        context_free(cx)


cdef void release_contexts(Program* program) noexcept nogil:
    """Frees what the program does not own itself; nobody can run it any more."""
    free_idle_contexts(program)


cdef int closure_call(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """safe_call of a ClosureObj: callable from any thread, with or without the GIL."""
    cdef ClosureObj* closure = <ClosureObj*>self
    cdef Program* program = <Program*>closure.machine
    cdef VmFunc* func = &program.funcs[closure.func_index]
    cdef PyGILState_STATE state
    cdef Context* cx
    cdef int32_t i
    cdef int status = -1
    if n_args + closure.n_saved != func.n_params:
        return fail_format(
            fail, ERR_TYPE, "closure: the function takes %d arguments, got %d and %d captured", func.n_params, n_args,
            closure.n_saved,
        )
    state = PyGILState_Ensure()
    cx = (<Context* (*)(Program*) noexcept nogil>context_get)(program)
    if cx != NULL:
        for i in range(n_args):
            value_retain(&args[i])
            value_copy(cx.stack + i, &args[i])
        for i in range(closure.n_saved):
            value_retain(&closure.saved[i])
            value_copy(cx.stack + n_args + i, &closure.saved[i])
        status = invoke(cx, func, ret, GIL_AUTO)
        if status == 0 and value_type(ret) == VT_OPAQUE_PTR:  # the context of an invocation that is over
            value_set_none(ret)
            status = fail(ERR_TYPE, "closure: the virtual machine (%vm) cannot be a result")
        (<void (*)(Context*) noexcept nogil>context_put)(cx)
    PyGILState_Release(state)
    return status


# ---- ownership -------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    static traverseproc vm_owner_traverse_fields; /* what Cython made of ProgramOwner */
    static void vm_set_traverse(PyObject *type, traverseproc traverse) {
      vm_owner_traverse_fields = ((PyTypeObject *)type)->tp_traverse;
      ((PyTypeObject *)type)->tp_traverse = traverse;
    }
    static uint64_t vm_strong(const Object *o) { return (uint32_t)__atomic_load_n(&o->counts, __ATOMIC_ACQUIRE); }
    """
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    traverseproc vm_owner_traverse_fields
    void vm_set_traverse(object type, traverseproc traverse)
    uint64_t vm_strong(const Object* o) nogil


@cython.final
@cython.no_gc_clear
cdef class ProgramOwner:
    """The one Python object that owns a Program; a machine and its bound functions share it.

    It shows the garbage collector what the program refers to, which a native object cannot: the instrument, the
    profiler, and Python functions that nothing but this program keeps. An instrument or a callback that refers to its
    machine is collected with it. Cleared are the other members of such a cycle, never a program.

    INVARIANT: `program.instrument` and `program.profiler` are borrowed from here. Closures keep a program alive without
    its owner; they run without hooks then.
    """
    cdef Program* program
    cdef object instrument
    cdef object profiler
    cdef PythonCallee* callees  # one per Python function of the program
    cdef int32_t n_callees

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("ProgramOwner: made by a Machine only")

    def __dealloc__(self):
        if self.program != NULL:
            self.program.instrument = NULL
            self.program.profiler = NULL
            object_release(self.program)
        memory_free(self.callees)

    cdef int find_callees(self) except -1:
        """Fills `callees`; the references counted are the function table's and the literals'."""
        cdef Program* program = self.program
        cdef FunctionObj* f
        cdef int32_t i, k, n = 0
        cdef dict place = {}
        for i in range(program.n_funcs):
            f = program.funcs[i].packed
            if f != NULL and f.is_python and <size_t>f not in place:
                place[<size_t>f] = n
                n += 1
        if n == 0:
            return 0
        self.callees = <PythonCallee*>memory_calloc(n, sizeof(PythonCallee), MEMORY_PROGRAM)
        if self.callees == NULL:
            raise errors.AllocationError("machine: no memory for a list of Python functions")
        self.n_callees = n
        for i in range(program.n_funcs):
            f = program.funcs[i].packed
            if f != NULL and f.is_python:
                k = place[<size_t>f]
                self.callees[k].function = f
                self.callees[k].references += 1
        for i in range(program.n_literals):
            if value_type(&program.literals[i]) == VT_FUNCTION:
                k = place.get(<size_t>program.literals[i].bits, -1)
                if k >= 0:
                    self.callees[k].references += 1
        return 0


cdef struct PythonCallee:
    FunctionObj* function  # borrowed from the program
    uint64_t references    # that the program holds


cdef int traverse_owner(PyObject* self, visitproc visit, void* arg) noexcept:
    """tp_traverse of ProgramOwner.

    A Python function is shown when all its references are ours. The collector asks twice and must get the same answer,
    while other threads run without the GIL: only a running invocation of this program could make new references, so
    that nothing is shown while there is one. Its thread keeps the owner alive meanwhile.
    """
    cdef Program* program = (<ProgramOwner><void*>self).program
    cdef PythonCallee* callees = (<ProgramOwner><void*>self).callees
    cdef Context* cx
    cdef int64_t n_idle = 0
    cdef int32_t i
    cdef int status = vm_owner_traverse_fields(self, visit, arg)
    if status != 0 or program == NULL or (<ProgramOwner><void*>self).n_callees == 0:
        return status
    cx = program.idle
    while cx != NULL:
        n_idle += 1
        cx = cx.next
    if n_idle != program.n_contexts or vm_strong(&program.head) != 1:
        return 0
    for i in range((<ProgramOwner><void*>self).n_callees):
        if vm_strong(&callees[i].function.head) == callees[i].references:
            status = visit(<PyObject*>callees[i].function.self, arg)
            if status != 0:
                return status
    return 0


# ---- functions -------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class BoundFunction:
    """One function of a virtual machine; call it with positional or keyword arguments.

    Arguments may be Tensors, numpy arrays (borrowed without a copy when C-contiguous), DLPack objects, ints, floats,
    bools, strings, Shapes, DataTypes, tuples or lists of these, functions, None. Results are Tensors, scalars, Shapes,
    strings, functions, or nested tuples of them.
    """
    cdef void* vectorcall  # first: its offset is registered with the type
    cdef Program* program  # of the owner
    cdef VmFunc* func
    cdef int gil_mode
    cdef ProgramOwner owner
    cdef readonly str name
    cdef readonly tuple param_names
    cdef object describe
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("BoundFunction: take one from a virtual machine, vm[name]")

    def __reduce__(self):
        return self.describe.reduce_function(self.name)

    def __call__(self, *args, **kwargs):
        # Calls go through `vectorcall`; this is what `f.__call__(...)` finds, the slot as it was before.
        return vm_call(self, args, kwargs)

    def __repr__(self):
        return f"<pyvm function {self.name}({', '.join(self.param_names)})>"

    @property
    def __name__(self):
        return self.name


cdef object bound_call(BoundFunction self, PyObject* const* args, size_t nargsf, PyObject* kwnames):
    """vectorcall of a BoundFunction."""
    cdef Py_ssize_t n = PyVectorcall_NARGS(nargsf), i
    cdef VmFunc* func = self.func
    cdef Context* cx
    cdef Value out
    cdef TensorObj* t
    cdef int n_borrowed = 0
    cdef int status
    if kwnames != NULL or n != func.n_params:
        return slow_call(self, args, n, kwnames)
    cx = context_get(self.program)
    if cx == NULL:
        raise_status()
    value_set_none(&out)
    for i in range(n):
        if Py_TYPE_IS_TENSOR(args[i]):
            object_retain((<Tensor>args[i]).obj)
            value_set(cx.stack + i, VT_TENSOR, <int64_t>(<Tensor>args[i]).obj)
            continue
        if n_borrowed < N_ARRAY_HEADERS and cnp.PyArray_CheckExact(<object>args[i]):
            t = cx.array_headers[n_borrowed]
            if t == NULL:
                t = tensor_new(TENSOR_INLINE_NDIM)
                cx.array_headers[n_borrowed] = t
            if t != NULL and borrow_array(<cnp.ndarray>args[i], t):
                object_retain(t)
                value_set(cx.stack + i, VT_TENSOR, <int64_t>t)
                n_borrowed += 1
                continue
        slow_convert(self, cx, args, i)
    status = invoke(cx, func, &out, self.gil_mode)
    if n_borrowed:
        return_headers(cx, args, n)
    if status != 0:
        slow_raise(self, cx)
    context_put(cx)
    return take_value(&out)


cdef extern from *:
    """
    /* Set at import: the Tensor type, compared by identity because it is final. */
    static PyTypeObject *vm_tensor_type;
    static int vm_is_tensor(PyObject *o) { return Py_TYPE(o) == vm_tensor_type; }
    static void vm_set_tensor_type(PyObject *type) { vm_tensor_type = (PyTypeObject *)type; }
    """
    bint Py_TYPE_IS_TENSOR "vm_is_tensor"(PyObject* o)
    void vm_set_tensor_type(object type)


cdef void return_headers(Context* cx, PyObject* const* args, Py_ssize_t n) noexcept:
    """Takes the array headers of a call back; one that escaped (returned, captured) comes to own its array."""
    cdef Py_ssize_t i
    cdef int used = 0
    cdef TensorObj* t
    for i in range(n):
        if used == N_ARRAY_HEADERS or not cnp.PyArray_CheckExact(<object>args[i]):
            continue
        t = cx.array_headers[used]
        if t == NULL or t.dl.data != cnp.PyArray_DATA(<cnp.ndarray>args[i]):
            continue  # this array was converted, not borrowed
        if vm_counts(t) != OBJ_NEW_COUNTS:
            own_array(t, <object>args[i])
            cx.array_headers[used] = NULL
            object_release(t)
        used += 1


cdef int add_note(object error, str note) except -1:
    """Adds a note where that is possible: `error` may be of any class, and what it is counts more than its notes."""
    try:
        BaseException.add_note(error, note)
    except Exception:
        pass
    return 0


cdef int convert_argument(BoundFunction self, Context* cx, PyObject* const* args, Py_ssize_t i) except -1:
    """R[i] := args[i]; on failure the arguments before it are dropped and the context is given back."""
    try:
        return to_value(<object>args[i], cx.stack + i)
    except BaseException as error:
        name = self.param_names[i]
        while i > 0:
            i -= 1
            value_clear(cx.stack + i)
        context_put(cx)
        add_note(error, f"in argument {name!r} of {self.name}")
        raise


cdef object call_by_name(BoundFunction self, PyObject* const* args, Py_ssize_t n, PyObject* kwnames):
    """A call with keywords, or with the wrong number of arguments: orders them by parameter, then calls."""
    cdef Py_ssize_t i
    cdef tuple names = self.param_names
    cdef tuple keywords = () if kwnames == NULL else <tuple>kwnames
    cdef dict given = {}
    if n + len(keywords) != self.func.n_params:
        raise errors.ArgumentTypeError(
            f"{self.name}: expected {self.func.n_params} arguments ({', '.join(names)}), got {n + len(keywords)}"
        )
    for i in range(len(keywords)):
        if keywords[i] not in names:
            raise errors.ArgumentTypeError(
                f"{self.name}: no parameter is called {keywords[i]!r}; they are: {', '.join(names)}"
            )
        given[keywords[i]] = <object>args[n + i]
    ordered = [<object>args[i] for i in range(n)]
    for i in range(n, self.func.n_params):
        if names[i] not in given:
            raise errors.ArgumentTypeError(f"{self.name}: parameter {names[i]!r} is missing or given twice")
        ordered.append(given[names[i]])
    return self(*ordered)


cdef int raise_error(BoundFunction self, Context* cx) except -1:
    """Raises the stored error with the VM traceback, and makes the context usable again."""
    cdef list frames = []
    cdef Frame* at = cx.frames
    try:
        error = take_error()  # runs Python, and so perhaps a signal handler that raises
        while at < cx.frame:
            # A compiled function has no position: pc -1.
            frames.append((at.func.index, at.pc - (cx.program.code + cx.code_shift) if at.pc != NULL else -1))
            at += 1
    finally:
        cx.frame = cx.frames
        cx.depth = 0
        context_put(cx)
    try:
        self.describe(error, frames)
    except Exception as trouble:  # the error counts more than its description
        add_note(error, f"(the VM traceback failed: {type(trouble).__name__})")
    raise error


cdef object make_bound(
    ProgramOwner owner, VmFunc* func, str name, tuple param_names, object describe, int gil_mode
):
    cdef BoundFunction f = BoundFunction.__new__(BoundFunction)
    f.vectorcall = <void*>bound_call
    f.program = owner.program
    f.owner = owner
    f.func = func
    f.name = name
    f.param_names = param_names
    f.describe = describe
    f.gil_mode = gil_mode
    return f


# Through pointers, so that the C compiler does not inline the rare paths into bound_call and slow its entry down.
cdef object (*slow_call)(BoundFunction, PyObject* const*, Py_ssize_t, PyObject*)
cdef int (*slow_convert)(BoundFunction, Context*, PyObject* const*, Py_ssize_t) except -1
cdef int (*slow_raise)(BoundFunction, Context*) except -1
slow_call = call_by_name
slow_convert = convert_argument
slow_raise = raise_error


# ---- machine ---------------------------------------------------------------------------------------------------------

_GIL_MODES = {"auto": GIL_AUTO, "release": GIL_RELEASE, "hold": GIL_HOLD}


cdef object copy_info(object info):
    return SimpleNamespace(
        kind=info.kind,
        name=info.name,
        start_instr=info.start_instr,
        end_instr=info.end_instr,
        num_args=info.num_args,
        register_file_size=info.register_file_size,
        param_names=list(info.param_names),
    )


@cython.no_gc_clear
cdef class Machine:
    """An executable made ready to run: verified, linked and decoded. May be called from many threads at once.

    Parameters
    ----------
    executable : VMExecutable
    describe : callable(error, frames)
        Adds the VM traceback to an exception; frames are (function index, pc) pairs, outermost first. Its method
        reduce_function(name) says how a function of this machine is pickled.
    pooled : bool
        Whether storages are kept for reuse.
    gil : {"auto", "release", "hold"}
        When calls release the GIL: when the work is worth it, at once, or never.
    libraries : sequence of Library
        Where functions are looked up before the registry, and the home of compiled functions.
    memory_limit : int or None
        Bytes that storages and scratch memory of kernels may take from the system.
    """
    cdef Program* program  # of the owner
    cdef ProgramOwner owner
    cdef dict functions
    cdef readonly object executable
    cdef readonly object profile_lock  # held by who profiles
    cdef object describe
    cdef object parts  # what was verified
    cdef int gil_mode
    cdef object __weakref__

    def __cinit__(self, executable, describe, pooled=True, gil="auto", libraries=(), memory_limit=None):
        if type(gil) is not str or gil not in _GIL_MODES:
            gil = arguments.choice("VirtualMachine", "gil", gil, _GIL_MODES)
        # Verified, decoded and decoded again for hooks are copies: an executable can be changed, also by other threads.
        parts = SimpleNamespace(
            functions=[copy_info(info) for info in executable.functions],
            constants=list(executable.constants),
            instr_offset=np.array(executable.instr_offset, np.int64),
            instr_data=np.array(executable.instr_data, np.int64),
            memory_scopes=dict(getattr(executable, "memory_scopes", {})),
            debug=getattr(executable, "debug", ()),
        )
        verify_executable(parts)
        self.owner = ProgramOwner.__new__(ProgramOwner)
        self.owner.program = decode(
            parts.functions, parts.constants, parts.instr_offset, parts.instr_data, tuple(libraries), pooled
        )
        self.program = self.owner.program
        self.owner.find_callees()
        parts.constants = None  # the program has them
        self.parts = parts
        self.profile_lock = RLock()
        self.program.closure_call = closure_call
        self.program.release = release_contexts
        self.program.reclaim = free_idle_contexts
        if memory_limit is not None and allocator_set_limit(self.program.allocator, memory_limit) != 0:
            raise errors.AllocationError("VirtualMachine: no memory for its books")
        self.executable = executable
        self.describe = describe
        self.gil_mode = _GIL_MODES[gil]
        self.functions = {}

    def function(self, name):
        """The function called `name`, the same object every time. Raises FunctionNotFoundError."""
        cdef int32_t i
        if type(name) is not str:
            name = str(arguments.text("VirtualMachine", "the name of a function", name))
        found = self.functions.get(name)
        if found is not None:
            return found
        for i, info in enumerate(self.parts.functions):
            if info.name == name and self.program.funcs[i].kind != FUNC_PACKED:
                names = tuple(info.param_names) or tuple(f"arg{k}" for k in range(info.num_args))
                found = make_bound(self.owner, &self.program.funcs[i], name, names, self.describe, self.gil_mode)
                self.functions[name] = found
                return found
        known = ", ".join(info.name for info in self.parts.functions if info.kind != FUNC_PACKED)
        raise errors.FunctionNotFoundError(f"the executable has no function {name!r}; it has: {known}")

    def callee(self, index):
        """Function `index` of the function table as a callable."""
        cdef Value v
        if not 0 <= index < self.program.n_funcs:
            raise errors.IndexRangeError(f"callee: {index} is outside a table of {self.program.n_funcs} functions")
        if self.program.funcs[<int32_t>index].packed == NULL:
            return self.function(self.parts.functions[index].name)
        value_set(&v, VT_FUNCTION, <int64_t>self.program.funcs[<int32_t>index].packed)
        return from_value(&v)

    def set_instrument(self, instrument):
        """Sets the instrument, called as f(func_index, before, ret, args), or clears it with None.

        Calls that run already without instrument and profiler go on without. Returns the one before.
        """
        self.decode_for(instrument)
        before = self.owner.instrument
        # Shown to running calls before the old one goes; nothing between lets another thread in.
        self.program.instrument = NULL if instrument is None else <void*>instrument
        self.owner.instrument = instrument
        return before

    def set_profiler(self, profiler):
        """Sets the profiler, or clears it with None. It is called after each Call that succeeded, as
        f(pc, func_index, start_ns, end_ns, depth, allocated_bytes, args, result)."""
        self.decode_for(profiler)
        before = self.owner.profiler
        self.program.profiler = NULL if profiler is None else <void*>profiler
        self.owner.profiler = profiler
        return before

    cdef int decode_for(self, object hook) except -1:
        if hook is not None:
            decode_hooked(self.program, self.parts.instr_offset, self.parts.instr_data)
        return 0

    def trim(self):
        """Gives memory that is kept for reuse back to the system; returns its bytes."""
        free_idle_contexts(self.program)
        return allocator_trim(self.program.allocator)

    def memory_report(self):
        """The allocator's books as a dict; see VirtualMachine.memory_report."""
        cdef AllocatorReport books = allocator_report(self.program.allocator)
        cdef ClassReport[MAX_CLASSES] classes
        cdef int n = allocator_classes(self.program.allocator, classes), k
        cdef int64_t idle = 0, i
        cdef Context* cx = self.program.idle
        while cx != NULL:
            for i in range(cx.tensors.n_storages):
                if cx.tensors.storages[i] != NULL:
                    idle += cx.tensors.storages[i].nbytes
            cx = cx.next
        report = {
            "live_bytes": books.live_bytes,
            "idle_bytes": idle,
            "pooled_bytes": books.pooled_bytes,
            "peak_bytes": books.peak_bytes,
            "limit_bytes": None if books.limit_bytes == INT64_MAX else books.limit_bytes,
            "scratch_bytes": None if books.limit_bytes == INT64_MAX else books.scratch_bytes,
            "total_bytes": books.total_bytes,
            "n_allocations": books.n_allocations,
            "n_pool_hits": books.n_pool_hits,
            "classes": [(classes[k].block_bytes, classes[k].n_live, classes[k].n_pooled) for k in range(n)],
        }
        return report


class deadline:
    """A context manager: calls made under it in this thread raise DeadlineExceeded once `seconds` have passed.

    The check is made on backward jumps, on calls between VM functions and before kernels; a kernel that runs is not
    interrupted. Deadlines nest: the earlier one holds.

    Raises
    ------
    ArgumentTypeError
        If `seconds` is not an int or float.
    ArgumentValueError
        If it is negative, or not a number.
    """

    def __init__(self, seconds):
        if type(seconds) is not float:
            seconds = arguments.number("deadline", "seconds", seconds)
        if not seconds >= 0:
            raise errors.ArgumentValueError(f"deadline: expected seconds >= 0, got {seconds}")
        self._seconds = seconds
        self._outer = 0

    def __enter__(self):
        cdef int64_t outer = thread_deadline()
        self._outer = outer
        mine = now_ns() + int(min(self._seconds, 1e9) * 1e9)
        set_thread_deadline(mine if outer == 0 else min(mine, outer))
        return self

    def __exit__(self, *exc_info):
        set_thread_deadline(self._outer)

    def __repr__(self):
        return f"deadline({self._seconds})"


cdef int install() except -1:
    cdef BoundFunction probe = BoundFunction.__new__(BoundFunction)
    vm_enable_vectorcall(BoundFunction, <char*>&probe.vectorcall - <char*><void*>probe)
    vm_set_tensor_type(Tensor)
    forbid_new(BoundFunction)
    forbid_new(ProgramOwner)
    vm_set_traverse(ProgramOwner, traverse_owner)
    return 0


install()
