"""Verified programs that mean harm: each ends in a typed error, and the machine works on."""

from __future__ import annotations

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.exec_builder import ExecBuilder
from pyvm.vm import VirtualMachine
from vmcore.types import DataType, Shape

HEAP = "c[0] = tensor int64 (4) [1, 2, 3, 4]"


def run(body: str, *args: object, regs: int = 8) -> object:
    params = ", ".join(f"%{i}" for i in range(len(args)))
    return VirtualMachine(assemble(f"func @main({params}) regs={regs}\n{body}"))["main"](*args)


@pytest.mark.parametrize(
    "call",
    [
        "@pyvm.builtin.store_dim (c[0], 0, 9)",
        "@pyvm.builtin.eval_shape_expr (c[0], 0, shape(0, 9))",
        '@vm.builtin.match_shape (shape(7), c[0], 1, 1, 0, "x: ")',
        '@vm.builtin.match_prim_value (7, c[0], 1, 0, "x: ")',
        "@kernel.neg (c[0], c[0])",
    ],
)
def test_constants_are_not_written(call: str) -> None:
    with pytest.raises(errors.ArgumentValueError, match="read-only"):
        run(f"  call {call}\n  ret c0\n{HEAP}".replace("ret c0", "call @vm.builtin.copy (c[0]) -> %0\n  ret %0"))


def test_a_read_only_input_is_not_written() -> None:
    heap = np.zeros(4, np.int64)
    heap.flags.writeable = False
    with pytest.raises(errors.ArgumentValueError, match="read-only"):
        run("  call @pyvm.builtin.store_dim (%0, 0, 9)\n  ret %0", heap)
    assert not heap.any()


@pytest.mark.parametrize("offset", [1, 2, 7])
def test_misaligned_tensors_are_refused(offset: int) -> None:
    with pytest.raises(errors.ArgumentValueError, match="multiple of the element size"):
        run(
            "  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %1\n"
            f"  call @vm.builtin.alloc_tensor (%1, {offset}, shape(4), dtype(float32)) -> %2\n  ret %2",
            regs=3,
        )


@pytest.mark.parametrize("triple", [(2, 32, 0), (0, 4, 1), (2, 24, 1), (6, 1, 1), (9, 0, 0)])
@pytest.mark.parametrize("through_register", [False, True])
def test_elements_that_cannot_be_stored(triple: tuple[int, int, int], through_register: bool) -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=0):
        b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), Shape((64,)), 0, DataType("uint8")], dst=b.r(0))
        b.emit_call("vm.builtin.copy", [DataType.from_triple(*triple)], dst=b.r(1))
        element = b.r(1) if through_register else DataType.from_triple(*triple)
        b.emit_call("vm.builtin.alloc_tensor", [b.r(0), 0, Shape((4,)), element], dst=b.r(2))
        b.emit_ret(b.r(2))
    with pytest.raises(errors.DTypeMismatchError, match="cannot be stored"):
        VirtualMachine(b.get())["main"]()


@pytest.mark.parametrize("index", [-1, 4, 2**31, 2**54, -(2**54)])
@pytest.mark.parametrize(
    "call",
    [
        '@vm.builtin.match_shape (shape(7), %0, 1, 1, INDEX, "x: ")',
        '@vm.builtin.match_shape (shape(7), %0, 1, 3, INDEX, "x: ")',
        '@vm.builtin.match_prim_value (7, %0, 1, INDEX, "x: ")',
        "@vm.builtin.make_shape (%0, 1, 1, INDEX)",
        "@vm.builtin.make_prim_value (%0, 1, INDEX)",
        "@pyvm.builtin.store_dim (%0, INDEX, 9)",
        "@pyvm.builtin.eval_shape_expr (%0, INDEX, shape(0, 9))",
    ],
)
def test_indices_into_the_shape_heap_are_checked(call: str, index: int) -> None:
    body = f"  call @vm.builtin.alloc_shape_heap (%vm, 4) -> %0\n  call {call.replace('INDEX', str(index))}\n  ret %0"
    with pytest.raises(errors.IndexRangeError, match=str(index)):
        run(body, regs=1)


@pytest.mark.parametrize("heap", [np.zeros(4, np.int32), np.zeros((2, 2), np.int64), 3, "heap", None, (1, 2)])
def test_what_is_no_shape_heap_is_refused(heap: object) -> None:
    for call in ('@vm.builtin.match_shape (shape(7), %0, 1, 1, 3, "x: ")', "@vm.builtin.make_shape (%0, 1, 1, 3)"):
        with pytest.raises((errors.ArgumentTypeError, errors.ArgumentValueError, errors.DTypeMismatchError,
                            errors.ShapeMismatchError, errors.IndexRangeError)):  # fmt: skip
            run(f"  call {call} -> %1\n  ret %1", heap, regs=2)


@pytest.mark.parametrize(
    "dims", ["7", "3, 3", "-6", "-2, -3", "4294967296, 4294967296, 6", "9223372036854775807, 2", "0, -1"]
)
def test_reshape_stays_inside_its_tensor(dims: str) -> None:
    """A shape of fewer elements is a view of the first ones, as in TVM."""
    with pytest.raises((errors.ShapeMismatchError, errors.ArgumentValueError)):
        run(f"  call @vm.builtin.reshape (%0, shape({dims})) -> %1\n  ret %1", np.zeros((2, 3), np.float32), regs=2)


