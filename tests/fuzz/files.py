"""Executables as bytes: `.vmx` and TVM's format. Fields are changed where they lie; checksums are mostly made right."""

from __future__ import annotations

import functools
import random
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from pyvm import errors
from pyvm.byte_reader import ByteReader
from pyvm.executable import VMExecutable, load_executable
from pyvm.tvm_format import write_tvm
from pyvm.vmx_writer import write_vmx
from tests.executables import sample
from tests.fuzz.programs import Inputs, programs
from tests.fuzz.watch import FAST, LOAD_BYTES, guarded, run_executable

WORDS = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 70, 71, 127, 128, 255, 256, 4096, 65535, 2**20, 2**20 + 1, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**40, 2**53, 2**54, 2**54 + 1, 2**55, 2**56 - 1, 2**56, 2**57, 3 << 56, 4 << 56, 2**61, 2**62,
    2**63 - 1, 2**63, 2**64 - 8, 2**64 - 2, 2**64 - 1,
)  # fmt: skip
_HEADER, _ENTRY = struct.Struct("<8sHHIQI"), struct.Struct("<IIQQII")
_ALIGN = 64


class Template(NamedTuple):
    """A file, where its fields lie, and arguments for its `main`."""

    data: bytes
    fields: tuple[tuple[int, int], ...]
    inputs: Inputs


def _fields(data: bytes) -> tuple[tuple[int, int], ...]:
    """(offset, size) of everything that reading takes, within the whole file."""
    found: list[tuple[int, int]] = []
    take = ByteReader.take

    def recording(self: ByteReader, n: int) -> memoryview:
        base = data.find(bytes(self.data))  # a section of a .vmx file, or all of a TVM file
        if n and len(self.data) >= 8:
            found.append((base + self.at, n))
        return take(self, n)

    ByteReader.take = recording  # type: ignore[method-assign]
    try:
        load_executable(data)
    finally:
        ByteReader.take = take  # type: ignore[method-assign]
    return tuple(found)


def _small() -> list[tuple[VMExecutable, Inputs]]:
    """Executables that fit into some KB: mutations of a large one mostly change its weights."""
    found: list[tuple[VMExecutable, Inputs]] = [(sample(), tuple)]
    for i, (name, executable, inputs) in enumerate(programs()):
        if i % 5 == 0 or name.endswith(".vmasm") or name.startswith("random"):
            found.append((executable, inputs))
    return found


@functools.cache
def vmx_templates() -> list[Template]:
    """Files of our format."""
    files = [(write_vmx(executable), inputs) for executable, inputs in _small()]
    return [Template(data, _fields(data), inputs) for data, inputs in files if len(data) < 20_000]


@functools.cache
def tvm_templates() -> list[Template]:
    """Files of TVM's format, with both magics."""
    files = []
    for i, (executable, inputs) in enumerate(_small()):
        files.append((write_tvm(executable, version=1 if i % 2 and not executable.memory_scopes else 2), inputs))
    return [Template(data, _fields(data), inputs) for data, inputs in files if len(data) < 20_000]


