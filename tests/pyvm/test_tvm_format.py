"""TVM's executable format: the bytes of a real file, of the real TVM where it is installed, and of hostile writers."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from pyvm.asm import assemble
from pyvm.exec_builder import ExecBuilder
from pyvm.executable import FunctionInfo, VMExecutable, load_executable
from pyvm.tvm_format import read_tvm, write_tvm
from tests.executables import executables, mutations, sample
from tests.reference_vm import run
from vmcore.errors import ExecutableError, FormatError, VersionError
from vmcore.types import DataType, Shape

# Written by TVM 0.27 for: f(c, x): r = x if c else "no"; return (r, -1, g, None, and one constant of each kind)[0]
TINY = bytes.fromhex((Path(__file__).parent.parent / "golden" / "tiny.hex").read_text())


def test_a_file_written_by_tvm() -> None:
    assert len(TINY) == 894
    executable = read_tvm(TINY)
    executable.verify()
    assert write_tvm(executable) == TINY
    assert executable.functions == [
        FunctionInfo(1, "f", 0, 7, 2, 5, ["c", "x"]),
        FunctionInfo(0, "vm.builtin.copy"),
        FunctionInfo(1, "g", 7, 8, 0, 0),
        FunctionInfo(0, "vm.builtin.make_tuple"),
        FunctionInfo(0, "vm.builtin.tuple_getitem"),
    ]
    text, tensor, *others = executable.constants
    assert (text, others) == ("no", [Shape((3,)), DataType("int8"), 2**60, 0.5])
    assert isinstance(tensor, np.ndarray) and tensor.dtype == np.float32 and not tensor.flags.writeable
    np.testing.assert_array_equal(tensor, [1, 2])
    assert executable.as_text() == (
        "@f:\n"
        "  If    %0, 3\n"
        "  call  vm.builtin.copy  in: %1           dst: %2\n"
        "  goto  2\n"
        "  call  vm.builtin.copy  in: c[0]         dst: %2\n"
        "  call  vm.builtin.make_tuple in: %2, i-1, f[g], %void, c[1], c[2], c[3], c[4], c[5] dst: %3\n"
        "  call  vm.builtin.tuple_getitem in: %3, i0       dst: %4\n"
        "  ret   %4\n\n"
        "@vm.builtin.copy packed_func;\n\n"
        "@g:\n  ret   %void\n\n"
        "@vm.builtin.make_tuple packed_func;\n\n"
        "@vm.builtin.tuple_getitem packed_func;\n\n"
    )
    assert run(executable, "f", [1, "x"]) == "x" and run(executable, "f", [0, "x"]) == "no"
    assert assemble(executable.as_asm()).to_bytes() == TINY


def test_both_versions() -> None:
    executable = read_tvm(TINY)
    first = write_tvm(executable, version=1)
    assert len(first) == len(TINY) - 8 and first[:8] == struct.pack("<Q", 0xD225DE2F4214151D)
    assert write_tvm(read_tvm(first)) == TINY
    executable.memory_scopes = {5: "", 1: "global", 77: "texture"}
    assert list(read_tvm(write_tvm(executable)).memory_scopes.items()) == [(5, ""), (1, "global"), (77, "texture")]
    with pytest.raises(VersionError, match="3 memory scopes"):
        write_tvm(executable, version=1)
    with pytest.raises(VersionError, match="version 3"):
        write_tvm(executable, version=3)


@given(executables())
@settings(max_examples=80, deadline=None)
def test_round_trip(executable: VMExecutable) -> None:
    data = executable.to_bytes()
    back = load_executable(data)
    assert back.to_bytes() == data
    executable.debug, executable.signatures, executable.metadata = back.debug, {}, {}
    executable.notes = back.notes
    assert back == executable


def test_tensors_are_aligned() -> None:
    executable = read_tvm(sample().to_bytes())
    tensors = [c for c in executable.constants if isinstance(c, np.ndarray)]
    assert all(t.ctypes.data % 64 == 0 and not t.flags.writeable for t in tensors if t.size)


def patched(at: int, layout: str, value: int) -> bytes:
    data = bytearray(TINY)
    struct.pack_into("<" + layout, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "8 bytes are needed"),
        (patched(0, "Q", 3), "magic"),
        (TINY + b"\0", "1 bytes follow"),
        (patched(0x14, "Q", 2**40), "items of at least 52 bytes"),
        (patched(0x14, "Q", 2**64 - 1), "items of at least 52 bytes"),
        (patched(0x20, "Q", 2**50), "items of at least 1 bytes"),
        (patched(0x28, "B", 0xFF), "UTF-8"),
        (patched(0x49, "Q", 2**60), "items of at least 8 bytes"),
        (patched(0x170, "Q", 2**60), "items of at least 16 bytes"),
        (patched(0x178, "Q", 2**60), "items of at least 8 bytes"),
        (patched(0x180, "i", 71), "type index 71"),
        (patched(0x192, "Q", 0), "tensor magic"),
        (patched(0x1A2, "i", 2), "device type 2"),
        (patched(0x1AA, "i", 2**30), "1073741824 dims"),
        (patched(0x1AA, "i", -1), "-1 dims"),
        (patched(0x1AE, "B", 3), "type code 3"),
        (patched(0x1AF, "B", 12), "12 bits"),
        (patched(0x1B0, "H", 4), "4 lanes"),
        (patched(0x1B2, "q", -2), "negative dim"),
        (patched(0x1B2, "q", 2**62), "too large"),
        (patched(0x1B2, "q", 3), "has 12 bytes, not 8"),
        (patched(0x1BA, "q", -8), "not -8"),
        (patched(0x1CE, "Q", 2**61), "items of at least 8 bytes"),
        (patched(0x1FE, "Q", 2**61), "items of at least 8 bytes"),
        (patched(0x246, "Q", 39), "39 items"),
        (patched(0x246, "Q", 37), "8 bytes follow"),
    ],
)
def test_fields_out_of_range(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_tvm(data)


def test_other_format_versions() -> None:
    with pytest.raises(VersionError, match="0.14"):
        read_tvm(TINY.replace(b"0.14", b"0.15"))


def test_two_scopes_of_one_constant() -> None:
    executable = read_tvm(TINY)
    executable.memory_scopes = {1: "a", 2: "b"}
    data = executable.to_bytes()
    with pytest.raises(FormatError, match="two memory scopes"):
        read_tvm(data.replace(struct.pack("<qQ", 2, 1) + b"b", struct.pack("<qQ", 1, 1) + b"b"))


def test_a_huge_empty_tensor_is_refused() -> None:
    """No elements, but strides that overflow."""
    executable = VMExecutable(constants=[np.zeros((0, 3, 5), np.int8)])
    data = bytearray(executable.to_bytes())
    at = data.index(struct.pack("<qq", 3, 5))
    struct.pack_into("<qq", data, at, 2**40, 2**40)
    with pytest.raises(FormatError, match="too large"):
        read_tvm(data)


@pytest.mark.parametrize("truncated", [True, False])
def test_hostile_bytes(truncated: bool) -> None:
    """Only ExecutableError comes out, in little memory; what the verifier accepts is written back byte for byte."""
    source = sample().to_bytes()
    inputs = (
        [source[:n] for n in range(len(source))] if truncated else [*mutations(source, 1500), *mutations(TINY, 1000, 1)]
    )
    tracemalloc.start()
    accepted = 0
    try:
        for data in inputs:
            try:
                executable = load_executable(data)
                executable.verify()
            except ExecutableError:
                continue
            accepted += 1
            if executable.to_bytes() != data:  # a version 1 file, after a flipped bit of the magic
                assert write_tvm(executable, version=1) == data
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert accepted == 0 if truncated else accepted > 30


# Runs where apache-tvm is. Writes NAME.bin and NAME.txt for each program, or for each given file what TVM makes of it.
TVM_SCRIPT = """
import pathlib
import sys

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.script import ir as I, relax as R, tirx as T


