"""Random Python functions of integers: the program computes what Python computes.

`python -m tests.property.test_python_functions --cases 1000` tries many.
"""

from __future__ import annotations

import argparse
import linecache
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyvm
from tests.pyvm.ir.test_parser import assert_round_trip

NAMES = ("a", "b", "c")


class Writer:
    """Draws the text of a function of three integers; every name has a value from the start."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.loops = 0
        self.budget = 14

    def pick(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def expression(self, depth: int = 0) -> str:
        kind = self.pick("name", "name", "number", "sum", "sum", "ratio", "choice") if depth < 2 else "name"
        if kind == "name":
            return str(self.pick(*NAMES))
        if kind == "number":
            return str(self.integer(-3, 5))
        if kind == "sum":
            return f"({self.expression(depth + 1)} {self.pick('+', '-', '*')} {self.expression(depth + 1)})"
        if kind == "ratio":
            return f"({self.expression(depth + 1)} {self.pick('//', '%')} {self.pick(2, 3, 7, -2)})"
        return f"({self.expression(depth + 1)} if {self.condition(1)} else {self.expression(depth + 1)})"

    def condition(self, depth: int = 0) -> str:
        left, right = self.expression(1), self.expression(1)
        one = f"{left} {self.pick('<', '<=', '>', '>=', '==', '!=')} {right}"
        if depth < 2 and self.pick(True, False, False):
            return f"({one} {self.pick('and', 'or')} {self.condition(depth + 1)})"
        return f"not {one}" if self.pick(True, False, False, False) else one

    def block(self, indent: str, in_loop: bool, in_range: bool = False) -> list[str]:
        lines: list[str] = []
        for _ in range(self.integer(1, 3)):
            self.budget -= 1
            lines += self.statement(indent, in_loop, in_range)
        return lines

    def statement(self, indent: str, in_loop: bool, in_range: bool) -> list[str]:
        kinds = ["assign"] * 3
        if self.budget > 0:
            kinds += ["if", "if", "leave"]
            if self.loops < 2:
                kinds += ["for", "while", "unrolled"]
        kind = self.pick(*kinds)
        inner = indent + "    "
        if kind == "assign":
            name = self.pick(*NAMES)
            if self.pick(True, False):
                return [f"{indent}{name} = {self.expression()} % 1000"]
            other = self.pick(*(n for n in NAMES if n != name))
            return [f"{indent}{name}, {other} = {other}, ({self.expression()}) % 100"]
        if kind == "leave":
            choices = ["return"]
            if in_loop:
                choices += ["break"] + (["continue"] if in_range else [])
            what = self.pick(*choices)
            value = f" {self.expression()}, {self.expression()}" if what == "return" else ""
            return [f"{indent}if {self.condition()}:", f"{inner}{what}{value}"]
        if kind == "if":
            lines = [f"{indent}if {self.condition()}:", *self.block(inner, in_loop, in_range)]
            if self.pick(True, False):
                lines += [f"{indent}else:", *self.block(inner, in_loop, in_range)]
            return lines
        self.loops += 1
        name = f"i{self.loops}{len(indent)}"
        if kind == "while":  # ends after a few steps, whatever the condition says
            head = [f"{indent}{name} = 0", f"{indent}while {name} < 4 and {self.condition()}:", f"{inner}{name} += 1"]
            lines = [*head, *self.block(inner, True)]
        elif kind == "for":
            bounds = self.pick("a % 5", "1, b % 6", "6, c % 4, -2", "3")
            use = f"{inner}{self.pick(*NAMES)} += {name}"
            lines = [f"{indent}for {name} in range({bounds}):", use, *self.block(inner, True, True)]
        else:
            use = f"{inner}{self.pick(*NAMES)} += {name}"
            lines = [f"{indent}for {name} in ({self.pick(1, 2)}, 3):", use, *self.block(inner, True, True)]
        self.loops -= 1
        return lines

    def text(self) -> str:
        body = self.block("    ", False)
        return "\n".join(["def main(a: int, b: int, c: int):", *body, "    return a - b, c", ""])


def check(text: str) -> None:
    """The program of a function gives what the function gives."""
    name = "<random function>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {}
    exec(compile(text, name, "exec"), namespace)
    function = pyvm.function(namespace["main"])
    assert_round_trip(function.module)
    machine = pyvm.VirtualMachine(function.compile(check=True))
    for args in ((0, 0, 0), (1, 2, 3), (7, -5, 12), (-3, 40, 2)):
        assert machine["main"](*args) == namespace["main"](*args), f"{args}\n{text}\n{function.module}"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_python_computes_the_same(data: st.DataObject) -> None:
    check(Writer(data).text())


class _Seeded(Writer):
    """Draws with Python's generator."""

    def __init__(self, seed: int) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.random = random.Random(seed)

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    cases = parser.parse_args().cases
    for seed in range(cases):
        check(_Seeded(seed).text())
    print(f"{cases} functions: the programs compute what Python computes")
