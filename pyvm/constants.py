"""The constant pool: which values it holds, how they are stored, and when two of them are the same.

Whoever builds an executable normalizes its constants; readers of files make them in this form.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Union

import numpy as np

from vmcore import arguments
from vmcore.errors import AllocationError, ArgumentTypeError, FormatError, IntegerRangeError
from vmcore.types import BitsArray, DataType, Shape, stored_dtype, tensor_dtype

Constant = Union[np.ndarray, Shape, str, int, float, DataType]  # noqa: UP007 (evaluated at run time)


def normalize_constant(value: Any) -> Constant:
    """`value` as a member of the constant pool.

    Tensors (numpy arrays, DLPack producers) become compact read-only numpy arrays; one that is compact and read-only
    already is used as it is. A tuple or list of integers becomes a Shape, a numpy dtype a DataType, bool an int.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        If the pool has no such kind, or a number does not fit.
    """
    if isinstance(value, (DataType, str, float)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise IntegerRangeError(f"constant: {number} does not fit in int64")
        return number
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, (tuple, list)):
        if not all(isinstance(d, (int, np.integer)) and not isinstance(d, bool) for d in value):
            raise ArgumentTypeError(f"constant: {arguments.shown(value)} is not a shape (a sequence of integers)")
        return value if isinstance(value, Shape) else Shape(value)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return DataType(value)
    if not isinstance(value, np.ndarray):
        if isinstance(value, type) or not (hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
            raise ArgumentTypeError(f"constant: the pool holds no {type(value).__name__}")
        try:
            value = np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ArgumentTypeError(f"constant: this {type(value).__name__} is no array: {error}") from error
    array = arguments.without_mask("constant", value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        element_type = tensor_dtype(array)
        stored = stored_dtype(element_type)
    except (TypeError, ValueError):
        stored = None
    if stored is None:
        raise ArgumentTypeError(f"constant: a tensor of {array.dtype} cannot be in the constant pool")
    if array.dtype.kind not in "biufc":  # a type that a package added to numpy: its bits are carried
        array = BitsArray.wrap(np.array(array, order="C").view(stored), element_type)
    if array.flags.writeable or not array.flags.c_contiguous:
        try:
            array = array.copy(order="C")
        except MemoryError as error:
            raise AllocationError(f"constant: no memory for a compact copy: {error}") from None
        array.flags.writeable = False
    return array


def is_constant(value: object) -> bool:
    """Whether the pool can hold it as it is."""
    if isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63
    if isinstance(value, np.ndarray):
        return value.flags.c_contiguous and value.dtype.isnative and value.dtype.kind in "biufc"
    return isinstance(value, (Shape, DataType, str, float))


def check_constants(constants: Iterable[object]) -> None:
    """Raises FormatError if there is a value that no pool holds: no file can say it."""
    for index, value in enumerate(constants):
        if not is_constant(value):
            what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
            raise FormatError(f"constant {index} is {what}: the constant pool holds none such, and no file")


def constant_key(value: Constant) -> tuple[Any, ...]:
    """A hashable key, equal exactly for constants that are the same bits of the same kind."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        if data.nbytes <= 64:
            digest = data.tobytes()
        else:
            from hashlib import blake2b  # here, because programs of small constants have no use for it

            digest = blake2b(data.data, digest_size=32).digest()
        element_type = tensor_dtype(value)
        return ("tensor", element_type.code, element_type.bits, element_type.lanes, value.shape, digest)
    if isinstance(value, Shape):
        return ("shape", *value)
    if isinstance(value, DataType):
        return ("dtype", value.code, value.bits, value.lanes)
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    return (type(value).__name__, value)
