"""Native objects and their Python faces: Tensor, Function, and the conversions between Values and Python objects."""
cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from vmcore.memory cimport (
    MEMORY_EXPORT, MEMORY_FUNCTION, MEMORY_OPAQUE, MEMORY_SCRATCH, memory_alloc, memory_free,
)
from vmcore.status cimport SavedError, fail, raise_status, restore_error, save_error
from vmcore.value cimport (
    DL_BFLOAT, DL_BOOL, DL_COMPLEX, DL_FLOAT, DL_INT, DL_UINT, ERR_PYTHON, OBJ_DELETE_STRONG, OBJ_DELETE_WEAK, OBJ_OWN,
    OBJ_READONLY, PyObjectObj, VT_ARRAY, VT_BOOL, VT_CLOSURE, VT_DEVICE, VT_DTYPE, VT_FLOAT, VT_FUNCTION, VT_INT,
    VT_NONE, VT_PYOBJECT, VT_RAW_STR, VT_SHAPE, VT_SMALL_STR, VT_STORAGE, VT_STR, VT_TENSOR, StorageObj,
    dtype_bytes, object_init,
    object_release, object_retain, value_clear, value_dtype, value_float, value_ptr, value_set, value_set_bool,
    value_set_dtype, value_set_float, value_set_int, value_set_none, value_set_object, value_type,
)
from types import GenericAlias

import numpy as np

from vmcore.status import arguments, errors
from vmcore.types import DataType, Device, Shape

cdef object _DataType = DataType
cdef object _Device = Device
cdef object _Shape = Shape

cnp.import_array()

cdef extern from "vmcore/stack.h" nogil:
    const int64_t STACK_RESERVE
    int64_t stack_left()

cdef extern from *:
    """
    /* An ndarray over foreign bytes; steals `descr`. Its base is set by the caller. */
    static PyObject *vm_array_over(PyObject *descr, int ndim, const int64_t *dims, void *data, int flags) {
      return PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)descr, ndim, (npy_intp *)dims, NULL, data, flags,
                                  NULL);
    }
    """
    int NPY_USERDEF
    object vm_array_over(object descr, int ndim, const int64_t* dims, void* data, int flags)

cdef extern from "Python.h":
    bint Py_IsInitialized() nogil
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1
    PyObject* PyLong_FromLongLong(long long value)
    void Py_DECREF_ptr "Py_DECREF"(PyObject*)
    void PyErr_Fetch(PyObject** kind, PyObject** value, PyObject** traceback)
    void PyErr_Restore(PyObject* kind, PyObject* value, PyObject* traceback)

cdef extern from *:
    """
    /* callable(*args). args[-1] is free for the callee to use. A function written in Python keeps to the protocol, so
     * its result needs no check against the exception state. */
    static inline PyObject *vm_call_object(PyObject *callable, PyObject **args, Py_ssize_t n) {
      size_t nargsf = (size_t)n | PY_VECTORCALL_ARGUMENTS_OFFSET;
      if (PyFunction_Check(callable)) {
        vectorcallfunc call = ((PyFunctionObject *)callable)->vectorcall;
        if (call != NULL) return call(callable, args, nargsf, NULL);
      }
      return PyObject_Vectorcall(callable, args, nargsf, NULL);
    }
    /* Whether `o` is an int of one digit; out := it. */
    static inline int vm_small_int(PyObject *o, int64_t *out) {
      if (!PyLong_CheckExact(o)) return 0;
    #if PY_VERSION_HEX >= 0x030C0000
      if (!PyUnstable_Long_IsCompact((PyLongObject *)o)) return 0;
      *out = PyUnstable_Long_CompactValue((PyLongObject *)o);
    #else
      Py_ssize_t size = Py_SIZE(o);
      if (size < -1 || size > 1) return 0;
      *out = size * (int64_t)((PyLongObject *)o)->ob_digit[0];
    #endif
      return 1;
    }
    """
    PyObject* vm_call_object(PyObject* callable, PyObject** args, Py_ssize_t n)
    bint vm_small_int(PyObject* o, int64_t* out)

ctypedef PyObject* (*NewPython)(const Value* v) noexcept

