"""Signatures: what a function of an executable takes and returns, for people, for messages and for random inputs.

Running needs none of it: the program itself checks what it is given. So a process that only runs programs does not load
this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

from vmcore.errors import FormatError


class _Record:
    """Equal by kind and fields."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _field_names(cls) -> tuple[str, ...]:
        return tuple(name for base in reversed(cls.__mro__) for name in getattr(base, "__slots__", ()))

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._field_names())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._fields() == other._fields()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self._field_names())
        return f"{type(self).__name__}({', '.join(fields)})"


class _Spec(_Record):
    """A parameter or result."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((type(self), self._fields()))


class TensorSpec(_Spec):
    """A tensor parameter or result. A dim is an int or an expression in symbols ("n", "2*n+1"); None is unknown."""

    __slots__ = ("shape", "dtype")

    def __init__(self, name: str, shape: Sequence[int | str] | None, dtype: str | None) -> None:
        self.name, self.dtype = name, dtype
        self.shape: tuple[int | str, ...] | None = None if shape is None else tuple(shape)

    def __str__(self) -> str:
        dims = "(...)" if self.shape is None else "(" + ", ".join(map(str, self.shape)) + ")"
        return f"{self.name}: {dims} {self.dtype or 'any'}"


class ShapeSpec(_Spec):
    """A Shape parameter or result; None is unknown."""

    __slots__ = ("values",)

    def __init__(self, name: str, values: Sequence[int | str] | None = None) -> None:
        self.name = name
        self.values: tuple[int | str, ...] | None = None if values is None else tuple(values)

    def __str__(self) -> str:
        return f"{self.name}: shape" + ("" if self.values is None else "(" + ", ".join(map(str, self.values)) + ")")


class ScalarSpec(_Spec):
    """An int, bool or float parameter or result."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}"


class TupleSpec(_Spec):
    """A tuple parameter or result."""

    __slots__ = ("fields",)

    def __init__(self, name: str, fields: Sequence[Spec]) -> None:
        self.name = name
        self.fields: tuple[Spec, ...] = tuple(fields)

    def __str__(self) -> str:
        return f"{self.name}: ({', '.join(map(str, self.fields))})"


class ObjectSpec(_Spec):
    """A parameter or result of any other kind."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.name}: object"


Spec = Union[TensorSpec, ShapeSpec, ScalarSpec, TupleSpec, ObjectSpec]  # noqa: UP007 (evaluated at run time)


def _dims_to_json(dims: tuple[int | str, ...] | None) -> list[int | str] | None:
    return None if dims is None else list(dims)


def _dims_from_json(dims: Any) -> tuple[int | str, ...] | None:
    if dims is None:
        return None
    if not isinstance(dims, list) or not all(isinstance(d, (int, str)) and not isinstance(d, bool) for d in dims):
        raise FormatError(f"signature: dims {dims!r} are not a list of integers and expressions")
    return tuple(dims)


MAX_SPEC_DEPTH = 64  # of tuples in one another, in a file


def _too_deep() -> FormatError:
    return FormatError(f"signature: tuples are nested deeper than {MAX_SPEC_DEPTH}")


def _spec_to_json(spec: Spec, depth: int = 0) -> dict[str, Any]:
    if depth > MAX_SPEC_DEPTH:
        raise _too_deep()
    if isinstance(spec, TensorSpec):
        return {"kind": "tensor", "name": spec.name, "shape": _dims_to_json(spec.shape), "dtype": spec.dtype}
    if isinstance(spec, ShapeSpec):
        return {"kind": "shape", "name": spec.name, "values": _dims_to_json(spec.values)}
    if isinstance(spec, ScalarSpec):
        return {"kind": "scalar", "name": spec.name, "dtype": spec.dtype}
    if isinstance(spec, TupleSpec):
        return {"kind": "tuple", "name": spec.name, "fields": [_spec_to_json(f, depth + 1) for f in spec.fields]}
    return {"kind": "object", "name": spec.name}


def _spec_from_json(data: Any, depth: int = 0) -> Spec:
    if depth > MAX_SPEC_DEPTH:
        raise _too_deep()
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise FormatError("signature: a parameter is not an object with a name")
    kind, name = data.get("kind"), data["name"]
    dtype = data.get("dtype")
    if kind == "tensor" and (dtype is None or isinstance(dtype, str)):
        return TensorSpec(name, _dims_from_json(data.get("shape")), dtype)
    if kind == "shape":
        return ShapeSpec(name, _dims_from_json(data.get("values")))
    if kind == "scalar" and isinstance(dtype, str):
        return ScalarSpec(name, dtype)
    if kind == "tuple" and isinstance(data.get("fields"), list):
        return TupleSpec(name, tuple(_spec_from_json(f, depth + 1) for f in data["fields"]))
    if kind == "object":
        return ObjectSpec(name)
    raise FormatError(f"signature: parameter {name!r} has an unknown or incomplete kind {kind!r}")


class Signature(_Record):
    """What a function takes and returns, for people and for random inputs; the program itself checks at run time."""

    __slots__ = ("params", "results")

    def __init__(self, params: Sequence[Spec] = (), results: Sequence[Spec] = ()) -> None:
        self.params: list[Spec] = list(params)
        self.results: list[Spec] = list(results)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and ints; raises FormatError if tuples are nested deeper than 64."""
        return {"params": [_spec_to_json(p) for p in self.params], "results": [_spec_to_json(r) for r in self.results]}

    @classmethod
    def from_json(cls, data: Any) -> Signature:
        """Inverse of `to_json`; raises FormatError."""
        if not isinstance(data, dict):
            raise FormatError("signature: not an object")
        lists = [data.get("params"), data.get("results")]
        if not all(isinstance(specs, list) for specs in lists):
            raise FormatError("signature: params and results are not lists")
        params, results = ([_spec_from_json(spec) for spec in specs] for specs in lists)  # type: ignore[union-attr]
        return cls(params, results)

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.params))}) -> ({', '.join(map(str, self.results))})"