@I.ir_module
class Model:
    @R.function
    def main(x: R.Tensor(("n", 4), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4), "float32"):
        with R.dataflow():
            w = R.matmul(x, R.const(np.eye(4, dtype="float32")))
            R.output(w)
        if c:
            y = R.add(w, R.const(1.0, "float32"))
        else:
            y = Model.other(w)
        return y

    @R.function(private=True)
    def other(x: R.Tensor(("n", 4), "float32")) -> R.Tensor(("n", 4), "float32"):
        n = T.int64()
        y = R.reshape(x, R.shape([n * 4]))
        z = R.reshape(R.nn.relu(y), R.shape([n, 4]))
        return z

    @R.function
    def pair(s: R.Shape(["a", "b"]), t: R.Tuple(R.Object, R.Prim("int64"))) -> R.Object:
        u = (t[0], R.str("text"), s)
        return u


def built_by_hand():
    b = relax.ExecBuilder()
    b.declare_function("g", 1)
    with b.function("main", num_inputs=2, param_names=["x", "y"]):
        b.emit_if(b.r(0), 3)
        ones = tvm.runtime.tensor(np.ones((2, 3), "float32"))
        arguments = [b.r(0), b.imm(-7), b.convert_constant("hello"), ones, (3, 4), tvm.DataType("int8"),
                     b.convert_constant(2.5), b.f("g"), b.void_arg(), b.vm_state()]
        b.emit_call("test.add", arguments, dst=b.r(5))
        b.emit_goto(2)
        b.emit_call("a.name.that.is.longer.than.its.column", [b.r(0)], dst=b.r(5))
        b.emit_call("nothing", [])
        b.emit_ret(b.r(5))
    with b.function("g", num_inputs=1):
        b.emit_ret(b.r(0))
    return b.get()


