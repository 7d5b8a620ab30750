"""Random verified programs: calls, loops that end, branches, closures, tuples, and errors in the middle."""

from __future__ import annotations

import random

from pyvm.exec_builder import ExecBuilder
from pyvm.executable import VMExecutable
from vmcore.types import Shape

_VALUES = (0, 1, -3, 2.5, "text", Shape((2, 3)), None)


class _Body:
    """Writes one function; knows which registers are defined at the current point."""

    def __init__(self, b: ExecBuilder, rng: random.Random, defined: list[int], callees: list[tuple[str, int]]) -> None:
        self.b, self.rng, self.defined, self.callees = b, rng, defined, callees
        self.next = max(defined, default=-1) + 1

    def fresh(self) -> int:
        """A register to write: a new one, or one that is overwritten."""
        if self.defined and self.rng.random() < 0.3:
            return self.rng.choice(self.defined)
        self.next += 1
        return self.next - 1

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

    def step(self, depth: int) -> None:
        choice = self.rng.random()
        if choice < 0.2:
            self.call("vm.builtin.copy", [self.arg()])
        elif choice < 0.3:
            self.call("vm.builtin.make_tuple", [self.arg() for _ in range(self.rng.randrange(4))])
        elif choice < 0.36:
            self.call("vm.builtin.tuple_getitem", [self.arg(), self.rng.randrange(3)])
        elif choice < 0.42:
            self.call("vm.builtin.null_value", [])
        elif choice < 0.5:
            self.call("t.add", [self.arg(), self.arg()])
        elif choice < 0.56:
            self.call("t.identity", [self.arg()], dropped=self.rng.random() < 0.3)
        elif choice < 0.68 and self.callees:
            name, n = self.rng.choice(self.callees)
            self.call(name, [self.arg() for _ in range(n)], dropped=self.rng.random() < 0.1)
        elif choice < 0.8 and self.callees:
            self.closure()
        elif choice < 0.9 and depth < 3:
            self.branch(depth)
        elif depth < 2:
            self.loop(depth)

    def closure(self) -> None:
        name, n = self.rng.choice(self.callees)
        captured = self.rng.randrange(n + 1)
        register = self.fresh()
        self.b.emit_call(
            "vm.builtin.make_closure", [self.b.f(name)] + [self.arg() for _ in range(captured)], dst=self.b.r(register)
        )
        self.write(register)
        given = n - captured if self.rng.random() < 0.95 else n
        self.call(
            "vm.builtin.invoke_closure", [self.b.vm_state(), self.b.r(register)] + [self.arg() for _ in range(given)]
        )

    def branch(self, depth: int) -> None:
        condition = self.fresh()
        value = self.rng.choice((0, 1, 1, 0, "neither")) if self.rng.random() < 0.9 else self.arg()
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


def random_program(rng: random.Random) -> tuple[VMExecutable, list[object]]:
    """An executable with a function `main`, and arguments for it.

    Packed functions: t.add, t.identity, t.less. Values are such that Python and the virtual machine agree on which
    operations fail, and with which builtin exception.
    """
    b = ExecBuilder()
    callees: list[tuple[str, int]] = []
    names = [f"f{i}" for i in range(rng.randrange(4))] + ["main"]
    n_args = 0
    for name in names:
        n_args = rng.randrange(4)
        with b.function(name, num_inputs=n_args):
            body = _Body(b, rng, list(range(n_args)), callees)
            for _ in range(rng.randrange(1, 12)):
                body.step(0)
            if body.defined:
                b.emit_ret(b.r(rng.choice(body.defined)))
            else:
                b.emit_ret(b.void_arg())
        callees = [*callees, (name, n_args)]
    return b.get(), [rng.choice((*_VALUES, (1, "a"), (0, (2, None)))) for _ in range(n_args)]
