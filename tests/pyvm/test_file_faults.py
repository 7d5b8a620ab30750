"""Faults around files: a full disk, read-only folders, files that are truncated, replaced or changed while in use."""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pyvm
import pyvm.vmx_format
import pyvm.vmx_writer
from pyvm.asm import assemble
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine
from tests import ROOT

PROGRAM = "func @main() regs=1\n  call @vm.builtin.copy (c[0]) -> %0\n  ret %0\nc[0] = tensor float32 (1) [0]"


def executable(value: float, nbytes: int = 1 << 20) -> VMExecutable:
    made = assemble(PROGRAM)
    made.constants[0] = np.full(nbytes // 4, value, np.float32)
    return made


def value_of(path: Path) -> float:
    return float(VirtualMachine(path)["main"]().numpy()[-1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    executable(1.0).save(tmp_path / "model.vmx")
    return tmp_path / "model.vmx"


# ---- saving


class _Failing:
    """A file whose n-th write fails."""

    def __init__(self, file: object, n: int, error: OSError) -> None:
        self.file, self.n, self.error = file, n, error

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()  # type: ignore[attr-defined]

    def write(self, data: bytes) -> int:
        self.n -= 1
        if self.n == 0:
            raise self.error
        return self.file.write(data)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("new", [False, True])
def test_every_write_may_fail(path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    """A full disk at any write: the old file, or none, and nothing left behind."""
    target = path.with_name("new.vmx") if new else path
    before = path.read_bytes()
    for n in range(1, 1000):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        failing: list[_Failing] = []

        def opened(path: str, mode: str, n: int = n, full: OSError = full, failing: list = failing) -> _Failing:
            failing.append(_Failing(open(path, mode), n, full))
            return failing[0]

        with monkeypatch.context() as patch:
            patch.setattr(pyvm.vmx_writer, "open", opened, raising=False)
            try:
                executable(2.0).save(target)
            except OSError as error:
                assert error.errno == errno.ENOSPC and str(target) in error.__notes__[0]
                assert sorted(p.name for p in path.parent.iterdir()) == ["model.vmx"]
                assert path.read_bytes() == before
                continue
        assert failing[0].n > 0  # no write failed
        break
    assert n > 10 and value_of(target) == 2.0
    assert sorted(p.name for p in path.parent.iterdir()) == (["model.vmx", "new.vmx"] if new else ["model.vmx"])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_last_steps_may_fail(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = path.read_bytes()
    real = getattr(os, call)

    def fail(*args: object) -> None:
        monkeypatch.setattr(pyvm.vmx_format.os, call, real)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pyvm.vmx_format.os, call, fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        executable(2.0).save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["model.vmx"]
    executable(2.0).save(path)
    assert value_of(path) == 2.0


LIMITED = """
import errno, os, resource, sys
from tests.pyvm.test_file_faults import executable
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    executable(2.0).save(path)
except OSError as error:
    sys.exit(0 if error.errno in (errno.EFBIG, errno.ENOSPC) else f"errno {error.errno}")
sys.exit("it was saved")
"""


def test_a_file_system_without_room(path: Path, tmp_path: Path, in_child: Callable[..., None]) -> None:
    """The kernel's refusal, in the middle of the weights and in the middle of the head."""
    before = path.read_bytes()
    for limit in (600_000, 4096, 100, 1, 0):
        in_child(LIMITED, str(path), str(limit))
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.vmx"]
    assert value_of(path) == 1.0


@pytest.fixture
def in_child() -> Callable[..., None]:
    """Runs a program in a child that sees the package under test and the tests."""
    def run(program: str, *args: str, status: int = 0) -> None:
        done = subprocess.run([sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr

    return run


def test_a_folder_that_cannot_be_written_to(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        executable(2.0).save(tmp_path / "missing" / "model.vmx")
    with pytest.raises(NotADirectoryError):
        executable(2.0).save(path / "model.vmx")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                executable(2.0).save(path)
        finally:
            tmp_path.chmod(0o700)
    else:  # to root no folder is read-only; a file system is

        def read_only(name: str, mode: str) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

        monkeypatch.setattr(pyvm.vmx_writer, "open", read_only, raising=False)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            executable(2.0).save(path)
        monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.vmx"]


def test_what_the_format_cannot_hold_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    wrong = executable(2.0)
    wrong.metadata["bad"] = "\ud800"
    with pytest.raises(pyvm.errors.FormatError) as caught:
        wrong.save(path)
    assert str(path) in caught.value.__notes__[0]
    assert path.read_bytes() == before and os.listdir(path.parent) == ["model.vmx"]


# ---- loading


@pytest.mark.parametrize("mmap", [True, False])
def test_a_truncated_file(path: Path, mmap: bool) -> None:
    data = path.read_bytes()
    for n in (0, 1, 7, 8, 35, 36, 100, 300, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        with pytest.raises(pyvm.errors.FormatError) as caught:
            pyvm.load_executable(path, mmap=mmap)
        assert str(path) in caught.value.__notes__[0]
    path.write_bytes(data + b"\0")
    with pytest.raises(pyvm.errors.FormatError, match="should have"):
        pyvm.load_executable(path, mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_shrinks_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool) -> None:
    """After each of the looks at its size or kind."""
    data, real = path.read_bytes(), os.fstat
    n_looks = 0
    for keep in (40, 200, 4096, len(data) - 10):
        last = 1
        while last <= max(n_looks, 1):
            path.write_bytes(data)
            n_looks = 0

            def shrinking(descriptor: int, keep: int = keep, last: int = last) -> os.stat_result:
                nonlocal n_looks
                found = real(descriptor)
                if stat.S_ISREG(found.st_mode):
                    n_looks += 1
                    if n_looks == last:
                        os.truncate(path, keep)
                return found

            with monkeypatch.context() as patch:
                patch.setattr(pyvm.vmx_format.os, "fstat", shrinking)
                with pytest.raises(pyvm.errors.FormatError):
                    pyvm.load_executable(path, mmap=mmap)
            last += 1


class _Interrupt(Exception):
    pass


def _interrupt(*_: object) -> None:
    raise _Interrupt


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGALRM raises _Interrupt."""
    old = signal.signal(signal.SIGALRM, _interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def test_what_has_no_end_is_refused(tmp_path: Path, interrupts: None) -> None:
    """Devices, and a pipe that brings something else for ever."""
    os.symlink("/dev/zero", tmp_path / "link")
    signal.alarm(20)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom", tmp_path / "link"):
        with pytest.raises(OSError, match="neither a regular file nor a pipe"):
            pyvm.load_executable(device)
        with pytest.raises(pyvm.errors.FrontendError, match="neither a regular file nor a pipe"):
            pyvm.compile(device)
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout is not None
        with pytest.raises(pyvm.errors.FormatError, match="no executable"):
            pyvm.load_executable(f"/dev/fd/{endless.stdout.fileno()}")
        endless.kill()


def test_interrupted_loads_leave_nothing_open(path: Path, interrupts: None) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for step in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + step * 1e-6)
            pyvm.load_executable(path)
            time.sleep(0.005)
        except _Interrupt:
            pass
    gc.collect()  # a mapping has a descriptor, and exceptions may keep it in a cycle
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_can_be_read(path: Path) -> None:
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        machine = VirtualMachine(pyvm.load_executable(f"/dev/fd/{pipe.stdout.fileno()}"))
    assert float(machine["main"]().numpy()[-1]) == 1.0


def test_interrupted_saves_leave_nothing_behind(path: Path, interrupts: None) -> None:
    """A signal handler that raises, at any moment: the old file or the new one, no other file, no open descriptor."""
    made = executable(1.0, 1 << 14)
    interrupted = 0
    before = len(os.listdir("/proc/self/fd"))
    for step in range(200):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + step * 4e-6)
            made.save(path)
            time.sleep(0.02)  # not longer: where nothing can be raised, as in a destructor, an exception is lost
        except _Interrupt:
            interrupted += 1
    assert interrupted > 150
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(path.parent) == ["model.vmx"]
    assert value_of(path) == 1.0


def test_a_replaced_file_stays_what_it_was(path: Path) -> None:
    mapped, copied = VirtualMachine(path), VirtualMachine(pyvm.load_executable(path, mmap=False))
    executable(2.0).save(path)
    assert float(mapped["main"]().numpy()[-1]) == float(copied["main"]().numpy()[-1]) == 1.0
    assert value_of(path) == 2.0
    path.unlink()
    assert float(mapped["main"]().numpy().sum()) == float(1 << 18)


def test_a_copy_does_not_see_the_file_again(path: Path) -> None:
    vm = VirtualMachine(pyvm.load_executable(path, mmap=False))
    weights = vm["main"]().numpy()
    assert not weights.flags.writeable and weights.ctypes.data % 64 == 0
    os.truncate(path, 0)
    assert float(vm["main"]().numpy().sum()) == float(1 << 18)


def test_a_copy_compares_the_weights(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    pyvm.load_executable(path)
    with pytest.raises(pyvm.errors.FormatError, match="weights section: checksum"):
        pyvm.load_executable(path, mmap=False)


TRUNCATED = """
import os, resource, sys
import tests  # before pyvm: decides which one is seen
from pyvm.vm import VirtualMachine
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
vm = VirtualMachine(sys.argv[1])
os.truncate(sys.argv[1], 8192)
print("loaded", flush=True)
vm["main"]().numpy().sum()
"""


def test_a_mapped_file_that_is_truncated_ends_the_process(path: Path, in_child: Callable[..., None]) -> None:
    """As `load_executable` says: this is what mapping means, and what `mmap=False` is for."""
    in_child(TRUNCATED, str(path), status=-signal.SIGBUS)