def save(executable, name):
    executable.mod.write_to_file(f"{name}.bin", "")
    pathlib.Path(f"{name}.txt").write_text(executable.as_text())


if sys.argv[1:]:
    for name in sys.argv[1:]:
        save(relax.VMExecutable(tvm_ffi.get_global_func("relax.ExecutableLoadFromFile")(name)), name + ".tvm")
else:
    save(built_by_hand(), "by_hand")
    save(relax.build(Model, "llvm"), "bytecode")
    save(relax.build(Model, "llvm", exec_mode="compiled"), "compiled")
"""

needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="apache-tvm is not installed")
TvmRun = Callable[..., None]


@pytest.fixture
def tvm_run(tmp_path: Path) -> TvmRun:
    """Runs the script with TVM in a child process (the two do not share objects), in the test's folder."""
    (tmp_path / "script.py").write_text(TVM_SCRIPT)

    def call(*args: str) -> None:
        command = [sys.executable, "script.py", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return call


@needs_tvm
def test_files_of_tvm(tvm_run: TvmRun, tmp_path: Path) -> None:
    tvm_run()
    for name in ("by_hand", "bytecode", "compiled"):
        data = (tmp_path / f"{name}.bin").read_bytes()
        executable = load_executable(tmp_path / f"{name}.bin")
        executable.verify()
        assert executable.to_bytes() == data
        assert executable.as_text() == (tmp_path / f"{name}.txt").read_text()
        assert assemble(executable.as_asm()).to_bytes() == data
        scope: dict[str, VMExecutable] = {}
        exec(executable.as_python(), scope)
        assert scope["executable"].to_bytes() == data


@needs_tvm
def test_tvm_reads_our_files(tvm_run: TvmRun, tmp_path: Path) -> None:
    executable = sample()
    (tmp_path / "v2").write_bytes(executable.to_bytes())
    executable.memory_scopes = {}
    (tmp_path / "v1").write_bytes(executable.to_bytes(version=1))
    tvm_run("v1", "v2")
    assert (tmp_path / "v2.tvm.bin").read_bytes() == (tmp_path / "v2").read_bytes()
    assert (tmp_path / "v1.tvm.bin").read_bytes() == executable.to_bytes()
    assert (tmp_path / "v2.tvm.txt").read_text() == executable.as_text()


@needs_tvm
def test_the_builders_agree(tvm_run: TvmRun, tmp_path: Path) -> None:
    """The same calls of both builders give the same bytes."""
    tvm_run()
    b = ExecBuilder()
    b.declare_function("g", 1)
    with b.function("main", num_inputs=2, param_names=["x", "y"]):
        b.emit_if(b.r(0), 3)
        text, number = b.convert_constant("hello"), b.convert_constant(2.5)
        arguments = [
            b.r(0), b.imm(-7), text, np.ones((2, 3), "float32"), (3, 4), DataType("int8"), number, b.f("g"),
            b.void_arg(), b.vm_state(),
        ]  # fmt: skip
        b.emit_call("test.add", arguments, dst=b.r(5))
        b.emit_goto(2)
        b.emit_call("a.name.that.is.longer.than.its.column", [b.r(0)], dst=b.r(5))
        b.emit_call("nothing", [])
        b.emit_ret(b.r(5))
    with b.function("g", num_inputs=1):
        b.emit_ret(b.r(0))
    assert b.get().to_bytes() == (tmp_path / "by_hand.bin").read_bytes()
