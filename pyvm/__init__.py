"""A Relax-style virtual machine for Python: models become a small register bytecode, and a Cython core runs it.

The names below load on first use, so `import pyvm` costs little, and a process that only serves executables never
imports the compiler half (`pyvm.ir`, `.op`, `.transform`, `.codegen`, `.frontend`).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "register_func": "pyvm.registry",
    "get_global_func": "pyvm.registry",
    "list_global_func_names": "pyvm.registry",
    "remove_global_func": "pyvm.registry",
    "Tensor": "vmcore.objects",
    "tensor": "vmcore.objects",
    "DataType": "vmcore.types",
    "Device": "vmcore.types",
    "Shape": "vmcore.types",
    "cpu": "vmcore.types",
    "ExecBuilder": "pyvm.exec_builder",
    "VMExecutable": "pyvm.executable",
    "load_executable": "pyvm.executable",
    "VirtualMachine": "pyvm.vm",
    "VMInstrumentReturnKind": "pyvm.monitor",
    "deadline": "pyvm.vm",
    "load_library": "vmcore.library",
    "set_num_threads": "vmcore.threads",
    "get_num_threads": "vmcore.threads",
    "compile": "pyvm.compile",
    "function": "pyvm.frontend.python",
    "call_packed": "pyvm.frontend.python",
    "call_dps_packed": "pyvm.frontend.python",
}
_SUBMODULES = ("codegen", "errors", "frontend", "ir", "op", "transform")

__all__ = ["__version__", *_EXPORTS, *_SUBMODULES]

if TYPE_CHECKING:
    from pyvm import codegen as codegen
    from pyvm import errors as errors
    from pyvm import frontend as frontend
    from pyvm import ir as ir
    from pyvm import op as op
    from pyvm import transform as transform
    from pyvm.compile import compile as compile
    from pyvm.exec_builder import ExecBuilder as ExecBuilder
    from pyvm.executable import VMExecutable as VMExecutable
    from pyvm.executable import load_executable as load_executable
    from pyvm.frontend.python import call_dps_packed as call_dps_packed
    from pyvm.frontend.python import call_packed as call_packed
    from pyvm.frontend.python import function as function
    from pyvm.monitor import VMInstrumentReturnKind as VMInstrumentReturnKind
    from pyvm.registry import get_global_func as get_global_func
    from pyvm.registry import list_global_func_names as list_global_func_names
    from pyvm.registry import register_func as register_func
    from pyvm.registry import remove_global_func as remove_global_func
    from pyvm.vm import VirtualMachine as VirtualMachine
    from pyvm.vm import deadline as deadline
    from vmcore.library import load_library as load_library
    from vmcore.objects import Tensor as Tensor
    from vmcore.objects import tensor as tensor
    from vmcore.threads import get_num_threads as get_num_threads
    from vmcore.threads import set_num_threads as set_num_threads
    from vmcore.types import DataType as DataType
    from vmcore.types import Device as Device
    from vmcore.types import Shape as Shape
    from vmcore.types import cpu as cpu


def __getattr__(name: str) -> object:
    """The public name, imported now and kept for the next use (PEP 562)."""
    if name in _SUBMODULES:
        return importlib.import_module(f"pyvm.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pyvm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `pyvm.compile` the function: the import system binds the module of that name when it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "compile" and isinstance(value, ModuleType):
            value = value.compile
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