cdef extern from *:
    """
    typedef struct DLManagedTensor {
      DLTensor dl_tensor;
      void *manager_ctx;
      void (*deleter)(struct DLManagedTensor *self);
    } DLManagedTensor;
    typedef struct DLManagedTensorVersioned {
      struct { uint32_t major, minor; } version;
      void *manager_ctx;
      void (*deleter)(struct DLManagedTensorVersioned *self);
      uint64_t flags;
      DLTensor dl_tensor;
    } DLManagedTensorVersioned;
    static void vm_dlpack_delete(DLManagedTensor *m) { object_release(m->manager_ctx); memory_free(m); }
    static void vm_dlpack_delete_versioned(DLManagedTensorVersioned *m) {
      object_release(m->manager_ctx);
      memory_free(m);
    }
    static DLManagedTensor *vm_dlpack_export(TensorObj *t) {
      DLManagedTensor *m = (DLManagedTensor *)memory_alloc(sizeof *m, MEMORY_EXPORT);
      if (m == NULL) return NULL;
      object_retain(t);
      m->dl_tensor = t->dl;
      m->manager_ctx = t;
      m->deleter = vm_dlpack_delete;
      return m;
    }
    static DLManagedTensorVersioned *vm_dlpack_export_versioned(TensorObj *t) {
      DLManagedTensorVersioned *m = (DLManagedTensorVersioned *)memory_alloc(sizeof *m, MEMORY_EXPORT);
      if (m == NULL) return NULL;
      object_retain(t);
      m->version.major = 1;
      m->version.minor = 0;
      m->flags = (t->head.flags & OBJ_READONLY) ? 1 : 0;
      m->dl_tensor = t->dl;
      m->manager_ctx = t;
      m->deleter = vm_dlpack_delete_versioned;
      return m;
    }
    """
    ctypedef struct DLManagedTensor:
        void (*deleter)(DLManagedTensor*) noexcept nogil
    ctypedef struct DLManagedTensorVersioned:
        void (*deleter)(DLManagedTensorVersioned*) noexcept nogil
    DLManagedTensor* vm_dlpack_export(TensorObj* t)
    DLManagedTensorVersioned* vm_dlpack_export_versioned(TensorObj* t)


# ---- dtypes ----------------------------------------------------------------------------------------------------------

cdef bint dtype_of_array(cnp.ndarray array, VmDataType* out) noexcept:
    """The DLPack type of a native-order numeric array; False when it has none."""
    cdef int number = cnp.PyArray_TYPE(array)
    if not cnp.PyArray_CheckExact(array):
        element_type = getattr(array, "element_type", None)  # a BitsArray: the type that numpy lacks
        if element_type is not None:
            out.code, out.bits, out.lanes = element_type.code, element_type.bits, element_type.lanes
            return True
    out.lanes = 1
    out.bits = <uint8_t>(8 * cnp.PyArray_ITEMSIZE(array))
    if number == cnp.NPY_FLOAT or number == cnp.NPY_DOUBLE or number == cnp.NPY_FLOAT16:
        out.code = DL_FLOAT
    elif number == cnp.NPY_BOOL:
        out.code = DL_BOOL
    elif number in (cnp.NPY_BYTE, cnp.NPY_SHORT, cnp.NPY_INT, cnp.NPY_LONG, cnp.NPY_LONGLONG):
        out.code = DL_INT
    elif number in (cnp.NPY_UBYTE, cnp.NPY_USHORT, cnp.NPY_UINT, cnp.NPY_ULONG, cnp.NPY_ULONGLONG):
        out.code = DL_UINT
    elif number == cnp.NPY_CFLOAT or number == cnp.NPY_CDOUBLE:
        out.code = DL_COMPLEX
    elif number >= NPY_USERDEF and out.bits == 16 and (<object>array).dtype.name == "bfloat16":
        out.code = DL_BFLOAT
    else:
        return False
    return cnp.PyArray_ISNOTSWAPPED(array)


cdef object numpy_dtype(VmDataType t):
    """The numpy dtype of `t`; raises TypeError if numpy has none."""
    return _DataType.from_triple(t.code, t.bits, t.lanes).numpy


cdef int typenum_of(VmDataType t) noexcept:
    """The numpy type number of the common types, -1 for the rest."""
    if t.lanes != 1:
        return -1
    if t.code == DL_FLOAT:
        return cnp.NPY_FLOAT32 if t.bits == 32 else cnp.NPY_FLOAT64 if t.bits == 64 else -1
    if t.code == DL_INT:
        return cnp.NPY_INT64 if t.bits == 64 else cnp.NPY_INT32 if t.bits == 32 else -1
    if t.code == DL_BOOL and t.bits == 8:
        return cnp.NPY_BOOL
    return -1


# ---- numpy arrays ----------------------------------------------------------------------------------------------------

cdef void release_python(void* owner) noexcept nogil:
    """Drops a reference to a Python object from any thread; leaks it once the interpreter is gone."""
    if owner != NULL and Py_IsInitialized():
        with gil:
            drop_python(<PyObject*>owner)


cdef void drop_python(PyObject* owner) noexcept:
    """Drops a reference. A destructor may run any code, so an error on its way, ours or Python's, is put aside."""
    cdef SavedError saved
    cdef PyObject* kind
    cdef PyObject* value
    cdef PyObject* traceback
    if owner.ob_refcnt > 1:
        Py_DECREF_ptr(owner)
        return
    save_error(&saved)
    PyErr_Fetch(&kind, &value, &traceback)
    Py_DECREF_ptr(owner)
    PyErr_Restore(kind, value, traceback)
    restore_error(&saved)


