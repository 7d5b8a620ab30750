"""Programs as text: the assembler's and the IR's. Tokens and lines are exchanged, repeated, dropped and blown up."""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import numpy as np

import pyvm
from pyvm import errors
from pyvm.asm import assemble, disassemble
from pyvm.ir import IRModule, TensorStructInfo, parse
from tests.executables import sample
from tests.fuzz.mutate import native_names
from tests.fuzz.programs import Inputs, op_modules, programs
from tests.fuzz.watch import COMPILE_BYTES, LOAD_BYTES, guarded, run_executable

NUMBERS = (
    "0", "1", "2", "3", "-1", "7", "64", "255", "65536", "1048576", "2147483648", "4294967296", "1099511627776",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e400", "0.5", "nan", "inf", "1_000", "0x10",
    "9" * 50,
)  # fmt: skip
_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|[%@]?[\w.$]+|[ \t]+|\n|.', re.DOTALL)
_IDENTIFIER = re.compile(r"[%@]?[A-Za-z_][\w.$]*")
_NUMBER = re.compile(r"-?\d")


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(text)


@functools.cache
def asm_templates() -> list[tuple[str, Inputs]]:
    """Assembler programs."""
    found: list[tuple[str, Inputs]] = [(disassemble(sample()), tuple)]
    for i, (name, executable, inputs) in enumerate(programs()):
        if i % 5 == 0 or name.endswith(".vmasm") or name.startswith(("random", "special")):
            text = disassemble(executable)
            if len(text) < 10_000:
                found.append((text, inputs))
    return found


@functools.cache
def ir_templates() -> list[str]:
    """Modules as text: of every operator, and the table of programs with control flow, closures and recursion."""
    from tests.programs import PROGRAMS

    texts = [module.script() for module in op_modules()] + [p.module.script() for p in PROGRAMS.values()] * 4
    return [text for text in texts if len(text) < 10_000]


def mutated_text(text: str, others: list[str], rng: random.Random) -> str:
    """`text` with some changes; `others` are where tokens and lines are borrowed from."""
    if rng.random() < 0.5:
        tokens = _tokens(text)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            _change_token(tokens, others, rng)
        text = "".join(tokens)
    if rng.random() < 0.5:
        lines = text.split("\n")
        for _ in range(rng.choice((1, 1, 2))):
            _change_line(lines, others, rng)
        text = "\n".join(lines)
    if rng.random() < 0.06:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(("\0", "é", "\ud800", "\r", '"', "(", ")", "\t", "\\", "`", "#")) + text[at:]
    if rng.random() < 0.02:
        text = text[: rng.randrange(len(text) + 1)]
    if rng.random() < 0.02:
        at, piece = rng.randrange(len(text) + 1), rng.choice(("(", "[", "-", "if x:\n  ", "tuple(", "\n", "(1,", "@"))
        text = text[:at] + piece * rng.choice((50, 3000)) + text[at:]
    return text


def _change_token(tokens: list[str], others: list[str], rng: random.Random) -> None:
    places = [i for i, token in enumerate(tokens) if not token.isspace()]
    if not places:
        return
    at = rng.choice(places)
    token, edit = tokens[at], rng.random()
    if edit < 0.1:
        del tokens[at]
    elif edit < 0.15:
        tokens.insert(at, token)
    elif _NUMBER.match(token):
        near = ""
        if edit < 0.5 and token.lstrip("-").isdigit():
            near = str(int(token) + rng.choice((1, -1, 2, -2)))
        tokens[at] = near or rng.choice(NUMBERS)
    elif _IDENTIFIER.fullmatch(token):
        source = tokens if edit < 0.7 else _tokens(rng.choice(others))
        alike = [t for t in source if _IDENTIFIER.fullmatch(t) and t[0] == token[0]]
        alike = alike or [t for t in source if _IDENTIFIER.fullmatch(t)]
        tokens[at] = rng.choice(alike) if alike else "x"
        if token[0] == "@" and rng.random() < 0.3:
            tokens[at] = "@" + rng.choice(native_names())
    elif token[0] == '"':
        tokens[at] = rng.choice(('""', '"x"', '"\\ud800"', '"\\u0000"', '"' + "a" * 300 + '"', '"float32"', '"bool"'))
    else:
        tokens[at] = rng.choice(("(", ")", ",", ":", "=", "->", "[", "]", "+", "-", "*", "//", "%", "@", "?", "..."))


