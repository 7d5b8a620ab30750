"""Programs nested too deeply, in each form: a typed error that says how deep and what the limit is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import TensorProto, helper

import pyvm
from pyvm.frontend.onnx import functions
from pyvm.ir import parse
from vmcore.errors import CompileError, FrontendError, ParseError

SIGNATURE = "def main(x: Tensor((4,), float32), c: Tensor((), bool)) -> Tensor((4,), float32):\n"


def branches(n: int) -> str:
    """If within If, as text."""
    lines = ["    " * (i + 1) + "if c:" for i in range(n)]
    lines.append("    " * (n + 1) + f"y{n - 1} = exp(x)")
    for i in reversed(range(n)):
        lines += ["    " * (i + 1) + "else:", "    " * (i + 2) + f"y{i} = tanh(x)"]
        if i:
            lines.append("    " * (i + 1) + f"y{i - 1} = y{i}")
    return SIGNATURE + "\n".join(lines) + "\n    return y0\n"


TEXTS: dict[str, Callable[[int], str]] = {
    "branches": branches,
    "calls": lambda n: f"{SIGNATURE}    return {'exp(' * n}x{')' * n}\n",
    "tuples": lambda n: f"def main(x: Tensor((4,), float32)):\n    return {'(' * n}x{',)' * n}\n",
    "dims": lambda n: f"def main(x: Tensor(({'(' * n}n{'+1)' * n},), float32)):\n    return x\n",
    "minima": lambda n: f"def main(x: Tensor(({'min(' * n}n{',m)' * n},), float32)):\n    return x\n",
    "struct info": lambda n: f"def main(x: {'Tuple(' * n}Tensor((4,), float32){')' * n}):\n    return x\n",
    "attributes": lambda n: f"{SIGNATURE}    return reshape(x, shape={'(' * n}4{',)' * n})\n",
}


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("n", [250, 5000])
def test_text(form: str, n: int) -> None:
    if form == "branches" and n > 1000:
        n = 1000
    with pytest.raises(ParseError, match=r"nested too deeply: \d+ levels, the limit is \d+"):
        parse(TEXTS[form](n))


def test_passes_say_how_deep() -> None:
    module = parse(branches(190))
    assert parse(module.script()).script() == module.script()
    with pytest.raises(CompileError, match=r"branches and functions are nested 190 deep; .* limit is \d+"):
        pyvm.compile(module)
    pyvm.compile(parse(branches(60)))


HEAD = "import pyvm\nfrom pyvm import op\n"
FUNCTION = "@pyvm.function\ndef f(x: pyvm.Tensor[4, 'float32'], n: int):\n"
PROGRAMS: dict[str, Callable[[int], str]] = {
    "elif": lambda n: (
        f"{FUNCTION}    if n == 0:\n        y = x\n"
        + "".join(f"    elif n == {i}:\n        y = x * {i}.0\n" for i in range(1, n))
        + "    else:\n        y = -x\n    return y\n"
    ),
    "conditional expressions": lambda n: (
        f"{FUNCTION}    return " + "".join(f"x * {i}. if n == {i} else " for i in range(n)) + "x\n"
    ),
    "early returns": lambda n: (
        FUNCTION + "".join(f"    if n == {i}:\n        return x * {i}.0\n" for i in range(n)) + "    return x\n"
    ),
    "helpers": lambda n: (
        "def g0(x): return x\n"
        + "".join(f"def g{i}(x): return g{i - 1}(x) + 1.0\n" for i in range(1, n))
        + f"{FUNCTION}    return g{n - 1}(x)\n"
    ),
    "functions": lambda n: (
        "@pyvm.function\ndef g0(x: pyvm.Tensor[4, 'float32']): return x\n"
        + "".join(
            f"@pyvm.function\ndef g{i}(x: pyvm.Tensor[4, 'float32']): return g{i - 1}(x) + 1.0\n" for i in range(1, n)
        )
        + f"{FUNCTION}    return g{n - 1}(x)\n"
    ),
    "minus": lambda n: f"{FUNCTION}    return {'-' * n}x\n",
}


def imported(source: str, folder: Path) -> ModuleType:
    path = folder / "program.py"
    path.write_text(HEAD + source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", PROGRAMS)
def test_python(form: str, tmp_path: Path) -> None:
    pyvm.compile(imported(PROGRAMS[form](30), tmp_path).f)
    with pytest.raises(FrontendError, match=r"program.py:\d+: in \w+: .*nested too deeply; .* limit is \d+"):
        pyvm.compile(imported(PROGRAMS[form](2000), tmp_path).f)


def test_a_long_sum_is_not_deep(tmp_path: Path) -> None:
    pyvm.compile(imported(f"{FUNCTION}    return {' + '.join(['x'] * 1200)}\n", tmp_path).f, passes=None)


def onnx_functions(n: int, calls: int, recursive: bool = False) -> onnx.ModelProto:
    """n functions, each of which calls the one before it some times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for i in range(n):
        names = ["a", *(f"t{j}" for j in range(calls - 1)), "b"]
        callee = f"F{i - 1}" if i else f"F{n - 1}" if recursive else ""
        nodes = [
            helper.make_node(callee or "Exp", [x], [y], domain="own" if callee else "")
            for x, y in zip(names, names[1:], strict=False)
        ]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], nodes, opsets))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(f"F{n - 1}", ["x"], ["y"], domain="own")], "g", values[:1], values[1:])
    return helper.make_model(graph, functions=functions, opset_imports=opsets)


def test_onnx_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of calls is no recursion; what multiplies has a limit; recursion is named."""
    pyvm.compile(onnx_functions(100, 1))
    monkeypatch.setattr(functions, "_MAX_NODES", 2000)
    with pytest.raises(FrontendError, match="expand to more than 2000 nodes"):
        pyvm.compile(onnx_functions(16, 16))
    with pytest.raises(FrontendError, match="function 'F4' of the model calls itself"):
        pyvm.compile(onnx_functions(5, 2, recursive=True))