cdef bint borrow_array(cnp.ndarray array, TensorObj* t) noexcept:
    """Points the header `t` (own, TENSOR_INLINE_NDIM dims) at `array` without taking a reference.

    False, with `t` unchanged but for its dims, when the array cannot be used in place: not C-contiguous, misaligned,
    byte-swapped, a dtype without DLPack name, or too many dimensions. The caller keeps `array` alive or calls
    `own_array`.
    """
    cdef VmDataType dtype
    cdef int32_t ndim = <int32_t>cnp.PyArray_NDIM(array)
    if ndim > 6 or not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISALIGNED(array):
        return False
    if not dtype_of_array(array, &dtype):
        return False
    t.dl.ndim = ndim
    t.dl.shape = t.dims
    t.dl.strides = t.dims + ndim
    if tensor_set_shape(t, <const int64_t*>cnp.PyArray_DIMS(array), dtype) < 0:
        return False
    t.dl.data = cnp.PyArray_DATA(array)
    t.head.flags = OBJ_OWN if cnp.PyArray_ISWRITEABLE(array) else OBJ_OWN | OBJ_READONLY
    return True


cdef void own_array(TensorObj* t, object array) noexcept:
    """Makes a header filled by `borrow_array` keep its array alive."""
    Py_INCREF(array)
    t.owner = <void*>array
    t.release_owner = release_python


cdef object no_element_type(object array):
    return errors.ArgumentTypeError(f"tensor: an array of dtype {array.dtype} has no tensor element type")


cdef TensorObj* tensor_from_array(cnp.ndarray array) except NULL:
    """A tensor over `array`; without a copy when the array is C-contiguous, aligned and in native byte order.

    Raises TypeError for a dtype that tensors do not have and for an array with a mask, ValueError for more than 64
    dimensions.
    """
    cdef VmDataType dtype
    cdef TensorObj* t
    if not cnp.PyArray_CheckExact(array):
        arguments.without_mask("tensor", array)
    if not dtype_of_array(array, &dtype):
        if (<object>array).dtype.isnative:
            raise no_element_type(array)
        array = (<object>array).astype((<object>array).dtype.newbyteorder("="))
        if not dtype_of_array(array, &dtype):
            raise no_element_type(array)
    if not (cnp.PyArray_IS_C_CONTIGUOUS(array) and cnp.PyArray_ISALIGNED(array)):
        try:
            array = np.array(array, order="C", copy=True, subok=False)
        except MemoryError as error:
            raise errors.AllocationError(f"tensor: no memory for a compact copy: {error}") from None
    t = tensor_new(<int32_t>cnp.PyArray_NDIM(array))
    if t == NULL:
        raise errors.AllocationError("tensor: no memory for a header")
    if tensor_set_shape(t, <const int64_t*>cnp.PyArray_DIMS(array), dtype) < 0:
        object_release(t)
        raise errors.ArgumentValueError(f"tensor: shape {(<object>array).shape} does not fit in memory")
    t.dl.data = cnp.PyArray_DATA(array)
    if not cnp.PyArray_ISWRITEABLE(array):
        t.head.flags |= OBJ_READONLY
    own_array(t, array)
    return t


# ---- Tensor ----------------------------------------------------------------------------------------------------------

cdef object shape_tuple(const int64_t* dims, Py_ssize_t n):
    cdef list values = []
    cdef Py_ssize_t i
    for i in range(n):
        values.append(dims[i])
    return tuple.__new__(_Shape, values)


