"""The `.vmx` file: a sectioned container whose weights are mapped into memory instead of read.

    header, 32 bytes    8s magic · u16 major · u16 minor · u32 sections · u64 file size · u32 CRC of the section table ·
                        u32 CRC of the header up to here
    section table       per section 32 bytes: u32 kind · u32 flags · u64 offset · u64 size · u32 CRC · u32 zero
    sections            each at a multiple of 64 bytes, in the order of the table, zeros between them

All integers are little-endian, CRCs are CRC-32 (zlib). Strings and function table entries are as in TVM's format
(`pyvm.tvm_format`). Sections:

    1 FUNCTIONS   u64 count · function table entries
    2 CODE        u64 n_instr · u64 n_words · i64 instr_offset[n_instr] · i64 instr_data[n_words]
    3 CONSTANTS   u64 count · i32 type index · payload, as in TVM's format but for a tensor: u8 code · u8 bits ·
                  u16 lanes · i32 ndim · i64 shape[ndim] · u64 offset in WEIGHTS (a multiple of 64) · u64 bytes
    4 WEIGHTS     tensor data, row-major, each at a multiple of 64 bytes
    5 SCOPES      u64 count · (i64 constant index · string)
    6 DEBUG       u64 count · strings · u64 n (0 or n_instr) · i32 index of the source string, -1 for none
    7 META        UTF-8 JSON: {"signatures": {function: ...}, "metadata": {...}}
    8 NOTES       as DEBUG, with reasons instead of source operators; since 1.1

Versions: a reader accepts every minor version of its major version. Minor versions only add sections; a section of
unknown kind is skipped unless its flag says that the program cannot be understood without it (FLAG_CRITICAL). Anything
that changes the meaning of an existing section is a new major version.

Loading maps the file and reads everything but WEIGHTS, whose checksum is left to `VMExecutable.verify(full=True)`; META
is decoded when somebody asks for it, since programs run without. The file is shared with other processes through the
page cache. Whoever uses a page that a mapped file has lost gets SIGBUS, as with every mapping: replace files (`save`
does), do not edit them in place, or load them without mapping.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vmcore.types import DataType, Shape

from .byte_reader import MAX_NDIM, ByteReader, checked_tensor, make_tensor
from .executable import DebugInfo, FunctionInfo, VMExecutable
from .files import open_to_read

if TYPE_CHECKING:
    from vmcore import errors

    from .constants import Constant
    from .signature import Signature
else:
    from vmcore.status import errors  # the same, imported when there is an error

VMX_MAGIC = b"\x89VMX\r\n\x1a\n"  # not text, and broken by whoever translates line ends
VERSION = (1, 1)
FLAG_CRITICAL = 1
MAX_SECTIONS = 1024
MAX_META_BYTES = 16 << 20
ALIGN = 64
HEADER, ENTRY = struct.Struct("<8sHHIQI"), struct.Struct("<IIQQII")
HEADER_BYTES = HEADER.size + 4
FUNCTIONS, CODE, CONSTANTS, WEIGHTS, SCOPES, DEBUG, META, NOTES = range(1, 9)
SECTION_NAMES = {
    FUNCTIONS: "functions",
    CODE: "code",
    CONSTANTS: "constants",
    WEIGHTS: "weights",
    SCOPES: "scopes",
    DEBUG: "debug",
    META: "meta",
    NOTES: "notes",
}
INT, FLOAT, DTYPE, STRING, SHAPE, TENSOR = 1, 3, 5, 65, 69, 70


# Offset and size in bytes, and checksum.
_Section = tuple[int, int, int]


def _read_table(read: Callable[[int, int], bytes], file_size: int) -> dict[int, _Section]:
    """The sections of known kind, each inside the file, none overlapping."""
    raw = read(0, HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise errors.FormatError(f"vmx header: {HEADER_BYTES} bytes are needed, the file has {len(raw)}")
    magic, major, minor, n_sections, size, table_crc = HEADER.unpack_from(raw)
    (header_crc,) = struct.unpack_from("<I", raw, HEADER.size)
    if magic != VMX_MAGIC:
        raise errors.FormatError(f"vmx header: magic {magic!r}, expected {VMX_MAGIC!r}")
    if zlib.crc32(raw[: HEADER.size]) != header_crc:
        raise errors.FormatError(
            f"vmx header: checksum {zlib.crc32(raw[: HEADER.size]):#010x}, stored {header_crc:#010x}"
        )
    if major != VERSION[0]:
        raise errors.VersionError(f"vmx header: format version {major}.{minor}, this reader knows {VERSION[0]}.x")
    if size != file_size:
        raise errors.FormatError(f"vmx header: the file should have {size} bytes, it has {file_size}")
    if n_sections > MAX_SECTIONS:
        raise errors.FormatError(f"vmx header: {n_sections} sections; the limit is {MAX_SECTIONS}")
    table = read(HEADER_BYTES, n_sections * ENTRY.size)
    if len(table) != n_sections * ENTRY.size:
        raise errors.FormatError(
            f"vmx section table: {n_sections * ENTRY.size} bytes are needed, {len(table)} are left"
        )
    if zlib.crc32(table) != table_crc:
        raise errors.FormatError(f"vmx section table: checksum {zlib.crc32(table):#010x}, stored {table_crc:#010x}")
    sections: dict[int, _Section] = {}
    end = HEADER_BYTES + len(table)
    for kind, flags, offset, length, crc, _ in ENTRY.iter_unpack(table):
        if offset % ALIGN or offset < end or offset > file_size or length > file_size - offset:
            raise errors.FormatError(
                f"vmx section table: section of kind {kind} at {offset} with {length} bytes is unaligned, overlaps "
                f"what ends at {end}, or exceeds the file of {file_size} bytes"
            )
        end = offset + length
        if kind not in SECTION_NAMES:
            if flags & FLAG_CRITICAL:
                raise errors.VersionError(
                    f"vmx section table: the file needs a section of kind {kind}, which this reader "
                    f"(version {VERSION[0]}.{VERSION[1]}; file {major}.{minor}) does not know"
                )
            continue
        if kind in sections:
            raise errors.FormatError(f"vmx section table: two {SECTION_NAMES[kind]} sections")
        sections[kind] = offset, length, crc
    return sections


def _read_code(reader: ByteReader) -> tuple[np.ndarray, np.ndarray]:
    n_instr, n_words = reader.unpack("QQ")
    if n_instr > reader.left // 8 or n_words > reader.left // 8 - n_instr:
        raise reader.fail(f"{n_instr} instructions and {n_words} words are said to follow, {reader.left} bytes do")
    return reader.words(n_instr), reader.words(n_words)


def _read_constant(reader: ByteReader, weights: np.ndarray) -> Constant:
    (type_index,) = reader.unpack("i")
    if type_index == TENSOR:
        code, bits, lanes, ndim = reader.unpack("BBHi")
        if not 0 <= ndim <= MAX_NDIM:
            raise reader.fail(f"a tensor of {ndim} dims; the limit is {MAX_NDIM}")
        shape = reader.unpack(f"{ndim}q")
        offset, nbytes = reader.unpack("QQ")
        element_type, dtype = checked_tensor(reader, (code, bits, lanes), shape, nbytes)
        if offset % ALIGN or offset > len(weights) or nbytes > len(weights) - offset:
            raise reader.fail(
                f"a tensor at {offset} with {nbytes} bytes is unaligned or exceeds the {len(weights)} bytes of weights"
            )
        try:
            return make_tensor(weights[offset : offset + nbytes], element_type, dtype, shape)
        except ValueError:
            raise reader.fail(f"a tensor of shape {shape} is too large to address") from None
    if type_index == SHAPE:
        return Shape(reader.unpack(f"{reader.count(8)}q"))
    if type_index == STRING:
        return reader.string()
    if type_index == INT:
        return reader.unpack("q")[0]
    if type_index == FLOAT:
        return reader.unpack("d")[0]
    if type_index == DTYPE:
        return DataType.from_triple(*reader.unpack("BBH"))
    raise reader.fail(f"constant of type index {type_index}; known are 1, 3, 5, 65, 69 and 70")


def _read_debug(reader: ByteReader, n_instr: int) -> DebugInfo:
    strings = [reader.string() for _ in range(reader.count(8))]
    n = reader.count(4)
    if n not in (0, n_instr):
        raise reader.fail(f"{n} entries for {n_instr} instructions")
    index = np.frombuffer(bytes(reader.take(4 * n)), dtype="<i4").astype(np.int32, copy=False)
    if n and not (-1 <= int(index.min()) and int(index.max()) < len(strings)):
        raise reader.fail(f"a string index {int(index.min())}..{int(index.max())} is not in -1..{len(strings) - 1}")
    if reader.left:
        raise reader.fail(f"{reader.left} bytes are left over")
    return DebugInfo.from_table(strings, index)


def _read_notes(raw: bytes, n_instr: int) -> DebugInfo:
    return _read_debug(ByteReader(memoryview(raw), "vmx notes section"), n_instr)


def _read_meta(raw: bytes) -> tuple[dict[str, Signature], dict[str, str]]:
    if len(raw) > MAX_META_BYTES:
        raise errors.FormatError(f"vmx meta section: {len(raw)} bytes; the limit is {MAX_META_BYTES}")
    import json  # here, because serving has no use for it

    from .signature import Signature

    try:
        meta: Any = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.FormatError(f"vmx meta section: not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise errors.FormatError("vmx meta section: not a JSON object")
    signatures, metadata = meta.get("signatures", {}), meta.get("metadata", {})
    if not isinstance(signatures, dict) or not isinstance(metadata, dict):
        raise errors.FormatError("vmx meta section: signatures and metadata are not objects")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise errors.FormatError("vmx meta section: a metadata value is not a string")
    return {name: Signature.from_json(data) for name, data in signatures.items()}, metadata


def _read_sections(
    read: Callable[[int, int], bytes], weights_of: Callable[[int, int], np.ndarray], size: int
) -> VMExecutable:
    sections = _read_table(read, size)

    def content(kind: int) -> bytes | None:
        section = sections.get(kind)
        if section is None:
            if kind in (FUNCTIONS, CODE, CONSTANTS):
                raise errors.FormatError(f"vmx section table: the {SECTION_NAMES[kind]} section is missing")
            return None
        offset, size, crc = section
        data = read(offset, size)
        name = SECTION_NAMES[kind]
        if len(data) != size:
            raise errors.FormatError(f"vmx {name} section: {size} bytes are needed, {len(data)} could be read")
        if zlib.crc32(data) != crc:
            raise errors.FormatError(f"vmx {name} section: checksum {zlib.crc32(data):#010x}, stored {crc:#010x}")
        return data

    def reader(kind: int) -> ByteReader | None:
        data = content(kind)
        return None if data is None else ByteReader(memoryview(data), f"vmx {SECTION_NAMES[kind]} section")

    def finish(r: ByteReader) -> None:
        if r.left:
            raise r.fail(f"{r.left} bytes are left over")

    weights_offset, weights_size, weights_crc = sections.get(WEIGHTS, (0, 0, 0))  # 0 is the checksum of nothing
    weights = np.zeros(0, dtype=np.uint8)
    if weights_size:
        weights = weights_of(weights_offset, weights_size)

    r = reader(FUNCTIONS)
    assert r is not None
    functions: list[FunctionInfo] = [r.function() for _ in range(r.count(52))]
    finish(r)
    r = reader(CODE)
    assert r is not None
    instr_offset, instr_data = _read_code(r)
    finish(r)
    r = reader(CONSTANTS)
    assert r is not None
    constants = [_read_constant(r, weights) for _ in range(r.count(8))]
    finish(r)
    scopes: dict[int, str] = {}
    if (r := reader(SCOPES)) is not None:
        for _ in range(r.count(16)):
            (index,) = r.unpack("q")
            scopes[index] = r.string()
        finish(r)
    debug = DebugInfo()
    if (r := reader(DEBUG)) is not None:
        debug = _read_debug(r, len(instr_offset))
    executable = VMExecutable(functions, (), instr_offset, instr_data, scopes, debug)
    executable.constants = constants  # which have the form of the pool already
    meta = content(META)
    if meta is not None:
        executable._decode_meta = partial(_read_meta, meta)
    notes = content(NOTES)
    if notes is not None:
        executable._decode_notes = partial(_read_notes, notes, len(instr_offset))

    def check_weights() -> None:
        if zlib.crc32(weights.data) != weights_crc:
            raise errors.FormatError(
                f"vmx weights section: checksum {zlib.crc32(weights.data):#010x}, stored {weights_crc:#010x}"
            )

    executable._check_weights = check_weights
    executable._identity = read(0, HEADER_BYTES + ENTRY.size * HEADER.unpack_from(read(0, HEADER_BYTES))[3])
    return executable


def read_vmx(source: bytes | bytearray | memoryview) -> VMExecutable:
    """Reads `.vmx` bytes; tensors are views of them where they are aligned for their type.

    Raises
    ------
    FormatError, VersionError
        If the bytes are not a whole, intact file of a known version.
    """
    data = memoryview(source).cast("B")
    if not data.readonly:
        data = memoryview(bytes(data))

    def weights_of(offset: int, size: int) -> np.ndarray:
        weights = np.frombuffer(data, dtype=np.uint8, count=size, offset=offset)
        if weights.ctypes.data % 16:
            weights = weights.copy()
        return weights

    return _read_sections(lambda offset, size: bytes(data[offset : offset + size]), weights_of, len(data))


def load_vmx(path: str | os.PathLike[str], *, mmap: bool = True) -> VMExecutable:
    """Reads a `.vmx` file; tensors are views of a read-only mapping of the file, or with `mmap=False` of a copy.

    Raises
    ------
    FormatError, VersionError
        If the file is not whole, intact and of a known version.
    OSError
        If it cannot be read.
    """
    with open_to_read(path) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size

        def weights_of(offset: int, length: int) -> np.ndarray:
            if not mmap:
                room = np.empty(length + ALIGN, np.uint8)
                copy = room[-room.ctypes.data % ALIGN :][:length]
                file.seek(offset)
                if (n_read := file.readinto(copy.data)) != length:
                    raise errors.FormatError(f"vmx weights section: {length} bytes are needed, {n_read} could be read")
                copy.flags.writeable = False
                return copy
            from mmap import ACCESS_READ  # here, because not every file has weights
            from mmap import mmap as map_file

            mapping = map_file(descriptor, 0, access=ACCESS_READ)  # lives as long as the arrays on it
            if offset + length > len(mapping):
                raise errors.FormatError(
                    f"vmx weights section: ends at {offset + length}, the file has {len(mapping)} bytes"
                )
            return np.frombuffer(mapping, dtype=np.uint8, count=length, offset=offset)

        executable = _read_sections(lambda offset, n: os.pread(descriptor, n, offset), weights_of, size)
        if not mmap and executable._check_weights is not None:
            executable._check_weights()
        return executable
