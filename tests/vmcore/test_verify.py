"""Every rule of the verifier has a program in assembler text that breaks exactly it.

One rule has none: code-size, since a program of more than 2**30 instructions is a text of gigabytes. What is broken by
hand at the end are objects that neither a file nor a text can hold: fields that are no integers, names that are no
strings, constants of foreign types and arrays that are not compact.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pytest

import vmcore.verify
from pyvm.asm import assemble
from pyvm.exec_builder import ExecBuilder
from pyvm.executable import VM_FUNC, FunctionInfo, VMExecutable
from tests.bench.verify import SHAPES, seconds
from tests.executables import sample
from vmcore.errors import VerifyError
from vmcore.isa import MAX_ARGS, MAX_REGISTERS, Opcode


def broken(executable: VMExecutable) -> VerifyError:
    with pytest.raises(VerifyError) as caught:
        executable.verify()
    return caught.value


# Rule, pc of the offence, program. The function is always @f.
CODE = [
    ("opcode", 0, "func @f() regs=1\n raw 5, 0\n ret %void"),
    ("opcode", 0, "func @f() regs=1\n raw 0, 0\n ret %void"),
    ("call-args", 0, "func @f() regs=1\n raw 1, 0, 0, -1\n ret %void"),
    ("call-args", 0, f"func @f() regs=1\n raw 1, 0, 0, {MAX_ARGS + 1}\n ret %void"),
    ("call-args", 0, f"func @f() regs=1\n raw 1, 0, 0, {2**63 - 1}\n ret %void"),
    ("truncated", 0, "func @f() regs=1\n raw 1, 0, 0, 3"),
    ("truncated", 0, "func @f() regs=1\n raw 4, 0"),
    ("truncated", 0, "func @f() regs=1\n raw 2"),
    ("instr-offset", 1, "func @f() regs=1\n raw 2, 0, 0\n ret %void"),
    ("callee-index", 0, "func @f() regs=1\n call f[1] ()\n ret %void"),
    ("callee-index", 0, "func @f() regs=1\n call f[-1] ()\n ret %void"),
    ("callee-arity", 0, "func @f() regs=1\n call @f (1)\n ret %void"),
    ("callee-arity", 0, "native @g(%0)\nfunc @f() regs=1\n call @g ()\n ret %void"),
    ("dst-register", 0, "func @f() regs=1\n call @g () -> %1\n ret %void"),
    ("dst-register", 0, "func @f() regs=1\n call @g () -> %-1\n ret %void"),
    ("dst-register", 0, f"func @f() regs=1\n call @g () -> %{2**54 + 2}\n ret %void"),
    ("arg-kind", 0, f"func @f() regs=1\n call @g (word({4 << 56}))\n ret %void"),
    ("arg-register", 0, "func @f(%0) regs=1\n call @g (%1)\n ret %void"),
    ("arg-register", 0, "func @f(%0) regs=1\n call @g (%-1)\n ret %void"),
    ("arg-register", 0, f"func @f(%0) regs=1\n call @g (%{2**54 + 2})\n ret %void"),
    ("arg-constant", 0, 'func @f() regs=1\n call @g (c[1])\n ret %void\nc[0] = "x"'),
    ("arg-constant", 0, "func @f() regs=1\n call @g (c[-1])\n ret %void"),
    ("arg-function", 0, "func @f() regs=1\n call @g (f[2])\n ret %void"),
    ("arg-function", 0, "func @f() regs=1\n call @g (f[-1])\n ret %void"),
    ("ret-register", 0, "func @f() regs=1\n ret %1"),
    ("ret-register", 0, f"func @f() regs=1\n ret %{2**54 + 2}"),
    ("if-register", 0, "func @f(%0) regs=1\n if %1, +2\n ret %void\n ret %void"),
    ("if-register", 0, "func @f(%0) regs=1\n if %void, +2\n ret %void\n ret %void"),
    ("if-offset", 0, "func @f(%0) regs=1\n if %0, +1\n ret %void"),
    ("if-offset", 1, "func @f(%0) regs=1\n call @g ()\n if %0, -1\n ret %void"),
    ("goto-offset", 0, "func @f() regs=1\n goto +0\n ret %void"),
    ("jump-target", 0, "func @f() regs=1\n goto +2\n ret %void\nfunc @g() regs=1\n ret %void"),
    ("jump-target", 1, "func @g() regs=1\n ret %void\nfunc @f() regs=1\n goto -1\n ret %void"),
    ("jump-target", 0, f"func @f() regs=1\n goto {2**63 - 1:+d}\n ret %void"),
    ("jump-target", 0, f"func @f() regs=1\n goto {-(2**63):+d}\n ret %void"),
    ("jump-target", 0, f"func @f(%0) regs=1\n if %0, {2**63 - 1:+d}\n ret %void"),
    ("fall-through", 0, "func @f() regs=1\n call @g ()"),
    ("fall-through", 2, "func @f(%0) regs=1\n call @g ()\n goto +1\n call @g ()"),
    ("undefined-register", 0, "func @f() regs=1\n ret %0"),
    ("undefined-register", 1, "func @f(%0) regs=3\n call @g (%0) -> %1\n call @g (%1, %2) -> %2\n ret %2"),
    ("undefined-register", 2, "func @f(%0) regs=2\n if %0, end\n call @g () -> %1\nend:\n ret %1"),
    ("undefined-register", 1, "func @f(%0) regs=2\n goto test\nbody:\n if %1, test\n call @g () -> %1\n"
     "test:\n if %0, end\n goto body\nend:\n ret %0"),
    ("undefined-register", 0, "func @f() regs=1\nagain:\n call @g (%0) -> %0\n goto again"),
    # Code that no path reaches is checked as well.
    ("ret-register", 1, "func @f() regs=1\n ret %void\n ret %1"),
    ("jump-target", 1, "func @f() regs=1\n ret %void\n goto +5"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "pc", "text"), CODE, ids=[f"{rule}-{i}" for i, (rule, _, _) in enumerate(CODE)])
def test_code_rule(rule: str, pc: int, text: str) -> None:
    error = broken(assemble(text))
    assert (error.rule, error.function, error.pc) == (rule, "f", pc), str(error)
    assert rule in str(error) and "@f" in str(error) and str(pc) in str(error)


FLOW = 16_500  # so many registers through so many blocks are more steps than the verifier takes
TABLE = [
    ("function-kind", "f", "entry @f kind=3 end=1 args=0 regs=1\ncode\n ret %void"),
    ("function-kind", "f", "entry @f kind=-1"),
    ("function-name", None, 'entry @""'),
    ("function-name", None, 'func @"a\\u0000b"() regs=1\n ret %void'),
    ("function-name", None, 'func @"\\ud800"() regs=1\n ret %void'),
    ("function-name-unique", "f", "func @f() regs=1\n ret %void\nentry @f"),
    ("packed-fields", "f", "entry @f args=2"),
    ("packed-fields", "f", "entry @f end=2"),
    ("packed-fields", "f", "entry @f start=1"),
    ("packed-fields", "f", "entry @f regs=2"),
    ("packed-fields", "f", 'entry @f params=["a"]'),
    ("function-range", "f", "func @f() regs=1"),
    ("function-range", "f", "entry @f kind=2 start=1 args=0 regs=1"),
    ("function-range", "f", "entry @f kind=1 start=-1 end=1 args=0 regs=1\ncode\n ret %void"),
    ("function-range", "f", "entry @f kind=1 start=0 end=2 args=0 regs=1\ncode\n ret %void"),
    ("function-range", "f", "entry @f kind=1 start=1 end=0 args=0 regs=1\ncode\n ret %void"),
    ("function-range", "f", f"entry @f kind=1 end={2**64} args=0 regs=1\ncode\n ret %void"),
    ("function-args", "f", "func @f args=-3 regs=1\n ret %void"),
    ("function-args", "f", "func @f(%0, %1) regs=1\n ret %void"),
    ("function-args", "f", f"func @f args={MAX_ARGS + 1} regs={MAX_REGISTERS}\n ret %void"),
    ("register-limit", "f", f"func @f() regs={MAX_REGISTERS + 1}\n ret %void"),
    ("register-limit", "f", "func @f() regs=-1\n ret %void"),
    ("native-registers", "f", "native @f(%0) regs=1"),
    ("param-names", "f", 'func @f args=2 params=["a"] regs=2\n ret %void'),
    ("param-names", "f", 'func @f args=1 params=["\\ud800"] regs=2\n ret %void'),
    ("function-overlap", "f", "func @g() regs=1\n ret %void\n ret %void\n"
     "entry @f kind=1 start=1 end=2 args=0 regs=1"),
    ("orphan-code", None, "code\n ret %void"),
    ("orphan-code", None, "code\n ret %void\nfunc @f() regs=1\n ret %void"),
    ("orphan-code", None, "func @f() regs=1\n ret %void\ncode\n ret %void\nfunc @g() regs=1\n ret %void"),
    ("instr-offset", None, "func @f() regs=1\n ret %void\nwords 7"),
    ("instr-offset", "f", "func @f() regs=1\n call @g ()\n ret %void\noffsets 0, 3"),
    ("instr-offset", "f", "func @f() regs=1\n call @g ()\n ret %void\noffsets 1, 4"),
    ("instr-offset", "f", "func @f() regs=1\n call @g ()\n ret %void\noffsets 0, 5"),
    ("instr-offset", "f", f"func @f() regs=1\n call @g ()\n ret %void\noffsets 0, {2**63 - 1}"),
    ("instr-offset", "f", "func @f() regs=1\n call @g ()\n ret %void\noffsets 0, -4"),
    ("instr-offset", "f", "func @f() regs=1\n call @g ()\n ret %void\noffsets -1, 4"),
    ("constant-kind", None, "c[0] = any none"),
    ("constant-kind", None, "c[0] = any true"),
    ("constant-kind", None, 'c[0] = any [1, "x"]'),
    ("constant-kind", None, f"c[0] = any {2**63}"),
    ("constant-kind", None, 'c[0] = "\\ud800"'),
    ("memory-scope", None, 'c[0] = 1\nscope c[0] = "\\ud800"'),
    ("debug-info", None, 'func @f() regs=1\n ret %void\ndebug ["x", none]'),
    ("flow-limit", "f", "".join((
        f"func @f() regs={FLOW}\n", *(f" call @g () -> %{i}\n" for i in range(FLOW)), " goto +1\n" * FLOW,
        *(f" call @g ({', '.join(f'%{i}' for i in range(at, at + 500))})\n" for at in range(0, FLOW, 500)),
        " ret %void",
    ))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "function", "text"), TABLE, ids=[f"{t[0]}-{i}" for i, t in enumerate(TABLE)])
def test_table_rule(rule: str, function: str | None, text: str) -> None:
    error = broken(assemble(text))
    assert (error.rule, error.function) == (rule, function), str(error)


def test_every_rule_has_a_text() -> None:
    described = re.findall(r"[a-z]+(?:-[a-z]+)+|opcode|truncated", vmcore.verify.__doc__.split("\n\nCost")[0])
    assert {rule for rule, *_ in (*CODE, *TABLE)} == set(described) - {"load-time", "well-formed"} - {"code-size"}


def edited(index: int, **fields: object) -> VMExecutable:
    executable = sample()
    for key, value in fields.items():
        setattr(executable.functions[index], key, value)
    return executable


@pytest.mark.parametrize(
    ("rule", "executable"),
    [
        ("function-name", edited(0, name=None)),
        ("function-range", edited(0, start_instr="x")),
        ("param-names", edited(0, param_names=["a", 1])),
    ],
)
def test_fields_that_no_file_holds(rule: str, executable: VMExecutable) -> None:
    assert broken(executable).rule == rule


@pytest.mark.parametrize(
    "constant", [b"bytes", np.zeros((4, 2)).T, np.zeros(2, ">f4"), np.zeros(1, object)], ids=lambda c: type(c).__name__
)
def test_constants_that_no_file_holds(constant: object) -> None:
    executable = sample()
    executable.constants[2] = constant  # type: ignore[call-overload]
    assert broken(executable).rule == "constant-kind"


def test_memory_scopes_that_no_file_holds() -> None:
    executable = sample()
    executable.memory_scopes = {0: 3}  # type: ignore[dict-item]
    assert broken(executable).rule == "memory-scope"


ACCEPTED = [
    "func @f() regs=0\n ret %void",
    "func @f() regs=0\n ret %vm",
    "func @f() regs=0\n call @g (%void, %vm, -36028797018963968) -> %vm\n ret %void",
    "func @f(%0) regs=2\n if %0, a\n call @g () -> %1\n goto b\na:\n call @h () -> %1\nb:\n ret %1",
    "func @f(%0) regs=2\n call @g () -> %1\nagain:\n call @g (%1) -> %1\n if %1, end\n goto again\nend:\n ret %1",
    # A register that only unreachable code reads before it is written.
    "func @f() regs=1\n ret %void\n ret %0",
    # Infinite loops are no offence of the file.
    "func @f() regs=0\na:\n call @g ()\n goto a",
    "func @f(%0) regs=1\n call @f (%0) -> %0\n ret %0",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted(text: str) -> None:
    assemble(text).verify()


def test_sample_is_accepted() -> None:
    sample().verify()
    VMExecutable().verify()


def undefined_paths(code: list[list[int]], num_args: int) -> set[tuple[int, int]]:
    """Oracle: (pc, register) of reads that an execution path reaches without a write, by brute force over states."""
    from vmcore.isa import unpack_arg

    bad, seen, work = set(), set(), [(0, frozenset(range(num_args)))]
    while work:
        pc, written = work.pop()
        if (pc, written) in seen:
            continue
        seen.add((pc, written))
        words = code[pc]
        reads = [v for k, v in map(unpack_arg, words[4:]) if k == 0] if words[0] == 1 else words[1:2] * (words[0] != 3)
        bad |= {(pc, r) for r in reads if r not in written and r < 2**54}
        if words[0] == Opcode.OP_CALL:
            work.append((pc + 1, written | {words[1]}))
        elif words[0] == Opcode.OP_GOTO:
            work.append((pc + words[1], written))
        elif words[0] == Opcode.OP_IF:
            work += [(pc + 1, written), (pc + words[2], written)]
    return bad


def test_definition_before_use_agrees_with_paths() -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(3000):
        n, regs = int(rng.integers(2, 9)), 4
        code: list[list[int]] = []
        for pc in range(n):
            kind = int(rng.integers(0, 6)) if pc < n - 1 else int(rng.integers(4, 6))
            if kind == 3 and pc < n - 2:
                code.append([4, int(rng.integers(0, regs)), int(rng.integers(2, n - pc))])
            elif kind == 4 and n > 1:
                target = int(rng.choice([t for t in range(n) if t != pc]))
                code.append([3, target - pc])
            elif kind == 5:
                code.append([2, int(rng.integers(0, regs))])
            else:
                args = [int(r) for r in rng.integers(0, regs, size=int(rng.integers(0, 2)))]
                code.append([1, int(rng.integers(0, regs)), 1, len(args), *args])
        if code[-1][0] not in (2, 3):
            code[-1] = [2, 0]
        sizes = [len(words) for words in code]
        executable = VMExecutable(
            [FunctionInfo(VM_FUNC, "f", 0, n, 1, regs), FunctionInfo(0, "g")],
            instr_offset=np.cumsum([0, *sizes[:-1]]),
            instr_data=[w for words in code for w in words],
        )
        bad = undefined_paths(code, 1)
        verdicts.append(not bad)
        if bad:
            error = broken(executable)
            assert error.rule == "undefined-register"
            assert error.pc in {pc for pc, _ in bad}
        else:
            executable.verify()
    assert 300 < sum(verdicts) < 2700


def test_many_registers_live_across_blocks() -> None:
    for missing in (None, 0, 63, 64, 199):
        b = ExecBuilder()
        with b.function("f", 1):
            for i in range(200):
                if i != missing:
                    b.emit_call("g", [], dst=1 + i)
            join = b.label()
            b.emit_if(b.r(0), join)
            b.emit_call("g", [], dst=1 if missing is None else 1 + missing)
            b.place(join)
            b.emit_call("use", [b.r(1 + i) for i in range(200)])
            b.emit_ret()
        executable = b.get(formalize=False, check=False)
        if missing is None:
            executable.verify()
        else:
            assert f"register {1 + missing} " in str(broken(executable))


def test_large_programs_are_fast() -> None:
    """100,000 instructions; measured far above the budget of 200 MB of code per second, asserted with slack."""
    b = ExecBuilder()
    with b.function("f", 1):
        for i in range(100_000):
            b.emit_call("g", [b.r(i % 1000), i], dst=i % 1000 + 1)
        b.emit_ret(b.r(1))
    executable = b.get(formalize=False, check=False)
    start = time.perf_counter()
    executable.verify()
    assert executable.instr_data.nbytes / (time.perf_counter() - start) > 50e6


def test_adversarial_flow_is_bounded() -> None:
    """What would take quadratic time is refused after a stated number of steps."""
    rule, _, text = TABLE[-1]
    executable = assemble(text)
    start = time.perf_counter()
    assert broken(executable).rule == rule == "flow-limit"
    assert time.perf_counter() - start < 10
    assert FLOW**2 > vmcore.verify.MAX_FLOW_WORK == 2**28


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_adversarial_control_flow_takes_linear_time(shape: Callable[[int], VMExecutable]) -> None:
    """What a tenth of the size takes, ten times, with much slack; `python -m tests.bench.verify` prints MB/s."""
    small, large = seconds(shape(20_000)), seconds(shape(200_000))
    assert large < 40 * small + 0.02


def test_many_functions_with_large_frames_are_cheap() -> None:
    """The analysis of a function costs what its code costs, not what its register file is said to be."""
    text = "".join(f"func @f{i}() regs={MAX_REGISTERS}\n ret %void\n" for i in range(2000))
    executable = assemble(text)
    start = time.perf_counter()
    executable.verify()
    assert time.perf_counter() - start < 1
