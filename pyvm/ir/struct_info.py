"""Struct info: what is known about a value before the program runs. Immutable, compared by content."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmcore.errors import ArgumentValueError
from vmcore.types import DataType

from .prim import Prim, PrimExpr, SymVar, as_prim, free_vars, substitute


class StructInfo:
    """Base class. The most general one is `ObjectStructInfo`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ObjectStructInfo(StructInfo):
    """Any value."""

    def __str__(self) -> str:
        return "Object"


@dataclass(frozen=True, slots=True, init=False)
class TensorStructInfo(StructInfo):
    """A tensor. `shape` None: unknown sizes, `ndim` -1: unknown rank, `dtype` None: unknown element type."""

    shape: tuple[Prim, ...] | None
    dtype: str | None
    ndim: int

    def __init__(self, shape: Iterable[Prim] | None = None, dtype: object = None, ndim: int = -1) -> None:
        dims = None if shape is None else tuple(map(as_prim, shape))
        if dims is not None:
            if ndim not in (-1, len(dims)):
                raise ArgumentValueError(f"TensorStructInfo: ndim {ndim}, but the shape has {len(dims)} dimensions")
            ndim = len(dims)
            for dim in dims:
                if isinstance(dim, int) and dim < 0:
                    raise ArgumentValueError(f"TensorStructInfo: dimension {dim} in shape {format_shape(dims)}")
        object.__setattr__(self, "shape", dims)
        object.__setattr__(self, "dtype", None if dtype is None else dtype_name(dtype))
        object.__setattr__(self, "ndim", ndim)

    @property
    def is_static(self) -> bool:
        """Rank, sizes and element type are all known as numbers."""
        return self.shape is not None and self.dtype is not None and all(isinstance(d, int) for d in self.shape)

    def __str__(self) -> str:
        dtype = "?" if self.dtype is None else self.dtype
        if self.shape is not None:
            return f"Tensor({format_shape(self.shape)}, {dtype})"
        return f"Tensor(ndim={self.ndim}, {dtype})" if self.ndim >= 0 else f"Tensor(?, {dtype})"


@dataclass(frozen=True, slots=True, init=False)
class ShapeStructInfo(StructInfo):
    """A shape as a value. `values` None: unknown sizes, `ndim` -1: unknown rank."""

    values: tuple[Prim, ...] | None
    ndim: int

    def __init__(self, values: Iterable[Prim] | None = None, ndim: int = -1) -> None:
        dims = None if values is None else tuple(map(as_prim, values))
        if dims is not None:
            if ndim not in (-1, len(dims)):
                raise ArgumentValueError(f"ShapeStructInfo: ndim {ndim}, but there are {len(dims)} values")
            ndim = len(dims)
        object.__setattr__(self, "values", dims)
        object.__setattr__(self, "ndim", ndim)

    def __str__(self) -> str:
        if self.values is not None:
            return f"Shape({format_shape(self.values)})"
        return f"Shape(ndim={self.ndim})" if self.ndim >= 0 else "Shape(?)"


@dataclass(frozen=True, slots=True)
class PrimStructInfo(StructInfo):
    """A scalar that is not a tensor: dtype "int64", "float64", "bool" ..., and its value where it is known."""

    dtype: str
    value: Prim | float | None = None

    def __str__(self) -> str:
        if isinstance(self.value, float) and not math.isfinite(self.value):
            return f'Prim({self.dtype}, float("{self.value}"))'
        return f"Prim({self.dtype})" if self.value is None else f"Prim({self.dtype}, {self.value})"


@dataclass(frozen=True, slots=True, init=False)
class TupleStructInfo(StructInfo):
    """A tuple with one struct info per field."""

    fields: tuple[StructInfo, ...]

    def __init__(self, fields: Iterable[StructInfo] = ()) -> None:
        object.__setattr__(self, "fields", tuple(fields))

    def __str__(self) -> str:
        return f"Tuple({', '.join(map(str, self.fields))})"


@dataclass(frozen=True, slots=True, init=False)
class CallableStructInfo(StructInfo):
    """A function. `params` None: any arguments."""

    params: tuple[StructInfo, ...] | None
    ret: StructInfo

    def __init__(self, params: Iterable[StructInfo] | None = None, ret: StructInfo | None = None) -> None:
        object.__setattr__(self, "params", None if params is None else tuple(params))
        object.__setattr__(self, "ret", ObjectStructInfo() if ret is None else ret)

    def __str__(self) -> str:
        params = "..." if self.params is None else ", ".join(map(str, self.params))
        return f"Callable(({params}) -> {self.ret})"


def dtype_name(dtype: object) -> str:
    """The name of an element type given as a name, a numpy dtype or a `DataType`."""
    return str(DataType(dtype))  # type: ignore[arg-type]


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return DataType(dtype).itemsize


