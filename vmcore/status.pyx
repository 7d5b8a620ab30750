"""The thread-local error slot and the one function that turns it into an exception."""
import importlib

from cpython.object cimport PyObject
from libc.string cimport memcpy, strlen

from vmcore.value cimport (
    ERR_ALLOC, ERR_DEADLINE, ERR_DTYPE, ERR_INDEX, ERR_INTERNAL, ERR_KERNEL, ERR_NONE, ERR_NOT_FOUND, ERR_RECURSION,
    ERR_PYTHON, ERR_SHAPE, ERR_TYPE, ERR_VALUE, ERR_INTERRUPT,
)

cdef extern from *:
    """
    #include <string.h>
    #define VM_ERROR_TEXT 1024
    static __thread struct { int kind; char text[VM_ERROR_TEXT]; } vm_error_slot;

    static void vm_error_store(int kind, const char *message) {
      size_t n = strlen(message);
      if (n >= VM_ERROR_TEXT) {
        n = VM_ERROR_TEXT - 1;
        while (n > 0 && (message[n] & 0xC0) == 0x80) --n; /* never cut inside a UTF-8 sequence */
      }
      memcpy(vm_error_slot.text, message, n);
      vm_error_slot.text[n] = 0;
      vm_error_slot.kind = kind;
    }
    """
    struct ErrorSlot:
        int kind
        char* text
    ErrorSlot vm_error_slot
    void vm_error_store(int kind, const char* message) noexcept nogil

cdef extern from *:
    """
    /* The exception that is set in this thread, with its traceback, cleared; NULL if there is none. */
    static PyObject *vm_fetch_exception(void) {
    #if PY_VERSION_HEX >= 0x030c0000
      return PyErr_GetRaisedException();
    #else
      PyObject *type, *value, *traceback;
      PyErr_Fetch(&type, &value, &traceback);
      if (type == NULL) return NULL;
      PyErr_NormalizeException(&type, &value, &traceback);
      if (traceback) PyException_SetTraceback(value, traceback);
      Py_XDECREF(type);
      Py_XDECREF(traceback);
      return value;
    #endif
    }
    """
    PyObject* vm_fetch_exception()

cdef extern from *:
    """
    /* The library is many modules and none of its own name; who imports that is told so. */
    PyMODINIT_FUNC PyInit__core(void) {
      PyErr_SetString(PyExc_ImportError, "vmcore._core is the library that the modules of vmcore are in, and no module "
                                         "itself: import one of them, such as vmcore.machine, or pyvm");
      return NULL;
    }
    """

cdef extern from "Python.h":
    ctypedef struct PyInterpreterState:
        pass
    PyInterpreterState* PyInterpreterState_Get()
    PyInterpreterState* PyInterpreterState_Main()
    void Py_DECREF_ptr "Py_DECREF"(PyObject*)

# Every module of vmcore needs this one. Native objects take the GIL from any thread (PyGILState), which knows the main
# interpreter only: in another one the thread would wait for itself.
if PyInterpreterState_Get() != PyInterpreterState_Main():
    raise ImportError("vmcore runs in the main interpreter only, not in a subinterpreter")


cdef class _Module:
    """A module that is imported when it is used first: what a process without errors has no use for."""
    cdef str module

    def __init__(self, module):
        self.module = module

    def __getattr__(self, str name):
        return getattr(importlib.import_module(self.module), name)


errors = _Module("vmcore.errors")  # to make its classes is an eighth of a cold start
arguments = _Module("vmcore.arguments")  # asked when an argument is not what it mostly is

cdef dict _EXCEPTIONS = {
    ERR_TYPE: "ArgumentTypeError",
    ERR_VALUE: "ArgumentValueError",
    ERR_INDEX: "IndexRangeError",
    ERR_SHAPE: "ShapeMismatchError",
    ERR_DTYPE: "DTypeMismatchError",
    ERR_ALLOC: "AllocationError",
    ERR_KERNEL: "KernelError",
    ERR_RECURSION: "RecursionLimitError",
    ERR_DEADLINE: "DeadlineExceeded",
    ERR_INTERNAL: "InternalError",
    ERR_NOT_FOUND: "FunctionNotFoundError",
}


cdef int fail(int kind, const char* message) noexcept nogil:
    vm_error_store(kind, message)
    return -1


cdef int last_error_kind() noexcept nogil:
    return vm_error_slot.kind


cdef const char* last_error_text() noexcept nogil:
    return vm_error_slot.text


cdef void save_error(SavedError* saved) noexcept nogil:
    saved.kind = vm_error_slot.kind
    if saved.kind != ERR_NONE:
        memcpy(saved.text, vm_error_slot.text, sizeof(saved.text))


cdef void restore_error(const SavedError* saved) noexcept nogil:
    vm_error_slot.kind = saved.kind
    if saved.kind != ERR_NONE:
        memcpy(vm_error_slot.text, saved.text, sizeof(saved.text))


cdef object take_error():
    cdef int kind = vm_error_slot.kind
    cdef char* text = vm_error_slot.text
    message = text[:strlen(text)].decode("utf-8", "replace")
    cdef PyObject* raised
    vm_error_slot.kind = ERR_NONE
    if kind == ERR_PYTHON:
        raised = vm_fetch_exception()
        if raised != NULL:
            error = <object>raised
            Py_DECREF_ptr(raised)
            return error
        kind = ERR_NONE
    if kind == ERR_NONE:
        return errors.InternalError("a native function reported failure without storing an error")
    if kind == ERR_INTERRUPT:
        return KeyboardInterrupt(message)
    return getattr(errors, _EXCEPTIONS[kind])(message)


cdef int raise_status() except -1:
    raise take_error()