@cython.final
@cython.freelist(32)
cdef class Tensor:
    """A compact row-major array on the CPU, shared without copies with numpy and DLPack.

    Made by `pyvm.tensor` and by running programs; there is no public constructor. The bytes live as long as any tensor,
    numpy view or DLPack capsule over them.
    """

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("Tensor: make one with pyvm.tensor(array)")

    @classmethod
    def __class_getitem__(cls, item):
        """`Tensor["n", 4, "float32"]`: an annotation of `pyvm.function`."""
        return GenericAlias(cls, item)

    def __dealloc__(self):
        if self.obj != NULL:
            if self.obj.wrapper == <void*>self:
                self.obj.wrapper = NULL
            object_release(self.obj)

    @property
    def shape(self):
        """Dimensions, a `Shape`."""
        return shape_tuple(self.obj.dl.shape, self.obj.dl.ndim)

    @property
    def ndim(self):
        """Number of dimensions."""
        return self.obj.dl.ndim

    @property
    def size(self):
        """Number of elements."""
        cdef int64_t n = 1
        cdef int32_t i
        for i in range(self.obj.dl.ndim):
            n *= self.obj.dl.shape[i]
        return n

    @property
    def nbytes(self):
        """Bytes of the elements."""
        return self.obj.nbytes

    @property
    def dtype(self):
        """Element type, a `DataType`."""
        cdef VmDataType t = self.obj.dl.dtype
        return _DataType.from_triple(t.code, t.bits, t.lanes)

    @property
    def device(self):
        """Where the bytes are, a `Device`."""
        return _Device(self.obj.dl.device_type, self.obj.dl.device_id)

    def numpy(self):
        """A numpy view of the same bytes; read-only for constants. Raises TypeError for dtypes numpy lacks."""
        cdef int number = typenum_of(self.obj.dl.dtype)
        cdef int flags = cnp.NPY_ARRAY_CARRAY_RO if self.obj.head.flags & OBJ_READONLY else cnp.NPY_ARRAY_CARRAY
        cdef object descr
        cdef cnp.ndarray array
        if number >= 0:
            descr = cnp.PyArray_DescrFromType(number)
        else:
            descr = numpy_dtype(self.obj.dl.dtype)
        Py_INCREF(descr)  # stolen by NewFromDescr
        array = vm_array_over(descr, self.obj.dl.ndim, self.obj.dl.shape, self.obj.dl.data, flags)
        Py_INCREF(self)
        cnp.PyArray_SetBaseObject(array, self)
        return array

    def __array__(self, dtype=None, copy=None):
        array = self.numpy()
        if copy is not None:
            copy = arguments.flag("tensor", "copy", copy)
        if dtype is not None:
            wanted = numpy_type(dtype)
            if array.dtype != wanted:
                if copy is False:
                    raise errors.ArgumentValueError(
                        f"tensor: {array.dtype} as {wanted} needs a copy, and copy=False forbids it"
                    )
                try:
                    return array.astype(wanted)
                except (TypeError, ValueError) as error:
                    raise errors.ArgumentTypeError(f"tensor: {array.dtype} cannot become {wanted}: {error}") from None
        return array.copy() if copy else array

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if stream is not None and (type(stream) is not int or stream != -1):
            raise BufferError(f"tensor: a CPU tensor takes no stream, got {arguments.shown(stream)}")
        if dl_device is not None and pair("dl_device", dl_device) != (1, 0):
            raise BufferError(f"tensor: lives on device (1, 0), cannot export to {arguments.shown(dl_device)}")
        if max_version is not None:
            max_version = pair("max_version", max_version)
        if copy is not None and arguments.flag("tensor", "copy", copy):
            return tensor(self.numpy().copy()).__dlpack__(max_version=max_version)
        if max_version is not None and max_version[0] >= 1:
            return PyCapsule_New(
                check_pointer(vm_dlpack_export_versioned(self.obj)), "dltensor_versioned", drop_capsule_versioned
            )
        if self.obj.head.flags & OBJ_READONLY:
            raise BufferError("tensor: read-only, which DLPack before version 1.0 cannot say")
        return PyCapsule_New(check_pointer(vm_dlpack_export(self.obj)), "dltensor", drop_capsule)

    def __dlpack_device__(self):
        return (1, 0)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef TensorObj* t = self.obj
        cdef Py_ssize_t itemsize = dtype_bytes(t.dl.dtype)
        cdef Py_ssize_t* strides
        cdef int32_t i
        if flags & PyBUF_WRITABLE and t.head.flags & OBJ_READONLY:
            raise BufferError("tensor: read-only")
        code = numpy_dtype(t.dl.dtype).char if flags & PyBUF_FORMAT else "B"
        if t.dl.dtype.code == DL_COMPLEX:
            code = "Z" + code.lower()  # PEP 3118: "Zf", where numpy's own code is "F"
        format_bytes = code.encode()
        strides = <Py_ssize_t*>check_pointer(memory_alloc((t.dl.ndim + 1) * sizeof(Py_ssize_t), MEMORY_EXPORT))
        for i in range(t.dl.ndim):
            strides[i] = t.dl.strides[i] * itemsize
        buffer.buf = t.dl.data
        buffer.len = t.nbytes
        buffer.itemsize = itemsize
        buffer.readonly = (t.head.flags & OBJ_READONLY) != 0
        buffer.ndim = t.dl.ndim
        buffer.format = PyBytes_AS_STRING(_format_bytes(format_bytes)) if flags & PyBUF_FORMAT else NULL
        buffer.shape = <Py_ssize_t*>t.dl.shape if flags & PyBUF_ND else NULL
        buffer.strides = strides if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = strides
        buffer.obj = self

    def __releasebuffer__(self, Py_buffer* buffer):
        memory_free(buffer.internal)

    def __len__(self):
        if self.obj.dl.ndim == 0:
            raise errors.ArgumentTypeError("tensor: a 0-d tensor has no length")
        return self.obj.dl.shape[0]

    def __float__(self):
        return float(only_element(self, "float"))

    def __int__(self):
        return int(only_element(self, "int"))

    def __bool__(self):
        return bool(only_element(self, "bool"))

    def __reduce__(self):
        return tensor, (self.numpy().copy(),)

    def __repr__(self):
        dims = ", ".join(map(str, self.shape))
        try:
            values = np.array2string(self.numpy(), threshold=20, edgeitems=2, separator=", ")
        except TypeError:
            return f"Tensor(({dims}), {self.dtype})"
        return f"Tensor(({dims}), {self.dtype},\n{values})"


cdef object only_element(Tensor x, str kind):
    """The one element of a tensor that has one."""
    if x.size != 1:
        raise errors.ArgumentTypeError(
            f"tensor: only a tensor of one element is a {kind}, this one has shape {tuple(x.shape)}"
        )
    return x.numpy().item()


cdef tuple pair(str parameter, object value):
    """The two ints of a device or a version of DLPack."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise arguments.wrong_type("tensor", parameter, "a pair of ints", value)
    first = arguments.integer("tensor", f"{parameter}[0]", value[0])
    return (first, arguments.integer("tensor", f"{parameter}[1]", value[1]))


cdef object numpy_type(object dtype):
    """What `__array__` is asked for as a numpy dtype."""
    try:
        return dtype.numpy if isinstance(dtype, _DataType) else np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise errors.ArgumentTypeError(f"tensor: dtype {arguments.shown(dtype)} is none of numpy: {error}") from None


cdef dict _FORMATS = {}


cdef bytes _format_bytes(bytes code):
    """One immortal bytes object per format code: a buffer's `format` must outlive the buffer."""
    return _FORMATS.setdefault(code, code)


