"""Data at any address: inputs that are not aligned to their elements are copied once on entry, and our kernels take
tensors at every multiple of the element size, with the same bits. (Kernels of libraries: test_library.py.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape


def at(array: np.ndarray, shift: int) -> np.ndarray:
    """A copy of `array` that begins `shift` bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(len(shape)).random(shape) + 0.5).astype(dtype)


# kernel, arguments before the output, shape of the output
KERNELS: list[tuple[str, list[Any], tuple[int, ...]]] = [
    ("add", [random(5, 37), random(5, 37)], (5, 37)),
    ("mul", [random(5, 37), random(37)], (5, 37)),
    ("relu", [random(131)], (131,)),
    ("exp", [random(131)], (131,)),
    ("tanh", [random(131)], (131,)),
    ("matmul", [random(7, 33), random(33, 19)], (7, 19)),
    ("matmul", [random(1, 33), random(33, 19)], (1, 19)),
    ("matmul", [random(70, 65), random(65, 66)], (70, 66)),
    ("gemm", [random(7, 33), random(19, 33), random(19), 1.0, 1.0, 0, 1], (7, 19)),
    ("softmax", [random(5, 37), 1], (5, 37)),
    ("transpose", [random(5, 37), Shape((1, 0))], (37, 5)),
    ("layer_norm", [random(5, 37), random(37), random(37), 1, 1e-5], (5, 37)),
]


@pytest.mark.parametrize("shift", [4, 8, 12, 20, 36, 60])
@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case[0])
def test_kernels_take_tensors_at_any_multiple_of_the_element_size(case: tuple[Any, ...], shift: int) -> None:
    name, args, shape = case
    outputs = []
    for place in (0, shift):
        placed = [at(arg, place) if isinstance(arg, np.ndarray) else arg for arg in args]
        out = at(np.zeros(shape, np.float32), place)
        call_kernel(f"kernel.{name}", *placed, out)
        outputs.append(out.copy())
    assert np.isfinite(outputs[0]).all() and outputs[0].any()
    np.testing.assert_array_equal(outputs[0], outputs[1])


ADD = """
func @main(%0, %1) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(512), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(64), dtype(float64)) -> %3
  call @kernel.add (%0, %1, %3)
  ret %3
"""


@pytest.mark.parametrize("shift", range(0, 24, 3))
def test_inputs_at_every_address(shift: int) -> None:
    """Arrays and tensors, not aligned to their elements either."""
    main = pyvm.VirtualMachine(assemble(ADD))["main"]
    a, b = random(64, dtype=np.float64), random(64, dtype=np.float64)[::-1].copy()
    for first, second in ((at(a, shift), at(b, 0)), (at(a, 0), at(b, shift)), (at(a, shift), at(b, shift + 1))):
        np.testing.assert_array_equal(main(first, second).numpy(), a + b)
        np.testing.assert_array_equal(main(pyvm.tensor(first), pyvm.tensor(second)).numpy(), a + b)


@pytest.mark.parametrize("shift", [0, 1, 4, 7, 16])
def test_constants_at_every_address(shift: int) -> None:
    """Those of a file in memory, which may begin anywhere."""
    from pyvm.vmx_writer import write_vmx

    b = pyvm.ExecBuilder()
    value = random(64, dtype=np.float64)
    storage = [b.vm_state(), pyvm.Shape((512,)), 0, pyvm.DataType("uint8"), "global"]
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.alloc_storage", storage, dst=b.r(1))
        b.emit_call("vm.builtin.alloc_tensor", [b.r(1), 0, pyvm.Shape((64,)), pyvm.DataType("float64")], dst=b.r(2))
        b.emit_call("kernel.add", [b.r(0), b.convert_constant(value), b.r(2)])
        b.emit_ret(b.r(2))
    data = write_vmx(b.get())
    memory = memoryview(at(np.frombuffer(data, np.uint8), shift)).toreadonly()
    main = pyvm.VirtualMachine(pyvm.load_executable(memory))["main"]
    np.testing.assert_array_equal(main(value).numpy(), value + value)
