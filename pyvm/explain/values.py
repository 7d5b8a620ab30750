"""What is known about the value of a register before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .sizes import Dims, Size, mul, product

_EMPTY: frozenset[int] = frozenset()
_BITS = {"bool": 8}
_MAX_TUPLE_DEPTH = 32


@dataclass(frozen=True)
class Value:
    """Anything: what is not one of the kinds below.

    `buffers` are the tensors (by the instruction that allocates them) that the value may be, view or hold; `storages`
    likewise for blocks of memory. Both are what a program could reach, not what it does reach. `origins` are the
    instructions that computed it, for parameters -1 - their index; what lies in buffers has its writers instead.
    """

    buffers: frozenset[int] = _EMPTY
    storages: frozenset[int] = _EMPTY
    origins: frozenset[int] = _EMPTY

    def __str__(self) -> str:
        return "?"


@dataclass(frozen=True)
class TensorValue(Value):
    """A tensor. `shape` is None where not even the rank is known; `constant` is its index in the constant pool."""

    shape: Dims | None = None
    dtype: str | None = None
    constant: int | None = None

    @property
    def n_elements(self) -> Size:
        return product(self.shape)

    @property
    def nbytes(self) -> Size:
        size = element_bytes(self.dtype)
        return None if size is None else mul(self.n_elements, size)

    def __str__(self) -> str:
        return f"{self.dtype or '?'}{shape_text(self.shape)}"


@dataclass(frozen=True)
class ShapeValue(Value):
    """A shape."""

    dims: Dims | None = None

    def __str__(self) -> str:
        return "shape" + shape_text(self.dims)


@dataclass(frozen=True)
class ScalarValue(Value):
    """An int, float or bool; `number` is a Size or a float, None where it is not known."""

    number: Any = None

    def __str__(self) -> str:
        return "?" if self.number is None else str(self.number)


@dataclass(frozen=True)
class TupleValue(Value):
    """A tuple of known length."""

    fields: tuple[Value, ...] = ()

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.fields)) + ")"


@dataclass(frozen=True)
class NoneValue(Value):
    """None."""

    def __str__(self) -> str:
        return "None"


@dataclass(frozen=True)
class TextValue(Value):
    """A string or a data type."""

    text: str = ""
    is_dtype: bool = False

    def __str__(self) -> str:
        return self.text if self.is_dtype else repr(self.text)


@dataclass(frozen=True)
class FunctionValue(Value):
    """A function of the executable, or a closure over one; `saved` are its captured arguments, the last ones first."""

    name: str = ""
    saved: tuple[Value, ...] = ()

    def __str__(self) -> str:
        return f"@{self.name}" + (f"+{len(self.saved)}" if self.saved else "")


@dataclass(frozen=True)
class HeapValue(Value):
    """A shape heap, by the instruction that allocates it."""

    site: int = -1

    def __str__(self) -> str:
        return "shape heap"


@dataclass(frozen=True)
class StorageValue(Value):
    """A block of memory."""

    def __str__(self) -> str:
        return "storage"


UNKNOWN = Value()
NONE = NoneValue()


@dataclass(slots=True)
class Arg:
    """An operand: `index` is its register, constant or function; `value` what is known about it."""

    kind: str  # "register", "immediate", "constant", "function", "none", "vm", "word"
    index: int
    value: Value


def made_of(values: Iterable[Value]) -> Value:
    """Something that may be, or hold, any of these."""
    buffers, storages, origins = set[int](), set[int](), set[int]()
    for value in values:
        buffers |= value.buffers
        storages |= value.storages
        origins |= value.origins
    return Value(frozenset(buffers), frozenset(storages), frozenset(origins))


def traced(value: Value, memory: Value) -> Value:
    """`value` with the memory and the origins of another."""
    return replace(value, buffers=memory.buffers, storages=memory.storages, origins=memory.origins)


def element_bytes(dtype: str | None) -> int | None:
    """Bytes of an element of this type: bool 1, float32 4, float32x4 16; None for what is no element type."""
    if dtype is None:
        return None
    name, _, lanes = dtype.partition("x")
    bits = _BITS.get(name)
    if bits is None:
        digits = name.lstrip("abcdefghijklmnopqrstuvwxyz")
        if name.startswith("float8"):
            digits = "8"
        elif name.startswith("float4"):
            digits = "4"
        if not digits.isdecimal() or len(digits) > 4:
            return None
        bits = int(digits)
    n = int(lanes) if lanes.isdecimal() and len(lanes) <= 5 else 1
    return -(-bits * n // 8)


def shape_text(dims: Dims | None) -> str:
    """`(2, n, ?)`."""
    if dims is None:
        return "(...)"
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in dims) + ")"


def tuple_of(fields: tuple[Value, ...]) -> Value:
    """A tuple; one that is nested too deep is just something that holds its memory."""
    memory = made_of(fields)
    if len(fields) > 1024 or _depth(fields) > _MAX_TUPLE_DEPTH:
        return memory
    return TupleValue(memory.buffers, memory.storages, memory.origins, fields)


def _depth(fields: tuple[Value, ...]) -> int:
    depth = 0
    level: list[Value] = list(fields)
    while level and depth <= _MAX_TUPLE_DEPTH:
        depth += 1
        level = [inner for f in level if isinstance(f, TupleValue) for inner in f.fields][:4096]
    return depth


def join(a: Value, b: Value, exact: bool = False) -> Value:
    """What is known about a value that is one of two. With `exact`, values that differ are just unknown."""
    if a is b or a == b:
        return a
    memory = Value(a.buffers | b.buffers, a.storages | b.storages, a.origins | b.origins)
    if type(a) is type(b):
        same = replace(a, buffers=memory.buffers, storages=memory.storages, origins=memory.origins)
        if same == replace(b, buffers=memory.buffers, storages=memory.storages, origins=memory.origins):
            return same  # they differ in where they come from only
    if not exact and type(a) is type(b):
        if isinstance(a, TensorValue):
            assert isinstance(b, TensorValue)
            dtype = a.dtype if a.dtype == b.dtype else None
            return traced(TensorValue(shape=_join_dims(a.shape, b.shape), dtype=dtype), memory)
        if isinstance(a, ShapeValue):
            assert isinstance(b, ShapeValue)
            return traced(ShapeValue(dims=_join_dims(a.dims, b.dims)), memory)
        if isinstance(a, ScalarValue):
            return traced(ScalarValue(), memory)
        if isinstance(a, TupleValue):
            assert isinstance(b, TupleValue)
            if len(a.fields) == len(b.fields):
                fields = tuple(join(x, y) for x, y in zip(a.fields, b.fields, strict=True))
                return traced(TupleValue(fields=fields), memory)
        if isinstance(a, StorageValue):
            return traced(StorageValue(), memory)
    return memory


def _join_dims(a: Dims | None, b: Dims | None) -> Dims | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def without_memory(value: Value) -> Value:
    """`value` as another function sees it: the instructions that made its memory are not its own."""
    if isinstance(value, TupleValue):
        return TupleValue(fields=tuple(map(without_memory, value.fields)))
    if isinstance(value, FunctionValue):
        return FunctionValue(name=value.name, saved=tuple(map(without_memory, value.saved)))
    if isinstance(value, (HeapValue, StorageValue)):
        return UNKNOWN
    if not value.buffers and not value.storages and not value.origins:
        return value
    return traced(value, UNKNOWN)


def tensors_in(value: Value) -> Iterator[TensorValue]:
    """The tensor itself, or the tensors of a tuple."""
    if isinstance(value, TensorValue):
        yield value
    elif isinstance(value, TupleValue):
        for inner in value.fields:
            yield from tensors_in(inner)
