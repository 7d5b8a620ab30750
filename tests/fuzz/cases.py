"""The formats, how often each comes, and a case by its number: everything follows from seed and number."""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from pyvm import errors
from pyvm.asm import disassemble
from tests.fuzz import files, foreign, models, texts
from tests.fuzz.kernels import Template, mutated_call, run_kernel
from tests.fuzz.mutate import mutated_program
from tests.fuzz.watch import Finding, run_executable


class Format(NamedTuple):
    """What is made of random numbers, how it is run, and how it looks in a file.

    Attributes
    ----------
    weight : int
        Share of the cases, in percent.
    make : callable(rng) -> case
    run : callable(case, rng) -> str
        What came of it. Raises Finding.
    suffix : str
        Of the file that a case is saved in.
    save : callable(case) -> bytes
    """

    weight: int
    make: Callable[[random.Random], Any]
    run: Callable[[Any, random.Random], str]
    suffix: str
    save: Callable[[Any], bytes]


def _call_text(case: Template) -> bytes:
    name, args = case
    return f"{name}{tuple(args)!r}\n".encode()


def _text_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _run_program(case: Any, rng: random.Random) -> str:
    name, executable, inputs = case
    return run_executable(executable, inputs(), rng, name)


FORMATS = {
    "program": Format(16, mutated_program, _run_program, "vmasm", lambda case: disassemble(case[1]).encode()),
    "kernel": Format(31, mutated_call, lambda case, rng: run_kernel(case), "txt", _call_text),
    "vmx": Format(16, files.mutated_vmx, lambda case, rng: files.run_file(*case, rng, "vmx"), "vmx", itemgetter(0)),
    "tvm": Format(14, files.mutated_tvm, lambda case, rng: files.run_file(*case, rng, "tvm"), "bin", itemgetter(0)),
    "asm": Format(
        9, texts.mutated_asm, lambda case, rng: texts.run_asm(*case, rng), "vmasm", lambda case: _text_bytes(case[0])
    ),
    "ir": Format(4, texts.mutated_ir, texts.run_ir, "pyvm", _text_bytes),
    "onnx": Format(4, models.mutated_model, models.run_model, "onnx", lambda case: case.data),
    "foreign": Format(6, foreign.make, foreign.run, "txt", _call_text),
}


def make_case(number: int, seed: int, only: str | None = None) -> tuple[str, Any, random.Random]:
    """Format and content of a case, and the random numbers that it is run with."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choices(list(FORMATS), [f.weight for f in FORMATS.values()])[0]
    name = only or name
    return name, FORMATS[name].make(rng), rng


def run_case(number: int, seed: int, only: str | None = None) -> tuple[str, str]:
    """Makes a case and runs it: its format, and what came of it. Raises Finding."""
    name, case, rng = make_case(number, seed, only)
    try:
        return name, FORMATS[name].run(case, rng)
    except Finding as finding:
        raise Finding(f"[{name}] {finding}") from finding
    except (errors.VMError, RuntimeError, AssertionError, MemoryError) as error:
        raise Finding(f"[{name}] {type(error).__name__}: {error}") from error


def prepare() -> None:
    """Makes what all cases start from."""
    from tests.fuzz.kernels import templates

    templates(), files.vmx_templates(), files.tvm_templates(), texts.asm_templates(), texts.ir_templates()
    models.templates(), models.folder(), foreign.prepare()
