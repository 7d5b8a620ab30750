"""What TVM's tests of its virtual machine cover, against our API: each program is run in every way there is.

`tests/tvm_parity/counterparts.py` says which of these tests, or of others, stands for which test of TVM.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.exec_builder import ExecBuilder
from pyvm.executable import VMExecutable
from pyvm.monitor import VMInstrumentReturnKind
from pyvm.vm import VirtualMachine
from pyvm.vmx_writer import write_vmx
from tests.ir_text import compiled
from tests.native_kernels import NATIVE
from tests.reference_vm import run


def elementwise(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` on numbers as they are, and on tensors as arrays."""
    return lambda *args: f(*(np.asarray(a) if isinstance(a, pyvm.Tensor) else a for a in args))


def copy_to_three(a: Any, b: Any, c: Any, out: Any) -> None:
    for to in (a, b, out):
        np.copyto(to.numpy(), c.numpy())


def add_to(a: Any, b: Any) -> None:
    np.add(a.numpy(), b.numpy(), out=a.numpy())


COMPILER = shutil.which("cc") or shutil.which("gcc")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "t.b.add": elementwise(lambda a, b: a + b),
    "t.b.mul": elementwise(lambda a, b: a * b),
    "t.b.is_zero": elementwise(lambda a: np.asarray(a == 0)),
    "t.b.less_one": elementwise(lambda a: a - 1),
    "t.b.index": lambda device: device.index,
    "t.b.tile": lambda x, out: np.copyto(out.numpy(), np.tile(x.numpy(), (1, 2))),
    "t.b.copy_to_three": copy_to_three,
    "t.b.add_to": add_to,
}


@pytest.fixture(autouse=True)
def functions() -> Iterator[None]:
    for name, function in FUNCTIONS.items():
        pyvm.register_func(name, function, override=True)
    yield
    for name in FUNCTIONS:
        pyvm.remove_global_func(name)


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, tuple) and not isinstance(expected, pyvm.Shape):
        assert isinstance(got, tuple) and len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert isinstance(got, pyvm.Tensor) and got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    else:
        assert type(got) is type(expected) and got == expected


def check(executable: VMExecutable, expected: Any, *args: Any, name: str = "main") -> VirtualMachine:
    """Calls `name` in every way there is, on the executable as it is and as both file formats give it back."""
    text = executable.as_text()
    formats = VMExecutable.from_bytes(executable.to_bytes()), pyvm.load_executable(write_vmx(executable))
    for copy in (executable, *formats):
        assert copy.as_text() == text
        for memory in ("pooled", "naive"):
            vm = VirtualMachine(copy, pyvm.cpu(), memory)
            assert_same(vm[name](*args), expected)
            names = vm[name].param_names  # type: ignore[attr-defined]
            assert_same(vm[name](**dict(zip(names, args, strict=True))), expected)
            vm.save_function(name, "saved", *args)
            vm.save_function(name, "saved by name", **dict(zip(names, args, strict=True)))
            vm.save_function(name, "saved without result", *args, include_return=False)
            assert_same(vm["saved"](), expected)
            assert_same(vm["saved by name"](), expected)
            assert vm["saved without result"]() is None
            vm.set_input(name, *args)
            vm.invoke_stateful(name)
            assert_same(vm.get_outputs(name), expected)
            assert_same(vm.profile(name).result, expected)
    return vm


RNG = np.random.default_rng(0)
A, B = RNG.random(4), RNG.random(4)
X, Y = RNG.random((2, 3)).astype(np.float32), RNG.random((2, 3)).astype(np.float32)


# ---- the builder of executables


def two_functions() -> VMExecutable:
    b = ExecBuilder()
    for name, callee in (("sum", "t.b.add"), ("product", "t.b.mul")):
        with b.function(name, num_inputs=2):
            b.emit_call(callee, [b.r(0), b.r(1)], dst=b.r(2))
            b.emit_ret(b.r(2))
    return b.get()


def test_several_functions_of_one_executable() -> None:
    executable = two_functions()
    check(executable, A * B, A, B, name="product")
    vm = check(executable, A + B, A, B, name="sum")
    assert vm.function_names()[:2] == ["sum", "product"] and "product" in vm and "t.b.add" not in vm


def test_negative_immediates() -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        b.emit_call("t.b.add", [b.imm(-3), b.r(0)], dst=b.r(1))
        b.emit_ret(b.r(1))
    check(b.get(), -2, 1)
    check(b.get(), -6, -3)


