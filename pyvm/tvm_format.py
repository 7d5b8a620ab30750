"""TVM's binary format of an executable, read and written byte for byte.

All integers are little-endian, nothing is aligned. A string is u64 length + bytes, a list u64 count + items:

    u64 magic (version 1 or 2) · string "0.14"
    list of functions: i32 kind · string name · i64 start, end, num_args, registers · list of string
    version 2 only: list of memory scopes: i64 constant index · string
    list of constants: i32 type index · payload
    list of i64 instr_offset · list of i64 instr_data

Reading trusts nothing: a count is compared with the bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from vmcore.errors import FormatError, VersionError
from vmcore.types import DataType, Shape, tensor_dtype

from .byte_reader import MAX_NDIM, ByteReader, checked_tensor, make_tensor
from .constants import check_constants
from .executable import TVM_MAGICS, FunctionInfo, VMExecutable

if TYPE_CHECKING:
    from .constants import Constant

_MAGIC = dict(zip((1, 2), TVM_MAGICS, strict=True))
_FORMAT_VERSION = b"0.14"
_TENSOR_MAGIC = 0xDD5E40F096B4A13F
_CPU = (1, 0)
_INT, _FLOAT, _DTYPE, _STRING, _SHAPE, _TENSOR = 1, 3, 5, 65, 69, 70
_MIN_FUNCTION, _MIN_SCOPE, _MIN_CONSTANT, _MIN_STRING, _WORD = 52, 16, 8, 8, 8


def write_string(text: str) -> bytes:
    """A u64 length and the UTF-8 bytes."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"the string {text!a} is not valid UTF-8") from None
    return struct.pack("<Q", len(raw)) + raw


def write_function(info: FunctionInfo) -> bytes:
    """An entry of the function table."""
    try:
        numbers = struct.pack("<qqqq", info.start_instr, info.end_instr, info.num_args, info.register_file_size)
        kind = struct.pack("<i", info.kind)
    except struct.error:
        raise FormatError(f"function {info.name!r}: a field of its table entry does not fit in 64 bits") from None
    params = struct.pack("<Q", len(info.param_names)) + b"".join(map(write_string, info.param_names))
    return kind + write_string(info.name) + numbers + params


