"""Calls a native kernel straight from Python, without a virtual machine: the door for tests and microbenchmarks.

Arguments become Values that live on this call's stack: numpy arrays are passed as they are (not copied, strides
included), so what a kernel refuses can be tested too.
"""
import importlib

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from vmcore.status cimport raise_status
from vmcore.memory cimport MEMORY_SCRATCH, memory_calloc, memory_free
from vmcore.value cimport (
    KernelEntry, OBJ_OWN, OBJ_READONLY, ShapeObj, TensorObj, VT_BOOL, VT_DLTENSOR_PTR, VT_FLOAT, VT_INT, VT_NONE,
    VT_RAW_STR, VT_SHAPE, VT_TENSOR, Value, object_init, value_float, value_release, value_set, value_set_bool,
    value_set_float, value_set_int, value_set_none, value_set_object, value_type,
)

from vmcore import kernels
from vmcore.status import errors
from vmcore.types import DataType, Shape

import numpy as np

ctypedef const KernelEntry* (*TableFn)(int* n) noexcept

cdef dict _addresses = None  # kernel name -> address of its KernelEntry


cdef dict _kernel_addresses():
    """All kernels of the modules that are built, by name."""
    global _addresses
    cdef TableFn table
    cdef const KernelEntry* entries
    cdef int n, i
    if _addresses is not None:
        return _addresses
    found = {}
    for name in kernels.MODULES:
        try:
            module = importlib.import_module(f"vmcore.kernels.{name}")
        except ModuleNotFoundError:
            continue
        capsule = module.__pyx_capi__["kernel_table"]
        table = <TableFn>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))
        entries = table(&n)
        for i in range(n):
            found[(<bytes>entries[i].name).decode()] = <size_t>&entries[i]
    _addresses = found
    return found


cdef class _Arguments:
    """Owns the Values of one call and the memory that they point to."""
    cdef Value* values
    cdef int32_t n
    cdef list keep  # Python objects whose memory the Values point to
    cdef list blocks  # addresses of malloc-ed blocks

    def __cinit__(self, tuple args):
        self.keep = []
        self.blocks = []
        self.n = <int32_t>len(args)
        self.values = <Value*>self.allocate((len(args) + 1) * sizeof(Value))
        for i, arg in enumerate(args):
            self.store(&self.values[i], arg)

    def __dealloc__(self):
        if self.blocks is not None:
            for address in self.blocks:
                memory_free(<void*><size_t>address)

    cdef void* allocate(self, size_t n_bytes) except NULL:
        cdef void* block = memory_calloc(1, n_bytes, MEMORY_SCRATCH)
        if block == NULL:
            raise MemoryError
        self.blocks.append(<size_t>block)
        return block

    cdef int store(self, Value* value, arg) except -1:
        cdef ShapeObj* shape
        cdef int64_t* dims
        if arg is None:
            value_set_none(value)
        elif isinstance(arg, (bool, np.bool_)):
            value_set_bool(value, bool(arg))
        elif isinstance(arg, (int, np.integer)):
            value_set_int(value, arg)
        elif isinstance(arg, (float, np.floating)):
            value_set_float(value, arg)
        elif isinstance(arg, str):
            text = arg.encode()
            self.keep.append(text)
            value_set(value, VT_RAW_STR, <int64_t><size_t><char*>text)
        elif isinstance(arg, Shape):
            shape = <ShapeObj*>self.allocate(sizeof(ShapeObj) + len(arg) * sizeof(int64_t))
            object_init(&shape.head, VT_SHAPE, NULL)
            dims = shape.inline_data
            for i, dim in enumerate(arg):
                dims[i] = dim
            shape.data = dims
            shape.size = len(arg)
            value_set_object(value, shape)
        elif isinstance(arg, np.ndarray):
            self.store_array(value, arg)
        else:
            raise errors.ArgumentTypeError(f"call_kernel: no Value for {type(arg).__name__}")
        return 0

    cdef int store_array(self, Value* value, array) except -1:
        """A tensor object as vmcore makes them, or a bare DLTensor when the array's strides do not fit one."""
        cdef int32_t ndim = array.ndim, i
        cdef TensorObj* tensor = <TensorObj*>self.allocate(sizeof(TensorObj) + 2 * ndim * sizeof(int64_t))
        cdef int64_t* dims = tensor.dims
        dtype = DataType(array.dtype.name)
        tensor.dl.data = <void*><size_t>array.__array_interface__["data"][0]
        tensor.dl.device_type = 1
        tensor.dl.ndim = ndim
        tensor.dl.dtype.code, tensor.dl.dtype.bits, tensor.dl.dtype.lanes = dtype.code, dtype.bits, dtype.lanes
        tensor.dl.shape = dims
        tensor.dl.strides = dims + ndim
        tensor.nbytes = array.nbytes
        compact = array.itemsize
        for i in range(ndim - 1, -1, -1):
            dims[i] = array.shape[i]
            dims[ndim + i] = array.strides[i] // array.itemsize
            if array.flags.c_contiguous:
                dims[ndim + i] = compact // array.itemsize
                compact *= max(array.shape[i], 1)
        self.keep.append(array)
        if array.flags.c_contiguous:
            object_init(&tensor.head, VT_TENSOR, NULL)
            tensor.head.flags = OBJ_OWN if array.flags.writeable else OBJ_OWN | OBJ_READONLY
            value_set_object(value, tensor)
        else:
            value_set(value, VT_DLTENSOR_PTR, <int64_t><size_t>&tensor.dl)
        return 0