def test_numbers_and_devices_are_arguments() -> None:
    check(two_functions(), 5, 2, 3, name="sum")
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        b.emit_call("t.b.index", [b.r(0)], dst=b.r(1))
        b.emit_ret(b.r(1))
    check(b.get(), 3, pyvm.cpu(3))


def test_a_tensor_as_a_constant_argument() -> None:
    b = ExecBuilder()
    with b.function("main"):
        b.emit_call("vm.builtin.shape_of", [np.zeros((32, 16))], dst=b.r(0))
        b.emit_ret(b.r(0))
    check(b.get(), pyvm.Shape((32, 16)))


def test_storage_and_tensors_are_made_by_calls() -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), (24,), 0, pyvm.DataType("float32"), "global"], dst=1)
        b.emit_call("vm.builtin.alloc_tensor", [b.r(1), b.imm(0), (4, 6), pyvm.DataType("float32")], dst=b.r(2))
        b.emit_call("kernel.neg", [b.r(0), b.r(2)])
        b.emit_ret(b.r(2))
    x = RNG.random((4, 6)).astype(np.float32)
    vm = check(b.get(), -x, x)
    assert vm["main"](x).device == pyvm.cpu()


def test_goto_skips() -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=2):
        b.emit_call("t.b.add", [b.r(0), b.r(1)], dst=b.r(2))
        b.emit_goto(2)
        b.emit_call("t.b.mul", [b.r(2), b.r(1)], dst=b.r(2))
        b.emit_ret(b.r(2))
    check(b.get(), A + B, A, B)


CONDITIONAL = """
func @main(%0 condition, %1 x, %2 y) regs=4
  if %0, otherwise
  call @t.b.add (%1, %2) -> %3
  goto end
otherwise:
  call @t.b.mul (%1, %2) -> %3
end:
  ret %3
"""
READ = "  call @vm.builtin.read_if_cond (%0) -> %0\n  if"


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("kind", [int, bool, np.bool_, np.int8, np.int64, np.uint8])
def test_both_branches(kind: type, truth: bool) -> None:
    condition: Any = kind(truth) if kind in (int, bool) else np.array(truth, kind)
    program = CONDITIONAL if kind in (int, bool) else CONDITIONAL.replace("  if", READ)
    check(assemble(program), A + B if truth else A * B, condition, A, B)


def test_a_constant_as_condition() -> None:
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.read_if_cond", [np.array(True)], dst=b.r(1))
        b.emit_if(b.r(1), 3)
        b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(2))
        b.emit_goto(2)
        b.emit_call("vm.builtin.copy", [b.imm(0)], dst=b.r(2))
        b.emit_ret(b.r(2))
    check(b.get(), X, X)


def test_a_closure_is_called_with_arguments_before_what_it_captured() -> None:
    program = """
func @digits(%0, %1, %2, %3) regs=5
  call @t.b.mul (%0, 10) -> %4
  call @t.b.add (%4, %1) -> %4
  call @t.b.mul (%4, 10) -> %4
  call @t.b.add (%4, %2) -> %4
  call @t.b.mul (%4, 10) -> %4
  call @t.b.add (%4, %3) -> %4
  ret %4
func @main(%0, %1) regs=3
  call @vm.builtin.make_closure (@digits, %0, %1) -> %2
  ret %2
func @both(%0, %1) regs=3
  call @main (%0, %0) -> %2
  call @vm.builtin.invoke_closure (%vm, %2, %1, %1) -> %2
  ret %2
"""
    vm = VirtualMachine(assemble(program))
    closure = vm["main"](3, 4)
    assert vm.invoke_closure(closure, 1, 2) == closure(1, 2) == 1234
    np.testing.assert_array_equal(vm["main"](np.array(3), np.array([4, 5]))(1, np.array([2, 0])), [1234, 1035])
    assert "2 captured" in repr(closure)
    with pytest.raises(errors.ArgumentTypeError, match="takes 4 arguments, got 1 and 2 captured"):
        closure(1)
    check(assemble(program), 5577, 7, 5, name="both")


# ---- programs of the last stage, with explicit allocation


