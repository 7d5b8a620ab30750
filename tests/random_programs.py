"""Random verified programs: calls, loops and recursion that end, branches, closures, tuples, tensors, errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from pyvm.exec_builder import ExecBuilder
from pyvm.executable import VMExecutable
from vmcore.types import Shape

_VALUES = (0, 1, -3, 2.5, "text", Shape((2, 3)), None)
_ERRORS = (ZeroDivisionError, IndexError, TypeError, ValueError)


class TooMuch(Exception):
    """A program that the oracle need not follow: too many steps, or a value too large."""


def _scalar(*values: Any) -> None:
    """Tensors are not for these functions: numpy and the tensors of a machine compute differently with scalars."""
    if any(hasattr(value, "__dlpack__") for value in values):
        raise TypeError("a tensor")


def _bounded(a: Any, b: Any) -> Any:
    """a + b that stays small: integers wrap at 32 bits, sequences stop to grow."""
    _scalar(a, b)
    if isinstance(a, int) and isinstance(b, int):
        return (int(a) + int(b) + 2**31) % 2**32 - 2**31
    total = a + b
    return a if isinstance(total, (str, tuple)) and len(total) > 40 else total


def _sub(a: Any, b: Any) -> Any:
    _scalar(a, b)
    return _bounded(a, -b)


def _less(a: Any, b: Any) -> bool:
    _scalar(a, b)
    return a < b


def _small(a: Any) -> int:
    _scalar(a)
    if not isinstance(a, (int, float)):
        raise TypeError("not a number")
    return int(a) % 5


def _fail(kind: Any) -> None:
    raise _ERRORS[kind % 4 if isinstance(kind, int) else 2]("as the program asks")


# What programs call beside builtins. Tuples arrive as tuples, shapes as Shape, tensors as arrays.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "t.add": _bounded,
    "t.sub": _sub,
    "t.less": _less,
    "t.small": _small,
    "t.identity": lambda x: x,
    "t.fail": _fail,
}


class _Body:
    """Writes one function; knows which registers are defined at the current point."""

    def __init__(
        self, b: ExecBuilder, rng: random.Random, defined: list[int], callees: list[tuple[str, int]],
        drops: bool = True,
    ) -> None:
        self.drops = drops
        self.b, self.rng, self.defined, self.callees = b, rng, defined, callees
        self.next = max(defined, default=-1) + 1
        self.protected: set[int] = set()  # never overwritten
        self.numbers: set[int] = set()  # registers that were written with numbers last, and with tuples
        self.tuples: set[int] = set()

    def fresh(self) -> int:
        """A register to write: a new one, or one that is overwritten."""
        if self.defined and self.rng.random() < 0.3:
            register = self.rng.choice(self.defined)
            if register not in self.protected:
                return register
        self.next += 1
        return self.next - 1

    def number(self) -> object:
        """What is a number if all went well."""
        known = [r for r in self.defined if r in self.numbers]
        if known and self.rng.random() < 0.7:
            return self.b.r(self.rng.choice(known))
        return self.arg() if self.rng.random() < 0.05 else self.rng.randrange(-3, 9)

    def args(self, n: int) -> list[object]:
        """Arguments for a function; the first is a number mostly, since recursion counts it down."""
        return [self.number() if i == 0 else self.arg() for i in range(n)]

    def array(self) -> object:
        """What is a tuple if all went well."""
        known = [r for r in self.defined if r in self.tuples]
        return self.b.r(self.rng.choice(known)) if known and self.rng.random() < 0.95 else self.arg()

    def arg(self) -> object:
        if self.defined and self.rng.random() < 0.75:
            return self.b.r(self.rng.choice(self.defined))
        value = self.rng.choice(_VALUES)
        return self.b.void_arg() if value is None else value

    def write(self, register: int) -> None:
        if register not in self.defined:
            self.defined.append(register)

    def call(self, name: str, args: list[object], dropped: bool = False) -> None:
        if dropped:
            self.b.emit_call(name, args)
            return
        register = self.fresh()
        self.b.emit_call(name, args, dst=self.b.r(register))
        self.write(register)
        self.numbers.discard(register)
        self.tuples.discard(register)
        if name in ("t.add", "t.sub", "t.small"):
            self.numbers.add(register)
        elif name == "vm.builtin.make_tuple":
            self.tuples.add(register)

    def step(self, depth: int) -> None:
        choice = self.rng.random()
        if choice < 0.04:
            self.rare()
        elif choice < 0.2:
            self.call("vm.builtin.copy", [self.arg()])
        elif choice < 0.3:
            self.call("vm.builtin.make_tuple", [self.arg() for _ in range(self.rng.randrange(4))])
        elif choice < 0.36:
            self.call("vm.builtin.tuple_getitem", [self.array(), self.rng.choice((0, 0, 0, 1, 2))])
        elif choice < 0.42:
            self.call("vm.builtin.null_value", [])
        elif choice < 0.5:
            self.call("t.add", [self.number(), self.number()])
        elif choice < 0.56:
            self.call("t.identity", [self.arg()], dropped=self.rng.random() < 0.3)
        elif choice < 0.68 and self.callees:
            name, n = self.rng.choice(self.callees)
            self.call(name, self.args(n), dropped=self.drops and self.rng.random() < 0.1)
        elif choice < 0.8 and self.callees:
            self.closure()
        elif choice < 0.9 and depth < 3:
            self.branch(depth)
        elif depth < 2:
            self.loop(depth)

    def rare(self) -> None:
        """What often fails: with other values than it is made for."""
        choice = self.rng.random()
        if choice < 0.2:
            self.call("vm.builtin.shape_of", [self.arg()])
        elif choice < 0.35:
            self.call("vm.builtin.reshape", [self.arg(), self.rng.choice((Shape((3, 2)), Shape((2,)), self.arg()))])
        elif choice < 0.5:
            self.call("vm.builtin.read_if_cond", [self.rng.choice((0, 1, self.arg()))])
        elif choice < 0.7:
            self.call("vm.builtin.check_tuple_info", [self.arg(), self.rng.randrange(3), "here: "], dropped=True)
        elif choice < 0.8:
            self.call("vm.builtin.invoke_closure", [self.b.vm_state(), self.arg(), self.arg()])
        elif choice < 0.9:
            self.call("t.sub", [self.arg(), self.arg()])
        else:
            self.call("t.fail", [self.arg()], dropped=True)

    def recursive(self, name: str, n_args: int) -> None:
        """`name` calls itself with a smaller first argument until that is 0; the others change on the way."""
        count, condition, done = self.next, self.next + 1, self.b.label()
        self.next += 2
        self.b.emit_call("t.less", [0, self.b.r(0)], dst=self.b.r(condition))
        self.b.emit_if(self.b.r(condition), done)
        self.b.emit_call("t.add", [self.b.r(0), -1], dst=self.b.r(count))
        before = list(self.defined)
        for _ in range(self.rng.randrange(3)):
            self.step(2)
        self.call(name, [self.b.r(count)] + [self.arg() for _ in range(n_args - 1)])
        self.defined = before
        self.b.place(done)

    def closure(self) -> None:
        name, n = self.rng.choice(self.callees)
        captured, values = self.rng.randrange(n + 1), self.args(n)
        register = self.fresh()
        self.b.emit_call(
            "vm.builtin.make_closure", [self.b.f(name), *values[n - captured :]], dst=self.b.r(register)
        )
        self.write(register)
        given = n - captured if self.rng.random() < 0.97 else n
        if self.rng.random() < 0.3:  # as a first-class value, through another function
            self.call("t.identity", [self.b.r(register)])
        else:
            self.call("vm.builtin.invoke_closure", [self.b.vm_state(), self.b.r(register), *values[:given]])

    def branch(self, depth: int) -> None:
        condition = self.fresh()
        value = self.rng.choice((0, 1)) if self.rng.random() < 0.96 else self.rng.choice(("neither", self.arg()))
        self.b.emit_call("vm.builtin.copy", [value], dst=self.b.r(condition))
        self.write(condition)
        other, end = self.b.label(), self.b.label()
        self.b.emit_if(self.b.r(condition), other)
        before = list(self.defined)
        for _ in range(self.rng.randrange(1, 4)):
            self.step(depth + 1)
        after_true = self.defined
        self.b.emit_goto(end)
        self.b.place(other)
        self.defined = list(before)
        for _ in range(self.rng.randrange(1, 4)):
            self.step(depth + 1)
        self.b.emit_call("vm.builtin.null_value", [], dst=self.b.r(condition))
        self.b.place(end)
        self.defined = [r for r in after_true if r in self.defined]

    def loop(self, depth: int) -> None:
        counter, condition = self.next, self.next + 1
        self.next += 2
        self.b.emit_call("vm.builtin.copy", [0], dst=self.b.r(counter))
        again, done = self.b.label(), self.b.label()
        self.b.place(again)
        self.b.emit_call("t.less", [self.b.r(counter), self.rng.randrange(4)], dst=self.b.r(condition))
        self.b.emit_if(self.b.r(condition), done)
        before = list(self.defined)
        for _ in range(self.rng.randrange(1, 3)):
            self.step(depth + 1)
        self.b.emit_call("t.add", [self.b.r(counter), 1], dst=self.b.r(counter))
        self.b.emit_goto(again)
        self.b.place(done)
        self.defined = before  # counter and condition stay out of reach of other steps


def random_program(rng: random.Random, drops: bool = True) -> tuple[VMExecutable, list[object]]:
    """An executable with a function `main`, and arguments for it.

    Parameters
    ----------
    rng : random.Random
    drops : bool
        Results of VM functions are dropped sometimes, which TVM's VM takes for an error.

    Returns
    -------
    VMExecutable, list
        Packed functions are builtins and those of FUNCTIONS. Values are such that Python and the virtual machine agree
        on which operations fail, and with which builtin exception.
    """
    b = ExecBuilder()
    callees: list[tuple[str, int]] = []
    names = [f"f{i}" for i in range(rng.randrange(4))] + ["main"]
    n_args = 0
    for name in names:
        n_args = rng.randrange(4)
        recursive = name != "main" and n_args > 0 and rng.random() < 0.4
        with b.function(f"{name}_again" if recursive else name, num_inputs=n_args):
            body = _Body(b, rng, list(range(n_args)), callees, drops)
            if recursive:
                body.protected = {0}
            for _ in range(rng.randrange(1, 4 if recursive else 12)):
                body.step(0)
            if recursive:
                body.recursive(f"{name}_again", n_args)
            if body.defined:
                b.emit_ret(b.r(rng.choice(body.defined)))
            else:
                b.emit_ret(b.void_arg())
        if recursive:  # callers may pass any number
            with b.function(name, num_inputs=n_args):
                b.emit_call("t.small", [b.r(0)], dst=b.r(n_args))
                b.emit_call(f"{name}_again", [b.r(n_args)] + [b.r(i) for i in range(1, n_args)], dst=b.r(n_args))
                b.emit_ret(b.r(n_args))
        callees = [*callees, (name, n_args)]
    numbers = (0, 1, 5, -3, 2.5)
    values = (*_VALUES, (1, "a"), (0, (2, None)), np.arange(6, dtype=np.float32).reshape(2, 3), np.array(1))
    return b.get(), [rng.choice(numbers if i == 0 and rng.random() < 0.7 else values) for i in range(n_args)]
