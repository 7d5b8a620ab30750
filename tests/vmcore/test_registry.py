"""The global function table."""

from __future__ import annotations

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine


@pytest.fixture
def name():
    yield "test.registry.f"
    if pyvm.get_global_func("test.registry.f", allow_missing=True) is not None:
        pyvm.remove_global_func("test.registry.f")


def test_register_call_override_remove(name):
    @pyvm.register_func(name)
    def f(x, y):
        return x + y

    assert f(1, 2) == 3, "the decorator returns the function"
    found = pyvm.get_global_func(name)
    assert found(20, 22) == 42 and name in pyvm.list_global_func_names() and name in repr(found)
    with pytest.raises(ValueError, match="override=True"):
        pyvm.register_func(name, f)
    vm = VirtualMachine(assemble(f"func @main(%0) regs=2\n  call @{name} (%0, 1) -> %1\n  ret %1"))
    pyvm.register_func(name, lambda x, y: x * 10 + y, override=True)
    assert found(1, 2) == 3 and pyvm.get_global_func(name)(1, 2) == 12
    assert vm["main"](5) == 6, "a virtual machine keeps the function it was linked with"
    pyvm.remove_global_func(name)
    assert pyvm.get_global_func(name, allow_missing=True) is None
    assert vm["main"](5) == 6
    with pytest.raises(errors.FunctionNotFoundError, match=name):
        pyvm.get_global_func(name)
    with pytest.raises(LookupError):
        pyvm.remove_global_func(name)


def test_what_cannot_be_registered(name):
    with pytest.raises(TypeError, match="callable"):
        pyvm.register_func(name, 3)
    with pytest.raises(TypeError, match="str"):
        pyvm.register_func(3, len)
    with pytest.raises(ValueError, match="empty"):
        pyvm.register_func("", len)
    with pytest.raises(ValueError, match="registered already"):
        pyvm.register_func("vm.builtin.copy", len)
    with pytest.raises(ValueError, match="registered already"):
        pyvm.register_func("kernel.add", len)


def test_native_functions_can_be_called_from_python():
    out = np.zeros(3, np.float32)
    add = pyvm.get_global_func("kernel.add")
    assert add(np.float32([1, 2, 3]), np.float32([10, 20, 30]), out) is None
    assert out.tolist() == [11, 22, 33]
    assert pyvm.get_global_func("vm.builtin.make_tuple")(1, "a", None) == (1, "a", None)
    with pytest.raises(TypeError, match="add"):
        add(1, 2, 3)


def test_an_override_of_a_builtin_is_used_by_new_machines(name):
    program = "func @main(%0) regs=2\n  call @vm.builtin.copy (%0) -> %1\n  ret %1"
    original = pyvm.get_global_func("vm.builtin.copy")
    pyvm.register_func("vm.builtin.copy", lambda x: ("mine", x), override=True)
    try:
        assert VirtualMachine(assemble(program))["main"](1) == ("mine", 1)
    finally:
        pyvm.register_func("vm.builtin.copy", original, override=True)
    assert VirtualMachine(assemble(program))["main"](1) == 1


def test_all_missing_functions_are_named_at_once():
    program = """
    func @main(%0) regs=2
      call @no.such.function (%0) -> %1
      call @kernel.no_such_kernel (%1) -> %1
      ret %1
    """
    with pytest.raises(errors.FunctionNotFoundError, match=r"'no\.such\.function', 'kernel\.no_such_kernel'"):
        VirtualMachine(assemble(program))


def test_callbacks_see_tensors_and_may_return_anything(name):
    seen = []

    def f(*args):
        seen.append(args)
        return args[::-1]

    pyvm.register_func(name, f)
    vm = VirtualMachine(assemble(f'func @main(%0) regs=2\n  call @{name} (%0, 2, "s", 0.5, %void) -> %1\n  ret %1'))
    x = np.arange(4.0)
    result = vm["main"](x)
    assert result[:4] == (None, 0.5, "s", 2) and result[4] is seen[0][0]
    assert np.shares_memory(seen[0][0].numpy(), x)


LOADED = """
import sys
import pyvm
from pyvm.asm import assemble
pyvm.VirtualMachine(assemble(sys.argv[1]))
print("\\n".join(sys.modules))
"""


def test_a_program_loads_the_kernel_modules_that_it_uses(run_python, tmp_path):
    program = "func @main(%0) regs=2\n  call @kernel.relu (%0, %0)\n  ret %0"
    modules = run_python("-c", LOADED, program, cwd=tmp_path).stdout.split()
    assert [name for name in modules if name.startswith("vmcore.kernels.")] == ["vmcore.kernels.elementwise"]
    assert "vmcore.machine" in modules and "vmcore.blas" not in modules


LISTED = """
import sys
import pyvm
from vmcore.kernels import KERNELS, MODULES
for i, (module, names) in enumerate(KERNELS.items()):
    for name in names.split():
        pyvm.get_global_func(f"kernel.{name}")
    loaded = [other for other in MODULES if f"vmcore.kernels.{other}" in sys.modules]
    assert loaded == list(MODULES[: i + 1]), (module, loaded)
listed = {f"kernel.{name}" for names in KERNELS.values() for name in names.split()}
assert listed == {name for name in pyvm.list_global_func_names() if name.startswith("kernel.")}
print("ok")
"""


def test_every_kernel_is_listed_with_its_module(run_python, tmp_path):
    """One that is missing in vmcore.kernels.KERNELS is found all the same, but loads every module."""
    done = run_python("-c", LISTED, cwd=tmp_path)
    assert done.stdout.strip() == "ok", done.stderr
