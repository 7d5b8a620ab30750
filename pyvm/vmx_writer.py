"""Writes `.vmx` files, whose layout `pyvm.vmx_format` describes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vmcore.errors import FormatError
from vmcore.types import DataType, Shape, tensor_dtype

from .constants import check_constants
from .tvm_format import write_function, write_string
from .vmx_format import (
    ALIGN,
    CODE,
    CONSTANTS,
    DEBUG,
    DTYPE,
    ENTRY,
    FLAG_CRITICAL,
    FLOAT,
    FUNCTIONS,
    HEADER,
    HEADER_BYTES,
    INT,
    MAX_META_BYTES,
    META,
    NOTES,
    SCOPES,
    SHAPE,
    STRING,
    TENSOR,
    VERSION,
    VMX_MAGIC,
    WEIGHTS,
)

if TYPE_CHECKING:
    from .constants import Constant
    from .executable import DebugInfo, VMExecutable

_CRITICAL = frozenset({FUNCTIONS, CODE, CONSTANTS, WEIGHTS})


def _align(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def _write_constants(constants: list[Constant]) -> tuple[bytes, list[np.ndarray]]:
    """The CONSTANTS section and the tensors of WEIGHTS in order."""
    check_constants(constants)
    out = [struct.pack("<Q", len(constants))]
    weights: list[np.ndarray] = []
    at = 0
    for value in constants:
        if isinstance(value, np.ndarray):
            t = tensor_dtype(value)
            out.append(struct.pack("<iBBHi", TENSOR, t.code, t.bits, t.lanes, value.ndim))
            out.append(struct.pack(f"<{value.ndim}qQQ", *value.shape, at, value.nbytes))
            weights.append(value)
            at = _align(at + value.nbytes)
        elif isinstance(value, Shape):
            out.append(struct.pack(f"<iQ{len(value)}q", SHAPE, len(value), *value))
        elif isinstance(value, str):
            out.append(struct.pack("<i", STRING) + write_string(value))
        elif isinstance(value, DataType):
            out.append(struct.pack("<iBBH", DTYPE, value.code, value.bits, value.lanes))
        elif isinstance(value, float):
            out.append(struct.pack("<id", FLOAT, value))
        else:
            out.append(struct.pack("<iq", INT, value))
    return b"".join(out), weights


def _write_code(executable: VMExecutable) -> bytes:
    arrays = [np.ascontiguousarray(a, dtype="<i8") for a in (executable.instr_offset, executable.instr_data)]
    return struct.pack("<QQ", *map(len, arrays)) + b"".join(a.tobytes() for a in arrays)


def _write_debug(debug: DebugInfo, name: str, n_instr: int) -> bytes:
    if len(debug) != n_instr:
        raise FormatError(f"{name} section: {len(debug)} entries for {n_instr} instructions")
    strings = struct.pack("<Q", len(debug.strings)) + b"".join(map(write_string, debug.strings))
    return strings + struct.pack("<Q", len(debug.indices)) + debug.indices.astype("<i4", copy=False).tobytes()


def _write_meta(executable: VMExecutable) -> bytes:
    meta = {
        "signatures": {name: signature.to_json() for name, signature in executable.signatures.items()},
        "metadata": executable.metadata,
    }
    try:
        raw = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise FormatError(f"meta section: signatures and metadata do not convert to JSON: {error}") from error
    if len(raw) > MAX_META_BYTES:
        raise FormatError(f"meta section: {len(raw)} bytes; the limit is {MAX_META_BYTES}")
    return raw


def _write_sections(executable: VMExecutable, file: BinaryIO) -> None:
    constants, weights = _write_constants(executable.constants)
    functions = struct.pack("<Q", len(executable.functions)) + b"".join(map(write_function, executable.functions))
    n_instr = len(executable.instr_offset)
    sections: list[tuple[int, bytes]] = [
        (FUNCTIONS, functions),
        (CODE, _write_code(executable)),
        (CONSTANTS, constants),
    ]
    if executable.memory_scopes:
        scopes = [struct.pack("<q", i) + write_string(scope) for i, scope in executable.memory_scopes.items()]
        sections.append((SCOPES, struct.pack("<Q", len(scopes)) + b"".join(scopes)))
    if len(executable.debug):
        sections.append((DEBUG, _write_debug(executable.debug, "debug", n_instr)))
    if executable.signatures or executable.metadata:
        sections.append((META, _write_meta(executable)))
    if len(executable.notes):
        sections.append((NOTES, _write_debug(executable.notes, "notes", n_instr)))

    n_sections = len(sections) + bool(weights)
    at = _align(HEADER_BYTES + n_sections * ENTRY.size)
    table = []
    file.write(bytes(at))
    for kind, data in sections:
        flags = FLAG_CRITICAL if kind in _CRITICAL else 0
        table.append(ENTRY.pack(kind, flags, at, len(data), zlib.crc32(data), 0))
        end = at + len(data)
        at = _align(end)
        file.write(data)
        file.write(bytes(at - end))
    end = at
    if weights:
        crc = size = 0
        for i, tensor in enumerate(weights):
            raw = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
            padding = bytes(_align(len(raw)) - len(raw)) if i + 1 < len(weights) else b""
            crc = zlib.crc32(padding, zlib.crc32(raw, crc))
            size += len(raw) + len(padding)
            file.write(raw)
            file.write(padding)
        table.append(ENTRY.pack(WEIGHTS, FLAG_CRITICAL, at, size, crc, 0))
        end = at + size
    head = HEADER.pack(VMX_MAGIC, *VERSION, n_sections, end, zlib.crc32(b"".join(table)))
    file.seek(0)
    file.write(head + struct.pack("<I", zlib.crc32(head)) + b"".join(table))


def write_vmx(executable: VMExecutable) -> bytes:
    """The `.vmx` file as bytes."""
    file = io.BytesIO()
    _write_sections(executable, file)
    return file.getvalue()


def save_vmx(executable: VMExecutable, path: str | os.PathLike[str]) -> None:
    """Writes a `.vmx` file: beside `path` first, then in one step over it.

    Raises
    ------
    FormatError
        If the executable holds what the format cannot.
    OSError
        If the folder cannot be written to or the disk is full; `path` is then untouched.
    """
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".{os.path.basename(target)}.{os.urandom(6).hex()}.tmp")
    # A signal handler may raise after any call that Python makes here: what is opened always has an owner already.
    try:
        with open(temporary, "xb") as file:
            _write_sections(executable, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        error.add_note(f"while saving {target}, which is what it was before")
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        (descriptor,) = map(os.open, (folder,), (os.O_RDONLY,))  # called and stored in one step
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
