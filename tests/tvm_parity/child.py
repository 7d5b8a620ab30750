"""Runs programs on TVM's Relax VM. A child process of test_parity: the two machines share no address space.

Usage: child.py FOLDER START. Reads `cases.pickle`, a list of (executable bytes, function, arguments), and from the case
START on appends one pickled outcome per case to `outcomes.pickle`: ("value", result) or ("error", name of a Python
exception class). Tensors are numpy arrays, shapes ("shape", dims), tuples tuples.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from functions import FUNCTIONS
from tvm import relax

KINDS = (TypeError, ValueError, IndexError, ZeroDivisionError, RuntimeError)


def to_tvm(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tvm.runtime.tensor(value)
    if isinstance(value, tuple) and value[:1] == ("shape",):
        return tvm_ffi.Shape(value[1])
    if isinstance(value, tuple):
        return tvm_ffi.convert([to_tvm(item) for item in value])
    return value


def from_tvm(value: Any) -> Any:
    if isinstance(value, tvm_ffi.Shape):
        return ("shape", tuple(int(d) for d in value))
    if isinstance(value, tvm_ffi.Array):
        return tuple(from_tvm(item) for item in value)
    if hasattr(value, "numpy"):
        return value.numpy()
    if isinstance(value, tvm_ffi.dtype):  # a str
        return ("dtype", str(value))
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return ("object", type(value).__name__)


def outcome(path: Path, data: bytes, name: str, args: tuple[Any, ...]) -> tuple[str, Any]:
    path.write_bytes(data)
    try:
        executable = relax.VMExecutable(tvm_ffi.get_global_func("relax.ExecutableLoadFromFile")(str(path)))
        vm = relax.VirtualMachine(executable, tvm.cpu())
        return "value", from_tvm(vm[name](*map(to_tvm, args)))
    except Exception as error:  # noqa: BLE001
        return "error", next((kind.__name__ for kind in KINDS if isinstance(error, kind)), type(error).__name__)


def main(folder: Path, start: int) -> None:
    for name, function in FUNCTIONS.items():
        tvm.register_global_func(name, function, override=True)
    cases = pickle.loads((folder / "cases.pickle").read_bytes())
    with (folder / "outcomes.pickle").open("ab") as out:
        for data, name, args in cases[start:]:
            pickle.dump(outcome(folder / "program.bin", data, name, args), out)
            out.flush()


main(Path(sys.argv[1]), int(sys.argv[2]))