@pytest.mark.parametrize(
    "value", ["hello", "", 1, -(2**54), 2**60, 0.5, pyvm.DataType("float32"), pyvm.Shape((1, 2)), X], ids=repr
)
def test_constants_are_results(value: Any) -> None:
    b = ExecBuilder()
    with b.function("main"):
        b.emit_call("vm.builtin.copy", [b.convert_constant(value)], dst=b.r(0))
        b.emit_ret(b.r(0))
    check(b.get(), value)
    if isinstance(value, np.ndarray):
        assert not VirtualMachine(b.get())["main"]().numpy().flags.writeable


def test_constants_in_a_tuple_and_as_arguments() -> None:
    b = ExecBuilder()
    one, two = np.array([1, 2]), np.array([3, 4])
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.make_tuple", [one, two, b.r(0)], dst=b.r(1))
        b.emit_ret(b.r(1))
    with b.function("sums", num_inputs=1):
        b.emit_call("t.b.add", [one, two], dst=b.r(1))
        b.emit_call("t.b.add", [b.r(1), b.r(0)], dst=b.r(1))
        b.emit_ret(b.r(1))
    check(b.get(), (one, two, X), X)
    check(b.get(), np.array([[4.5, 6.5]]), np.array([[0.5, 0.5]]), name="sums")
    assert len(b.get().constants) == 2


HEAP = """
func @main(%0 x) regs=3
  call @vm.builtin.alloc_shape_heap (%vm, 3) -> %1
  call @vm.builtin.check_tensor_info (%0, 2, dtype(float32), "here ")
  call @vm.builtin.match_shape (%0, %1, 2, 1, 0, 1, 1, "here ")
  call @vm.builtin.make_shape (%1, 3, 1, 1, 1, 0, 0, 2) -> %2
  ret %2
"""


def test_checks_at_the_entry_of_a_function() -> None:
    vm = check(assemble(HEAP), pyvm.Shape((2, 1, 2)), np.zeros((1, 2), np.float32))
    for value, kind, text in [
        ([], TypeError, "here expect a Tensor but get tuple"),
        (np.zeros(1, np.float32), ValueError, "ndim 2 but get 1"),
        (np.zeros((1, 2), np.int32), ValueError, "dtype float32 but get int32"),
    ]:
        with pytest.raises(kind, match=text):
            vm["main"](value)
        assert vm["main"](X) == (3, 2, 2), "usable at once"


def test_storage_is_used_again_after_its_tensor_died() -> None:
    """Two tensors in one storage, one after the other, and a result in another; all dropped before the end."""
    program = """
func @main(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(24), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(2, 3), dtype(float32)) -> %2
  call @kernel.neg (%0, %2)
  call @vm.builtin.null_value () -> %2
  call @vm.builtin.alloc_tensor (%1, 0, shape(2, 3), dtype(float32)) -> %2
  call @kernel.exp (%0, %2)
  call @vm.builtin.null_value () -> %2
  call @vm.builtin.alloc_storage (%vm, shape(24), 0, dtype(uint8), "global") -> %3
  call @vm.builtin.alloc_tensor (%3, 0, shape(2, 3), dtype(float32)) -> %2
  call @kernel.relu (%0, %2)
  call @vm.builtin.null_value () -> %1
  call @vm.builtin.null_value () -> %3
  ret %2
"""
    check(assemble(program), np.maximum(X - 0.5, 0), X - 0.5)


def test_calls_in_place() -> None:
    """A function writes into its arguments and into a new tensor: the first two results are the arguments."""
    program = """
func @main(%0 x, %1 y, %2 z) regs=5
  call @vm.builtin.alloc_storage (%vm, shape(24), 0, dtype(uint8), "global") -> %3
  call @vm.builtin.alloc_tensor (%3, 0, shape(2, 3), dtype(int32)) -> %4
  call @t.b.copy_to_three (%0, %1, %2, %4)
  call @vm.builtin.make_tuple (%0, %1, %4) -> %4
  ret %4
func @add(%0 x, %1 y) regs=2
  call @t.b.add_to (%0, %1)
  ret %0
"""
    vm = VirtualMachine(assemble(program))
    x, y, z = (np.full((2, 3), i, np.int32) for i in (0, 0, 1))
    vm.set_input("main", x, y, z)
    vm.invoke_stateful("main")
    first, second, third = vm.get_outputs("main")
    for array, result in ((x, first), (y, second)):
        assert np.shares_memory(array, result.numpy()) and array.tolist() == z.tolist()
    assert third.numpy().tolist() == z.tolist() and not any(np.shares_memory(third.numpy(), a) for a in (x, y, z))
    t = pyvm.tensor(x)
    assert vm["add"](t, y) is t and x.tolist() == (2 * z).tolist()


