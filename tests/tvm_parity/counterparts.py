"""For each test that TVM has of its Relax VM, the test of ours that covers the same behaviour, or why there is none.

Files of apache/tvm, tests/python/relax, at version 0.27. Tests that TVM runs for both modes of execution ("bytecode",
"compiled") have the counterpart named here for bytecode; compiled functions are covered by `COMPILED`, together.
Names of ours are those of pytest, with "T" for tests/pyvm/test_behaviours.py. `test_counterparts.py` fails when one of
them is gone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Absent:
    """No counterpart, because ..."""

    reason: str


GPU = Absent("needs a GPU; programs run on cpu(0)")
RPC = Absent("there is no RPC; machines and functions travel between processes by pickle (tests/pyvm/test_pickle.py)")
LATER = Absent("KV cache, RNN state, sampling and tensor cache are not among the builtins of this version")
TIR = Absent("our compiler emits no TIR; what a compiled function does at run time is in COMPILED")

T = "tests/pyvm/test_behaviours.py::"
VM = "tests/pyvm/test_vm.py::"
BUILDER = "tests/pyvm/test_exec_builder.py::"
PROGRAM = "tests/pyvm/test_programs.py::test_program"
BUILTIN = "tests/vmcore/test_builtins.py::test_as_in_tvm"
OURS = "tests/vmcore/test_builtins.py::test_ours"

COMPILED = (
    "tests/vmcore/test_library.py::test_compiled_functions",
    "tests/vmcore/test_library.py::test_compiled_functions_call_functions_of_the_program",
    "tests/vmcore/test_library.py::test_errors_of_compiled_functions",
    "tests/tvm_parity/test_libraries.py::test_models_built_by_tvm[compiled]",
)

COUNTERPARTS: dict[str, dict[str, tuple[str, ...] | Absent]] = {
    "test_vm_execbuilder.py": {
        "test_vm_execute": (T + "test_several_functions_of_one_executable", BUILDER + "test_a_program_runs"),
        "test_vm_multiple_func": (T + "test_several_functions_of_one_executable",),
        "test_vm_checker": (
            BUILDER + "test_reading_a_register_that_is_never_written",
            BUILDER + "test_returning_a_register_that_is_never_written",
            BUILDER + "test_a_register_written_on_one_path_only",
        ),
        "test_neg_imm": (T + "test_negative_immediates",),
        "test_emit_cache": (BUILDER + "test_constants_are_shared_by_value",),
        "test_vm_formalize": (BUILDER + "test_equal_programs_with_other_register_numbers_are_equal",),
        "test_vm_operand": (T + "test_numbers_and_devices_are_arguments",),
        "test_vm_shapeof": (T + "test_a_tensor_as_a_constant_argument",),
        "test_vm_storage": (T + "test_storage_and_tensors_are_made_by_calls",),
        "test_vm_goto": (T + "test_goto_skips",),
        "test_vm_if": (T + "test_both_branches",),
        "test_vm_invoke_closure": (
            T + "test_a_closure_is_called_with_arguments_before_what_it_captured",
            VM + "test_invoke_closure",
        ),
        "test_vm_stack_restore_after_failure": (
            T + "test_a_failed_call_leaves_nothing_behind",
            VM + "test_registers_are_released_after_a_failure",
        ),
    },
    "test_vm_codegen_only.py": {
        "test_vm_copy": (BUILTIN + "[copy tensor]", T + "test_constants_are_results"),
        "test_if_cond_const": (T + "test_a_constant_as_condition",),
        "test_vm_exec_serialize_export_library": (
            T + "test_a_file_is_the_executable",
            "tests/pyvm/test_tvm_format.py::test_round_trip",
            "tests/pyvm/test_tvm_format.py::test_both_versions",
        ),
        "test_if_cond": (T + "test_both_branches",),
        "test_vm_return_const_tuple": (T + "test_constants_in_a_tuple_and_as_arguments",),
        "test_vm_const_as_call_arg": (T + "test_constants_in_a_tuple_and_as_arguments",),
        "test_shape_check_builtin": (T + "test_checks_at_the_entry_of_a_function",),
        "test_prim_value": (T + "test_constants_are_results[1]",),
        "test_string_imm": (T + "test_constants_are_results['hello']",),
        "test_datatype_imm": (T + "test_constants_are_results[DataType('float32')]",),
        "test_vm_builtin_reshape": (
            BUILTIN + "[reshape]",
            "tests/vmcore/test_builtins.py::test_views_share_bytes_and_keep_them",
        ),
        "test_vm_kill_object": (T + "test_storage_is_used_again_after_its_tensor_died",),
    },
    "test_vm_codegen_tir.py": {
        "test_add": TIR,
        "test_tir_call": TIR,
        "test_if_cond": TIR,
        "test_const": TIR,
        "test_const_call": TIR,
    },
    "test_vm_build.py": {
        "test_vm_compile_simple": (PROGRAM + "[python_in_the_middle]",),
        "test_vm_compile_without_target_arg": ("tests/pyvm/test_compile.py::test_compile_a_module",),
        "test_vm_compile_unlowered_operator_error": (
            T + "test_what_cannot_be_compiled_is_named",
            "tests/pyvm/codegen/test_vmcodegen.py::test_what_a_pass_should_have_lowered_is_an_error",
        ),
        "test_match_check": (T + "test_results_are_checked",),
        "test_vm_compile_stage2": (T + "test_a_cast_gives_names_to_dimensions",),
        "test_vm_compile_stage3": (PROGRAM + "[python_fills_the_result]",),
        "test_vm_compile_e2e": (T + "test_compiled[python fills a result of computed shape]",),
        "test_vm_compile_e2e_func_param_with_shape": (T + "test_compiled[dimensions of several parameters]",),
        "test_call_tir_inplace_e2e_simple": (T + "test_calls_in_place",),
        "test_call_tir_inplace_e2e_rw": (T + "test_calls_in_place",),
        "test_vm_emit_te_extern": (
            T + "test_compiled[dimensions of several parameters]",  # our matmul calls BLAS
            "tests/vmcore/test_blas.py::test_one_provider_is_bound",
        ),
        "test_vm_emit_te_concat": (T + "test_compiled[sum of dimensions]",),
        "test_vm_emit_te_dtype_change": (T + "test_compiled[another element type]",),
        "test_vm_emit_te_floor_symbolic_shape": (T + "test_compiled[half of the elements]",),
        "test_vm_emit_te_constant_param_cpu": (T + "test_compiled[a constant]",),
        "test_vm_emit_te_constant_param_gpu": GPU,
        "test_vm_relax_symbolic_shape": (
            T + "test_compiled[a parameter of computed shape]",
            T + "test_compiled_programs_refuse",
        ),
        "test_vm_relax_symbolic_shape_tuple": (
            T + "test_compiled[a shape as a parameter]",
            T + "test_compiled_programs_refuse",
        ),
        "test_vm_relax_symbolic_prim_value": (T + "test_compiled[a number as a parameter]",),
        "test_vm_relax_multiple_symbolic_prim_value": (T + "test_compiled[numbers define what shapes use]",),
        "test_vm_relax_prim_value_fp32": (PROGRAM + "[scalars_and_strings]",),
        "test_vm_relax_dyn_tir_shape": (T + "test_compiled[a parameter of computed shape]",),
        "test_vm_tuple": (T + "test_compiled[tuples of tuples]",),
        "test_vm_tuplegetitem": (T + "test_compiled[fields of a tuple]",),
        "test_lower_memory_alloc_storage_tensor": (T + "test_storage_and_tensors_are_made_by_calls",),
        "test_sub_func_call": (T + "test_compiled[functions call functions]",),
        "test_recursion": (T + "test_compiled[recursion]",),
        "test_vm_to_device": ("tests/vmcore/test_builtins.py::test_to_device_copies", OURS + "[to_device index]"),
        "test_vm_closure": (PROGRAM + "[closure_captures]", PROGRAM + "[function_returned]"),
        "test_time_evaluator": (T + "test_timing_of_every_kind_of_call", VM + "test_time_evaluator"),
        "test_multi_systemlib": (T + "test_libraries_with_the_same_names_stay_apart",),
        "test_set_input": (T + "test_compiled", VM + "test_stateful_interface"),
        "test_set_input_tuple": (T + "test_compiled[a tuple as a parameter]",),
        "test_save_function_kwargs": (T + "test_compiled", VM + "test_save_function"),
        "test_save_function_kwargs_rpc": RPC,
        "test_save_function_time_evaluator": (T + "test_timing_of_every_kind_of_call",),
        "test_save_function_time_evaluator_rpc": RPC,
        "test_set_input_stateless_failure": (T + "test_kept_inputs_are_no_arguments_of_a_call",),
        "test_set_input_stateless_failure_rpc": RPC,
        "test_set_input_invoke_failure": (VM + "test_stateful_failures",),
        "test_set_input_invoke_failure_rpc": RPC,
        "test_set_input_get_failure": (VM + "test_stateful_failures",),
        "test_set_input_get_failure_rpc": RPC,
        "test_relax_module_with_multiple_targets": GPU,
    },
    "test_vm_instrument.py": {
        "test_conv2d_cpu": (T + "test_an_instrument_counts_and_skips", VM + "test_instrument_sees_every_call"),
        "test_lib_comparator": (T + "test_an_instrument_compares_each_kernel_with_another",),
    },
    "test_vm_callback_function.py": {
        "test_pass_tensor_to_function": (T + "test_a_callback_gets_a_computed_tensor",),
        "test_generate_tensor_in_function": (T + "test_a_callback_makes_a_tensor",),
        "test_catch_exception_with_full_stack_trace": (
            T + "test_a_callback_s_exception_has_its_python_frames",
            VM + "test_a_callee_s_exception_arrives_unchanged_with_the_full_trace",
        ),
    },
    "test_vm_multi_device.py": {
        "test_multi_cpu": (VM + "test_devices",),  # a list of cpu(0); cpu(1) is refused by name
        "test_multi_gpu": GPU,
        "test_multi_device": GPU,
    },
    "test_vm_profiler.py": {
        "test_conv2d_cpu": (T + "test_a_profile_of_kept_inputs", "tests/pyvm/test_profile.py::test_table"),
        "test_rpc": (T + "test_a_profile_of_kept_inputs",),  # what it profiles; RPC itself: see RPC
        "test_tuple": (T + "test_a_profile_of_nested_tuples",),
    },
    "test_vm_builtin_lower.py": {
        "test_vm_builtin_lower_mem_alloc_storage": (
            "tests/pyvm/transform/test_lower.py::test_static_tensors_share_one_arena",
        ),
        "test_vm_builtin_alloc_tensor_raises_error": (
            "tests/pyvm/codegen/test_vmcodegen.py::test_what_a_pass_should_have_lowered_is_an_error",
        ),
        "test_vm_reshape_may_be_var": (PROGRAM + "[reshaped_by_argument]",),
        "test_vm_reshape_using_tensor_to_shape": (
            BUILTIN + "[tensor_to_shape int64]",
            "tests/pyvm/frontend/test_shape_values.py",
        ),
    },
    "test_vm_builtin.py": {
        "test_multinomial_from_uniform": LATER,
        "test_alloc_tensor_raises_out_of_memory": (OURS + "[alloc_storage huge]",),
    },
    "test_vm_alloc_storage_with_scope.py": {
        "test_alloc_storage_with_scope_global": (
            T + "test_storage_and_tensors_are_made_by_calls",
            "tests/vmcore/test_storage.py::test_the_naive_allocator_keeps_nothing",
        ),
    },
    "test_vm_cuda_graph.py": {"test_vm_run": GPU, "test_capture_error_is_recoverable": GPU},
    "test_runtime_builtin.py": {
        "test_make_shape": (BUILTIN + "[make_shape heap]",),
        "test_match_shape": (
            BUILTIN + "[match_shape code 0]",
            BUILTIN + "[match_shape code 1]",
            BUILTIN + "[match_shape code 2]",
            BUILTIN + "[match_shape code 3]",
            BUILTIN + "[match_shape rank]",
            BUILTIN + "[match_shape differs]",
        ),
        "test_check_shape_info": (
            BUILTIN + "[check_shape_info any]",
            BUILTIN + "[check_shape_info length]",
            BUILTIN + "[check_shape_info tuple]",
        ),
        "test_check_tensor_info": (
            BUILTIN + "[check_tensor_info any]",
            BUILTIN + "[check_tensor_info no dtype]",
            BUILTIN + "[check_tensor_info ndim]",
            BUILTIN + "[check_tensor_info dtype]",
            BUILTIN + "[check_tensor_info tuple]",
            VM + "test_mismatch_messages",
        ),
        "test_check_tuple_info": (BUILTIN + "[check_tuple_info length]", BUILTIN + "[check_tuple_info tensor]"),
        "test_check_func_info": (BUILTIN + "[check_func_info packed]", BUILTIN + "[check_func_info tensor]"),
        "test_tuple_getitem": (BUILTIN + "[tuple_getitem]",),
        "test_attention_kv_cache": LATER,
        "test_tensor_cache": LATER,
        "test_tensor_cache_update": LATER,
        "test_attention_kv_cache_window_override": LATER,
        "test_attention_kv_cache_window_override_with_sinks": LATER,
    },
}
