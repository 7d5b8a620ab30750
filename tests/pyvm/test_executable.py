"""VMExecutable as a container: constants, debug information, signatures, and what `load_executable` refuses."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.asm import assemble
from pyvm.constants import constant_key, normalize_constant
from pyvm.exec_builder import ExecBuilder
from pyvm.executable import DebugInfo, VMExecutable, load_executable
from pyvm.signature import ObjectSpec, ScalarSpec, ShapeSpec, Signature, Spec, TensorSpec, TupleSpec
from tests.executables import SPECS, TEXT, sample
from tests.reference_vm import run
from vmcore.errors import ExecutableError, FormatError, FunctionNotFoundError, VerifyError
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype


def test_constants_are_normalized() -> None:
    cases: list[tuple[object, object]] = [
        (True, 1),
        (np.int32(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1),
        ((1, 2), Shape((1, 2))),
        ([], Shape()),
        (np.dtype("int8"), DataType("int8")),
        (np.float32, DataType("float32")),
        ("text", "text"),
    ]
    for value, expected in cases:
        constant = normalize_constant(value)
        assert type(constant) is type(expected) and constant == expected


@pytest.mark.parametrize(
    "value",
    [None, object(), {"a": 1}, (1, "a"), (True,), b"x", np.array(["a"]), np.zeros(1, "M8[s]"), np.zeros(1, "g"), 1j],
)
def test_kinds_the_pool_does_not_hold(value: object) -> None:
    with pytest.raises(TypeError):
        normalize_constant(value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, (2**63,)])
def test_numbers_that_do_not_fit(value: object) -> None:
    with pytest.raises(ValueError, match="int64"):
        normalize_constant(value)


def test_tensor_constants_are_compact_read_only_and_copied_if_writable() -> None:
    source = np.arange(6, dtype=">i4").reshape(2, 3).T
    constant = normalize_constant(source)
    assert isinstance(constant, np.ndarray)
    assert constant.flags.c_contiguous and not constant.flags.writeable and constant.dtype.isnative
    np.testing.assert_array_equal(constant, source)
    writable = np.zeros(3)
    kept = normalize_constant(writable)
    writable[:] = 1
    np.testing.assert_array_equal(kept, np.zeros(3))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    assert normalize_constant(frozen) is frozen


def test_bits_arrays_keep_their_type() -> None:
    array = BitsArray.wrap(np.array([1, 2], np.uint16), DataType("bfloat16"))
    constant = normalize_constant(array)
    assert tensor_dtype(constant) == "bfloat16"  # type: ignore[arg-type]
    assert constant_key(constant) != constant_key(normalize_constant(np.array([1, 2], np.uint16)))
    with pytest.raises(ValueError, match="bfloat16"):
        BitsArray.wrap(np.array([1], np.uint8), DataType("bfloat16"))


def test_constant_keys_tell_kinds_and_bits_apart() -> None:
    values = [
        0, 0.0, -0.0, "", "0", Shape(), Shape((0,)), DataType("int8"), DataType("uint8"), np.zeros(()), np.zeros(1),
        np.zeros((1, 1)), np.zeros(1, "i8"), np.zeros(1, "f4"), np.zeros(100), np.zeros((10, 10)), math.nan, math.inf,
    ]  # fmt: skip
    keys = {constant_key(normalize_constant(value)) for value in values}
    assert len(keys) == len(values)
    assert constant_key(math.nan) == constant_key(math.nan)


def test_debug_info() -> None:
    sources = [None, "conv", "conv", None, "relu"]
    debug = DebugInfo(sources)
    assert list(debug) == sources and debug.strings == ["conv", "relu"] and debug.indices.dtype == np.int32
    assert debug[1:4] == ["conv", "conv", None] and debug[99] is None
    assert len(DebugInfo([None, None])) == 0 and DebugInfo() == DebugInfo([None])


@given(st.lists(TEXT, max_size=4), st.data())
def test_debug_tables_are_canonical(strings: list[str], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(-2, len(strings)), max_size=6))
    sources = [strings[i] if 0 <= i < len(strings) else None for i in index]
    assert DebugInfo.from_table(strings, np.array(index, np.int32)) == DebugInfo(sources)


@given(st.lists(SPECS, max_size=3), st.lists(SPECS, max_size=2))
@settings(max_examples=50)
def test_signatures_survive_json(params: list[Spec], results: list[Spec]) -> None:
    signature = Signature(params, results)
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"params": [], "results": None},
        {"params": [3], "results": []},
        {"params": [{"kind": "tensor"}], "results": []},
        {"params": [{"kind": "tensor", "name": "x", "shape": [1.5], "dtype": None}], "results": []},
        {"params": [{"kind": "tensor", "name": "x", "shape": None, "dtype": 3}], "results": []},
        {"params": [{"kind": "scalar", "name": "x"}], "results": []},
        {"params": [{"kind": "list", "name": "x"}], "results": []},
    ],
)
def test_malformed_signatures(data: object) -> None:
    with pytest.raises(FormatError):
        Signature.from_json(data)


def test_deeply_nested_signature() -> None:
    spec: dict[str, object] = {"kind": "object", "name": "x"}
    for _ in range(100):
        spec = {"kind": "tuple", "name": "t", "fields": [spec]}
    with pytest.raises(FormatError, match="nested"):
        Signature.from_json({"params": [spec], "results": []})


def test_signatures_read_well() -> None:
    signature = Signature(
        [
            TensorSpec("x", ("n", 3), "float32"),
            TensorSpec("y", None, None),
            ShapeSpec("s", (1, "n")),
            ScalarSpec("k", "int64"),
        ],
        [TupleSpec("out", (ObjectSpec("a"),))],
    )
    assert str(signature) == "(x: (n, 3) float32, y: (...) any, s: shape(1, n), k: int64) -> (out: (a: object))"


def test_lookup() -> None:
    executable = sample()
    assert executable.function("helper").num_args == 1
    assert executable.signature("main").params == [TensorSpec("x", ("n", 3), "float32")]
    assert executable.signature("native") == Signature([ObjectSpec("a"), ObjectSpec("b")], [])
    assert executable.signature("helper") == Signature([ObjectSpec("arg0")], [])
    with pytest.raises(FunctionNotFoundError, match="main, helper, native|main, native, helper|native, main, helper"):
        executable.function("missing")


def test_stats_and_repr() -> None:
    text = sample().stats()
    for part in (
        "2 bytecode, 1 compiled, 3 packed",
        "@main(x, n): 8 instructions, 5 registers",
        "kernel.add",
        "5 call, 2 ret",
    ):
        assert part in text
    assert "5 tensors" not in text and "4 tensors" in text
    assert "9 instructions" in repr(sample())


def test_equality() -> None:
    assert sample() == sample() and sample() != 3
    for change in (
        lambda e: e.constants.__setitem__(0, np.zeros(1)),
        lambda e: e.functions[0].param_names.reverse(),
        lambda e: setattr(e, "instr_data", e.instr_data + 1),
        lambda e: e.metadata.clear(),
        lambda e: e.memory_scopes.clear(),
        lambda e: setattr(e, "debug", DebugInfo()),
        lambda e: e.signatures.clear(),
        lambda e: e.constants.pop(),
    ):
        changed = sample()
        change(changed)
        assert changed != sample()


def test_pickle_and_copy(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.vmx")
    for executable in (sample(), load_executable(tmp_path / "a.vmx")):
        assert pickle.loads(pickle.dumps(executable)) == executable
        assert copy.deepcopy(executable) == executable


def test_as_python_rebuilds_the_executable() -> None:
    b = ExecBuilder()
    with b.function("main", 1):
        b.emit_call("use", [0.5, "a", np.float32(2), np.arange(3), (1, 2), DataType("int8"), 2**60], source="s")
        b.convert_constant("a", share=False)
        b.emit_call("use", [math.nan, math.inf, None, b.vm_state(), b.f("main")], dst=5)
        b.emit_ret(5)
    for executable in (sample(), b.get(formalize=False), VMExecutable()):
        scope: dict[str, object] = {}
        exec(executable.as_python(), scope)
        rebuilt = scope["executable"]
        assert isinstance(rebuilt, VMExecutable)
        assert rebuilt == executable and rebuilt.to_bytes() == executable.to_bytes()


def test_as_python_needs_a_verified_program() -> None:
    executable = sample()
    executable.instr_data = executable.instr_data[:-1]
    with pytest.raises(VerifyError):
        executable.as_python()


def test_load_executable_tells_formats_apart(tmp_path: Path) -> None:
    executable = sample()
    executable.save(tmp_path / "a.vmx")
    (tmp_path / "a.bin").write_bytes(executable.to_bytes())
    assert load_executable(tmp_path / "a.vmx") == executable
    assert load_executable(str(tmp_path / "a.vmx")) == executable
    assert load_executable((tmp_path / "a.vmx").read_bytes()) == executable
    assert load_executable(tmp_path / "a.bin").to_bytes() == executable.to_bytes()
    assert VMExecutable.from_bytes(bytearray(executable.to_bytes())).to_bytes() == executable.to_bytes()


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01\x01\x00 and so on", b"PK\x03\x04....", b"text"])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.so"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ExecutableError) as caught:
            load_executable(source)
        assert ("not supported yet" in str(caught.value)) == data.startswith(b"\x7fELF")
    assert str(path) in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError):
        load_executable(tmp_path / "missing")


def test_the_reference_interpreter_runs_a_loop() -> None:
    """sum of 1..n, by a backward jump."""
    executable = assemble(
        """
        func @main(%0 n)
          call @vm.builtin.copy (0) -> %1
          goto test
        body:
          call @add (%1, %0) -> %1
          call @add (%0, -1) -> %0
        test:
          if %0, end
          goto body
        end:
          ret %1
        """
    )
    executable.verify()
    assert run(executable, "main", [10], {"add": lambda a, b: a + b}) == 55