# ---- compiled programs


def test_results_are_checked() -> None:
    executable = compiled(
        """
def main(x: Tensor((n, m), int32), y: Object) -> Tensor((m, n), float64):
    r = match_cast(y, Tensor((m, n), float64))
    return r
"""
    )
    x = np.zeros((1, 2), np.int32)
    vm = check(executable, np.zeros((2, 1)), x, np.zeros((2, 1)))
    for y in (np.zeros((1, 2)), np.zeros((2, 1, 1)), "text"):
        with pytest.raises(errors.ArgumentTypeError if isinstance(y, str) else errors.ShapeMismatchError, match="main"):
            vm["main"](x, y)


def test_a_cast_gives_names_to_dimensions() -> None:
    executable = compiled(
        """
def main(x: Tensor(?, float32)) -> Shape(ndim=2):
    y = match_cast(x, Tensor((n, m), float32))
    return shape(2*n, 3*m)
"""
    )
    vm = check(executable, pyvm.Shape((64, 48)), np.zeros((32, 16), np.float32))
    for value, kind, text in [
        (np.zeros((1, 2), np.int32), ValueError, "dtype"),
        (np.zeros(1, np.float32), ValueError, "ndim"),
        ([], TypeError, "Tensor"),
    ]:
        with pytest.raises(kind, match=text):
            vm["main"](value)


