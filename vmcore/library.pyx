"""Shared libraries of kernels and compiled functions in TVM's ABI.

A kernel NAME is the exported function `__tvm_ffi_NAME`, with the signature of a PackedFunc; a compiled function is
`__tvm_ffi___vmtir__NAME`. Libraries are opened lazily and locally, and never closed: their code may be referenced from
kernels, closures and slots without anybody counting.
"""
import os

from libc.stdint cimport int32_t, int64_t
from libc.string cimport strlen

from vmcore.loop cimport note_no_memory, now_ns, thread_deadline
from vmcore.memory cimport memory_free, memory_keep
from vmcore.objects cimport Function, forbid_new, function_from_native, named_function
from vmcore.registry cimport registry_get
from vmcore.status cimport fail, last_error_kind, last_error_text
from vmcore.threads cimport TaskFn, WorkAccount, parallel_for, thread_count, work_account
from vmcore.value cimport ERR_DEADLINE, ERR_PYTHON, FunctionObj, PackedFn, Value, object_release, object_retain

from vmcore.status import arguments, errors

cdef extern from "vmcore/library.h" nogil:
    struct HostHooks:
        int (*fail)(int kind, const char* message) noexcept nogil
        void (*note_no_memory)() noexcept nogil
        int (*poll)() noexcept nogil
        void* (*lookup)(void* library, const char* name) noexcept nogil
        int (*last_error)(char* text, size_t size) noexcept nogil
        void (*parallel_for)(int64_t n_tasks, TaskFn fn, void* ctx) noexcept nogil
        int (*thread_count)() noexcept nogil
        WorkAccount* (*account)() noexcept nogil
    HostHooks host
    int64_t library_workspace_held()
    ctypedef struct LibraryFunction:
        pass
    void* library_open(const char* path)
    LibraryFunction* library_function_new(PackedFn fn, const char* name)
    int library_call(void* self, const Value* args, int32_t n, Value* ret)

cdef extern from "<dlfcn.h>" nogil:
    void* dlsym(void* handle, const char* name)
    char* dlerror()

cdef extern from "<string.h>" nogil:
    char* strncpy(char* to, const char* source, size_t size)

cdef double LIBRARY_NS_PER_BYTE = 1.0  # a guess: kernels of libraries do not say how long they run

cdef dict _libraries = {}  # handle -> Library; for ever, see the module's docstring
cdef dict _lent = {}       # functions whose address a library has taken; for ever, too


# ---- what libraries ask of their host --------------------------------------------------------------------------------

cdef int poll_deadline() noexcept nogil:
    cdef int64_t deadline = thread_deadline()
    if deadline != 0 and now_ns() > deadline:
        return fail(ERR_DEADLINE, "deadline exceeded in a compiled function")
    return 0


cdef int copy_last_error(char* text, size_t size) noexcept nogil:
    strncpy(text, last_error_text(), size - 1)
    text[size - 1] = 0
    return last_error_kind()


cdef int lookup_or_raise(void* token, const char* name, void** out) except -1:
    cdef Library library = <Library><object>token
    cdef FunctionObj* f
    text = name[:strlen(name)].decode("utf-8", "replace")
    f = library.find(text)
    if f == NULL:
        f = registry_get(text)
    if f == NULL:
        raise errors.FunctionNotFoundError(
            f"Cannot find function {text}: it is neither in {library.path} nor in the registry"
        )
    out[0] = f
    if <size_t>f in _lent:
        object_release(f)
        return 0
    memory_keep(f)
    _lent[<size_t>f] = named_function(&f.head, text)
    return 0


cdef int lookup_held(void* token, const char* name, void** out) noexcept with gil:
    return (<int (*)(void*, const char*, void**) noexcept>lookup_or_raise)(token, name, out)


cdef void* lookup(void* token, const char* name) noexcept nogil:
    cdef void* found = NULL
    if lookup_held(token, name, &found) != 0:
        fail(ERR_PYTHON, "")
        return NULL
    return found


host.fail = fail
host.note_no_memory = note_no_memory
host.poll = poll_deadline
host.lookup = lookup
host.last_error = copy_last_error
host.parallel_for = parallel_for
host.thread_count = thread_count
host.account = work_account


