"""Pickled machines and functions: path and digest of a `.vmx` file, or the bytes of the executable."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

WEIGHTS = 1 << 20
PROGRAM = """
func @main(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(16), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(4), dtype(float32)) -> %2
  call @kernel.add (%0, c[0], %2)
  ret %2
func @weights() regs=1
  call @vm.builtin.copy (c[1]) -> %0
  ret %0
c[0] = tensor float32 (4) [1, 2, 3, 4]
c[1] = tensor float32 (2) [0, 0]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    executable = assemble(PROGRAM)
    executable.constants[1] = np.arange(WEIGHTS // 4, dtype=np.float32)
    executable.save(tmp_path / "model.vmx")
    return tmp_path / "model.vmx"


X = np.zeros(4, np.float32)


def test_a_machine_from_a_file_is_a_path_and_a_digest(path: Path) -> None:
    vm = VirtualMachine(path, memory_limit=1 << 30, gil="release", memory_cfg="naive")
    data = pickle.dumps(vm)
    assert len(data) < 1000 and str(path).encode() in data
    other = pickle.loads(data)
    assert other["main"](X).numpy().tolist() == [1, 2, 3, 4]
    assert other.memory_report()["limit_bytes"] == 1 << 30
    assert pickle.dumps(other) == data
    assert other["weights"]().numpy()[-1] == WEIGHTS // 4 - 1


def test_a_relative_path_is_made_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(VirtualMachine("model.vmx"))
    monkeypatch.chdir("/")
    assert pickle.loads(data)["main"](X).numpy().tolist() == [1, 2, 3, 4]


def test_functions_are_the_machine_and_the_name(path: Path) -> None:
    vm = VirtualMachine(path)
    main = pickle.loads(pickle.dumps(vm["main"]))
    assert main.__name__ == "main" and main(X).numpy().tolist() == [1, 2, 3, 4]
    both = pickle.loads(pickle.dumps((vm, vm["main"], vm["weights"])))
    assert both[0]["main"] is both[1] and both[0]["weights"] is both[2]
    alone = vm["main"]
    del vm
    assert len(pickle.dumps(alone)) < 1000
    assert pickle.loads(pickle.dumps(alone))(X).numpy().tolist() == [1, 2, 3, 4]


def test_saved_functions_come_along(path: Path) -> None:
    vm = VirtualMachine(path)
    vm.save_function("main", "bound", pyvm.tensor(X + 1))
    vm.save_function("main", "silent", x=X, include_return=False)
    other = pickle.loads(pickle.dumps(vm))
    assert other["bound"]().numpy().tolist() == [2, 3, 4, 5] and other["silent"]() is None
    assert pickle.loads(pickle.dumps(vm["bound"]))().numpy().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("change", ["weights", "code", "another"])
def test_another_file_is_refused(path: Path, change: str) -> None:
    data = [pickle.dumps(VirtualMachine(path)), pickle.dumps(VirtualMachine(path)["main"])]
    executable = pyvm.load_executable(path, mmap=False)
    if change == "weights":
        executable.constants[0] = np.array([9, 2, 3, 4], np.float32)
    elif change == "code":
        executable.functions[0].name = "other"
    else:
        executable = assemble("func @main(%0) regs=1\n  ret %0")
    executable.save(path)
    for one in data:
        with pytest.raises(pyvm.errors.FormatError, match=r"model.vmx is not the file .* is \w{32}, expected \w{32}"):
            pickle.loads(one)


def test_a_file_that_is_gone_or_broken(path: Path) -> None:
    data = pickle.dumps(VirtualMachine(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(pyvm.errors.FormatError):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def test_the_file_that_counts_is_the_one_that_was_loaded(path: Path) -> None:
    vm = VirtualMachine(path)
    assemble("func @main(%0) regs=1\n  ret %0").save(path)
    assert vm["main"](X).numpy().tolist() == [1, 2, 3, 4]
    with pytest.raises(pyvm.errors.FormatError, match="is not the file"):
        pickle.loads(pickle.dumps(vm))


@pytest.mark.parametrize("source", ["executable", "bytes", "tvm file"])
def test_other_machines_carry_their_executable(path: Path, source: str) -> None:
    executable = pyvm.load_executable(path)
    origin: Any = executable
    if source == "bytes":
        origin = path.read_bytes()
    elif source == "tvm file":
        origin = path.with_suffix(".bin")
        origin.write_bytes(executable.to_bytes())
    vm = VirtualMachine(origin)
    data = [pickle.dumps(vm), pickle.dumps(vm["weights"])]
    for file in path.parent.iterdir():
        file.unlink()
    assert len(data[0]) > WEIGHTS
    assert pickle.loads(data[0])["weights"]().numpy()[-1] == WEIGHTS // 4 - 1
    assert pickle.loads(data[1])().numpy()[-1] == WEIGHTS // 4 - 1


def test_copies_are_machines_of_their_own(path: Path) -> None:
    vm = VirtualMachine(path)
    for other in (copy.copy(vm), copy.deepcopy(vm)):
        assert other is not vm and other["main"](X).numpy().tolist() == [1, 2, 3, 4]
        other.set_input("main", X)
        with pytest.raises(pyvm.errors.ArgumentValueError):
            vm.invoke_stateful("main")


def test_functions_that_are_not_registered_are_named() -> None:
    pyvm.register_func("pickle.callback", lambda x: x, override=True)
    data = pickle.dumps(VirtualMachine(assemble("func @main(%0) regs=1\n  call @pickle.callback (%0) -> %0\n  ret %0")))
    pyvm.remove_global_func("pickle.callback")
    with pytest.raises(pyvm.errors.FunctionNotFoundError, match=r"pickle\.callback"):
        pickle.loads(data)


@pytest.mark.parametrize(
    "value", [np.arange(6).reshape(2, 3), np.array(2.5), np.zeros((0, 3), np.int8), np.array([True])]
)
def test_tensors(value: np.ndarray) -> None:
    other = pickle.loads(pickle.dumps(pyvm.tensor(value)))
    assert isinstance(other, pyvm.Tensor) and other.shape == value.shape
    assert np.array_equal(other.numpy(), value) and other.numpy().dtype == value.dtype


def _run(function: Any, value: float) -> tuple[int, list[float]]:
    return os.getpid(), function(np.full(4, value, np.float32)).numpy().tolist()


def test_spawned_workers(path: Path, run_python: Any, tmp_path: Path) -> None:
    """In a program of its own: a spawned worker imports the program's main module."""
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing, os, sys\nimport numpy as np\nfrom pyvm.vm import VirtualMachine\n"
        "def run(function, value):\n"
        "    return os.getpid(), function(np.full(4, value, np.float32)).numpy().tolist()\n"
        "if __name__ == '__main__':\n"
        "    main = VirtualMachine(sys.argv[1])['main']\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        found = pool.starmap(run, [(main, float(i)) for i in range(6)], chunksize=1)\n"
        "    assert [r for _, r in found] == [[i + 1.0, i + 2.0, i + 3.0, i + 4.0] for i in range(6)], found\n"
        "    assert os.getpid() not in {pid for pid, _ in found}\n"
    )
    done: subprocess.CompletedProcess[str] = run_python(str(script), str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_forked_workers(path: Path) -> None:
    main = VirtualMachine(path)["main"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(_run, [(main, float(i)) for i in range(6)])
    assert [result for _, result in found] == [[i + 1.0, i + 2.0, i + 3.0, i + 4.0] for i in range(6)]
