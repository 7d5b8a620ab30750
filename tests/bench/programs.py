"""The bytecode programs of the dispatch rows, written once for both builders: pyvm's and TVM's have the same methods.

A program repeats one unit `CALLS` times. Where a result can be handed on it is, so that units wait for each other as
they do in a model: `%1 = f(%1)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.bench.report import Target

CALLS = 2000
ALIGNMENT = 64
IDENTITY = "bench.identity"


class Kit(Protocol):
    """What differs between the two: types of constants, names of kernels, how a program becomes callable."""

    name: str
    add_kernel: str

    def builder(self) -> Any: ...
    def function(self, builder: Any) -> Callable[..., Any]: ...
    def tensor(self, array: np.ndarray) -> Any: ...
    def shape(self, dims: tuple[int, ...]) -> Any: ...
    def dtype(self, name: str) -> Any: ...


class PyvmKit:
    """pyvm's side."""

    name = "pyvm"
    add_kernel = "kernel.add"

    def __init__(self, library: Path | None = None) -> None:
        """With `library`, `add` in it is the kernel in place of ours."""
        import pyvm

        self._pyvm = pyvm
        self._libraries = [] if library is None else [pyvm.load_library(library)]
        if library is not None:
            self.add_kernel = "add"
        pyvm.register_func(IDENTITY, lambda value: value, override=True)

    def builder(self) -> Any:
        """A new ExecBuilder."""
        return self._pyvm.ExecBuilder()

    def function(self, builder: Any) -> Callable[..., Any]:
        """`main` of the program in `builder`."""
        return self._pyvm.VirtualMachine(builder.get(), libraries=self._libraries)["main"]

    def tensor(self, array: np.ndarray) -> Any:
        """A tensor of this runtime; aligned like TVM's, so that kernels of libraries take it as it is."""
        memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
        at = -memory.ctypes.data % ALIGNMENT
        aligned = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        aligned[...] = array
        return self._pyvm.tensor(aligned)

    def shape(self, dims: tuple[int, ...]) -> Any:
        """A shape constant."""
        return self._pyvm.Shape(dims)

    def dtype(self, name: str) -> Any:
        """A data type constant."""
        return self._pyvm.DataType(name)


class TvmKit:
    """TVM's side. Its add kernel is compiled by its own LLVM back end for the native processor."""

    name = "TVM"
    add_kernel = "bench.add"

    def __init__(self) -> None:
        import tvm
        from tvm import relax, te

        self._tvm, self._relax = tvm, relax
        tvm.register_global_func(IDENTITY, lambda value: value, override=True)
        a, b = (te.placeholder((16,), "float32", name=name) for name in "ab")
        total = te.compute((16,), lambda i: a[i] + b[i], name="total")
        kernel = te.create_prim_func([a, b, total]).with_attr("global_symbol", "add")
        host = {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}
        self._library = tvm.compile(tvm.IRModule({"add": kernel}), target=tvm.target.Target(host))
        tvm.register_global_func(self.add_kernel, self._library["add"], override=True)

    def export(self, folder: str) -> Path:
        """The add kernel as a shared library."""
        path = Path(folder) / "add.so"
        self._library.export_library(str(path))
        return path

    def builder(self) -> Any:
        """A new ExecBuilder."""
        return self._relax.ExecBuilder()

    def function(self, builder: Any) -> Callable[..., Any]:
        """`main` of the program in `builder`."""
        return self._relax.VirtualMachine(builder.get(), self._tvm.cpu())["main"]

    def tensor(self, array: np.ndarray) -> Any:
        """A tensor of this runtime."""
        return self._tvm.runtime.tensor(array)

    def shape(self, dims: tuple[int, ...]) -> Any:
        """A shape constant."""
        import tvm_ffi

        return tvm_ffi.Shape(dims)

    def dtype(self, name: str) -> Any:
        """A data type constant."""
        return self._tvm.DataType(name)


Emit = Callable[[Any, Kit, int], None]


@dataclass(frozen=True)
class Program:
    """One dispatch row: the unit, what `main` is called with, and what is expected of it."""

    name: str
    unit: Emit
    argument: str = "int"
    prologue: Emit | None = None
    target: Target | None = None


def build(program: Program, kit: Kit, calls: int = CALLS) -> tuple[Callable[..., Any], Any]:
    """`main` of the program on this side, and its argument."""
    b = kit.builder()
    with b.function("leaf", num_inputs=1):
        b.emit_ret(b.r(0))
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(1))
        if program.prologue:
            program.prologue(b, kit, calls)
        for left in range(calls, 0, -1):
            program.unit(b, kit, left)
        b.emit_ret(b.r(1))
        b.emit_ret(b.r(1))  # where `_if_true` would jump
    argument = 1 if program.argument == "int" else kit.tensor(np.arange(16, dtype=np.float32))
    return kit.function(b), argument


