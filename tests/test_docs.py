"""The worked examples in docstrings run: a new pass, a new operator, a Python function."""

from __future__ import annotations

import inspect
import linecache
import re
import textwrap
from types import ModuleType
from typing import Any

import numpy as np

import pyvm
import pyvm.frontend.python
from pyvm import op
from pyvm.ir import parse
from pyvm.op import registry
from pyvm.transform import DEFAULT_PIPELINE


def example(module: ModuleType) -> ModuleType:
    """The first code block of a module's docstring, run as a module of its own; its source can be read."""
    found = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(module) + "\n")
    assert found
    code = textwrap.dedent(found[1])
    name = f"example_of_{module.__name__.replace('.', '_')}"
    linecache.cache[f"<{name}>"] = (len(code), None, code.splitlines(keepends=True), f"<{name}>")
    made = ModuleType(name)
    made.__dict__.update(np=np, pyvm=pyvm)
    exec(compile(code, f"<{name}>", "exec"), made.__dict__)
    return made


def test_a_new_pass() -> None:
    cancel_negations = example(pyvm.transform).cancel_negations
    module = parse(
        """
def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return relu(neg(neg(x)))
"""
    )
    assert "neg" in str(module)
    executable = pyvm.compile(module, passes=[cancel_negations, *DEFAULT_PIPELINE], check=True)
    assert "kernel.neg" not in executable.as_text() and "kernel.relu" in executable.as_text()
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(pyvm.VirtualMachine(executable)["main"](x), [0, 2])


def test_a_new_operator() -> None:
    try:
        hard_tanh = example(op).hard_tanh
        module = parse(
            """
def main(x: Tensor((n,), float32)) -> Tensor((n,), float32):
    return hard_tanh(x, limit=2.0)
"""
        )
        x = np.array([-3, -1, 0.5, 9], np.float32)
        got = pyvm.VirtualMachine(pyvm.compile(module, check=True))["main"](x)
        np.testing.assert_array_equal(got, np.clip(x, -2, 2))
        assert registry.get_op("hard_tanh").evaluate({"limit": 2.0}, x).max() == 2
        assert hard_tanh.__doc__
    finally:
        registry._ops.pop("hard_tanh", None)


def test_a_python_function() -> None:
    main: Any = example(pyvm.frontend.python).main
    np.testing.assert_array_equal(main(np.ones((2, 4), np.float32), 3), np.full((2, 4), 4))
    np.testing.assert_array_equal(main(np.ones((1, 4), np.float32), 0), np.full((1, 4), -1))


def public() -> dict[str, Any]:
    """Everything a user meets under `pyvm`: the names, and what is public of the classes among them."""
    found = {}
    for name in sorted(set(pyvm.__all__) - {"__version__"}):
        thing = found[name] = getattr(pyvm, name)
        if inspect.isclass(thing):
            found |= {f"{name}.{key}": getattr(thing, key) for key in vars(thing) if not key.startswith("_")}
    return found


def test_help_of_every_public_name() -> None:
    """A docstring, and a signature that `help` and editors can show."""
    things = public()
    assert len(things) > 80 and {"VirtualMachine.profile", "Tensor.numpy", "deadline"} <= set(things)
    for name, thing in things.items():
        if callable(thing) or isinstance(thing, property) or inspect.isgetsetdescriptor(thing):
            assert len(inspect.getdoc(thing) or "") >= len("A label."), name
        if callable(thing) and not inspect.isclass(thing):
            assert inspect.signature(thing), name
