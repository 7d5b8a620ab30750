"""Programs for the tests of passes: short builders, and text without comments to compare with."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable
from typing import Any

import pyvm
from pyvm.executable import VMExecutable
from pyvm.ir import BlockBuilder, Expr, IRModule, TensorStructInfo, Var, parse

_ANNOTATION = re.compile(r"^( *[^ :]+): .*? = ")


def tensor(*shape: Any, dtype: str = "float32") -> TensorStructInfo:
    """Struct info of a tensor."""
    return TensorStructInfo(shape, dtype)


def build(body: Callable[..., Any], dataflow: bool = True, **params: Any) -> IRModule:
    """A module whose "main" has these parameters (name=struct info); `body(bb, *params)` emits and returns a value."""
    bb = BlockBuilder()
    variables = [Var(name, info) for name, info in params.items()]
    with bb.function("main", variables):
        result: Expr
        if dataflow:
            with bb.dataflow():
                result = bb.emit_output(body(bb, *variables), "out")
        else:
            result = body(bb, *variables)
        bb.emit_func_output(result)
    return bb.get()


def compiled(program: str) -> VMExecutable:
    """A program in text form, compiled with the checks after every pass."""
    return pyvm.compile(parse(program), check=True)


def text(module: IRModule) -> str:
    """The text of a module without comments, types and error contexts."""
    lines = []
    for line in module.script(elide_constants=True).splitlines():
        code = line.split("  #")[0].rstrip()
        if line.strip().startswith(("@", "output(")):
            continue  # attributes of the function, what a dataflow block shows although nobody looks
        code = _ANNOTATION.sub(r"\1 = ", code)
        if "ErrorContext" in code:
            code = code[: code.index('"ErrorContext')] + "ctx)"
        if code.startswith("def "):
            code = code[: code.index("(")] + ":"
        lines.append(code)
    return "\n".join(lines).strip()


def expect(module: IRModule, expected: str) -> None:
    """Asserts that `text` gives this."""
    got, wanted = text(module).splitlines(), textwrap.dedent(expected).strip().splitlines()
    if got != wanted:
        raise AssertionError("\n" + "\n".join(difflib.unified_diff(wanted, got, "expected", "got", lineterm="", n=2)))