cdef void* check_pointer(void* p) except NULL:
    if p == NULL:
        raise errors.AllocationError("tensor: out of memory")
    return p


cdef void drop_capsule(object capsule) noexcept:
    cdef DLManagedTensor* m
    if PyCapsule_IsValid(capsule, "dltensor"):  # renamed "used_dltensor" once a consumer owns it
        m = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
        m.deleter(m)


cdef void drop_capsule_versioned(object capsule) noexcept:
    cdef DLManagedTensorVersioned* m
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        m = <DLManagedTensorVersioned*>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        m.deleter(m)


cdef object wrap_tensor(TensorObj* t):
    """The Python face of `t`, the same one every time while it lives. Takes over one reference."""
    cdef Tensor wrapper
    if t.wrapper != NULL:
        wrapper = <Tensor>t.wrapper
        object_release(t)
        return wrapper
    wrapper = Tensor.__new__(Tensor)
    wrapper.obj = t
    t.wrapper = <void*>wrapper
    return wrapper


def tensor(source, device=None):
    """A Tensor over `source`, without a copy where layout, alignment and element type allow.

    Parameters
    ----------
    source : Tensor, numpy array, DLPack producer, or anything `numpy.asarray` takes
    device : Device, optional
        Only `cpu()` exists here.

    Raises
    ------
    ArgumentTypeError
        If the elements have no tensor element type (objects, strings, dates), or lie on another device.
    ArgumentValueError
        If `source` has rows of different lengths, or `device` is not `cpu(0)`.
    """
    if device is not None and not isinstance(device, _Device):
        raise errors.ArgumentTypeError(f"tensor: expected a Device such as pyvm.cpu(), got {device!r}")
    if device is not None and (device.device_type, device.index) != (1, 0):
        raise errors.ArgumentValueError(f"tensor: {device!r} is not available, tensors live on cpu(0)")
    if type(source) is Tensor:
        return source
    return wrap_tensor(tensor_from_array(as_array(source)))


cdef object as_array(object source):
    """`source` as an ndarray, sharing its bytes where its protocol allows."""
    if isinstance(source, np.ndarray):
        return source
    if not hasattr(source, "__dlpack__") or isinstance(source, np.generic):
        try:
            return np.asarray(source)
        except ValueError as error:  # rows of different lengths
            raise errors.ArgumentValueError(f"tensor: this {type(source).__name__} is no array: {error}") from None
    if hasattr(source, "__dlpack_device__"):
        device = source.__dlpack_device__()
        try:
            kind, index = device
            there = _Device(int(kind), int(index))
        except (TypeError, ValueError):
            raise errors.ArgumentTypeError(
                f"tensor: this {type(source).__name__} must name its device by two ints, it says "
                f"{arguments.shown(device)}"
            ) from None
        if there.device_type != 1:
            raise errors.ArgumentTypeError(
                f"tensor: this {type(source).__name__} is on {there}, tensors live on cpu(0)"
            )
    if stack_left() < STACK_RESERVE:  # it runs Python, which may come here again
        raise errors.RecursionLimitError(
            f"tensor: conversions are nested too deeply for this thread's stack, of which {stack_left()} bytes are left"
        )
    try:
        return np.from_dlpack(source)
    except RecursionError:  # not turned into a TypeError: numpy would ask again, at every level
        raise
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise errors.ArgumentTypeError(
            f"tensor: this {type(source).__name__} cannot be taken over by DLPack: {error}"
        ) from error


# ---- functions -------------------------------------------------------------------------------------------------------