def _change_bytes(data: bytearray, fields: tuple[tuple[int, int], ...], rng: random.Random) -> None:
    """One change: of a field mostly, of any bytes sometimes."""
    if not data:
        return
    choice = rng.random()
    at, size = rng.choice(fields) if fields and choice < 0.85 else (rng.randrange(len(data)), rng.choice((1, 2, 4, 8)))
    if size > 8:  # words of code, names, tensor data
        at, size = (at + 8 * rng.randrange(size // 8), 8) if size % 8 == 0 else (at + rng.randrange(size), 1)
    if at + size > len(data):
        return
    edit = rng.random()
    if edit < 0.55:
        value = rng.choice(WORDS)
    elif edit < 0.8:
        value = int.from_bytes(data[at : at + size], "little") + rng.choice((1, -1, 2, -2, 8, -8))
    elif edit < 0.9:
        value = int.from_bytes(data[at : at + size], "little") ^ 1 << rng.randrange(8 * size)
    elif edit < 0.94:
        other, _ = rng.choice(fields) if fields else (0, 0)
        data[at : at + size] = data[other : other + size]
        return
    elif edit < 0.97:
        del data[at : at + rng.choice((size, 8, 52, rng.randrange(1, 200)))]
        return
    else:
        data[at:at] = data[at : at + rng.choice((size, 8, 52))] or bytes(8)
        return
    data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def mutated_tvm(rng: random.Random) -> tuple[bytes, Inputs]:
    """A file of TVM's format with some changes."""
    template = rng.choice(tvm_templates())
    data = bytearray(template.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _change_bytes(data, template.fields, rng)
    if rng.random() < 0.04:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data), template.inputs


def _sections(data: bytes) -> list[list[Any]]:
    """[kind, flags, content] of each section."""
    *_, count, _, _ = _HEADER.unpack_from(data)
    rows = [_ENTRY.unpack_from(data, _HEADER.size + 4 + i * _ENTRY.size) for i in range(count)]
    return [[kind, flags, bytearray(data[at : at + size])] for kind, flags, at, size, _, _ in rows]


def _assembled(sections: list[list[Any]], rng: random.Random) -> bytes:
    """The file of these sections, with a header, table and checksums that fit, mostly."""
    head_size = _HEADER.size + 4 + len(sections) * _ENTRY.size
    at, table, body = -(-head_size // _ALIGN) * _ALIGN, [], bytearray()
    start = at
    for kind, flags, content in sections:
        row = [kind, flags, at, len(content), zlib.crc32(content), 0]
        if rng.random() < 0.01:
            row[rng.randrange(2, 4)] = rng.choice(WORDS)
        if rng.random() < 0.01:
            row[rng.randrange(6)] ^= 1 << rng.randrange(8)
        table.append(_ENTRY.pack(*row))
        body += content
        if kind != sections[-1][0]:
            body += bytes(-len(content) % _ALIGN)
        at = start + len(body)
    entries = b"".join(table)
    fields: list[Any] = [b"\x89VMX\r\n\x1a\n", 1, 0, len(sections), start + len(body), zlib.crc32(entries)]
    if rng.random() < 0.03:
        fields[rng.randrange(1, 4)] = rng.choice((0, 1, 2, 3, 1000, 65535))
    if rng.random() < 0.01:
        fields[4] = rng.choice(WORDS)
    head = _HEADER.pack(*fields)
    head += struct.pack("<I", zlib.crc32(head)) + entries
    return head + bytes(start - len(head)) + bytes(body)


def mutated_vmx(rng: random.Random) -> tuple[bytes, Inputs]:
    """A `.vmx` file with some changes."""
    template = rng.choice(vmx_templates())
    if rng.random() < 0.05:  # as a broken disk or transfer would
        data = bytearray(template.data)
        for _ in range(rng.choice((1, 2, 5))):
            _change_bytes(data, (), rng)
        return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data), template.inputs
    changed = bytearray(template.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, size = rng.choice(template.fields)
        kept = len(changed)
        _change_bytes(changed, ((at, size),), rng)
        if len(changed) != kept:  # what grew or shrank was one section: cut the file again where it was
            changed = bytearray(template.data)
            break
    head = _HEADER.size + 4 + _ENTRY.size * _HEADER.unpack_from(template.data)[3]
    sections = _sections(template.data[:head] + bytes(changed[head:]))
    if rng.random() < 0.2:
        content = rng.choice(sections)[2]
        _change_bytes(content, (), rng)
    edit = rng.random()
    if edit < 0.02:
        del sections[rng.randrange(len(sections))]
    elif edit < 0.04:
        sections.append(list(rng.choice(sections)))
    elif edit < 0.06:
        rng.shuffle(sections)
    elif edit < 0.08:
        sections.append([rng.choice((6, 8, 9, 2**31)), rng.randrange(2), bytearray(rng.randrange(100))])
    return _assembled(sections, rng), template.inputs


def run_file(data: bytes, inputs: Inputs, rng: random.Random, what: str) -> str:
    """Loads the bytes, or a file with them, and runs what was loaded."""
    if rng.random() < 0.2:
        with tempfile.NamedTemporaryFile(dir=FAST) as file:  # mapped, and gone while it is used
            Path(file.name).write_bytes(data)
            executable = guarded(what, errors.ExecutableError, LOAD_BYTES, lambda: load_executable(file.name))
    else:
        executable = guarded(what, errors.ExecutableError, LOAD_BYTES, lambda: load_executable(data))
    if isinstance(executable, Exception):
        return type(executable).__name__
    refused = guarded(f"{what}: verify", errors.ExecutableError, LOAD_BYTES, lambda: executable.verify(full=True))
    if refused is not None:
        return type(refused).__name__
    if rng.random() < 0.05:  # what was read can be written in all forms
        guarded(f"{what}: text", errors.VMError, LOAD_BYTES, lambda: (executable.as_text(), executable.stats()))
        guarded(f"{what}: write", errors.VMError, LOAD_BYTES, lambda: (write_vmx(executable), executable.to_bytes()))
    return run_executable(executable, inputs(), rng, what)
