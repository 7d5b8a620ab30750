"""What users do that is obviously wrong: typed errors that name function, parameter, what came and what helps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = """
func @main(%0 x) regs=1
  ret %0
func @number(%0 n) regs=1
  call @vm.builtin.check_prim_value_info (%0, dtype(int64), "ErrorContext(fn=number, loc=param[0], param=n) ")
  ret %0
func @bind(%0 x) regs=2
  call @vm.builtin.make_closure (@main, %0) -> %1
  ret %1
"""
EXECUTABLE = assemble(PROGRAM)
TYPE, VALUE = errors.ArgumentTypeError, errors.ArgumentValueError


@pytest.fixture
def vm() -> VirtualMachine:
    return VirtualMachine(EXECUTABLE)


class Elsewhere:
    """A DLPack producer on a device that there is not."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("not asked for")


class Broken:
    """A DLPack producer that fails."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("sparse")


MACHINES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"executable": None}, TYPE, r"VirtualMachine: expected a VMExecutable, .* got NoneType; pyvm\.compile"),
    ({"executable": np.zeros(3)}, TYPE, "got ndarray"),
    ({"device": []}, VALUE, "at least one, got an empty list"),
    ({"device": 0}, TYPE, "expected a Device such as .*, got int 0"),
    ({"device": "cuda"}, TYPE, "got str 'cuda'"),
    ({"device": pyvm.Device(2, 1)}, ValueError, r"cuda\(1\) is not available"),
    ({"memory_limit": "1 GB"}, TYPE, "memory_limit must be an int, got str '1 GB'"),
    ({"memory_limit": 1e9}, TYPE, "memory_limit must be an int, got float 1000000000.0"),
    ({"memory_limit": 0}, ValueError, "positive number of bytes, got 0"),
    ({"libraries": ["a.so"]}, TYPE, r"libraries must be .*pyvm\.load_library returns, got list \['a.so'\]"),
    ({"libraries": 3}, TYPE, "got int 3"),
    ({"gil": []}, TYPE, r"gil must be one of auto, release, hold, got list \[\]"),
    ({"memory_cfg": {}}, TYPE, r"memory_cfg must be one of pooled, naive, got dict \{\}"),
]


@pytest.mark.parametrize(("options", "kind", "text"), MACHINES)
def test_machines(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        VirtualMachine(**{"executable": EXECUTABLE, **options})


CALLS: list[tuple[Callable[[VirtualMachine], Any], type[Exception], str]] = [
    (lambda vm: vm.main(1), AttributeError, r"no attribute 'main'; the function of that name is vm\['main'\]"),
    (lambda vm: vm.other, AttributeError, "no attribute 'other'$"),
    (lambda vm: vm["other"], errors.FunctionNotFoundError, "no function 'other'; it has: main, number, bind"),
    (lambda vm: vm["number"](np.int64(3)), TYPE, r"fn=number.*expect a int64 but get Tensor .*pass x\.item\(\)"),
    (lambda vm: vm["number"](np.ones(3)), TYPE, r"expect a int64 but get Tensor\nin @"),
    (lambda vm: vm["main"](np.array([1, "a"], object)), TYPE, "dtype object has no tensor element type"),
    (lambda vm: vm["main"](Elsewhere()), TYPE, r"this Elsewhere is on cuda\(1\), tensors live on cpu\(0\)"),
    (lambda vm: vm["main"](Broken()), TYPE, "this Broken cannot be taken over by DLPack: sparse"),
    (lambda vm: vm[[]], TYPE, r"the name of a function must be a str, got list \[\]"),
    (lambda vm: vm["main"]("\ud800"), VALUE, r"a str with '\\ud800' in it is no text"),
    (lambda vm: vm["main"](np.ma.masked_array([1, 2], [1, 0])), TYPE, r"1 of 2 elements masked.*pass array.filled"),
    (lambda vm: vm["bind"](1)(x=1), TYPE, "closure of f.*takes positional arguments only, got x by keyword"),
    (lambda vm: vm["main"].__call__(1, 2), TYPE, r"expected 1 arguments \(x\), got 2"),
    (lambda vm: vm["main"](2**64), errors.IntegerRangeError, "an integer of 65 bits"),
    (lambda vm: vm.set_instrument("print"), TYPE, "set_instrument: expected a callable or None, got str 'print'"),
    (lambda vm: vm.time_evaluator("main", number=1.5), TYPE, "time_evaluator: number must be an int, got float 1.5"),
    (lambda vm: vm.time_evaluator("main", pyvm.cpu()), TYPE, r"number must be an int, got Device cpu\(0\)"),
    (lambda vm: vm.time_evaluator("main", repeat=0), VALUE, "must be at least 1 .* got 10, 0 and 0"),
    (lambda vm: vm.time_evaluator("main", min_repeat_ms=-1), VALUE, "not negative, got 10, 1 and -1"),
    (lambda vm: vm.time_evaluator("main", min_repeat_ms=float("nan")), VALUE, "and nan"),
    (lambda vm: vm.time_evaluator("main", min_repeat_ms="1"), TYPE, "min_repeat_ms must be a number, got str '1'"),
    (lambda vm: vm.time_evaluator("invoke_stateful")("main"), VALUE, "'main' has no inputs; call set_input first"),
    (lambda vm: vm.profile("main"), TYPE, r"main: expected 1 arguments \(x\), got 0"),
    (lambda vm: vm.save_function("main", "saved", y=1), TYPE, r"expected 1 arguments \(x\), got 0 positional and y"),
]


@pytest.mark.parametrize(("call", "kind", "text"), CALLS)
def test_calls(vm: VirtualMachine, call: Callable[[VirtualMachine], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(vm)
    assert vm["main"](1) == 1


VALUES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: pyvm.tensor([[1], [2, 3]]), VALUE, "tensor: this list is no array: .*inhomogeneous"),
    (lambda: pyvm.tensor([1], device="cpu"), TYPE, "tensor: expected a Device such as .*, got 'cpu'"),
    (lambda: pyvm.tensor([1], device=pyvm.cpu(1)), VALUE, r"cpu\(1\) is not available"),
    (lambda: pyvm.tensor([1]).__dlpack__(max_version=()), TYPE, r"max_version must be a pair of ints, got tuple \(\)"),
    (lambda: float(pyvm.tensor([1, 2])), TYPE, r"only a tensor of one element is a float, this one has shape \(2,\)"),
    (lambda: EXECUTABLE.to_bytes(version=[]), TYPE, r"to_bytes: version must be an int, got list \[\]"),
    (lambda: EXECUTABLE.save(3), TYPE, "save: path must be a path, got int 3"),
    (lambda: pyvm.op.relu(None), TYPE, "relu: x must be an Expr, .* got None"),
    (lambda: pyvm.op.relu(1.0, 2.0), TYPE, r"relu: takes 1 arguments \(x\), got 2"),
    (lambda: pyvm.Shape("ab"), TYPE, r"Shape: expected a sequence of ints such as \(2, 3\), got str 'ab'"),
    (lambda: pyvm.Shape((1.5, 2)), TYPE, r"got tuple \(1.5, 2\)"),
    (lambda: pyvm.Shape(3), TYPE, "got int 3"),
    (lambda: pyvm.Shape((2**63,)), VALUE, "9223372036854775808 does not fit in int64"),
    (lambda: pyvm.DataType(3), TYPE, "DataType: expected a name such as 'float32' or a numpy dtype, got int 3"),
    (lambda: pyvm.DataType("real"), VALUE, "'real' is not a data type; names are such as"),
    (lambda: pyvm.cpu("0"), TYPE, "Device: index must be an int, got str '0'"),
    (lambda: pyvm.cpu(-1), VALUE, "index must be from 0 to 2147483647, got -1"),
    (lambda: pyvm.deadline("1"), TYPE, "deadline: seconds must be a number, got str '1'"),
    (lambda: pyvm.deadline(-1), VALUE, "expected seconds >= 0, got -1.0"),
    (lambda: pyvm.load_executable(3), TYPE, "load_executable: expected a path or the bytes .*, got int"),
    (lambda: pyvm.load_executable("a\0b"), VALUE, r"'a\\x00b' is no name of a file: embedded null byte"),
    (lambda: pyvm.load_executable("\ud800"), VALUE, r"'\\ud800' is no name of a file"),
    (lambda: pyvm.compile("\ud800"), errors.FrontendError, r"cannot read '\\ud800'"),
    (lambda: pyvm.compile("\ud800.pyvm"), errors.FrontendError, r"cannot read '\\ud800.pyvm'"),
    (lambda: pyvm.compile("none/such.pyvm"), errors.FrontendError, "cannot read 'none/such.pyvm': No such file"),
    (lambda: assemble(b""), TYPE, "assemble: expected the text of a program, got bytes"),
    (lambda: pyvm.ir.parse(None), TYPE, "parse: text must be a str, got None"),
    (lambda: EXECUTABLE.explain(3), TYPE, "explain: dims must be a mapping .* got int"),
    (lambda: pyvm.compile(3), errors.CompileError, "expected an IRModule, a pyvm.function, .* got int"),
    (lambda: pyvm.compile(np.sin), errors.CompileError, "got the ufunc 'sin'; decorate it with @pyvm.function"),
]


@pytest.mark.parametrize(("call", "kind", "text"), VALUES)
def test_values(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_a_model_is_no_executable(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07" + bytes(30))
    with pytest.raises(errors.FormatError, match=r"known magic; pyvm\.compile makes one"):
        VirtualMachine(path)


def test_arrays_of_every_layout_arrive_as_numpy_has_them(vm: VirtualMachine) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    read_only = x.copy()
    read_only.flags.writeable = False
    for array in (
        x, x.T, x[::2], x[::-1, ::-2], x.astype(">f4"), x.astype(">i8"), read_only, x[0, 0], x[:0],
        np.asfortranarray(x), x.astype(complex), x.astype(np.complex64), x.astype(np.float16), x.astype(bool),
        x.view(np.matrix), np.broadcast_to(x[0], (3, 6)), memoryview(x).cast("B"),
    ):  # fmt: skip
        result = vm["main"](array)
        if isinstance(array, memoryview):
            assert result is array, "what is no array, tuple or number passes through"
            continue
        assert isinstance(result, pyvm.Tensor) and result.dtype == np.asarray(array).dtype.newbyteorder("=")
        np.testing.assert_array_equal(result, array)
    assert not vm["main"](read_only).numpy().flags.writeable


def test_what_a_machine_says_of_itself(vm: VirtualMachine) -> None:
    vm.save_function("main", "saved", 1)
    assert list(vm) == vm.function_names() == vm._ipython_key_completions_() == ["main", "number", "bind", "saved"]
    assert "saved" in vm and "other" not in vm and 0 not in vm
    for one in (copy.copy(vm), copy.deepcopy(vm), pickle.loads(pickle.dumps(vm))):
        assert list(one) == list(vm) and one["saved"]() == 1
    assert repr(vm) == "VirtualMachine(main, number, bind, saved)"
    assert repr(vm["bind"](1)) == "<pyvm closure of f[0], 1 captured>"
    assert repr(vm["main"]) == "<pyvm function main(x)>" and repr(pyvm.deadline(2)) == "deadline(2.0)"
    assert repr(vm.profile("bind", 1)).startswith("Profile(bind: 1 calls in ")
    shown = ["executable", "function_names", "get_outputs", "invoke_closure", "invoke_stateful", "memory_report"]
    shown += ["profile", "save_function", "set_input", "set_instrument", "time_evaluator", "trim"]
    assert [name for name in dir(vm) if not name.startswith("_")] == shown
