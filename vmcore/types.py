"""Small value types that cross the boundary between Python and the virtual machine: dtypes, devices and shapes."""

from __future__ import annotations

from operator import index
from types import GenericAlias
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vmcore import arguments, errors
else:
    from vmcore.status import arguments, errors  # the same, imported when there is a use for them

_CODES = {"int": 0, "uint": 1, "float": 2, "handle": 3, "bfloat": 4, "complex": 5, "bool": 6}
_NAMES = {code: name for name, code in _CODES.items()}
_DIGITS = "0123456789"
_NUMPY_KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


class DataType:
    """An element type: DLPack type code, bits per lane and lanes. `DataType("float32")`, `DataType("bool")`.

    Compares equal to another DataType, to its name and to the numpy dtype it stands for.

    Raises
    ------
    ArgumentValueError
        If the name is not a data type.
    ArgumentTypeError
        If it is neither a name nor something that numpy takes for a dtype.
    """

    __slots__ = ("code", "bits", "lanes")
    code: int
    bits: int
    lanes: int

    def __init__(self, name: str | np.dtype | type | DataType) -> None:
        if isinstance(name, DataType):
            self.code, self.bits, self.lanes = name.code, name.bits, name.lanes
            return
        if not isinstance(name, str):
            try:
                name = np.dtype(name).name
            except (TypeError, ValueError):
                raise errors.ArgumentTypeError(
                    f"DataType: expected a name such as 'float32' or a numpy dtype, got {arguments.shown(name)}"
                ) from None
        if name == "bool":
            self.code, self.bits, self.lanes = 6, 8, 1
            return
        # kind, bits, and perhaps "x" and lanes. Without `re`, whose patterns cost 1 ms when they are compiled.
        lanes = "1"
        scalar = name
        kind = scalar.rstrip(_DIGITS)
        if kind.endswith("x") and kind not in _CODES:
            lanes, scalar = name[len(kind) :], kind[:-1]
            kind = scalar.rstrip(_DIGITS)
        bits = scalar[len(kind) :]
        if kind not in _CODES or kind == "bool" or not bits or not lanes:
            raise errors.ArgumentValueError(
                f"DataType: {name!r} is not a data type; names are such as 'float32' or 'int8'"
            )
        self.code, self.bits, self.lanes = _CODES[kind], int(bits), int(lanes)
        if not (0 < self.bits < 256 and 0 < self.lanes < 65536):
            raise errors.ArgumentValueError(f"DataType: {name!r} is out of range (bits 1-255, lanes 1-65535)")

    @classmethod
    def from_triple(cls, code: int, bits: int, lanes: int) -> DataType:
        """The type with these DLPack fields, which need not have a name; trusted."""
        self = cls.__new__(cls)
        self.code, self.bits, self.lanes = code, bits, lanes
        return self

    @property
    def itemsize(self) -> int:
        """Bytes of one element, rounded up."""
        return (self.bits * self.lanes + 7) // 8

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype; raises TypeError if numpy has none."""
        if self.lanes == 1 and self.code in _NAMES:
            try:
                return np.dtype(str(self))
            except TypeError:
                pass
        raise errors.ArgumentTypeError(f"DataType: numpy has no dtype for {self}")

    def __str__(self) -> str:
        if self.code == 6 and self.bits == 8:
            base = "bool"
        else:
            base = f"{_NAMES.get(self.code, f'dtype{self.code}_')}{self.bits}"
        return base if self.lanes == 1 else f"{base}x{self.lanes}"

    def __repr__(self) -> str:
        return f"DataType({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DataType):
            return (self.code, self.bits, self.lanes) == (other.code, other.bits, other.lanes)
        if isinstance(other, str):
            return str(self) == other
        if isinstance(other, (np.dtype, type)):
            try:
                return self == DataType(other)
            except (TypeError, ValueError):
                return False
        return NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


_DEVICE_TYPES = {1: "cpu", 2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm"}


class Device:
    """A device: DLPack device type and index. Programs run on `cpu(0)`; others can be named, not used.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        If one of the two is no int, or negative.
    """

    __slots__ = ("device_type", "index")

    def __init__(self, device_type: int, index: int = 0) -> None:
        for parameter, value in (("device_type", device_type), ("index", index)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise errors.ArgumentTypeError(
                    f"Device: {parameter} must be an int, got {arguments.shown(value)}"
                )
            if not 0 <= value < 2**31:
                raise errors.ArgumentValueError(f"Device: {parameter} must be from 0 to 2147483647, got {value}")
        self.device_type = device_type
        self.index = index

    def __repr__(self) -> str:
        return f"{_DEVICE_TYPES.get(self.device_type, f'device{self.device_type}')}({self.index})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Device):
            return (self.device_type, self.index) == (other.device_type, other.index)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.device_type, self.index))


def cpu(index: int = 0) -> Device:
    """The CPU device."""
    return Device(1, index)


class Shape(tuple[int, ...]):
    """A shape as a first-class value of the virtual machine: a tuple of int64. A plain tuple is an Array instead.

    Raises
    ------
    ArgumentTypeError
        If `dims` is not a sequence of integers.
    ArgumentValueError
        If one of them does not fit in int64.
    """

    __slots__ = ()

    def __new__(cls, dims: object = ()) -> Shape:
        try:
            values = tuple(map(index, dims))  # type: ignore[call-overload]
        except (NotImplementedError, TypeError):  # the first one: a memoryview of several dimensions
            raise errors.ArgumentTypeError(
                f"Shape: expected a sequence of ints such as (2, 3), got {arguments.shown(dims)}"
            ) from None
        for value in values:
            if not -(2**63) <= value < 2**63:
                raise errors.ArgumentValueError(f"Shape: {value} does not fit in int64")
        return super().__new__(cls, values)

    def __class_getitem__(cls, item: object) -> GenericAlias:
        """`Shape["n", 4]`: an annotation of `pyvm.function`."""
        return GenericAlias(cls, item)

    def __repr__(self) -> str:
        return f"Shape({list(self)})"


class BitsArray(np.ndarray):
    """A tensor whose element type numpy lacks (bfloat16, float8): unsigned integers of the same size plus the type.

    Attributes
    ----------
    element_type : DataType
        What the bits mean.
    """

    element_type: DataType | None = None

    @classmethod
    def wrap(cls, bits: np.ndarray, element_type: DataType) -> BitsArray:
        """A view of `bits`, an array of unsigned integers with the item size of `element_type`."""
        if bits.dtype.kind != "u" or bits.dtype.itemsize != element_type.itemsize:
            raise errors.ArgumentValueError(f"BitsArray: {bits.dtype} cannot hold the bits of {element_type}")
        view = bits.view(cls)
        view.element_type = element_type
        return view

    def __array_finalize__(self, source: object) -> None:
        self.element_type = getattr(source, "element_type", None)


def tensor_dtype(array: np.ndarray) -> DataType:
    """The element type of a numpy array or BitsArray."""
    return getattr(array, "element_type", None) or DataType(array.dtype)


_STORED_BITS = {0: (8, 16, 32, 64), 1: (8, 16, 32, 64), 2: (16, 32, 64), 5: (64, 128), 6: (8,)}  # by type code


def stored_dtype(element_type: DataType) -> np.dtype | None:
    """The numpy dtype that holds a tensor's elements: its own, unsigned bits, or None if it cannot be a constant."""
    code, bits = element_type.code, element_type.bits
    if element_type.lanes != 1:
        return None
    # bfloat16 (code 4) and the float8 family (codes 7-14): only the bits are carried, also where a package that happens
    # to be imported gives numpy dtypes of these names.
    if (code, bits) == (4, 16):
        return np.dtype(np.uint16)
    if 7 <= code <= 14 and bits == 8:
        return np.dtype(np.uint8)
    return element_type.numpy if bits in _STORED_BITS.get(code, ()) else None
