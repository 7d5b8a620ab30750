"""Assembler and disassembler are inverse; the assembler accepts what people write and says where they err."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from pyvm.asm import assemble, disassemble, instruction_text
from pyvm.executable import PACKED_FUNC, VM_FUNC, DebugInfo, FunctionInfo, VMExecutable
from tests.executables import SAMPLE, executables, mutations, sample
from tests.reference_vm import run
from vmcore.errors import ExecutableError, FormatError
from vmcore.isa import IMMEDIATE_MAX, unpack_arg
from vmcore.types import BitsArray, DataType, Shape, tensor_dtype

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.vmasm"))


@given(executables())
@settings(max_examples=120, deadline=None)
def test_assemble_is_the_inverse_of_disassemble(executable: VMExecutable) -> None:
    text = disassemble(executable)
    assert assemble(text) == executable
    assert disassemble(assemble(text)) == text


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_files_are_canonical(path: Path) -> None:
    """A golden file is verified text exactly as the disassembler prints it, after lines of comment."""
    text = path.read_text()
    executable = assemble(text)
    executable.verify()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith(";"))
    assert comment + disassemble(executable) == text
    assert VMExecutable.from_bytes(executable.to_bytes()).as_text() == executable.as_text()


def golden(name: str) -> VMExecutable:
    return assemble((GOLDEN[0].parent / f"{name}.vmasm").read_text())


def test_golden_control_flow() -> None:
    executable = golden("control_flow")
    functions = {"add": lambda a, b: a + b, "less": lambda a, b: a < b, "sub": lambda a, b: a - b}
    assert [run(executable, "fibonacci", [n], functions) for n in range(10)] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert [run(executable, "sum_below", [n], functions) for n in range(6)] == [0, 0, 1, 3, 6, 10]


def test_golden_values() -> None:
    values = run(golden("values"), "main", [])
    assert values[:7] == (None, -1, IMMEDIATE_MAX + 1, 0.5, "text", Shape((2, 3)), DataType("int8"))
    np.testing.assert_array_equal(values[7], np.array([[1, 2.5], [-0.0, math.inf]], np.float32))
    assert math.isnan(values[8])


def test_golden_shapes() -> None:
    def double(x: np.ndarray, out: np.ndarray) -> None:
        out[...] = 2 * x

    for n in (0, 1, 5):
        x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
        np.testing.assert_array_equal(
            run(golden("shapes"), "main", [x], {"kernel.double": double}), 2 * x.reshape(3 * n)
        )
    with pytest.raises(ValueError, match="match_cast"):
        run(golden("shapes"), "main", [np.zeros((2, 4), np.float32)], {"kernel.double": double})


def test_golden_closures() -> None:
    functions = {"sub": lambda a, b: a - b}
    assert run(golden("closures"), "main", [10], functions) == (10 - 3, 3 - 10, 10 - 3)


def test_sample_text() -> None:
    executable = sample()
    executable.verify()
    text = disassemble(executable)
    assert assemble(text) == executable
    assert 'call  @kernel.add (%0, c[0], 0.5, shape(2, 3), %void, %vm) -> %2  ! "add (Add-14)"' in text
    assert "c[0] = tensor float32 (2, 3) [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]" in text
    assert "c[6] = tensor bfloat16 (2) base64 AQIDBA==" in text
    assert "table" not in text, "the order of first mention needs no table"


def test_literals_are_numbered_around_declared_constants() -> None:
    executable = assemble('func @f()\n call @g ("b", "a", 2.0, "b")\n ret %void\nc[0] = "x"\nc[2] = "a"\n')
    assert executable.constants == ["x", "b", "a", 2.0]
    assert [unpack_arg(int(w))[1] for w in executable.instr_data[4:8]] == [1, 2, 3, 1]


def test_integers() -> None:
    big = 2**55
    executable = assemble(f"func @f()\n call @g (0x10, -1, {big - 1}, {big}, {-big}, {-big - 1})\n ret %void")
    assert executable.constants == [big, -big - 1]
    assert [unpack_arg(int(w)) for w in executable.instr_data[4:10]] == [
        (1, 16), (1, -1), (1, big - 1), (2, 0), (1, -big), (2, 1),
    ]  # fmt: skip
    # An integer that needs no constant but is one keeps its declaration.
    pool = assemble("func @f()\n call @g (c[0])\n ret %void\nc[0] = 5")
    assert pool.constants == [5] and "c[0] = 5" in disassemble(pool)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensor float32 (2) [1, nan]", np.array([1, math.nan], np.float32)),
        ("tensor float16 (1, 2) [1e-3, -inf]", np.array([[1e-3, -math.inf]], np.float16)),
        ("tensor bool (2) [0, 1]", np.array([False, True])),
        ("tensor uint64 () [18446744073709551615]", np.array(2**64 - 1, np.uint64)),
        ("tensor int8 (0, 3) []", np.zeros((0, 3), np.int8)),
        ("tensor complex64 (1) base64 AACAPwAAAEA=", np.array([1 + 2j], np.complex64)),
    ],
)
def test_tensors(text: str, expected: np.ndarray) -> None:
    (constant,) = assemble(f"c[0] = {text}").constants
    assert isinstance(constant, np.ndarray)
    assert constant.dtype == expected.dtype and constant.shape == expected.shape
    np.testing.assert_array_equal(constant, expected)
    assert assemble(disassemble(assemble(f"c[0] = {text}"))).constants[0].tobytes() == expected.tobytes()  # type: ignore[union-attr]


def test_types_without_a_name() -> None:
    executable = assemble(
        "c[0] = tensor dtype(7, 8, 1) (2) [1, 255]\nc[1] = dtype(99, 3, 2)\nc[2] = float(0x7ff8000000000001)"
    )
    assert tensor_dtype(executable.constants[0]) == DataType.from_triple(7, 8, 1)  # type: ignore[arg-type]
    assert isinstance(executable.constants[0], BitsArray)
    assert executable.constants[1] == DataType.from_triple(99, 3, 2)
    assert assemble(disassemble(executable)) == executable


def test_names_that_need_quotes() -> None:
    executable = assemble(
        'table @"two words", @"new\\nline;"\nfunc @f(%0 "a b", %1 "")\n call @"two words" (@"new\\nline;")\n ret %void'
    )
    assert [info.name for info in executable.functions] == ["two words", "new\nline;", "f"]
    assert executable.functions[2].param_names == ["a b", ""]
    assert assemble(disassemble(executable)) == executable


def test_labels_belong_to_functions_and_may_have_any_name() -> None:
    text = "func @f(%0)\nif:\n if %0, call\n goto if\ncall:\n ret %0\nfunc @g(%0)\nif:\n call @h ()\n goto if"
    executable = assemble(text)
    executable.verify()
    assert executable.instr_data.tolist() == [4, 0, 2, 3, -1, 2, 0, 1, 2**54, 2, 0, 3, -1]


def test_register_counts_default_to_what_is_mentioned() -> None:
    executable = assemble("func @f(%0, %1)\n call @g (%4) -> %7\n ret %0\nnative @n(%0)\nfunc @k()\n ret %void")
    assert [info.register_file_size for info in executable.functions] == [8, 0, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("call @f ()", "line 1: an instruction outside of a function"),
        ("\n\nlabel:", "line 3: a label outside of a function"),
        ("func @f()\n goto nowhere", "line 2: label 'nowhere'"),
        ("func @f()\nx:\nx:\n ret %void", "line 3: label 'x' is defined twice"),
        ("func @f()\n ret %void\nfunc @f()", "line 3: function 'f' is defined twice"),
        ("func @f(%1)", "in order"),
        ("func @f(%0 a, %1)", "name all or none"),
        ("func @f() size=3", "unknown property 'size'"),
        ("func @f()\n jump x", "unknown statement 'jump'"),
        ("func @f()\n ret %void extra", "'extra' is left over"),
        ("func @f()\n ret 3", "expected register, found '3'"),
        ("func @f()\n call @g (%0", "expected ,"),
        ("func @f()\n call @g (%99999999999999999)", "56 bits"),
        ("func @f()\n call @g (99999999999999999999)", "64 bits"),
        ("func @f()\n call @g (x)", "'x' is no argument"),
        ("func @f()\n call @g (tensor float32 (2) [1])", "cannot have 1 elements"),
        ("c[0] = tensor float32 (99999999999, 99999999999) []", "cannot have 0 elements"),
        ("c[0] = tensor float32 (-1) []", "cannot have 0 elements"),
        ("c[0] = tensor float33 (1) [1]", "cannot be a constant"),
        ("c[0] = tensor floaty (1) [1]", "not a data type"),
        ("c[0] = tensor int8 (1) [300]", "no int8"),
        ("c[0] = tensor int8 (1) [1.5]", "no int8"),
        ("c[0] = tensor int16 (1) base64 AQ==", "no whole number"),
        ("c[0] = tensor int8 (1) base64 A", "not base64"),
        ("c[0] = 1\nc[0] = 2", "line 2: constant c\\[0\\] is defined twice"),
        ("c[1] = 1", "c\\[0\\] is not among them"),
        ("c[0] = @f", "is no constant"),
        ("meta 3 = 4", "expected string"),
        ("signature @f {", "not JSON"),
        ("signature f {}", "needs a function name"),
        ('meta "a" = "\\ud800"', "no valid string"),
        ("entry @f size=3", "unknown property 'size'"),
        ("entry f", "expected function"),
        ("words", "expected number"),
        ("offsets 9223372036854775808", "64 bits"),
        ("c[0] = any x", "'x' is no value"),
        ("c[0] = any " + "[" * 60, "nested deeper"),
        ("debug [1]", "expected string"),
        ("func @f() regs=1 ยง", "is no token"),
        ("\x00", "is no token"),
        ("c[0] = " + "9" * 5000, "no integer"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        assemble(text)
    assert str(caught.value).startswith("asm")


def odd_executables() -> Iterator[VMExecutable]:
    """Tables, offsets and pools that no compiler writes."""
    for index, fields in (
        (0, {"name": "helper"}), (0, {"name": ""}), (0, {"name": "a\0b"}), (0, {"name": "\ud800"}),
        (0, {"start_instr": 1}), (0, {"end_instr": 100}), (0, {"end_instr": 2**64}), (0, {"kind": 9}), (0, {"kind": 0}),
        (1, {"num_args": 2}), (1, {"param_names": ["a"]}), (5, {"start_instr": 1}), (3, {"start_instr": 3}),
        (0, {"param_names": ["a", "\ud800"]}), (3, {"register_file_size": 2**70}),
    ):  # fmt: skip
        executable = sample()
        for key, value in fields.items():
            setattr(executable.functions[index], key, value)
        yield executable
    for offsets in ([], [0], [5, 3], [0, 2**63 - 1], [-1]):
        executable = sample()
        executable.instr_offset = np.array(offsets, dtype=np.int64)
        yield executable
    for constant in (None, True, [], [None, [1, "x"], False], 2**63, -(2**80), "\ud800"):
        executable = sample()
        executable.constants[2] = constant  # type: ignore[call-overload]
        yield executable
    executable = sample()
    executable.instr_data = np.append(executable.instr_data, 7)
    yield executable
    executable = sample()
    executable.debug = DebugInfo(["one", None])
    executable.notes = DebugInfo([None, "two", None])
    yield executable
    yield VMExecutable(functions=[FunctionInfo(PACKED_FUNC, "a"), FunctionInfo(PACKED_FUNC, "a")])
    executable = sample()
    executable.memory_scopes = {0: "\ud800"}
    yield executable


@pytest.mark.parametrize("executable", list(odd_executables()))
def test_what_the_verifier_refuses_has_a_text_too(executable: VMExecutable) -> None:
    text = disassemble(executable)
    assert text.isascii()
    assert assemble(text) == executable
    assert disassemble(assemble(text)) == text
    with pytest.raises(ExecutableError):
        executable.verify()


def test_rows_and_code_by_hand() -> None:
    executable = assemble(
        'entry @f kind=1 start=0 end=1 args=1 regs=1 params=["x"]\nentry @g\n'
        "code\n call @g (%0)\n goto end\nend:\n ret %0"
    )
    assert executable.functions == [
        FunctionInfo(VM_FUNC, "f", 0, 1, 1, 1, ["x"]), FunctionInfo(PACKED_FUNC, "g"),
    ]  # fmt: skip
    assert executable.instr_offset.tolist() == [0, 5, 7]


def test_executables_without_a_text() -> None:
    def fails(**fields: object) -> None:
        executable = sample()
        for key, value in fields.items():
            setattr(executable.functions[0], key, value)
        with pytest.raises(FormatError):
            disassemble(executable)

    fails(start_instr="x")
    fails(name=None)
    for constant in (b"bytes", {}, np.zeros((4, 2)).T, np.zeros(2, ">f4"), np.zeros(1, object)):
        executable = sample()
        executable.constants[2] = constant  # type: ignore[call-overload]
        with pytest.raises(FormatError):
            disassemble(executable)
    executable = sample()
    executable.instr_offset = executable.instr_offset[::-1].copy()
    assert assemble(disassemble(executable)) == executable
    with pytest.raises(FormatError, match="consecutive"):
        executable.as_text()


def test_instruction_text() -> None:
    executable = sample()
    texts = [instruction_text(executable, pc) for pc in range(len(executable.instr_offset))]
    assert texts[:4] == [
        "call @vm.builtin.check_tensor_info (%0, 2, c[1], c[2])",
        "if %1, +3",
        "call @kernel.add (%0, c[0], c[3], c[4], %void, %vm) -> %2",
        "goto +2",
    ]
    assert texts[-1] == "ret %0" and instruction_text(executable, 99) == "no instruction 99"
    broken = VMExecutable([FunctionInfo(1, "f", 0, 1, 0, 0)], (), [0], [9, 9])
    assert instruction_text(broken, 0) == "malformed instruction at word 0"


def test_as_text_has_the_layout_of_tvm() -> None:
    assert assemble(
        "func @main(%0, %1)\n if %0, L\n call @f (%0, -7, 0.5, @g, %void, %vm) -> %2\n goto E\nL:\n"
        " call @a.very.long.function.name (%0) -> %2\n call @g ()\nE:\n ret %2\nfunc @g()\n ret %void\nnative @n(%0)"
    ).as_text() == (
        "@main:\n"
        "  If    %0, 3\n"
        "  call  f                in: %0, i-7, c[0], f[g], %void, %vm dst: %2\n"
        "  goto  3\n"
        "  call  a.very.long.function.name in: %0           dst: %2\n"
        "  call  g                in:              dst: %void\n"
        "  ret   %2\n"
        "\n"
        "@f packed_func;\n\n"
        "@g:\n  ret   %void\n\n"
        "@a.very.long.function.name packed_func;\n\n"
        "@n num_inputs=1 vm_tir_func;\n\n"
    )


def test_mutated_text() -> None:
    """Only ExecutableError comes out, and what assembles can be loaded or is refused by the verifier."""
    verified = 0
    for mutant in mutations(SAMPLE.encode(), 1500):
        try:
            executable = assemble(mutant.decode("utf-8", errors="replace"))
            executable.verify()
            verified += 1
        except ExecutableError:
            continue
        assert assemble(disassemble(executable)) == executable
    assert verified > 50
