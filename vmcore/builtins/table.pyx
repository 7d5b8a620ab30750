"""The builtins by name, and which of them the decoder knows."""
from vmcore.arena cimport b_check_upper_bound, b_plan_arena
from vmcore.builtins.checks cimport (
    b_check_func_info, b_check_prim_value_info, b_check_shape_info, b_check_string_info, b_check_tensor_info,
    b_check_tuple_info,
)
from vmcore.builtins.shapes cimport (
    b_alloc_shape_heap, b_eval_shape_expr, b_make_prim_value, b_make_shape, b_match_prim_value, b_match_shape,
    b_shape_of, b_shape_to_tensor, b_store_dim, b_tensor_scalar, b_tensor_to_shape,
)
from vmcore.builtins.tensors cimport (
    b_alloc_storage, b_alloc_tensor, b_ensure_zero_offset, b_reshape, b_stack_push, b_stack_rows, b_to_device,
)
from vmcore.builtins.values cimport (
    b_call_tir_dyn, b_copy, b_invoke_closure, b_make_closure, b_make_tuple, b_null_value, b_read_if_cond,
    b_tuple_getitem, b_tuple_reset_item,
)
from vmcore.program cimport I_ALLOC_STORAGE, I_ALLOC_TENSOR, I_CALL, I_CALL_CLOSURE, I_COPY, I_NULL, I_TUPLE_GET
from vmcore.value cimport KernelEntry, PackedFn

cdef KernelEntry[40] _table
cdef int _n_entries = 0


cdef void add(const char* name, PackedFn fn, float ns_per_byte=0.0) noexcept:
    global _n_entries
    _table[_n_entries].name = name
    _table[_n_entries].fn = fn
    _table[_n_entries].ns_per_byte = ns_per_byte
    _n_entries += 1


cdef const KernelEntry* builtin_table(int* n) noexcept:
    n[0] = _n_entries
    return _table


cdef int builtin_opcode(PackedFn fn) noexcept nogil:
    """The internal opcode of a builtin, I_CALL for all other functions."""
    if fn == b_copy:
        return I_COPY
    if fn == b_null_value:
        return I_NULL
    if fn == b_tuple_getitem:
        return I_TUPLE_GET
    if fn == b_alloc_storage:
        return I_ALLOC_STORAGE
    if fn == b_alloc_tensor:
        return I_ALLOC_TENSOR
    if fn == b_invoke_closure:
        return I_CALL_CLOSURE
    return I_CALL


cdef bint builtin_allocates(PackedFn fn) noexcept nogil:
    """Whether `fn` takes the allocator that it uses as its self."""
    return fn == b_shape_to_tensor or fn == b_to_device or fn == b_ensure_zero_offset or fn == b_stack_push \
        or fn == b_stack_rows


add("vm.builtin.alloc_storage", b_alloc_storage)
add("vm.builtin.alloc_tensor", b_alloc_tensor)
add("vm.builtin.null_value", b_null_value)
add("vm.builtin.copy", b_copy)
add("vm.builtin.make_tuple", b_make_tuple)
add("vm.builtin.tuple_getitem", b_tuple_getitem)
add("vm.builtin.tuple_reset_item", b_tuple_reset_item)
add("vm.builtin.read_if_cond", b_read_if_cond)
add("vm.builtin.alloc_shape_heap", b_alloc_shape_heap)
add("vm.builtin.match_shape", b_match_shape)
add("vm.builtin.match_prim_value", b_match_prim_value)
add("vm.builtin.make_shape", b_make_shape)
add("vm.builtin.make_prim_value", b_make_prim_value)
add("vm.builtin.shape_of", b_shape_of)
add("vm.builtin.tensor_to_shape", b_tensor_to_shape)
add("vm.builtin.reshape", b_reshape)
add("vm.builtin.to_device", b_to_device, 0.1)
add("vm.builtin.ensure_zero_offset", b_ensure_zero_offset, 0.1)
add("vm.builtin.check_tensor_info", b_check_tensor_info)
add("vm.builtin.check_shape_info", b_check_shape_info)
add("vm.builtin.check_tuple_info", b_check_tuple_info)
add("vm.builtin.check_prim_value_info", b_check_prim_value_info)
add("vm.builtin.check_func_info", b_check_func_info)
add("vm.builtin.check_string_info", b_check_string_info)
add("vm.builtin.make_closure", b_make_closure)
add("vm.builtin.invoke_closure", b_invoke_closure)
add("vm.builtin.call_tir_dyn", b_call_tir_dyn)
add("pyvm.builtin.eval_shape_expr", b_eval_shape_expr)
add("pyvm.builtin.plan_arena", b_plan_arena)
add("pyvm.builtin.check_upper_bound", b_check_upper_bound)
add("pyvm.builtin.stack_push", b_stack_push, 0.1)
add("pyvm.builtin.stack_rows", b_stack_rows, 0.1)
add("pyvm.builtin.tensor_scalar", b_tensor_scalar)
add("pyvm.builtin.store_dim", b_store_dim)
add("pyvm.builtin.shape_to_tensor", b_shape_to_tensor)