cdef const KernelEntry* _find(str name) except NULL:
    address = _kernel_addresses().get(name)
    if address is None:
        address = _kernel_addresses().get(f"kernel.{name}")
    if address is None:
        raise errors.FunctionNotFoundError(f"call_kernel: no kernel named {name!r}")
    return <const KernelEntry*><size_t>address


def kernel_names() -> list[str]:
    """Names of all kernels that are built, sorted."""
    return sorted(_kernel_addresses())


def call_kernel(str name, *args) -> object:
    """Run kernel `name` (with or without the prefix "kernel.") on `args`; output arrays are written in place.

    Parameters
    ----------
    name : str
        Name in the kernel table.
    *args : None, bool, int, float, str, Shape or numpy array
        In the kernel's order, outputs last.

    Returns
    -------
    None, bool, int or float
        What the kernel returned besides its outputs.

    Raises
    ------
    ExecutionError
        Whatever the kernel refuses.
    """
    cdef const KernelEntry* entry = _find(name)
    cdef _Arguments held = _Arguments(args)
    cdef Value ret
    cdef int status
    value_set_none(&ret)
    with nogil:
        status = entry.fn(NULL, held.values, held.n, &ret)
    if status != 0:
        raise_status()
    kind = value_type(&ret)
    if kind == VT_INT:
        return ret.bits
    if kind == VT_BOOL:
        return ret.bits != 0
    if kind == VT_FLOAT:
        return value_float(&ret)
    if kind == VT_NONE:
        return None
    value_release(&ret)
    raise errors.InternalError(f"call_kernel: {name} returned a value of type index {kind}")


def time_kernel(str name, *args, int64_t number = 1000, int repeat = 5) -> float:
    """Nanoseconds of one call of kernel `name`, the best of `repeat` runs of `number` calls; no Python in between."""
    cdef const KernelEntry* entry = _find(name)
    cdef _Arguments held = _Arguments(args)
    cdef Value ret
    cdef timespec start, stop
    cdef int status = 0
    cdef int64_t _i
    cdef double best = 1e300, elapsed
    for _ in range(repeat):
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &start)
            for _i in range(number):
                value_set_none(&ret)
                status |= entry.fn(NULL, held.values, held.n, &ret)
            clock_gettime(CLOCK_MONOTONIC, &stop)
        if status != 0:
            raise_status()
        elapsed = (stop.tv_sec - start.tv_sec) * 1e9 + (stop.tv_nsec - start.tv_nsec)
        best = min(best, elapsed / number)
    return best