COMPILED: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "python fills a result of computed shape": (
        """
def main(x: Tensor((n, m), float32)) -> Tensor((n, 2*m), float32):
    gv: Tensor((n, 2*m), float32) = extern("t.b.tile")(x, dps=True)
    return gv
""", (X,), np.tile(X, (1, 2)),
    ),
    "dimensions of several parameters": (
        """
def main(x: Tensor((m, n), float32), w: Tensor((n, k), float32)) -> Tensor((m, k), float32):
    return matmul(x, w)
""", (X, Y.T.copy()), X @ Y.T,
    ),
    "sum of dimensions": (
        """
def main(x: Tensor((n,), float32), y: Tensor((m,), float32)) -> Tensor((m + n,), float32):
    return concat(x, y, axis=0)
""", (X[0], Y.ravel()), np.append(X[0], Y),
    ),
    "half of the elements": (
        """
def main(x: Tensor((n,), float32)) -> Tensor((n // 2,), float32):
    half = strided_slice(x, shape(0,), shape(n // 2,), steps=(1,))
    return add(half, const(1.0, float32))
""", (Y.ravel()[:5],), Y.ravel()[:2] + 1,
    ),
    "another element type": (
        """
def main(x: Tensor((n,), float32)) -> Tensor((n,), int16):
    return cast(mul(x, const(100.0, float32)), dtype="int16")
""", (X[0],), (X[0] * 100).astype(np.int16),
    ),
    "a constant": (
        """
def main(x: Tensor((2, 2), float32)) -> Tensor((2, 2), float32):
    return add(x, const([1.0, 2.0, 3.0, 4.0], float32, shape=(2, 2)))
""", (X[:, :2].copy(),), X[:, :2] + np.array([[1, 2], [3, 4]], np.float32),
    ),
    "a parameter of computed shape": (
        """
def main(x: Tensor((n,), float32), y: Tensor((n // 2 + 1,), float32)) -> Tensor((n + n // 2 + 1,), float32):
    return concat(x, y, axis=0)
""", (A[:3].astype(np.float32), B[:2].astype(np.float32)), np.append(A[:3], B[:2]).astype(np.float32),
    ),
    "a shape as a parameter": (
        "def main(s: Shape((m, n))) -> Shape((2*m, 3*n)):\n    return shape(2*m, 3*n)\n",
        (pyvm.Shape((2, 3)),), pyvm.Shape((4, 9)),
    ),
    "a number as a parameter": (
        "def main(k: Prim(int64, k)) -> Prim(int64, k*k):\n    return dim(k*k)\n", (7,), 49,
    ),
    "numbers define what shapes use": (
        """
def main(n: Prim(int64, n), s: Shape((2*n, 2*m)), m: Prim(int64, m)) -> Shape((n*n, m + 1)):
    return shape(n*n, m + 1)
""", (2, pyvm.Shape((4, 12)), 6), pyvm.Shape((4, 7)),
    ),
    "tuples of tuples": (
        """
def main(x: Tensor((n,), float32), y: Tensor((n,), float32)) -> Object:
    pair = (x, y)
    return (pair, pair[0])
""", (X[0], Y[0]), ((X[0], Y[0]), X[0]),
    ),
    "fields of a tuple": (
        """
def main(x: Tensor((n, m), float32), y: Tensor((n, m), float32)) -> Tensor((n, m), float32):
    pair = (x, y)
    return add(pair[0], mul(pair[1], pair[1]))
""", (X, Y), X + Y * Y,
    ),
    "a tuple as a parameter": (
        "def main(x: Tuple(Tensor((32,), float32), Object)) -> Tensor((32,), float32):\n    return x[0]\n",
        ((np.arange(32, dtype=np.float32), None),), np.arange(32, dtype=np.float32),
    ),
    "functions call functions": (
        """
def product(x: Tensor((n, n), float32), w: Tensor((n, n), float32)) -> Tensor((n, n), float32):
    return matmul(x, w)

def squares(x: Tensor((n, n), float32)) -> Tensor((n, n), float32):
    r = match_cast(extern("t.b.mul")(x, x), Tensor((n, n), float32))
    return r

def main(x: Tensor((n, n), float32), w: Tensor((n, n), float32)) -> Tensor((n, n), float32):
    return @squares(@product(x, w))
""", (X @ Y.T, Y @ X.T), ((X @ Y.T) @ (Y @ X.T)) ** 2,
    ),
    "recursion": (
        """
def main(n: Tensor((1,), float32)) -> Tensor((1,), float32):
    stop = match_cast(extern("t.b.is_zero")(n), Tensor((1,), bool))
    if reshape(stop, shape()):
        r: Tensor((1,), float32) = const([1.0], float32, shape=(1,))
    else:
        less = match_cast(extern("t.b.less_one")(n), Tensor((1,), float32))
        half = @main(less)
        r = add(half, half)
    return r
""", (np.array([7], np.float32),), np.array([128], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    text, args, expected = COMPILED[name]
    check(compiled(text), expected, *args)


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("a parameter of computed shape", (A[:3].astype(np.float32), B.astype(np.float32)), errors.ShapeMismatchError),
        ("a shape as a parameter", (pyvm.Shape((2, 3, 4)),), errors.ShapeMismatchError),
        ("a shape as a parameter", (2,), errors.ArgumentTypeError),
        ("a number as a parameter", (pyvm.Shape((2,)),), errors.ArgumentTypeError),
        ("a number as a parameter", (np.int64(2),), errors.ArgumentTypeError),
        ("numbers define what shapes use", (2, pyvm.Shape((4, 12)), 1), errors.ShapeMismatchError),
        ("numbers define what shapes use", (pyvm.Shape((2,)),), errors.ArgumentTypeError),
    ],
)
def test_compiled_programs_refuse(name: str, args: tuple[Any, ...], kind: type[Exception]) -> None:
    text, right, expected = COMPILED[name]
    vm = VirtualMachine(compiled(text))
    with pytest.raises(kind, match="main"):
        vm["main"](*args)
    assert_same(vm["main"](*right), expected)


def test_what_cannot_be_compiled_is_named() -> None:
    with pytest.raises(errors.CompileError, match="nobody"):
        compiled("def main(x: Tensor((2,), float32)) -> Tensor((2,), float32):\n    return nobody(x)\n")


def test_a_failed_call_leaves_nothing_behind() -> None:
    executable = compiled(
        "def main(x: Tensor((2, 3), float32)) -> Tensor((2, 3), float32):\n    return mul(x, const(2.0, float32))\n"
    )
    vm = VirtualMachine(executable)
    for _ in range(3):
        with pytest.raises(errors.ShapeMismatchError, match="param=x.*expected 2, got 3"):
            vm["main"](np.ones((3, 3), np.float32))
        assert_same(vm["main"](X), 2 * X)


# ---- functions given by the caller


