"""Functions of shared libraries and compiled functions, with a library built from library.c."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
from vmcore.library import Library, load_library, workspace_bytes

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def build(folder: Path, *flags: str) -> Path:
    path = folder / "library.so"
    source = Path(__file__).with_name("library.c")
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-Wl,-z,lazy", *flags, str(source), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    yield load_library(build(tmp_path_factory.mktemp("library")))


@pytest.fixture
def callback() -> Iterator[Callable[[Callable[..., Any]], None]]:
    target: list[Callable[..., Any]] = []
    pyvm.register_func("t.lib.callback", lambda *args: target[-1](*args), override=True)
    yield target.append
    pyvm.remove_global_func("t.lib.callback")
    target.clear()  # the library has taken the function's address: it is never forgotten


def floats(n: int, offset: int = 0) -> np.ndarray:
    """n numbers, `offset` elements after a 64-byte boundary."""
    block = np.zeros(n + 32, np.float32)
    start = (-block.ctypes.data % 64) // 4 + offset
    view = block[start : start + n]
    view[:] = np.arange(n)
    return view


def test_opening(library: Library, tmp_path: Path) -> None:
    assert load_library(library.path) is library and "library.so" in repr(library)
    assert "lib_add" in library and "lib_nobody" not in library and "a\0b" not in library
    with pytest.raises(errors.FunctionNotFoundError, match="lib_nobody"):
        library["lib_nobody"]
    with pytest.raises(errors.LinkError, match="cannot open shared object file"):
        load_library(tmp_path / "missing.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(errors.LinkError):
        load_library(tmp_path / "text.so")
    with pytest.raises(TypeError):
        Library()
    with pytest.raises(errors.LinkError, match="-z lazy"):
        load_library(build(tmp_path, "-Wl,-z,now"))


def test_scalars_and_strings(library: Library) -> None:
    assert library["lib_half"](5) == 2.5 == library["lib_half"](5.0)
    assert library["lib_length"]("grün") == 5
    assert library["lib_kinds"](None, 1, True, 0.5, "s", floats(2)) == 1020308_70


@pytest.mark.parametrize("value", [pyvm.Shape((1, 2)), (1, 2), len, object(), pyvm.get_global_func])
def test_no_other_object_reaches_a_library(library: Library, value: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="lib_kinds: argument #1: .* takes tensors"):
        library["lib_kinds"](1, value)


PROGRAM = """
func @main(%0, %1) regs=6
  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8), "global") -> %2
  call @vm.builtin.alloc_tensor (%2, OFFSET, shape(4), dtype(float32)) -> %3
  call @lib_add (%0, %1, %3) -> %4
  ret %3
