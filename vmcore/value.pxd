# Cython names for value.h: Values, objects and their reference counts. No code of its own.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "vmcore/value.h" nogil:
    const uint64_t OBJ_NEW_COUNTS
    ctypedef struct Value:
        uint64_t tag
        int64_t bits

    enum:
        VT_NONE, VT_INT, VT_BOOL, VT_FLOAT, VT_OPAQUE_PTR, VT_DTYPE, VT_DEVICE, VT_DLTENSOR_PTR, VT_RAW_STR
        VT_BYTE_ARRAY_PTR, VT_RVALUE_REF, VT_SMALL_STR, VT_SMALL_BYTES, VT_OBJECT, VT_STR, VT_BYTES, VT_ERROR
        VT_FUNCTION, VT_SHAPE, VT_TENSOR, VT_ARRAY, VT_MAP, VT_MODULE, VT_PYOBJECT, VT_STORAGE, VT_CLOSURE
    enum:
        ERR_NONE, ERR_TYPE, ERR_VALUE, ERR_INDEX, ERR_SHAPE, ERR_DTYPE, ERR_ALLOC, ERR_KERNEL, ERR_RECURSION
        ERR_DEADLINE, ERR_INTERRUPT, ERR_INTERNAL, ERR_PYTHON, ERR_NOT_FOUND
    enum:
        DL_INT, DL_UINT, DL_FLOAT, DL_HANDLE, DL_BFLOAT, DL_COMPLEX, DL_BOOL
    enum:
        OBJ_DELETE_STRONG, OBJ_DELETE_WEAK, OBJ_DELETE_BOTH
    enum:
        TENSOR_INLINE_NDIM, OBJ_OWN, OBJ_OWN_MASK, OBJ_READONLY

    ctypedef int (*PackedFn)(void* self, const Value* args, int32_t n_args, Value* ret) noexcept nogil

    ctypedef int (*DirectFn2)(const Value* x, const Value* out) noexcept nogil
    ctypedef int (*DirectFn3)(const Value* a, const Value* b, const Value* out) noexcept nogil

    ctypedef struct KernelEntry:
        const char* name
        PackedFn fn
        float ns_per_byte

    ctypedef struct DirectEntry:
        const char* name
        DirectFn2 direct2
        DirectFn3 direct3
        int64_t (*site_bytes)(const Value* const* literals, int32_t n_args) noexcept nogil

    ctypedef struct Object:
        uint64_t counts
        int32_t type_index
        uint32_t flags
        void (*deleter)(void* self, int how) noexcept nogil

    ctypedef struct VmDataType:
        uint8_t code, bits
        uint16_t lanes

    ctypedef struct DLTensor:
        void* data
        int32_t device_type, device_id, ndim
        VmDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

    ctypedef struct StorageObj:
        Object head
        void* data
        int64_t nbytes
        void* owner
        uint64_t home
        int64_t idle_refs

    ctypedef struct TensorObj:
        Object head
        DLTensor dl
        Object* storage
        int64_t nbytes
        uint64_t layout
        void* owner
        void (*release_owner)(void* owner) noexcept nogil
        void* wrapper
        uint64_t home
        int64_t slot
        int64_t dims[12]

    ctypedef struct ShapeObj:
        Object head
        const int64_t* data
        uint64_t size
        int64_t inline_data[1]

    ctypedef struct StrObj:
        Object head
        const char* data
        uint64_t size
        char inline_data[1]

    ctypedef struct ArrayObj:
        Object head
        Value* data
        int64_t size, capacity
        void (*data_deleter)(void*) noexcept nogil
        Value items[1]

    ctypedef struct FunctionObj:
        Object head
        PackedFn safe_call
        void* cpp_call
        PackedFn fn
        void* self
        float ns_per_byte
        int32_t is_python
        const DirectEntry* direct
        int32_t is_library

    ctypedef struct PyObjectObj:
        Object head
        void* object

    void value_copy(Value* dst, const Value* src)
    void value_set(Value* dst, uint64_t tag, int64_t bits)
    int32_t value_type(const Value* v)
    bint value_is_object(const Value* v)
    void* value_ptr(const Value* v)
    double value_float(const Value* v)
    void value_set_none(Value* v)
    void value_set_int(Value* v, int64_t i)
    void value_set_bool(Value* v, bint b)
    void value_set_float(Value* v, double d)
    void value_set_object(Value* v, void* object)
    void value_set_dtype(Value* v, VmDataType t)
    VmDataType value_dtype(const Value* v)
    void object_init(Object* o, int32_t type_index, void (*deleter)(void*, int) noexcept nogil)
    void object_retain(void* object)
    void object_release(void* object)
    void value_retain(const Value* v)
    void value_release(const Value* v)
    void value_move(Value* dst, Value* src)
    void value_clear(Value* v)
    bint dtype_equal(VmDataType a, uint8_t code, uint8_t bits)
    bint dtype_same(VmDataType a, VmDataType b)
    int64_t dtype_bytes(VmDataType t)
    const DLTensor* value_dltensor(const Value* v)
    bint value_is_writable(const Value* v)
    void* dltensor_data(const DLTensor* t)
    int64_t dltensor_numel(const DLTensor* t)
    bint dltensor_is_compact(const DLTensor* t)
    bint dltensor_same_shape(const DLTensor* a, const DLTensor* b)
    const char* dltensor_describe(char* buf, size_t size, const DLTensor* t)
    ctypedef int (*FailFn)(int kind, const char* message) noexcept nogil
    int fail_format(FailFn sink, int kind, const char* format, ...)