def test_a_callback_gets_a_computed_tensor() -> None:
    executable = compiled(
        """
def main(x: Tensor((16,), int32), f: Callable((Tensor((16,), int32)) -> Object)) -> Tuple():
    y = mul(x, const(2, int32))
    nothing = call(f, y)
    return ()
"""
    )
    kept = []
    x = np.arange(16, dtype=np.int32)
    vm = VirtualMachine(executable)
    assert vm["main"](x, kept.append) == ()
    vm["main"](x + 1, kept.append)
    assert_same(kept[0], 2 * x)
    assert_same(kept[1], 2 * x + 2)


PRODUCER = """
def main(f: Callable(() -> Object)) -> Tensor((16,), int32):
    x = match_cast(call(f), Tensor((16,), int32))
    return mul(x, const(2, int32))
"""


@pytest.mark.parametrize("wrap", [np.asarray, pyvm.tensor])
def test_a_callback_makes_a_tensor(wrap: Callable[..., Any]) -> None:
    x = np.arange(16, dtype=np.int32)
    check(compiled(PRODUCER), 2 * x, lambda: wrap(x))


def test_a_callback_s_exception_has_its_python_frames() -> None:
    def callback() -> None:
        unseen = 42
        raise RuntimeError(f"from the callback, {unseen}")

    vm = VirtualMachine(compiled(PRODUCER))
    with pytest.raises(RuntimeError, match="from the callback, 42") as caught:
        vm["main"](callback)
    innermost = caught.value.__traceback__
    assert innermost is not None
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost.tb_frame.f_code is callback.__code__ and innermost.tb_frame.f_locals["unseen"] == 42
    assert any("in @main" in note for note in caught.value.__notes__)


# ---- instruments, profiles, timing

LAYERS = """
def main(x: Tensor((1, 8), float32), w: Tensor((8, 8), float32)) -> Tensor((1, 8), float32):
    p: Tensor((1, 8), float32) = extern("t.b.linear")(x, w, dps=True)
    a = relu(p)
    q: Tensor((1, 8), float32) = extern("t.b.linear")(a, w, dps=True)
    return relu(q)
"""


@pytest.fixture
def layers() -> Iterator[VirtualMachine]:
    pyvm.register_func("t.b.linear", lambda x, w, out: np.copyto(out.numpy(), x.numpy() @ w.numpy()), override=True)
    yield VirtualMachine(compiled(LAYERS))
    pyvm.remove_global_func("t.b.linear")


V, W = RNG.standard_normal((1, 8)).astype(np.float32), RNG.standard_normal((8, 8)).astype(np.float32)


def test_an_instrument_counts_and_skips(layers: VirtualMachine) -> None:
    hits: dict[tuple[str, bool], int] = {}

    def instrument(func: Any, name: str, before: bool, result: Any, *args: Any) -> Any:
        hits[name, before] = hits.get((name, before), 0) + 1
        assert callable(func) and (not before or result is None)
        return VMInstrumentReturnKind.SKIP_RUN if name == "t.b.linear" else VMInstrumentReturnKind.NO_OP

    layers.set_instrument(instrument)
    layers["main"](V, W)
    assert hits["t.b.linear", True] == 2 and ("t.b.linear", False) not in hits
    assert hits["kernel.relu", True] == hits["kernel.relu", False] == 2
    layers.set_instrument(None)
    assert_same(layers["main"](V, W), np.maximum(np.maximum(V @ W, 0) @ W, 0))


def test_an_instrument_compares_each_kernel_with_another(layers: VirtualMachine) -> None:
    compared = []

    def instrument(func: Any, name: str, before: bool, result: Any, *args: Any) -> None:
        if before or not name.startswith("kernel."):
            return
        *inputs, out = [a.numpy() if isinstance(a, pyvm.Tensor) else a for a in args]
        again, numpy = np.empty_like(out), np.maximum(inputs[0], 0)
        func(*inputs, again)
        np.testing.assert_array_equal(again, out)
        np.testing.assert_array_equal(numpy, out)
        compared.append(name)

    layers.set_instrument(instrument)
    layers["main"](V, W)
    assert compared == ["kernel.relu"] * 2


def test_a_profile_of_kept_inputs(layers: VirtualMachine) -> None:
    layers.set_input("main", V, w=W)
    profile = layers.profile("main")
    expected = np.maximum(np.maximum(V @ W, 0) @ W, 0)
    assert_same(profile.result, expected)
    assert_same(layers.profile("main", V, w=W).result, expected)
    for text in (str(profile), profile.as_json(), profile.as_chrome_trace()):
        assert "t.b.linear" in text and "kernel.relu" in text
    assert "total us" in str(profile) and repr(profile).startswith("Profile(main: ")
    with pytest.raises(errors.ArgumentTypeError, match=r"main: expected 2 arguments \(x, w\), got 1"):
        layers.profile("main", V)