def aligned_bytes(nbytes: int) -> np.ndarray:
    """Uninitialised bytes at a 64-byte boundary."""
    raw = np.empty(nbytes + 63, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def _read_tensor(reader: ByteReader) -> np.ndarray:
    magic, reserved, device_type, device_id, ndim = reader.unpack("QQiii")
    if (magic, reserved) != (_TENSOR_MAGIC, 0):
        raise reader.fail(f"tensor magic {magic:#018x}, {reserved}; expected {_TENSOR_MAGIC:#018x}, 0")
    if (device_type, device_id) != _CPU:
        raise reader.fail(f"a tensor of device type {device_type}, id {device_id}; files hold CPU tensors, {_CPU}")
    if not 0 <= ndim <= MAX_NDIM:
        raise reader.fail(f"a tensor of {ndim} dims; the limit is {MAX_NDIM}")
    triple = reader.unpack("BBH")
    shape = reader.unpack(f"{ndim}q")
    (nbytes,) = reader.unpack("q")
    element_type, dtype = checked_tensor(reader, triple, shape, nbytes)
    raw = reader.take(nbytes)
    data = aligned_bytes(nbytes)
    data[:] = raw
    try:
        return make_tensor(data, element_type, dtype, shape)
    except ValueError:
        raise reader.fail(f"a tensor of shape {shape} is too large to address") from None


def _read_constant(reader: ByteReader) -> Constant:
    (type_index,) = reader.unpack("i")
    if type_index == _TENSOR:
        return _read_tensor(reader)
    if type_index == _SHAPE:
        return Shape(reader.unpack(f"{reader.count(_WORD)}q"))
    if type_index == _STRING:
        return reader.string()
    if type_index == _INT:
        return reader.unpack("q")[0]
    if type_index == _FLOAT:
        return reader.unpack("d")[0]
    if type_index == _DTYPE:
        return DataType.from_triple(*reader.unpack("BBH"))
    raise reader.fail(f"constant of type index {type_index}; known are 1, 3, 5, 65, 69 and 70")


def read_tvm(source: bytes | bytearray | memoryview) -> VMExecutable:
    """Reads an executable in TVM's format.

    Raises
    ------
    FormatError
        If the bytes are truncated, have bytes left over, or hold a field outside its range.
    VersionError
        If the version string is not "0.14".
    """
    reader = ByteReader(memoryview(source).cast("B"), "TVM executable")
    (magic,) = reader.unpack("Q")
    version = next((v for v, known in _MAGIC.items() if known == magic), None)
    if version is None:
        raise reader.fail(f"magic {magic:#018x} is not that of a TVM executable")
    text = bytes(reader.take(reader.count(1)))
    if text != _FORMAT_VERSION:
        raise VersionError(f"TVM executable: format version {text[:40]!r}, this reader knows {_FORMAT_VERSION!r}")
    functions = [reader.function() for _ in range(reader.count(_MIN_FUNCTION))]
    scopes: dict[int, str] = {}
    if version == 2:
        for _ in range(reader.count(_MIN_SCOPE)):
            (index,) = reader.unpack("q")
            if index in scopes:
                raise reader.fail(f"constant {index} has two memory scopes")
            scopes[index] = reader.string()
    constants = [_read_constant(reader) for _ in range(reader.count(_MIN_CONSTANT))]
    instr_offset = reader.words(reader.count(_WORD))
    instr_data = reader.words(reader.count(_WORD))
    if reader.left:
        raise reader.fail(f"{reader.left} bytes follow the end of the code section")
    return VMExecutable(functions, constants, instr_offset, instr_data, scopes)


def _write_constant(value: Constant, out: list[bytes | memoryview]) -> None:
    if isinstance(value, np.ndarray):
        element_type = tensor_dtype(value)
        array = np.ascontiguousarray(value)
        out.append(struct.pack("<iQQii", _TENSOR, _TENSOR_MAGIC, 0, *_CPU))
        out.append(struct.pack("<iBBH", value.ndim, element_type.code, element_type.bits, element_type.lanes))
        out.append(struct.pack(f"<{value.ndim}qq", *value.shape, array.nbytes))
        out.append(array.reshape(-1).view(np.uint8).data)
    elif isinstance(value, Shape):
        out.append(struct.pack(f"<iQ{len(value)}q", _SHAPE, len(value), *value))
    elif isinstance(value, str):
        out.append(struct.pack("<i", _STRING) + write_string(value))
    elif isinstance(value, DataType):
        out.append(struct.pack("<iBBH", _DTYPE, value.code, value.bits, value.lanes))
    elif isinstance(value, float):
        out.append(struct.pack("<id", _FLOAT, value))
    else:
        out.append(struct.pack("<iq", _INT, value))


def write_tvm(executable: VMExecutable, *, version: int = 2) -> bytes:
    """The executable in TVM's format.

    Raises
    ------
    VersionError
        If version 1 is asked for and the executable has memory scopes, or the version is unknown.
    FormatError
        If a field does not fit.
    """
    if version not in _MAGIC:
        raise VersionError(f"TVM executable: version {version} is unknown; there are 1 and 2")
    if version == 1 and executable.memory_scopes:
        raise VersionError(
            f"TVM executable: version 1 has no place for the {len(executable.memory_scopes)} memory scopes"
        )
    check_constants(executable.constants)
    out: list[bytes | memoryview] = [struct.pack("<QQ", _MAGIC[version], len(_FORMAT_VERSION)), _FORMAT_VERSION]
    out.append(struct.pack("<Q", len(executable.functions)))
    out += map(write_function, executable.functions)
    if version == 2:
        out.append(struct.pack("<Q", len(executable.memory_scopes)))
        out += [struct.pack("<q", index) + write_string(scope) for index, scope in executable.memory_scopes.items()]
    out.append(struct.pack("<Q", len(executable.constants)))
    for value in executable.constants:
        _write_constant(value, out)
    for words in (executable.instr_offset, executable.instr_data):
        out.append(struct.pack("<Q", len(words)))
        out.append(np.ascontiguousarray(words, dtype="<i8").tobytes())
    return b"".join(out)
