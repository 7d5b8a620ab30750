"""The library ABI: what a library returns, passes to host functions and stores in registers, as a script says."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pyvm.asm import assemble
from pyvm.vm import VirtualMachine, deadline
from tests.fuzz.mutate import INTS, native_names
from tests.fuzz.programs import register
from tests.fuzz.watch import ALLOWED, DEADLINE_S, SANITIZED, Finding, look_at
from vmcore.library import Library, load_library

PROGRAM = """
native @fz_run(%0, %1) regs=8
func @identity(%0) regs=1
  ret %0
func @main(%0, %1) regs=3
  call @fz_run (%0, %1) -> %2
  ret %2
func @give(%0, %1, %2, %3, %4) regs=6
  call @fz_give (%0, %1, %2, %3, %4) -> %5
  ret %5
func @call(%0, %1) regs=3
  call @fz_call (%0, %1) -> %2
  ret %2
func @others() regs=1
  call @fuzz.identity (1) -> %0
  ret %0
c[0] = shape(2, 3)
c[1] = dtype(float32)
c[2] = "text, long enough for an object"
c[3] = tensor float32 (2, 3) [1, 2, 3, 4, 5, 6]
c[4] = shape()
c[5] = 0.5
"""
NAMES = (
    "fuzz.identity", "t.fail", "fz_give", "kernel.add", "kernel.relu", "kernel.concat", "kernel.cast", "kernel.nobody",
)  # fmt: skip
TYPES = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    63,
    -1,
    -(2**31),
    64,
    65,
    66,
    67,
    68,
    69,
    70,
    71,
    72,
    74,
    128,
    129,
)
LITERALS = (0, 0, 1, 1, 1, 2, 3, 5, 6, 7, 7, 7, 8, 8)  # kinds that host functions must take from native code
COMPILER = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")


def called_names() -> list[str]:
    """What scripts call: builtins, some kernels, functions written in Python, a name that nobody has."""
    return [name for name in native_names() if "builtin" in name] + list(NAMES)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pyvm-fuzz-")


@functools.cache
def _library() -> Library:
    folder, names = Path(_folder().name), called_names()
    lines = "".join(f'"{name}",\n' for name in names)
    functions = len(assemble(PROGRAM).functions)
    (folder / "names.h").write_text(
        f"#define N_NAMES {len(names)}\n#define N_CONSTANTS 6\n#define N_FUNCTIONS {functions}\n"
        f"static const char *const NAMES[] = {{\n{lines}}};\n"
    )
    path, source = folder / "foreign.so", Path(__file__).with_name("foreign.c")
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-Wl,-z,lazy", f"-I{folder}", str(source), "-o", str(path)]
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    return load_library(path)


@functools.cache
def _machine() -> VirtualMachine:
    register()
    return VirtualMachine(assemble(PROGRAM), libraries=[_library()])


def prepare() -> None:
    """Builds the library before the address space is limited."""
    if COMPILER is not None:
        _machine()


def _value(rng: random.Random) -> Any:
    choice = rng.random()
    if choice < 0.4:
        array = np.arange(rng.choice((0, 1, 6, 24)) + 1).astype(rng.choice(("float32", "int64", "bool", "float16")))[1:]
        return array if rng.random() < 0.5 else array.reshape(-1, 1)
    if choice < 0.5:
        return rng.choice((("a", 1), (np.ones(3, np.float32), (None,)), (), len))
    return rng.choice((None, 1, 0.5, "text", "a longer text that is an object", True, -1))


def _bits(rng: random.Random) -> int:
    return rng.choice((rng.choice(INTS), rng.randrange(-(2**63), 2**63), rng.randrange(1 << 20), rng.randrange(100)))


def _call_script(rng: random.Random) -> np.ndarray:
    count = rng.randrange(7)
    words = [rng.randrange(len(called_names())), count]
    for _ in range(7):
        kind = -1 if rng.random() < 0.3 else rng.choice(LITERALS)
        words += [kind, rng.randrange(9) if kind != 6 else 0, abs(_bits(rng)) if kind == 7 else _bits(rng)]
    return np.array(words, np.int64)


def _run_script(rng: random.Random) -> np.ndarray:
    rows = []
    for _ in range(rng.randrange(1, 24)):
        what = rng.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 6, 6, 7))
        row = [what, rng.randrange(len(called_names()) if what == 6 else 64), rng.randrange(7), _bits(rng)]
        if what == 0:
            row[2] = rng.choice(TYPES[:13])
        if what == 4:
            row[3] = 9 * rng.randrange(1 << 50) + rng.choice((0, 1, 2, 3, 5, 6, 7, 8))
        rows += row
    return np.array([len(rows) // 4, *rows], np.int64)


def make(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    """A function of the program, and its arguments."""
    choice = rng.random()
    if choice < 0.3:
        kind = rng.choice(TYPES)
        small = rng.choice((0, 1, 6, 7, 8, 9, 255, 2**31, 2**32 - 1, -1))
        return "give", (rng.randrange(9), kind, small, _bits(rng), _value(rng))
    if choice < 0.6:
        return "call", (_call_script(rng), _value(rng))
    return "main", (_value(rng), _run_script(rng))


def run(case: tuple[str, tuple[Any, ...]], rng: random.Random) -> str:
    """Makes the call."""
    if COMPILER is None:
        return "no C compiler"
    name, args = case
    vm = _machine()
    if name == "give" and rng.random() < 0.5:
        function: Any = _library()["fz_give"]
    else:
        function = vm[name]
    try:
        with deadline(DEADLINE_S * (20 if SANITIZED else 1)):
            result = function(*args)
        look_at(result)
        repr(result)
    except ALLOWED as error:
        str(error)
        return f"foreign {type(error).__name__}"
    except Exception as error:
        raise Finding(f"foreign {name}: {type(error).__name__}: {error}") from error
    return "foreign ran"