def test_a_profile_of_nested_tuples() -> None:
    vm = VirtualMachine(compiled("def main(x: Tensor((16,), float32)) -> Object:\n    return ((x, (x,)), x)\n"))
    x = np.arange(16, dtype=np.float32)
    profile = vm.profile("main", x)
    assert_same(profile.result, ((x, (x,)), x))
    assert "vm.builtin.make_tuple" in str(profile) and "((float32(16), (float32(16))), float32(16))" in [
        record.result for record in profile.records
    ]


def test_timing_of_every_kind_of_call(layers: VirtualMachine) -> None:
    layers.set_input("main", V, W)
    layers.save_function("main", "saved", V, W)
    for evaluator, args, kwargs in [
        (layers.time_evaluator("main"), (V, W), {}),
        (layers.time_evaluator("main", number=np.int64(2), repeat=3), (V,), {"w": W}),  # type: ignore[arg-type]
        (layers.time_evaluator("saved", min_repeat_ms=0.5), (), {}),
        (layers.time_evaluator("invoke_stateful"), ("main",), {}),
    ]:
        assert evaluator(*args, **kwargs).min > 0
    assert_same(layers.get_outputs("main"), layers["main"](V, W).numpy())


# ---- the stateful interface


def test_kept_inputs_are_no_arguments_of_a_call() -> None:
    vm = VirtualMachine(two_functions())
    vm.set_input("sum", A, B)
    with pytest.raises(errors.ArgumentTypeError, match="sum: expected 2 arguments"):
        vm["sum"]()
    vm.invoke_stateful("sum")
    assert_same(vm.get_outputs("sum"), A + B)


def test_parameters_may_have_any_name() -> None:
    """The names of what our methods take first are free for the parameters of programs."""
    vm = VirtualMachine(assemble("func @main(%0 name, %1 saved_name) regs=2\n  ret %1\n"))
    vm.save_function("main", "saved", name=1, saved_name=2)
    vm.set_input("main", name=1, saved_name=3)
    vm.invoke_stateful("main")
    assert (vm["saved"](), vm.get_outputs("main"), vm.profile("main", saved_name=4, name=1).result) == (2, 3, 4)


def test_kernels_of_the_executable_agree_with_the_reference() -> None:
    executable = two_functions()
    assert_same(VirtualMachine(executable)["sum"](A, B), run(executable, "sum", [A, B], {**FUNCTIONS, **NATIVE}))


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_libraries_with_the_same_names_stay_apart(tmp_path: Path) -> None:
    source = """
#include <stdint.h>
typedef struct { int32_t type, small; int64_t value; } Any;
static int number(void) { return VALUE; }
int same_name(void) { return number(); }
int __tvm_ffi_number(void *self, const Any *args, int32_t n, Any *ret) {
  (void)self, (void)args, (void)n;
  ret->type = 1;
  ret->small = 0;
  ret->value = same_name();
  return 0;
}
"""
    (tmp_path / "number.c").write_text(source)
    program = assemble("func @main() regs=1\n  call @number () -> %0\n  ret %0\n")
    machines = []
    for value in (1, 2):
        path = tmp_path / f"lib{value}.so"
        command = [str(COMPILER), "-shared", "-fPIC", f"-DVALUE={value}", str(tmp_path / "number.c"), "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        machines.append(VirtualMachine(program, libraries=[pyvm.load_library(path)]))
    assert [vm["main"]() for vm in machines] == [1, 2]
    with pytest.raises(errors.FunctionNotFoundError, match="number"):
        VirtualMachine(program)


def test_a_file_is_the_executable(tmp_path: Path) -> None:
    executable = compiled(COMPILED["functions call functions"][0])
    path = tmp_path / "model.vmx"
    executable.save(path)
    (tmp_path / "model.bin").write_bytes(executable.to_bytes())
    for file in (path, tmp_path / "model.bin"):
        loaded = pyvm.load_executable(file)
        assert loaded.as_text() == executable.as_text()
        vm = VirtualMachine(loaded)
        file.unlink()  # what is loaded stays
        assert_same(vm["main"](*COMPILED["functions call functions"][1]), COMPILED["functions call functions"][2])
