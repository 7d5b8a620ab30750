"""What the readers of both file formats share: fields of untrusted bytes, entries of the function table, tensors."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from vmcore.types import BitsArray, DataType, stored_dtype

from .executable import FunctionInfo

if TYPE_CHECKING:
    from . import errors
else:
    from vmcore.status import errors  # the same, imported when there is an error

MAX_NDIM = 64


class ByteReader:
    """Reads fields from a byte string; every read is checked against what is left.

    Parameters
    ----------
    data : memoryview
        Flat bytes.
    section : str
        Name for messages.
    """

    def __init__(self, data: memoryview, section: str) -> None:
        self.data = data
        self.at = 0
        self.section = section

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self.data) - self.at

    def fail(self, message: str) -> errors.FormatError:
        """An error that says where."""
        return errors.FormatError(f"{self.section}, byte {self.at}: {message}")

    def take(self, n: int) -> memoryview:
        """The next `n` bytes."""
        if not 0 <= n <= self.left:
            raise self.fail(f"{n} bytes are needed, {self.left} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def unpack(self, layout: str) -> tuple:
        """Fields in the notation of `struct`, little-endian."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def count(self, item_size: int) -> int:
        """A u64 count of items of at least `item_size` bytes each."""
        (n,) = self.unpack("Q")
        if n > self.left // item_size:
            raise self.fail(f"{n} items of at least {item_size} bytes are said to follow, {self.left} bytes are left")
        return n

    def string(self) -> str:
        """A u64 length and that many bytes of UTF-8."""
        raw = bytes(self.take(self.count(1)))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"the string {raw[:40]!r} is not valid UTF-8") from None

    def words(self, n: int) -> np.ndarray:
        """`n` int64 as a read-only array that owns its memory."""
        array = np.frombuffer(bytes(self.take(8 * n)), dtype="<i8").astype(np.int64, copy=False)
        array.flags.writeable = False
        return array

    def function(self) -> FunctionInfo:
        """An entry of the function table."""
        (kind,) = self.unpack("i")
        name = self.string()
        start, end, num_args, registers = self.unpack("qqqq")
        params = [self.string() for _ in range(self.count(8))]
        return FunctionInfo(kind, name, start, end, num_args, registers, params)


def checked_tensor(
    reader: ByteReader, triple: tuple[int, int, int], shape: tuple[int, ...], nbytes: int
) -> tuple[DataType, np.dtype]:
    """The element type and numpy dtype of a tensor of `nbytes`; FormatError if the numbers do not belong together."""
    element_type = DataType.from_triple(*triple)
    dtype = stored_dtype(element_type)
    if dtype is None:
        raise reader.fail(f"a tensor of type code {triple[0]}, {triple[1]} bits, {triple[2]} lanes is not supported")
    extent = dtype.itemsize  # as if no dim were 0: strides are products of dims even where there are no elements
    for dim in shape:
        if dim < 0:
            raise reader.fail(f"a tensor has the negative dim {dim}")
        extent *= max(dim, 1)
    if extent >= 2**62:
        raise reader.fail(f"a tensor of shape {shape} is too large to address")
    expected = 0 if 0 in shape else extent
    if expected != nbytes:
        raise reader.fail(f"a tensor of shape {shape} and type {element_type} has {expected} bytes, not {nbytes}")
    return element_type, dtype


def make_tensor(data: np.ndarray, element_type: DataType, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only view of flat aligned bytes as a tensor."""
    array = data.view(dtype).reshape(shape)
    if stored_dtype(element_type) is not None and DataType(dtype) != element_type:
        array = BitsArray.wrap(array, element_type)
    array.flags.writeable = False
    return array