cdef int packed_safe_call(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    cdef FunctionObj* f = <FunctionObj*>self
    return f.fn(f.self, args, n_args, ret)


cdef void native_function_delete(void* self, int how) noexcept nogil:
    if how & OBJ_DELETE_WEAK:
        memory_free(self)


cdef void python_function_delete(void* self, int how) noexcept nogil:
    cdef FunctionObj* f = <FunctionObj*>self
    if how & OBJ_DELETE_STRONG:
        release_python(f.self)
    if how & OBJ_DELETE_WEAK:
        memory_free(self)


cdef FunctionObj* function_from_native(PackedFn fn, void* self, float ns_per_byte) noexcept nogil:
    """A Function object over a C function; NULL when memory is exhausted."""
    cdef FunctionObj* f = <FunctionObj*>memory_alloc(sizeof(FunctionObj), MEMORY_FUNCTION)
    if f == NULL:
        return NULL
    object_init(&f.head, VT_FUNCTION, native_function_delete)
    f.head.flags = OBJ_OWN
    f.safe_call = packed_safe_call
    f.cpp_call = NULL
    f.fn = fn
    f.self = self
    f.ns_per_byte = ns_per_byte
    f.is_python = 0
    f.direct = NULL
    f.is_library = 0
    return f


cdef FunctionObj* function_from_callable(object callable) except NULL:
    """A Function object over a Python callable, which it keeps alive."""
    cdef FunctionObj* f = function_from_native(python_packed, <void*>callable, 0.0)
    if f == NULL:
        raise errors.AllocationError("function: no memory")
    Py_INCREF(callable)
    f.head.deleter = python_function_delete
    f.is_python = 1
    return f


cdef int python_packed(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil:
    """A Python callable as a PackedFunc, for callers that do not hold the GIL."""
    cdef int status
    with gil:
        status = (<int (*)(void*, const Value*, int32_t, Value*) noexcept>call_python)(self, args, n_args, ret)
    return 0 if status == 0 else fail(ERR_PYTHON, "")


cdef int call_python(void* callable, const Value* args, int32_t n_args, Value* ret) except -1:
    """ret := callable(*args). The one place where native code calls Python; needs the GIL.

    On failure the Python exception stays set in this thread; the caller stores ERR_PYTHON, unwinds, and re-raises the
    exception unchanged.
    """
    cdef PyObject* small[9]
    cdef PyObject** items = small
    cdef int status
    if n_args > 8:
        items = <PyObject**>memory_alloc((n_args + 1) * sizeof(PyObject*), MEMORY_SCRATCH)
        if items == NULL:
            raise errors.AllocationError(f"call: no memory for {n_args} arguments")
    status = call_on_values(<PyObject*>callable, args, n_args, items, ret)
    if n_args > 8:
        memory_free(items)
    return status


cdef int call_on_values(
    PyObject* callable, const Value* args, int32_t n_args, PyObject** items, Value* ret
) except -1:
    """`call_python` with room for n_args + 1 pointers at `items`."""
    cdef PyObject* result = NULL
    cdef int32_t i, made = 0
    cdef int status = -1
    items[0] = NULL  # spare slot for bound methods
    while made < n_args:
        items[made + 1] = new_python(&args[made])
        if items[made + 1] == NULL:
            break
        made += 1
    if made == n_args:
        result = vm_call_object(callable, items + 1, n_args)
    for i in range(made):
        Py_DECREF_ptr(items[i + 1])
    if result != NULL:
        try:
            status = from_result(result, ret)
        finally:
            Py_DECREF_ptr(result)
    return status


cdef inline PyObject* new_python(const Value* v) noexcept:
    """A new reference to a Python object for `v`; NULL with an exception set."""
    if v.tag == VT_INT:
        return PyLong_FromLongLong(v.bits)
    return (<NewPython>from_value)(v)


cdef inline int from_result(PyObject* result, Value* out) except -1:
    """`to_value`, with what functions mostly return first."""
    cdef int64_t number
    if vm_small_int(result, &number):
        value_set_int(out, number)
    elif result.ob_type == <PyTypeObject*>Tensor:
        value_set_object(out, (<Tensor>result).obj)
        object_retain((<Tensor>result).obj)
    else:
        return to_value(<object>result, out)
    return 0


@cython.final
cdef class Function:
    """A callable of the virtual machine seen from Python: a native function, or a closure of a VM."""

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("Function: look one up with pyvm.get_global_func(name)")

    def __dealloc__(self):
        if self.obj != NULL:
            object_release(self.obj)

    @property
    def is_closure(self):
        """Whether this is a function of a virtual machine with captured arguments."""
        return self.obj.type_index == VT_CLOSURE

    def __call__(self, *args):
        """Calls with positional arguments, converted as for a VM function; raises what the function raises, and
        ArgumentTypeError for arguments by keyword."""
        cdef int32_t n = <int32_t>len(args), i
        cdef Value ret
        cdef Value* values = <Value*>check_pointer(memory_alloc((n + 1) * sizeof(Value), MEMORY_SCRATCH))
        cdef int status = 0
        for i in range(n + 1):
            value_set_none(&values[i])
        value_set_none(&ret)
        try:
            for i in range(n):
                to_value(args[i], &values[i])
            # FunctionObj and ClosureObj both start with header and safe_call.
            status = (<FunctionObj*>self.obj).safe_call(self.obj, values, n, &ret)
        finally:
            for i in range(n):
                value_clear(&values[i])
            memory_free(values)
        if status != 0:
            raise_status()
        return take_value(&ret)

    def __eq__(self, other):
        return type(other) is Function and (<Function>other).obj == self.obj

    def __hash__(self):
        return hash(<size_t>self.obj)

    def __repr__(self):
        if not self.is_closure:
            return f"<pyvm function{' ' + self.name if self.name else ''}>"
        closure = <ClosureObj*>self.obj
        return f"<pyvm closure of f[{closure.func_index}], {closure.n_saved} captured>"


cdef Function named_function(Object* obj, str name):
    """The Python face of `obj`, also when a Python callable is behind it. Takes over one reference."""
    cdef Function f = Function.__new__(Function)
    f.obj = obj
    f.name = name
    return f


cdef object wrap_function(Object* obj, str name):
    """The Python face of a function or closure; takes over one reference."""
    if obj.type_index == VT_FUNCTION and (<FunctionObj*>obj).is_python and object_is_own(obj):
        original = <object>(<FunctionObj*>obj).self
        object_release(obj)
        return original
    return named_function(obj, name)


cdef extern from *:
    """
    static ternaryfunc vm_function_call; /* what Cython made of Function.__call__: it takes positional arguments */
    static PyObject *(*vm_refuse_keywords)(PyObject *, PyObject *);
    static PyObject *vm_function_call_checked(PyObject *self, PyObject *args, PyObject *kwargs) {
      if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) return vm_refuse_keywords(self, kwargs);
      return vm_function_call(self, args, NULL);
    }
    static void vm_check_keywords(PyObject *type, PyObject *(*refuse)(PyObject *, PyObject *)) {
      vm_function_call = ((PyTypeObject *)type)->tp_call;
      vm_refuse_keywords = refuse;
      ((PyTypeObject *)type)->tp_call = vm_function_call_checked;
      PyType_Modified((PyTypeObject *)type);
    }
    """
    void vm_check_keywords(object type, object (*refuse)(object, object))


cdef object refuse_keywords(object function, object keywords):
    raise errors.ArgumentTypeError(
        f"{function!r} takes positional arguments only, got {', '.join(map(str, keywords))} by keyword"
    )


vm_check_keywords(Function, refuse_keywords)


cdef void pyobject_delete(void* self, int how) noexcept nogil:
    if how & OBJ_DELETE_STRONG:
        release_python((<PyObjectObj*>self).object)
    if how & OBJ_DELETE_WEAK:
        memory_free(self)


@cython.final
cdef class OpaqueObject:
    """A native object without a Python face of its own (a storage, say): it can be kept and passed back."""
    cdef Object* obj

    def __init__(self, *args, **kwargs):
        raise errors.ArgumentTypeError("OpaqueObject: made by the virtual machine only")

    def __dealloc__(self):
        if self.obj != NULL:
            object_release(self.obj)

    def __repr__(self):
        cdef Value v
        cdef str kind
        value_set_object(&v, self.obj)
        kind = value_kind_name(&v).decode()
        if self.obj.type_index == VT_STORAGE and object_is_own(self.obj):
            return f"<pyvm {kind} of {(<StorageObj*>self.obj).nbytes} bytes>"
        return f"<pyvm {kind}>"


# ---- no empty shells -------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    static void vm_set_new(PyObject *type, PyObject *(*make)(PyTypeObject *, PyObject *, PyObject *)) {
      ((PyTypeObject *)type)->tp_new = make;
    }
    """
    void vm_set_new(object type, object (*make)(PyTypeObject*, PyObject*, PyObject*))


cdef object refuse_new(PyTypeObject* type, PyObject* args, PyObject* kwargs):
    """tp_new of such types."""
    cls = <object>type
    raise errors.ArgumentTypeError(f"{cls.__module__}.{cls.__qualname__} has no public constructor")


cdef void forbid_new(object type) noexcept:
    """Makes `type.__new__` raise: an instance without its native object would crash. Cython code of the type's own
    module still makes instances, by calling its allocation function directly."""
    vm_set_new(type, refuse_new)


for _type in (Tensor, Function, OpaqueObject):
    forbid_new(_type)


# ---- Values ----------------------------------------------------------------------------------------------------------

cdef int to_value(object source, Value* out) except -1:
    """out := source, with one reference of its own; `out` must not own anything before.

    Raises TypeError, ValueError or OverflowError for what has no Value; then `out` is none.
    """
    return nested_to_value(source, out, 0)


cdef int nested_to_value(object source, Value* out, int depth) except -1:
    cdef Py_ssize_t i, n
    cdef ArrayObj* array
    cdef ShapeObj* shape
    cdef StrObj* text
    cdef PyObjectObj* opaque
    cdef bytes encoded
    cdef VmDataType dtype
    cdef int overflow = 0
    cdef (int32_t, int32_t) device
    cdef object kind = type(source)
    value_set_none(out)
    if kind is Tensor:
        object_retain((<Tensor>source).obj)
        value_set(out, VT_TENSOR, <int64_t>(<Tensor>source).obj)
    elif source is None:
        pass
    elif kind is int:
        value_set_int(out, PyLong_AsLongLongAndOverflow(source, &overflow))
        if overflow != 0:
            value_set_none(out)
            raise errors.IntegerRangeError(f"an integer of {source.bit_length()} bits and a sign is no int64")
    elif kind is bool:
        value_set_bool(out, source)
    elif kind is float:
        value_set_float(out, source)
    elif isinstance(source, np.ndarray):
        value_set(out, VT_TENSOR, <int64_t>tensor_from_array(source))
    elif isinstance(source, str):
        try:
            encoded = source.encode()
        except UnicodeEncodeError:
            raise errors.ArgumentValueError(f"a str with {source!a:.60} in it is no text: surrogates") from None
        text = str_new(PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded))
        value_set_object(out, check_pointer(text))
    elif kind is _Shape:
        n = len(source)
        shape = shape_new(NULL, n)
        value_set_object(out, check_pointer(shape))
        for i in range(n):
            shape.inline_data[i] = (<tuple>source)[i]
    elif isinstance(source, (tuple, list)):
        items = tuple(source)
        n = len(items)
        array = array_new(n)
        check_pointer(array)
        try:
            if depth >= MAX_NESTING:  # a list may contain itself
                raise errors.RecursionLimitError(f"a tuple nested more than {MAX_NESTING} deep cannot become a value")
            for i in range(n):
                nested_to_value(items[i], &array.data[i], depth + 1)
        except BaseException:
            object_release(array)
            raise
        value_set_object(out, array)
    elif kind is _DataType:
        dtype.code, dtype.bits, dtype.lanes = source.code, source.bits, source.lanes
        value_set_dtype(out, dtype)
    elif kind is _Device:
        device = source.device_type, source.index
        value_set(out, VT_DEVICE, <int64_t>(<uint64_t><uint32_t>device[0] | <uint64_t><uint32_t>device[1] << 32))
    elif kind is Function:
        object_retain((<Function>source).obj)
        value_set_object(out, (<Function>source).obj)
    elif kind is OpaqueObject:
        object_retain((<OpaqueObject>source).obj)
        value_set_object(out, (<OpaqueObject>source).obj)
    elif isinstance(source, bool):
        value_set_bool(out, bool(source))
    elif isinstance(source, int):
        nested_to_value(int(source), out, depth)
    elif isinstance(source, float) and not isinstance(source, np.generic):
        value_set_float(out, float(source))
    elif isinstance(source, np.generic) or hasattr(source, "__dlpack__"):
        value_set(out, VT_TENSOR, <int64_t>tensor_from_array(as_array(source)))
    elif callable(source):
        value_set_object(out, function_from_callable(source))
    else:
        opaque = <PyObjectObj*>check_pointer(memory_alloc(sizeof(PyObjectObj), MEMORY_OPAQUE))
        object_init(&opaque.head, VT_PYOBJECT, pyobject_delete)
        opaque.head.flags = OBJ_OWN
        Py_INCREF(source)
        opaque.object = <void*>source
        value_set_object(out, opaque)
    return 0


cdef object from_value(const Value* v):
    """A Python object for `v`, which keeps its own reference. Raises TypeError for values Python must not see."""
    cdef int32_t kind = value_type(v)
    cdef VmDataType dtype
    cdef uint64_t size = 0
    cdef const char* text
    cdef ShapeObj* shape
    cdef OpaqueObject opaque
    if kind == VT_TENSOR:
        object_retain(value_ptr(v))
        return wrap_tensor(<TensorObj*>value_ptr(v))
    if kind == VT_INT:
        return v.bits
    if kind == VT_NONE:
        return None
    if kind == VT_BOOL:
        return v.bits != 0
    if kind == VT_FLOAT:
        return value_float(v)
    if kind == VT_STR or kind == VT_SMALL_STR or kind == VT_RAW_STR:
        text = value_str(v, &size)
        return text[:size].decode("utf-8", "replace")
    if kind == VT_SHAPE:
        shape = <ShapeObj*>value_ptr(v)
        return shape_tuple(shape.data, shape.size)
    if kind == VT_ARRAY:
        return array_to_tuple(<ArrayObj*>value_ptr(v), 0, {})
    if kind == VT_DTYPE:
        dtype = value_dtype(v)
        return _DataType.from_triple(dtype.code, dtype.bits, dtype.lanes)
    if kind == VT_DEVICE:
        return _Device(<int32_t><uint32_t><uint64_t>v.bits, <int32_t>(v.bits >> 32))
    if kind == VT_FUNCTION or kind == VT_CLOSURE:
        object_retain(value_ptr(v))
        return wrap_function(<Object*>value_ptr(v), "")
    if kind == VT_PYOBJECT:
        return <object>(<PyObjectObj*>value_ptr(v)).object
    if kind >= 64:
        object_retain(value_ptr(v))
        opaque = OpaqueObject.__new__(OpaqueObject)
        opaque.obj = <Object*>value_ptr(v)
        return opaque
    raise errors.ArgumentTypeError(f"a value of kind '{value_kind_name(v).decode()}' cannot leave the virtual machine")


cdef int MAX_NESTING = 200


cdef object array_to_tuple(ArrayObj* array, int depth, dict made):
    """The Python tuple of `array`. A tuple that occurs again is the same object again: sixty levels of pairs of one
    tuple are sixty tuples, not 2^60."""
    cdef int64_t i
    cdef list items = []
    cdef object key
    if depth >= MAX_NESTING:
        raise errors.RecursionLimitError(f"a tuple nested more than {MAX_NESTING} deep cannot become a Python tuple")
    for i in range(array.size):
        if value_type(&array.data[i]) == VT_ARRAY:
            key = <size_t>value_ptr(&array.data[i])
            if key not in made:
                made[key] = array_to_tuple(<ArrayObj*>value_ptr(&array.data[i]), depth + 1, made)
            items.append(made[key])
        else:
            items.append(from_value(&array.data[i]))
    return tuple(items)


cdef object take_value(Value* v):
    """Like `from_value`, and `v` gives its reference up and becomes none, also when this raises."""
    cdef TensorObj* t
    if value_type(v) == VT_TENSOR:
        t = <TensorObj*>value_ptr(v)
        value_set_none(v)
        return wrap_tensor(t)
    try:
        return from_value(v)
    finally:
        value_clear(v)
