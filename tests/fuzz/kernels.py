"""Kernels called directly: the arguments of real calls, changed one by one."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np

from pyvm import errors
from pyvm.vm import VirtualMachine
from tests.fuzz.programs import programs
from tests.fuzz.watch import Finding
from vmcore.kernels.direct import call_kernel
from vmcore.objects import Tensor
from vmcore.types import Shape

GUARD = 256
INTS = (0, 1, -1, 2, 3, 5, 64, 2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1, -2, -(2**31), -(2**63))
DIMS = (0, 0, 1, 1, 2, 3, 5, 17, 64)
HUGE = (2**31, 2**40, 2**62)  # dimensions beside an empty one
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool", "uint64", "int16")
SPECIAL = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e300, 1e-300, 2.0**63)

Template = tuple[str, tuple[Any, ...]]


@functools.cache
def templates() -> list[Template]:
    """Every call of a kernel that the programs make, with numpy arrays for tensors."""
    found: list[Template] = []

    def record(func: None, name: str, before: bool, ret: Any, *args: Any) -> None:
        if before and name.startswith("kernel.") and name != "kernel.double":
            found.append((name, tuple(np.array(a) if isinstance(a, Tensor) else a for a in args)))

    for name, executable, inputs in programs():
        if name.startswith(("special", "random")) or name.endswith(".vmasm"):
            continue
        vm = VirtualMachine(executable)
        vm.set_instrument(record)
        vm["main"](*inputs())
    return found


def guarded(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `array` between bytes that nobody may write, and these bytes."""
    memory = np.full(array.nbytes + 2 * GUARD, 0xA5, np.uint8)
    inner = memory[GUARD : GUARD + array.nbytes].view(array.dtype).reshape(array.shape)
    inner[...] = array
    return inner, memory


def _array(rng: random.Random, old: np.ndarray) -> np.ndarray:
    choice = rng.random()
    if choice < 0.45:
        shape = list(old.shape)
        for _ in range(rng.choice((1, 1, 2))):
            edit = rng.random()
            if edit < 0.6 and shape:
                shape[rng.randrange(len(shape))] = rng.choice(DIMS)
            elif edit < 0.8:
                shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, 1, 2)))
            elif shape:
                del shape[rng.randrange(len(shape))]
        if 0 in shape and rng.random() < 0.5:
            at = rng.randrange(len(shape))
            if shape.count(0) > 1 or shape[at] != 0:
                shape[at] = rng.choice(HUGE)
        if old.size and 0 not in shape and math.prod(shape) < 1e5:
            return np.resize(old, shape)
        try:
            return np.zeros(shape, old.dtype)
        except (ValueError, MemoryError):  # too large for numpy
            return old
    if choice < 0.7 and old.dtype.kind in "biuf":
        with np.errstate(all="ignore"):
            return old.astype(rng.choice(DTYPES))
    changed = np.array(old)
    flat = changed.reshape(-1)
    for _ in range(min(4, flat.size)):
        if flat.dtype.kind in "iu":
            info = np.iinfo(flat.dtype)
            flat[rng.randrange(flat.size)] = rng.choice([v for v in INTS if info.min <= v <= info.max])
        elif flat.dtype.kind == "f":
            with np.errstate(all="ignore"):
                flat[rng.randrange(flat.size)] = rng.choice(SPECIAL)
        elif flat.dtype.kind == "b":
            flat.view(np.uint8)[rng.randrange(flat.size)] = rng.choice((0, 1, 2, 255))
    return changed


def _near(rng: random.Random, old: int) -> int:
    return rng.choice((*INTS, min(old, 2**63 - 2) + 1, max(old, 1 - 2**63) - 1))


def _argument(rng: random.Random, old: Any) -> Any:
    if rng.random() < 0.05:
        return rng.choice((None, 1, 2.5, "text", Shape((2, 3)), np.ones((2, 3), np.float32)))
    if isinstance(old, np.ndarray):
        return _array(rng, old)
    if isinstance(old, Shape):
        dims = list(old)
        edit = rng.random()
        if dims and edit < 0.8:
            at = rng.randrange(len(dims))
            dims[at] = _near(rng, dims[at])
        else:
            dims.append(rng.choice(INTS))
        return Shape(dims)
    if isinstance(old, (int, np.integer)) and not isinstance(old, bool):
        return _near(rng, int(old))
    if isinstance(old, float):
        return rng.choice(SPECIAL)
    return rng.choice(INTS)


def mutated_call(rng: random.Random) -> Template:
    """A call of a kernel with some arguments changed."""
    known = templates()
    name, args = known[rng.randrange(len(known))]
    changed = list(args)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            at = rng.randrange(len(changed))
            try:
                changed[at] = _argument(rng, changed[at])
            except (ValueError, MemoryError):  # too large for numpy
                continue
    if rng.random() < 0.3 and all(isinstance(a, np.ndarray) for a in (changed[:1], changed[-1:]) for a in a):
        if changed[0].size or changed[0].dtype == changed[-1].dtype:
            changed[-1] = np.zeros_like(changed[0], changed[-1].dtype)  # an output like the input
    if rng.random() < 0.1 and len(changed) > 1 and isinstance(changed[0], np.ndarray):
        changed[-1] = changed[0]  # in place
    return name, tuple(changed)


def run_kernel(call: Template) -> str:
    """Makes the call. Raises AssertionError if bytes around an argument changed."""
    name, changed = call[0], list(call[1])
    memories = []
    made: dict[int, np.ndarray] = {}
    for i, value in enumerate(changed):
        if isinstance(value, np.ndarray) and value.nbytes < 1 << 22:
            if id(value) not in made:
                made[id(value)], memory = guarded(value)
                memories.append(memory)
            changed[i] = made[id(value)]
    try:
        call_kernel(name, *changed)
        outcome = "ran"
    except errors.ExecutionError as error:
        outcome = type(error).__name__
    except MemoryError:
        outcome = "MemoryError"  # numpy's, of an argument
    except Exception as error:
        raise Finding(f"{name}: {type(error).__name__}: {error}") from error
    for memory in memories:
        assert (memory[:GUARD] == 0xA5).all() and (memory[-GUARD:] == 0xA5).all(), f"{name} wrote outside"
    return outcome
