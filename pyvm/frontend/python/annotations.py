"""What an annotation says about a value: Python's way to write struct info."""

from __future__ import annotations

import collections.abc
import itertools
import typing
from types import EllipsisType
from typing import Any

import numpy as np

from pyvm.ir import (
    CallableStructInfo,
    ObjectStructInfo,
    Prim,
    PrimExpr,
    PrimStructInfo,
    ShapeStructInfo,
    StructInfo,
    SymVar,
    TensorStructInfo,
    TupleStructInfo,
    as_prim,
    parse_prim,
    parse_struct_info,
)
from pyvm.ir.rules import dtype_problem
from vmcore.errors import CompileError, FrontendError
from vmcore.objects import Tensor
from vmcore.types import DataType, Shape

_unnamed = itertools.count()


def struct_info_of(annotation: Any, name: str = "") -> StructInfo:
    """The struct info that an annotation stands for.

    Parameters
    ----------
    annotation : Any
        See `pyvm.frontend.python`.
    name : str
        The parameter: an `int` is a symbol of this name, and sizes without a name get one that begins with it.

    Raises
    ------
    FrontendError
        If it says nothing about a value of a program, or an element type is missing or unknown.
    """
    try:
        return _info(annotation, name)
    except FrontendError:
        raise
    except (CompileError, ValueError, TypeError) as error:
        raise FrontendError(f"annotation {_text(annotation)}: {error}") from error


def _info(annotation: Any, name: str) -> StructInfo:
    if isinstance(annotation, StructInfo):
        return annotation
    if isinstance(annotation, str):
        return parse_struct_info(annotation)
    if annotation is int:
        return PrimStructInfo("int64", SymVar(name, nonnegative=False) if name.isidentifier() else None)
    if annotation is float:
        return PrimStructInfo("float64")
    if annotation is bool:
        return PrimStructInfo("bool")
    if annotation in (object, str, Any):
        return ObjectStructInfo()
    if annotation is Tensor:
        return TensorStructInfo()
    if annotation is Shape:
        return ShapeStructInfo()
    if annotation in (collections.abc.Callable, typing.Callable):
        return CallableStructInfo(None, ObjectStructInfo())
    metadata = getattr(annotation, "__metadata__", None)
    if metadata is not None:  # Annotated[Tensor, dims..., dtype]
        origin, args = annotation.__origin__, metadata
    else:
        origin, args = typing.get_origin(annotation), getattr(annotation, "__args__", ())
    if origin is Tensor:
        return _tensor(annotation, args, name)
    if origin is Shape:
        if args == (...,):
            return ShapeStructInfo()
        return ShapeStructInfo(_dims(args, name))
    if origin is tuple:
        if ... in args:
            raise FrontendError(f"annotation {_text(annotation)}: the number of fields must be known")
        return TupleStructInfo(
            [_info(arg, f"{name}_{i}") for i, arg in enumerate(args) if arg != ()]  # tuple[()] has none
        )
    if origin is collections.abc.Callable:
        params, ret = typing.get_args(annotation)
        infos = None if params is ... else [_without_value(_info(param, "")) for param in params]
        return CallableStructInfo(infos, ObjectStructInfo() if ret in (None, type(None)) else _info(ret, ""))
    raise FrontendError(
        f"annotation {_text(annotation)} says nothing about a value of a program; write pyvm.Tensor[dims..., dtype], "
        "pyvm.Shape[dims...], int, float, bool, tuple[...], Callable[[...], ...] or object"
    )


def _tensor(annotation: Any, args: tuple[Any, ...], name: str) -> StructInfo:
    dtype = _dtype(args[-1]) if args else None
    if dtype is None:
        raise FrontendError(
            f"annotation {_text(annotation)}: the element type is missing; it comes last: Tensor['n', 4, 'float32']"
        )
    problem = dtype_problem(TensorStructInfo((), dtype))
    if problem is not None:
        raise FrontendError(f"annotation {_text(annotation)}: {problem}")
    if args[:-1] == (...,):
        return TensorStructInfo(None, dtype)
    return TensorStructInfo(_dims(args[:-1], name), dtype)


def _dtype(value: Any) -> str | None:
    if isinstance(value, (int, EllipsisType, PrimExpr)) or value is None:
        return None
    try:
        return str(DataType(value if isinstance(value, (str, DataType)) else np.dtype(value)))
    except (ValueError, TypeError):
        return None


def _dims(args: tuple[Any, ...], name: str) -> list[Prim]:
    dims: list[Prim] = []
    for axis, arg in enumerate(args):
        if arg is None:
            dims.append(SymVar(f"{name or 'any'}_{axis}" if name.isidentifier() else f"any{next(_unnamed)}_{axis}"))
        elif isinstance(arg, str):
            dims.append(parse_prim(arg))
        elif isinstance(arg, (int, np.integer, PrimExpr)) and not isinstance(arg, bool):
            dims.append(as_prim(arg))
        else:
            raise FrontendError(f"dim {axis} is {arg!r}: expected a number, a symbol in quotes, or None for any size")
    return dims


def _without_value(info: StructInfo) -> StructInfo:
    return PrimStructInfo(info.dtype) if isinstance(info, PrimStructInfo) else info


def _text(annotation: Any) -> str:
    return repr(annotation).replace("vmcore.objects.", "").replace("vmcore.types.", "")
