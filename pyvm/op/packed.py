"""Calls of functions outside the module: kernels, builtins and registered Python functions by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvm.ir import expr
from pyvm.ir.expr import Call
from pyvm.ir.struct_info import StructInfo


def call_packed(name: str, args: Iterable[Any], struct_info: StructInfo) -> Call:
    """A call of the function `name`, whose result has `struct_info`.

    Parameters
    ----------
    name : str
        Name in the registry when the executable is loaded.
    args : iterable of Expr or Python value
        Arrays become constants, numbers and strings immediates, tuples of ints shapes.
    struct_info : StructInfo
        Trusted, not checked.
    """
    return expr.call_packed(name, *args, struct_info=struct_info)


def call_dps_packed(name: str, args: Iterable[Any], out_struct_info: StructInfo) -> Call:
    """A call of the function `name` that writes its result into tensors allocated for it.

    Parameters
    ----------
    name : str
        Name in the registry when the executable is loaded.
    args : iterable of Expr or Python value
        The tensors of the result are passed after them.
    out_struct_info : StructInfo
        A tensor, or a tuple of tensors, of known shape and dtype.
    """
    return expr.call_dps_packed(name, args, out_struct_info)
