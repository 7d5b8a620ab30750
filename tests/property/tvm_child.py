"""Runs random programs on TVM's Relax VM: a child process of `differential`, which shares no address space with ours.

Usage: tvm_child.py FOLDER START. Reads `cases.pickle`, appends to `outcomes.pickle` from the case START on.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from tests.random_programs import FUNCTIONS
from vmcore.types import Shape

KINDS = (IndexError, ZeroDivisionError, TypeError, ValueError, RecursionError, RuntimeError)


def to_tvm(value: Any) -> Any:
    """A Python value for TVM."""
    if isinstance(value, (np.ndarray, np.generic)):
        return tvm.runtime.tensor(np.asarray(value))
    if isinstance(value, Shape) or (isinstance(value, tuple) and value[:1] == ("shape",)):
        return tvm_ffi.Shape(tuple(value[1]) if value[:1] == ("shape",) else tuple(value))
    if isinstance(value, tuple):
        return tvm_ffi.convert([to_tvm(item) for item in value])
    return value


def to_python(value: Any) -> Any:
    """What a function in Python gets on our machine."""
    if isinstance(value, tvm_ffi.Shape):
        return Shape(int(d) for d in value)
    if isinstance(value, tvm_ffi.Array):
        return tuple(to_python(item) for item in value)
    return str(value) if isinstance(value, str) else value


def comparable(value: Any) -> Any:
    """As `differential.comparable`."""
    if isinstance(value, tvm_ffi.Shape):
        return ("shape", tuple(int(d) for d in value))
    if isinstance(value, tvm_ffi.Array):
        return ("tuple", tuple(map(comparable, value)))
    if hasattr(value, "numpy"):
        array = value.numpy()
        return ("tensor", str(array.dtype), array.shape, array.tobytes())
    if isinstance(value, str):
        return ("str", str(value))
    if callable(value) or type(value).__name__ in ("Closure", "VMClosure", "Object"):
        return ("function",)
    return (type(value).__name__, repr(value) if isinstance(value, float) else value)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for TVM's values."""
    return lambda *args: to_tvm(function(*map(to_python, args)))


def main(folder: Path, start: int) -> None:
    """Runs the cases from `start` on."""
    for name, function in FUNCTIONS.items():
        tvm.register_global_func(name, wrapped(function), override=True)
    cases = pickle.loads((folder / "cases.pickle").read_bytes())
    path = folder / "program.bin"
    load = tvm_ffi.get_global_func("relax.ExecutableLoadFromFile")
    with (folder / "outcomes.pickle").open("ab") as out:
        for data, args in cases[start:]:
            path.write_bytes(data)
            try:
                vm = relax.VirtualMachine(relax.VMExecutable(load(str(path))), tvm.cpu())
                result = "value", comparable(vm["main"](*map(to_tvm, args)))
            except Exception as error:  # noqa: BLE001
                name = next((kind.__name__ for kind in KINDS if isinstance(error, kind)), type(error).__name__)
                result = "error", name
            pickle.dump(result, out)
            out.flush()


main(Path(sys.argv[1]), int(sys.argv[2]))