"""


@pytest.mark.parametrize("offset", [0, 4, 16])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_kernels_see_aligned_tensors(library: Library, offset: int, shift: int) -> None:
    vm = VirtualMachine(assemble(PROGRAM.replace("OFFSET", str(offset))), libraries=[library])
    x, y = floats(4, shift), floats(4, 2 * shift)
    before = x.copy()
    np.testing.assert_array_equal(vm["main"](x, y), x + y)
    np.testing.assert_array_equal(x, before)


def test_in_place_on_misaligned_bytes(library: Library) -> None:
    for shift in (0, 1):
        x = floats(4, shift)
        library["lib_add"](x, x, x)
        np.testing.assert_array_equal(x, [0, 2, 4, 6])


def test_read_only_output_is_refused(library: Library) -> None:
    x, out = floats(4), floats(4)
    out.flags.writeable = False
    with pytest.raises(errors.ArgumentValueError, match=r"argument #2 was written, but is read-only"):
        library["lib_add"](x, x, out)
    np.testing.assert_array_equal(out, [0, 1, 2, 3])
    assert library["lib_first"](out) == 0.0


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("TypeError", TypeError), ("ValueError", ValueError), ("IndexError", IndexError), ("MemoryError", MemoryError),
        ("InternalError", errors.InternalError), ("RuntimeError", RuntimeError), ("AttributeError", errors.KernelError),
    ],
)  # fmt: skip
def test_errors_of_kernels(library: Library, kind: str, error: type[Exception]) -> None:
    program = f'func @main() regs=1\n  call @lib_fail ("{kind}") -> %0\n  ret %0'
    vm = VirtualMachine(assemble(program), libraries=[library])
    for _ in range(2):
        with pytest.raises(error, match="library: as asked") as caught:
            vm["main"]()
        assert "in @main, pc 0" in caught.value.__notes__[0]


def test_failures_without_manners(library: Library) -> None:
    with pytest.raises(errors.InternalError, match="without storing an error"):
        library["lib_silent"]()
    with pytest.raises(errors.KernelError, match="kind 4"):
        library["lib_pointer"]()


def test_libraries_come_before_the_registry(library: Library) -> None:
    pyvm.register_func("lib_half", lambda x: "registry", override=True)
    try:
        program = assemble("func @main(%0) regs=2\n  call @lib_half (%0) -> %1\n  ret %1")
        assert VirtualMachine(program)["main"](3) == "registry"
        assert VirtualMachine(program, libraries=[library])["main"](3) == 1.5
    finally:
        pyvm.remove_global_func("lib_half")
    with pytest.raises(errors.FunctionNotFoundError, match="lib_half"):
        VirtualMachine(program)
    with pytest.raises(TypeError):
        VirtualMachine(program, libraries=["library.so"])  # type: ignore[list-item]


def test_callbacks(library: Library, callback: Callable[[Callable[..., Any]], None]) -> None:
    kept = []

    def double(tensor: Any, number: int, text: str) -> None:
        kept.append((tensor, number, text))
        tensor.numpy()[:] *= 2

    callback(double)
    assert library["lib_callback"]() == 20.0
    tensor, number, text = kept[0]
    assert (number, text) == (5, "text")
    np.testing.assert_array_equal(tensor, [2, 4, 6, 8], err_msg="what Python keeps is its own")
    callback(lambda *args: None)
    assert library["lib_callback"]() == 10.0
    callback(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        library["lib_callback"]()
    with pytest.raises(errors.FunctionNotFoundError, match=r"Cannot find function t\.lib\.nobody"):
        library["lib_missing"]()


def test_parallel_launch(library: Library) -> None:
    for threads in (1, 2, 3):
        before = pyvm.get_num_threads()
        pyvm.set_num_threads(threads)
        try:
            assert library["lib_sum_to"](1000) == 499_500
            with pytest.raises(ValueError, match="thirteen"):
                library["lib_sum_to"](13)
        finally:
            pyvm.set_num_threads(before)


def test_workspaces_of_libraries_are_counted_and_limited(library: Library) -> None:
    text = "func @main(%0) regs=2\n call @lib_sum_to (%0) -> %1\n ret %1"
    vm = VirtualMachine(assemble(text), libraries=[library], memory_limit=1 << 16)
    assert vm["main"](1000) == 499_500
    assert vm.memory_report()["scratch_bytes"] == workspace_bytes() == 0  # it gave back what it took
    vm = VirtualMachine(assemble(text), libraries=[library], memory_limit=64)
    with pytest.raises(errors.AllocationError, match="no workspace") as caught:
        vm["main"](1000)
    assert "call @lib_sum_to" in caught.value.__notes__[0]
    assert library["lib_sum_to"](1000) == 499_500


COMPILED = """
native @depth(%0) regs=2
native @add(%0, %1) regs=5
native @apply(%0, %1) regs=3
native @value_of(%0) regs=2
func @identity(%0) regs=1
  ret %0
native @refuse() regs=1
native @leak() regs=1
native @forever() regs=1
func @main(%0, %1) regs=3
  call @add (%0, %1) -> %2
  call @add (%2, %1) -> %2
  ret %2
func @deeper(%0) regs=2
  call @refuse () -> %1
  ret %1
func @through(%0) regs=3
  call @vm.builtin.invoke_closure (%vm, @apply, IDENTITY, %0) -> %1
  call @vm.builtin.make_closure (@apply, %1) -> %2
  call @vm.builtin.invoke_closure (%vm, %2, IDENTITY) -> %1
  call @t.lib.py (%1) -> %1
  ret %1