def entry_program(kit: Kit) -> Callable[..., Any]:
    """`main` that returns its argument: what a call from Python costs."""
    b = kit.builder()
    with b.function("main", num_inputs=1):
        b.emit_ret(b.r(0))
    return kit.function(b)


def add_program(kit: Kit) -> Callable[..., Any]:
    """`main(x) = x + x` on 16 floats, as the compiler would emit it."""
    b = kit.builder()
    with b.function("main", num_inputs=1):
        _alloc_storage(b, kit, 0)
        _alloc_tensor(b, kit, 0)
        b.emit_call(kit.add_kernel, [b.r(0), b.r(0), b.r(3)])
        b.emit_ret(b.r(3))
    return kit.function(b)


# ---- units; `left` counts down from the number of units to 1


def _unary(name: str) -> Emit:
    def emit(b: Any, kit: Kit, left: int) -> None:
        b.emit_call(name, [b.r(1)], dst=b.r(1))

    return emit


def _check_tensor(b: Any, kit: Kit, left: int) -> None:
    args = [b.r(1), b.imm(1), b.convert_constant(kit.dtype("float32")), b.convert_constant("x")]
    b.emit_call("vm.builtin.check_tensor_info", args)


def _goto(b: Any, kit: Kit, left: int) -> None:
    b.emit_goto(1)


def _if_true(b: Any, kit: Kit, left: int) -> None:
    b.emit_if(b.r(1), left + 1)


def _if_false(b: Any, kit: Kit, left: int) -> None:
    b.emit_if(b.r(2), 2)
    b.emit_ret(b.r(1))


def _zero(b: Any, kit: Kit, left: int) -> None:
    b.emit_call("vm.builtin.copy", [b.imm(0)], dst=b.r(2))


def _alloc_storage(b: Any, kit: Kit, left: int) -> None:
    constants = [b.convert_constant(c) for c in (kit.shape((64,)), kit.dtype("uint8"), "global")]
    b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), constants[0], b.imm(0), *constants[1:]], dst=b.r(2))


def _alloc_tensor(b: Any, kit: Kit, left: int) -> None:
    shape, dtype = b.convert_constant(kit.shape((16,))), b.convert_constant(kit.dtype("float32"))
    b.emit_call("vm.builtin.alloc_tensor", [b.r(2), b.imm(0), shape, dtype], dst=b.r(3))


def _kill(b: Any, kit: Kit, left: int) -> None:
    b.emit_call("vm.builtin.null_value", [], dst=b.r(3))


def _alloc_kill(b: Any, kit: Kit, left: int) -> None:
    _alloc_tensor(b, kit, left)
    _kill(b, kit, left)


def _kernel_only(b: Any, kit: Kit, left: int) -> None:
    b.emit_call(kit.add_kernel, [b.r(0), b.r(0), b.r(3)])


def _storage_and_tensor(b: Any, kit: Kit, left: int) -> None:
    _alloc_storage(b, kit, left)
    _alloc_tensor(b, kit, left)


def _small_operator(b: Any, kit: Kit, left: int) -> None:
    _alloc_tensor(b, kit, left)
    _kernel_only(b, kit, left)
    _kill(b, kit, left)


PROGRAMS = (
    Program("Call -> copy, int", _unary("vm.builtin.copy"), target=Target(10, 4)),
    Program("Call -> copy, tensor", _unary("vm.builtin.copy"), "tensor", target=Target(8, 4)),
    Program("Call -> generic C function (read_if_cond)", _unary("vm.builtin.read_if_cond"), target=Target(8, 4)),
    Program("Call -> generic C function (check_tensor_info)", _check_tensor, "tensor", target=Target(8, 4)),
    Program("VM -> VM call and return, int", _unary("leaf"), target=Target(15, 4)),
    Program("VM -> VM call and return, tensor", _unary("leaf"), "tensor", target=Target(15, 4)),
    Program("Call -> Python identity, int", _unary(IDENTITY), target=Target(3.3, 2.5)),
    Program("Call -> Python identity, tensor", _unary(IDENTITY), "tensor", target=Target(5, 2.5)),
    Program("Goto", _goto, target=Target(2.3, 1.5)),
    Program("If, falls through", _if_true, target=Target(3.5)),
    Program("If, jumps", _if_false, prologue=_zero, target=Target(2.3, 1.5)),  # bound like Goto: by a load
    Program("alloc_tensor + kill", _alloc_kill, "tensor", _alloc_storage),
    Program("add[16] alone", _kernel_only, "tensor", _storage_and_tensor),
    Program("alloc_tensor + add[16] + kill", _small_operator, "tensor", _alloc_storage, Target(12, 4)),
)
# Both virtual machines call the same kernel, compiled by TVM: what is left is theirs alone.
WITH_TVM_KERNEL = Program(
    "alloc_tensor + add[16] + kill, TVM's kernel", _small_operator, "tensor", _alloc_storage, Target(8, 4)
)
