"""What every case is held to: typed errors, bounded memory, an end. Loading and running under these bounds."""

from __future__ import annotations

import functools
import mmap
import os
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyvm import errors
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine, deadline

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")  # its shadow takes terabytes of address space
RUN_BYTES = 1 << 30  # address space beyond what a child has when it starts
LOAD_BYTES = 256 << 20  # beyond what it has when it reads a file of a few KB
COMPILE_BYTES = 512 << 20
DEADLINE_S = 0.05
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for files that live for milliseconds


class Finding(Exception):
    """A case that gave what must not be."""


class CallbackError(Exception):
    """What a callback of these programs raises: it must arrive unchanged."""


ALLOWED = (errors.VMError, CallbackError)


@functools.cache
def _statm(pid: int) -> int:
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY)


def address_space() -> int:
    """Bytes that are mapped now."""
    return int(os.pread(_statm(os.getpid()), 64, 0).split()[0]) * mmap.PAGESIZE


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Little address space for what happens inside: asking for more is a MemoryError there."""
    if SANITIZED:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = address_space() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def guarded(
    what: str, allowed: type[Exception] | tuple[type[Exception], ...], nbytes: int, make: Callable[[], Any]
) -> Any:
    """The result of `make`, or the allowed error that it raised. Raises Finding for another one, or too much memory."""
    try:
        with at_most(nbytes):
            return make()
    except allowed as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__ or error.__context__, MemoryError):
            raise Finding(f"{what} needs more than {nbytes >> 20} MB: {error}") from error
        return error
    except MemoryError as error:
        raise Finding(f"{what} needs more than {nbytes >> 20} MB: {error}") from error
    except Exception as error:
        raise Finding(f"{what} raised {type(error).__name__}: {error}") from error


def run_executable(executable: VMExecutable, inputs: Sequence[Any], rng: random.Random, what: str) -> str:
    """Runs `main`, or the first function, twice; returns what came of it. Raises Finding."""
    args = list(inputs)
    try:
        # The limit bounds a program under sanitizers, too, where the address space cannot be limited.
        config = rng.choice(("pooled", "pooled", "naive"))
        vm = VirtualMachine(executable, memory_cfg=config, memory_limit=RUN_BYTES)
        names = vm.function_names()
        if not names:
            return "nothing to run"
        function = vm["main" if "main" in names else names[0]]
        args = (args + [1] * 8)[: len(function.param_names)]
    except ALLOWED as error:
        return type(error).__name__
    except Exception as error:
        raise Finding(f"{what}: loading raised {type(error).__name__}: {error}") from error
    hooked = rng.random() < 0.1
    outcome = "ran"
    for turn in range(2):  # the second run meets what the first left in pools and caches
        if turn and hooked:
            vm.set_instrument(lambda *call: None)
        try:
            with deadline(DEADLINE_S):
                result = function(*args)
            look_at(result)
        except errors.DeadlineExceeded:
            return "DeadlineExceeded"
        except ALLOWED as error:
            outcome = type(error).__name__
        except Exception as error:
            raise Finding(f"{what}: running raised {type(error).__name__}: {error}") from error
    return outcome


def look_at(value: Any, depth: int = 0) -> None:
    """Touches every byte of small results."""
    if isinstance(value, tuple) and depth < 8:
        for item in value[:16]:
            look_at(item, depth + 1)
    elif hasattr(value, "__dlpack__") and value.nbytes < 1 << 20:
        try:
            array = value.numpy()
        except TypeError:
            return  # an element type that numpy lacks
        array.tobytes()
