"""The thread-local error slot and the one function that turns it into an exception."""
from vmcore.value cimport (
    ERR_ALLOC, ERR_DEADLINE, ERR_DTYPE, ERR_INDEX, ERR_INTERNAL, ERR_KERNEL, ERR_NONE, ERR_NOT_FOUND, ERR_RECURSION,
    ERR_PYTHON, ERR_SHAPE, ERR_TYPE, ERR_VALUE, ERR_INTERRUPT,
)
from cpython.object cimport PyObject
from libc.string cimport memcpy, strlen

from vmcore import errors

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

cdef extern from "Python.h":
    void Py_DECREF_ptr "Py_DECREF"(PyObject*)

_EXCEPTIONS = {
    ERR_TYPE: errors.ArgumentTypeError,
    ERR_VALUE: errors.ArgumentValueError,
    ERR_INDEX: errors.IndexRangeError,
    ERR_SHAPE: errors.ShapeMismatchError,
    ERR_DTYPE: errors.DTypeMismatchError,
    ERR_ALLOC: errors.AllocationError,
    ERR_KERNEL: errors.KernelError,
    ERR_RECURSION: errors.RecursionLimitError,
    ERR_DEADLINE: errors.DeadlineExceeded,
    ERR_INTERRUPT: KeyboardInterrupt,
    ERR_INTERNAL: errors.InternalError,
    ERR_NOT_FOUND: errors.FunctionNotFoundError,
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
    return _EXCEPTIONS[kind](message)


cdef int raise_status() except -1:
    raise take_error()
