"""The `.vmx` file: what is in it comes back, weights are mapped, damage is found, saving never leaves half a file."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import pyvm
from pyvm import vmx_format, vmx_writer
from pyvm.asm import assemble, disassemble
from pyvm.executable import DebugInfo, VMExecutable, load_executable
from pyvm.ir import BlockBuilder, StructInfo, TensorStructInfo, TupleStructInfo, Var
from pyvm.signature import ObjectSpec, Signature, Spec, TupleSpec
from pyvm.vm import VirtualMachine
from pyvm.vmx_format import FLAG_CRITICAL, load_vmx, read_vmx
from pyvm.vmx_writer import write_vmx
from tests.executables import executables, mutations, sample
from vmcore.errors import ExecutableError, FormatError, VersionError

HEADER, ENTRY = struct.Struct("<8sHHIQI"), struct.Struct("<IIQQII")
FUNCTIONS, CODE, CONSTANTS, WEIGHTS, SCOPES, DEBUG, META, NOTES = range(1, 9)


@given(executables())
@settings(max_examples=80, deadline=None)
def test_round_trip(executable: VMExecutable) -> None:
    data = write_vmx(executable)
    back = read_vmx(data)
    assert back == executable
    assert write_vmx(back) == data


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.vmx"
    sample().save(path)
    back = load_executable(path)
    back.verify(full=True)
    assert back == sample()
    assert path.read_bytes() == write_vmx(sample()) == write_vmx(back)
    for constant in back.constants:
        if isinstance(constant, np.ndarray):
            assert not constant.flags.writeable
            assert constant.size == 0 or constant.ctypes.data % 64 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.vmx"]


def sections(data: bytes) -> dict[int, tuple[int, int]]:
    """Kind to (position of the table entry, offset of the section)."""
    n = HEADER.unpack_from(data)[3]
    found = {}
    for i in range(n):
        at = HEADER.size + 4 + i * ENTRY.size
        kind, _, offset, *_ = ENTRY.unpack_from(data, at)
        found[kind] = (at, offset)
    return found


def sealed(data: bytes | bytearray) -> bytes:
    """The file with all checksums made right again: what is wrong with it is not an accident."""
    data = bytearray(data)
    magic, major, minor, n, _, _ = HEADER.unpack_from(data)
    for i in range(n):
        at = HEADER.size + 4 + i * ENTRY.size
        if at + ENTRY.size > len(data):
            break
        kind, flags, offset, size, _, zero = ENTRY.unpack_from(data, at)
        ENTRY.pack_into(data, at, kind, flags, offset, size, zlib.crc32(data[offset : offset + size]), zero)
    table = zlib.crc32(data[HEADER.size + 4 : HEADER.size + 4 + n * ENTRY.size])
    HEADER.pack_into(data, 0, magic, major, minor, n, len(data), table)
    struct.pack_into("<I", data, HEADER.size, zlib.crc32(data[: HEADER.size]))
    return bytes(data)


def test_layout_is_as_documented() -> None:
    data = write_vmx(sample())
    magic, major, minor, n, size, _ = HEADER.unpack_from(data)
    assert (magic, major, minor, n, size) == (b"\x89VMX\r\n\x1a\n", 1, 1, 8, len(data))
    assert sealed(data) == data
    assert set(sections(data)) == set(range(1, 9))
    assert all(offset % 64 == 0 for _, offset in sections(data).values())
    assert set(sections(write_vmx(VMExecutable()))) == {FUNCTIONS, CODE, CONSTANTS}


def test_weights_are_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.vmx"
    VMExecutable(constants=[np.zeros((1000, 1000)), np.ones(3, np.int8)]).save(path)
    read: list[int] = []
    pread = os.pread
    try:
        os.pread = lambda fd, n, offset: read.append(n) or pread(fd, n, offset)  # type: ignore[func-returns-value]
        executable = load_executable(path)
    finally:
        os.pread = pread
    assert sum(read) < 1000
    weights = executable.constants[0]
    assert isinstance(weights, np.ndarray) and str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    assert weights.sum() == 0
    del executable, weights
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_saving_over_a_loaded_file(tmp_path: Path) -> None:
    path = tmp_path / "a.vmx"
    VMExecutable(constants=[np.full(1000, 1.0)]).save(path)
    first = load_executable(path)
    VMExecutable(constants=[np.full(1000, 2.0)]).save(path)
    assert first.constants[0][0] == 1.0  # type: ignore[index]
    assert load_executable(path).constants[0][0] == 2.0  # type: ignore[index]
    first.save(path)
    assert load_executable(path) == first


def test_saving_through_a_link_and_with_the_umask(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "a.vmx", tmp_path / "link.vmx"
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        sample().save(link)
    finally:
        os.umask(old)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert load_executable(link) == sample()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vmx"
    sample().save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    if step == "write":
        monkeypatch.setattr(vmx_writer, "_write_sections", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        VMExecutable().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.vmx"]


def test_what_the_format_cannot_hold() -> None:
    executable = sample()
    executable.metadata = {"key": "\ud800"}
    with pytest.raises(FormatError, match="meta"):
        write_vmx(executable)
    executable.metadata = {"key": "x" * (16 << 20)}
    with pytest.raises(FormatError, match="limit"):
        write_vmx(executable)
    executable = sample()
    executable.functions[0].num_args = 2**70
    with pytest.raises(FormatError, match="64 bits"):
        write_vmx(executable)
    for name in ("debug", "notes"):
        executable = sample()
        getattr(executable, name).indices = getattr(executable, name).indices[:-1]
        with pytest.raises(FormatError, match=f"{name} section: 8 entries for 9 instructions"):
            write_vmx(executable)


@pytest.mark.parametrize("foreign", [None, True, 2**63, [1, 2], np.array([None]), np.zeros(2, ">f4")])
def test_constants_that_no_pool_holds(foreign: object) -> None:
    executable = sample()
    executable.constants[1] = foreign  # type: ignore[call-overload]
    for write in (lambda: write_vmx(executable), lambda: executable.to_bytes(version=2)):
        with pytest.raises(FormatError, match="constant 1 is"):
            write()


def test_deep_signatures() -> None:
    """Tuples that are nested more deeply than a file says them are objects there."""
    info: StructInfo = TensorStructInfo((2,), "float32")
    for _ in range(80):
        info = TupleStructInfo([info])
    bb = BlockBuilder()
    x = Var("x", info)
    with bb.function("main", [x]):
        bb.emit_func_output(x)
    executable = pyvm.compile(bb.get())
    again = read_vmx(write_vmx(executable))
    again.verify(full=True)
    assert again == executable and assemble(disassemble(executable)) == executable
    deep: Spec = ObjectSpec("x")
    for _ in range(2000):
        deep = TupleSpec("x", [deep])
    executable.signatures = {"main": Signature([deep])}
    with pytest.raises(FormatError, match="deeper than 64"):
        write_vmx(executable)


def test_every_flipped_bit_outside_the_weights_is_found() -> None:
    data = write_vmx(sample())
    at, start = sections(data)[WEIGHTS]
    covered = set(range(HEADER.size + 4 + 8 * ENTRY.size))
    for entry, offset in sections(data).values():
        covered |= set(range(offset, offset + ENTRY.unpack_from(data, entry)[3]))
    for position in range(len(data)):
        mutant = bytearray(data)
        mutant[position] ^= 1 << position % 8
        if position >= start:
            executable = read_vmx(mutant)
            with pytest.raises(FormatError, match="vmx weights section: checksum"):
                executable.verify(full=True)
        elif position in covered:
            with pytest.raises((FormatError, VersionError)):
                read_vmx(mutant)
        else:
            assert read_vmx(mutant) == sample()  # padding


def test_truncated_files() -> None:
    data = write_vmx(sample())
    for n in range(len(data)):
        with pytest.raises(FormatError):
            read_vmx(data[:n])
    with pytest.raises(FormatError, match=f"should have {len(data)} bytes, it has {len(data) + 1}"):
        read_vmx(data + b"\0")


def edit(change: Callable[[bytearray, dict[int, tuple[int, int]]], None]) -> bytes:
    data = bytearray(write_vmx(sample()))
    change(data, sections(bytes(data)))
    return sealed(data)


def with_one_less(kind: int) -> bytes:
    """The sample, whose DEBUG or NOTES section has an index for all of the 9 instructions but the last."""

    def change(data: bytearray, found: dict[int, tuple[int, int]]) -> None:
        at, offset = found[kind]
        _, flags, _, size, crc, zero = ENTRY.unpack_from(data, at)
        struct.pack_into("<Q", data, offset + size - 9 * 4 - 8, 8)
        ENTRY.pack_into(data, at, kind, flags, offset, size - 4, crc, zero)

    return edit(change)


def with_section(kind: int, flags: int) -> bytes:
    """A file of a later minor version with one more section at the end."""
    data = bytearray(write_vmx(VMExecutable(metadata={"a": "b"})))
    magic, major, _, n, _, _ = HEADER.unpack_from(data)
    assert HEADER.size + 4 + (n + 1) * ENTRY.size <= 192  # the table has room before the first section
    data += bytes(-len(data) % 64)
    ENTRY.pack_into(data, HEADER.size + 4 + n * ENTRY.size, kind, flags, len(data), 5, 0, 0)
    data += b"later"
    HEADER.pack_into(data, 0, magic, major, 9, n + 1, 0, 0)
    return sealed(data)


def test_versions() -> None:
    assert read_vmx(with_section(99, 0)).metadata == {"a": "b"}
    with pytest.raises(VersionError, match="section of kind 99.*file 1.9"):
        read_vmx(with_section(99, FLAG_CRITICAL))
    with pytest.raises(VersionError, match=r"version 2.1, this reader knows 1\.x"):
        read_vmx(edit(lambda d, s: struct.pack_into("<H", d, 8, 2)))
    with pytest.raises(FormatError, match="two meta sections"):
        read_vmx(with_section(META, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, s: struct.pack_into("<I", d, 12, 5000), "5000 sections"),
        (lambda d, s: struct.pack_into("<Q", d, s[META][0] + 8, 64), "overlaps"),
        (lambda d, s: struct.pack_into("<Q", d, s[META][0] + 8, s[META][1] + 8), "unaligned"),
        (lambda d, s: struct.pack_into("<Q", d, s[META][0] + 8, 2**63), "exceeds"),
        (lambda d, s: struct.pack_into("<Q", d, s[META][0] + 16, 2**63), "exceeds"),
        (lambda d, s: struct.pack_into("<I", d, s[CODE][0], 77), "kind 77|code section is missing"),
        (lambda d, s: struct.pack_into("<Q", d, s[FUNCTIONS][1], 2**50), "items of at least 52"),
        (lambda d, s: struct.pack_into("<Q", d, s[CODE][1], 2**62), "instructions and"),
        (lambda d, s: struct.pack_into("<Q", d, s[CODE][1] + 8, 2**62), "instructions and"),
        (lambda d, s: struct.pack_into("<Q", d, s[CODE][1] + 8, 3), "bytes are left over"),
        (lambda d, s: struct.pack_into("<Q", d, s[CONSTANTS][1], 2**61), "items of at least 8"),
        (lambda d, s: struct.pack_into("<i", d, s[CONSTANTS][1] + 8, 68), "type index 68"),
        (lambda d, s: struct.pack_into("<i", d, s[CONSTANTS][1] + 16, 2**30), "dims"),
        (lambda d, s: struct.pack_into("<q", d, s[CONSTANTS][1] + 20, -1), "negative dim"),
        (lambda d, s: struct.pack_into("<Q", d, s[CONSTANTS][1] + 36, 32), "unaligned or exceeds"),
        (lambda d, s: struct.pack_into("<Q", d, s[CONSTANTS][1] + 36, 2**40), "unaligned or exceeds"),
        (lambda d, s: struct.pack_into("<Q", d, s[CONSTANTS][1] + 44, 8), "has 24 bytes, not 8"),
        (lambda d, s: struct.pack_into("<I", d, s[WEIGHTS][0], 78), "kind 78|unaligned or exceeds"),
        (lambda d, s: struct.pack_into("<Q", d, s[DEBUG][1], 2**61), "items of at least 8"),
        (lambda d, s: d.__setitem__(slice(s[META][1], s[META][1] + 1), b"["), "not JSON"),
        (lambda d, s: d.__setitem__(slice(s[META][1], s[META][1] + 1), b"\xff"), "not JSON"),
    ],
)
def test_deliberate_damage(change: Callable[[bytearray, dict[int, tuple[int, int]]], None], message: str) -> None:
    with pytest.raises((FormatError, VersionError), match=message):
        assert read_vmx(edit(change)).metadata is None  # looking at it decodes the section META


def test_signatures_and_metadata_are_decoded_when_they_are_looked_at() -> None:
    data = edit(lambda d, s: d.__setitem__(slice(s[META][1], s[META][1] + 1), b"["))
    read_vmx(data).verify()
    for look in (lambda e: e.signatures, lambda e: e.metadata, lambda e: e.signature("main")):
        executable = read_vmx(data)
        for _ in range(2):
            with pytest.raises(FormatError, match="not JSON"):
                look(executable)
    with pytest.raises(FormatError, match="not JSON"):
        read_vmx(data).verify(full=True)
    executable = read_vmx(write_vmx(sample()))
    executable.metadata = {"only": "this"}
    assert executable.signatures == sample().signatures and executable.metadata == {"only": "this"}


@pytest.mark.parametrize(
    "meta",
    [
        b"[" * 100_000,
        b"[]",
        b'{"metadata": []}',
        b'{"metadata": {"a": 1}}',
        b'{"signatures": 1}',
        b'{"signatures": {"f": 1}}',
        b"9" * 5000,
        b'{"metadata": ' + b'{"a":' * 5000,
    ],
)
def test_hostile_meta(meta: bytes) -> None:
    with pytest.raises(FormatError):
        vmx_format._read_meta(meta)


def test_debug_entries_for_another_number_of_instructions() -> None:
    with pytest.raises(FormatError, match="vmx debug section.*8 entries for 9 instructions"):
        read_vmx(with_one_less(DEBUG))
    executable = sample()
    executable.debug.indices = executable.debug.indices + 7
    with pytest.raises(FormatError, match="is not in -1..2"):
        read_vmx(write_vmx(executable))


@pytest.mark.parametrize("seal", [False, True])
def test_mutated_files(seal: bool) -> None:
    """Only ExecutableError comes out, in little memory, from accidents and from forged checksums."""
    source = write_vmx(sample())
    tracemalloc.start()
    verified = 0
    try:
        for mutant in mutations(source, 1500, seed=2):
            try:
                executable = read_vmx(sealed(mutant) if seal and len(mutant) >= HEADER.size + 4 else mutant)
                executable.verify(full=True)
                verified += 1
            except ExecutableError:
                continue
            assert read_vmx(write_vmx(executable)) == executable
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert verified > (100 if seal else 10)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vmx"
    data = write_vmx(sample())
    path.write_bytes(data)
    pread = os.pread

    def shrinking(fd: int, n: int, offset: int) -> bytes:
        result = pread(fd, n, offset)
        if offset == 0:
            os.truncate(path, len(data) // 2)
        return result

    try:
        os.pread = shrinking
        with pytest.raises(FormatError):
            load_vmx(path)
    finally:
        os.pread = pread


def test_pipes_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())", str(fifo)],
        stdin=subprocess.PIPE,
    )
    assert writer.stdin is not None
    writer.stdin.write(write_vmx(sample()))
    writer.stdin.close()
    assert load_executable(fifo) == sample()
    assert writer.wait() == 0


def test_loading_takes_no_time_for_large_weights(tmp_path: Path) -> None:
    """A sparse file of 500 MB; the budget of 20 ms is asserted with slack for a busy machine."""
    path = tmp_path / "large.vmx"
    data = bytearray(write_vmx(VMExecutable(constants=[np.zeros(64, np.float32)])))
    n = 125_000_000
    at, offset = sections(bytes(data))[CONSTANTS]
    struct.pack_into("<qQQ", data, offset + 20, n, 0, 4 * n)
    weights_at, weights = sections(bytes(data))[WEIGHTS]
    del data[weights:]
    struct.pack_into("<Q", data, weights_at + 16, 4 * n)
    data = bytearray(sealed(data))
    HEADER.pack_into(data, 0, *HEADER.unpack_from(data)[:4], weights + 4 * n, HEADER.unpack_from(data)[5])
    struct.pack_into("<I", data, HEADER.size, zlib.crc32(data[: HEADER.size]))
    with path.open("wb") as file:
        file.write(data)
        file.truncate(weights + 4 * n)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        executable = load_executable(path)
        times.append(time.perf_counter() - start)
    assert executable.constants[0].shape == (n,)  # type: ignore[union-attr]
    assert min(times) < 0.1
    vm = VirtualMachine(executable)
    assert resident_kb(path) == 0, "neither loading nor a virtual machine reads a page of the weights"
    assert not executable.constants[0][: 1 << 20].any()  # type: ignore[index]
    assert resident_kb(path) >= 4096
    assert vm.function_names() == []


def resident_kb(path: Path) -> int:
    """What the mappings of `path` in this process have in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:  # the first line of a mapping
            inside = line.endswith(str(path))
        elif inside and name == "Rss":
            total += int(value.split()[0])
    return total


def test_notes_are_decoded_when_they_are_looked_at() -> None:
    """Serving pays for reading them only; what is wrong with them is said by whoever asks."""
    executable = read_vmx(write_vmx(sample()))
    assert executable._decode_notes is not None
    executable.verify()
    assert executable._decode_notes is not None
    assert list(executable.notes) == list(sample().notes) and executable._decode_notes is None
    assert any(note and "\n" in note for note in executable.notes)
    executable = read_vmx(with_one_less(NOTES))
    with pytest.raises(FormatError, match="vmx notes section.*8 entries for 9 instructions"):
        executable.verify(full=True)
    with pytest.raises(FormatError, match="vmx notes section"):
        _ = executable.notes
    without = sample()
    without.notes = DebugInfo()
    assert NOTES not in sections(write_vmx(without)) and read_vmx(write_vmx(without)) == without