def format_shape(dims: Iterable[Prim]) -> str:
    """Dimensions as Python writes a tuple."""
    parts = [str(dim) for dim in dims]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def struct_info_vars(info: StructInfo | None) -> frozenset[SymVar]:
    """All symbols that occur in a struct info, those of nested callables excepted (they have their own scope)."""
    if isinstance(info, TensorStructInfo):
        return _union(info.shape or ())
    if isinstance(info, ShapeStructInfo):
        return _union(info.values or ())
    if isinstance(info, PrimStructInfo) and isinstance(info.value, PrimExpr):
        return free_vars(info.value)
    if isinstance(info, TupleStructInfo):
        return frozenset().union(*map(struct_info_vars, info.fields))
    return frozenset()


def _union(dims: Iterable[Prim]) -> frozenset[SymVar]:
    found: frozenset[SymVar] = frozenset()
    for dim in dims:
        if not isinstance(dim, int):
            found |= free_vars(dim)
    return found


def substitute_struct_info(info: StructInfo, mapping: Mapping[SymVar, Prim]) -> StructInfo:
    """`info` with symbols replaced."""
    if not mapping:
        return info
    if isinstance(info, TensorStructInfo) and info.shape is not None:
        return TensorStructInfo([substitute(dim, mapping) for dim in info.shape], info.dtype)
    if isinstance(info, ShapeStructInfo) and info.values is not None:
        return ShapeStructInfo([substitute(dim, mapping) for dim in info.values])
    if isinstance(info, PrimStructInfo) and isinstance(info.value, PrimExpr):
        return PrimStructInfo(info.dtype, substitute(info.value, mapping))
    if isinstance(info, TupleStructInfo):
        return TupleStructInfo(substitute_struct_info(field, mapping) for field in info.fields)
    return info


def erase_unknown(info: StructInfo, known: frozenset[SymVar]) -> StructInfo:
    """The most precise struct info implied by `info` that mentions no symbol outside `known`."""
    if struct_info_vars(info) <= known:
        return info
    if isinstance(info, TensorStructInfo):
        return TensorStructInfo(None, info.dtype, info.ndim)
    if isinstance(info, ShapeStructInfo):
        return ShapeStructInfo(None, info.ndim)
    if isinstance(info, PrimStructInfo):
        return PrimStructInfo(info.dtype)
    if isinstance(info, TupleStructInfo):
        return TupleStructInfo(erase_unknown(field, known) for field in info.fields)
    return ObjectStructInfo()


def common_struct_info(a: StructInfo, b: StructInfo) -> StructInfo:
    """The most precise struct info that both `a` and `b` satisfy (their least upper bound)."""
    if a == b:
        return a
    if isinstance(a, TensorStructInfo) and isinstance(b, TensorStructInfo):
        dtype = a.dtype if a.dtype == b.dtype else None
        if a.shape is not None and a.shape == b.shape:
            return TensorStructInfo(a.shape, dtype)
        return TensorStructInfo(None, dtype, a.ndim if a.ndim == b.ndim else -1)
    if isinstance(a, ShapeStructInfo) and isinstance(b, ShapeStructInfo):
        return ShapeStructInfo(None, a.ndim if a.ndim == b.ndim else -1)
    if isinstance(a, PrimStructInfo) and isinstance(b, PrimStructInfo) and a.dtype == b.dtype:
        return PrimStructInfo(a.dtype)
    if isinstance(a, TupleStructInfo) and isinstance(b, TupleStructInfo) and len(a.fields) == len(b.fields):
        return TupleStructInfo(map(common_struct_info, a.fields, b.fields))
    if isinstance(a, CallableStructInfo) and isinstance(b, CallableStructInfo):
        return CallableStructInfo(None, common_struct_info(a.ret, b.ret))
    return ObjectStructInfo()


def match_symbols(declared: StructInfo, actual: StructInfo | None, mapping: dict[SymVar, Prim]) -> None:
    """Adds to `mapping` what the symbols of `declared` stand for when a value of `actual` is passed for it."""
    if isinstance(declared, TensorStructInfo) and isinstance(actual, TensorStructInfo):
        _match_dims(declared.shape, actual.shape, mapping)
    elif isinstance(declared, ShapeStructInfo) and isinstance(actual, ShapeStructInfo):
        _match_dims(declared.values, actual.values, mapping)
    elif isinstance(declared, PrimStructInfo) and isinstance(actual, PrimStructInfo):
        if isinstance(declared.value, SymVar) and isinstance(actual.value, (int, PrimExpr)):
            mapping.setdefault(declared.value, actual.value)
    elif isinstance(declared, TupleStructInfo) and isinstance(actual, TupleStructInfo):
        for inner, given in zip(declared.fields, actual.fields, strict=False):
            match_symbols(inner, given, mapping)


def _match_dims(
    declared: tuple[Prim, ...] | None, actual: tuple[Prim, ...] | None, mapping: dict[SymVar, Prim]
) -> None:
    if declared is None or actual is None or len(declared) != len(actual):
        return
    for dim, given in zip(declared, actual, strict=True):
        if isinstance(dim, SymVar):
            mapping.setdefault(dim, given)
