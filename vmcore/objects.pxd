# Native objects and their Python faces. `to_value` and `from_value` are the only conversions between the two worlds.
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint64_t

from vmcore.value cimport ArrayObj, FunctionObj, Object, PackedFn, ShapeObj, StrObj, TensorObj, Value, VmDataType

cdef extern from "vmcore/objects.h" nogil:
    enum:
        VM_MAX_NDIM
    ctypedef struct ClosureObj:
        Object head
        PackedFn safe_call
        void* cpp_call
        Object* machine
        int32_t func_index
        int32_t n_saved
        Value saved[1]
    bint object_is_own(const Object* o)
    void tensor_delete(void* self, int how) noexcept
    TensorObj* tensor_new(int32_t ndim)
    int64_t tensor_set_shape(TensorObj* t, const int64_t* shape, VmDataType dtype)
    ShapeObj* shape_new(const int64_t* dims, uint64_t size)
    StrObj* str_new(const char* text, uint64_t size)
    ArrayObj* array_new(int64_t size)
    ClosureObj* closure_new(Object* machine, int32_t func_index, int32_t n_saved, PackedFn safe_call)
    const char* value_str(const Value* v, uint64_t* size)
    const char* value_kind_name(const Value* v)


cdef class Tensor:
    cdef TensorObj* obj  # owned
    cdef object __weakref__


cdef class Function:
    cdef Object* obj  # owned; a FunctionObj or a ClosureObj
    cdef readonly str name


cdef int to_value(object source, Value* out) except -1
cdef object from_value(const Value* v)
cdef object take_value(Value* v)
cdef Function named_function(Object* obj, str name)
cdef void forbid_new(object type) noexcept
cdef object wrap_tensor(TensorObj* t)
cdef TensorObj* tensor_from_array(cnp.ndarray array) except NULL
cdef bint borrow_array(cnp.ndarray array, TensorObj* t) noexcept
cdef void own_array(TensorObj* t, object array) noexcept
cdef FunctionObj* function_from_callable(object callable) except NULL
cdef FunctionObj* function_from_native(PackedFn fn, void* self, float ns_per_byte) noexcept nogil
cdef int call_python(void* callable, const Value* args, int32_t n_args, Value* ret) except -1
cdef void release_python(void* owner) noexcept nogil