def _change_line(lines: list[str], others: list[str], rng: random.Random) -> None:
    at, edit = rng.randrange(len(lines)), rng.random()
    if edit < 0.25:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif edit < 0.5:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif edit < 0.7 and len(lines) > 1:
        del lines[at]
    elif edit < 0.85:
        lines.insert(at, rng.choice(rng.choice(others).split("\n")))
    elif edit < 0.95:
        lines[at] = rng.choice(("  ", " ", "    ", "\t", "")) + lines[at].lstrip()
    else:
        begin = rng.randrange(at + 1)
        lines[at:at] = lines[begin:at] * rng.choice((1, 2, 20))


@functools.cache
def _asm_texts() -> list[str]:
    return [text for text, _ in asm_templates()]


def mutated_asm(rng: random.Random) -> tuple[str, Inputs]:
    """An assembler program with some changes."""
    text, inputs = rng.choice(asm_templates())
    return mutated_text(text, _asm_texts(), rng), inputs


def run_asm(text: str, inputs: Inputs, rng: random.Random) -> str:
    """Assembles, and runs what comes of it. The inverse must hold for what was accepted."""
    executable = guarded("assemble", errors.ExecutableError, LOAD_BYTES, lambda: assemble(text))
    if isinstance(executable, Exception):
        return type(executable).__name__
    refused = guarded("verify", errors.ExecutableError, LOAD_BYTES, executable.verify)
    if refused is not None:
        return type(refused).__name__
    if rng.random() < 0.1:
        again = guarded("reassemble", (), LOAD_BYTES, lambda: disassemble(assemble(disassemble(executable))))
        if again != disassemble(executable):
            raise RuntimeError("disassembling twice gives another text")
    return run_executable(executable, inputs(), rng, "asm")


def mutated_ir(rng: random.Random) -> str:
    """A module's text with some changes."""
    return mutated_text(rng.choice(ir_templates()), ir_templates(), rng)


def values_for(module: IRModule, name: str = "main") -> list[Any]:
    """An argument for each parameter: tensors of ones where it is one, small numbers otherwise."""
    found: list[Any] = []
    for param in module[name].params:
        info = param.struct_info
        if isinstance(info, TensorStructInfo):
            shape = [dim if isinstance(dim, int) else 3 for dim in info.shape or ()]
            small = int(np.prod([min(dim, 1 << 20) for dim in shape], dtype=object)) < 1 << 20
            dtype = info.dtype if info.dtype not in (None, "bfloat16") else "float32"
            found.append(np.ones(shape if small and min(shape, default=0) >= 0 else [1], dtype))
        else:
            found.append(3)
    return found


def run_ir(text: str, rng: random.Random) -> str:
    """Parses, compiles and runs."""
    module = guarded("parse", errors.CompileError, LOAD_BYTES, lambda: parse(text))
    if isinstance(module, Exception):
        return type(module).__name__
    if rng.random() < 0.1:
        again = guarded("parse(print)", (), LOAD_BYTES, lambda: parse(module.script()).script())
        if again != module.script():
            raise RuntimeError("a printed module parses to another one")
    check = rng.random() < 0.05
    executable = guarded("compile", errors.CompileError, COMPILE_BYTES, lambda: pyvm.compile(module, check=check))
    if isinstance(executable, Exception):
        return type(executable).__name__
    args = values_for(module) if "main" in module.functions else []
    return run_executable(executable, args, rng, "ir")