c[0] = shape(4096)
c[1] = dtype(uint8)
c[2] = dtype(float32)
""".replace("IDENTITY", "4")
INDEX = {info.name: i for i, info in enumerate(assemble(COMPILED).functions)}


@pytest.fixture
def compiled(library: Library) -> Iterator[VirtualMachine]:
    pyvm.register_func("t.lib.py", lambda x: x, override=True)
    yield VirtualMachine(assemble(COMPILED), libraries=[library])
    pyvm.remove_global_func("t.lib.py")


@pytest.mark.parametrize("shift", [0, 1])
def test_compiled_functions(compiled: VirtualMachine, shift: int) -> None:
    x, y = floats(6, shift).reshape(2, 3), floats(6, 2 * shift).reshape(2, 3)
    for _ in range(3):
        np.testing.assert_array_equal(compiled["add"](x, y), x + y)
        np.testing.assert_array_equal(compiled["main"](x, y), x + 2 * y)
    assert compiled.function_names()[:2] == ["depth", "add"]
    with pytest.raises(errors.LinkError, match="'depth' is a compiled function"):
        VirtualMachine(compiled.executable)


def test_compiled_functions_call_functions_of_the_program(compiled: VirtualMachine) -> None:
    assert compiled["apply"](INDEX["identity"], "x") == "x"
    assert compiled["apply"](INDEX["depth"], 20) == 20
    assert compiled["apply"](INDEX["t.lib.py"], (1, "a")) == (1, "a")
    assert compiled["through"]("y") == "y"
    assert compiled["depth"](300) == 300
    with pytest.raises(RecursionError, match="use the C stack"):
        compiled["depth"](5000)
    assert compiled["depth"](300) == 300
    with pytest.raises(TypeError, match="takes 2 arguments, got 1"):
        compiled["apply"](INDEX["add"], 1)


def test_a_function_value_outlives_the_machine(library: Library) -> None:
    pyvm.register_func("t.lib.py", lambda x: x, override=True)
    vm = VirtualMachine(assemble(COMPILED), libraries=[library])
    f, g = vm["value_of"](INDEX["identity"]), vm["value_of"](INDEX["depth"])
    del vm
    assert f("late") == "late" and g(5) == 5
    pyvm.remove_global_func("t.lib.py")


def test_errors_of_compiled_functions(compiled: VirtualMachine) -> None:
    with pytest.raises(ValueError, match="library: refused") as caught:
        compiled["deeper"](1)
    assert [note.split(":")[0] for note in caught.value.__notes__] == ["in @refuse, compiled", "in @deeper, pc 4"]
    with pytest.raises(ValueError, match="library: refused") as caught:
        compiled["apply"](INDEX["deeper"], 1)
    names = [note.split(",")[0] for note in caught.value.__notes__]
    assert names == ["in @refuse", "in @deeper", "in @apply"]
    with pytest.raises(TypeError, match="expected Tensor"):
        compiled["add"](floats(2), 1)
    with pytest.raises(errors.InternalError, match="cannot be kept"):
        compiled["leak"]()
    assert compiled["apply"](INDEX["identity"], "x") == "x"


def test_deadline_in_compiled_functions(compiled: VirtualMachine) -> None:
    begin = time.perf_counter()
    with pytest.raises(errors.DeadlineExceeded), pyvm.deadline(0.05):
        compiled["forever"]()
    assert time.perf_counter() - begin < 1.0


def test_instrument_and_profile_see_calls_of_compiled_functions(compiled: VirtualMachine) -> None:
    seen = []
    compiled.set_instrument(lambda func, name, before, ret, *args: seen.append((name, before)))
    x = floats(4)
    np.testing.assert_array_equal(compiled["main"](x, x), 3 * x)
    with pytest.raises(ValueError, match="refused"):
        compiled["deeper"](1)
    compiled.set_instrument(None)
    assert seen[:4] == [("add", True), ("add", False)] * 2
    assert [r.name for r in compiled.profile("main", x, x).records] == ["add", "add"]


def test_many_threads(compiled: VirtualMachine) -> None:
    x = floats(8, 1)
    failures = []

    def work() -> None:
        for _ in range(200):
            try:
                np.testing.assert_array_equal(compiled["main"](x, x), 3 * x)
                assert compiled["apply"](INDEX["depth"], 5) == 5
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