@pytest.mark.parametrize("offset, dims", [(0, "17"), (32, "9"), (64, "1"), (-4, "1"), (0, "4611686018427387904, 4")])
def test_tensors_stay_inside_their_storage(offset: int, dims: str) -> None:
    with pytest.raises((errors.ShapeMismatchError, errors.ArgumentValueError, errors.InternalError)):
        run(
            "  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %0\n"
            f"  call @vm.builtin.alloc_tensor (%0, {offset}, shape({dims}), dtype(float32)) -> %1\n  ret %1",
            regs=2,
        )


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", ["1", '"text"', "shape(2, 3)", "dtype(float32)", "%void", "@main", "%1", "0.5"])
def test_wrong_kinds_of_objects_for_native_kernels(value: str, position: int) -> None:
    """Each where a kernel expects a tensor; %1 is a tuple of tensors."""
    args = ["%0", "%0", "%0"]
    args[position] = value
    x = np.ones((2, 3), np.float32)
    for kernel in ("add", "matmul"):
        with pytest.raises(errors.ArgumentTypeError, match=f"argument {position} must be a tensor"):
            run(f"  call @vm.builtin.make_tuple (%0, %0) -> %1\n  call @kernel.{kernel} ({', '.join(args)})\n  ret %0",
                x, regs=2)  # fmt: skip


def test_misaligned_inputs_are_copied() -> None:
    for shift in (1, 2, 3):
        x = np.zeros(17, np.uint8)[shift : shift + 8].view(np.float32)
        x[:] = (1, 2)
        assert not x.flags.aligned
        body = """
          call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %1
          call @vm.builtin.alloc_tensor (%1, 0, shape(2), dtype(float32)) -> %2
          call @kernel.add (%0, %0, %2)
          ret %2
        """
        assert run(body, x, regs=3).numpy().tolist() == [2, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("dims", ["1125899906842624", "4611686018427387904, 4", "1048576, 1048576, 64", "-1"])
def test_storages_beyond_the_machine_are_refused(dims: str) -> None:
    with pytest.raises((errors.AllocationError, errors.ShapeMismatchError)):
        run(f"  call @vm.builtin.alloc_storage (%vm, shape({dims}), 0, dtype(uint8)) -> %0\n  ret %0", regs=1)


def test_many_storages_beyond_the_machine_are_refused() -> None:
    body = "".join(
        f"  call @vm.builtin.alloc_storage (%vm, shape(17179869184), 0, dtype(uint8)) -> %{i}\n" for i in range(200)
    )
    with pytest.raises(errors.AllocationError):
        run(body + "  ret %0", regs=200)


def test_the_vm_does_not_leave_its_call() -> None:
    program = """
    func @main() regs=3
      call @vm.builtin.make_closure (@give) -> %0
      call @vm.builtin.call_tir_dyn (%0, %vm, shape()) -> %1
      call @vm.builtin.alloc_shape_heap (%1, 4) -> %2
      ret %2
    func @give(%0) regs=1
      ret %0
    func @out() regs=1
      call @give (%vm) -> %0
      ret %0
    """
    vm = VirtualMachine(assemble(program))
    for name in ("main", "out"):
        with pytest.raises(errors.ArgumentTypeError):
            vm[name]()
    vm.set_instrument(lambda *call: None)
    with pytest.raises(errors.ArgumentTypeError):
        vm["main"]()


def test_shared_tuples_stay_shared() -> None:
    body = "  call @vm.builtin.make_tuple (1) -> %0\n" + "  call @vm.builtin.make_tuple (%0, %0) -> %0\n" * 60
    result = run(body + "  ret %0", regs=1)
    for _ in range(60):
        assert isinstance(result, tuple) and result[0] is result[1]
        result = result[0]
    assert result == (1,)


def test_tuples_without_end_are_refused() -> None:
    body = "  call @vm.builtin.make_tuple (1) -> %0\n" + "  call @vm.builtin.make_tuple (%0) -> %0\n" * 100_000
    with pytest.raises(RecursionError):
        run(body + "  ret %0", regs=1)
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        run("  ret %0", endless)


def test_empty_tensors_with_huge_dimensions_take_no_time() -> None:
    x = np.zeros((2**40, 0), np.float32)
    body = """
      call @vm.builtin.alloc_storage (%vm, shape(0), 0, dtype(uint8)) -> %1
      call @vm.builtin.alloc_tensor (%1, 0, shape(1099511627776, 0), dtype(float32)) -> %2
      call @kernel.relu (%0, %2)
      call @kernel.softmax (%0, 1, %2)
      call @kernel.add (%0, %0, %2)
      ret %2
    """
    with pyvm.deadline(5):
        assert run(body, x).shape == (2**40, 0)  # type: ignore[attr-defined]


def test_an_executable_changed_afterwards_changes_nothing() -> None:
    executable = assemble("func @main(%0 x) regs=2\n  call @vm.builtin.copy (%0) -> %1\n  ret %1")
    vm = VirtualMachine(executable)
    executable.instr_data[:] = 2**60
    executable.functions[0].register_file_size = 0
    executable.functions[0].param_names.clear()
    assert vm["main"](x=5) == 5
    vm.set_instrument(lambda *call: None)
    assert vm["main"](6) == 6