def workspace_bytes() -> int:
    """Bytes that libraries hold as workspace now."""
    return library_workspace_held()


# ---- libraries -------------------------------------------------------------------------------------------------------

cdef class Library:
    """A shared library; `load_library` makes it.

    Its kernels get tensors, scalars, strings (as C strings) and None; any other object is refused with
    ArgumentTypeError. A tensor whose data is not 64-byte aligned is passed as an aligned copy, and what the kernel
    changed is copied back.
    """

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("Library: open one with pyvm.load_library(path)")

    cdef FunctionObj* find(self, str name) except? NULL:
        """The kernel called `name` with one more reference, or NULL when there is none (no exception)."""
        cdef Function face = self.functions.get(name)
        cdef void* symbol
        cdef LibraryFunction* f
        cdef FunctionObj* made
        if face is None:
            encoded = b"__tvm_ffi_" + name.encode()
            symbol = NULL if b"\0" in encoded else dlsym(self.handle, encoded)
            if symbol == NULL:
                return NULL
            encoded = name.encode()
            f = library_function_new(<PackedFn>symbol, encoded)
            made = NULL if f == NULL else function_from_native(library_call, f, LIBRARY_NS_PER_BYTE)
            if made == NULL:
                memory_free(f)
                raise errors.AllocationError(f"library: no memory for function {name!r}")
            memory_keep(made)  # as the library, for as long as the process
            made.is_library = 1
            face = named_function(&made.head, name)
            self.functions[name] = face
        object_retain(face.obj)
        return <FunctionObj*>face.obj

    cdef PackedFn find_compiled(self, str name) except? NULL:
        """The compiled function `name`, or NULL when there is none (no exception)."""
        encoded = b"__tvm_ffi___vmtir__" + name.encode()
        return NULL if b"\0" in encoded else <PackedFn>dlsym(self.handle, encoded)

    def function(self, name):
        """The kernel called `name`, callable from Python. Raises FunctionNotFoundError."""
        cdef FunctionObj* f = self.find(str(arguments.text("library", "name", name)))
        if f == NULL:
            raise errors.FunctionNotFoundError(f"library: {self.path} has no function {name!r} (__tvm_ffi_{name})")
        object_release(f)
        return self.functions[name]

    def __getitem__(self, name):
        return self.function(name)

    def __contains__(self, name):
        cdef FunctionObj* f
        if not isinstance(name, str):
            return False
        f = self.find(str(arguments.text("library", "name", name)))
        if f != NULL:
            object_release(f)
        return f != NULL

    def __reduce__(self):
        return load_library, (self.path,)

    def __repr__(self):
        return f"Library({self.path!r})"


def load_library(path):
    """Opens a shared library of kernels and compiled functions, for `VirtualMachine(executable, libraries=[...])`.

    The same file gives the same Library. Libraries stay loaded until the process ends. Running a library is running its
    code: nothing can be verified about it.

    Parameters
    ----------
    path : str or os.PathLike
        Taken literally: no search path is used.

    Raises
    ------
    LinkError
        If it cannot be loaded; the message is the system's.
    ArgumentTypeError, ArgumentValueError
        If `path` is no path, or no file can have it.
    """
    cdef void* handle
    cdef void** context
    cdef Library library
    path = os.path.abspath(arguments.path("load_library", "path", path))
    encoded = os.fsencode(path)
    handle = library_open(encoded)
    if handle == NULL:
        text = dlerror()
        reason = text.decode("utf-8", "replace")
        hint = "" if "undefined symbol: TVM" not in reason else " (link the library with -z lazy)"
        raise errors.LinkError(f"load_library: {reason}{hint}")
    known = _libraries.get(<size_t>handle)
    if known is not None:
        return known
    library = Library.__new__(Library)
    library.handle = handle
    library.path = path
    library.functions = {}
    _libraries[<size_t>handle] = library
    context = <void**>dlsym(handle, "__tvm_ffi__library_ctx")
    if context != NULL:
        context[0] = <void*>library
    return library


forbid_new(Library)
